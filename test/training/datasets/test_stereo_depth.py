"""Frames seen by stereo: the same pictures and labels, other depth, prepared and scored so."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('torch')

from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.synthetic import scene, stereo
from rgbd_fusion_seg.training.config import DataConfig, DatasetConfig, NetworkConfig
from rgbd_fusion_seg.training.datasets import open_dataset, stereo_depth
from rgbd_fusion_seg.training.datasets.base import LabelledFrame
from rgbd_fusion_seg.training.datasets.cache import cached_frames
from rgbd_fusion_seg.training.datasets.nyudv2 import NyuDepthV2
from rgbd_fusion_seg.training.datasets.prepare import prepare_frames
from rgbd_fusion_seg.training.datasets.stereo_depth import StereoDepth
from rgbd_fusion_seg.training.evaluation import scored_sources
from rgbd_fusion_seg.training.initialisation import bare_network

ROOMS = DatasetConfig('synthetic', options={'train_frames': 3, 'test_frames': 2})


@pytest.fixture(scope='module')
def rooms():
    return open_dataset(ROOMS, 'train')


def test_only_depth_is_another(rooms):
    stereo = StereoDepth(rooms)
    assert len(stereo) == 3
    assert (stereo.name, stereo.size) == (f'{rooms.name}-stereo', rooms.size)
    assert stereo.terms.startswith(rooms.terms)
    for i in range(3):
        theirs, ours, again = rooms[i], stereo[i], stereo[i]
        np.testing.assert_array_equal(ours.frame.rgb, theirs.frame.rgb)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.frame.depth, again.frame.depth)
        assert ours.frame.intrinsics == theirs.frame.intrinsics
        seen = (ours.frame.depth > 0) & (theirs.frame.depth > 0)
        ratio = ours.frame.depth[seen] / theirs.frame.depth[seen]
        assert np.median(np.abs(np.log(ratio))) < 0.05
        assert (ours.frame.depth[:, :64] == 0).all()


@pytest.mark.parametrize('scale', [0.25, 3.0])
def test_pairs_are_matched_at_one_size_whatever_the_size_of_the_data(rooms, scale, monkeypatch):
    """Windows and disparities are pixels: of 1920x1440 nothing nearer than 3 m would be found."""

    class Scaled:
        name, classes, terms, ids = rooms.name, rooms.classes, rooms.terms, None

        def __getitem__(self, index):
            item = rooms[index]
            camera = item.frame.intrinsics.scaled(scale)
            size = camera.width, camera.height
            frame = RgbdFrame(
                cv2.resize(item.frame.rgb, size, interpolation=cv2.INTER_AREA),
                cv2.resize(item.frame.depth, size, interpolation=cv2.INTER_NEAREST_EXACT),
                camera,
            )
            return LabelledFrame(frame, np.zeros(size[::-1], np.uint8))

    matched = []

    def simulate(*scene):
        matched.append(stereo.simulate_stereo(*scene))
        return matched[-1]

    monkeypatch.setattr(stereo_depth, 'simulate_stereo', simulate)
    source = Scaled()
    source.size = tuple(round(side * scale) for side in rooms.size)
    for i in range(3):
        own, ours, theirs = StereoDepth(rooms)[i], StereoDepth(source)[i], source[i]
        depth, exact = ours.frame.depth, theirs.frame.depth
        np.testing.assert_array_equal(ours.frame.rgb, theirs.frame.rgb)
        assert depth.dtype == np.float32
        # Nothing is read between what was matched and a hole beside it.
        assert np.unique(depth).size <= np.unique(matched[-1]).size
        assert (depth > 0).mean() == pytest.approx((own.frame.depth > 0).mean(), abs=0.12)
        seen = (depth > 0) & (exact > 0)
        assert np.median(np.abs(np.log(depth[seen] / exact[seen]))) < 0.05


def test_each_frame_has_a_rig_of_its_own(rooms, monkeypatch):
    seen = []

    def simulate(rgb, depth, intrinsics, rig, rng):
        seen.append((rig, rng.random()))
        return depth

    monkeypatch.setattr(stereo_depth, 'simulate_stereo', simulate)
    for _ in range(2):
        for i in range(3):
            StereoDepth(rooms)[i]
    assert seen[:3] == seen[3:]
    assert len({rig for rig, _ in seen}) == len({noise for _, noise in seen}) == 3


def test_the_key_of_prepared_frames_depends_on_what_the_data_set_is(tmp_path, nyu_pack):
    sources = [NyuDepthV2(nyu_pack, split) for split in ('train', 'test')]
    keys = [StereoDepth(source).describe() for source in sources]
    assert keys[0] != keys[1]
    assert keys[0] == StereoDepth(NyuDepthV2(nyu_pack, 'train')).describe()
    frames = cached_frames(StereoDepth(sources[1]), tmp_path / 'whole')
    own = cached_frames(sources[1], tmp_path)
    np.testing.assert_array_equal(frames.rgb[0], own.rgb[0])
    assert frames.name == 'nyudv2-test-stereo'
    shared = cached_frames(StereoDepth(sources[1]), tmp_path, pictures=own)
    assert shared.rgb is own.rgb
    assert shared.labels is own.labels
    for a, b in zip(shared.hha, frames.hha, strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ('depth_range_m', 'valid_depth', 'class_pixels'):
        assert getattr(shared, name) == getattr(frames, name)
    assert all((a != b).any() for a, b in zip(frames.hha, own.hha, strict=True))


@pytest.mark.parametrize(('share', 'test'), [(0.0, False), (0.4, False), (0.0, True)])
def test_stereo_is_prepared_where_it_is_wanted(tmp_path, share, test):
    data = DataConfig(
        ROOMS, cache=str(tmp_path), width=64, height=48, stereo_share=share, stereo_test=test
    )
    frames = prepare_frames(data, bare_network(NetworkConfig()))
    wanted = {'stereo': share > 0, 'stereo_test': test}
    assert {*frames} == {'train', 'test', *(name for name, wish in wanted.items() if wish)}
    for name in {*wanted} & {*frames}:
        own = frames['train' if name == 'stereo' else 'test']
        assert frames[name].labels is own.labels
        assert frames[name].rgb is own.rgb
        assert (frames[name].hha[0] != own.hha[0]).any()
    assert not [*tmp_path.glob('*-stereo-colour-*')]


def test_a_network_without_depth_needs_no_stereo(tmp_path):
    data = DataConfig(
        ROOMS, cache=str(tmp_path), width=64, height=48, stereo_share=0.4, stereo_test=True
    )
    network = bare_network(NetworkConfig('erfnet', {'modality': 'rgb'}))
    assert {*prepare_frames(data, network)} == {'train', 'test'}


def test_rooms_stay_the_same_when_stereo_changes(rooms, monkeypatch):
    before = [rooms.describe(), StereoDepth(rooms).describe()]
    files = {Path(module.__file__) for module in (stereo, scene)}
    read = Path.read_bytes
    for changed in files:
        monkeypatch.setattr(
            Path, 'read_bytes', lambda path, c=changed: read(path) + b'#' * (path == c)
        )
        same = [
            a == b
            for a, b in zip(before, (rooms.describe(), StereoDepth(rooms).describe()), strict=True)
        ]
        assert same == [changed == Path(stereo.__file__), False]


def test_stereo_is_scored_where_it_is_wanted():
    scored = scored_sources(DataConfig(ROOMS, stereo_test=True))
    assert list(scored) == ['synthetic_test', 'synthetic_test_stereo']
    assert len(scored['synthetic_test_stereo']) == 2
    assert list(scored_sources(DataConfig(ROOMS))) == ['synthetic_test']
