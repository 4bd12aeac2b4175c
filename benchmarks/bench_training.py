"""What a training step takes beside the network's own forward and backward pass.

The yardstick is the bare pass: forward with the auxiliary outputs and backward, on tensors that
stay where they are, in the precision of the run. The full step gathers, warps and jitters the
views of its batch, normalises them, computes loss and gradients, clips, steps the optimiser and
averages the weights. No loader process reads ahead, so nothing is hidden from the clock.

The frames are the package's own synthetic rooms, so no data is needed.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch

from rgbd_fusion_seg.training.config import (
    DataConfig,
    DatasetConfig,
    NetworkConfig,
    TrainConfig,
)
from rgbd_fusion_seg.training.trainer import Trainer

TRAIN_FRAMES, TEST_FRAMES = 64, 4
TARGET = 0.7
"""Throughput of the full step against the bare pass that training must reach."""


def main() -> None:
    """Measure each network, print tables, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out', type=Path, help='result file; default: one for CPUs, one for GPUs'
    )
    parser.add_argument('--networks', nargs='+', default=['rfbnet_erfnet', 'erfnet_encoder'])
    parser.add_argument('--repeats', type=int, default=15, help='rounds')
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--width', type=int, default=320)
    parser.add_argument('--height', type=int, default=240)
    parser.add_argument('--precision', default='bf16-mixed')
    parser.add_argument('--accelerator', default='auto')
    parser.add_argument('--threads', type=int, default=1, help='threads of torch on the CPU')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results, device, own_clock = {}, '', False
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            trainer = Trainer(run_config(name, options, Path(folder)))
            device = describe(trainer.fabric.device)
            # On one thread, its own time leaves out waiting for a core that others use.
            own_clock = trainer.fabric.device.type == 'cpu' and options.threads == 1
            clock = time.thread_time if own_clock else time.perf_counter
            stats = measure.interleaved(what_is_timed(trainer), options.repeats, clock=clock)
            share = 1 / stats['full step']['ratio']
            results[name] = {'throughput_against_bare': round(share, 3), **stats}
            sys.stdout.write(f'{name}: {share:.0%} of the bare pass\n{measure.table(stats)}\n\n')
    kind = '_cuda' if trainer.fabric.device.type == 'cuda' else ''
    measure.write(
        options.out or measure.OUTPUT / f'training{kind}.json',
        {
            'what': 'one training step; ratio = median over rounds of time / time of the bare '
            'forward and backward pass of the same round',
            'device': device,
            'threads': torch.get_num_threads(),
            'clock': 'processor time of the calling thread' if own_clock else 'wall clock',
            'batch_size': options.batch_size,
            'input': f'{options.width}x{options.height}, views of 640x480 frames',
            'loader_processes': 0,
            'precision': options.precision,
            'target': TARGET,
            'networks': results,
        },
    )


def run_config(network: str, options: argparse.Namespace, folder: Path) -> TrainConfig:
    """Return a run of a network on synthetic rooms in a folder that is thrown away."""
    frames = {'train_frames': TRAIN_FRAMES, 'test_frames': TEST_FRAMES}
    data = DataConfig(
        dataset=DatasetConfig(name='synthetic', folder='', options=frames),
        cache=str(folder / 'cache'),
        width=options.width,
        height=options.height,
        workers=0,
    )
    return TrainConfig(
        output=str(folder / network),
        batch_size=options.batch_size,
        epochs=10_000,
        precision=options.precision,
        accelerator=options.accelerator,
        network=NetworkConfig(name=network),
        data=data,
    )


def what_is_timed(trainer: Trainer) -> dict[str, Callable[[], None]]:
    """Return the bare pass, the full step, and parts of the step."""
    views = trainer.views()
    batches = views.batches(0, trainer.num_steps)
    fixed = next(batches)
    inputs = trainer.normalise(fixed)
    trainer.network.train()

    def bare() -> None:
        with_auxiliary = bool(trainer.network.module.auxiliary_weights)
        outputs = trainer.network(inputs, auxiliary=with_auxiliary)
        outputs = outputs if with_auxiliary else [outputs]
        trainer.fabric.backward(sum(output.float().mean() for output in outputs))
        trainer.optimiser.zero_grad()

    timed = {
        'bare forward and backward': bare,
        'full step': lambda: trainer.step(next(batches)),
        'step on a fixed batch': lambda: trainer.step(fixed),
        'making the batch': lambda: next(batches),
        'of it, gathering windows': lambda: views.reader[trainer.state['step']],
    }
    return {
        name: functools.partial(finished, function, trainer.fabric.device)
        for name, function in timed.items()
    }


def finished(function: Callable[[], Any], device: torch.device) -> None:
    """Call a function and wait for the device."""
    function()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> str:
    """Return the name of the device."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'CPU, {os.cpu_count()} cores'


if __name__ == '__main__':
    main()
