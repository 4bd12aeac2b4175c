"""Frames per second of every network of the package in torch, on a GPU or a CPU.

Networks have random weights, which cost what trained ones cost. Each network's forms are timed in
turn in one run: eager float32 (on GPUs TF32), eager in the device's half precision (fp16 on GPUs,
bf16 on CPUs), on GPUs that as a CUDA graph, and by choice compiled. A form that fails, as
compiling may, is told and costs no other one's times. Only the network is timed, its inputs lying
on the device. Engines of bundles are compared by ``rgbd-fusion-seg benchmark``.

    python benchmarks/bench_networks.py [--size 640x480] [--networks NAME ...] [--compile]
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor
from tqdm import tqdm

from rgbd_fusion_seg.cli.arguments import size as parse_size
from rgbd_fusion_seg.training.cost import empty_network, gflops
from rgbd_fusion_seg.training.networks import NETWORKS, build_network, parameter_count
from rgbd_fusion_seg.training.networks.base import SegmentationNetwork

NUM_CLASSES = 40


def main() -> int:
    """Measure the networks and write the result file of the device; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', type=parse_size, default=(640, 480), metavar='WxH')
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--repeats', type=int, default=30)
    parser.add_argument('--compile', action='store_true', help='torch.compile too; takes minutes')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--out', type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.index is not None:
        torch.cuda.set_device(device)  # on which graphs are recorded
    out = options.out or measure.OUTPUT / f'networks_{device.type}.json'
    setting = {
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU',
        'torch': torch.__version__,
        'threads': torch.get_num_threads(),
        'size': list(options.size),
    }

    def row(name: str) -> dict[str, Any]:
        found = measured(name, options.size, device, options.compile, options.repeats)
        title = f'{name}: {found["parameters"] / 1e6:.2f} M parameters, {found["gflops"]} GFLOP'
        lost = ''.join(f'{form} failed: {why}\n' for form, why in found.get('failed', {}).items())
        tqdm.write(f'{title}\n{measure.table(found["timing"])}\n{lost}')
        return found

    def keep(rows: dict[str, Any], failed: dict[str, str]) -> None:
        told = {'failed': failed} if failed else {}
        measure.write(out, {**setting, 'networks': rows, **told})

    code = measure.one_by_one(tqdm(options.networks, unit='network'), row, keep)
    print(f'wrote {out}')
    return code


def measured(
    name: str, size: tuple[int, int], device: torch.device, compiled: bool, repeats: int
) -> dict[str, Any]:
    """Return what a network costs, the timing of its forms, and why some of them have none.

    Raises:
        Exception: whatever its first form, eager float32, raises.
    """
    torch.manual_seed(0)
    network = build_network(name, NUM_CLASSES).eval().to(device)
    empty = empty_network(name, NUM_CLASSES)
    found, failed = forms(network, size, device, compiled)
    timing = measure.interleaved(found, repeats)
    for stats in timing.values():
        stats['frames_per_second'] = round(1e3 / stats['median_ms'], 1)
    return {
        'parameters': parameter_count(empty)[0],
        'gflops': round(gflops(empty, *size), 1),
        'timing': timing,
        **({'failed': failed} if failed else {}),
    }


def forms(
    network: SegmentationNetwork, size: tuple[int, int], device: torch.device, compiled: bool
) -> tuple[dict[str, Callable[[], None]], dict[str, str]]:
    """Return the forms of a network by name, each having run once, and why others cannot."""
    half = torch.float16 if device.type == 'cuda' else torch.bfloat16
    half_name = 'fp16' if device.type == 'cuda' else 'bf16'
    full_name = 'TF32' if device.type == 'cuda' else 'fp32'  # torch's default
    width, height = size
    images = {
        name: torch.randn(1, 3, *side, device=device).to(memory_format=torch.channels_last)
        for name, side in network.input_sizes(height, width).items()
    }
    low = {name: image.to(half) for name, image in images.items()}
    other = in_precision(network, half)
    eager = waiting(in_precision(network, torch.float32), images, device)
    eager()  # without which there is nothing to compare with
    making = {f'eager {half_name}': lambda: waiting(other, low, device)}
    if device.type == 'cuda':
        making['CUDA graph fp16'] = lambda: recorded(other, low)
    if compiled:
        making[f'compiled {half_name}'] = lambda: waiting(torch.compile(other), low, device)
    found, failed = {f'eager {full_name}': eager}, {}
    for name, make in making.items():
        try:
            form = make()
            form()  # compiles, among others
            found[name] = form
        except Exception as error:
            failed[name] = measure.reason(error)
    return found, failed


def in_precision(network: SegmentationNetwork, dtype: torch.dtype) -> SegmentationNetwork:
    """Return a copy in another precision, its convolutions in channels-last order."""
    return copy.deepcopy(network).to(dtype=dtype, memory_format=torch.channels_last)


def waiting(
    network: Callable[[dict[str, Tensor]], Tensor],
    inputs: dict[str, Tensor],
    device: torch.device,
) -> Callable[[], None]:
    """Return a call that ends when the device is done."""

    def run() -> None:
        with torch.inference_mode():
            network(inputs)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    return run


def recorded(network: SegmentationNetwork, inputs: dict[str, Tensor]) -> Callable[[], None]:
    """Record an inference as a CUDA graph; return a call that replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(side):
        for _ in range(3):  # libraries choose their algorithms outside the recording
            network(inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        network(inputs)

    def run() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return run


if __name__ == '__main__':
    sys.exit(main())
