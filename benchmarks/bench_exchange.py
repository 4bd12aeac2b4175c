"""What channel exchange costs: in a training step, at inference, and in memory.

Everything is compared with the same network without exchange, timed in turn in one run, with
random weights. A training step is forward, loss and backward, in the precision of a run on the
device. Inference is ONNX Runtime on the exported graphs, in which the exchange is a fixed
selection, at several shares of exchanged channels. Memory is that of a process of its own which
opens a graph and labels images, beyond one that has only imported the library; and what a training
step keeps for its backward pass, with the parameters.

    python benchmarks/bench_exchange.py [--backbone resnet50] [--head refinenet]
        [--modalities rgb,hha] [--shares 0.04,0.3] [--size 320x240] [--batch 2] [--part training]

On a large GPU training steps of so little are bound by the launching of kernels, of which the
exchange has more: there measure those of a training run, too, `--part training --size 640x480
--batch 16`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.cli.arguments import size as parse_size
from rgbd_fusion_seg.training.networks import build_network
from rgbd_fusion_seg.training.onnx_graph import GraphOptions, build_graph

NUM_CLASSES = 40
SHARES = '0.04,0.3'
"""Exchanged channels: in the authors' log 8 % of the penalised half; CEN's fixed portion."""
LIMITS = {'training': 1.10, 'inference': 1.03, 'memory': 2.1}
"""What the exchange between two modalities may cost; memory against the unimodal network."""
PEAK_OF_SESSION = """
import resource, sys
import numpy as np, onnxruntime
if len(sys.argv) > 1:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(sys.argv[1], options, ['CPUExecutionProvider'])
    images = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()}
    for _ in range(3):
        session.run(None, images)
    pages = int(open('/proc/self/statm').read().split()[1])
else:
    pages = int(open('/proc/self/statm').read().split()[1])
print(pages * resource.getpagesize())
"""


def main() -> int:
    """Measure, write the result and say whether the limits are kept; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--backbone', default='resnet50')
    parser.add_argument('--head', default='refinenet')
    parser.add_argument(
        '--modalities', type=lambda text: text.split(','), default='rgb,hha', help='of CEN'
    )
    parser.add_argument(
        '--shares',
        type=lambda text: [float(share) for share in text.split(',')],
        default=SHARES,
        help='of the channels, exchanged; training and its memory take the last',
    )
    parser.add_argument('--size', type=parse_size, default=(320, 240), metavar='WxH')
    parser.add_argument('--batch', type=int, default=2, help='of the training steps')
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--part', choices=LIMITS, help='one part alone, in a file of its own')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--out', type=Path)
    options = parser.parse_args()
    parts: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        'training': training,
        'inference': inference,
        'memory': memory,
    }
    shape = {
        **parts_of(options),
        'modalities': options.modalities,
        'size': list(options.size),
        'batch': options.batch,
    }
    on_gpu = options.device.startswith('cuda')
    device = torch.cuda.get_device_name(options.device) if on_gpu else 'cpu'
    file = '_'.join(['exchange', *['cuda'] * on_gpu, *([options.part] if options.part else [])])
    out = options.out or measure.OUTPUT / f'{file}.json'

    def part(name: str) -> dict[str, Any]:
        found = parts[name](options)
        verdict = 'kept' if found['ratio'] <= LIMITS[name] else 'NOT kept'
        print(f'{name}: {found["ratio"]:.3f} times, limit {LIMITS[name]} {verdict}')
        return found

    def keep(results: dict[str, Any], failed: dict[str, str]) -> None:
        told = {'failed': failed} if failed else {}
        measure.write(out, {**shape, 'device': device, **results, **told})

    code = measure.one_by_one([options.part] if options.part else LIMITS, part, keep)
    print(f'wrote {out}')
    return code


def training(options: argparse.Namespace) -> dict[str, Any]:
    """Time training steps with exchange, and without exchange and penalty."""
    networks = {
        'without exchange': network(options, exchange='none', penalised='none'),
        'with exchange': network(options, share=options.shares[-1]),
    }
    steps = {name: step(net, options) for name, net in networks.items()}
    timing = measure.interleaved(steps, options.repeats)
    print(measure.table(timing))
    return {'timing': timing, 'ratio': timing['with exchange']['ratio']}


def network(options: argparse.Namespace, share: float = 0.0, **others: Any) -> nn.Module:
    """Build a CEN in which a share of the channels is below the threshold."""
    torch.manual_seed(0)
    net = build_network(
        'cen', NUM_CLASSES, **parts_of(options), modalities=options.modalities,
        parts='nearly_equal', **others,
    )  # fmt: skip
    for _, norm in net.exchanges().values():
        for layer in norm:
            small = torch.rand_like(layer.weight) < share
            layer.weight.data[small] = 1e-3
    return net


def unimodal(options: argparse.Namespace) -> nn.Module:
    """Build the network of one branch."""
    torch.manual_seed(0)
    return build_network('multimodal', NUM_CLASSES, **parts_of(options), modalities=['rgb'])


def parts_of(options: argparse.Namespace) -> dict[str, str]:
    """Return what the networks are made of."""
    return {'backbone': options.backbone, 'head': options.head}


def step(net: nn.Module, options: argparse.Namespace) -> Callable[[], None]:
    """Return a forward and backward pass with the losses that CEN trains with."""
    device = torch.device(options.device)
    net = net.to(device, memory_format=torch.channels_last).train()
    width, height = options.size
    images = {
        m: torch.randn(options.batch, 3, height, width, device=device)
        .to(memory_format=torch.channels_last)
        for m in net.modalities
    }  # fmt: skip
    labels = torch.randint(NUM_CLASSES, (options.batch, height // 2, width // 2), device=device)

    def loss(logits: Tensor) -> Tensor:
        logits = F.interpolate(logits.float(), labels.shape[1:], mode='bilinear')
        return F.cross_entropy(logits, labels)

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            outputs = net(images, auxiliary=True)
        count = 1 + len(net.auxiliary_weights)
        predictions, terms = outputs[:count], outputs[count:]
        sum([loss(x) for x in predictions] + terms).backward()
        net.zero_grad()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    return run


def graphs(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Export what is compared; return the files by name, that without exchange first."""
    networks = {'without exchange': network(options, exchange='none')}
    for share in options.shares:
        networks[f'{share:.0%} exchanged'] = network(options, share)
    networks['unimodal'] = unimodal(options)
    width, height = options.size
    files = {}
    for name, net in networks.items():
        files[name] = folder / f'{name}.onnx'
        onnx.save(build_graph(net.eval(), height, width, GraphOptions()), files[name])
    return files


def inference(options: argparse.Namespace) -> dict[str, Any]:
    """Time ONNX Runtime on the graphs with and without exchange."""
    import onnxruntime

    calls = {}
    with tempfile.TemporaryDirectory() as folder:
        files = graphs(options, Path(folder))
        for name, file in files.items():
            session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
            images = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()}
            calls[name] = lambda s=session, i=images: s.run(None, i)
        timing = measure.interleaved(calls, options.repeats)
    print(measure.table(timing))
    return {'timing': timing, 'ratio': max(timing[n]['ratio'] for n in files if '%' in n)}


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the memory of processes that run the graphs."""

    def resident(*arguments: str) -> int:
        command = [sys.executable, '-c', PEAK_OF_SESSION, *arguments]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    base = resident()
    with tempfile.TemporaryDirectory() as folder:
        taken = {
            name: (resident(str(file)) - base) / 2**20
            for name, file in graphs(options, Path(folder)).items()
        }
    for name, mib in taken.items():
        print(f'{name:18} {mib:8.1f} MiB')
    kept = {
        'unimodal': kept_for_backward(unimodal(options), options),
        'with exchange': kept_for_backward(network(options, options.shares[-1]), options),
    }
    print(
        f'kept in training: {kept["unimodal"]:.1f} MiB unimodal, {kept["with exchange"]:.1f} MiB'
    )
    inferring = max(mib for name, mib in taken.items() if '%' in name) / taken['unimodal']
    return {
        'inference_mib': {n: round(mib, 1) for n, mib in taken.items()},
        'training_mib': {n: round(mib, 1) for n, mib in kept.items()},
        'ratio': round(max(inferring, kept['with exchange'] / kept['unimodal']), 3),
    }


def kept_for_backward(net: nn.Module, options: argparse.Namespace) -> float:
    """Return the MiB of what a forward pass keeps, parameters with their gradients included."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    width, height = options.size
    net = net.train()
    images = {m: torch.randn(options.batch, 3, height, width) for m in net.modalities}
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        torch.autocast('cpu', torch.bfloat16),
    ):
        outputs = net(images, auxiliary=True)
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    activations = sum(size for place, size in kept.items() if place not in own)
    parameters = sum(2 * p.numel() * p.element_size() for p in net.parameters())
    del outputs
    return (activations + parameters) / 2**20


if __name__ == '__main__':
    sys.exit(main())
