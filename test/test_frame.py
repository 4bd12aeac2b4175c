"""Value types: what they refuse and how cameras scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame, Segmentation

CAMERA = Intrinsics(50.0, 60.0, 3.5, 2.5, 8, 6)


def frame(**changes) -> RgbdFrame:
    values = {
        'rgb': np.zeros((6, 8, 3), np.uint8),
        'depth': np.ones((6, 8), np.float32),
        'intrinsics': CAMERA,
    }
    return RgbdFrame(**{**values, **changes})


def test_a_matching_frame_keeps_its_arrays_without_copying():
    rgb = np.zeros((6, 8, 3), np.uint8)
    made = frame(rgb=rgb, stamp_ns=5, frame_id='camera')
    assert made.rgb is rgb
    assert (made.stamp_ns, made.frame_id) == (5, 'camera')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'rgb': np.zeros((6, 8, 3), np.float32)}, ['rgb', 'uint8', 'float32']),
        ({'rgb': np.zeros((6, 8), np.uint8)}, ['rgb', '3 dimensions', '(6, 8)']),
        ({'rgb': np.zeros((6, 8, 4), np.uint8)}, ['3 channels', '(6, 8, 4)']),
        ({'rgb': [[1]]}, ['rgb', 'numpy array', 'list']),
        ({'depth': np.ones((6, 8), np.uint16)}, ['depth', 'float32', 'uint16']),
        ({'depth': np.ones((3, 4), np.float32)}, ['8x6', '4x3', 'registered']),
        ({'depth': np.ones((0, 8), np.float32)}, ['depth', 'empty']),
        ({'intrinsics': CAMERA.scaled(2)}, ['8x6', '16x12', 'camera info']),
    ],
)
def test_frames_that_do_not_fit_together_are_refused(changes, words):
    with pytest.raises(FrameError) as caught:
        frame(**changes)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        ((0.0, 1.0, 0.0, 0.0, 4, 4), ['focal', 'fx=0.0']),
        ((1.0, -1.0, 0.0, 0.0, 4, 4), ['focal', 'fy=-1.0']),
        ((math.nan, 1.0, 0.0, 0.0, 4, 4), ['finite', 'fx=nan']),
        ((1.0, 1.0, math.inf, 0.0, 4, 4), ['finite', 'cx=inf']),
        ((1.0, 1.0, 0.0, 0.0, 0, 4), ['size', '0x4']),
        ((1e300, 1.0, 0.0, 0.0, 4, 4), ['beyond 1e+06', 'fx=1e+300']),
        ((1.0, 1e-30, 0.0, 0.0, 4, 4), ['from 0.001 on', 'fy=1e-30']),
        ((1.0, 1.0, 0.0, -1e300, 4, 4), ['beyond 1e+06', 'cy=-1e+300']),
    ],
)
def test_cameras_that_cannot_be_are_refused(values, words):
    with pytest.raises(FrameError) as caught:
        Intrinsics(*values)
    assert all(word in str(caught.value) for word in words), caught.value


def test_fields_of_view():
    across, down = Intrinsics(320.0, 120.0 * math.sqrt(3), 0.0, 0.0, 640, 240).fields_of_view_deg
    assert across == pytest.approx(90.0)
    assert down == pytest.approx(60.0)


def test_matrix_and_camera_are_the_same():
    nested = [[500.0, 0.0, 320.0], [0.0, 510.0, 240.0], [0.0, 0.0, 1.0]]
    camera = Intrinsics.from_matrix(nested, 640, 480)
    assert camera == Intrinsics.from_matrix(np.ravel(nested), 640, 480)
    assert np.array_equal(camera.matrix, nested)
    with pytest.raises(FrameError, match='9 numbers, got 4'):
        Intrinsics.from_matrix([1, 0, 0, 1], 640, 480)


@given(
    st.integers(1, 900),
    st.integers(1, 900),
    st.floats(-0.5, 639.5),
    st.floats(-0.5, 479.5),
)
def test_resizing_keeps_the_ray_of_every_point_of_the_image(width, height, u, v):
    """A point of the image keeps its direction; its pixel moves as pixel areas do."""
    camera = Intrinsics(525.0, 530.0, 319.5, 250.0, 640, 480)
    resized = camera.resized(width, height)
    u2, v2 = (u + 0.5) * width / 640 - 0.5, (v + 0.5) * height / 480 - 0.5
    assert (u2 - resized.cx) / resized.fx == pytest.approx((u - 319.5) / 525.0, abs=1e-9)
    assert (v2 - resized.cy) / resized.fy == pytest.approx((v - 250.0) / 530.0, abs=1e-9)
    assert (resized.width, resized.height) == (width, height)


def test_scaled_rounds_the_size_and_never_to_nothing():
    half = Intrinsics(525.0, 525.0, 319.5, 239.5, 640, 480).scaled(0.5)
    assert (half.width, half.height, half.fx, half.cx) == (320, 240, 262.5, 159.5)
    tiny = CAMERA.scaled(0.01)
    assert (tiny.width, tiny.height) == (1, 1)


def test_segmentations_need_labels_and_confidence_of_one_size():
    labels = np.zeros((6, 8), np.uint8)
    Segmentation(labels, labels.copy())
    with pytest.raises(FrameError, match='8x6 but confidence is 8x5'):
        Segmentation(labels, labels[1:])
    with pytest.raises(FrameError, match='labels must be uint8'):
        Segmentation(labels.astype(np.int64), labels)
