"""Xception as DeepLabv3+ modifies it (Chen et al., ECCV 2018), over the branches of modalities.

Separable convolutions with a norm after each half, strides in place of pooling, and dilation
where the output stride is reached. The form is that of the public TensorFlow code: every block is
three separable convolutions, the last one with the stride; a 3x3 convolution is padded by its
dilation on all sides, with stride (there "explicit" padding) as without, so on even and odd sides
alike; norms have an epsilon of 1e-3. Its decay of the running statistics, 0.9997, is made for
hundreds of thousands of steps; ours is PyTorch's 0.9.

AsymFusion names Xception-65 for Cityscapes, but the 43.48 M parameters of its Table 2 are those
of Xception-71 with 19 classes, exactly (43,477,323); Xception-65 has 41,054,899. Which one was
trained is open: both are here. Open too is why fusion adds 0.04 M there, to 43.52 M, where all
norms are private: those of a second branch are 0.199 M, those of the last blocks of the three
flows, which fuse, 37,360. No code of it is public, so where fusion stands inside a block is our
choice, the place it has in a bottleneck: around the second of the block's convolutions.

The public weights expect images in [-1, 1], `x * 2 / 255 - 1`: mean and deviation 127.5. They are
TensorFlow checkpoints, trained on ImageNet or as a whole DeepLabv3+, of which `initialise` takes
the backbone. Names and layouts are those that the public code (research/deeplab) gives to its
variables; no such file was at hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

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

NORM_EPS = 1e-3


class Variant(NamedTuple):
    """Channels and stride of the entry flow's blocks, blocks of the middle flow, and a factor on
    all channels."""

    entry: tuple[tuple[int, int], ...]
    middle: int
    width: float = 1.0


ENTRY_65 = ((128, 2), (256, 2), (728, 2))
ENTRY_71 = ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))
VARIANTS = {
    'xception65': Variant(ENTRY_65, 16),
    'xception71': Variant(ENTRY_71, 16),
    # The public code's smallest; and one for tests and budgets too small for any of these.
    'xception41': Variant(ENTRY_65, 8),
    'xception23_quarter': Variant(ENTRY_65, 2, 0.25),
}
EXIT = ((728, 1024, 1024), (1536, 1536, 2048))
"""Channels of the exit flow's convolutions."""
STEM = (32, 64)
PUBLIC_STATISTICS = [[127.5] * 3, [127.5] * 3]
"""Mean and standard deviation that bring 0..255 to [-1, 1]."""
PUBLIC_FLOW = re.compile(r'^xception_\d+/(?=(entry|middle|exit)_flow/)')
PUBLIC_PARTS = {
    'weight': 'gamma',
    'bias': 'beta',
    'running_mean': 'moving_mean',
    'running_var': 'moving_variance',
}
"""Of a norm, in PyTorch and in TensorFlow."""


class SeparableConv(nn.Module):
    """3x3 convolution of each channel and 1x1 convolution across them, a norm behind either.

    Args:
        layers: of the branches.
        in_channels, out_channels: of the maps.
        stride, dilation: of the 3x3 convolution.
        eps: of the norms.
        relu_inside: a ReLU stands between the two.
    """

    def __init__(
        self,
        layers: BranchLayers,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        dilation: int = 1,
        eps: float = NORM_EPS,
        relu_inside: bool = False,
    ) -> None:
        super().__init__()
        self.depthwise = layers.conv(
            in_channels, in_channels, 3, stride, dilation, dilation, groups=in_channels
        )
        self.depthwise_norm = layers.norm(in_channels, eps)
        self.pointwise = layers.conv(in_channels, out_channels, 1)
        self.norm = layers.norm(out_channels, eps)
        self.relu_inside = relu_inside

    def forward(self, maps: Maps) -> list[Tensor]:
        """Maps (N, in, h, w) -> normalised maps (N, out, h/stride, w/stride), no ReLU behind."""
        maps = self.depthwise_norm(self.depthwise(maps))
        return self.norm(self.pointwise(each(F.relu, maps) if self.relu_inside else maps))


class XceptionBlock(nn.Module):
    """Three separable convolutions around a shortcut, with room for fusion inside.

    Args:
        layers: of the branches.
        in_channels: of the maps it takes.
        channels: of its three convolutions.
        stride: of the third.
        dilation: of all three.
        fusion: what happens between the branches.
        last: it is the encoder's last: no shortcut, and a ReLU behind every convolution, inside
            the separable ones too, where the others have one before each separable one alone.
    """

    def __init__(
        self,
        layers: BranchLayers,
        in_channels: int,
        channels: tuple[int, int, int],
        stride: int,
        dilation: int,
        fusion: BlockFusion,
        last: bool = False,
    ) -> None:
        super().__init__()

        def separable(before: int, after: int, stride: int = 1) -> SeparableConv:
            return SeparableConv(layers, before, after, stride, dilation, relu_inside=last)

        self.separable1 = separable(in_channels, channels[0])
        self.separable2 = separable(channels[0], channels[1])
        self.separable3 = separable(channels[1], channels[2], stride)
        self.fusion, self.last = fusion, last
        self.shortcut: nn.Module | None = None
        if not last and (stride != 1 or in_channels != channels[2]):
            self.shortcut = nn.Sequential(
                layers.conv(in_channels, channels[2], 1, stride),
                layers.norm(channels[2], NORM_EPS),
            )

    @property
    def bn2(self) -> nn.Module:
        """The norm whose output `BlockFusion.after_norm` takes, by a bottleneck's name."""
        return self.separable2.norm

    def forward(self, maps: Maps) -> list[Tensor]:
        """Maps (N, in, h, w) -> maps (N, out, h/stride, w/stride)."""
        return self.with_second(maps)[0]

    def with_second(self, maps: Maps) -> tuple[list[Tensor], Maps]:
        """Return the output, and the maps behind the second convolution, before their ReLU."""
        first = self.separable1(maps if self.last else each(F.relu, maps))
        first = self.fusion.after_first(each(F.relu, first))
        second = self.separable2(first)
        second = self.fusion.after_norm(second, self.bn2)
        third = self.separable3(self.fusion.after_second(each(F.relu, second), first))
        if self.last:
            return each(F.relu, third), second
        shortcut = self.shortcut(maps) if self.shortcut is not None else maps
        return [x + s for x, s in zip(third, shortcut, strict=True)], second


class Xception(Encoder):
    """Images -> features: the low-level ones at 1/4, and those of entry, middle and exit flow.

    The low-level features are taken behind the second convolution of the last block at 1/4, norm
    but no ReLU applied, as the public code's decoder takes them.

    Args:
        layers: of the branches.
        variant: a key of `VARIANTS`.
        output_stride: of the last features: 32, or 16 or 8 with dilation instead of strides.
        block_fusion: asked for every block what happens between the branches; the stages 0, 1, 2
            are the flows, the channels those of the block's second convolution.

    Raises:
        ValueError: an unknown variant or output stride.
    """

    def __init__(
        self,
        layers: BranchLayers,
        variant: str = 'xception65',
        output_stride: int = 16,
        block_fusion: FusionOfBlock = no_fusion,
    ) -> None:
        super().__init__()
        one_of('the Xception', variant, VARIANTS)
        one_of('output_stride', output_stride, (8, 16, 32))
        entry, middle, width = VARIANTS[variant]
        flows = (
            [((c, c, c), stride) for c, stride in entry],
            [((entry[-1][0],) * 3, 1)] * middle,
            [(EXIT[0], 2), (EXIT[1], 1)],
        )
        stem = [_scaled(c, width) for c in STEM]
        self.conv1, self.bn1 = layers.conv(3, stem[0], 3, 2, 1), layers.norm(stem[0], NORM_EPS)
        self.conv2, self.bn2 = layers.conv(*stem, 3, 1, 1), layers.norm(stem[1], NORM_EPS)
        channels, reached, dilation = stem[1], 2, 1
        built: list[nn.Sequential] = []
        for flow, blocks in enumerate(flows):
            modules = []
            for number, (wanted, stride) in enumerate(blocks):
                inside = tuple(_scaled(c, width) for c in wanted)
                fusion = block_fusion(flow, number, len(blocks), inside[1]) or BlockFusion()
                last = flow == 2 and number == len(blocks) - 1
                # Once the output stride is reached, a block that would halve the maps makes
                # those behind it look twice as far instead.
                own = stride if reached < output_stride else 1
                modules.append(
                    XceptionBlock(layers, channels, inside, own, dilation, fusion, last)
                )
                reached, dilation = reached * own, dilation * stride // own
                channels = inside[-1]
            built.append(nn.Sequential(*modules))
        self.entry, self.middle, self.exit = built
        strided = [number for number, (_, stride) in enumerate(entry) if stride == 2]
        self.tapped = strided[1]  # the first one goes to 1/4, the second leaves it
        low = _scaled(entry[self.tapped][0], width)
        trunk = _scaled(entry[-1][0], width)
        self.channels = (low, trunk, trunk, channels)

    public_statistics = PUBLIC_STATISTICS
    public_file = 'a TensorFlow checkpoint of the Xception'

    def public_tensors(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what is of the three flows; TensorFlow's kernels have their channels last.

        Those are (height, width, input, output), of depthwise ones (height, width, channels, 1).
        """
        found = {}
        for name, value in weights.items():
            if not PUBLIC_FLOW.search(name):
                continue
            if value.ndim == 4:
                deep = name.endswith('/depthwise_weights')
                value = value.permute(2, 3, 0, 1) if deep else value.permute(3, 2, 0, 1)
            found[PUBLIC_FLOW.sub('', name)] = value
        return found

    def public_name(self, layer: str, part: str) -> str:
        """Return the name without the scope of the whole, such as 'xception_65/'."""
        flow, *rest = layer.split('.')
        if not rest:  # of the stem: conv1, bn1, conv2, bn2
            scope = f'entry_flow/conv1_{flow[-1]}'
            norm = flow.startswith('bn')
        else:
            block, module, *inner = rest
            number = int(block) + 1
            unit = f'block1/unit_{number}' if flow == 'middle' else f'block{number}/unit_1'
            scope = f'{flow}_flow/{unit}/xception_module/'
            if module == 'shortcut':
                scope, norm = f'{scope}shortcut', inner == ['1']
            else:
                half = 'depthwise' if inner[0].startswith('depthwise') else 'pointwise'
                scope, norm = f'{scope}separable_conv{module[-1]}_{half}', 'norm' in inner[0]
        if norm:
            return f'{scope}/BatchNorm/{PUBLIC_PARTS.get(part, part)}'
        return f'{scope}/{"depthwise_" if scope.endswith("_depthwise") else ""}weights'

    @property
    def stages(self) -> list[nn.Module]:
        """Entry, middle and exit flow."""
        return [self.entry, self.middle, self.exit]

    def stem(self, images: Maps) -> list[Tensor]:
        """Images (N, 3, H, W) -> maps (N, 64, H/2, W/2)."""
        maps = each(F.relu, self.bn1(self.conv1(images)))
        return each(F.relu, self.bn2(self.conv2(maps)))

    def forward(
        self, images: Maps, after_stage: Callable[[int, Maps], Maps] = lambda stage, maps: maps
    ) -> list[Maps]:
        """Encode, see `Encoder`; the low-level features come before those of the flows."""
        maps = self.stem(images)
        for block in self.entry[: self.tapped]:
            maps = block(maps)
        maps, low = self.entry[self.tapped].with_second(maps)
        for block in self.entry[self.tapped + 1 :]:
            maps = block(maps)
        features = [low, after_stage(0, maps)]
        for number, flow in enumerate((self.middle, self.exit), 1):
            features.append(after_stage(number, flow(features[-1])))
        return features


def _scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, rounded to a multiple of 8, at least 8; exact for width 1."""
    return max(8, 8 * round(channels * width / 8))
