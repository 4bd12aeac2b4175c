"""The baselines of CEN: sizes of the paper's Table 2, and what they do written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from onnx_weights import count_weights  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from rgbd_fusion_seg.training.networks import build_network, parameter_count  # noqa: E402
from rgbd_fusion_seg.training.networks.branches import OneEach  # noqa: E402
from rgbd_fusion_seg.training.networks.resnet import ResNet  # noqa: E402
from rgbd_fusion_seg.training.networks.stage_fusion import (  # noqa: E402
    Alignment,
    ConditionalNorm,
    make_aggregation,
    multi_kernel_mmd,
    sampled_pixels,
)
from rgbd_fusion_seg.training.onnx_graph import GraphOptions, build_graph  # noqa: E402

SMALL = {'backbone': 'resnet14', 'head_options': {'width': 8}}
THREE = ['rgb', 'hha', 'depth']
STAGES = {'early': [1], 'middle': [2], 'late': [3], 'all': [0, 1, 2, 3]}
CHANNELS = [256, 512, 1024, 2048]
# Of RefineNet with ResNet-101; the public code's 118,096,233 count an ensemble of one.
UNIMODAL = 118_096_232
STEM, BLOCKS, WIDTHS = 9_536, [3, 4, 23, 3], [64, 128, 256, 512]
# Millions in CEN's Table 2: early, middle, late, all. None: the table's own figure fits no sum of
# its other ones (272.3, where the fusion's 112.8 and two encoders make 273.4), or by its last
# digit is that of a network without norms of the fused stream (139.4, 231.0) or none (203.2).
TABLE = {
    ('concat', 'individual'): (120.1, 147.7, 169.0, 171.7),
    ('concat', 'shared'): (118.8, 120.3, 126.6, 129.4),
    ('align', 'individual'): (238.8, 246.7, 278.1, 291.9),
    ('align', 'shared'): (120.8, 128.7, 160.1, 173.9),
    ('attention', 'individual'): (124.9, 166.9, 245.5, None),
    ('attention', 'shared'): (123.6, None, None, None),
}


def norms_of(stage: int) -> int:
    """Scales and shifts of a stage of ResNet-101 (one of the downsampling's among them)."""
    width = WIDTHS[stage]
    return 2 * (BLOCKS[stage] * 6 * width + 4 * width)


def weights_of(stage: int) -> int:
    """Numbers in a stage of ResNet-101."""
    width, given = WIDTHS[stage], [64, *CHANNELS][stage]
    first = given * width + 9 * width**2 + 4 * width**2 + 4 * width * given
    return first + (BLOCKS[stage] - 1) * 17 * width**2 + norms_of(stage)


def expected_size(fusion: str, encoders: str, fused: list[int]) -> int:
    squares = sum(CHANNELS[i] ** 2 for i in fused)
    total = UNIMODAL
    total += {'concat': 2, 'align': 10, 'attention': 20.25}[fusion] * squares
    if fusion == 'attention':  # biases of the two convolutions, and the norm
        total += sum(c // 16 + 4 * c for c in (CHANNELS[i] for i in fused))
    whole = STEM + sum(map(weights_of, range(4)))
    norms = 128 + sum(map(norms_of, range(4)))
    if encoders == 'shared':
        total += norms + 2  # and the ensemble's weights
        if fusion != 'align':
            total += sum(map(norms_of, range(fused[0] + 1, 4))) + 1
    elif fusion == 'align':
        total += UNIMODAL + 2
    else:
        last = fused[-1]
        total += whole if last == 3 else STEM + sum(map(weights_of, range(last + 1)))
    return int(total)


@pytest.mark.parametrize('stages', STAGES)
@pytest.mark.parametrize(('fusion', 'encoders'), TABLE)
def test_the_sizes_are_the_papers(fusion, encoders, stages):
    with torch.device('meta'):
        network = build_network(
            'stage_fusion', 40, fusion=fusion, encoders=encoders, stages=stages
        )
    count = parameter_count(network).trainable
    assert count == expected_size(fusion, encoders, STAGES[stages])
    printed = TABLE[fusion, encoders][list(STAGES).index(stages)]
    assert printed is None or round(count / 1e6, 1) == printed


def small_network(name: str = 'stage_fusion', seed: int = 0, **options) -> nn.Module:
    """A network whose norms have seen data."""
    torch.manual_seed(seed)
    network = build_network(name, 5, **{**SMALL, **options}).eval()
    for tensor_name, value in network.state_dict().items():
        if tensor_name.endswith('running_mean') or tensor_name.endswith('bias'):
            value.copy_(0.2 * torch.randn_like(value))
        elif value.ndim == 1 and value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
        elif '.fusion.' in tensor_name:
            value.copy_(0.1 * torch.randn_like(value))
    return network


def images(network: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {m: torch.randn(2, 3, 32, 48, generator=generator) for m in network.modalities}


@torch.no_grad()
def outputs(network: nn.Module) -> list[Tensor]:
    """The prediction, and those of the branches where there are some."""
    return network(images(network), auxiliary=True)


def alone(network: nn.Module, stream: int) -> nn.Module:
    """The plain network of a branch or the fused stream; its weights where it has none: RGB's."""
    plain = build_network('multimodal', 5, modalities=['rgb'], **SMALL).eval()
    for name, value in plain.state_dict().items():
        path, _, tensor = name.rpartition('.')
        layer = network.get_submodule(path)
        if isinstance(layer, OneEach):
            layer = layer[stream if stream < len(layer) else 0]
        value.copy_(getattr(layer, tensor))
    return plain


def stage(network: nn.Module, number: int, x: Tensor) -> Tensor:
    return network.encoder.stages[number]([x])[0]


def features(network: nn.Module, image: Tensor) -> list[Tensor]:
    return [maps[0] for maps in network.encode([image])]


def logits(network: nn.Module, maps: list[Tensor]) -> Tensor:
    return network.head([[x] for x in maps])[0]


def aggregated(network: nn.Module, number: int, maps: list[Tensor]) -> Tensor:
    """The fusion behind a stage, written out."""
    if network.fusion == 'average':
        return torch.stack(maps).mean(0)
    x = torch.cat(maps, 1)
    module = network.fusions[str(number)]
    if network.fusion == 'concat':
        return torch.einsum('oi,nihw->nohw', module.weight[:, :, 0, 0], x)
    down, up, project = module.attention[0], module.attention[2], module.project
    y = F.conv2d(x, down.weight, down.bias, padding=1).clamp(min=0)
    assert y.shape[1] == maps[0].shape[1] // 16
    y = F.conv2d(y, up.weight, up.bias, padding=1).sigmoid()
    y = F.conv2d(x * y, project[0].weight, padding=1)
    norm = project[1]
    return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ('fusion', 'stages', 'modalities'),
    [
        ('concat', 'early', THREE),
        ('concat', 'all', ['rgb', 'hha']),
        ('average', 'middle', ['rgb', 'hha']),
        ('average', 'late', ['rgb', 'hha']),
        ('attention', 'early', ['rgb', 'hha']),
    ],
)
@torch.no_grad()
def test_individual_branches_end_at_the_fusion(fusion, stages, modalities):
    network = small_network(
        fusion=fusion, stages=stages, encoders='individual', modalities=modalities
    )
    x = images(network)
    branches = [alone(network, m) for m in range(len(modalities))]
    own = [features(b, x[m]) for b, m in zip(branches, modalities, strict=True)]
    expected: list[Tensor] = []
    for number, of_branches in enumerate(zip(*own, strict=True)):
        if number in STAGES[stages]:
            expected.append(aggregated(network, number, list(of_branches)))
        elif number < STAGES[stages][0]:
            expected.append(torch.stack(of_branches).mean(0))
        else:
            expected.append(stage(branches[0], number, expected[-1]))
    got = outputs(network)
    assert len(got) == 1
    close(got[0], logits(branches[0], expected))


@pytest.mark.parametrize(
    ('fusion', 'stages', 'modalities'),
    [
        ('concat', 'early', ['rgb', 'hha']),
        ('concat', 'all', THREE),
        ('average', 'all', ['rgb', 'hha']),
        ('average', 'late', ['rgb', 'hha']),
        ('attention', 'early', ['rgb', 'hha']),
    ],
)
@torch.no_grad()
def test_the_fused_stream_goes_beside_the_shared_branches(fusion, stages, modalities):
    network = small_network(fusion=fusion, stages=stages, modalities=modalities)
    x, count = images(network), len(modalities)
    *branches, stream = [alone(network, m) for m in range(count + 1)]
    own = [features(b, x[m]) for b, m in zip(branches, modalities, strict=True)]
    expected: list[Tensor] = []
    for number, of_branches in enumerate(zip(*own, strict=True)):
        if number < STAGES[stages][0]:
            expected.append(torch.stack(of_branches).mean(0))
            continue
        reached = number > STAGES[stages][0]
        z = stage(stream, number, expected[-1]) if reached else torch.zeros(())
        if number in STAGES[stages]:
            z = z + aggregated(network, number, list(of_branches))
        expected.append(z)
    prediction, *others = outputs(network)
    assert len(others) == count + 1 == len(network.auxiliary_weights)
    for m in range(count):
        close(others[m], logits(branches[m], own[m]))
    close(others[count], logits(stream, expected))
    weights = network.ensemble.alpha.exp() / network.ensemble.alpha.exp().sum()
    close(prediction, sum(w * y for w, y in zip(weights, others, strict=True)))


@pytest.mark.parametrize('stages', ['middle', 'all'])
@torch.no_grad()
def test_the_fused_map_can_be_added_to_the_branches(stages):
    network = small_network(stages=stages, shared_form='added', encoders='shared')
    plain = [alone(network, m) for m in range(2)]
    x = images(network)
    maps = [p.encoder.stem([x[m]])[0] for p, m in zip(plain, network.modalities, strict=True)]
    expected: list[list[Tensor]] = [[], []]
    for number in range(4):
        maps = [stage(p, number, y) for p, y in zip(plain, maps, strict=True)]
        if number in STAGES[stages]:
            fused = aggregated(network, number, maps)
            maps = [y + fused for y in maps]
        for m in range(2):
            expected[m].append(maps[m])
    _, *branches = outputs(network)
    assert len(branches) == 2
    for m in range(2):
        close(branches[m], logits(plain[m], expected[m]))


@torch.no_grad()
def test_without_weight_the_fusion_leaves_the_shared_branches_alone():
    network = small_network(shared_form='added')
    plain = small_network('multimodal')
    plain.load_state_dict(
        {k: v for k, v in network.state_dict().items() if not k.startswith('fusions')}
    )
    assert not torch.allclose(outputs(network)[0], outputs(plain)[0])
    for module in network.fusions.values():
        module.weight.zero_()
    for ours, theirs in zip(outputs(network), outputs(plain), strict=True):
        close(ours, theirs)


@torch.no_grad()
def test_a_fusion_that_picks_a_branch_makes_the_stream_that_branch():
    network = small_network(stages='all')
    for number, module in network.fusions.items():
        module.weight.zero_()
        if number == '0':
            channels = len(module.weight)
            module.weight[:, channels:, 0, 0] = torch.eye(channels)
    for module in network.modules():
        if isinstance(module, OneEach) and len(module) == 3:
            module[2].load_state_dict(module[1].state_dict())
    _, rgb, hha, fused = outputs(network)
    close(fused, hha)
    assert not torch.allclose(fused, rgb)


def test_a_concatenation_begins_as_the_mean():
    maps = list(torch.randn(3, 2, 4, 5, 6))
    with torch.no_grad():
        got = make_aggregation('concat', 3, 4)(*maps)
    torch.testing.assert_close(got, sum(maps) / 3)


def test_rdfnets_block_written_out():
    """1x1, two residual units and 3x3 a stream; their sum; 5x5 pooling and 3x3 added (RDFNet)."""
    block = make_aggregation('mmf', 2, 8)
    maps, w = list(torch.randn(2, 1, 8, 6, 7)), block.state_dict()
    total = 0
    with torch.no_grad():
        for m, x in enumerate(maps):
            y = F.conv2d(x, w[f'streams.{m}.0.weight'])
            for unit in (1, 2):
                name = f'streams.{m}.{unit}'
                z = F.conv2d(y.relu(), w[f'{name}.conv1.weight'], w[f'{name}.conv1.bias'], 1, 1)
                y = y + F.conv2d(z.relu(), w[f'{name}.conv2.weight'], None, 1, 1)
            total = total + F.conv2d(y, w[f'streams.{m}.3.weight'], None, 1, 1)
        total = total.relu()
        pooled = F.pad(total, [2] * 4, value=-torch.inf).unfold(2, 5, 1).unfold(3, 5, 1)
        total = total + F.conv2d(pooled.amax((4, 5)), w['pool.weight'], None, 1, 1)
        torch.testing.assert_close(block(*maps), F.conv2d(total, w['project.weight']))
    assert block.pool.weight.shape == (2, 2, 3, 3)


FUSED = [
    *itertools.product(
        ['concat', 'average', 'attention', 'mmf'], ['individual', 'shared'], ['early']
    ),
    ('average', 'individual', 'all'),
    ('cbn', 'shared', 'early'),
    ('cbn', 'individual', 'all'),
]


@pytest.mark.parametrize(('fusion', 'encoders', 'stages'), FUSED)
def test_the_loss_of_what_is_fused_trains_every_branch(fusion, encoders, stages):
    network = small_network(fusion=fusion, encoders=encoders, stages=stages)
    last = network(images(network), auxiliary=True)[-1]  # the fused stream's, or depth's
    last.square().sum().backward()
    for norm in network.encoder.bn1:
        assert norm.weight.grad.any()


@pytest.mark.parametrize('head', ['pspnet', 'deeplabv3plus'])
def test_all_stages_are_those_that_the_head_reads(head):
    network = small_network(
        fusion='concat', encoders='individual', stages='all', head=head, head_options={}
    ).train()
    predictions = network(
        {k: torch.cat([v, v]) for k, v in images(network).items()}, auxiliary=True
    )
    sum(x.square().sum() for x in predictions).backward()
    without = [k for k, v in network.named_parameters() if v.grad is None]
    assert without == []


def mmd_in_loops(x: np.ndarray, y: np.ndarray, num_kernels: int) -> float:
    both = np.concatenate([x, y]).astype(np.float64)
    pairs = list(itertools.permutations(range(len(both)), 2))
    mean_distance = np.mean([((both[i] - both[j]) ** 2).sum() for i, j in pairs])

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        d = ((a.astype(np.float64) - b) ** 2).sum()
        exponents = np.arange(num_kernels) - num_kernels // 2
        return float(np.mean([np.exp(-d / (mean_distance * 2.0**k)) for k in exponents]))

    within = [
        np.mean([kernel(s[i], s[j]) for i, j in itertools.permutations(range(len(s)), 2)])
        for s in (x, y)
    ]
    return within[0] + within[1] - 2 * np.mean([[kernel(a, b) for b in y] for a in x])


@pytest.mark.parametrize('num_kernels', [1, 5, 11])
def test_the_discrepancy_is_that_of_a_double_loop(num_kernels):
    rng = np.random.default_rng(num_kernels)
    x = rng.standard_normal((9, 6), np.float32) + 50  # far from 0, where float32 is coarse
    y = 1.5 * rng.standard_normal((7, 6), np.float32) + 50.5
    got = multi_kernel_mmd(torch.tensor(x), torch.tensor(y), num_kernels)
    assert float(got) == pytest.approx(mmd_in_loops(x, y, num_kernels), abs=1e-5)


def test_the_discrepancy_is_zero_on_average_where_distributions_are_equal():
    generator = torch.Generator().manual_seed(0)
    equal, shifted = [], []
    for _ in range(200):
        x, y = torch.randn(2, 16, 8, generator=generator)
        equal.append(float(multi_kernel_mmd(x, y)))
        shifted.append(float(multi_kernel_mmd(x, y + 0.5)))
    error = np.std(equal) / len(equal) ** 0.5
    assert abs(np.mean(equal)) < 3 * error
    assert np.mean(shifted) > 20 * error


@pytest.mark.parametrize('values', ['equal', 'constant', 'half'])
def test_the_discrepancy_has_a_finite_gradient(values):
    x = torch.ones(8, 4) if values == 'constant' else torch.randn(8, 4)
    x = (x.half() * 100 if values == 'half' else x).requires_grad_()
    loss = multi_kernel_mmd(x, x.detach().clone())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


def test_one_sample_has_no_distribution():
    with pytest.raises(ValueError, match='two samples'):
        multi_kernel_mmd(torch.ones(1, 4), torch.ones(3, 4))


def test_pixels_are_the_same_in_every_branch_and_drawn_without_repetition():
    first = torch.arange(2 * 3 * 4.0).view(2, 1, 3, 4)
    maps = [first, torch.cat([first + 100, first + 200], 1)]
    a, b = sampled_pixels(maps, 10)
    assert a.shape == (10, 1)
    assert len(a.unique()) == 10
    torch.testing.assert_close(b, torch.cat([a + 100, a + 200], 1))
    assert sorted(sampled_pixels(maps, 99)[0][:, 0].tolist()) == list(range(24))


@torch.no_grad()
def test_the_alignment_written_out():
    alignment = Alignment(3, 4, pixels=99)  # more than there are, so chance has no say
    maps = torch.randn(3, 2, 4, 2, 3) + 1
    x = [m.permute(0, 2, 3, 1).reshape(-1, 4).numpy() for m in maps]
    weights = {k: v.numpy() for k, v in alignment.state_dict().items()}
    common = [v @ weights[f'common.{m}.weight'].T for m, v in enumerate(x)]
    specific = [v @ weights[f'specific.{m}.weight'].T for m, v in enumerate(x)]
    expected = 0.0
    for m in range(3):
        parts = [specific[m], common[m], *(common[i] for i in range(3) if i != m)]
        restored = np.concatenate(parts, 1) @ weights[f'restore.{m}.weight'].T
        expected += ((restored - x[m]) ** 2).mean() / (x[m] ** 2).mean()
        for i in range(m):
            expected += mmd_in_loops(common[m], common[i], 11)
            expected -= mmd_in_loops(specific[m], specific[i], 11)
    assert float(alignment(list(maps))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('encoders', ['individual', 'shared'])
def test_alignment_is_a_loss_alone(encoders):
    """Predictions are those of branches without interaction; the loss trains all branches."""
    network = small_network(fusion='align', encoders=encoders, stages='late', align_weight=0.5)
    for m, prediction in enumerate(outputs(network)[1:3]):
        with torch.no_grad():
            close(prediction, alone(network, m)({'rgb': images(network)[network.modalities[m]]}))
    term = network(images(network), auxiliary=True)[3]
    term.backward()
    assert all(norm.weight.grad.any() for norm in network.encoder.bn1)
    assert network.head.classifier.state_dict()  # which it does not train
    assert all(p.grad is None for p in network.head.parameters())
    network.align_weight = 1.0
    torch.manual_seed(1)
    twice = outputs(network)[3]
    network.align_weight = 0.5
    torch.manual_seed(1)
    torch.testing.assert_close(2 * outputs(network)[3], twice)
    network.align_weight = 0.0
    assert len(outputs(network)) == 3


def test_nothing_of_the_alignment_is_exported():
    network = small_network(fusion='align', stages='early', encoders='individual')
    model = build_graph(network, 32, 48, GraphOptions())
    added = parameter_count(network.fusions).trainable
    assert added == 10 * 512**2
    everything = parameter_count(network).with_buffers
    assert 0.9 * (everything - added) < count_weights(model) <= everything - added
    assert not [t.name for t in model.graph.initializer if 'fusions' in t.name]


@torch.no_grad()
def test_the_conditional_norm_changes_scale_and_shift_of_all_but_the_first():
    torch.manual_seed(0)
    fusion, norms = ConditionalNorm(3, 16), OneEach(nn.BatchNorm2d(16) for _ in range(3))
    for norm in norms:
        for value in (norm.weight, norm.bias, norm.running_mean):
            value.copy_(torch.randn(16))
        norm.eval()
    before = list(torch.randn(3, 2, 16, 5, 6))
    normed = norms(before)
    for got, same in zip(fusion.after_norm(normed, norms), normed, strict=True):
        torch.testing.assert_close(got, same, rtol=0, atol=0)  # no modulation to begin with
    for predict in fusion.predict:
        predict[2].weight.normal_()
        predict[2].bias.normal_()
    rgb, *others = fusion.after_norm(normed, norms)
    torch.testing.assert_close(rgb, normed[0], rtol=0, atol=0)
    seen = normed[0].clamp(min=0).mean((2, 3))
    for m, other in enumerate(others):
        one, _, two = fusion.predict[m]
        delta = torch.relu(seen @ one.weight.T + one.bias) @ two.weight.T + two.bias
        norm = norms[m + 1]
        for n in range(2):
            scale, shift = delta[n, :16], delta[n, 16:]
            expected = F.batch_norm(
                before[m + 1][n : n + 1],
                norm.running_mean,
                norm.running_var,
                norm.weight * (1 + scale),
                norm.bias * (1 + scale) + shift,
            )
            torch.testing.assert_close(other[n : n + 1], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_depth_is_modulated_by_colour_and_not_the_other_way_round():
    network = small_network(fusion='cbn', stages='middle', modalities=THREE)
    x = images(network)
    _, *before = network(x, auxiliary=True)
    _, *colour = network({**x, 'rgb': x['rgb'].flip(3)}, auxiliary=True)
    _, *depth = network({**x, 'hha': x['hha'].flip(3)}, auxiliary=True)
    assert not any(torch.equal(a, b) for a, b in zip(before, colour, strict=True))
    assert [torch.equal(a, b) for a, b in zip(before, depth, strict=True)] == [True, False, True]


@pytest.mark.parametrize(
    ('options', 'lone'),
    [
        ({'fusion': 'concat'}, ['rgb', 'hha']),
        ({'fusion': 'align', 'encoders': 'individual'}, ['rgb', 'hha']),
        ({'fusion': 'cbn'}, ['rgb']),
        ({'fusion': 'concat', 'shared_form': 'added'}, []),
        ({'fusion': 'average', 'encoders': 'individual'}, []),
    ],
)
def test_branches_that_need_no_other_answer_alone(options, lone):
    network = small_network(**options)
    for m, modality in enumerate(('rgb', 'hha')):
        form = network.unimodal_form(modality)
        assert (form is not None) == (modality in lone)
        if form is not None:
            name, own, weights = form
            unimodal = build_network(name, 5, **own).eval()
            unimodal.load_state_dict(weights)
            with torch.no_grad():
                close(unimodal(images(network)), outputs(network)[1 + m])


@pytest.mark.parametrize('options', [{'fusion': 'cbn'}, {'encoders': 'individual'}, {}])
def test_every_branch_and_the_stream_begin_with_the_pretrained_backbone(options):
    network = small_network(stages='early', **options)
    pretrained = small_network('multimodal', seed=1, modalities=['rgb']).encoder
    assert isinstance(network.encoder, ResNet)
    network.encoder.initialise(pretrained.state_dict())
    # The wider of the two: index 2 is the stream where there is one.
    for m in range(3):
        encoder = alone(network, m).encoder
        for name, value in pretrained.state_dict().items():
            if not name.endswith('num_batches_tracked'):
                torch.testing.assert_close(encoder.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'fusion': 'sum'}, 'fusion must be one of concat, average, attention, mmf, align, cbn'),
        ({'stages': 'first'}, 'stages must be one of early, middle, late, all'),
        ({'encoders': 'none'}, 'encoders must be one of'),
        ({'shared_form': 'both'}, 'shared_form must be one of stream, added'),
        ({'align_weight': -0.1}, 'align_weight must be finite and not negative, got -0.1'),
        ({'align_weight': float('nan')}, 'align_weight must be finite and not negative'),
        ({'align_weight': float('inf')}, 'align_weight must be finite and not negative, got inf'),
        ({'modalities': ['rgb']}, "take the network 'multimodal'"),
        ({'backbone': 'xception65'}, "needs a ResNet, got the backbone 'xception65'"),
    ],
)
def test_bad_options_are_named(options, message):
    with torch.device('meta'), pytest.raises(ValueError, match=message):
        build_network('stage_fusion', 5, **{**SMALL, **options})
