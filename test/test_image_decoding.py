from __future__ import annotations

import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.image_decoding import (
    COLOUR_ENCODINGS,
    LAYOUTS,
    decode_image,
    depth_from_disparity,
    intrinsics_from_info,
    stamp_to_ns,
    to_rgb,
)
from rgbd_fusion_seg.synthetic.scene import Room


def pixels(encoding: str, height: int, width: int, seed: int = 0) -> np.ndarray:
    kind, channels = LAYOUTS[encoding]
    rng = np.random.default_rng(seed)
    shape = (height, width) if channels == 1 else (height, width, channels)
    if kind is np.float32:
        return rng.random(shape, np.float32)
    return rng.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)


def buffer(image: np.ndarray, step: int, big: bool) -> bytes:
    """Serialise row by row, the slow way, with rows padded by 0xAA."""
    out = bytearray()
    for row in image:
        data = b''.join(
            value.tobytes()[:: -1 if big else 1] for value in np.atleast_1d(row.ravel())
        )
        out += data + b'\xaa' * (step - len(data))
    return bytes(out)


def message(data, height, width, encoding, step, is_bigendian=False) -> SimpleNamespace:
    return SimpleNamespace(
        data=data,
        height=height,
        width=width,
        encoding=encoding,
        step=step,
        is_bigendian=is_bigendian,
    )


@settings(max_examples=60, deadline=None)
@given(
    encoding=st.sampled_from(sorted(LAYOUTS)),
    height=st.integers(1, 5),
    width=st.integers(1, 7),
    padding=st.integers(0, 9),
    big=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_layout(encoding, height, width, padding, big, seed):
    image = pixels(encoding, height, width, seed)
    step = image[0].nbytes + padding
    decoded = decode_image(message(buffer(image, step, big), height, width, encoding, step, big))
    assert decoded.dtype == image.dtype
    assert decoded.dtype.isnative
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize('wrap', [bytes, bytearray, memoryview, lambda b: array.array('B', b)])
def test_buffer_types(wrap):
    image = pixels('bgr8', 4, 5)
    data = wrap(image.tobytes())
    np.testing.assert_array_equal(decode_image(message(data, 4, 5, 'bgr8', 15)), image)


def test_no_copy_of_native_images():
    data = np.zeros(4 * 20, np.uint8)
    for encoding in ('rgb8', 'mono8', '16UC1', '32FC1'):
        decoded = decode_image(message(data, 4, 5, encoding, 20))
        assert np.shares_memory(decoded, data), encoding


def test_last_row_may_lack_its_padding():
    image = pixels('16UC1', 3, 5)
    data = buffer(image, 13, False)[:-3]
    np.testing.assert_array_equal(decode_image(message(data, 3, 5, '16UC1', 13)), image)


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        ({'encoding': 'yuv422'}, "depth has the encoding 'yuv422'.*rgb8"),
        ({'height': 0}, 'depth has no pixels: its size is 5x0'),
        ({'width': 0}, 'no pixels'),
        ({'step': 9}, 'step of 9 bytes.*take 10'),
        ({'step': 0}, 'step of 0 bytes'),
        ({'data': b''}, 'truncated.*40 bytes.*has 0'),
        ({'data': bytes(39)}, 'truncated.*40 bytes.*has 39'),
    ],
)
def test_refusals(change, complaint):
    image = message(bytes(40), 4, 5, '16UC1', 10)
    vars(image).update(change)
    with pytest.raises(FrameError, match=complaint):
        decode_image(image, 'depth')


def test_to_rgb_of_a_known_colour():
    r, g, b = 10, 20, 30
    stored = {
        'rgb8': [r, g, b],
        'bgr8': [b, g, r],
        '8UC3': [b, g, r],
        'rgba8': [r, g, b, 7],
        'bgra8': [b, g, r, 7],
    }
    for encoding, values in stored.items():
        image = np.tile(np.array(values, np.uint8), (2, 3, 1))
        rgb = to_rgb(image, encoding)
        assert rgb.shape == (2, 3, 3)
        assert (rgb == [r, g, b]).all(), encoding
        assert rgb.flags.c_contiguous
    for encoding, grey in (('mono8', np.uint8(77)), ('8UC1', np.uint8(77))):
        assert (to_rgb(np.full((2, 3), grey), encoding) == 77).all()
    assert (to_rgb(np.full((2, 3), 77 * 256 + 5, np.uint16), 'mono16') == 77).all()
    assert {*stored, 'mono8', '8UC1', 'mono16'} == set(COLOUR_ENCODINGS)


def test_to_rgb_of_padded_rows():
    image = pixels('bgr8', 4, 5)
    padded = decode_image(message(buffer(image, 19, False), 4, 5, 'bgr8', 19))
    np.testing.assert_array_equal(to_rgb(padded, 'bgr8'), cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    assert to_rgb(padded, 'rgb8').flags.c_contiguous


def test_depth_is_no_colour():
    with pytest.raises(FrameError, match=r"/cam has the encoding '16UC1', which is no colour"):
        to_rgb(np.zeros((2, 2), np.uint16), '16UC1', '/cam')


def camera_info(names: str = 'kp', **changes):
    """Return a CameraInfo of 640x480, with fields named as in ROS 2 (kp) or ROS 1 (KP)."""
    k = [500.0, 0, 320.0, 0, 510.0, 240.0, 0, 0, 1]
    fields = {
        names[0]: k,
        names[1]: [0.0] * 12,
        'width': 640,
        'height': 480,
        'binning_x': 0,
        'binning_y': 0,
        'roi': SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
    }
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize('names', ['kp', 'KP'])
def test_intrinsics_without_rectification(names):
    expected = Intrinsics(500, 510, 320, 240, 640, 480)
    assert intrinsics_from_info(camera_info(names)) == expected


def test_rectified_images_are_described_by_p():
    p = [400.0, 0, 310.0, 0, 0, 410.0, 230.0, 0, 0, 0, 1, 0]
    expected = Intrinsics(400, 410, 310, 230, 640, 480)
    assert intrinsics_from_info(camera_info(p=p)) == expected


@pytest.mark.parametrize('missing', [0, 5])
def test_a_projection_without_a_focal_length_is_none(missing):
    p = [400.0, 0, 310.0, 0, 0, 410.0, 230.0, 0, 0, 0, 1, 0]
    p[missing] = 0.0
    expected = Intrinsics(500, 510, 320, 240, 640, 480)
    assert intrinsics_from_info(camera_info(p=p)) == expected


def test_each_axis_has_its_own_binning():
    info = camera_info(binning_x=2, binning_y=4)
    assert intrinsics_from_info(info) == Intrinsics(250, 127.5, 160, 60, 320, 120)


@pytest.mark.parametrize('nanosec', [0, 1, 123_456_789, 999_999_999])
def test_stamps_are_exact_to_the_nanosecond(nanosec):
    stamp = SimpleNamespace(sec=1_700_000_007, nanosec=nanosec)
    assert stamp_to_ns(stamp) == 1_700_000_007_000_000_000 + nanosec


def test_region_and_binning():
    """A region of 320x200 at (100, 60), every second pixel of it."""
    roi = SimpleNamespace(x_offset=100, y_offset=60, width=320, height=200)
    info = camera_info(roi=roi, binning_x=2, binning_y=2)
    assert intrinsics_from_info(info) == Intrinsics(250, 255, 110, 90, 160, 100)


def test_uncalibrated_camera_is_named():
    with pytest.raises(FrameError, match='/cam/info: focal lengths must be positive'):
        intrinsics_from_info(camera_info(k=[0.0] * 9), '/cam/info')


def disparity_message(disparity, f=60.0, t=0.1, lowest=0.0, window=(0, 0, 0, 0), **changes):
    """Make a DisparityImage; the window is x, y, width, height."""
    image = message(disparity.tobytes(), *disparity.shape, '32FC1', disparity.shape[1] * 4)
    names = ('x_offset', 'y_offset', 'width', 'height')
    return SimpleNamespace(
        image=SimpleNamespace(**{**vars(image), **changes}),
        f=f,
        t=t,
        min_disparity=lowest,
        valid_window=SimpleNamespace(**dict(zip(names, window, strict=True))),
    )


def test_disparity_of_a_rendered_room():
    """Matched by hand: a point moves by fT/Z from the left image to the right one."""
    camera = Intrinsics(60.0, 60.0, 32, 24, 64, 48)
    room = Room.random(3)
    depth = room.render(room.trajectory(1, 3)[0], camera).depth
    rows, columns = np.indices(depth.shape)
    points = camera.matrix @ np.stack(
        [
            ((columns - camera.cx) / camera.fx * depth - 0.1).ravel(),
            ((rows - camera.cy) / camera.fy * depth).ravel(),
            depth.ravel(),
        ]
    )
    disparity = (columns.ravel() - points[0] / points[2]).reshape(depth.shape)
    computed = depth_from_disparity(disparity_message(disparity.astype(np.float32)))
    assert computed.dtype == np.float32
    assert computed.flags.c_contiguous
    np.testing.assert_allclose(computed, depth, rtol=1e-4)


def test_disparity_that_matched_nowhere_is_no_reading():
    disparity = np.float32([[3, 0, -1, np.nan], [np.inf, 1.5, 2, 6]])
    depth = depth_from_disparity(disparity_message(disparity, lowest=2.0))
    np.testing.assert_array_equal(depth, np.float32([[2, 0, 0, 0], [0, 0, 3, 1]]))
    # A pair whose cameras squint may find less than nothing; that is behind infinity.
    depth = depth_from_disparity(disparity_message(disparity, lowest=-5.0))
    np.testing.assert_array_equal(depth, np.float32([[2, 0, 0, 0], [0, 4, 3, 1]]))


def test_disparity_outside_its_window_is_no_reading():
    disparity = np.full((4, 6), 6, np.float32)
    expected = np.zeros((4, 6), np.float32)
    expected[1:3, 2:5] = 1
    depth = depth_from_disparity(disparity_message(disparity, window=(2, 1, 3, 2)))
    np.testing.assert_array_equal(depth, expected)


@pytest.mark.parametrize(
    'window', [(71, 7, 2**32 - 80, 2**32 - 15), (2**32 - 30, 7, 3, 2), (0, 0, 6, 5), (3, 0, 4, 4)]
)
def test_a_window_that_is_not_in_the_image_is_none(window):
    """The first is what stereo_image_proc of ROS 2 sends with its default settings."""
    disparity = np.full((4, 6), 6, np.float32)
    depth = depth_from_disparity(disparity_message(disparity, window=window))
    np.testing.assert_array_equal(depth, 1)


def test_ros_1_calls_the_baseline_otherwise():
    msg = disparity_message(np.full((2, 2), 6, np.float32))
    msg.T = 2 * msg.__dict__.pop('t')
    np.testing.assert_array_equal(depth_from_disparity(msg), 2)


@pytest.mark.parametrize(
    ('wrong', 'words'),
    [
        ({'f': 0.0}, 'focal length of 0 pixels and a baseline of 0.1 m'),
        ({'t': -0.1}, 'baseline of -0.1 m'),
        ({'t': np.nan}, 'calibrate the stereo camera'),
        ({'encoding': 'mono8'}, "'mono8', but disparity is 32FC1"),
        ({'data': b''}, 'truncated'),
    ],
)
def test_bad_disparity_is_one_sentence(wrong, words):
    msg = disparity_message(np.ones((2, 2), np.float32), **wrong)
    with pytest.raises(FrameError, match=f'^/disparity .*{words}') as caught:
        depth_from_disparity(msg, '/disparity')
    assert '\n' not in str(caught.value)
