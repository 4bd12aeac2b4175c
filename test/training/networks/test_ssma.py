from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')

from torch.nn import functional as F  # noqa: E402

from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.training.networks import build_network, parameter_count  # noqa: E402
from rgbd_fusion_seg.training.networks.erfnet import ErfNet, ErfNetEncoder  # noqa: E402
from rgbd_fusion_seg.training.networks.ssma import (  # noqa: E402
    COMBINATIONS,
    Ssma,
    SsmaErfNet,
    make_combination,
)

FUSION = ('ssma_erfnet', 'rfbnet_erfnet')


def inputs(network, batch=2, height=32, width=48):
    generator = torch.Generator().manual_seed(3)
    shapes = {'rgb': (height, width), 'hha': network.hha_size(height, width)}
    return {k: torch.randn(batch, 3, *v, generator=generator) for k, v in shapes.items()}


def outputs(network, x):
    with torch.no_grad():
        return network.eval()(x, auxiliary=True)


def test_the_block_weighs_every_stream_at_every_pixel():
    torch.manual_seed(0)
    block = Ssma(24, 10, reduction=6).eval()
    block.project[1].running_var.uniform_(0.5, 2)
    a, b = torch.randn(2, 16, 5, 7), torch.randn(2, 8, 5, 7)
    x = torch.cat([a, b], 1)
    weights = dict(block.named_parameters())
    y = F.conv2d(x, weights['attention.0.weight'], weights['attention.0.bias'], padding=1)
    assert y.shape[1] == 4
    y = F.conv2d(y.clamp(min=0), weights['attention.2.weight'], weights['attention.2.bias'], 1, 1)
    weighted = x / (1 + torch.exp(-y))
    projected = torch.einsum('oi,nihw->nohw', weights['project.0.weight'][:, :, 0, 0], weighted)
    expected = projected / (block.project[1].running_var[:, None, None] + 1e-5).sqrt()
    with torch.no_grad():
        torch.testing.assert_close(block(a, b), expected, rtol=1e-4, atol=1e-5)


def test_the_block_has_the_size_of_the_public_codes():
    """That of AdapNet++'s deepest features, two times 256 channels, eta 16 (with biases)."""
    public = 147_488 + 147_968 + 131_584
    assert parameter_count(Ssma(512, 256, 16)).trainable == public


def test_concatenation_and_sum_are_what_they_say():
    streams = torch.randn(1, 6, 3, 4), torch.randn(1, 6, 3, 4), torch.randn(1, 2, 3, 4)
    concat = make_combination('concat', (6, 6, 2), 5)
    total = make_combination('sum', (6, 6, 2), 6)
    with torch.no_grad():
        kernel, bias = concat.weight[:, :, 0, 0], concat.bias[:, None, None]
        expected = torch.einsum('oi,nihw->nohw', kernel, torch.cat(streams, 1)) + bias
        torch.testing.assert_close(concat(*streams), expected)
        kernel, bias = total.widen[2].weight[:, :, 0, 0], total.widen[2].bias[:, None, None]
        widened = torch.einsum('oi,nihw->nohw', kernel, streams[2]) + bias
        torch.testing.assert_close(total(*streams), streams[0] + streams[1] + widened)
    assert parameter_count(make_combination('sum', (6, 6), 6)).trainable == 0
    with pytest.raises(ValueError, match='ssma'):
        make_combination('product', (6, 6), 6)


@pytest.mark.parametrize('combination', COMBINATIONS)
@pytest.mark.parametrize('shrink', [False, True])
def test_late_fusion_leaves_the_encoders_to_themselves(combination, shrink):
    network = SsmaErfNet(5, shrink_depth=shrink, combination=combination)
    x = inputs(network)
    fused, rgb, hha = outputs(network, x)
    assert x['hha'].shape[2:] == ((16, 24) if shrink else (32, 48))
    assert fused.shape == rgb.shape == (2, 5, 4, 6)
    assert hha.shape == ((2, 5, 2, 3) if shrink else (2, 5, 4, 6))
    other = outputs(network, {**x, 'hha': x['hha'].flip(3)})
    torch.testing.assert_close(other[1], rgb, rtol=0, atol=0)
    assert (other[0] - fused).abs().max() > 1e-3
    assert (other[2] - hha).abs().max() > 1e-3


def test_features_at_a_quarter_of_both_encoders_join_the_decoder():
    torch.manual_seed(0)
    network = SsmaErfNet(5, decoder='erfnet_quarter', multi_level=True, shrink_depth=True)
    x = inputs(network)
    fused = outputs(network, x)[0]
    assert fused.shape == (2, 5, 8, 12)
    with torch.no_grad():
        rgb4, rgb8 = network.rgb_encoder.features(x['rgb'])
        hha4, hha8 = network.hha_encoder.features(x['hha'])
        # With depth shrunk its features at 1/4 have the size of the colour's at 1/8.
        assert hha4.shape[2:] == rgb8.shape[2:]
        up = [F.interpolate(h, scale_factor=2, mode='bilinear') for h in (hha4, hha8)]
        deep, skip = network.combine(rgb8, up[1]), network.combine_quarter(rgb4, up[0])
        torch.testing.assert_close(network.decoder(deep, skip), fused)
    plain = SsmaErfNet(5, decoder='erfnet_quarter')
    added = parameter_count(network).trainable - parameter_count(plain).trainable
    assert added == parameter_count(Ssma(128, 64, 8)).trainable


def test_options_that_make_no_network_are_refused():
    with pytest.raises(ValueError, match='one of ssma, concat, sum, got'):
        SsmaErfNet(5, combination='product')
    with pytest.raises(ValueError, match='erfnet_quarter'):
        SsmaErfNet(5, decoder='unet')
    with pytest.raises(ValueError, match='multi_level'):
        SsmaErfNet(5, multi_level=True)


@pytest.fixture(scope='module')
def unimodal():
    """Networks of one modality with weights and statistics of their own."""
    torch.manual_seed(1)
    networks = {
        'rgb': ErfNet(5, modality='rgb', multi_level=True),
        'hha': ErfNetEncoder(5, modality='hha', shrink_depth=True),
    }
    for network in networks.values():
        for _ in range(2):
            network.train()({network.modality: torch.randn(2, 3, 32, 48)})
    return networks


@pytest.mark.parametrize('name', FUSION)
@pytest.mark.parametrize('options', [{}, {'complementary': 'none'}])
def test_fusion_starts_from_what_the_unimodal_networks_predict(name, options, unimodal):
    """Encoders, statistics and heads are copied, and the fusion disturbs neither stream."""
    if name == 'ssma_erfnet':
        options = {}
    network = build_network(name, 5, **{'shrink_depth': True, **options})
    for modality, source in unimodal.items():
        network.initialise_encoder(modality, source.state_dict())
    x = inputs(network)
    _, rgb, hha = outputs(network, x)
    torch.testing.assert_close(rgb, outputs(unimodal['rgb'], x)[1])
    torch.testing.assert_close(hha, outputs(unimodal['hha'], x)[0])


@pytest.mark.parametrize('name', FUSION)
def test_heads_for_other_classes_stay_as_they_were(name, unimodal):
    network = build_network(name, 7)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.initialise_encoder('hha', unimodal['hha'].state_dict())
    after = network.state_dict()
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert changed
    assert not [k for k in changed if 'rgb' in k or 'head' in k or 'fusion' in k]


@pytest.mark.parametrize('name', FUSION)
@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda w: w.pop('encoder.layers.9.bn1.running_var'), 'layers.9.bn1.running_var'),
        (lambda w: w.update({'encoder.layers.99.bias': torch.zeros(1)}), 'layers.99.bias'),
        (lambda w: w.update({'encoder.layers.3.bn1.weight': torch.zeros(7)}), r'\(7,\)'),
        (lambda w: w.update({'head.weight': torch.zeros(5, 64, 1, 1)}), 'head.weight'),
    ],
    ids=['missing', 'extra', 'shape', 'head'],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(name, damage, words, unimodal):
    network = build_network(name, 5)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    weights = unimodal['hha'].state_dict()
    damage(weights)
    with pytest.raises(InputError, match=words):
        network.initialise_encoder('hha', weights)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    with pytest.raises(ValueError, match='modality'):
        network.initialise_encoder('depth', weights)
