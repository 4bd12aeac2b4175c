"""RFBNet (Deng et al., 2019): two encoders bridged by residual fusion blocks.

No code of the authors is public. What the text settles is built as it says; each choice it
leaves open is marked "Open:" with the reading taken here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.erfnet import BN_EPS, ENCODER_CHANNELS, NonBottleneck1d
from rgbd_fusion_seg.training.networks.ssma import SsmaErfNet, resize_to

COMPLEMENTARY_POINTS = ('residual', 'trunk', 'none')


def gate_head(hidden: int) -> nn.Sequential:
    """Second half of a gate G(.) of §III-C: ReLU, convolution to one channel, sigmoid."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(hidden, 1, 1), nn.Sigmoid())


class GatedFusionUnit(nn.Module):
    """GFU of §III-C, Eq. 1: aggregates both modalities and returns complementary features.

    Open: both convolutions of a gate are 1x1 and its hidden width is C/4; RGB features reach the
    depth stream's size by 2x2 average pooling and complementary
    features return by bilinear interpolation; the input gates see all three streams, the output
    gates see the updated interaction stream; the separable convolution is 3x3 with batch norm
    and ReLU behind it; a 1x1 convolution widens C/2 to C.

    Args:
        channels: C of the modality streams; the interaction stream has C/2.
        gates: without them (ablation of Table IV) features pass unweighted.
        complementary: without it the unit only aggregates (first row of Table IV).
    """

    def __init__(self, channels: int, gates: bool = True, complementary: bool = True) -> None:
        super().__init__()
        half, hidden = channels // 2, channels // 4
        self.gated = gates
        self.complementary = complementary
        if gates:
            # The input gates share their first convolution, as the paper says.
            self.gates_in = nn.Conv2d(2 * channels + half, hidden, 1)
            self.gate_rgb_in, self.gate_hha_in = gate_head(hidden), gate_head(hidden)
        self.aggregate = nn.Conv2d(2 * channels, half, 1)
        self.separable = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half, eps=BN_EPS),
            nn.ReLU(),
        )
        if complementary:
            self.widen_rgb = nn.Conv2d(half, channels, 1)
            self.widen_hha = nn.Conv2d(half, channels, 1)
            if gates:
                self.gate_rgb_out = nn.Sequential(nn.Conv2d(half, hidden, 1), *gate_head(hidden))
                self.gate_hha_out = nn.Sequential(nn.Conv2d(half, hidden, 1), *gate_head(hidden))

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
        small = F.avg_pool2d(rgb, 2) if rgb.shape[2] != hha.shape[2] else rgb
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
            to_rgb = self.gate_rgb_out(interaction) * to_rgb
            to_hha = self.gate_hha_out(interaction) * to_hha
        return interaction, resize_to(to_rgb, rgb), to_hha


class ResidualFusionBlock(nn.Module):
    """RFB of §III-C, Eqs. 1-3, around two of the encoders' own residual units.

    Args:
        rgb_unit, hha_unit: residual units with a ``residual`` method.
        channels: C of both.
        complementary: 'residual' adds the complementary features to the input of the residual
            functions (point R of Fig. 4, the paper's choice), 'trunk' to the streams themselves
            (point T), 'none' nowhere.
        gates: see `GatedFusionUnit`.
    """

    def __init__(
        self,
        rgb_unit: NonBottleneck1d,
        hha_unit: NonBottleneck1d,
        channels: int,
        complementary: str = 'residual',
        gates: bool = True,
    ) -> None:
        super().__init__()
        self.rgb_unit, self.hha_unit = rgb_unit, hha_unit
        self.point = complementary
        self.fusion = GatedFusionUnit(channels, gates, complementary != 'none')

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

    Args:
        num_classes: number of classes K.
        shrink_depth: the depth stream gets HHA at half the colour's size (§III-B).
        complementary, gates: see `ResidualFusionBlock` (Table IV).
        combination: how the three streams are merged: 'ssma', 'concat' or 'sum'.
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
    ) -> None:
        super().__init__(num_classes, shrink_depth, combination, dropout)
        if complementary not in COMPLEMENTARY_POINTS:
            raise ValueError(f'complementary must be one of {COMPLEMENTARY_POINTS}')
        pairs = zip(self.rgb_encoder.units, self.hha_encoder.units, strict=True)
        self.blocks = nn.ModuleList(
            ResidualFusionBlock(rgb, hha, ENCODER_CHANNELS, complementary, gates)
            for rgb, hha in pairs
        )
        # The blocks own the paired units now; the encoders keep what comes before them.
        del self.rgb_encoder.layers[7:], self.hha_encoder.layers[7:]

    def encoder_names(self, modality: str) -> dict[str, str]:
        """See `FusionNetwork`."""
        names = super().encoder_names(modality)
        for i, block in enumerate(self.blocks):
            for name in getattr(block, f'{modality}_unit').state_dict():
                names[f'encoder.layers.{7 + i}.{name}'] = f'blocks.{i}.{modality}_unit.{name}'
        return names

    def streams(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Colour (N, 128, H/8, W/8), depth (N, 128, h/8, w/8), interaction (N, 64, h/8, w/8)."""
        rgb, hha = super().streams(inputs)
        interaction = hha.new_zeros(hha.shape[0], hha.shape[1] // 2, *hha.shape[2:])
        for block in self.blocks:
            rgb, hha, interaction = block(rgb, hha, interaction)
        return rgb, hha, interaction
