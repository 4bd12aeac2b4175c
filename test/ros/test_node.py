"""The segmentation node as a process, over real DDS: what it answers and what it survives."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, qos_profile_sensor_data
from ros_harness import Camera, Client, Manager, NodeProcess, bare_image, mask_stamps
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import String

from rgbd_fusion_seg import palette
from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.image_decoding import stamp_to_ns
from rgbd_fusion_seg.point_cloud import POINT, labelled_points
from rgbd_fusion_seg.ros.images import frame_from_msgs, msg_from_array
from rgbd_fusion_seg.segmenter import Segmenter

ROOT = Path(__file__).parents[2]
NODE, CAMERA = 'rgbd_fusion_seg.ros.node', 'rgbd_fusion_seg.ros.synthetic_camera'
IMAGES = tuple(f'segmentation/{name}' for name in ('mask', 'confidence', 'overlay', 'color'))
LATCHED = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture(scope='module')
def running(ros_context, tiny_bundle):
    """A node with the tiny bundle, and a client that subscribes to all its images."""
    namespace = '/running'
    node = NodeProcess(
        NODE, {'engine.bundle': tiny_bundle, 'output.diagnostics_period_s': 0.1}, namespace
    )
    client = Client(ros_context, namespace)
    for topic in IMAGES:
        client.collect(topic, Image)
    client.collect('segmentation/camera_info', CameraInfo)
    try:
        node.wait_for_output('waiting for')
        client.wait_for_matched()
        yield node, client, Camera(client)
    finally:
        client.close()
        node.stop()


def test_every_output_belongs_to_its_colour_image(running, tiny_bundle):
    _, client, camera = running
    client.received.clear()
    rng = np.random.default_rng(0)
    i = camera.intrinsics
    sent = {}

    def send():
        color = camera.color(np.kron(rng.integers(0, 256, (6, 8, 1)), np.ones((8, 8, 1))))
        depth = camera.depth(rng.uniform(0.8, 4.0, (i.height, i.width)))
        sent[camera.send(color, depth)] = (color, depth)
        time.sleep(0.05)

    client.wait_for(
        lambda: send() or all(len(client.received[t]) >= 10 for t in IMAGES), 'ten of each image'
    )
    bundle = load_bundle(tiny_bundle)
    with Segmenter(bundle) as segmenter:
        results = {}
        for topic in IMAGES:
            stamps = [stamp_to_ns(m.header.stamp) for _, m in client.received[topic]]
            assert stamps == sorted(set(stamps))
            for _, msg in client.received[topic]:
                stamp = stamp_to_ns(msg.header.stamp)
                color, depth = sent[stamp]
                assert (msg.width, msg.height) == (color.width, color.height)
                assert msg.header.frame_id == color.header.frame_id
                if stamp not in results:
                    frame = frame_from_msgs(color, depth, i)
                    results[stamp] = frame.rgb, segmenter.segment(frame)
                rgb, result = results[stamp]
                expected = {
                    'segmentation/mask': ('mono8', result.labels),
                    'segmentation/confidence': ('mono8', result.confidence),
                    'segmentation/overlay': (
                        'rgb8',
                        palette.overlay(rgb, result.labels, bundle.colors, 0.5),
                    ),
                    'segmentation/color': ('rgb8', bundle.colors[result.labels]),
                }
                encoding, pixels = expected[topic]
                assert (msg.encoding, msg.step) == (encoding, pixels[0].nbytes)
                np.testing.assert_array_equal(
                    np.frombuffer(msg.data, np.uint8).reshape(pixels.shape), pixels
                )
    labels = np.unique([result.labels for _, result in results.values()])
    assert len(labels) >= 3, 'the scene should show several classes'


@pytest.mark.parametrize('color', ['image', 'class'])
def test_points_are_those_of_the_mask(ros_context, tiny_bundle, color):
    """Subscribed alone, so the network runs for it."""
    parameters = {'engine.bundle': tiny_bundle, 'output.points_color': color}
    topic, namespace = 'segmentation/points', f'/points_{color}'
    bundle = load_bundle(tiny_bundle)
    with (
        contextlib.closing(Client(ros_context, namespace)) as client,
        Segmenter(bundle) as segmenter,
    ):
        client.collect(topic, PointCloud2)
        node = NodeProcess(NODE, parameters, namespace)
        try:
            node.wait_for_output('waiting for')
            client.wait_for_matched()
            camera = Camera(client)
            i = camera.intrinsics
            rng = np.random.default_rng(4)
            metres = rng.uniform(0.8, 4, (i.height, i.width)).astype(np.float32)
            metres[5, 9] = 0
            pixels = rng.integers(0, 256, (i.height, i.width, 3), np.uint8)
            sent = {}

            def send():
                images = (camera.color(pixels), camera.depth(metres))
                sent[camera.send(*images)] = images
                time.sleep(0.05)

            client.wait_for(lambda: send() or client.received[topic], 'points')
            _, msg = client.received[topic][0]
            frame = frame_from_msgs(*sent[stamp_to_ns(msg.header.stamp)], i)
        finally:
            node.stop()
        result = segmenter.segment(frame)
    assert msg.header.frame_id == camera.frame_id
    assert (msg.width, msg.height) == (i.width, i.height)
    shown = frame.rgb if color == 'image' else bundle.colors[result.labels]
    expected = labelled_points(frame, result, shown)
    found = np.frombuffer(msg.data, POINT).reshape(expected.shape)
    assert np.isnan(found['z'][5, 9])
    for name in POINT.names:
        np.testing.assert_array_equal(found[name], expected[name])


def test_camera_info_goes_with_the_mask(running):
    _, client, camera = running
    client.received.clear()

    def infos_of_masks():
        # Of a pair that was sent before, the one may have come before the lists were cleared.
        infos = client.received['segmentation/camera_info']
        of_stamp = {stamp_to_ns(m.header.stamp): m for _, m in list(infos)}
        return [of_stamp[stamp] for stamp in mask_stamps(client) if stamp in of_stamp]

    camera.send_until(lambda: len(infos_of_masks()) >= 3, 'masks with their camera infos')
    for info in infos_of_masks():
        assert (info.width, info.height) == (camera.intrinsics.width, camera.intrinsics.height)
        assert info.header.frame_id == camera.frame_id
        np.testing.assert_allclose(info.k, camera.intrinsics.matrix.ravel())


def test_padded_and_big_endian_images_give_the_same_mask(running):
    _, client, camera = running
    rng = np.random.default_rng(1)
    i = camera.intrinsics
    rgb = np.kron(rng.integers(0, 256, (6, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    millimetres = rng.integers(800, 4000, (i.height, i.width), np.uint16)
    padded = bare_image(
        'bgr8', i.height, i.width, 200, np.pad(rgb[..., ::-1].reshape(48, -1), ((0, 0), (0, 8)))
    )
    swapped = bare_image('16UC1', i.height, i.width, 128, millimetres.astype('>u2').view(np.uint8))
    swapped.is_bigendian = 1
    plain = (camera.color(rgb), msg_from_array(millimetres, camera.header()))
    masks = []
    for color, depth in (plain, (padded, swapped)):
        client.received.clear()
        stamps = []
        client.wait_for(
            lambda color=color, depth=depth, stamps=stamps: (
                stamps.append(camera.send(color, depth))
                or time.sleep(0.05)
                or set(stamps) & set(mask_stamps(client))
            ),
            'its mask',
        )
        masks.append(bytes(client.received['segmentation/mask'][-1][1].data))
    assert masks[0] == masks[1]
    assert len(set(masks[0])) >= 2


def bad_messages(camera):
    """Return name -> (messages that replace the good ones, words of the complaint)."""
    size = (camera.intrinsics.height, camera.intrinsics.width)
    height, width = size
    elsewhere = camera.depth()
    elsewhere.header.frame_id = 'camera_depth_optical_frame'
    uncalibrated = CameraInfo(width=width, height=height)
    other_size = camera.info()
    other_size.width, other_size.height = 1280, 720
    nothing = np.zeros(size, np.float32)
    return {
        'unknown colour encoding': (
            {'color': bare_image('infrared', height, width, 2 * width, bytes(2 * width * height))},
            "has the encoding 'infrared', which ",  # is told otherwise where cv_bridge is
        ),
        'unknown depth encoding': (
            {'depth': bare_image('8UC1', height, width, width, bytes(width * height))},
            "'8UC1', which cannot be read here; publish one of 16UC1",
        ),
        'truncated colour': (
            {'color': bare_image('rgb8', height, width, 3 * width, bytes(1000))},
            'image_rect_color is truncated',
        ),
        'truncated depth': (
            {'depth': bare_image('16UC1', height, width, 2 * width, b'')},
            'image_rect is truncated',
        ),
        'zero size': (
            {
                'color': bare_image('rgb8', 0, 0, 0, b''),
                'depth': bare_image('16UC1', 0, 0, 0, b''),
            },
            'has no pixels: its size is 0x0',
        ),
        'step too small': (
            {'color': bare_image('rgb8', height, width, width, bytes(3 * width * height))},
            'has a step of',
        ),
        'depth of another size': (
            {'depth': bare_image('16UC1', 24, 32, 64, bytes(64 * 24))},
            f'colour is {width}x{height} but depth is 32x24; publish depth registered',
        ),
        'depth of another frame': (
            {'depth': elsewhere},
            "in frame 'camera_depth_optical_frame' but",
        ),
        'uncalibrated camera': (
            {'info': uncalibrated},
            'focal lengths must be positive',
        ),
        'camera info of another size': (
            {'info': other_size},
            'but the camera info says 1280x720',
        ),
        'depth all invalid': (
            {'depth': msg_from_array(nothing * np.nan, camera.header())},
            'has no reading at all',
        ),
        'millimetres sent as metres': (
            {'depth': msg_from_array(nothing + 2000, camera.header())},
            'the median depth is 2000 m',
        ),
    }


KINDS = tuple(bad_messages(Camera(None)))


@pytest.mark.parametrize('kind', KINDS)
def test_bad_messages_are_explained_and_survived(running, kind):
    node, client, camera = running
    messages, words = bad_messages(camera)[kind]
    client.statuses.clear()
    # CameraInfo travels on a topic of its own, so give a new one time to be the newest.
    client.wait_for(
        lambda: [camera.send(**messages), time.sleep(0.05)] and client.complains(words), words
    )
    assert client.statuses[-1].level != b'\x00'
    client.received.clear()
    camera.send_until(lambda: client.received['segmentation/mask'], 'a mask after it')
    assert node.alive
    assert words in node.output()
    assert 'Traceback' not in node.output()


def test_stamps_that_go_back(running):
    node, client, camera = running
    now = client.now_ns()
    hour = 3600 * 10**9
    first = 1  # of the test before
    for start in (now, now - hour, now):
        client.received.clear()
        stamps = []
        deadline = time.monotonic() + 20
        while len(set(stamps) & set(mask_stamps(client))) < 3:
            assert time.monotonic() < deadline
            stamps.append(camera.send(stamp_ns=start + len(stamps) * 33_000_000))
            time.sleep(0.03)
        # No mask is on its way to us when the next round begins.
        client.wait_for(lambda last=stamps[-1]: last in mask_stamps(client), 'the last mask')
        # No pair mixes two times.
        assert set(mask_stamps(client)[first:]) <= set(stamps)
        first = 0
    assert 'jumped back by 36' in node.output()
    assert 'colour stamps are 36' in node.output()
    assert int(client.values()['resets']) >= 1


def test_late_joiner_learns_the_labels(running, ros_context, tiny_bundle):
    _, client, _ = running
    client.collect('segmentation/label_info_json', String, LATCHED)
    client.wait_for(lambda: client.received['segmentation/label_info_json'], 'label info')
    ((_, msg),) = client.received['segmentation/label_info_json']
    info = json.loads(msg.data)
    bundle = load_bundle(tiny_bundle)
    assert info['unlabelled'] == 255
    assert info['weights_sha256'] == bundle.weights_sha256
    assert [c['name'] for c in info['classes']] == list(bundle.class_names)
    assert [c['id'] for c in info['classes']] == list(range(bundle.num_classes))
    np.testing.assert_array_equal([c['color'] for c in info['classes']], bundle.colors)


def test_incompatible_qos_is_reported(running):
    _, client, _ = running
    words = '/running/segmentation/mask asks for an incompatible QoS'
    misfit = client.create_subscription(Image, 'segmentation/mask', lambda _: None, LATCHED)
    status = client.wait_for_complaint(words)
    assert 'DURABILITY' in str(status.values)
    client.statuses.clear()
    client.wait_for(lambda: len(client.statuses) > 3, 'further diagnostics')
    assert client.complains(words)
    client.destroy_subscription(misfit)
    client.wait_for(lambda: not client.complains(words), 'the end of the complaint')


def test_diagnostics_hold_the_numbers(running):
    _, client, camera = running
    camera.send_until(lambda: 'latency p99 ms' in client.values(), 'latency')
    values = client.values()
    assert values['engine'].startswith('onnxruntime')
    assert values['bundle'] == 'tiny'
    assert values['matcher'] in ('builtin', 'message_filters')
    pairs, masks, dropped = (int(values[k]) for k in ('pairs', 'masks', 'dropped'))
    assert 0 < masks <= pairs
    assert pairs - 2 <= masks + dropped <= pairs
    for key in ('colour Hz', 'masks Hz', 'age p50 ms', 'segmentation p50 ms'):
        assert float(values[key]) >= 0
    assert 0 <= float(values['valid depth ratio']) <= 1
    now = client.now_ns()
    client.collect('/diagnostics', DiagnosticArray)
    client.wait_for(
        lambda: any(stamp_to_ns(m.header.stamp) > now for _, m in client.received['/diagnostics']),
        'a status of now',
    )


@pytest.fixture(scope='module')
def silent(ros_context, tiny_bundle):
    """A node that complains early, and a client that subscribes to nothing."""
    parameters = {
        'engine.bundle': tiny_bundle,
        'output.diagnostics_period_s': 0.1,
        'sync.warn_after_s': 0.5,
        'sync.max_age_s': 60.0,
    }
    node = NodeProcess(NODE, parameters, '/silent')
    client = Client(ros_context, '/silent')
    try:
        node.wait_for_output('waiting for')
        client.wait_for_matched()
        yield node, client, Camera(client)
    finally:
        client.close()
        node.stop()


def test_nodes_that_publish_to_one_topic_are_told(running):
    _, client, _ = running
    rival = client.create_publisher(Image, 'segmentation/mask', 1)
    client.wait_for_complaint(
        '/running/segmentation/mask is published by several nodes '
        '(/running/client, /running/segmentation_node)'
    )
    client.destroy_publisher(rival)
    client.wait_for(lambda: not client.complains('several nodes'), 'the end of the complaint')


class TestSilence:
    """A node that gets too little says what is missing; the steps build on each other."""

    def repeat(self, client, action, words):
        client.statuses.clear()
        client.wait_for(lambda: action() or time.sleep(0.03) or client.complains(words), words)

    def test_1_nothing_comes(self, silent):
        _, client, _ = silent
        client.wait_for_complaint(
            'no image arrives on /silent/rgb/image_rect_color (never received) and '
            '/silent/depth_registered/image_rect (never received)'
        )

    def test_1b_another_type_comes(self, silent):
        node, client, _ = silent
        topic = '/silent/depth_registered/image_rect'
        context = rclpy.context.Context()  # one of ours has one type for a topic
        rclpy.init(context=context)
        foreign = rclpy.create_node('foreign', context=context)
        for name in (topic, '/silent/rgb/image_rect_color'):
            foreign.create_publisher(CompressedImage, name, 1)
        words = (
            f'{topic} carries sensor_msgs/msg/CompressedImage, but this node reads '
            'sensor_msgs/msg/Image; topics whose names end in /compressed or '
            '/compressedDepth are read as compressed, no others'
        )
        client.destroy_publisher(client.depth)
        try:
            client.wait_for_complaint(words)
            assert words in client.statuses[-1].message
            assert 'rgb/image_rect_color carries' not in node.output()
        finally:
            client.depth = client.create_publisher(Image, topic, 5)
            foreign.destroy_node()
            context.try_shutdown()
        client.wait_for_matched()

    def test_2_depth_is_missing(self, silent):
        _, client, camera = silent

        def only_color():
            msg = camera.color()
            self.stamp(msg, client.now_ns())
            client.color.publish(msg)

        self.repeat(client, only_color, 'no image arrives on /silent/depth_registered/image_rect')

    def test_3_stamps_too_far_apart(self, silent):
        _, client, camera = silent

        def far_apart():
            for publisher, msg, offset in (
                (client.color, camera.color(), 0),
                (client.depth, camera.depth(), 300_000_000),
            ):
                self.stamp(msg, client.now_ns() // 10**9 * 10**9 + offset)
                publisher.publish(msg)

        self.repeat(client, far_apart, 'sync.slop_s allows 20.0 ms')

    def test_4_camera_info_is_missing(self, silent):
        _, client, camera = silent

        def images_alone():
            stamp_ns = client.now_ns()
            for publisher, msg in ((client.color, camera.color()), (client.depth, camera.depth())):
                self.stamp(msg, stamp_ns)
                publisher.publish(msg)

        self.repeat(client, images_alone, 'images arrive, but nothing on /silent/rgb/camera_info')

    def test_5_nobody_listens(self, silent):
        _, client, camera = silent
        client.wait_for(
            lambda: (
                camera.send(info=CameraInfo())
                and client.values().get('dropped: nobody subscribes')
            ),
            'pairs dropped because nobody listens',
        )
        assert client.values()['masks'] == '0'

    def test_6_too_old(self, silent):
        _, client, camera = silent
        client.collect('segmentation/mask', Image)
        camera.send_until(lambda: client.received['segmentation/mask'], 'a mask')

        def old():
            camera.send(stamp_ns=client.now_ns() - 100 * 10**9)

        self.repeat(client, old, 'sync.max_age_s is 60.000 s, so they are dropped')

    @staticmethod
    def stamp(msg, stamp_ns):
        msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(stamp_ns, 10**9)


def test_intrinsics_by_parameter_and_reliable_by_override(ros_context, tiny_bundle):
    topic = '/given/rgb/image_rect_color'
    parameters = {
        'engine.bundle': tiny_bundle,
        'output.diagnostics_period_s': 0.1,
        'sync.warn_after_s': 0.5,
        'camera.fx': 50.0,
        f'qos_overrides.{topic}.subscription.reliability': 'reliable',
        f'qos_overrides.{topic}.subscription.durabilty': 'transient_local',
    }
    node = NodeProcess(NODE, parameters, '/given')
    client = Client(ros_context, '/given')
    camera = Camera(client)
    client.collect('segmentation/mask', Image)
    client.collect('segmentation/camera_info', CameraInfo)
    client.info = client.create_publisher(CameraInfo, 'unheard', 1)
    try:
        camera.send_until(lambda: client.received['segmentation/camera_info'], 'camera info')
        info = client.received['segmentation/camera_info'][0][1]
        assert info.k.tolist() == [50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]
        (best_effort,) = [client.create_publisher(Image, topic, qos_profile_sensor_data)]
        client.wait_for_complaint(f'a publisher of {topic} offers an incompatible QoS')
        assert best_effort.get_subscription_count() == 0
        client.destroy_publisher(best_effort)
        client.wait_for(lambda: not client.complains('incompatible'), 'its end')
        assert client.complains(f'{topic}.subscription.durabilty (did you mean qos_overrides.')
        assert 'durabilty (did you mean' in node.output()
    finally:
        client.close()
        node.stop()


def test_a_latched_camera_info_wants_the_overrides_that_the_documents_tell(
    ros_context, tiny_bundle, tmp_path
):
    document = (ROOT / 'docs/interfaces.md').read_text()
    blocks = re.findall(r'```yaml\n(.*?)```', document, re.DOTALL)
    (overrides,) = [text for text in blocks if 'transient_local' in text]
    file = tmp_path / 'overrides.yaml'
    file.write_text(overrides.replace('/camera/camera/color/', '/latched/rgb/'))
    parameters = {
        'engine.bundle': tiny_bundle,
        'output.diagnostics_period_s': 0.1,
        'sync.warn_after_s': 0.5,
    }
    client = Client(ros_context, '/latched')
    camera = Camera(client)
    client.collect('segmentation/mask', Image)
    client.info = client.create_publisher(CameraInfo, 'unheard', 1)
    client.create_publisher(CameraInfo, 'rgb/camera_info', LATCHED).publish(camera.info())
    nodes = []
    try:
        nodes.append(NodeProcess(NODE, parameters, '/latched'))
        words = "override this subscription's reliability by reliable and its durability by"
        camera.send_until(lambda: client.complains(words), 'what to override')
        assert not client.received['segmentation/mask']
        nodes[0].stop()
        nodes.append(NodeProcess(NODE, parameters, '/latched', ('--params-file', str(file))))
        camera.send_until(lambda: client.received['segmentation/mask'], 'a mask')
    finally:
        client.close()
        for node in nodes:
            node.stop()


def test_mistyped_parameters_are_told(ros_context, tmp_path):
    file = tmp_path / 'shared.yaml'
    file.write_text(
        '/**:\n  ros__parameters:\n    publish_tf: true\n    engine:\n      bundel: mine\n'
    )
    parameters = {'autostart': False, 'output.diagnostics_period_s': 0.1}
    node = NodeProcess(NODE, parameters, '/mistyped', ('--params-file', str(file)))
    client = Client(ros_context, '/mistyped')
    words = 'engine.bundel (did you mean engine.bundle?)'
    try:
        client.wait_for_complaint(words)
        assert words in client.values()['unknown parameters']
        assert 'publish_tf' in client.values()['unknown parameters']
        assert node.output().count(words) == 1
    finally:
        client.close()
        node.stop()


@pytest.mark.parametrize(
    'signals',
    [
        (signal.SIGINT,),
        (signal.SIGINT,) * 3,
        (signal.SIGTERM,),
        (signal.SIGTERM,) * 3,
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGINT, signal.SIGTERM, signal.SIGTERM),  # as launch escalates
    ],
)
def test_signals_end_a_busy_node_cleanly(ros_context, tiny_bundle, signals):
    node = NodeProcess(NODE, {'engine.bundle': tiny_bundle}, '/ending')
    client = Client(ros_context, '/ending')
    camera = Camera(client)
    client.collect('segmentation/mask', Image)
    try:
        camera.send_until(lambda: client.received['segmentation/mask'], 'a mask')
        for number in signals:
            camera.send()
            node.signal(number)
            time.sleep(0.015)
        assert node.wait() == 0, node.output()
        assert 'Traceback' not in node.output()
    finally:
        client.close()
        node.stop()


HANGING_NODE = """
import sys, threading
from rgbd_fusion_seg.ros import node
node.kernels.warm_up = threading.Event().wait
sys.exit(node.main())
"""


STARTING = 'starting: loading kernels and the network'


def test_a_node_that_takes_long_to_start_says_so(ros_context, tmp_path, tiny_bundle):
    (tmp_path / 'hanging_node.py').write_text(HANGING_NODE)
    parameters = {'output.diagnostics_period_s': 0.1, 'engine.bundle': tiny_bundle}
    node = NodeProcess('hanging_node', parameters, '/long', path=tmp_path)
    client = Client(ros_context, '/long')
    try:
        client.wait_for(lambda: len(client.statuses) >= 2, 'diagnostics')
        assert client.statuses[-1].message == STARTING
        node.signal(signal.SIGTERM)
        assert node.wait() == 0
        assert 'Traceback' not in node.output()
    finally:
        client.close()
        node.stop()


def test_a_managed_node_that_takes_long_to_configure_says_so(ros_context, tmp_path, tiny_bundle):
    (tmp_path / 'hanging_node.py').write_text(HANGING_NODE)
    parameters = {
        'output.diagnostics_period_s': 0.1,
        'engine.bundle': tiny_bundle,
        'autostart': False,
    }
    node = NodeProcess('hanging_node', parameters, '/managed', path=tmp_path)
    client = Client(ros_context, '/managed')
    try:
        client.wait_for(lambda: client.statuses, 'diagnostics')
        assert client.statuses[-1].message == 'inactive'
        Manager(client).ask(Transition.TRANSITION_CONFIGURE)
        client.wait_for(
            lambda: [s.message for s in client.statuses[-2:]] == 2 * [STARTING], STARTING
        )
    finally:
        client.close()
        node.signal(signal.SIGKILL)  # it hangs in a callback
        node.wait()
        node.stop()


@pytest.mark.parametrize('command', ['segmentation_node', 'synthetic_camera'])
def test_commands_end_quietly_while_they_load(command, tmp_path):
    (tmp_path / 'rclpy.py').write_text('import sys, time\nprint("loading")\ntime.sleep(600)\n')
    folders = [str(tmp_path), str(ROOT), *os.environ.get('PYTHONPATH', '').split(os.pathsep)]
    with subprocess.Popen(
        [sys.executable, '-u', ROOT / 'scripts' / command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {'PYTHONPATH': os.pathsep.join(folders)},
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == 'loading\n'
            process.send_signal(signal.SIGINT)
            assert process.stdout.read() == ''
            assert process.wait() == 130
        finally:
            process.kill()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ('module', 'parameters', 'moment', 'later'),
    [
        (NODE, {}, 'loading kernels', 'waiting for'),
        (CAMERA, {'num_frames': 10_000}, 'rendering 10000 images', 'publishing'),
    ],
)
def test_signals_end_a_start_at_once(ros_context, module, parameters, moment, later, number):
    node = NodeProcess(module, parameters, '/starting')
    try:
        node.wait_for_output(moment)
        node.signal(number)
        assert node.wait() == 0, node.output()
        for words in (later, 'Traceback', 'Exception', 'ERROR'):
            assert words not in node.output(), node.output()
    finally:
        node.stop()


def test_half_objects_of_an_interrupted_start_are_silent(ros_context, tmp_path):
    (tmp_path / 'half.py').write_text(
        'import sys, time\n'
        'from rgbd_fusion_seg.ros.process import run_node\n'
        'class Half:\n'
        '    def __init__(self):\n'
        '        print("making", flush=True)\n'
        '        time.sleep(600)\n'
        '        self.whole = True\n'
        '    def __del__(self):\n'
        '        print("collected", self.whole)\n'
        'class Node:\n'
        '    def start(self): Half()\n'
        '    def stop(self): pass\n'
        '    def destroy_node(self): print("destroyed", flush=True)\n'
        'sys.exit(run_node(Node))\n'
    )
    node = NodeProcess('half', {}, '/half', path=tmp_path)
    try:
        node.wait_for_output('making')
        node.signal(signal.SIGINT)
        assert node.wait() == 0, node.output()
        assert node.output() == 'making\ndestroyed\n'
    finally:
        node.stop()


@pytest.mark.parametrize(
    ('parameters', 'words'),
    [
        ({'engine.bundle': 'no_such_model'}, "no bundle at or called 'no_such_model'; give"),
        ({'sync.slop_s': 'far'}, "'sync.slop_s'"),
        ({'engine.input_width': 160}, 'engine.input_height is not'),
        ({'sync.matcher': 'exact'}, 'sync.matcher is '),
        ({'output.overlay_alpha': 2.0}, 'output.overlay_alpha'),
    ],
)
def test_wrong_parameters_end_it_with_a_sentence(parameters, words, ros_context):
    node = NodeProcess(NODE, parameters, '/wrong')
    try:
        assert node.wait() == 1
        assert words in node.output()
        assert 'Traceback' not in node.output()
    finally:
        node.stop()
