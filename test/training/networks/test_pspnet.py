"""PSPNet's head against itself written out, its sizes against the public code's."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')

from plain_layers import (  # noqa: E402
    conv_norm,
    enlarged,
    image,
    normed,
    padded_conv,
    randomised,
    with_bias,
)
from torch.nn import functional as F  # noqa: E402

from rgbd_fusion_seg.training.networks import build_network, parameter_count  # noqa: E402
from rgbd_fusion_seg.training.networks.branches import BranchLayers  # noqa: E402
from rgbd_fusion_seg.training.networks.multimodal import ENCODERS  # noqa: E402
from rgbd_fusion_seg.training.networks.pspnet import PspNet, pooled  # noqa: E402
from rgbd_fusion_seg.training.networks.resnet import ResNet  # noqa: E402

ONE = BranchLayers(1)


def count(backbone: str, num_classes: int, branches: int = 1, **options: bool) -> int:
    modalities = ['rgb', 'hha'][:branches]
    with torch.device('meta'):
        network = build_network(
            'multimodal', num_classes, backbone=backbone, head='pspnet', modalities=modalities,
            head_options=options,
        )  # fmt: skip
    return parameter_count(network).trainable


def test_parameters_are_those_of_the_public_code():
    assert count('resnet152_deep', 40, auxiliary=False) == 81_361_896
    assert count('resnet152_deep', 40) == 81_361_896 + 2_370_088
    assert round(count('resnet101_deep', 19, auxiliary=False) / 1e6, 2) == 65.71
    assert round(count('resnet101_deep', 19) / 1e6, 2) == 68.07


def test_a_second_branch_adds_the_norms_of_the_encoder_and_its_weight_in_the_ensemble():
    one, two = count('resnet152_deep', 40), count('resnet152_deep', 40, 2)
    assert two - one == 151_808 + 2
    # Norms of the head: four levels of 512, two classifiers of 512 and 256.
    assert count('resnet152_deep', 40, 2, private_norms=True) - two == 2 * (5 * 512 + 256)


@pytest.mark.parametrize('size', [(1, 1), (4, 5), (6, 6), (7, 13), (60, 80)])
@pytest.mark.parametrize('bins', [1, 2, 3, 6])
def test_pooling_is_pytorchs_adaptive_one(size, bins):
    x, y = (image(2, 3, *size).requires_grad_() for _ in range(2))
    ours, theirs = pooled(x, bins), F.adaptive_avg_pool2d(y, bins)
    torch.testing.assert_close(ours, theirs)
    weight = image(*ours.shape, seed=2)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_pooling_in_half_precision_keeps_its_sums_in_range():
    x = torch.full((1, 1, 240, 320), 300.0, dtype=torch.float16)  # a cell sums up to 5.8 million
    for bins in (2, 6):
        assert torch.equal(pooled(x, bins), F.adaptive_avg_pool2d(x.float(), bins).half())


def classified(x, weights, name):
    return with_bias(conv_norm(x, weights, f'{name}.reduce'), weights, f'{name}.classify')


@pytest.mark.parametrize('size', [(6, 9), (5, 7)])
def test_the_head_is_what_is_written_out(size):
    head = randomised(PspNet(ONE, (8, 12, 16, 32), 5))
    weights = head.state_dict()
    features = [[image(2, c, *size, seed=c)] for c in (8, 12, 16, 32)]
    x = features[-1][0]
    parts = [x]
    for level, bins in enumerate((1, 2, 3, 6)):
        y = F.adaptive_avg_pool2d(x, bins)
        parts.append(enlarged(conv_norm(y, weights, f'pyramid.levels.{level}'), *size))
    expected = classified(torch.cat(parts, 1), weights, 'classifier')
    torch.testing.assert_close(head(features)[0], expected)
    auxiliary = classified(features[-2][0], weights, 'auxiliary')
    torch.testing.assert_close(head.auxiliary_logits(features)[0][0], auxiliary)


def test_the_encoder_with_deep_stem_and_dilation_is_what_is_written_out():
    encoder = randomised(ENCODERS['resnet26_deep'](ONE, output_stride=8))
    weights = encoder.state_dict()

    def layer(x, path, number, *options):
        x = padded_conv(x, weights[f'{path}conv{number}.weight'], *options)
        return normed(x, weights, f'{path}bn{number}')

    images = image(1, 3, 32, 48)
    x = images
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = layer(x, '', number, stride).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    expected = []
    for stage, (stride, dilation) in enumerate(((1, 1), (2, 1), (1, 2), (1, 4)), 1):
        for block in range(2):
            path, own = f'layer{stage}.{block}.', stride if block == 0 else 1
            y = layer(x, path, 1).relu()
            y = layer(layer(y, path, 2, own, dilation).relu(), path, 3)
            if block == 0:
                x = padded_conv(x, weights[f'{path}downsample.0.weight'], own)
                x = normed(x, weights, f'{path}downsample.1')
            x = (x + y).relu()
        expected.append(x)
    for ours, theirs in zip(encoder([images]), expected, strict=True):
        torch.testing.assert_close(ours[0], theirs)


def test_torchvisions_dilation_leaves_the_first_block_alone():
    def dilations(**options):
        encoder = ResNet(ONE, 'resnet26', output_stride=8, **options)
        return [[block.conv2.dilation[0] for block in stage] for stage in encoder.stages]

    with torch.device('meta'):
        assert dilations() == [[1, 1], [1, 1], [1, 2], [2, 4]]
        assert dilations(dilate_first=True) == [[1, 1], [1, 1], [2, 2], [4, 4]]
