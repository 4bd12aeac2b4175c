from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.training.losses import class_weights, cross_entropy  # noqa: E402


def test_class_weights_are_enets_formula_over_counted_pixels():
    weights = class_weights([3, 1, 0], 1.02).numpy()
    raw = np.array([1 / math.log(1.02 + f) for f in (0.75, 0.25, 0.0)])
    np.testing.assert_allclose(weights, raw / raw.mean(), rtol=1e-6)
    assert class_weights([3, 1, 0], 0) is None


def test_cross_entropy_is_the_weighted_mean_over_labelled_pixels():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 6, 8, generator=generator)
    labels = torch.randint(0, 4, (2, 6, 8), generator=generator)
    labels[0, :2] = 255
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    total, norm = 0.0, 0.0
    for n, v, u in np.argwhere(labels.numpy() != 255):
        k = int(labels[n, v, u])
        log_p = torch.log_softmax(logits[n, :, v, u], 0)[k]
        total, norm = total - float(weights[k] * log_p), norm + float(weights[k])
    sums = cross_entropy(logits, labels, weights, (6, 8))
    assert [float(x) for x in sums] == pytest.approx([total, norm], rel=1e-5)
    _, pixels = cross_entropy(logits, labels, None, (6, 8))
    assert int(pixels) == int((labels != 255).sum())


def test_labels_are_sampled_not_mixed_when_sizes_differ():
    labels = torch.full((1, 8, 8), 3)
    labels[:, :, 3:] = 1  # the border lies within a pixel of the smaller size
    logits = torch.zeros(1, 4, 4, 4)
    logits[:, 3, :, :1] = 50.0
    logits[:, 1, :, 1:] = 50.0
    loss, pixels = cross_entropy(logits, labels, None, (4, 4))
    assert float(loss / pixels) < 1e-6


def enlarged(values, count):
    """Rows (N, K, few, w) -> (N, K, count, w), linearly between the centres of pixels."""
    few = values.shape[2]
    centres = (np.arange(count) + 0.5) * few / count - 0.5
    return np.apply_along_axis(lambda x: np.interp(centres, np.arange(few), x), 2, values)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_small_logits_are_enlarged_about_pixel_centres_and_summed_in_float32(dtype):
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(0, 4, (1, 3, 4, 6))).to(dtype)
    labels = rng.integers(0, 3, (1, 16, 24))
    large = enlarged(enlarged(logits.double().numpy(), 16).swapaxes(2, 3), 24).swapaxes(2, 3)
    chosen = np.take_along_axis(large, labels[:, None], 1)[:, 0]
    expected = (np.log(np.exp(large).sum(1)) - chosen).sum()
    loss, _ = cross_entropy(logits, torch.from_numpy(labels), None, (16, 24))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_an_unlabelled_batch_costs_nothing_and_breaks_nothing():
    logits = torch.randn(1, 4, 6, 8, requires_grad=True)
    loss, pixels = cross_entropy(logits, torch.full((1, 6, 8), 255), torch.ones(4), (6, 8))
    loss.backward()
    assert float(loss.detach()) == float(pixels) == 0.0
    assert torch.isfinite(logits.grad).all()


def picked_columns(width, cells):
    """Columns of labels that a loss at fewer cells compares, told by its gradient."""
    logits = torch.zeros(1, width, 1, cells, requires_grad=True)
    labels = torch.arange(width).expand(1, 1, width)
    cross_entropy(logits, labels, None, (1, cells))[0].backward()
    return logits.grad[0, :, 0].argmin(0).numpy()


@pytest.mark.parametrize(
    ('width', 'cells'), [(24, 12), (24, 6), (24, 3), (24, 8), (24, 16), (9, 4)]
)
def test_labels_are_taken_at_the_centres_of_cells_and_leave_none_aside(width, cells):
    centres = (np.arange(cells) + 0.5) * width / cells
    aside = picked_columns(width, cells) + 0.5 - centres
    assert np.abs(aside).max() <= 0.5 + 1e-9
    assert abs(aside.mean()) <= 0.5 / cells + 1e-9  # an odd number of ties cannot be even


@pytest.mark.parametrize('size', [(12, 16), (6, 8), (8, 32)])
def test_a_mirrored_view_has_the_same_loss(size):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 4, 6, 8, generator=generator)
    labels = torch.randint(0, 4, (1, 24, 32), generator=generator)
    expected = cross_entropy(logits, labels, None, size)[0]
    for axis in (1, 2):
        mirrored = cross_entropy(logits.flip(axis + 1), labels.flip(axis), None, size)[0]
        torch.testing.assert_close(mirrored, expected)
