"""Takes over the weights that the papers' authors published.

========== ======================================== ==========================================
system     file of the authors                      becomes
========== ======================================== ==========================================
erfnet     PyTorch, a whole network or its encoder  erfnet, or erfnet_encoder
adapnetpp  TensorFlow V2 checkpoint                 adapnetpp
ssma       TensorFlow V2 checkpoint                 ssma_adapnetpp
cen        PyTorch, RefineNet on ResNet-50/101/152  cen, or multimodal where it has one branch
asymfusion PyTorch, the same tensors as cen         asymfusion, or multimodal
========== ======================================== ==========================================

The same tensors by the same names are also read from .npz and .safetensors files.

Where public networks and ours differ:

* Layout. TensorFlow's kernels are (height, width, input, output), those of transposed
  convolutions (height, width, output, input); reversing the channel axes and putting them first
  gives PyTorch's form of both. 'SAME' padding is settled in the networks themselves.
* Input. AdapNet++ and SSMA read B, G, R as OpenCV loads it, 0..255, and leave the rest to a
  batch norm on the input. Ours read R, G, B, so the input channels of that norm and of the first
  kernel are reversed here, and the statistics of the checkpoint are mean 0 and std 1. The same
  holds for HHA, stored as a picture with R, G, B = disparity, height, angle, our order.
  ERFNet reads R, G, B over 255: mean 0, std 255. CEN and AsymFusion read colour with the
  statistics of ImageNet, and depth, tiled to three channels, as the numbers of a 16-bit image
  over 5000. Those have 5000 units a metre (see `public_names`), so that is mean 0 and std 1.
* Void. The head of AdapNet++ and SSMA has class 0 for void, which gets no weight in training;
  class k > 0 is the k-th class of the data set. ERFNet's last class is void, the other nineteen
  are Cityscapes'. CEN and AsymFusion have none; forty classes are NYUDv2's. Heads are taken over
  as they are here; the command leaves the output for void out, so that classes are the data's. The
  channel of void inside the decoders of AdapNet++ and SSMA stays, for their last layer mixes all.
* Exchange. Files of CEN do not tell the threshold of its exchange; the network's default is that
  of the public code. Frozen norms are a matter of training, the option `freeze_norms`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.networks import build_network
from rgbd_fusion_seg.training.public_names import SYSTEMS, Variant

# The optimiser's moments, which stand beside every variable of a TensorFlow training, moving
# averages of weights, and the classifier of ERFNet's encoder on ImageNet.
IGNORED = re.compile(
    r'/(Adam|Adam_1|Momentum|RMSProp|RMSProp_1|ExponentialMovingAverage)$|^classifier\.'
)
# How PyTorch's wrappers and ERFNet's ImageNet network lengthen names.
PREFIXES = re.compile(r'^(module\.|features\.)+')
# Under which training checkpoints hold the network.
WRAPPERS = ('state_dict', 'segmenter')
# A variable in a scope of its own has an empty name behind the slash.
SUFFIXES = re.compile(r'(/kernel|/|:0)$')


def from_public(system: str, state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename and lay out the tensors of a public checkpoint as ours.

    Args:
        system: a key of `SYSTEMS`.
        state_dict: tensors or arrays by public name; a mapping that holds it as 'state_dict' or
            'segmenter', as training checkpoints do, is taken too.

    Returns:
        the state dict of our network: 'adapnetpp' for adapnetpp, 'ssma_adapnetpp' for ssma,
        'erfnet' for erfnet, or 'erfnet_encoder' for a file without decoder. The last one lacks
        the head if the file does, as the encoder trained on ImageNet. For cen and asymfusion the
        network of that name with the options `backbone` and `modalities` that `translate` tells,
        or 'multimodal' for a file of one branch.

    Raises:
        InputError: an unknown system, or the first tensor that is missing, unknown or of
            another shape.
    """
    return translate(system, state_dict)[2]


def translate(
    system: str, state_dict: Mapping[str, Any]
) -> tuple[Variant, int | None, dict[str, Tensor]]:
    """Do what `from_public` does, and tell more.

    Returns:
        the form of the file, its number of classes (None where it has no head), and the tensors
        as ours.

    Raises:
        InputError: see `from_public`.
    """
    if system not in SYSTEMS:
        raise InputError(f'unknown system {system!r}; choose one of {", ".join(sorted(SYSTEMS))}')
    tensors = public_tensors(state_dict)
    variant = _matching_variant(system, tensors)
    published = SYSTEMS[system]()
    count = len(tensors[variant.head]) if variant.head else None
    with torch.device('meta'):
        ours = build_network(variant.network, count or 2, **variant.options).state_dict()
    weights = {}
    for public, name in variant.names.items():
        value = _channels_first(tensors[public]) if published.channels_last else tensors[public]
        if value.shape != ours[name].shape:
            raise InputError(
                f'{public} has the shape {tuple(value.shape)} where {tuple(ours[name].shape)} '
                f'is needed for {system} with {count} classes; give a file of that network'
            )
        if name in published.reversed_inputs:
            value = value.flip(1 if value.ndim > 1 else 0)
        weights[name] = value.float().clone()
    counters = (name for name in ours if name.endswith('num_batches_tracked'))
    return variant, count, weights | {name: torch.tensor(0) for name in counters}


def public_tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights alone, by the names that the networks' authors gave them.

    Args:
        state_dict: see `from_public`. Scalars are counters, no weights.

    Raises:
        InputError: it is no mapping.
    """
    inner = state_dict
    for key in WRAPPERS:
        if isinstance(state_dict, Mapping) and key in state_dict:
            inner = state_dict[key]
    if not isinstance(inner, Mapping):
        raise InputError("there are no tensors by name in it; give the authors' own file")
    tensors = {}
    for key, value in inner.items():
        name = SUFFIXES.sub('', PREFIXES.sub('', str(key)))
        if isinstance(value, Tensor | np.ndarray) and value.ndim and not IGNORED.search(name):
            tensors[name] = torch.as_tensor(value)
    return tensors


def _matching_variant(system: str, tensors: Mapping[str, Tensor]) -> Variant:
    """Return the variant whose tensors these are, none less and none more."""

    def closeness(variant: Variant) -> tuple[int, int]:
        known = variant.names.keys() | variant.unused
        return len(known & tensors.keys()), -len(variant.names)

    best = {name: max(read().variants, key=closeness) for name, read in SYSTEMS.items()}
    variant, likely = best[system], max(best, key=lambda name: closeness(best[name]))
    if likely != system and closeness(best[likely]) > closeness(variant):
        raise InputError(f'these are weights of {likely}, not of {system}; import them as that')
    missing = [name for name in variant.names if name not in tensors]
    if missing:
        raise InputError(
            f'{len(missing)} of the {len(variant.names)} tensors of {system}{variant.form} are '
            f"missing, first {missing[0]}; give the authors' whole file"
        )
    unknown = [name for name in tensors if name not in variant.names.keys() | variant.unused]
    if unknown:
        raise InputError(
            f'{system}{variant.form} has no tensor {unknown[0]}; give a file of that network, or '
            'one without what does not belong to it'
        )
    return variant


def _channels_first(kernel: Tensor) -> Tensor:
    """TensorFlow's kernels to PyTorch's layout; vectors stay."""
    return kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel
