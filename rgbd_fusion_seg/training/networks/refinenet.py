"""RefineNet (Lin et al., CVPR 2017), the four-level cascade, over the branches of modalities.

Full 3x3 convolutions, no norms; sizes and the bias of each convolution are those of the code that
CEN and AsymFusion publish, whose figures (118.10 M parameters with ResNet-101) they reproduce.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.branches import BranchLayers, Maps, each
from rgbd_fusion_seg.training.networks.heads import Head, check_head

UNITS_BEFORE, UNITS_AFTER, POOLINGS = 2, 3, 4
"""Residual units that adapt a stage's features, those behind the pooling, and its length."""
DROPPED_STAGES = (2, 3)
"""Stages of the encoder whose features are dropped out at random, besides the head's."""


class ResidualUnit(nn.Module):
    """ReLU, 3x3, ReLU, 3x3 and a shortcut around them.

    The shortcut of CEN's and AsymFusion's public code carries ReLU(x), because the ReLU before
    the convolutions works in place; ``plain_shortcut`` carries x, as RefineNet describes it.
    """

    def __init__(self, layers: BranchLayers, channels: int, plain_shortcut: bool) -> None:
        super().__init__()
        self.conv1 = layers.conv(channels, channels, 3, padding=1, bias=True)
        self.conv2 = layers.conv(channels, channels, 3, padding=1)
        self.plain_shortcut = plain_shortcut

    def forward(self, maps: Maps) -> list[Tensor]:
        """Maps (N, C, h, w) -> the same shapes."""
        active = each(F.relu, maps)
        out = self.conv2(each(F.relu, self.conv1(active)))
        shortcut = maps if self.plain_shortcut else active
        return [s + x for s, x in zip(shortcut, out, strict=True)]


class ChainedPooling(nn.Module):
    """Chained residual pooling: 5x5 max pooling and 3x3 convolution, in a row, each added."""

    def __init__(self, layers: BranchLayers, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            layers.conv(channels, channels, 3, padding=1) for _ in range(POOLINGS)
        )

    def forward(self, maps: Maps) -> list[Tensor]:
        """Maps (N, C, h, w), behind a ReLU -> the same shapes."""
        total, top = list(maps), list(maps)
        for conv in self.convs:
            top = conv(each(lambda x: F.max_pool2d(x, 5, 1, 2), top))
            total = [a + b for a, b in zip(total, top, strict=True)]
        return total


class RefinementBlock(nn.Module):
    """A level of the cascade: adapts a stage's features, joins the coarser level, refines.

    Args:
        layers: of the branches.
        in_channels: of the encoder's stage.
        channels: inside.
        out_channels: for the next finer level; None where this one is the finest.
        joins: a coarser level comes in.
        plain_shortcut: see `ResidualUnit`.
    """

    def __init__(
        self,
        layers: BranchLayers,
        in_channels: int,
        channels: int,
        out_channels: int | None,
        joins: bool,
        plain_shortcut: bool,
    ) -> None:
        super().__init__()

        def units(count: int) -> nn.Sequential:
            return nn.Sequential(
                *(ResidualUnit(layers, channels, plain_shortcut) for _ in range(count))
            )

        self.reduce = layers.conv(in_channels, channels, 3, padding=1)
        self.adapt = units(UNITS_BEFORE)
        self.join = layers.conv(channels, channels, 3, padding=1) if joins else None
        self.pool = ChainedPooling(layers, channels)
        self.refine = units(UNITS_AFTER)
        self.project: nn.Module | None = None
        if out_channels is not None:
            self.project = layers.conv(channels, out_channels, 3, padding=1)

    def forward(self, maps: Maps, coarser: Maps | None = None) -> list[Tensor]:
        """Maps (N, in, h, w) and, if any, coarser ones (N, C, ., .) -> maps (N, out, h, w)."""
        maps = self.adapt(self.reduce(maps))
        if self.join is not None:
            enlarged = [
                F.interpolate(c, x.shape[2:], mode='bilinear', align_corners=True)
                for c, x in zip(coarser, maps, strict=True)
            ]
            maps = [a + b for a, b in zip(self.join(maps), enlarged, strict=True)]
        maps = self.refine(self.pool(each(F.relu, maps)))
        return self.project(maps) if self.project is not None else maps


class RefineNet(Head):
    """Features of four stages -> logits at 1/4.

    Args:
        layers: of the branches.
        channels: of the four stages' features.
        num_classes: number of classes K.
        width: channels of the levels; the coarsest has twice as many.
        dropout: rate at the features of the two coarsest stages and before the classifier; an
            independent draw for each branch.
        plain_shortcut: see `ResidualUnit`.

    Raises:
        ValueError: a width that is not positive, or a rate that is not 0 to 1.
    """

    output_stride = 32
    stride = 4

    def __init__(
        self,
        layers: BranchLayers,
        channels: Sequence[int],
        num_classes: int,
        width: int = 256,
        dropout: float = 0.5,
        plain_shortcut: bool = False,
    ) -> None:
        check_head(dropout, width)
        super().__init__()
        widths = [width, width, width, 2 * width]
        self.levels = nn.ModuleList(
            RefinementBlock(
                layers,
                channels[i],
                widths[i],
                # The coarsest level hands over as many channels as the next one has.
                widths[i - 1] if i else None,
                joins=i < len(widths) - 1,
                plain_shortcut=plain_shortcut,
            )
            for i in range(len(widths))
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = layers.conv(width, num_classes, 3, padding=1, bias=True)

    def forward(self, features: Sequence[Maps]) -> list[Tensor]:
        """Maps of each stage, finest first -> logits (N, K, H/4, W/4) of each branch."""
        maps: Maps | None = None
        for i in reversed(range(len(self.levels))):
            stage = features[i]
            if i in DROPPED_STAGES:
                stage = each(self.dropout, stage)
            maps = self.levels[i](stage, maps)
        return self.classifier(each(self.dropout, maps))
