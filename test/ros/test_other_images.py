"""Images as image_transport compresses them, and disparity, read by the node."""

from __future__ import annotations

import contextlib
import struct
import sys
import time

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

from ros_harness import Camera, Client, NodeProcess
from rvl_packing import pack_rvl
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.image_decoding import stamp_to_ns
from rgbd_fusion_seg.ros.images import image_type, msg_from_array, raw_image
from rgbd_fusion_seg.segmenter import Segmenter

try:
    from stereo_msgs.msg import DisparityImage
except ImportError:
    DisparityImage = None

NODE = 'rgbd_fusion_seg.ros.node'
MASK = 'segmentation/mask'
MAX_DEPTH_M, QUANTISATION_M = 10.0, 100.0
NEEDS_STEREO = pytest.mark.skipif(DisparityImage is None, reason='stereo_msgs is not installed')


def compressed(data: bytes, kind: str) -> CompressedImage:
    """Return a message of compressed data."""
    return CompressedImage(format=kind, data=data)


def png(pixels: np.ndarray) -> bytes:
    """Compress without loss; colour as RGB."""
    return cv2.imencode('.png', pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()


def compressed_depth(metres: np.ndarray, encoding: str, packed: str) -> CompressedImage:
    """Return depth as the plugin compressedDepth sends it, at its default settings."""
    quant_a = quant_b = 0.0
    if encoding == '16UC1':
        codes = np.round(metres * 1000).astype(np.uint16)
    else:
        quant_a = QUANTISATION_M * (QUANTISATION_M + 1)
        quant_b = 1 - quant_a / MAX_DEPTH_M
        with np.errstate(divide='ignore'):
            codes = np.where(metres > 0, quant_a / metres + quant_b, 0).astype(np.uint16)
    data = struct.pack('<iff', 0, quant_a, quant_b)
    if packed == 'rvl':
        height, width = codes.shape
        data += struct.pack('<II', width, height) + pack_rvl(codes.ravel())
    else:
        data += png(codes)
    return compressed(data, f'{encoding}; compressedDepth {packed}')


def disparity_image(metres: np.ndarray, camera: Camera, baseline: float) -> DisparityImage:
    """Return the disparity of a view, as stereo_image_proc sends it."""
    disparity = np.full(metres.shape, -1, np.float32)  # its mark of what matched nowhere
    seen = metres > 0
    disparity[seen] = camera.intrinsics.fx * baseline / metres[seen]
    msg = DisparityImage(f=camera.intrinsics.fx, t=baseline, min_disparity=0.0)
    msg.image = msg_from_array(disparity, Header())
    return msg


@pytest.mark.parametrize(
    ('topic', 'kind'),
    [
        ('/camera/color/image_raw', Image),
        ('/camera/color/image_raw/compressed', CompressedImage),
        ('/camera/depth/image_raw/compressedDepth', CompressedImage),
        ('/image_compressed', CompressedImage),
        ('/depth_compressed_depth', CompressedImage),
        ('/compressed/image_raw', Image),
        ('/image_uncompressed', Image),
        pytest.param('/stereo/disparity', DisparityImage, marks=NEEDS_STEREO),
        ('/disparity/image', Image),
    ],
)
def test_the_name_tells_the_type(topic, kind):
    assert image_type(topic) is kind


def test_raw_images_pass():
    msg = msg_from_array(np.zeros((4, 4), np.uint16), Header())
    assert raw_image(msg, 'depth', '/depth') is msg


@pytest.mark.parametrize(
    ('kind', 'order'),
    [
        ('rgb8; jpeg compressed bgr8', 'bgr'),
        ('bgr8; jpeg compressed bgr8', 'bgr'),
        ('jpeg', 'bgr'),  # old or foreign publishers
        ('mono8; jpeg compressed mono8', 'bgr'),
        ('rgb8; jpeg compressed rgb8', 'rgb'),
        ('bgr8; jpeg compressed ', 'rgb'),
    ],
)
def test_channels_are_those_that_image_transport_reads(kind, order):
    """Its subscriber takes files for made of BGR unless their format says nothing of that."""
    pixels = np.full((16, 24, 3), (200, 100, 20), np.uint8)
    stored = pixels[..., ::-1] if order == 'bgr' else pixels
    jpeg = cv2.imencode('.jpg', stored)[1].tobytes()
    msg = raw_image(compressed(jpeg, kind), 'rgb', '/color')
    assert (msg.encoding, msg.height, msg.width, msg.step) == ('rgb8', 16, 24, 72)
    read = np.frombuffer(msg.data, np.uint8).reshape(pixels.shape)
    assert np.abs(read.astype(int) - pixels).max() <= 4


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        ('16UC1; compressedDepth png', 'holds compressed depth, not colour'),
        ('bayer_rggb8; png compressed ', r'holds a Bayer mosaic \(bayer_rggb8\), not colour'),
        ('rgb8; jpeg compressed bgr8', 'has compressed data that is no image'),
    ],
)
def test_what_is_no_compressed_colour_is_told(kind, words):
    with pytest.raises(FrameError, match=f'^/color {words}'):
        raw_image(compressed(b'none', kind), 'rgb', '/color')


def test_disparity_without_its_type_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, 'stereo_msgs.msg', None)
    with pytest.raises(InputError, match=r'^/stereo/disparity .* install stereo_msgs'):
        image_type('/stereo/disparity')
    assert image_type('/stereo/depth') is Image


@NEEDS_STEREO
def test_disparity_is_no_colour():
    with pytest.raises(FrameError, match=r'^/stereo/disparity holds disparity'):
        raw_image(DisparityImage(), 'rgb', '/stereo/disparity')


@pytest.mark.parametrize(
    ('size', 'length', 'words'),
    [
        ((64, 48), 20, 'after .* of 3072 pixels'),
        ((0, 48), 200, 'its size is 0x48'),
        ((70000, 48), 200, 'its size is 70000x48'),
        ((0, 0), 15, 'its size is 0x0'),
    ],
)
def test_damaged_rvl_is_one_sentence_naming_the_topic(size, length, words):
    data = struct.pack('<iffII', 0, 0, 0, *size) + pack_rvl(np.full(3072, 700, np.uint16))
    msg = compressed(data[:length], '16UC1; compressedDepth rvl')
    with pytest.raises(FrameError, match=f'^/depth has RVL data that is no image .*{words}'):
        raw_image(msg, 'depth', '/depth')


@pytest.mark.parametrize(
    ('encoding', 'packed'),
    [
        ('16UC1', 'png'),
        ('16UC1', 'rvl'),
        ('32FC1', 'png'),
        ('32FC1', 'rvl'),
        pytest.param('32FC1', 'disparity', marks=NEEDS_STEREO),
    ],
)
def test_labels_are_those_of_raw_images(ros_context, tiny_bundle, encoding, packed):
    """Over DDS; what is damaged is explained and passed over."""
    namespace = f'/other_{encoding.lower()}_{packed}'
    disparity = packed == 'disparity'
    color_topic = 'camera/image/compressed'
    depth_topic = 'camera/disparity' if disparity else 'camera/depth/compressedDepth'
    names = {'rgb/image_rect_color': color_topic, 'depth_registered/image_rect': depth_topic}
    rng = np.random.default_rng(0)
    with (
        contextlib.closing(Client(ros_context, namespace)) as client,
        Segmenter(load_bundle(tiny_bundle)) as segmenter,
    ):
        client.color = client.create_publisher(CompressedImage, color_topic, 5)
        kind = DisparityImage if disparity else CompressedImage
        client.depth = client.create_publisher(kind, depth_topic, 5)
        client.collect(MASK, Image)
        camera = Camera(client)
        i = camera.intrinsics
        node = NodeProcess(
            NODE,
            {'engine.bundle': tiny_bundle, 'output.diagnostics_period_s': 0.1},
            namespace,
            tuple(part for pair in names.items() for part in ('-r', ':='.join(pair))),
        )
        try:
            node.wait_for_output('waiting for')
            client.wait_for_matched()
            sent = {}

            def depth_of(metres):
                if disparity:
                    return disparity_image(metres, camera, baseline=0.12)
                return compressed_depth(metres, encoding, packed)

            def send():
                blocks = rng.integers(0, 256, (6, 8, 1)) * (1.0, 0.9, 0.8)
                rgb = np.kron(blocks, np.ones((8, 8, 1))).astype(np.uint8)
                metres = rng.uniform(0.8, 4.0, (i.height, i.width)).round(3)
                metres[:4] = 0
                color = compressed(png(rgb), 'rgb8; png compressed bgr8')
                sent[camera.send(color, depth_of(metres))] = rgb, metres
                time.sleep(0.05)

            client.wait_for(lambda: send() or len(client.received[MASK]) >= 5, 'five masks')
            seen = set()
            for _, msg in client.received[MASK]:
                rgb, metres = sent[stamp_to_ns(msg.header.stamp)]
                assert (msg.width, msg.height) == (i.width, i.height)
                assert msg.header.frame_id == camera.frame_id
                expected = segmenter.segment(RgbdFrame(rgb, metres.astype(np.float32), i)).labels
                labels = np.frombuffer(msg.data, np.uint8).reshape(expected.shape)
                # Quantised depth has steps of millimetres, which the tiny network hardly sees.
                same = np.mean(labels == expected)
                assert same == 1 if encoding == '16UC1' else same > 0.99
                seen |= set(np.unique(labels))
            assert len(seen) >= 3, 'the scene should show several classes'

            broken = compressed(b'no picture', 'rgb8; jpeg compressed bgr8')

            def send_broken():
                camera.send(broken, depth_of(np.full((i.height, i.width), 2.0)))
                time.sleep(0.05)
                return client.complains(f'{namespace}/{color_topic} has compressed data')

            client.wait_for(send_broken, 'a complaint')
            client.received.clear()
            client.wait_for(lambda: send() or client.received[MASK], 'a mask after that')
        finally:
            node.stop()


def test_a_topic_that_has_compressed_copies_alone(ros_context, tiny_bundle):
    namespace = '/copies'
    with contextlib.closing(Client(ros_context, namespace)) as client:
        topic = f'{namespace}/rgb/image_rect_color'
        client.destroy_publisher(client.color)
        client.create_publisher(CompressedImage, f'{topic}/compressed', 5)
        parameters = {'engine.bundle': tiny_bundle, 'output.diagnostics_period_s': 0.1}
        node = NodeProcess(NODE, parameters | {'sync.warn_after_s': 0.5}, namespace)
        try:
            client.wait_for_complaint(
                f'nothing is published on {topic}, but compressed images are on '
                f'{topic}/compressed; remap the node to that'
            )
            assert 'depth_registered/image_rect/compressed' not in node.output()
        finally:
            node.stop()
