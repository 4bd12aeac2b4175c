"""RFBNet (Deng et al., 2019) on AdapNet++: RFBs of bottleneck units, inside SSMA's fusion.

No code of the authors is public. What the text settles is built as it says; each choice it
leaves open is marked "Open:" with the reading taken here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.adapnetpp import (
    EXPANSION,
    STAGES,
    Bottleneck,
    State,
    scaled,
)
from rgbd_fusion_seg.training.networks.base import one_of
from rgbd_fusion_seg.training.networks.rfbnet import COMPLEMENTARY_POINTS, GatedFusionUnit
from rgbd_fusion_seg.training.networks.ssma_adapnetpp import SsmaAdapNetPp


class BottleneckFusionBlock(nn.Module):
    """What an RFB adds to a pair of bottleneck units (§IV-B); the encoders keep the units.

    The GFU reads the output of the units' first 1x1 layer, and the complementary features are
    added to the input of the 3x3.

    Open: C, half of which the interaction stream has, is the width of what the GFU reads, a
    quarter of the trunk's: so the stream stays light, and has the eASPP's 256 channels where it
    meets the eASPPs.

    Open: at point T the trunk carries the complementary features besides the residual function.
    As it is four times as wide, a 1x1 convolution widens them.

    Args:
        channels: C.
        complementary: 'residual', 'trunk' or 'none'.
        fusion: further arguments of `GatedFusionUnit`.
    """

    def __init__(self, channels: int, complementary: str, fusion: dict[str, Any]) -> None:
        super().__init__()
        self.fusion = GatedFusionUnit(channels, complementary=complementary != 'none', **fusion)
        self.on_trunk = complementary == 'trunk'
        if self.on_trunk:
            self.lift_rgb = nn.Conv2d(channels, EXPANSION * channels, 1, bias=False)
            self.lift_hha = nn.Conv2d(channels, EXPANSION * channels, 1, bias=False)

    def forward(
        self,
        units: tuple[Bottleneck, Bottleneck],
        rgb: State,
        hha: State,
        interaction: Tensor | None,
    ) -> tuple[State, State, Tensor]:
        """Return the three streams after the block.

        Args:
            units: the RGB and the depth encoder's unit, with identity shortcuts.
            rgb: trunk (N, 4C, H, W).
            hha: trunk (N, 4C, h, w), the same size or half of it, rounded up.
            interaction: (N, C/2, h, w); None, which is zero, at the first block.
        """
        rgb_reduced, hha_reduced = units[0].reduce(rgb), units[1].reduce(hha)
        if interaction is None:
            shape = hha_reduced.shape
            interaction = hha_reduced.new_zeros(shape[0], shape[1] // 2, *shape[2:])
        interaction, to_rgb, to_hha = self.fusion(rgb_reduced, hha_reduced, interaction)
        if to_rgb is not None:
            rgb_reduced, hha_reduced = rgb_reduced + to_rgb, hha_reduced + to_hha
        rgb_trunk, hha_trunk = rgb.trunk, hha.trunk
        if self.on_trunk:
            rgb_trunk = rgb_trunk + self.lift_rgb(to_rgb)
            hha_trunk = hha_trunk + self.lift_hha(to_hha)
        rgb = units[0].leave(rgb_trunk + units[0].expand(rgb_reduced))
        hha = units[1].leave(hha_trunk + units[1].expand(hha_reduced))
        return rgb, hha, interaction


class RfbNetAdapNetPp(SsmaAdapNetPp):
    """RFBNet(AdapNet++): SSMA with RFBs for its paired units from 1/8 on (§III-D, §IV-B).

    With ``multi_level`` this is the united structure of Fig. 5: bottom-up interaction in the
    encoders, SSMA's top-down fusion in the decoder. The interaction stream joins the deepest
    block.

    Open: the replaced units are the ten with identity shortcuts at 1/8 and 1/16 (block2 u2-u4,
    block3 u2-u6, block4 u2-u3), as Eqs. 2 and 3 have an identity as shortcut. Past the first
    units of block3 and block4, which change stride or width, the interaction stream follows
    the depth stream by 2x2 average pooling, where that has stride 2, and a 1x1 convolution.

    Args:
        num_classes: number of classes K.
        shrink_depth: the depth stream gets HHA at half the colour's size (§III-B).
        complementary: 'residual', 'trunk' or 'none', see `BottleneckFusionBlock` (Table IV).
        gates, output_gates, zero_start, pooling, gate_kernel: see `rfbnet.GatedFusionUnit`.
        combination: how the three streams are merged at 1/16, and the skips: 'ssma', 'concat'
            or 'sum'.
        multi_level: see `SsmaAdapNetPp`.
        backbone: the keyword-only options of `SsmaAdapNetPp`. With frozen experts the units
            still get complementary features.

    Raises:
        ValueError: an option with an unknown value.
    """

    def __init__(
        self,
        num_classes: int,
        shrink_depth: bool = True,
        complementary: str = 'residual',
        gates: bool = True,
        combination: str = 'ssma',
        multi_level: bool = True,
        *,
        output_gates: str = 'interaction',
        zero_start: bool = True,
        pooling: str = 'average',
        gate_kernel: int = 1,
        width: float = 1.0,
        **backbone: Any,
    ) -> None:
        super().__init__(
            num_classes, shrink_depth, combination, multi_level, width=width, **backbone
        )
        one_of('complementary', complementary, COMPLEMENTARY_POINTS)
        fusion = {
            'gates': gates,
            'output_gates': output_gates,
            'zero_start': zero_start,
            'pooling': pooling,
            'gate_kernel': gate_kernel,
        }
        widths = [scaled(stage.channels, width) for stage in STAGES]
        self.bridges = nn.ModuleList(nn.ModuleList() for _ in STAGES)
        for bridge, stage, channels in zip(self.bridges[1:], STAGES[1:], widths[1:], strict=True):
            for _ in stage.rates[1:]:
                bridge.append(BottleneckFusionBlock(channels, complementary, fusion))
        self.follow3 = nn.Conv2d(widths[1] // 2, widths[2] // 2, 1)
        self.follow4 = nn.Conv2d(widths[2] // 2, widths[3] // 2, 1)

    @staticmethod
    def interaction_widths(width: float) -> list[int]:
        """Channels of the interaction stream at 1/16."""
        return [scaled(STAGES[-1].channels, width) // 2]

    def encode(self, rgb: Tensor, hha: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Pass both images through the encoders and the blocks that bridge them.

        Returns:
            the outputs of both encoders' blocks, and [the interaction stream], (N, C/2, h, w)
            with the size of the deepest depth features.
        """
        states = self.rgb_encoder.stem(rgb), self.hha_encoder.stem(hha)
        rgb_outputs, hha_outputs, interaction = [], [], None
        blocks = zip(self.rgb_encoder.blocks, self.hha_encoder.blocks, self.bridges, strict=True)
        for number, (rgb_units, hha_units, bridge) in enumerate(blocks, 1):
            rgb_state, hha_state = rgb_units[0](states[0]), hha_units[0](states[1])
            if interaction is not None:
                interaction = self._follow(number, interaction)
            for i, pair in enumerate(zip(rgb_units[1:], hha_units[1:], strict=True)):
                if bridge:
                    rgb_state, hha_state, interaction = bridge[i](
                        pair, rgb_state, hha_state, interaction
                    )
                else:
                    rgb_state, hha_state = pair[0](rgb_state), pair[1](hha_state)
            states = rgb_state, hha_state
            rgb_outputs.append(rgb_state.active)
            hha_outputs.append(hha_state.active)
        return rgb_outputs, hha_outputs, [interaction]

    def _follow(self, number: int, interaction: Tensor) -> Tensor:
        """Bring the interaction stream to the stride and width of the depth stream's block."""
        if STAGES[number - 1].stride == 2:
            interaction = F.avg_pool2d(interaction, 2, ceil_mode=True)
        return getattr(self, f'follow{number}')(interaction)
