from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')

from torch.nn import functional as F  # noqa: E402

from rgbd_fusion_seg.training.networks.erfnet import NonBottleneck1d  # noqa: E402
from rgbd_fusion_seg.training.networks.rfbnet import (  # noqa: E402
    GatedFusionUnit,
    ResidualFusionBlock,
    RfbNetErfNet,
)


def inputs(height=32, width=48, shrink=2, batch=2):
    generator = torch.Generator().manual_seed(3)
    return {
        'rgb': torch.randn(batch, 3, height, width, generator=generator),
        'hha': torch.randn(batch, 3, height // shrink, width // shrink, generator=generator),
    }


def outputs(network, x):
    with torch.no_grad():
        return network.eval()(x, auxiliary=True)


@pytest.mark.parametrize('complementary', ['residual', 'trunk', 'none'])
@pytest.mark.parametrize('gates', [True, False])
@pytest.mark.parametrize('combination', ['ssma', 'concat', 'sum'])
def test_every_ablation_of_the_paper_runs_and_every_weight_learns(
    complementary, gates, combination
):
    network = RfbNetErfNet(
        7, complementary=complementary, gates=gates, combination=combination, zero_start=False
    )
    result = network(inputs(), auxiliary=True)
    assert [tuple(o.shape) for o in result] == [(2, 7, 4, 6), (2, 7, 4, 6), (2, 7, 2, 3)]
    sum(o.square().mean() for o in result).backward()
    unlearnt = [n for n, p in network.named_parameters() if p.grad is None]
    assert not unlearnt
    dead = [n for n, p in network.named_parameters() if p.ndim > 1 and not p.grad.any()]
    assert not dead


@pytest.mark.parametrize('output_gates', ['interaction', 'streams'])
@pytest.mark.parametrize('pooling', ['average', 'max'])
@pytest.mark.parametrize('gate_kernel', [1, 3])
def test_the_unit_computes_what_section_3c_says(output_gates, pooling, gate_kernel):
    """Equation 1 written out with bare convolutions."""
    torch.manual_seed(0)
    unit = GatedFusionUnit(
        16,
        output_gates=output_gates,
        pooling=pooling,
        gate_kernel=gate_kernel,
        zero_start=False,
    ).eval()
    norm = unit.separable[2]
    norm.running_mean.uniform_(-0.1, 0.1)
    norm.running_var.uniform_(0.5, 2)
    w = unit.state_dict()
    rgb, hha = torch.randn(2, 16, 8, 12), torch.randn(2, 16, 4, 6)
    interaction = torch.randn(2, 8, 4, 6)

    def conv(x, name, **options):
        return F.conv2d(x, w[f'{name}.weight'], w.get(f'{name}.bias'), **options)

    def gate(x, name, first=''):
        hidden = x if first else conv(x, f'{name}.0', padding=gate_kernel // 2)
        last = f'{name}.1' if first else f'{name}.2'
        return conv(hidden.clamp(min=0), last).sigmoid()

    quads = rgb.unflatten(3, (6, 2)).unflatten(2, (4, 2))
    small = quads.mean((3, 5)) if pooling == 'average' else quads.amax((3, 5))
    seen = conv(torch.cat([small, interaction, hha], 1), 'gates_in', padding=gate_kernel // 2)
    gated = [
        gate(seen, 'gate_rgb_in', 'shared') * small,
        gate(seen, 'gate_hha_in', 'shared') * hha,
    ]
    assert gate(seen, 'gate_rgb_in', 'shared').shape == (2, 1, 4, 6)
    y = interaction + conv(torch.cat(gated, 1), 'aggregate')
    y = conv(conv(y, 'separable.0', padding=1, groups=8), 'separable.1')
    scale = norm.weight / (norm.running_var + 1e-3).sqrt()
    y = (y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    y = y.clamp(min=0)
    see_rgb, see_hha = y, y
    if output_gates == 'streams':
        see_rgb, see_hha = torch.cat([small, y], 1), torch.cat([hha, y], 1)
    to_rgb = gate(see_rgb, 'gate_rgb_out') * conv(y, 'widen_rgb')
    to_hha = gate(see_hha, 'gate_hha_out') * conv(y, 'widen_hha')
    to_rgb = F.interpolate(to_rgb, scale_factor=2, mode='bilinear')
    with torch.no_grad():
        got = unit(rgb, hha, interaction)
    for ours, expected in zip(got, (y, to_rgb, to_hha), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_average_pooling_is_bilinear_interpolation_to_half_an_even_size():
    """As the docstring says, so that interpolation needs no option of its own."""
    x = torch.randn(1, 4, 8, 12)
    half = F.interpolate(x, (4, 6), mode='bilinear', align_corners=False)
    torch.testing.assert_close(F.avg_pool2d(x, 2), half)


@pytest.mark.parametrize('point', ['residual', 'trunk'])
def test_fusion_starts_from_nothing_and_leaves_it(point):
    """At first as without complementary features; learning opens the widening, then its gate."""
    torch.manual_seed(0)
    network = RfbNetErfNet(7, complementary=point, dropout=(0, 0))
    without = RfbNetErfNet(7, complementary='none')
    known = without.state_dict()
    without.load_state_dict({k: v for k, v in network.state_dict().items() if k in known})
    for ours, theirs in zip(outputs(network, inputs()), outputs(without, inputs()), strict=True):
        torch.testing.assert_close(ours, theirs)

    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    unit = network.train().blocks[3].fusion
    for step in range(2):
        optimiser.zero_grad()
        sum(o.square().mean() for o in network(inputs(), auxiliary=True)).backward()
        for name in ('rgb', 'hha'):
            assert getattr(unit, f'widen_{name}').weight.grad.any()
            opened = getattr(unit, f'gate_{name}_out')[0].weight.grad.any()
            assert opened == (step > 0)
        optimiser.step()
    changed, before = outputs(network, inputs())[1], outputs(without, inputs())[1]
    assert (changed - before).abs().max() > 1e-3


def test_a_random_start_is_an_option():
    assert GatedFusionUnit(16, zero_start=False).widen_rgb.weight.any()
    assert RfbNetErfNet(7, zero_start=False).blocks[0].fusion.widen_hha.weight.any()


def test_names_of_tensors_are_those_of_published_checkpoints():
    """Renaming one makes trained weights unreadable."""
    names = set(RfbNetErfNet(7).state_dict())
    convs = ['conv3x1_1', 'conv1x3_1', 'conv3x1_2', 'conv1x3_2']
    unit = {f'{conv}.{part}' for conv in convs for part in ('weight', 'bias')}
    norm = {'weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'}
    unit |= {f'{bn}.{part}' for bn in ('bn1', 'bn2') for part in norm}
    down = {'conv.weight', 'conv.bias'} | {f'bn.{part}' for part in norm}
    fusion = {
        f'{conv}.{part}'
        for conv in (
            'gates_in',
            'gate_rgb_in.1',
            'gate_hha_in.1',
            'aggregate',
            'widen_rgb',
            'widen_hha',
            'gate_rgb_out.0',
            'gate_rgb_out.2',
            'gate_hha_out.0',
            'gate_hha_out.2',
        )
        for part in ('weight', 'bias')
    }
    fusion |= {'separable.0.weight', 'separable.1.weight'} | {f'separable.2.{p}' for p in norm}
    expected = {f'blocks.{i}.fusion.{name}' for i in range(8) for name in fusion}
    for m in ('rgb', 'hha'):
        expected |= {f'blocks.{i}.{m}_unit.{name}' for i in range(8) for name in unit}
        expected |= {f'{m}_encoder.initial_block.{name}' for name in down}
        expected |= {f'{m}_encoder.layers.{i}.{name}' for i in (0, 6) for name in down}
        expected |= {f'{m}_encoder.layers.{i}.{name}' for i in range(1, 6) for name in unit}
    expected |= {f'combine.attention.{i}.{p}' for i in (0, 2) for p in ('weight', 'bias')}
    expected |= {'combine.project.0.weight'} | {f'combine.project.1.{p}' for p in norm}
    expected |= {f'{h}.{p}' for h in ('head', 'rgb_head', 'hha_head') for p in ('weight', 'bias')}
    assert names == expected


def test_depth_at_full_size_is_an_option():
    network = RfbNetErfNet(7, shrink_depth=False)
    assert network.hha_size(64, 96) == (64, 96)
    with torch.no_grad():
        assert network(inputs(shrink=1)).shape == (2, 7, 4, 6)


def test_both_modalities_reach_the_prediction():
    network = RfbNetErfNet(7).eval()
    x = inputs()
    with torch.no_grad():
        base = network(x)
        for name in x:
            changed = {**x, name: x[name] + 1.0}
            assert (network(changed) - base).abs().max() > 1e-3, name


def block(point):
    torch.manual_seed(0)
    units = [NonBottleneck1d(16, 0.0, 2) for _ in range(2)]
    fusion = GatedFusionUnit(16, zero_start=False)
    return ResidualFusionBlock(*units, fusion, point).eval()


def test_equations_2_and_3_hold_at_both_points():
    """x' = relu(x + F(x + com)) at R and relu((x + com) + F(x + com)) at T."""
    rgb, hha = torch.rand(1, 16, 16, 16), torch.rand(1, 16, 8, 8)
    interaction = torch.rand(1, 8, 8, 8)
    for point in ('residual', 'trunk'):
        module = block(point)
        with torch.no_grad():
            _, to_rgb, to_hha = module.fusion(rgb, hha, interaction)
            assert to_rgb.abs().max() > 1e-2
            got = module(rgb, hha, interaction)
            for x, extra, unit, out in (
                (rgb, to_rgb, module.rgb_unit, got[0]),
                (hha, to_hha, module.hha_unit, got[1]),
            ):
                trunk = x + extra if point == 'trunk' else x
                expected = torch.relu(trunk + unit.residual(x + extra))
                torch.testing.assert_close(out, expected)


def test_closed_gates_cut_the_modalities_apart():
    """With every gate shut no complementary feature flows and no modality enters the fusion."""
    unit = GatedFusionUnit(16, zero_start=False).eval()
    for name, module in unit.named_children():
        if name.startswith('gate_'):
            torch.nn.init.zeros_(module[-2].weight)
            torch.nn.init.constant_(module[-2].bias, -100.0)
    rgb, hha, zero = torch.rand(1, 16, 16, 16), torch.rand(1, 16, 8, 8), torch.zeros(1, 8, 8, 8)
    with torch.no_grad():
        first, to_rgb, to_hha = unit(rgb, hha, zero)
        second, _, _ = unit(rgb + 1, hha + 1, zero)
    assert to_rgb.abs().max() < 1e-6
    assert to_hha.abs().max() < 1e-6
    torch.testing.assert_close(first, second)


def test_bottom_up_and_top_down_fusion_unite():
    """Figure 5 on this backbone: RFBs, and features at 1/4 fused into the decoder."""
    torch.manual_seed(0)
    network = RfbNetErfNet(7, decoder='erfnet', multi_level=True, zero_start=False, dropout=(0, 0))
    x = inputs()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # so that one pass gives norms that fit
    network(x)
    fused, rgb, _ = outputs(network, x)
    assert fused.shape == (2, 7, 32, 48)
    network.combine_quarter.project[1].weight.data.zero_()
    assert (outputs(network, x)[0] - fused).abs().max() > 1e-3  # top-down
    changed = outputs(network, {**x, 'hha': x['hha'].flip(3)})
    assert (changed[1] - rgb).abs().max() > 1e-3  # bottom-up: HHA reaches the RGB stream


def test_unknown_options_list_the_valid_ones():
    for options, words in (
        ({'complementary': 'everywhere'}, 'residual'),
        ({'combination': 'product'}, 'ssma'),
        ({'output_gates': 'all'}, 'streams'),
        ({'pooling': 'median'}, 'average'),
        ({'gate_kernel': 2}, 'odd'),
    ):
        with pytest.raises(ValueError, match=words):
            RfbNetErfNet(7, **options)
