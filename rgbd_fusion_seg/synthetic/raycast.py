"""Exact ray casting of solids, with a z-buffer over primitives.

A primitive is stored as the affine map from the world to the space where it is a unit solid
(the cube [-1, 1]³, the unit ball, the unit cylinder). A ray direction in that space is linear
in the pixel, and with a camera ray of depth 1 the ray parameter is the depth itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rgbd_fusion_seg.jit import jit
from rgbd_fusion_seg.synthetic.primitives import Primitive, Shape

_CYLINDER, _ELLIPSOID, _ROOM = int(Shape.CYLINDER), int(Shape.ELLIPSOID), int(Shape.ROOM)
NEAR_M = 0.02
"""Nothing nearer to the camera than this is seen."""

_jit = jit(fastmath={'contract', 'reassoc'})


class Solids(NamedTuple):
    """Primitives as arrays: what the kernels read.

    Args:
        shape: int64 (N,), a Shape.
        center: float64 (N, 3), metres.
        to_unit: float64 (N, 3, 3), world offset from the centre to unit space.
        half: float64 (N, 3), metres.
        radius: float64 (N,), of the bounding ball in metres.
        label: uint8 (N, 6), class of each face.
        material: int64 (N, 6), row of the material table for each face.
        opaque: bool (N,), false for what sends out light and casts no shadow.
    """

    shape: np.ndarray
    center: np.ndarray
    to_unit: np.ndarray
    half: np.ndarray
    radius: np.ndarray
    label: np.ndarray
    material: np.ndarray
    opaque: np.ndarray


def pack_solids(primitives: list[Primitive], material_rows: np.ndarray) -> Solids:
    """Return the primitives as arrays; ``material_rows`` is int64 (N, 6)."""
    half = np.array([p.half for p in primitives])
    rotation = np.array([p.rotation for p in primitives])
    opaque = [p.shape != Shape.ROOM and p.materials[0].emission == 0.0 for p in primitives]
    return Solids(
        shape=np.array([int(p.shape) for p in primitives]),
        center=np.array([p.center for p in primitives]),
        to_unit=rotation.transpose(0, 2, 1) / half[:, :, None],
        half=half,
        radius=np.linalg.norm(half, axis=1),
        label=np.array([p.labels for p in primitives], dtype=np.uint8),
        material=material_rows,
        opaque=np.array(opaque),
    )


@_jit
def hit(shape: int, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> float:
    """Return the smallest t > 0 at which o + t d enters the unit solid, inf if it never does.

    A room is hit where the ray leaves it.
    """
    dx = 1e-30 if dx == 0.0 else dx
    dy = 1e-30 if dy == 0.0 else dy
    dz = 1e-30 if dz == 0.0 else dz
    iz = 1.0 / dz
    near, far = -oz * iz - abs(iz), -oz * iz + abs(iz)
    if shape in (_ELLIPSOID, _CYLINDER):
        a, b, c = dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy - 1.0
        if shape == _ELLIPSOID:
            a, b, c = a + dz * dz, b + oz * dz, c + oz * oz
            near, far = -np.inf, np.inf
        root = b * b - a * c
        if root < 0.0:
            return np.inf
        root = np.sqrt(root)
        near, far = max(near, (-b - root) / a), min(far, (-b + root) / a)
    else:
        ix, iy = 1.0 / dx, 1.0 / dy
        near = max(near, max(-ox * ix - abs(ix), -oy * iy - abs(iy)))
        far = min(far, min(-ox * ix + abs(ix), -oy * iy + abs(iy)))
        if shape == _ROOM:
            return far
    return near if near < far and near > 0.0 else np.inf


@_jit
def face_of(shape: int, x: float, y: float, z: float) -> int:
    """Return the face 0..5 (-x, +x, -y, +y, -z, +z) that a unit solid's surface point is on."""
    ax, ay, az = abs(x), abs(y), abs(z)
    if shape == _CYLINDER and az < 0.99999:
        az = 0.0
    if az >= ax and az >= ay:
        return 5 if z > 0.0 else 4
    if ay >= ax:
        return 3 if y > 0.0 else 2
    return 1 if x > 0.0 else 0


@_jit
def camera_to_unit(
    solids: Solids, rotation: np.ndarray, origin: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the map of camera directions to unit space (N, 3, 3) and the camera there (N, 3)."""
    count = solids.shape.size
    maps, origins = np.empty((count, 3, 3)), np.empty((count, 3))
    for p in range(count):
        for i in range(3):
            total = 0.0
            for k in range(3):
                total += solids.to_unit[p, i, k] * (origin[k] - solids.center[p, k])
            origins[p, i] = total
            for j in range(3):
                total = 0.0
                for k in range(3):
                    total += solids.to_unit[p, i, k] * rotation[k, j]
                maps[p, i, j] = total
    return maps, origins


@_jit
def _project(corners: np.ndarray, fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """Bounds (u0, u1, v0, v1) in pixels of the box with these camera-frame corners (8, 3).

    Edges that pass behind the camera are cut at NEAR_M.
    """
    bounds = np.array([np.inf, -np.inf, np.inf, -np.inf])
    for a in range(8):
        for bit in range(3):
            b = a | (1 << bit)
            if a == b:
                continue
            za, zb = corners[a, 2], corners[b, 2]
            for end in range(2):
                t = float(end)
                if (zb if end else za) < NEAR_M:
                    if max(za, zb) <= NEAR_M:
                        continue
                    t = (NEAR_M - za) / (zb - za)
                x = corners[a, 0] + t * (corners[b, 0] - corners[a, 0])
                y = corners[a, 1] + t * (corners[b, 1] - corners[a, 1])
                z = max(NEAR_M, za + t * (zb - za))
                u, v = fx * x / z + cx, fy * y / z + cy
                bounds[0], bounds[1] = min(bounds[0], u), max(bounds[1], u)
                bounds[2], bounds[3] = min(bounds[2], v), max(bounds[3], v)
    return bounds


@_jit
def screen_bounds(
    solids: Solids,
    rotation: np.ndarray,
    origin: np.ndarray,
    camera: np.ndarray,
    width: int,
    height: int,
) -> np.ndarray:
    """Return int64 (N, 4): the pixels u0 <= u < u1, v0 <= v < v1 a primitive can cover."""
    fx, fy, cx, cy = camera
    count = solids.shape.size
    rectangles = np.zeros((count, 4), np.int64)
    corners = np.empty((8, 3))
    for p in range(count):
        if solids.shape[p] == _ROOM:
            rectangles[p] = np.array([0, width, 0, height])
            continue
        for a in range(8):
            corners[a] = 0.0
            for k in range(3):
                world = solids.center[p, k] - origin[k]
                for i in range(3):
                    sign = 1.0 if a >> i & 1 else -1.0
                    # a row of to_unit is the primitive's axis over its half size
                    half = solids.half[p, i]
                    world += sign * solids.to_unit[p, i, k] * half * half
                for j in range(3):
                    corners[a, j] += rotation[k, j] * world
        u0, u1, v0, v1 = _project(corners, fx, fy, cx, cy)
        if u1 >= u0:
            rectangles[p, 0] = int(max(0.0, min(u0, float(width))))
            rectangles[p, 1] = int(max(0.0, min(u1 + 1.0, float(width))))
            rectangles[p, 2] = int(max(0.0, min(v0, float(height))))
            rectangles[p, 3] = int(max(0.0, min(v1 + 1.0, float(height))))
    return rectangles


@_jit
def _cast_rectangle(
    shape: int,
    to_unit: np.ndarray,
    o: np.ndarray,
    camera: np.ndarray,
    rectangle: np.ndarray,
    index: int,
    depth: np.ndarray,
    winner: np.ndarray,
) -> None:
    """Intersect one primitive with the rays of a rectangle and keep what is nearest."""
    fx, fy, cx, cy = camera
    u0, u1, v0, v1 = rectangle
    ox, oy, oz = o
    sx, sy, sz = to_unit[0, 0] / fx, to_unit[1, 0] / fx, to_unit[2, 0] / fx
    for v in range(v0, v1):
        y = (v - cy) / fy
        bx = to_unit[0, 1] * y + to_unit[0, 2] - sx * cx
        by = to_unit[1, 1] * y + to_unit[1, 2] - sy * cx
        bz = to_unit[2, 1] * y + to_unit[2, 2] - sz * cx
        for u in range(u0, u1):
            t = hit(shape, ox, oy, oz, bx + sx * u, by + sy * u, bz + sz * u)
            if NEAR_M < t < depth[v, u]:
                depth[v, u] = t
                winner[v, u] = index


@_jit
def cast(
    solids: Solids,
    rotation: np.ndarray,
    origin: np.ndarray,
    camera: np.ndarray,
    width: int,
    height: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Cast every pixel's ray.

    Args:
        solids: what is in the room.
        rotation, origin: float64 (3, 3) and (3,), camera to world.
        camera: float64 (4,), fx, fy, cx, cy in pixels.
        width, height: of the image.

    Returns:
        depth float32 (H, W) in metres along the optical axis, inf where nothing is;
        winner int32 (H, W), the primitive seen, -1 for none.
    """
    depth = np.full((height, width), np.float32(np.inf), np.float32)
    winner = np.full((height, width), np.int32(-1), np.int32)
    rectangles = screen_bounds(solids, rotation, origin, camera, width, height)
    maps, origins = camera_to_unit(solids, rotation, origin)
    for p in range(solids.shape.size):
        _cast_rectangle(
            solids.shape[p], maps[p], origins[p], camera, rectangles[p], p, depth, winner
        )
    return depth, winner


@_jit
def cast_ray(
    solids: Solids, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float
) -> tuple[float, int]:
    """Return how many lengths of d the world ray o + t d goes, and the primitive it hits."""
    best, index = np.inf, -1
    for p in range(solids.shape.size):
        t = hit_solid(solids, p, ox, oy, oz, dx, dy, dz)
        if t < best:
            best, index = t, p
    return best, index


@_jit
def hit_solid(
    solids: Solids, p: int, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float
) -> float:
    """Return t at which the world ray o + t d hits primitive ``p``, inf if it misses."""
    x, y, z = ox - solids.center[p, 0], oy - solids.center[p, 1], oz - solids.center[p, 2]
    if solids.shape[p] != _ROOM:
        # the line's nearest approach to the centre against the bounding ball
        along = (x * dx + y * dy + z * dz) / (dx * dx + dy * dy + dz * dz)
        qx, qy, qz = x - along * dx, y - along * dy, z - along * dz
        if qx * qx + qy * qy + qz * qz > solids.radius[p] ** 2:
            return np.inf
    m = solids.to_unit
    return hit(
        solids.shape[p],
        m[p, 0, 0] * x + m[p, 0, 1] * y + m[p, 0, 2] * z,
        m[p, 1, 0] * x + m[p, 1, 1] * y + m[p, 1, 2] * z,
        m[p, 2, 0] * x + m[p, 2, 1] * y + m[p, 2, 2] * z,
        m[p, 0, 0] * dx + m[p, 0, 1] * dy + m[p, 0, 2] * dz,
        m[p, 1, 0] * dx + m[p, 1, 1] * dy + m[p, 1, 2] * dz,
        m[p, 2, 0] * dx + m[p, 2, 1] * dy + m[p, 2, 2] * dz,
    )
