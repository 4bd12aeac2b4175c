from __future__ import annotations

import numpy as np
import pytest

from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.replay.evaluate import confusion_matrix, scores


def test_matches_public_code(goldens_dir):
    golden = np.load(goldens_dir / 'seg_metrics.npz')
    k = int(golden['n_classes'])
    matrix = confusion_matrix(golden['pred'], golden['gt'], k)
    np.testing.assert_array_equal(matrix[:, :k], golden['conf'])
    assert not matrix[:, k].any()
    result = scores(matrix)
    assert 100 * result.pixel_accuracy == pytest.approx(float(golden['pixel_acc']), abs=1e-9)
    assert 100 * result.mean_accuracy == pytest.approx(float(golden['mean_acc']), abs=1e-9)
    assert 100 * result.mean_iou == pytest.approx(float(golden['mean_iou']), abs=1e-9)


def test_adds_up_over_images(goldens_dir):
    golden = np.load(goldens_dir / 'seg_metrics.npz')
    parts = [confusion_matrix(p, g, 12) for p, g in zip(golden['pred'], golden['gt'], strict=True)]
    np.testing.assert_array_equal(sum(parts)[:, :12], golden['conf'])


def test_by_hand():
    truth = np.array([0, 0, 0, 1, 1, 255], np.uint8)
    labels = np.array([0, 0, 1, 1, 0, 0], np.uint8)
    result = scores(confusion_matrix(labels, truth, 3))
    assert result.pixel_accuracy == pytest.approx(3 / 5)
    assert result.mean_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Class 2 is in neither and must not pull the mean down.
    assert result.mean_iou == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert np.isnan(result.iou[2])
    assert np.isnan(result.accuracy[2])


def test_unlabelled_prediction_is_wrong():
    truth = np.zeros(4, np.uint8)
    labels = np.array([0, 0, 0, 255], np.uint8)
    result = scores(confusion_matrix(labels, truth, 2))
    assert result.pixel_accuracy == pytest.approx(0.75)
    assert result.iou[0] == pytest.approx(0.75)


def test_class_only_predicted_counts_as_zero_iou():
    result = scores(confusion_matrix(np.array([0, 1], np.uint8), np.array([0, 0], np.uint8), 2))
    assert result.mean_iou == pytest.approx((0.5 + 0.0) / 2)
    assert result.mean_accuracy == pytest.approx(0.5)


def test_nothing_counted_is_nan():
    void = np.full((2, 2), 255, np.uint8)
    result = scores(confusion_matrix(void, void, 4))
    assert np.isnan([result.pixel_accuracy, result.mean_accuracy, result.mean_iou]).all()


def test_refuses_what_cannot_be_compared():
    with pytest.raises(FrameError, match=r'\(2, 2\).*\(2, 3\)'):
        confusion_matrix(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), 2)
    with pytest.raises(FrameError, match='integers'):
        confusion_matrix(np.zeros((2, 2)), np.zeros((2, 2), np.uint8), 2)
    with pytest.raises(FrameError, match='integers, got uint8 and bool'):
        confusion_matrix(np.zeros((2, 2), np.uint8), np.zeros((2, 2), bool), 2)
    with pytest.raises(InputError, match='K x K'):
        scores(np.zeros((3, 5), np.int64))


def test_255_is_void_where_there_are_more_classes():
    truth = np.array([254, 254, 255, 255], np.uint16)
    labels = np.array([254, 255, 254, 255], np.uint16)
    matrix = confusion_matrix(labels, truth, 256)
    assert matrix.sum() == 2
    assert matrix[254, 254] == matrix[254, 255] == 1


@pytest.mark.parametrize('kind', [np.uint8, np.int64])
def test_what_is_no_class_is_void_in_the_truth_and_wrong_in_the_prediction(kind):
    values = [0, 1, 2, 3, 4, 254, 255] + ([-1, 1000] if kind is np.int64 else [])
    truth, labels = (m.ravel() for m in np.meshgrid(np.array(values, kind), values))
    matrix = confusion_matrix(labels.astype(kind), truth, 3)
    none = len(values) - 3
    np.testing.assert_array_equal(matrix, [[1, 1, 1, none]] * 3)
