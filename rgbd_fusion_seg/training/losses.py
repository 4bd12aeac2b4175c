"""Losses of semantic segmentation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rgbd_fusion_seg.frame import UNLABELLED


def class_weights(labels: np.ndarray, num_classes: int, c: float) -> Tensor | None:
    """Return ENet's class weights 1 / ln(c + frequency), scaled to a mean of 1.

    Args:
        labels: uint8, any shape; 255 is not counted.
        num_classes: K.
        c: offset, greater than 1; 0 returns None.
    """
    if c == 0:
        return None
    counts = np.zeros(256, dtype=np.int64)
    for part in labels:
        counts += np.bincount(part.ravel(), minlength=256)
    frequency = counts[:num_classes] / max(counts[:num_classes].sum(), 1)
    weights = 1.0 / np.log(c + frequency)
    return torch.tensor(weights / weights.mean(), dtype=torch.float32)


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None, size: tuple[int, int]):
    """Cross-entropy of logits brought to ``size`` against labels brought there too.

    Args:
        logits: (N, K, h, w), any float type.
        labels: int64 (N, H, W), 255 ignored.
        weights: (K,) or None.
        size: height and width of the comparison.

    Returns:
        scalar; 0 where no pixel is labelled.
    """
    logits = logits.float()
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size, mode='bilinear', align_corners=False)
    if labels.shape[1:] != size:
        labels = F.interpolate(labels[:, None].float(), size, mode='nearest-exact')[:, 0].long()
    if not bool((labels != UNLABELLED).any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits, labels, weights, ignore_index=UNLABELLED)
