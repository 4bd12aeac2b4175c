"""What holds for heads and encoders of several branches in every combination."""

from __future__ import annotations

import re

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip('torch')

from onnx_weights import count_weights  # noqa: E402
from plain_layers import randomised  # noqa: E402
from torch import nn  # noqa: E402

from rgbd_fusion_seg.training.networks import build_network  # noqa: E402
from rgbd_fusion_seg.training.networks.branches import OneEach  # noqa: E402
from rgbd_fusion_seg.training.onnx_graph import GraphOptions, build_graph  # noqa: E402

TINY = 'xception23_quarter'
DEEPLAB = {'head': 'deeplabv3plus', 'head_options': {'width': 16}}
COMBINATIONS = [
    pytest.param({'backbone': TINY, 'head': 'pspnet'}, id='xception-pspnet'),
    pytest.param({'backbone': TINY, **DEEPLAB}, id='xception-deeplab'),
    pytest.param({'backbone': 'resnet14', **DEEPLAB}, id='resnet-deeplab'),
    pytest.param({'backbone': 'resnet14_deep', 'head': 'pspnet'}, id='resnet-pspnet'),
    pytest.param(
        {'backbone': TINY, 'head': 'refinenet', 'head_options': {'width': 8}},
        id='xception-refinenet',
    ),
]


def built(seed: int = 0, **options: object) -> nn.Module:
    return randomised(build_network('multimodal', 5, **options), seed)


def images(height: int = 48, width: int = 64, dtype: torch.dtype = torch.float64) -> dict:
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(1, 3, height, width, generator=generator, dtype=torch.float64).to(dtype)
        for name in ('rgb', 'hha')
    }


def own_weights(network: nn.Module, branch: int) -> dict:
    """Pick a branch's weights by their names: `bn1.0.weight` is branch 0's `bn1.weight`."""
    alone = build_network('multimodal', 5, **network.test_options, modalities=['rgb'])
    state, picked = network.state_dict(), {}
    for name in alone.state_dict():
        path, _, part = name.rpartition('.')
        picked[name] = state.get(f'{path}.{branch}.{part}', state.get(name))
    return picked


@torch.no_grad()
@pytest.mark.parametrize('options', COMBINATIONS)
def test_two_branches_are_two_networks_with_their_norms(options):
    network = built(**options)
    network.test_options = options
    x = images()
    outputs = network(x, auxiliary=True)
    extra = len(network.auxiliary_weights) // 2  # predictions of each branch
    for m, name in enumerate(('rgb', 'hha')):
        alone = build_network('multimodal', 5, **options, modalities=[name]).double().eval()
        alone.load_state_dict(own_weights(network, m))
        expected = alone({name: x[name]}, auxiliary=True)
        assert len(expected) == extra
        for i, logits in enumerate(expected):
            torch.testing.assert_close(outputs[1 + 2 * i + m], logits)
    assert not torch.allclose(outputs[1], outputs[2])
    weights = network.ensemble.alpha.softmax(0)
    torch.testing.assert_close(outputs[0], weights[0] * outputs[1] + weights[1] * outputs[2])


@pytest.mark.parametrize('head', ['pspnet', 'deeplabv3plus'])
def test_norms_are_private_in_the_encoder_and_by_option_in_the_head(head):
    def private(part, **options):
        with torch.device('meta'):
            network = build_network('multimodal', 5, backbone=TINY, head=head, **options)
        norms = {n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
        return {bool(re.search(r'\.[01]$', n)) for n in norms if n.startswith(part)}

    assert private('encoder') == {True}
    assert private('head') == {False}
    assert private('head', head_options={'private_norms': True}) == {True}
    assert private('head', share_convs=False) == {True}


def test_the_auxiliary_head_of_pspnet_counts_less_and_can_be_left_out():
    options = {'backbone': TINY, 'head': 'pspnet'}
    assert built(**options).auxiliary_weights == (1.0, 1.0, 0.4, 0.4)
    assert built(**options, modalities=['hha']).auxiliary_weights == (0.4,)
    without = built(**options, head_options={'auxiliary': False})
    assert without.auxiliary_weights == (1.0, 1.0)
    assert len(without(images(), auxiliary=True)) == 3


def test_frozen_norms_are_those_of_the_encoder():
    """Norms of a head start without statistics, so they must gather them."""
    network = built(backbone=TINY, **DEEPLAB, freeze_norms=True).train()

    def training(module):
        return {m.training for m in module.modules() if isinstance(m, nn.BatchNorm2d)}

    assert training(network.encoder) == {False}
    assert training(network.head) == {True}


@torch.no_grad()
def test_weights_belong_to_modalities_in_whatever_order_these_are_named():
    options = {'backbone': 'resnet14', **DEEPLAB}
    network, other = (
        built(seed, **options, modalities=list(names))
        for seed, names in enumerate([('rgb', 'hha'), ('hha', 'rgb')])
    )
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(images()), network(images()))


@torch.no_grad()
@pytest.mark.parametrize('ensemble', ['softmax', 'mean', 'concat'])
def test_every_ensemble_begins_as_the_mean_of_the_branches(ensemble):
    options = {'modalities': ['rgb', 'hha', 'depth'], 'ensemble': ensemble}
    network = build_network('multimodal', 5, backbone='resnet14', **DEEPLAB, **options).eval()
    fused, *branches = network({m: torch.randn(1, 3, 32, 48) for m in network.modalities}, True)
    assert not torch.allclose(branches[0], branches[1])
    torch.testing.assert_close(fused, torch.stack(branches).mean(0))


def run_graph(model, x: dict) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(['logits'], {k: v.numpy() for k, v in x.items()})[0]


EXPORTED = [
    pytest.param(
        {'backbone': TINY, 'head': 'pspnet', 'modalities': ['rgb']}, False, id='xception-pspnet'
    ),
    pytest.param(
        {'backbone': 'resnet14_deep', 'head': 'pspnet', 'modalities': ['hha']},
        True,
        id='resnet-pspnet-any_size',
    ),
    pytest.param({'backbone': TINY, **DEEPLAB}, True, id='xception-deeplab-any_size'),
]


@pytest.mark.parametrize(('options', 'dynamic'), EXPORTED)
def test_the_graph_answers_as_the_network(options, dynamic):
    network = built(**options).float()
    model = build_graph(network, 48, 80, GraphOptions(storage='fp32', dynamic_size=dynamic))
    for height, width in [(48, 80), (96, 64), (16, 16)][: 3 if dynamic else 1]:
        x = images(height, width, torch.float32)
        x = {name: x[name] for name in network.modalities}
        with torch.no_grad():
            expected = network(x).numpy()
        got = run_graph(model, x)
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
    if network.num_branches == 1 and network.head_name == 'pspnet':
        # What only training needs is not in it; norms are biases there, the rest is masks.
        kept = [p.numel() for n, p in network.named_parameters() if 'auxiliary' not in n]
        assert count_weights(model) <= sum(kept)


@pytest.mark.parametrize('options', COMBINATIONS)
def test_a_branch_alone_answers_as_it_does_among_others(options):
    network = built(**options)
    x = images()
    branches = network(x, auxiliary=True)[1:3]
    for expected, modality in zip(branches, ('rgb', 'hha'), strict=True):
        name, own_options, weights = network.unimodal_form(modality)
        alone = build_network(name, 5, **own_options).double().eval()
        alone.load_state_dict(weights)
        torch.testing.assert_close(alone({modality: x[modality]}), expected)


@pytest.mark.parametrize('head', ['pspnet', 'deeplabv3plus'])
def test_norms_are_shared_in_the_head_too_where_convolutions_are_not(head):
    network = build_network(
        'multimodal', 5, backbone='resnet14', head=head, share_convs=False, share_norms=True
    )
    for part in (network.encoder, network.head):
        each_ones = [m[0] for m in part.modules() if isinstance(m, OneEach)]
        assert any(isinstance(layer, nn.Conv2d) for layer in each_ones)
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in each_ones)
