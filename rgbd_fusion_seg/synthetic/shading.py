"""From what each pixel sees to the colour a camera would record."""

from __future__ import annotations

import numpy as np

from rgbd_fusion_seg.frame import UNLABELLED
from rgbd_fusion_seg.jit import jit
from rgbd_fusion_seg.synthetic.lighting import Lightmap, face_axes, irradiance_at
from rgbd_fusion_seg.synthetic.primitives import Pattern, Shape
from rgbd_fusion_seg.synthetic.raycast import Solids, camera_to_unit, cast_ray, face_of
from rgbd_fusion_seg.synthetic.textures import albedo

_CYLINDER, _ELLIPSOID = int(Shape.CYLINDER), int(Shape.ELLIPSOID)
_MIRROR = int(Pattern.MIRROR)
_TARGET = 0.2  # mean linear brightness an automatic exposure aims at
_CURVE_RANGE = 4.0
_SILVER = 0.86  # reflectance of a mirror

_jit = jit(fastmath={'contract', 'reassoc'})
_inline = jit(fastmath={'contract', 'reassoc'}, forceinline=True)


@_inline
def _surface(
    solids: Solids,
    lightmap: Lightmap,
    materials: np.ndarray,
    p: int,
    face: int,
    x: float,
    y: float,
    z: float,
    footprint: float,
) -> tuple[float, float, float]:
    """Radiance that the unit-space point (x, y, z) of primitive ``p`` sends out."""
    axis, iu, iv = face_axes(face)
    hu, hv = solids.half[p, iu], solids.half[p, iv]
    s, t = y if axis == 0 else x, y if axis == 2 else z
    u, v = s * hu, t * hv
    shape = solids.shape[p]
    if shape == _ELLIPSOID or (shape == _CYLINDER and axis != 2):
        u = np.arctan2(y, x) * solids.half[p, 0]
        lean = abs(x) if axis == 0 else abs(y) if axis == 1 else abs(z)
        s = s / lean
        t = t / lean if shape == _ELLIPSOID else t
    row = solids.material[p, face]
    r, g, b = albedo(materials[row], u, v, hu, hv, footprint)
    lr, lg, lb = irradiance_at(lightmap, p, face, s, t)
    glow = materials[row].emission
    return r * (lr + glow), g * (lg + glow), b * (lb + glow)


@_jit
def shade(
    solids: Solids,
    lightmap: Lightmap,
    materials: np.ndarray,
    rotation: np.ndarray,
    origin: np.ndarray,
    camera: np.ndarray,
    depth: np.ndarray,
    winner: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return linear radiance float32 (H, W, 3) and labels uint8 (H, W) of what ``cast`` saw."""
    fx, fy, cx, cy = camera
    height, width = depth.shape
    radiance = np.zeros((height, width, 3), np.float32)
    labels = np.full((height, width), np.uint8(UNLABELLED), np.uint8)
    m, o = camera_to_unit(solids, rotation, origin)
    mirrors = False
    for v in range(height):
        y = (v - cy) / fy
        for u in range(width):
            p = winner[v, u]
            if p < 0:
                continue
            x, t = (u - cx) / fx, np.float64(depth[v, u])
            dx = m[p, 0, 0] * x + m[p, 0, 1] * y + m[p, 0, 2]
            dy = m[p, 1, 0] * x + m[p, 1, 1] * y + m[p, 1, 2]
            dz = m[p, 2, 0] * x + m[p, 2, 1] * y + m[p, 2, 2]
            qx, qy, qz = o[p, 0] + t * dx, o[p, 1] + t * dy, o[p, 2] + t * dz
            face = face_of(solids.shape[p], qx, qy, qz)
            labels[v, u] = solids.label[p, face]
            axis = face >> 1
            facing = abs(dx if axis == 0 else dy if axis == 1 else dz) * solids.half[p, axis]
            footprint = t / fx * min(12.0, np.sqrt(x * x + y * y + 1.0) / facing)
            mirrors |= materials[solids.material[p, face]].pattern == _MIRROR
            r, g, b = _surface(solids, lightmap, materials, p, face, qx, qy, qz, footprint)
            radiance[v, u, 0], radiance[v, u, 1], radiance[v, u, 2] = r, g, b
    if mirrors:
        _reflect(
            solids, lightmap, materials, rotation, origin, camera, depth, winner, m, o, radiance
        )
    return radiance, labels


@_jit
def _reflect(
    solids: Solids,
    lightmap: Lightmap,
    materials: np.ndarray,
    rotation: np.ndarray,
    origin: np.ndarray,
    camera: np.ndarray,
    depth: np.ndarray,
    winner: np.ndarray,
    m: np.ndarray,
    o: np.ndarray,
    radiance: np.ndarray,
) -> None:
    """Replace the radiance of mirrors by what one reflection sees."""
    fx, fy, cx, cy = camera
    has_mirror = np.zeros(solids.shape.size, np.bool_)
    for p in range(solids.shape.size):
        for face in range(6):
            has_mirror[p] |= materials[solids.material[p, face]].pattern == _MIRROR
    point, ray = np.empty(3), np.empty(3)
    for v in range(depth.shape[0]):
        y = (v - cy) / fy
        for u in range(depth.shape[1]):
            p = winner[v, u]
            if p < 0 or not has_mirror[p]:
                continue
            x, t = (u - cx) / fx, np.float64(depth[v, u])
            qx = o[p, 0] + t * (m[p, 0, 0] * x + m[p, 0, 1] * y + m[p, 0, 2])
            qy = o[p, 1] + t * (m[p, 1, 0] * x + m[p, 1, 1] * y + m[p, 1, 2])
            qz = o[p, 2] + t * (m[p, 2, 0] * x + m[p, 2, 1] * y + m[p, 2, 2])
            face = face_of(solids.shape[p], qx, qy, qz)
            if materials[solids.material[p, face]].pattern != _MIRROR:
                continue
            axis, along = face >> 1, 0.0
            for k in range(3):
                ray[k] = rotation[k, 0] * x + rotation[k, 1] * y + rotation[k, 2]
                point[k] = origin[k] + t * ray[k]
                along += ray[k] * solids.to_unit[p, axis, k] * solids.half[p, axis]
            for k in range(3):
                ray[k] -= 2.0 * along * solids.to_unit[p, axis, k] * solids.half[p, axis]
                point[k] += 1e-3 * ray[k]
            r, g, b = _seen_along(solids, lightmap, materials, point, ray, t / fx)
            radiance[v, u, 0], radiance[v, u, 1], radiance[v, u, 2] = r, g, b


@_jit
def _seen_along(
    solids: Solids,
    lightmap: Lightmap,
    materials: np.ndarray,
    point: np.ndarray,
    ray: np.ndarray,
    footprint: float,
) -> tuple[float, float, float]:
    """Radiance that reaches a world point against the direction of a ray, less the silver."""
    t, p = cast_ray(solids, point[0], point[1], point[2], ray[0], ray[1], ray[2])
    q = np.zeros(3)
    for i in range(3):
        for k in range(3):
            offset = point[k] + t * ray[k] - solids.center[p, k]
            q[i] += solids.to_unit[p, i, k] * offset
    face = face_of(solids.shape[p], q[0], q[1], q[2])
    r, g, b = _surface(
        solids, lightmap, materials, p, face, q[0], q[1], q[2], footprint * (1.0 + t)
    )
    return _SILVER * r, _SILVER * g, _SILVER * b


def _response() -> np.ndarray:
    """float32 (4096,): 0..255 for linear 0.._CURVE_RANGE; a soft shoulder, then sRGB."""
    x = np.linspace(0.0, _CURVE_RANGE, 4096)
    x = 1.0 - np.exp(-1.5 * x)
    srgb = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    return (255.0 * srgb).astype(np.float32)


RESPONSE = _response()


def develop(radiance: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """Return the uint8 (H, W, 3) RGB picture of a radiance image.

    Automatic exposure, the blur of a cheap lens and demosaicing (binomial 3x3), vignetting,
    and noise of standard deviation ``noise`` grey levels.
    """
    return _develop(radiance, RESPONSE, noise, seed)


@_jit
def _develop(radiance: np.ndarray, response: np.ndarray, noise: float, seed: int) -> np.ndarray:
    height, width, _ = radiance.shape
    picture = np.empty((height, width, 3), np.uint8)
    gain = _exposure(radiance) * len(response) / _CURVE_RANGE / 16.0
    flat = radiance.reshape(height, width * 3)
    column = np.empty(width * 3 + 6, np.float32)
    state = np.uint64(seed) * np.uint64(2654435761) + np.uint64(88172645463325252)
    top = len(response) - 1
    falloff = 0.22 / (0.25 * (height * height + width * width))
    for v in range(height):
        above, below = flat[max(v - 1, 0)], flat[min(v + 1, height - 1)]
        for i in range(width * 3):
            column[i + 3] = above[i] + 2.0 * flat[v, i] + below[i]
        column[:3], column[-3:] = column[3:6], column[-6:-3]
        dv = (v - 0.5 * height) ** 2
        for u in range(width):
            bright = gain * (1.0 - falloff * (dv + (u - 0.5 * width) ** 2))
            state ^= state << np.uint64(13)
            state ^= state >> np.uint64(7)
            state ^= state << np.uint64(17)
            for k in range(3):
                i = 3 * u + k
                value = (column[i] + 2.0 * column[i + 3] + column[i + 6]) * bright
                bits = state >> np.uint64(20 * k)
                grain = float(bits & np.uint64(1023)) + float(
                    (bits >> np.uint64(10)) & np.uint64(1023)
                )
                # the sum of two uniform numbers 0..1023 has standard deviation 418
                level = response[min(top, int(value))] + noise * (grain - 1023.0) / 418.0 + 0.5
                picture[v, u, k] = int(min(255.0, max(0.0, level)))
    return picture


@_jit
def _exposure(radiance: np.ndarray) -> float:
    """Gain that brings the mean over every fourth pixel, highlights clipped, to _TARGET."""
    total, count = 0.0, 0
    for v in range(0, radiance.shape[0], 4):
        for u in range(0, radiance.shape[1], 4):
            mean = (radiance[v, u, 0] + radiance[v, u, 1] + radiance[v, u, 2]) / 3.0
            total += min(mean, 1.0)
            count += 1
    return _TARGET / max(total / count, 1e-4)
