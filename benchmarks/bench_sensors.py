"""What do networks label when a sensor is another one, is poor, or fails?

Test frames of NYU Depth V2: with the depth of the data set; with that of simulated stereo pairs
(``synthetic.stereo``), matched either way, with and without a projector; with half of a picture's
depth gone, as in sunlight, or all; with colour as at night, black, too bright, warm, blurred or
compressed; with depth that lies beside colour; and as seen by a camera that is not level.

    python benchmarks/bench_sensors.py [--bundles NAME_OR_FOLDER ...] [--every 4]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import measure
import numpy as np
from numpy.random import Generator

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.progress import progress_bar
from rgbd_fusion_seg.replay.evaluate import confusion_matrix
from rgbd_fusion_seg.segmenter import Segmenter
from rgbd_fusion_seg.synthetic.stereo import StereoRig, simulate_stereo
from rgbd_fusion_seg.training.augment import VOID
from rgbd_fusion_seg.training.config import DatasetConfig
from rgbd_fusion_seg.training.datasets import open_dataset
from rgbd_fusion_seg.training.datasets.base import LabelledFrame

BUNDLES = ('rfbnet_erfnet_nyu40', 'rfbnet_erfnet_nyu40_320x240')
RIGS = {
    'stereo, semi-global matching': StereoRig(),
    'stereo, semi-global matching, projector': StereoRig(projector=120.0),
    'stereo, block matching': StereoRig(matcher='block'),
    'stereo, block matching, projector': StereoRig(matcher='block', projector=120.0),
}
DIM_GAIN, NIGHT_GAIN, NIGHT_NOISE = 0.25, 0.08, 2.0
"""Colour in dim light and at night: a quarter and a twelfth of the light, and the noise that it
then has, in grey levels. A camera that amplifies it amplifies that, too."""
BULBS = np.array([1.3, 1.0, 0.6])
"""Light bulbs' colours, where the camera's white balance stays that of daylight."""
BLUR, SHIFT = 21, 16
"""Pixels of 640, by which the camera turns within an exposure, or between colour and depth."""
JPEG_QUALITY = 20
ROLL_DEG = 10.0


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--bundles', nargs='+', default=BUNDLES)
    parser.add_argument('--every', type=int, default=4)
    parser.add_argument('--out', type=Path, default=measure.OUTPUT / 'sensors.json')
    arguments = parser.parse_args()
    try:
        source = open_dataset(DatasetConfig(), 'test')
    except InputError as error:
        sys.stdout.write(f'nothing is measured: {error}\n')
        return
    indices = range(0, len(source), arguments.every)
    readings: dict[str, float] = {}
    with ExitStack() as stack:
        segmenters = [stack.enter_context(Segmenter(name)) for name in arguments.bundles]
        matrices: list[dict[str, np.ndarray]] = [{} for _ in segmenters]
        for index in progress_bar(indices, desc='frames'):
            for name, item in seen_frames(source[index], np.random.default_rng(index)):
                share = float((item.frame.depth > 0).mean())
                readings[name] = readings.get(name, 0.0) + share / len(indices)
                for segmenter, found in zip(segmenters, matrices, strict=True):
                    labels = segmenter.segment(item.frame).labels
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


def seen_frames(item: LabelledFrame, rng: Generator) -> Iterator[tuple[str, LabelledFrame]]:
    """Yield the frame as each set of sensors would see it, and the name of the set."""
    yield 'as in the data set', item
    for name, depth in other_depths(item.frame, rng):
        yield name, seen(item, item.frame.rgb, depth)
    for name, rgb in other_colours(item.frame.rgb, rng):
        yield name, seen(item, rgb, item.frame.depth)
    yield 'the middle of the picture', rolled(item, 0.0)
    yield f'the middle, camera rolled by {ROLL_DEG:.0f} degrees', rolled(item, ROLL_DEG)


def other_depths(frame: RgbdFrame, rng: Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and depth maps."""
    rgb, depth, camera = frame.rgb, frame.depth, frame.intrinsics
    for name, rig in RIGS.items():
        yield name, simulate_stereo(rgb, depth, camera, rig, rng)
    half = depth.copy()
    half[:, : depth.shape[1] // 2] = 0
    yield 'no depth in the left half', half
    yield 'no depth', np.zeros_like(depth)
    shifted = np.roll(depth, SHIFT, axis=1)
    shifted[:, :SHIFT] = 0
    yield f'depth beside colour by {SHIFT} pixels', shifted


def other_colours(rgb: np.ndarray, rng: Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and colour images."""

    def eight_bit(image: np.ndarray) -> np.ndarray:
        return image.round().clip(0, 255).astype(np.uint8)

    noise = rng.normal(0, 1, rgb.shape)
    yield 'colour in dim light', eight_bit(DIM_GAIN * rgb + NIGHT_NOISE * noise)
    yield 'colour at night', eight_bit(NIGHT_GAIN * rgb + NIGHT_NOISE * noise)
    amplified = NIGHT_NOISE / NIGHT_GAIN
    yield 'colour at night, amplified', eight_bit(rgb + amplified * noise)
    yield 'no colour', np.zeros_like(rgb)
    yield 'colour exposed twice as long', eight_bit(2.0 * rgb)
    yield 'colour by the light of bulbs', eight_bit(rgb * BULBS)
    blur = np.full((1, BLUR), 1 / BLUR)
    yield f'colour blurred by {BLUR} pixels of motion', cv2.filter2D(rgb, -1, blur)
    _, code = cv2.imencode('.jpg', rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    yield 'colour as poor JPEG', cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1]


def seen(item: LabelledFrame, rgb: np.ndarray, depth: np.ndarray) -> LabelledFrame:
    """Return the frame with other images."""
    frame = RgbdFrame(np.ascontiguousarray(rgb), depth, item.frame.intrinsics)
    return LabelledFrame(frame, item.labels)


def rolled(item: LabelledFrame, degrees: float) -> LabelledFrame:
    """Turn a frame about its optical axis and show the middle, without corners that it lacks."""
    camera = item.frame.intrinsics
    size = camera.width, camera.height
    angle = math.radians(ROLL_DEG)
    zoom = math.cos(angle) + camera.width / camera.height * math.sin(angle)
    turn = cv2.getRotationMatrix2D((camera.cx, camera.cy), degrees, zoom)
    longer = dataclasses.replace(camera, fx=zoom * camera.fx, fy=zoom * camera.fy)
    nearest = cv2.INTER_NEAREST
    frame = RgbdFrame(
        cv2.warpAffine(item.frame.rgb, turn, size, borderMode=cv2.BORDER_REPLICATE),
        cv2.warpAffine(item.frame.depth, turn, size, flags=nearest),
        longer,
    )
    labels = cv2.warpAffine(item.labels, turn, size, flags=nearest, borderValue=VOID)
    return LabelledFrame(frame, labels)


if __name__ == '__main__':
    main()
