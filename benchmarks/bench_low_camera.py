"""What is the height of the camera worth? Labels of low cameras, with and without it.

Views of synthetic rooms that no shipped network was trained on, from several heights above the
floor, seen by a synthetic Kinect, labelled with the height guessed from depth and with the height
given. Of the floor: how much of it was found, and its IoU; and the mIoU of all classes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import measure
import numpy as np

from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.progress import progress_bar
from rgbd_fusion_seg.replay.evaluate import confusion_matrix, scores
from rgbd_fusion_seg.segmenter import Segmenter
from rgbd_fusion_seg.synthetic.primitives import LABEL
from rgbd_fusion_seg.synthetic.scene import KINECT, Room
from rgbd_fusion_seg.synthetic.sensor import simulate_kinect

BUNDLES = ('rfbnet_erfnet_nyu40', 'rfbnet_erfnet_nyu40_320x240')
HEIGHTS_M = (0.3, 0.6, 0.9, 1.2)
FIRST_SEED = 1_000_000
"""Rooms from here on are for testing (``training.datasets.synthetic_rooms``)."""
CLEARANCE_M = 0.25
"""Between the camera and furniture."""
LEAST_FLOOR = 0.05
"""Share of the image; views with less tell nothing of the floor."""
FLOOR = LABEL['floor']


class View(NamedTuple):
    """A frame, its truth uint8 (H, W), and the height of its camera in metres."""

    frame: RgbdFrame
    labels: np.ndarray
    height_m: float


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--views', type=int, default=40, help='from each height')
    parser.add_argument('--out', type=Path, default=measure.OUTPUT / 'low_camera.json')
    arguments = parser.parse_args()
    matrices: dict[tuple[str, float, bool], np.ndarray] = {}
    with ExitStack() as stack:
        segmenters = {name: stack.enter_context(Segmenter(name)) for name in BUNDLES}
        views = [view for height in HEIGHTS_M for view in views_from(height, arguments.views)]
        for view in progress_bar(views, desc='label', unit='view'):
            for name, segmenter in segmenters.items():
                for given in (False, True):
                    height = view.height_m if given else None
                    labels = segmenter.segment(view.frame, camera_height=height).labels
                    key, classes = (name, view.height_m, given), segmenter.bundle.num_classes
                    counts = confusion_matrix(labels, view.labels, classes)
                    matrices[key] = matrices.get(key, 0) + counts
    result = {
        'what': 'views of synthetic rooms not trained on, by height of the camera; percent',
        'views': arguments.views,
        'weights': {name: load_bundle(name).weights_sha256 for name in BUNDLES},
        'bundles': {name: rows_of(name, matrices) for name in BUNDLES},
    }
    measure.write(arguments.out, result)
    show(result)
    sys.stdout.write(f'wrote {arguments.out}\n')


def views_from(height_m: float, count: int) -> Iterator[View]:
    """Render views from a height, one a room, each the first of its room with floor in it."""
    for seed in progress_bar(range(FIRST_SEED, FIRST_SEED + count), desc=f'{height_m} m'):
        room, rng = Room.random(seed), np.random.default_rng(seed)
        while True:
            pose = room.random_pose(rng)
            pose[2, 3] = height_m
            if room.clearance(pose[None, :3, 3])[0] < CLEARANCE_M:
                continue
            view = room.render(pose, KINECT)
            if (view.labels == FLOOR).mean() >= LEAST_FLOOR:
                break
        depth = simulate_kinect(view.depth, KINECT, rng, view.labels, rgb=view.rgb)
        yield View(RgbdFrame(view.rgb, depth, KINECT), view.labels, height_m)


def rows_of(name: str, matrices: dict[tuple[str, float, bool], np.ndarray]) -> dict[str, Any]:
    """Return the figures of a bundle by height, ``guessed`` and ``given``."""
    return {
        f'{height} m': {
            kind: figures(matrices[name, height, given])
            for kind, given in (('guessed', False), ('given', True))
        }
        for height in HEIGHTS_M
    }


def figures(matrix: np.ndarray) -> dict[str, float]:
    """Return figures in percent of a matrix (K, K + 1), rows truth, last column unlabelled."""
    found = scores(matrix)
    return {
        'floor_found': round(100 * found.accuracy[FLOOR], 1),
        'floor_iou': round(100 * found.iou[FLOOR], 1),
        'mIoU': round(100 * found.mean_iou, 1),
    }


def show(result: dict[str, Any]) -> None:
    """Print the figures as a table."""
    for name, heights in result['bundles'].items():
        sys.stdout.write(f'{name}: floor found, its IoU, mIoU; guessed -> given\n')
        for height, row in heights.items():
            parts = [f'{row["guessed"][k]:5.1f} -> {row["given"][k]:5.1f}' for k in row['given']]
            sys.stdout.write(f'  {height}:  {"   ".join(parts)}\n')


if __name__ == '__main__':
    main()
