"""One camera of two falls silent and comes back, over real DDS, and what is told of it."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')
pytest.importorskip('onnx', reason='making bundles needs onnx')

from bundles import tiny_card, write_bundle
from ros_harness import Camera, Client, NodeProcess
from sensor_msgs.msg import CameraInfo, Image
from single_sensor_bundles import write_with_parts

from rgbd_fusion_seg import palette
from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.depth import grey_picture
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.image_decoding import stamp_to_ns
from rgbd_fusion_seg.ros.images import color_from_msg, depth_from_msg
from rgbd_fusion_seg.ros.single_sensor import (
    loss_problems,
    loss_sentence,
    loss_values,
    rests_on,
)
from rgbd_fusion_seg.segmenter import Segmenter

NODE = 'rgbd_fusion_seg.ros.node'
MASK, OVERLAY, INFO = (f'segmentation/{name}' for name in ('mask', 'overlay', 'camera_info'))
WARN = b'\x01'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_with_parts(tmp_path_factory.mktemp('parts') / 'tiny')


class Rig:
    """A node, a client, and a camera of which one half may be silent."""

    def __init__(self, context, folder, namespace):
        parameters = {
            'engine.bundle': folder,
            'output.diagnostics_period_s': 0.1,
            'single_sensor.after_s': 0.5,
        }
        self.node = NodeProcess(NODE, parameters, namespace)
        self.client = Client(context, namespace)
        for topic, kind in ((MASK, Image), (OVERLAY, Image), (INFO, CameraInfo)):
            self.client.collect(topic, kind)
        self.camera = Camera(self.client)
        self.rng = np.random.default_rng(0)
        self.sent = {}

    def send(self, color=True, depth=True):
        """Publish a new pair, or one half of it."""
        i, stamp_ns = self.camera.intrinsics, self.client.now_ns()
        blocks = [self.rng.uniform(0, 255, (6, 8, 1)), self.rng.uniform(0.8, 4.0, (6, 8))]
        messages = (
            self.camera.color(np.kron(blocks[0], np.ones((8, 8, 1)))),
            self.camera.depth(np.kron(blocks[1], np.ones((8, 8)))),
        )
        publishers = (self.client.color, self.client.depth)
        info = self.camera.info()
        for msg in (*messages, info):
            msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        self.sent[stamp_ns] = RgbdFrame(
            color_from_msg(messages[0]), depth_from_msg(messages[1]), i
        )
        self.client.info.publish(info)
        for publisher, msg, wanted in zip(publishers, messages, (color, depth), strict=True):
            if wanted:
                publisher.publish(msg)
        time.sleep(0.05)

    def send_until(self, condition, what, **halves):
        self.client.wait_for(lambda: self.send(**halves) or condition(), what)

    def masks(self, topic=MASK):
        """Return the pixels received, by stamp."""
        return {
            stamp_to_ns(m.header.stamp): np.frombuffer(m.data, np.uint8).reshape(48, 64, -1)
            for _, m in self.client.received[topic]
        }

    def close(self):
        self.client.close()
        self.node.stop()


def warnings_of_a_loss(client):
    """Return the statuses of level WARN that tell of a lost sensor."""
    return [
        status
        for status in client.statuses
        if status.level == WARN and 'lost sensor' in {kv.key for kv in status.values}
    ]


def tells_of_a_loss(client, rests):
    """Tell whether the newest warning of a loss says what labels rest on."""
    warnings = warnings_of_a_loss(client)
    return bool(warnings) and f'labels rest on {rests}; check' in warnings[-1].message


@pytest.fixture(scope='module')
def rig(ros_context, folder):
    rig = Rig(ros_context, folder, '/losing')
    try:
        rig.node.wait_for_output('waiting for')
        rig.client.wait_for_matched()
        rig.client.wait_for(lambda: 'pairs' in rig.client.values(), 'diagnostics')
        # Both are loaded before they are needed.
        assert {f'engine for {left} alone' for left in ('colour', 'depth')} <= set(
            rig.client.values()
        )
        yield rig
    finally:
        rig.close()


@pytest.mark.parametrize(
    ('lost', 'left', 'topic', 'words'),
    [
        ('depth', 'colour', 'depth_registered/image_rect', 'mIoU 31.2% instead of 34.7%'),
        ('colour', 'depth', 'rgb/image_rect_color', 'mIoU 25.4% instead of 34.7%'),
    ],
)
def test_one_camera_stops_and_comes_back(rig, folder, lost, left, topic, words):
    client, only = rig.client, 'rgb' if left == 'colour' else 'depth'
    halves = {'color': left == 'colour', 'depth': left == 'depth'}
    rests = f'{left} alone, {words} on rooms_test'
    rig.send_until(lambda: len(rig.masks()) >= 2, 'masks of both')
    client.statuses.clear()
    rig.send_until(lambda: warnings_of_a_loss(client), 'the loss', **halves)
    client.received.clear()
    rig.send_until(lambda: len(rig.masks(OVERLAY)) >= 4, 'masks of one', **halves)
    status = warnings_of_a_loss(client)[-1]
    values = {kv.key: kv.value for kv in status.values}
    assert f'no image arrives on /losing/{topic} (silent for' in status.message
    assert f'labels rest on {rests}; check' in status.message
    assert values['lost sensor'].startswith(f'{lost}, silent for')
    assert values['labels rest on'] == rests
    colors = load_bundle(folder).colors
    with Segmenter(folder / ('rgb_only' if only == 'rgb' else 'hha_only')) as alone:
        for stamp, overlay in rig.masks(OVERLAY).items():
            frame = rig.sent[stamp]
            labels = alone.segment(frame).labels
            assert np.array_equal(rig.masks()[stamp][..., 0], labels)
            picture = frame.rgb if only == 'rgb' else grey_picture(frame.depth)
            assert np.array_equal(overlay, palette.overlay(picture, labels, colors, 0.5))
    messages = [m for t in (MASK, OVERLAY, INFO) for _, m in client.received[t]]
    assert {m.header.frame_id for m in messages} == {rig.camera.frame_id}

    client.received.clear()
    rig.send_until(lambda: 'lost sensor' not in client.values(), 'the return')
    client.received.clear()
    rig.send_until(lambda: len(rig.masks()) >= 3, 'masks of both')
    with Segmenter(folder) as both:
        for stamp, mask in rig.masks().items():
            assert np.array_equal(mask[..., 0], both.segment(rig.sent[stamp]).labels)
    client.wait_for(lambda: client.statuses[-1].level == b'\x00', 'no problem left')
    assert int(client.values()[f'masks from {only} alone']) >= 4
    assert client.values()[f'engine for {left} alone'].startswith('onnxruntime (CPU')
    output = rig.node.output()
    assert output.count(f'labels rest on {rests}') == 1
    assert output.count(f'images arrive on /losing/{topic} again') == 1
    assert 'Traceback' not in output


def test_where_nothing_answers_alone_it_says_so(ros_context, tiny_bundle):
    rig = Rig(ros_context, tiny_bundle, '/helpless')
    try:
        rig.node.wait_for_output('waiting for')
        rig.client.wait_for_matched()
        rig.send_until(lambda: rig.masks(), 'a mask')
        rig.send_until(lambda: 'lost sensor' in rig.client.values(), 'the loss', depth=False)
        rig.client.received.clear()
        words = 'nothing: tiny cannot answer from colour alone'
        rig.send_until(lambda: rig.client.complains(words), words, depth=False)
        assert rig.client.statuses[-1].level == b'\x02'
        assert rig.client.values()['labels rest on'] == words
        assert rig.masks() == {}
    finally:
        rig.close()


def test_a_network_that_copes_goes_on_by_itself(ros_context, tmp_path):
    """It is not loaded twice, and sees the lost half blank."""
    branches = {'rgb': {'mIoU': 0.2}, 'depth': {'mIoU': 0.1}}
    metrics = {name: {'mIoU': 0.4, 'branches': branches} for name in ('rooms_test', 'streets')}
    card = tiny_card() | {'copes_without': ['rgb', 'depth'], 'metrics': metrics}
    folder = write_bundle(tmp_path / 'coping', card)
    rig = Rig(ros_context, folder, '/coping')
    try:
        rig.node.wait_for_output('waiting for')
        rig.client.wait_for_matched()
        rig.send_until(lambda: rig.masks(), 'a mask')
        for left, only, words in (('colour', 'rgb', '20.0%'), ('depth', 'depth', '10.0%')):
            halves = {'color': left == 'colour', 'depth': left == 'depth'}
            rests = f'{left} alone, mIoU {words} instead of 40.0% on rooms_test'
            is_told = partial(tells_of_a_loss, rig.client, rests)
            rig.send_until(is_told, rests, **halves)
            rig.client.received.clear()
            rig.send_until(lambda: len(rig.masks()) >= 3, 'masks of one', **halves)
            with Segmenter(folder) as segmenter:
                for stamp, mask in rig.masks().items():
                    labels = segmenter.segment(rig.sent[stamp], only=only).labels
                    assert np.array_equal(mask[..., 0], labels)
            rig.client.received.clear()
            rig.send_until(lambda: 'lost sensor' not in rig.client.values(), 'the return')
        assert not any(name.startswith('engine for ') for name in rig.client.values())
    finally:
        rig.close()


@pytest.mark.parametrize('sole', [False, True])
def test_depth_alone_without_a_camera_info_is_told(ros_context, tmp_path, folder, sole):
    """Colour's driver, which gives the CameraInfo too, did not come up."""
    rig = Rig(ros_context, folder / 'hha_only' if sole else folder, f'/blind_{sole}'.lower())
    try:
        rig.node.wait_for_output('waiting for')
        rig.client.wait_for_matched()
        words = f'nothing arrives on {rig.client.get_namespace()}/rgb/camera_info'
        depths = (rig.client.depth.publish(rig.camera.depth()) for _ in range(2000))

        def told():
            next(depths)
            time.sleep(0.03)
            return rig.client.complains(words)

        rig.client.wait_for(told, words)
        assert rig.client.statuses[-1].level == b'\x02'
        assert 'labels rest on' not in rig.client.values()
        assert 'labels rest on' not in rig.node.output()
        rig.send_until(lambda: rig.masks(), 'masks', color=False)
        rig.client.wait_for(lambda: not rig.client.complains(words), 'the end of the complaint')
    finally:
        rig.close()


def synchroniser_of(left, goes_on_alone=True):
    """Return what a synchroniser tells when one of its streams is left."""
    return SimpleNamespace(
        left=left,
        goes_on_alone=goes_on_alone,
        streams=(SimpleNamespace(topic='/colour'), SimpleNamespace(topic='/depth')),
        silence=lambda stream: f'silent for {stream + 7} s',
    )


def test_what_labels_rest_on(folder):
    bundle = load_bundle(folder)
    part = bundle.alone('rgb')
    assert rests_on(bundle, 'rgb') == 'colour alone, mIoU 31.2% instead of 34.7% on rooms_test'
    assert rests_on(bundle, 'depth') == 'depth alone, mIoU 25.4% instead of 34.7% on rooms_test'
    # Nothing is lost of what is never seen.
    assert rests_on(part, 'rgb') == 'colour alone, mIoU 31.2% on rooms_test'
    assert rests_on(part, 'depth') == 'nothing: tiny_rgb_only cannot answer from depth alone'
    unmeasured = dataclasses.replace(bundle, metrics={})
    assert rests_on(unmeasured, 'rgb') == 'colour alone, mIoU 31.2% on rooms_test'
    assert rests_on(dataclasses.replace(part, metrics={}), 'rgb').endswith('mIoU not measured')


@pytest.mark.parametrize(
    ('left', 'lost', 'lost_name', 'words', 'left_name'),
    [
        (0, '/depth', 'depth', 'silent for 8 s', 'colour'),
        (1, '/colour', 'colour', 'silent for 7 s', 'depth'),
    ],
)
def test_a_loss_is_told_with_what_goes_on(folder, left, lost, lost_name, words, left_name):
    bundle, sync = load_bundle(folder), synchroniser_of(left)
    sentence, values = loss_sentence(bundle, sync), loss_values(bundle, sync)
    assert sentence.startswith(
        f'no image arrives on {lost} ({words}), so labels rest on {left_name}'
    )
    assert values['lost sensor'] == f'{lost_name}, {words}'
    assert values['labels rest on'].startswith(f'{left_name} alone')
    (problem,) = loss_problems(bundle, sync)
    assert (problem.sentence, problem.level, problem.sticky) == (sentence, WARN, True)
    # What gives no labels at all is a problem of its own, and what is never seen is none.
    assert loss_problems(bundle, synchroniser_of(left, goes_on_alone=False)) == []
    assert loss_problems(bundle.alone('rgb'), sync) == []


def test_without_a_loss_nothing_is_told(folder):
    bundle, sync = load_bundle(folder), synchroniser_of(None, goes_on_alone=False)
    assert loss_sentence(bundle, sync) == ''
    assert loss_values(bundle, sync) == {}
    assert loss_problems(bundle, sync) == []
