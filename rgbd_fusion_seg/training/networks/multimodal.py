"""Networks of one branch for each modality: encoders, heads, and the ensemble of their answers.

The frame in which Channel Exchanging Networks (`cen`), AsymFusion (`asymfusion`) and the papers'
baselines (`stage_fusion`) stand. By itself it is the branches without interaction: RefineNet,
PSPNet or DeepLabv3+ of one modality, or a late ensemble of several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rgbd_fusion_seg.training.networks.base import MODALITIES, SegmentationNetwork, one_of
from rgbd_fusion_seg.training.networks.branches import (
    BlockFusion,
    BranchLayers,
    Encoder,
    Maps,
    OneEach,
)
from rgbd_fusion_seg.training.networks.deeplabv3plus import DeepLabV3Plus
from rgbd_fusion_seg.training.networks.heads import Head
from rgbd_fusion_seg.training.networks.pspnet import PspNet
from rgbd_fusion_seg.training.networks.refinenet import RefineNet
from rgbd_fusion_seg.training.networks.resnet import VARIANTS, ResNet
from rgbd_fusion_seg.training.networks.xception import VARIANTS as XCEPTION_VARIANTS
from rgbd_fusion_seg.training.networks.xception import Xception

ENCODERS: dict[str, partial[Encoder]] = {
    **{name: partial(ResNet, variant=name) for name in VARIANTS},
    # ResNet in the form of PSPNet's public PyTorch code.
    **{
        f'{name}_deep': partial(ResNet, variant=name, deep_stem=True, dilate_first=True)
        for name in VARIANTS
    },
    **{name: partial(Xception, variant=name) for name in XCEPTION_VARIANTS},
}
"""Encoders by name; called with layers, `output_stride` and `block_fusion`."""
HEADS: dict[str, type[Head]] = {
    'refinenet': RefineNet,
    'pspnet': PspNet,
    'deeplabv3plus': DeepLabV3Plus,
}
"""Heads by name; called with layers, channels of the stages, number of classes and options."""


class SoftmaxEnsemble(nn.Module):
    """Mean of the branches' logits, weighted by softmax(alpha) (CEN Eq. 4).

    Args:
        num_branches: M.
        detach: the ensemble's loss trains alpha alone, as in the public code; else the branches
            learn from it too.
    """

    def __init__(self, num_branches: int, detach: bool = True) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(num_branches))
        self.detach = detach

    @property
    def weights(self) -> Tensor:
        """The branches' weights, (M,), of sum 1."""
        return self.alpha.softmax(0)

    def forward(self, logits: Maps) -> Tensor:
        """M times (N, K, h, w) -> (N, K, h, w)."""
        logits = [x.detach() if self.detach else x for x in logits]
        return sum(weight * x for weight, x in zip(self.weights, logits, strict=True))


class MeanEnsemble(nn.Module):
    """Plain mean of the branches' logits, nothing to learn."""

    def forward(self, logits: Maps) -> Tensor:
        """M times (N, K, h, w) -> (N, K, h, w)."""
        return sum(logits) / len(logits)


class ConcatEnsemble(nn.Module):
    """1x1 convolution over the concatenated logits: CEN's ablation of the ensemble (§4.1).

    Open: what the paper's block looks like inside. This one begins as the plain mean.
    """

    def __init__(self, num_branches: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_branches * num_classes, num_classes, 1)
        with torch.no_grad():
            self.conv.weight.copy_(
                torch.eye(num_classes).repeat(1, num_branches)[:, :, None, None] / num_branches
            )
            self.conv.bias.zero_()

    def forward(self, logits: Maps) -> Tensor:
        """M times (N, K, h, w) -> (N, K, h, w)."""
        return self.conv(torch.cat(list(logits), 1))


ENSEMBLES = ('softmax', 'mean', 'concat')


class MultimodalNetwork(SegmentationNetwork):
    """A branch for each modality, without interaction, and the ensemble of their predictions.

    With one modality a plain segmentation network, its parameters named like torchvision's.

    Args:
        num_classes: number of classes K.
        backbone: a key of `ENCODERS`.
        head: a key of `HEADS`.
        modalities: which inputs there are, each with a branch; two or more of one size.
        share_convs, share_norms: one convolution (batch norm) for all branches, or one each. CEN
            shares convolutions and keeps norms private (§3.4); "individual" networks share none.
        ensemble: 'softmax' (learnt weights), 'mean' or 'concat'.
        detach_branches: the loss of the softmax ensemble does not train the branches.
        freeze_norms: norms of the encoder keep their running statistics in training, as the
            public code does after ImageNet weights; scales and shifts are trained. Never without
            such weights, which is why the norms of heads are not frozen.
        head_options: of the head's class.

    Raises:
        ValueError: an option with an unknown value.
    """

    auxiliary_at_full_size = True
    # Half of the deepest stage's stride: 240 and 720 lines fit, and heads interpolate to any size.
    size_multiple = 16

    def __init__(
        self,
        num_classes: int,
        backbone: str = 'resnet101',
        head: str = 'refinenet',
        modalities: Sequence[str] = ('rgb', 'hha'),
        share_convs: bool = True,
        share_norms: bool = False,
        ensemble: str = 'softmax',
        detach_branches: bool = True,
        freeze_norms: bool = False,
        head_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check(backbone, head, modalities, ensemble)
        self.modalities = tuple(name for name in MODALITIES if name in modalities)
        self.num_branches = len(self.modalities)
        self.num_classes, self.freeze_norms = num_classes, freeze_norms
        self.backbone_name, self.head_name = backbone, head
        self.head_options = dict(head_options or {})
        head_type = HEADS[head]
        self.stride = head_type.stride
        layers = BranchLayers(self.num_branches, share_convs, share_norms)
        self.encoder = self.make_encoder(layers, head_type.output_stride)
        self.head = self.make_head(layers)
        count = len(self.outputs)
        own = [w for w in self.head.auxiliary_weights for _ in self.outputs]
        self.auxiliary_weights = tuple(own)
        if count > 1:
            self.auxiliary_weights = (*([1.0] * count), *own)
            self.ensemble = {
                'softmax': lambda: SoftmaxEnsemble(count, detach_branches),
                'mean': MeanEnsemble,
                'concat': lambda: ConcatEnsemble(count, num_classes),
            }[ensemble]()

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the head predicts from, in order: here the branch of each modality."""
        return self.modalities

    @property
    def predicting_branches(self) -> tuple[str, ...]:
        """The outputs, where they are joined to a prediction."""
        return self.outputs if len(self.outputs) > 1 else ()

    def make_encoder(self, layers: BranchLayers, output_stride: int) -> nn.Module:
        """Return the encoder of all branches."""
        return ENCODERS[self.backbone_name](
            layers, output_stride=output_stride, block_fusion=self.block_fusion
        )

    def make_head(self, layers: BranchLayers) -> nn.Module:
        """Return the head of all branches."""
        return HEADS[self.head_name](
            layers, self.encoder.channels, self.num_classes, **self.head_options
        )

    def block_fusion(
        self, stage: int, block: int, num_blocks: int, channels: int
    ) -> BlockFusion | None:
        """Return what happens between the branches in a block of the encoder; here nothing."""
        return None

    def after_stage(self, stage: int, maps: Maps) -> Maps:
        """Change the maps behind a stage of the encoder, counted from 0; here not."""
        return maps

    def encode(self, images: Maps) -> list[Maps]:
        """Images (N, 3, H, W) of each branch -> features for the head, maps of each branch."""
        return self.encoder(images, self.after_stage)

    def loss_terms(self, features: Sequence[Maps], logits: Maps, fused: Tensor) -> list[Tensor]:
        """Return what training adds to the loss, tensors without dimensions, weighted."""
        return []

    def forward(
        self, inputs: Mapping[str, Tensor], auxiliary: bool = False
    ) -> Tensor | list[Tensor]:
        """Segment.

        Args:
            inputs: (N, 3, H, W) of each of `modalities`.
            auxiliary: also return the predictions of each branch, what the head predicts for
                training alone, and further loss terms.

        Returns:
            logits (N, K, H/stride, W/stride) of the ensemble; with ``auxiliary`` the list
            [ensemble's, each branch's, the head's auxiliary ones of each branch, loss terms],
            for one branch [its own, the head's auxiliary ones].

        Raises:
            ValueError: see `check_inputs`.
        """
        self.check_inputs(inputs)
        features = self.encode([inputs[name] for name in self.modalities])
        logits = self.head(features)
        fused = self.ensemble(logits) if len(logits) > 1 else logits[0]
        if not auxiliary:
            return fused
        own = [x for maps in self.head.auxiliary_logits(features) for x in maps]
        if len(logits) == 1:
            return [fused, *own]
        return [fused, *logits, *own, *self.loss_terms(features, logits, fused)]

    def train(self, mode: bool = True) -> MultimodalNetwork:
        """Set training mode; norms of the encoder stay in evaluation mode where frozen."""
        super().train(mode)
        if mode and self.freeze_norms:
            for module in self.encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def monitored(self) -> dict[str, float]:
        """Return the weights of the branches in the ensemble, where they are learnt."""
        if len(self.outputs) == 1 or not isinstance(self.ensemble, SoftmaxEnsemble):
            return {}
        weights = self.ensemble.weights.detach().tolist()
        return {f'ensemble_{name}': w for name, w in zip(self.outputs, weights, strict=True)}

    def unimodal_form(self, modality: str) -> tuple[str, dict[str, Any], dict[str, Tensor]] | None:
        """Return the branch of a modality as a network, see `SegmentationNetwork`.

        Without the other maps there is nothing to exchange, as in the public code where one
        modality is given.
        """
        if self.num_branches == 1:
            return None
        branch = self.modalities.index(modality)
        options = {
            'backbone': self.backbone_name,
            'head': self.head_name,
            'modalities': [modality],
            'head_options': self.head_options,
        }
        with torch.device('meta'):
            network = MultimodalNetwork(self.num_classes, **options)
        weights = {}
        for name in network.state_dict():
            path, _, tensor = name.rpartition('.')
            layer = self.get_submodule(path)
            layer = layer[branch] if isinstance(layer, OneEach) else layer
            weights[name] = getattr(layer, tensor)
        return 'multimodal', options, weights


def require_several(rule: str, modalities: Sequence[str]) -> None:
    """Refuse one modality where branches interact.

    Args:
        rule: what the network does with two or more, for the message.
        modalities: of the network.

    Raises:
        ValueError: there is one.
    """
    if len(modalities) < 2:
        raise ValueError(
            f"{rule}, got {list(modalities)}; for one alone take the network 'multimodal'"
        )


def _check(backbone: str, head: str, modalities: Sequence[str], ensemble: str) -> None:
    one_of('backbone', backbone, ENCODERS)
    one_of('head', head, HEADS)
    one_of('ensemble', ensemble, ENSEMBLES)
    if not modalities or len(set(modalities)) < len(modalities) or set(modalities) - {*MODALITIES}:
        raise ValueError(
            f'modalities must be different ones of {", ".join(MODALITIES)}, at least one, '
            f'got {list(modalities)}'
        )
