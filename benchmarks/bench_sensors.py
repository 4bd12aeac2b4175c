"""What do networks label when a sensor is another one, is poor, or fails?

Test frames of NYU Depth V2: with the depth of the data set; with that of simulated stereo pairs
(``synthetic.stereo``), matched either way, with and without a projector; with half of a picture's
depth gone, as in sunlight, or all; and with colour as at night, or black.

    python benchmarks/bench_sensors.py [--bundles NAME_OR_FOLDER ...] [--every 4]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import measure
import numpy as np
from numpy.random import Generator

from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.progress import progress_bar
from rgbd_fusion_seg.replay.evaluate import confusion_matrix
from rgbd_fusion_seg.segmenter import Segmenter
from rgbd_fusion_seg.synthetic.stereo import StereoRig, simulate_stereo
from rgbd_fusion_seg.training.config import DatasetConfig
from rgbd_fusion_seg.training.datasets import open_dataset

BUNDLES = ('rfbnet_erfnet_nyu40', 'rfbnet_erfnet_nyu40_320x240')
RIGS = {
    'stereo, semi-global matching': StereoRig(),
    'stereo, semi-global matching, projector': StereoRig(projector=120.0),
    'stereo, block matching': StereoRig(matcher='block'),
    'stereo, block matching, projector': StereoRig(matcher='block', projector=120.0),
}
NIGHT_GAIN, NIGHT_NOISE = 0.08, 2.0
"""Colour at night: a twelfth of the light, and the noise that it then has, in grey levels."""


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--bundles', nargs='+', default=BUNDLES)
    parser.add_argument('--every', type=int, default=4)
    parser.add_argument('--out', type=Path, default=measure.OUTPUT / 'sensors.json')
    arguments = parser.parse_args()
    source = open_dataset(DatasetConfig(), 'test')
    indices = range(0, len(source), arguments.every)
    readings: dict[str, float] = {}
    with ExitStack() as stack:
        segmenters = [stack.enter_context(Segmenter(name)) for name in arguments.bundles]
        matrices: list[dict[str, np.ndarray]] = [{} for _ in segmenters]
        for index in progress_bar(indices, desc='frames'):
            item = source[index]
            for name, frame in seen_frames(item.frame, np.random.default_rng(index)):
                share = float((frame.depth > 0).mean())
                readings[name] = readings.get(name, 0.0) + share / len(indices)
                for segmenter, found in zip(segmenters, matrices, strict=True):
                    labels = segmenter.segment(frame).labels
                    counts = confusion_matrix(labels, item.labels, segmenter.bundle.num_classes)
                    found[name] = found.get(name, 0) + counts
    rows = [
        {
            'bundle': segmenter.bundle.name,
            'weights_sha256': segmenter.bundle.weights_sha256,
            'sensors': {name: measure.figures(matrix) for name, matrix in found.items()},
        }
        for segmenter, found in zip(segmenters, matrices, strict=True)
    ]
    result = {
        'what': f'every {arguments.every}th test frame of NYUDv2; percent',
        'frames': len(indices),
        'pixels_with_a_reading': {name: round(100 * x, 1) for name, x in readings.items()},
        'rows': rows,
    }
    measure.write(arguments.out, result)
    for row in rows:
        sys.stdout.write(f'{row["bundle"]}: pixel accuracy, mIoU\n')
        for name, found in row['sensors'].items():
            sys.stdout.write(f'  {name:40}{found["pixel_accuracy"]:6.1f}{found["mIoU"]:6.1f}\n')
    sys.stdout.write(f'wrote {arguments.out}\n')


def seen_frames(frame: RgbdFrame, rng: Generator) -> Iterator[tuple[str, RgbdFrame]]:
    """Yield the frame as each set of sensors would see it, and the name of the set."""
    rgb, depth, camera = frame.rgb, frame.depth, frame.intrinsics
    yield 'as in the data set', frame
    for name, rig in RIGS.items():
        yield name, RgbdFrame(rgb, simulate_stereo(rgb, depth, camera, rig, rng), camera)
    half = depth.copy()
    half[:, : depth.shape[1] // 2] = 0
    yield 'no depth in the left half', RgbdFrame(rgb, half, camera)
    yield 'no depth', RgbdFrame(rgb, np.zeros_like(depth), camera)
    night = NIGHT_GAIN * rgb + rng.normal(0, NIGHT_NOISE, rgb.shape)
    yield 'colour at night', RgbdFrame(night.round().clip(0, 255).astype(np.uint8), depth, camera)
    yield 'no colour', RgbdFrame(np.zeros_like(rgb), depth, camera)


if __name__ == '__main__':
    main()
