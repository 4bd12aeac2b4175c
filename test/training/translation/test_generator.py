from __future__ import annotations

import contextlib
import itertools
import math

import pytest

torch = pytest.importorskip('torch')

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.training.networks.asymfusion import (  # noqa: E402
    OFFSETS,
    channel_shuffle,
    pixel_shift,
)
from rgbd_fusion_seg.training.translation.config import (  # noqa: E402
    FUSIONS,
    LAYERS,
    GeneratorConfig,
    ImagesConfig,
    TranslationConfig,
)
from rgbd_fusion_seg.training.translation.discriminator import (  # noqa: E402
    PatchDiscriminator,
    realness_loss,
)
from rgbd_fusion_seg.training.translation.fusions import make_fusion  # noqa: E402
from rgbd_fusion_seg.training.translation.generator import (  # noqa: E402
    PerStream,
    Translator,
    fused_layers,
)
from rgbd_fusion_seg.training.translation.trainer import check_alignment  # noqa: E402

CYCLE = ['rgb', 'shade', 'texture']
UNUSED = 2 * (64 + 512 + 3)
"""Parameters of norms that the public code owns in each stream and never uses."""


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ('inputs', 'targets', 'options', 'expected'),
    [
        # The public generator of two inputs, executed.
        (['shade', 'texture'], ['rgb'], {}, 54_431_633 - 2 * UNUSED),
        # TPAMI's tables, in millions: 6 (cycle), 7 (two tasks), 8 (three), 9 (two by two).
        (CYCLE, CYCLE, {'encoders': 'per_target', 'decoders': 'per_target'}, 163.3),
        (CYCLE, CYCLE, {'decoders': 'per_target'}, 124.2),
        (CYCLE, CYCLE, {}, 54.5),
        (['rgb'], ['a', 'b'], {'decoders': 'per_target', 'fusion': 'none'}, 89.3),
        (['rgb', 'x'], ['a', 'b'], {'decoders': 'per_target', 'exchange_decoders': True}, 89.3),
        # Of two encoders and three decoders it has 143.7; of one it prints 124.3, which is 124.19.
        *(
            (
                ['rgb'],
                ['a', 'b', 'c'],
                {
                    'decoders': 'per_target',
                    'fusion': 'none',
                    'encoder_groups': [['a', 'c'], ['b']],
                    'encoder_norms': norms,
                },
                143.7,
            )
            for norms in ('shared', 'per_stream')
        ),
        (['rgb'], ['a', 'b', 'c'], {'decoders': 'per_target', 'fusion': 'none'}, 124.2),
    ],
)
def test_parameters_are_those_of_the_papers(inputs, targets, options, expected):
    with torch.device('meta'):
        count = parameters(Translator(inputs, targets, GeneratorConfig(**options)))
    if isinstance(expected, int):
        assert count == expected
    else:
        assert count / 1e6 == pytest.approx(expected, abs=0.05)


def test_the_discriminator_is_that_of_the_public_code():
    judge = PatchDiscriminator()
    assert parameters(judge) == 2_769_731 - 2 * (64 + 1)  # norms that are never used
    assert judge(torch.zeros(1, 3, 256, 256), torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_the_discriminator_sees_both_images_and_judges_by_patches():
    torch.manual_seed(0)
    judge = PatchDiscriminator(8)
    given, image = torch.rand(2, 1, 3, 128, 128)
    before = judge(given, image)
    corner = image.clone()
    corner[..., :4, :4] = 0
    for changed in (judge(given.flip(3), image), judge(given, image.flip(3))):
        assert not torch.allclose(changed, before)
    # Instance norms alone carry news beyond a patch of 70 pixels.
    moved = (judge(given, corner) - before).abs()
    assert moved[..., :2, :2].mean() > 5 * moved[..., -4:, -4:].mean()


def test_the_discriminator_is_the_network_of_the_digest():
    torch.manual_seed(0)
    judge = PatchDiscriminator(8)
    with torch.no_grad():
        for parameter in judge.parameters():
            parameter.normal_(0, 0.3)
    given, image = torch.rand(2, 2, 3, 64, 64)
    x = torch.cat([given, image], 1)
    for i, (conv, stride) in enumerate(zip(judge.convs, (2, 2, 2, 1, 1), strict=True)):
        x = x if i == 0 else torch.where(x > 0, x, 0.2 * x)
        x = F.conv2d(x, conv.weight, conv.bias, stride=stride, padding=1)
        if 0 < i < 4:
            norm = judge.norms[i - 1]
            spread = (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
            x = (x - x.mean((2, 3), keepdim=True)) / spread
            x = x * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(judge(given, image), x, rtol=1e-4, atol=1e-4)


def test_realness_is_the_mean_cross_entropy_of_patches():
    logits = torch.tensor([[-2.0, 0.0], [1.0, 3.0]])
    expected = -torch.log(torch.sigmoid(logits)).mean()
    torch.testing.assert_close(realness_loss(logits, real=True), expected)
    torch.testing.assert_close(realness_loss(-logits, real=False), expected)


def small(inputs=('a', 'b'), targets=('rgb',), depth: int = 5, **options) -> Translator:
    torch.manual_seed(3)
    width = 16 if options.get('fusion') == 'attention' else 8
    network = Translator(inputs, targets, GeneratorConfig(width=width, depth=depth, **options))
    with torch.no_grad():  # values that tell apart what is mixed up
        for name, parameter in network.named_parameters():
            if name.endswith('bias'):
                parameter.normal_(0, 0.1)
            elif parameter.ndim == 1 and 'norms' in name:
                parameter.uniform_(-1, 1)
            elif parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return network.eval()


def images(names=('a', 'b'), side: int = 64, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(batch, 3, side, side, generator=generator) * 2 - 1 for name in names}


def layer(module: nn.Module, stream: int) -> nn.Module:
    return module.of(stream) if isinstance(module, PerStream) else module


def plain_unet(network: Translator, stream: int, x: Tensor) -> Tensor:
    """A stream alone, read from pix2pix and the public code of CEN: a second implementation."""

    def norm(module: nn.Module, x: Tensor) -> Tensor:
        own = layer(module, stream)
        if isinstance(own, nn.Identity):
            return x
        mean = x.mean((2, 3), keepdim=True)
        var = x.var((2, 3), unbiased=False, keepdim=True)
        scale, shift = (v[:, None, None] for v in (own.weight, own.bias))
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    skips = []
    for i, convs in enumerate(network.encoder):
        conv = layer(convs, stream)
        x = torch.where(x > 0, x, 0.2 * x) if i else x
        x = F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)
        x = norm(network.encoder_norms[i], x)
        skips.append(x)
    skips.pop()
    for i, convs in enumerate(network.decoder):
        conv = layer(convs, stream)
        x = x if i == 0 else torch.cat([x, skips.pop()], 1)
        x = F.conv_transpose2d(x.clamp(min=0), conv.weight, conv.bias, stride=2, padding=1)
        x = norm(network.decoder_norms[i], x)
    return torch.tanh(x)


@pytest.mark.parametrize('sharing', ['shared', 'per_target', 'per_stream'])
@pytest.mark.parametrize('norms', ['per_stream', 'shared'])
def test_each_stream_is_a_u_net(sharing, norms):
    network = small(
        ('a', 'b'), ('b', 'c'), fusion='none', encoders=sharing, decoders=sharing,
        encoder_norms=norms, decoder_norms=norms,
    )  # fmt: skip
    own = sharing == 'per_stream' or norms == 'per_stream'
    count = 3 if own else 1 if sharing == 'shared' else 2
    assert all(len(layer) == count for layer in network.encoder_norms[1:-1])
    assert all(len(layer) == count for layer in network.decoder_norms[:-1])
    x = images()
    made = network(x)
    assert [str(s) for s in network.streams] == ['a to b', 'a to c', 'b to c']
    for i, stream in enumerate(network.streams):
        expected = plain_unet(network, i, x[stream.input])
        torch.testing.assert_close(made.streams[i], expected, rtol=1e-4, atol=1e-5)
    assert made.penalty == 0


@pytest.mark.parametrize('norms', ['per_stream', 'shared'])
def test_targets_of_a_group_have_an_encoder_in_common(norms):
    network = small(
        ('a',), ('b', 'c', 'd'), fusion='none', encoder_groups=[['b', 'd'], ['c']],
        encoder_norms=norms, decoders='per_target',
    )  # fmt: skip
    x = images(('a',))
    made = network(x)
    for i in range(3):
        expected = plain_unet(network, i, x['a'])
        torch.testing.assert_close(made.streams[i], expected, rtol=1e-4, atol=1e-5)
    made.streams[2].sum().backward()  # a to d
    convs = network.encoder[1]
    assert [convs.of(i).weight.grad is not None for i in range(3)] == [True, False, True]
    scales = [network.encoder_norms[1].of(i).weight.grad is not None for i in range(3)]
    assert scales == [norms == 'shared', False, True]


@pytest.mark.parametrize('groups', [[['b']], [['b', 'c'], ['c']], [['b', 'c'], []], [['b', 'x']]])
def test_groups_that_are_no_partition_are_refused(groups):
    config = GeneratorConfig(width=8, depth=4, fusion='none', encoder_groups=groups)
    with pytest.raises(ValueError, match='encoder_groups must name each target once, b, c, not'):
        Translator(['a'], ['b', 'c'], config)
    with pytest.raises(InputError, match='encoder_groups for encoders shared alone'):
        GeneratorConfig(encoders='per_target', encoder_groups=groups)


def test_the_ensemble_weighs_the_streams_of_a_target():
    network = small(('a', 'b'), ('b', 'c'), fusion='none')
    with torch.no_grad():
        network.ensembles['c'].alpha.copy_(torch.tensor([0.0, 1.0]))
    made = network(images())
    weight = 1 / (1 + torch.e)
    expected = weight * made.streams[1] + (1 - weight) * made.streams[2]
    torch.testing.assert_close(made.ensembles['c'], expected)
    torch.testing.assert_close(made.ensembles['b'], made.streams[0])
    # It learns its weights alone.
    made.ensembles['c'].sum().backward()
    assert network.ensembles['c'].alpha.grad is not None
    assert all(p.grad is None for p in network.encoder.parameters())


def test_streams_learn_from_an_ensemble_that_is_not_detached():
    network = small(('a', 'b'), ('c',), fusion='none', detach_ensemble=False)
    with torch.no_grad():
        network.ensembles['c'].alpha.copy_(torch.tensor([0.0, 1.0]))
    made = network(images())
    found = torch.autograd.grad(made.ensembles['c'].sum(), made.streams)
    weight = 1 / (1 + math.e)
    for gradient, expected in zip(found, (weight, 1 - weight), strict=True):
        torch.testing.assert_close(gradient, torch.full_like(gradient, expected))


def exchanged(
    maps: list[Tensor], scales: list[Tensor], threshold: float, own: list[range] | None = None
) -> list[Tensor]:
    """CEN's Eq. 4, a channel at a time; in the public form where no own parts are given."""
    result = [x.clone() for x in maps]
    for m, scale in enumerate(scales):
        for c, gamma in enumerate(scale.tolist()):
            small = abs(gamma) < threshold if own is None else gamma <= threshold and c in own[m]
            if small:
                others = [x[:, c] for i, x in enumerate(maps) if i != m]
                result[m][:, c] = sum(others) / len(others)
    return result


@pytest.mark.parametrize(
    ('form', 'penalised'), [('public', 'own'), ('paper', 'own'), ('paper', 'all')]
)
def test_encoders_of_a_target_exchange_channels_behind_each_norm(form, penalised):
    inputs = ('a', 'b', 'c')
    network = small(inputs, ('rgb', 'a'), threshold=0.4, form=form, penalised=penalised)
    handles, seen = [], {}
    for i, module in network.encoder_fusions.items():
        hook = lambda m, args, out, i=i: seen.__setitem__(int(i), (args[0], out))  # noqa: E731
        handles.append(module.register_forward_hook(hook))
    network(images(inputs))
    assert sorted(seen) == [1, 2, 3]  # behind norms, which the first and the last layer lack
    swapped = 0
    for i, (before, after) in seen.items():
        norms, channels = network.encoder_norms[i], before[0].shape[1]
        for group in ([0, 1, 2], [3, 4]):  # to rgb, to a
            scales = [norms.of(stream).weight for stream in group]
            ends = [channels * m // len(group) for m in range(len(group) + 1)]
            own = [range(a, b) for a, b in itertools.pairwise(ends)]
            if penalised == 'all':
                own = [range(channels) for _ in group]
            expected = exchanged(
                [before[s] for s in group], scales, 0.4, own if form == 'paper' else None
            )
            for stream, x in zip(group, expected, strict=True):
                torch.testing.assert_close(after[stream], x)
                swapped += int((x != before[stream]).any())
    assert swapped


def test_skips_carry_what_was_exchanged():
    network = small(threshold=2.0)  # every channel becomes the other stream's
    given, seen = {}, {}
    for i, module in network.encoder_fusions.items():
        hook = lambda m, args, out, i=i: given.__setitem__(int(i), out)  # noqa: E731
        module.register_forward_hook(hook)
    for i, module in enumerate(network.decoder):
        hook = lambda m, args, out, i=i: seen.__setitem__(i, args[0])  # noqa: E731
        module.register_forward_hook(hook)
    network(images())
    assert sorted(given) == [1, 2, 3]
    for i, exchanged_maps in given.items():
        # The decoder's layer that sees the encoder's map of this size beside the one below.
        entered = seen[len(network.decoder) - 1 - i]
        for ours, expected in zip(entered, exchanged_maps, strict=True):
            torch.testing.assert_close(ours[:, -expected.shape[1] :], expected.clamp(min=0))


def test_decoders_of_an_input_exchange_channels_of_their_tasks():
    network = small(
        ('a',), ('b', 'c'), fusion='none', exchange_decoders=True, decoders='per_target',
        threshold=0.4,
    )  # fmt: skip
    seen = {}
    for i, module in network.decoder_fusions.items():
        hook = lambda m, args, out, i=i: seen.__setitem__(int(i), (args[0], out))  # noqa: E731
        module.register_forward_hook(hook)
    network(images(('a',)))
    assert sorted(seen) == [0, 1, 2, 3]  # the last layer makes the image
    for i, (before, after) in seen.items():
        scales = [network.decoder_norms[i].of(s).weight for s in (0, 1)]
        for ours, expected in zip(after, exchanged(list(before), scales, 0.4), strict=True):
            torch.testing.assert_close(ours, expected)


def test_the_penalty_is_the_l1_norm_of_each_streams_own_part():
    network = small(('a', 'b', 'c'), ('rgb',), sparsity=0.5)
    expected = 0.0
    for i in (1, 2, 3):
        for stream in range(3):
            scale = network.encoder_norms[i].of(stream).weight
            first, end = len(scale) * stream // 3, len(scale) * (stream + 1) // 3
            expected += 0.5 * float(scale[first:end].abs().sum().detach())
    penalty = network(images('abc')).penalty
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-5)
    penalty.backward()
    gradient = network.encoder_norms[1].of(1).weight.grad
    own = slice(len(gradient) // 3, 2 * len(gradient) // 3)
    assert (gradient[own].abs() == 0.5).all()
    assert not gradient[: own.start].any()
    assert not gradient[own.stop :].any()


def test_the_penalty_of_all_scales_is_their_whole_norm():
    network = small(sparsity=0.5, penalised='all')
    scales = [network.encoder_norms[i].of(s).weight for i in (1, 2, 3) for s in (0, 1)]
    expected = 0.5 * sum(float(scale.abs().sum().detach()) for scale in scales)
    assert float(network(images()).penalty.detach()) == pytest.approx(expected, rel=1e-5)


def test_asymfusion_adds_the_others_moved_and_shuffles():
    network = small(('a', 'b'), ('rgb',), depth=8, fusion='both')
    seen = {}
    for i, module in network.encoder_fusions.items():
        hook = lambda m, args, out, i=i: seen.__setitem__(int(i), (args[0], out))  # noqa: E731
        module.register_forward_hook(hook)
    network(images(side=256, batch=1))
    assert sorted(seen) == [2, 4, 6]  # the 3rd, 5th and 7th layer (§4.2)
    for before, after in seen.values():
        group = before[0].shape[1] // 5
        end = 4 * group
        moved = pixel_shift(before, group, OFFSETS['public'])
        added = [
            torch.cat([x[:, :end] + other, x[:, end:]], 1)
            for x, other in zip(before, reversed(moved), strict=True)
        ]
        for ours, x in zip(after, channel_shuffle(added, end, [[1], [0]]), strict=True):
            torch.testing.assert_close(ours, x)


@pytest.mark.parametrize('fusion', ['exchange', 'both', 'concat', 'align', 'none'])
def test_streams_to_one_target_run_as_if_they_were_all(fusion):
    inputs = ('a', 'b', 'c')
    network = small(inputs, inputs, fusion=fusion, threshold=0.4, dropout=0).train()
    x = images(inputs)
    whole = network(x)
    made = network(x, 'b')  # its streams are the third and fourth
    for ours, theirs in zip(made.streams, whole.streams[2:4], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert list(made.ensembles) == ['b']
    torch.testing.assert_close(made.ensembles['b'], whole.ensembles['b'])
    penalties = torch.stack([network(x, name).penalty for name in inputs])
    if fusion == 'exchange':  # alignments draw
        torch.testing.assert_close(penalties.sum(), whole.penalty)
    (
        sum(s.square().sum() for s in made.streams) + made.ensembles['b'].sum() + made.penalty
    ).backward()
    trained = {n for n, p in network.named_parameters() if p.grad is not None}
    assert {n for n in trained if 'ensembles' in n} == {'ensembles.b.alpha'}
    for norms in ('encoder_norms.2', 'decoder_norms.2'):
        owners = {n.removeprefix(norms)[1] for n in trained if n.startswith(norms)}
        assert owners == {'2', '3'}


@pytest.mark.parametrize(
    ('split', 'channel', 'own', 'moved'),
    [
        ('public', 1, True, [(1, 1, 3, 2)]),
        ('public', 18, False, []),
        ('paper', 1, True, [(1, 1, 2, 3)]),
        ('paper', 18, False, [(1, 18, 1, 2)]),
    ],
)
def test_asymfusion_adds_an_impulse_to_the_other_stream_alone(split, channel, own, moved):
    """By Eq. 4, behind which channels beyond T change places."""
    fusion = make_fusion(GeneratorConfig(fusion='both', split=split), 2, 20)
    maps = [torch.zeros(2, 20, 5, 5) for _ in range(2)]
    maps[0][1, channel, 2, 2] = 1
    places = [[tuple(p) for p in x.nonzero().tolist()] for x in fusion(maps, [])]
    here = [(1, channel, 2, 2)]
    assert places == ([here, moved] if own else [moved, here])


@pytest.mark.parametrize(
    ('fusion', 'layers', 'expected'),
    [
        ('exchange', 'early', [1, 2, 3, 4, 5, 6]),
        ('both', 'early', [2, 4, 6]),
        ('concat', 'early', [0]),
        ('concat', 'middle', [3]),
        ('attention', 'late', [7]),
        ('align', 'all', [0, 1, 2, 3, 4, 5, 6, 7]),
        *(
            (fusion, 'asymfusion', [2, 4, 6])
            for fusion in ('concat', 'average', 'attention', 'mmf')
        ),
        ('none', 'all', []),
    ],
)
def test_fusions_stand_behind_the_layers_of_the_papers(fusion, layers, expected):
    assert fused_layers(GeneratorConfig(fusion=fusion, fused_layers=layers)) == expected


@pytest.mark.parametrize('fusion', FUSIONS)
@pytest.mark.parametrize('layers', LAYERS)
def test_every_fusion_trains_every_weight_and_knows_nothing_of_other_images(fusion, layers):
    network = small(('a', 'b', 'c'), fusion=fusion, fused_layers=layers)
    x = images('abc')
    torch.manual_seed(0)
    both = network(x)
    alone = network({name: value[1:] for name, value in x.items()})
    for ours, theirs in zip(both.streams, alone.streams, strict=True):
        torch.testing.assert_close(ours[1:], theirs, rtol=1e-3, atol=1e-5)
    network.train()
    made = network(x)
    loss = sum(s.square().sum() for s in made.streams) + made.ensembles['rgb'].sum() + made.penalty
    loss.backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None]
    assert not [n for n, p in network.named_parameters() if p.ndim > 1 and not p.grad.any()]
    if fusion not in ('none', 'align'):
        other = network.eval()({**x, 'b': -x['b']})
        assert not torch.allclose(other.streams[0], both.streams[0], atol=1e-4)


def test_dropout_is_behind_the_norms_of_three_layers_and_off_in_evaluation():
    network = small()
    x = images()
    first = network(x)
    torch.testing.assert_close(network(x).streams[0], first.streams[0], rtol=0, atol=0)
    seen = {}
    for i, module in enumerate(network.decoder):
        hook = lambda m, args, out, i=i: seen.__setitem__(i, args[0][0])  # noqa: E731
        module.register_forward_hook(hook)

    def dropped() -> list[float]:
        """Share of nought among the values from below, of each layer but the first."""
        network(x)
        widths = [layer[0].out_channels for layer in network.decoder]
        from_below = [seen[i][:, : widths[i - 1]] for i in range(1, len(seen))]
        return [float((values == 0).float().mean()) for values in from_below]

    quiet = dropped()  # by the ReLU before a layer: about a half
    network.keeps_dropout = True
    kept = dropped()
    network.keeps_dropout = False
    network.train()
    for shares in (kept, dropped()):
        assert all(a > b + 0.15 for a, b in zip(shares[:3], quiet[:3], strict=True))
        assert shares[3] == pytest.approx(quiet[3], abs=0.1)


def test_layers_begin_as_pix2pix_draws_them():
    torch.manual_seed(0)
    network = Translator(['a', 'b'], ['rgb'], GeneratorConfig(width=16, depth=5))
    kernels = [p for p in network.parameters() if p.ndim > 1]
    kernels += [p for p in PatchDiscriminator(16).parameters() if p.ndim > 1]
    for kernel in kernels:
        assert float(kernel.detach().std()) == pytest.approx(0.02, rel=0.15)
    scale = network.encoder_norms[2].of(1).weight
    assert (scale == 1).all()
    uniform = GeneratorConfig(width=16, depth=5, initial_scales='uniform')
    scale = Translator(['a', 'b'], ['rgb'], uniform).encoder_norms[2].of(1).weight.detach()
    assert 0 <= scale.min() < 0.2 < 0.8 < scale.max() <= 1


def test_concatenations_are_drawn_like_all_convolutions():
    config = GeneratorConfig(width=16, depth=4, fusion='concat')
    network = Translator(['a', 'b', 'c'], ['rgb'], config)
    for fusions in network.encoder_fusions.values():
        for fusion in fusions.fusions[0]:
            assert float(fusion.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_the_weight_of_the_alignment_is_that_of_its_term():
    penalties = []
    for weight in (0.1, 0.3):
        network = small(fusion='align', align_weight=weight).train()
        torch.manual_seed(0)
        penalties.append(float(network(images()).penalty.detach()))
    assert penalties[1] == pytest.approx(3 * penalties[0], rel=1e-4)


def test_the_shares_that_are_told_are_of_replaced_channels():
    network = small()
    for i in (1, 2, 3):
        for stream, share in ((0, 0.25), (1, 0.75)):
            scale = network.encoder_norms[i].of(stream).weight.data
            scale.fill_(1.0)
            scale[: round(share * len(scale))] = 0.0
    told = network.monitored()
    assert told['exchanged/a to rgb'] == pytest.approx(0.25)
    assert told['exchanged/b to rgb'] == pytest.approx(0.75)
    assert told['weight/a to rgb'] == pytest.approx(0.5)


def test_a_training_step_stays_on_its_device_and_never_waits_for_it(monkeypatch):
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: contextlib.nullcontext())
    for fusion in FUSIONS:
        network = small(fusion=fusion).train().to('meta')
        made = network({name: x.to('meta') for name, x in images().items()})
        (sum(x.sum() for x in made.streams) + made.penalty).backward()
        assert all(x.device.type == 'meta' for x in made.streams)


@pytest.mark.parametrize(
    ('given', 'match'),
    [
        ({'a': (64, 64)}, 'the generator reads b, which is not given'),
        ({'a': (64, 64), 'b': (64, 72)}, 'b is 72x64, and 5 layers .* of 32, such as 96x64'),
    ],
)
def test_images_that_do_not_fit_are_refused(given, match):
    with pytest.raises(ValueError, match=match):
        small()({name: torch.zeros(1, 3, *size) for name, size in given.items()})


def test_a_fusion_without_anything_to_fuse_is_refused():
    with pytest.raises(ValueError, match="no target has two inputs; give fusion 'none'"):
        Translator(['rgb'], ['depth'], GeneratorConfig(width=8, depth=4))
    options = {'width': 8, 'depth': 4, 'exchange_decoders': True}
    with pytest.raises(ValueError, match='no input has two targets'):
        Translator(['a', 'b'], ['rgb'], GeneratorConfig(**options))


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'threshold': -1.0}, 'threshold >= 0, but threshold is -1.0'),
        ({'sparsity': float('nan')}, 'sparsity'),
        ({'fusion': 'sum'}, "fusion one of exchange, .* but fusion is 'sum'"),
        ({'depth': 2}, 'depth 4 to 10'),
        ({'encoder_norms': 'shared'}, 'encoder_norms per_stream for fusion exchange'),
        ({'fusion': 'attention', 'width': 8}, 'width >= 16 for fusion attention'),
        ({'exchange_decoders': True, 'decoder_norms': 'shared'}, 'with decoder_norms per_stream'),
    ],
)
def test_settings_out_of_range_are_refused(changes, match):
    with pytest.raises(InputError, match=match):
        GeneratorConfig(**changes)


def test_samples_of_one_feature_are_not_aligned():
    def config(batch_size: int, side: int, layers: str = 'all') -> TranslationConfig:
        return TranslationConfig(
            generator=GeneratorConfig(depth=5, fusion='align', fused_layers=layers),
            batch_size=batch_size, images=ImagesConfig(side=side),
        )  # fmt: skip

    for allowed in ((config(2, 32), 1), (config(1, 64), 1), (config(1, 32, 'middle'), 1)):
        check_alignment(*allowed)
    for refused in ((config(1, 32), 1), (config(2, 32), 2), (config(1, 32, 'late'), 1)):
        words = 'make batch_size 2 or more for each process, or fused_layers middle'
        with pytest.raises(InputError, match=words):
            check_alignment(*refused)


@pytest.mark.parametrize('layers', ['middle', 'late', 'all'])
def test_of_four_layers_the_fourth_is_the_last_that_is_aligned(layers):
    """And what the message advises can be trained."""
    generator = GeneratorConfig(width=8, depth=4, fusion='align', fused_layers=layers)
    config = TranslationConfig(
        generator=generator, batch_size=1, images=ImagesConfig(side=16), adversarial=0.0
    )
    with pytest.raises(InputError, match=r'or fused_layers early$'):
        check_alignment(config)
    config.generator.fused_layers = 'early'
    check_alignment(config)
    network = Translator(['a', 'b'], ['c'], config.generator).train()
    assert network({name: torch.rand(1, 3, 16, 16) for name in 'ab'}).penalty.isfinite()


def test_a_loss_that_no_stream_would_learn_from_is_refused():
    TranslationConfig(stream_factor=0.0, generator=GeneratorConfig(detach_ensemble=False))
    words = r'> 0, or .* but stream_factor is 0\.0, generator\.detach_ensemble is True$'
    with pytest.raises(InputError, match=words):
        TranslationConfig(stream_factor=0.0)


def test_flows_one_at_a_time_cannot_exchange_between_decoders():
    generator = GeneratorConfig(exchange_decoders=True)
    with pytest.raises(InputError, match=r"flows all for generator.* but flows is 'one'"):
        TranslationConfig(flows='one', generator=generator)
    with pytest.raises(InputError, match="flows one of all, one, but flows is 'two'"):
        TranslationConfig(flows='two')


def test_sides_without_a_patch_are_refused():
    generator = GeneratorConfig(depth=4)
    TranslationConfig(generator=generator, images=ImagesConfig(side=16), adversarial=0)
    with pytest.raises(InputError, match=r'for discriminators, but images\.side is 16$'):
        TranslationConfig(generator=generator, images=ImagesConfig(side=16))
    with pytest.raises(InputError, match='load_side >= side >= 1'):
        ImagesConfig(side=0)


def test_a_side_that_does_not_fit_the_depth_is_refused():
    words = (
        r'^the translation settings must have images\.side a multiple of 128 for '
        r'generator\.depth, but generator\.depth is 7, images\.side is 96$'
    )
    with pytest.raises(InputError, match=words):
        TranslationConfig(images=ImagesConfig(side=96), generator=GeneratorConfig(depth=7))
