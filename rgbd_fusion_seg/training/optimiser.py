"""Optimiser, learning-rate schedules, parameter groups and averaged weights."""

from __future__ import annotations

import bisect
import copy
import math
import re
from typing import Any

import torch
from torch import nn

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.config import GroupConfig, OptimiserConfig


def learning_rate(
    progress: float, config: OptimiserConfig, gamma: float | list[float] | None = None
) -> float:
    """Return the learning rate when a share ``progress`` (0..1) of the run is done.

    After the linear warm-up, 'poly' decays over the whole rest of the run, by the power 0.9 to 0
    in ERFNet's public code, to 1e-4 (`end_lr`, TensorFlow's default) in AdapNet++'s; RFBNet's
    text tells neither. 'step', how CEN and AsymFusion train, and 'constant' count from the run's
    start. ``gamma`` replaces the configuration's.
    """
    if progress < config.warmup:
        return config.lr * max(progress / config.warmup, 1e-3)
    if config.schedule == 'poly':
        left = (1 - progress) / (1 - config.warmup)
        return config.end_lr + (config.lr - config.end_lr) * max(0.0, left) ** config.power
    if config.schedule == 'step':
        passed = bisect.bisect_right(config.milestones, progress)
        gamma = config.gamma if gamma is None else gamma
        return config.lr * math.prod(
            gamma[:passed] if isinstance(gamma, list) else [gamma] * passed
        )
    return config.lr


def parameter_groups(network: nn.Module, config: OptimiserConfig) -> list[dict[str, Any]]:
    """Return optimiser groups: decay on convolutions only, and the paces of ``config.groups``.

    ``config.decay_all`` decays norms and biases (one-dimensional parameters) too. Each group has
    an 'lr_scale' and a 'gamma', those of its `GroupConfig`.

    Raises:
        InputError: a pattern that is no regular expression or matches no parameter.
    """
    rules = [*config.groups, GroupConfig()]
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        number = next(i for i, rule in enumerate(rules) if _search(rule.pattern, name))
        decayed = config.decay_all or parameter.ndim > 1
        members.setdefault((number, decayed), []).append(parameter)
    for number, rule in enumerate(config.groups):
        if not any(n == number for n, _ in members):
            raise InputError(
                f'the pattern {rule.pattern!r} of optimiser.groups matches none of the '
                "network's parameters that are left for it; correct or remove it"
            )
    groups = []
    for (number, decayed), parameters in sorted(members.items(), key=lambda item: item[0]):
        rule = rules[number]
        decay = config.weight_decay if rule.weight_decay is None else rule.weight_decay
        groups.append(
            {
                'params': parameters,
                'weight_decay': decay if decayed else 0.0,
                'lr_scale': rule.lr_scale,
                'gamma': rule.gamma,
            }
        )
    return groups


def _search(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise InputError(
            f'the pattern {pattern!r} of optimiser.groups is no regular expression: {error}'
        ) from error


def build_optimiser(
    network: nn.Module, config: OptimiserConfig, fused: bool = False
) -> torch.optim.Optimizer:
    """Return the optimiser over the groups of `parameter_groups`.

    Args:
        network: what is trained.
        config: how.
        fused: update all parameters in one task of the device; False leaves it to torch.

    Raises:
        InputError: see `parameter_groups`.
    """
    groups, options = parameter_groups(network, config), {'lr': config.lr, 'fused': fused or None}
    if config.name == 'adamw':
        return torch.optim.AdamW(groups, **options)
    if config.name == 'adam':
        return torch.optim.Adam(groups, **options)
    return torch.optim.SGD(groups, momentum=config.momentum, **options)


def set_learning_rates(
    optimiser: torch.optim.Optimizer, progress: float, config: OptimiserConfig
) -> None:
    """Set every group's rate for a share ``progress`` of the run, by the group's own pace."""
    for group in optimiser.param_groups:
        group['lr'] = group['lr_scale'] * learning_rate(progress, config, group['gamma'])


class WeightAverage:
    """Exponential moving average of a network's parameters and of its norms' running statistics.

    Those are averages already, but over some ten batches of the newest weights: with them averaged
    weights from scratch lost up to a point and a half of mIoU (ERFNetEnc, 600 steps at 128x96).
    The average trusts itself more as it grows older: its decay at step t is at most
    (1 + t) / (10 + t). The step is counted by the caller, so that no device is waited for.

    Args:
        network: what is averaged; it keeps the memory of its tensors from now on.
        decay: of the average; 0 always returns the newest ones.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.newest = _averaged_tensors(network)
        self.tensors = [tensor.clone() for tensor in self.newest]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network's tensors after step ``step``, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.tensors, self.newest, 1 - decay)

    @torch.no_grad()
    def network(self, network: nn.Module) -> nn.Module:
        """Return a copy of ``network`` with the averaged tensors, in evaluation mode."""
        result = copy.deepcopy(network)
        for tensor, averaged in zip(_averaged_tensors(result), self.tensors, strict=True):
            tensor.copy_(averaged)
        return result.eval()

    def state_dict(self) -> dict[str, Any]:
        """Return the averages, for saving."""
        return {'tensors': self.tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved averages."""
        for tensor, saved in zip(self.tensors, state['tensors'], strict=True):
            tensor.copy_(saved)


def _averaged_tensors(network: nn.Module) -> list[torch.Tensor]:
    buffers = (buffer for buffer in network.buffers() if buffer.is_floating_point())
    return [*(parameter.detach() for parameter in network.parameters()), *buffers]
