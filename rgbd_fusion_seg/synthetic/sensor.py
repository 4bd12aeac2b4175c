"""A structured-light depth sensor like the first Kinect, simulated from exact depth.

The sensor matches a projected dot pattern, so it measures disparity: in steps of an eighth of a
pixel, with noise that is even in disparity and hence grows with the square of depth (Khoshelham
and Elberink, Sensors 2012). Jagged edges come from looking the depth up a little beside the
pixel, as in Barron and Malik (CVPR 2013) and Handa et al. (ICRA 2014). The projector sits to
the right of the camera: what it cannot reach is a shadow on the left of nearer things.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.random import Generator

from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.synthetic.primitives import LABEL
from rgbd_fusion_seg.synthetic.textures import hash01, value_noise

BASELINE_M = 0.075
IR_FOCAL_PX = 580.0
DISPARITY_STEPS = 8
STEP_CONSTANT_M = DISPARITY_STEPS * BASELINE_M * IR_FOCAL_PX
"""Depth in metres times disparity in steps of the infrared camera. A property of the sensor:
it does not change when its image is resized."""

RANGE_M = (0.5, 8.0)
_NOISE_STEPS = 0.5  # standard deviation of the disparity in its own steps
_SHADOW_STEP = 0.04  # relative jump in depth that counts as an occluding edge
_GRAZING_COS = 0.22  # below this cosine of incidence returns get too weak
_LOSSY = {'mirror': 0.75, 'window': 0.7, 'television': 0.6, 'refridgerator': 0.12, 'lamp': 0.3}
"""Share of the surface that gives no reading: it reflects, swallows or outshines the pattern."""

_jit = numba.njit(cache=True, nogil=True, error_model='numpy')


def simulate_kinect(
    depth: np.ndarray,
    intrinsics: Intrinsics,
    rng: Generator,
    labels: np.ndarray | None = None,
    *,
    strength: float = 1.0,
    range_m: tuple[float, float] = RANGE_M,
) -> np.ndarray:
    """Return what a Kinect would read where the exact depth is this.

    Every reading lies on the sensor's disparity grid and comes from a depth at most two pixels
    away; nothing is filled in.

    Args:
        depth: float32 (H, W), exact metres along the optical axis; 0 or non-finite = nothing.
        intrinsics: of the image, for the width of shadows and the angle of surfaces.
        rng: source of noise; one draw is taken from it.
        labels: uint8 (H, W) NYU40 classes; glass, mirrors and screens then lose readings.
        strength: scales noise, jagged edges and random holes; 0 leaves quantisation, shadows
            and the range limit.
        range_m: nearest and farthest reading in metres.

    Returns:
        float32 (H, W) metres, 0 = no reading.

    Raises:
        FrameError: sizes that do not match.
    """
    if depth.shape != (intrinsics.height, intrinsics.width):
        raise FrameError(
            f'depth is {depth.shape[1]}x{depth.shape[0]} but the intrinsics are for '
            f'{intrinsics.width}x{intrinsics.height}; scale one of them'
        )
    if labels is not None and labels.shape != depth.shape:
        raise FrameError(
            f'labels have shape {labels.shape} but depth has {depth.shape}; render both together'
        )
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
    loss = np.zeros(256, np.float32)
    for name, share in _LOSSY.items():
        loss[LABEL[name]] = share * strength
    if labels is None:
        labels = np.zeros(depth.shape, np.uint8)
    lit = _lit(depth, intrinsics.fx * BASELINE_M)
    return _read(
        depth, lit, labels, loss, intrinsics.matrix, strength, np.array(range_m),
        int(rng.integers(1 << 30)),
    )  # fmt: skip


@_jit
def _lit(depth: np.ndarray, baseline_px_m: float) -> np.ndarray:
    """bool (H, W): where the projector's pattern arrives.

    Each row is a z-buffer seen from the projector, whose column is u - f b / z.
    """
    height, width = depth.shape
    lit = np.zeros((height, width), np.bool_)
    nearest = np.empty(width + 1, np.float32)
    for v in range(height):
        nearest[:] = np.inf
        for u in range(width):
            z = depth[v, u]
            if z > 0.0:
                column = int(np.floor(u - baseline_px_m / z))
                for c in range(max(column, 0), min(column + 2, width + 1)):
                    nearest[c] = min(nearest[c], z)
        for u in range(width):
            z = depth[v, u]
            if z > 0.0:
                column = int(np.floor(u - baseline_px_m / z + 0.5))
                # what lies left of the image's first column is not known to be hidden
                lit[v, u] = column < 0 or z < nearest[column] * (1.0 + _SHADOW_STEP)
    return lit


@_jit
def _slope(before: float, here: float, after: float) -> float:
    """Change of inverse depth per pixel, from the side without an edge."""
    a, b = here - before, after - here
    return a if abs(a) < abs(b) else b


@_jit
def _incidence(depth: np.ndarray, u: int, v: int, camera: np.ndarray) -> float:
    """Cosine between the pixel's ray and the surface normal, 1 where it cannot be told.

    Inverse depth is linear in the pixel on a plane, and its coefficients are the normal.
    """
    height, width = depth.shape
    if not (0 < u < width - 1 and 0 < v < height - 1):
        return 1.0
    left, right, up, down = depth[v, u - 1], depth[v, u + 1], depth[v - 1, u], depth[v + 1, u]
    if min(min(left, right), min(up, down)) <= 0.0:
        return 1.0
    q = 1.0 / depth[v, u]
    nx = _slope(1.0 / left, q, 1.0 / right) * camera[0, 0]
    ny = _slope(1.0 / up, q, 1.0 / down) * camera[1, 1]
    x, y = (u - camera[0, 2]) / camera[0, 0], (v - camera[1, 2]) / camera[1, 1]
    nz = q - nx * x - ny * y
    return q / np.sqrt((nx * nx + ny * ny + nz * nz) * (x * x + y * y + 1.0))


@_jit
def _read(
    depth: np.ndarray,
    lit: np.ndarray,
    labels: np.ndarray,
    loss: np.ndarray,
    camera: np.ndarray,
    strength: float,
    range_m: np.ndarray,
    seed: int,
) -> np.ndarray:
    height, width = depth.shape
    reading = np.zeros((height, width), np.float32)
    detail = 640.0 / width  # pixels of the sensor's own image per pixel of this one
    for v in range(height):
        for u in range(width):
            x, y = u * detail, v * detail
            warp = value_noise(x * 0.3, y * 0.3, seed) - 0.5
            shift = min(2.0, strength) * 3.0 / detail
            su = min(width - 1, max(0, int(np.floor(u + shift * warp + 0.5))))
            other = hash01(u, v, seed + 1)
            sv = min(height - 1, max(0, v + int(np.floor(shift * 0.5 * (other - 0.5) + 0.5))))
            z = depth[sv, su]
            if z <= 0.0 or not lit[sv, su] or not lit[v, u]:
                continue
            blob = value_noise(x * 0.12, y * 0.12, seed + 2)
            weak = _incidence(depth, su, sv, camera) / _GRAZING_COS
            if weak < 1.0 and strength * (1.0 - weak) > 0.25 + 0.75 * blob:
                continue
            if loss[labels[sv, su]] > blob * 0.6 + 0.4 * value_noise(x * 0.03, y * 0.03, seed + 3):
                continue
            speck = value_noise(x * 0.2, y * 0.2, seed + 4)
            if speck * speck > 1.0 - strength * (0.035 + 0.004 * z * z):
                continue
            # two uniform numbers and smooth noise: standard deviations 0.41 and about 0.2
            grain = hash01(u, v, seed + 5) + hash01(u, v, seed + 6) - 1.0
            noise = strength * _NOISE_STEPS * (1.6 * grain + 3.5 * warp * (1.0 - warp))
            steps = np.floor(STEP_CONSTANT_M / z + noise + 0.5)
            if steps < 1.0:
                continue
            z = STEP_CONSTANT_M / steps
            if range_m[0] <= z <= range_m[1]:
                reading[v, u] = z
    return reading
