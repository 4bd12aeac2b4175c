"""What a network costs: parameters and floating-point operations."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rgbd_fusion_seg.training.networks import build_network


def empty_network(name: str, num_classes: int, **options: object) -> nn.Module:
    """Build a network without memory for its weights, to count on."""
    with torch.device('meta'):
        return build_network(name, num_classes, **options).eval()


def gflops(network: nn.Module, width: int, height: int) -> float:
    """Return the 10^9 floating-point operations of one forward pass.

    Multiplications and additions count one each; norms, activations and interpolation, a few
    per cent of the time, are not counted (what torch's FlopCounterMode counts).

    Args:
        network: a network of `NETWORKS`, on any device; the input is made there.
        width, height: of the colour input.
    """
    device = next(network.parameters()).device
    sizes = network.input_sizes(height, width)
    inputs = {name: torch.zeros(1, 3, *size, device=device) for name, size in sizes.items()}
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(inputs)
    return counter.get_total_flops() / 1e9
