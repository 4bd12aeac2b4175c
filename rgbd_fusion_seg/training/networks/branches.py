"""Layers of networks with one branch for each modality (CEN §3.4, AsymFusion §3.1).

A layer takes the list of the M branches' feature maps and returns such a list. Convolutions are
shared by the branches, batch norms are each branch's own; either can be chosen otherwise (CEN
Table 1). A shared layer is an ordinary PyTorch layer, so a network of one branch has the names of
the ordinary network; layers of one each are module lists, ``bn1.0``, ``bn1.1``, ….
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rgbd_fusion_seg.errors import InputError

Maps = Sequence[Tensor]
"""One feature map (N, C, h, w) a branch."""


class SharedConv2d(nn.Conv2d):
    """One convolution for all branches."""

    def forward(self, maps: Maps) -> list[Tensor]:
        """Convolve each branch's map."""
        return [nn.Conv2d.forward(self, x) for x in maps]


class SharedBatchNorm2d(nn.BatchNorm2d):
    """One batch norm for all branches: scale, shift and running statistics are common.

    In training all branches are normalised by the statistics of their batches taken together, as
    the running ones will do it: by its own batch, each branch would be another one when scored.
    """

    def forward(self, maps: Maps) -> list[Tensor]:
        """Normalise the branches' maps, which have one shape."""
        return normalise_together(self, super().forward, maps)


class SharedSyncBatchNorm2d(nn.SyncBatchNorm):
    """`SharedBatchNorm2d` with the statistics of the batches of all processes."""

    def forward(self, maps: Maps) -> list[Tensor]:
        """Normalise the branches' maps, which have one shape."""
        return normalise_together(self, super().forward, maps)


def normalise_together(
    norm: nn.Module, normalise: Callable[[Tensor], Tensor], maps: Maps
) -> list[Tensor]:
    """Normalise the maps of all branches, in training as one batch.

    Args:
        norm: that does it.
        normalise: its way with one batch, (N, C, h, w) -> the same.
        maps: of one shape.
    """
    if not norm.training:  # constants; a deployed graph need not join and part
        return [normalise(x) for x in maps]
    return list(normalise(torch.cat(list(maps))).chunk(len(maps)))


def synchronise_norms(network: nn.Module) -> nn.Module:
    """Return a network whose batch norms use the batches of all processes in training.

    `nn.SyncBatchNorm.convert_sync_batchnorm`, which by itself would put layers that know nothing
    of branches in the place of shared norms.
    """
    shared = [name for name, m in network.named_modules() if isinstance(m, SharedBatchNorm2d)]
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for name in shared:
        plain = network.get_submodule(name)
        norm = SharedSyncBatchNorm2d(plain.num_features, plain.eps, plain.momentum)
        norm.load_state_dict(plain.state_dict())
        network.set_submodule(name, norm)
    return network


class OneEach(nn.ModuleList):
    """A layer for each branch."""

    def forward(self, maps: Maps) -> list[Tensor]:
        """Apply each branch's layer to its map."""
        return [layer(x) for layer, x in zip(self, maps, strict=True)]


def each(function: Callable[[Tensor], Tensor], maps: Maps) -> list[Tensor]:
    """Apply a function to each branch's map."""
    return [function(x) for x in maps]


def mean(maps: Maps) -> Tensor:
    """Return the mean of maps of one shape."""
    return maps[0] if len(maps) == 1 else sum(maps) / len(maps)


class BranchLayers:
    """Makes layers for ``num_branches`` branches.

    Args:
        num_branches: M, the number of modalities.
        share_convs: one convolution for all branches, or one each.
        share_norms: the same of batch norms.
    """

    def __init__(
        self, num_branches: int, share_convs: bool = True, share_norms: bool = False
    ) -> None:
        self.num_branches = num_branches
        self.share_convs = share_convs or num_branches == 1
        self.share_norms = share_norms or num_branches == 1

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> nn.Module:
        """Return a convolution, maps (N, in, h, w) -> maps (N, out, h', w')."""
        sizes = (in_channels, out_channels, kernel_size)
        options: dict[str, Any] = {
            'stride': stride,
            'padding': padding,
            'dilation': dilation,
            'groups': groups,
            'bias': bias,
        }
        if self.share_convs:
            return SharedConv2d(*sizes, **options)
        return OneEach(nn.Conv2d(*sizes, **options) for _ in range(self.num_branches))

    def norm(self, channels: int, eps: float = 1e-5) -> nn.Module:
        """Return a batch norm, maps (N, channels, h, w) -> the same."""
        if self.share_norms:
            return SharedBatchNorm2d(channels, eps=eps)
        return OneEach(nn.BatchNorm2d(channels, eps=eps) for _ in range(self.num_branches))


def norm_scales(norm: nn.Module, num_branches: int) -> list[Tensor]:
    """Return each branch's scale γ of a norm of `BranchLayers`, (C,) each."""
    norms = list(norm) if isinstance(norm, OneEach) else [norm] * num_branches
    return [n.weight for n in norms]


class BlockFusion(nn.Module):
    """What happens between the branches inside a residual block; here nothing.

    The hooks stand in the order in which a block calls them. For a bottleneck, "first" and
    "second" are its 1x1 and its 3x3 convolution; for a block of separable convolutions their
    first and second.
    """

    def after_first(self, maps: Maps) -> Maps:
        """Change the maps after the first convolution, its norm and ReLU."""
        return maps

    def after_norm(self, maps: Maps, norm: nn.Module) -> Maps:
        """Change the maps after the second convolution and ``norm``, before the ReLU."""
        return maps

    def after_second(self, maps: Maps, first: Maps) -> Maps:
        """Change the maps after the second ReLU; ``first`` is what `after_first` returned."""
        return maps


FusionOfBlock = Callable[[int, int, int, int], 'BlockFusion | None']
"""(stage, block, blocks of the stage, channels inside the block) -> what fuses there, if anything;
stages and blocks count from 0."""


def no_fusion(stage: int, block: int, num_blocks: int, channels: int) -> BlockFusion | None:
    """Fuse nowhere."""
    return None


class Encoder(nn.Module):
    """From the images of each branch to its features."""

    channels: tuple[int, ...]
    """Of the features, in order."""
    public_statistics: list[list[float]]
    """Mean and standard deviation of R, G and B, 0..255, that public weights were trained with."""
    public_file: str
    """What holds them, for messages."""

    @property
    def stages(self) -> list[nn.Module]:
        """The stages behind the stem; each takes the maps of the one before."""
        raise NotImplementedError

    def stem(self, images: Maps) -> list[Tensor]:
        """Images (N, 3, H, W) -> maps for the first stage."""
        raise NotImplementedError

    def forward(
        self, images: Maps, after_stage: Callable[[int, Maps], Maps] = lambda stage, maps: maps
    ) -> list[Maps]:
        """Encode.

        Args:
            images: (N, 3, H, W) of each branch.
            after_stage: given a stage's number, from 0, and its maps, returns those that go on.

        Returns:
            features for heads, from fine to coarse, the maps of each branch; here those of every
            stage.
        """
        maps, features = self.stem(images), []
        for number, stage in enumerate(self.stages):
            maps = after_stage(number, stage(maps))
            features.append(maps)
        return features

    def public_tensors(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the encoder's tensors of a public file, by its names, laid out as PyTorch's."""
        raise NotImplementedError

    def public_name(self, layer: str, part: str) -> str:
        """Return the public name of a part of a layer of ours, of one branch."""
        return f'{layer}.{part}'

    @torch.no_grad()
    def initialise(self, weights: Mapping[str, Tensor]) -> None:
        """Take over an encoder that others trained on colour, in every branch.

        Args:
            weights: the tensors of its file, by the file's names; those of no encoder, such as a
                classifier, are left out.

        Raises:
            InputError: a tensor is missing, unknown or of another shape; nothing was changed.
        """
        public, copies, used = self.public_tensors(weights), [], set()
        for name, target in self.state_dict().items():
            if '.fusion.' in name:
                continue
            # A layer of each branch's own has the branch's number before the last part.
            module, _, part = name.rpartition('.')
            layer = module.rpartition('.')[0]
            own = isinstance(self.get_submodule(layer), OneEach)
            theirs = self.public_name(layer if own else module, part)
            used.add(theirs)
            if part == 'num_batches_tracked':
                continue
            if theirs not in public or public[theirs].shape != target.shape:
                what = 'lacks' if theirs not in public else 'has another shape of'
                raise InputError(
                    f'the backbone checkpoint {what} {theirs}; give {self.public_file} that the '
                    'network is built with'
                )
            copies.append((target, public[theirs]))
        if unknown := [name for name in public if name not in used]:
            raise InputError(
                f'the backbone checkpoint has {unknown[0]}, which this {type(self).__name__} '
                f'lacks; give {self.public_file} that the network is built with'
            )
        for target, value in copies:
            target.copy_(value)
