"""Fills networks by the rule the golden outputs were made with (see their README)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping

import numpy as np


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the golden value of the state-dict entry ``name``."""
    r = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith('num_batches_tracked'):
        value = np.zeros(shape)
    elif name.endswith('running_mean'):
        value = 0.1 * r.standard_normal(shape)
    elif name.endswith('running_var'):
        value = 0.5 + r.random_sample(shape)
    elif name == 'alpha':
        value = np.array([0.3, -0.2, 0.1, 0.0])[: shape[0]]
    elif len(shape) >= 2:
        value = r.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    elif name.endswith('weight'):
        value = 0.5 + r.random_sample(shape)
    else:
        value = 0.1 * r.standard_normal(shape)
    return value.astype(np.float32)


def refinenet_weights(golden: Mapping[str, np.ndarray], exchanging: bool) -> dict[str, np.ndarray]:
    """Return the state dict of a golden RefineNet by its public names.

    Args:
        golden: cen_refinenet50.npz or asym_refinenet50.npz.
        exchanging: CEN's, where some scales are so small that channels are exchanged.
    """
    shapes = json.loads(str(golden['state_keys']))
    weights = {name: fill(name, tuple(shape)) for name, shape in shapes.items()}
    for name, value in weights.items():
        if not name.endswith('weight') or value.ndim != 1:
            continue
        if '.bn3.' in name:
            value *= np.float32(0.3)
        if exchanging and '.bn2.' in name:
            channels = np.arange(len(value))
            first = '.bn_0.' in name
            chosen = (channels % 3 == 0) & ((channels < len(value) // 2) == first)
            small = 0.003 * (channels % 5) * np.where(channels % 2 == 0, 1, -1)
            value[chosen] = small[chosen]
    return weights
