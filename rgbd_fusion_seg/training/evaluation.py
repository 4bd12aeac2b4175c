"""Scores of networks and bundles: one confusion matrix over a whole set, at the labels' size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from rgbd_fusion_seg.palette import NYU40_CLASSES
from rgbd_fusion_seg.postprocess import labels_and_confidence
from rgbd_fusion_seg.replay.evaluate import confusion_matrix, scores
from rgbd_fusion_seg.segmenter import Segmenter
from rgbd_fusion_seg.training.datasets.cache import CachedFrames, FrameSource
from rgbd_fusion_seg.training.views import Normaliser, WholeFrames, batches


def summary(matrix: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Return the scores of a confusion matrix as plain numbers for a report (0..1)."""
    result = scores(matrix)
    per_class = {
        name: None if np.isnan(iou) else round(float(iou), 4)
        for name, iou in zip(class_names, result.iou, strict=True)
    }
    return {
        'mIoU': round(result.mean_iou, 5),
        'pixel_accuracy': round(result.pixel_accuracy, 5),
        'mean_accuracy': round(result.mean_accuracy, 5),
        'classes': per_class,
    }


@torch.inference_mode()
def evaluate_network(
    network: nn.Module,
    normalise: Normaliser,
    frames: CachedFrames,
    rgb_size: tuple[int, int],
) -> dict[str, Any]:
    """Score a torch module on prepared frames in float32, single scale, no flip.

    Args:
        network, normalise: the module and what makes its inputs.
        frames: the set; labels are compared at their own size.
        rgb_size: width and height of the network's colour input.
    """
    device = next(network.parameters()).device
    matrix = np.zeros((len(NYU40_CLASSES), len(NYU40_CLASSES) + 1), dtype=np.int64)
    for batch in tqdm(batches(WholeFrames(frames, rgb_size), 0), desc=f'score {frames.name}'):
        inputs = normalise({k: v.to(device) for k, v in batch.items() if k != 'labels'})
        truth = batch['labels'][0].numpy()
        logits = network(inputs).float().cpu().numpy()
        labels, _ = labels_and_confidence(logits, *truth.shape)
        matrix += confusion_matrix(labels, truth, len(NYU40_CLASSES))
    return summary(matrix, NYU40_CLASSES)


def evaluate_segmenter(segmenter: Segmenter, source: FrameSource) -> dict[str, Any]:
    """Score what ships: raw frames through the whole runtime pipeline."""
    names = segmenter.bundle.class_names
    matrix = np.zeros((len(names), len(names) + 1), dtype=np.int64)
    frames: Iterator[Any] = tqdm(source, total=len(source), desc=f'score {source.name}')
    for item in frames:
        labels = segmenter.segment(item.frame).labels
        matrix += confusion_matrix(labels, item.labels, len(names))
    return summary(matrix, names)
