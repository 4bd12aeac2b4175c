"""HHA as ONNX operators: what ``preprocess.hha_image`` computes, for engines to run on a GPU.

Every function takes the operator builder ``op`` and values of the graph and appends to it; names,
steps and constants are those of ``hha`` and ``hha_kernels``. All of it is float32, and none of it
hangs on the precision of matrix units: what is convolved are whole numbers that even TF32 and fp16
hold exactly.

On 164 frames of NYUDv2 and 30 of a Kinect (640x480, HHA at 256x192) it is never more than one grey
level off, in 0.2 % of the angles and 0.1 % of the heights, 0.9 % in the worst frame; gravity is
within 0.01°.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rgbd_fusion_seg import depth as depths
from rgbd_fusion_seg import hha, hha_kernels
from rgbd_fusion_seg.engine_building.graph_building import (
    OpBuilder,
    Size,
    Value,
    as_float,
    constant,
)

COLLINEAR = 1e-5
"""Below this share of ``cuu * cvv`` a determinant is round-off: the pixels lie on one line. The
least that pixels off a line reach, in 21x21 windows, is 1e-3."""
COARSE, FINE = 2.0**7, 2.0**11
"""Inverse depth in 1/m is counted in steps of 1 / COARSE, its remainder in steps of 1 / FINE of
those: two whole numbers of at most 11 bits from 6 cm on, and errors below 2 ppm of 1/m."""
OUT_OF_REACH = 1e9
"""Distance of what is no reading; larger than any in an image."""
FIRST_OF_EQUALS = 1e-5
"""Added to distances pixel by pixel, so that the first of equally near ones is taken."""
GRAVITY_MATRIX = (0, 1, 2, 1, 3, 4, 2, 4, 5)
"""Where the entries of a symmetric 3x3 matrix lie among xx, xy, xz, yy, yz, zz."""


class Camera(NamedTuple):
    """Rays of the pixels: scalars fx, fy, and (u - cx), (v - cy) as (1,1,1,w) and (1,1,h,1)."""

    fx: Value
    fy: Value
    u: Value
    v: Value

    def grid(self, op: OpBuilder, first: int, step: int) -> Camera:
        """Return the camera of every `step`-th row and column from the `first` on."""
        rows = constant(op, np.arange(first, int(self.v.shape[2]), step))
        columns = constant(op, np.arange(first, int(self.u.shape[3]), step))
        return self._replace(
            u=op.Gather(self.u, columns, axis=3), v=op.Gather(self.v, rows, axis=2)
        )


def hha_image(
    op: OpBuilder,
    depth: Value,
    intrinsics: Value,
    gravity: Value,
    camera_height: Value,
    frame: Size,
    size: Size,
) -> Value:
    """Append HHA at the network's size.

    Args:
        op: of the graph.
        depth: float32 (1, H, W) metres; 0 and non-finite = no reading.
        intrinsics: float32 (4,), fx, fy, cx, cy of the frame.
        gravity: float32 (3,), unit, or all 0 to estimate it.
        camera_height: float32 (1,), metres above the floor, or 0 to guess it.
        frame: size of `depth`.
        size: of the result.

    Returns:
        float32 (1, 3, h, w): disparity, height, angle, whole numbers 0 .. 255.
    """
    readings = _resized(op, depth, frame, size)
    z = _filled(op, readings, size)
    camera = _camera(op, intrinsics, frame, size)
    counted = as_float(op, op.Greater(readings, 0.0))
    moments = _stacked(op, counted, z)
    estimated = _gravity(op, moments, camera, size)
    down = op.Where(op.Greater(op.ReduceSum(op.Abs(gravity)), 0.0), gravity, estimated)
    channels = [
        _disparity(op, z),
        _height(op, z, counted, camera, down, camera_height),
        _angle(op, z, moments, camera, down),
    ]
    return op.Floor(op.Clip(op.Concat(*channels, axis=1), 0.0, 255.0) + 0.5)


def _resized(op: OpBuilder, depth: Value, frame: Size, size: Size) -> Value:
    """``depth.resize_depth``, clamped: metres (1, 1, h, w), 0 = no reading."""
    (rows, columns), (height, width) = frame, size
    centre_rows, centre_columns = (_centres(*sides) for sides in zip(frame, size, strict=True))
    near, far = depths.NEAREST_M, depths.FARTHEST_M
    depth = op.Reshape(depth, [rows, columns])
    valid = op.And(op.Greater(depth, 0.0), op.Less(depth, math.inf))
    depth = op.Where(valid, op.Clip(depth, near, far), 0.0)
    picked = op.Gather(op.Gather(depth, constant(op, centre_rows)), constant(op, centre_columns),
                       axis=1)  # fmt: skip
    if (rows, columns) != size:
        (area_rows, far_v), (area_columns, far_u) = _areas(rows, height), _areas(columns, width)
        per_row, per_column = area_rows.shape[1], area_columns.shape[1]
        bias_v = FIRST_OF_EQUALS * per_column * np.arange(per_row)
        bias_u = FIRST_OF_EQUALS * np.arange(per_column)
        areas = op.Gather(depth, constant(op, area_rows.ravel()))
        areas = op.Gather(areas, constant(op, area_columns.ravel()), axis=1)
        areas = op.Reshape(areas, [height, per_row, width, per_column])
        distance = op.Add(
            constant(op, (far_v + bias_v).astype(np.float32)[:, :, None, None]),
            constant(op, (far_u + bias_u).astype(np.float32)[None, None]),
        )
        distance = op.Where(op.Greater(areas, 0.0), distance, OUT_OF_REACH)
        nearest = op.ReduceMin(distance, [1, 3], keepdims=1)
        areas = op.Where(op.Greater(distance, nearest), 0.0, areas)
        areas = op.ReduceMax(areas, [1, 3], keepdims=0)
        picked = op.Where(op.Greater(picked, 0.0), picked, areas)
    return op.Reshape(picked, [1, 1, height, width])


def _centres(size: int, new_size: int) -> np.ndarray:
    return (2 * np.arange(new_size) + 1) * size // (2 * new_size)


def _areas(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels each new one covers, (new_size, n), and their squared distances.

    The last one is repeated where there are fewer than elsewhere.
    """
    j = np.arange(new_size)[:, None]
    first, last = j * size // new_size, ((j + 1) * size - 1) // new_size
    pixels = np.minimum(first + np.arange((last - first).max() + 1), last)
    return pixels, (pixels + 0.5 - (j + 0.5) * size / new_size) ** 2


def _filled(op: OpBuilder, readings: Value, size: Size) -> Value:
    """``depth.fill_holes``: averages at half the size down to one pixel, and back."""
    levels, sizes = [readings], [size]
    while sizes[-1] != (1, 1):
        kernel = [min(2, side) for side in sizes[-1]]
        pool = {'kernel_shape': kernel, 'strides': kernel, 'ceil_mode': 1}
        total = op.AveragePool(levels[-1], **pool)
        count = op.AveragePool(as_float(op, op.Greater(levels[-1], 0.0)), **pool)
        levels.append(op.Div(total, op.Clip(count, 0.25, 1.0)))
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    filled = levels.pop()
    for finer, (height, width) in zip(levels[::-1], sizes[-2::-1], strict=True):
        scales = [1.0, 1.0, min(2.0, height), min(2.0, width)]
        filled = op.Resize(filled, None, constant(op, np.float32(scales)), mode='linear')
        filled = op.Slice(filled, [0, 0], [height, width], [2, 3])
        filled = op.Where(op.Greater(finer, 0.0), finer, filled)
    return filled


def _camera(op: OpBuilder, intrinsics: Value, frame: Size, size: Size) -> Camera:
    """``Intrinsics.resized``, with the rays of the public code (``hha.FIRST_PIXEL``)."""
    sy, sx = size[0] / frame[0], size[1] / frame[1]
    corner = np.array([0.0, 0.0, 0.5, 0.5])
    offset = corner * [0, 0, sx, sy] - corner - [0, 0, hha.FIRST_PIXEL, hha.FIRST_PIXEL]
    scaled = op.Add(
        op.Mul(intrinsics, constant(op, np.float32([sx, sy, sx, sy]))),
        constant(op, offset.astype(np.float32)),
    )
    fx, fy, cx, cy = (op.Reshape(op.Gather(scaled, [k]), [1, 1, 1, 1]) for k in range(4))
    u = constant(op, np.arange(size[1], dtype=np.float32)[None, None, None])
    v = constant(op, np.arange(size[0], dtype=np.float32)[None, None, :, None])
    return Camera(fx, fy, op.Sub(u, cx), op.Sub(v, cy))


def _stacked(op: OpBuilder, counted: Value, z: Value) -> Value:
    """Return what windows are summed over, (1, 3, h, w): counts, inverse depth in two parts."""
    inverse = op.Div(counted, op.Max(z, depths.NEAREST_M)) * COARSE
    coarse = op.Round(inverse)
    fine = op.Round((inverse - coarse) * FINE)
    return op.Concat(counted, coarse, fine, axis=1)


def _offsets(radius: int) -> np.ndarray:
    """Return 1, d and d^2 of the offsets in a window, (3, 2 radius + 1)."""
    d = np.arange(-radius, radius + 1)
    return np.stack([d**0, d, d**2]).astype(np.float32)


POWERS = ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (0, 2))
"""Of du and dv in the moments n, su, suu, sv, suv, svv; the first of 1/Z are w, wu and wv."""
INVERSE_POWERS = ((0, 0), (1, 0), (0, 1))
UNITS = (1.0 / COARSE, 1.0 / (COARSE * FINE))
"""Of the two parts of the inverse depth; powers of two, so that weights stay exact."""


def _small_window_moments(op: OpBuilder, stacked: Value, radius: int) -> Value:
    """Return the 9 moments about every pixel, (1, 9, h, w), in one convolution."""
    d = _offsets(radius)
    kernel = np.zeros((9, 3, d.shape[1], d.shape[1]), dtype=np.float32)
    for k, (pu, pv) in enumerate(POWERS):
        kernel[k, 0] = np.outer(d[pv], d[pu])
    for k, (pu, pv) in enumerate(INVERSE_POWERS, start=len(POWERS)):
        kernel[k, 1:] = np.multiply.outer(UNITS, np.outer(d[pv], d[pu]))
    return op.Conv(stacked, constant(op, kernel), pads=[radius] * 4)


def _large_window_moments(
    op: OpBuilder, stacked: Value, radius: int, first: int, step: int
) -> Value:
    """Return the 9 moments on the grid of every `step`-th pixel, summed along columns, then rows.

    Only directions averaged over thousands of windows come from these, so the sums in between may
    be rounded.
    """
    d = _offsets(radius)
    vertical = np.zeros((5, 3, d.shape[1], 1), dtype=np.float32)
    vertical[:3, 0, :, 0] = d
    vertical[3:, 1:, :, 0] = d[:2, None] * np.float32(UNITS)[None, :, None]
    horizontal = np.zeros((9, 5, 1, d.shape[1]), dtype=np.float32)
    for k, (pu, pv) in enumerate(POWERS):
        horizontal[k, pv, 0] = d[pu]
    for k, (pu, pv) in enumerate(INVERSE_POWERS, start=len(POWERS)):
        horizontal[k, 3 + pv, 0] = d[pu]
    before = radius - first
    sums = op.Conv(stacked, constant(op, vertical), pads=[before, 0, radius, 0], strides=[step, 1])
    return op.Conv(sums, constant(op, horizontal), pads=[0, before, 0, radius], strides=[1, step])


class Planes(NamedTuple):
    """Normals nx, ny, nz of any length, inverse depth c at the pixel, and where there are any."""

    nx: Value
    ny: Value
    nz: Value
    c: Value
    solvable: Value


def _planes(op: OpBuilder, moments: Value, camera: Camera) -> Planes:
    """Fit 1/Z = a du + b dv + c in every window, as ``hha_kernels.staggered_normals``."""
    n, su, suu, sv, suv, svv, w, wu, wv = op.Split(moments, num_outputs=9, axis=1, _outputs=9)
    cuu, cuv, cvv = n * suu - su * su, n * suv - su * sv, n * svv - sv * sv
    au, av = n * wu - su * w, n * wv - sv * w
    product = cuu * cvv
    determinant = product - cuv * cuv
    solvable = op.Greater(determinant, product * COLLINEAR)
    scale = op.Div(1.0, op.Where(solvable, determinant, 1.0))
    a, b = (cvv * au - cuv * av) * scale, (cuu * av - cuv * au) * scale
    c = (w - a * su - b * sv) / op.Max(n, 1.0)
    return Planes(a * camera.fx, b * camera.fy, c - a * camera.u - b * camera.v, c, solvable)


def _gravity(op: OpBuilder, stacked: Value, camera: Camera, size: Size) -> Value:
    """``hha.estimate_gravity``: float32 (3,), unit."""
    height, width = size
    step = max(1, round(math.sqrt(height * width / (2 * hha.GRAVITY_NORMALS))))
    first = step // 2
    moments = _large_window_moments(op, stacked, hha.GRAVITY_RADIUS_PX, first, step)
    planes = _planes(op, moments, camera.grid(op, first, step))
    rows, columns = len(range(first, height, step)), len(range(first, width, step))
    staggered = (np.add.outer(np.arange(rows), np.arange(columns)) + 1) % 2
    votes = as_float(op, planes.solvable) * constant(op, staggered.astype(np.float32)[None, None])
    normals = op.Concat(planes.nx, planes.ny, planes.nz, axis=1)
    squared = op.ReduceSum(normals * normals, [1], keepdims=1)
    normals = normals * (votes / op.Sqrt(op.Max(squared, 1e-30)))
    nx, ny, nz = op.Split(normals, num_outputs=3, axis=1, _outputs=3)
    products = op.Concat(nx * nx, nx * ny, nx * nz, ny * ny, ny * nz, nz * nz, axis=1)
    thresholds = np.radians(np.repeat(hha.GRAVITY_THRESHOLDS_DEG, hha.GRAVITY_ITERATIONS))
    y = constant(op, np.float32([0.0, 1.0, 0.0]))
    for threshold in thresholds:
        y = _followed(op, normals, products, votes, float(threshold), y)
    return y


def _followed(
    op: OpBuilder, normals: Value, products: Value, votes: Value, threshold: float, y: Value
) -> Value:
    """One iteration of ``hha_kernels.follow_gravity``; `threshold` in radians."""
    along = op.ReduceSum(normals * op.Reshape(y, [1, 3, 1, 1]), [1], keepdims=1)
    cosine = op.Abs(along)
    wall = as_float(op, op.Less(cosine, math.sin(threshold)))
    floor = as_float(op, op.Greater(cosine, math.cos(threshold)))
    # What is no normal has no products, so that its cosine of 0 does not count as a wall's.
    scatter = op.ReduceSum(products * (wall - floor), [0, 2, 3], keepdims=0)
    voters = op.ReduceSum(votes * (wall + floor), keepdims=0)
    return _lowest_axis(op, scatter / op.Max(voters, 1.0), y)


def _lowest_axis(op: OpBuilder, s: Value, y: Value) -> Value:
    """Return `y` projected onto the eigenvectors of the lowest eigenvalue, unit.

    Eigenvalues by the trigonometric solution of the cubic; then (high - S) y is rid of the highest
    eigenvector and (middle - S) of the middle one, unless that is as good as the lowest.

    Args:
        op: of the graph.
        s: (6,), the symmetric matrix.
        y: (3,), unit.
    """
    diagonal, twice = np.float32([1, 0, 0, 1, 0, 1]), np.float32([1, 2, 2, 1, 2, 1])
    trace = op.ReduceSum(s * constant(op, diagonal))
    k = s - trace * constant(op, diagonal / 3)
    p = op.Sqrt(op.ReduceSum(k * k * constant(op, twice / 6)))
    p = op.Max(p, 1e-10)
    terms = [op.Gather(k, list(i)) for i in ((0, 1, 0, 3, 5), (3, 4, 4, 2, 1), (5, 2, 4, 2, 1))]
    signs = constant(op, np.float32([1, 2, -1, -1, -1]))
    determinant = op.ReduceSum(terms[0] * terms[1] * terms[2] * signs)
    third = _acos(op, op.Clip(determinant / (p * p * p * 2.0), -1.0, 1.0)) * (1 / 3)
    high, low = p * op.Cos(third) * 2.0, p * op.Cos(third + 2 * math.pi / 3) * 2.0
    middle = op.Neg(high + low)
    matrix = op.Reshape(op.Gather(k, list(GRAVITY_MATRIX)), [3, 3])
    off_high = high * y - op.ReduceSum(matrix * y, [1], keepdims=0)
    off_both = middle * off_high - op.ReduceSum(matrix * off_high, [1], keepdims=0)
    gap = hha.MIN_EIGENVALUE_GAP
    axis = op.Where(op.Greater(middle - low, gap), off_both, off_high)
    length = op.Sqrt(op.ReduceSum(axis * axis))
    found = op.And(op.Greater(high - low, gap), op.Greater(length, 1e-6))
    return op.Where(found, axis / op.Max(length, 1e-6), y)


def _disparity(op: OpBuilder, z: Value) -> Value:
    return op.Div(hha.DISPARITY_SCALE, op.Max(z * 100.0, hha.MIN_DEPTH_CM))


def _height(
    op: OpBuilder, z: Value, counted: Value, camera: Camera, down: Value, camera_height: Value
) -> Value:
    level = op.Greater(op.Gather(down, [1]), math.cos(math.radians(hha.LEVEL_ANGLE_DEG)))
    down = op.Where(level, constant(op, np.float32([0.0, 1.0, 0.0])), down)
    x, y, forward = _components(op, down)
    height = z * (x * camera.u / camera.fx + (y * camera.v / camera.fy + forward)) * -100.0
    lowest = _lowest(op, height * counted, counted)
    above = op.Greater(lowest, hha.FLOOR_GUESS_ABOVE_CM)
    guess = op.Where(above, hha.FLOOR_GUESS_CM, lowest)
    return height - op.Where(op.Greater(camera_height, 0.0), camera_height * -100.0, guess)


def _lowest(op: OpBuilder, height: Value, counted: Value) -> Value:
    """Return the lowest of the readings' heights, outliers apart; the other heights are 0."""
    few = op.ReduceSum(counted) * hha.OUTLIER_SHARE

    def are_few(limit: Value) -> Value:
        return op.Less(op.ReduceSum(as_float(op, op.Less(height, limit))), few)

    lowest = op.ReduceMin(height)
    gap = op.Min(lowest + hha.OUTLIER_GAP_CM, 0.0)
    low, high = gap, constant(op, np.float32(0.0))
    for _ in range(hha.OUTLIER_STEPS):
        middle = (low + high) * 0.5
        below = are_few(middle)
        low, high = op.Where(below, middle, low), op.Where(below, high, middle)
    return op.Where(are_few(gap), high, lowest)


def _angle(op: OpBuilder, z: Value, stacked: Value, camera: Camera, down: Value) -> Value:
    moments = _small_window_moments(op, stacked, hha.ANGLE_RADIUS_PX)
    planes = _planes(op, moments, camera)
    x, y, forward = _components(op, down)
    dot = planes.nx * x + planes.ny * y + planes.nz * forward
    seen = op.And(op.Greater(z, 0.0), op.Greater(op.Abs(planes.c), 0.0))
    facing = op.Where(seen, planes.c, planes.nz)
    dot = op.Where(op.Less(facing, 0.0), op.Neg(dot), dot)
    squared = planes.nx * planes.nx + planes.ny * planes.ny + planes.nz * planes.nz
    cosine = op.Clip(dot / op.Sqrt(op.Max(squared, 1e-30)), -1.0, 1.0)
    degrees = _acos(op, cosine) * (180 / math.pi)
    return op.Where(planes.solvable, degrees, hha.NO_NORMAL_DEG) + hha.ANGLE_OFFSET


def _acos(op: OpBuilder, cosine: Value) -> Value:
    """Return the arc cosine as the kernels compute it; ONNX Runtime has no Acos for GPUs."""
    x = op.Abs(cosine)
    polynomial, *coefficients = (float(c) for c in reversed(hha_kernels.ACOS))
    for coefficient in coefficients:
        polynomial = polynomial * x + coefficient
    angle = op.Sqrt(1.0 - x) * polynomial
    return op.Where(op.Less(cosine, 0.0), math.pi - angle, angle)


def _components(op: OpBuilder, vector: Value) -> Sequence[Any]:
    return [op.Reshape(op.Gather(vector, [k]), [1, 1, 1, 1]) for k in range(3)]
