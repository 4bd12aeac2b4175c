"""The numba kernels behind HHA; ``kernels`` has the others and says what holds for all.

``PAD`` rows and columns of zeros surround the padded images, so that no window needs a border
case, and ``du``, ``dv`` are pixel offsets from the centre of a window. Loops write one array each
where they can: with more than a few arrays LLVM gives up proving that they do not overlap, and
with it vectorising.
"""

from __future__ import annotations

import numpy as np

from rgbd_fusion_seg import depth as depths
from rgbd_fusion_seg.jit import jit

PAD = 10
"""Zero rows and columns around a padded image: half of the largest window (21x21)."""

F32 = np.float32
I32 = np.int32
# Numba promotes float32 with a Python number to float64, hence typed constants.
ZERO, HALF, ONE, TWO, THREE = F32(0.0), F32(0.5), F32(1.0), F32(2.0), F32(3.0)
FOUR, NINE = F32(4.0), F32(9.0)
NEAREST_M, FARTHEST_M = F32(depths.NEAREST_M), F32(depths.FARTHEST_M)
MAX_GREY = F32(255.0)
CM_PER_M = F32(100.0)
DEGREES = F32(180.0 / np.pi)
STRAIGHT_ANGLE = F32(180.0)
NO_NORMAL = F32(2.0)
"""Stands for the cosine of a pixel that has no normal."""
ACOS = A0, A1, A2, A3, A4, A5, A6, A7 = (
    F32(1.5707963050), F32(-0.2145988016), F32(0.0889789874), F32(-0.0501743046),
    F32(0.0308918810), F32(-0.0170881256), F32(0.0066700901), F32(-0.0012624911),
)  # fmt: skip
"""acos(x) = sqrt(1 - x) * (A0 + A1 x + A2 x^2 …) for x >= 0, error below 2e-8 (Abramowitz & Stegun
4.4.46)."""
JACOBI_SWEEPS = 8
"""Enough for a 3x3 matrix in double precision: the method converges quadratically."""


@jit
def clean_depth(depth, missing, z, inverse, counted):
    """Split a depth image into what the other kernels read.

    No fast-math here: this is where NaN and infinity are sorted out. Readings are clamped to
    NEAREST_M .. FARTHEST_M, so that no sum overflows further on.

    Args:
        depth: float32 (H, W) metres, anything not finite and positive = no reading.
        missing: bool (H, W), True = not used for normals, or (0, 0) for none beyond `depth`.
        z: out, float32 (H, W) metres, 0 = no reading.
        inverse: out, float32 (H + 2 PAD, W + 2 PAD), 1 / depth where counted, else 0.
        counted: out, float32 of that size, 1 where a pixel takes part in normals, else 0.
    """
    height, width = depth.shape
    infinity = F32(np.inf)
    inverse[:PAD], counted[:PAD] = ZERO, ZERO
    inverse[height + PAD :], counted[height + PAD :] = ZERO, ZERO
    for v in range(height):
        from_row, z_row = depth[v], z[v]
        inverse_row, counted_row = inverse[v + PAD], counted[v + PAD]
        inverse_row[:PAD], counted_row[:PAD] = ZERO, ZERO
        inverse_row[width + PAD :], counted_row[width + PAD :] = ZERO, ZERO
        for u in range(width):
            d = from_row[u]
            valid = (d > ZERO) & (d < infinity)
            d = d if d > NEAREST_M else NEAREST_M
            d = d if d < FARTHEST_M else FARTHEST_M
            d = d if valid else infinity
            z_row[u] = d if valid else ZERO
            inverse_row[u + PAD] = ONE / d
            counted_row[u + PAD] = ONE if valid else ZERO
        if missing.size:
            missing_row = missing[v]
            for u in range(width):
                keep = ZERO if missing_row[u] else ONE
                inverse_row[u + PAD] *= keep
                counted_row[u + PAD] *= keep


@jit(fastmath=True)
def _slide_counts(old, new, radius, m0, m1, m2):
    """Move the column sums of `counted`, weighted by 1, dv and dv^2, one row down.

    Args:
        old, new: the row that leaves and the row that enters, 2 radius + 1 below it.
        radius: float32, half of the window.
        m0, m1, m2: float32, updated; whole numbers, so nothing is ever rounded.
    """
    outside = radius + ONE
    for p in range(old.size):
        change = radius * radius * new[p] - outside * outside * old[p]
        m2[p] += m0[p] - TWO * m1[p] + change
    for p in range(old.size):
        before, leaving, entering = m0[p], old[p], new[p]
        m1[p] += radius * entering + outside * leaving - before
        m0[p] = before + (entering - leaving)


@jit(fastmath=True)
def _slide_inverse(old, new, radius, w0, w1):
    """Move the column sums of `inverse`, weighted by 1 and dv, one row down.

    They are float64: in float32 the round-off of hundreds of rows would add up.
    """
    outside = radius + 1.0
    for p in range(old.size):
        before, leaving, entering = w0[p], np.float64(old[p]), np.float64(new[p])
        w1[p] += radius * entering + outside * leaving - before
        w0[p] = before + (entering - leaving)


@jit(fastmath=True)
def _accumulate_along_row(m0, m1, m2, w0, w1, sums):
    """Write running totals of the moments of columns 0 .. p to ``sums[p + 1]``.

    They are weighted by the column p itself; whoever takes a difference moves the origin to
    the centre of the window. In float64 that loses nothing: the counts are whole numbers.
    """
    n = su = suu = sv = suv = svv = w = wu = wv = 0.0
    for p in range(m0.size):
        column, count, rows = np.float64(p), np.float64(m0[p]), np.float64(m1[p])
        n += count
        su += column * count
        suu += column * column * count
        sv += rows
        suv += column * rows
        svv += np.float64(m2[p])
        w += w0[p]
        wu += column * w0[p]
        wv += w1[p]
        total = sums[p + 1]
        total[0], total[1], total[2] = n, su, suu
        total[3], total[4], total[5] = sv, suv, svv
        total[6], total[7], total[8] = w, wu, wv


@jit(fastmath=True)
def staggered_normals(inverse, counted, radius, step, fx, fy, cx, cy, normals):
    """Fit surface normals in (2 radius + 1)^2 windows around a staggered grid of pixels.

    A plane n . (X, Y, Z) = 1 is linear in the inverse depth, 1/Z = a du + b dv + c over pixel
    offsets, so the least squares need only moments of pixel positions (whole numbers, exact) and
    three moments of 1/Z, and collinear windows are those whose determinant is exactly 0.

    Args:
        inverse, counted: as from :func:`clean_depth`.
        radius: half the window, at most PAD.
        step: every `step`-th row is used, and in it every 2 `step`-th pixel, moved by `step` from
            one such row to the next.
        fx, fy, cx, cy: pinhole camera, pixels counted from 0.
        normals: out, float32 (3, N), unit, sign arbitrary, 0 for a collinear window; N is
            at least (H // step + 1) * (W // (2 step) + 1).
    """
    height, width = inverse.shape[0] - 2 * PAD, inverse.shape[1] - 2 * PAD
    columns = inverse.shape[1]
    m0, m1, m2 = np.zeros(columns, F32), np.zeros(columns, F32), np.zeros(columns, F32)
    w0, w1 = np.zeros(columns), np.zeros(columns)
    sums = np.zeros((columns + 1, 9))
    first = step // 2
    written = 0
    for v in range(-radius, height):
        # The window starts above the image, on zeros; row 0 stands for those still further up.
        old, new = max(v + PAD - radius - 1, 0), v + PAD + radius
        _slide_counts(counted[old], counted[new], F32(radius), m0, m1, m2)
        _slide_inverse(inverse[old], inverse[new], float(radius), w0, w1)
        if v < first or (v - first) % step:
            continue
        _accumulate_along_row(m0, m1, m2, w0, w1, sums)
        start = first + (v - first) // step % 2 * step
        for u in range(start, width, 2 * step):
            low, high, centre = sums[u + PAD - radius], sums[u + PAD + radius + 1], float(u + PAD)
            n, su, sv = high[0] - low[0], high[1] - low[1], high[3] - low[3]
            suu = high[2] - low[2] - centre * (2.0 * su - centre * n)
            su -= centre * n
            suv, svv = high[4] - low[4] - centre * sv, high[5] - low[5]
            w, wv = high[6] - low[6], high[8] - low[8]
            wu = high[7] - low[7] - centre * w
            cuu, cuv, cvv = n * suu - su * su, n * suv - su * sv, n * svv - sv * sv
            au, av = n * wu - su * w, n * wv - sv * w
            determinant = cuu * cvv - cuv * cuv
            # Everything times n * determinant: the length is set in the end.
            a, b = cvv * au - cuv * av, cuu * av - cuv * au
            c = determinant * w - a * su - b * sv
            nx, ny, nz = n * a * fx, n * b * fy, c - n * (a * (u - cx) + b * (v - cy))
            squared = nx * nx + ny * ny + nz * nz
            solvable = (determinant > 0.5) & (squared > 0.0)
            scale = 1.0 / np.sqrt(squared) if solvable else 0.0
            normals[0, written] = nx * scale
            normals[1, written] = ny * scale
            normals[2, written] = nz * scale
            written += 1


@jit(fastmath=True)
def _floor_wall_scatter(normals, y, floor_cosine, wall_sine, scatter):
    """Write the sum of n nT over wall normals minus floor normals; return how many they are."""
    x0, y0, z0 = F32(y[0]), F32(y[1]), F32(y[2])
    nx, ny, nz = normals[0], normals[1], normals[2]
    xx = xy = xz = yy = yz = zz = votes = ZERO
    for i in range(nx.size):
        cosine = abs(nx[i] * x0 + ny[i] * y0 + nz[i] * z0)
        wall = ONE if cosine < wall_sine else ZERO
        floor = ONE if cosine > floor_cosine else ZERO
        weight = wall - floor
        xx += weight * nx[i] * nx[i]
        xy += weight * nx[i] * ny[i]
        xz += weight * nx[i] * nz[i]
        yy += weight * ny[i] * ny[i]
        yz += weight * ny[i] * nz[i]
        zz += weight * nz[i] * nz[i]
        # The squared length, 1 or 0, leaves out what is no normal.
        votes += (wall + floor) * (nx[i] * nx[i] + ny[i] * ny[i] + nz[i] * nz[i])
    scatter[0, 0], scatter[1, 1], scatter[2, 2] = xx, yy, zz
    scatter[0, 1] = scatter[1, 0] = xy
    scatter[0, 2] = scatter[2, 0] = xz
    scatter[1, 2] = scatter[2, 1] = yz
    return float(votes)


@jit
def _diagonalise(a, vectors):
    """Turn a symmetric float64 (3, 3) matrix into its eigenvalues on the diagonal (Jacobi).

    numba's own ``eigh`` would need SciPy.
    """
    vectors[:] = 0.0
    for k in range(3):
        vectors[k, k] = 1.0
    for turn in range(3 * JACOBI_SWEEPS):
        p, q = turn % 3, (turn + 1) % 3
        if a[p, q] == 0.0:
            continue
        ratio = (a[q, q] - a[p, p]) / (2.0 * a[p, q])
        tangent = np.copysign(1.0, ratio) / (abs(ratio) + np.hypot(ratio, 1.0))
        cosine = 1.0 / np.hypot(tangent, 1.0)
        sine = tangent * cosine
        for k in range(3):
            x, y = a[k, p], a[k, q]
            a[k, p], a[k, q] = cosine * x - sine * y, sine * x + cosine * y
        for k in range(3):
            x, y = a[p, k], a[q, k]
            a[p, k], a[q, k] = cosine * x - sine * y, sine * x + cosine * y
            x, y = vectors[k, p], vectors[k, q]
            vectors[k, p], vectors[k, q] = cosine * x - sine * y, sine * x + cosine * y
        a[p, q] = a[q, p] = 0.0


@jit
def follow_gravity(normals, floor_cosines, wall_sines, min_gap, y):
    """Move `y` to the direction most orthogonal to walls and parallel to floor normals.

    Args:
        normals: float32 (3, N), unit or 0 = none.
        floor_cosines: float32 (K,), one for each iteration; a normal with |n . y| above it is
            one of a floor or ceiling.
        wall_sines: float32 (K,); a normal with |n . y| below it is one of a wall.
        min_gap: axes whose eigenvalues differ by less than this share of the normals that vote
            are taken as equally good, and `y` stays as it is among them.
        y: float64 (3,), unit; in: the start, out: the result.
    """
    scatter, vectors = np.empty((3, 3)), np.empty((3, 3))
    axis = np.empty(3)
    for i in range(floor_cosines.size):
        votes = _floor_wall_scatter(normals, y, floor_cosines[i], wall_sines[i], scatter)
        _diagonalise(scatter, vectors)
        limit = min(scatter[0, 0], scatter[1, 1], scatter[2, 2]) + min_gap * votes
        axis[:] = 0.0
        for k in range(3):
            if scatter[k, k] <= limit:
                along = vectors[0, k] * y[0] + vectors[1, k] * y[1] + vectors[2, k] * y[2]
                axis += along * vectors[:, k]
        length = np.sqrt(axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2])
        if length > 1e-6:
            y[:] = axis / length


@jit(fastmath=True)
def lowest_height(z, fx, fy, cx, cy, down):
    """Return the smallest -(down . P) in cm over all pixels; pixels without reading count as 0.

    Args:
        z: float32 (H, W) metres, finite.
        fx, fy, cx, cy: float32, pinhole camera, pixels counted from 0.
        down: float32 (3,), unit.
    """
    width = z.shape[1]
    # One minimum a column, for LLVM vectorises no loop that carries a minimum.
    lowest = np.full(width, F32(np.inf))
    along = -CM_PER_M * down[0] / fx
    for v in range(z.shape[0]):
        row = z[v]
        start = -CM_PER_M * ((F32(v) - cy) / fy * down[1] + down[2]) - along * cx
        for u in range(width):
            h = row[u] * (start + along * F32(u))
            lowest[u] = h if h < lowest[u] else lowest[u]
    return lowest.min()


@jit(fastmath=True)
def readings_below(z, fx, fy, cx, cy, down, height):
    """Return how many readings lie below a height, see `lowest_height`.

    Args:
        z, fx, fy, cx, cy, down: as there.
        height: float32, cm above the camera, at most 0, so that no reading is not below it.
    """
    along = -CM_PER_M * down[0] / fx
    below = 0
    for v in range(z.shape[0]):
        row = z[v]
        start = -CM_PER_M * ((F32(v) - cy) / fy * down[1] + down[2]) - along * cx
        for u in range(row.size):
            below += row[u] * (start + along * F32(u)) < height
    return below


@jit(fastmath=True)
def _inverse_sums(inverse, row, w0, w1):
    """Sum seven rows of `inverse` around `row`, weighted by 1 and by dv."""
    r0, r1, r2, r3 = inverse[row - 3], inverse[row - 2], inverse[row - 1], inverse[row]
    r4, r5, r6 = inverse[row + 1], inverse[row + 2], inverse[row + 3]
    for p in range(w0.size):
        w0[p] = r3[p] + (r2[p] + r4[p]) + (r1[p] + r5[p]) + (r0[p] + r6[p])
    for p in range(w1.size):
        w1[p] = (r4[p] - r2[p]) + TWO * (r5[p] - r1[p]) + THREE * (r6[p] - r0[p])


@jit(fastmath=True)
def _row_cosines(z_row, m0, m1, m2, w0, w1, fx, fy, cx, y_offset, down, cosines):
    """Fit 7x7 normals along one row; write the cosine of each with `down`, or NO_NORMAL.

    The normals point away from the camera, as in the public code: n . P > 0 where there is a
    reading, n_z > 0 elsewhere.
    """
    for u in range(z_row.size):
        p = u + PAD
        n = m0[p] + (m0[p - 1] + m0[p + 1]) + (m0[p - 2] + m0[p + 2]) + (m0[p - 3] + m0[p + 3])
        su = (
            (m0[p + 1] - m0[p - 1])
            + TWO * (m0[p + 2] - m0[p - 2])
            + THREE * (m0[p + 3] - m0[p - 3])
        )
        suu = (
            (m0[p + 1] + m0[p - 1])
            + FOUR * (m0[p + 2] + m0[p - 2])
            + NINE * (m0[p + 3] + m0[p - 3])
        )
        sv = m1[p] + (m1[p - 1] + m1[p + 1]) + (m1[p - 2] + m1[p + 2]) + (m1[p - 3] + m1[p + 3])
        suv = (
            (m1[p + 1] - m1[p - 1])
            + TWO * (m1[p + 2] - m1[p - 2])
            + THREE * (m1[p + 3] - m1[p - 3])
        )
        svv = m2[p] + (m2[p - 1] + m2[p + 1]) + (m2[p - 2] + m2[p + 2]) + (m2[p - 3] + m2[p + 3])
        w = w0[p] + (w0[p - 1] + w0[p + 1]) + (w0[p - 2] + w0[p + 2]) + (w0[p - 3] + w0[p + 3])
        wu = (
            (w0[p + 1] - w0[p - 1])
            + TWO * (w0[p + 2] - w0[p - 2])
            + THREE * (w0[p + 3] - w0[p - 3])
        )
        wv = w1[p] + (w1[p - 1] + w1[p + 1]) + (w1[p - 2] + w1[p + 2]) + (w1[p - 3] + w1[p + 3])
        # Collinear windows hold at most 7 pixels, so their products are exact in float32 and
        # the determinant is exactly 0.
        cuu, cuv, cvv = n * suu - su * su, n * suv - su * sv, n * svv - sv * sv
        determinant = cuu * cvv - cuv * cuv
        au, av = n * wu - su * w, n * wv - sv * w
        solvable = determinant > HALF
        scale = ONE / (determinant if solvable else ONE)
        a = (cvv * au - cuv * av) * scale
        b = (cuu * av - cuv * au) * scale
        c = (w - a * su - b * sv) / (n if solvable else ONE)
        nx, ny, nz = a * fx, b * fy, c - a * (F32(u) - cx) - b * y_offset
        dot = nx * down[0] + ny * down[1] + nz * down[2]
        facing = c if (z_row[u] > ZERO) & (c != ZERO) else nz
        dot = dot if facing >= ZERO else -dot
        norm = nx * nx + ny * ny + nz * nz
        cosine = dot / np.sqrt(norm if norm > ZERO else ONE)
        cosines[u] = cosine if solvable else NO_NORMAL


@jit(fastmath=True)
def _angles(cosines, angle_offset, grey):
    """Write angle_offset + degrees(acos(cosine)), 180 degrees where there is no normal."""
    for u in range(cosines.size):
        x = min(abs(cosines[u]), ONE)
        acos = A4 + x * (A5 + x * (A6 + x * A7))
        acos = A0 + x * (A1 + x * (A2 + x * (A3 + x * acos)))
        angle = DEGREES * np.sqrt(ONE - x) * acos
        angle = angle if cosines[u] >= ZERO else STRAIGHT_ANGLE - angle
        angle = angle_offset + (angle if cosines[u] < NO_NORMAL else STRAIGHT_ANGLE)
        grey[u] = I32(min(angle, MAX_GREY) + HALF)


@jit(fastmath=True)
def encode_channels(
    z,
    inverse,
    counted,
    camera,
    down,
    height_down,
    floor_height,
    disparity_scale,
    min_depth_cm,
    angle_offset,
    out,
):
    """Write disparity, height and angle of every pixel.

    Args:
        z, inverse, counted: as from :func:`clean_depth`.
        camera: float32 (4,), fx, fy, cx, cy with pixels counted from 0.
        down: float32 (3,), unit, gravity for the angle.
        height_down: float32 (3,), unit, gravity for the height.
        floor_height: float32, height in cm that is written as 0.
        disparity_scale, min_depth_cm, angle_offset: float32, see ``hha``.
        out: uint8 (H, W, 3).
    """
    rows, width = z.shape
    fx, fy, cx, cy = camera[0], camera[1], camera[2], camera[3]
    columns = inverse.shape[1]
    # Separate arrays: LLVM cannot tell that rows of one array do not overlap.
    m0, m1, m2 = np.zeros(columns, F32), np.zeros(columns, F32), np.zeros(columns, F32)
    w0, w1 = np.empty(columns, F32), np.empty(columns, F32)
    cosines, angle = np.empty(width, F32), np.empty(width, np.uint8)
    disparity, height = np.empty(width, np.uint8), np.empty(width, np.uint8)
    along = -CM_PER_M * height_down[0] / fx
    for v in range(-3, rows):
        _slide_counts(counted[v + PAD - 4], counted[v + PAD + 3], THREE, m0, m1, m2)
        if v < 0:
            continue
        z_row, y_offset = z[v], F32(v) - cy
        _inverse_sums(inverse, v + PAD, w0, w1)
        _row_cosines(z_row, m0, m1, m2, w0, w1, fx, fy, cx, y_offset, down, cosines)
        _angles(cosines, angle_offset, angle)
        start = -CM_PER_M * (y_offset / fy * height_down[1] + height_down[2]) - along * cx
        for u in range(width):
            grey = disparity_scale / max(CM_PER_M * z_row[u], min_depth_cm)
            disparity[u] = I32(min(grey, MAX_GREY) + HALF)
        for u in range(width):
            grey = z_row[u] * (start + along * F32(u)) - floor_height
            height[u] = I32(min(max(grey, ZERO), MAX_GREY) + HALF)
        pixels = out[v].reshape(3 * width)
        for u in range(width):
            pixels[3 * u] = disparity[u]
            pixels[3 * u + 1] = height[u]
            pixels[3 * u + 2] = angle[u]


def warm_up() -> None:
    """Compile the kernels of this module on tiny images, or load them from the cache."""
    depth, z = np.ones((2, 2), dtype=F32), np.empty((2, 2), dtype=F32)
    depth.flags.writeable = False
    inverse, counted = np.zeros((2, 2 + 2 * PAD, 2 + 2 * PAD), dtype=F32)
    missing = np.zeros((2, 2), dtype=bool)
    missing.flags.writeable = False
    clean_depth(depth, missing, z, inverse, counted)
    normals = np.zeros((3, 6), dtype=F32)
    staggered_normals(inverse, counted, PAD, 1, 1.0, 1.0, 0.0, 0.0, normals)
    down, limits = np.array([0.0, 1.0, 0.0]), np.ones(1, dtype=F32)
    follow_gravity(normals, limits, limits, 0.0, down)
    camera, down = np.array([1.0, 1.0, 0.0, 0.0], dtype=F32), down.astype(F32)
    lowest_height(z, ONE, ONE, ZERO, ZERO, down)
    readings_below(z, ONE, ONE, ZERO, ZERO, down, ZERO)
    out = np.empty((2, 2, 3), dtype=np.uint8)
    encode_channels(z, inverse, counted, camera, down, down, ZERO, ONE, ONE, ONE, out)
