"""From what each pixel sees to the colour a camera would record."""

from __future__ import annotations

import numba
import numpy as np

from rgbd_fusion_seg.frame import UNLABELLED
from rgbd_fusion_seg.synthetic.lighting import Lightmap, face_axes, irradiance_at
from rgbd_fusion_seg.synthetic.primitives import Pattern, Shape
from rgbd_fusion_seg.synthetic.raycast import Solids, camera_to_unit, cast_ray, face_of
from rgbd_fusion_seg.synthetic.textures import albedo

_CYLINDER, _ELLIPSOID, _ROOM = int(Shape.CYLINDER), int(Shape.ELLIPSOID), int(Shape.ROOM)
_BOX, _MIRROR = int(Shape.BOX), int(Pattern.MIRROR)
_UNLABELLED = UNLABELLED
_TARGET = 0.2  # mean linear brightness an automatic exposure aims at
_CURVE_RANGE = 4.0

_jit = numba.njit(cache=True, nogil=True, error_model='numpy', fastmath={'contract', 'reassoc'})


@_jit
def _surface(
    solids: Solids,
    lightmap: Lightmap,
    materials: np.ndarray,
    p: int,
    face: int,
    q: tuple[float, float, float],
    footprint: float,
) -> tuple[float, float, float]:
    """Radiance that the unit-space point ``q`` of primitive ``p`` sends out."""
    axis, iu, iv = face_axes(face)
    hu, hv = solids.half[p, iu], solids.half[p, iv]
    s, t = q[iu], q[iv]
    u, v = s * hu, t * hv
    shape = solids.shape[p]
    if shape == _ELLIPSOID or (shape == _CYLINDER and axis != 2):
        lean = abs(q[axis])
        u = np.arctan2(q[1], q[0]) * solids.half[p, 0]
        s = s / lean
        t = t / lean if shape == _ELLIPSOID else t
    material = materials[solids.material[p, face]]
    r, g, b = albedo(material, u, v, hu, hv, footprint)
    lr, lg, lb = irradiance_at(lightmap, p, face, s, t)
    glow = material.emission
    return r * (lr + glow), g * (lg + glow), b * (lb + glow)


@_jit
def _reflection(
    solids: Solids,
    lightmap: Lightmap,
    materials: np.ndarray,
    p: int,
    axis: int,
    point: np.ndarray,
    ray: np.ndarray,
    footprint: float,
) -> tuple[float, float, float]:
    """Radiance that comes along ``ray`` after the mirror face at world ``point``."""
    normal = solids.to_unit[p, axis] * solids.half[p, axis]
    ray = ray - 2.0 * np.sum(ray * normal) * normal
    origin = point + ray * 1e-3
    t, other = cast_ray(solids, origin[0], origin[1], origin[2], ray[0], ray[1], ray[2])
    offset = origin + t * ray - solids.center[other]
    m = solids.to_unit[other]
    q = (np.sum(m[0] * offset), np.sum(m[1] * offset), np.sum(m[2] * offset))
    face = face_of(solids.shape[other], q[0], q[1], q[2])
    r, g, b = _surface(solids, lightmap, materials, other, face, q, footprint * (1.0 + t))
    return 0.85 * r, 0.87 * g, 0.85 * b


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
    labels = np.full((height, width), np.uint8(_UNLABELLED), np.uint8)
    maps, origins = camera_to_unit(solids, rotation, origin)
    for v in range(height):
        y = (v - cy) / fy
        for u in range(width):
            p = winner[v, u]
            if p < 0:
                continue
            x, t = (u - cx) / fx, np.float64(depth[v, u])
            m, o = maps[p], origins[p]
            q = (
                o[0] + t * (m[0, 0] * x + m[0, 1] * y + m[0, 2]),
                o[1] + t * (m[1, 0] * x + m[1, 1] * y + m[1, 2]),
                o[2] + t * (m[2, 0] * x + m[2, 1] * y + m[2, 2]),
            )
            face = face_of(solids.shape[p], q[0], q[1], q[2])
            labels[v, u] = solids.label[p, face]
            axis = face >> 1
            facing = abs(m[axis, 0] * x + m[axis, 1] * y + m[axis, 2]) * solids.half[p, axis]
            footprint = t / fx * min(12.0, np.sqrt(x * x + y * y + 1.0) / facing)
            if materials[solids.material[p, face]].pattern == _MIRROR:
                ray = np.empty(3)
                for k in range(3):
                    ray[k] = rotation[k, 0] * x + rotation[k, 1] * y + rotation[k, 2]
                r, g, b = _reflection(
                    solids, lightmap, materials, p, axis, origin + t * ray, ray, t / fx
                )
            else:
                r, g, b = _surface(solids, lightmap, materials, p, face, q, footprint)
            radiance[v, u, 0], radiance[v, u, 1], radiance[v, u, 2] = r, g, b
    return radiance, labels


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
