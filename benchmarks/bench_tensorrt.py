"""What a TensorRT engine adds to its kernels, and the pipeline to the engine, on a GPU.

The same frames of 640x480 go through the whole pipeline with each precision's engine, in turn.
Then one engine at a time runs inputs that lie in pinned memory already, in turn as a CUDA graph
and without one, and with the host's copies there and back; and CUPTI, through torch's profiler,
adds up the kernels and the copies over the bus. The graph holds both, and is to take little more
than its kernels alone. Each share stands beside its limit. Without a GPU or an engine
(``rgbd-fusion-seg build-engine``) nothing is measured.

    python benchmarks/bench_tensorrt.py [--bundle NAME] [--frames FOLDER_OR_BAG]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import measure
import numpy as np

from rgbd_fusion_seg.benchmark.compare import frames_of
from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE, ModelBundle, load_bundle
from rgbd_fusion_seg.engine.cuda import find_device
from rgbd_fusion_seg.engine.engine_choice import PRECISIONS
from rgbd_fusion_seg.engine.tensorrt import TensorRtEngine, open_engine
from rgbd_fusion_seg.errors import EngineError
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.segmenter import Segmenter

LIMITS = {'graph over kernels': 1.05, 'outside the engine': 0.15}
"""What is measured -> the most it is to be."""


def main() -> None:
    """Measure the engines that can run here, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--bundle', default=DEFAULT_BUNDLE)
    parser.add_argument('--frames', type=Path, help='folder or bag (default: synthetic rooms)')
    parser.add_argument('--repeats', type=int, default=100)
    parser.add_argument('--out', type=Path, default=measure.OUTPUT / 'tensorrt.json')
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    try:
        gpu = find_device()
        found = precisions(bundle)
        require_profiler()
    except EngineError as error:
        sys.stdout.write(f'nothing is measured: {error}\n')
        return
    frames, source, _ = frames_of(options.frames, 8)
    engines = {name: inside(bundle, name, options.repeats) for name in found}
    frame = whole_frames(bundle, found, frames, options.repeats)
    result: dict[str, Any] = {
        'what': 'graph over kernels = time of one CUDA graph, from and to pinned memory and so '
        'with its copies / sum of its kernels alone; host copies = time of a run besides, which '
        'fills that memory; outside the engine = share of the frame; within = at most the limit',
        'device': str(gpu),
        'bundle': bundle.name,
        'onnx_sha256': bundle.weights_sha256,
        'frames': source,
        'limits': {name: against_limits(engines[name] | frame[name]) for name in found},
        'engines': engines,
        'frame': frame,
    }
    measure.write(options.out, result)
    for name, row in result['engines'].items():
        sys.stdout.write(f'{name}: {row["name"]}\n{measure.table(row["timing"])}\n')
        sys.stdout.write(
            f'kernels {row["kernels_ms"]} ms, copies {row["copies_ms"]} ms, host copies '
            f'{row["host_copies_ms"]} ms besides\n'
        )
        for what, verdict in result['limits'][name].items():
            sys.stdout.write(
                f'{what}: {verdict["measured"]}, limit {verdict["limit"]}: '
                f'{"within" if verdict["within"] else "NOT within"}\n'
            )
    sys.stdout.write(f'wrote {options.out}\n')


def against_limits(measured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what was measured beside its limit, and whether it is within."""
    return {
        what: {'measured': measured[what], 'limit': limit, 'within': measured[what] <= limit}
        for what, limit in LIMITS.items()
    }


def precisions(bundle: ModelBundle) -> list[str]:
    """Return the precisions of the engines that run here.

    Raises:
        EngineError: there is none.
    """
    found, reasons = [], []
    for precision in PRECISIONS:
        try:
            open_engine(bundle, precision=precision).close()
            found.append(precision)
        except EngineError as error:
            reasons.append(str(error))
    if not found:
        raise EngineError(reasons[0])
    return found


def inside(bundle: ModelBundle, precision: str, repeats: int) -> dict[str, Any]:
    """Time an engine as a CUDA graph and without one, and add up what it runs on the GPU."""
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.standard_normal(form.shape).astype(form.dtype)
        for name, form in bundle.graph_inputs.items()
    }
    with ExitStack() as stack:
        engines = {
            name: open_engine(bundle, precision=precision, cuda_graph=graph)
            for name, graph in (('CUDA graph', True), ('no graph', False))
        }
        for engine in engines.values():
            stack.callback(engine.close)
        for engine in engines.values():
            engine.run(feeds)
        calls: dict[str, Callable[[], Any]] = {
            name: engine.execution.infer for name, engine in engines.items()
        }
        calls['with host copies'] = lambda: engines['CUDA graph'].run(feeds)
        timing = measure.interleaved(calls, repeats)
        kernels_ms, copies_ms = on_the_gpu(engines['CUDA graph'], feeds, repeats)
        whole_ms, graph_ms = (timing[k]['median_ms'] for k in ('with host copies', 'CUDA graph'))
        return {
            'name': engines['CUDA graph'].name,
            'uses_cuda_graph': engines['CUDA graph'].uses_cuda_graph,
            'timing': timing,
            'kernels_ms': round(kernels_ms, 4),
            'copies_ms': round(copies_ms, 4),
            'host_copies_ms': round(whole_ms - graph_ms, 4),
            'graph over kernels': round(graph_ms / kernels_ms, 4),
        }


def require_profiler() -> None:
    """Raise EngineError where torch cannot tell what kernels take."""
    try:
        import torch
    except ImportError as error:
        raise EngineError(
            f'times of kernels come from torch, which is not here: {error}'
        ) from error
    if not torch.cuda.is_available():
        raise EngineError('times of kernels come from torch, and this one was built without CUDA')


def on_the_gpu(
    engine: TensorRtEngine, feeds: dict[str, np.ndarray], repeats: int
) -> tuple[float, float]:
    """Return what the kernels and what the copies of one run take, in milliseconds."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.init()  # the profiler sees nothing before
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(repeats):
            engine.run(feeds)
        torch.cuda.synchronize()
    taken = {'kernels': 0.0, 'copies': 0.0}
    for event in trace.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            copy = event.name.startswith(('Memcpy', 'Memset'))
            taken['copies' if copy else 'kernels'] += event.self_device_time_total
    kernels_ms, copies_ms = (us / repeats / 1e3 for us in taken.values())
    if kernels_ms == 0:
        raise SystemExit('the profiler saw no kernels; it needs a torch that is built for CUDA')
    return kernels_ms, copies_ms


def whole_frames(
    bundle: ModelBundle, found: list[str], frames: list[RgbdFrame], repeats: int
) -> dict[str, dict[str, Any]]:
    """Time the whole pipeline with each precision, in turn, and tell the engine's share."""
    with ExitStack() as stack:
        segmenters = {
            name: stack.enter_context(Segmenter(bundle, 'tensorrt', precision=name))
            for name in found
        }
        rows = measure.frames_in_turn(segmenters, frames, repeats)
    for row in rows.values():
        row['inference_ms'] = row.pop('stages_ms')['inference']
        row['outside the engine'] = round(1 - row['inference_ms'] / row['median_ms'], 4)
    return rows


if __name__ == '__main__':
    main()
