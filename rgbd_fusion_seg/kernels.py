"""The numba kernels behind HHA, pre- and post-processing and overlays.

They are compiled on first use and cached on disk (``cache=True``); :func:`warm_up` does it ahead
of time. All of them run on the calling thread and release the GIL (``nogil=True``): the cores
belong to inference. None checks its arguments; the modules that call them do.

Conventions of the HHA part: ``PAD`` rows and columns of zeros surround the padded images, so that
no window needs a border case, and ``du``, ``dv`` are pixel offsets from the centre of a window.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

PAD = 10
"""Zero rows and columns around a padded image: half of the largest window (21x21)."""

F32 = np.float32
# Numba promotes float32 with a Python number to float64, hence typed constants.
ZERO, HALF, ONE, TWO, THREE = F32(0.0), F32(0.5), F32(1.0), F32(2.0), F32(3.0)
FOUR, NINE = F32(4.0), F32(9.0)
MAX_GREY = F32(255.0)
CM_PER_M = F32(100.0)
DEGREES = F32(180.0 / np.pi)
STRAIGHT_ANGLE = F32(180.0)
# acos(x) = sqrt(1 - x) * polynomial(x) for x >= 0, error below 2e-8 (Abramowitz & Stegun 4.4.46).
A0, A1, A2, A3 = F32(1.5707963050), F32(-0.2145988016), F32(0.0889789874), F32(-0.0501743046)
A4, A5, A6, A7 = F32(0.0308918810), F32(-0.0170881256), F32(0.0066700901), F32(-0.0012624911)


@njit(cache=True, nogil=True, error_model='numpy')
def clean_depth(depth, missing, z, inverse, counted):
    """Split a depth image into what the other kernels read.

    No fast-math here: this is where NaN and infinity are sorted out.

    Args:
        depth: float32 (H, W) metres, anything not finite and positive = no reading.
        missing: bool (H, W), True = not used for normals, or (0, 0) for none beyond `depth`.
        z: out, float32 (H, W) metres, 0 = no reading.
        inverse: out, float32 (H + 2 PAD, W + 2 PAD), 1 / depth where counted, else 0.
        counted: out, float32 of that size, 1 where a pixel takes part in normals, else 0.
    """
    height, width = depth.shape
    infinity = F32(np.inf)
    for v in range(height):
        inverse_row = inverse[v + PAD, PAD : PAD + width]
        counted_row = counted[v + PAD, PAD : PAD + width]
        for u in range(width):
            d = depth[v, u]
            valid = (d > ZERO) & (d < infinity)
            z[v, u] = d if valid else ZERO
            inverse_row[u] = ONE / d if valid else ZERO
            counted_row[u] = ONE if valid else ZERO
        if missing.size:
            for u in range(width):
                keep = ZERO if missing[v, u] else ONE
                inverse_row[u] *= keep
                counted_row[u] *= keep


@njit(cache=True, nogil=True, fastmath=True, error_model='numpy')
def sparse_normals(inverse, counted, radius, step, fx, fy, cx, cy, normals):
    """Fit surface normals in (2 radius + 1)^2 windows around every `step`-th pixel.

    A plane n . (X, Y, Z) = 1 is linear in the inverse depth: 1/Z = a du + b dv + c over pixel
    offsets, so the least squares need only pixel-count moments (whole numbers, exact) and three
    moments of 1/Z, and collinear windows are those whose determinant is exactly 0.

    Args:
        inverse, counted: as from :func:`clean_depth`.
        radius: half the window, at most PAD.
        step: distance of the pixels, which start at `step` // 2.
        fx, fy, cx, cy: pinhole camera, pixels counted from 0.
        normals: out, float64 (3, N), unit, sign arbitrary; N enough for every such pixel.

    Returns:
        How many normals were written; windows whose pixels are collinear give none.
    """
    height, width = inverse.shape[0] - 2 * PAD, inverse.shape[1] - 2 * PAD
    columns = np.empty((5, inverse.shape[1]))
    found = 0
    for v in range(step // 2, height, step):
        columns[:] = 0.0
        for dv in range(-radius, radius + 1):
            for u in range(inverse.shape[1]):
                m, w = counted[v + PAD + dv, u], inverse[v + PAD + dv, u]
                columns[0, u] += m
                columns[1, u] += dv * m
                columns[2, u] += dv * dv * m
                columns[3, u] += w
                columns[4, u] += dv * w
        for u in range(step // 2, width, step):
            n = su = sv = suu = suv = svv = w = wu = wv = 0.0
            for du in range(-radius, radius + 1):
                m0, m1 = columns[0, u + PAD + du], columns[1, u + PAD + du]
                w0 = columns[3, u + PAD + du]
                n += m0
                su += du * m0
                suu += du * du * m0
                sv += m1
                suv += du * m1
                svv += columns[2, u + PAD + du]
                w += w0
                wu += du * w0
                wv += columns[4, u + PAD + du]
            cuu, cuv, cvv = n * suu - su * su, n * suv - su * sv, n * svv - sv * sv
            determinant = cuu * cvv - cuv * cuv
            if determinant < 0.5:
                continue
            au, av = n * wu - su * w, n * wv - sv * w
            a = (cvv * au - cuv * av) / determinant
            b = (cuu * av - cuv * au) / determinant
            c = (w - a * su - b * sv) / n
            nx, ny, nz = a * fx, b * fy, c - a * (u - cx) - b * (v - cy)
            scale = 1.0 / np.sqrt(nx * nx + ny * ny + nz * nz)
            normals[0, found] = nx * scale
            normals[1, found] = ny * scale
            normals[2, found] = nz * scale
            found += 1
    return found


@njit(cache=True, nogil=True, fastmath=True, error_model='numpy')
def floor_wall_scatter(normals, y, floor_cosine, wall_sine, scatter):
    """Sum n nT over wall normals minus floor normals, relative to the direction `y`.

    Args:
        normals: float64 (3, N), unit.
        y: float64 (3,), unit.
        floor_cosine: a normal with |n . y| above it is one of a floor (or ceiling).
        wall_sine: a normal with |n . y| below it is one of a wall.
        scatter: out, float64 (3, 3).

    Returns:
        How many normals are floor or wall.
    """
    xx = xy = xz = yy = yz = zz = members = 0.0
    for i in range(normals.shape[1]):
        nx, ny, nz = normals[0, i], normals[1, i], normals[2, i]
        cosine = abs(nx * y[0] + ny * y[1] + nz * y[2])
        wall = 1.0 if cosine < wall_sine else 0.0
        floor = 1.0 if cosine > floor_cosine else 0.0
        weight = wall - floor
        members += wall + floor
        xx += weight * nx * nx
        xy += weight * nx * ny
        xz += weight * nx * nz
        yy += weight * ny * ny
        yz += weight * ny * nz
        zz += weight * nz * nz
    scatter[0, 0], scatter[1, 1], scatter[2, 2] = xx, yy, zz
    scatter[0, 1] = scatter[1, 0] = xy
    scatter[0, 2] = scatter[2, 0] = xz
    scatter[1, 2] = scatter[2, 1] = yz
    return members


@njit(cache=True, nogil=True, fastmath=True, error_model='numpy')
def lowest_height(z, fx, fy, cx, cy, down):
    """Return the smallest -(down . P) in cm over all pixels; pixels without reading count as 0.

    Args:
        z: float32 (H, W) metres, finite.
        fx, fy, cx, cy: float32, pinhole camera, pixels counted from 0.
        down: float32 (3,), unit.
    """
    lowest = F32(np.inf)
    along = -CM_PER_M * down[0] / fx
    for v in range(z.shape[0]):
        start = -CM_PER_M * ((F32(v) - cy) / fy * down[1] + down[2]) - along * cx
        for u in range(z.shape[1]):
            h = z[v, u] * (start + along * F32(u))
            lowest = h if h < lowest else lowest
    return lowest


@njit(cache=True, nogil=True, fastmath=True, error_model='numpy')
def _column_moments(inverse, counted, row, m0, m1, m2, w0, w1):
    """Sum seven rows around `row` of the padded images, weighted by 1, dv and dv^2."""
    for u in range(inverse.shape[1]):
        m0[u] = counted[row, u]
        w0[u] = inverse[row, u]
        m1[u] = ZERO
        m2[u] = ZERO
        w1[u] = ZERO
    for k in range(1, 4):
        f = F32(k)
        for u in range(inverse.shape[1]):
            below, above = counted[row + k, u], counted[row - k, u]
            m0[u] += below + above
            m1[u] += f * (below - above)
            m2[u] += f * f * (below + above)
        for u in range(inverse.shape[1]):
            below, above = inverse[row + k, u], inverse[row - k, u]
            w0[u] += below + above
            w1[u] += f * (below - above)


@njit(cache=True, nogil=True, fastmath=True, error_model='numpy')
def _row_cosines(z_row, m0, m1, m2, w0, w1, fx, fy, cx, y_offset, down, cosines):
    """Fit 7x7 normals along one row; write the cosine of each with `down`, 2 = no normal.

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
        cosines[u] = cosine if solvable else TWO


@njit(cache=True, nogil=True, fastmath=True, error_model='numpy')
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
    columns = np.empty((5, inverse.shape[1]), dtype=F32)
    m0, m1, m2, w0, w1 = columns[0], columns[1], columns[2], columns[3], columns[4]
    cosines = np.empty(width, dtype=F32)
    along = -CM_PER_M * height_down[0] / fx
    for v in range(rows):
        _column_moments(inverse, counted, v + PAD, m0, m1, m2, w0, w1)
        y_offset = F32(v) - cy
        _row_cosines(z[v], m0, m1, m2, w0, w1, fx, fy, cx, y_offset, down, cosines)
        start = -CM_PER_M * (y_offset / fy * height_down[1] + height_down[2]) - along * cx
        for u in range(width):
            z_cm = CM_PER_M * z[v, u]
            disparity = disparity_scale / max(z_cm, min_depth_cm)
            h = z[v, u] * (start + along * F32(u)) - floor_height
            raw = cosines[u]
            x = min(abs(raw), ONE)
            acos = A4 + x * (A5 + x * (A6 + x * A7))
            acos = A0 + x * (A1 + x * (A2 + x * (A3 + x * acos)))
            angle = DEGREES * np.sqrt(ONE - x) * acos
            angle = angle if raw >= ZERO else STRAIGHT_ANGLE - angle
            angle = angle_offset + (angle if raw < TWO else STRAIGHT_ANGLE)
            out[v, u, 0] = np.uint8(min(max(disparity, ZERO), MAX_GREY) + HALF)
            out[v, u, 1] = np.uint8(min(max(h, ZERO), MAX_GREY) + HALF)
            out[v, u, 2] = np.uint8(min(angle, MAX_GREY) + HALF)


# Post-processing -------------------------------------------------------------------------------

BLOCK = 32
"""Pixels along a row that share one choice of classes: whole vectors, so no remainder loops."""

LOWEST = F32(-np.inf)
SIXTEENTH, SIXTH = F32(1.0 / 16.0), F32(1.0 / 6.0)
ROUND_OFF = F32(1e-5)


@intrinsic
def fma(typing_context, a, b, c):
    """Return float32 ``a * b + c``, rounded once."""

    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@njit(cache=True, nogil=True, error_model='numpy')
def _exp(x):
    """Return exp(x) for x <= 0 within 1e-4: a cubic to the 16th power; below -16 about 0."""
    y = x * SIXTEENTH
    y = y if y > -ONE else -ONE
    e = fma(fma(fma(y, SIXTH, HALF), y, ONE), y, ONE)
    e *= e
    e *= e
    e *= e
    e *= e
    return e


@njit(cache=True, nogil=True, error_model='numpy')
def _softmax_terms(logits, peak, terms, mass):
    """Write the largest logit, exp(logit - largest) and the sum of these along the classes.

    Args:
        logits, terms: float32 (K, N).
        peak, mass: float32 (N,).
    """
    peak[:] = LOWEST
    mass[:] = ZERO
    for k in range(logits.shape[0]):
        for i in range(peak.size):
            peak[i] = logits[k, i] if logits[k, i] > peak[i] else peak[i]
    for k in range(logits.shape[0]):
        for i in range(peak.size):
            terms[k, i] = _exp(logits[k, i] - peak[i])
            mass[i] += terms[k, i]


@njit(cache=True, nogil=True, error_model='numpy')
def _logit_bounds(logits, r0, r1, columns, high, floor):
    """Bound what the pixels between two rows of logits can reach, block by block.

    Args:
        logits, columns: see :func:`upsample_labels`.
        r0, r1: the two rows.
        high: out, float32 (K, blocks), largest logit of each class around the block.
        floor: out, float32 (blocks,), some class is nowhere in the block below it.
    """
    x0, x1 = columns[0], columns[1]
    low_column = np.empty(logits.shape[2], F32)
    high_column = np.empty(logits.shape[2], F32)
    floor[:] = LOWEST
    for k in range(logits.shape[0]):
        for c in range(logits.shape[2]):
            a, b = logits[k, r0, c], logits[k, r1, c]
            low_column[c] = a if a < b else b
            high_column[c] = b if a < b else a
        for block in range(floor.size):
            first, last = x0[block * BLOCK], x1[block * BLOCK + BLOCK - 1]
            low = low_column[first]
            high[k, block] = high_column[first]
            for c in range(first, last + 1):
                low = min(low, low_column[c])
                high[k, block] = max(high[k, block], high_column[c])
            floor[block] = max(floor[block], low)


@njit(cache=True, nogil=True, error_model='numpy')
def _stretch(row, columns, left, out):
    """Interpolate a row of logits at the BLOCK pixels from `left` on."""
    x0, x1, wx0, wx1 = columns
    for i in range(BLOCK):
        x = left + i
        out[i] = fma(row[x0[x]], wx0[x], row[x1[x]] * wx1[x])


@njit(cache=True, nogil=True, error_model='numpy')
def _merge_others(peak, terms, mass, chosen, first, last, merged):
    """Write, for the logits first..last of a row, the log-sum-exp of the classes not chosen.

    Returns:
        The largest share that these classes have in the softmax of a logit.
    """
    share = ROUND_OFF
    for c in range(first, last + 1):
        others = mass[c]
        for k in chosen:
            others -= terms[k, c]
        others = max(others, ROUND_OFF)
        share = max(share, others)
        merged[c] = peak[c] + np.log(others)
    return share


@njit(cache=True, nogil=True, error_model='numpy')
def _take_larger(k, top, bottom, wy0, wy1, best, winner):
    """Interpolate class `k` between two stretched rows and keep it where it beats the best."""
    for y in range(wy0.size):
        w0, w1 = wy0[y], wy1[y]
        for i in range(BLOCK):
            value = fma(top[i], w0, bottom[i] * w1)
            larger = value > best[y, i]
            best[y, i] = value if larger else best[y, i]
            winner[y, i] = k if larger else winner[y, i]


@njit(cache=True, nogil=True, error_model='numpy')
def _add_exponentials(top, bottom, wy0, wy1, best, total):
    """Add exp(logit - best) of one class to the sum of every pixel."""
    for y in range(wy0.size):
        w0, w1 = wy0[y], wy1[y]
        for i in range(BLOCK):
            total[y, i] += _exp(fma(top[i], w0, bottom[i] * w1) - best[y, i])


@njit(cache=True, nogil=True, error_model='numpy')
def _write_block(winner, total, left, labels, confidence):
    for y in range(winner.shape[0]):
        label_row = labels[y, left : left + BLOCK]
        confidence_row = confidence[y, left : left + BLOCK]
        for i in range(BLOCK):
            label_row[i] = winner[y, i]
            confidence_row[i] = np.int32(MAX_GREY / total[y, i] + HALF)


@njit(cache=True, nogil=True, error_model='numpy')
def _label_band(logits, softmax, r0, r1, columns, wy0, wy1, bounds, margin, labels, confidence):
    """Label the pixel rows between two rows of logits; arguments as in the function below."""
    peak, terms, mass = softmax
    high, floor = bounds
    classes = logits.shape[0]
    top, bottom = np.empty((classes, BLOCK), F32), np.empty((classes, BLOCK), F32)
    best, total = np.empty((wy0.size, BLOCK), F32), np.empty((wy0.size, BLOCK), F32)
    winner = np.empty((wy0.size, BLOCK), np.int32)
    chosen = np.empty(classes, np.intp)
    merged, shares = np.empty((2, logits.shape[2]), F32), np.empty(2, F32)
    for block in range(floor.size):
        left = block * BLOCK
        best[:] = LOWEST
        total[:] = ZERO
        count = 0
        for k in range(classes):
            if high[k, block] < floor[block] - margin:
                continue
            _stretch(logits[k, r0], columns, left, top[count])
            _stretch(logits[k, r1], columns, left, bottom[count])
            if high[k, block] >= floor[block]:
                _take_larger(np.int32(k), top[count], bottom[count], wy0, wy1, best, winner)
            chosen[count] = k
            count += 1
        if count < classes:
            first, last = columns[0][left], columns[1][left + BLOCK - 1]
            for i, r in enumerate((r0, r1)):
                shares[i] = _merge_others(
                    peak[r], terms[:, r], mass[r], chosen[:count], first, last, merged[i]
                )
            if max(shares[0], shares[1]) > ROUND_OFF:
                _stretch(merged[0], columns, left, top[count])
                _stretch(merged[1], columns, left, bottom[count])
                count += 1
        for i in range(count):
            _add_exponentials(top[i], bottom[i], wy0, wy1, best, total)
        _write_block(winner, total, left, labels, confidence)


@njit(cache=True, nogil=True, error_model='numpy')
def upsample_labels(logits, columns, row_starts, wy0, wy1, margin, labels, confidence):
    """Interpolate logits bilinearly; write the winning class and its softmax probability.

    The pixels between two rows of logits are treated in blocks. Rounded interpolation is
    monotone, so a class that lies below the block's floor (see :func:`_logit_bounds`) cannot win
    there and is not interpolated. For the probability, the classes more than `margin` below the
    floor are merged into one: the log-sum-exp of their logits, interpolated like a class.

    Args:
        logits: float32 (K, h, w), finite.
        columns: x0, x1, w0, w1: uint32 and float32 (W,), W a multiple of BLOCK, the two columns
            of logits that each pixel column mixes, and their weights.
        row_starts: intp (h + 1,), first pixel row whose upper row of logits is the index.
        wy0, wy1: float32 (H,), weights of the upper and the lower row of logits.
        margin: float32; the larger, the more exact and the slower the probability.
        labels, confidence: out, uint8 (H, W).
    """
    classes, height, width = logits.shape
    peak, mass = np.empty((height, width), F32), np.empty((height, width), F32)
    terms = np.empty((classes, height, width), F32)
    _softmax_terms(
        logits.reshape(classes, -1), peak.reshape(-1), terms.reshape(classes, -1), mass.reshape(-1)
    )
    blocks = labels.shape[1] // BLOCK
    high, floor = np.empty((classes, blocks), F32), np.empty(blocks, F32)
    for r in range(height):
        begin, end = row_starts[r], row_starts[r + 1]
        if begin == end:
            continue
        lower = min(r + 1, height - 1)
        _logit_bounds(logits, r, lower, columns, high, floor)
        _label_band(
            logits,
            (peak, terms, mass),
            r,
            lower,
            columns,
            wy0[begin:end],
            wy1[begin:end],
            (high, floor),
            margin,
            labels[begin:end],
            confidence[begin:end],
        )


@njit(cache=True, nogil=True, error_model='numpy')
def normalize(image, table, out):
    """Look every channel's values up in its table and write them plane by plane.

    Args:
        image: uint8 (H, W, 3).
        table: float32 (3, 256), what each value becomes; exact, and faster than arithmetic.
        out: float32 (3, H, W).
    """
    for y in range(image.shape[0]):
        row = image[y]
        for channel in range(3):
            values, target = table[channel], out[channel, y]
            for x in range(row.shape[0]):
                target[x] = values[row[x, channel]]


@njit(cache=True, nogil=True, error_model='numpy')
def paint(labels, colors, out):
    """Write the colour of every label: uint8 (H, W), (256, 3) -> uint8 (H, W, 3)."""
    for y in range(labels.shape[0]):
        row, target = labels[y], out[y]
        for x in range(row.size):
            k = row[x]
            target[x, 0] = colors[k, 0]
            target[x, 1] = colors[k, 1]
            target[x, 2] = colors[k, 2]


@njit(cache=True, nogil=True, error_model='numpy')
def blend(image, labels, keep, tint, out):
    """Write ``(image * keep + tint[label]) >> 8``.

    Args:
        image, out: uint8 (H, W, 3).
        labels: uint8 (H, W).
        keep: uint32 (256,), weight of the image at each label, of 256.
        tint: uint32 (256, 3), what each label adds, at most 65535 with the image's part.
    """
    shift = np.uint32(8)
    for y in range(labels.shape[0]):
        source, row, target = image[y], labels[y], out[y]
        for x in range(row.size):
            k = row[x]
            target[x, 0] = (source[x, 0] * keep[k] + tint[k, 0]) >> shift
            target[x, 1] = (source[x, 1] * keep[k] + tint[k, 1]) >> shift
            target[x, 2] = (source[x, 2] * keep[k] + tint[k, 2]) >> shift


def warm_up() -> None:
    """Compile every kernel on tiny images, or load it from the cache."""
    depth = np.ones((2, 2), dtype=F32)
    z = np.empty_like(depth)
    inverse, counted = np.zeros((2, 2 + 2 * PAD, 2 + 2 * PAD), dtype=F32)
    for missing in (np.zeros((0, 0), dtype=bool), np.zeros((2, 2), dtype=bool)):
        clean_depth(depth, missing, z, inverse, counted)
    normals = np.empty((3, 4))
    found = sparse_normals(inverse, counted, PAD, 4, 1.0, 1.0, 0.0, 0.0, normals)
    down = np.array([0.0, 1.0, 0.0])
    floor_wall_scatter(normals[:, :found], down, 0.9, 0.1, np.empty((3, 3)))
    camera, down = np.array([1.0, 1.0, 0.0, 0.0], dtype=F32), down.astype(F32)
    lowest_height(z, ONE, ONE, ZERO, ZERO, down)
    out = np.empty((2, 2, 3), dtype=np.uint8)
    encode_channels(z, inverse, counted, camera, down, down, ZERO, ONE, ONE, ONE, out)
    logits, image = np.zeros((2, 1, 1), dtype=F32), np.zeros((1, BLOCK, 3), dtype=np.uint8)
    index, weight = np.zeros(BLOCK, dtype=np.uint32), np.ones(BLOCK, dtype=F32)
    labels, confidence = np.zeros((2, 1, BLOCK), dtype=np.uint8)
    columns, starts = (index, index, weight, weight), np.arange(2)
    upsample_labels(logits, columns, starts, weight[:1], weight[:1], ONE, labels, confidence)
    table, planes = np.zeros((3, 256), dtype=F32), np.zeros((3, 1, BLOCK), dtype=F32)
    colors, painted = np.zeros((256, 3), dtype=np.uint8), np.empty_like(image)
    keep, tint = np.zeros(256, dtype=np.uint32), np.zeros((256, 3), dtype=np.uint32)
    paint(labels, colors, painted)
    for writeable in (True, False):  # images that ROS messages own are read-only, another type
        image.flags.writeable = writeable
        normalize(image, table, planes)
        blend(image, labels, keep, tint, painted)
