"""The generator of CEN's image-to-image translation: pix2pix's U-Net, one pass a stream.

Every layer is a convolution of kernel 4 and stride 2 with a bias; the encoder's have
LeakyReLU(0.2) before and an instance norm behind them, but for the first, which has neither, and
the last, whose map may be a single pixel; the decoder's have ReLU before, a norm behind and
dropout in the first three, and see the encoder's map of their size besides; tanh ends it (Isola et
al., CVPR 2017; CEN §4.2).

What the public code does, where the texts say otherwise, is the default: the decoder's norms are
each stream's own, and channels are exchanged behind the six norms of the encoder. TPAMI's App. B
counts all eight layers, which no `form` brings here, for two have no scale to go by: the first has
no norm in pix2pix, and the eighth's map of a 256x256 image is a single pixel, of which an instance
norm leaves its offset alone, and none of the image. The TPAMI version has no code. Its Eq. 7 has
one encoding for all tasks and its Eq. 8 a weighted mean of encodings for each task; its Tables 7
to 9 count norms for every stream, and individual INs for "the four different input-output
combinations" (§4.4) are what is here.
Open: behind which layers channels are exchanged "on the decoders" (§3.4). Here it is behind all of
their norms, seven of a depth of eight, before the dropout.

The public code owns norms that it never uses, 1,158 parameters a stream, which are not here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.branches import Maps, each
from rgbd_fusion_seg.training.networks.multimodal import SoftmaxEnsemble
from rgbd_fusion_seg.training.networks.stage_fusion import Alignment
from rgbd_fusion_seg.training.translation.config import GeneratorConfig
from rgbd_fusion_seg.training.translation.fusions import (
    Exchange,
    instance_norm,
    make_exchange,
    make_fusion,
)
from rgbd_fusion_seg.training.translation.streams import Stream, grouped, leading_to, make_streams

SLOPE = 0.2
"""Of LeakyReLU below 0."""
WIDEST = 8
"""No layer has more channels than this times those of the first."""
DROPPED_LAYERS = 3
INITIAL_STD = 0.02
MIDDLE_LAYER = 3
"""Counted from 0; of an encoder of four layers it is the last."""
ASYMMETRIC_LAYERS = (6, 4, 2)
"""AsymFusion: the 3rd, 5th and 7th of eight layers (§4.2), counted back from behind the last, so
that the deepest fusion of a network of other depth, too, is behind the last norm."""


class Translation(NamedTuple):
    """What a generator makes of a batch."""

    streams: list[Tensor]
    """Float (N, 3, H, W), -1 to 1, of each stream that was asked for."""
    ensembles: dict[str, Tensor]
    """The same of each of their targets, by its name; of one with one stream, that one's."""
    penalty: Tensor
    """What the fusions add to the loss, without dimensions; alignment in training alone."""


class PerStream(nn.ModuleList):
    """A layer for each stream, some of them in common.

    Args:
        make: makes a layer.
        owners: for each stream the number of its layer, without gaps.
    """

    def __init__(self, make: Callable[[], nn.Module], owners: Sequence[int]) -> None:
        super().__init__(make() for _ in range(max(owners) + 1))
        self.owners = tuple(owners)

    def of(self, stream: int) -> nn.Module:
        """Return a stream's layer."""
        return self[self.owners[stream]]

    def forward(self, maps: Maps, streams: Sequence[int]) -> list[Tensor]:
        """Apply to each map the layer of its stream; the numbers of the streams come in order."""
        return [self.of(i)(x) for i, x in zip(streams, maps, strict=True)]


class GroupFusions(nn.Module):
    """The fusions behind a layer, one for each group of streams.

    Args:
        groups: numbers of the streams of each.
        make: given the number of streams of a group, makes its fusion.
        norms: those the fusions stand behind; None: there are none.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        make: Callable[[int], nn.Module],
        norms: PerStream | None,
    ) -> None:
        super().__init__()
        self.groups = [tuple(group) for group in groups]
        self.fusions = nn.ModuleList(make(len(group)) for group in groups)
        self._norms = [norms]  # a list, so that they are not this module's too

    def scales(self, group: Sequence[int]) -> list[Tensor]:
        """Return the scales of the norms of a group's streams."""
        norms = self._norms[0]
        return [] if norms is None else [norms.of(i).weight for i in group]

    def within(self, streams: Sequence[int]) -> list[tuple[tuple[int, ...], nn.Module]]:
        """Return the groups, with their fusions, of which all streams are among these."""
        pairs = zip(self.groups, self.fusions, strict=True)
        return [(group, fusion) for group, fusion in pairs if {*group} <= {*streams}]

    def forward(self, maps: Maps, streams: Sequence[int]) -> list[Tensor]:
        """Fuse the maps (N, C, h, w) of streams, whose numbers come in order."""
        fused = dict(zip(streams, maps, strict=True))
        for group, fusion in self.within(streams):
            made = fusion([fused[i] for i in group], self.scales(group))
            fused |= zip(group, made, strict=True)
        return list(fused.values())

    def penalties(self, penalised: str, streams: Sequence[int]) -> list[Tensor]:
        """Return the l1 norms of the scales that exchanges look at, see `Exchange.penalty`."""
        return [f.penalty(self.scales(g), penalised) for g, f in self.within(streams)]


class Translator(nn.Module):
    """The generator of all streams.

    Args:
        inputs, targets: image domains, see `streams.make_streams`.
        config: see `GeneratorConfig`.

    Raises:
        InputError: domains that make no streams.
        ValueError: a fusion of streams where no two have a target (in decoders: an input) in
            common, channels that the fusion cannot divide, or groups that are no partition.
    """

    def __init__(
        self, inputs: Sequence[str], targets: Sequence[str], config: GeneratorConfig
    ) -> None:
        super().__init__()
        self.config, self.streams = config, make_streams(inputs, targets)
        self.keeps_dropout = False
        """Drop in evaluation too, as pix2pix does."""
        self.targets = tuple(targets)
        self.by_target = grouped(self.streams, 'target')
        widths = [config.width * min(2**i, WIDEST) for i in range(config.depth)]
        self._make_encoder(widths)
        self._make_decoder(widths)
        fused = [group for group in self.by_target.values() if len(group) > 1]
        shared = [group for group in grouped(self.streams, 'input').values() if len(group) > 1]
        if config.fusion != 'none' and not fused:
            raise ValueError(
                f'fusion {config.fusion} is between streams of one target, and no target has '
                "two inputs; give fusion 'none'"
            )
        if config.exchange_decoders and not shared:
            raise ValueError(
                'exchange_decoders is between streams of one input, and no input has two targets; '
                'leave it out'
            )
        self._make_fusions(widths, fused, shared)
        self.ensembles = nn.ModuleDict(
            {
                target: SoftmaxEnsemble(len(group), config.detach_ensemble)
                for target, group in self.by_target.items()
                if len(group) > 1
            }
        )
        self._initialise()

    def _owners(self, how: str) -> list[int]:
        """Return for each stream the number of its layers."""
        if how == 'per_target':
            return [self.targets.index(stream.target) for stream in self.streams]
        return [0 if how == 'shared' else number for number in range(len(self.streams))]

    def _encoder_owners(self) -> list[int]:
        """Return for each stream the number of its encoder.

        Open: how tasks are grouped in TPAMI's Table 8, and whether their decoders exchange within
        groups; here it is among all targets of an input.

        Raises:
            ValueError: groups that are no partition of the targets.
        """
        groups = self.config.encoder_groups
        if not groups:
            return self._owners(self.config.encoders)
        if sorted(itertools.chain(*groups)) != sorted(self.targets) or not all(groups):
            raise ValueError(
                f'encoder_groups must name each target once, {", ".join(self.targets)}, '
                f'not {groups}'
            )
        numbers = {target: number for number, group in enumerate(groups) for target in group}
        return [numbers[stream.target] for stream in self.streams]

    def _make_encoder(self, widths: Sequence[int]) -> None:
        owners = self._encoder_owners()
        norms = self._norm_owners(self.config.encoder_norms, owners)
        self.encoder, self.encoder_norms = nn.ModuleList(), nn.ModuleList()
        for i, (below, width) in enumerate(zip([3, *widths], widths, strict=False)):
            self.encoder.append(PerStream(lambda a=below, b=width: _conv(a, b), owners))
            normed = 0 < i < len(widths) - 1
            self.encoder_norms.append(PerStream(lambda b=width, n=normed: _norm(b, n), norms))

    def _make_decoder(self, widths: Sequence[int]) -> None:
        owners = self._owners(self.config.decoders)
        norms = self._norm_owners(self.config.decoder_norms, owners)
        self.decoder, self.decoder_norms = nn.ModuleList(), nn.ModuleList()
        for below, width in itertools.pairwise([*reversed(widths), 3]):
            seen = below if not len(self.decoder) else 2 * below  # the encoder's map besides
            self.decoder.append(PerStream(lambda a=seen, b=width: _deconv(a, b), owners))
            last = len(self.decoder) == len(widths)
            self.decoder_norms.append(PerStream(lambda b=width, n=not last: _norm(b, n), norms))

    def _norm_owners(self, how: str, owners: list[int]) -> list[int]:
        """Return for each stream the number of its norms, given that of its convolutions."""
        return owners if how == 'shared' else self._owners('per_stream')

    def _make_fusions(
        self, widths: Sequence[int], fused: list[list[int]], shared: list[list[int]]
    ) -> None:
        config, last = self.config, len(widths) - 1
        self.encoder_fusions, self.decoder_fusions = nn.ModuleDict(), nn.ModuleDict()
        self.alignments = nn.ModuleDict()
        for i in fused_layers(config):
            norms = self.encoder_norms[i] if 0 < i < last else None
            if config.fusion == 'align':
                self.alignments[str(i)] = nn.ModuleList(
                    Alignment(len(group), widths[i]) for group in fused
                )
                continue
            self.encoder_fusions[str(i)] = GroupFusions(
                fused, lambda m, i=i: make_fusion(config, m, widths[i], i < last), norms
            )
        if config.exchange_decoders:
            for i, width in enumerate(list(reversed(widths))[1:]):
                self.decoder_fusions[str(i)] = GroupFusions(
                    shared,
                    lambda m, w=width: make_exchange(config, m, w),
                    self.decoder_norms[i],
                )

    def _initialise(self) -> None:
        """Draw as pix2pix does: convolutions of N(0, 0.02), those of fusions too.

        A concatenation could begin as the mean of its maps, as it does in segmentation, but that
        costs it a tenth (docs/results.md).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0, INITIAL_STD)
        if self.config.initial_scales == 'uniform':
            for fusions in self.exchanges().values():
                for group in fusions.groups:
                    for scale in fusions.scales(group):
                        nn.init.uniform_(scale)

    def exchanges(self) -> dict[str, GroupFusions]:
        """Return the layers behind which channels are exchanged, by name."""
        named = {
            **{f'encoder.{i}': f for i, f in self.encoder_fusions.items()},
            **{f'decoder.{i}': f for i, f in self.decoder_fusions.items()},
        }
        return {k: f for k, f in named.items() if isinstance(f.fusions[0], Exchange)}

    def forward(self, images: Mapping[str, Tensor], target: str = '') -> Translation:
        """Translate.

        Args:
            images: float (N, 3, H, W), -1 to 1, of each input domain; H and W are multiples of
                2**depth.
            target: go to it alone, as if there were no other streams; '': go to all.

        Raises:
            ValueError: a domain is absent, or of another size.
        """
        streams = leading_to(self.streams, target)
        self._check(images, streams)
        maps, skips, terms = [images[self.streams[i].input] for i in streams], [], []
        for i, (conv, norm) in enumerate(zip(self.encoder, self.encoder_norms, strict=True)):
            if i:
                maps = each(lambda x: F.leaky_relu(x, SLOPE), maps)
            maps = norm(conv(maps, streams), streams)
            maps = self._fused(self.encoder_fusions, i, maps, streams)
            terms += self._alignment(i, maps, streams)
            skips.append(maps)
        maps = skips.pop()
        for i, (conv, norm) in enumerate(zip(self.decoder, self.decoder_norms, strict=True)):
            if i:
                maps = [torch.cat(pair, 1) for pair in zip(maps, skips.pop(), strict=True)]
            maps = norm(conv(each(F.relu, maps), streams), streams)
            maps = self._fused(self.decoder_fusions, i, maps, streams)
            if i < DROPPED_LAYERS:
                drops = self.training or self.keeps_dropout
                maps = [F.dropout(x, self.config.dropout, drops) for x in maps]
        made = dict(zip(streams, each(torch.tanh, maps), strict=True))
        return Translation(
            list(made.values()), self._ensembles(made), self._penalty(maps[0], terms, streams)
        )

    @staticmethod
    def _fused(fusions: nn.ModuleDict, layer: int, maps: Maps, streams: Sequence[int]) -> Maps:
        return fusions[str(layer)](maps, streams) if str(layer) in fusions else maps

    def _alignment(self, layer: int, maps: Maps, streams: Sequence[int]) -> list[Tensor]:
        if str(layer) not in self.alignments or not self.training:  # nothing to be learnt
            return []
        groups = [group for group in self.by_target.values() if len(group) > 1]
        pairs = zip(self.alignments[str(layer)], groups, strict=True)
        found = dict(zip(streams, maps, strict=True))
        return [
            self.config.align_weight * align([found[i] for i in group])
            for align, group in pairs
            if {*group} <= {*found}
        ]

    def _ensembles(self, made: Mapping[int, Tensor]) -> dict[str, Tensor]:
        found = {}
        for target, group in self.by_target.items():
            maps = [made[i] for i in group if i in made]
            if maps:
                found[target] = self.ensembles[target](maps) if len(maps) > 1 else maps[0]
        return found

    def _penalty(self, like: Tensor, terms: list[Tensor], streams: Sequence[int]) -> Tensor:
        if self.config.sparsity:
            layers, which = self.exchanges().values(), self.config.penalised
            found = [p for fusions in layers for p in fusions.penalties(which, streams)]
            terms = [*terms, *(self.config.sparsity * p for p in found)]
        return torch.stack([x.float() for x in terms]).sum() if terms else like.new_zeros(())

    def _check(self, images: Mapping[str, Tensor], streams: Sequence[int]) -> None:
        multiple = 2**self.config.depth
        for name in {self.streams[i].input: None for i in streams}:
            if name not in images:
                raise ValueError(f'the generator reads {name}, which is not given')
            height, width = images[name].shape[2:]
            if height % multiple or width % multiple:
                fits = [-(-side // multiple) * multiple for side in (width, height)]
                raise ValueError(
                    f'{name} is {width}x{height}, and {self.config.depth} layers need multiples '
                    f'of {multiple}, such as {fits[0]}x{fits[1]}'
                )

    @torch.no_grad()
    def monitored(self) -> dict[str, float]:
        """Return the ensembles' weights and each stream's share of exchanged channels."""
        values = {}
        for target, ensemble in self.ensembles.items():
            group = self.by_target[target]
            for i, weight in zip(group, ensemble.weights.tolist(), strict=True):
                values[f'weight/{self.streams[i]}'] = weight
        return values | {f'exchanged/{s}': x for s, x in self.exchanged_shares().items()}

    @torch.no_grad()
    def exchanged_shares(self) -> dict[Stream, float]:
        """Return the share of its channels that each stream takes from others, 0..1."""
        kept: dict[Stream, list[Tensor]] = {}
        for fusions in self.exchanges().values():
            for group, exchange in zip(fusions.groups, fusions.fusions, strict=True):
                masks = exchange.kept_by(fusions.scales(group))
                for i, mask in zip(group, masks, strict=True):
                    kept.setdefault(self.streams[i], []).append(mask)
        return {s: 1 - float(torch.cat(masks).float().mean()) for s, masks in kept.items()}


def fused_layers(config: GeneratorConfig) -> list[int]:
    """Return the layers of the encoder behind which its streams are fused, counted from 0.

    Channels are exchanged behind the norms, in either `form`: the 2nd to 7th of eight layers, see
    the module. AsymFusion's layers are `ASYMMETRIC_LAYERS`, the others' are chosen by
    `fused_layers`.
    """
    last = config.depth - 1
    asymmetric = [config.depth - i for i in ASYMMETRIC_LAYERS if config.depth > i]
    if config.fusion == 'none':
        return []
    if config.fusion == 'exchange':
        return list(range(1, last))
    if config.fusion in ('shuffle', 'shift', 'both'):
        return asymmetric
    layers = {
        'early': [0],
        'middle': [MIDDLE_LAYER],
        'late': [last],
        'all': list(range(config.depth)),
        'asymfusion': asymmetric,
    }
    return layers[config.fused_layers]


def _norm(channels: int, normed: bool) -> nn.Module:
    return instance_norm(channels) if normed else nn.Identity()


def _conv(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 4, 2, 1)


def _deconv(in_channels: int, out_channels: int) -> nn.Module:
    return nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1)
