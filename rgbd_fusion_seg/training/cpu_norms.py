"""Batch norms that see the batches of all processes on CPUs; PyTorch's own do on GPUs alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rgbd_fusion_seg.training.networks.branches import (
    Maps,
    SharedBatchNorm2d,
    normalise_together,
)


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of the batches of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, h, w); every process must call this at the same place."""
        if not self.training:
            return nn.BatchNorm2d.forward(self, x)
        values = x.float()
        var, mean = (part.double() for part in torch.var_mean(values, (0, 2, 3), correction=0))
        count = mean.new_full((1,), x.numel() / x.shape[1])
        sums = _SumOfProcesses.apply(torch.cat([count, count * mean, count * (var + mean**2)]))
        count, mean, square = sums.split([1, len(mean), len(mean)])
        mean = mean / count
        var = (square / count - mean**2).clamp(min=0)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).float(), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt().float()
        shift = self.bias - mean.float() * scale
        result = torch.addcmul(shift[:, None, None], values, scale[:, None, None])
        return result.to(x.dtype)


class SharedCpuSyncBatchNorm2d(SharedBatchNorm2d):
    """`SharedBatchNorm2d` with the statistics of the batches of all processes."""

    def forward(self, maps: Maps) -> list[Tensor]:
        """Normalise the branches' maps, which have one shape."""
        return normalise_together(self, partial(CpuSyncBatchNorm2d.forward, self), maps)


def synchronise_norms_on_cpus(network: nn.Module) -> nn.Module:
    """Let a network's batch norms use the batches of all processes in training, in place.

    The counterpart of `networks.branches.synchronise_norms`; the state dict keeps its names.
    """
    kinds = {nn.BatchNorm2d: CpuSyncBatchNorm2d, SharedBatchNorm2d: SharedCpuSyncBatchNorm2d}
    for module in network.modules():
        # What they compute changes and nothing else: who holds them, or their weights, still does.
        module.__class__ = kinds.get(type(module), type(module))
    return network


class _SumOfProcesses(torch.autograd.Function):
    """The sum of the processes' tensors; so each gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total
