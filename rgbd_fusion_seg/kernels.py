"""Numba kernels of pre- and post-processing, overlays, points; HHA's are in ``hha_kernels``.

They are compiled on first use (``jit`` has how); :func:`warm_up` does it ahead of time, for all of
the package. None checks its arguments; the modules that call them do.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from rgbd_fusion_seg import depth as depths
from rgbd_fusion_seg import hha_kernels, rvl
from rgbd_fusion_seg.jit import jit

F32 = np.float32
# Numba promotes float32 with a Python number to float64, hence typed constants.
ZERO, HALF, ONE, MAX_GREY = F32(0.0), F32(0.5), F32(1.0), F32(255.0)

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


@jit
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


@jit
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


@jit
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


@jit
def _stretch(row, columns, left, out):
    """Interpolate a row of logits at the BLOCK pixels from `left` on."""
    x0, x1, wx0, wx1 = columns
    for i in range(BLOCK):
        x = left + i
        out[i] = fma(row[x0[x]], wx0[x], row[x1[x]] * wx1[x])


@jit
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


@jit
def _take_larger(k, top, bottom, wy0, wy1, best, winner):
    """Interpolate class `k` between two stretched rows and keep it where it beats the best."""
    for y in range(wy0.size):
        w0, w1 = wy0[y], wy1[y]
        for i in range(BLOCK):
            value = fma(top[i], w0, bottom[i] * w1)
            larger = value > best[y, i]
            best[y, i] = value if larger else best[y, i]
            winner[y, i] = k if larger else winner[y, i]


@jit
def _add_exponentials(top, bottom, wy0, wy1, best, total):
    """Add exp(logit - best) of one class to the sum of every pixel."""
    for y in range(wy0.size):
        w0, w1 = wy0[y], wy1[y]
        for i in range(BLOCK):
            total[y, i] += _exp(fma(top[i], w0, bottom[i] * w1) - best[y, i])


@jit
def _write_block(winner, total, left, labels, confidence):
    for y in range(winner.shape[0]):
        label_row = labels[y, left : left + BLOCK]
        confidence_row = confidence[y, left : left + BLOCK]
        for i in range(BLOCK):
            label_row[i] = winner[y, i]
            confidence_row[i] = np.int32(MAX_GREY / total[y, i] + HALF)


@jit
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


@jit
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


@jit
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


@jit
def paint(labels, colors, out):
    """Write the colour of every label: uint8 (H, W), (256, 3) -> uint8 (H, W, 3)."""
    for y in range(labels.shape[0]):
        row, target = labels[y], out[y]
        for x in range(row.size):
            k = row[x]
            target[x, 0] = colors[k, 0]
            target[x, 1] = colors[k, 1]
            target[x, 2] = colors[k, 2]


@jit
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


@jit
def fill_points(depth, across, down, colors, labels, confidence, metres, words):
    """Write points; ``metres`` and ``words`` are float32 and uint32 of the same memory, (H, W, 6).

    ``across`` (W,) and ``down`` (H,) are x / z and y / z; see `point_cloud`.
    """
    for v in range(depth.shape[0]):
        for u in range(depth.shape[1]):
            z = depth[v, u]
            if not (z > F32(0) and z < F32(np.inf)):  # `depth.valid_mask`
                z = F32(np.nan)
            metres[v, u, 0] = across[u] * z
            metres[v, u, 1] = down[v] * z
            metres[v, u, 2] = z
            color = colors[v, u]
            words[v, u, 3] = np.uint32(color[0]) << 16 | np.uint32(color[1]) << 8 | color[2]
            words[v, u, 4] = labels[v, u]
            words[v, u, 5] = confidence[v, u]


def warm_up() -> None:
    """Compile every kernel on tiny images, or load it from the cache."""
    depths.warm_up()
    hha_kernels.warm_up()
    rvl.warm_up()
    logits = np.zeros((2, 1, 1), dtype=F32)
    index, weight = np.zeros(BLOCK, dtype=np.uint32), np.ones(BLOCK, dtype=F32)
    labels, confidence = np.zeros((2, 1, BLOCK), dtype=np.uint8)
    columns, starts = (index, index, weight, weight), np.arange(2)
    upsample_labels(logits, columns, starts, weight[:1], weight[:1], ONE, labels, confidence)
    table, planes = np.zeros((3, 256), dtype=F32), np.zeros((3, 1, BLOCK), dtype=F32)
    colors, painted = np.zeros((256, 3), dtype=np.uint8), np.empty((1, BLOCK, 3), dtype=np.uint8)
    keep, tint = np.zeros(256, dtype=np.uint32), np.zeros((256, 3), dtype=np.uint32)
    image, given = depths.readable(painted, np.uint8), depths.readable(labels, np.uint8)
    normalize(image, table, planes)
    paint(given, colors, painted)
    blend(image, given, keep, tint, painted)
    depth, ray = depths.readable(planes[0], F32), np.zeros(BLOCK, dtype=F32)
    words = np.zeros((1, BLOCK, 6), dtype=np.uint32)
    fill_points(depth, ray, ray[:1], image, given, given, words.view(F32), words)
