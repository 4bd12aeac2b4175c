"""The contract that every network keeps, whatever is inside, and what each computed so far.

`fingerprints.json` holds some numbers of every output. Where a network is to compute something
else from now on, or a case is new, `python test/training/networks/test_networks.py` writes them
anew: look at the difference, which has to be in the lines of that network alone.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from jsonargparse import ArgumentParser

torch = pytest.importorskip('torch')

from torch import Tensor, nn  # noqa: E402

from rgbd_fusion_seg.training.losses import cross_entropy  # noqa: E402
from rgbd_fusion_seg.training.networks import (  # noqa: E402
    NETWORKS,
    build_network,
    parameter_count,
)
from rgbd_fusion_seg.training.networks.branches import synchronise_norms  # noqa: E402

NUM_CLASSES = 5
# AdapNet++ in the size that a test affords.
SMALL = {
    'adapnetpp': {'width': 0.125},
    'multimodal': {'backbone': 'resnet14', 'head_options': {'width': 8}},
    'cen': {'threshold': 0.75},  # a quarter of the scales that `built` draws
}
BRANCHES = ('multimodal', 'cen', 'asymfusion', 'stage_fusion')
"""Networks of one branch a modality."""
UNIMODAL = {'erfnet': 'erfnet_encoder', 'adapnetpp': 'adapnetpp'}
FURTHER_VARIANTS = [
    ('erfnet_encoder', {'modality': 'hha', 'shrink_depth': True}),
    (
        'erfnet',
        {
            'modality': 'hha',
            'shrink_depth': True,
            'decoder': 'erfnet_quarter',
            'multi_level': True,
        },
    ),
    ('ssma_erfnet', {'shrink_depth': True, 'combination': 'sum'}),
    ('ssma_erfnet', {'decoder': 'erfnet', 'multi_level': True}),
    ('rfbnet_erfnet', {'shrink_depth': False, 'output_gates': 'streams'}),
    ('rfbnet_erfnet', {'decoder': 'erfnet_quarter', 'multi_level': True, 'pooling': 'max'}),
    ('multimodal', {'modalities': ['depth']}),
    ('multimodal', {'modalities': ['rgb', 'hha', 'depth'], 'share_convs': False}),
    ('multimodal', {'share_norms': True, 'ensemble': 'concat'}),
    ('multimodal', {'backbone': 'xception23_quarter', 'head': 'pspnet', 'head_options': {}}),
    (
        'multimodal',
        {
            'backbone': 'resnet14',
            'head': 'deeplabv3plus',
            'head_options': {'width': 16, 'private_norms': True},
        },
    ),
    (
        'multimodal',
        {
            'backbone': 'xception23_quarter',
            'head': 'deeplabv3plus',
            'head_options': {'width': 16},
            'modalities': ['rgb'],
        },
    ),
    (
        'cen',
        {
            'backbone': 'xception23_quarter',
            'head': 'deeplabv3plus',
            'head_options': {'width': 16},
        },
    ),
    (
        'asymfusion',
        {'modalities': ['rgb', 'hha', 'depth'], 'split': 'paper', 'distillation': 0.5},
    ),
    ('asymfusion', {'direction': 'depth_to_rgb', 'operations': 'shift', 'share_convs': False}),
    ('asymfusion', {'direction': 'rgb_to_depth', 'operations': 'attention', 'distillation': 1.0}),
    ('asymfusion', {'operations': 'concat', 'share_convs': False}),
    ('asymfusion', {'operations': 'mmf'}),
    ('cen', {'modalities': ['rgb', 'hha', 'depth'], 'parts': 'nearly_equal'}),
    ('cen', {'form': 'paper', 'share_convs': False, 'ensemble': 'mean'}),
    ('cen', {'exchange': 'gated_sum', 'penalised': 'all', 'detach_branches': False}),
    ('stage_fusion', {'fusion': 'attention', 'stages': 'early', 'encoders': 'individual'}),
    ('stage_fusion', {'fusion': 'average', 'stages': 'middle', 'shared_form': 'added'}),
    ('stage_fusion', {'fusion': 'align', 'stages': 'early', 'modalities': ['rgb', 'depth']}),
    ('stage_fusion', {'fusion': 'cbn', 'modalities': ['rgb', 'hha', 'depth']}),
]


def backbone(name: str) -> str:
    if name in BRANCHES:
        return 'multimodal'
    return 'adapnetpp' if name.endswith('adapnetpp') else 'erfnet'


def variants(cases: list[tuple[str, dict]]) -> list:
    return [
        pytest.param(
            name,
            {**SMALL.get(backbone(name), {}), **SMALL.get(name, {}), **options},
            id='-'.join([name, *(f'{k}={v}' for k, v in options.items())]),
        )
        for name, options in cases
    ]


EVERY_NETWORK = variants([(name, {}) for name in NETWORKS] + FURTHER_VARIANTS)
every_network = pytest.mark.parametrize(('name', 'options'), EVERY_NETWORK)
FINGERPRINTS = Path(__file__).with_name('fingerprints.json')


def built(name: str, options: dict, seed: int = 0) -> nn.Module:
    """Build a network and give every tensor values that no other one has, norms included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device('meta'):  # the values are drawn below
        network = build_network(name, NUM_CLASSES, **options)
    weights = {}
    for key, value in network.state_dict().items():
        if not value.is_floating_point():
            weights[key] = torch.zeros(value.shape, dtype=value.dtype)
        elif value.ndim > 1:
            scale = value[0].numel() ** -0.5
            weights[key] = scale * torch.randn(value.shape, generator=generator)
        elif key.endswith(('bias', 'running_mean')):
            weights[key] = 0.1 * torch.randn(value.shape, generator=generator)
        else:
            weights[key] = 0.5 + torch.rand(value.shape, generator=generator)
    network.load_state_dict(weights, assign=True)
    return network.eval()


def size(network: nn.Module) -> tuple[int, int]:
    return 2 * network.size_multiple, 3 * network.size_multiple


def inputs(network: nn.Module, batch: int = 2, height: int = 0, width: int = 0) -> dict:
    if not height:
        height, width = size(network)
    own = network.hha_size(height, width)
    sizes = {'rgb': (height, width), 'hha': own, 'depth': own}
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(batch, 3, *sizes[name], generator=generator)
        for name in network.modalities
    }


def run(network: nn.Module, x: dict, **options: bool) -> Tensor | list[Tensor]:
    with torch.no_grad():
        return network(x, **options)


def fingerprint(name: str, options: dict) -> list[list[float]]:
    """Return five numbers of each output, or the one of a loss term."""
    network = built(name, options)
    torch.manual_seed(0)  # of the pixels that an alignment compares
    outputs = run(network, inputs(network), auxiliary=True)
    places = [np.linspace(0, x.numel() - 1, min(5, x.numel())).astype(int) for x in outputs]
    rows = [x.flatten()[at].tolist() for x, at in zip(outputs, places, strict=True)]
    return [[float(f'{value:.6g}') for value in row] for row in rows]


@every_network
def test_a_network_computes_what_it_did(name, options, request):
    stored = json.loads(FINGERPRINTS.read_text(encoding='utf-8'))
    found, expected = fingerprint(name, options), stored[request.node.callspec.id]
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):  # CPUs differ by 1e-6
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_fingerprints_are_of_networks_that_there_are():
    stored = json.loads(FINGERPRINTS.read_text(encoding='utf-8'))
    assert stored.keys() == {case.id for case in EVERY_NETWORK}


@every_network
def test_logits_have_the_stride_that_is_told(name, options):
    network = built(name, options)
    height, width = size(network)
    expected = (2, NUM_CLASSES, height // network.stride, width // network.stride)
    x = inputs(network)
    before = {k: v.clone() for k, v in x.items()}
    assert run(network, x).shape == expected
    for key in x:
        torch.testing.assert_close(x[key], before[key], rtol=0, atol=0)


@every_network
def test_auxiliary_outputs_are_as_many_as_their_weights(name, options):
    network = built(name, options)
    x = inputs(network)
    outputs = run(network, x, auxiliary=True)
    assert isinstance(outputs, list)
    count = 1 + len(network.auxiliary_weights)
    assert len(outputs) >= count
    torch.testing.assert_close(outputs[0], run(network, x))
    for term in outputs[count:]:
        assert term.ndim == 0
        assert torch.isfinite(term)
    for output in outputs[:count]:
        assert output.shape[:2] == (2, NUM_CLASSES)
        assert torch.isfinite(output).all()


@every_network
def test_norms_of_many_processes_make_the_same_network(name, options):
    network = built(name, options)
    x = inputs(network)
    expected = run(network, x)
    network = synchronise_norms(network).eval()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    torch.testing.assert_close(run(network, x), expected)


@every_network
def test_every_parameter_and_every_input_has_a_gradient(name, options):
    network = built(name, options).train()
    x = {k: v.requires_grad_() for k, v in inputs(network, batch=3).items()}
    loss = sum(o.square().sum() for o in network(x, auxiliary=True))
    loss.backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None]
    # Filters; a bias before a norm rightly has none.
    dead = [n for n, p in network.named_parameters() if p.ndim > 1 and not p.grad.any()]
    assert not dead
    assert all(v.grad.any() for v in x.values())


@every_network
def test_a_training_step_stays_on_its_device_and_never_waits_for_it(name, options, monkeypatch):
    # The meta device refuses tensors of others, as a GPU would, and has no values to look at.
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: contextlib.nullcontext())
    network = built(name, options).train().to('meta')
    outputs = network({k: v.to('meta') for k, v in inputs(network).items()}, auxiliary=True)
    labels = torch.empty(2, *size(network), dtype=torch.uint8, device='meta')
    count = 1 + len(network.auxiliary_weights)
    scored = [cross_entropy(x, labels, None, x.shape[2:]) for x in outputs[:count]]
    torch.stack([*(total / n for total, n in scored), *outputs[count:]]).sum().backward()
    assert all(p.grad.device.type == 'meta' for p in network.parameters())


def kept_for_backward(name: str, **options) -> int:
    """Return the bytes that a float32 training step keeps for its backward pass, losses too."""
    with torch.device('meta'):
        network = build_network(name, 40, backbone='resnet101', **options).train()
        x = {m: torch.empty(2, 3, 480, 640) for m in network.modalities}
        labels = torch.empty(2, 480, 640, dtype=torch.uint8)
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that its address is not given anew
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(x, auxiliary=True)
        count = 1 + len(network.auxiliary_weights)
        scored = [cross_entropy(y, labels, None, labels.shape[1:]) for y in outputs[:count]]
        loss = torch.stack([*(total / n for total, n in scored), *outputs[count:]]).sum()
    assert loss.requires_grad
    own = {t.untyped_storage()._cdata for t in network.state_dict().values()}
    return sum(storage.nbytes() for place, storage in kept.items() if place not in own)


@pytest.mark.parametrize('name', ['cen', 'asymfusion'])
def test_two_branches_keep_little_more_than_twice_what_one_does(name):
    ratio = kept_for_backward(name) / kept_for_backward('multimodal', modalities=['rgb'])
    assert 2 < ratio <= 2.1  # docs/networks.md


@every_network
def test_the_prediction_depends_on_every_input_it_reads(name, options):
    network = built(name, options)
    x = inputs(network)
    base = run(network, x)
    for key in network.modalities:
        changed = run(network, {**x, key: x[key].flip(3)})
        assert (changed - base).abs().max() > 1e-3 * base.abs().max(), key


@every_network
def test_saved_weights_make_the_same_network(name, options):
    network, other = built(name, options), built(name, options, seed=1)
    x = inputs(network)
    assert not torch.allclose(run(network, x), run(other, x))
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(run(network, x), run(other, x), rtol=0, atol=0)


@every_network
def test_evaluation_knows_neither_chance_nor_the_other_images_of_a_batch(name, options):
    network = built(name, options)
    x = inputs(network)
    both = run(network, x)
    torch.testing.assert_close(run(network, x), both, rtol=0, atol=0)
    singles = [run(network, {k: v[i : i + 1] for k, v in x.items()}) for i in range(2)]
    tolerance = 1e-5 * float(both.abs().max())
    torch.testing.assert_close(torch.cat(singles), both, rtol=0, atol=tolerance)


@every_network
def test_a_size_that_does_not_fit_is_refused_with_the_one_that_does(name, options):
    network = built(name, options)
    height, width = size(network)
    x = inputs(network)
    for key, image in x.items():
        fits = f'{image.shape[3]}x{image.shape[2]}'
        for shape in (image[..., 1:], image[..., 1:, :]):
            with pytest.raises(ValueError, match=fits):
                run(network, {**x, key: shape})
    # One multiple more fits again.
    run(network, inputs(network, 1, height + network.size_multiple, width))


@every_network
def test_another_number_of_images_or_channels_is_refused(name, options):
    network = built(name, options)
    x = inputs(network)
    for key, image in x.items():
        with pytest.raises(ValueError, match=f'the {key} input has the shape .* \\(2, 3, '):
            run(network, {**x, key: image[:, :1]})
    if len(x) > 1:
        with pytest.raises(ValueError, match='with 2 images of'):
            run(network, {**x, key: image[:1]})


@every_network
def test_the_size_of_hha_is_told(name, options):
    network = built(name, options)
    height, width = size(network)
    hha = network.hha_size(height, width)
    assert all(isinstance(side, int) for side in hha)
    assert hha in ((height, width), (height // 2, width // 2))
    sizes = {'rgb': (height, width), 'hha': hha, 'depth': hha}
    expected = [(name, sizes[name]) for name in sizes if name in network.modalities]
    assert list(network.input_sizes(height, width).items()) == expected
    if network.modalities == ('rgb', 'hha'):
        x = inputs(network)
        other = (height, width) if hha != (height, width) else (height // 2, width // 2)
        with pytest.raises(ValueError, match=f'{hha[1]}x{hha[0]}'):
            run(network, {**x, 'hha': torch.zeros(2, 3, *other)})


@pytest.mark.parametrize(('name', 'options'), variants(FURTHER_VARIANTS))
def test_networks_can_be_exported(name, options):
    """With further options; test_export.py takes every network to its bundle."""
    network = built(name, options)
    x = inputs(network, batch=1)
    program = torch.export.export(network, (x,))
    expected = run(network, x)
    with torch.no_grad():
        got = program.module()(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize('name', [name for name in NETWORKS if name.startswith(('ssma', 'rfb'))])
@pytest.mark.parametrize('modality', ['rgb', 'hha'])
def test_a_fusion_network_takes_over_the_whole_encoder(name, modality):
    small = SMALL.get(backbone(name), {})
    unimodal = built(UNIMODAL[backbone(name)], {**small, 'modality': modality}, seed=1)
    network = built(name, small)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.initialise_encoder(modality, unimodal.state_dict())
    after = network.state_dict()
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    floats = {k: v for k, v in unimodal.state_dict().items() if v.is_floating_point()}
    for key, value in floats.items():
        if key.startswith('encoder.'):
            equal = [k for k in changed if torch.equal(after[k], value)]
            assert len(equal) == 1, key
            changed.remove(equal[0])
    # What else changed came from a head of that network.
    for key in changed:
        assert any(torch.equal(after[key], v) for v in floats.values()), key


def test_an_unknown_network_lists_the_valid_ones():
    with pytest.raises(ValueError, match='rfbnet_erfnet'):
        build_network('unet', 7)


def test_parameters_are_counted_with_and_without_statistics():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    assert parameter_count(network) == (3 * 8 * 9 + 8 + 16, 3 * 8 * 9 + 8 + 16 + 16)


def test_the_document_tells_every_option_and_default_of_networks_without_branches():
    root = Path(__file__).resolve().parents[3]
    table = (root / 'docs/networks.md').read_text(encoding='utf-8').partition('| option | |')[2]
    names, _, *rows = (
        [cell.strip(' `') for cell in line.strip('|').split('|')]
        for line in table.partition('\n\n')[0].splitlines()
    )
    assert {*names} == {*NETWORKS} - {*BRANCHES}
    told = {name: {} for name in names}
    for option, _, *defaults in rows:
        for name, default in zip(names, defaults, strict=True):
            if default:
                told[name][option] = yaml.safe_load(default)
    for name in names:
        parser = ArgumentParser()
        # Follows ``**options`` to the classes that take them.
        parser.add_class_arguments(NETWORKS[name], skip={'num_classes'})
        listed = (
            (k, list(v) if isinstance(v, tuple) else v) for k, v in parser.get_defaults().items()
        )
        assert told[name] == dict(listed), name


if __name__ == '__main__':
    found = {case.id: fingerprint(*case.values) for case in EVERY_NETWORK}
    lines = [f'{json.dumps(case)}: {json.dumps(rows)}' for case, rows in found.items()]
    FINGERPRINTS.write_text('{\n' + ',\n'.join(lines) + '\n}\n', encoding='utf-8')
