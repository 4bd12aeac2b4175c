"""From the network's logits to labels and confidence at the size of the image."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from rgbd_fusion_seg import kernels
from rgbd_fusion_seg.errors import EngineError
from rgbd_fusion_seg.frame import UNLABELLED

CONFIDENCE_MARGIN = 1.0
"""Classes that stay this far (in logits) below the winner around a block of pixels are merged
before their probability is interpolated; see :func:`labels_and_confidence`."""


def labels_and_confidence(
    logits: np.ndarray, height: int, width: int, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate logits to the image, take the winning class and its probability.

    The labels are those of ``torch.nn.functional.interpolate(mode='bilinear',
    align_corners=False)`` followed by ``argmax``: when enlarging, the same operations with the
    same roundings, so they differ at most where two classes tie exactly. Any ratio of sizes
    works; when shrinking, logits between the pixels are skipped, as in torch.

    The confidence is the winner's softmax probability of the interpolated logits, times 255,
    rounded. Classes that can win near a pixel enter it exactly. The others, which cannot, are
    merged at every logit into their log-sum-exp, and that is interpolated; it is convex, so the
    confidence comes out a little low. Measured (``benchmarks/results/pipeline.json``): off by
    less than 3 grey levels at 99 % of the pixels of the shipped network and by 12 at the worst,
    1.4 and 4 on smooth logits.

    Args:
        logits: float32 (1, K, h, w), K at most 255.
        height, width: size of the result in pixels.
        temperature: the confidence is that of the logits divided by it (C. Guo et al., On
            Calibration of Modern Neural Networks, ICML 2017, section 4.2). Labels stay, but for
            ties by round-off.

    Returns:
        Labels and confidence, uint8 (height, width). A pixel that touches a logit which is not
        finite gets the label 255 and the confidence 0.

    Raises:
        EngineError: logits of another type or shape.
    """
    if logits.dtype != np.float32 or logits.ndim != 4 or logits.shape[0] != 1:
        raise EngineError(
            f'logits must be float32 (1, classes, height, width), got {logits.dtype.name} '
            f'{logits.shape}; export the network with one output of that form'
        )
    if not 1 <= logits.shape[1] <= UNLABELLED:
        raise EngineError(f'{logits.shape[1]} classes do not fit into an 8-bit label image')
    scores = np.ascontiguousarray(logits[0])
    if temperature != 1:
        scores = scores / np.float32(temperature)
    bad = None
    if not np.isfinite(scores.sum()):  # the sum may also overflow: then `bad` is all False
        bad = ~np.isfinite(scores).all(axis=0)
        scores = np.where(bad, np.float32(0), scores)
    labels, confidence = _interpolated(scores, height, width)
    if bad is not None:
        touched = _touches(bad, height, width)
        labels[touched] = UNLABELLED
        confidence[touched] = 0
    return labels, confidence


def _interpolated(scores: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    columns = _padded_taps(scores.shape[2], width)
    upper, _, wy0, wy1 = _taps(scores.shape[1], height)
    row_starts = np.searchsorted(upper, np.arange(scores.shape[1] + 1))
    size = (height, columns[0].size)
    labels, confidence = np.empty(size, np.uint8), np.empty(size, np.uint8)
    margin = np.float32(CONFIDENCE_MARGIN)
    kernels.upsample_labels(scores, columns, row_starts, wy0, wy1, margin, labels, confidence)
    return (
        np.ascontiguousarray(labels[:, :width]),
        np.ascontiguousarray(confidence[:, :width]),
    )


def _touches(bad: np.ndarray, height: int, width: int) -> np.ndarray:
    y0, y1, _, _ = _taps(bad.shape[0], height)
    x0, x1, _, _ = _taps(bad.shape[1], width)
    rows = bad[y0] | bad[y1]
    return rows[:, x0] | rows[:, x1]


@lru_cache(maxsize=16)
def _taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return, for every new pixel, the two old ones it mixes and their float32 weights.

    torch computes ``scale * (i + 0.5) - 0.5`` in float32 with a fused multiply-add; float64
    holds that product exactly, so rounding it once gives the same number.
    """
    scale = np.float32(size) / np.float32(new_size)
    source = (np.float64(scale) * (np.arange(new_size) + 0.5) - 0.5).astype(np.float32)
    source = np.maximum(source, np.float32(0))
    first = np.minimum(source.astype(np.intp), size - 1)
    weight = np.minimum(source - first.astype(np.float32), np.float32(1))
    return first, np.minimum(first + 1, size - 1), np.float32(1) - weight, weight


@lru_cache(maxsize=16)
def _padded_taps(
    size: int, new_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return :func:`_taps` repeated at the end to a whole number of blocks, indices unsigned."""
    extra = (0, -new_size % kernels.BLOCK)
    first, second, w0, w1 = (np.pad(taps, extra, mode='edge') for taps in _taps(size, new_size))
    return first.astype(np.uint32), second.astype(np.uint32), w0, w1
