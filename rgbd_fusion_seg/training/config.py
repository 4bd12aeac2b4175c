"""What a training run is made of. YAML sections in config/training are named like these."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rgbd_fusion_seg.training.augment import AugmentConfig
from rgbd_fusion_seg.training.networks.base import MODALITIES
from rgbd_fusion_seg.training.rules import require

OPTIMISERS = ('adamw', 'adam', 'sgd')
SCHEDULES = ('poly', 'step', 'constant')
RESIDENT = ('auto', 'always', 'never')


@dataclass
class NetworkConfig:
    """The network.

    Args:
        name: which: erfnet_encoder, erfnet, ssma_erfnet, rfbnet_erfnet, adapnetpp, ssma_adapnetpp,
            rfbnet_adapnetpp, multimodal, cen, asymfusion or stage_fusion.
        options: its own options; docs/networks.md has them.
        init_from: checkpoint of the same network whose weights the run starts from: a
            .safetensors file, a run's folder, or the folder or name of a bundle that has one. Of
            other classes, those of the same names are taken over.
        init_rgb: checkpoint of the network of colour on the same backbone whose encoder a fusion
            network starts from, as the RFBNet paper does (§IV-B).
        init_hha: the same of the network of HHA.
        init_backbone: a ResNet that torchvision or others trained, by torchvision's names (.pth
            or .safetensors), or DeepLab's Xception, a TensorFlow checkpoint by the name that its
            .index and .data files share: the encoder of every branch starts from it. For networks
            of branches; their option `freeze_norms` then keeps its statistics, as CEN's code does.
    """

    name: str = 'rfbnet_erfnet'
    options: dict[str, Any] = field(default_factory=dict)
    init_from: str = ''
    init_rgb: str = ''
    init_hha: str = ''
    init_backbone: str = ''


def default_folder() -> str:
    """Return where NYUDv2 is looked for: in ``$RGBD_FUSION_SEG_DATA`` if that is set."""
    return os.path.join(os.environ.get('RGBD_FUSION_SEG_DATA') or '../shared/data', 'nyudv2')


@dataclass
class DatasetConfig:
    """A data set on disk.

    Args:
        name: nyudv2, sunrgbd, scannet, cityscapes, synthetic, folder or, for translation,
            taskonomy.
        folder: where it is; for 'folder', the YAML file that describes it. Default: nyudv2 in
            $RGBD_FUSION_SEG_DATA, else ../shared/data/nyudv2.
        options: the reader's own options.
        train_split: name of the split to train on; default: the data set's own.
        test_split: name of the split to score on; default: the data set's own.
    """

    name: str = 'nyudv2'
    folder: str = field(default_factory=default_folder)
    options: dict[str, Any] = field(default_factory=dict)
    train_split: str = ''
    test_split: str = ''


@dataclass
class DataConfig:
    """Where frames come from, and at which size the network sees them.

    Args:
        dataset: what is trained on.
        synthetic_frames: views of synthetic rooms to train on besides (NYU40 classes only).
        synthetic_share: their share of the drawn training views, 0..1, 1 excluded; with 0 none
            are made.
        synthetic_test_frames: views of held-out rooms to be scored on.
        stereo_share: share, 0..1, of the training frames' views whose depth is what a simulated
            stereo pair reads, instead of the data set's own.
        stereo_test: be scored on the test frames with such depth, too.
        cache: folder for prepared frames.
        width: of the network's colour input, in pixels.
        height: of the network's colour input, in pixels.
        workers: loader processes; a GPU keeps one busy with drawing views of resident frames,
            and several with reading others.
        statistics: mean and standard deviation by modality that inputs are normalised with, each
            one number or three, on the 0..255 scale, of depth in metres: {depth: [0, 1]}. Default:
            those that the first weights were trained with, which of `init_backbone` tell colour's;
            else those of the training frames.
        resident: keep all frames in the device's memory and augment them there: 'auto' on a
            GPU whose free memory is at least twice their size, 'always', 'never'.
    """

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    synthetic_frames: int = 600
    synthetic_share: float = 0.2
    synthetic_test_frames: int = 100
    stereo_share: float = 0.0
    stereo_test: bool = False
    cache: str = 'cache'
    width: int = 320
    height: int = 240
    workers: int = 1
    statistics: dict[str, Any] = field(default_factory=dict)
    resident: str = 'auto'

    def __post_init__(self) -> None:
        rules = {
            '0 <= synthetic_share < 1': 0 <= self.synthetic_share < 1,
            '0 <= stereo_share <= 1': 0 <= self.stereo_share <= 1,
            f'resident one of {", ".join(RESIDENT)}': self.resident in RESIDENT,
            f'statistics of {", ".join(MODALITIES)}': {*self.statistics} <= {*MODALITIES},
            'a mean and a positive deviation, of one number or three each, in statistics': all(
                map(_is_mean_and_deviation, self.statistics.values())
            ),
        }
        for name in ('workers', 'synthetic_frames', 'synthetic_test_frames'):
            rules[f'{name} >= 0'] = getattr(self, name) >= 0
        require(self, rules)


def _is_mean_and_deviation(pair: Any) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    listed = [x if isinstance(x, list | tuple) else [x] for x in pair]
    numbers = all(isinstance(x, int | float) and math.isfinite(x) for part in listed for x in part)
    return numbers and {*map(len, listed)} <= {1, 3} and all(x > 0 for x in listed[1])


@dataclass
class GroupConfig:
    """Parameters that learn at a pace of their own.

    Args:
        pattern: regular expression, searched in parameter names; the first match of a list wins.
        lr_scale: factor on the learning rate; 0 freezes.
        weight_decay: replaces the optimiser's; None keeps it.
        gamma: replaces the optimiser's; None keeps it.
    """

    pattern: str = ''
    lr_scale: float = 1.0
    weight_decay: float | None = None
    gamma: float | list[float] | None = None

    def __post_init__(self) -> None:
        rules = {
            'lr_scale >= 0': self.lr_scale >= 0,
            'weight_decay >= 0': self.weight_decay is None or self.weight_decay >= 0,
            'gamma > 0': all(gamma > 0 for gamma in _listed(self.gamma)),
        }
        require(self, rules)


def _listed(gamma: float | list[float] | None) -> list[float]:
    if isinstance(gamma, list):
        return gamma
    return [] if gamma is None else [gamma]


@dataclass
class OptimiserConfig:
    """Optimiser and schedule.

    Args:
        name: 'adamw', 'adam' (decay as L2, as in the papers) or 'sgd' (Nesterov-free momentum).
        lr: peak learning rate.
        weight_decay: of convolutions.
        decay_all: it is that of norms, biases and all else too, as in CEN's public code.
        momentum: of 'sgd'.
        schedule: 'poly' (1 - progress) ** power, 'step' by gamma at milestones, 'constant'.
        power: exponent of 'poly'.
        end_lr: learning rate at which 'poly' ends.
        milestones: shares of the run, 0..1, at which 'step' multiplies the rate.
        gamma: factor that 'step' multiplies it by: one number, or one for each milestone.
        warmup: share of the run with linearly rising learning rate.
        clip_norm: largest norm of the gradient; 0 = no clipping.
        ema: decay of the averaged weights and statistics of norms, which are evaluated and
            exported; 0 = no averaging.
        groups: parameters with their own learning rate or decay.
    """

    name: str = 'adamw'
    lr: float = 1e-3
    weight_decay: float = 1e-2
    decay_all: bool = False
    momentum: float = 0.9
    schedule: str = 'poly'
    power: float = 0.9
    end_lr: float = 0.0
    milestones: list[float] = field(default_factory=lambda: [0.6, 0.85])
    gamma: float | list[float] = 0.1
    warmup: float = 0.03
    clip_norm: float = 5.0
    ema: float = 0.999
    groups: list[GroupConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        rules = {
            f'name one of {", ".join(OPTIMISERS)}': self.name in OPTIMISERS,
            f'schedule one of {", ".join(SCHEDULES)}': self.schedule in SCHEDULES,
            'lr > 0': self.lr > 0,
            '0 <= warmup < 1': 0 <= self.warmup < 1,
            '0 <= ema < 1': 0 <= self.ema < 1,
            'clip_norm >= 0': self.clip_norm >= 0,
            'weight_decay >= 0': self.weight_decay >= 0,
            '0 <= momentum < 1': 0 <= self.momentum < 1,
            'power >= 0': self.power >= 0,
            '0 <= end_lr <= lr': 0 <= self.end_lr <= self.lr,
            'milestones that rise from 0 to 1': all(
                before < after < 1 for before, after in pairwise([0, *self.milestones])
            ),
            'gamma > 0': all(gamma > 0 for gamma in _listed(self.gamma)),
            'a gamma for each of milestones': all(
                len(gamma) == len(self.milestones)
                for gamma in (self.gamma, *(group.gamma for group in self.groups))
                if isinstance(gamma, list)
            ),
        }
        require(self, rules, limits=('clip_norm',))


@dataclass
class LossConfig:
    """Weighted cross-entropy.

    Args:
        class_weight: c of the class weights 1 / ln(c + frequency) of ENet; smaller c gives
            rare classes more weight, 0 turns the weights off.
        stride: the loss is taken at 1/stride of the network's input.
        auxiliary: factor on the weights of the network's auxiliary predictions, which the network
            sets; 0 trains without them.
    """

    class_weight: float = 1.05
    stride: int = 2
    auxiliary: float = 1.0

    def __post_init__(self) -> None:
        weighted = self.class_weight == 0 or self.class_weight > 1
        rules = {
            'class_weight 0 or above 1': weighted,
            'stride >= 1': self.stride >= 1,
            'auxiliary >= 0': self.auxiliary >= 0,
        }
        require(self, rules)


@dataclass
class RunConfig:
    """What all kinds of training runs have in common.

    Args:
        output: folder for checkpoints, TensorBoard events and scores.
        batch_size: views a step, over all processes.
        epochs: passes over the training frames; synthetic views come on top.
        max_minutes: of training, with the whole schedule run through; preparing the frames,
            scoring and saving come on top; 0 = no limit.
        evaluate_every: epochs between evaluations on the test split; 0 = only at the end, where
            there is one in any case.
        save_every: epochs between checkpoints; 0 = by time only.
        save_minutes: minutes between checkpoints, whichever comes first; 0 = by epochs only.
        precision: 'bf16-mixed', '16-mixed' (GPUs only) or '32-true'.
        accelerator: of lightning-fabric: 'auto', 'cpu', 'cuda'.
        seed: of weights, order and augmentation, 0 or more.
    """

    output: str = 'runs/mine'
    batch_size: int = 8
    epochs: int = 100
    max_minutes: float = 0.0
    evaluate_every: int = 0
    save_every: int = 0
    save_minutes: float = 2.0
    precision: str = 'bf16-mixed'
    accelerator: str = 'auto'
    seed: int = 0

    def __post_init__(self) -> None:
        require(self, self.rules(), limits=('max_minutes', 'save_minutes'))

    def rules(self) -> dict[str, bool]:
        """Return what must hold, by its words for an error."""
        rules = {
            'an output folder': bool(self.output),
            'epochs >= 1': self.epochs >= 1,
            'batch_size >= 1': self.batch_size >= 1,
            '0 <= seed < 2**32': 0 <= self.seed < 2**32,
            'a precision of bf16-mixed, 16-mixed or 32-true': self.precision
            in ('bf16-mixed', '16-mixed', '32-true'),
        }
        for name in ('max_minutes', 'evaluate_every', 'save_every', 'save_minutes'):
            rules[f'{name} >= 0'] = getattr(self, name) >= 0
        return rules


@dataclass
class TrainConfig(RunConfig):
    """One training run of a segmentation network."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    loss: LossConfig = field(default_factory=LossConfig)
