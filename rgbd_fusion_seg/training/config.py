"""What a training run is made of. YAML sections in config/training are named like these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rgbd_fusion_seg.training.augment import AugmentConfig


@dataclass
class NetworkConfig:
    """The network.

    Args:
        name: a key of `networks.NETWORKS`.
        options: its own options.
    """

    name: str = 'rfbnet_erfnet'
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """Where frames come from.

    Args:
        nyudv2: folder of the NYUDv2 pack.
        synthetic_frames: how many views of synthetic rooms to train on.
        synthetic_share: their share of the drawn training views, 0..1.
        synthetic_test_frames: views of held-out rooms to be scored on.
        cache: folder for prepared frames.
        width, height: size of the network's colour input.
        workers: loader processes.
    """

    nyudv2: str = '../shared/data/nyudv2'
    synthetic_frames: int = 600
    synthetic_share: float = 0.2
    synthetic_test_frames: int = 100
    cache: str = 'cache'
    width: int = 320
    height: int = 240
    workers: int = 1


@dataclass
class OptimiserConfig:
    """AdamW with warm-up and polynomial decay.

    Args:
        lr: peak learning rate.
        weight_decay: not applied to norms and biases.
        warmup: share of the run with rising learning rate.
        power: exponent of the polynomial decay.
        clip_norm: largest norm of the gradient.
        ema: decay of the averaged weights that are evaluated and exported.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup: float = 0.03
    power: float = 0.9
    clip_norm: float = 5.0
    ema: float = 0.999


@dataclass
class LossConfig:
    """Weighted cross-entropy.

    Args:
        class_weight: c of the class weights 1 / ln(c + frequency) of ENet; smaller c gives
            rare classes more weight, 0 turns the weights off.
        stride: the loss is taken at 1/stride of the network's input.
        auxiliary: weight of each encoder's own prediction.
    """

    class_weight: float = 1.05
    stride: int = 2
    auxiliary: float = 0.3


@dataclass
class TrainConfig:
    """One training run.

    Args:
        output: folder for checkpoints and reports.
        batch_size: views a step.
        epochs: passes over the NYUDv2 training frames; synthetic views come on top.
        max_minutes: end by then, with the whole schedule run through; 0 = no limit.
        evaluate_every: epochs between evaluations on the test split; 0 = only at the end.
        save_every: epochs between checkpoints.
        precision: of lightning-fabric, e.g. 'bf16-mixed', '32-true'.
        accelerator: of lightning-fabric, e.g. 'auto', 'cpu', 'cuda'.
        seed: of weights, order and augmentation.
        init_from: checkpoint whose weights the run starts from.
    """

    output: str = 'runs/rfbnet_erfnet_nyu40'
    batch_size: int = 8
    epochs: int = 100
    max_minutes: float = 0.0
    evaluate_every: int = 0
    save_every: int = 1
    precision: str = 'bf16-mixed'
    accelerator: str = 'auto'
    seed: int = 0
    init_from: str = ''
    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    loss: LossConfig = field(default_factory=LossConfig)
