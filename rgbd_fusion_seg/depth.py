"""Depth images: units by encoding, the one validity mask, resizing, hole filling."""

from __future__ import annotations

import cv2
import numpy as np

from rgbd_fusion_seg.errors import FrameError

MILLIMETRE_ENCODINGS = ('16UC1', 'mono16')
METRE_ENCODINGS = ('32FC1',)


def depth_to_metres(image: np.ndarray, encoding: str) -> np.ndarray:
    """Return a depth image in metres, its unit told by the ROS encoding (REP 118).

    Args:
        image: (H, W), uint16 for ``16UC1`` and ``mono16`` (millimetres, 0 = no reading),
            float32 for ``32FC1`` (metres, 0 or non-finite = no reading).
        encoding: the encoding's name; the unit is never guessed from the values.

    Returns:
        float32 (H, W) metres; a ``32FC1`` image comes back as it is, not copied.

    Raises:
        FrameError: another encoding, or an image whose shape or type is not the encoding's.
    """
    if encoding in MILLIMETRE_ENCODINGS:
        _require(image, np.uint16, encoding)
        return np.multiply(image, np.float32(0.001), dtype=np.float32)
    if encoding in METRE_ENCODINGS:
        _require(image, np.float32, encoding)
        return image
    accepted = ', '.join((*MILLIMETRE_ENCODINGS, *METRE_ENCODINGS))
    raise FrameError(
        f'depth encoding {encoding!r} is unknown; publish depth in one of these: {accepted}'
    )


def valid_mask(depth: np.ndarray) -> np.ndarray:
    """Return bool (H, W), True where a depth in metres is a reading: finite and above 0.

    The one definition of a valid depth; every other module asks here or computes the same.
    """
    return (depth > 0) & (depth < np.inf)


def fill_holes(depth: np.ndarray) -> np.ndarray:
    """Fill pixels without a reading from their surroundings.

    Push-pull (Gortler et al., The Lumigraph, 1996, section 3.4): averages of the valid pixels
    at half the size, and so on to a single pixel, then every hole takes the interpolated value
    of the next coarser level. Smooth in large holes, local in small ones, linear in the pixels.

    Args:
        depth: float32 (H, W) metres; 0, negative, NaN and infinite pixels are holes.

    Returns:
        float32 (H, W) metres: readings untouched, every hole filled; all 0 without any reading.
    """
    mask = valid_mask(depth)
    values = np.where(mask, depth, np.float32(0)).astype(np.float32, copy=False)
    if mask.all() or not mask.any():
        return values
    weight = mask.astype(np.float32)
    levels = [(values, weight)]
    while max(levels[-1][0].shape) > 1:
        values, weight = levels[-1]
        size = ((values.shape[1] + 1) // 2, (values.shape[0] + 1) // 2)
        total = cv2.resize(values * weight, size, interpolation=cv2.INTER_AREA)
        weight = cv2.resize(weight, size, interpolation=cv2.INTER_AREA)
        values = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
        levels.append((values, (weight > 0).astype(np.float32)))
    filled = levels[-1][0]
    for values, weight in reversed(levels[:-1]):
        size = (values.shape[1], values.shape[0])
        coarse = cv2.resize(filled, size, interpolation=cv2.INTER_LINEAR)
        filled = np.where(weight > 0, values, coarse)
    return filled


def resize_depth(depth: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resample a depth image without mixing depths.

    Every output pixel is the reading whose pixel centre lies closest to its own centre, so no
    value appears that the sensor did not give: averaging would invent surfaces between an
    object and its background, and between a reading and a hole.

    Args:
        depth: (H, W), any type.
        width, height: size of the result in pixels.

    Returns:
        (height, width) of the same type.

    Raises:
        FrameError: a size that is not positive.
    """
    if width <= 0 or height <= 0:
        raise FrameError(f'depth cannot be resized to {width}x{height}; give a positive size')
    rows = _nearest(depth.shape[0], height)
    columns = _nearest(depth.shape[1], width)
    return depth[rows[:, None], columns[None, :]]


def _nearest(size: int, new_size: int) -> np.ndarray:
    centres = (np.arange(new_size) + 0.5) * (size / new_size)
    return np.minimum(centres.astype(np.intp), size - 1)


def _require(image: np.ndarray, dtype: type, encoding: str) -> None:
    if image.ndim != 2 or image.dtype != dtype:
        raise FrameError(
            f'a {encoding} depth image must be {np.dtype(dtype).name} with 2 dimensions, got '
            f'{image.dtype.name} with shape {image.shape}; check the driver of the depth camera'
        )
