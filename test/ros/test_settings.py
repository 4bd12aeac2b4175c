"""Parameters of the node at other values than their defaults have their effect."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

from ros_harness import Camera, Client, NodeProcess
from sensor_msgs.msg import Image

from rgbd_fusion_seg import palette
from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.ros import node, stream
from rgbd_fusion_seg.ros.diagnostics import Rates
from rgbd_fusion_seg.ros.images import frame_from_msgs
from rgbd_fusion_seg.ros.parameters import (
    CameraConfig,
    EngineConfig,
    OutputConfig,
    SegmentationConfig,
    SingleSensorConfig,
    SyncConfig,
)
from rgbd_fusion_seg.ros.pipeline import Topics
from rgbd_fusion_seg.ros.synchroniser import Synchroniser
from rgbd_fusion_seg.segmenter import Segmenter

MASK, OVERLAY = 'segmentation/mask', 'segmentation/overlay'


class MadeError(Exception):
    """Ends the making of a stream when what is looked at was made."""


def test_settings_reach_the_segmenter(monkeypatch):
    given = {}
    monkeypatch.setattr(node, 'Segmenter', lambda bundle, **options: given.update(options))
    engine = EngineConfig(
        backend='openvino', precision='bf16', device=1, num_threads=2, input_width=64,
        input_height=48,
    )  # fmt: skip
    config = SegmentationConfig(engine=engine, output=OutputConfig(min_confidence=7))
    made = SimpleNamespace(config=config)
    node.SegmentationNode._open_segmenter(made, None, print, True)
    assert given == {
        'backend': 'openvino', 'min_confidence': 7, 'input_size': (64, 48), 'on_step_down': print,
        'preload_single_sensor': True, 'precision': 'bf16', 'num_threads': 2,
    }  # fmt: skip


def test_settings_reach_the_timer_and_the_builder(monkeypatch):
    def publishers(*_):
        raise MadeError

    given = []
    config = SegmentationConfig(
        engine=EngineConfig(build='background', device=1),
        output=OutputConfig(diagnostics_period_s=0.25),
    )
    monkeypatch.setattr(node, 'read_parameters', lambda *_: config)
    monkeypatch.setattr(node, 'load_bundle', lambda _: None)
    monkeypatch.setattr(node.kernels, 'warm_up', lambda: None)
    monkeypatch.setattr(node, 'build_is_due', lambda _: True)
    monkeypatch.setattr(node, 'EngineBuilder', lambda *arguments: given.extend(arguments))
    monkeypatch.setattr(node, 'SegmentationPublishers', publishers)
    segmenter = SimpleNamespace(warm_up=lambda: given.append('warm'), step_downs=())
    made = SimpleNamespace(
        health=SimpleNamespace(clear=lambda: None),
        get_logger=lambda: SimpleNamespace(info=lambda _: None),
        log=print,
        _report_timer=SimpleNamespace(reset=lambda: None),
        _open_segmenter=lambda *_: segmenter,
        _tell_step_down=print,
        complain_about_qos=print,
    )
    with pytest.raises(MadeError):
        node.SegmentationNode._configure(made)
    assert made._report_timer.timer_period_ns == 250_000_000
    warm, builds_for, _, options, device, _ = given
    assert (warm, builds_for, device) == ('warm', segmenter, 1)
    assert options == config.engine.build_options


@pytest.mark.parametrize(
    ('lazy', 'wanted', 'message'),
    [
        (True, False, 'idle: nobody subscribes to segmentation/*'),
        (True, True, '0.0 masks/s'),
        (False, False, '0.0 masks/s'),
    ],
)
def test_idle_is_who_need_not_work(tiny_bundle, lazy, wanted, message):
    topics = {'topics': ('/colour', '/depth'), 'slop_s': 0.02, 'queue_size': 5}
    stream = SimpleNamespace(
        sync=Synchroniser(print, print, matcher='builtin', **topics),
        counters=lambda: {'masks': 0},
        complain_about_silence=lambda: None,
        lacks_calibration=False,
    )
    told = []
    made = SimpleNamespace(
        config=SegmentationConfig(output=OutputConfig(lazy=lazy)),
        _segmenter=SimpleNamespace(
            engine_name='cpu',
            bundle=load_bundle(tiny_bundle),
            engine_names_alone={},
            step_downs=(),
        ),
        _outputs=SimpleNamespace(wanted=lambda: wanted),
        _stream=stream,
        _builder=None,
        _rates=Rates(),
        _topics_of_misfits=(),
        _complain_about_rivals=lambda: None,
        _publish_status=lambda message, *_: told.append(message),
    )
    node.SegmentationNode._report(made)
    assert told == [message]


def test_settings_reach_the_synchroniser(monkeypatch):
    given = {}

    def synchroniser(*_, **options):
        given.update(options)
        raise MadeError

    monkeypatch.setattr(stream, 'Synchroniser', synchroniser)
    config = SegmentationConfig(
        sync=SyncConfig(matcher='builtin', slop_s=0.3, queue_size=7),
        single_sensor=SingleSensorConfig(after_s=4.0),
    )
    made = SimpleNamespace(health=None, config=config, topics=Topics('/c', '/d', '/i'))
    bundle = SimpleNamespace(alone=lambda sensor: sensor == 'depth' or None, sole_sensor='')
    with pytest.raises(MadeError):
        stream.Stream(made, SimpleNamespace(bundle=bundle), None)
    assert list(given.pop('on_alone')) == [1]
    assert given == {
        'topics': ('/c', '/d'), 'slop_s': 0.3, 'queue_size': 7, 'matcher': 'builtin',
        'lost_after_s': 4.0, 'enough': None,
    }  # fmt: skip


@pytest.mark.parametrize(('after_s', 'expected'), [(0.0, 1.0), (4.0, 4.0)])
def test_the_one_sensor_that_a_network_sees_is_enough(monkeypatch, after_s, expected):
    given = {}

    def synchroniser(*_, **keywords):
        given.update(keywords)
        raise MadeError

    monkeypatch.setattr(stream, 'Synchroniser', synchroniser)
    config = SegmentationConfig(single_sensor=SingleSensorConfig(after_s=after_s))
    made = SimpleNamespace(health=None, config=config, topics=Topics('/c', '/d', '/i'))
    bundle = SimpleNamespace(alone=lambda sensor: None, sole_sensor='depth')
    with pytest.raises(MadeError):
        stream.Stream(made, SimpleNamespace(bundle=bundle), None)
    assert (given['enough'], given['lost_after_s']) == (1, expected)


@pytest.mark.parametrize('sees_hha', [True, False])
def test_tf_is_followed_where_the_network_sees_hha(monkeypatch, sees_hha):
    followed = []
    monkeypatch.setattr(stream, 'FloorFrame', lambda node, name: followed.append(name))
    config = SegmentationConfig(camera=CameraConfig(floor_frame='base_footprint'))
    made = SimpleNamespace(health=None, config=config, topics=Topics('/c', '/d', '/i'))
    hha = object() if sees_hha else None
    bundle = SimpleNamespace(alone=lambda sensor: None, hha=hha, sole_sensor='')
    with pytest.raises(AttributeError, match='resolve_topic_name'):  # no node to subscribe on
        stream.Stream(made, SimpleNamespace(bundle=bundle), None)
    assert followed == (['base_footprint'] if sees_hha else [])


@pytest.mark.parametrize('hangs', [None, False, True])
def test_a_node_that_is_cleaned_up_frees_its_network(hangs):
    """But for one in which an inference hangs, or hung, when the node was deactivated."""
    closed = []
    made = SimpleNamespace(
        _outputs=None,
        _builder=None,
        _segmenter=SimpleNamespace(close=lambda: closed.append(1)),
        _hanging=None if hangs is None else SimpleNamespace(is_at_work=hangs),
    )
    for _ in range(2):
        node.SegmentationNode._cleanup(made)
    assert closed == ([] if hangs else [1])
    assert made._segmenter is made._hanging is None


def test_settings_change_what_is_published(ros_context, tiny_bundle):
    parameters = {
        'engine.bundle': tiny_bundle,
        'output.min_confidence': 200,
        'output.overlay_alpha': 0.9,
        'sync.slop_s': 0.2,
        'camera.require_same_frame': False,
    }
    process = NodeProcess('rgbd_fusion_seg.ros.node', parameters, '/other')
    client = Client(ros_context, '/other')
    camera = Camera(client)
    pixels = np.random.default_rng(5).integers(0, 256, (48, 64, 3), np.uint8)

    def send():
        color, depth, info = camera.color(pixels), camera.depth(), camera.info()
        depth.header.frame_id = 'depth_sensor'
        stamp_ns = client.now_ns()
        for msg, late_ns in ((color, 0), (depth, 100_000_000), (info, 0)):
            stamp = msg.header.stamp
            stamp.sec, stamp.nanosec = divmod(stamp_ns + late_ns, 10**9)
        client.info.publish(info)
        client.color.publish(color)
        client.depth.publish(depth)
        time.sleep(0.5)  # so that colour and depth pair with their own only

    with contextlib.closing(client):
        try:
            for topic in (MASK, OVERLAY):
                client.collect(topic, Image)
            process.wait_for_output('waiting for')
            client.wait_for_matched()
            client.wait_for(
                lambda: send() or (client.received[OVERLAY] and client.received[MASK]), 'a mask'
            )
        finally:
            process.stop()
    frame = frame_from_msgs(camera.color(pixels), camera.depth(), camera.intrinsics)
    with Segmenter(tiny_bundle, min_confidence=200) as segmenter:
        labels = segmenter.segment(frame).labels
    assert 0 < (labels == 255).mean() < 1
    mask, overlay = (
        np.frombuffer(client.received[topic][0][1].data, np.uint8) for topic in (MASK, OVERLAY)
    )
    np.testing.assert_array_equal(mask.reshape(48, 64), labels)
    shown = palette.overlay(frame.rgb, labels, load_bundle(tiny_bundle).colors, 0.9)
    np.testing.assert_array_equal(overlay.reshape(shown.shape), shown)
