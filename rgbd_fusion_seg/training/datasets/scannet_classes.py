"""The 20 classes of the ScanNet benchmark among the 40 of NYUDv2."""

from __future__ import annotations

import numpy as np

from rgbd_fusion_seg.training.datasets.base import ClassSet

_BENCHMARK = (
    (1, 'wall', (174, 199, 232)),
    (2, 'floor', (152, 223, 138)),
    (3, 'cabinet', (31, 119, 180)),
    (4, 'bed', (255, 187, 120)),
    (5, 'chair', (188, 189, 34)),
    (6, 'sofa', (140, 86, 75)),
    (7, 'table', (255, 152, 150)),
    (8, 'door', (214, 39, 40)),
    (9, 'window', (197, 176, 213)),
    (10, 'bookshelf', (148, 103, 189)),
    (11, 'picture', (196, 156, 148)),
    (12, 'counter', (23, 190, 207)),
    (14, 'desk', (247, 182, 210)),
    (16, 'curtain', (219, 219, 141)),
    (24, 'refrigerator', (255, 127, 14)),
    (28, 'shower curtain', (158, 218, 229)),
    (33, 'toilet', (44, 160, 44)),
    (34, 'sink', (112, 128, 144)),
    (36, 'bathtub', (227, 119, 194)),
    (39, 'otherfurniture', (82, 84, 163)),
)

SCANNET20_IDS = tuple(nyu40_id for nyu40_id, _, _ in _BENCHMARK)
"""Their ids in the label images and in submissions: NYU40 ids, counted from 1."""

SCANNET20 = ClassSet(
    'scannet20',
    tuple(name for _, name, _ in _BENCHMARK),
    np.array([color for _, _, color in _BENCHMARK], dtype=np.uint8),
)
"""In the benchmark's order, names and colours."""

NYU40_IDS = 40

STRAY_IDS = (50, 149)
"""Values without meaning in the official 3D labels of three scenes (issues 20 and 86 of the
ScanNet repository); where they come up in images, they are void."""
