"""Images against a decoder that shares nothing with ours: a loop over pixels and struct."""

from __future__ import annotations

import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.image_decoding import intrinsics_from_info
from rgbd_fusion_seg.point_cloud import POINT
from rgbd_fusion_seg.ros import images
from rgbd_fusion_seg.ros.images import (
    color_from_msg,
    depth_from_msg,
    frame_from_msgs,
    info_from_intrinsics,
    msg_from_array,
    msg_from_points,
)
from rgbd_fusion_seg.ros_environment import cv_bridge_fault

CHANNEL_ORDER = {'rgb8': (0, 1, 2), 'bgr8': (2, 1, 0), 'rgba8': (0, 1, 2), 'bgra8': (2, 1, 0)}
CHANNELS = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}


def make_msg(encoding: str, height: int, width: int, step: int, data: bytes, *, big=False):
    msg = Image(height=height, width=width, encoding=encoding, step=step, is_bigendian=int(big))
    msg.data = data
    return msg


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(st.sampled_from(sorted(CHANNELS)), sizes, st.integers(0, 7), st.randoms())
def test_colour_pixel_by_pixel(encoding, size, padding, random):
    height, width = size
    channels = CHANNELS[encoding]
    step = width * channels + padding
    data = random.randbytes(height * step)
    found = color_from_msg(make_msg(encoding, height, width, step, data))
    assert found.shape == (height, width, 3)
    assert found.flags.c_contiguous
    for v in range(height):
        for u in range(width):
            pixel = data[v * step + u * channels : v * step + (u + 1) * channels]
            expected = (
                [pixel[0]] * 3 if channels == 1 else [pixel[i] for i in CHANNEL_ORDER[encoding]]
            )
            assert found[v, u].tolist() == expected


@given(
    st.sampled_from(['16UC1', 'mono16', '32FC1']),
    sizes,
    st.integers(0, 7),
    st.booleans(),
    st.randoms(),
)
def test_depth_pixel_by_pixel(encoding, size, padding, big, random):
    height, width = size
    code = ('>' if big else '<') + ('f' if encoding == '32FC1' else 'H')
    step = width * struct.calcsize(code) + padding
    data = random.randbytes(height * step)
    found = depth_from_msg(make_msg(encoding, height, width, step, data, big=big))
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    for v in range(height):
        for u in range(width):
            (value,) = struct.unpack_from(code, data, v * step + u * struct.calcsize(code))
            metres = value if encoding == '32FC1' else value / 1000
            # One unit in the last place: millimetres are scaled in float32.
            np.testing.assert_allclose(found[v, u], np.float32(metres), rtol=1.2e-7)


def test_rgb8_is_not_copied():
    msg = make_msg('rgb8', 2, 3, 9, bytes(18))
    found = color_from_msg(msg)
    msg.data[4] = 77
    assert found[0, 1, 1] == 77


@pytest.mark.parametrize(
    ('dtype', 'shape', 'encoding', 'code'),
    [
        (np.uint8, (5, 7), 'mono8', '<7B'),
        (np.uint8, (5, 7, 3), 'rgb8', '<21B'),
        (np.uint16, (5, 7), '16UC1', '<7H'),
        (np.float32, (5, 7), '32FC1', '<7f'),
    ],
)
def test_array_becomes_rows_of_a_message(dtype, shape, encoding, code):
    pixels = np.random.default_rng(2).integers(0, 250, shape).astype(dtype)[:, ::-1]
    msg = msg_from_array(pixels, Header(frame_id='camera'))
    assert (msg.encoding, msg.header.frame_id, msg.is_bigendian) == (encoding, 'camera', 0)
    assert (msg.height, msg.width, msg.step) == (5, 7, struct.calcsize(code))
    assert len(msg.data) == 5 * msg.step
    for v in range(5):
        row = struct.unpack_from(code, msg.data, v * msg.step)
        assert list(row) == pixels[v].ravel().tolist()


def test_mask_has_no_padding():
    msg = msg_from_array(np.zeros((4, 13), np.uint8), Header())
    assert (msg.encoding, msg.step, msg.width) == ('mono8', 13, 13)


@pytest.mark.parametrize('pixels', [np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8)])
def test_other_arrays_are_no_images(pixels):
    with pytest.raises(FrameError, match='no image to publish'):
        msg_from_array(pixels, Header())


@pytest.mark.parametrize(
    ('msg', 'words'),
    [
        (make_msg('rgb8', 2, 2, 6, bytes(11)), 'truncated'),
        (make_msg('rgb8', 0, 0, 0, b''), 'no pixels'),
        (make_msg('rgb8', 2, 2, 3, bytes(12)), 'step'),
        (make_msg('infrared', 2, 2, 4, bytes(8)), "'infrared'.*rgb8, bgr8"),
        (make_msg('32FC1', 2, 2, 8, bytes(16)), "'32FC1'.*rgb8"),
    ],
)
def test_bad_colour_is_one_sentence_naming_the_topic(msg, words):
    with pytest.raises(FrameError, match=f'(?s)^/camera/color .*{words}') as caught:
        color_from_msg(msg, '/camera/color')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('encoding', ['rgb8', '8UC1', 'compressed'])
def test_what_is_no_depth_encoding_names_the_accepted_ones(encoding):
    msg = make_msg(encoding, 2, 2, 6, bytes(12))
    with pytest.raises(FrameError, match=f"{encoding}'.*16UC1, mono16, 32FC1"):
        depth_from_msg(msg)


@pytest.mark.parametrize(
    ('encoding', 'metres'),
    [('64FC1', 2.5), ('16SC1', None), ('32SC1', None), ('bayer_rggb8', None)],
)
def test_cv_bridge_reads_depth_of_known_unit_alone(monkeypatch, encoding, metres):
    """It makes a float of any number of one channel, so millimetres would pass for metres."""

    class Bridge:
        def imgmsg_to_cv2(self, msg, desired_encoding):
            return np.full((2, 2), 2.5, desired_encoding.replace('32FC1', 'float32'))

    monkeypatch.setattr(images, 'load_cv_bridge', Bridge)
    msg = make_msg(encoding, 2, 2, 16, bytes(32))
    if metres is None:
        with pytest.raises(FrameError, match=f"{encoding}'.*16UC1, mono16, 32FC1"):
            depth_from_msg(msg)
    else:
        np.testing.assert_array_equal(depth_from_msg(msg), np.full((2, 2), metres, np.float32))


@pytest.mark.parametrize(('height', 'size'), [(2, 31), (0, 0)])
def test_cv_bridge_is_not_given_less_than_an_image(monkeypatch, height, size):
    """It would read what lies behind the data, or fail in a riddle."""
    monkeypatch.setattr(images, 'load_cv_bridge', lambda: SimpleNamespace())
    with pytest.raises(FrameError, match=f'^/depth is empty or truncated: .* has {size} bytes'):
        depth_from_msg(make_msg('64FC1', height, 2, 16, bytes(size)), '/depth')


@pytest.fixture
def another_cv_bridge(tmp_path, monkeypatch):
    """Puts a module of other contents in its place."""

    def write(text: str) -> None:
        (tmp_path / 'cv_bridge.py').write_text(text)
        cv_bridge_fault.cache_clear()
        images.load_cv_bridge.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'cv_bridge', raising=False)
    yield write
    sys.modules.pop('cv_bridge', None)
    cv_bridge_fault.cache_clear()
    images.load_cv_bridge.cache_clear()


CONVERTING = """
import numpy, os, signal
class CvBridge:
    def imgmsg_to_cv2(self, msg, desired_encoding):
        {}
"""


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ("raise AttributeError('_ARRAY_API not found')", 'fails here .AttributeError: _ARRAY_API'),
        # As one that was compiled for NumPy 1 does beside NumPy 2.
        (CONVERTING.format('os.kill(os.getpid(), signal.SIGSEGV)'), 'crashes here .SIGSEGV'),
        (CONVERTING.format('return numpy.zeros((4, 4))'), r'fails here .AssertionError: \(4, 4\)'),
    ],
)
def test_a_broken_cv_bridge_is_survived_and_told(another_cv_bridge, text, words):
    another_cv_bridge(text)
    for _ in range(2):
        with pytest.raises(
            FrameError, match=f'not read without cv_bridge, and that {words}.*rgb8, bgr8'
        ):
            color_from_msg(make_msg('bayer_rggb8', 2, 2, 2, bytes(4)))


def test_a_sound_cv_bridge_is_tried_once_and_used(another_cv_bridge, tmp_path):
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x'); "
    another_cv_bridge(CONVERTING.format(f'{count}return numpy.full((4, 4, 3), 7, numpy.uint8)'))
    for _ in range(3):
        rgb = color_from_msg(make_msg('bayer_rggb8', 4, 4, 4, bytes(16)))
        assert np.array_equal(rgb, np.full((4, 4, 3), 7))
    assert (tmp_path / 'count').read_text() == 'xxxx'


@pytest.mark.skipif(bool(cv_bridge_fault()), reason=f'cv_bridge {cv_bridge_fault()}')
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize('bits', [8, 16])
def test_bayer_patterns_come_out_of_cv_bridge_as_the_picture(pattern, bits):
    """Of a picture that changes linearly, interpolation gives what was there."""
    v, u = np.mgrid[:32, :48]
    picture = np.stack([u * 4, v * 6, 250 - u * 4], axis=-1)
    mosaic = np.zeros((32, 48), f'uint{bits}')
    for i, colour in enumerate(pattern):
        rows, columns = slice(i // 2, None, 2), slice(i % 2, None, 2)
        mosaic[rows, columns] = picture[rows, columns, 'rgb'.index(colour)]
    mosaic *= 1 if bits == 8 else 257
    msg = make_msg(f'bayer_{pattern}{bits}', 32, 48, mosaic.strides[0], mosaic.tobytes())
    rgb = color_from_msg(msg)
    assert rgb.dtype == np.uint8
    np.testing.assert_allclose(rgb[2:-2, 2:-2].astype(int), picture[2:-2, 2:-2], atol=1)


@pytest.mark.skipif(bool(cv_bridge_fault()), reason=f'cv_bridge {cv_bridge_fault()}')
def test_depth_in_double_precision_comes_out_of_cv_bridge():
    metres = np.linspace(0.4, 8, 12).reshape(3, 4)
    found = depth_from_msg(make_msg('64FC1', 3, 4, 32, metres.tobytes()))
    np.testing.assert_array_equal(found, metres.astype(np.float32))


def pair(**depth):
    color = make_msg('rgb8', 4, 6, 18, bytes(72))
    color.header = Header(frame_id='optical')
    color.header.stamp.sec, color.header.stamp.nanosec = 3, 5
    other = make_msg(**{'encoding': '16UC1', 'height': 4, 'width': 6, 'step': 12, **depth})
    other.header = Header(frame_id='optical')
    return color, other


INTRINSICS = Intrinsics(5.0, 5.0, 2.5, 1.5, 6, 4)


def test_frame_has_stamp_and_frame_of_colour():
    frame = frame_from_msgs(*pair(data=struct.pack('<24H', *range(24))), INTRINSICS)
    assert (frame.stamp_ns, frame.frame_id) == (3_000_000_005, 'optical')
    assert frame.depth[2, 3] == pytest.approx(0.015)


@pytest.mark.parametrize(('given', 'found'), [('colour_optical', 'colour_optical'), ('', 'depth')])
def test_a_frame_of_depth_alone_is_in_that_of_colour_where_it_is_known(given, found):
    _, depth = pair(data=struct.pack('<24H', *range(24)))
    depth.header.frame_id = 'depth'
    depth.header.stamp.sec = 9
    frame = frame_from_msgs(None, depth, INTRINSICS, frame_id=given)
    assert (frame.stamp_ns, frame.frame_id) == (9_000_000_000, found)
    assert frame.depth[2, 3] == pytest.approx(0.015)


def test_depth_of_another_size_is_refused():
    messages = pair(data=bytes(12), height=2, width=3, step=6)
    with pytest.raises(FrameError, match='colour is 6x4 but depth is 3x2; publish depth regis'):
        frame_from_msgs(*messages, INTRINSICS)


def test_depth_of_another_frame_is_refused_unless_allowed():
    color, depth = pair(data=bytes(48))
    depth.header.frame_id = 'depth_optical'
    with pytest.raises(FrameError, match=r"'depth_optical' but .*'optical'.*require_same_frame"):
        frame_from_msgs(color, depth, INTRINSICS)
    frame = frame_from_msgs(color, depth, INTRINSICS, require_same_frame=False)
    assert frame.frame_id == 'optical'


def test_camera_info_of_another_size_is_refused():
    with pytest.raises(FrameError, match='colour is 6x4 but the camera info says 12x8'):
        frame_from_msgs(*pair(data=bytes(48)), INTRINSICS.scaled(2))


def test_intrinsics_survive_the_message():
    assert intrinsics_from_info(info_from_intrinsics(INTRINSICS, Header())) == INTRINSICS


def test_uncalibrated_camera_info_names_topic_and_remedy():
    with pytest.raises(FrameError, match=r'^/info: focal lengths must be positive.*calibrate'):
        intrinsics_from_info(CameraInfo(width=6, height=4), '/info')


def test_points_byte_by_byte():
    rng = np.random.default_rng(3)
    points = np.zeros((4, 5), POINT)
    for name in 'xyz':
        points[name] = rng.standard_normal((4, 5))
    for name, limit in (('rgb', 2**24), ('label', 256), ('confidence', 256)):
        points[name] = rng.integers(0, limit, (4, 5))
    header = Header(frame_id='here')
    msg = msg_from_points(points, header)
    assert (msg.height, msg.width, msg.header.frame_id) == (4, 5, 'here')
    assert not msg.is_dense
    assert len(msg.data) == msg.height * msg.row_step
    # sensor_msgs/PointField: 7 is FLOAT32, 6 is UINT32.
    kinds = {field.name: (field.datatype, field.count) for field in msg.fields}
    assert kinds == {
        **dict.fromkeys(('x', 'y', 'z', 'rgb'), (7, 1)),
        **dict.fromkeys(('label', 'confidence'), (6, 1)),
    }
    order = '>' if msg.is_bigendian else '<'
    for v in range(4):
        for u in range(5):
            for field in msg.fields:
                # Packed colour is read as the bits it is.
                kind = 'f' if field.name in 'xyz' else 'I'
                at = v * msg.row_step + u * msg.point_step + field.offset
                (value,) = struct.unpack_from(order + kind, msg.data, at)
                assert value == points[field.name][v, u]


def test_camera_info_of_unequal_focal_lengths():
    info = info_from_intrinsics(Intrinsics(5.0, 6.0, 2.5, 1.5, 6, 4), Header())
    assert info.k.tolist() == [5.0, 0, 2.5, 0, 6.0, 1.5, 0, 0, 1]
    assert info.p.tolist() == [5.0, 0, 2.5, 0, 0, 6.0, 1.5, 0, 0, 0, 1, 0]
    assert info.r.tolist() == np.eye(3).ravel().tolist()
