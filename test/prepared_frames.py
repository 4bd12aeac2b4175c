"""Prepared frames that tests draw themselves."""

from __future__ import annotations

import dataclasses

import numpy as np

from rgbd_fusion_seg.training.datasets.base import ClassSet
from rgbd_fusion_seg.training.datasets.cache import CachedFrames

HEIGHT, WIDTH = 48, 64


def ramps(height: int, width: int) -> np.ndarray:
    """Where a pixel's centre lies in its frame: float (height, width, 2), x and y in 0..1."""
    v, u = np.mgrid[:height, :width]
    return np.stack([(u + 0.5) / width, (v + 0.5) / height], -1)


def frames_of(
    rgb: np.ndarray, labels: np.ndarray, hha: tuple[np.ndarray, ...], name: str = 'drawn'
) -> CachedFrames:
    """Prepared frames of uint8 images (N, ...); the half-size colour is made here."""
    n, h, w = labels.shape
    half = rgb.reshape(n, h // 2, 2, w // 2, 2, 3).mean((2, 4)).round().astype(np.uint8)
    classes = ClassSet('drawn', tuple('abcdefghijklmnop'), np.zeros((16, 3), np.uint8))
    return CachedFrames(name, classes, 'drawn by a test', (rgb, half), labels, hha, (1.0, 5.0))


def random_frames(count: int, seed: int = 0) -> CachedFrames:
    """Frames of noise, different all over: HHA at a quarter and at half of the size."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)
    labels = rng.integers(0, 16, (count, HEIGHT, WIDTH), np.uint8)
    hha = tuple(
        rng.integers(0, 256, (count, HEIGHT // s, WIDTH // s, 3), np.uint8) for s in (4, 2)
    )
    return frames_of(rgb, labels, hha, f'noise-{seed}')


def with_depth(frames: CachedFrames) -> CachedFrames:
    """The same frames with random depth of 0.5 to 9 m at the sizes of their HHA."""
    rng = np.random.default_rng(len(frames))
    levels = (rng.uniform(0.5, 9, level.shape[:3]).astype(np.float16) for level in frames.hha)
    return dataclasses.replace(frames, depth=tuple(levels))


def ramp_frames(height: int = 240, width: int = 320) -> CachedFrames:
    """One frame whose every image tells where a pixel is: 200 x, 200 y, and 77.

    Labels are 4 int(4 y) + int(4 x), so a function of the colour.
    """

    def image(h: int, w: int) -> np.ndarray:
        place = 200 * ramps(h, w)
        return np.dstack([place, np.full((h, w), 77.0)]).round().astype(np.uint8)[None]

    x, y = np.moveaxis((4 * ramps(height, width)).astype(np.uint8), -1, 0)
    hha = tuple(image(height // s, width // s) for s in (4, 2))
    return frames_of(image(height, width), (4 * y + x)[None], hha, 'ramps')
