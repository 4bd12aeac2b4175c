"""What lives while the segmentation node is active: subscriptions, synchroniser, inference."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from rclpy.clock import JumpHandle, JumpThreshold
from rclpy.duration import Duration
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from rgbd_fusion_seg.frame import SENSORS
from rgbd_fusion_seg.ros import single_sensor
from rgbd_fusion_seg.ros.camera_pose import FloorFrame
from rgbd_fusion_seg.ros.diagnostics import ERROR, OK, WARN
from rgbd_fusion_seg.ros.images import COMPRESSED_SUFFIXES, image_type
from rgbd_fusion_seg.ros.parameters import SingleSensorConfig
from rgbd_fusion_seg.ros.pipeline import CLOCK_JUMPED, Pair, PairProcessor
from rgbd_fusion_seg.ros.publishers import (
    SegmentationPublishers,
    foreign_types,
    qos_overrides,
    subscription_events,
    told_overrides,
    type_name,
)
from rgbd_fusion_seg.ros.synchroniser import BACKWARD_RESET_NS, Synchroniser
from rgbd_fusion_seg.ros.worker import LatestOnlyWorker
from rgbd_fusion_seg.segmenter import Segmenter

if TYPE_CHECKING:
    from rgbd_fusion_seg.ros.node import SegmentationNode

COLOR_TOPIC = 'rgb/image_rect_color'
DEPTH_TOPIC = 'depth_registered/image_rect'
INFO_TOPIC = 'rgb/camera_info'
HANGS_S = 10.0
"""No frame takes so long on a computer that could be of use; deactivating waits as long."""


class Stream:
    """Hands pairs of messages to the inference thread from its making until :meth:`close`."""

    def __init__(
        self,
        node: SegmentationNode,
        segmenter: Segmenter,
        publishers: SegmentationPublishers,
    ) -> None:
        self._node, self._health, self._bundle = node, node.health, segmenter.bundle
        self._segmenter = segmenter
        self._config, self._topics = node.config, node.topics
        self._image_types = image_type(node.topics.color), image_type(node.topics.depth)
        sole = segmenter.bundle.sole_sensor
        self._enough = SENSORS.index(sole) if sole else None
        self._info: CameraInfo | None = None
        self._info_count = 0
        self._epoch = 0
        self._began_s = time.monotonic()
        sync = node.config.sync
        self.sync = Synchroniser(
            self._hand_over,
            self._start_epoch,
            topics=(node.topics.color, node.topics.depth),
            slop_s=sync.slop_s,
            queue_size=sync.queue_size,
            matcher=sync.matcher,
            on_alone={
                stream: partial(self._hand_over_alone, stream)
                for stream, sensor in enumerate(SENSORS)
                if self._bundle.alone(sensor) is not None
            },
            lost_after_s=self._lost_after_s(),
            enough=self._enough,
        )
        floor_frame = node.config.camera.floor_frame
        wanted = bool(floor_frame) and self._bundle.hha is not None
        self._floor = FloorFrame(node, floor_frame) if wanted else None
        processor = PairProcessor(
            segmenter,
            publishers,
            node.health,
            node.config,
            node.topics,
            self._floor,
            now_ns=lambda: node.get_clock().now().nanoseconds,
            epoch=lambda: self._epoch,
        )
        self._told_lost: int | None = None
        self._worker: LatestOnlyWorker[Pair] = LatestOnlyWorker(
            processor.process,
            on_error=processor.failed,
            on_replaced=lambda: node.health.dropped('a newer pair came'),
            name='inference',
        )
        self._subscriptions: list[Any] = []
        self._jump_handle: JumpHandle | None = None
        try:
            color, depth = self._image_types
            self._subscribe(color, COLOR_TOPIC, self.sync.add_color)
            self._subscribe(depth, DEPTH_TOPIC, self.sync.add_depth)
            self._subscribe(CameraInfo, INFO_TOPIC, self._take_info)
            self._jump_handle = self._watch_clock()
        except BaseException:
            self.close()
            raise

    def _lost_after_s(self) -> float:
        """Return when an image goes on alone; those that are enough always do, sooner or later."""
        after_s = self._config.single_sensor.after_s
        return after_s if after_s or self._enough is None else SingleSensorConfig.after_s

    def close(self) -> None:
        """Unsubscribe, then wait for the inference under way."""
        if self._jump_handle is not None:
            self._jump_handle.unregister()
        if self._floor is not None:
            self._floor.close()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        if not self._worker.stop(HANGS_S):
            self._epoch += 1  # nobody waits for its result any more
            self._health.complain('stop', 'inference hangs; its thread is left behind', ERROR)

    @property
    def is_at_work(self) -> bool:
        """Whether the inference thread runs, as it does after :meth:`close` when it hangs."""
        return self._worker.is_alive

    @property
    def lacks_calibration(self) -> bool:
        """Whether depth is handed on but no camera is known that would tell what it shows."""
        return (
            not self._info_count
            and not self._config.camera.fx
            and self._bundle.sees_depth
            and self.sync.left != 0
        )

    def counters(self) -> dict[str, int]:
        """Return counters that only grow, for rates."""
        color, depth = self.sync.streams
        return {
            'colour': color.messages,
            'depth': depth.messages,
            'camera info': self._info_count,
            'pairs': self.sync.pairs,
            'masks': self._health.masks,
        }

    def complain_about_silence(self) -> None:
        """Say what has been missing for long: a pair, a calibration, or the network's answer."""
        after_s = self._config.sync.warn_after_s
        if not self.sync.goes_on_alone and (sentence := self.sync.complaint(after_s)):
            lost = single_sensor.loss_sentence(self._bundle, self.sync)
            explained = lost if self._enough is None else ''
            self._health.complain('no pair', explained or sentence, ERROR)
        elif self.lacks_calibration and time.monotonic() - self._began_s > after_s:
            self._complain_about_calibration()
        self._complain_about_types(after_s)
        if (busy_s := self._worker.busy_s) > HANGS_S:
            self._health.complain(
                'inference hangs',
                f'the network has not answered for {busy_s:.0f} s on '
                f'{self._segmenter.engine_name}; if it does not come back, restart the node, with '
                'another engine.backend where it happens again',
                ERROR,
            )

    def _complain_about_calibration(self) -> None:
        advice = 'publish the CameraInfo of the colour camera'
        if self._info_is_latched():
            advice = (
                'its publisher is transient-local and may have sent it before, so override '
                "this subscription's reliability by reliable and its durability by "
                'transient_local'
            )
        arrives = 'images arrive, but nothing'
        if self.sync.left == 1:
            arrives = (
                f'no image arrives on {self._topics.color} ({self.sync.silence(0)}), and depth '
                'alone cannot be labelled, for nothing arrives'
            )
        self._health.complain(
            'no camera info',
            f'{arrives} on {self._topics.info}; {advice}, or set camera.fx and the others',
            ERROR,
        )

    def _complain_about_types(self, after_s: float) -> None:
        """Say which silent topic is published, only as another type."""
        silent: list[tuple[str, type]] = [
            (stream.topic, self._image_types[index])
            for index, stream in enumerate(self.sync.streams)
            if self._enough in (None, index) and stream.silent_s(self._began_s) >= after_s
        ]
        if not self._info_count and time.monotonic() - self._began_s >= after_s:
            silent.append((self._topics.info, CameraInfo))
        for topic, msg_type in silent:
            if foreign := foreign_types(self._node, topic, msg_type):
                advice = 'remap the node to another topic'
                if type_name(CompressedImage) in (*foreign, type_name(msg_type)):
                    advice = (
                        'topics whose names end in /compressed or /compressedDepth are read as '
                        'compressed, no others, so rename it or republish it (ros2 run '
                        'image_transport republish)'
                    )
                self._health.complain(
                    f'type of {topic}',
                    f'{topic} carries {" and ".join(foreign)}, but this node reads '
                    f'{type_name(msg_type)}; {advice}',
                    ERROR,
                )
            elif copies := self._compressed_copies(topic):
                self._health.complain(
                    f'type of {topic}',
                    f'nothing is published on {topic}, but compressed images are on '
                    f'{" and ".join(copies)}; remap the node to that, which it reads, too',
                    ERROR,
                )

    def _info_is_latched(self) -> bool:
        """Whether a publisher keeps its CameraInfo for subscriptions that ask for what was."""
        publishers = self._node.get_publishers_info_by_topic(self._topics.info)
        kept = QoSDurabilityPolicy.TRANSIENT_LOCAL
        return any(publisher.qos_profile.durability == kept for publisher in publishers)

    def _compressed_copies(self, topic: str) -> list[str]:
        """Return the topics of compressed copies of one that nobody publishes."""
        if self._node.count_publishers(topic):
            return []
        copies = (f'{topic}{suffix}' for suffix in COMPRESSED_SUFFIXES)
        return [copy for copy in copies if self._node.count_publishers(copy)]

    def _subscribe(self, msg_type: type, topic: str, callback: Callable[[Any], None]) -> None:
        name = self._node.resolve_topic_name(topic)
        with told_overrides(f'{name}.subscription'):
            subscription = self._node.create_subscription(
                msg_type,
                topic,
                callback,
                # As the SensorData profile, but one of its own: overrides are written into it.
                QoSProfile(depth=5, reliability=QoSReliabilityPolicy.BEST_EFFORT),
                event_callbacks=subscription_events(name, self._node.complain_about_qos),
                qos_overriding_options=qos_overrides(),
            )
        self._subscriptions.append(subscription)

    def _watch_clock(self) -> JumpHandle:
        """Reset when simulated time jumps back, as when a bag starts over."""
        threshold = JumpThreshold(
            min_forward=None,
            min_backward=Duration(nanoseconds=-BACKWARD_RESET_NS),
            on_clock_change=False,
        )
        return self._node.get_clock().create_jump_callback(
            threshold,
            post_callback=lambda jump: self.sync.reset(
                f'the ROS clock jumped back by {-jump.delta.nanoseconds * 1e-9:.3f} s; waiting '
                'images were dropped'
            ),
        )

    def _take_info(self, info: CameraInfo) -> None:
        self._info = info
        self._info_count += 1

    def _hand_over_alone(self, stream: int, msg: Image) -> None:
        if self._told_lost != self.sync.lost and not self.lacks_calibration:
            self._told_lost = self.sync.lost
            level = WARN if self._enough is None else OK
            self._node.log(level, single_sensor.loss_sentence(self._bundle, self.sync))
        color, depth = (msg, None) if stream == 0 else (None, msg)
        self._worker.submit(Pair(color, depth, self._info, time.monotonic(), self._epoch))

    def _hand_over(self, color: Image, depth: Image) -> None:
        if self._told_lost is not None:
            topic = self.sync.streams[self._told_lost].topic
            self._told_lost = None
            self._node.log(OK, f'images arrive on {topic} again, labels rest on both')
        self._worker.submit(Pair(color, depth, self._info, time.monotonic(), self._epoch))

    def _start_epoch(self, reason: str) -> None:
        self._epoch += 1
        if self._floor is not None:
            self._floor.reset()
        if self._worker.clear():
            self._health.dropped(CLOCK_JUMPED)
        self._health.complain('reset', reason)
