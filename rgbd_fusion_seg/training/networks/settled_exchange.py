"""Channel exchange once it is settled: blocks that select what training compares scales for.

What leaves the second convolution's norm is a choice of each branch's channels that is known when
a network is exported. So each branch makes the channels that someone uses, in an order in which
those that stay and those that are given (with two branches) lie side by side, and what reads them
takes them as they come: an exchange is a slice and a concatenation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.branches import Maps, OneEach, each, mean
from rgbd_fusion_seg.training.networks.resnet import Bottleneck
from rgbd_fusion_seg.training.networks.xception import SeparableConv, XceptionBlock


class Selection:
    """Which channels each branch makes, and which it goes on with.

    Args:
        kept: where each branch keeps its own channels, M bool tensors (C,).
    """

    def __init__(self, kept: Sequence[Tensor]) -> None:
        branches = range(len(kept))
        given = [~torch.stack([kept[i] for i in branches if i != m]).all(0) for m in branches]
        self.made = [_in_order(keep, give) for keep, give in zip(kept, given, strict=True)]
        """The channels that each branch makes, in order."""
        stays = [order[kept[m][order]] for m, order in enumerate(self.made)]
        comes = [order[~kept[m - 1][order]] for m, order in enumerate(self.made)]
        comes = [*comes[1:], comes[0]]  # to m from the branch behind it, and from all others
        self.selected = [torch.cat(parts) for parts in zip(stays, comes, strict=True)]
        """Those that each goes on with, all C in another order."""
        self._sorted = [order.argsort().tolist() for order in self.selected]
        places = [_places(order, len(kept[0])) for order in self.made]
        self._stays = [places[m][stays[m]].tolist() for m in branches]
        self._comes = [
            [places[i][comes[m]].tolist() for i in branches if i != m] for m in branches
        ]

    def __call__(self, maps: Maps) -> list[Tensor]:
        """Exchange: what is made, M maps (N, ., h, w) -> what is selected, (N, C, h, w)."""
        selected = []
        for m, (stays, comes) in enumerate(zip(self._stays, self._comes, strict=True)):
            others = [x for i, x in enumerate(maps) if i != m]
            parts = [_take(maps[m], stays)] if stays else []
            if comes[0]:
                parts.append(mean([_take(x, c) for x, c in zip(others, comes, strict=True)]))
            selected.append(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
        return selected

    def activated(self, maps: Maps) -> list[Tensor]:
        """Exchange, with a ReLU behind."""
        if len(maps) == 2:  # they commute then, and runtimes join the ReLU to the convolution
            return self(each(F.relu, maps))
        return each(F.relu, self(maps))

    def sorted(self, maps: Maps) -> list[Tensor]:
        """Return what is selected in the network's own order of channels."""
        return [_take(x, places) for x, places in zip(maps, self._sorted, strict=True)]


class SelectingBottleneck(nn.Module):
    """A bottleneck in which it is settled which channels come from which branch.

    Args:
        block: what it replaces, in evaluation mode.
        kept: of its exchange.
    """

    def __init__(self, block: Bottleneck, kept: Sequence[Tensor]) -> None:
        super().__init__()
        self.selection = selection = Selection(kept)
        self.conv1, self.bn1 = block.conv1, block.bn1
        self.conv2 = _each_with(_rows, block.conv2, selection.made)
        self.bn2 = _each_with(_entries, block.bn2, selection.made)
        self.conv3 = _each_with(_columns, block.conv3, selection.selected)
        self.bn3, self.downsample = block.bn3, block.downsample

    def forward(self, maps: Maps) -> list[Tensor]:
        """Maps (N, in, h, w) -> maps (N, out, h/stride, w/stride)."""
        second = self.bn2(self.conv2(each(F.relu, self.bn1(self.conv1(maps)))))
        third = self.bn3(self.conv3(self.selection.activated(second)))
        shortcut = self.downsample(maps) if self.downsample is not None else maps
        return [F.relu(x + s) for x, s in zip(third, shortcut, strict=True)]


class SelectingXceptionBlock(nn.Module):
    """The same of a block of Xception: the pointwise convolution of its second separable one
    makes what is used, and all of the third reads it in another order.

    Args:
        block: what it replaces, in evaluation mode.
        kept: of its exchange.
    """

    def __init__(self, block: XceptionBlock, kept: Sequence[Tensor]) -> None:
        super().__init__()
        self.selection = selection = Selection(kept)
        self.separable1, self.separable2 = block.separable1, block.separable2
        self.separable2.pointwise = _each_with(_rows, block.separable2.pointwise, selection.made)
        self.separable2.norm = _each_with(_entries, block.separable2.norm, selection.made)
        self.separable3 = _reordered(block.separable3, selection.selected)
        self.shortcut, self.last = block.shortcut, block.last

    def forward(self, maps: Maps) -> list[Tensor]:
        """Maps (N, in, h, w) -> maps (N, out, h/stride, w/stride)."""
        return self._behind(self.selection.activated(self._second(maps)), maps)

    def with_second(self, maps: Maps) -> tuple[list[Tensor], Maps]:
        """Return what `XceptionBlock.with_second` does."""
        second = self.selection(self._second(maps))
        return self._behind(each(F.relu, second), maps), self.selection.sorted(second)

    def _second(self, maps: Maps) -> list[Tensor]:
        first = self.separable1(maps if self.last else each(F.relu, maps))
        return self.separable2(each(F.relu, first))

    def _behind(self, selected: Maps, maps: Maps) -> list[Tensor]:
        third = self.separable3(selected)
        if self.last:
            return each(F.relu, third)
        shortcut = self.shortcut(maps) if self.shortcut is not None else maps
        return [x + s for x, s in zip(third, shortcut, strict=True)]


SELECTING = {Bottleneck: SelectingBottleneck, XceptionBlock: SelectingXceptionBlock}
"""What replaces a block of each kind."""


def discarding(norm: nn.Module, kept: Sequence[Tensor]) -> OneEach:
    """Return the norms of the branches with zeros where a branch does not keep its channels."""
    return _each_with(_zeroed, norm, kept)


def _reordered(layer: SeparableConv, orders: Sequence[Tensor]) -> SeparableConv:
    """Return a separable convolution that reads its channels in another order in each branch."""
    layer.depthwise = _each_with(_rows, layer.depthwise, orders)
    layer.depthwise_norm = _each_with(_entries, layer.depthwise_norm, orders)
    layer.pointwise = _each_with(_columns, layer.pointwise, orders)
    return layer


def _in_order(keep: Tensor, give: Tensor) -> Tensor:
    """Return the channels to be made: kept alone, kept and given, given alone."""
    ranges = (keep & ~give, keep & give, give & ~keep)
    order = torch.cat([mask.nonzero()[:, 0] for mask in ranges])
    # A convolution makes one channel at least, also where nobody wants any.
    return order if len(order) else torch.zeros(1, dtype=torch.long, device=keep.device)


def _places(order: Tensor, channels: int) -> Tensor:
    """Return where each channel lies among those that are made; -1: nowhere."""
    places = torch.full((channels,), -1)
    places[order] = torch.arange(len(order))
    return places


def _take(x: Tensor, places: list[int]) -> Tensor:
    """Return the channels at some places, as a slice where they lie side by side."""
    first = places[0]
    if places == list(range(first, first + len(places))):
        return x[:, first : first + len(places)]
    return x.index_select(1, torch.tensor(places, device=x.device))


def _each_with(
    change: Callable[[nn.Module, Tensor], nn.Module], layer: nn.Module, channels: Sequence[Tensor]
) -> OneEach:
    """Return a layer for each branch, changed to some channels."""
    return OneEach(change(_branch(layer, m), those) for m, those in enumerate(channels))


def _branch(layer: nn.Module, m: int) -> nn.Module:
    return layer[m] if isinstance(layer, OneEach) else layer


def _rows(conv: nn.Conv2d, channels: Tensor) -> nn.Conv2d:
    """Return a convolution that makes some of the channels, without bias.

    Where each is made from one of its own, it reads these alone.
    """
    return _conv_like(conv, conv.weight[channels])


def _columns(conv: nn.Conv2d, channels: Tensor) -> nn.Conv2d:
    """Return a convolution that reads its channels in this order, without bias."""
    return _conv_like(conv, conv.weight[:, channels])


def _conv_like(conv: nn.Conv2d, weight: Tensor) -> nn.Conv2d:
    groups = len(weight) if conv.groups > 1 else 1
    result = nn.Conv2d(
        groups * weight.shape[1], len(weight), conv.kernel_size, conv.stride, conv.padding,
        conv.dilation, groups, bias=False,
    )  # fmt: skip
    result.weight = nn.Parameter(weight.clone())
    return result


def _entries(norm: nn.BatchNorm2d, channels: Tensor) -> nn.BatchNorm2d:
    """Return the norm of some of the channels."""
    result = nn.BatchNorm2d(len(channels), eps=norm.eps)
    result.load_state_dict(
        {k: v if v.ndim == 0 else v[channels] for k, v in norm.state_dict().items()}
    )
    return result.eval()


def _zeroed(norm: nn.BatchNorm2d, kept: Tensor) -> nn.BatchNorm2d:
    """Return the norm that makes zeros where ``kept`` is not."""
    result = _entries(norm, torch.arange(len(kept), device=kept.device))
    result.weight *= kept
    result.bias *= kept
    return result
