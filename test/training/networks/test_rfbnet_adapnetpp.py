from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.training.networks import build_network, parameter_count  # noqa: E402
from rgbd_fusion_seg.training.networks.adapnetpp import Bottleneck, State  # noqa: E402
from rgbd_fusion_seg.training.networks.rfbnet_adapnetpp import (  # noqa: E402
    BottleneckFusionBlock,
    RfbNetAdapNetPp,
)
from rgbd_fusion_seg.training.networks.ssma_adapnetpp import SsmaAdapNetPp  # noqa: E402

TINY = 0.125


def images(network, height=48, width=80, batch=2):
    generator = torch.Generator().manual_seed(3)
    sizes = {'rgb': (height, width), 'hha': network.hha_size(height, width)}
    return {k: torch.randn(batch, 3, *size, generator=generator) for k, size in sizes.items()}


def state(channels, height, width):
    x = torch.randn(1, channels, height, width)
    return State(x, x.relu())


@pytest.mark.parametrize('complementary', ['residual', 'trunk', 'none'])
@pytest.mark.parametrize('gates', [True, False])
@pytest.mark.parametrize(
    ('combination', 'multi_level'),
    [('ssma', True), ('ssma', False), ('concat', True), ('sum', False)],
)
def test_every_variant_runs_and_every_weight_learns(
    complementary, gates, combination, multi_level
):
    network = RfbNetAdapNetPp(
        5,
        True,
        complementary,
        gates,
        combination,
        multi_level,
        zero_start=False,
        width=TINY,
        full_size=False,
    )
    # 48 rows of colour are 24 of depth and 1.5 at their 1/16.
    logits = network(images(network))
    assert logits.shape == (2, 5, 12, 20)
    logits.square().sum().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None]


@pytest.mark.parametrize('point', ['residual', 'trunk', 'none'])
def test_complementary_features_enter_at_their_point(point):
    """§IV-B: read behind the first 1x1, added before the 3x3; Eqs. 2 and 3 around it."""
    torch.manual_seed(0)
    units = tuple(Bottleneck(32, 8, rates=(1, 2)).eval() for _ in range(2))
    block = BottleneckFusionBlock(8, point, {'zero_start': False}).eval()
    rgb, hha = state(32, 12, 10), state(32, 6, 5)
    interaction = torch.randn(1, 4, 6, 5)
    with torch.no_grad():
        got = block(units, rgb, hha, interaction)
        reduced = [
            torch.relu(u.bn1(u.conv1(x.active))) for u, x in zip(units, (rgb, hha), strict=True)
        ]
        expected_interaction, *extras = block.fusion(*reduced, interaction)
        torch.testing.assert_close(got[2], expected_interaction)
        for unit, x, y, extra, lift, out in zip(
            units,
            (rgb, hha),
            reduced,
            extras,
            (getattr(block, 'lift_rgb', None), getattr(block, 'lift_hha', None)),
            got[:2],
            strict=True,
        ):
            trunk = x.trunk
            if point != 'none':
                assert extra.abs().max() > 1e-3
                y = y + extra
            if point == 'trunk':
                trunk = trunk + lift(extra)
            trunk = trunk + unit.conv3(torch.relu(unit.bn2(unit.conv2(y))))
            torch.testing.assert_close(out.trunk, trunk)
            torch.testing.assert_close(out.active, torch.relu(unit.bn3(trunk)))


def test_the_first_block_starts_from_a_zero_interaction_stream():
    units = tuple(Bottleneck(32, 8).eval() for _ in range(2))
    block = BottleneckFusionBlock(8, 'residual', {}).eval()
    rgb, hha = state(32, 6, 5), state(32, 6, 5)
    with torch.no_grad():
        got = block(units, rgb, hha, None)[2]
        expected = block(units, rgb, hha, torch.zeros(1, 4, 6, 5))[2]
    torch.testing.assert_close(got, expected)


def test_blocks_bridge_the_identity_units_from_an_eighth_on():
    network = RfbNetAdapNetPp(5, width=TINY).eval()
    assert [len(bridge) for bridge in network.bridges] == [0, 3, 5, 2]
    x, sizes = images(network, 64, 96), []
    for bridge in network.bridges:
        for block in bridge:
            block.fusion.register_forward_hook(
                lambda _m, inputs, out: sizes.append((inputs[0].shape[1:], out[0].shape[1:]))
            )
    with torch.no_grad():
        _, _, (interaction,) = network.encode(x['rgb'], x['hha'])
    assert sizes == (
        [((16, 8, 12), (8, 4, 6))] * 3
        + [((32, 4, 6), (16, 2, 3))] * 5
        + [((64, 4, 6), (32, 2, 3))] * 2
    )
    assert interaction.shape == (2, 32, 2, 3)


def test_with_zero_start_the_encoders_begin_as_two_unimodal_ones():
    network = RfbNetAdapNetPp(5, width=TINY).eval()
    ssma = SsmaAdapNetPp(5, shrink_depth=True, width=TINY).eval()
    own = {k: v for k, v in network.state_dict().items() if k.startswith(('rgb_', 'hha_'))}
    ssma.load_state_dict(own, strict=False)
    x = images(network)
    with torch.no_grad():
        streams, alone = network.encode(x['rgb'], x['hha']), ssma.encode(x['rgb'], x['hha'])
    for ours, theirs in zip(streams[0] + streams[1], alone[0] + alone[1], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('complementary', ['residual', 'none'])
def test_modalities_exchange_through_complementary_features_alone(complementary):
    network = RfbNetAdapNetPp(5, complementary=complementary, zero_start=False, width=TINY).eval()
    x = images(network)
    with torch.no_grad():
        rgb, hha, _ = network.encode(x['rgb'], x['hha'])
        other_rgb, _, _ = network.encode(x['rgb'], x['hha'] + 1)
        _, other_hha, _ = network.encode(x['rgb'] + 1, x['hha'])
    for ours, other in ((rgb, other_rgb), (hha, other_hha)):
        changed = [bool((a != b).any()) for a, b in zip(ours, other, strict=True)]
        exchanged = complementary == 'residual'
        assert changed == [False, exchanged, exchanged, exchanged]


def test_the_interaction_stream_reaches_the_prediction():
    network = RfbNetAdapNetPp(5, complementary='none', width=TINY).eval()
    x = images(network)
    with torch.no_grad():
        before = network(x)
        network.follow4.bias += 1.0
        assert (network(x) - before).abs().max() > 1e-4


def test_blocks_cost_little():
    """The stream is light: RFBs and all add a twentieth to SSMA."""
    with torch.device('meta'):
        rfbnet, ssma = (build_network(n, 12) for n in ('rfbnet_adapnetpp', 'ssma_adapnetpp'))
    ratio = parameter_count(rfbnet).trainable / parameter_count(ssma).trainable
    assert 1.0 < ratio < 1.07


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match='residual'):
        RfbNetAdapNetPp(5, complementary='everywhere', width=TINY)
    with pytest.raises(TypeError, match='colour'):
        build_network('rfbnet_adapnetpp', 5, colour=True)
