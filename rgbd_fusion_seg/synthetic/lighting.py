"""Light that is worked out once per room: soft shadows and ambient occlusion on every face.

The scene does not move, so irradiance is sampled at the nodes of a grid on each of a
primitive's six faces and interpolated for the pixels. Direct light is Lambert's cosine over the
squared distance, sampled over the lamp's area; what the walls throw back is taken as even all
over the room, and weighed by the share of a hemisphere that is open within AMBIENT_RANGE_M.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rgbd_fusion_seg.jit import jit
from rgbd_fusion_seg.synthetic.primitives import Shape
from rgbd_fusion_seg.synthetic.raycast import Solids, hit_solid

_CYLINDER, _ELLIPSOID, _ROOM = int(Shape.CYLINDER), int(Shape.ELLIPSOID), int(Shape.ROOM)
AMBIENT_RANGE_M = 1.2
NODE_SPACING_M = {'room': 0.09, 'furniture': 0.14}
_INSET_M = 0.008  # nodes stay clear of edges, where two faces would shadow each other by round-off
_BOUNCE = 0.6  # mean reflectance of a room over one minus it, less what windows let out
_LIFT_M = 0.002  # shadow rays start this far above the surface

_jit = jit(fastmath={'contract', 'reassoc'})


@dataclass(frozen=True, slots=True)
class Light:
    """A lamp or window.

    Args:
        position: centre in metres.
        right, up: half extents of its area as vectors in metres.
        normal: where a flat lamp faces; zeros for one that shines everywhere.
        color: linear RGB intensity, as irradiance at 1 m.
    """

    position: tuple[float, float, float]
    right: tuple[float, float, float]
    up: tuple[float, float, float]
    normal: tuple[float, float, float]
    color: tuple[float, float, float]


class Lightmap(NamedTuple):
    """Irradiance on faces.

    Args:
        first: int64 (N, 6), where a face's nodes begin.
        size: int64 (N, 6, 2), nodes along the face's two axes.
        irradiance: float32 (T, 3), linear RGB.
    """

    first: np.ndarray
    size: np.ndarray
    irradiance: np.ndarray


def bake(solids: Solids, lights: list[Light], ambient: tuple[float, float, float]) -> Lightmap:
    """Work out the irradiance on all faces; takes a few tenths of a second."""
    size = np.empty((len(solids.shape), 6, 2), np.int64)
    room = solids.shape == _ROOM
    spacing = np.where(room, NODE_SPACING_M['room'], NODE_SPACING_M['furniture'])
    for axis in range(3):
        u, v = (1, 2) if axis == 0 else (0, 2) if axis == 1 else (0, 1)
        for side, k in ((0, u), (1, v)):
            nodes = np.ceil(2 * solids.half[:, k] / spacing).astype(np.int64) + 1
            size[:, 2 * axis : 2 * axis + 2, side] = np.clip(nodes, 2, 96)[:, None]
    counts = size.prod(axis=2)
    first = (np.cumsum(counts) - counts.ravel()).reshape(-1, 6)
    lamps = np.array([(s.position, s.right, s.up, s.normal, s.color) for s in lights])
    direct = np.zeros((int(counts.sum()), 3), np.float32)
    openness = np.zeros(len(direct), np.float32)
    _bake(solids, lamps.reshape(-1, 5, 3), _hemisphere(16), first, size, direct, openness)
    shell = direct[np.repeat(room, counts.sum(axis=1))]
    bounced = _BOUNCE * (shell.mean(axis=0) if len(shell) else 0.0)
    irradiance = direct + openness[:, None] * (np.array(ambient) + bounced)
    return Lightmap(first, size, irradiance.astype(np.float32))


def _hemisphere(count: int) -> np.ndarray:
    """float64 (count, 3) cosine-distributed directions about z (Fibonacci spiral)."""
    i = np.arange(count) + 0.5
    radius, angle = np.sqrt(i / count), i * np.pi * (3 - np.sqrt(5))
    return np.stack(
        [radius * np.cos(angle), radius * np.sin(angle), np.sqrt(1 - i / count)], axis=1
    )


@_jit
def face_axes(face: int) -> tuple[int, int, int]:
    """Return the axis a face is square to, and the axes of its u and v."""
    axis = face >> 1
    return axis, 1 if axis == 0 else 0, 1 if axis == 2 else 2


@_jit
def _node(solids: Solids, p: int, face: int, s: float, t: float, out: np.ndarray) -> None:
    """Write the world position and unit normal, (2, 3), of the face's point s, t in [-1, 1]."""
    axis, iu, iv = face_axes(face)
    shape, h = solids.shape[p], solids.half[p]
    q, n = out[0], out[1]
    q[axis] = 1.0 if face & 1 else -1.0
    q[iu], q[iv] = s, t
    n[:] = 0.0
    n[axis] = -q[axis] if shape == _ROOM else q[axis]
    if shape == _ELLIPSOID or (shape == _CYLINDER and axis != 2):
        depth = q[2] * q[2] if shape == _ELLIPSOID else 0.0
        reach = np.sqrt(q[0] * q[0] + q[1] * q[1] + depth)
        q[0], q[1], n[2] = q[0] / reach, q[1] / reach, 0.0
        if shape == _ELLIPSOID:
            q[2] /= reach
            n[2] = q[2] / h[2]
        n[0], n[1] = q[0] / h[0], q[1] / h[1]
    elif shape == _CYLINDER:
        reach = max(1.0, np.sqrt(q[0] * q[0] + q[1] * q[1]))
        q[0], q[1] = q[0] / reach, q[1] / reach
    x, y, z = q[0] * h[0] * h[0], q[1] * h[1] * h[1], q[2] * h[2] * h[2]
    nx, ny, nz = n[0] * h[0], n[1] * h[1], n[2] * h[2]
    m = solids.to_unit
    for k in range(3):
        # a row of to_unit is the primitive's axis over its half size
        q[k] = solids.center[p, k] + m[p, 0, k] * x + m[p, 1, k] * y + m[p, 2, k] * z
        n[k] = m[p, 0, k] * nx + m[p, 1, k] * ny + m[p, 2, k] * nz
    length = np.sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2])
    for k in range(3):
        n[k] /= length
        q[k] += _LIFT_M * n[k]


@_jit
def _between(
    solids: Solids,
    node: np.ndarray,
    dx: float,
    dy: float,
    dz: float,
    extent: float,
    out: np.ndarray,
) -> int:
    """List opaque primitives within ``extent`` of the segment from a node along d; count them.

    What lies wholly behind the node's surface is left out.
    """
    (ox, oy, oz), (nx, ny, nz) = node
    count, square = 0, max(1e-12, dx * dx + dy * dy + dz * dz)
    for p in range(solids.shape.size):
        if not solids.opaque[p]:
            continue
        x, y, z = solids.center[p, 0] - ox, solids.center[p, 1] - oy, solids.center[p, 2] - oz
        r = solids.radius[p]
        if x * nx + y * ny + z * nz < -r:
            continue
        t = min(1.0, max(0.0, (x * dx + y * dy + z * dz) / square))
        x, y, z = x - t * dx, y - t * dy, z - t * dz
        if x * x + y * y + z * z < (r + extent) ** 2:
            out[count] = p
            count += 1
    return count


@_jit
def _direct(solids: Solids, lamp: np.ndarray, node: np.ndarray, nearby: np.ndarray) -> float:
    """Irradiance from one lamp of unit intensity, sampled at six points of its area."""
    (ox, oy, oz), (nx, ny, nz) = node
    extent, flat = 0.0, 0.0
    for k in range(3):
        extent += abs(lamp[1, k]) + abs(lamp[2, k])
        flat += abs(lamp[3, k])
    cx, cy, cz = lamp[0, 0] - ox, lamp[0, 1] - oy, lamp[0, 2] - oz
    if cx * nx + cy * ny + cz * nz < -extent:
        return 0.0
    count, total = _between(solids, node, cx, cy, cz, extent, nearby), 0.0
    for sample in range(6):
        a, b = -2.0 / 3.0 + (sample % 3) * 2.0 / 3.0, -0.5 + (sample // 3)
        dx = cx + a * lamp[1, 0] + b * lamp[2, 0]
        dy = cy + a * lamp[1, 1] + b * lamp[2, 1]
        dz = cz + a * lamp[1, 2] + b * lamp[2, 2]
        square = dx * dx + dy * dy + dz * dz
        cosine = (dx * nx + dy * ny + dz * nz) / np.sqrt(square)
        if flat > 0.0:
            facing = -(dx * lamp[3, 0] + dy * lamp[3, 1] + dz * lamp[3, 2])
            cosine *= max(0.0, facing / np.sqrt(square))
        if cosine <= 0.0:
            continue
        blocked = False
        for i in range(count):
            blocked = hit_solid(solids, nearby[i], ox, oy, oz, dx, dy, dz) < 1.0
            if blocked:
                break
        if not blocked:
            total += cosine / (square + 0.2)
    return total / 6.0


@_jit
def _openness(
    solids: Solids, directions: np.ndarray, node: np.ndarray, nearby: np.ndarray
) -> float:
    """Share of the hemisphere that is open, near obstacles counting more than far ones."""
    (ox, oy, oz), (nx, ny, nz) = node
    count = _between(solids, node, 0.0, 0.0, 0.0, AMBIENT_RANGE_M, nearby)
    for p in range(solids.shape.size):
        if solids.shape[p] == _ROOM:
            nearby[count] = p
            count += 1
    # two tangents without a singular direction (Duff et al., JCGT 2017)
    sign = 1.0 if nz >= 0.0 else -1.0
    a = -1.0 / (sign + nz)
    b = nx * ny * a
    total = 0.0
    for i in range(len(directions)):
        u, v, w = directions[i]
        dx = AMBIENT_RANGE_M * (u * (1.0 + sign * nx * nx * a) + v * b + w * nx)
        dy = AMBIENT_RANGE_M * (u * sign * b + v * (sign + ny * ny * a) + w * ny)
        dz = AMBIENT_RANGE_M * (-u * sign * nx - v * ny + w * nz)
        nearest = 1.0
        for n in range(count):
            nearest = min(nearest, hit_solid(solids, nearby[n], ox, oy, oz, dx, dy, dz))
        total += 0.35 + 0.65 * nearest if nearest < 1.0 else 1.0
    return total / len(directions)


@_jit
def _bake(
    solids: Solids,
    lamps: np.ndarray,
    directions: np.ndarray,
    first: np.ndarray,
    size: np.ndarray,
    direct: np.ndarray,
    openness: np.ndarray,
) -> None:
    nearby, node = np.empty(solids.shape.size, np.int64), np.empty((2, 3))
    for p in range(solids.shape.size):
        for face in range(6):
            _, iu, iv = face_axes(face)
            nu, nv = size[p, face]
            su = 1.0 - min(0.2, _INSET_M / solids.half[p, iu])
            sv = 1.0 - min(0.2, _INSET_M / solids.half[p, iv])
            for j in range(nv):
                for i in range(nu):
                    s, t = (2.0 * i / (nu - 1) - 1.0) * su, (2.0 * j / (nv - 1) - 1.0) * sv
                    _node(solids, p, face, s, t, node)
                    row = first[p, face] + j * nu + i
                    openness[row] = _openness(solids, directions, node, nearby)
                    for n in range(len(lamps)):
                        light = _direct(solids, lamps[n], node, nearby)
                        for k in range(3):
                            direct[row, k] += lamps[n, 4, k] * light


@_jit
def irradiance_at(
    lightmap: Lightmap, p: int, face: int, s: float, t: float
) -> tuple[float, float, float]:
    """Return the linear RGB irradiance at s, t in [-1, 1] of a face (bilinear)."""
    nu, nv = lightmap.size[p, face, 0], lightmap.size[p, face, 1]
    x = min(max((s + 1.0) * 0.5, 0.0), 1.0) * (nu - 1)
    y = min(max((t + 1.0) * 0.5, 0.0), 1.0) * (nv - 1)
    i, j = min(int(x), nu - 2), min(int(y), nv - 2)
    x, y = x - i, y - j
    a = lightmap.first[p, face] + j * nu + i
    b = a + nu
    wa, wb, wc, wd = (1.0 - x) * (1.0 - y), x * (1.0 - y), (1.0 - x) * y, x * y
    e = lightmap.irradiance
    return (
        wa * e[a, 0] + wb * e[a + 1, 0] + wc * e[b, 0] + wd * e[b + 1, 0],
        wa * e[a, 1] + wb * e[a + 1, 1] + wc * e[b, 1] + wd * e[b + 1, 1],
        wa * e[a, 2] + wb * e[a + 1, 2] + wc * e[b, 2] + wd * e[b + 1, 2],
    )
