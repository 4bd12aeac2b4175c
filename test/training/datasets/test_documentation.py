"""What docs/datasets.md says can be done as it says."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('torch')

from rgbd_fusion_seg.training.config import DatasetConfig
from rgbd_fusion_seg.training.datasets import DATASETS, open_dataset

TEXT = (Path(__file__).parents[3] / 'docs' / 'datasets.md').read_text()


def test_every_data_set_is_in_the_table_with_its_classes():
    rows = dict(re.findall(r'^\| \[`(\w+)`\].*?\|.*?\| (\w+) \|', TEXT, flags=re.MULTILINE))
    assert set(rows) == set(DATASETS)
    counts = {name: str(len(DATASETS[name].classes)) for name in rows if name != 'folder'}
    assert {name: rows[name] for name in counts} == counts


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
