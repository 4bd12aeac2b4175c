"""A small labelled data set in the layout of the NYUDv2 pack."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def room(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A floor below a wall with a box before it: colour (BGR), depth in metres, labels."""
    v, u = np.mgrid[0:480, 0:640].astype(np.float32)
    horizon = 200.0
    with np.errstate(divide='ignore'):
        floor = np.where(v > horizon, 1.2 * 519.0 / np.maximum(v - horizon, 1e-3), np.inf)
    depth = np.minimum(floor, 3.5).astype(np.float32)
    labels = np.where(floor < 3.5, 1, 0).astype(np.uint8)
    x0, y0 = int(rng.integers(50, 450)), int(rng.integers(150, 300))
    box = (u >= x0) & (u < x0 + 140) & (v >= y0) & (v < y0 + 120)
    depth[box], labels[box] = 1.6, 28
    labels[:6] = 255
    palette = np.array([[200, 190, 180], [60, 90, 130], [40, 40, 200]], np.uint8)
    colour = palette[np.select([labels == 28, labels == 1], [2, 1], 0)]
    noise = rng.normal(0, 8, colour.shape)
    return np.clip(colour + noise, 0, 255).astype(np.uint8), depth, labels


def write_pack(folder: Path) -> Path:
    """Write 6 training and 2 test frames into ``folder``."""
    rng = np.random.default_rng(5)
    for name in ('rgb', 'depth8', 'label40'):
        (folder / name).mkdir()
    for i in range(1, 9):
        colour, depth, labels = room(rng)
        cv2.imwrite(str(folder / f'rgb/{i:04d}.jpg'), colour)
        cv2.imwrite(str(folder / f'depth8/{i:04d}.png'), (25.5 * depth).astype(np.uint8))
        cv2.imwrite(str(folder / f'label40/{i:04d}.png'), labels)
    (folder / 'train.txt').write_text('1\n2\n3\n4\n5\n6\n')
    (folder / 'test.txt').write_text('7\n8\n')
    return folder
