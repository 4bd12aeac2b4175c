"""RFBNet (Deng et al., 2019): two encoders bridged by residual fusion blocks.

No code of the authors is public. What the text settles is built as it says; each choice it
leaves open is marked "Open:" with the reading taken here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.base import one_of
from rgbd_fusion_seg.training.networks.erfnet import BN_EPS, ENCODER_CHANNELS, NonBottleneck1d
from rgbd_fusion_seg.training.networks.ssma import SsmaErfNet, resize_to

COMPLEMENTARY_POINTS = ('residual', 'trunk', 'none')
OUTPUT_GATES = ('interaction', 'streams')
POOLINGS = {'average': F.avg_pool2d, 'max': F.max_pool2d}


def gate_head(hidden: int) -> nn.Sequential:
    """Second half of a gate G(.) of §III-C: ReLU, convolution to one channel, sigmoid."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(hidden, 1, 1), nn.Sigmoid())


class GatedFusionUnit(nn.Module):
    """GFU of §III-C, Eq. 1: aggregates both modalities and returns complementary features.

    What the paper says: four gates G(.), convolution, ReLU, convolution, sigmoid, one channel
    each, at the depth stream's size, the two input gates with one first convolution; gated
    features are concatenated, go through a 1x1 convolution, are added to the interaction stream
    and processed by a depthwise separable convolution; from the result come the complementary
    features, which the output gates regulate.

    Open, not switchable: a gate's hidden width is C/4 and its second convolution 1x1; the input
    gates see all three streams; the separable convolution is 3x3 with batch norm and ReLU behind
    it; a 1x1 convolution per modality widens C/2 to C, the gate multiplies its result, which
    then returns to the RGB stream's size by bilinear interpolation.

    Open, switchable:

    * What the output gates see. 'interaction' is the updated interaction stream alone;
      'streams' is it and the stream that receives the feature, as what complements a stream
      depends on what it already has. That the paper shares the first convolution of the input
      gates only speaks for 'streams': over one common input the output gates could share theirs
      for the same reason.
    * How features start. With ``zero_start`` the widening convolutions are zero at first, and so
      are the complementary features: both streams begin as the unimodal networks they were
      initialised from, the exchange grows from nothing, and the fusion stays the residual of an
      identity mapping that §III-C calls it (the usual way to add branches to a trained network).
      Recommended: fused networks are trained a few epochs only. Without it, torch's default
      initialisation changes the logits of each stream by three quarters of their spread
      (measured on encoders with random weights), and that is what training starts from.
    * How RGB features reach the depth stream's size: 'average' or 'max' pooling, 2x2. (Bilinear
      interpolation to half an even size is the average, pixel for pixel.)
    * The kernel of a gate's first convolution, 1 or 3.

    Args:
        channels: C of the modality streams; the interaction stream has C/2.
        gates: without them (ablation of Table IV) features pass unweighted.
        complementary: without it the unit only aggregates (first rows of Table IV).
        output_gates: 'interaction' or 'streams'.
        zero_start: complementary features are zero at first.
        pooling: 'average' or 'max'.
        gate_kernel: odd.

    Raises:
        ValueError: an option with an unknown value.
    """

    def __init__(
        self,
        channels: int,
        gates: bool = True,
        complementary: bool = True,
        output_gates: str = 'interaction',
        zero_start: bool = True,
        pooling: str = 'average',
        gate_kernel: int = 1,
    ) -> None:
        super().__init__()
        one_of('output_gates', output_gates, OUTPUT_GATES)
        one_of('pooling', pooling, POOLINGS)
        if gate_kernel % 2 == 0:
            raise ValueError(f'gate_kernel must be odd, got {gate_kernel}')
        half, hidden, padding = channels // 2, channels // 4, gate_kernel // 2
        self.gated, self.complementary = gates, complementary
        self.gates_see_streams, self.pooling = output_gates == 'streams', pooling
        if gates:
            # The input gates share their first convolution, as the paper says.
            self.gates_in = nn.Conv2d(2 * channels + half, hidden, gate_kernel, padding=padding)
            self.gate_rgb_in, self.gate_hha_in = gate_head(hidden), gate_head(hidden)
        self.aggregate = nn.Conv2d(2 * channels, half, 1)
        self.separable = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half, eps=BN_EPS),
            nn.ReLU(),
        )
        if not complementary:
            return
        self.widen_rgb, self.widen_hha = (nn.Conv2d(half, channels, 1) for _ in range(2))
        if zero_start:
            for widen in (self.widen_rgb, self.widen_hha):
                nn.init.zeros_(widen.weight)
                nn.init.zeros_(widen.bias)
        if gates:
            seen = half + channels * self.gates_see_streams
            self.gate_rgb_out, self.gate_hha_out = (
                nn.Sequential(
                    nn.Conv2d(seen, hidden, gate_kernel, padding=padding), *gate_head(hidden)
                )
                for _ in range(2)
            )

    def forward(
        self, rgb: Tensor, hha: Tensor, interaction: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Update the interaction stream.

        Args:
            rgb: (N, C, H, W) or already at the depth stream's size.
            hha: (N, C, h, w), with h = H/2 where depth is shrunk.
            interaction: (N, C/2, h, w), zero at the first block.

        Returns:
            the new interaction features, and the features complementary to ``rgb`` and ``hha``
            at their sizes (None without complementary features).
        """
        small = rgb
        if rgb.shape[2:] != hha.shape[2:]:
            # Odd sides, at 1/16, are rounded up, as strided convolutions round them.
            small = POOLINGS[self.pooling](rgb, 2, ceil_mode=True)
        rgb_in, hha_in = small, hha
        if self.gated:
            seen = self.gates_in(torch.cat([small, interaction, hha], 1))
            rgb_in = self.gate_rgb_in(seen) * small
            hha_in = self.gate_hha_in(seen) * hha
        interaction = interaction + self.aggregate(torch.cat([rgb_in, hha_in], 1))
        interaction = self.separable(interaction)
        if not self.complementary:
            return interaction, None, None
        to_rgb, to_hha = self.widen_rgb(interaction), self.widen_hha(interaction)
        if self.gated:
            to_rgb = self.gate_rgb_out(self._seen(small, interaction)) * to_rgb
            to_hha = self.gate_hha_out(self._seen(hha, interaction)) * to_hha
        return interaction, resize_to(to_rgb, rgb), to_hha

    def _seen(self, stream: Tensor, interaction: Tensor) -> Tensor:
        return torch.cat([stream, interaction], 1) if self.gates_see_streams else interaction


class ResidualFusionBlock(nn.Module):
    """RFB of §III-C, Eqs. 1-3, around two of the encoders' own residual units.

    Args:
        rgb_unit, hha_unit: residual units with a ``residual`` method.
        fusion: GFU for their number of channels; makes complementary features unless the point
            is 'none'.
        complementary: 'residual' adds the complementary features to the input of the residual
            functions (point R of Fig. 4, the paper's choice), 'trunk' to the streams themselves
            (point T), 'none' nowhere.
    """

    def __init__(
        self,
        rgb_unit: NonBottleneck1d,
        hha_unit: NonBottleneck1d,
        fusion: GatedFusionUnit,
        complementary: str = 'residual',
    ) -> None:
        super().__init__()
        self.rgb_unit, self.hha_unit, self.fusion = rgb_unit, hha_unit, fusion
        self.point = complementary

    def forward(
        self, rgb: Tensor, hha: Tensor, interaction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three streams after the block, shapes unchanged."""
        interaction, to_rgb, to_hha = self.fusion(rgb, hha, interaction)
        rgb = self._unit(self.rgb_unit, rgb, to_rgb)
        hha = self._unit(self.hha_unit, hha, to_hha)
        return rgb, hha, interaction

    def _unit(self, unit: NonBottleneck1d, x: Tensor, extra: Tensor | None) -> Tensor:
        if extra is None:
            return unit(x)
        if self.point == 'trunk':
            return unit(x + extra)
        return F.relu(x + unit.residual(x + extra))


class RfbNetErfNet(SsmaErfNet):
    """RFBNet(ERFNetEnc): SSMA(ERFNetEnc) with an RFB for each pair of units at 1/8 (§IV-B).

    With a decoder and ``multi_level`` it is the united structure of Fig. 5 on this backbone:
    bottom-up interaction by RFBs, top-down fusion of the features at 1/4 and 1/8.

    Args:
        num_classes: number of classes K.
        shrink_depth: the depth stream gets HHA at half the colour's size (§III-B).
        complementary: 'residual', 'trunk' or 'none', see `ResidualFusionBlock` (Table IV).
        gates, output_gates, zero_start, pooling, gate_kernel: see `GatedFusionUnit`.
        combination: how the three streams are merged: 'ssma', 'concat' or 'sum'. Open: the
            interaction stream enters SSMA and concatenation with its own C/2 channels.
        decoder, multi_level: see `SsmaErfNet`.
        dropout: rates of the encoders' 64- and 128-channel units.

    Raises:
        ValueError: an option with an unknown value.
    """

    stream_widths = (ENCODER_CHANNELS, ENCODER_CHANNELS, ENCODER_CHANNELS // 2)

    def __init__(
        self,
        num_classes: int,
        shrink_depth: bool = True,
        complementary: str = 'residual',
        gates: bool = True,
        combination: str = 'ssma',
        dropout: tuple[float, float] = (0.03, 0.3),
        *,
        output_gates: str = 'interaction',
        zero_start: bool = True,
        pooling: str = 'average',
        gate_kernel: int = 1,
        decoder: str = 'bilinear',
        multi_level: bool = False,
    ) -> None:
        super().__init__(num_classes, shrink_depth, combination, decoder, multi_level, dropout)
        one_of('complementary', complementary, COMPLEMENTARY_POINTS)
        self.blocks = nn.ModuleList()
        for rgb, hha in zip(self.rgb_encoder.units, self.hha_encoder.units, strict=True):
            fusion = GatedFusionUnit(
                ENCODER_CHANNELS,
                gates,
                complementary != 'none',
                output_gates,
                zero_start,
                pooling,
                gate_kernel,
            )
            self.blocks.append(ResidualFusionBlock(rgb, hha, fusion, complementary))
        # The blocks own the paired units now; the encoders keep what comes before them.
        del self.rgb_encoder.layers[7:], self.hha_encoder.layers[7:]

    def encoder_names(self, modality: str) -> dict[str, str]:
        """See `FusionNetwork`."""
        names = super().encoder_names(modality)
        for i, block in enumerate(self.blocks):
            for name in getattr(block, f'{modality}_unit').state_dict():
                names[f'encoder.layers.{7 + i}.{name}'] = f'blocks.{i}.{modality}_unit.{name}'
        return names

    def interact(self, rgb: Tensor, hha: Tensor) -> tuple[Tensor, ...]:
        """Pass (N, 128, H/8, W/8) and (N, 128, h/8, w/8) through the blocks.

        Returns:
            both, and the interaction stream (N, 64, h/8, w/8).
        """
        interaction = hha.new_zeros(hha.shape[0], hha.shape[1] // 2, *hha.shape[2:])
        for block in self.blocks:
            rgb, hha, interaction = block(rgb, hha, interaction)
        return rgb, hha, interaction
