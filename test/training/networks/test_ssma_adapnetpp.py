from __future__ import annotations

import json
from collections import Counter

import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.training.networks import build_network, parameter_count  # noqa: E402
from rgbd_fusion_seg.training.networks.adapnetpp import AdapNetPp  # noqa: E402
from rgbd_fusion_seg.training.networks.ssma import resize_to  # noqa: E402
from rgbd_fusion_seg.training.networks.ssma_adapnetpp import (  # noqa: E402
    SkipSsma,
    SsmaAdapNetPp,
)

TINY = 0.125


def images(network, height=64, width=96, batch=2):
    generator = torch.Generator().manual_seed(3)
    sizes = {'rgb': (height, width), 'hha': network.hha_size(height, width)}
    return {k: torch.randn(batch, 3, *size, generator=generator) for k, size in sizes.items()}


def test_parameters_are_those_of_the_public_code():
    with torch.device('meta'):
        network = build_network('ssma_adapnetpp', 12)
        twenty = build_network('ssma_adapnetpp', 20)
    assert parameter_count(network) == (56_182_428, 56_285_688)
    assert parameter_count(twenty).with_buffers == 56_304_184
    blocks = [network.combine, network.combine8, network.combine4]
    extras = [parameter_count(block).trainable for block in blocks]
    skip = 3_464 + 3_504 + 10_392
    assert extras == [147_488 + 147_968 + 131_584, skip, skip]
    assert parameter_count(network.decoder.gate8).trainable == 6_192


def test_every_public_variable_has_its_tensor(goldens_dir):
    public = json.loads((goldens_dir / 'ssma_vars.json').read_text(encoding='utf-8'))
    with torch.device('meta'):
        state = build_network('ssma_adapnetpp', 12).state_dict()
    ours = {k: tuple(v.shape) for k, v in state.items() if not k.endswith('tracked')}

    def theirs(*scopes):
        shapes = [s for name, s in public.items() if name.startswith(scopes)]
        return [(s[3], s[2], *s[:2]) if len(s) == 4 else tuple(s) for s in shapes]

    for scope, encoder in (('rgb/', 'rgb_encoder.'), ('depth/', 'hha_encoder.')):
        assert [v for k, v in ours.items() if k.startswith(encoder)] == theirs(scope)
    rest = [v for k, v in ours.items() if not k.startswith(('rgb_', 'hha_'))]
    assert Counter(rest) == Counter(theirs('conv'))
    # The decoder's follow the blocks that merge, in its own order.
    decoder = [v for k, v in ours.items() if k.startswith('decoder.')]
    assert decoder == theirs('conv')[-len(decoder) :]


def test_a_block_on_skips_weighs_what_it_projects():
    block = SkipSsma(12, 6)
    a, b = torch.randn(1, 6, 5, 7), torch.randn(1, 6, 5, 7)
    both = torch.cat([a, b], 1)
    reduce, _, expand, _ = block.attention
    assert reduce.out_channels == 2
    weights = 1 / (1 + torch.exp(-expand(reduce(both).clamp(min=0))))
    expected = torch.nn.functional.conv2d(
        both * weights, block.project.weight, block.project.bias, padding=1
    )
    torch.testing.assert_close(block(a, b), expected)


def test_biases_of_the_blocks_start_as_in_the_public_code():
    network = SsmaAdapNetPp(5, width=TINY)
    for block in (network.combine, network.combine8, network.combine4):
        for i in (0, 2):
            assert (block.attention[i].bias == 0.01).all()
    assert (network.combine8.project.bias == 0.01).all()
    assert not network.combine.project[1].bias.any()


def test_all_norms_decay_as_in_the_public_code():
    """Every one of `SSMA.py` has 0.99, that of the fused eASPP, too."""
    norms = [m for m in SsmaAdapNetPp(12).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 145
    assert {norm.momentum for norm in norms} == {0.01}


def test_skips_are_weighted_by_what_they_meet():
    network = SsmaAdapNetPp(5, width=TINY).eval()
    decoder = network.decoder
    x, skip = torch.randn(1, 32, 8, 12), torch.randn(1, 4, 8, 12)
    seen = {}
    decoder.refine8.register_forward_pre_hook(lambda _m, inputs: seen.update(x=inputs[0]))
    with torch.no_grad():
        decoder._meet(8, x, skip)
        gate = decoder.gate8(x.mean((2, 3), keepdim=True))
    assert gate.shape == (1, 4, 1, 1)
    torch.testing.assert_close(seen['x'], torch.cat([x, skip * gate], 1))


def test_frozen_experts_stay_as_they_are():
    network = SsmaAdapNetPp(5, width=TINY, freeze_experts=True).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    learns = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(learns, lr=0.1)
    x = images(network)
    first = network(x)
    # No chance is left where the experts' dropout is off.
    torch.testing.assert_close(network(x), first, rtol=0, atol=0)
    first.square().sum().backward()
    optimiser.step()
    changed = {k.split('.')[0] for k, v in network.state_dict().items() if (v != before[k]).any()}
    assert changed == {'combine', 'combine8', 'combine4', 'decoder'}


def test_by_default_the_experts_learn_too():
    network = SsmaAdapNetPp(5, width=TINY).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network(images(network)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    mean = 'hha_encoder.bn1.running_mean'
    assert (network.state_dict()[mean] != before[mean]).any()


@pytest.mark.parametrize('shrink', [False, True])
@pytest.mark.parametrize('combination', ['ssma', 'concat', 'sum'])
@pytest.mark.parametrize('multi_level', [True, False])
def test_every_variant_runs_and_learns(shrink, combination, multi_level):
    network = SsmaAdapNetPp(
        5, shrink, combination, multi_level, width=TINY, auxiliary_heads=True, full_size=False
    )
    # 48 rows of colour are 24 of depth and 1.5 at their 1/16.
    outputs = network(images(network, 48, 80), auxiliary=True)
    assert [tuple(o.shape) for o in outputs] == [(2, 5, 12, 20), (2, 5, 12, 20), (2, 5, 6, 10)]
    assert len(network.auxiliary_weights) == 2
    sum(o.square().sum() for o in outputs).backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None]


def test_half_size_features_return_to_their_own_places():
    x = torch.randn(1, 2, 8, 5)
    even = resize_to(x, torch.empty(1, 1, 16, 10))
    odd = resize_to(x, torch.empty(1, 1, 15, 9))
    torch.testing.assert_close(odd, even[:, :, :15, :9])
    expected = torch.nn.functional.interpolate(x, (16, 10), mode='bilinear')
    torch.testing.assert_close(even, expected)


def test_fused_at_the_top_alone_the_depth_expert_has_no_skips():
    network = SsmaAdapNetPp(5, multi_level=False, width=TINY)
    unimodal = AdapNetPp(5, 'hha', width=TINY)
    network.initialise_encoder('hha', unimodal.state_dict())
    conv = network.hha_encoder.block2[1].conv2.weight
    torch.testing.assert_close(conv, unimodal.encoder.block2[1].conv2.weight)
    assert not [n for n in network.state_dict() if n.startswith('hha_encoder.skip')]


def test_weights_of_another_width_are_refused():
    network = SsmaAdapNetPp(5, width=TINY)
    with pytest.raises(InputError, match='adapnetpp'):
        network.initialise_encoder('rgb', AdapNetPp(5, width=0.25).state_dict())


def test_an_unknown_combination_lists_the_valid_ones():
    with pytest.raises(ValueError, match='ssma'):
        SsmaAdapNetPp(5, combination='product', width=TINY)
