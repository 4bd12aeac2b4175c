"""What every network has in common: its inputs, their sizes, and where its weights come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rgbd_fusion_seg.errors import InputError

MODALITIES = ('rgb', 'hha', 'depth')
"""What networks may read: colour, and depth as HHA or as metres in three equal channels."""


def one_of(what: str, given: object, known: Iterable[object]) -> None:
    """Refuse a value of an option that is none of those known.

    Raises:
        ValueError: it is not.
    """
    known = [*known]
    if given not in known:
        raise ValueError(f'{what} must be one of {", ".join(map(str, known))}, got {given!r}')


class SegmentationNetwork(nn.Module):
    """Contract of the entries of `networks.NETWORKS`.

    ``forward(inputs, auxiliary=False)`` takes ``{'rgb': (N, 3, H, W), 'hha': (N, 3, h, w),
    'depth': (N, 3, h, w)}``, float, normalised, of which it reads `modalities`, and returns logits
    (N, K, H/stride, W/stride). With ``auxiliary`` it returns a list: them, the auxiliary logits,
    which may have sizes of their own, and then what else is to be added to the loss, tensors
    without dimensions. H and W are the colour input's, also where colour is not read.
    """

    modalities: tuple[str, ...] = ('rgb', 'hha')
    """Inputs that are read, in the order of `MODALITIES`."""
    stride: int
    """Size of the colour input over the logits' size."""
    size_multiple: int
    """Height and width of the colour input are multiples of this."""
    auxiliary_weights: tuple[float, ...] = ()
    """Default loss weights of the auxiliary outputs."""
    predicting_branches: tuple[str, ...] = ()
    """Branches whose predictions are joined, the first auxiliary outputs, in their order."""
    auxiliary_at_full_size: bool = False
    """Compare auxiliary logits with labels at the size of the prediction, not at their own."""
    shrink_depth: bool = False
    """HHA and depth have half the colour input's height and width (RFBNet §III-B)."""

    def hha_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the HHA or depth input that belongs to a colour input."""
        return (height // 2, width // 2) if self.shrink_depth else (height, width)

    def input_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        """Height and width of each of `modalities` that belongs to a colour input's."""
        depth = self.hha_size(height, width)
        return {name: (height, width) if name == 'rgb' else depth for name in self.modalities}

    def monitored(self) -> dict[str, float]:
        """Return what a training run logs of the network beside its loss, by name."""
        return {}

    def for_export(self) -> nn.Module:
        """Return a module with the same output whose graph is the one to run: here itself.

        For networks in evaluation mode; what is constant then may be settled.
        """
        return self

    def unimodal_form(self, modality: str) -> tuple[str, dict[str, Any], dict[str, Tensor]] | None:
        """Return what answers from one modality where the others are lost; None: nothing does.

        Returns:
            name and options of a network of `NETWORKS` that reads ``modality`` alone, and its
            state dict, taken from this network's.
        """
        return None

    def check_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        """Check presence and sizes of the inputs.

        Raises:
            ValueError: an input is missing or has a size that does not fit; the message names
                the size needed.
        """
        for name in self.modalities:
            if name not in inputs:
                raise ValueError(f'the network reads {self.modalities}, but {name!r} is missing')
        first, *others = self.modalities
        for name in self.modalities:
            shape, count = inputs[name].shape, inputs[first].shape[0]
            if len(shape) != 4 or shape[1] != 3 or shape[0] != count:
                raise ValueError(
                    f'the {name} input has the shape {tuple(shape)}, but with {count} images of '
                    f'{first} it must be ({count}, 3, height, width); depth is tiled to three '
                    'channels'
                )
        height, width = inputs[first].shape[2:]
        shrunk = first != 'rgb' and self.shrink_depth
        multiple = self.size_multiple // 2 if shrunk else self.size_multiple
        if height % multiple or width % multiple:
            needed = f'{-(-width // multiple) * multiple}x{-(-height // multiple) * multiple}'
            raise ValueError(
                f'the {first} input is {width}x{height}, but its width and height must be '
                f'multiples of {multiple}; resize or pad it to {needed}'
            )
        needed = self.hha_size(height, width) if first == 'rgb' else (height, width)
        for name in others:
            found = tuple(inputs[name].shape[2:])
            if found != needed:
                raise ValueError(
                    f'the {name} input is {found[1]}x{found[0]}, but with a {first} input of '
                    f'{width}x{height} it must be {needed[1]}x{needed[0]}'
                )


class FusionNetwork(SegmentationNetwork):
    """A network of two encoders, which start from two unimodal networks (RFBNet §IV-B)."""

    unimodal_networks: tuple[str, ...]
    """Names of the networks whose weights `initialise_encoder` takes."""
    unimodal_rest: tuple[str, ...]
    """Prefixes of their tensors that belong to no encoder and are left alone."""

    def encoder_names(self, modality: str) -> dict[str, str]:
        """Names of a unimodal network's encoder tensors -> names of the same tensors here."""
        encoder = getattr(self, f'{modality}_encoder')
        return {f'encoder.{name}': f'{modality}_encoder.{name}' for name in encoder.state_dict()}

    def head_names(self, modality: str) -> dict[str, str]:
        """The same for a modality's auxiliary head; ones for other class counts are left out."""
        return {f'head.{part}': f'{modality}_head.{part}' for part in ('weight', 'bias')}

    @torch.no_grad()
    def initialise_encoder(self, modality: str, weights: Mapping[str, Tensor]) -> None:
        """Take over the encoder of a unimodal network, and its head where class counts agree.

        Args:
            modality: 'rgb' or 'hha', the encoder that is set.
            weights: state dict of one of `unimodal_networks`.

        Raises:
            ValueError: an unknown modality.
            InputError: a tensor is missing, unknown or of another shape; nothing was changed.
        """
        one_of('modality', modality, self.modalities)
        heads = self.head_names(modality)
        names = {**self.encoder_names(modality), **heads}
        remedy = f'give a checkpoint of {" or ".join(self.unimodal_networks)}'
        missing = [name for name in names if name not in weights]
        if missing:
            raise InputError(f'weights for the {modality} encoder lack {missing[0]}; {remedy}')
        own = self.state_dict()
        copies = []
        for name, value in weights.items():
            if name not in names:
                if name.startswith(self.unimodal_rest):
                    continue
                raise InputError(
                    f'weights for the {modality} encoder hold {name}, unknown here; {remedy}'
                )
            target = own[names[name]]
            if target.shape == value.shape:
                copies.append((target, value))
            # A head that differs in nothing but the number of classes is no mistake.
            elif name not in heads or target.shape[1:] != value.shape[1:]:
                raise InputError(
                    f'weights for the {modality} encoder have {name} as {tuple(value.shape)}, '
                    f'{tuple(target.shape)} is needed; {remedy}'
                )
        for target, value in copies:
            target.copy_(value)
