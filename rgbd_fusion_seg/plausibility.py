"""What no depth image and no camera has: signs of another unit, as sentences for whoever looks."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from rgbd_fusion_seg import hha
from rgbd_fusion_seg.depth import FARTHEST_M, NEAREST_M, thinned, valid_mask
from rgbd_fusion_seg.frame import Intrinsics

PLAUSIBLE_MEDIAN_M = (0.1, 20.0)
"""Median depth outside this range means a wrong unit, such as millimetres taken for metres."""
PLAUSIBLE_FIELD_OF_VIEW_DEG = (5.0, 170.0)
"""No pinhole camera of a robot sees less or more, across or down."""
HIGHEST_CAMERA_M = 5.0
"""No camera in a room is higher above the floor; one that is said to be is given in another unit,
and HHA would look for the floor far below all that is seen."""


_FRAMES = 20
_GUESSED_OF_THEM = 18
"""Of a hand-held camera in rooms (NYUDv2) one frame in thirty has no reading 0.9 m below it."""


class DepthStatistics(NamedTuple):
    """Share of the pixels with a reading, and their median in metres; None without readings."""

    valid_ratio: float
    median_m: float | None


def depth_statistics(depth: np.ndarray) -> DepthStatistics:
    """Return the statistics of a depth image, float32 (H, W) metres."""
    # The median of all pixels would cost 4 ms at 640x480.
    sample = thinned(depth)
    readings = np.clip(sample[valid_mask(sample)], NEAREST_M, FARTHEST_M)
    median_m = float(np.median(readings)) if readings.size else None
    return DepthStatistics(np.count_nonzero(valid_mask(depth)) / depth.size, median_m)


def unit_fault(median_m: float | None) -> str:
    """Return what a median depth says of its unit: '', or the beginning of a sentence."""
    nearest, farthest = PLAUSIBLE_MEDIAN_M
    if median_m is None or nearest <= median_m <= farthest:
        return ''
    return f'the median depth is {median_m:.4g} m'


def training_range_fault(median_m: float | None, range_m: tuple[float, float] | None) -> str:
    """Return '', or that a network never saw depth like this.

    Args:
        median_m: of an image.
        range_m: nearest and farthest depth that the network's training data holds; None for a
            network that does not see depth.
    """
    if median_m is None or not range_m or range_m[0] <= median_m <= range_m[1]:
        return ''
    return (
        f'the median depth is {median_m:.2f} m, but the network was trained on '
        f'{range_m[0]:.1f} to {range_m[1]:.1f} m; expect poor labels'
    )


def camera_fault(intrinsics: Intrinsics) -> str:
    """Return '', or what these intrinsics have that no camera has."""
    i = intrinsics
    narrowest, widest = PLAUSIBLE_FIELD_OF_VIEW_DEG
    across_deg, down_deg = i.fields_of_view_deg
    if not (0 < i.cx < i.width and 0 < i.cy < i.height):
        return f'the principal point ({i.cx:.6g}, {i.cy:.6g}) outside the image'
    if min(across_deg, down_deg) < narrowest or max(across_deg, down_deg) > widest:
        return f'a field of view of {across_deg:.3g} by {down_deg:.3g} degrees'
    return ''


def height_fault(height_m: float | None) -> str:
    """Return '', or that a camera's height above the floor is no height in metres."""
    if height_m is None or height_m <= HIGHEST_CAMERA_M:
        return ''
    return f'the camera is said to be {height_m:g} m above the floor; give metres'


class FloorGuess:
    """Watches whether HHA guesses the floor all the time, as it does for a camera low above it."""

    def __init__(self) -> None:
        self._below_m: deque[float] = deque(maxlen=_FRAMES)

    def fault(
        self, depth: np.ndarray, intrinsics: Intrinsics, gravity: np.ndarray | None = None
    ) -> str:
        """Take the next frame; return '', or that the floor is guessed, as half a sentence.

        Args:
            depth: float32 (H, W) metres.
            intrinsics: of `depth`.
            gravity: as of :func:`rgbd_fusion_seg.hha.encode_hha`.
        """
        sample = thinned(depth)  # half a millisecond this way
        i = intrinsics.resized(*sample.shape[::-1])
        first = hha.FIRST_PIXEL  # which weighs more in few pixels, and is undone like this
        camera = Intrinsics(i.fx, i.fy, i.cx + first, i.cy + first, i.width, i.height)
        self._below_m.append(hha.lowest_below_camera(sample, camera, gravity))
        guessed_m = [m for m in self._below_m if 0 < m < -hha.FLOOR_GUESS_ABOVE_CM / 100]
        if len(guessed_m) < _GUESSED_OF_THEM:
            return ''
        return (
            f'nothing is seen more than {max(guessed_m):.2f} m below the camera, so HHA takes '
            f'the lowest surface for furniture and the floor for {-hha.FLOOR_GUESS_CM / 100:.1f} '
            'm below'
        )
