"""AsymFusion: against the public code's outputs, and against the paper's equations in NumPy."""

from __future__ import annotations

import itertools
import json

import goldens
import numpy as np
import pytest

torch = pytest.importorskip('torch')

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from rgbd_fusion_seg.training.checkpoints import from_public  # noqa: E402
from rgbd_fusion_seg.training.networks import build_network, parameter_count  # noqa: E402
from rgbd_fusion_seg.training.networks.asymfusion import (  # noqa: E402
    OFFSETS,
    OPERATIONS,
    AsymmetricFusion,
    channel_shuffle,
    distillation_loss,
    own_channels,
    pixel_shift,
    shifted_group,
    sources_of,
)
from rgbd_fusion_seg.training.networks.branches import BranchLayers, OneEach  # noqa: E402
from rgbd_fusion_seg.training.networks.resnet import Bottleneck  # noqa: E402

SMALL = {'backbone': 'resnet14', 'head_options': {'width': 8}}
ALL_MODALITIES = ['rgb', 'hha', 'depth']
BOTH = [[1], [0]]
"""Sources of two branches that receive from each other."""


def random_maps(
    count: int,
    shape: tuple[int, ...] = (2, 20, 3, 4),
    seed: int = 5,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    generator = np.random.default_rng(seed)
    return [torch.tensor(generator.standard_normal(shape), dtype=dtype) for _ in range(count)]


def small_network(**options) -> nn.Module:
    """A network whose norms are those of a trained one in that no two are alike."""
    torch.manual_seed(0)
    network = build_network('asymfusion', 5, **{**SMALL, **options}).eval()
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.ndim == 1 and name.startswith('encoder.'):
            value.data = torch.rand_like(value) + 0.5
    return network


def images(network: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {m: torch.randn(2, 3, 32, 48, generator=generator) for m in network.modalities}


def close(ours: Tensor, theirs: np.ndarray | Tensor, share: float = 1e-4) -> None:
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= share * theirs.abs().max()


# The two operations


@pytest.mark.parametrize('channels', [10, 12, 64])
@pytest.mark.parametrize('reverse', [False, True])
def test_operations_of_the_public_code(goldens_dir, channels, reverse):
    golden = np.load(goldens_dir / 'asym_ops.npz')
    case = f'C{channels}_rev{int(reverse)}'
    maps = [torch.tensor(golden[f'C{channels}_x{m}']) for m in (0, 1)]
    shuffled = channel_shuffle(maps, own_channels(channels), sources_of(('rgb', 'depth')))
    offsets = OFFSETS['public'][::-1] if reverse else OFFSETS['public']
    shifted = pixel_shift(maps, shifted_group(channels), offsets)
    for m in (0, 1):
        np.testing.assert_array_equal(shuffled[m], golden[f'{case}_shuffle{m}'])
        theirs = golden[f'{case}_shift{m}']
        count = shifted[m].shape[1]
        np.testing.assert_array_equal(shifted[m], theirs[:, :count])
        assert not theirs[:, count:].any()  # nothing that is left out


def shift_in_loops(x: np.ndarray, split: str) -> np.ndarray:
    """Eq. 3, or the public code's form of it: all C channels, those not shifted as 0."""
    alpha, beta = {'public': ([-1, 0, 0, 1], [0, -1, 1, 0]),
                   'paper': ([0, -1, 0, 1], [-1, 0, 1, 0])}[split]  # fmt: skip
    batch, channels = x.shape[:2]
    size = channels // 5 if split == 'public' else channels // 4
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    shifted = np.zeros_like(x)
    for n, c, h, w in itertools.product(range(batch), range(4 * size), *map(range, x.shape[2:])):
        k = c // size
        shifted[n, c, h, w] = padded[n, c, h + alpha[k] + 1, w + beta[k] + 1]
    return shifted


def shuffle_in_loops(maps: list[np.ndarray], split: str, giver) -> list[np.ndarray]:
    """Eq. 2; ``giver(branch, part)`` tells who gives a channel at ``part`` (0..1) of the rest."""
    channels = maps[0].shape[1]
    own = 4 * (channels // 5) if split == 'public' else round(0.7 * channels)
    shuffled = [np.empty_like(x) for x in maps]
    for m, c in itertools.product(range(len(maps)), range(channels)):
        source = m if c < own else giver(m, (c - own) / (channels - own))
        shuffled[m][:, c] = maps[source][:, c]
    return shuffled


def swapped(branch: int, part: float) -> int:
    return 1 - branch


def given_by_two(branch: int, part: float) -> int:
    return (branch + 1 + (part >= 0.5)) % 3


@pytest.mark.parametrize('split', ['public', 'paper'])
@pytest.mark.parametrize('channels', [8, 20, 64])
def test_operations_in_loops(split, channels):
    maps = random_maps(3, (2, channels, 3, 4))
    for x in maps:
        (ours,) = pixel_shift([x], shifted_group(channels, split), OFFSETS[split])
        theirs = shift_in_loops(x.numpy(), split)
        np.testing.assert_array_equal(ours, theirs[:, : ours.shape[1]])
        assert not theirs[:, ours.shape[1] :].any()
    own = own_channels(channels, split)
    ours = channel_shuffle(maps[:2], own, sources_of(('rgb', 'hha')))
    theirs = shuffle_in_loops([x.numpy() for x in maps[:2]], split, swapped)
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(x, y)


def test_three_modalities_give_every_channel_once():
    maps = random_maps(3, (1, 64, 2, 2))
    ours = channel_shuffle(maps, own_channels(64), sources_of(ALL_MODALITIES))
    theirs = shuffle_in_loops([x.numpy() for x in maps], 'public', given_by_two)
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(x, y)
    for c in range(64):  # no two branches have the same map of a channel
        assert sorted(float(x[0, c, 0, 0]) for x in ours) == sorted(
            float(x[0, c, 0, 0]) for x in maps
        )


@pytest.mark.parametrize('split', ['public', 'paper'])
@pytest.mark.parametrize('modalities', [['rgb', 'hha'], ALL_MODALITIES])
def test_the_fusion_has_the_gradients_of_what_it_computes(split, modalities):
    """By finite differences: the golden outputs hold gradients of CEN alone."""
    fusion = AsymmetricFusion(12, sources_of(modalities), 'both', split)
    count, shape = len(modalities), (1, 12, 2, 3)
    maps = [x.requires_grad_() for x in random_maps(2 * count, shape)]

    def fused(*x: Tensor) -> tuple[Tensor, ...]:
        first = fusion.after_first(x[:count])
        return (*first, *fusion.after_second(x[count:], first))

    assert torch.autograd.gradcheck(fused, maps)


def test_who_receives_from_whom():
    assert sources_of(('rgb', 'hha')) == [[1], [0]]
    assert sources_of(ALL_MODALITIES) == [[1, 2], [2, 0], [0, 1]]
    assert sources_of(('rgb', 'hha'), 'depth_to_rgb') == [[1], []]
    assert sources_of(('rgb', 'hha'), 'rgb_to_depth') == [[], [0]]
    assert sources_of(ALL_MODALITIES, 'depth_to_rgb') == [[1, 2], [], []]
    assert sources_of(ALL_MODALITIES, 'rgb_to_depth') == [[], [0], [0]]
    assert sources_of(('hha', 'depth')) == [[1], [0]]
    with pytest.raises(ValueError, match='needs the modality rgb'):
        sources_of(('hha', 'depth'), 'depth_to_rgb')


# Inside a block


@pytest.mark.parametrize('split', ['public', 'paper'])
@pytest.mark.parametrize('operations', OPERATIONS)
@pytest.mark.parametrize('stride', [1, 2])
def test_a_bottleneck_written_out(split, operations, stride):
    torch.manual_seed(1)
    fusion = AsymmetricFusion(20, BOTH, operations, split)
    block = Bottleneck(BranchLayers(2), 80, 20, stride, 1, fusion).double().eval()
    for norm in (block.bn1, block.bn2, block.bn3):
        for x in norm.parameters():
            nn.init.uniform_(x, 0.2, 1.0)
    maps = random_maps(2, (2, 80, 6, 8))

    def shuffled(x: list[Tensor]) -> list[Tensor]:
        if operations not in ('both', 'unmoved', 'shuffle'):
            return x
        return [torch.tensor(y) for y in shuffle_in_loops([a.numpy() for a in x], split, swapped)]

    with torch.no_grad():
        first = shuffled([x.relu() for x in block.bn1(block.conv1(maps))])
        second = [x.relu() for x in block.bn2(block.conv2(first))]
        if operations in ('both', 'shift'):
            moved = [torch.tensor(shift_in_loops(x.numpy(), split)) for x in first]
        if operations == 'unmoved':
            channels = 16 if split == 'public' else 20
            moved = [torch.cat([x[:, :channels], 0 * x[:, channels:]], 1) for x in first]
        if operations in ('both', 'shift', 'unmoved'):
            second = [
                x + y[..., ::stride, ::stride]
                for x, y in zip(second, reversed(moved), strict=True)
            ]
        third = block.bn3(block.conv3(shuffled(second)))
        shortcut = block.downsample(maps) if stride == 2 else maps
        expected = [(x + y).relu() for x, y in zip(third, shortcut, strict=True)]
        for ours, theirs in zip(block(maps), expected, strict=True):
            close(ours, theirs, 1e-12)


def test_three_modalities_add_the_mean_of_the_others():
    maps, first = random_maps(3), random_maps(3, seed=6)
    fusion = AsymmetricFusion(20, sources_of(ALL_MODALITIES), 'shift')
    moved = [torch.tensor(shift_in_loops(x.numpy(), 'public')) for x in first]
    for m, ours in enumerate(fusion.after_second(maps, first)):
        others = [moved[i] for i in range(3) if i != m]
        close(ours, maps[m] + (others[0] + others[1]) / 2, 1e-12)


@pytest.mark.parametrize(
    ('options', 'last'),
    [
        ({'backbone': 'resnet26'}, ['layer1.1', 'layer2.1', 'layer3.1', 'layer4.1']),
        (
            {'backbone': 'xception23_quarter', 'head': 'deeplabv3plus'},
            ['entry.2', 'middle.1', 'exit.1'],
        ),
    ],
)
def test_the_last_block_of_each_stage_fuses(options, last):
    network = build_network('asymfusion', 5, head_options={'width': 8}, **options)
    found = [n for n, module in network.named_modules() if isinstance(module, AsymmetricFusion)]
    assert found == [f'encoder.{name}.fusion' for name in last]
    without = build_network(
        'asymfusion', 5, head_options={'width': 8}, operations='none', **options
    )
    assert not [m for m in without.modules() if isinstance(m, AsymmetricFusion)]
    assert without.state_dict().keys() == network.state_dict().keys()


# The network


@pytest.mark.parametrize(
    ('direction', 'alone'), [('depth_to_rgb', 'hha'), ('rgb_to_depth', 'rgb')]
)
def test_in_one_direction_the_giver_stays_unimodal(direction, alone):
    network = small_network(direction=direction)
    x = images(network)
    with torch.no_grad():
        predictions = dict(zip(network.modalities, network(x, auxiliary=True)[1:], strict=True))
        for modality, logits in predictions.items():
            name, options, weights = network.unimodal_form(modality)
            unimodal = build_network(name, 5, **options).eval()
            unimodal.load_state_dict(weights)
            difference = (logits - unimodal(x)).abs().max() / logits.abs().max()
            assert difference < 1e-5 if modality == alone else difference > 1e-2


def branch(network: nn.Module, number: int) -> nn.Module:
    """The plain network of a branch, whatever is fused."""
    plain = build_network('multimodal', 5, modalities=['rgb'], **SMALL).eval()
    for name, value in plain.state_dict().items():
        path, _, tensor = name.rpartition('.')
        layer = network.get_submodule(path)
        layer = layer[number] if isinstance(layer, OneEach) else layer
        value.copy_(getattr(layer, tensor))
    return plain


def fused_by(network: nn.Module, stage: int, number: int, x: Tensor, y: Tensor) -> Tensor:
    """What a branch goes on with behind a stage, written out."""
    layer, name = network.fusions[stage][number], network._fusion[0]
    if name == 'average':
        return (x + y) / 2
    both = torch.cat([x, y], 1)
    if name == 'concat':
        return torch.einsum('oi,nihw->nohw', layer.weight[:, :, 0, 0], both)
    down, up, project = layer.attention[0], layer.attention[2], layer.project
    weights = F.conv2d(both, down.weight, down.bias, padding=1).clamp(min=0)
    weights = F.conv2d(weights, up.weight, up.bias, padding=1).sigmoid()
    z, norm = F.conv2d(both * weights, project[0].weight, padding=1), project[1]
    return F.batch_norm(z, norm.running_mean, norm.running_var, norm.weight, norm.bias)


@pytest.mark.parametrize('share_convs', [True, False])
@pytest.mark.parametrize('direction', ['both', 'depth_to_rgb', 'rgb_to_depth'])
@pytest.mark.parametrize('operations', ['concat', 'average', 'attention'])
@torch.no_grad()
def test_symmetric_fusions_by_direction_written_out(operations, direction, share_convs):
    network = small_network(operations=operations, direction=direction, share_convs=share_convs)
    for fusions in network.fusions:
        for layer in fusions.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight += 0.01 * torch.randn_like(layer.weight)
    x, branches = images(network), [branch(network, m) for m in range(2)]
    maps = [b.encoder.stem([x[m]])[0] for b, m in zip(branches, network.modalities, strict=True)]
    features = []
    for stage in range(4):
        maps = [b.encoder.stages[stage]([y])[0] for b, y in zip(branches, maps, strict=True)]
        rgb, hha = maps
        if direction != 'rgb_to_depth':
            maps = [fused_by(network, stage, 0, rgb, hha), hha]
        if direction != 'depth_to_rgb':
            maps = [maps[0], fused_by(network, stage, 1, hha, rgb)]
        features.append(maps)
    predictions = network(x, auxiliary=True)[1:]
    for m, modality in enumerate(network.modalities):
        expected = branches[m].head([[y[m]] for y in features])[0]
        close(predictions[m], expected)
        # Who receives nothing answers alone, the others cannot.
        receives = direction == 'both' or direction.endswith('rgb') == (modality == 'rgb')
        assert (network.unimodal_form(modality) is None) == receives


@torch.no_grad()
def test_symmetric_fusions_of_three_modalities_and_their_backbone():
    network = small_network(operations='average', modalities=ALL_MODALITIES)
    maps = random_maps(3, (1, 256, 2, 3))
    for got in network.fusions[0](maps):
        close(got, sum(maps) / 3)
    fusions = small_network(operations='concat', modalities=ALL_MODALITIES).double().fusions[0]
    for m, (fuse, got) in enumerate(zip(fusions, fusions(maps), strict=True)):
        joined = torch.cat([maps[m], maps[(m + 1) % 3], maps[(m + 2) % 3]], 1)
        close(got, torch.einsum('oi,nihw->nohw', fuse.weight[:, :, 0, 0], joined))
    with pytest.raises(ValueError, match=r"average behind stages needs a ResNet, .*'xception65'"):
        small_network(
            operations='average', backbone='xception65', head='deeplabv3plus', head_options={}
        )


def test_the_whole_network_of_the_public_code(goldens_dir):
    golden = np.load(goldens_dir / 'asym_refinenet50.npz')
    weights = goldens.refinenet_weights(golden, exchanging=False)
    weights = from_public('asymfusion', {k: torch.tensor(v) for k, v in weights.items()})
    with torch.device('meta'):
        network = build_network('asymfusion', 40, backbone='resnet50', modalities=['rgb', 'depth'])
    network.load_state_dict(weights, assign=True)
    network.eval()
    x = {m: torch.tensor(golden[f'x_{m}']) for m in network.modalities}
    with torch.no_grad():
        features = network.encode(list(x.values()))
        outputs = network(x, auxiliary=True)
    for stage, maps in enumerate(features, 1):
        for m, ours in enumerate(maps):
            close(ours[:, :8], golden[f'mid_layer{stage}_{m}'])
    for ours, name in zip(outputs, ('ens', 'rgb', 'depth'), strict=True):
        close(ours, golden[f'out_{name}'])
    close(network.ensemble.weights, golden['alpha_soft'])


@pytest.mark.parametrize(
    ('backbone', 'millions'), [('resnet50', None), ('resnet101', 118.20), ('resnet152', 133.89)]
)
def test_parameters_are_as_many_as_the_papers(goldens_dir, backbone, millions):
    counts = json.loads((goldens_dir / 'cen_param_counts.json').read_text())
    with torch.device('meta'):
        network = build_network('asymfusion', 40, backbone=backbone)
    found = parameter_count(network).trainable
    assert found == counts[f'R{backbone[6:]}_P2_C40']['total']
    if millions:
        assert round(found / 1e6, 2) == millions


@pytest.mark.parametrize(
    ('split', 'direction', 'stride'),
    [('public', 'both', 2), ('paper', 'depth_to_rgb', 1)],
)
@pytest.mark.filterwarnings('ignore')  # the exporter's, about itself
def test_an_exported_block_takes_any_size_and_batch(split, direction, stride):
    onnxruntime = pytest.importorskip('onnxruntime')
    fusion = AsymmetricFusion(12, sources_of(ALL_MODALITIES, direction), 'both', split)
    block = Bottleneck(BranchLayers(3), 48, 12, stride, 1, fusion).eval()
    dims = dict(zip((0, 2, 3), map(torch.export.Dim, ('n', 'h', 'w')), strict=True))
    program = torch.onnx.export(
        block, (random_maps(3, (2, 48, 6, 8), dtype=torch.float32),), dynamo=True, verbose=False,
        dynamic_shapes=([dims] * 3,),
    )  # fmt: skip
    model = program.model_proto
    assert {node.domain for node in model.graph.node} == {''}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [x.name for x in session.get_inputs()]
    for shape in ((1, 48, 6, 8), (3, 48, 11, 4)):
        maps = random_maps(3, shape, dtype=torch.float32)
        with torch.no_grad():
            expected = block(maps)
        found = session.run(None, dict(zip(names, [x.numpy() for x in maps], strict=True)))
        for ours, theirs in zip(found, expected, strict=True):
            close(torch.tensor(ours), theirs)


# Distillation


@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_distillation_written_out(temperature):
    fused, *logits = random_maps(3, (2, 5, 3, 4))

    def softmax(x: Tensor) -> np.ndarray:
        e = np.exp(x.numpy() / temperature)
        return e / e.sum(1, keepdims=True)

    target = softmax(fused)
    expected = 0.0
    for n, h, w in itertools.product(range(2), range(3), range(4)):
        for x in logits:
            p, q = target[n, :, h, w], softmax(x)[n, :, h, w]
            expected += temperature**2 * (p * np.log(p / q)).sum() / 24
    assert float(distillation_loss(fused, logits, temperature)) == pytest.approx(expected, 1e-6)
    assert float(distillation_loss(fused, [fused, fused], temperature)) == pytest.approx(
        0, abs=1e-6
    )


def test_distillation_teaches_the_branches_and_not_the_ensemble():
    network = small_network(distillation=0.5, temperature=2.0).train()
    *outputs, term = network(images(network), auxiliary=True)
    assert len(outputs) == 3
    close(term, 0.5 * distillation_loss(outputs[0], outputs[1:], 2.0), 1e-6)
    term.backward()
    assert network.ensemble.alpha.grad is None
    assert network.head.classifier.weight.grad.any()
    plain = small_network()
    assert len(plain(images(plain), auxiliary=True)) == 3


# What is refused


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'operations': 'add'}, "operations must be one of both, .*'add'"),
        ({'split': 'half'}, "split must be one of public, paper, got 'half'"),
        ({'direction': 'up'}, "direction must be one of both, .*'up'"),
        ({'distillation': -0.1}, r'distillation must be finite and not negative, got -0\.1'),
        ({'distillation': float('nan')}, 'distillation must be finite'),
        ({'distillation': float('inf')}, 'distillation must be finite'),
        ({'temperature': 0.0}, r'temperature must be finite and greater than 0, got 0\.0'),
        ({'temperature': float('inf')}, 'temperature must be finite'),
        ({'modalities': ['rgb']}, "two or more modalities .*'multimodal'"),
        ({'modalities': ['hha', 'depth'], 'direction': 'depth_to_rgb'}, 'needs the modality rgb'),
    ],
)
def test_options_without_a_meaning_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        build_network('asymfusion', 5, **{**SMALL, **options})


@pytest.mark.parametrize(
    ('channels', 'operations', 'split', 'words'),
    [
        (4, 'shuffle', 'public', '4 channels cannot be divided for the public shuffle'),
        (4, 'shift', 'public', 'five channels or more, got 4'),
        (66, 'both', 'paper', 'a multiple of four channels, got 66'),
        (1, 'shuffle', 'paper', '1 channels cannot be divided'),
    ],
)
def test_channels_that_do_not_divide_are_refused(channels, operations, split, words):
    with pytest.raises(ValueError, match=words):
        AsymmetricFusion(channels, BOTH, operations, split)
