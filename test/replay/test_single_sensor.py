"""Recordings of which one sensor is labelled: what may be absent, and what takes its place."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg.depth import grey_picture
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.replay.bags import BagFrames
from rgbd_fusion_seg.replay.calibration import parse_calibration
from rgbd_fusion_seg.replay.folders import FolderFrames
from rgbd_fusion_seg.replay.topics import BagTopics

from .bag_camera import COLOUR, DEPTH, INFO, Camera, stamp, write_pair
from .conftest import HEIGHT, MATRIX, WIDTH, frame_pixels, write_frame

INTRINSICS = Intrinsics(30, 30, 15.5, 11.5, WIDTH, HEIGHT)


def assert_frame(frame, index, sensors=('rgb', 'depth')):
    """Check what the sensors saw, and what stands for the one that saw nothing."""
    rgb, millimetres = frame_pixels(index)
    metres = millimetres / 1000 if 'depth' in sensors else np.zeros(rgb.shape[:2])
    np.testing.assert_allclose(frame.depth, metres, rtol=1e-6)
    np.testing.assert_array_equal(
        frame.rgb, rgb if 'rgb' in sensors else grey_picture(frame.depth)
    )


def one_sensor_bag(path: Path, only: str, info: str = '', **info_fields) -> Path:
    with Camera(path) as camera:
        for index in range(3):
            if info:
                camera.info(info, stamp(index), **info_fields)
            rgb, depth = frame_pixels(index)
            if only == 'rgb':
                camera.image(COLOUR, stamp(index), rgb, 'rgb8')
            else:
                camera.image(DEPTH, stamp(index), depth, '16UC1')
    return path


@pytest.mark.parametrize('only', ['rgb', 'depth'])
def test_bag_of_one_sensor(tmp_path, only):
    source = BagFrames(one_sensor_bag(tmp_path / 'bag', only, INFO), only=only)
    assert len(source) == 3
    frames = list(source)
    for index, frame in enumerate(frames):
        assert_frame(frame, index, (only,))
        assert frame.intrinsics == INTRINSICS
        assert (frame.stamp_ns, frame.frame_id) == (stamp(index), 'optical')
    assert len(frames) == 3
    assert (source.skipped, source.unmatched) == (0, 0)


@pytest.mark.parametrize(
    ('only', 'topic'), [('rgb', '/cam/rgb/image_raw'), ('depth', '/cam/depth_registered/image')]
)
def test_bag_that_lacks_a_sensor_tells_what_can_be_done(tmp_path, only, topic):
    bag = one_sensor_bag(tmp_path / 'bag', only, INFO)
    with pytest.raises(InputError, match=f'with --only {only}') as caught:
        BagFrames(bag)
    assert topic not in str(caught.value)  # which is of no use as the other sensor's
    other = {'rgb': 'depth', 'depth': 'rgb'}[only]
    with pytest.raises(InputError, match=f'name one of these as .* topic: {topic}'):
        BagFrames(bag, only=other)


def test_a_depth_topic_of_another_name_is_not_taken_for_colour(tmp_path):
    with Camera(tmp_path / 'bag') as camera:
        camera.info('/tof/camera_info', stamp(0))
        camera.image('/tof/image', stamp(0), frame_pixels(0)[1], '16UC1')
    source = BagFrames(tmp_path / 'bag', BagTopics(depth='/tof/image'), only='depth')
    assert source.topics == BagTopics(None, '/tof/image', '/tof/camera_info')
    (frame,) = source
    assert_frame(frame, 0, ('depth',))


def test_colour_alone_needs_no_calibration_and_depth_does(tmp_path):
    infos = {'none': {}, 'uncalibrated': {'info': INFO, 'focal': 0.0}}
    infos['of another size'] = {'info': INFO, 'width': 640}
    for name, fields in infos.items():
        frames = list(BagFrames(one_sensor_bag(tmp_path / name, 'rgb', **fields), only='rgb'))
        assert len(frames) == 3, name
        assert (frames[0].intrinsics.width, frames[0].intrinsics.height) == (WIDTH, HEIGHT)
    bag = one_sensor_bag(tmp_path / 'depth', 'depth')
    with pytest.raises(InputError, match=f'no camera info for {DEPTH}; give the intrinsics'):
        BagFrames(bag, only='depth')
    frames = BagFrames(bag, only='depth', calibration=parse_calibration('30,30,15.5,11.5'))
    assert [frame.intrinsics for frame in frames] == [INTRINSICS] * 3


@pytest.mark.parametrize(
    ('depth', 'infos', 'chosen'),
    [
        ('/cam/depth/image', ('/cam/rgb/camera_info', '/cam/depth/camera_info'), 1),
        ('/cam/depth/a/b/image', ('/cam/rgb/camera_info', '/cam/depth/camera_info'), 1),
        ('/cam/depth_registered/image', ('/cam/depth/camera_info', '/cam/rgb/camera_info'), 1),
    ],
)
def test_camera_info_of_depth_alone(tmp_path, depth, infos, chosen):
    with Camera(tmp_path / 'bag') as camera:
        for info in infos:
            camera.info(info, stamp(0))
        camera.image(depth, stamp(0), frame_pixels(0)[1], '16UC1')
    assert BagFrames(tmp_path / 'bag', only='depth').topics.camera_info == infos[chosen]


def test_bag_of_both_gives_every_image_of_the_one_and_the_partners_there_are(tmp_path):
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        for index in range(9):
            rgb, depth = frame_pixels(index)
            if index % 3 != 1:
                camera.image(COLOUR, stamp(index), rgb, 'rgb8')
            if index % 3 != 2:
                camera.image(DEPTH, stamp(index), depth, '16UC1')
    for only, lacking, alone in (('rgb', 1, 2), ('depth', 2, 1)):
        source = BagFrames(tmp_path / 'bag', only=only)
        indices = [index for index in range(9) if index % 3 != lacking]
        assert len(source) == len(indices)
        for frame, index in zip(source, indices, strict=True):
            assert_frame(frame, index, (only,) if index % 3 == alone else ('rgb', 'depth'))
            assert frame.stamp_ns == stamp(index)
        assert source.unmatched == 0
    source = BagFrames(tmp_path / 'bag')
    assert len(list(source)) == 3
    assert source.unmatched == 3


def test_the_other_sensor_may_be_unusable_or_of_another_size(tmp_path):
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        write_pair(camera, 0)
        rgb, depth = frame_pixels(1)
        camera.image(COLOUR, stamp(1), rgb, 'rgb8')
        camera.image(DEPTH, stamp(1), depth[:, :16], '16UC1')
        rgb, depth = frame_pixels(2)
        camera.image(COLOUR, stamp(2), rgb, 'rgb8')
        camera.image(DEPTH, stamp(2), depth, '8UC1', data=depth.ravel().view(np.uint8)[:9])
    source = BagFrames(tmp_path / 'bag', only='rgb')
    for index, (frame, sensors) in enumerate(
        zip(source, (('rgb', 'depth'), ('rgb',), ('rgb',)), strict=True)
    ):
        assert_frame(frame, index, sensors)
    assert source.skipped == 0


@pytest.mark.parametrize('layout', ['{}.{}.png', '{1}/{0}.png'])
@pytest.mark.parametrize('only', ['rgb', 'depth'])
def test_folder_of_one_sensor(tmp_path, layout, only):
    role = 'color' if layout.startswith('{}') else 'rgb'
    for index in range(2):
        names = (layout.format(index, role), layout.format(index, 'depth'))
        write_frame(tmp_path, *names, index)
        (tmp_path / names[only == 'rgb']).unlink()
    with pytest.raises(InputError, match=f'no pairs of colour and depth.*with --only {only}'):
        FolderFrames(tmp_path)
    other, images = {'rgb': ('depth', 'depth'), 'depth': ('rgb', 'colour')}[only]
    with pytest.raises(InputError, match=f'has no {images} images'):
        FolderFrames(tmp_path, only=other)
    if only == 'depth':
        with pytest.raises(InputError, match='no calibration for 0'):
            FolderFrames(tmp_path, only=only)
    else:
        assert next(iter(FolderFrames(tmp_path, only=only))).intrinsics.width == WIDTH
    (tmp_path / 'intrinsics.txt').write_text(MATRIX)
    source = FolderFrames(tmp_path, only=only)
    frames = list(source)
    assert [source.name(i) for i in range(len(source))] == ['0', '1']
    for index, frame in enumerate(frames):
        assert_frame(frame, index, (only,))
        assert frame.intrinsics == INTRINSICS


def test_folder_of_both_gives_every_image_of_the_one(kinect_folder, caplog):
    (kinect_folder / 'frame-3.depth.png').unlink()
    (kinect_folder / 'frame-5.color.png').unlink()
    cv2.imwrite(str(kinect_folder / 'frame-4.depth.png'), np.zeros((HEIGHT, 16), np.uint16))
    (kinect_folder / 'frame-6.depth.png').write_bytes(b'no image')
    with caplog.at_level(logging.WARNING):
        source = FolderFrames(kinect_folder, only='rgb')
    assert caplog.records == []
    assert source.unmatched == 0
    indices = [index for index in range(12) if index != 5]
    for frame, index in zip(source, indices, strict=True):
        assert_frame(frame, index, ('rgb',) if index in (3, 4, 6) else ('rgb', 'depth'))


def test_images_without_a_partner_are_counted_and_told(kinect_folder, caplog):
    for name in ('frame-3.depth.png', 'frame-5.color.png', 'frame-8.color.png'):
        (kinect_folder / name).unlink()
    with caplog.at_level(logging.WARNING):
        source = FolderFrames(kinect_folder)
    assert len(list(source)) == 9
    assert source.unmatched == 3
    (told,) = (record.getMessage() for record in caplog.records)
    assert '3 images without a partner' in told
    assert 'frame-3.color.png' in told
