"""SSMA (Valada et al., IJCV 2019) on AdapNet++: two experts fused at three levels.

Built as the authors' public TensorFlow code runs (see `adapnetpp` on padding and names). Its
variables are those of `adapnetpp` for both experts (rgb/, depth/), then conv511, 512, 515 of
``combine``, of the skips' blocks conv513, 514, 552 and 518, 519, 553 (alike in shape), and the
decoder's, with conv550 and 551 for ``decoder.gate8`` and ``decoder.gate4``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from rgbd_fusion_seg.training.networks.adapnetpp import (
    AUXILIARY_WEIGHTS,
    EASPP_CHANNELS,
    INPUT_STRIDE,
    MOMENTUM,
    SKIP_CHANNELS,
    AdapNetPpEncoder,
    Decoder,
    Features,
    initialise,
    scaled,
)
from rgbd_fusion_seg.training.networks.base import FusionNetwork
from rgbd_fusion_seg.training.networks.ssma import Ssma, make_combination, resize_to

SKIP_REDUCTION = 6  # eta of the blocks on skips; 16 on the eASPP
BIAS = 0.01


class SkipSsma(Ssma):
    """SSMA block of the skips: its projection is a 3x3 with bias, without a norm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, SKIP_REDUCTION)
        self.project = nn.Conv2d(in_channels, out_channels, 3, padding=1)


def combine_skips(name: str, channels: int) -> nn.Module:
    """Return the module that merges the two experts' skips."""
    if name == 'ssma':
        return SkipSsma(2 * channels, channels)
    return make_combination(name, (channels, channels), channels)


class SsmaAdapNetPp(FusionNetwork):
    """SSMA: two AdapNet++ experts without decoders, merged at 1/16, 1/8 and 1/4, one decoder.

    For 12 classes 56,285,688 numbers with the norms' statistics, variable by variable those of
    the public checkpoint. AsymFusion's Table 2 says 56.44 M; the 0.15 M (0.3 %) it has more are
    in no variable of the released code, and counting does not find them: 11 to 41 classes are
    56.28 to 56.39 M, auxiliary heads 0.01 to 0.02 M, biases at all convolutions that have none
    0.06 M. These, statistics and 40 classes together come nearest, 56.45 M, but the same table's
    30.20 M of AdapNet++ are those of 12 classes without biases. Another eta of the deepest block
    would have to be 10.4, and the 3x3 projection with batch norm of the SSMA paper's block adds
    1.05 M there to the 1x1 of the code.

    The decoder is AdapNet++'s, with skips weighted by channel gates (with ``multi_level``).

    Args:
        num_classes: number of classes K.
        shrink_depth: the depth expert gets HHA at half the colour's size (RFBNet §III-B); its
            features return by bilinear interpolation before they are merged.
        combination: how the streams are merged, at every level: 'ssma'; 'concat' and 'sum' as
            baselines.
        multi_level: merge the skips too (top-down multi-level fusion). Without it the streams
            meet at 1/16 alone; open: the decoder, AdapNet++'s plain one, then takes the RGB
            expert's skips.
        freeze_experts: the experts learn nothing and their norms use the statistics they have,
            as in the public code. It needs experts initialised from unimodal networks. The
            default is to train all, which also learns from scratch and is what RFBNet's paper
            does with its fusion networks ("use the trained weights to initialize", §IV-B).
        width, easpp_rates, dropout, full_size, logits_norm, spare_channels: see `AdapNetPp`.
        auxiliary_heads: the decoder's heads at 1/4 and 1/8, of which the public SSMA has none.

    Raises:
        ValueError: an option with an unknown value.
    """

    size_multiple = INPUT_STRIDE
    unimodal_networks = ('adapnetpp',)
    unimodal_rest = ('decoder.', 'encoder.skip')

    def __init__(
        self,
        num_classes: int,
        shrink_depth: bool = False,
        combination: str = 'ssma',
        multi_level: bool = True,
        *,
        freeze_experts: bool = False,
        width: float = 1.0,
        easpp_rates: Sequence[int] = (3, 6, 12),
        dropout: float = 0.7,
        auxiliary_heads: bool = False,
        full_size: bool = True,
        logits_norm: bool = True,
        spare_channels: int = 0,
    ) -> None:
        super().__init__()
        self.shrink_depth, self.multi_level = shrink_depth, multi_level
        self.freeze_experts = freeze_experts
        self.stride = 1 if full_size else 4
        self.auxiliary_weights = AUXILIARY_WEIGHTS if auxiliary_heads else ()
        self.rgb_encoder = AdapNetPpEncoder(width, easpp_rates, dropout)
        self.hha_encoder = AdapNetPpEncoder(width, easpp_rates, dropout)
        channels, skip = scaled(EASPP_CHANNELS, width), scaled(SKIP_CHANNELS, width)
        streams = [channels] * 2 + self.interaction_widths(width)
        self.combine = make_combination(combination, streams, channels, momentum=MOMENTUM)
        if multi_level:
            self.combine8 = combine_skips(combination, skip)
            self.combine4 = combine_skips(combination, skip)
        else:
            del self.hha_encoder.skip8, self.hha_encoder.skip4
        self.decoder = Decoder(
            num_classes, width, multi_level, auxiliary_heads, full_size, logits_norm,
            spare_channels,
        )  # fmt: skip
        initialise(self)
        for name, parameter in self.named_parameters():
            if name.startswith('combine') and name.endswith('bias') and 'project.1' not in name:
                nn.init.constant_(parameter, BIAS)
        if freeze_experts:
            self.rgb_encoder.requires_grad_(False)
            self.hha_encoder.requires_grad_(False)

    @staticmethod
    def interaction_widths(width: float) -> list[int]:
        """Channels of streams besides the experts' that meet at 1/16: here none."""
        return []

    def train(self, mode: bool = True) -> SsmaAdapNetPp:
        """Set training mode; frozen experts stay in evaluation mode."""
        super().train(mode)
        if self.freeze_experts:
            self.rgb_encoder.eval()
            self.hha_encoder.eval()
        return self

    def head_names(self, modality: str) -> dict[str, str]:
        """No head is taken over: the experts have none."""
        return {}

    def encode(self, rgb: Tensor, hha: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return the outputs of both encoders' blocks, and further streams at 1/16."""
        return self.rgb_encoder.outputs(rgb), self.hha_encoder.outputs(hha), []

    def fuse(self, rgb: list[Tensor], hha: list[Tensor], others: list[Tensor]) -> Features:
        """Merge what `encode` returns at the RGB stream's sizes."""
        deep = self.rgb_encoder.easpp(rgb[3])
        others = [self.hha_encoder.easpp(hha[3]), *others]
        deep = self.combine(deep, *(resize_to(x, deep) for x in others))
        skips = []
        for name, x, y in (('8', rgb[1], hha[1]), ('4', rgb[0], hha[0])):
            skip = getattr(self.rgb_encoder, f'skip{name}')(x)
            if self.multi_level:
                other = getattr(self.hha_encoder, f'skip{name}')(y)
                skip = getattr(self, f'combine{name}')(skip, resize_to(other, skip))
            skips.append(skip)
        return Features(deep, *skips)

    def forward(
        self, inputs: Mapping[str, Tensor], auxiliary: bool = False
    ) -> Tensor | list[Tensor]:
        """Segment.

        Args:
            inputs: 'rgb' (N, 3, H, W) and 'hha' (N, 3, h, w), see `hha_size`.
            auxiliary: also return the auxiliary predictions, where there are heads for them.

        Returns:
            logits (N, K, H/stride, W/stride); with ``auxiliary`` the list of them and of those
            at 1/4 and at 1/8.

        Raises:
            ValueError: see `check_inputs`.
        """
        self.check_inputs(inputs)
        streams = self.encode(inputs['rgb'], inputs['hha'])
        return self.decoder(self.fuse(*streams), auxiliary)
