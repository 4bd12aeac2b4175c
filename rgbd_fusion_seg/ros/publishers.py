"""The outputs of the node: every message has the stamp, frame and size of its colour image.

While colour is lost they have those of the depth image, which is registered to it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rclpy.exceptions import ParameterException
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.qos import (
    QoSCompatibility,
    QoSDurabilityPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_check_compatible,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header, String

from rgbd_fusion_seg import palette
from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import UNLABELLED, RgbdFrame, Segmentation
from rgbd_fusion_seg.point_cloud import labelled_points
from rgbd_fusion_seg.ros.images import msg_from_array, msg_from_points
from rgbd_fusion_seg.ros.parameters import OutputConfig

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks

OUTPUT_QOS_DEPTH = 5

Complain = Callable[[str, str], None]


def qos_overrides() -> QoSOverridingOptions:
    """Return options that let parameters override the QoS of a topic.

    Durability is among them, for a latched CameraInfo is only seen by a subscription that is
    transient-local and reliable.
    """
    return QoSOverridingOptions(
        (
            QoSPolicyKind.HISTORY,
            QoSPolicyKind.DEPTH,
            QoSPolicyKind.RELIABILITY,
            QoSPolicyKind.DURABILITY,
        )
    )


@contextmanager
def told_overrides(end: str) -> Iterator[None]:
    """Tell in one sentence where the QoS of a publisher or subscription cannot be used.

    Args:
        end: what is made meanwhile: name of the topic, a dot, ``publisher`` or ``subscription``.

    Raises:
        InputError: it cannot be made; values of overrides are checked by no one else.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, ParameterException) as error:
        raise InputError(
            f'{end} cannot be made: {error}; correct the parameters qos_overrides.{end}.*'
        ) from error


def subscription_events(topic: str, complain: Complain) -> SubscriptionEventCallbacks:
    """Return callbacks that turn an incompatible publisher into a complaint."""

    def incompatible(event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        complain(
            topic,
            f'a publisher of {topic} offers an incompatible QoS ({policy}), so none of its '
            f'messages arrive; change it, or qos_overrides.{topic}.subscription.* of this node',
        )

    return SubscriptionEventCallbacks(incompatible_qos=incompatible)


def publisher_events(topic: str, complain: Complain) -> PublisherEventCallbacks:
    """Return callbacks that turn an incompatible subscriber into a complaint."""

    def incompatible(event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        complain(
            topic,
            f'a subscriber of {topic} asks for an incompatible QoS ({policy}), so it gets no '
            f'messages; change it, or qos_overrides.{topic}.publisher.* of this node',
        )

    return PublisherEventCallbacks(incompatible_qos=incompatible)


def qos_fits(node: Node, topic: str) -> bool:
    """Tell whether a node has no partner of incompatible QoS on a topic, by its full name."""
    own = node.get_name(), node.get_namespace()
    return not any(
        qos_check_compatible(publisher.qos_profile, subscription.qos_profile)[0]
        == QoSCompatibility.ERROR
        for publisher in node.get_publishers_info_by_topic(topic)
        for subscription in node.get_subscriptions_info_by_topic(topic)
        if own in [(end.node_name, end.node_namespace) for end in (publisher, subscription)]
    )


def foreign_types(node: Node, topic: str, msg_type: type) -> list[str]:
    """Return the types that are published on a topic, where the one that is read is not."""
    types = {publisher.topic_type for publisher in node.get_publishers_info_by_topic(topic)}
    return [] if type_name(msg_type) in types else sorted(types)


def type_name(msg_type: type) -> str:
    """Return what ROS calls a message class, such as ``sensor_msgs/msg/Image``."""
    return f'{msg_type.__module__.partition(".")[0]}/msg/{msg_type.__name__}'


class SegmentationPublishers:
    """Publishes segmentations on the topics that somebody subscribes to.

    Args:
        node: created publishers become active and inactive with it.
        bundle: gives class names and colours.
        output: the node's parameters about outputs.
        complain: called with (topic, sentence) about incompatible subscribers.
    """

    def __init__(
        self, node: LifecycleNode, bundle: ModelBundle, output: OutputConfig, complain: Complain
    ) -> None:
        self._node, self._bundle, self._config = node, bundle, output
        self._complain = complain
        self._vision_msgs = _load_vision_msgs()
        self._made: list[Any] = []
        try:
            self._make()
        except BaseException:
            self.destroy()
            raise

    def _make(self) -> None:
        self.mask = self._create(Image, 'segmentation/mask')
        self.confidence = self._create(Image, 'segmentation/confidence')
        self.overlay = self._create(Image, 'segmentation/overlay')
        self.color = self._create(Image, 'segmentation/color')
        self.points = self._create(PointCloud2, 'segmentation/points')
        self.camera_info = self._create(CameraInfo, 'segmentation/camera_info')
        self.label_info_json = self._create(String, 'segmentation/label_info_json', latched=True)
        self.label_info = None
        if self._vision_msgs is not None:
            self.label_info = self._create(
                self._vision_msgs.LabelInfo, 'segmentation/label_info', latched=True
            )

    def wanted(self) -> bool:
        """Return True if anybody subscribes to a result of inference."""
        results = (self.mask, self.confidence, self.points, self.overlay, self.color)
        return any(p.get_subscription_count() for p in results)

    def rivals(self) -> list[str]:
        """Return the full names of all nodes that publish masks here, where there are several."""
        found = self._node.get_publishers_info_by_topic(self.mask.topic_name)
        names = [f'{end.node_namespace.rstrip("/")}/{end.node_name}' for end in found]
        return sorted(names) if len(names) > 1 else []

    def publish_label_info(self) -> None:
        """Publish the meaning of the labels, latched for subscribers that come later."""
        header = Header(stamp=self._node.get_clock().now().to_msg())
        self.label_info_json.publish(String(data=label_info_json(self._bundle)))
        if self.label_info is not None:
            classes = [
                self._vision_msgs.VisionClass(class_id=i, class_name=name)
                for i, name in enumerate(self._bundle.class_names)
            ]
            threshold = self._config.min_confidence / 255
            self.label_info.publish(
                self._vision_msgs.LabelInfo(header=header, class_map=classes, threshold=threshold)
            )

    def publish(
        self, frame: RgbdFrame, result: Segmentation, header: Header, info: CameraInfo | None
    ) -> None:
        """Publish one result.

        Args:
            frame: what was segmented.
            result: its labels and confidence.
            header: with stamp and frame of `frame`; every output carries it.
            info: calibration of the colour camera, sent on with that header; without one no points
                are published either.
        """
        # The mask first: someone acts on it, the pictures at the end are for looking at.
        self._publish_image(self.mask, lambda: result.labels, header)
        self._publish_image(self.confidence, lambda: result.confidence, header)
        if info is not None and self.camera_info.get_subscription_count():
            sent = copy.copy(info)  # the one that came is looked at again with the next image
            sent.header = header
            self.camera_info.publish(sent)
        colors = self._bundle.colors
        if info is not None and self.points.get_subscription_count():
            by_class = self._config.points_color == 'class'
            shown = palette.colorize(result.labels, colors) if by_class else None
            self.points.publish(msg_from_points(labelled_points(frame, result, shown), header))
        self._publish_image(
            self.overlay,
            lambda: palette.overlay(frame.rgb, result.labels, colors, self._config.overlay_alpha),
            header,
        )
        self._publish_image(self.color, lambda: palette.colorize(result.labels, colors), header)

    def destroy(self) -> None:
        """Destroy all publishers."""
        for publisher in self._made:
            self._node.destroy_lifecycle_publisher(publisher)

    def _create(self, msg_type: type, topic: str, *, latched: bool = False) -> Any:
        name = self._node.resolve_topic_name(topic)
        # One profile for each, because overrides are written into it.
        qos = QoSProfile(
            depth=1 if latched else OUTPUT_QOS_DEPTH,
            reliability=QoSReliabilityPolicy.RELIABLE,
            durability=(
                QoSDurabilityPolicy.TRANSIENT_LOCAL if latched else QoSDurabilityPolicy.VOLATILE
            ),
        )
        with told_overrides(f'{name}.publisher'):
            publisher = self._node.create_lifecycle_publisher(
                msg_type,
                topic,
                qos,
                event_callbacks=publisher_events(name, self._complain),
                qos_overriding_options=qos_overrides(),
            )
        self._made.append(publisher)
        return publisher

    @staticmethod
    def _publish_image(publisher: Any, make: Callable[[], Any], header: Header) -> None:
        if publisher.get_subscription_count():
            publisher.publish(msg_from_array(make(), header))


def label_info_json(bundle: ModelBundle) -> str:
    """Return what ``segmentation/label_info_json`` holds.

    A JSON object: ``bundle`` and ``weights_sha256`` name the network, ``unlabelled`` is the label
    without a class, ``classes`` is a list of ``{"id", "name", "color": [r, g, b]}``.
    """
    classes = [
        {'id': i, 'name': name, 'color': color}
        for i, (name, color) in enumerate(
            zip(bundle.class_names, bundle.colors.tolist(), strict=True)
        )
    ]
    return json.dumps(
        {
            'bundle': bundle.name,
            'weights_sha256': bundle.weights_sha256,
            'unlabelled': UNLABELLED,
            'classes': classes,
        }
    )


def _load_vision_msgs() -> Any | None:
    """Return ``vision_msgs.msg`` where it is installed and has LabelInfo, else None."""
    try:
        import vision_msgs.msg
    except Exception:  # message packages of another distribution fail in several ways
        return None
    return vision_msgs.msg if hasattr(vision_msgs.msg, 'LabelInfo') else None
