"""The camera above the floor: gravity and height, which HHA can only guess from depth.

TF is read with tf2_ros, which robots have and Python's package index has not; it is imported where
the parameter ``camera.floor_frame`` asks for it.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rclpy.time import Time

from rgbd_fusion_seg.errors import FrameError, InputError

if TYPE_CHECKING:
    from geometry_msgs.msg import Transform
    from rclpy.node import Node


class CameraPose(NamedTuple):
    """What is known of a camera; None is left to be estimated from its depth.

    Args:
        gravity: float64 (3,), unit, in optical axes (x right, y down, z forward), pointing down.
        height_m: of the camera above the floor.
    """

    gravity: np.ndarray | None = None
    height_m: float | None = None


class FloorFrame:
    """A frame of TF that stands on the floor, z up (REP 103), such as ``base_footprint``.

    Args:
        node: listens to TF until :meth:`close`.
        name: of the frame.

    Raises:
        InputError: tf2_ros is not installed.
    """

    def __init__(self, node: Node, name: str) -> None:
        self.name = name
        try:
            self._tf2_ros = import_module('tf2_ros')
        except ImportError as error:
            raise InputError(
                f'the parameter camera.floor_frame is {name}, but TF cannot be read ({error}); '
                "install ROS's tf2_ros_py, or give camera.height_m instead"
            ) from error
        self._buffer = self._tf2_ros.Buffer()
        self._listener = self._tf2_ros.TransformListener(self._buffer, node)

    def pose_of(self, camera_frame: str) -> CameraPose:
        """Return the newest pose of a camera, given its optical frame.

        The newest, not that at the image's stamp: TF often comes later than the image, and for a
        camera that is mounted fast they are the same.

        Raises:
            FrameError: TF does not connect the frames, or not as a floor and a camera above it.
        """
        try:
            found = self._buffer.lookup_transform(self.name, camera_frame, Time())
        except self._tf2_ros.TransformException as error:
            raise FrameError(
                f'TF has no way from the camera, {camera_frame!r}, to camera.floor_frame, '
                f'{self.name} ({error}); publish it, or correct the parameter'
            ) from error
        pose = pose_above_floor(found.transform)
        if not 0 < pose.height_m < math.inf:
            raise FrameError(
                f'the camera {camera_frame!r} is {pose.height_m:.2f} m above camera.floor_frame, '
                f'{self.name}; name a frame that stands on the floor with z upward'
            )
        return pose

    def reset(self) -> None:
        """Forget all poses: those of a time that is over would pass for the newest."""
        self._buffer.clear()

    def close(self) -> None:
        """Stop listening."""
        self._listener.unregister()


def pose_above_floor(transform: Transform) -> CameraPose:
    """Return a camera's pose, given the transform from its optical frame to one on the floor.

    Raises:
        FrameError: its rotation is none.
    """
    q, height = transform.rotation, transform.translation.z
    squared = q.x * q.x + q.y * q.y + q.z * q.z + q.w * q.w
    if not 0 < squared < math.inf:
        raise FrameError(
            f'TF gives the camera a rotation of ({q.x}, {q.y}, {q.z}, {q.w}), which is none; '
            'correct what publishes it'
        )
    # The last row of the rotation matrix is the floor's upward axis in those of the camera.
    upward = np.array(
        [
            2 * (q.x * q.z - q.w * q.y),
            2 * (q.y * q.z + q.w * q.x),
            q.w * q.w + q.z * q.z - q.x * q.x - q.y * q.y,
        ]
    )
    return CameraPose(-upward / squared, height)
