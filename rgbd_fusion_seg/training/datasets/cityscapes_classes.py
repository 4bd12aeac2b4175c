"""The 19 classes of Cityscapes that are scored, and the ids of its label images."""

from __future__ import annotations

import numpy as np

from rgbd_fusion_seg.training.datasets.base import ClassSet

_SCORED = (
    (7, 'road', (128, 64, 128)),
    (8, 'sidewalk', (244, 35, 232)),
    (11, 'building', (70, 70, 70)),
    (12, 'wall', (102, 102, 156)),
    (13, 'fence', (190, 153, 153)),
    (17, 'pole', (153, 153, 153)),
    (19, 'traffic light', (250, 170, 30)),
    (20, 'traffic sign', (220, 220, 0)),
    (21, 'vegetation', (107, 142, 35)),
    (22, 'terrain', (152, 251, 152)),
    (23, 'sky', (70, 130, 180)),
    (24, 'person', (220, 20, 60)),
    (25, 'rider', (255, 0, 0)),
    (26, 'car', (0, 0, 142)),
    (27, 'truck', (0, 0, 70)),
    (28, 'bus', (0, 60, 100)),
    (31, 'train', (0, 80, 100)),
    (32, 'motorcycle', (0, 0, 230)),
    (33, 'bicycle', (119, 11, 32)),
)

CITYSCAPES19_IDS = tuple(label_id for label_id, _, _ in _SCORED)
"""Their ids in ``*_labelIds.png`` and in submissions."""

CITYSCAPES19 = ClassSet(
    'cityscapes19',
    tuple(name for _, name, _ in _SCORED),
    np.array([color for _, _, color in _SCORED], dtype=np.uint8),
)
"""In the order of the official train ids, with the official colours."""

NUM_LABEL_IDS = 34
"""``*_labelIds.png`` hold 0..33; a licence plate (id -1) keeps the label of its car."""
