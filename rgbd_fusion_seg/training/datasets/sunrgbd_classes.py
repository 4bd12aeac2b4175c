"""The 37 classes of SUN RGB-D, as its toolbox lists them (``seg37list.mat``)."""

from __future__ import annotations

from rgbd_fusion_seg.palette import NYU40_COLORS
from rgbd_fusion_seg.training.datasets.base import ClassSet

SUNRGBD37 = ClassSet(
    'sunrgbd37',
    (
        'wall',
        'floor',
        'cabinet',
        'bed',
        'chair',
        'sofa',
        'table',
        'door',
        'window',
        'bookshelf',
        'picture',
        'counter',
        'blinds',
        'desk',
        'shelves',
        'curtain',
        'dresser',
        'pillow',
        'mirror',
        'floor_mat',
        'clothes',
        'ceiling',
        'books',
        'fridge',
        'tv',
        'paper',
        'towel',
        'shower_curtain',
        'box',
        'whiteboard',
        'person',
        'night_stand',
        'toilet',
        'sink',
        'lamp',
        'bathtub',
        'bag',
    ),
    NYU40_COLORS[:37],
)
"""In label order; the toolbox has no colours, and as the first 37 of NYU40 they wear its."""

SPLIT_SIZES = {'train': 5285, 'test': 5050}
"""Frames of the official splits; 10335 together."""
