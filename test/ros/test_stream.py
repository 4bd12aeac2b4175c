"""Whole streams: inference slower than the camera, simulated time, rendered and real frames."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

pytest.importorskip('onnx', reason='making bundles needs onnx')

from onnx import ModelProto, helper, numpy_helper
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.time import Time
from ros_harness import Camera, Client, Manager, NodeProcess, mask_stamps
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image

from rgbd_fusion_seg.image_decoding import stamp_to_ns
from rgbd_fusion_seg.ros.diagnostics import Health
from rgbd_fusion_seg.ros.images import color_from_msg, depth_from_msg
from rgbd_fusion_seg.ros.stream import Stream

NODE = 'rgbd_fusion_seg.ros.node'
TRANSIENT_LOCAL = QoSDurabilityPolicy.TRANSIENT_LOCAL
SLOW_CONVOLUTIONS = 2
"""10 GFLOP together: some 40 ms on one thread of a good core."""


def slow_network(bundles: ModuleType) -> ModelProto:
    """The tiny network and beside it convolutions that add zero to its logits, slowly."""
    model = bundles.tiny_network()
    graph = model.graph
    graph.node[-1].output[0] = 'quick'
    rng = np.random.default_rng(0)
    last = 'rgb_large'
    sizes = numpy_helper.from_array(np.array([1, 1, 4, 4], np.float32), 'sizes')
    graph.initializer.append(sizes)
    graph.node.append(helper.make_node('Resize', ['rgb', '', 'sizes'], [last]))
    channels = 3
    for index in range(SLOW_CONVOLUTIONS):
        weights = rng.normal(0, 0.05, (64, channels, 5, 5)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(weights, f'w{index}'))
        graph.node.append(
            helper.make_node('Conv', [last, f'w{index}'], [f'c{index}'], pads=[2, 2, 2, 2])
        )
        graph.node.append(helper.make_node('Tanh', [f'c{index}'], [f't{index}']))
        last, channels = f't{index}', 64
    zeros = np.zeros((4, 64, 1, 1), np.float32)
    graph.initializer.append(numpy_helper.from_array(zeros, 'zeros'))
    graph.node.append(
        helper.make_node(
            'AveragePool', [last], ['pooled'], kernel_shape=[32, 32], strides=[32, 32]
        )
    )
    graph.node.append(helper.make_node('Conv', ['pooled', 'zeros'], ['nothing']))
    graph.node.append(helper.make_node('Add', ['quick', 'nothing'], ['logits']))
    return model


class Sender(threading.Thread):
    """Publishes pairs at a rate, as a camera would, until it is stopped."""

    def __init__(self, camera, rate_hz):
        super().__init__(daemon=True)
        self.camera, self.period_s = camera, 1 / rate_hz
        self.color, self.depth = camera.color(200), camera.depth(2.0)
        self.stamps = []
        self.ended = threading.Event()

    def run(self):
        due = time.monotonic()
        while not self.ended.wait(max(0.0, due - time.monotonic())):
            self.stamps.append(self.camera.send(self.color, self.depth))
            due += self.period_s

    def stop(self):
        self.ended.set()
        if self.is_alive():
            self.join()


def test_slow_inference_works_on_the_newest_pair(ros_context, tmp_path):
    """The lag in images between what is segmented and what was newest then does not grow."""
    bundles = pytest.importorskip('bundles')
    folder = bundles.write_bundle(tmp_path / 'slow', network=slow_network(bundles))
    parameters = {
        'engine.bundle': folder,
        'engine.num_threads': 1,
        'output.diagnostics_period_s': 0.1,
    }
    node = NodeProcess(NODE, parameters, '/slow')
    client = Client(ros_context, '/slow')
    client.collect('segmentation/mask', Image)
    sender = Sender(Camera(client), rate_hz=60)
    try:
        node.wait_for_output('waiting for')
        client.wait_for_matched()
        sender.start()
        client.wait_for(lambda: len(mask_stamps(client)) >= 24, 'some masks')
        values = client.values()
    finally:
        sender.stop()
        client.close()
        node.stop()
    masks = [(a, stamp_to_ns(m.header.stamp)) for a, m in client.received['segmentation/mask']]
    sent = np.array(sender.stamps)
    # An inference starts when the mask before it has been sent, with what is newest then.
    lags = [
        int(np.count_nonzero((sent > stamp) & (sent < previous)))
        for (previous, _), (_, stamp) in pairwise(masks)
    ]
    assert len(sent) > 2 * len(masks), 'inference was not slower than the camera'
    assert np.median(lags[: len(lags) // 2]) <= 2
    assert np.median(lags[len(lags) // 2 :]) <= 2
    assert int(values['dropped: a newer pair came']) > 0
    assert set(mask_stamps(client)) <= set(sender.stamps)


@pytest.mark.parametrize('waits', [False, True])
def test_a_pair_that_a_reset_throws_away_is_counted(waits):
    health = Health(lambda *_: None)
    worker = SimpleNamespace(clear=lambda: waits)
    stream = SimpleNamespace(_epoch=4, _worker=worker, _health=health, _floor=None)
    Stream._start_epoch(stream, 'a jump')
    assert stream._epoch == 5  # by which the pair under way is known to be of before
    assert health.snapshot()['dropped'] == str(int(waits))
    assert ('dropped: clock jumped' in health.snapshot()) == waits


def test_inputs_are_taken_from_drivers_that_are_not_reliable(ros_context):
    node = Node('subscriber', context=ros_context)
    node.complain_about_qos = print
    stream = SimpleNamespace(_node=node, _subscriptions=[])
    try:
        Stream._subscribe(stream, Image, 'image', lambda _: None)
        (subscription,) = stream._subscriptions
        qos = subscription.qos_profile
    finally:
        node.destroy_node()
    assert (qos.reliability, qos.depth) == (QoSReliabilityPolicy.BEST_EFFORT, 5)


def test_the_clock_is_watched_until_a_stream_ends(ros_context):
    node, jumps = Node('watcher', context=ros_context), []
    stream = SimpleNamespace(
        _node=node,
        _floor=None,
        _subscriptions=(),
        _worker=SimpleNamespace(stop=lambda _: True),
        sync=SimpleNamespace(reset=jumps.append),
    )
    clock = node.get_clock()
    try:
        clock._set_ros_time_is_active(True)
        stream._jump_handle = Stream._watch_clock(stream)
        for seconds in (50.0, 49.95, 90.0, 60.0):
            clock.set_ros_time_override(Time(seconds=seconds, clock_type=ClockType.ROS_TIME))
        Stream.close(stream)
        clock.set_ros_time_override(Time(seconds=10, clock_type=ClockType.ROS_TIME))
    finally:
        node.destroy_node()
    (told,) = jumps
    assert told.startswith('the ROS clock jumped back by 30.000 s')


def test_simulated_time_that_starts_over(ros_context, tiny_bundle):
    """As ros2 bag play --clock --loop does."""
    parameters = {
        'engine.bundle': tiny_bundle,
        'use_sim_time': True,
        'output.diagnostics_period_s': 0.1,
    }
    node = NodeProcess(NODE, parameters, '/simulated')
    client = Client(ros_context, '/simulated')
    client.collect('segmentation/mask', Image)
    clock = client.create_publisher(Clock, '/clock', QoSProfile(depth=10))
    camera = Camera(client)
    try:
        node.wait_for_output('waiting for')
        client.wait_for(clock.get_subscription_count, 'a subscription to /clock')
        client.wait_for_matched()
        for _ in range(2):
            client.received.clear()
            stamps = []

            def play(stamps=stamps):
                now_ns = 50 * 10**9 + len(stamps) * 33_000_000
                message = Clock()
                message.clock.sec, message.clock.nanosec = divmod(now_ns, 10**9)
                clock.publish(message)
                stamps.append(camera.send(stamp_ns=now_ns))
                time.sleep(0.03)
                return len(mask_stamps(client)) >= 5

            client.wait_for(play, 'five masks')
            assert set(mask_stamps(client)[1:]) <= set(stamps)
        client.wait_for(lambda: 'jumped back' in node.output(), 'a word about the jump')
        # The age is told by simulated time, so it stays small although it is 1970 there.
        assert 'colour stamps are' not in node.output()
        assert float(client.values()['age p50 ms']) < 10_000
    finally:
        client.close()
        node.stop()


def test_synthetic_camera_into_the_node(ros_context, tiny_bundle):
    """Two processes: a rendered room, and the node that labels it."""
    size = {'width': 160, 'height': 120}
    overridden = 'qos_overrides./room/ground_truth/mask.publisher'
    parameters = {
        **size,
        'num_frames': 4,
        'rate_hz': 15,
        'depth_encoding': '32FC1',
        'seeed': 3,
        f'{overridden}.durability': 'transient_local',
        f'{overridden}.deepth': 9,
    }
    camera = NodeProcess('rgbd_fusion_seg.ros.synthetic_camera', parameters, '/room')
    node = NodeProcess(NODE, {'engine.bundle': tiny_bundle}, '/room')
    client = Client(ros_context, '/room')
    images = (
        'segmentation/mask',
        'rgb/image_rect_color',
        'depth_registered/image_rect',
        'ground_truth/mask',
    )
    for topic in images:
        client.collect(topic, Image)
    infos = ('rgb/camera_info', 'depth_registered/camera_info')
    for topic in infos:
        client.collect(topic, CameraInfo)

    def by_stamp(topic):
        return {stamp_to_ns(m.header.stamp): m for _, m in list(client.received[topic])}

    def complete():
        # While topics are being discovered, the first masks come before the truth does.
        return set.intersection(*(set(by_stamp(t)) for t in (*images, *infos)))

    try:
        camera.wait_for_output('publishing 160x120 at 15 Hz')
        client.wait_for(lambda: len(complete()) >= 5, 'five masks with all their inputs')
        stamps = sorted(complete())
        received = {t: by_stamp(t) for t in (*images, *infos)}
        assert 'seeed (did you mean seed?)' in camera.output()
        assert f'deepth (did you mean {overridden}.depth?)' in camera.output()
        durabilities = {
            topic: client.get_publishers_info_by_topic(f'/room/{topic}')[0].qos_profile.durability
            for topic in images[1:]
        }
        latched = [t for t, d in durabilities.items() if d == TRANSIENT_LOCAL]
        assert latched == ['ground_truth/mask']
        assert not Manager(client, 'synthetic_camera').set('rate_hz', 5.0).successful
    finally:
        client.close()
        camera.stop()
        node.stop()
    for stamp in stamps:
        mask, color, depth, truth = (received[t][stamp] for t in images)
        for msg in (mask, depth, truth):
            assert (msg.width, msg.height) == (160, 120)
            assert msg.header == color.header
        assert color.header.frame_id == 'camera_color_optical_frame'
        assert (color.encoding, depth.encoding, truth.encoding) == ('rgb8', '32FC1', 'mono8')
        assert color_from_msg(color).std() > 5
        metres = depth_from_msg(depth)
        assert 0.3 < np.nanmedian(metres) < 10
        assert np.frombuffer(truth.data, np.uint8).max() < 40
        for info in (received[t][stamp] for t in infos):
            assert (info.width, info.height) == (160, 120)
            # A Kinect's 525 px of 640.
            assert info.k.tolist() == [131.25, 0, 79.5, 0, 131.25, 59.5, 0, 0, 1]
            assert info.header == color.header
    frames = {bytes(m.data) for m in received['rgb/image_rect_color'].values()}
    assert 2 <= len(frames) <= 4
