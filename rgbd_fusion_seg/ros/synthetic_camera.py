"""``synthetic_camera``: publishes a walk through a rendered room as an RGB-D camera would.

The walk is rendered before publishing starts and then played to and fro, so that publishing
costs next to nothing and leaves the processor to whoever segments the images.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from rgbd_fusion_seg.depth import metres_to_millimetres, valid_mask
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.ros.images import info_from_intrinsics, msg_from_array
from rgbd_fusion_seg.ros.parameters import (
    SyntheticCameraConfig,
    declare_parameters,
    parameter_names,
    read_parameters,
    unknown_parameters,
    unknown_qos_overrides,
)
from rgbd_fusion_seg.ros.process import run_node
from rgbd_fusion_seg.ros.publishers import qos_overrides, told_overrides
from rgbd_fusion_seg.synthetic.scene import KINECT, Room
from rgbd_fusion_seg.synthetic.sensor import simulate_kinect

QOS_DEPTH = 5


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """Ready messages of one view; only their headers change while they are played."""

    rgb: Image
    depth: Image
    mask: Image


class SyntheticCamera(Node):
    """Publishes colour, depth, CameraInfo of both, and the true labels, all with one stamp."""

    def __init__(self) -> None:
        super().__init__('synthetic_camera')
        # All are read once, here.
        names = parameter_names(SyntheticCameraConfig)
        declare_parameters(self, SyntheticCameraConfig, read_only=names)
        unknown_parameters(self)
        self.config = read_parameters(self, SyntheticCameraConfig)
        self.intrinsics = camera_intrinsics(self.config.width, self.config.height)
        self._shots: list[Shot] = []
        self._index = 0
        self._rgb = self._create(Image, 'rgb/image_rect_color')
        self._rgb_info = self._create(CameraInfo, 'rgb/camera_info')
        self._depth = self._create(Image, 'depth_registered/image_rect')
        self._depth_info = self._create(CameraInfo, 'depth_registered/camera_info')
        self._mask = self._create(Image, 'ground_truth/mask')
        unknown_qos_overrides(self)

    def start(self) -> None:
        """Render the walk, then publish it at the configured rate."""
        number = self.config.num_frames
        self.get_logger().info(
            f'rendering {number} images (the first time ever the renderer is compiled, which '
            'takes up to a minute)'
        )
        for count, shot in enumerate(render_walk(self.config, self.intrinsics), start=1):
            self._shots.append(shot)
            if count % max(1, number // 10) == 0 or count == number:
                self.get_logger().info(f'rendered {count} of {number} images')
        self.create_timer(
            1.0 / self.config.rate_hz, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self.get_logger().info(
            f'publishing {self.config.width}x{self.config.height} at {self.config.rate_hz:g} Hz '
            f'on {self._rgb.topic_name} and {self._depth.topic_name}'
        )

    def publish(self) -> None:
        """Publish the next view, stamped now."""
        shot = self._shots[ping_pong(self._index, len(self._shots))]
        self._index += 1
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self.config.frame_id)
        shot.rgb.header = shot.depth.header = shot.mask.header = header
        info = info_from_intrinsics(self.intrinsics, header)
        self._rgb_info.publish(info)
        self._rgb.publish(shot.rgb)
        self._depth.publish(shot.depth)
        self._depth_info.publish(info)
        if self._mask.get_subscription_count():
            self._mask.publish(shot.mask)

    def stop(self) -> None:
        """Free the rendered images."""
        self._shots.clear()

    def _create(self, msg_type: type, topic: str) -> Publisher:
        with told_overrides(f'{self.resolve_topic_name(topic)}.publisher'):
            return self.create_publisher(
                msg_type,
                topic,
                # One for each, because overrides are written into it.
                QoSProfile(depth=QOS_DEPTH),
                qos_overriding_options=qos_overrides(),
            )


def camera_intrinsics(width: int, height: int) -> Intrinsics:
    """Return a Kinect's field of view at another width, with square pixels."""
    focal = KINECT.fx * width / KINECT.width
    return Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2, width, height)


def render_walk(config: SyntheticCameraConfig, intrinsics: Intrinsics) -> Iterator[Shot]:
    """Render the messages of a walk through the room of a seed, one after the other."""
    room = Room.random(config.seed)
    rng = np.random.default_rng(config.seed)
    header = Header(frame_id=config.frame_id)
    for pose in room.trajectory(config.seed, config.num_frames, config.rate_hz):
        view = room.render(pose, intrinsics)
        depth = view.depth
        if config.noise:
            depth = simulate_kinect(depth, intrinsics, rng, view.labels, rgb=view.rgb)
        yield Shot(
            rgb=msg_from_array(view.rgb, header),
            depth=msg_from_array(encode_depth(depth, config.depth_encoding), header),
            mask=msg_from_array(view.labels, header),
        )


def encode_depth(depth: np.ndarray, encoding: str) -> np.ndarray:
    """Encode metres as REP 118 asks: uint16 millimetres with 0, or float32 with NaN, for none.

    Args:
        depth: float32 (H, W) metres, 0 or non-finite = no reading.
        encoding: ``16UC1`` or ``32FC1``.
    """
    if encoding == '32FC1':
        return np.where(valid_mask(depth), depth, np.float32(np.nan))
    return metres_to_millimetres(depth)


def ping_pong(index: int, count: int) -> int:
    """Return the place in 0..count-1 (count > 1) at a step of an endless walk to and fro.

    >>> [ping_pong(i, 3) for i in range(7)]
    [0, 1, 2, 1, 0, 1, 2]
    """
    period = 2 * count - 2
    place = index % period
    return min(place, period - place)


def main(args: Sequence[str] | None = None) -> int:
    """Run the node; returns the exit code."""
    return run_node(SyntheticCamera, args)


if __name__ == '__main__':
    sys.exit(main())
