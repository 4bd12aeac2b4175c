"""Depth images: units by encoding, the one validity mask, resizing, hole filling."""

from __future__ import annotations

import numpy as np

from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.jit import jit

DEPTH_ENCODINGS = {'16UC1': np.uint16, 'mono16': np.uint16, '32FC1': np.float32}
"""Encodings of REP 118: integers are millimetres, floats metres; ``mono16`` is read as ``16UC1``,
as depth_image_proc does."""

SATURATED = 65535
"""No reading in files of depth: 7-Scenes and some recorders write the largest value, not 0."""
NEAREST_M, FARTHEST_M = 1e-3, 1e4
"""Arithmetic takes readings outside this range for its ends, so that no sum overflows."""
THINNED_PX = 160
"""Longer side of the HHA of the smaller shipped network; statistics need no more."""
FEW_READINGS = 0.1
"""Where a smaller share of the image has readings (:func:`thinned`), a network that can do without
depth answers from colour alone. With as many as that, 51 NYUDv2 test frames were labelled 3 points
of pixel accuracy worse than from colour alone where all readings lay at one side, and 1 and 3
better where they were the nearest ones or patches all over; with 3 % 9 worse, the same, and 2
better."""


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
    if encoding not in DEPTH_ENCODINGS:
        raise FrameError(
            f'depth encoding {encoding!r} is unknown; publish depth in one of these: '
            f'{", ".join(DEPTH_ENCODINGS)}'
        )
    dtype = np.dtype(DEPTH_ENCODINGS[encoding])
    if image.ndim != 2 or image.dtype != dtype:
        raise FrameError(
            f'a {encoding} depth image must be {dtype.name} with 2 dimensions, got '
            f'{image.dtype.name} with shape {image.shape}; check the driver of the depth camera'
        )
    if dtype == np.float32:
        return image
    return np.multiply(image, np.float32(0.001), dtype=np.float32)


def stored_to_metres(stored: np.ndarray, metres_per_unit: float) -> np.ndarray:
    """Return depth as files store it in metres: float32 (H, W), 0 = no reading.

    Args:
        stored: numbers (H, W), 0 = no reading; in uint16 `SATURATED` is none either.
        metres_per_unit: what the numbers count.
    """
    metres = stored.astype(np.float32) * np.float32(metres_per_unit)
    if np.issubdtype(stored.dtype, np.uint16):  # of either byte order
        metres[stored == SATURATED] = 0
    return metres


def metres_to_millimetres(depth: np.ndarray) -> np.ndarray:
    """Return depth in metres as ``16UC1``: uint16, 0 for no reading and for more than 65.535 m."""
    millimetres = np.rint(np.where(valid_mask(depth), depth, 0) * 1000)
    return np.where(millimetres > np.iinfo(np.uint16).max, 0, millimetres).astype(np.uint16)


def valid_mask(depth: np.ndarray) -> np.ndarray:
    """Return bool (H, W), True where a depth in metres is a reading: finite and above 0.

    The one definition of a valid depth; every other module asks here or computes the same.
    """
    return (depth > 0) & (depth < np.inf)


def thinned(depth: np.ndarray) -> np.ndarray:
    """Return a depth image as coarse as networks see it, for statistics; see `resize_depth`.

    Not every fourth row and column: depth of few pixels, registered to a larger colour image, lies
    on every second or fourth one, and those may be the others.

    Args:
        depth: float32 (H, W) metres.

    Returns:
        float32 (h, w) metres, 0 = no reading; the longer side has 160 to 319 pixels, or as many
        as there are.
    """
    height, width = depth.shape
    step = max(1, max(height, width) // THINNED_PX)
    return resize_depth(depth, max(1, width // step), max(1, height // step))


def has_few_readings(depth: np.ndarray) -> bool:
    """Whether depth, float32 (H, W) metres, holds too little to help, see `FEW_READINGS`."""
    return float(valid_mask(thinned(depth)).mean()) < FEW_READINGS


def grey_picture(depth: np.ndarray) -> np.ndarray:
    """Return a grey picture of depth, for people: near is bright, no reading is black.

    Args:
        depth: float32 (H, W) metres; from 6 m on everything is equally dark.

    Returns:
        uint8 (H, W, 3).
    """
    valid = valid_mask(depth)
    shade = 255 - 215 * np.minimum(np.where(valid, depth, 0) / np.float32(6), 1)
    return np.repeat(np.where(valid, shade, 0).astype(np.uint8)[..., None], 3, axis=2)


def fill_holes(depth: np.ndarray) -> np.ndarray:
    """Fill pixels without a reading from their surroundings.

    Push-pull (Gortler et al., The Lumigraph, 1996, section 3.4): averages of the valid pixels
    at half the size, and so on to a single pixel, then every hole takes the bilinear value of
    the next coarser level. Smooth in large holes, local in small ones, linear in the pixels.

    Args:
        depth: float32 (H, W) metres; 0, negative, NaN and infinite pixels are holes.

    Returns:
        float32 (H, W) metres, a new array: readings untouched, every hole filled from readings
        clamped to NEAREST_M .. FARTHEST_M; all 0 without any reading.
    """
    height, width = depth.shape
    filled = np.empty((height, width), dtype=np.float32)
    levels = [np.empty(_halves(filled.shape), dtype=np.float32)]
    _keep_readings(readable(depth, np.float32), filled)
    _average_readings(filled, levels[0])
    while levels[-1].size > 1:
        coarser = np.empty(_halves(levels[-1].shape), dtype=np.float32)
        _average_readings(levels[-1], coarser)
        levels.append(coarser)
    for finer, coarser in zip([filled, *levels][-2::-1], levels[::-1], strict=True):
        _fill_from(coarser, finer)
    return filled


def resize_depth(depth: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resample a depth image without mixing depths.

    Every output pixel is one reading of the sensor: the pixel at its centre or, where that is a
    hole, the nearest reading among the pixels it covers. Averaging instead would invent surfaces
    between an object and its background, and between a reading and a hole.

    Args:
        depth: float32 (H, W) metres.
        width, height: size of the result in pixels.

    Returns:
        float32 (height, width) metres, 0 = no reading.

    Raises:
        FrameError: a size that is not positive.
    """
    if width <= 0 or height <= 0:
        raise FrameError(f'depth cannot be resized to {width}x{height}; give a positive size')
    resized = np.empty((height, width), dtype=np.float32)
    _pick_readings(readable(depth, np.float32), resized)
    return resized


def readable(array: np.ndarray, dtype: type) -> np.ndarray:
    """Return a contiguous, aligned, read-only view (or copy): the one kind kernels compile for.

    Numba compiles anew for every kind of array, in seconds; a frame must not meet that.
    """
    view = np.require(array, dtype, ('C', 'A')).view()
    view.flags.writeable = False
    return view


def warm_up() -> None:
    """Compile the kernels of this module on a tiny image, or load them from the cache."""
    resize_depth(fill_holes(np.ones((2, 2), dtype=np.float32)), 1, 1)


def _halves(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0] + 1) // 2, (shape[1] + 1) // 2


@jit
def _is_reading(value):
    return (value > np.float32(0.0)) & (value < np.float32(np.inf))


@jit
def _keep_readings(depth, out):
    """Copy a depth image with 0 for every hole."""
    for v in range(depth.shape[0]):
        for u in range(depth.shape[1]):
            out[v, u] = depth[v, u] if _is_reading(depth[v, u]) else np.float32(0.0)


@jit
def _average_readings(fine, coarse):
    """Average the pixels above 0 in blocks of 2x2, 0 where there is none.

    At an odd edge the last row or column stands for its missing neighbour as well.
    """
    zero, one = np.float32(0.0), np.float32(1.0)
    near, far = np.float32(NEAREST_M), np.float32(FARTHEST_M)
    for v in range(coarse.shape[0]):
        top, bottom, out = fine[2 * v], fine[min(2 * v + 1, fine.shape[0] - 1)], coarse[v]
        for u in range(fine.shape[1] // 2):
            a, b, c, d = top[2 * u], top[2 * u + 1], bottom[2 * u], bottom[2 * u + 1]
            total = zero
            total += min(max(a, near), far) if a > zero else zero
            total += min(max(b, near), far) if b > zero else zero
            total += min(max(c, near), far) if c > zero else zero
            total += min(max(d, near), far) if d > zero else zero
            count = (one if a > zero else zero) + (one if b > zero else zero)
            count += (one if c > zero else zero) + (one if d > zero else zero)
            out[u] = total / max(count, one)
        if fine.shape[1] % 2:
            a, b = top[-1], bottom[-1]
            total = min(max(a, near), far) if a > zero else zero
            total += min(max(b, near), far) if b > zero else zero
            count = (one if a > zero else zero) + (one if b > zero else zero)
            out[-1] = total / max(count, one)


@jit
def _fill_from(coarse, fine):
    """Give pixels that are 0 the bilinear value of a level of half the size without holes."""
    near, far = np.float32(0.75), np.float32(0.25)
    rows, columns = coarse.shape
    for v in range(fine.shape[0]):
        # Pixel centres lie a quarter of a coarse pixel before or behind a coarse centre.
        this, other = coarse[v // 2], coarse[min(max((v - 1) // 2 + v % 2, 0), rows - 1)]
        row = fine[v]
        for u in range(fine.shape[1]):
            if row[u] != 0.0:
                continue
            p = u // 2
            q = min(max((u - 1) // 2 + u % 2, 0), columns - 1)
            row[u] = near * (near * this[p] + far * this[q]) + far * (
                near * other[p] + far * other[q]
            )


@jit
def _pick_readings(depth, out):
    """Copy the pixel at each centre, or the nearest reading under the output pixel's area."""
    rows, columns = depth.shape
    height, width = out.shape
    j = np.arange(width)
    # Unsigned, so that the compiled loop does not ask for indices from the end.
    centres = ((2 * j + 1) * columns // (2 * width)).astype(np.uint64)
    lefts, rights = j * columns // width, ((j + 1) * columns - 1) // width + 1
    for i in range(height):
        top, bottom = i * rows // height, ((i + 1) * rows - 1) // height + 1
        row, resized = depth[(2 * i + 1) * rows // (2 * height)], out[i]
        for j in range(width):
            resized[j] = row[centres[j]]
        centre_row = (i + 0.5) * rows / height - top
        for j in range(width):
            if not _is_reading(resized[j]):
                area = depth[top:bottom, lefts[j] : rights[j]]
                centre_column = (j + 0.5) * columns / width - lefts[j]
                resized[j] = _nearest_reading(area, centre_row, centre_column)


@jit
def _nearest_reading(area, row, column):
    """Return the reading whose pixel centre is nearest to a point of the area, or 0."""
    best, nearest = np.float32(0.0), np.inf
    for v in range(area.shape[0]):
        for u in range(area.shape[1]):
            if _is_reading(area[v, u]):
                distance = (v + 0.5 - row) ** 2 + (u + 0.5 - column) ** 2
                if distance < nearest:
                    best, nearest = area[v, u], distance
    return best
