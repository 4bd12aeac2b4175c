"""What the synthetic camera makes of a rendered room."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.ros.images import color_from_msg, depth_from_msg
from rgbd_fusion_seg.ros.parameters import SyntheticCameraConfig
from rgbd_fusion_seg.ros.synthetic_camera import (
    camera_intrinsics,
    encode_depth,
    ping_pong,
    render_walk,
)
from rgbd_fusion_seg.synthetic.scene import Room

METRES = np.array([[0.5, 1.2346, 65.535, 70.0, 0.0, -1.0, np.nan, np.inf]], np.float32)


def test_depth_in_millimetres():
    encoded = encode_depth(METRES, '16UC1')
    assert encoded.dtype == np.uint16
    assert encoded.tolist() == [[500, 1235, 65535, 0, 0, 0, 0, 0]]


def test_depth_in_metres():
    encoded = encode_depth(METRES, '32FC1')
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, np.where(np.arange(8) < 4, METRES, np.nan))


@pytest.mark.parametrize(
    ('count', 'expected'), [(2, [0, 1] * 4), (4, [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2])]
)
def test_a_walk_is_played_to_and_fro(count, expected):
    assert [ping_pong(index, count) for index in range(len(expected))] == expected


@pytest.mark.parametrize('height', [240, 180])
def test_the_field_of_view_across_is_that_of_a_kinect(height):
    expected = Intrinsics(262.5, 262.5, 159.5, (height - 1) / 2, 320, height)
    assert camera_intrinsics(320, height) == expected


@pytest.mark.parametrize('encoding', ['16UC1', '32FC1'])
def test_images_are_those_of_the_room(encoding):
    config = SyntheticCameraConfig(
        seed=3, num_frames=2, rate_hz=5, noise=False, depth_encoding=encoding
    )
    camera = camera_intrinsics(64, 48)
    room = Room.random(3)
    views = [room.render(pose, camera) for pose in room.trajectory(3, 2, rate_hz=5)]
    for shot, view in zip(render_walk(config, camera), views, strict=True):
        np.testing.assert_array_equal(color_from_msg(shot.rgb), view.rgb)
        np.testing.assert_allclose(depth_from_msg(shot.depth), view.depth, atol=0.000501)
        labels = np.frombuffer(shot.mask.data, np.uint8).reshape(48, 64)
        np.testing.assert_array_equal(labels, view.labels)


def test_noise_makes_holes_in_depth_alone():
    shots = {}
    for noise in (False, True):
        config = SyntheticCameraConfig(seed=3, num_frames=2, noise=noise)
        shots[noise] = next(render_walk(config, camera_intrinsics(160, 120)))
    assert shots[True].rgb == shots[False].rgb
    assert shots[True].mask == shots[False].mask
    exact, seen = (depth_from_msg(shots[noise].depth) for noise in (False, True))
    assert (exact > 0).all()
    read = seen > 0
    assert 0.3 < read.mean() < 1
    assert np.median(np.abs(seen - exact)[read]) < 0.05
    assert (seen != exact)[read].any()
