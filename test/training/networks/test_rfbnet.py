from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.training.networks import build_network  # noqa: E402
from rgbd_fusion_seg.training.networks.erfnet import NonBottleneck1d  # noqa: E402
from rgbd_fusion_seg.training.networks.rfbnet import (  # noqa: E402
    GatedFusionUnit,
    ResidualFusionBlock,
    RfbNetErfNet,
)


def inputs(height=64, width=96, shrink=2, batch=2):
    generator = torch.Generator().manual_seed(3)
    return {
        'rgb': torch.randn(batch, 3, height, width, generator=generator),
        'hha': torch.randn(batch, 3, height // shrink, width // shrink, generator=generator),
    }


@pytest.mark.parametrize('complementary', ['residual', 'trunk', 'none'])
@pytest.mark.parametrize('gates', [True, False])
@pytest.mark.parametrize('combination', ['ssma', 'concat', 'sum'])
def test_every_variant_runs_and_every_weight_learns(complementary, gates, combination):
    network = RfbNetErfNet(7, complementary=complementary, gates=gates, combination=combination)
    outputs = network(inputs(), auxiliary=True)
    assert [tuple(o.shape) for o in outputs] == [(2, 7, 8, 12), (2, 7, 8, 12), (2, 7, 4, 6)]
    sum(o.square().mean() for o in outputs).backward()
    unlearnt = [n for n, p in network.named_parameters() if p.grad is None]
    assert not unlearnt


def test_depth_at_full_size_is_an_option():
    network = RfbNetErfNet(7, shrink_depth=False)
    assert network.hha_size(64, 96) == (64, 96)
    assert network(inputs(shrink=1)).shape == (2, 7, 8, 12)


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
    return ResidualFusionBlock(*units, channels=16, complementary=point).eval()


def test_equations_2_and_3_hold_at_both_points():
    """x' = relu(x + F(x + com)) at R and relu((x + com) + F(x + com)) at T."""
    rgb, hha = torch.rand(1, 16, 16, 16), torch.rand(1, 16, 8, 8)
    interaction = torch.rand(1, 8, 8, 8)
    for point in ('residual', 'trunk'):
        module = block(point)
        with torch.no_grad():
            _, to_rgb, to_hha = module.fusion(rgb, hha, interaction)
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
    unit = GatedFusionUnit(16).eval()
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


def test_saved_weights_give_the_same_network(tmp_path):
    network, copy = RfbNetErfNet(7).eval(), RfbNetErfNet(7).eval()
    torch.save(network.state_dict(), tmp_path / 'w.pt')
    copy.load_state_dict(torch.load(tmp_path / 'w.pt'))
    with torch.no_grad():
        torch.testing.assert_close(network(inputs()), copy(inputs()))


def test_unknown_names_and_options_list_the_valid_ones():
    with pytest.raises(ValueError, match='rfbnet_erfnet'):
        build_network('unet', 7)
    with pytest.raises(ValueError, match='residual'):
        RfbNetErfNet(7, complementary='everywhere')
    with pytest.raises(ValueError, match='ssma'):
        RfbNetErfNet(7, combination='product')
