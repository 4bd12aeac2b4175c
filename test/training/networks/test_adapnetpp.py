from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')

import reference_adapnetpp as reference  # noqa: E402
from torch import Tensor  # noqa: E402

from rgbd_fusion_seg.training.networks import build_network, parameter_count  # noqa: E402
from rgbd_fusion_seg.training.networks.adapnetpp import (  # noqa: E402
    AdapNetPp,
    AdapNetPpEncoder,
    Easpp,
    HalvingConv,
    MultiScaleConv,
    initialise,
    norm,
    scaled,
)

TINY = 0.125


def numpy_layout(x: Tensor) -> np.ndarray:
    return x.detach().permute(0, 2, 3, 1).numpy()


def numpy_kernel(x: Tensor) -> np.ndarray:
    return x.detach().permute(2, 3, 1, 0).numpy()


def counted(name: str, num_classes: int, **options):
    with torch.device('meta'):
        return parameter_count(build_network(name, num_classes, **options))


def test_parameters_are_the_papers():
    """30.20 M counts the norms' statistics (SYSTEMS: enumerated from the public code)."""
    assert counted('adapnetpp', 12, auxiliary_heads=False) == (30_145_366, 30_198_252)
    assert counted('adapnetpp', 12).with_buffers == 30_204_492
    assert counted('adapnetpp', 20, auxiliary_heads=False).with_buffers == 30_216_748


def test_every_part_has_its_number_of_parameters():
    with torch.device('meta'):
        network = AdapNetPp(12)
    encoder, decoder = network.encoder, network.decoder

    def count(*modules):
        return sum(parameter_count(module).trainable for module in modules)

    assert count(encoder.bn0, encoder.conv1, encoder.bn1) == 9_542
    blocks = [count(block) for block in encoder.blocks]
    assert blocks == [215_296, 1_218_560, 7_096_320, 14_960_640]
    assert count(encoder.skip4, encoder.skip8) == 18_528
    assert count(encoder.easpp) == 2_044_032
    assert count(encoder) == 25_562_918
    assert count(decoder.up8) == count(decoder.up4) == 1_049_088
    assert count(decoder.refine8) == count(decoder.refine4) == 645_632 + 590_336
    assert (count(decoder.head), count(decoder.up_logits)) == (3_096, 9_240)


def public_shape(shape: list[int]) -> tuple[int, ...]:
    """TensorFlow's (height, width, in, out) as PyTorch has it."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else tuple(shape)


def test_tensors_stand_in_the_order_of_the_public_checkpoint(goldens_dir):
    public = json.loads((goldens_dir / 'adap_vars.json').read_text(encoding='utf-8'))
    with torch.device('meta'):
        state = AdapNetPp(12).state_dict()
    ours = [tuple(v.shape) for k, v in state.items() if not k.endswith('num_batches_tracked')]
    assert ours == [public_shape(shape) for shape in public.values()]


@pytest.mark.parametrize('kernel', [3, 7])
def test_even_sides_are_halved_as_tensorflow_does(kernel):
    conv = HalvingConv(3, 4, kernel)
    x = torch.randn(2, 3, 12, 18)
    ours, theirs = conv(x), reference.conv2d(numpy_layout(x), numpy_kernel(conv.weight), 2)
    np.testing.assert_allclose(numpy_layout(ours), theirs, atol=1e-5)


def test_the_stem_pools_as_tensorflow_does():
    encoder = AdapNetPpEncoder(TINY).eval()
    x = torch.randn(1, 3, 24, 36)
    with torch.no_grad():
        before = torch.relu(encoder.bn1(encoder.conv1(encoder.bn0(x))))
        ours = encoder.stem(x).active
    np.testing.assert_array_equal(
        numpy_layout(ours), reference.max_pool(numpy_layout(before), 3, 2)
    )


def test_an_odd_side_is_halved_on_the_grid_of_the_even_one():
    """TensorFlow would move the grid by half a pixel; two streams have to stay aligned."""
    conv = HalvingConv(3, 4, 3)
    x = torch.randn(1, 3, 15, 9)
    even = torch.nn.functional.pad(x, (0, 1, 0, 1))
    assert conv(x).shape == (1, 4, 8, 5)
    torch.testing.assert_close(conv(x), conv(even))


def test_halves_of_a_multi_scale_kernel_are_dilated_apart():
    conv = MultiScaleConv(8, (1, 3))
    x = torch.randn(2, 8, 9, 11)
    kernel = numpy_kernel(conv.weight)
    theirs = np.zeros((2, 9, 11, 8))
    padded = np.pad(numpy_layout(x), ((0, 0), (3, 3), (3, 3), (0, 0)))
    for out in range(8):
        rate = 1 if out < 4 else 3
        for row in range(9):
            for column in range(11):
                for i in range(3):
                    for j in range(3):
                        y, z = row + 3 + rate * (i - 1), column + 3 + rate * (j - 1)
                        seen = padded[:, y, z] @ kernel[i, j, :, out]
                        theirs[:, row, column, out] += seen
    np.testing.assert_allclose(numpy_layout(conv(x)), theirs, atol=1e-5)


def offsets_seen(function, channels: int, size: int = 65) -> set[int]:
    """Vertical distances at which the input changes the output's middle pixel."""
    x = torch.randn(1, channels, size, 3, requires_grad=True)
    function(x)[:, :, size // 2, 1].sum().backward()
    seen = x.grad.abs().sum((0, 1, 3)).nonzero()[:, 0]
    return {int(row) - size // 2 for row in seen}


def test_rates_of_the_blocks_are_those_of_the_public_code():
    encoder = AdapNetPpEncoder(TINY)
    rates = [
        [offsets_seen(unit.conv2, unit.channels) for unit in block[first:]]
        for block, first in zip(encoder.blocks, (0, 1, 1, 0), strict=True)
    ]
    one, two, both = {-1, 0, 1}, {-2, 0, 2}, {-2, -1, 0, 1, 2}
    assert rates == [[one] * 3, [one] * 2 + [both], [one] + [both] * 4, [two] * 3]


def test_each_half_of_a_block_4_kernel_has_rate_2():
    conv = AdapNetPpEncoder(TINY).block4[0].conv2
    half = conv.out_channels // 2
    for channels in (slice(0, half), slice(half, None)):
        seen = offsets_seen(lambda x, c=channels: conv(x)[:, c], conv.in_channels)
        assert seen == {-2, 0, 2}


@pytest.mark.parametrize('rates', [(3, 6, 12), (6, 12, 18)])
def test_branches_of_the_easpp_reach_twice_their_rate(rates):
    module = Easpp(8, rates, width=0.25).eval()
    for branch, rate in zip(module.atrous, rates, strict=True):
        seen = offsets_seen(branch, 8, size=97)
        assert seen == {-2 * rate, -rate, 0, rate, 2 * rate}
    # And the mean sees everything.
    assert len(offsets_seen(module, 8, size=97)) == 97


def test_weights_start_as_he_drew_them():
    conv = torch.nn.Conv2d(64, 64, 3)
    initialise(conv)
    sigma = (2 / (9 * 64)) ** 0.5
    weight = conv.weight.detach()
    assert float(weight.abs().max()) <= 2 * sigma
    # Cutting a normal distribution at two sigma leaves 0.8796 of its standard deviation.
    assert float(weight.std()) == pytest.approx(0.8796 * sigma, rel=0.02)
    assert not conv.bias.any()


def test_norms_forget_as_tensorflow_does():
    layer = norm(4).train()
    x = torch.randn(8, 4, 5, 5) + 3
    layer(x)
    torch.testing.assert_close(layer.running_mean, 0.01 * x.mean((0, 2, 3)))


def test_width_scales_all_channels():
    assert [scaled(c, 1.0) for c in (24, 64, 256)] == [24, 64, 256]
    assert [scaled(c, 0.25) for c in (24, 64, 256)] == [8, 16, 64]
    assert scaled(24, 0.01) == 4
    full, quarter = (counted('adapnetpp', 12, width=w).trainable for w in (1.0, 0.25))
    assert full / 18 < quarter < full / 14


@pytest.mark.parametrize('logits_norm', [True, False])
@pytest.mark.parametrize('full_size', [True, False])
def test_forms_of_the_logits(full_size, logits_norm):
    network = AdapNetPp(5, width=TINY, full_size=full_size, logits_norm=logits_norm).train()
    outputs = network({'rgb': torch.randn(3, 3, 64, 96)}, auxiliary=True)
    assert network.stride == (1 if full_size else 4)
    main = (3, 5, 64, 96) if full_size else (3, 5, 16, 24)
    assert [tuple(o.shape) for o in outputs] == [main, (3, 5, 16, 24), (3, 5, 8, 12)]
    # In training a norm makes every class mean zero; and nothing cuts the logits off below.
    centred = bool(outputs[0].mean((0, 2, 3)).abs().max() < 1e-4)
    assert centred == logits_norm
    assert float(outputs[0].min()) < 0
    sum(o.square().sum() for o in outputs).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_the_last_unit_alone_drops_activations():
    encoder = AdapNetPpEncoder(TINY, dropout=0.7).train()
    seen = {}
    for i, block in enumerate(encoder.blocks):
        for j, unit in enumerate(block):
            unit.dropout.register_forward_hook(
                lambda _m, x, y, key=(i, j): seen.__setitem__(key, (x[0], y))
            )
    encoder(torch.randn(2, 3, 64, 96))
    # Of what was not zero before: activations of so few channels may be so by themselves.
    dropped = {key: float((y == 0)[x != 0].float().mean()) for key, (x, y) in seen.items()}
    last = dropped.pop((3, 2))
    assert last == pytest.approx(0.7, abs=0.05)
    assert max(dropped.values()) < 0.01


def test_depth_of_half_size_may_have_odd_sides_at_the_deepest_features():
    """240 rows of colour are 120 of depth: 7.5 at 1/16."""
    network = AdapNetPp(5, 'hha', shrink_depth=True, width=TINY).eval()
    assert network.stride == 2
    height, width = network.hha_size(48, 80)
    with torch.no_grad():
        assert network({'hha': torch.randn(1, 3, height, width)}).shape == (1, 5, 24, 40)


def test_auxiliary_predictions_show_what_the_image_shows_at_odd_sizes_too():
    """24 rows are 3 at 1/8, although 1/16 has rounded 1.5 up to 2."""
    network = AdapNetPp(5, 'hha', shrink_depth=True, width=TINY).eval()
    with torch.no_grad():
        shapes = [x.shape[2:] for x in network({'hha': torch.randn(1, 3, 24, 40)}, auxiliary=True)]
    assert shapes == [(24, 40), (6, 10), (3, 5)]


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match='modality'):
        AdapNetPp(5, modality='lidar', width=TINY)
    with pytest.raises(TypeError, match='gates'):
        build_network('adapnetpp', 5, gates=True)
    for rates in ((), (0,), (3, -1)):
        with pytest.raises(ValueError, match='easpp_rates'):
            AdapNetPp(5, width=TINY, easpp_rates=rates)


def test_colour_is_never_shrunk():
    network = build_network('adapnetpp', 4, modality='rgb', shrink_depth=True, width=0.25)
    assert (network.stride, network.hha_size(96, 64)) == (1, (96, 64))
    logits = network.eval()({'rgb': torch.zeros(1, 3, 32, 64)})
    assert logits.shape == (1, 4, 32, 64)
