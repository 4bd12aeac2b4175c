"""Recordings on their way through the network: what is read of them, and what is told of them."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics, Segmentation
from rgbd_fusion_seg.replay import segment
from rgbd_fusion_seg.replay.calibration import parse_calibration
from rgbd_fusion_seg.replay.folders import FolderFrames
from rgbd_fusion_seg.replay.segment import open_source, segment_recording
from rgbd_fusion_seg.replay.topics import BagTopics
from rgbd_fusion_seg.replay.truth import TruthFolder
from rgbd_fusion_seg.segmenter import Segmenter

from .bag_camera import COLOUR, DEPTH, INFO, Camera, stamp, write_pair
from .conftest import HEIGHT, WIDTH, frame_pixels

UPRIGHT, ROLLED = np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0])


def test_a_bag_is_read_as_it_was_asked_for(tmp_path):
    other = '/tof/depth/image'
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0), focal=99.0)
        write_pair(camera, 0)
        camera.image(other, stamp(0), frame_pixels(1)[1], '16UC1')
        camera.image(COLOUR, stamp(1), frame_pixels(1)[0], 'rgb8')
    calibration = parse_calibration('30,31,15.5,11.5')
    topics = BagTopics(depth=other)
    (frame,) = open_source(tmp_path / 'bag', calibration=calibration, topics=topics)
    np.testing.assert_array_equal(frame.rgb, frame_pixels(0)[0])
    np.testing.assert_allclose(frame.depth, frame_pixels(1)[1] / 1000, rtol=1e-6)
    assert frame.intrinsics == Intrinsics(30, 31, 15.5, 11.5, WIDTH, HEIGHT)
    assert len(list(open_source(tmp_path / 'bag', only='rgb'))) == 2


def floor_below(folder: Path, down: np.ndarray) -> FolderFrames:
    """Write 20 equal frames of a floor 0.4 m below the camera and of a wall 3 m ahead."""
    folder.mkdir()
    v, u = np.mgrid[:120, :160]
    rays = np.stack([(u - 79.5) / 130, (v - 59.5) / 130, np.ones_like(u)], -1)
    with np.errstate(divide='ignore'):
        to_floor = 0.4 / (rays @ down)
    metres = np.where(to_floor > 0, np.minimum(to_floor, 3), 3)
    for index in range(20):
        cv2.imwrite(str(folder / f'f{index:02d}.color.png'), np.full((120, 160, 3), 90, np.uint8))
        cv2.imwrite(str(folder / f'f{index:02d}.depth.png'), (metres * 1000).astype(np.uint16))
    return FolderFrames(folder, calibration=parse_calibration('130,130,79.5,59.5'))


@pytest.mark.parametrize(
    ('down', 'given', 'modality', 'told'),
    [
        (UPRIGHT, {}, 'hha', True),
        (UPRIGHT, {'camera_height': 0.4}, 'hha', False),
        (UPRIGHT, {}, 'depth', False),
        # A rolled camera is not expected: the lowest that is seen would be the wall.
        (ROLLED, {}, 'hha', False),
        (ROLLED, {'gravity': ROLLED}, 'hha', True),
    ],
)
def test_a_floor_that_is_always_guessed_is_told_once(
    tmp_path, caplog, down, given, modality, told
):
    bundles = pytest.importorskip('bundles', reason='making bundles needs onnx')
    source, seen = floor_below(tmp_path / 'frames', down), {'modalities': ('rgb', modality)}
    parts = bundles.tiny_card(**seen), bundles.tiny_network(**seen)
    with Segmenter(bundles.write_bundle(tmp_path / 'tiny', *parts)) as segmenter:
        segment_recording(source, segmenter, tmp_path / 'out', video=False, **given)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']
    assert len(warnings) == told
    for warning in warnings:
        assert warning.startswith('f17: nothing is seen more than')
        assert warning.endswith('; if it is the floor, give --camera-height')


def stand_in(bundle: Path, results: list[Segmentation]) -> SimpleNamespace:
    """Return what looks like a segmenter and answers with these results."""
    answers = iter(results)
    return SimpleNamespace(
        bundle=load_bundle(bundle), engine_name='stand-in', segment=lambda *_: next(answers)
    )


def labelled(label: int, **timings: float) -> Segmentation:
    """Return a result of which eight pixels have a label."""
    labels = np.full((HEIGHT, WIDTH), 255, np.uint8)
    labels[0, :8] = label
    return Segmentation(labels, np.zeros_like(labels), timings)


def test_the_table_and_the_sheet_of_a_run(tiny_bundle, tmp_path, monkeypatch):
    frames, out, truth = (tmp_path / name for name in ('frames', 'out', 'truth'))
    frames.mkdir()
    truth.mkdir()
    shades = [20 * index + 10 for index in range(8)]
    for index, shade in enumerate(shades):
        color = np.full((HEIGHT, WIDTH, 3), shade, np.uint8)
        cv2.imwrite(str(frames / f'{index}.color.png'), color)
        cv2.imwrite(str(frames / f'{index}.depth.png'), np.full(color.shape[:2], 1000, np.uint16))
    cv2.imwrite(str(truth / '0.png'), labelled(3).labels)
    source = FolderFrames(frames, calibration=parse_calibration('30,30,15.5,11.5'))
    second_ms = (50, 6, 6, 6, 6, 6, 93)
    results = [labelled(1 + (i > 2), one=i + 1.0, two=float(ms)) for i, ms in enumerate(second_ms)]
    segmenter, clock_s = stand_in(tiny_bundle, results), iter((0.0, 1.0, 5.0, 9.0))
    monkeypatch.setattr(segment, 'time', SimpleNamespace(monotonic=clock_s.__next__))
    with pytest.raises(InputError, match='no frame was segmented'):
        segment_recording(source, segmenter, out, video=False, max_frames=0)
    rows = segment_recording(
        source, segmenter, out, truth=TruthFolder(truth, ['0']), video=False, max_frames=7
    ).rows
    assert (rows['frames'], rows['frames scored']) == (7, 1)
    assert (rows['one, median (ms)'], rows['two, median (ms)']) == (4, 6)
    # The frames took 51, 8, 9, 10, 11, 12 and 100 ms.
    assert rows['frames/s, segmentation alone'] == pytest.approx(1000 / 11)
    assert rows['frames/s, with reading and writing'] == 7 / 4

    sheet = cv2.imread(str(out / 'contact_sheet.png'))[..., ::-1]
    shown = [shade for shade in shades if (sheet == shade).all(axis=2).sum() > 320 * 100]
    assert len(shown) == 6
    assert {shades[0], shades[6]} < set(shown) < set(shades[:7])
    # Overlays mix colours, so those of the classes are in the legend alone.
    told = [(sheet == color).all(axis=2).sum() > 100 for color in segmenter.bundle.colors]
    assert told == [False, True, True, True]


def test_what_is_left_out_of_a_bag_is_counted(tiny_bundle, tmp_path):
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        for index in range(6):
            rgb, depth = frame_pixels(index)
            camera.image(COLOUR, stamp(index), rgb, 'yuv422' if index == 1 else 'rgb8')
            if index not in (2, 4):
                camera.image(DEPTH, stamp(index), depth, '16UC1')
    segmenter = stand_in(tiny_bundle, [labelled(0, all=1.0)] * 3)
    source = open_source(tmp_path / 'bag')
    rows = segment_recording(source, segmenter, tmp_path / 'out', video=False).rows
    counts = ('frames', 'messages skipped', 'images without a partner')
    assert [rows[name] for name in counts] == [3, 1, 2]


def test_a_bag_whose_messages_nobody_counted(tiny_bundle, tmp_path):
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        for index in range(3):
            write_pair(camera, index)
    metadata = tmp_path / 'bag/metadata.yaml'
    metadata.write_text(re.sub(r'message_count: \d+', 'message_count: 0', metadata.read_text()))
    segmenter, out = stand_in(tiny_bundle, [labelled(0, all=1.0)] * 3), tmp_path / 'out'
    result = segment_recording(open_source(tmp_path / 'bag'), segmenter, out, video=False)
    assert result.rows['frames'] == 3
    assert all(path.exists() for path in result.files)
