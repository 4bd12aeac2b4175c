"""Channel Exchanging Networks (Wang et al., NeurIPS 2020; TPAMI version) for segmentation.

Branches of shared convolutions and private batch norms. After the norm of each 3x3 convolution a
channel whose scale γ is small, thus unimportant to its branch, is replaced by the other branches'
map of that channel (§3.3); an l1 penalty on a part of the scales makes some small.

The defaults are those of the authors' public code, whose figures the README of that code reports;
``form='paper'`` is what the papers' text says. They differ:

============== ==================================== =======================================
               public code                          papers
============== ==================================== =======================================
kept where     |γ| >= θ                             γ > θ
exchanged      any channel                          those of the branch's own part (§3.3)
penalty        2e-4, once for each of the M+1       5e-3, once
               predictions that have a loss
loss           on the ensemble and every branch     on the ensemble (Eq. 4)
norms          ImageNet's statistics, kept          statistics of the mini-batch (Eq. 5)
============== ==================================== =======================================

The loss of the papers' Eq. 4 alone is the option ``detach_branches=False`` with
``loss.auxiliary`` 0 in the run's configuration, norms are the option ``freeze_norms``, false by
default; the other rows follow ``form``.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rgbd_fusion_seg.training.networks.base import one_of
from rgbd_fusion_seg.training.networks.branches import (
    BlockFusion,
    Maps,
    mean,
    norm_scales,
)
from rgbd_fusion_seg.training.networks.multimodal import MultimodalNetwork, require_several
from rgbd_fusion_seg.training.networks.settled_exchange import SELECTING, discarding

FORMS = ('public', 'paper')
SPARSITY = {'public': 2e-4, 'paper': 5e-3}
EXCHANGES = ('threshold', 'fixed', 'random', 'discard', 'sum', 'gated_sum', 'none')
NO_SELECTION = ('sum', 'gated_sum', 'none')
"""Those that replace no channel."""
PENALISED = ('own', 'all', 'none')
PARTS = ('equal', 'nearly_equal')
QUANTILES = (0.1, 0.5, 0.9)
"""Of the penalised scales, that a run logs."""


def own_parts(channels: int, num_branches: int, parts: str = 'equal') -> list[slice]:
    """Divide the channels into one part for each branch (§3.3).

    Args:
        channels: C.
        num_branches: M.
        parts: 'equal'; or 'nearly_equal', where parts differ by up to one channel.

    Returns:
        the M parts, in order.

    Raises:
        ValueError: M does not divide C, and the parts are to be equal.
    """
    if parts == 'equal' and channels % num_branches:
        raise ValueError(
            f'{channels} channels cannot be divided into {num_branches} equal parts, one for '
            "each modality; set parts to 'nearly_equal'"
        )
    ends = [channels * m // num_branches for m in range(num_branches + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(ends)]


class ChannelExchange(BlockFusion):
    """Replaces a branch's unimportant channels by the mean of the other branches' (Eq. 6).

    All decisions use the maps as they come, so a channel small in both of two branches swaps.
    Gradients are those of the selection: a map that is replaced and given to nobody gets none,
    one that is given gets the sum from all places it is used in.

    Args:
        num_branches, channels: M and C of the maps.
        exchange: 'threshold' compares scales with θ. The papers' ablations (§4.1): 'fixed'
            replaces the first ``portion`` of C in each branch's own part, 'random' as many drawn
            once anywhere, neither looks at scales; 'discard' puts zeros in place of what
            'threshold' would replace; 'sum' gives every branch the sum of all maps, 'gated_sum'
            its own map and the others' times a learnt gate, one a channel; 'none' does nothing.
            Open: "directly summing activations (discarding the 1st term in Equation 6)" is read as
            the sum of all maps; without the first case of Eq. 6 each branch would have the mean of
            the others' alone, which is no sum. Open too are the form of the "learnt soft gate",
            which channels the fixed 30 % are, and of "randomly like ShuffleNet" how many, from
            where, and whether they are drawn once, as here, or anew in each step.
        threshold: θ.
        form: 'public' or 'paper', see the module.
        whole: let the paper's form exchange all channels, not those of the branch's part alone.
        portion: of 'fixed' and 'random'.
        parts: see `own_parts`.
    """

    def __init__(
        self,
        num_branches: int,
        channels: int,
        exchange: str = 'threshold',
        threshold: float = 2e-2,
        form: str = 'public',
        portion: float = 0.3,
        parts: str = 'equal',
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.num_branches, self.exchange = num_branches, exchange
        self.threshold, self.form, self.whole = threshold, form, whole
        self.channels, self.portion = channels, portion
        self.own = own_parts(channels, num_branches, parts)
        if exchange == 'random':
            drawn = torch.rand(num_branches, channels).argsort(1).argsort(1)
            self.register_buffer('chosen', drawn < round(portion * channels))
        elif exchange == 'gated_sum':
            # One axis, as scales of norms have: what has more is decayed.
            self.gate = nn.Parameter(torch.zeros(num_branches * channels))

    def kept(self, norm: nn.Module) -> list[Tensor]:
        """Return where each branch keeps its own channels: M bool tensors (C,).

        Args:
            norm: of `BranchLayers`, whose output is exchanged.
        """
        return self.kept_by(norm_scales(norm, self.num_branches))

    def kept_by(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """Return the same for the scales γ of each branch's norm, (C,) each."""
        if self.exchange == 'random':
            return list(~self.chosen)
        if self.form == 'public' and self.exchange in ('threshold', 'discard'):
            return [scale.abs() >= self.threshold for scale in scales]
        masks = [torch.ones_like(scale, dtype=torch.bool) for scale in scales]
        for mask, scale, own in zip(masks, scales, self.own, strict=True):
            if self.exchange == 'fixed':
                chosen = round(self.portion * self.channels)
                mask[own.start : min(own.start + chosen, own.stop)] = False
            elif self.exchange in ('threshold', 'discard'):
                looked_at = slice(None) if self.whole else own
                mask[looked_at] = scale[looked_at] > self.threshold
        return masks

    def after_norm(self, maps: Maps, norm: nn.Module) -> Maps:
        """Exchange: M maps (N, C, h, w) -> the same shapes."""
        return self.exchanged(maps, norm_scales(norm, self.num_branches))

    def exchanged(self, maps: Maps, scales: Sequence[Tensor]) -> Maps:
        """Exchange maps behind norms of these scales, (C,) each."""
        if self.exchange == 'none':
            return maps
        if self.exchange in ('sum', 'gated_sum'):
            return self._summed(maps)
        replaced = []
        for m, (own, kept) in enumerate(zip(maps, self.kept_by(scales), strict=True)):
            others = [x for i, x in enumerate(maps) if i != m]
            other = torch.zeros_like(own) if self.exchange == 'discard' else mean(others)
            replaced.append(torch.where(kept[:, None, None], own, other))
        return replaced

    def _summed(self, maps: Maps) -> list[Tensor]:
        total = sum(maps)
        if self.exchange == 'sum':
            return [total] * len(maps)
        gates = self.gate.sigmoid().view(self.num_branches, -1, 1, 1)
        return [x + gate * (total - x) for x, gate in zip(maps, gates, strict=True)]


class ChannelExchangingNetwork(MultimodalNetwork):
    """CEN: branches that exchange channels inside every residual block of the encoder.

    Args:
        num_classes: number of classes K.
        modalities: two or more; with more than two the mean of the others comes in (Eq. 6).
        exchange, threshold, form, portion, parts: see `ChannelExchange`.
        blocks: 'all' blocks exchange, or the 'last' one of each stage (an ablation of §4.1).
        penalised: scales under the l1 penalty: those of the branch's 'own' part, 'all' or
            'none' (Table 1). With 'all' the paper's form exchanges all channels, too.
        sparsity: λ of the penalty; None: 2e-4 in the public form, which counts it once for each
            of the M+1 predictions, 5e-3 in the paper's.
        initial_scales: what the scales that are compared begin with: 'one', or 'uniform' draws
            from 0 to 1. Not the papers', which start from ImageNet weights, whose scales differ
            from channel to channel: scales that all begin with 1 shrink together, and an
            optimiser that normalises gradients takes all that are penalised below θ at once.
        options: of `MultimodalNetwork`.

    Raises:
        ValueError: an option with an unknown value, one modality alone, or channels that cannot
            be divided.
    """

    def __init__(
        self,
        num_classes: int,
        modalities: Sequence[str] = ('rgb', 'hha'),
        exchange: str = 'threshold',
        threshold: float = 2e-2,
        form: str = 'public',
        portion: float = 0.3,
        parts: str = 'equal',
        blocks: str = 'all',
        penalised: str = 'own',
        sparsity: float | None = None,
        initial_scales: str = 'one',
        **options: Any,
    ) -> None:
        one_of('exchange', exchange, EXCHANGES)
        one_of('form', form, FORMS)
        one_of('parts', parts, PARTS)
        one_of('blocks', blocks, ('all', 'last'))
        one_of('penalised', penalised, PENALISED)
        one_of('initial_scales', initial_scales, ('one', 'uniform'))
        for what, value in (('threshold', threshold), ('sparsity', sparsity or 0.0)):
            if not 0 <= value < math.inf:
                raise ValueError(f'{what} must be finite and not negative, got {value}')
        require_several('channels are exchanged between two or more modalities', modalities)
        if not 0 <= portion <= 1:
            raise ValueError(f'portion must be 0 to 1, got {portion}')
        if portion > 1 / len(modalities) and exchange == 'fixed':
            raise ValueError(
                f'portion must be 0 to 1/{len(modalities)}, the part of the channels that is a '
                f"branch's own, got {portion}"
            )
        # "We remove this constraint and allow all channels to be exchanged by Equation 6" (NeurIPS
        # §4.1, point 3; "by Eq. 4" in the journal version): "All-channel" of Table 1.
        whole = penalised == 'all'
        compares = exchange in ('threshold', 'discard')
        by_part = exchange == 'fixed' or (form == 'paper' and compares and not whole)
        if penalised != 'own' and not by_part:  # no part is ever looked at
            parts = 'nearly_equal'
        self._settings = (exchange, threshold, form, portion, parts, whole)
        self._blocks = blocks
        super().__init__(num_classes, modalities=modalities, **options)
        self.threshold, self.penalised = threshold, penalised
        if sparsity is None:
            sparsity = SPARSITY[form]
        self.sparsity = sparsity * (self.num_branches + 1 if form == 'public' else 1)
        if initial_scales == 'uniform':
            for _, norm in self.exchanges().values():
                for scale in norm_scales(norm, self.num_branches):
                    nn.init.uniform_(scale)

    def block_fusion(
        self, stage: int, block: int, num_blocks: int, channels: int
    ) -> BlockFusion | None:
        """Return the exchange of a block."""
        if self._blocks == 'last' and block < num_blocks - 1:
            return None
        return ChannelExchange(self.num_branches, channels, *self._settings)

    def exchanges(self) -> dict[str, tuple[ChannelExchange, nn.Module]]:
        """Return each exchange with the norm whose scales it reads, by the block's name."""
        return {
            name.removeprefix('encoder.'): (block.fusion, block.bn2)
            for name, block in self.named_modules()
            if isinstance(getattr(block, 'fusion', None), ChannelExchange)
        }

    def loss_terms(self, features: Sequence[Maps], logits: Maps, fused: Tensor) -> list[Tensor]:
        """Return the l1 penalty on scales (Eq. 4)."""
        sums = []
        for scales in self._penalised_scales():
            different = {id(scale): scale for scale in scales}  # of a norm that all share
            sums += [scale.abs().sum() for scale in different.values()]
        return [self.sparsity * torch.stack(sums).sum()] if sums else []

    def _penalised_scales(self) -> list[list[Tensor]]:
        """Return the scales under the penalty of each norm and branch; none without one."""
        if self.penalised == 'none' or not self.sparsity:
            return []
        found = []
        for exchange, norm in self.exchanges().values():
            scales = norm_scales(norm, self.num_branches)
            if self.penalised == 'own':
                scales = [s[own] for s, own in zip(scales, exchange.own, strict=True)]
            found.append(scales)
        return found

    @torch.no_grad()
    def monitored(self) -> dict[str, float]:
        """Return the ensemble's weights, and of each branch what is exchanged and penalised.

        'exchanged_BRANCH' is a share of its channels, 'gamma_BRANCH/10%' and so on are
        `QUANTILES` of its scales |γ| under the penalty.
        """
        kept = [exchange.kept(norm) for exchange, norm in self.exchanges().values()]
        masks = [torch.cat(masks).float() for masks in zip(*kept, strict=True)]
        shares = 1 - torch.stack(masks).mean(1)
        named = zip(self.modalities, shares.tolist(), strict=True)
        told = super().monitored() | {f'exchanged_{m}': share for m, share in named}
        penalised = zip(*self._penalised_scales(), strict=True)
        for m, scales in zip(self.modalities, penalised, strict=False):  # or there are none
            gamma = torch.cat(scales).abs().float()
            found = gamma.quantile(gamma.new_tensor(QUANTILES)).tolist()
            told |= {f'gamma_{m}/{q:.0%}': x for q, x in zip(QUANTILES, found, strict=True)}
        return told

    @torch.no_grad()
    def for_export(self) -> nn.Module:
        """Return the network with its exchange settled: a fixed selection in each block.

        Scales do not change any more, so nothing is compared at run time, and channels that no
        branch uses are not computed. What is discarded is made zero by its norm.
        """
        network = copy.deepcopy(self).eval()
        paths = {module: path for path, module in network.named_modules()}
        for exchange, norm in network.exchanges().values():
            name = paths[exchange].removesuffix('.fusion')
            block = network.get_submodule(name)
            if exchange.exchange == 'discard':
                network.set_submodule(paths[norm], discarding(norm, exchange.kept(norm)))
                block.fusion = BlockFusion()
            elif exchange.exchange in ('threshold', 'fixed', 'random'):
                settled = SELECTING[type(block)](block, exchange.kept(norm))
                network.set_submodule(name, settled)
        return network

    def unimodal_form(self, modality: str) -> tuple[str, dict[str, Any], dict[str, Tensor]] | None:
        """Return the branch of a modality as a network, see `MultimodalNetwork`.

        What is discarded needs no other modality, so those channels are zeros there too.
        """
        name, options, weights = super().unimodal_form(modality)
        paths = {module: path for path, module in self.named_modules()}
        for exchange, norm in self.exchanges().values():
            if exchange.exchange == 'discard':
                kept = exchange.kept(norm)[self.modalities.index(modality)]
                for tensor in (f'{paths[norm]}.weight', f'{paths[norm]}.bias'):
                    weights[tensor] = weights[tensor] * kept
        return name, options, weights
