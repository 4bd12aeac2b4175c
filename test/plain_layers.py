"""Networks written out in plain functions over a state dict, to hold our modules against."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Weights = Mapping[str, Tensor]


def padded_conv(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """Convolve with TensorFlow's fixed padding: (k - 1) dilation zeros, half of them before."""
    total = (weight.shape[2] - 1) * dilation
    before = total // 2
    x = F.pad(x, (before, total - before, before, total - before))
    groups = x.shape[1] // weight.shape[1]
    return F.conv2d(x, weight, None, stride, 0, dilation, groups)


def normed(x: Tensor, weights: Weights, name: str, eps: float = 1e-5) -> Tensor:
    """Normalise by running statistics, spelt out."""
    mean, var, scale, shift = (
        weights[f'{name}.{part}'][:, None, None]
        for part in ('running_mean', 'running_var', 'weight', 'bias')
    )
    return (x - mean) / torch.sqrt(var + eps) * scale + shift


def conv_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    """A `ConvNormRelu` by its name, with a ReLU."""
    return normed(padded_conv(x, weights[f'{name}.conv.weight']), weights, f'{name}.norm').relu()


def with_bias(x: Tensor, weights: Weights, name: str) -> Tensor:
    """A 1x1 convolution with bias."""
    return F.conv2d(x, weights[f'{name}.weight'], weights[f'{name}.bias'])


def separable(
    x: Tensor,
    weights: Weights,
    name: str,
    stride: int = 1,
    dilation: int = 1,
    eps: float = 1e-3,
    relu: bool = False,
) -> Tensor:
    """Depthwise 3x3, norm, pointwise, norm; ``relu``: one behind either norm."""
    x = padded_conv(x, weights[f'{name}.depthwise.weight'], stride, dilation)
    x = normed(x, weights, f'{name}.depthwise_norm', eps)
    x = x.relu() if relu else x
    x = normed(F.conv2d(x, weights[f'{name}.pointwise.weight']), weights, f'{name}.norm', eps)
    return x.relu() if relu else x


def enlarged(x: Tensor, height: int, width: int) -> Tensor:
    """Interpolate linearly along both axes, first and last cells on first and last."""
    for axis, size in ((2, height), (3, width)):
        place = torch.linspace(0, x.shape[axis] - 1, size, dtype=x.dtype)
        low = place.floor().long()
        high = (low + 1).clamp(max=x.shape[axis] - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = size
        part = (place - low).reshape(shape)
        x = (1 - part) * x.index_select(axis, low) + part * x.index_select(axis, high)
    return x


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor of a module random values that keep signals alive; in double, eval."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, value in module.state_dict().items():
        if not value.is_floating_point():
            weights[key] = torch.zeros(value.shape, dtype=value.dtype)
            continue
        drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if value.ndim > 1:
            weights[key] = drawn * value[0].numel() ** -0.5
        elif key.endswith(('bias', 'running_mean')):
            weights[key] = 0.2 * drawn
        else:
            weights[key] = 0.5 + drawn.abs()
    module.load_state_dict(weights, assign=True)
    return module.eval()


def image(*shape: int, seed: int = 1) -> Tensor:
    """Return random numbers in double."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
