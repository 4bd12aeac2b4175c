"""Labelled points against OpenCV's camera model and a real frame's own numbers."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame, Segmentation
from rgbd_fusion_seg.point_cloud import POINT, labelled_points

CAMERA = Intrinsics(61.3, 57.9, 30.7, 25.1, 64, 48)


def random_frame(seed: int = 0) -> tuple[RgbdFrame, Segmentation]:
    rng = np.random.default_rng(seed)
    size = (CAMERA.height, CAMERA.width)
    depth = rng.uniform(0.4, 9, size).astype(np.float32)
    frame = RgbdFrame(rng.integers(0, 256, (*size, 3), np.uint8), depth, CAMERA)
    labels, confidence = rng.integers(0, 256, (2, *size), np.uint8)
    return frame, Segmentation(labels, confidence)


def test_points_project_to_their_pixels_at_their_depth():
    frame, result = random_frame()
    points = labelled_points(frame, result)
    assert points.shape == frame.depth.shape
    assert points.dtype == POINT
    xyz = np.stack([points[axis] for axis in 'xyz'], -1).astype(np.float64)
    pixels, _ = cv2.projectPoints(
        xyz.reshape(-1, 1, 3), np.zeros(3), np.zeros(3), CAMERA.matrix, None
    )
    v, u = np.mgrid[: CAMERA.height, : CAMERA.width]
    np.testing.assert_allclose(pixels.reshape(*u.shape, 2), np.stack([u, v], -1), atol=1e-3)
    np.testing.assert_array_equal(points['z'], frame.depth)


def test_points_carry_colour_label_and_confidence_of_their_pixel():
    frame, result = random_frame(1)
    painted = 255 - frame.rgb
    for colors in (None, painted):
        points = labelled_points(frame, result, colors)
        shown = frame.rgb if colors is None else colors
        # PCL: (r << 16) | (g << 8) | b, so the bytes are b, g, r, 0 from the lowest.
        unpacked = np.stack([points['rgb'] // 256**k % 256 for k in (2, 1, 0)], -1)
        np.testing.assert_array_equal(unpacked, shown)
        assert (points['rgb'] < 2**24).all()
        np.testing.assert_array_equal(points['label'], result.labels)
        np.testing.assert_array_equal(points['confidence'], result.confidence)


@pytest.mark.parametrize('missing', [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_a_pixel_without_depth_keeps_its_place_and_label(missing):
    frame, result = random_frame(2)
    frame.depth[7, 11] = missing
    points = labelled_points(frame, result)
    for axis in 'xyz':
        lost = np.isnan(points[axis])
        assert lost[7, 11]
        assert lost.sum() == 1
    assert points['label'][7, 11] == result.labels[7, 11]
    assert points['rgb'][7, 11] % 256 == frame.rgb[7, 11, 2]


def test_labels_or_colours_of_another_size_are_refused():
    frame, result = random_frame()
    small = Segmentation(result.labels[1:], result.confidence[1:])
    with pytest.raises(FrameError, match='those of the same frame'):
        labelled_points(frame, small)
    with pytest.raises(FrameError, match='those of the same frame'):
        labelled_points(frame, result, frame.rgb[:, 1:])
