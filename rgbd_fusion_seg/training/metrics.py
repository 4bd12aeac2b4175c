"""Scores of label images: from one confusion matrix over a set, and of the boundaries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from rgbd_fusion_seg.replay.evaluate import Scores, scores
from rgbd_fusion_seg.training.datasets.base import ClassSet

BOUNDARY_TOLERANCE = Fraction(75, 10_000)
"""Distance below which boundaries match, as a share of the image's diagonal (Csurka et al.)."""

NEIGHBOUR = 2
"""A squared distance below which 4-neighbours are, and no other pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class MatrixScores:
    """What a confusion matrix says, as fractions 0..1; NaN where nothing was counted.

    Args:
        overall: pixel accuracy, mean accuracy, mIoU, and both by class.
        frequency: float64 (K,) share of each class in the counted pixels of the truth.
        frequency_weighted_iou: IoU of the classes of the truth, weighted by their frequency.
    """

    overall: Scores
    frequency: np.ndarray
    frequency_weighted_iou: float


def matrix_scores(matrix: np.ndarray) -> MatrixScores:
    """Score a confusion matrix (K, K + 1) of `replay.evaluate`, summed over a whole set."""
    overall = scores(matrix)
    pixels = np.asarray(matrix).sum(axis=1, dtype=np.float64)
    total = pixels.sum()
    frequency = pixels / total if total else np.full(len(pixels), np.nan)
    present = pixels > 0
    weighted = float((frequency[present] * overall.iou[present]).sum()) if total else math.nan
    return MatrixScores(overall, frequency, weighted)


def summary(
    matrix: np.ndarray,
    class_names: tuple[str, ...],
    branches: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Return the scores of a confusion matrix as plain numbers 0..1, None where undefined.

    Those of the matrices of a network's branches, by name, stand under 'branches' where it has
    some, without their classes.
    """
    result = matrix_scores(matrix)
    scored = {name: summary(own, class_names) for name, own in (branches or {}).items()}
    for numbers in scored.values():
        del numbers['classes']
    return {
        'mIoU': plain(result.overall.mean_iou, 5),
        'pixel_accuracy': plain(result.overall.pixel_accuracy, 5),
        'mean_accuracy': plain(result.overall.mean_accuracy, 5),
        'frequency_weighted_iou': plain(result.frequency_weighted_iou, 5),
        **({'branches': scored} if scored else {}),
        'classes': {
            name: plain(iou) for name, iou in zip(class_names, result.overall.iou, strict=True)
        },
    }


def plain(value: float, digits: int = 4) -> float | None:
    """Return a number as a report has it: rounded, NaN as None."""
    return None if math.isnan(value) else round(float(value), digits)


def confusion_on_device(labels: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Count pairs of true and predicted class as `replay.evaluate.confusion_matrix`, for tensors.

    Args:
        labels: integer tensor, predicted class ids.
        truth: integer tensor of the same shape; 255 and ids of `num_classes` or above are void.
        num_classes: K.

    Returns:
        int64 (K, K + 1) on the tensors' device, which is waited for once (by bincount).
    """
    columns = num_classes + 1
    # Void pixels are counted in a row of their own: leaving them out would need their number, and
    # the device to stop for it once more.
    rows = truth.long().clamp(max=num_classes)
    pairs = rows * columns + labels.long().clamp(max=num_classes)
    counts = torch.bincount(pairs.flatten(), minlength=columns * columns)
    return counts.view(columns, columns)[:num_classes]


@dataclass(frozen=True, slots=True, eq=False)
class BoundaryScores:
    """Boundary F-score of a set, 0..1; NaN where no image has a boundary.

    Args:
        mean: F averaged over the classes of an image, and then over the images.
        by_class: float64 (K,) F of a class averaged over the images that have its boundary.
    """

    mean: float
    by_class: np.ndarray


def boundary_scores(images: np.ndarray) -> BoundaryScores:
    """Average `boundary_f` of the images of a set, (N, K)."""
    valid = ~np.isnan(images)
    counts = valid.sum(axis=1)
    values = np.where(valid, images, 0.0)
    per_image = values.sum(axis=1)[counts > 0] / counts[counts > 0]
    by_class = np.full(images.shape[1], np.nan)
    np.divide(values.sum(axis=0), valid.sum(axis=0), out=by_class, where=valid.any(axis=0))
    return BoundaryScores(float(per_image.mean()) if per_image.size else math.nan, by_class)


def boundary_f(
    labels: np.ndarray,
    truth: np.ndarray,
    num_classes: int,
    tolerance: Fraction = BOUNDARY_TOLERANCE,
) -> np.ndarray:
    """Return the boundary F-score of every class in one image (Csurka et al., BMVC 2013).

    The boundary of a class are its pixels with a 4-neighbour of another label; the image's
    border is none. Precision is the share of the predicted boundary that lies closer than
    ``tolerance`` times the image's diagonal to the true one, recall the reverse, and
    F = 2 P R / (P + R).

    The paper has no void. Data sets leave it in thin bands around objects and in large holes:
    nine tenths of the class boundaries of NYUDv2 touch void. So the true boundary includes
    where a class meets void, and

    * precision counts the predicted boundary only where the truth is known;
    * recall counts the true boundary only where another class is within the tolerance, or next
      to it where that is less than a pixel: across a thin band there is a boundary somewhere, at
      the rim of a hole nobody knows.

    Where nothing of a boundary can be counted, it cannot be wrong: that share is 1.

    Args:
        labels: uint8 (H, W) predicted.
        truth: uint8 (H, W), ids of `num_classes` or above are void.
        num_classes: K.
        tolerance: share of the image's diagonal.

    Returns:
        float64 (K,), NaN for a class that has no countable boundary in either image.
    """
    height, width = truth.shape
    # Exact integers: at 640x480 the tolerance is 6 pixels, a distance that does occur.
    limit = math.ceil(tolerance**2 * (height**2 + width**2))
    result = np.full(num_classes, np.nan)
    for k in np.union1d(np.unique(labels), np.unique(truth)):
        if k < num_classes:
            rows, columns = _surroundings((labels == k) | (truth == k), math.isqrt(limit) + 1)
            result[k] = _class_f(
                labels[rows, columns], truth[rows, columns], k, num_classes, limit
            )
    return result


def _surroundings(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Return the rows and columns of a mask's bounding box with a margin around."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    rows = slice(max(y - margin, 0), y + height + margin)
    return rows, slice(max(x - margin, 0), x + width + margin)


def _class_f(labels: np.ndarray, truth: np.ndarray, k: int, num_classes: int, limit: int) -> float:
    predicted, true = _boundary(labels == k), _boundary(truth == k)
    known = truth < num_classes
    shown = predicted & known
    counted = true & _near(known & (truth != k), max(limit, NEIGHBOUR))
    if not shown.any() and not counted.any():
        return math.nan
    precision = _share(shown, _near(true, limit), predicted)
    recall = _share(counted, _near(predicted, limit), true)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask with a 4-neighbour outside it; beyond the image nothing is outside."""
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    inner = cv2.erode(mask.astype(np.uint8), cross, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    return mask & (inner == 0)


def _near(mask: np.ndarray, limit: int) -> np.ndarray:
    """Pixels whose squared distance to the mask is below ``limit``."""
    if not mask.any():
        return np.zeros(mask.shape, bool)
    outside = (~mask).astype(np.uint8)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.rint(np.square(distance, dtype=np.float64)) < limit


def _share(counted: np.ndarray, matched: np.ndarray, boundary: np.ndarray) -> float:
    if counted.any():
        return float(matched[counted].mean())
    return float(boundary.any())


@dataclass(frozen=True, slots=True, eq=False)
class SetScores:
    """What was measured on one set of frames.

    Args:
        name: of the set, e.g. 'nyudv2_test'.
        classes: what labels mean.
        terms: what the data is.
        size: width and height at which labels were compared; None where frames differ.
        indices: int64 (N,) the frames that were scored.
        accuracy: float64 (N,) share of right pixels of each, NaN without labelled ones.
        matrix: int64 (K, K + 1), summed over all of them.
        boundary: None where it was not measured.
        branches: the same matrix for each branch that predicts for itself, by name.
    """

    name: str
    classes: ClassSet
    terms: str
    size: tuple[int, int] | None
    indices: np.ndarray
    accuracy: np.ndarray
    matrix: np.ndarray
    boundary: BoundaryScores | None
    branches: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def comparison(self) -> str:
        """How labels were compared, as the words of a sentence."""
        size = 'their own size' if self.size is None else '{}x{}'.format(*self.size)
        return (
            f'labels compared at {size}, one confusion matrix over the set, absent classes skipped'
        )

    def summary(self) -> dict[str, Any]:
        """Return the numbers for a model's card."""
        numbers = summary(self.matrix, self.classes.names, self.branches)
        by_class = numbers.pop('classes')
        if self.boundary is not None:
            numbers['boundary_f'] = plain(self.boundary.mean, 5)
        return {**numbers, 'classes': by_class}

    def ranked(self) -> np.ndarray:
        """Return positions in `indices`, the frame with fewest right pixels first."""
        order = np.argsort(self.accuracy, kind='stable')  # NaN comes last
        return order[: np.count_nonzero(~np.isnan(self.accuracy))]


def frame_accuracy(matrix: np.ndarray) -> float:
    """Share of right pixels among the labelled ones of a frame; NaN without any."""
    total = int(matrix.sum())
    return float(np.diagonal(matrix).sum() / total) if total else math.nan


def most_confused(matrix: np.ndarray, k: int) -> tuple[int, float] | None:
    """Return the class that class ``k`` is most often taken for, and for which share of it.

    Returns:
        (class, share of the true pixels); K stands for unlabelled. None if always right.
    """
    row = np.array(matrix[k], dtype=np.float64)
    total, row[k] = row.sum(), 0.0
    if not row.any():
        return None
    other = int(row.argmax())
    return other, float(row[other] / total)
