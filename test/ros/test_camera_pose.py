"""Gravity and height of the camera from TF; tf2_ros itself is played by a module of the test."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3

from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.ros.camera_pose import FloorFrame, pose_above_floor
from rgbd_fusion_seg.ros.diagnostics import Health
from rgbd_fusion_seg.ros.stream import Stream

Rotation = pytest.importorskip('scipy.spatial.transform', reason='needs SciPy').Rotation

LEVEL = Rotation.from_matrix([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
"""Of a level camera that looks along the floor's x axis: optical axes to those of REP 103."""


class TransformException(Exception):  # noqa: N818
    """As tf2_ros calls it."""


class Tf:
    """What tf2_ros would know: transforms by (target, source)."""

    def __init__(self, known):
        self.known, self.asked, self.listening_on = known, [], None
        tf = self

        class Buffer:
            def lookup_transform(self, target_frame, source_frame, time):
                tf.asked.append(time)
                if (target_frame, source_frame) not in tf.known:
                    raise TransformException(f'"{source_frame}" does not exist')
                return TransformStamped(transform=tf.known[target_frame, source_frame])

            def clear(self):
                tf.known.clear()

        class TransformListener:
            def __init__(self, buffer, node):
                tf.listening_on = node

            def unregister(self):
                tf.listening_on = None

        self.module = SimpleNamespace(
            Buffer=Buffer,
            TransformListener=TransformListener,
            TransformException=TransformException,
        )


def transform(rotation, height_m, scale=1.0):
    x, y, z, w = (scale * rotation.as_quat()).tolist()
    translation = Vector3(x=0.3, y=-0.1, z=height_m)
    return Transform(translation=translation, rotation=Quaternion(x=x, y=y, z=z, w=w))


@pytest.fixture
def tf(monkeypatch):
    tf = Tf({('base_footprint', 'camera_optical'): transform(LEVEL, 0.43)})
    monkeypatch.setitem(sys.modules, 'tf2_ros', tf.module)
    return tf


@pytest.mark.parametrize('scale', [1.0, 3.0])
@pytest.mark.parametrize(('yaw', 'pitch', 'roll'), [(0, 0, 0), (70, 35, 0), (-20, -60, 90)])
def test_gravity_and_height_are_those_of_the_rotation(yaw, pitch, roll, scale):
    rotation = Rotation.from_euler('ZYX', [yaw, pitch, roll], degrees=True) * LEVEL
    pose = pose_above_floor(transform(rotation, 0.43, scale))
    expected = rotation.inv().apply([0, 0, -1])
    np.testing.assert_allclose(pose.gravity, expected, atol=1e-9)
    assert pose.height_m == 0.43


def test_a_camera_that_looks_down_sees_gravity_ahead():
    pose = pose_above_floor(transform(Rotation.from_euler('Y', 90, degrees=True) * LEVEL, 1.0))
    np.testing.assert_allclose(pose.gravity, [0, 0, 1], atol=1e-9)


def test_the_newest_transform_counts_until_closed(tf):
    node = object()
    floor = FloorFrame(node, 'base_footprint')
    assert tf.listening_on is node
    pose = floor.pose_of('camera_optical')
    np.testing.assert_allclose(pose.gravity, [0, 1, 0], atol=1e-9)
    assert pose.height_m == 0.43
    assert [time.nanoseconds for time in tf.asked] == [0]  # tf2's word for the newest
    floor.close()
    assert tf.listening_on is None


def test_a_clock_that_jumps_back_forgets_the_poses_of_before(tf):
    floor = FloorFrame(None, 'base_footprint')
    floor.pose_of('camera_optical')
    stream = SimpleNamespace(
        _epoch=0, _floor=floor, _worker=SimpleNamespace(clear=lambda: False),
        _health=Health(lambda *_: None),
    )  # fmt: skip
    Stream._start_epoch(stream, 'a bag that starts over')
    with pytest.raises(FrameError, match='TF has no way'):
        floor.pose_of('camera_optical')


def test_a_stream_that_ends_listens_to_tf_no_longer(tf):
    stream = SimpleNamespace(
        _jump_handle=None, _floor=FloorFrame(object(), 'base_footprint'), _subscriptions=(),
        _worker=SimpleNamespace(stop=lambda _: True),
    )  # fmt: skip
    assert tf.listening_on is not None
    Stream.close(stream)
    assert tf.listening_on is None


def test_frames_that_tf_does_not_connect_are_named(tf):
    floor = FloorFrame(None, 'base_footprint')
    with pytest.raises(FrameError, match=r"'other'.*base_footprint \(\"other\" does not exist\)"):
        floor.pose_of('other')


@pytest.mark.parametrize('height_m', [0.0, -0.4, float('nan'), float('inf')])
def test_a_floor_that_is_not_below_the_camera_is_none(tf, height_m):
    tf.known['base_footprint', 'camera_optical'] = transform(LEVEL, height_m)
    with pytest.raises(FrameError, match='stands on the floor with z upward'):
        FloorFrame(None, 'base_footprint').pose_of('camera_optical')


@pytest.mark.parametrize('number', [0.0, float('nan')])
def test_a_rotation_that_is_none_is_refused(number):
    none = Transform(rotation=Quaternion(x=number, y=0.0, z=0.0, w=0.0))
    with pytest.raises(FrameError, match='which is none'):
        pose_above_floor(none)


def test_without_tf2_ros_its_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tf2_ros', None)
    with pytest.raises(InputError, match=r'base_footprint.*tf2_ros_py.*camera\.height_m'):
        FloorFrame(None, 'base_footprint')
