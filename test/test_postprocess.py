"""Labels and confidence against torch's interpolate, argmax and softmax."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg import kernels
from rgbd_fusion_seg.errors import EngineError
from rgbd_fusion_seg.postprocess import labels_and_confidence

SIZES = [
    ((60, 80), (480, 640)),
    ((30, 40), (480, 640)),
    ((60, 80), (540, 960)),
    ((15, 20), (121, 161)),
    ((9, 7), (9, 7)),
    ((1, 1), (16, 40)),
    ((1, 5), (3, 100)),
]


def noise(classes: int, height: int, width: int, scale: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal((1, classes, height, width), dtype=np.float32)


def smooth(classes: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Logits as networks make them: regions with a clear winner and borders between them."""
    planes = [cv2.GaussianBlur(p, (0, 0), 3) for p in noise(classes, height, width, 1.0, seed)[0]]
    logits = np.stack(planes)
    return np.ascontiguousarray(4 * logits[None] / logits.std(), dtype=np.float32)


def upsampled_by_torch(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    torch = pytest.importorskip('torch')
    values = torch.nn.functional.interpolate(
        torch.from_numpy(logits), size=(height, width), mode='bilinear', align_corners=False
    )
    return values[0].numpy()


def softmax_of_winner(upsampled: np.ndarray) -> np.ndarray:
    scores = upsampled.astype(np.float64)
    return 255 / np.exp(scores - scores.max(axis=0)).sum(axis=0)


@pytest.mark.parametrize(('small', 'large'), SIZES)
@pytest.mark.parametrize(
    'make', [smooth, lambda *size: noise(*size, 3.0)], ids=['smooth', 'noise']
)
def test_labels_are_those_of_torch_where_classes_do_not_tie(make, small, large):
    logits = make(40, *small)
    upsampled = upsampled_by_torch(logits, *large)
    labels, _ = labels_and_confidence(logits, *large)
    runner_up, winner = np.partition(upsampled, -2, axis=0)[-2:]
    decided = winner > runner_up
    assert decided.mean() > 0.99
    assert (labels == upsampled.argmax(axis=0))[decided].all()


@pytest.mark.parametrize(('small', 'large'), SIZES[:4])
def test_labels_are_those_of_torch_to_the_last_bit(small, large):
    """Classes that differ by single bits: any other order of roundings flips many labels."""
    torch = pytest.importorskip('torch')
    if not torch.backends.cpu.get_cpu_capability().startswith('AVX'):
        pytest.skip('torch rounds differently without AVX2')
    rng = np.random.default_rng(0)
    base = rng.standard_normal((1, 1, *small)).astype(np.float32)
    steps = rng.integers(-2, 3, size=(1, 6, *small)).astype(np.float32)
    logits = base * (1 + np.finfo(np.float32).eps * steps)
    upsampled = upsampled_by_torch(logits, *large)
    runner_up, winner = np.partition(upsampled, -2, axis=0)[-2:]
    decided = winner > runner_up
    labels, _ = labels_and_confidence(logits, *large)
    assert 0.2 < decided.mean() < 0.9
    assert (labels == upsampled.argmax(axis=0))[decided].all()
    assert (labels == upsampled.argmax(axis=0)).all(), 'ties go to the first class, too'


@pytest.mark.parametrize(('small', 'large'), [((60, 80), (30, 50)), ((33, 41), (16, 90))])
def test_shrinking_gives_the_labels_of_torch_up_to_round_off(small, large):
    logits = smooth(13, *small)
    upsampled = upsampled_by_torch(logits, *large)
    labels, _ = labels_and_confidence(logits, *large)
    runner_up, winner = np.partition(upsampled, -2, axis=0)[-2:]
    decided = winner > runner_up + 1e-5
    assert decided.mean() > 0.99
    assert (labels == upsampled.argmax(axis=0))[decided].all()


def test_taps_are_the_linear_interpolation_of_numpy():
    """Without torch: every column and row mixes what np.interp mixes at half-pixel centres."""
    logits = noise(3, 5, 6, 2.0)
    height, width = 23, 45
    rows = (np.arange(height) + 0.5) * 5 / height - 0.5
    columns = (np.arange(width) + 0.5) * 6 / width - 0.5
    along_x = np.array(
        [[np.interp(columns, np.arange(6), row) for row in plane] for plane in logits[0]]
    )
    both = np.array(
        [[np.interp(rows, np.arange(5), c) for c in plane.T] for plane in along_x]
    ).transpose(0, 2, 1)
    labels, confidence = labels_and_confidence(logits, height, width)
    runner_up, winner = np.partition(both, -2, axis=0)[-2:]
    decided = winner > runner_up + 1e-5
    assert (labels == both.argmax(axis=0))[decided].all()
    assert np.abs(softmax_of_winner(both) - confidence).max() < 12


@pytest.mark.parametrize(('small', 'large'), SIZES)
def test_confidence_is_the_softmax_of_the_winner_within_a_few_grey_levels(small, large):
    logits = smooth(40, *small)
    exact = softmax_of_winner(upsampled_by_torch(logits, *large))
    _, confidence = labels_and_confidence(logits, *large)
    error = confidence - exact
    assert np.abs(error).mean() < 1.0
    assert np.percentile(np.abs(error), 99) < 4.5
    assert np.abs(error).max() < 20
    assert error.max() < 1.0, 'merged classes may only lower the confidence, beyond rounding'


def test_confidence_is_exact_where_every_class_may_win():
    logits = noise(8, 12, 16, 0.4)
    exact = softmax_of_winner(upsampled_by_torch(logits, 96, 128))
    _, confidence = labels_and_confidence(logits, 96, 128)
    assert np.abs(confidence - exact).max() < 0.6


def test_confidence_of_known_probabilities():
    """Constant logits are the logarithms of chosen probabilities, so nothing is interpolated."""
    probabilities = np.array([0.05, 0.6, 0.3, 0.05], dtype=np.float32)
    logits = np.log(probabilities)[None, :, None, None] * np.ones((1, 1, 4, 5), np.float32)
    labels, confidence = labels_and_confidence(logits, 32, 40)
    assert (labels == 1).all()
    assert (confidence == 153).all()


@pytest.mark.parametrize('temperature', [0.5, 1.3, 4.0])
def test_a_temperature_changes_the_confidence_and_no_label(temperature):
    logits = smooth(40, 30, 40)
    plain, _ = labels_and_confidence(logits, 240, 320)
    labels, confidence = labels_and_confidence(logits, 240, 320, temperature)
    exact = softmax_of_winner(upsampled_by_torch(logits, 240, 320) / temperature)
    assert (labels == plain).all()
    assert np.abs(confidence - exact).mean() < 1
    assert np.abs(confidence - exact).max() < 20


def test_certainty_is_255_and_logits_may_be_huge():
    logits = np.zeros((1, 3, 2, 2), np.float32)
    logits[0, 2], logits[0, 0] = 1e30, -1e30
    labels, confidence = labels_and_confidence(logits, 16, 16)
    assert (labels == 2).all()
    assert (confidence == 255).all()


def test_the_first_of_tied_classes_wins():
    labels, confidence = labels_and_confidence(np.zeros((1, 5, 3, 3), np.float32), 24, 24)
    assert (labels == 0).all()
    assert (confidence == 51).all()


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_pixels_that_touch_a_broken_logit_are_unlabelled(value):
    logits = smooth(5, 6, 8)
    clean = labels_and_confidence(logits, 48, 64)
    logits[0, 3, 2, 4] = value
    labels, confidence = labels_and_confidence(logits, 48, 64)
    # Logit (2, 4) lies at pixel 8 * 2 + 3.5 and reaches to its neighbours, 8 pixels away.
    touched = np.zeros((48, 64), bool)
    touched[12:28, 28:44] = True
    assert (labels[touched] == 255).all()
    assert (confidence[touched] == 0).all()
    assert (labels[~touched] == clean[0][~touched]).all()


def test_logits_without_a_finite_value_give_an_unlabelled_image():
    labels, confidence = labels_and_confidence(np.full((1, 4, 3, 3), np.nan, np.float32), 9, 9)
    assert (labels == 255).all()
    assert (confidence == 0).all()


def test_results_are_contiguous_and_do_not_share_memory():
    logits = noise(4, 6, 8, 1.0)
    for width in (64, 61, kernels.BLOCK - 1):
        labels, confidence = labels_and_confidence(logits, 48, width)
        assert labels.shape == confidence.shape == (48, width)
        assert labels.flags.c_contiguous
        assert confidence.flags.c_contiguous
        assert not np.shares_memory(labels, confidence)


def test_transposed_logits_are_read_rightly():
    logits = noise(4, 6, 8, 1.0)
    strided = np.asfortranarray(logits)
    expected = labels_and_confidence(logits, 48, 64)
    for got, want in zip(labels_and_confidence(strided, 48, 64), expected, strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize(
    ('logits', 'words'),
    [
        (np.zeros((4, 6, 8), np.float32), '(4, 6, 8)'),
        (np.zeros((2, 4, 6, 8), np.float32), '(2, 4, 6, 8)'),
        (np.zeros((1, 4, 6, 8), np.float64), 'float64'),
        (np.zeros((1, 256, 6, 8), np.float32), '256 classes'),
    ],
)
def test_other_logits_are_refused(logits, words):
    with pytest.raises(EngineError) as caught:
        labels_and_confidence(logits, 48, 64)
    assert words in str(caught.value)
