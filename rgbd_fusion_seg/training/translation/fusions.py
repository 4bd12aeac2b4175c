"""What happens between streams behind a layer of the translator.

A fusion takes the maps of the streams of a group, and the scales of the norms behind which it
stands, and returns as many maps. `exchange` is CEN, `shuffle`, `shift` and `both` are AsymFusion,
the others are what the papers compare them with (CEN Table 4, AsymFusion Table 3).

Open: AsymFusion's text says "at the 3rd, 5th, 7th layers of the encoder" (§4.2), and its Fig. 3
shows residual blocks, in which a convolution stands between two shuffles. A layer here has one
convolution, behind which the others' maps are added as they come from it, moved by a pixel
(Eq. 4), and channels are shuffled once. Open too are the layers of CEN's baselines beyond
"1st, 4th, 8th or all": here each stream goes on with what is made of its own map and the others',
by weights of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from rgbd_fusion_seg.training.networks.asymfusion import (
    AsymmetricFusion,
    SymmetricFusion,
    sources_of,
)
from rgbd_fusion_seg.training.networks.branches import Maps
from rgbd_fusion_seg.training.networks.cen import ChannelExchange
from rgbd_fusion_seg.training.translation.config import GeneratorConfig

instance_norm = partial(nn.InstanceNorm2d, affine=True)
"""Norm of a layer. Statistics are the image's own, in evaluation too: the public code keeps
running ones and never uses them, for it never leaves training mode."""


class Exchange(ChannelExchange):
    """CEN's exchange, see `ChannelExchange`."""

    def forward(self, maps: Maps, scales: Sequence[Tensor]) -> Maps:
        """M maps (N, C, h, w), M scales (C,) -> the same shapes."""
        return self.exchanged(maps, scales)

    def penalty(self, scales: Sequence[Tensor], penalised: str = 'own') -> Tensor:
        """Return the l1 norm of scales: of each stream's own part (CEN Eq. 4), or of 'all'."""
        parts = self.own if penalised == 'own' else [slice(None)] * len(scales)
        return sum(s[part].abs().sum() for s, part in zip(scales, parts, strict=True))


class Asymmetric(AsymmetricFusion):
    """AsymFusion's shift and shuffle."""

    def forward(self, maps: Maps, scales: Sequence[Tensor]) -> Maps:
        """M maps (N, C, h, w) -> the same shapes."""
        return self.after_second(maps, maps)


class Symmetric(SymmetricFusion):
    """Concatenation, average, attention or MMF, into each of the streams."""

    def forward(self, maps: Maps, scales: Sequence[Tensor]) -> Maps:
        """M maps (N, C, h, w) -> the same shapes."""
        return super().forward(maps)


def make_fusion(
    config: GeneratorConfig, num_streams: int, channels: int, normed: bool = True
) -> nn.Module:
    """Return what fuses a group's maps behind a layer of the encoder.

    Args:
        config: tells which; not 'align', which changes no map, nor 'none'.
        num_streams: M of the group, two or more.
        channels: C.
        normed: maps may be normalised; those of the last layer may be single pixels.
    """
    everyone = sources_of(range(num_streams))
    if config.fusion == 'exchange':
        return make_exchange(config, num_streams, channels)
    if config.fusion in ('shuffle', 'shift', 'both'):
        return Asymmetric(channels, everyone, config.fusion, config.split)
    return without_batch_norms(Symmetric(config.fusion, channels, everyone), normed)


def make_exchange(config: GeneratorConfig, num_streams: int, channels: int) -> Exchange:
    """Return the exchange of a layer."""
    return Exchange(
        num_streams, channels, 'threshold', config.threshold, config.form, parts='nearly_equal',
        whole=config.penalised == 'all',
    )  # fmt: skip


def without_batch_norms(fusion: nn.Module, normed: bool) -> nn.Module:
    """Return a fusion with instance norms for batch norms, as all of the U-Net has (CEN §4.2)."""
    for name, module in list(fusion.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            norm = instance_norm(module.num_features) if normed else nn.Identity()
            fusion.set_submodule(name, norm)
    return fusion
