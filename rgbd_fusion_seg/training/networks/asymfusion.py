"""AsymFusion (Wang et al., ACM MM 2020): channel shuffle and pixel shift between branches.

Branches of shared convolutions and private batch norms. In the last block of each stage of the
encoder (for Xception, of each flow, §4.2) channels change places between the branches behind the
first and before the last convolution, and each branch's features are added to the others', moved
by one pixel, behind the second convolution (§3.2, Fig. 3). Nothing of it has parameters, and
fusion by it is asymmetric: what one branch receives, no 1x1 convolution could make of what the
other does.

``split='public'`` is what the authors' code does, with g = C // 5; ``'paper'`` is the text. Pixel
(y, x) of the shifted map comes from (y + dy, x + dx), from outside as 0:

============== ==================================== =======================================
               public code                          paper
============== ==================================== =======================================
own channels   the first T = 4 g, 75 to 80 %        the first 70 % (Eq. 2), rounded
shifted        the first T, in 4 groups of g        all, in 4 groups of C / 4 (Eq. 3)
(dy, dx) of    (-1, 0), (0, -1), (0, 1), (1, 0)     (0, -1), (-1, 0), (0, 1), (1, 0)
the groups
distillation   none                                 of the branches toward the ensemble (§4.2)
norms          ImageNet's statistics, kept          statistics of the mini-batch (Eq. 1)
============== ==================================== =======================================

``split`` decides the first three rows; the others are the options ``distillation``, 0 by default,
and ``freeze_norms``, false by default.

Eq. 3 indexes its offsets by ⌊c/4⌋; C/4 channels a group leave no other reading than ⌊c/(C/4)⌋.
What is shifted are the features behind the first shuffle, which the public code's choice of
channels makes the same as those before it.

Open, as the paper refers to a supplement that is not at hand: more than two modalities. The
channels beyond T are then divided among the others in turn, nearly equally, so that no channel of
a branch is used twice, which is what makes the shuffle asymmetric; and the mean of the others'
shifted maps is added, as CEN exchanges (its Eq. 6). For two modalities that is the public code.

What it is compared with by direction (Table 6) stands in the same place, `SymmetricFusion`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.base import one_of
from rgbd_fusion_seg.training.networks.branches import BlockFusion, Maps, mean
from rgbd_fusion_seg.training.networks.multimodal import MultimodalNetwork, require_several
from rgbd_fusion_seg.training.networks.resnet import ResNet
from rgbd_fusion_seg.training.networks.stage_fusion import AGGREGATIONS, make_aggregation

OPERATIONS = ('both', 'shuffle', 'shift', 'unmoved', 'none')
DIRECTIONS = ('both', 'depth_to_rgb', 'rgb_to_depth')
OFFSETS = {
    'public': ((-1, 0), (0, -1), (0, 1), (1, 0)),
    'paper': ((0, -1), (-1, 0), (0, 1), (1, 0)),
}
"""Rows and columns from a shifted pixel to where it comes from, of each group of channels."""
OWN_SHARE = 0.7
"""Of the channels in the paper's shuffle (§3.2)."""

Sources = Sequence[Sequence[int]]
"""For each branch the branches it receives from, in the order in which they give channels."""


def own_channels(channels: int, split: str = 'public') -> int:
    """Return T: the shuffle leaves a branch its first T of C channels.

    Raises:
        ValueError: too few channels to divide.
    """
    own = channels // 5 * 4 if split == 'public' else round(OWN_SHARE * channels)
    if not 1 < own < channels:
        raise ValueError(
            f'{channels} channels cannot be divided for the {split} shuffle; take a wider network'
        )
    return own


def shifted_group(channels: int, split: str = 'public') -> int:
    """Return how many channels are shifted in one direction.

    Raises:
        ValueError: channels that do not divide as the form needs.
    """
    if split == 'public' and channels >= 5:
        return channels // 5
    if split == 'paper' and channels % 4 == 0:
        return channels // 4
    needed = 'five channels or more' if split == 'public' else 'a multiple of four channels'
    raise ValueError(
        f'the {split} shift needs {needed}, got {channels}; take another width or the other split'
    )


def sources_of(modalities: Sequence[object], direction: str = 'both') -> list[list[int]]:
    """Return which branches each branch receives from (Table 6).

    Args:
        modalities: of the branches; with 'both' their number alone counts.
        direction: 'both': all others, beginning with the next; 'depth_to_rgb': the colour branch
            from all others, these from none and thus unimodal; 'rgb_to_depth': the others from
            the colour branch, that from none.

    Raises:
        ValueError: one direction where there is no colour.
    """
    count = len(modalities)
    if direction == 'both':
        return [[(branch + i) % count for i in range(1, count)] for branch in range(count)]
    if 'rgb' not in modalities:
        raise ValueError(
            f'direction {direction!r} needs the modality rgb, got {", ".join(modalities)}; '
            "take direction 'both'"
        )
    rgb = list(modalities).index('rgb')
    others = [branch for branch in range(count) if branch != rgb]
    if direction == 'depth_to_rgb':
        return [others if branch == rgb else [] for branch in range(count)]
    return [[] if branch == rgb else [rgb] for branch in range(count)]


def channel_shuffle(maps: Maps, own: int, sources: Sources) -> list[Tensor]:
    """Give each branch its own first channels and the others' further ones (Eq. 2).

    Args:
        maps: (N, C, h, w) of each branch.
        own: T of `own_channels`.
        sources: of `sources_of`. Several sources give parts that differ by up to one channel; a
            branch without sources stays as it is.

    Returns:
        maps of the same shapes; every channel stays at its place among the channels.
    """
    return _joined([x[:, :own] for x in maps], [x[:, own:] for x in maps], sources)


def _joined(own: Maps, further: Maps, sources: Sources) -> list[Tensor]:
    """Put the further channels of those a branch receives from, or its own, behind its own."""
    channels = further[0].shape[1]
    joined = []
    for m, givers in enumerate(sources):
        givers = givers or [m]
        bounds = [channels * i // len(givers) for i in range(len(givers) + 1)]
        parts = [further[giver][:, bounds[i] : bounds[i + 1]] for i, giver in enumerate(givers)]
        joined.append(torch.cat([own[m], *parts], 1))
    return joined


def pixel_shift(maps: Maps, group: int, offsets: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Move groups of channels by one pixel each (Eq. 3).

    Args:
        maps: (N, C, h, w) of each branch.
        group: channels of a group; the first group begins at the first channel.
        offsets: (dy, dx) of each group, -1 to 1; see `OFFSETS`.

    Returns:
        maps (N, groups * group, h, w); pixels from outside are 0. The public code has zeros in
        the channels behind, which are left out here.
    """
    # Padding by -1 on one side and 1 on the other moves: one operation, at any size.
    return [
        torch.cat(
            [
                F.pad(part, (-dx, dx, -dy, dy))
                for part, (dy, dx) in zip(x.split(group, 1), offsets, strict=False)
            ],
            1,
        )
        for x in maps
    ]


def distillation_loss(fused: Tensor, logits: Maps, temperature: float = 1.0) -> Tensor:
    """Return how far the branches' predictions are from the ensemble's (§4.2).

    The sum over branches m of τ² KL(softmax(z / τ) ‖ softmax(z_m / τ)), the mean over all pixels,
    labelled or not, with z the ensemble's logits, which take no gradient, and z_m a branch's.
    Hinton et al. (2015) bring in τ, and τ² to keep gradients of one size. Open: the paper tells
    neither temperature nor weight nor the divergence.

    Args:
        fused: z, (N, K, h, w).
        logits: z_m of the same shape.
        temperature: τ.
    """
    target = (fused.detach().float() / temperature).log_softmax(1)
    total = target.new_zeros(())
    for x in logits:
        own = (x.float() / temperature).log_softmax(1)
        total = total + F.kl_div(own, target, reduction='none', log_target=True).sum(1).mean()
    return temperature**2 * total


class AsymmetricFusion(BlockFusion):
    """Shuffle, shift and shuffle inside a residual block (Fig. 3c).

    Args:
        channels: C of the maps inside the block.
        sources: of `sources_of`.
        operations: 'both', 'shuffle', 'shift' or 'none'; 'unmoved' is 'both' without the motion,
            which leaves the added connections (§4.4).
        split: 'public' or 'paper', see the module.

    Raises:
        ValueError: channels that do not divide as the form needs.
    """

    def __init__(
        self,
        channels: int,
        sources: Sources,
        operations: str = 'both',
        split: str = 'public',
    ) -> None:
        super().__init__()
        self.sources = sources
        self.own = self.group = 0
        self.offsets = ((0, 0),) * 4 if operations == 'unmoved' else OFFSETS[split]
        if operations in ('both', 'unmoved', 'shuffle'):
            self.own = own_channels(channels, split)
        if operations in ('both', 'unmoved', 'shift'):
            self.group = shifted_group(channels, split)

    def after_first(self, maps: Maps) -> Maps:
        """Shuffle: maps (N, C, h, w) -> the same shapes."""
        return channel_shuffle(maps, self.own, self.sources) if self.own else maps

    def after_second(self, maps: Maps, first: Maps) -> Maps:
        """Add the others' shifted features, and shuffle.

        Args:
            maps: (N, C, h, w).
            first: (N, C, h', w'), what is shifted, as `after_first` returned it. In a block with
                a stride of 2, which is the last of its stage only in ResNet-14, they are larger;
                then the pixels on which the convolution is centred are taken.
        """
        if not self.group:
            return self.after_first(maps)
        shifted = self._shifted(first, halved=first[0].shape[2:] != maps[0].shape[2:])
        end = self.group * len(self.offsets)
        added = [
            x[:, :end] + mean([shifted[giver] for giver in givers]) if givers else x[:, :end]
            for x, givers in zip(maps, self.sources, strict=True)
        ]
        if end == maps[0].shape[1]:
            return self.after_first(added)
        # Here the shuffle begins where the shift ends, so that both make one concatenation.
        sources = self.sources if self.own else [()] * len(maps)
        return _joined(added, [x[:, end:] for x in maps], sources)

    def _shifted(self, maps: Maps, halved: bool) -> dict[int, Tensor]:
        """Return the shifted maps of the branches from which others receive, by branch."""
        givers = sorted({giver for givers in self.sources for giver in givers})
        moved = pixel_shift([maps[g] for g in givers], self.group, self.offsets)
        if halved:
            moved = [x[..., ::2, ::2] for x in moved]
        return dict(zip(givers, moved, strict=True))


class SymmetricFusion(nn.ModuleList):
    """Concatenation, average or attention in the place of shuffle and shift (Table 6).

    Each branch that receives goes on with what the fusion makes of its map and those of the
    branches it receives from; one that receives from none stays unimodal (Fig. 2).

    Open: the paper tells neither layers nor place. These are the aggregations of CEN's baselines
    (`make_aggregation`) behind each stage, whose last blocks AsymFusion fuses in, with weights of
    their own for each receiving branch.

    Args:
        name: a key of `make_aggregation`.
        channels: of the maps behind the stage.
        sources: of `sources_of`.
    """

    def __init__(self, name: str, channels: int, sources: Sources) -> None:
        super().__init__(
            make_aggregation(name, 1 + len(givers), channels) if givers else nn.Identity()
            for givers in sources
        )
        self.sources = sources

    def forward(self, maps: Maps) -> list[Tensor]:
        """Fuse: maps (N, C, h, w) -> the same shapes."""
        return [
            fuse(x, *(maps[giver] for giver in givers))
            for fuse, x, givers in zip(self, maps, self.sources, strict=True)
        ]


class AsymFusion(MultimodalNetwork):
    """Branches that shuffle and shift in the last block of each stage of the encoder.

    Args:
        num_classes: number of classes K.
        modalities: two or more; for more than two see the module.
        operations: 'both', 'shuffle', 'shift' or 'none' (Table 5); 'unmoved': both, but nothing
            is moved (§4.4); or one of those that it is compared with, on a ResNet: by direction
            'concat', 'average' and 'attention' (Table 6), in translation 'mmf' too (Table 3,
            `SymmetricFusion`).
        split: 'public' or 'paper', see the module.
        direction: who receives, see `sources_of` (Table 6).
        distillation: weight of `distillation_loss`; 0, as in the public code: none.
        temperature: τ of the same.
        options: of `MultimodalNetwork`.

    Raises:
        ValueError: an option with an unknown value, one modality alone, channels that do not
            divide as the form needs, or a symmetric fusion on another backbone than a ResNet.
    """

    def __init__(
        self,
        num_classes: int,
        modalities: Sequence[str] = ('rgb', 'hha'),
        operations: str = 'both',
        split: str = 'public',
        direction: str = 'both',
        distillation: float = 0.0,
        temperature: float = 1.0,
        **options: Any,
    ) -> None:
        one_of('operations', operations, (*OPERATIONS, *AGGREGATIONS))
        one_of('split', split, OFFSETS)
        one_of('direction', direction, DIRECTIONS)
        if not 0 <= distillation < math.inf:
            raise ValueError(f'distillation must be finite and not negative, got {distillation}')
        if not 0 < temperature < math.inf:
            raise ValueError(f'temperature must be finite and greater than 0, got {temperature}')
        require_several('two or more modalities are fused', modalities)
        self._fusion = (operations, split)
        self._direction = direction
        super().__init__(num_classes, modalities=modalities, **options)
        self.distillation, self.temperature = distillation, temperature
        self._symmetric = operations in AGGREGATIONS
        if not self._symmetric:
            return
        if not isinstance(self.encoder, ResNet):
            raise ValueError(
                f'{operations} behind stages needs a ResNet, got the backbone '
                f'{self.backbone_name!r}'
            )
        self.fusions = nn.ModuleList(
            SymmetricFusion(operations, channels, self._sources)
            for channels in self.encoder.channels
        )

    @property
    def _sources(self) -> list[list[int]]:
        return sources_of(self.modalities, self._direction)

    def block_fusion(
        self, stage: int, block: int, num_blocks: int, channels: int
    ) -> BlockFusion | None:
        """Return the fusion of the last block of a stage."""
        if block < num_blocks - 1 or self._fusion[0] in ('none', *AGGREGATIONS):
            return None
        return AsymmetricFusion(channels, self._sources, *self._fusion)

    def after_stage(self, stage: int, maps: Maps) -> Maps:
        """Fuse, where this is done behind stages."""
        return self.fusions[stage](maps) if self._symmetric else maps

    def loss_terms(self, features: Sequence[Maps], logits: Maps, fused: Tensor) -> list[Tensor]:
        """Return the branches' distance from the ensemble, where it has a weight."""
        if not self.distillation:
            return []
        return [self.distillation * distillation_loss(fused, logits, self.temperature)]

    def unimodal_form(self, modality: str) -> tuple[str, dict[str, Any], dict[str, Tensor]] | None:
        """Return the branch of a modality as a network, if it does without the others.

        A branch that goes on with a fused map does not.
        """
        fused = self._symmetric and self._sources[self.modalities.index(modality)]
        return None if fused else super().unimodal_form(modality)
