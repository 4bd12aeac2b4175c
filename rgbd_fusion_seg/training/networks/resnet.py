"""ResNet (He et al., CVPR 2016) over the branches of several modalities.

The form is torchvision's, with the stride on the 3x3 convolution, and so are the parameters'
names, up to the numbers of layers that each branch has of its own (see `branches`). ResNet-14 and
-26, with one and two bottlenecks a stage, are for machines and budgets too small for 50 layers.

PSPNet's public PyTorch code (semseg) has a ResNet of its own: three 3x3 convolutions in place of
the 7x7 one, and, where stages are dilated, dilation from their first block on, which torchvision
leaves at the dilation of the stage before. Two options, `deep_stem` and `dilate_first`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.base import one_of
from rgbd_fusion_seg.training.networks.branches import (
    BlockFusion,
    BranchLayers,
    Encoder,
    FusionOfBlock,
    Maps,
    each,
    no_fusion,
)

VARIANTS = {
    'resnet14': (1, 1, 1, 1),
    'resnet26': (2, 2, 2, 2),
    'resnet50': (3, 4, 6, 3),
    'resnet101': (3, 4, 23, 3),
    'resnet152': (3, 8, 36, 3),
}
"""Bottlenecks of each stage."""
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4
STRIDES = {32: ((1, 2, 2, 2), (1, 1, 1, 1)), 16: ((1, 2, 2, 1), (1, 1, 1, 2)),
           8: ((1, 2, 1, 1), (1, 1, 2, 4))}  # fmt: skip
"""Output stride -> stride and dilation of the 3x3 convolutions of each stage."""
IMAGENET = [[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]]
"""Mean and standard deviation of R, G and B, 0.485 and 0.229 … times 255."""


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a shortcut, with room for fusion inside.

    Args:
        layers: of the branches.
        in_channels: of the maps it takes.
        width: of the maps inside; it returns maps of 4 times as many channels.
        stride, dilation: of the 3x3 convolution.
        fusion: what happens between the branches.
    """

    def __init__(
        self,
        layers: BranchLayers,
        in_channels: int,
        width: int,
        stride: int,
        dilation: int,
        fusion: BlockFusion,
    ) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = layers.conv(in_channels, width, 1)
        self.bn1 = layers.norm(width)
        self.conv2 = layers.conv(width, width, 3, stride, dilation, dilation)
        self.bn2 = layers.norm(width)
        self.conv3 = layers.conv(width, out_channels, 1)
        self.bn3 = layers.norm(out_channels)
        self.fusion = fusion
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                layers.conv(in_channels, out_channels, 1, stride), layers.norm(out_channels)
            )

    def forward(self, maps: Maps) -> list[Tensor]:
        """Maps (N, in, h, w) -> maps (N, 4 width, h/stride, w/stride)."""
        first = self.fusion.after_first(each(F.relu, self.bn1(self.conv1(maps))))
        second = self.bn2(self.conv2(first))
        second = each(F.relu, self.fusion.after_norm(second, self.bn2))
        third = self.bn3(self.conv3(self.fusion.after_second(second, first)))
        shortcut = self.downsample(maps) if self.downsample is not None else maps
        return [F.relu(x + s) for x, s in zip(third, shortcut, strict=True)]


class ResNet(Encoder):
    """Images -> features at 1/4, 1/8, 1/16, 1/32 of each branch.

    Args:
        layers: of the branches; a sequence where the four stages differ, as they do where
            branches join; the stem has those of the first.
        variant: a key of `VARIANTS`.
        output_stride: of the last stage: 32, or 16 or 8 with dilated convolutions instead of
            strides, and all features behind at that stride.
        block_fusion: asked for every bottleneck what happens between the branches.
        deep_stem: three 3x3 convolutions, of 64, 64 and 128 channels, for the 7x7 one of 64.
        dilate_first: the first block of a dilated stage is dilated as the others.

    Raises:
        ValueError: an unknown variant or output stride.
    """

    def __init__(
        self,
        layers: BranchLayers | Sequence[BranchLayers],
        variant: str = 'resnet101',
        output_stride: int = 32,
        block_fusion: FusionOfBlock = no_fusion,
        deep_stem: bool = False,
        dilate_first: bool = False,
    ) -> None:
        super().__init__()
        one_of('the ResNet', variant, VARIANTS)
        one_of('output_stride', output_stride, sorted(STRIDES))
        layers = [layers] * len(WIDTHS) if isinstance(layers, BranchLayers) else layers
        channels = self._make_stem(layers[0], deep_stem)
        strides, dilations = STRIDES[output_stride]
        previous = 1
        for stage, (count, width) in enumerate(zip(VARIANTS[variant], WIDTHS, strict=True)):
            blocks = []
            for block in range(count):
                fusion = block_fusion(stage, block, count, width) or BlockFusion()
                # As torchvision does it, the block that would have the stride keeps the dilation
                # of the stage before.
                keeps = block == 0 and not dilate_first
                dilation = previous if keeps else dilations[stage]
                stride = strides[stage] if block == 0 else 1
                blocks.append(Bottleneck(layers[stage], channels, width, stride, dilation, fusion))
                channels = EXPANSION * width
            previous = dilations[stage]
            setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))

    channels = tuple(EXPANSION * width for width in WIDTHS)
    """Of the four stages' maps."""
    public_statistics = IMAGENET
    public_file = 'a torchvision checkpoint of the ResNet'

    def public_tensors(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all but the classifier; names are torchvision's here."""
        return {name: value for name, value in weights.items() if not name.startswith('fc.')}

    @property
    def stages(self) -> list[nn.Sequential]:
        """The four stages."""
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def _make_stem(self, layers: BranchLayers, deep: bool) -> int:
        """Make the layers before the pooling; returns the number of channels behind them."""
        width = WIDTHS[0]
        self.deep_stem = deep
        if not deep:
            self.conv1, self.bn1 = layers.conv(3, width, 7, 2, 3), layers.norm(width)
            return width
        self.conv1, self.bn1 = layers.conv(3, width, 3, 2, 1), layers.norm(width)
        self.conv2, self.bn2 = layers.conv(width, width, 3, 1, 1), layers.norm(width)
        self.conv3, self.bn3 = layers.conv(width, 2 * width, 3, 1, 1), layers.norm(2 * width)
        return 2 * width

    def stem(self, images: Maps) -> list[Tensor]:
        """Images (N, 3, H, W) -> maps (N, 64, H/4, W/4), of 128 channels from a deep stem."""
        maps = each(F.relu, self.bn1(self.conv1(images)))
        if self.deep_stem:
            maps = each(F.relu, self.bn2(self.conv2(maps)))
            maps = each(F.relu, self.bn3(self.conv3(maps)))
        return each(lambda x: F.max_pool2d(x, 3, 2, 1), maps)
