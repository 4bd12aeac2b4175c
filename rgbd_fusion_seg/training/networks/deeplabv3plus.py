"""DeepLabv3+'s head (Chen et al., ECCV 2018): atrous pyramid and decoder, over branches.

As in the public TensorFlow code: pyramid of image pooling, 1x1 and three dilated separable
convolutions, a decoder of two separable ones that adds features at 1/4, and bilinear
interpolation with aligned corners. That code interpolates such grids on sides of 16 n + 1 pixels,
where corners of all strides coincide; other sizes work as well, a fraction of a cell apart.
AsymFusion names this network for Cityscapes (§4.2) and publishes no code of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.branches import BranchLayers, Maps, each
from rgbd_fusion_seg.training.networks.heads import ConvNormRelu, Head, check_head, head_layers
from rgbd_fusion_seg.training.networks.xception import SeparableConv

NORM_EPS = 1e-5
"""Of the head; Xception's is greater."""
RATES = (6, 12, 18)
"""Dilations of the pyramid at an output stride of 16."""
LOW_LEVEL_CHANNELS = 48


class SeparableConvRelu(SeparableConv):
    """Separable 3x3 convolution with norm and ReLU behind both of its halves."""

    def __init__(
        self, layers: BranchLayers, in_channels: int, out_channels: int, dilation: int = 1
    ) -> None:
        super().__init__(
            layers, in_channels, out_channels, 1, dilation, NORM_EPS, relu_inside=True
        )

    def forward(self, maps: Maps) -> list[Tensor]:
        """Maps (N, in, h, w) -> maps (N, out, h, w)."""
        return each(F.relu, super().forward(maps))


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling: the picture's mean, 1x1 and dilated 3x3, side by side."""

    def __init__(self, layers: BranchLayers, in_channels: int, width: int) -> None:
        super().__init__()
        self.pooling = ConvNormRelu(layers, in_channels, width)
        self.point = ConvNormRelu(layers, in_channels, width)
        self.dilated = nn.ModuleList(
            SeparableConvRelu(layers, in_channels, width, rate) for rate in RATES
        )
        self.project = ConvNormRelu(layers, width * (2 + len(RATES)), width)

    def forward(self, maps: Maps) -> list[Tensor]:
        """Maps (N, in, h, w) -> maps (N, width, h, w)."""
        means = self.pooling(each(lambda x: x.mean((2, 3), keepdim=True), maps))
        means = [m.expand(-1, -1, *x.shape[2:]) for m, x in zip(means, maps, strict=True)]
        parts = [means, self.point(maps), *(conv(maps) for conv in self.dilated)]
        return self.project([torch.cat(branch, 1) for branch in zip(*parts, strict=True)])


class DeepLabV3Plus(Head):
    """Features of an encoder at 1/4 and 1/16 -> logits at 1/4.

    Args:
        layers: of the branches.
        channels: of the encoder's features; the first at 1/4, the last at 1/16.
        num_classes: number of classes K.
        width: channels of pyramid and decoder.
        dropout: rate behind the pyramid; an independent draw for each branch.
        private_norms: each branch has its own norms in the head, too, see `head_layers`.

    Raises:
        ValueError: a width that is not positive, or a rate that is not 0 to 1.
    """

    output_stride = 16
    stride = 4
    read_stages = (0, 3)

    def __init__(
        self,
        layers: BranchLayers,
        channels: Sequence[int],
        num_classes: int,
        width: int = 256,
        dropout: float = 0.1,
        private_norms: bool = False,
    ) -> None:
        check_head(dropout, width)
        super().__init__()
        layers = head_layers(layers, private_norms)
        self.pyramid = AtrousPyramid(layers, channels[-1], width)
        self.dropout = nn.Dropout(dropout)
        self.low_level = ConvNormRelu(layers, channels[0], LOW_LEVEL_CHANNELS)
        self.decoder = nn.Sequential(
            SeparableConvRelu(layers, width + LOW_LEVEL_CHANNELS, width),
            SeparableConvRelu(layers, width, width),
        )
        self.classifier = layers.conv(width, num_classes, 1, bias=True)

    def forward(self, features: Sequence[Maps]) -> list[Tensor]:
        """Maps of each stage -> logits (N, K, H/4, W/4) of each branch."""
        deep = each(self.dropout, self.pyramid(features[-1]))
        joined = [
            torch.cat([F.interpolate(x, y.shape[2:], mode='bilinear', align_corners=True), y], 1)
            for x, y in zip(deep, self.low_level(features[0]), strict=True)
        ]
        return self.classifier(self.decoder(joined))
