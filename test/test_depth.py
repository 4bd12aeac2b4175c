"""Depth images: units, validity, resampling, hole filling."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from rgbd_fusion_seg import depth as depths
from rgbd_fusion_seg.errors import FrameError

ANY_DEPTH = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24),
    elements=st.one_of(
        st.floats(width=32, allow_nan=True, allow_infinity=True),
        st.floats(0.25, 8.0, width=32),
        st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf]),
    ),
)


def is_reading(value: float) -> bool:
    return math.isfinite(value) and value > 0


@pytest.mark.parametrize('encoding', ['16UC1', 'mono16'])
def test_sixteen_bit_encodings_are_millimetres(encoding):
    image = np.array([[0, 1, 999, 65535]], np.uint16)
    metres = depths.depth_to_metres(image, encoding)
    assert metres.dtype == np.float32
    np.testing.assert_allclose(metres, [[0.0, 0.001, 0.999, 65.535]], rtol=1e-6)


def test_millimetres_survive_metres():
    image = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    millimetres = depths.metres_to_millimetres(depths.depth_to_metres(image, '16UC1'))
    assert millimetres.dtype == np.uint16
    np.testing.assert_array_equal(millimetres, image)
    nothing = np.array([[-1.0, np.nan, np.inf, -np.inf, 65.536, 1e30]], np.float32)
    assert not depths.metres_to_millimetres(nothing).any()


def test_float_encoding_is_metres():
    image = np.array([[0.0, 1500.0, np.nan]], np.float32)
    np.testing.assert_array_equal(depths.depth_to_metres(image, '32FC1'), image)


def test_an_unknown_encoding_is_refused_with_the_known_ones():
    with pytest.raises(FrameError, match=r"'rgb8'.*16UC1, mono16, 32FC1"):
        depths.depth_to_metres(np.ones((2, 2), np.uint16), 'rgb8')


@pytest.mark.parametrize(
    ('image', 'encoding'),
    [
        (np.ones((2, 2), np.float32), '16UC1'),
        (np.ones((2, 2), np.uint16), '32FC1'),
        (np.ones((2, 2), np.int16), 'mono16'),
        (np.ones((2, 2, 1), np.uint16), '16UC1'),
    ],
)
def test_an_image_that_contradicts_its_encoding_is_refused(image, encoding):
    with pytest.raises(FrameError, match=f'a {encoding} depth image must be'):
        depths.depth_to_metres(image, encoding)


@given(ANY_DEPTH)
def test_valid_is_finite_and_above_zero(depth):
    expected = [[is_reading(value) for value in row] for row in depth.tolist()]
    np.testing.assert_array_equal(depths.valid_mask(depth), expected)


@settings(deadline=None)
@given(ANY_DEPTH)
def test_filling_keeps_readings_and_leaves_no_hole(depth):
    valid = depths.valid_mask(depth)
    filled = depths.fill_holes(depth)
    assert filled.dtype == np.float32
    assert filled.shape == depth.shape
    np.testing.assert_array_equal(filled[valid].view(np.uint32), depth[valid].view(np.uint32))
    if not valid.any():
        assert not filled.any()
        return
    near = np.clip(depth[valid].min(), depths.NEAREST_M, depths.FARTHEST_M)
    far = np.clip(depth[valid].max(), depths.NEAREST_M, depths.FARTHEST_M)
    assert (filled[~valid] >= near * (1 - 1e-5)).all()
    assert (filled[~valid] <= far * (1 + 1e-5)).all()


def push_pull(depth: np.ndarray) -> np.ndarray:
    """Fill by the same pyramid with OpenCV's resampling; sides must be powers of two."""
    weight = (depth > 0).astype(np.float32)
    if depth.size == 1 or weight.all():
        return depth
    size = (max(depth.shape[1] // 2, 1), max(depth.shape[0] // 2, 1))
    total = cv2.resize(depth, size, interpolation=cv2.INTER_AREA)
    coarse_weight = cv2.resize(weight, size, interpolation=cv2.INTER_AREA)
    coarse = np.divide(total, coarse_weight, out=total.copy(), where=coarse_weight > 0)
    coarse = push_pull(coarse)
    up = cv2.resize(coarse, depth.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.where(weight > 0, depth, up)


def test_filling_is_push_pull(data_dir):
    path = data_dir / 'kinect_sequence' / 'frame-000000.depth.png'
    depth = depths.depth_to_metres(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), '16UC1')
    depth = depth[100:356, 64:576]
    assert 0.01 < np.mean(depth == 0) < 0.5
    np.testing.assert_allclose(depths.fill_holes(depth), push_pull(depth), rtol=1e-5)


def test_filling_a_gap_in_a_slope_follows_it():
    slope = np.tile(np.linspace(1.0, 3.0, 64, dtype=np.float32), (48, 1))
    holed = slope.copy()
    holed[20:24, 30:34] = 0
    assert np.abs(depths.fill_holes(holed) - slope).max() < 0.07


@pytest.mark.parametrize('metres', [0.002, 0.05, 0.5, 50.0, 5000.0])
def test_holes_are_filled_with_what_the_sensor_reads_near_and_far(metres):
    depth = np.full((12, 17), metres, np.float32)
    depth[3:9, 4:11] = 0
    np.testing.assert_allclose(depths.fill_holes(depth), metres, rtol=1e-6)


def covered(index: int, size: int, new_size: int) -> range:
    """Return the input pixels that output pixel `index` overlaps."""
    low = index * size / new_size
    high = (index + 1) * size / new_size
    return range(math.floor(low + 1e-9), math.ceil(high - 1e-9))


@settings(deadline=None)
@given(ANY_DEPTH, st.integers(1, 30), st.integers(1, 30))
def test_resizing_picks_the_nearest_reading_under_each_pixel(depth, width, height):
    resized = depths.resize_depth(depth, width, height)
    assert resized.dtype == np.float32
    assert resized.shape == (height, width)
    rows, columns = depth.shape
    for i in range(height):
        for j in range(width):
            row, column = (i + 0.5) * rows / height, (j + 0.5) * columns / width
            readings = {
                float(depth[v, u]): math.hypot(v + 0.5 - row, u + 0.5 - column)
                for v in covered(i, rows, height)
                for u in covered(j, columns, width)
                if is_reading(float(depth[v, u]))
            }
            if not readings:
                assert resized[i, j] == 0
                continue
            nearest = [
                math.hypot(v + 0.5 - row, u + 0.5 - column)
                for v in covered(i, rows, height)
                for u in covered(j, columns, width)
                if depth[v, u] == resized[i, j]
            ]
            assert nearest, 'a value that is no reading under this pixel'
            assert min(nearest) <= min(readings.values()) + 1e-6


def test_resizing_to_the_same_size_changes_nothing(data_dir):
    path = data_dir / 'frames' / 'xtion' / 'depth' / '17.png'
    depth = depths.depth_to_metres(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), '16UC1')
    np.testing.assert_array_equal(depths.resize_depth(depth, 640, 480), depth)


def test_resizing_never_invents_a_depth_at_an_edge():
    depth = np.full((480, 640), 1.0, np.float32)
    depth[:, 301:] = 4.0
    depth[:, 299:303:2] = 0
    assert set(np.unique(depths.resize_depth(depth, 320, 240))) == {1.0, 4.0}


@pytest.mark.parametrize(('width', 'height'), [(0, 10), (10, -1)])
def test_resizing_to_nothing_is_refused(width, height):
    with pytest.raises(FrameError, match='positive size'):
        depths.resize_depth(np.ones((4, 4), np.float32), width, height)
