"""Xception against itself written out, its sizes against the figures of the public code."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from plain_layers import image, normed, padded_conv, randomised, separable  # noqa: E402
from tf_checkpoints import write_tf_checkpoint  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.training.config import NetworkConfig  # noqa: E402
from rgbd_fusion_seg.training.initialisation import first_statistics, make_network  # noqa: E402
from rgbd_fusion_seg.training.networks import build_network, parameter_count  # noqa: E402
from rgbd_fusion_seg.training.networks import xception as xception_module  # noqa: E402
from rgbd_fusion_seg.training.networks.branches import BlockFusion, BranchLayers  # noqa: E402
from rgbd_fusion_seg.training.networks.xception import Variant, Xception  # noqa: E402

ONE = BranchLayers(1)
# Output stride -> stride and dilation of the block that goes to 1/16, dilation of the middle
# flow, stride and dilation of the exit flow's first block, dilation of its second.
LATE_BLOCKS = {32: (2, 1, 1, 2, 1, 1), 16: (2, 1, 1, 1, 1, 2), 8: (1, 1, 2, 1, 2, 4)}


@pytest.fixture
def variants(monkeypatch):
    """Small networks of the two entry flows."""
    tiny = {
        65: Variant(xception_module.ENTRY_65, 2, 1 / 16),
        71: Variant(xception_module.ENTRY_71, 1, 1 / 16),
    }
    for layers, variant in tiny.items():
        monkeypatch.setitem(xception_module.VARIANTS, f'tiny{layers}', variant)


@pytest.mark.parametrize(
    ('backbone', 'one', 'further'),
    # Private norms of the encoder, by SYSTEMS' count 0.185 M and 0.199 M.
    [('xception65', 41_054_899, 0.185), ('xception71', 43_477_323, 0.199)],
)
def test_parameters_are_those_of_the_public_code(backbone, one, further):
    def count(*modalities):
        with torch.device('meta'):
            network = build_network(
                'multimodal', 19, backbone=backbone, head='deeplabv3plus', modalities=modalities
            )
        return parameter_count(network).trainable

    assert count('rgb') == one
    assert round((count('rgb', 'hha') - one) / 1e6, 3) == further


def plain(weights, x, entry_strides, output_stride):
    """Return low-level features and those of the three flows."""
    stride16, dilation16, middle, exit_stride, exit_dilation, last = LATE_BLOCKS[output_stride]
    blocks = [('entry', i, s, 1) for i, s in enumerate(entry_strides[:-1])]
    blocks.append(('entry', len(entry_strides) - 1, stride16, dilation16))
    count = len({name.split('.')[1] for name in weights if name.startswith('middle')})
    blocks += [('middle', i, 1, middle) for i in range(count)]
    blocks += [('exit', 0, exit_stride, exit_dilation), ('exit', 1, 1, last)]

    for number, stride in ((1, 2), (2, 1)):
        x = padded_conv(x, weights[f'conv{number}.weight'], stride)
        x = normed(x, weights, f'bn{number}', 1e-3).relu()
    low, halved, flows = None, 1, {}
    for flow, number, stride, dilation in blocks:
        path = f'{flow}.{number}.'
        if (flow, number) == ('exit', 1):
            for i in (1, 2, 3):
                x = separable(x, weights, f'{path}separable{i}', 1, dilation, relu=True)
            flows[flow] = x
            continue
        y = separable(x.relu(), weights, f'{path}separable1', 1, dilation)
        y = separable(y.relu(), weights, f'{path}separable2', 1, dilation)
        # The second block that would halve in the entry flow leaves 1/4.
        if flow == 'entry' and entry_strides[number] == 2:
            halved += 1
            low = y if halved == 3 else low
        y = separable(y.relu(), weights, f'{path}separable3', stride, dilation)
        if f'{path}shortcut.0.weight' in weights:
            x = F.conv2d(x, weights[f'{path}shortcut.0.weight'], stride=stride)
            x = normed(x, weights, f'{path}shortcut.1', 1e-3)
        x = x + y
        flows[flow] = x
    return [low, *flows.values()]


@pytest.mark.parametrize('output_stride', [8, 16, 32])
@pytest.mark.parametrize(('layers', 'strides'), [(65, (2, 2, 2)), (71, (2, 1, 2, 1, 2))])
@pytest.mark.parametrize('size', [(64, 96), (49, 65)])
def test_features_are_what_is_written_out(variants, layers, strides, output_stride, size):
    encoder = randomised(Xception(ONE, f'tiny{layers}', output_stride))
    x = image(1, 3, *size)
    features = [maps[0] for maps in encoder([x])]
    expected = plain(encoder.state_dict(), x, strides, output_stride)
    assert len(features) == len(expected)
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert tuple(f.shape[1] for f in features) == encoder.channels
    sides = [-(-size[0] // s) for s in (4, min(16, output_stride), output_stride)]
    assert [f.shape[2] for f in features] == [sides[0], sides[1], sides[1], sides[2]]


def test_the_shortcut_of_a_block_that_changes_nothing_is_the_identity():
    with torch.device('meta'):
        encoder = Xception(ONE, 'xception71')
    shortcuts = [[block.shortcut is not None for block in flow] for flow in encoder.stages]
    # Within the entry flow of 71 layers every block changes channels or halves, but the fourth.
    assert shortcuts[0] == [True, True, True, True, True]
    assert not any(shortcuts[1])
    assert shortcuts[2] == [True, False]


class Recorder(BlockFusion):
    """Notes what it is given and changes it."""

    def __init__(self, notes: list, name: tuple) -> None:
        super().__init__()
        self.notes, self.name = notes, name

    def after_first(self, maps):
        self.notes.append((self.name, 'first', maps))
        return [2 * x for x in maps]

    def after_norm(self, maps, norm):
        self.notes.append((self.name, 'norm', maps, norm))
        return [x - 1 for x in maps]

    def after_second(self, maps, first):
        self.notes.append((self.name, 'second', maps, first))
        return [3 * x for x in maps]


def test_fusion_is_asked_for_in_every_block():
    asked = []

    def block_fusion(*place):
        asked.append(place)

    with torch.device('meta'):
        Xception(ONE, 'xception65', block_fusion=block_fusion)
    entry = [(0, i, 3, c) for i, c in enumerate((128, 256, 728))]
    middle = [(1, i, 16, 728) for i in range(16)]
    assert asked == [*entry, *middle, (2, 0, 2, 1024), (2, 1, 2, 1536)]


@pytest.mark.parametrize('place', [(0, 1), (1, 0), (2, 1)])
def test_fusion_stands_around_the_second_convolution(variants, place):
    notes = []

    def block_fusion(stage, block, num_blocks, channels):
        return Recorder(notes, (stage, block)) if (stage, block) == place else None

    def encoder(fusion):
        return randomised(Xception(BranchLayers(2), 'tiny65', 16, fusion))

    fused, apart = encoder(block_fusion), encoder(lambda *place: None)
    images = [image(1, 3, 32, 32, seed=s) for s in (1, 2)]
    features, without = fused(images), apart(images)
    first, norm, second = notes
    assert [n[1] for n in notes] == ['first', 'norm', 'second']
    block = fused.stages[place[0]][place[1]]
    assert norm[3] is block.separable2.norm
    for m in range(2):
        assert (first[2][m] >= 0).all()
        assert torch.equal(second[3][m], 2 * first[2][m])  # as `after_first` returned it
        torch.testing.assert_close(second[2][m], (norm[2][m] - 1).relu())
        # Features before the place are as they were, those behind it are not; the low-level
        # ones come from the second block, behind the exchange of maps.
        same = [torch.equal(a[m], b[m]) for a, b in zip(features, without, strict=True)]
        changed = {(0, 1): [0, 1, 2, 3], (1, 0): [2, 3], (2, 1): [3]}[place]
        assert same == [i not in changed for i in range(4)]


def test_what_changes_maps_between_flows_changes_what_follows(variants):
    encoder = randomised(Xception(ONE, 'tiny65'))
    x = image(1, 3, 32, 32)
    seen = []

    def after_stage(stage, maps):
        seen.append(stage)
        return [m + (stage == 1) for m in maps]

    low, entry, middle, out = encoder([x], after_stage)
    plain_low, plain_entry, plain_middle, _ = encoder([x])
    assert seen == [0, 1, 2]
    torch.testing.assert_close(low[0], plain_low[0])
    torch.testing.assert_close(entry[0], plain_entry[0])
    torch.testing.assert_close(middle[0], plain_middle[0] + 1)
    torch.testing.assert_close(out[0], encoder.exit(middle)[0])


@pytest.mark.parametrize(
    ('options', 'told'),
    [(('xception50',), 'xception65'), (('xception65', 4), '8, 16, 32')],
)
def test_unknown_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        Xception(ONE, *options)


def test_asymfusion_stands_in_the_last_block_of_each_flow():
    """AsymFusion §4.2."""
    with torch.device('meta'):
        network = build_network('asymfusion', 19, backbone='xception65', head='deeplabv3plus')
    fused = [
        name
        for name, module in network.encoder.named_modules()
        if isinstance(module, BlockFusion) and type(module) is not BlockFusion
    ]
    assert fused == ['entry.2.fusion', 'middle.15.fusion', 'exit.1.fusion']


def public_variables(entry_blocks: int, middle_units: int, channels: dict, seed=0) -> dict:
    """Random variables by the names and layouts that research/deeplab/core/xception.py makes.

    Slim's layers: 'weights' (h, w, in, out), separable ones without pointwise part
    'depthwise_weights' (h, w, in, 1), and 'BatchNorm/gamma' … below the scope of their own.
    """
    rng, variables = np.random.default_rng(seed), {}

    def layer(scope, name, *shape):
        variables[f'{scope}/{name}'] = rng.normal(size=shape).astype(np.float32)
        out = shape[2] if name == 'depthwise_weights' else shape[3]
        for part in ('gamma', 'beta', 'moving_mean', 'moving_variance'):
            values = rng.uniform(0.5, 1.5, out).astype(np.float32)
            variables[f'{scope}/BatchNorm/{part}'] = values

    stem = channels['stem']
    layer('xception_65/entry_flow/conv1_1', 'weights', 3, 3, 3, stem[0])
    layer('xception_65/entry_flow/conv1_2', 'weights', 3, 3, *stem)
    units = [(f'entry_flow/block{i + 1}/unit_1', w) for i, w in enumerate(channels['entry'])]
    units += [
        (f'middle_flow/block1/unit_{i + 1}', channels['middle']) for i in range(middle_units)
    ]
    units += [(f'exit_flow/block{i + 1}/unit_1', w) for i, w in enumerate(channels['exit'])]
    before = stem[1]
    for unit, widths in units:
        scope, into = f'xception_65/{unit}/xception_module', before
        for i, width in enumerate(widths, 1):
            layer(f'{scope}/separable_conv{i}_depthwise', 'depthwise_weights', 3, 3, into, 1)
            layer(f'{scope}/separable_conv{i}_pointwise', 'weights', 1, 1, into, width)
            into = width
        if unit.startswith('entry') or unit == 'exit_flow/block1/unit_1':
            layer(f'{scope}/shortcut', 'weights', 1, 1, before, widths[-1])
        before = widths[-1]
    # What stands beside the backbone: optimiser, counter, classifier, DeepLab's own layers.
    name = 'xception_65/entry_flow/conv1_1/weights'
    variables[f'{name}/Momentum'] = np.zeros_like(variables[name])
    variables['global_step'] = np.int64(7)
    variables['xception_65/logits/weights'] = np.zeros((1, 1, before, 9), np.float32)
    variables['aspp0/BatchNorm/gamma'] = np.zeros(4, np.float32)
    return variables


WIDTHS = {
    'stem': (8, 8), 'entry': [(8,) * 3, (16,) * 3, (48,) * 3], 'middle': (48,) * 3,
    'exit': [(48, 64, 64), (96, 96, 128)],
}  # fmt: skip


def written_out(variables, x, path):
    """A public layer on (N, C, H, W), by TensorFlow's own layouts: numpy's einsum over taps."""
    scope = f'xception_65/{path}'
    deep = f'{scope}/depthwise_weights' in variables
    kernel = variables[f'{scope}/{"depthwise_" if deep else ""}weights']
    side, pad = kernel.shape[0], kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = x.shape[2:]
    out = 0.0
    for i in range(side):
        for j in range(side):
            seen = padded[:, :, i : i + height, j : j + width]
            if deep:
                out = out + seen * kernel[i, j, :, 0][:, None, None]
            else:
                out = out + np.einsum('nchw,cd->ndhw', seen, kernel[i, j])
    gamma, beta, mean, variance = (
        variables[f'{scope}/BatchNorm/{part}'][:, None, None]
        for part in ('gamma', 'beta', 'moving_mean', 'moving_variance')
    )
    return (out - mean) / np.sqrt(variance + 1e-3) * gamma + beta


def test_branches_start_from_deeplabs_checkpoint(monkeypatch, tmp_path):
    def tiny(entry=xception_module.ENTRY_65, middle=2):
        variant = Variant(entry, middle, 1 / 16)
        monkeypatch.setitem(xception_module.VARIANTS, 'xception23_quarter', variant)

    tiny()
    variables = public_variables(3, 2, WIDTHS)
    path = write_tf_checkpoint(tmp_path / 'model.ckpt', variables)
    options = {
        'backbone': 'xception23_quarter',
        'head': 'deeplabv3plus',
        'head_options': {'width': 16},
    }
    config = NetworkConfig('asymfusion', options, init_backbone=str(path))
    network = make_network(config, ['a', 'b'], []).eval()
    assert first_statistics(config, [], network) == {'rgb': [[127.5] * 3, [127.5] * 3]}
    x = np.random.default_rng(1).normal(size=(1, 8, 7, 9)).astype(np.float32)
    encoder, maps = network.encoder, [torch.from_numpy(x)] * 2
    y = written_out(variables, x, 'entry_flow/conv1_2')
    for ours in encoder.bn2(encoder.conv2(maps)):
        torch.testing.assert_close(
            ours.detach().numpy(), y.astype(np.float32), atol=1e-4, rtol=1e-4
        )
    x = np.random.default_rng(2).normal(size=(1, 48, 7, 9)).astype(np.float32)
    y = x
    for i in (1, 2, 3):  # the second unit of the middle flow
        scope = f'middle_flow/block1/unit_2/xception_module/separable_conv{i}'
        y = written_out(variables, np.maximum(y, 0), f'{scope}_depthwise')
        y = written_out(variables, y, f'{scope}_pointwise')
    block = encoder.middle[1]
    block.fusion = BlockFusion()
    for ours in block([torch.from_numpy(x)] * 2):
        ours = ours.detach().numpy()
        assert np.abs(ours - (x + y)).max() <= 1e-4 * np.abs(y).max()
    shortcut = 'xception_65/exit_flow/block1/unit_1/xception_module/shortcut'
    for branch in (0, 1):
        ours = encoder.exit[0].shortcut[1][branch].running_var.numpy()
        np.testing.assert_array_equal(ours, variables[f'{shortcut}/BatchNorm/moving_variance'])
    kernel = variables['xception_65/entry_flow/block3/unit_1/xception_module/'
                       'separable_conv2_pointwise/weights']  # fmt: skip
    ours = encoder.entry[2].separable2.pointwise.weight.detach().numpy()
    np.testing.assert_array_equal(ours[:, :, 0, 0], kernel[0, 0].T)

    given = NetworkConfig('cen', options, init_backbone=str(path))
    for shape, words in (
        (
            (xception_module.ENTRY_71,),
            'another shape of entry_flow/block3|lacks entry_flow/block4',
        ),
        ((xception_module.ENTRY_65, 3), 'lacks middle_flow/block1/unit_3'),
        ((xception_module.ENTRY_65, 1), r'has middle_flow/block1/unit_2.* this Xception lacks'),
    ):
        tiny(*shape)
        with pytest.raises(InputError, match=words):
            make_network(given, ['a', 'b'], [])
