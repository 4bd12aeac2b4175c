"""How well do networks label the depth of a stereo pair?

Views of synthetic rooms that no shipped network was trained on, seen by a synthetic Kinect and by
a pair of cameras, both rendered, whose pictures are matched semi-globally at the settings that
stereo_image_proc has for it. The floor is guessed by the lowest reading of all, as by the public
HHA code; or strays apart, as here; or height and direction of the camera are given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import measure
import numpy as np

from rgbd_fusion_seg import hha
from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.progress import progress_bar
from rgbd_fusion_seg.replay.evaluate import confusion_matrix
from rgbd_fusion_seg.segmenter import Segmenter
from rgbd_fusion_seg.synthetic.scene import KINECT, Room, SyntheticView
from rgbd_fusion_seg.synthetic.sensor import simulate_kinect
from rgbd_fusion_seg.synthetic.stereo import match_stereo

BUNDLES = ('rfbnet_erfnet_nyu40', 'rfbnet_erfnet_nyu40_320x240')
FIRST_SEED = 1_000_000
"""Rooms from here on are for testing (``training.datasets.synthetic_rooms``)."""
BASELINE_M = 0.075
"""Of an OAK-D."""
ROWS = ('Kinect', 'stereo, lowest reading', 'stereo', 'stereo, height and gravity given')


class View(NamedTuple):
    """What both sensors see, the truth, and how the camera stands."""

    kinect: RgbdFrame
    stereo: RgbdFrame
    left: SyntheticView


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--views', type=int, default=40)
    parser.add_argument('--out', type=Path, default=measure.OUTPUT / 'stereo.json')
    arguments = parser.parse_args()
    matrices: dict[tuple[str, str], np.ndarray] = {}
    readings = []
    with ExitStack() as stack:
        segmenters = {name: stack.enter_context(Segmenter(name)) for name in BUNDLES}
        for view in views(arguments.views):
            readings.append([(frame.depth > 0).mean() for frame in (view.kinect, view.stereo)])
            for name, segmenter in segmenters.items():
                for row, labels in zip(ROWS, labelled(segmenter, view), strict=True):
                    classes = segmenter.bundle.num_classes
                    counts = confusion_matrix(labels, view.left.labels, classes)
                    matrices[name, row] = matrices.get((name, row), 0) + counts
    kinect, stereo = (round(100 * float(share), 1) for share in np.mean(readings, axis=0))
    result = {
        'what': 'views of synthetic rooms not trained on, by source of depth; percent',
        'views': arguments.views,
        'pixels_with_a_reading': {'Kinect': kinect, 'stereo': stereo},
        'weights': {name: load_bundle(name).weights_sha256 for name in BUNDLES},
        'bundles': {n: {row: measure.figures(matrices[n, row]) for row in ROWS} for n in BUNDLES},
    }
    measure.write(arguments.out, result)
    for name, rows in result['bundles'].items():
        sys.stdout.write(f'{name}: pixel accuracy, mIoU\n')
        for row, found in rows.items():
            sys.stdout.write(f'  {row:34}{found["pixel_accuracy"]:6.1f}{found["mIoU"]:6.1f}\n')
    sys.stdout.write(f'wrote {arguments.out}\n')


def views(count: int) -> Iterator[View]:
    """Render views, one a room."""
    for seed in progress_bar(range(FIRST_SEED, FIRST_SEED + count), desc='views'):
        room, rng = Room.random(seed), np.random.default_rng(seed)
        pose = room.random_pose(rng)
        beside = pose.copy()
        beside[:3, 3] += BASELINE_M * pose[:3, 0]
        left, right = room.render(pose, KINECT), room.render(beside, KINECT)
        grey = [cv2.cvtColor(side.rgb, cv2.COLOR_RGB2GRAY) for side in (left, right)]
        depth = simulate_kinect(left.depth, KINECT, rng, left.labels, rgb=left.rgb)
        yield View(
            RgbdFrame(left.rgb, depth, KINECT),
            RgbdFrame(left.rgb, match_stereo(*grey, KINECT.fx, BASELINE_M), KINECT),
            left,
        )


def labelled(segmenter: Segmenter, view: View) -> Iterator[np.ndarray]:
    """Yield the labels of each of `ROWS`."""
    yield segmenter.segment(view.kinect).labels
    with no_strays():
        yield segmenter.segment(view.stereo).labels
    yield segmenter.segment(view.stereo).labels
    height_m = float(view.left.pose[2, 3])
    yield segmenter.segment(view.stereo, view.left.gravity, camera_height=height_m).labels


@contextmanager
def no_strays() -> Iterator[None]:
    """Let HHA take the lowest reading for the floor, whatever the others are."""
    share, hha.OUTLIER_SHARE = hha.OUTLIER_SHARE, 0.0
    try:
        yield
    finally:
        hha.OUTLIER_SHARE = share


if __name__ == '__main__':
    main()
