"""Losses of semantic segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rgbd_fusion_seg.frame import UNLABELLED


def class_weights(pixels: Sequence[int], c: float) -> Tensor | None:
    """Return ENet's class weights 1 / ln(c + frequency), scaled to a mean of 1.

    Args:
        pixels: labelled pixels of each of the K classes.
        c: offset, greater than 1; 0 returns None.
    """
    if c == 0:
        return None
    counts = np.asarray(pixels, dtype=np.float64)
    weights = 1.0 / np.log(c + counts / max(counts.sum(), 1.0))
    return torch.tensor(weights / weights.mean(), dtype=torch.float32)


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None, size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits brought to ``size`` against labels brought there too.

    Args:
        logits: (N, K, h, w), any float type.
        labels: integer (N, H, W), 255 ignored.
        weights: (K,) or None.
        size: height and width of the comparison. Labels are taken at the centres of its pixels,
            logits interpolated there.

    Returns:
        two scalars, the weighted sum over labelled pixels and the sum of their weights. Apart,
        so that a batch spread over processes is divided by the weights of all of it.
    """
    logits, size = logits.float(), tuple(size)
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size, mode='bilinear', align_corners=False)
    if labels.shape[1:] != size:
        for axis in (1, 2):
            picked = _centres(labels.shape[axis], size[axis - 1], labels.device)
            labels = labels.index_select(axis, picked)
    labels = labels.long()
    total = F.cross_entropy(logits, labels, weights, ignore_index=UNLABELLED, reduction='sum')
    labelled = labels != UNLABELLED
    if weights is None:
        return total, labelled.sum().float()
    return total, (weights[torch.where(labelled, labels, 0)] * labelled).sum()


def _centres(size: int, new_size: int, device: torch.device) -> Tensor:
    """Return the pixels of an axis at the centres of the `new_size` pixels that it is brought to.

    A centre between two pixels takes them in turn. Always the same one, as torch's nearest-exact,
    would have networks learn to label half a pixel off: where labels are compared at half the size
    of views that are half the size of frames, one pixel of those.
    """
    cells = torch.arange(new_size, device=device)
    twice = (2 * cells + 1) * size
    between = (twice % (2 * new_size) == 0) & (cells % 2 == 0)
    return twice // (2 * new_size) - between.long()
