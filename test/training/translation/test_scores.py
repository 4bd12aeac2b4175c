from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from scipy.linalg import sqrtm  # noqa: E402
from torch import nn  # noqa: E402

from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.training.translation.scores import (  # noqa: E402
    Distances,
    InceptionFeatures,
    as_bytes,
)


class Pooled(nn.Module):
    """Stands for Inception: 12 features, in the form of NVIDIA's file."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        if not return_features:
            return images.float()
        pooled = nn.functional.adaptive_avg_pool2d(images.float() / 255, (2, 2))
        return pooled.flatten(1)


@pytest.fixture
def inception(tmp_path):
    path = tmp_path / 'inception.pt'
    torch.jit.script(Pooled()).save(str(path))
    return path


def images(shift: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(60, 3, 16, 16, generator=generator) * 0.3 + shift).clamp(-1, 1)


def test_errors_are_those_of_values_from_minus_1_to_1():
    made, real = images(0.0, 0), images(0.1, 1)
    distances = Distances(None, 60)
    for first in range(0, 60, 8):
        distances.update(made[first : first + 8], real[first : first + 8])
    difference = (made - real).double().numpy()
    found = distances.result()
    assert found['MAE'] == pytest.approx(np.abs(difference).mean(), rel=1e-9)
    assert found['MSE'] == pytest.approx((difference**2).mean(), rel=1e-9)
    assert set(found) == {'MAE', 'MSE'}


def test_frechet_and_kernel_distances_are_those_of_their_definitions(inception):
    made, real = images(0.0, 0), images(0.1, 1)
    distances = Distances(InceptionFeatures(inception), 60)
    for first in range(0, 60, 8):
        distances.update(made[first : first + 8], real[first : first + 8])
    found = distances.result()
    with torch.no_grad():
        x, y = (Pooled()(as_bytes(i), return_features=True).double().numpy() for i in (made, real))
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(0) - y.mean(0)
    frechet = shift @ shift + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert found['FID'] == pytest.approx(frechet, rel=1e-3)

    def kernel(p, q):
        return (p @ q.T / p.shape[1] + 1) ** 3

    n = len(x)
    within = [(k.sum() - np.trace(k)) / (n * (n - 1)) for k in (kernel(x, x), kernel(y, y))]
    # 50 subsets of 60 are the whole set each time.
    assert found['KID'] == pytest.approx(sum(within) - 2 * kernel(x, y).mean(), rel=1e-3)
    assert found['FID'] > 0.01


@pytest.mark.parametrize(('num_images', 'size'), [(60, 60), (1000, 1000), (1200, 1000)])
def test_subsets_of_the_kernel_distance_have_a_thousand_images_at_most(
    inception, num_images, size
):
    """As KID is defined, and with all images where there are fewer."""
    metric = Distances(InceptionFeatures(inception), num_images).metrics['KID']
    assert (metric.subsets, metric.subset_size) == (50, size)


def test_equal_images_have_no_distance(inception):
    real = images(0.0, 0)
    distances = Distances(InceptionFeatures(inception), 60)
    distances.update(real, real)
    found = distances.result()
    assert found['MAE'] == found['MSE'] == 0
    assert found['FID'] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize('content', [None, b'nothing of the kind', nn.Identity()])
def test_a_file_that_gives_no_features_is_refused(tmp_path, content):
    path = tmp_path / 'weights.pt'
    if isinstance(content, nn.Module):
        torch.jit.script(content).save(str(path))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r'inception-v3-2015-12-05\.pt') as caught:
        InceptionFeatures(path)
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_one_image_is_no_distribution(inception):
    with pytest.raises(
        InputError, match='FID and KID compare distributions, and there is 1 image'
    ):
        Distances(InceptionFeatures(inception), 1)


def test_what_is_shown_of_values():
    values = torch.tensor([-1.0, 0.0, 1.0, 1.7, -3.0])
    assert as_bytes(values).tolist() == [0, 128, 255, 255, 0]
