"""The device and the processes of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import TorchCheckpointIO
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.config import RunConfig


class StateFiles(TorchCheckpointIO):
    """Writes a state straight to its file; who asks for it takes care that the file is whole.

    Fabric itself writes to the folder for temporary files first, which may be small or on another
    disk.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a file.

        Raises:
            OSError: the disk does not take it.
        """
        with open(path, 'wb') as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # of torch's own end of the file, for the disk's reason
                raise error.__context__ or error from None


def make_fabric(config: RunConfig) -> Fabric:
    """Return the device and process group: one process, or those that torchrun started.

    Args:
        config: the run.

    Raises:
        InputError: a device or precision that is not there, or a batch that the processes cannot
            share.
    """
    local = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    world = int(os.environ.get('WORLD_SIZE', 1))
    if config.batch_size % world:
        raise InputError(
            f'a batch of {config.batch_size} views cannot be shared by {world} processes; make '
            'batch_size a multiple of their number'
        )
    # Auxiliary heads take no part in runs without their loss.
    strategy = 'ddp_find_unused_parameters_true' if world > 1 else 'auto'
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            strategy=strategy,
            devices=local,
            num_nodes=world // local,
            precision=config.precision,
            plugins=StateFiles(),
        )
    except (ValueError, RuntimeError, ImportError) as error:  # of a device's library
        raise InputError(
            f'accelerator {config.accelerator} with precision {config.precision} cannot be used: '
            f'{" ".join(str(error).split())}'
        ) from error
    if config.precision == '16-mixed' and fabric.device.type == 'cpu':
        raise InputError(
            'precision 16-mixed needs a GPU, and the run would be on the CPU; give 32-true, or '
            'bf16-mixed where the processor has instructions for it'
        )
    fabric.launch()
    return fabric


def leave_group(*wrapped: nn.Module) -> None:
    """End this process's part in the group that torchrun made; without one, do nothing.

    The modules cannot be trained any more. Their reducers go first: one that outlives the group
    ends it, and waits for its threads with Python's lock held, which these may need to let go of
    their last tensors. Then the process never ends (torch 2.13, gloo).

    Args:
        wrapped: what Fabric's setup returned.
    """
    if not torch.distributed.is_initialized():
        return
    for module in (inner for outer in wrapped for inner in outer.modules()):
        if isinstance(module, DistributedDataParallel):
            del module.logger, module.reducer
    torch.distributed.destroy_process_group()
