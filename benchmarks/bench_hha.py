"""How long depth takes to become HHA, at the camera's size and at the network's.

The yardstick is ``test/reference_hha.py``: the same formulae in plain numpy, which sums over the
windows of the normals pixel offset by pixel offset as the public Python code does. The two are
timed in turn, on one thread each, in processor time of that thread: with other work on the machine
the clock on the wall would count waiting for a core.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'test')]

import measure  # noqa: E402
import reference_hha  # noqa: E402

from rgbd_fusion_seg import depth, hha, kernels  # noqa: E402
from rgbd_fusion_seg.frame import Intrinsics  # noqa: E402

CAMERA = Intrinsics(fx=585.0, fy=585.0, cx=320.0, cy=240.0, width=640, height=480)
DATA = Path(os.environ.get('RGBD_FUSION_SEG_DATA', ROOT.parent / 'shared' / 'data'))
REAL_FRAME = DATA / 'kinect_sequence' / 'frame-000000.depth.png'
SIZE = (320, 240)


def depth_image() -> tuple[np.ndarray, str]:
    """Return a uint16 640x480 depth image in millimetres and where it comes from."""
    if REAL_FRAME.is_file():
        return cv2.imread(str(REAL_FRAME), cv2.IMREAD_UNCHANGED), 'a Kinect frame (7-Scenes)'
    v, u = np.mgrid[:480, :640]
    metres = np.minimum(1.3 / np.maximum((v - 100) / CAMERA.fy, 1e-3), 3.0)
    metres[(u // 40 + v // 40) % 7 == 0] = 0
    return (1000 * metres).astype(np.uint16), 'a drawn floor and wall with square holes'


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=measure.OUTPUT / 'hha.json')
    parser.add_argument('--repeats', type=int, default=200, help='rounds of what is fast')
    parser.add_argument('--reference-repeats', type=int, default=5, help='rounds with reference')
    options = parser.parse_args()
    kernels.warm_up()
    image, source = depth_image()
    metres = depth.depth_to_metres(image, '16UC1')
    missing, filled = image == 0, depth.fill_holes(metres)
    down = hha.estimate_gravity(filled, CAMERA, missing)
    against_reference = measure.interleaved(
        {
            'encode_hha': lambda: hha.encode_hha(filled, CAMERA, missing),
            'plain numpy': lambda: reference_hha.encode(filled, CAMERA, missing),
        },
        options.reference_repeats,
        warmup=1,
        clock=time.thread_time,
    )
    full = measure.interleaved(
        {
            'encode_hha': lambda: hha.encode_hha(filled, CAMERA, missing),
            'encode_hha, gravity given': lambda: hha.encode_hha(filled, CAMERA, missing, down),
            'estimate_gravity': lambda: hha.estimate_gravity(filled, CAMERA, missing),
            'depth_to_metres': lambda: depth.depth_to_metres(image, '16UC1'),
            'fill_holes': lambda: depth.fill_holes(metres),
        },
        options.repeats,
        clock=time.thread_time,
    )
    small = measure.interleaved(network_size(image), options.repeats, clock=time.thread_time)
    payload: dict[str, Any] = {
        'what': 'depth to HHA; ratio = median over rounds of time / time of the first row',
        'threads': 1,
        'clock': 'processor time of the calling thread',
        'input': f'{source}, {missing.mean():.1%} holes',
        'compared': '"plain numpy" is test/reference_hha.py: the formulae of the public Python '
        'code, window sums taken offset by offset in float64; the public code itself was not run',
        'speedup_over_plain_numpy_640x480': against_reference['plain numpy']['ratio'],
        '640x480_against_plain_numpy': against_reference,
        '640x480': full,
        '320x240_from_uint16_640x480': small,
    }
    measure.write(options.out, payload)
    for title, stats in (
        ('640x480 against plain numpy', against_reference),
        ('640x480', full),
        ('320x240 from 640x480 uint16', small),
    ):
        sys.stdout.write(f'{title}\n{measure.table(stats)}\n\n')


def network_size(image: np.ndarray) -> dict[str, Any]:
    """Return what is timed at the size of the network's input: the whole, then its stages."""
    camera = CAMERA.resized(*SIZE)
    metres = depth.depth_to_metres(image, '16UC1')
    resized = depth.resize_depth(metres, *SIZE)
    filled, missing = depth.fill_holes(resized), ~depth.valid_mask(resized)

    def convert_resize_encode() -> np.ndarray:
        metres = depth.depth_to_metres(image, '16UC1')
        return hha.encode_hha(depth.resize_depth(metres, *SIZE), camera)

    def all_with_filling() -> np.ndarray:
        resized = depth.resize_depth(depth.depth_to_metres(image, '16UC1'), *SIZE)
        missing = ~depth.valid_mask(resized)
        return hha.encode_hha(depth.fill_holes(resized), camera, missing)

    return {
        'convert, resize, encode': convert_resize_encode,
        'convert, resize, fill, encode': all_with_filling,
        'depth_to_metres (640x480)': lambda: depth.depth_to_metres(image, '16UC1'),
        'resize_depth': lambda: depth.resize_depth(metres, *SIZE),
        'fill_holes': lambda: depth.fill_holes(resized),
        'encode_hha': lambda: hha.encode_hha(filled, camera, missing),
        'estimate_gravity': lambda: hha.estimate_gravity(filled, camera, missing),
    }


if __name__ == '__main__':
    main()
