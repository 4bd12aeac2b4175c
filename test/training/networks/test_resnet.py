"""ResNet over branches: what it takes over from files by torchvision's names."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')

from plain_layers import normed  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.training.networks.branches import BranchLayers  # noqa: E402
from rgbd_fusion_seg.training.networks.resnet import ResNet  # noqa: E402

BLOCKS = (2, 1, 2, 1)


def torchvision_weights(blocks: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """Random values by the names and shapes of torchvision's ResNets of bottlenecks."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}

    def conv(name: str, *shape: int) -> None:
        weights[f'{name}.weight'] = torch.randn(shape, generator=generator) / shape[1] ** 0.5

    def norm(name: str, channels: int) -> None:
        for part in ('weight', 'bias', 'running_mean', 'running_var'):
            weights[f'{name}.{part}'] = 0.5 + torch.rand(channels, generator=generator)
        weights[f'{name}.num_batches_tracked'] = torch.tensor(7)

    conv('conv1', 64, 3, 7, 7)
    norm('bn1', 64)
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            name = f'layer{stage + 1}.{block}'
            conv(f'{name}.conv1', width, channels, 1, 1)
            conv(f'{name}.conv2', width, width, 3, 3)
            conv(f'{name}.conv3', 4 * width, width, 1, 1)
            for i, size in enumerate((width, width, 4 * width), 1):
                norm(f'{name}.bn{i}', size)
            if block == 0:
                conv(f'{name}.downsample.0', 4 * width, channels, 1, 1)
                norm(f'{name}.downsample.1', 4 * width)
            channels = 4 * width
    conv('fc', 1000, channels)
    weights['fc.bias'] = torch.zeros(1000)
    return weights


def features_written_out(x: Tensor, w: dict[str, Tensor], blocks: tuple[int, ...]) -> list[Tensor]:
    """The stages' outputs, in plain functions."""
    x = normed(F.conv2d(x, w['conv1.weight'], None, 2, 3), w, 'bn1').relu()
    x = F.max_pool2d(x, 3, 2, 1)
    features = []
    for stage, count in enumerate(blocks):
        for block in range(count):
            name = f'layer{stage + 1}.{block}'
            stride = 2 if stage and not block else 1
            y = normed(F.conv2d(x, w[f'{name}.conv1.weight']), w, f'{name}.bn1').relu()
            y = F.conv2d(y, w[f'{name}.conv2.weight'], None, stride, 1)
            y = normed(y, w, f'{name}.bn2').relu()
            y = normed(F.conv2d(y, w[f'{name}.conv3.weight']), w, f'{name}.bn3')
            if not block:
                x = F.conv2d(x, w[f'{name}.downsample.0.weight'], None, stride)
                x = normed(x, w, f'{name}.downsample.1')
            x = (x + y).relu()
        features.append(x)
    return features


@pytest.fixture
def small(monkeypatch):
    """A variant of our own, small enough, with more than one block in a stage."""
    variants = {'small': BLOCKS, 'smaller': (1, 1, 1, 1)}
    monkeypatch.setattr('rgbd_fusion_seg.training.networks.resnet.VARIANTS', variants)


@pytest.mark.parametrize(
    'layers', [(1,), (2,), (3, True, True), (2, False, False)], ids=lambda x: '-'.join(map(str, x))
)
def test_every_branch_computes_what_a_resnet_of_others_does(small, layers):
    weights = torchvision_weights(BLOCKS)
    encoder = ResNet(BranchLayers(*layers), 'small').eval()
    encoder.initialise(weights)
    images = [torch.randn(1, 3, 32, 48) for _ in range(layers[0])]
    with torch.no_grad():
        features = encoder(images)
        for m, image in enumerate(images):
            theirs = features_written_out(image, weights, BLOCKS)
            for ours, expected in zip(features, theirs, strict=True):
                assert (ours[m] - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize('layers', [(1,), (2,), (2, False, False)])
def test_what_is_missing_unknown_or_of_another_shape_is_named(small, layers):
    weights = torchvision_weights(BLOCKS)
    encoder = ResNet(BranchLayers(*layers), 'small')
    before = {k: v.clone() for k, v in encoder.state_dict().items()}

    def refused(changes: dict[str, Tensor], without: str, words: str) -> None:
        given = {k: v for k, v in weights.items() if k != without} | changes
        with pytest.raises(InputError, match=words):
            encoder.initialise(given)

    for name in ('conv1.weight', 'bn1.running_var', 'layer3.1.bn2.bias', 'layer2.0.conv3.weight'):
        refused({}, name, f'lacks {name}; give a torchvision')
    refused({'layer1.2.conv1.weight': torch.zeros(1)}, '', r'has layer1\.2\.conv1\.weight, which')
    refused({'conv1.weight': torch.zeros(64, 4, 7, 7)}, '', r'another shape of conv1\.weight')
    transposed = weights['layer1.0.conv3.weight'].transpose(0, 1)
    refused(
        {'layer1.0.conv3.weight': transposed}, '', r'another shape of layer1\.0\.conv3\.weight'
    )
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(InputError, match=r'has layer1\.1\.conv1\.weight, which this ResNet lacks'):
        ResNet(BranchLayers(*layers), 'smaller').initialise(weights)
    del weights['fc.weight'], weights['fc.bias']
    old = {k: v for k, v in weights.items() if not k.endswith('num_batches_tracked')}
    encoder.initialise(old)  # as files of old PyTorch are
