"""PSPNet's head (Zhao et al., CVPR 2017): pyramid pooling, over the branches of modalities.

Sizes are those of the authors' public PyTorch code (semseg), whose counts it reproduces on their
form of ResNet (`resnet101_deep` and so on): 81,361,896 parameters with ResNet-152 and 40 classes,
and 2,370,088 of the auxiliary head. CEN's paper puts PSPNet on ResNet-152 (§4.1) without a count
and without code, so which form it took is open; torchvision's, whose weights its RefineNet starts
from, is the likelier one, and works here just the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.branches import BranchLayers, Maps, each
from rgbd_fusion_seg.training.networks.heads import ConvNormRelu, Head, check_head, head_layers

BINS = (1, 2, 3, 6)
"""Cells along each side of the pyramid's levels."""


def bin_masks(side: int, bins: int, like: Tensor) -> Tensor:
    """Return which positions each bin of adaptive pooling covers: (bins, side) of ones and zeros.

    Bin i reaches from floor(i side / bins) to ceil((i + 1) side / bins).
    """
    position = torch.arange(side, device=like.device)
    number = torch.arange(bins, device=like.device)[:, None]
    begin = number * side // bins
    end = ((number + 1) * side + bins - 1) // bins
    return ((position >= begin) & (position < end)).to(like.dtype)


def pooled(x: Tensor, bins: int) -> Tensor:
    """Average over bins x bins cells, `F.adaptive_avg_pool2d`: (N, C, h, w) -> (N, C, bins, bins).

    As two matrix products, because ONNX has no adaptive pooling: the exporter knows it only for
    sides that the bins divide. Each is divided by its own count, so sums stay small in fp16.
    """
    if bins == 1:
        return x.mean((2, 3), keepdim=True)
    rows, columns = (bin_masks(side, bins, x) for side in x.shape[2:])
    x = x @ columns.T / columns.sum(1)
    return rows @ x / rows.sum(1, keepdim=True)


class PyramidPooling(nn.Module):
    """Means over cells of several sizes, reduced by 1x1 convolutions, beside the features."""

    def __init__(self, layers: BranchLayers, channels: int) -> None:
        super().__init__()
        width = channels // len(BINS)
        self.levels = nn.ModuleList(ConvNormRelu(layers, channels, width) for _ in BINS)
        self.out_channels = channels + width * len(BINS)

    def forward(self, maps: Maps) -> list[Tensor]:
        """Maps (N, C, h, w) -> maps (N, 2C, h, w)."""
        parts = [list(maps)]
        for bins, level in zip(BINS, self.levels, strict=True):
            reduced = level([pooled(x, bins) for x in maps])
            parts.append(
                [
                    F.interpolate(y, x.shape[2:], mode='bilinear', align_corners=True)
                    for x, y in zip(maps, reduced, strict=True)
                ]
            )
        return [torch.cat(branch, 1) for branch in zip(*parts, strict=True)]


class Classifier(nn.Module):
    """3x3 convolution, norm, ReLU, dropout of channels, and the 1x1 convolution to the classes."""

    def __init__(
        self, layers: BranchLayers, in_channels: int, width: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.reduce = ConvNormRelu(layers, in_channels, width, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = layers.conv(width, num_classes, 1, bias=True)

    def forward(self, maps: Maps) -> list[Tensor]:
        """Maps (N, in, h, w) -> logits (N, K, h, w)."""
        return self.classify(each(self.dropout, self.reduce(maps)))


class PspNet(Head):
    """Features of an encoder dilated to 1/8 -> logits at 1/8.

    Args:
        layers: of the branches.
        channels: of the encoder's features.
        num_classes: number of classes K.
        dropout: rate of channels before the classifiers; an independent draw for each branch.
        auxiliary: have the head for training on the last features but one, whose loss counts 0.4.
        private_norms: each branch has its own norms in the head, too, see `head_layers`.

    Raises:
        ValueError: a rate that is not 0 to 1.
    """

    output_stride = 8
    stride = 8

    def __init__(
        self,
        layers: BranchLayers,
        channels: Sequence[int],
        num_classes: int,
        dropout: float = 0.1,
        auxiliary: bool = True,
        private_norms: bool = False,
    ) -> None:
        check_head(dropout)
        super().__init__()
        layers = head_layers(layers, private_norms)
        self.pyramid = PyramidPooling(layers, channels[-1])
        self.classifier = Classifier(
            layers, self.pyramid.out_channels, channels[-1] // 4, num_classes, dropout
        )
        self.auxiliary: Classifier | None = None
        self.read_stages = (2, 3) if auxiliary else (3,)
        if auxiliary:
            self.auxiliary_weights = (0.4,)
            self.auxiliary = Classifier(
                layers, channels[-2], channels[-2] // 4, num_classes, dropout
            )

    def forward(self, features: Sequence[Maps]) -> list[Tensor]:
        """Maps of each stage -> logits (N, K, H/8, W/8) of each branch."""
        return self.classifier(self.pyramid(features[-1]))

    def auxiliary_logits(self, features: Sequence[Maps]) -> list[list[Tensor]]:
        """Return the predictions (N, K, H/8, W/8) from the last features but one."""
        return [] if self.auxiliary is None else [self.auxiliary(features[-2])]
