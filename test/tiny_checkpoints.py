"""Checkpoints that look trained, and labelled frames, for tests that export bundles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.training.checkpoints import Checkpoint, class_entries
from rgbd_fusion_seg.training.datasets.base import ClassSet, LabelledFrame
from rgbd_fusion_seg.training.networks import NETWORKS, build_network
from rgbd_fusion_seg.training.networks.multimodal import MultimodalNetwork

CLASSES = ClassSet('toy', ('a', 'b', 'c'), np.array([[9, 8, 7], [90, 80, 70], [200, 0, 1]], 'u1'))
STATISTICS = {
    'rgb': [[120.0, 110.0, 100.0], [70.0] * 3],
    'hha': [[130.0, 90.0, 110.0], [60.0] * 3],
    'depth': [[2.5] * 3, [1.25] * 3],
}
SMALL_BRANCHES = {'backbone': 'resnet14', 'head_options': {'width': 8}}
"""Options that make networks of branches as small as a test affords."""


def small_options(name: str) -> dict[str, Any]:
    """Return the options that make a network small."""
    if name == 'cen':  # a part of its channels is exchanged from the beginning
        return SMALL_BRANCHES | {'initial_scales': 'uniform', 'threshold': 0.6}
    if issubclass(NETWORKS[name], MultimodalNetwork):
        return SMALL_BRANCHES
    return {'width': 0.125} if name.endswith('adapnetpp') else {}


def tiny_checkpoint(
    name: str, options: dict[str, Any], classes: ClassSet = CLASSES, **info: Any
) -> Checkpoint:
    """Return random weights with batch norms that have seen data, so that folding can go wrong."""
    torch.manual_seed(2)
    options = small_options(name) | options
    network = build_network(name, len(classes), **options)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    step = network.size_multiple
    entries = {
        'network': name,
        'options': options,
        'classes': class_entries(classes),
        'statistics': {modality: STATISTICS[modality] for modality in network.modalities},
        'width': 4 * step,
        'height': 3 * step,
        'step': 12,
        'minutes': 3.5,
        'command': 'python -m rgbd_fusion_seg.training train --run toy.yaml',
        'data': [{'name': 'toy-train', 'frames': 6, 'terms': 'drawn by a test'}],
        'depth_range_m': [0.5, 9.0],
    }
    return Checkpoint(network.state_dict(), entries | info)


class ToyFrames:
    """Frames of boxes of all colours before a wall, as a data set."""

    name, classes, size, terms = 'toy-test', CLASSES, (160, 120), 'drawn by a test'

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> LabelledFrame:
        rng = np.random.default_rng(index)
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        rgb = np.kron(coarse, np.ones((20, 20, 1), np.uint8))
        depth = np.kron(rng.uniform(1, 5, (6, 8)), np.ones((20, 20))).astype(np.float32)
        camera = Intrinsics(130.0, 130.0, 79.5, 59.5, 160, 120)
        return LabelledFrame(RgbdFrame(rgb, depth, camera), np.zeros((120, 160), np.uint8))

    def describe(self) -> dict[str, object]:
        return {}
