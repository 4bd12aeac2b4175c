"""Labelled point clouds: each pixel with a depth as a point in the camera's optical frame."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from rgbd_fusion_seg import kernels
from rgbd_fusion_seg.depth import readable
from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame, Segmentation

POINT = np.dtype(
    [('x', 'f4'), ('y', 'f4'), ('z', 'f4'), ('rgb', 'u4'), ('label', 'u4'), ('confidence', 'u4')]
)
"""A point: metres; colour as PCL packs it, 0x00RRGGBB; class id and confidence as in the label
images, in the 32 bits in which PCL's ``PointXYZRGBL`` has its label."""


def labelled_points(
    frame: RgbdFrame, result: Segmentation, colors: np.ndarray | None = None
) -> np.ndarray:
    """Return the points of a frame, one a pixel, whether it has depth or not.

    Args:
        frame: depth in metres, registered to colour; pixels are rectified (no distortion).
        result: its labels and confidence.
        colors: uint8 (H, W, 3) RGB that the points get; None: the frame's own.

    Returns:
        `POINT` (H, W): x right, y down, z forward (REP 103, optical frames). Without a reading
        x, y and z are NaN; colour, label and confidence are there all the same.

    Raises:
        FrameError: labels or colours of another size.
    """
    colors = frame.rgb if colors is None else colors
    if not result.labels.shape == frame.depth.shape == colors.shape[:2]:
        raise FrameError(
            f'labels of shape {result.labels.shape} and colours of {colors.shape[:2]} do not '
            f'belong to depth of {frame.depth.shape}; give those of the same frame'
        )
    height, width = frame.depth.shape
    points = np.empty((height, width), POINT)
    words = points.view(np.uint32).reshape(height, width, -1)
    pixels = (readable(image, np.uint8) for image in (colors, result.labels, result.confidence))
    rays = _rays(frame.intrinsics)
    kernels.fill_points(
        readable(frame.depth, np.float32), *rays, *pixels, words.view(np.float32), words
    )
    return points


@lru_cache(maxsize=4)
def _rays(intrinsics: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """Return x / z of each column, float32 (W,), and y / z of each row, float32 (H,)."""
    columns, rows = np.arange(intrinsics.width), np.arange(intrinsics.height)
    across = (columns - intrinsics.cx) / intrinsics.fx
    down = (rows - intrinsics.cy) / intrinsics.fy
    return across.astype(np.float32), down.astype(np.float32)
