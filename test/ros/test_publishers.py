"""The outputs of the node, without ROS processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

from builtin_interfaces.msg import Time

from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.ros.publishers import SegmentationPublishers

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
