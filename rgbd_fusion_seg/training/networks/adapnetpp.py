"""AdapNet++ (Valada et al., IJCV 2019): ResNet-50 of pre-activated units, eASPP, a light decoder.

Built as the authors' public TensorFlow code runs, so that its checkpoints give the same features:

* Padding is TensorFlow's 'SAME': where an even side is halved, a 3x3 kernel sees one row more
  after than before it, (0, 1), a 7x7 kernel (2, 3). Halving an odd side, which happens only at
  1/16 of a depth input of half size, departs from it: the row is added after, so that the grids
  of a full-size and a half-size stream stay aligned.
* Modules stand in the order in which the public code creates its variables, and a batch norm
  lists weight, bias, mean, variance as TensorFlow lists gamma, beta, moving mean, moving
  variance. So the k-th tensor of ``state_dict()`` (leaving out ``num_batches_tracked``) is the
  k-th variable of the public checkpoint: conv0's norm, conv1, the units of block1..block4 (each
  conv1, bn1, conv2, bn2, conv3, shortcut, bn3), skip4 (conv32), skip8 (conv174), the eASPP
  (conv256; conv70, 7, 247, 71; conv80, 8, 248, 81; conv90, 9, 249, 91; conv57; conv10), then the
  decoder (conv41; conv89, 96; conv16; conv88, 95; conv78; conv5) and the auxiliary heads
  (conv911, conv912). SSMA adds conv550 behind conv41 and conv551 behind conv16.
* The public networks read B, G, R from 0 to 255; a batch norm on the input does the rest. Ours
  read R, G, B, so an importer reverses the input channels of that norm and of conv1.

Not reproduced: the public code lists L2 terms but never adds them to the loss, counts void
pixels in its mean, treats class 0 as void, and ends its poly schedule at 1e-4 (`optimiser.end_lr`
does that, whose default is 0). Those are the trainer's business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.base import MODALITIES, SegmentationNetwork, one_of

INPUT_STRIDE = 16  # of the deepest features: sides of an input are multiples of it
SKIP_CHANNELS = 24
EASPP_CHANNELS = 256
EASPP_BOTTLENECK = 64
AUXILIARY_WEIGHTS = (0.6, 0.5)  # of the predictions at 1/4 and 1/8
MOMENTUM = 0.01  # of the norms' statistics: TensorFlow's decay is 1 minus that


class Stage(NamedTuple):
    """One block: width of its units' 3x3, stride of the first unit, the two rates of each unit."""

    channels: int
    stride: int
    rates: tuple[tuple[int, int], ...]


# Units with two different rates are the multi-scale ones. (The paper lets the second rate grow;
# the public code has 2 everywhere.)
STAGES = (
    Stage(64, 1, ((1, 1),) * 3),
    Stage(128, 2, ((1, 1),) * 3 + ((1, 2),)),
    Stage(256, 2, ((1, 1),) * 2 + ((1, 2),) * 4),
    Stage(512, 1, ((2, 2),) * 3),
)
EXPANSION = 4


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, rounded to a multiple of 4, at least 4; exact for width 1."""
    return max(4, 4 * round(channels * width / 4))


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the public code's decay 0.99."""
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=MOMENTUM)


class HalvingConv(nn.Conv2d):
    """Convolution of stride 2 with the padding of TensorFlow's 'SAME' on even sides."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=2, bias=False)
        self.before = (kernel - 2) // 2
        self.after = kernel - 2 - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, ceil(H/2), ceil(W/2))."""
        bottom, right = (self.after + side % 2 for side in x.shape[2:])
        return super().forward(F.pad(x, (self.before, right, self.before, bottom)))


class MultiScaleConv(nn.Conv2d):
    """One 3x3 kernel whose two halves of output channels are dilated at two rates."""

    def __init__(self, channels: int, rates: tuple[int, int]) -> None:
        super().__init__(channels, channels, 3, bias=False)
        self.rates = rates

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        halves = zip(self.weight.chunk(2), self.rates, strict=True)
        return torch.cat([F.conv2d(x, w, padding=r, dilation=r) for w, r in halves], 1)


def conv3x3(channels: int, stride: int, rates: tuple[int, int]) -> nn.Conv2d:
    """Return the middle convolution of a unit."""
    if stride == 2:
        return HalvingConv(channels, channels, 3)
    if rates[0] != rates[1]:
        return MultiScaleConv(channels, rates)
    return nn.Conv2d(channels, channels, 3, padding=rates[0], dilation=rates[0], bias=False)


class State(NamedTuple):
    """Features between units: the residual trunk (N, C, H, W), and it after norm and ReLU."""

    trunk: Tensor
    active: Tensor


class Bottleneck(nn.Module):
    """Fully pre-activated bottleneck unit.

    ``bn3`` is the pre-activation of the next unit (or the block's output norm): it stands here
    because the public code names it so, and because two readers share it where a block ends.

    Args:
        in_channels: channels of the trunk that comes in.
        channels: width of the 3x3; the trunk that goes out has four times as many.
        stride: of the 3x3 and of a projecting shortcut.
        rates: of the two halves of the 3x3's output channels.
        shortcut: 'identity'; 'input' projects the activated input, without a norm; 'reduced'
            projects the output of the first convolution, as only the very first unit does.
        dropout: rate on the last convolution's output, single activations.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        rates: tuple[int, int] = (1, 1),
        shortcut: str = 'identity',
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        out_channels = EXPANSION * channels
        self.channels = channels
        self.shortcut_from = shortcut
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = conv3x3(channels, stride, rates)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        if shortcut != 'identity':
            source = channels if shortcut == 'reduced' else in_channels
            self.shortcut = nn.Conv2d(source, out_channels, 1, stride=stride, bias=False)
        self.bn3 = norm(out_channels)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def reduce(self, state: State) -> Tensor:
        """Return the first 1x1 layer's output (N, channels, H, W), what RFBNet's GFU reads."""
        return F.relu(self.bn1(self.conv1(state.active)))

    def expand(self, reduced: Tensor) -> Tensor:
        """Return the rest of the residual function, (N, 4 * channels, H/stride, W/stride)."""
        return self.dropout(self.conv3(F.relu(self.bn2(self.conv2(reduced)))))

    def leave(self, trunk: Tensor) -> State:
        """Return the state for a trunk that is complete."""
        return State(trunk, F.relu(self.bn3(trunk)))

    def forward(self, state: State) -> State:
        """Map the trunk to (N, 4 * channels, H/stride, W/stride)."""
        reduced = self.reduce(state)
        if self.shortcut_from == 'identity':
            shortcut = state.trunk
        else:
            shortcut = self.shortcut(reduced if self.shortcut_from == 'reduced' else state.active)
        return self.leave(shortcut + self.expand(reduced))


def make_block(index: int, width: float, dropout: float) -> nn.ModuleList:
    """Return the units of block ``index``, 0..3; ``dropout`` is the last block's last unit's."""
    stage = STAGES[index]
    channels = scaled(stage.channels, width)
    units = nn.ModuleList()
    for i, rates in enumerate(stage.rates):
        first, last = i == 0, i == len(stage.rates) - 1
        came = scaled(STAGES[index - 1].channels, width) * EXPANSION if index else channels
        units.append(
            Bottleneck(
                came if first else EXPANSION * channels,
                channels,
                stage.stride if first else 1,
                rates,
                'identity' if not first else 'input' if index else 'reduced',
                dropout if last and index == len(STAGES) - 1 else 0.0,
            )
        )
    return units


class ConvNorm(nn.Module):
    """Convolution, batch norm and, if wanted, ReLU; the size is kept."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, relu: bool = True, rate: int = 1
    ) -> None:
        super().__init__()
        padding = rate * (kernel // 2)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, padding=padding, dilation=rate, bias=False
        )
        self.bn = norm(out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H, W)."""
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x


class UpConv(nn.Module):
    """Transposed convolution of kernel 2 * stride that multiplies the size by ``stride``.

    The padding stride/2 on both sides is what TensorFlow's 'SAME' amounts to.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, normed: bool = True):
        super().__init__()
        self.conv = nn.ConvTranspose2d(
            in_channels, out_channels, 2 * stride, stride, stride // 2, bias=not normed
        )
        self.bn = norm(out_channels) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, stride * H, stride * W)."""
        return self.bn(self.conv(x))


class Easpp(nn.Module):
    """Efficient atrous spatial pyramid pooling: (N, C, H, W) -> (N, 256, H, W).

    Five branches are concatenated: a 1x1; three bottlenecks with two dilated 3x3 each, which
    together reach ``2 * rate`` pixels to every side; the mean of the whole map. The norm of
    the projection has no ReLU.
    """

    def __init__(self, in_channels: int, rates: Sequence[int], width: float = 1.0) -> None:
        super().__init__()
        out, mid = scaled(EASPP_CHANNELS, width), scaled(EASPP_BOTTLENECK, width)
        self.point = ConvNorm(in_channels, out, 1)
        self.atrous = nn.ModuleList(
            nn.Sequential(
                ConvNorm(in_channels, mid, 1),
                ConvNorm(mid, mid, 3, rate=rate),
                ConvNorm(mid, mid, 3, rate=rate),
                ConvNorm(mid, out, 1),
            )
            for rate in rates
        )
        self.pooled = ConvNorm(in_channels, out, 1)
        self.project = ConvNorm((len(rates) + 2) * out, out, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class. While training, the pooled branch's norm needs batches of 2 or more."""
        mean = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        branches = [self.point(x), *(branch(x) for branch in self.atrous), mean]
        return self.project(torch.cat(branches, 1))


class Features(NamedTuple):
    """What an encoder hands over: eASPP (N, 256, H/16, W/16), skips (N, 24) at 1/8 and 1/4."""

    deep: Tensor
    skip8: Tensor
    skip4: Tensor


class AdapNetPpEncoder(nn.Module):
    """Everything up to the eASPP and the skips: what SSMA calls an expert.

    Args:
        width: factor on all numbers of channels.
        easpp_rates: dilations of the eASPP; the public code takes (6, 12, 18) for 768x768.
        dropout: rate in the last unit.

    Raises:
        ValueError: no dilations, or one that is not positive.
    """

    def __init__(
        self, width: float = 1.0, easpp_rates: Sequence[int] = (3, 6, 12), dropout: float = 0.7
    ) -> None:
        super().__init__()
        if not easpp_rates or min(easpp_rates) < 1:
            raise ValueError(f'easpp_rates must be dilations from 1 on, got {list(easpp_rates)}')
        stem = scaled(STAGES[0].channels, width)
        self.bn0 = norm(3)
        self.conv1 = HalvingConv(3, stem, 7)
        self.bn1 = norm(stem)
        for i in range(len(STAGES)):
            setattr(self, f'block{i + 1}', make_block(i, width, dropout))
        skip = scaled(SKIP_CHANNELS, width)
        outs = [EXPANSION * scaled(stage.channels, width) for stage in STAGES]
        self.skip4 = ConvNorm(outs[0], skip, 1, relu=False)
        self.skip8 = ConvNorm(outs[1], skip, 1, relu=False)
        self.easpp = Easpp(outs[3], easpp_rates, width)

    @property
    def blocks(self) -> list[nn.ModuleList]:
        """The four lists of units."""
        return [self.block1, self.block2, self.block3, self.block4]

    def stem(self, image: Tensor) -> State:
        """Image (N, 3, H, W) -> features (N, 64, H/4, W/4), already activated."""
        x = F.relu(self.bn1(self.conv1(self.bn0(image))))
        # 'SAME': the last window hangs over the edge, as ceil_mode lets it.
        x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        return State(x, x)

    def outputs(self, image: Tensor) -> list[Tensor]:
        """Image (N, 3, H, W) -> the activated outputs of the blocks, at 1/4, 1/8, 1/16, 1/16."""
        state, outputs = self.stem(image), []
        for block in self.blocks:
            for unit in block:
                state = unit(state)
            outputs.append(state.active)
        return outputs

    def forward(self, image: Tensor) -> Features:
        """Image (N, 3, H, W) -> features at 1/16, 1/8 and 1/4."""
        at4, at8, _, at16 = self.outputs(image)
        return Features(self.easpp(at16), self.skip8(at8), self.skip4(at4))


class Decoder(nn.Module):
    """Two times: double the size, concatenate a skip, refine by two 3x3; then the logits.

    Args:
        num_classes: number of classes K.
        width: see `AdapNetPpEncoder`.
        gated: SSMA's decoder, which multiplies each skip by channel gates computed from the
            mean of the features it meets.
        auxiliary: make the auxiliary heads.
        full_size, logits_norm, spare_channels: see `AdapNetPp`.
    """

    def __init__(
        self,
        num_classes: int,
        width: float = 1.0,
        gated: bool = False,
        auxiliary: bool = True,
        full_size: bool = True,
        logits_norm: bool = True,
        spare_channels: int = 0,
    ) -> None:
        super().__init__()
        if spare_channels < 0:
            raise ValueError(f'spare_channels must be 0 or more, got {spare_channels}')
        channels, skip = scaled(EASPP_CHANNELS, width), scaled(SKIP_CHANNELS, width)
        self.gated, self.full_size, self.logits_norm = gated, full_size, logits_norm
        for size in (8, 4):
            setattr(self, f'up{size}', UpConv(channels, channels, 2))
            if gated:
                setattr(self, f'gate{size}', ConvNorm(channels, skip, 1))
            refine = (ConvNorm(channels + skip, channels, 3), ConvNorm(channels, channels, 3))
            setattr(self, f'refine{size}', nn.Sequential(*refine))
        inner = num_classes + (spare_channels if full_size else 0)
        if logits_norm:
            self.head: nn.Module = ConvNorm(channels, inner, 1, relu=full_size)
        else:
            self.head = nn.Conv2d(channels, inner, 1)
        if full_size:
            self.up_logits = UpConv(inner, num_classes, 4, normed=logits_norm)
        if auxiliary:
            self.auxiliary4 = ConvNorm(channels, num_classes, 1, relu=False)
            self.auxiliary8 = ConvNorm(channels, num_classes, 1, relu=False)

    def _meet(self, size: int, x: Tensor, skip: Tensor) -> Tensor:
        if self.gated:
            skip = skip * getattr(self, f'gate{size}')(x.mean((2, 3), keepdim=True))
        return getattr(self, f'refine{size}')(torch.cat([x, skip], 1))

    def forward(self, features: Features, auxiliary: bool = False) -> Tensor | list[Tensor]:
        """Return logits, and with ``auxiliary`` the list of them and those at 1/4 and 1/8."""
        height, width = features.skip8.shape[2:]
        at8 = self.up8(features.deep)[..., :height, :width]  # an odd side was rounded up at 1/16
        at4 = self.up4(self._meet(8, at8, features.skip8))
        logits = self.head(self._meet(4, at4, features.skip4))
        if self.full_size:
            logits = self.up_logits(logits)
        if not auxiliary:
            return logits
        if not hasattr(self, 'auxiliary4'):
            return [logits]
        return [logits, self.auxiliary4(at4), self.auxiliary8(at8)]


def initialise(network: nn.Module) -> None:
    """Draw the weights of all convolutions as the public code does: He, cut at two sigma."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            transposed = isinstance(module, nn.ConvTranspose2d)
            fan_in = module.weight[0, 0].numel()
            fan_in *= module.in_channels if transposed else module.weight.shape[1]
            std = math.sqrt(2.0 / fan_in)
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class AdapNetPp(SegmentationNetwork):
    """Unimodal AdapNet++: 30.20 M parameters for 12 classes (with the norms' statistics).

    Args:
        num_classes: number of classes K.
        modality: 'rgb', 'hha' or 'depth', the input that is read.
        shrink_depth: an input of depth has half the colour's size, as the depth stream of a fusion
            network that starts from this one, and so have the logits. No effect on 'rgb'.
        width: factor on all numbers of channels, for small robots and tests.
        easpp_rates: dilations of the eASPP's three branches; (6, 12, 18) for 768x768 inputs.
        dropout: rate in the last unit, 0.7 in the public code.
        auxiliary_heads: make the heads at 1/4 and 1/8 that training supervises besides.
        full_size: end with the public code's transposed convolution 8x8 of stride 4, which gives
            logits at full size. Without it the network ends at 1/4: less work on a robot, whose
            runtime interpolates exactly itself. A network has to be trained as it is used.
        logits_norm: batch norm (and, before the last transposed convolution, ReLU) on the
            logits, as in the public code. Without it the last layers have biases.
        spare_channels: of the map before the last transposed convolution, ahead of those of the
            classes. The public networks have one, of void, which no logit of a class can do
            without.

    Raises:
        ValueError: an option with an unknown value.
    """

    size_multiple = INPUT_STRIDE

    def __init__(
        self,
        num_classes: int,
        modality: str = 'rgb',
        shrink_depth: bool = False,
        width: float = 1.0,
        easpp_rates: Sequence[int] = (3, 6, 12),
        dropout: float = 0.7,
        auxiliary_heads: bool = True,
        full_size: bool = True,
        logits_norm: bool = True,
        spare_channels: int = 0,
    ) -> None:
        super().__init__()
        one_of('modality', modality, MODALITIES)
        self.modality = modality
        self.modalities = (modality,)
        self.shrink_depth = shrink_depth and modality != 'rgb'
        self.stride = (1 if full_size else 4) * (2 if self.shrink_depth else 1)
        self.auxiliary_weights = AUXILIARY_WEIGHTS if auxiliary_heads else ()
        self.encoder = AdapNetPpEncoder(width, easpp_rates, dropout)
        self.decoder = Decoder(
            num_classes, width, False, auxiliary_heads, full_size, logits_norm, spare_channels
        )
        initialise(self)

    def forward(
        self, inputs: Mapping[str, Tensor], auxiliary: bool = False
    ) -> Tensor | list[Tensor]:
        """Segment.

        Args:
            inputs: the modality's (N, 3, h, w).
            auxiliary: also return the auxiliary predictions.

        Returns:
            logits (N, K, h, w), or at 1/4; with ``auxiliary`` the list of them and of those at
            1/4 and at 1/8. (The public code enlarges the latter two to full size by an
            interpolation without half-pixel centres and compares them there; here the loss
            compares them at their own size, with every so many-th label.)

        Raises:
            ValueError: see `check_inputs`.
        """
        self.check_inputs(inputs)
        return self.decoder(self.encoder(inputs[self.modality]), auxiliary)
