"""HHA: horizontal disparity, height above ground and angle with gravity of a depth image.

S. Gupta, R. Girshick, P. Arbelaez, J. Malik, Learning Rich Features from RGB-D Images for Object
Detection and Segmentation, ECCV 2014, section 2; gravity from S. Gupta, P. Arbelaez, J. Malik,
Perceptual Organization and Recognition of Indoor Scenes from RGB-D Images, CVPR 2013, section
3.2. The constants are those of the authors' public code (s-gupta/rcnn-depth ``saveHHA.m``) and
of its Python form (charlesCXK/Depth2HHA-python), which agree bit for bit.

Departures from that code, none above a grey level on windows that determine a normal:

* normals come from moments about each window's centre, not about the image's origin;
* a window whose pixels are collinear has no normal (angle 180°, as a window without pixels);
  there the public code normalises round-off;
* gravity reads the 21x21 normals of some 38,000 pixels on a staggered grid, not of all; on 43
  indoor frames at 640x480 that moves it by 0.02° in the median and never by 0.1°;
* where readings lie far below almost all others, as wrong ones of stereo cameras do, they are not
  the floor (:data:`OUTLIER_GAP_CM`); of the 1449 frames of NYUDv2 that concerns one;
* where the scene leaves gravity free to turn about an axis (a single wall), it keeps the previous
  direction as far as the scene allows, where the public code takes what round-off prefers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from rgbd_fusion_seg import hha_kernels
from rgbd_fusion_seg.depth import readable
from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.frame import Intrinsics

ANGLE_RADIUS_PX = 3
"""Half-window of the normals behind the angle channel: 7x7 (processDepthImage.m, R = [3 10])."""
GRAVITY_RADIUS_PX = 10
"""Half-window of the normals behind gravity: 21x21 (processDepthImage.m, R = [3 10])."""
GRAVITY_THRESHOLDS_DEG = (45.0, 15.0)
"""Largest angle of a normal to the floor or wall directions, per stage (getYDir, angleThresh)."""
GRAVITY_ITERATIONS = (5, 5)
"""Iterations per stage (getYDir, iter); there is no test of convergence."""
GRAVITY_NORMALS = 38400
"""About so many normals vote for gravity; ours. A staggered grid of every second row and fourth
column at 640x480, of every row and second column at 320x240."""
MIN_EIGENVALUE_GAP = 1e-3
"""Below this share of the voting normals two axes are equally likely gravity; ours."""
LEVEL_ANGLE_DEG = 0.1
"""Up to this tilt heights are measured along the image's y axis (getRMatrix)."""
DISPARITY_SCALE = 31000.0
"""Disparity = this / depth in cm (saveHHA.m): baseline times focal length of a Kinect."""
MIN_DEPTH_CM = 100.0
"""Depths below this count as this in the disparity (saveHHA.m)."""
FLOOR_GUESS_ABOVE_CM = -90.0
"""A lowest point above this is taken for furniture, not floor (processDepthImage.m) …"""
FLOOR_GUESS_CM = -130.0
"""… and the floor for this far below the camera (processDepthImage.m)."""
OUTLIER_SHARE = 0.02
"""The floor, or furniture, has at least this share of the readings; ours."""
OUTLIER_GAP_CM = 100.0
"""Fewer readings than that, all others so far above the lowest of them, are taken for wrong;
ours. One wrong reading below the floor would lift all heights and saturate them."""
OUTLIER_STEPS = 24
"""Halvings by which the lowest reading above them is found, to a millimetre in 10 km."""
ANGLE_OFFSET = 38.0
"""Angle channel = degrees + 128 - 90 (saveHHA.m): floor 38, wall 128, ceiling 218."""
NO_NORMAL_DEG = 180.0
"""Angle of a pixel without normal (the public code's NaN), so its channel is 218."""
FIRST_PIXEL = 1
"""Coordinate of the first pixel in the public code (a MATLAB grid), used with `cx`, `cy` as given.

Our ``Intrinsics`` count pixels from 0, so their rays lean 1/f of the encoded image against those
here: 0.1° at 640x480, 0.4° at 160x120. Gravity that is estimated leans with them; with gravity and
height from outside, heights at 160x120 are off by 3 cm on average, at 640x480 by less than 1. The
numbers of the public code are kept: networks and published results rest on them. To undo it, pass
intrinsics whose `cx` and `cy` are larger by 1.
"""

_NO_MASK = np.zeros((0, 0), dtype=bool)


class _Cleaned(NamedTuple):
    z: np.ndarray
    inverse: np.ndarray
    counted: np.ndarray


def estimate_gravity(
    depth: np.ndarray, intrinsics: Intrinsics, missing: np.ndarray | None = None
) -> np.ndarray:
    """Estimate the direction of gravity from the floors and walls of an indoor scene.

    Starting from the image's y axis, the direction most parallel to the walls and orthogonal to
    the floors is found again and again: normals within 45° (then 15°) of the current direction
    are floor, those within 45° (15°) of its orthogonal plane are wall.

    Args:
        depth: (H, W) metres; 0, negative and non-finite pixels are no reading.
        intrinsics: of this image, see :data:`FIRST_PIXEL`.
        missing: bool (H, W), True = not used for normals, for pixels that `depth` has filled
            in; pixels without a reading are never used.

    Returns:
        float64 (3,), unit, optical axes (x right, y down, z forward), pointing down; (0, 1, 0)
        where no normal is floor or wall, so also for an image without readings.

    Raises:
        FrameError: sizes that do not match.
    """
    return _vote_for_gravity(_clean(depth, intrinsics, missing), intrinsics)


def encode_hha(
    depth: np.ndarray,
    intrinsics: Intrinsics,
    missing: np.ndarray | None = None,
    gravity: np.ndarray | None = None,
    camera_height: float | None = None,
    floor_from: np.ndarray | None = None,
) -> np.ndarray:
    """Encode a depth image as disparity, height above the floor, and angle with gravity.

    ========= ============================== ===================== ==========================
    channel   value                          saturates             pixels without a reading
    ========= ============================== ===================== ==========================
    disparity 31000 / depth in cm            255 nearer than 1.2 m 255
    height    cm above the floor             255 at 2.55 m         the camera's own height
    angle     degrees + 38                   –                     from neighbours, else 218
    ========= ============================== ===================== ==========================

    The windows of the normals are in pixels of `depth`, whatever its size, as in the public code.

    Where `camera_height` is not given, the floor is taken to be at the lowest point, outliers
    apart (:data:`OUTLIER_GAP_CM`); but where that is less than 0.9 m below the camera it is taken
    for furniture, and the floor to be 1.3 m below (:data:`FLOOR_GUESS_ABOVE_CM`). For a camera
    that is mounted lower than 0.9 m this guess is wrong. Gravity is found up to 45° from the
    image's y axis.

    Args:
        depth: (H, W) metres; 0, negative and non-finite pixels are no reading.
        intrinsics: of this image, see :data:`FIRST_PIXEL`.
        missing: bool (H, W), True = excluded from the normals, for pixels that `depth` has
            filled in; default: the pixels without a reading, which never take part.
        gravity: (3,) direction of gravity in optical axes (x right, y down, z forward), of any
            length, for instance from TF or an IMU; default: :func:`estimate_gravity`.
        camera_height: of the camera above the floor in metres; default: a guess, see above.
        floor_from: bool (H, W), True = may be the lowest point; default: all pixels, as in the
            public code. What was filled in is no place to look for the floor: where the lowest
            rows have no reading, it is farther depth carried down, below the true floor.

    Returns:
        uint8 (H, W, 3).

    Raises:
        FrameError: sizes that do not match, a gravity that is no direction, or a height that is
            no positive number.
    """
    cleaned = _clean(depth, intrinsics, missing)
    down = _vote_for_gravity(cleaned, intrinsics) if gravity is None else unit_direction(gravity)
    level = math.acos(min(1.0, max(-1.0, down[1]))) <= math.radians(LEVEL_ANGLE_DEG)
    height_down = np.array([0.0, 1.0, 0.0]) if level else down
    camera = np.array(_camera(intrinsics), dtype=np.float32)
    height_down = height_down.astype(np.float32)
    if camera_height is not None:
        floor = -100.0 * checked_height(camera_height)
    else:
        z = cleaned.z if floor_from is None else np.where(floor_from, cleaned.z, np.float32(0))
        lowest = _lowest(z, camera, height_down)
        floor = FLOOR_GUESS_CM if lowest > FLOOR_GUESS_ABOVE_CM else lowest
    hha = np.empty((*cleaned.z.shape, 3), dtype=np.uint8)
    hha_kernels.encode_channels(
        cleaned.z,
        cleaned.inverse,
        cleaned.counted,
        camera,
        down.astype(np.float32),
        height_down,
        np.float32(floor),
        np.float32(DISPARITY_SCALE),
        np.float32(MIN_DEPTH_CM),
        np.float32(ANGLE_OFFSET),
        hha,
    )
    return hha


def lowest_below_camera(
    depth: np.ndarray, intrinsics: Intrinsics, gravity: np.ndarray | None = None
) -> float:
    """Return how many metres the lowest point lies below the camera, 0 without one below it.

    Outliers are no points, see :data:`OUTLIER_GAP_CM`.

    Where that is less than 0.9, :func:`encode_hha` takes the reading for furniture and the floor
    for lower, unless it is given the height of the camera.

    Args:
        depth: (H, W) metres; 0, negative and non-finite pixels are no reading.
        intrinsics: of this image.
        gravity: as of :func:`encode_hha`.

    Raises:
        FrameError: sizes that do not match, or a gravity that is no direction.
    """
    cleaned = _clean(depth, intrinsics, None)
    down = _vote_for_gravity(cleaned, intrinsics) if gravity is None else unit_direction(gravity)
    camera = np.array(_camera(intrinsics), dtype=np.float32)
    return max(0.0, -_lowest(cleaned.z, camera, down.astype(np.float32)) / 100)


def constants() -> dict[str, float | list[float]]:
    """Return the constants HHA depends on, as a bundle's card records them.

    A network is fed what it was trained on only while these are the card's.
    """
    return {
        'angle_radius_px': ANGLE_RADIUS_PX,
        'gravity_radius_px': GRAVITY_RADIUS_PX,
        'gravity_thresholds_deg': list(GRAVITY_THRESHOLDS_DEG),
        'gravity_iterations': list(GRAVITY_ITERATIONS),
        'disparity_scale': DISPARITY_SCALE,
        'min_depth_cm': MIN_DEPTH_CM,
        'floor_guess_above_cm': FLOOR_GUESS_ABOVE_CM,
        'floor_guess_cm': FLOOR_GUESS_CM,
        'angle_offset': ANGLE_OFFSET,
        'no_normal_deg': NO_NORMAL_DEG,
        'first_pixel': FIRST_PIXEL,
    }


def unit_direction(gravity: np.ndarray) -> np.ndarray:
    """Return a direction of any length as float64 (3,), unit.

    Raises:
        FrameError: it is no direction.
    """
    direction = np.asarray(gravity, dtype=np.float64)
    if direction.shape != (3,) or not np.isfinite(direction).all() or not direction.any():
        raise FrameError(
            f'gravity must be 3 finite numbers, not all 0, got {gravity!r}; give the direction '
            'in the optical axes of the camera or leave it out'
        )
    direction = direction / np.abs(direction).max()
    return direction / np.linalg.norm(direction)


def checked_height(camera_height: float) -> float:
    """Return a camera's height above the floor in metres.

    Raises:
        FrameError: it is no positive number.
    """
    if not 0 < camera_height < math.inf:
        raise FrameError(
            f'the height of the camera must be a positive number of metres, got {camera_height}; '
            'measure it from the floor or leave it out'
        )
    return float(camera_height)


def _camera(intrinsics: Intrinsics) -> tuple[float, float, float, float]:
    """Return fx, fy, cx, cy for pixels counted from 0, giving the public code's rays."""
    k = intrinsics
    return k.fx, k.fy, k.cx - FIRST_PIXEL, k.cy - FIRST_PIXEL


def _lowest(z: np.ndarray, camera: np.ndarray, down: np.ndarray) -> float:
    """Return the height of the lowest point above the camera in cm, outliers apart."""
    lowest = float(hha_kernels.lowest_height(z, *camera, down))
    if lowest > FLOOR_GUESS_ABOVE_CM:
        return lowest  # furniture, with outliers or without

    def are_few(height: float) -> bool:
        below = hha_kernels.readings_below(z, *camera, down, np.float32(height))
        return below < OUTLIER_SHARE * np.count_nonzero(z)

    low, high = min(lowest + OUTLIER_GAP_CM, 0.0), 0.0
    if not are_few(low):
        return lowest
    for _ in range(OUTLIER_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if are_few(middle) else (low, middle)
    return high


def _clean(depth: np.ndarray, intrinsics: Intrinsics, missing: np.ndarray | None) -> _Cleaned:
    size = (intrinsics.height, intrinsics.width)
    if depth.shape != size:
        raise FrameError(
            f'depth has shape {depth.shape} but the intrinsics are for {size[1]}x{size[0]}; '
            'use Intrinsics.resized when the image was resized'
        )
    if missing is not None and missing.shape != size:
        raise FrameError(
            f'the missing mask has shape {missing.shape} but depth {depth.shape}; '
            'give one value a pixel'
        )
    padded = (size[0] + 2 * hha_kernels.PAD, size[1] + 2 * hha_kernels.PAD)
    cleaned = _Cleaned(np.empty(size, np.float32), *np.empty((2, *padded), np.float32))
    mask = _NO_MASK if missing is None else missing
    hha_kernels.clean_depth(readable(depth, np.float32), readable(mask, np.bool_), *cleaned)
    return cleaned


def _vote_for_gravity(cleaned: _Cleaned, intrinsics: Intrinsics) -> np.ndarray:
    height, width = cleaned.z.shape
    step = max(1, round(math.sqrt(height * width / (2 * GRAVITY_NORMALS))))
    normals = np.zeros((3, (height // step + 1) * (width // (2 * step) + 1)), dtype=np.float32)
    hha_kernels.staggered_normals(
        cleaned.inverse,
        cleaned.counted,
        GRAVITY_RADIUS_PX,
        step,
        *_camera(intrinsics),
        normals,
    )
    thresholds = np.radians(np.repeat(GRAVITY_THRESHOLDS_DEG, GRAVITY_ITERATIONS))
    y = np.array([0.0, 1.0, 0.0])
    hha_kernels.follow_gravity(
        normals,
        np.cos(thresholds).astype(np.float32),
        np.sin(thresholds).astype(np.float32),
        MIN_EIGENVALUE_GAP,
        y,
    )
    return y
