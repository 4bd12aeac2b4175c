"""The outputs of the node, without ROS processes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

import rclpy
from builtin_interfaces.msg import Time
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CameraInfo, PointCloud2
from std_msgs.msg import Header

from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame, Segmentation
from rgbd_fusion_seg.ros.parameters import OutputConfig
from rgbd_fusion_seg.ros.publishers import (
    SegmentationPublishers,
    qos_overrides,
    told_overrides,
)

OUTPUTS = ('mask', 'confidence', 'points', 'overlay', 'color')


@pytest.mark.parametrize('topic', OUTPUTS)
def test_a_subscriber_of_one_output_alone_is_enough(topic):
    counts = {name: int(name == topic) for name in OUTPUTS}
    outputs = SimpleNamespace(
        **{n: SimpleNamespace(get_subscription_count=lambda n=n: counts[n]) for n in OUTPUTS}
    )
    assert SegmentationPublishers.wanted(outputs)
    counts[topic] = 0
    assert not SegmentationPublishers.wanted(outputs)


def test_label_info_of_vision_msgs(tiny_bundle):
    """With stand-ins for its messages, which no package index has."""
    sent, bundle = [], load_bundle(tiny_bundle)
    clock = SimpleNamespace(now=lambda: SimpleNamespace(to_msg=Time))
    outputs = SimpleNamespace(
        _node=SimpleNamespace(get_clock=lambda: clock),
        _bundle=bundle,
        _config=SimpleNamespace(min_confidence=51),
        _vision_msgs=SimpleNamespace(VisionClass=SimpleNamespace, LabelInfo=SimpleNamespace),
        label_info_json=SimpleNamespace(publish=lambda _: None),
        label_info=SimpleNamespace(publish=sent.append),
    )
    SegmentationPublishers.publish_label_info(outputs)
    (info,) = sent
    names = {entry.class_id: entry.class_name for entry in info.class_map}
    assert names == dict(enumerate(bundle.class_names))
    assert info.threshold == pytest.approx(0.2)


def test_a_calibration_that_is_sent_on_stays_as_it_came(tiny_bundle):
    """It is compared with the next image too."""
    sent = []
    nobody = SimpleNamespace(get_subscription_count=lambda: 0)
    outputs = SimpleNamespace(
        **dict.fromkeys(OUTPUTS, nobody),
        camera_info=SimpleNamespace(get_subscription_count=lambda: 1, publish=sent.append),
        _bundle=load_bundle(tiny_bundle),
        _publish_image=SegmentationPublishers._publish_image,
    )
    info = CameraInfo(header=Header(frame_id='left'), width=64, height=48)
    header = Header(frame_id='colour')
    SegmentationPublishers.publish(outputs, None, None, header, info)
    assert (sent[0].header.frame_id, sent[0].width) == ('colour', 64)
    assert info.header.frame_id == 'left'


def test_without_a_calibration_there_are_no_points(tiny_bundle):
    def sent_with(info):
        sent = []
        wanted = SimpleNamespace(get_subscription_count=lambda: 1, publish=sent.append)
        outputs = SimpleNamespace(
            **dict.fromkeys(OUTPUTS, SimpleNamespace(get_subscription_count=lambda: 0))
            | {'points': wanted, 'camera_info': wanted},
            _bundle=load_bundle(tiny_bundle),
            _config=OutputConfig(),
            _publish_image=SegmentationPublishers._publish_image,
        )
        SegmentationPublishers.publish(outputs, frame, result, Header(), info)
        return [type(message) for message in sent]

    camera = Intrinsics.of_some_camera(8, 6)
    frame = RgbdFrame(np.zeros((6, 8, 3), np.uint8), np.ones((6, 8), np.float32), camera)
    result = Segmentation(*np.zeros((2, 6, 8), np.uint8))
    assert sent_with(None) == []
    assert sent_with(CameraInfo(width=8, height=6)) == [CameraInfo, PointCloud2]


def test_outputs_are_reliable_and_what_labels_mean_is_latched(ros_context, tiny_bundle):
    node = LifecycleNode('outputs', context=ros_context)
    try:
        outputs = SegmentationPublishers(
            node, load_bundle(tiny_bundle), OutputConfig(), lambda *_: None
        )
        made = {name: getattr(outputs, name).qos_profile for name in (*OUTPUTS, 'camera_info')}
        latched = outputs.label_info_json.qos_profile
        outputs.destroy()
    finally:
        node.destroy_node()
    for name, qos in made.items():
        assert qos.reliability == QoSReliabilityPolicy.RELIABLE, name
        assert (qos.durability, qos.depth) == (QoSDurabilityPolicy.VOLATILE, 5), name
    assert latched.reliability == QoSReliabilityPolicy.RELIABLE
    assert (latched.durability, latched.depth) == (QoSDurabilityPolicy.TRANSIENT_LOCAL, 1)


@pytest.mark.parametrize('depth', [-1, 2.5, 2**32])
def test_a_depth_that_no_queue_has_is_told(ros_context, depth):
    name = '/deep.publisher'
    parameters = [Parameter(f'qos_overrides.{name}.depth', value=depth)]
    node = rclpy.create_node('deep', context=ros_context, parameter_overrides=parameters)
    try:
        with (
            pytest.raises(InputError, match=r'correct the parameters qos_overrides\./deep'),
            told_overrides(name),
        ):
            node.create_publisher(
                CameraInfo, '/deep', QoSProfile(depth=5), qos_overriding_options=qos_overrides()
            )
    finally:
        node.destroy_node()


def test_every_policy_of_a_topic_can_be_overridden(ros_context):
    """A latched CameraInfo, say, is seen by a transient-local subscription alone."""
    start = 'qos_overrides./info.subscription'
    given = {'history': 'keep_last', 'depth': 7, 'reliability': 'reliable'}
    given['durability'] = 'transient_local'
    parameters = [Parameter(f'{start}.{policy}', value=value) for policy, value in given.items()]
    node = rclpy.create_node('latched', context=ros_context, parameter_overrides=parameters)
    try:
        best_effort = QoSProfile(depth=5, reliability=QoSReliabilityPolicy.BEST_EFFORT)
        qos = node.create_subscription(
            CameraInfo,
            '/info',
            lambda _: None,
            best_effort,
            qos_overriding_options=qos_overrides(),
        ).qos_profile
    finally:
        node.destroy_node()
    assert qos.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL
    assert (qos.reliability, qos.depth) == (QoSReliabilityPolicy.RELIABLE, 7)
