from __future__ import annotations

import itertools
import math
from fractions import Fraction

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')
torchmetrics = pytest.importorskip('torchmetrics')

from rgbd_fusion_seg.replay.evaluate import confusion_matrix  # noqa: E402
from rgbd_fusion_seg.training import metrics  # noqa: E402
from rgbd_fusion_seg.training.datasets.base import ClassSet  # noqa: E402
from rgbd_fusion_seg.training.metrics import boundary_f  # noqa: E402


def test_scores_are_those_of_the_public_code(goldens_dir):
    golden = np.load(goldens_dir / 'seg_metrics.npz')
    k = int(golden['n_classes'])
    matrix = sum(
        confusion_matrix(p, t, k) for p, t in zip(golden['pred'], golden['gt'], strict=True)
    )
    np.testing.assert_array_equal(matrix[:, :k], golden['conf'])
    names = tuple(f'class {i}' for i in range(k))
    result = metrics.summary(matrix, names)
    assert result['pixel_accuracy'] == pytest.approx(float(golden['pixel_acc']) / 100, abs=1e-5)
    assert result['mean_accuracy'] == pytest.approx(float(golden['mean_acc']) / 100, abs=1e-5)
    assert result['mIoU'] == pytest.approx(float(golden['mean_iou']) / 100, abs=1e-5)
    assert tuple(result['classes']) == names


def test_frequency_weighted_iou_by_hand():
    # Class 2 is absent from the truth: it counts in mIoU with 0, and with weight 0 here.
    matrix = np.array([[6, 1, 1, 0], [2, 8, 0, 2], [0, 0, 0, 0]])
    scores = metrics.matrix_scores(matrix)
    np.testing.assert_allclose(scores.frequency, [8 / 20, 12 / 20, 0])
    assert scores.frequency_weighted_iou == pytest.approx(8 / 20 * 6 / 10 + 12 / 20 * 8 / 13)
    assert scores.overall.mean_iou == pytest.approx((6 / 10 + 8 / 13 + 0) / 3)


def test_a_set_without_labels_has_no_scores():
    result = metrics.summary(np.zeros((2, 3), int), ('a', 'b'))
    assert {result[k] for k in ('mIoU', 'pixel_accuracy', 'frequency_weighted_iou')} == {None}
    assert np.isnan(metrics.matrix_scores(np.zeros((2, 3), int)).frequency).all()


def test_counts_on_a_device_are_those_of_numpy_and_of_torchmetrics():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 9, (3, 20, 30)).astype(np.uint8)  # 7 and 8 are beyond the classes
    labels = rng.integers(0, 8, truth.shape).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = 255
    labels[rng.random(truth.shape) < 0.1] = 255
    ours = metrics.confusion_on_device(torch.from_numpy(labels), torch.from_numpy(truth), 7)
    np.testing.assert_array_equal(ours.numpy(), confusion_matrix(labels, truth, 7))
    truth[truth >= 7], labels[labels >= 7] = 255, 0
    theirs = torchmetrics.classification.MulticlassConfusionMatrix(7, ignore_index=255)
    expected = theirs(torch.from_numpy(labels).long(), torch.from_numpy(truth).long())
    ours = metrics.confusion_on_device(torch.from_numpy(labels), torch.from_numpy(truth), 7)
    np.testing.assert_array_equal(ours[:, :7].numpy(), expected.numpy())


def brute_force_f(labels, truth, num_classes, tolerance):
    """Boundary F straight from its definition, a pair of pixels at a time."""
    height, width = truth.shape
    limit = float(tolerance) * math.hypot(height, width)

    def boundary(image, k):
        out = []
        for y, x in itertools.product(range(height), range(width)):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(v, u) for v, u in around if 0 <= v < height and 0 <= u < width]
            if image[y, x] == k and any(image[p] != k for p in inside):
                out.append((y, x))
        return out

    def near(p, others, limit=limit):
        return any(math.dist(p, q) < limit for q in others)

    result = []
    for k in range(num_classes):
        shown, true = boundary(labels, k), boundary(truth, k)
        others = np.argwhere((truth < num_classes) & (truth != k)).tolist()
        counted_shown = [p for p in shown if truth[p] < num_classes]
        beside = max(limit, 1.01)
        counted_true = [p for p in true if near(p, others, beside)]
        if not counted_shown and not counted_true:
            result.append(math.nan)
            continue
        p = [near(q, true) for q in counted_shown] or [bool(shown)]
        r = [near(q, shown) for q in counted_true] or [bool(true)]
        p, r = sum(p) / len(p), sum(r) / len(r)
        result.append(2 * p * r / (p + r) if p + r else 0.0)
    return result


def blobs(rng, shape, num_classes):
    noise = rng.random((num_classes, *shape))
    return np.stack([cv2.GaussianBlur(x, (0, 0), 2.0) for x in noise]).argmax(0).astype(np.uint8)


def test_boundary_f_is_that_of_its_definition():
    rng = np.random.default_rng(1)
    compared = 0
    for case in range(12):
        truth, labels = blobs(rng, (22, 26), 4), blobs(rng, (22, 26), 4)
        if case % 3:
            labels = np.where(blobs(rng, truth.shape, 2) > 0, truth, labels)
        if case % 2:
            truth[blobs(rng, truth.shape, 4) == 0] = 255
        if case % 4 == 0:
            labels[:2] = 255
        # Irrational limits, where rounding cannot decide.
        tolerance = Fraction(1 + case % 5, 31)
        ours = boundary_f(labels, truth, 5, tolerance)
        expected = brute_force_f(labels, truth, 5, tolerance)
        np.testing.assert_allclose(ours, expected, rtol=1e-12)
        compared += np.count_nonzero(np.isfinite(ours))
    assert compared > 30


@pytest.mark.parametrize(('shape', 'pixels'), [((48, 64), 0), ((120, 160), 1)])
def test_boundary_f_of_small_images_is_that_of_its_definition(shape, pixels):
    """With tolerances of less than a pixel, and of one and a half."""
    rng = np.random.default_rng(2)
    height, width = shape
    truth, labels = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    truth[5:30, 20:40], labels[5:30, 24:40] = 1, 1
    truth[32:45, 40:60] = 2  # is missed
    labels[32:45, 5:15] = 3  # is invented
    truth[rng.random(shape) < 0.01] = 255
    ours = boundary_f(labels, truth, 5)
    tolerance = metrics.BOUNDARY_TOLERANCE
    assert math.floor(tolerance * math.isqrt(height**2 + width**2)) == pixels
    np.testing.assert_allclose(ours, brute_force_f(labels, truth, 5, tolerance), rtol=1e-12)
    np.testing.assert_array_equal(ours[2:], [0, 0, np.nan])
    assert 0 < ours[1] < 1
    np.testing.assert_array_equal(boundary_f(truth, truth, 3), 1)


@pytest.mark.parametrize(('shift', 'expected'), [(0, 1), (1, 0)])
def test_without_a_pixel_of_tolerance_boundaries_must_be_the_same(shift, expected):
    labels, truth = (edge_at(x)[:48, 280:344] for x in (300 + shift, 300))
    assert (boundary_f(labels, truth, 2) == 1).all() == expected


def edge_at(x: int) -> np.ndarray:
    labels = np.zeros((480, 640), np.uint8)
    labels[:, x:] = 1
    return labels


@pytest.mark.parametrize(('shift', 'expected'), [(0, 1), (5, 1), (-5, 1), (6, 0), (-6, 0)])
def test_the_tolerance_at_vga_is_less_than_six_pixels(shift, expected):
    np.testing.assert_array_equal(boundary_f(edge_at(300 + shift), edge_at(300), 2), expected)


def test_a_boundary_may_run_anywhere_in_a_thin_band_of_void():
    truth = edge_at(300)
    truth[:, 298:302] = 255
    for x in range(298, 303):
        np.testing.assert_array_equal(boundary_f(edge_at(x), truth, 2), 1)
    np.testing.assert_array_equal(boundary_f(edge_at(320), truth, 2), 0)


def test_nothing_is_asked_of_a_hole_in_the_truth():
    truth = np.zeros((480, 640), np.uint8)
    truth[100:300, 100:300] = 255
    blank = np.zeros_like(truth)
    assert np.isnan(boundary_f(blank, truth, 2)).all()
    invented = blank.copy()
    invented[150:250, 150:250] = 1
    assert np.isnan(boundary_f(invented, truth, 2)).all()
    invented[350:400, 350:400] = 1
    assert (boundary_f(invented, truth, 2)[:2] < 1).all()


def test_missed_and_invented_classes_score_nothing():
    result = boundary_f(np.zeros((480, 640), np.uint8), edge_at(300), 3)
    np.testing.assert_array_equal(result, [0, 0, np.nan])
    result = boundary_f(edge_at(300), np.zeros((480, 640), np.uint8), 3)
    np.testing.assert_array_equal(result, [0, 0, np.nan])


def test_boundary_scores_are_means_over_classes_then_over_images():
    nan = np.nan
    images = np.array([[1.0, 0.5, nan, nan], [0.0, nan, nan, nan], [nan] * 4])
    result = metrics.boundary_scores(images)
    assert result.mean == pytest.approx((0.75 + 0.0) / 2)
    np.testing.assert_allclose(result.by_class, [0.5, 0.5, nan, nan])
    assert math.isnan(metrics.boundary_scores(images[2:]).mean)


def test_frames_are_ranked_and_mistakes_named():
    classes = ClassSet('two', ('a', 'b'), np.zeros((2, 3), np.uint8))
    accuracy = np.array([0.5, np.nan, 0.9, 0.1])
    matrix = np.array([[5, 1, 4], [0, 7, 0]])
    result = metrics.SetScores(
        'set', classes, '', None, np.arange(0, 8, 2), accuracy, matrix, None
    )
    assert result.ranked().tolist() == [3, 0, 2]
    assert metrics.most_confused(matrix, 0) == (2, 0.4)
    assert metrics.most_confused(matrix, 1) is None
    assert metrics.frame_accuracy(matrix) == pytest.approx(12 / 17)
    assert math.isnan(metrics.frame_accuracy(matrix * 0))
