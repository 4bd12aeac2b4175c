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
from rgbd_fusion_seg.training.config import DatasetConfig
from rgbd_fusion_seg.training.datasets import DATASETS, open_dataset

TEXT = (Path(__file__).parents[3] / 'docs' / 'datasets.md').read_text()


def test_every_data_set_is_in_the_table_with_its_classes():
    rows = dict(re.findall(r'^\| \[`(\w+)`\].*?\|.*?\| (\w+) \|', TEXT, flags=re.MULTILINE))
    assert set(rows) == set(DATASETS)
    counts = {name: str(len(DATASETS[name].classes)) for name in rows if name != 'folder'}
    assert {name: rows[name] for name in counts} == counts


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
