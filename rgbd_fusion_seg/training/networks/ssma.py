"""SSMA (Valada et al., IJCV 2019): late fusion by attention, and its simpler relatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.base import FusionNetwork, one_of
from rgbd_fusion_seg.training.networks.erfnet import (
    DECODER_STRIDES,
    ENCODER_CHANNELS,
    ENCODER_STRIDE,
    QUARTER_CHANNELS,
    Decoder,
    Encoder,
)

COMBINATIONS = ('ssma', 'concat', 'sum')


def resize_to(x: Tensor, reference: Tensor) -> Tensor:
    """Bring ``x``, of half the reference's sides (rounded up), to the reference's size.

    Bilinear. The half sizes' last row or column that an odd side was rounded up to is cut off,
    so that both grids stay aligned.
    """
    height, width = reference.shape[2:]
    if x.shape[2:] == reference.shape[2:]:
        return x
    x = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
    return x[..., :height, :width]


class Ssma(nn.Module):
    """SSMA block: channel- and pixel-wise attention over the concatenated streams.

    Args:
        in_channels: channels of all streams together.
        out_channels: channels after the projection.
        reduction: the block's eta; the public code uses 16 for the deepest features.
        kernel_size: of the projection, odd; the public code has 1 for the deepest features.
        momentum: of the projection's norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        reduction: int = 16,
        kernel_size: int = 1,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.Conv2d(in_channels, in_channels // reduction, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(in_channels // reduction, in_channels, 3, padding=1),
            nn.Sigmoid(),
        )
        # As in the public code, batch norm and no ReLU follow the projection.
        self.project = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size, 1, kernel_size // 2, bias=False),
            nn.BatchNorm2d(out_channels, momentum=momentum),
        )

    def forward(self, *streams: Tensor) -> Tensor:
        """(N, C_i, H, W) of each stream -> (N, out, H, W)."""
        x = torch.cat(streams, 1)
        return self.project(x * self.attention(x))


class Concatenation(nn.Conv2d):
    """1x1 convolution over the concatenated streams."""

    def forward(self, *streams: Tensor) -> Tensor:
        """(N, C_i, H, W) of each stream -> (N, out, H, W)."""
        return super().forward(torch.cat(streams, 1))


class Summation(nn.Module):
    """Sum of the streams. Open: one of another width is brought to ``channels`` by a 1x1.

    Args:
        widths: channels of each stream.
        channels: of the sum.
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.widen = nn.ModuleList(
            nn.Identity() if width == channels else nn.Conv2d(width, channels, 1)
            for width in widths
        )

    def forward(self, *streams: Tensor) -> Tensor:
        """(N, C_i, H, W) of each stream -> (N, channels, H, W)."""
        return sum(widen(x) for widen, x in zip(self.widen, streams, strict=True))


def make_combination(
    name: str,
    widths: Sequence[int],
    channels: int,
    reduction: int = 16,
    momentum: float = 0.1,
) -> nn.Module:
    """Return the module that merges streams of one size: RFBNet's F of Fig. 2 (§III-A).

    Args:
        name: 'ssma', 'concat' or 'sum'.
        widths: channels of each stream.
        channels: of the result.
        reduction: of 'ssma'.
        momentum: of the norm of 'ssma'.

    Raises:
        ValueError: an unknown name.
    """
    one_of('combination', name, COMBINATIONS)
    if name == 'ssma':
        return Ssma(sum(widths), channels, reduction, momentum=momentum)
    if name == 'concat':
        return Concatenation(sum(widths), channels, 1)
    return Summation(widths, channels)


class SsmaErfNet(FusionNetwork):
    """SSMA(ERFNetEnc) of the RFBNet paper (§IV-B): two ERFNet encoders that meet at 1/8.

    The encoders are initialised from two unimodal networks and trained on, as the paper does;
    SSMA's own code keeps its experts frozen (a learning rate of 0 for their parameters).

    Args:
        num_classes: number of classes K.
        shrink_depth: the depth encoder gets HHA at half the colour's size; its features are
            brought back by bilinear interpolation. Table III finds it slightly harmful here.
        combination: how the streams are merged: 'ssma', or 'concat' and 'sum' as baselines of
            late fusion.
        decoder: 'bilinear' (a 1x1 head, logits at 1/8, enlarged outside the network) as in the
            paper; 'erfnet' or 'erfnet_quarter', see `erfnet.Decoder`.
        multi_level: top-down multi-level fusion as in SSMA: the encoders' features at 1/4 are
            merged by `combination` too and join the decoder. Open: the paper unites it with
            RFBs on AdapNet++ alone (§III-D), whose decoder has skips. ERFNet's has none, so
            the merged features are added where it has reached 1/4; eta is 8 there (SSMA has 6
            for 48 channels).
        dropout: rates of the encoders' 64- and 128-channel units.

    Raises:
        ValueError: an option with an unknown value.
    """

    # Not of the paper, which relies on unimodal pre-training: each encoder's own prediction is
    # supervised, so that neither modality is neglected.
    auxiliary_weights = (0.3, 0.3)
    unimodal_networks = ('erfnet_encoder', 'erfnet')
    unimodal_rest = ('decoder.', 'skip.')
    stream_widths: tuple[int, ...] = (ENCODER_CHANNELS, ENCODER_CHANNELS)

    def __init__(
        self,
        num_classes: int,
        shrink_depth: bool = False,
        combination: str = 'ssma',
        decoder: str = 'bilinear',
        multi_level: bool = False,
        dropout: tuple[float, float] = (0.03, 0.3),
    ) -> None:
        super().__init__()
        one_of('decoder', decoder, DECODER_STRIDES)
        if multi_level and decoder == 'bilinear':
            raise ValueError("multi_level needs decoder 'erfnet' or 'erfnet_quarter'")
        channels = ENCODER_CHANNELS
        self.shrink_depth, self.multi_level = shrink_depth, multi_level
        self.stride = DECODER_STRIDES[decoder]
        self.size_multiple = ENCODER_STRIDE * (2 if shrink_depth else 1)
        self.rgb_encoder, self.hha_encoder = Encoder(dropout), Encoder(dropout)
        self.combine = make_combination(combination, self.stream_widths, channels)
        if multi_level:
            widths = (QUARTER_CHANNELS, QUARTER_CHANNELS)
            self.combine_quarter = make_combination(combination, widths, QUARTER_CHANNELS, 8)
        if decoder == 'bilinear':
            self.head = nn.Conv2d(channels, num_classes, 1)
        else:
            self.decoder = Decoder(num_classes, decoder)
        self.rgb_head = nn.Conv2d(channels, num_classes, 1)
        self.hha_head = nn.Conv2d(channels, num_classes, 1)

    def interact(self, rgb: Tensor, hha: Tensor) -> tuple[Tensor, ...]:
        """Return the streams to be merged, from what the encoders give: here they as they are."""
        return rgb, hha

    def forward(
        self, inputs: Mapping[str, Tensor], auxiliary: bool = False
    ) -> Tensor | list[Tensor]:
        """Segment.

        Args:
            inputs: 'rgb' (N, 3, H, W) and 'hha' (N, 3, h, w), see `hha_size`.
            auxiliary: also return the predictions of each encoder alone.

        Returns:
            logits (N, K, H/stride, W/stride); with ``auxiliary`` the list [fused, RGB's,
            depth's], the latter two at 1/8 of their inputs.

        Raises:
            ValueError: see `check_inputs`.
        """
        self.check_inputs(inputs)
        rgb_quarter, rgb = self.rgb_encoder.features(inputs['rgb'])
        hha_quarter, hha = self.hha_encoder.features(inputs['hha'])
        streams = self.interact(rgb, hha)
        rgb, hha = streams[0], streams[1]
        fused = self.combine(*(resize_to(x, rgb) for x in streams))
        if self.multi_level:
            skip = self.combine_quarter(rgb_quarter, resize_to(hha_quarter, rgb_quarter))
            logits = self.decoder(fused, skip)
        else:
            logits = self.head(fused) if hasattr(self, 'head') else self.decoder(fused)
        return [logits, self.rgb_head(rgb), self.hha_head(hha)] if auxiliary else logits
