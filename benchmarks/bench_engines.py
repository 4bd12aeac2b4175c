"""How near the CPU engines come to what the cores can do, and what load does to their settings.

First each engine is timed in turn with a loop of fused multiply-adds (``fma_peak.c``, compiled
here), on one thread and on all cores. Operations of the network are counted in its ONNX graph: two
for each multiplication of a convolution or matrix product. Then the settings that could matter are
compared on frames with the pipeline around them, without and with one busy process beside.

    python benchmarks/bench_engines.py [--bundle NAME_OR_FOLDER] [--frames FOLDER_OR_BAG]

On a machine that others use, ``--clock process`` times what the threads themselves got from the
processor instead of the wall clock in the first part.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np
import onnx

from rgbd_fusion_seg import kernels
from rgbd_fusion_seg.benchmark import compare, report
from rgbd_fusion_seg.benchmark.compare import BenchmarkOptions, Contender
from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE, ModelBundle, load_bundle
from rgbd_fusion_seg.engine import open_engine
from rgbd_fusion_seg.engine.onnxruntime import SPIN_US
from rgbd_fusion_seg.hardware import usable_cores

HERE = Path(__file__).resolve().parent
ITERATIONS = 40_000_000
"""Of the loop: as long as an inference, so that the system has time to give each thread a core."""
SPINNING = {'': SPIN_US, ', not spinning': 0, ', spinning on': -1}
CLOCKS = {'wall': time.perf_counter, 'process': time.process_time}


def main() -> None:
    """Measure both parts and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--bundle', default=DEFAULT_BUNDLE)
    parser.add_argument('--frames', type=Path, help='recording (default: synthetic rooms)')
    parser.add_argument('--repeats', type=int, default=50)
    parser.add_argument('--load', type=int, default=1, help='busy processes (default: 1)')
    parser.add_argument('--clock', choices=CLOCKS, default='wall')
    parser.add_argument('--out', type=Path, default=measure.OUTPUT / 'engines.json')
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    result: dict[str, Any] = {'bundle': bundle.name, 'clock': options.clock}
    result['share_of_peak'] = share_of_peak(bundle, options.repeats, CLOCKS[options.clock])
    kernels.warm_up()
    frames = compare.frames_of(options.frames, 20 if options.frames else 8)
    settings = BenchmarkOptions((), options.repeats, options.load, tuple(contenders()))
    result['settings'] = compare.compare(bundle, frames, settings, progress=True)
    print(report.table(result['settings']))
    measure.write(options.out, result)
    print(f'wrote {options.out}')


def contenders() -> Iterator[Contender]:
    """Yield the settings that are compared under load; the defaults of each backend come first."""
    threads = sorted({usable_cores(), 1}, reverse=True)
    for count in threads:
        for spinning, spin_us in SPINNING.items() if count > 1 else [('', SPIN_US)]:
            label = f'onnxruntime, {count} threads{spinning}'
            yield Contender(label, 'onnxruntime', {'num_threads': count, 'spin_us': spin_us})
    for precision in ('fp32', 'bf16'):
        for count in threads:
            for pinned in (False, True) if count > 1 else (False,):
                label = f'openvino {precision}, {count} threads{", pinned" * pinned}'
                settings = {'num_threads': count, 'precision': precision, 'pin_threads': pinned}
                yield Contender(label, 'openvino', settings | {'unchecked': precision != 'fp32'})


def share_of_peak(bundle: ModelBundle, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Time the float32 engines in turn with the multiply-add loop, on one and on all cores."""
    operations = network_operations(bundle)
    result: dict[str, Any] = {'network_gflop': round(operations / 1e9, 2)}
    with tempfile.TemporaryDirectory() as folder:
        peak = compiled_peak(Path(folder))
        if isinstance(peak, str):
            print(f'no share of the peak: {peak}')
            return result | {'skipped': peak}
        for threads in sorted({1, usable_cores()}):
            result[f'{threads} threads'] = _share(
                bundle, operations, peak, threads, repeats, clock
            )
    return result


def _share(
    bundle: ModelBundle,
    operations: float,
    peak: Callable[[int, int], float],
    threads: int,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.standard_normal(form.shape, dtype=np.float32)
        for name, form in bundle.graph_inputs.items()
    }
    engines = {
        name: open_engine(bundle, name, num_threads=threads)
        for name in ('onnxruntime', 'openvino')
    }
    done = peak(1, threads) * ITERATIONS
    callables: dict[str, Callable[[], Any]] = {
        name: (lambda engine=engine: engine.run(feeds)) for name, engine in engines.items()
    }
    callables['peak'] = lambda: peak(ITERATIONS, threads)
    seconds = measure.in_turn(callables, repeats, clock=clock)
    # On the process's clock the threads' times add up.
    together = threads if clock is time.process_time else 1
    speed = done / seconds['peak'] * together
    table: dict[str, Any] = {'peak_gflops': round(float(np.median(speed)) / 1e9, 1)}
    for name, engine in engines.items():
        engine.close()
        share = operations / seconds[name] * together / speed
        table[name] = {
            'median_ms': round(float(np.median(seconds[name])) / together * 1e3, 2),
            'share_of_peak': round(float(np.median(share)), 3),
        }
        print(f'{name}, {threads} threads: {table[name]["share_of_peak"]:.0%} of the peak')
    return table


def compiled_peak(folder: Path) -> Callable[[int, int], float] | str:
    """Return the loop as a function of iterations and threads, or why it cannot be had."""
    compiler = shutil.which('cc')
    if compiler is None:
        return 'there is no C compiler (cc)'
    library = folder / 'fma_peak.so'
    flags = ['-O3', '-march=native', '-ffp-contract=fast', '-shared', '-fPIC', '-pthread']
    command = [compiler, *flags, str(HERE / 'fma_peak.c'), '-o', str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return f'the C compiler failed: {done.stderr.strip().splitlines()[0]}'
    run = ctypes.CDLL(str(library)).run
    run.argtypes, run.restype = [ctypes.c_long, ctypes.c_int], ctypes.c_double
    return run


def network_operations(bundle: ModelBundle) -> float:
    """Return the float32 operations of the convolutions and matrix products for one image."""
    model = onnx.load(bundle.weights_path)
    for tensor in model.graph.input:
        sizes = bundle.graph_inputs[tensor.name].shape
        for side, size in zip(tensor.type.tensor_type.shape.dim, sizes, strict=True):
            side.dim_value = size
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = model.graph
    shapes = {t.name: list(t.dims) for t in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = [d.dim_value for d in value.type.tensor_type.shape.dim]
    return 2.0 * sum(_multiplications(node, shapes) for node in graph.node)


def _multiplications(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if node.op_type == 'Conv':
        # Each output sums over the kernel and the input channels of its group.
        return int(np.prod(shapes[node.output[0]])) * int(np.prod(shapes[node.input[1]][1:]))
    if node.op_type == 'ConvTranspose':
        return int(np.prod(shapes[node.input[0]])) * int(np.prod(shapes[node.input[1]][1:]))
    if node.op_type in ('MatMul', 'Gemm'):
        return int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][-1]
    return 0


if __name__ == '__main__':
    sys.exit(main())
