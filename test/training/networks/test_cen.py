"""Channel exchanging: against the public code's outputs, and against the papers' text in NumPy."""

from __future__ import annotations

import json

import goldens
import numpy as np
import pytest

torch = pytest.importorskip('torch')
onnxruntime = pytest.importorskip('onnxruntime')

import onnx  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from rgbd_fusion_seg.training.checkpoints import from_public  # noqa: E402
from rgbd_fusion_seg.training.networks import build_network, parameter_count  # noqa: E402
from rgbd_fusion_seg.training.networks.branches import OneEach  # noqa: E402
from rgbd_fusion_seg.training.networks.cen import ChannelExchange  # noqa: E402
from rgbd_fusion_seg.training.onnx_graph import GraphOptions, build_graph  # noqa: E402
from rgbd_fusion_seg.training.public_weights import translate  # noqa: E402

SMALL = {'backbone': 'resnet14', 'head_options': {'width': 8}}
PUBLIC_SPARSITY, PREDICTIONS = 2e-4, 3
XCEPTION = {
    'backbone': 'xception23_quarter',
    'head': 'deeplabv3plus',
    'head_options': {'width': 8},
}
GENERATOR = np.random.default_rng(5)


def norms(*scales: np.ndarray) -> OneEach:
    layers = OneEach(nn.BatchNorm2d(len(scale)) for scale in scales)
    for layer, scale in zip(layers, scales, strict=True):
        layer.weight.data = torch.tensor(scale, dtype=torch.float32)
    return layers


def random_maps(count: int, channels: int) -> list[Tensor]:
    return [torch.tensor(GENERATOR.standard_normal((2, channels, 3, 4))) for _ in range(count)]


def small_network(seed: int = 0, **options) -> nn.Module:
    """A network with every scale drawn anew, a third of them near zero."""
    torch.manual_seed(seed)
    network = build_network('cen', 5, **{**SMALL, **options}).eval()
    for name, value in network.named_parameters():
        if value.ndim == 1 and name.endswith('weight'):
            value.data = torch.rand_like(value) + 0.5
            if '.bn2.' in name or '.separable2.norm.' in name:
                value.data *= torch.rand_like(value).sub(0.33).sign().clamp(min=0.01)
        elif value.ndim == 1 and name.endswith('bias'):
            value.data += 0.2 * torch.randn_like(value)
    for name, value in network.named_buffers():
        if name.endswith('running_mean'):
            value.copy_(0.2 * torch.randn_like(value))
        elif name.endswith('running_var'):
            value.fill_(0.3)  # of the size that comes, or what is deep would not be seen
    return network


def images(network: nn.Module, size: tuple[int, int] = (32, 48)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {m: torch.randn(2, 3, *size, generator=generator) for m in network.modalities}


def close(ours: Tensor, theirs: np.ndarray | Tensor, share: float = 1e-4) -> None:
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    error = (ours.detach() - theirs).abs().max()
    assert error <= share * theirs.abs().max(), float(error)


def test_maps_and_gradients_of_the_public_exchange(goldens_dir):
    golden = np.load(goldens_dir / 'cen_exchange.npz')
    exchange = ChannelExchange(2, 8, threshold=float(golden['threshold']))
    maps = [torch.tensor(golden[f'x{m}'], requires_grad=True) for m in (0, 1)]
    out = exchange.after_norm(maps, norms(golden['gamma0'], golden['gamma1']))
    torch.autograd.backward(out, [torch.tensor(golden[f'gy{m}']) for m in (0, 1)])
    for m in (0, 1):
        np.testing.assert_array_equal(out[m].detach(), golden[f'y{m}'])
        np.testing.assert_array_equal(maps[m].grad, golden[f'gx{m}'])


def test_the_public_exchange_of_three_takes_the_mean_of_the_others():
    scales = [GENERATOR.standard_normal(6) * (GENERATOR.random(6) > 0.5) for _ in range(3)]
    maps = random_maps(3, 6)
    out = ChannelExchange(3, 6).after_norm(maps, norms(*scales))
    for m in range(3):
        others = [maps[i] for i in range(3) if i != m]
        for c in range(6):
            kept = abs(scales[m][c]) >= 0.02
            expected = maps[m][:, c] if kept else (others[0][:, c] + others[1][:, c]) / 2
            torch.testing.assert_close(out[m][:, c], expected, rtol=0, atol=0)


def test_the_papers_exchange_stays_in_the_own_part_and_knows_no_sign():
    theta = 0.02
    scales = np.array([[0.5, -0.5, theta, 0.5, -0.5, 0.0], [0.0, 0.5, -0.5, 0.5, theta, -0.5]])
    maps = random_maps(2, 6)
    exchange = ChannelExchange(2, 6, threshold=theta, form='paper')
    # float32 must not decide what equals the threshold.
    layers = norms(*scales)
    exchange.threshold = layers[0].weight[2].item()
    out = exchange.after_norm(maps, layers)
    for m, replaced in enumerate(([1, 2], [4, 5])):
        for c in range(6):
            source = 1 - m if c in replaced else m
            torch.testing.assert_close(out[m][:, c], maps[source][:, c], rtol=0, atol=0)


@pytest.mark.parametrize(('penalised', 'share'), [('all', 1.0), ('own', 0.5), ('none', 0.5)])
def test_the_paper_exchanges_all_channels_where_all_are_penalised(penalised, share):
    """Table 1, "all channels": no part is a branch's own, whatever the sign."""
    network = small_network(form='paper', penalised=penalised)
    for _, norm in network.exchanges().values():
        for layer in norm:
            layer.weight.data.fill_(-1.0)
    told = network.monitored()
    assert (told['exchanged_rgb'], told['exchanged_hha']) == (share, share)
    for _, norm in network.exchanges().values():
        norm[0].weight.data.fill_(1.0)
    told = network.monitored()
    assert (told['exchanged_rgb'], told['exchanged_hha']) == (0.0, share)


def test_what_the_ablations_put_in_place():
    scales = np.array([[0.5, 0.0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.0]])
    a, b = maps = random_maps(2, 4)
    layers = norms(*scales)

    def out(exchange: str, **options: float | str) -> list[Tensor]:
        return ChannelExchange(2, 4, exchange, **options).after_norm(maps, layers)

    zero = torch.zeros_like(a)
    for form in ('public', 'paper'):
        discarded = out('discard', form=form)
        for c in range(4):
            torch.testing.assert_close(discarded[0][:, c], (zero if c == 1 else a)[:, c])
            torch.testing.assert_close(discarded[1][:, c], (zero if c == 3 else b)[:, c])
    for x in out('sum'):
        torch.testing.assert_close(x, a + b)
    first, second = out('gated_sum')  # its gates begin at a half
    torch.testing.assert_close(first, a + b / 2)
    torch.testing.assert_close(second, b + a / 2)
    fixed = out('fixed', portion=0.25)
    torch.testing.assert_close(fixed[0], torch.stack([b[:, 0], a[:, 1], a[:, 2], a[:, 3]], 1))
    torch.testing.assert_close(fixed[1], torch.stack([b[:, 0], b[:, 1], a[:, 2], b[:, 3]], 1))
    for x, y in zip(out('none'), maps, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_random_channels_are_drawn_once_and_travel_with_the_weights():
    torch.manual_seed(0)
    network, other = (small_network(s, exchange='random', portion=0.25) for s in (0, 1))
    for exchange, norm in network.exchanges().values():
        for kept in exchange.kept(norm):
            assert int((~kept).sum()) == round(0.25 * len(kept))
        assert not torch.equal(*exchange.kept(norm))
    x = images(network)
    with torch.no_grad():
        assert not torch.allclose(network(x), other(x))
        other.load_state_dict(network.state_dict())
        torch.testing.assert_close(network(x), other(x), rtol=0, atol=0)


def test_an_exchange_stands_behind_every_norm_of_a_3x3_convolution():
    with torch.device('meta'):
        network = build_network('cen', 5, backbone='resnet101')
        last = build_network('cen', 5, backbone='resnet101', blocks='last')
    assert len(network.exchanges()) == 33
    assert list(last.exchanges()) == ['layer1.2', 'layer2.3', 'layer3.22', 'layer4.2']


@pytest.mark.parametrize(
    ('backbone', 'count'), [('resnet101', 118_201_578), ('resnet152', 133_891_306)]
)
def test_parameters_are_the_papers(backbone, count):
    with torch.device('meta'):
        assert parameter_count(build_network('cen', 40, backbone=backbone)).trainable == count


def public_weights(goldens_dir) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    """The golden and its weights by our names."""
    golden = np.load(goldens_dir / 'cen_refinenet50.npz')
    weights = goldens.refinenet_weights(golden, exchanging=True)
    return golden, from_public('cen', {k: torch.tensor(v) for k, v in weights.items()})


def public_network(weights: dict[str, Tensor], **options) -> nn.Module:
    with torch.device('meta'):
        network = build_network(
            'cen', 40, backbone='resnet50', modalities=['rgb', 'depth'], **options
        )
    # Counters of batches have no part in a public file.
    missing = network.load_state_dict(weights, strict=False, assign=True)
    assert not missing.unexpected_keys
    assert all(name.endswith('num_batches_tracked') for name in missing.missing_keys)
    for name, buffer in network.named_buffers():
        if name.endswith('num_batches_tracked'):
            path, _, part = name.rpartition('.')
            setattr(network.get_submodule(path), part, torch.zeros_like(buffer, device='cpu'))
    return network


@pytest.mark.parametrize('plain', [False, True], ids=['as it runs', 'plain shortcut'])
def test_the_whole_network_of_the_public_code(goldens_dir, plain):
    golden, weights = public_weights(goldens_dir)
    network = public_network(weights, head_options={'plain_shortcut': plain}).eval()
    x = {m: torch.tensor(golden[f'x_{m}']) for m in network.modalities}
    with torch.no_grad():
        fused, rgb, depth, _ = network(x, auxiliary=True)
        exported = network.for_export()(x)
    suffix = '_plainRCU' if plain else ''
    for ours, name in ((rgb, 'rgb'), (depth, 'depth'), (fused, 'ens'), (exported, 'ens')):
        close(ours, golden[f'out_{name}{suffix}'])
    close(network.ensemble.weights, golden['alpha_soft'])


@pytest.mark.parametrize('frozen', [True, False], ids=['norms frozen', 'norms trained'])
def test_losses_and_gradients_of_the_public_training(goldens_dir, frozen):
    golden, weights = public_weights(goldens_dir)
    raw = goldens.refinenet_weights(golden, exchanging=True)
    variant = translate('cen', {k: torch.tensor(v) for k, v in raw.items()})[0]
    expected = json.loads((goldens_dir / 'cen_train_losses.json').read_text())['R50']
    expected = expected['frozen_bn' if frozen else 'train_bn']
    network = public_network(weights, freeze_norms=frozen, head_options={'dropout': 0.0})
    network.train()
    x = {m: torch.tensor(golden[f'x_{m}']) for m in network.modalities}
    target = torch.tensor(golden['target']).long()
    fused, rgb, depth, penalty = network(x, auxiliary=True)

    def loss(logits: Tensor) -> Tensor:
        logits = F.interpolate(logits, target.shape[1:], mode='bilinear', align_corners=False)
        return F.cross_entropy(logits, target, ignore_index=255)

    losses = {'ce_rgb': loss(rgb), 'ce_depth': loss(depth), 'ce_ens': loss(fused)}
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name], rel=1e-4)
    l1 = penalty.item() / (PREDICTIONS * PUBLIC_SPARSITY)
    assert l1 == pytest.approx(expected['l1'], rel=1e-5)
    total = sum(losses.values()) + penalty
    assert total.item() == pytest.approx(expected['total'], rel=1e-4)
    total.backward()
    parameters = dict(network.named_parameters())
    for public, size in expected['grad_norms'].items():
        gradient = parameters[variant.names[public]].grad
        assert gradient.norm().item() == pytest.approx(size, rel=1e-3), public
    prefix = 'grad_frozen/' if frozen else 'grad_trainbn/'
    for key in golden.files:
        if key.startswith(prefix):
            close(parameters[variant.names[key.removeprefix(prefix)]].grad, golden[key], 1e-3)


def test_the_penalty_is_on_the_own_part_once_for_each_prediction():
    network = small_network().train()
    x = images(network)
    total = 0.0
    for name, scale in network.named_parameters():
        if '.bn2.' in name and name.endswith('weight'):
            half = len(scale) // 2
            own = scale[:half] if '.bn2.0.' in name else scale[half:]
            total += float(own.detach().double().abs().sum())
    penalty = network(x, auxiliary=True)[3].item()
    assert penalty == pytest.approx(3 * 2e-4 * total, rel=1e-5)
    paper = small_network(form='paper').train()(x, auxiliary=True)[3].item()
    assert paper == pytest.approx(5e-3 * total, rel=1e-5)
    assert len(small_network(penalised='none')(x, auxiliary=True)) == 3


def test_a_scale_that_branches_share_is_penalised_once():
    network = small_network(share_norms=True, penalised='all').train()
    scales = [v for k, v in network.named_parameters() if k.endswith('bn2.weight')]
    total = sum(float(scale.detach().double().abs().sum()) for scale in scales)
    penalty = network(images(network), auxiliary=True)[3].item()
    assert penalty == pytest.approx(3 * 2e-4 * total, rel=1e-5)


def extreme(network: nn.Module, kept: tuple[bool, bool]) -> nn.Module:
    """Give all channels of a branch one fate."""
    for _, norm in network.exchanges().values():
        for layer, keeps in zip(norm, kept, strict=True):
            layer.weight.data.fill_(1.0 if keeps else 1e-3)
    return network


@pytest.mark.parametrize(
    'network',
    [
        pytest.param(lambda: small_network(), id='two'),
        pytest.param(lambda: small_network(share_convs=False), id='own convolutions'),
        pytest.param(
            lambda: small_network(modalities=['rgb', 'hha', 'depth'], parts='nearly_equal'),
            id='three',
        ),
        pytest.param(lambda: small_network(exchange='random'), id='random'),
        pytest.param(lambda: small_network(exchange='discard'), id='discard'),
        pytest.param(
            lambda: small_network(exchange='discard', share_norms=True), id='discard, one norm'
        ),
        pytest.param(lambda: small_network(**XCEPTION), id='Xception'),
        pytest.param(
            lambda: small_network(**XCEPTION, share_convs=False), id='Xception, own convolutions'
        ),
        pytest.param(
            lambda: small_network(
                **XCEPTION, modalities=['rgb', 'hha', 'depth'], parts='nearly_equal'
            ),
            id='Xception, three',
        ),
        pytest.param(
            lambda: extreme(small_network(**XCEPTION), (False, True)), id='Xception, from one'
        ),
        pytest.param(lambda: extreme(small_network(), (False, True)), id='all from one'),
        pytest.param(lambda: extreme(small_network(), (False, False)), id='all swapped'),
        pytest.param(lambda: extreme(small_network(), (True, True)), id='nothing'),
    ],
)
def test_the_settled_exchange_is_the_same_network(network):
    network = network()
    x, exchanges = images(network), network.exchanges().keys()
    settled = network.for_export()
    assert not [m for m in settled.modules() if isinstance(m, ChannelExchange)]
    assert network.exchanges().keys() == exchanges  # it may go on training
    with torch.no_grad():
        close(settled(x), network(x), 1e-5)


def test_scales_begin_as_told():
    torch.manual_seed(0)
    for kind, least in (('one', 1.0), ('uniform', 0.0)):
        network = build_network('cen', 5, **SMALL, initial_scales=kind)
        scales = torch.cat(
            [layer.weight for _, norm in network.exchanges().values() for layer in norm]
        )
        assert scales.max() <= 1
        assert abs(scales.min() - least) < 0.01
        assert abs(scales.mean() - (1 + least) / 2) < 0.02


COMPARING = {'Where', 'Greater', 'GreaterOrEqual', 'Less', 'Abs'}
DETOURS = {'BatchNormalization', 'Gather', 'GatherND', 'Transpose'}


def graph_of(network: nn.Module) -> onnx.ModelProto:
    """Return the graph, which has the network's logits."""
    x = {m: v[:1] for m, v in images(network).items()}
    model = build_graph(network, 32, 48, GraphOptions(storage='fp32'))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    got = session.run(None, {k: v.numpy() for k, v in x.items()})[0]
    with torch.no_grad():
        close(torch.tensor(got), network(x))
    return model


@pytest.mark.parametrize(
    ('options', 'second'),
    [(SMALL, 'conv2'), (XCEPTION, 'separable2.pointwise')],
    ids=['ResNet', 'Xception'],
)
def test_the_exported_graph_compares_nothing_and_computes_no_unused_channel(options, second):
    network = small_network(**options)
    models = [graph_of(network), graph_of(small_network(**options, exchange='none'))]
    assert not {node.op_type for node in models[0].graph.node} & (COMPARING | DETOURS)
    unused = 0
    for name, (exchange, norm) in network.exchanges().items():
        kept, kept_too = exchange.kept(norm)
        filters = network.encoder.get_submodule(f'{name}.{second}').weight
        unused += filters[0].numel() * int((kept ^ kept_too).sum())
    assert unused
    found, without = (
        sum(int(np.prod(t.dims)) for t in model.graph.initializer if len(t.dims) == 4)
        for model in models
    )
    assert found == without - unused


@pytest.mark.parametrize('options', [SMALL, XCEPTION], ids=['ResNet', 'Xception'])
def test_what_is_discarded_is_discarded_by_a_shared_norm_of_the_graph_too(options):
    model = graph_of(small_network(**options, exchange='discard', share_norms=True))
    assert not {node.op_type for node in model.graph.node} & (COMPARING | DETOURS)


def test_a_branch_alone_is_the_network_without_exchange():
    network = small_network(exchange='none')
    x = images(network)
    with torch.no_grad():
        outputs = network(x, auxiliary=True)
        for modality, expected in zip(network.modalities, outputs[1:3], strict=True):
            name, options, weights = network.unimodal_form(modality)
            alone = build_network(name, 5, **options).eval()
            alone.load_state_dict(weights)
            torch.testing.assert_close(alone({modality: x[modality]}), expected)


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'backbone': 'xception23_quarter', 'head': 'deeplabv3plus', 'head_options': {'width': 8}},
    ],
    ids=['ResNet', 'Xception'],
)
def test_a_branch_alone_discards_what_it_discards_beside_the_other(options):
    network = small_network(exchange='discard', **options)
    x = images(network)
    with torch.no_grad():
        outputs = network(x, auxiliary=True)
        for modality, expected in zip(network.modalities, outputs[1:3], strict=True):
            name, options, weights = network.unimodal_form(modality)
            alone = build_network(name, 5, **options).eval()
            alone.load_state_dict(weights)
            torch.testing.assert_close(alone({modality: x[modality]}), expected)


def test_a_fixed_portion_stays_in_each_branch_s_own_part():
    thirds = ChannelExchange(3, 128, 'fixed', portion=1 / 3, parts='nearly_equal')
    for kept, own in zip(thirds.kept(norms(*np.ones((3, 128)))), thirds.own, strict=True):
        expected = torch.ones(128, dtype=torch.bool)
        expected[own] = False
        torch.testing.assert_close(kept, expected)


@pytest.mark.parametrize(
    'options',
    [
        {'exchange': 'none', 'penalised': 'none'},
        {'exchange': 'random', 'penalised': 'none'},
        {'exchange': 'threshold', 'penalised': 'all'},
    ],
)
def test_channels_are_divided_only_where_parts_matter(options):
    three = {'modalities': ['rgb', 'hha', 'depth'], **options}
    assert len(build_network('cen', 5, **{**SMALL, **three}).exchanges()) == 4


def test_the_run_tells_how_much_is_exchanged():
    network = extreme(small_network(), (False, True))
    network.ensemble.alpha.data = torch.tensor([0.0, np.log(3.0)])
    found = network.monitored()
    assert found['exchanged_rgb'] == 1
    assert found['exchanged_hha'] == 0
    assert found['ensemble_rgb'] == pytest.approx(0.25)
    assert found['ensemble_hha'] == pytest.approx(0.75)


@pytest.mark.parametrize('penalised', ['own', 'all', 'none'])
def test_the_run_tells_how_the_penalised_scales_shrink(penalised):
    network = small_network(penalised=penalised)
    for _, norm in network.exchanges().values():
        for layer in norm:
            layer.weight.data[::3] *= -1
    told = {k: v for k, v in network.monitored().items() if k.startswith('gamma')}
    expected = {}
    for m, modality in enumerate(('rgb', 'hha') if penalised != 'none' else ()):
        scales = []
        for name, scale in network.named_parameters():
            if f'.bn2.{m}.weight' in name:
                half = len(scale) // 2
                own = [slice(half), slice(half, None)][m] if penalised == 'own' else slice(None)
                scales.append(scale.detach().numpy()[own])
        for percent in (10, 50, 90):
            expected[f'gamma_{modality}/{percent}%'] = np.percentile(
                np.abs(np.concatenate(scales)), percent
            )
    assert told == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'modalities': ['rgb']}, "take the network 'multimodal'"),
        ({'modalities': ['rgb', 'hha', 'depth']}, "64 channels.*3 equal parts.*'nearly_equal'"),
        ({'threshold': -0.1}, 'threshold must be finite and not negative, got -0.1'),
        ({'sparsity': -1.0}, 'sparsity must be finite and not negative'),
        ({'threshold': float('nan')}, 'threshold must be finite and not negative, got nan'),
        ({'sparsity': float('inf')}, 'sparsity must be finite'),
        ({'exchange': 'fixed', 'portion': 0.6}, 'portion must be 0 to 1/2'),
        ({'exchange': 'random', 'portion': 1.2}, 'portion must be 0 to 1, got 1.2'),
        ({'exchange': 'random', 'portion': -0.1}, 'portion must be 0 to 1, got -0.1'),
        ({'form': 'code'}, 'form must be one of public, paper'),
        ({'blocks': 'first'}, 'blocks must be one of all, last'),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_network('cen', 5, **{**SMALL, **options})
