from __future__ import annotations

import shutil
from itertools import islice

import numpy as np
import pytest

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.hha import estimate_gravity

pytest.importorskip('torch')

from rgbd_fusion_seg.training.datasets.nyudv2 import (
    INTRINSICS,
    NyuDepthV2,
    depth_from_levels,
)


def test_the_official_split_is_read(data_dir):
    train, test = (NyuDepthV2(data_dir / 'nyudv2', split) for split in ('train', 'test'))
    assert (len(train), len(test)) == (795, 654)
    assert not set(train.ids) & set(test.ids)
    item = next(iter(train))
    assert item.frame.rgb.shape == (480, 640, 3)
    assert 0.5 < np.median(item.frame.depth) < 8.0
    assert set(np.unique(item.labels)) <= {*range(40), 255}


def test_colour_is_rgb_not_bgr(nyu_pack):
    frame = next(iter(NyuDepthV2(nyu_pack, 'train')))
    box = frame.frame.rgb[frame.labels == 28].mean(0)
    assert box[0] > 150 > box[2]


def test_smoothing_stays_within_a_level_and_keeps_edges():
    levels = np.full((60, 80), 40, np.uint8)
    levels[:, 40:] = 90
    levels[30, 10] = 0
    depth = depth_from_levels(levels)
    valid = levels > 0
    low, high = levels / 25.5, (levels + 1) / 25.5
    assert (depth[valid] >= low[valid] - 1e-5).all()
    assert (depth[valid] <= high[valid] + 1e-5).all()
    assert depth[30, 10] == 0


def test_smoothing_brings_the_planes_of_a_slope_back():
    """A slanted plane, rounded to levels, comes back closer than its rounding."""
    true = 2.0 + np.linspace(0, 1, 200, dtype=np.float32)[None, :].repeat(100, 0)
    levels = np.floor(true * 25.5).astype(np.uint8)
    raw = (levels + 0.5) / 25.5
    inner = (slice(20, -20), slice(20, -20))
    error = np.abs(depth_from_levels(levels) - true)[inner].mean()
    assert error < 0.5 * np.abs(raw - true)[inner].mean()


def test_gravity_agrees_with_the_rotations_of_another_tool(data_dir):
    """The pack's rotations level each camera; their third axis (x, z, y) is their gravity."""
    pack = NyuDepthV2(data_dir / 'nyudv2', 'train')
    rotations = np.loadtxt(data_dir / 'nyudv2' / 'camera_rotations.txt').reshape(-1, 3, 3)
    ours, image_axis = [], []
    for frame_id, item in islice(zip(pack.ids, pack, strict=True), 0, 240, 12):
        theirs = rotations[int(frame_id) - 1][:, 2][[0, 2, 1]]
        gravity = estimate_gravity(item.frame.depth, INTRINSICS)
        ours.append(np.degrees(np.arccos(np.clip(theirs @ gravity, -1, 1))))
        image_axis.append(np.degrees(np.arccos(np.clip(theirs[1], -1, 1))))
    assert np.median(ours) < 4.0
    assert np.median(ours) < 0.6 * np.median(image_axis)


def test_a_folder_that_is_no_pack_is_named(tmp_path, nyu_pack):
    with pytest.raises(InputError, match=r'train\.txt'):
        NyuDepthV2(tmp_path, 'train')
    with pytest.raises(InputError, match='train'):
        NyuDepthV2(nyu_pack, 'validation')


def test_a_missing_image_is_named(nyu_pack, tmp_path):
    broken = tmp_path / 'pack'
    shutil.copytree(nyu_pack, broken)
    (broken / 'depth8' / '0002.png').unlink()
    with pytest.raises(InputError, match='0002'):
        list(NyuDepthV2(broken, 'train'))
