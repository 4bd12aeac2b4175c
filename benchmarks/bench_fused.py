"""Does it pay to put the work around the network into the graph? Split against fused, in turn.

Each form is the whole way from a frame to labels and confidence through ``Segmenter``: `split`
(stages on the CPU, logits from the engine), `fused` (the graph takes colour and HHA as bytes and
returns labels) and `fused with HHA` (the graph takes depth, too). Beside the times stands what
crosses the bus, and how far labels and confidence are from the split form's. A fused form that the
backend cannot open is left out with its reason, as HHA is by ONNX Runtime's CUDA provider.

On a machine with a GPU build the engines first, then compare:

    rgbd-fusion-seg build-engine BUNDLE --precision fp16
    rgbd-fusion-seg build-engine BUNDLE --precision fp16 --fuse-postprocess
    rgbd-fusion-seg build-engine BUNDLE --precision fp16 --fuse-hha
    python benchmarks/bench_fused.py --bundle BUNDLE --backend tensorrt --frames FOLDER_OR_BAG
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import measure
import numpy as np

from rgbd_fusion_seg import kernels
from rgbd_fusion_seg.benchmark.compare import frames_of
from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE, ModelBundle, load_bundle
from rgbd_fusion_seg.engine_building.fused_graph import fuse, fused_folder
from rgbd_fusion_seg.errors import BundleError, EngineError
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.segmenter import Segmenter


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--bundle', default=DEFAULT_BUNDLE)
    parser.add_argument('--backend', default='onnxruntime')
    parser.add_argument('--frames', type=Path, help='folder or bag (default: synthetic rooms)')
    parser.add_argument('--count', type=int, default=8, help='of frames')
    parser.add_argument('--repeats', type=int, default=40)
    parser.add_argument('--out', type=Path)
    arguments = parser.parse_args()
    by_default = arguments.backend == 'onnxruntime'
    name = 'fused.json' if by_default else f'fused_{arguments.backend}.json'
    out = arguments.out or measure.OUTPUT / name
    kernels.warm_up()
    frames, source, _ = frames_of(arguments.frames, arguments.count)
    height, width = frames[0].depth.shape
    base = load_bundle(arguments.bundle)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        forms = bundles(base, (width, height), scratch)
        segmenters, left_out = opened(forms, arguments.backend, stack)
        result = {
            'what': 'from frame to labels and confidence; ratio = median over rounds of time / '
            'time of the split form in the same round',
            'bundle': base.name,
            'onnx_sha256': base.weights_sha256,
            'frame': [width, height],
            'frames': source,
            'engines': {name: s.engine_name for name, s in segmenters.items()},
            'left_out': left_out,
            'bytes_over_the_bus': {name: traffic(forms[name]) for name in segmenters},
            'timing': measure.frames_in_turn(segmenters, frames, arguments.repeats),
            'unlike_split': {
                name: unlike(segmenters['split'], segmenter, frames)
                for name, segmenter in segmenters.items()
                if name != 'split'
            },
        }
    measure.write(out, result)
    show(result)
    sys.stdout.write(f'wrote {out}\n')


def bundles(
    base: ModelBundle, frame_size: tuple[int, int], scratch: Path
) -> dict[str, ModelBundle]:
    """Return all forms; fused ones where they were built, for their engines, else made anew."""
    found = {'split': base}
    for name, hha in (('fused', False), ('fused with HHA', True)):
        if hha and base.hha is None:
            continue
        kept = fused_folder(base, frame_size, hha)
        folder = kept if kept.is_dir() else scratch / kept.name
        found[name] = fuse(base, folder, frame_size, hha)
    return found


def opened(
    forms: dict[str, ModelBundle], backend: str, stack: ExitStack
) -> tuple[dict[str, Segmenter], dict[str, str]]:
    """Open the forms, to be closed by the stack; return them, and why the others cannot be.

    Raises:
        SystemExit: the split form cannot be, with which all are compared.
    """
    segmenters: dict[str, Segmenter] = {}
    left_out: dict[str, str] = {}
    for name, bundle in forms.items():
        try:
            segmenters[name] = stack.enter_context(Segmenter(bundle, backend))
        except (BundleError, EngineError) as error:
            left_out[name] = str(error)
    if 'split' in left_out:
        raise SystemExit(f'nothing to compare with: {left_out["split"]}')
    return segmenters, left_out


def traffic(bundle: ModelBundle) -> dict[str, int]:
    """Return the bytes that an engine on a GPU takes and returns for a frame."""
    return {
        way: sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in forms.values())
        for way, forms in (('to', bundle.graph_inputs), ('from', bundle.graph_outputs))
    }


def unlike(split: Segmenter, fused: Segmenter, frames: list[RgbdFrame]) -> dict[str, float]:
    """Return how far labels and confidence are from the split form's."""
    labels, confidence = [], []
    for frame in frames:
        expected, found = split.segment(frame), fused.segment(frame)
        labels.append((found.labels != expected.labels).mean())
        confidence.append(found.confidence.astype(int) - expected.confidence)
    off = np.stack(confidence)
    return {
        'labels_share': round(float(np.mean(labels)), 7),
        'labels_share_worst_frame': round(float(np.max(labels)), 7),
        'confidence_mean': round(float(off.mean()), 3),
        'confidence_off_by_3_or_more_share': round(float((np.abs(off) >= 3).mean()), 5),
    }


def show(result: dict[str, Any]) -> None:
    """Print what was measured."""
    sys.stdout.write(f'{result["bundle"]}, {result["frames"]}\n')
    sys.stdout.write(f'{measure.table(result["timing"])}\n')
    for name, row in result['timing'].items():
        stages = ', '.join(f'{stage} {ms:.2f}' for stage, ms in row['stages_ms'].items())
        bus = result['bytes_over_the_bus'][name]
        sys.stdout.write(f'{name}: {stages} ms; {bus["to"]} bytes in, {bus["from"]} out\n')
    for name, row in result['unlike_split'].items():
        sys.stdout.write(f'{name}: {row}\n')
    for name, reason in result['left_out'].items():
        sys.stdout.write(f'{name} was not measured: {reason}\n')


if __name__ == '__main__':
    main()
