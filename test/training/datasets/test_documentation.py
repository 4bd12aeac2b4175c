"""What docs/datasets.md says can be done as it says."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('torch')

from jsonargparse import CLI, ArgumentParser, capture_parser

from rgbd_fusion_seg.training.__main__ import PROGRAM, Parser, functions
from rgbd_fusion_seg.training.config import DataConfig, DatasetConfig, NetworkConfig
from rgbd_fusion_seg.training.datasets import DATASETS, cache, open_dataset
from rgbd_fusion_seg.training.datasets.prepare import _depth_sizes
from rgbd_fusion_seg.training.initialisation import bare_network

TEXT = (Path(__file__).parents[3] / 'docs' / 'datasets.md').read_text()


def test_every_data_set_is_in_the_table_with_its_classes():
    rows = dict(re.findall(r'^\| \[`(\w+)`\].*?\|.*?\| (\w+) \|', TEXT, flags=re.MULTILINE))
    assert set(rows) == set(DATASETS)
    counts = {name: str(len(DATASETS[name].classes)) for name in rows if name != 'folder'}
    assert {name: rows[name] for name in counts} == counts


class Frame:
    """One frame of a data set, of which nothing but the size is known."""

    def __init__(self, name):
        self.name, self.classes, self.size = name, DATASETS[name].classes, DATASETS[name].size

    def __len__(self):
        return 1

    def describe(self):
        return {}


def prepared_mb(name: str, width: int, height: int) -> float:
    """Return what a frame takes that is prepared for the default network at an input size."""
    frame, data = Frame(name), DataConfig(width=width, height=height)
    sizes = _depth_sizes(bare_network(NetworkConfig()), data, frame.size)
    parts = cache._parts(frame, Path(), sizes, depth=False, pictures=True)
    return sum(part.num_bytes for part in parts) / 1e6


def test_prepared_frames_are_as_large_as_it_says():
    cells = dict(re.findall(r'^\| \[`(\w+)`\].*\| ([^|]*?) \|$', TEXT, flags=re.MULTILINE))
    counts = {'nyudv2': 1449, 'sunrgbd': 10_335, 'scannet': 25_000, 'cityscapes': 3475}
    for name, count in counts.items():
        assert cells[name] == f'{count * prepared_mb(name, 320, 240) / 1e3:.2g} GB'
    assert cells['synthetic'] == f'{prepared_mb("synthetic", 320, 240):.1f} MB a frame'
    larger = prepared_mb('nyudv2', 512, 384)
    assert f'512x384 NYUDv2 takes {1.449 * larger:.1f} GB, {larger:.1f} MB a frame' in TEXT


@pytest.fixture
def parser(monkeypatch) -> ArgumentParser:
    """That of the command line."""
    monkeypatch.setattr('sys.argv', ['training'])
    commands = functions()
    return capture_parser(lambda: CLI(commands, as_positional=False, parser_class=Parser))


def test_the_commands_are_those_of_the_command_line(parser):
    blocks = re.findall(r'^```bash\n(.*?)^```', TEXT, flags=re.MULTILINE | re.DOTALL)
    lines = ''.join(blocks).replace('\\\n', '').splitlines()
    assert len(lines) >= 3
    for line in lines:
        assert line.startswith(f'{PROGRAM} ')
        parser.parse_args(shlex.split(line.removeprefix(PROGRAM)))


def test_options_of_a_reader_are_given_to_each_command_as_it_says(parser):
    (chosen,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    takers = {
        (option, command)
        for command, its in chosen.choices.items()
        for action in its._actions
        for option in action.option_strings
        if option.endswith('data.dataset.options') and command != 'study'  # told by its file
    }
    told = re.findall(r"`(--[\w.]+) '{depth: raw}'`\s+\(([^)]+)\)", TEXT)
    found = {
        (option, command) for option, names in told for command in re.findall(r'[\w-]+', names)
    }
    assert found == takers


def test_the_description_of_an_own_folder_opens(tmp_path):
    (description,) = re.findall(r'^```yaml\n(.*?)^```', TEXT, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / 'my_robot.yaml').write_text(description)
    for part, image in (
        ('rgb/a1.jpg', np.full((480, 640, 3), 90, np.uint8)),
        ('depth/a1.png', np.full((480, 640), 1500, np.uint16)),
        ('labels/a1.png', np.full((480, 640), 2, np.uint8)),
    ):
        for split in ('train', 'test'):
            (tmp_path / split / part).parent.mkdir(parents=True)
            cv2.imwrite(str(tmp_path / split / part), image)
    config = DatasetConfig(name='folder', folder=str(tmp_path / 'my_robot.yaml'))
    for split in ('train', 'test'):
        item = open_dataset(config, split)[0]
        assert item.labels[0, 0] == 2
        assert item.frame.depth[0, 0] == pytest.approx(1.5)
