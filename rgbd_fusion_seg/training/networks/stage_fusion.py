"""The baselines that CEN is compared with: fusion behind whole stages of the encoder.

CEN (NeurIPS 2020) §4.1 and Table 2, and the appendix of its TPAMI version, which tells the stages
and that concatenation ends in a 1x1 convolution, alignment follows Wang et al. (ECCV 2016) with 11
kernels, and attention is the SSMA block. No code of these baselines is public; what the texts
leave open follows from the parameters in Table 2, which the tests hold. ResNet-101, RefineNet and
40 classes have, in millions:

========== =========== ============================= ============================= ============
fusion     form        early, middle, late, all      in Table 2                    of the fusion
========== =========== ============================= ============================= ============
concat     individual  120.1, 147.7, 169.0, 171.7    the same                      2 C²
concat     shared      118.8, 120.3, 126.6, 129.4    the same                      2 C²
align      individual  238.8, 246.7, 278.1, 291.9    the same                      10 C²
align      shared      120.8, 128.7, 160.1, 173.9    the same                      10 C²
attention  individual  124.9, 166.9, 245.5, 273.4    all: 272.3, unlike its parts  20.25 C²
attention  shared      123.6, 139.5, 203.1, 231.1    139.4, 203.2, 231.0           20.25 C²
========== =========== ============================= ============================= ============

C is a stage's number of channels. "Shared" includes the batch norms that the fused stream has of
its own behind the fusion, which is what makes 118.8 and 129.4 of 118.2 + 0.5 and 118.2 + 11.1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.base import one_of
from rgbd_fusion_seg.training.networks.branches import BlockFusion, BranchLayers, Maps, mean
from rgbd_fusion_seg.training.networks.multimodal import (
    ENCODERS,
    MultimodalNetwork,
    require_several,
)
from rgbd_fusion_seg.training.networks.refinenet import ResidualUnit
from rgbd_fusion_seg.training.networks.resnet import ResNet
from rgbd_fusion_seg.training.networks.ssma import Concatenation, Ssma

STAGES = {'early': (1,), 'middle': (2,), 'late': (3,), 'all': (0, 1, 2, 3)}
"""Stages behind which, or inside which, modalities are fused, counted from 0."""
AGGREGATIONS = ('concat', 'average', 'attention', 'mmf')
"""Fusions that make one map of the branches' maps."""
FUSIONS = (*AGGREGATIONS, 'align', 'cbn')
SHARED_FORMS = ('stream', 'added')
ATTENTION_REDUCTION = 16
"""SSMA's eta, of one modality's channels."""
MMF_REDUCTION = 4
CONDITION_REDUCTION = 16
KERNELS = 11
ALIGNED_PIXELS = 256


class Average(nn.Module):
    """Mean of the streams, nothing to learn."""

    def forward(self, *streams: Tensor) -> Tensor:
        """(N, C, h, w) of each stream -> (N, C, h, w)."""
        return mean(streams)


class MultiModalFusion(nn.Module):
    """MMF, by which RDFNet fuses features (Park et al., ICCV 2017), as AsymFusion cites it.

    Each stream: a 1x1 convolution to fewer channels, two residual units, a 3x3 convolution. Their
    sum, behind a ReLU, gets a 5x5 max pooling and a 3x3 convolution added.

    Open: AsymFusion's text knows it as "a pile of 3x3 convolutional layers" (§2), and the streams
    here go on through the encoder, where RDFNet's end. So the inner width is C/4, RDFNet's 512
    channels in the last stage, and a 1x1 convolution brings the result back to C.

    Args:
        num_streams: M.
        channels: C of each stream, and of the result.
    """

    def __init__(self, num_streams: int, channels: int) -> None:
        super().__init__()
        width, one = max(1, channels // MMF_REDUCTION), BranchLayers(1)
        self.streams = nn.ModuleList(
            nn.Sequential(
                one.conv(channels, width, 1),
                ResidualUnit(one, width, plain_shortcut=True),
                ResidualUnit(one, width, plain_shortcut=True),
                one.conv(width, width, 3, padding=1),
            )
            for _ in range(num_streams)
        )
        self.pool = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.project = nn.Conv2d(width, channels, 1, bias=False)

    def forward(self, *streams: Tensor) -> Tensor:
        """(N, C, h, w) of each stream -> (N, C, h, w)."""
        adapted = [adapt([x])[0] for adapt, x in zip(self.streams, streams, strict=True)]
        total = F.relu(sum(adapted))
        return self.project(total + self.pool(F.max_pool2d(total, 5, 1, 2)))


def make_aggregation(name: str, num_streams: int, channels: int) -> nn.Module:
    """Return the module that makes one map of several of ``channels`` each.

    Args:
        name: 'concat' (1x1 convolution over the concatenation; open: it begins as the mean, so
            that what is behind it is given what it was trained on), 'average', 'attention' (the
            SSMA block with eta 16 and, so that the numbers of parameters fit, a 3x3 projection)
            or 'mmf' (`MultiModalFusion`).
        num_streams: M.
        channels: C of each stream, and of the result.
    """
    if name == 'average':
        return Average()
    if name == 'mmf':
        return MultiModalFusion(num_streams, channels)
    whole = num_streams * channels
    if name == 'attention':
        return Ssma(whole, channels, num_streams * ATTENTION_REDUCTION, kernel_size=3)
    concat = Concatenation(whole, channels, 1, bias=False)
    with torch.no_grad():
        one = torch.eye(channels)[:, :, None, None] / num_streams
        concat.weight.copy_(one.repeat(1, num_streams, 1, 1))
    return concat


def multi_kernel_mmd(x: Tensor, y: Tensor, num_kernels: int = KERNELS) -> Tensor:
    """Squared maximum mean discrepancy of two samples, estimated without bias.

    The kernel is the mean of Gaussian ones exp(-d²/b) whose bandwidths b go by powers of 2 around
    the mean squared distance d² of different samples, which is taken for a constant (Long et al.,
    ICML 2015; 11 kernels as in CEN's appendix). The estimate may be negative: its expectation is 0
    where the distributions are equal, so it pulls at nothing that is aligned already.

    Args:
        x, y: (n, C) and (m, C), two samples or more each; computed in float32.
        num_kernels: odd numbers have the mean distance in their middle.

    Returns:
        a tensor without dimensions, below 2.

    Raises:
        ValueError: fewer than two samples.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(
            f'a discrepancy needs two samples of each distribution, got {n} and {m}; '
            'give larger batches or images'
        )
    with torch.autocast(x.device.type, enabled=False):
        both = torch.cat([x, y]).float()
        both = both - both.mean(0)  # small numbers cancel less
        norms = both.square().sum(1)
        squared = (norms[:, None] + norms - 2 * both @ both.T).clamp(min=0)
        base = squared.detach().sum() / ((n + m) * (n + m - 1))
        powers = [2.0 ** (k - num_kernels // 2) for k in range(num_kernels)]
        kernel = mean([torch.exp(-squared / (base * p).clamp(min=1e-12)) for p in powers])
        within = [
            (block.sum() - block.diagonal().sum()) / (count * (count - 1))
            for block, count in ((kernel[:n, :n], n), (kernel[n:, n:], m))
        ]
        return within[0] + within[1] - 2 * kernel[:n, n:].mean()


class Alignment(nn.Module):
    """Loss that brings the branches' features together where they mean the same (CEN Eq. 3).

    The feature transformation network of Wang et al. (ECCV 2016), read from its abstract and from
    CEN's 10 C² parameters: each modality's features become common and specific ones (2 C²), and
    are made again from its specific and all common ones, so that modalities borrow from each
    other (3 C² with two modalities). Common features of two modalities are to have one
    distribution, specific ones different ones, by the multi-kernel MMD.

    Open: where it stands. In Wang et al. what was made again goes on; in CEN's Eq. 3 a branch sees
    its own modality alone, and in Table 2 the aligned depth branch indeed does not gain. So here
    it stands beside the branches, where "made again" is a loss too, the squared error in relation
    to the features' own squares, and nothing of it is left when the training is over.

    Args:
        num_branches, channels: M and C of the maps.
        pixels: how many are compared, drawn anew each time from all of a batch, the same in each
            branch.
    """

    def __init__(self, num_branches: int, channels: int, pixels: int = ALIGNED_PIXELS) -> None:
        super().__init__()

        def layers(in_channels: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Linear(in_channels, channels, bias=False) for _ in range(num_branches)
            )

        self.common, self.specific = layers(channels), layers(channels)
        self.restore = layers((num_branches + 1) * channels)
        self.pixels = pixels

    def forward(self, maps: Maps) -> Tensor:
        """M maps (N, C, h, w) -> a tensor without dimensions."""
        samples = sampled_pixels(maps, self.pixels)
        common = [layer(x) for layer, x in zip(self.common, samples, strict=True)]
        specific = [layer(x) for layer, x in zip(self.specific, samples, strict=True)]
        terms = []
        for m, (layer, x) in enumerate(zip(self.restore, samples, strict=True)):
            others = [c for i, c in enumerate(common) if i != m]
            restored = layer(torch.cat([specific[m], common[m], *others], 1)).float()
            target = x.detach().float()
            scale = target.square().mean().clamp(min=1e-12)
            terms.append(F.mse_loss(restored, target) / scale)
        for i, j in itertools.combinations(range(len(samples)), 2):
            terms.append(multi_kernel_mmd(common[i], common[j]))
            terms.append(-multi_kernel_mmd(specific[i], specific[j]))
        return torch.stack(terms).sum()


def sampled_pixels(maps: Maps, count: int) -> list[Tensor]:
    """Return the features of the same random pixels of each map: (N, C, h, w) -> (count, C).

    Of fewer pixels all are returned.
    """
    rows = [x.permute(0, 2, 3, 1).flatten(0, 2) for x in maps]
    chosen = torch.randperm(len(rows[0]), device=rows[0].device)[:count]
    return [x[chosen] for x in rows]


class ConditionalNorm(BlockFusion):
    """Modulates the other branches' batch norms by what the first branch sees (CBN).

    Conditional batch norm (de Vries et al., NeurIPS 2017) adds to a norm's scale and shift what a
    perceptron of one hidden layer predicts; CEN's ablation 2 (§4.1) modulates depth's by RGB. Here
    the scale is γ(1 + Δγ) and the shift β(1 + Δγ) + Δβ, which are all that γ + Δγ and β + Δβ can
    be and can be had behind the norm. Δ begins at 0, as there.

    Open: where the condition comes from, the first branch's map at the same place behind its ReLU,
    averaged over its pixels; which norms, those of the 3x3 convolutions, in which CEN exchanges;
    and the width of the hidden layer, a sixteenth of the channels, not below 8.

    Args:
        num_branches, channels: M and C of the maps.
    """

    def __init__(self, num_branches: int, channels: int) -> None:
        super().__init__()
        hidden = max(channels // CONDITION_REDUCTION, 8)
        self.predict = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 2 * channels))
            for _ in range(num_branches - 1)
        )
        for predict in self.predict:
            nn.init.zeros_(predict[-1].weight)
            nn.init.zeros_(predict[-1].bias)

    def after_norm(self, maps: Maps, norm: nn.Module) -> Maps:
        """Modulate all maps (N, C, h, w) but the first."""
        condition = F.relu(maps[0]).mean((2, 3))
        modulated = [maps[0]]
        for predict, x in zip(self.predict, maps[1:], strict=True):
            scale, shift = predict(condition)[:, :, None, None].chunk(2, 1)
            modulated.append(x * (1 + scale) + shift)
        return modulated


class StageFusionNetwork(MultimodalNetwork):
    """Modalities fused behind stages of a ResNet, in the ways that CEN is compared with.

    With ``encoders='individual'``, "commonly-used setting" in CEN's Table 2, branches share
    nothing. Those of 'align' and 'cbn' are whole networks with an ensemble; those of the other
    fusions end at the fusion, and one stream goes on to the head and the only prediction. Open:
    the head sees the mean of the branches' maps of stages before the fusion. With stages 'all' the
    encoders are whole, do not hear of the fusion, and the head sees the fused maps alone.

    With ``encoders='shared'``, "same with our setting", convolutions are shared, norms are not,
    and every branch goes on to a prediction of its own. Open: what becomes of the fused map. By
    default it is one more stream through the rest of the network, with norms and a prediction of
    its own; in 'all' stages the fused map of each is added to it. The extra norms explain the
    parameters of Table 2, and that its depth branch does not gain by any fusion. Alternatively
    (``shared_form='added'``) it is added to the map of every branch.

    Args:
        num_classes: number of classes K.
        modalities: two or more.
        fusion: 'concat', 'average', 'attention' or 'mmf', see `make_aggregation`; 'align', see
            `Alignment`; 'cbn', see `ConditionalNorm`, where the first modality is the condition.
        stages: fuse in or behind which of the four: 'early' the second, 'middle' the third,
            'late' the fourth, or 'all'.
        encoders: 'individual' or 'shared'.
        shared_form: of the aggregating fusions with shared encoders: 'stream' or 'added'.
        align_weight: of the alignment in the loss. Open.
        options: of `MultimodalNetwork`, but those that `encoders` decides.

    Raises:
        ValueError: an option with an unknown value, one modality alone, or a backbone that is no
            ResNet.
    """

    def __init__(
        self,
        num_classes: int,
        modalities: Sequence[str] = ('rgb', 'hha'),
        fusion: str = 'concat',
        stages: str = 'all',
        encoders: str = 'shared',
        shared_form: str = 'stream',
        align_weight: float = 0.1,
        **options: Any,
    ) -> None:
        one_of('fusion', fusion, FUSIONS)
        one_of('stages', stages, STAGES)
        one_of('encoders', encoders, ('individual', 'shared'))
        one_of('shared_form', shared_form, SHARED_FORMS)
        if not 0 <= align_weight < math.inf:
            raise ValueError(f'align_weight must be finite and not negative, got {align_weight}')
        require_several('two or more modalities are fused', modalities)
        self.fusion, self.fused_stages, self.align_weight = fusion, STAGES[stages], align_weight
        self.shared = encoders == 'shared'
        aggregates = fusion in AGGREGATIONS
        self.joins = aggregates and not self.shared
        self.adds_stream = aggregates and self.shared and shared_form == 'stream'
        super().__init__(num_classes, modalities=modalities, share_convs=self.shared, **options)
        make = {
            **{name: partial(make_aggregation, name) for name in AGGREGATIONS},
            'align': Alignment,
        }
        self.fusions = nn.ModuleDict(
            {
                str(stage): make[fusion](self.num_branches, self.encoder.channels[stage])
                for stage in self.fused_stages
                if fusion in make  # conditional norms are inside the encoder's blocks
                and (not self.encoders_are_whole or stage in self.head.read_stages)
            }
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the head predicts from: the fused stream, the branches, or them and it."""
        if self.joins:
            return ('fused',)
        return (*self.modalities, 'fused') if self.adds_stream else self.modalities

    @property
    def encoders_are_whole(self) -> bool:
        """No stage of the encoder works on what was fused."""
        return self.joins and self.fused_stages == STAGES['all']

    def make_encoder(self, layers: BranchLayers, output_stride: int) -> nn.Module:
        """Return the encoder: the branches up to the fusion, behind it what goes on."""
        make = ENCODERS[self.backbone_name]
        if make.func is not ResNet:
            raise ValueError(
                f'fusion behind stages needs a ResNet, got the backbone {self.backbone_name!r}'
            )
        behind = layers if self.encoders_are_whole else self._layers_of_outputs(layers)
        stages = [layers if i <= self.fused_stages[0] else behind for i in range(4)]
        return make(stages, output_stride=output_stride, block_fusion=self.block_fusion)

    def make_head(self, layers: BranchLayers) -> nn.Module:
        """Return the head of what goes on behind the fusion."""
        return super().make_head(self._layers_of_outputs(layers))

    def _layers_of_outputs(self, layers: BranchLayers) -> BranchLayers:
        return BranchLayers(len(self.outputs), layers.share_convs, layers.share_norms)

    def block_fusion(
        self, stage: int, block: int, num_blocks: int, channels: int
    ) -> BlockFusion | None:
        """Return the conditional norm of a block."""
        if self.fusion == 'cbn' and stage in self.fused_stages:
            return ConditionalNorm(self.num_branches, channels)
        return None

    def after_stage(self, stage: int, maps: Maps) -> Maps:
        """Fuse, where this is done behind this stage and the encoder goes on with it."""
        fuses = self.fusion in AGGREGATIONS and stage in self.fused_stages
        return self.fused(stage, maps) if fuses and not self.encoders_are_whole else maps

    def fused(self, stage: int, maps: Maps) -> list[Tensor]:
        """Return what goes on behind the fusion: M maps, or M and the stream -> see `outputs`."""
        branches, stream = maps[: self.num_branches], maps[self.num_branches :]
        return self.beside(branches, sum(stream, self.fusions[str(stage)](*branches)))

    def beside(self, branches: Maps, fused: Tensor) -> list[Tensor]:
        """Return the branches' maps and a fused one as `outputs` has them."""
        if self.joins:
            return [fused]
        return [*branches, fused] if self.adds_stream else [x + fused for x in branches]

    def encode(self, images: Maps) -> list[Maps]:
        """Images (N, 3, H, W) of each branch -> features of each of `outputs`."""
        features = super().encode(images)
        for stage, maps in enumerate(features):
            if self.encoders_are_whole:
                if stage in self.head.read_stages:
                    features[stage] = self.fused(stage, maps)
            elif stage < self.fused_stages[0] and (self.joins or self.adds_stream):
                features[stage] = self.beside(maps, mean(maps))
        return features

    def loss_terms(self, features: Sequence[Maps], logits: Maps, fused: Tensor) -> list[Tensor]:
        """Return the alignment of the stages, weighted."""
        if self.fusion != 'align' or not self.align_weight:
            return []
        terms = [self.fusions[str(stage)](features[stage]) for stage in self.fused_stages]
        return [self.align_weight * torch.stack(terms).sum()]

    def unimodal_form(self, modality: str) -> tuple[str, dict[str, Any], dict[str, Tensor]] | None:
        """Return the branch of a modality as a network, if it does without the others."""
        conditional = self.fusion == 'cbn' and modality != self.modalities[0]
        alone = self.fusion not in AGGREGATIONS or self.adds_stream
        return super().unimodal_form(modality) if alone and not conditional else None
