"""Names of the tensors in the papers' public checkpoints, and what they are called here.

They are facts about files, listed in the order of the networks. TensorFlow's layers carry numbers
without meaning; the roles behind them are told in `networks.adapnetpp`. A new system is a
function that returns a `System`, and a line in `SYSTEMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from rgbd_fusion_seg.training.networks import build_network
from rgbd_fusion_seg.training.networks.adapnetpp import STAGES
from rgbd_fusion_seg.training.networks.base import MODALITIES
from rgbd_fusion_seg.training.networks.refinenet import POOLINGS, UNITS_AFTER, UNITS_BEFORE
from rgbd_fusion_seg.training.networks.resnet import IMAGENET, VARIANTS

# SSMA's blocks on the skips are alike in shape, so no file tells which is which; the authors' code
# does (DeepSceneSeg/SSMA, models/SSMA.py, commit 7066905): conv513, 514 and 552 are those of the
# deeper skip, at 1/8, as the gate conv550 is; conv518, 519 and 553 those at 1/4, as conv551.
SSMA_SKIPS = {
    'combine8': (513, 514, 552),
    'combine4': (518, 519, 553),
}


@dataclass(frozen=True)
class Variant:
    """One form in which a system's weights are published.

    Args:
        network: the network of ours, a key of `NETWORKS`.
        names: public names -> ours. Without counters of batches, which have no public form.
        head: the public name of a vector with one entry a class; '' where the file has no head.
        options: the network's options that give it the public form.
        unused: public names of tensors that have no part in the network of ours.
        form: what is said of the form where a file has other tensors.
    """

    network: str
    names: dict[str, str]
    head: str
    options: dict[str, Any] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()
    form: str = ''


Statistics = dict[str, list[list[float]]]
"""Mean and standard deviation of each input's three channels, colour and HHA on the 0..255 scale,
depth in metres."""


@dataclass(frozen=True)
class System:
    """A published system.

    Args:
        variants: the forms of its files, the most complete first.
        channels_last: kernels are laid out as TensorFlow's.
        statistics: that stand for its scaling of inputs, of every modality that it may read.
        void: index of the output that is void, from the front or the back; None: none is.
        without_void: options of our network that has no such output.
        size: width and height of the inputs in the authors' own trainings.
        reversed_inputs: tensors of ours that have the channels of an input as their first axis
            (vectors) or their second (kernels), which are B, G, R in the public files.
        reference: where the weights come from, for the model's card.
    """

    variants: tuple[Variant, ...]
    channels_last: bool
    statistics: Statistics
    void: int | None
    size: tuple[int, int]
    reversed_inputs: frozenset[str]
    reference: str
    without_void: dict[str, Any] = field(default_factory=dict)


def _scaled(std: float) -> Statistics:
    return {modality: [[0.0] * 3, [std] * 3] for modality in ('rgb', 'hha')}


def erfnet() -> System:
    """ERFNet's own names, of which only the encoder's 1x1 head is called otherwise here.

    The head of the first training phase stays in the files of whole networks. The encoder
    trained on ImageNet has none.
    """

    def names(network: str, prefixes: tuple[str, ...]) -> dict[str, str]:
        with torch.device('meta'):
            ours = build_network(network, 2).state_dict()
        return {
            name.replace('head.', 'encoder.output_conv.', 1): name
            for name in ours
            if name.startswith(prefixes) and not name.endswith('num_batches_tracked')
        }

    encoder = 'encoder.output_conv.bias'
    return System(
        variants=(
            Variant('erfnet', names('erfnet', ('encoder.', 'head.', 'decoder.')), encoder),
            Variant('erfnet_encoder', names('erfnet_encoder', ('encoder.', 'head.')), encoder),
            Variant('erfnet_encoder', names('erfnet_encoder', ('encoder.',)), ''),
        ),
        channels_last=False,
        statistics=_scaled(255.0),
        void=-1,
        size=(1024, 512),
        reversed_inputs=frozenset(),
        reference='weights of the ERFNet authors (Eromera/erfnet_pytorch), CC BY-NC 4.0',
    )


def adapnetpp() -> System:
    """AdapNet++, with the auxiliary heads of training or without."""
    names = _expert('resnet_v2_50/', 'encoder.') | _decoder('resnet_v2_50/', 'decoder.')
    auxiliary = _conv_norm('resnet_v2_50/conv911', 'decoder.auxiliary4') | _conv_norm(
        'resnet_v2_50/conv912', 'decoder.auxiliary8'
    )
    head = 'resnet_v2_50/conv5/BatchNorm/gamma'
    return System(
        variants=(
            Variant('adapnetpp', names | auxiliary, head, {'auxiliary_heads': True}),
            Variant('adapnetpp', names, head, {'auxiliary_heads': False}),
        ),
        channels_last=True,
        statistics=_scaled(1.0),
        void=0,
        size=(768, 384),
        reversed_inputs=_first_layers('encoder.'),
        reference='weights of the AdapNet++ authors (DeepSceneSeg/AdapNet-pp), GPL v3',
        without_void={'spare_channels': 1},
    )


def ssma() -> System:
    """SSMA: two experts, the blocks that merge them, and a decoder without auxiliary heads."""
    names = _expert('rgb/resnet_v2_50/', 'rgb_encoder.')
    names |= _expert('depth/resnet_v2_50/', 'hha_encoder.')
    names |= _attention(511, 512, 'combine')
    names |= {'conv515/weights': 'combine.project.0.weight'}
    names |= _norm('conv515', 'combine.project.1')
    for block, (first, second, project) in SSMA_SKIPS.items():
        names |= _attention(first, second, block) | _conv_bias(project, f'{block}.project')
    names |= _decoder('', 'decoder.')
    names |= _numbered({550: 'gate8', 551: 'gate4'}, '', 'decoder.')
    return System(
        variants=(Variant('ssma_adapnetpp', names, 'conv5/BatchNorm/gamma'),),
        channels_last=True,
        statistics=_scaled(1.0),
        void=0,
        size=(768, 384),
        reversed_inputs=_first_layers('rgb_encoder.', 'hha_encoder.'),
        reference='weights of the SSMA authors (DeepSceneSeg/SSMA), GPL v3',
        without_void={'spare_channels': 1},
    )


PUBLIC_MODALITIES = {1: ('rgb',), 2: ('rgb', 'depth'), 3: MODALITIES}
"""What the branches of a CEN or AsymFusion file read; names tell their number alone."""


def cen() -> System:
    """CEN on RefineNet, whose files tell neither system nor modalities, only how many."""
    return _refinenet('cen', 'weights of the CEN authors (yikaiw/CEN), MIT')


def asymfusion() -> System:
    """AsymFusion, which has the tensors of CEN."""
    return _refinenet('asymfusion', 'weights of the AsymFusion authors (yikaiw/AsymFusion), MIT')


def _refinenet(network: str, reference: str) -> System:
    """The RefineNet of CEN and AsymFusion, on three ResNets, with one branch to three.

    Depth is divided by 5000, which makes metres of it: the depth pictures of the RefineNet
    authors' NYUDv2, on which the data sets of both codes rest, have 5000 units a metre (their
    multi-task code says so). HHA, which no public file reads, is taken as colour is.
    """
    variants = []
    for backbone in ('resnet50', 'resnet101', 'resnet152'):
        for branches, modalities in PUBLIC_MODALITIES.items():
            names = _resnet(VARIANTS[backbone], branches) | _cascade()
            plural = 'modalities' if branches > 1 else 'modality'
            most = ', the most that are read here,' if branches == len(MODALITIES) else ''
            options: dict[str, Any] = {'backbone': backbone, 'modalities': list(modalities)}
            if network == 'cen' and branches > 2:  # widths of 64 to 512 have no three equal parts
                options['parts'] = 'nearly_equal'
            variants.append(
                Variant(
                    network if branches > 1 else 'multimodal',
                    names | ({'alpha': 'ensemble.alpha'} if branches > 1 else {}),
                    'clf_conv.module.bias',
                    options,
                    unused=frozenset() if branches > 1 else frozenset({'alpha'}),
                    form=f' on {backbone} with {branches} {plural}{most}',
                )
            )
    return System(
        variants=tuple(variants),
        channels_last=False,
        statistics={'rgb': IMAGENET, 'hha': IMAGENET, 'depth': [[0.0] * 3, [1.0] * 3]},
        void=None,
        size=(640, 480),
        reversed_inputs=frozenset(),
        reference=reference,
    )


def _resnet(blocks: tuple[int, ...], branches: int) -> dict[str, str]:
    """The encoder: shared convolutions, and norms of each branch."""
    names = _shared('conv1', 'encoder.conv1') | _private('bn1', 'encoder.bn1', branches)
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            public = f'layer{stage}.{block}'
            layers = [(f'conv{i}', f'bn{i}') for i in (1, 2, 3)]
            if block == 0:
                layers.append(('downsample.0', 'downsample.1'))
            for conv, norm in layers:
                names |= _shared(f'{public}.{conv}', f'encoder.{public}.{conv}')
                names |= _private(f'{public}.{norm}', f'encoder.{public}.{norm}', branches)
    return names


def _cascade() -> dict[str, str]:
    """The decoder: level 1 of the public code is the coarsest, the last of ours."""
    names: dict[str, str] = {}
    for level in (1, 2, 3, 4):
        ours = f'head.levels.{4 - level}'
        layers = {
            f'p_ims1d2_outl{level}_dimred': 'reduce',
            f'adapt_stage{level}_b2_joint_varout_dimred': 'join',
            f'mflow_conv_g{level}_b3_joint_varout_dimred': 'project',
        }
        if level == 1:
            del layers['adapt_stage1_b2_joint_varout_dimred']
        if level == 4:
            del layers['mflow_conv_g4_b3_joint_varout_dimred']
        for i in range(POOLINGS):
            layers[f'mflow_conv_g{level}_pool.0.{i + 1}_outvar_dimred'] = f'pool.convs.{i}'
        for public, name in layers.items():
            names |= _shared(public, f'{ours}.{name}')
        names |= _units(f'adapt_stage{level}_b.0', f'{ours}.adapt', UNITS_BEFORE)
        names |= _units(f'mflow_conv_g{level}_b.0', f'{ours}.refine', UNITS_AFTER)
    return names | _shared('clf_conv', 'head.classifier', bias=True)


def _units(public: str, ours: str, count: int) -> dict[str, str]:
    """Residual units of two convolutions, the first with bias."""
    names: dict[str, str] = {}
    for i in range(count):
        names |= _shared(f'{public}.{i + 1}_conv', f'{ours}.{i}.conv1', bias=True)
        names |= _shared(f'{public}.{i + 1}_conv_relu_varout_dimred', f'{ours}.{i}.conv2')
    return names


def _shared(public: str, ours: str, bias: bool = False) -> dict[str, str]:
    """A convolution of all branches."""
    parts = ('weight', 'bias') if bias else ('weight',)
    return {f'{public}.module.{part}': f'{ours}.{part}' for part in parts}


def _private(public: str, ours: str, branches: int) -> dict[str, str]:
    """A norm of each branch; ours have no number where there is one branch."""
    return {
        f'{public}.bn_{i}.{part}': f'{ours}.{i}.{part}' if branches > 1 else f'{ours}.{part}'
        for i in range(branches)
        for part in ('weight', 'bias', 'running_mean', 'running_var')
    }


def _expert(public: str, ours: str) -> dict[str, str]:
    """Everything up to the eASPP and the skips."""
    names = _norm(f'{public}conv0', f'{ours}bn0')
    names |= {f'{public}conv1/weights': f'{ours}conv1.weight'}
    names |= _norm(f'{public}conv1', f'{ours}bn1')
    for block, stage in enumerate(STAGES, 1):
        for unit in range(len(stage.rates)):
            theirs = f'{public}block{block}/unit_{unit + 1}/bottleneck_v1'
            mine = f'{ours}block{block}.{unit}'
            for i in (1, 2, 3):
                names[f'{theirs}/conv{i}/weights'] = f'{mine}.conv{i}.weight'
                names |= _norm(f'{theirs}/conv{i}', f'{mine}.bn{i}')
            if unit == 0:
                names[f'{theirs}/shortcut/weights'] = f'{mine}.shortcut.weight'
    layers = {32: 'skip4', 174: 'skip8', 256: 'easpp.point', 57: 'easpp.pooled'}
    for i, branch in enumerate(((70, 7, 247, 71), (80, 8, 248, 81), (90, 9, 249, 91))):
        layers |= {number: f'easpp.atrous.{i}.{j}' for j, number in enumerate(branch)}
    layers[10] = 'easpp.project'
    return names | _numbered(layers, public, ours)


def _decoder(public: str, ours: str) -> dict[str, str]:
    layers = {
        41: 'up8',
        89: 'refine8.0',
        96: 'refine8.1',
        16: 'up4',
        88: 'refine4.0',
        95: 'refine4.1',
        78: 'head',
        5: 'up_logits',
    }
    return _numbered(layers, public, ours)


def _numbered(layers: dict[int, str], public: str, ours: str) -> dict[str, str]:
    """Names of convolutions with a norm: number in the public code -> module of ours."""
    names: dict[str, str] = {}
    for number, module in layers.items():
        names |= _conv_norm(f'{public}conv{number}', f'{ours}{module}')
    return names


def _conv_norm(public: str, ours: str) -> dict[str, str]:
    return {f'{public}/weights': f'{ours}.conv.weight'} | _norm(public, f'{ours}.bn')


def _attention(first: int, second: int, block: str) -> dict[str, str]:
    """The two convolutions of an SSMA block before its projection."""
    return _conv_bias(first, f'{block}.attention.0') | _conv_bias(second, f'{block}.attention.2')


def _conv_bias(number: int, ours: str) -> dict[str, str]:
    return {f'conv{number}/weights': f'{ours}.weight', f'conv{number}/biases': f'{ours}.bias'}


def _norm(public: str, ours: str) -> dict[str, str]:
    parts = {
        'gamma': 'weight',
        'beta': 'bias',
        'moving_mean': 'running_mean',
        'moving_variance': 'running_var',
    }
    return {f'{public}/BatchNorm/{part}': f'{ours}.{name}' for part, name in parts.items()}


def _first_layers(*encoders: str) -> frozenset[str]:
    """Tensors that see the input's channels: the norm on the input and the first kernel."""
    norm = ('weight', 'bias', 'running_mean', 'running_var')
    parts = [f'bn0.{part}' for part in norm] + ['conv1.weight']
    return frozenset(f'{encoder}{part}' for encoder in encoders for part in parts)


SYSTEMS: dict[str, Callable[[], System]] = {
    'erfnet': cache(erfnet),
    'adapnetpp': cache(adapnetpp),
    'ssma': cache(ssma),
    'cen': cache(cen),
    'asymfusion': cache(asymfusion),
}
"""The published systems by name."""
