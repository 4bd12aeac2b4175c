"""A structured-light depth sensor like the first Kinect, simulated from exact depth.

The sensor matches a projected dot pattern, so it measures disparity: in steps of an eighth of a
pixel, with noise that is even in disparity and hence grows with the square of depth (Khoshelham
and Elberink, Sensors 2012). Jagged edges come from looking the depth up a little beside the
pixel, as in Barron and Malik (CVPR 2013) and Handa et al. (ICRA 2014). The projector sits to
the right of the camera: what it cannot reach is a shadow on the left of nearer things.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.jit import jit
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
_BORDER_PX = 8  # columns on the right that the matching window never fills
_WEAKEST = 0.04  # signal, cosine x reflectance x (3 m / depth)^2, that is lost half the time
_REFLECTANCE = 0.4  # of a surface whose colour is not given
_LOSSY = {'mirror': 0.8, 'window': 0.75, 'television': 0.7, 'lamp': 0.3, 'refridgerator': 0.15}
"""Share of the surface that gives no reading: it reflects, swallows or outshines the pattern."""


def simulate_kinect(
    depth: np.ndarray,
    intrinsics: Intrinsics,
    rng: Generator,
    labels: np.ndarray | None = None,
    *,
    rgb: np.ndarray | None = None,
    strength: float = 1.0,
) -> np.ndarray:
    """Return what a Kinect would read where the exact depth is this.

    Every reading lies on the sensor's disparity grid and comes from a depth at most two pixels
    away; nothing is filled in.

    Args:
        depth: float32 (H, W), exact metres along the optical axis; 0 or non-finite = nothing.
        intrinsics: of the image, for the width of shadows and the angle of surfaces.
        rng: source of noise; one draw is taken from it.
        labels: uint8 (H, W) NYU40 classes; glass, mirrors and screens then lose readings.
        rgb: uint8 (H, W, 3) colour; dark surfaces then lose readings, the more the farther.
        strength: scales noise, jagged edges and random holes; 0 leaves quantisation, shadows
            and the limits of :data:`RANGE_M`.

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
    for name, image in (('labels', labels), ('rgb', rgb)):
        if image is not None and image.shape[:2] != depth.shape:
            raise FrameError(
                f'{name} is {image.shape[1]}x{image.shape[0]} but depth is '
                f'{depth.shape[1]}x{depth.shape[0]}; render both together'
            )
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
    loss = np.zeros(256, np.float32)
    for name, share in _LOSSY.items():
        loss[LABEL[name]] = share
    return _read(
        depth,
        _lit(depth, intrinsics.fx * BASELINE_M),
        np.zeros(depth.shape, np.uint8) if labels is None else labels,
        np.zeros((0, 0, 3), np.uint8) if rgb is None else rgb,
        loss,
        intrinsics.matrix,
        strength,
        np.array(RANGE_M),
        int(rng.integers(1 << 20)),
    )


@jit
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


@jit
def _slope(before: float, here: float, after: float) -> float:
    """Change of inverse depth per pixel, from the side without an edge."""
    a, b = here - before, after - here
    return a if abs(a) < abs(b) else b


@jit
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


@jit
def _lost(
    z: float, cosine: float, reflectance: float, loss: float, x: float, y: float, seed: int
) -> bool:
    """Whether the pattern is too weak to be matched at the sensor's pixel (x, y).

    Losses come in blobs, for one match takes a window of pixels.
    """
    blob = (
        0.55 * value_noise(x * 0.03, y * 0.03, seed + 2)
        + 0.3 * value_noise(x * 0.12, y * 0.12, seed + 3)
        + 0.15 * value_noise(x * 0.35, y * 0.35, seed + 4)
    )
    signal = cosine * reflectance * (9.0 / (z * z))
    if signal < _WEAKEST * 2.0 * blob or blob > 0.9 - 0.002 * z * z:
        return True
    # blob is nearly normal around 0.5 with standard deviation 0.17
    return loss > 0.0 and loss > 2.0 * (blob - 0.25)


@jit
def _read(
    depth: np.ndarray,
    lit: np.ndarray,
    labels: np.ndarray,
    rgb: np.ndarray,
    loss: np.ndarray,
    camera: np.ndarray,
    strength: float,
    range_m: np.ndarray,
    seed: int,
) -> np.ndarray:
    height, width = depth.shape
    reading = np.zeros((height, width), np.float32)
    detail = 640.0 / width  # pixels of the sensor's own image per pixel of this one
    jag = 3.0 * min(1.0, strength) / detail
    for v in range(height):
        for u in range(width - round(_BORDER_PX / detail)):
            x, y = u * detail, v * detail
            warp = value_noise(x * 0.3, y * 0.3, seed) - 0.5
            wobble = value_noise(x * 0.3, y * 0.3, seed + 1) - 0.5
            su = min(width - 1, max(0, int(np.floor(u + jag * warp + 0.5))))
            sv = min(height - 1, max(0, int(np.floor(v + jag * wobble + 0.5))))
            z = depth[sv, su]
            if z <= 0.0 or not lit[sv, su] or not lit[v, u]:
                continue
            reflectance = _REFLECTANCE
            if rgb.size:
                bright = max(max(rgb[v, u, 0], rgb[v, u, 1]), rgb[v, u, 2]) / 255.0
                reflectance = 0.04 + bright * bright
            cosine = _incidence(depth, su, sv, camera)
            share = loss[labels[sv, su]]
            if strength > 0.0 and _lost(
                z, cosine, reflectance / strength, share * strength, x, y, seed
            ):
                continue
            # the sum of two uniform numbers has standard deviation 0.41
            grain = hash01(u, v, seed + 5) + hash01(u, v, seed + 6) - 1.0
            noise = strength * _NOISE_STEPS * (1.8 * grain + 2.5 * (warp + wobble))
            steps = np.floor(STEP_CONSTANT_M / z + noise + 0.5)
            if steps < 1.0:
                continue
            z = STEP_CONSTANT_M / steps
            if range_m[0] <= z <= range_m[1]:
                reading[v, u] = z
    return reading
