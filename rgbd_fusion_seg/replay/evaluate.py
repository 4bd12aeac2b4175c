"""Scores of label images against ground truth; numpy alone, for replays and training alike."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.frame import UNLABELLED


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What a confusion matrix says, as fractions 0..1; NaN where nothing was counted.

    Args:
        pixel_accuracy: correct pixels among all that were counted.
        mean_accuracy: recall averaged over the classes that the truth holds.
        mean_iou: intersection over union averaged over the classes that truth or prediction
            hold; a class absent from both is skipped, not counted as 0.
        iou: float64 (K,), NaN for skipped classes.
        accuracy: float64 (K,) recall, NaN for classes absent from the truth.
    """

    pixel_accuracy: float
    mean_accuracy: float
    mean_iou: float
    iou: np.ndarray = field(repr=False)
    accuracy: np.ndarray = field(repr=False)


def confusion_matrix(labels: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of every pair of true and predicted class.

    Matrices of several images add up: score their sum, never the mean of the images' scores.

    Args:
        labels: integer array, predicted class ids.
        truth: integer array of the same shape; 255 and all that is none of the K classes is
            void and not counted.
        num_classes: K.

    Returns:
        int64 (K, K + 1), row = truth, column = prediction. The last column holds pixels that
        have a true class but were predicted as none of the K, such as 255: they are wrong.

    Raises:
        FrameError: the shapes differ, or an array does not hold integers.
    """
    if labels.shape != truth.shape:
        raise FrameError(
            f'labels have the shape {labels.shape} but the ground truth {truth.shape}; '
            'compare label images of one size'
        )
    if labels.dtype.kind not in 'ui' or truth.dtype.kind not in 'ui':
        raise FrameError(
            f'labels and ground truth must hold integers, got {labels.dtype} and {truth.dtype}'
        )
    counted = (truth != UNLABELLED) & (truth < num_classes) & (truth >= 0)
    columns = num_classes + 1
    predicted = labels[counted].astype(np.int64)
    predicted[(predicted < 0) | (predicted >= num_classes)] = num_classes
    pairs = truth[counted].astype(np.int64) * columns + predicted
    return np.bincount(pairs, minlength=num_classes * columns).reshape(num_classes, columns)


def scores(matrix: np.ndarray) -> Scores:
    """Score a confusion matrix (K, K) or (K, K + 1), or the sum of many.

    Raises:
        InputError: the matrix has another shape.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[1] - matrix.shape[0] not in (0, 1):
        raise InputError(f'a confusion matrix is K x K or K x (K + 1), got {matrix.shape}')
    k = matrix.shape[0]
    correct = np.diagonal(matrix).astype(np.float64)
    in_truth = matrix.sum(axis=1, dtype=np.float64)
    union = in_truth + matrix[:, :k].sum(axis=0, dtype=np.float64) - correct
    total = in_truth.sum()
    accuracy = np.divide(correct, in_truth, out=np.full(k, np.nan), where=in_truth > 0)
    iou = np.divide(correct, union, out=np.full(k, np.nan), where=union > 0)
    return Scores(
        pixel_accuracy=float(correct.sum() / total) if total else float('nan'),
        mean_accuracy=_mean(accuracy),
        mean_iou=_mean(iou),
        iou=iou,
        accuracy=accuracy,
    )


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float('nan')
