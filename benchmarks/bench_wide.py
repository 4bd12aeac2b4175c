"""What does it cost to squeeze wide images into a network's input of 4:3?

Views of synthetic rooms that no shipped network was trained on, 16:9 and 69 degrees wide as those
of a RealSense D435, seen by a synthetic Kinect. Bundles whose input is of 16:9 are made by

    python -m rgbd_fusion_seg.training export --checkpoint models/NAME --bundle FOLDER \
        --size 592x336

    python benchmarks/bench_wide.py [--bundles NAME_OR_FOLDER ...] [--views 60]
"""

from __future__ import annotations

import argparse
import math
import sys
from contextlib import ExitStack
from pathlib import Path

import measure
import numpy as np

from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.progress import progress_bar
from rgbd_fusion_seg.replay.evaluate import confusion_matrix
from rgbd_fusion_seg.segmenter import Segmenter
from rgbd_fusion_seg.synthetic.scene import Room
from rgbd_fusion_seg.synthetic.sensor import simulate_kinect

BUNDLES = ('rfbnet_erfnet_nyu40', 'rfbnet_erfnet_nyu40_320x240')
FIRST_SEED = 1_000_000
"""Rooms from here on are for testing (``training.datasets.synthetic_rooms``)."""
WIDTH, HEIGHT, ACROSS_DEG = 960, 540, 69.0
FOCAL_PX = WIDTH / 2 / math.tan(math.radians(ACROSS_DEG) / 2)
CAMERA = Intrinsics(FOCAL_PX, FOCAL_PX, (WIDTH - 1) / 2, (HEIGHT - 1) / 2, WIDTH, HEIGHT)


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--bundles', nargs='+', default=BUNDLES)
    parser.add_argument('--views', type=int, default=60)
    parser.add_argument('--out', type=Path, default=measure.OUTPUT / 'wide.json')
    arguments = parser.parse_args()
    with ExitStack() as stack:
        segmenters = [stack.enter_context(Segmenter(name)) for name in arguments.bundles]
        matrices = [np.zeros((s.bundle.num_classes, s.bundle.num_classes + 1), np.int64)
                    for s in segmenters]  # fmt: skip
        for seed in progress_bar(range(FIRST_SEED, FIRST_SEED + arguments.views), desc='views'):
            room, rng = Room.random(seed), np.random.default_rng(seed)
            view = room.render(room.random_pose(rng), CAMERA)
            depth = simulate_kinect(view.depth, CAMERA, rng, view.labels, rgb=view.rgb)
            for segmenter, matrix in zip(segmenters, matrices, strict=True):
                labels = segmenter.segment(RgbdFrame(view.rgb, depth, CAMERA)).labels
                matrix += confusion_matrix(labels, view.labels, segmenter.bundle.num_classes)
    rows = []
    for segmenter, matrix in zip(segmenters, matrices, strict=True):
        width, height = segmenter.bundle.input_size
        rows.append(
            {
                'bundle': segmenter.bundle.name,
                'weights_sha256': segmenter.bundle.weights_sha256,
                'input': f'{width}x{height}',
                **measure.figures(matrix),
            }
        )
    measure.write(
        arguments.out,
        {
            'what': f'{WIDTH}x{HEIGHT} views of synthetic rooms not trained on; percent',
            'views': arguments.views,
            'rows': rows,
        },
    )
    for row in rows:
        sys.stdout.write(
            f'{row["bundle"]} {row["input"]}: {row["pixel_accuracy"]} {row["mIoU"]}\n'
        )
    sys.stdout.write(f'wrote {arguments.out}\n')


if __name__ == '__main__':
    main()
