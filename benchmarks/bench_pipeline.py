"""What the pipeline costs around inference, and labels with confidence against torch.

Every group of callables is timed in turn in one run, pre- and post-processing on one thread; the
ratios count. Frames are views of synthetic rooms with Kinect-like depth.

    python benchmarks/bench_pipeline.py [--bundle NAME_OR_FOLDER] [--repeats 30]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import measure
import numpy as np

from rgbd_fusion_seg import kernels, palette
from rgbd_fusion_seg.benchmark.compare import synthetic_frames
from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE, ModelBundle, load_bundle
from rgbd_fusion_seg.engine import open_engine
from rgbd_fusion_seg.errors import BundleError
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.postprocess import labels_and_confidence
from rgbd_fusion_seg.preprocess import hha_image, hha_tensor, rgb_tensor

CLASSES, HEIGHT, WIDTH, STRIDE = 40, 480, 640, 8
NUM_FRAMES = 8


def main() -> None:
    """Run all parts and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--bundle', default=DEFAULT_BUNDLE)
    parser.add_argument('--repeats', type=int, default=30)
    parser.add_argument('--out', type=Path, default=measure.OUTPUT / 'pipeline.json')
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    kernels.warm_up()
    frames = list(synthetic_frames(NUM_FRAMES).frames)
    logits = {'smooth': smooth_logits(), 'noise': noise_logits()}
    result: dict[str, Any] = {}
    try:
        bundle = load_bundle(arguments.bundle)
        if bundle.rgb is None or bundle.hha is None:
            raise BundleError(f'{bundle.name} does not see both colour and HHA')
    except BundleError as error:
        print(f'without a bundle only labels and confidence are measured: {error}')
    else:
        result['bundle'] = {
            'name': bundle.name,
            'rgb': [bundle.rgb.width, bundle.rgb.height],
            'hha': [bundle.hha.width, bundle.hha.height],
        }
        real, result['pipeline'] = pipeline(bundle, frames, arguments.repeats)
        result['engine_wrapper'] = engine_wrapper(bundle, arguments.repeats)
        logits = {'network': real[0], **logits}
        result['confidence_of_network'] = agreement(real)
    for name, values in logits.items():
        result[f'labels_{name}'] = {
            'logits': list(values.shape),
            'timing': labels(values, arguments.repeats),
            'agreement': agreement([values]),
        }
        show(f'labels and confidence, {name} logits', result[f'labels_{name}']['timing'])
    result['overlay'] = overlays(frames[0], logits[next(iter(logits))], arguments.repeats)
    measure.write(arguments.out, result)
    print(f'wrote {arguments.out}')


def noise_logits() -> np.ndarray:
    """Logits without any structure: the most work there can be."""
    rng = np.random.default_rng(0)
    size = (1, CLASSES, HEIGHT // STRIDE, WIDTH // STRIDE)
    return 3 * rng.standard_normal(size, dtype=np.float32)


def smooth_logits() -> np.ndarray:
    """Logits that change as much across an eighth of the image as between the classes."""
    planes = np.stack([cv2.GaussianBlur(plane, (0, 0), 4) for plane in noise_logits()[0]])
    return np.ascontiguousarray(3 * planes[None] / planes.std(), dtype=np.float32)


def pipeline(
    bundle: ModelBundle, frames: list[RgbdFrame], repeats: int
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Time the stages in turn; return the logits of the frames as well."""
    engine = open_engine(bundle)
    size = bundle.hha
    hhas = [hha_image(f.depth, f.intrinsics, size.width, size.height) for f in frames]
    inputs = [
        (rgb_tensor(f.rgb, bundle.rgb), hha_tensor(h, bundle.hha))
        for f, h in zip(frames, hhas, strict=True)
    ]
    logits = [engine.infer(*pair) for pair in inputs]
    buffers = [np.empty_like(tensor) for tensor in inputs[0]]
    step = {'inference': 0, 'hha': 0, 'preprocess': 0, 'postprocess': 0}

    def next_frame(stage: str) -> int:
        step[stage] += 1
        return step[stage] % len(frames)

    def encode() -> None:
        frame = frames[next_frame('hha')]
        hha_image(frame.depth, frame.intrinsics, size.width, size.height)

    def preprocess() -> None:
        index = next_frame('preprocess')
        rgb_tensor(frames[index].rgb, bundle.rgb, out=buffers[0])
        hha_tensor(hhas[index], bundle.hha, out=buffers[1])

    timing = measure.interleaved(
        {
            'inference': lambda: engine.infer(*inputs[next_frame('inference')]),
            'hha': encode,
            'preprocess': preprocess,
            'postprocess': lambda: labels_and_confidence(
                logits[next_frame('postprocess')], HEIGHT, WIDTH
            ),
        },
        repeats,
    )
    show(f'stages at {WIDTH}x{HEIGHT}, {engine.name}', timing)
    share = sum(timing[stage]['ratio'] for stage in ('hha', 'preprocess', 'postprocess'))
    print(f'around inference: {share:.1%} of inference\n')
    return logits, {
        'engine': engine.name,
        'timing': timing,
        'share_around_inference': round(share, 4),
    }


def engine_wrapper(bundle: ModelBundle, repeats: int) -> dict[str, Any]:
    """Compare an engine with its own session called directly."""
    engine = open_engine(bundle)
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.standard_normal((1, 3, size.height, size.width), dtype=np.float32)
        for name, size in bundle.inputs.items()
    }
    session, outputs = engine._session, engine._outputs
    timing = measure.interleaved(
        {
            'bare session': lambda: session.run(outputs, feeds),
            'engine': lambda: engine.infer(**feeds),
        },
        2 * repeats,
    )
    show('engine wrapper', timing)
    return timing


def labels(logits: np.ndarray, repeats: int) -> dict[str, Any]:
    """Compare with what torch needs for the labels, and for labels and probability."""
    contenders: dict[str, Callable[[], Any]] = {
        'labels and confidence': lambda: labels_and_confidence(logits, HEIGHT, WIDTH)
    }
    if (torch := torch_module()) is not None:
        tensor, threads = torch.from_numpy(logits), torch.get_num_threads()

        def with_threads(count: int, function: Callable[[Any], Any]) -> Callable[[], Any]:
            def run() -> None:
                torch.set_num_threads(count)
                function(upsampled(tensor))

            return run

        contenders |= {
            'torch interpolate + argmax': with_threads(threads, lambda x: x.argmax(1)),
            'the same, 1 thread': with_threads(1, lambda x: x.argmax(1)),
            'torch interpolate + softmax + max': with_threads(
                threads, lambda x: x.softmax(1).max(1)
            ),
        }
    return measure.interleaved(contenders, repeats)


def agreement(batches: list[np.ndarray]) -> dict[str, Any] | None:
    """Compare labels and confidence with torch's, over all pixels of all logits."""
    if torch_module() is None:
        return None
    different, ties, errors = 0, 0, []
    for logits in batches:
        scores = upsampled(torch_module().from_numpy(logits))
        found, confidence = labels_and_confidence(logits, HEIGHT, WIDTH)
        best = scores.topk(2, dim=1).values[0].numpy()
        tied = best[0] == best[1]
        ties += int(tied.sum())
        different += int(((found != scores.argmax(1)[0].numpy()) & ~tied).sum())
        errors.append(confidence - 255 * scores.double().softmax(1).amax(1)[0].numpy())
    error = np.concatenate([e.ravel() for e in errors])
    return {
        'pixels': error.size,
        'exact_ties': ties,
        'labels_unlike_torch': different,
        'confidence_error_grey_levels': {
            'mean': round(float(error.mean()), 3),
            'mean_absolute': round(float(np.abs(error).mean()), 3),
            'absolute_99_percent': round(float(np.percentile(np.abs(error), 99)), 2),
            'largest': round(float(np.abs(error).max()), 2),
        },
    }


def overlays(frame: RgbdFrame, logits: np.ndarray, repeats: int) -> dict[str, Any]:
    """Time the coloured images beside OpenCV's table look-up and weighted sum."""
    found, _ = labels_and_confidence(logits, HEIGHT, WIDTH)
    table = np.zeros((1, 256, 3), np.uint8)
    table[0, :CLASSES] = palette.NYU40_COLORS

    def by_opencv() -> np.ndarray:
        colors = cv2.LUT(cv2.merge((found, found, found)), table)
        return cv2.addWeighted(frame.rgb, 0.5, colors, 0.5, 0)

    timing = measure.interleaved(
        {
            'overlay': lambda: palette.overlay(frame.rgb, found, palette.NYU40_COLORS),
            'overlay with OpenCV': by_opencv,
            'colorize': lambda: palette.colorize(found, palette.NYU40_COLORS),
        },
        repeats,
    )
    show('overlay', timing)
    return timing


def upsampled(tensor: Any) -> Any:
    """Return torch's bilinear interpolation to the size of the image."""
    return torch_module().nn.functional.interpolate(
        tensor, size=(HEIGHT, WIDTH), mode='bilinear', align_corners=False
    )


def torch_module() -> Any:
    """Return torch, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def show(title: str, timing: dict[str, Any]) -> None:
    """Print the table of a group."""
    print(f'{title}\n{measure.table(timing)}\n')


if __name__ == '__main__':
    sys.exit(main())
