"""What every network has in common: its inputs, their sizes, and where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rgbd_fusion_seg.errors import InputError

MODALITIES = ('rgb', 'hha')


class SegmentationNetwork(nn.Module):
    """Contract of the entries of `networks.NETWORKS`.

    ``forward(inputs, auxiliary=False)`` takes ``{'rgb': (N, 3, H, W), 'hha': (N, 3, h, w)}``,
    float, normalised, of which it reads `modalities`, and returns logits
    (N, K, H/stride, W/stride); with ``auxiliary`` a list of them and the auxiliary logits, at
    sizes of their own. H and W are the colour input's, also where only HHA is read.
    """

    modalities: tuple[str, ...] = MODALITIES
    """Inputs that are read."""
    stride: int
    """Size of the colour input over the logits' size."""
    size_multiple: int
    """Height and width of the colour input are multiples of this."""
    auxiliary_weights: tuple[float, ...] = ()
    """Default loss weights of the auxiliary outputs."""
    shrink_depth: bool = False
    """The HHA input has half the colour input's height and width (RFBNet §III-B)."""

    def hha_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the HHA input that belongs to a colour input."""
        return (height // 2, width // 2) if self.shrink_depth else (height, width)

    def check_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        """Check presence and sizes of the inputs.

        Raises:
            ValueError: an input is missing or has a size that does not fit; the message names
                the size needed.
        """
        for name in self.modalities:
            if name not in inputs:
                raise ValueError(f'the network reads {self.modalities}, but {name!r} is missing')
        first = self.modalities[0]
        height, width = inputs[first].shape[2:]
        shrunk = first == 'hha' and self.shrink_depth
        multiple = self.size_multiple // 2 if shrunk else self.size_multiple
        if height % multiple or width % multiple:
            needed = f'{-(-width // multiple) * multiple}x{-(-height // multiple) * multiple}'
            raise ValueError(
                f'the {first} input is {width}x{height}, but its width and height must be '
                f'multiples of {multiple}; resize or pad it to {needed}'
            )
        if self.modalities != MODALITIES:
            return
        needed_height, needed_width = self.hha_size(height, width)
        hha_height, hha_width = inputs['hha'].shape[2:]
        if (hha_height, hha_width) != (needed_height, needed_width):
            raise ValueError(
                f'the hha input is {hha_width}x{hha_height}, but with an rgb input of '
                f'{width}x{height} it must be {needed_width}x{needed_height}'
            )


class FusionNetwork(SegmentationNetwork):
    """A network of two encoders, which start from two unimodal networks (RFBNet §IV-B)."""

    unimodal_networks: tuple[str, ...]
    """Names of the networks whose weights `initialise_encoder` takes."""
    unimodal_rest: tuple[str, ...] = ('decoder.',)
    """Prefixes of their tensors that belong to no encoder and are left alone."""

    def encoder_names(self, modality: str) -> dict[str, str]:
        """Names of a unimodal network's encoder tensors -> names of the same tensors here."""
        raise NotImplementedError

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
        if modality not in MODALITIES:
            raise ValueError(f'modality must be one of {MODALITIES}, got {modality!r}')
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
