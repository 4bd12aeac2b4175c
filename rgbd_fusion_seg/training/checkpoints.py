"""Checkpoints: weights in safetensors, with what is needed to rebuild the network beside them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.networks import build_network


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights by parameter name, and the run's description ('network', 'statistics', …)."""

    weights: dict[str, Tensor]
    info: dict[str, Any]

    def network(self, num_classes: int) -> nn.Module:
        """Build the network with these weights, in evaluation mode."""
        network = build_network(self.info['network'], num_classes, **self.info['options'])
        network.load_state_dict(self.weights)
        return network.eval()


def save_checkpoint(path: Path, network: nn.Module, info: dict[str, Any]) -> None:
    """Write a checkpoint; an existing one is replaced only when the new one is whole."""
    weights = {k: v.contiguous().cpu() for k, v in network.state_dict().items()}
    temporary = path.with_suffix('.partial')
    save_file(weights, temporary, metadata={'info': json.dumps(info)})
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: no such file, or not a checkpoint of this package.
    """
    try:
        with safe_open(path, framework='pt') as file:
            info = json.loads((file.metadata() or {})['info'])
            return Checkpoint({key: file.get_tensor(key) for key in file.keys()}, info)  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise InputError(
            f'{path} is no checkpoint of this package ({error}); give a .safetensors file '
            'that the train command wrote'
        ) from error
