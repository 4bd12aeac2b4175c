"""Random views of labelled frames: the same geometry for colour, HHA and labels."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from rgbd_fusion_seg.training.datasets.cache import CachedFrames


@dataclass
class AugmentConfig:
    """How training views are drawn.

    Args:
        min_zoom, max_zoom: the view shows 1/zoom of the frame along an axis.
        whole: share of views that show the whole frame.
        aspect: the two axes' zooms differ by up to this factor.
        brightness, contrast, saturation, hue: half-widths of the colour jitter; hue in
            degrees, the others as factors.
        noise: largest standard deviation of Gaussian noise on colour, in grey levels.
        hha_shift: largest shift of disparity and height, in grey levels.
    """

    min_zoom: float = 1.0
    max_zoom: float = 2.0
    whole: float = 0.25
    aspect: float = 1.15
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.4
    hue: float = 8.0
    noise: float = 6.0
    hha_shift: float = 6.0


@dataclass(frozen=True, eq=False)
class View:
    """Images of one view: uint8 rgb (H, W, 3), hha (h, w, 3), labels (H, W)."""

    rgb: np.ndarray
    hha: np.ndarray
    labels: np.ndarray


def whole_view(frames: CachedFrames, index: int, rgb_size: tuple[int, int]) -> View:
    """Return frame ``index`` at the network's size (width, height), labels at their own."""
    rgb, hha = frames.rgb[index], _hha_level(frames, index, rgb_size[0] / frames.rgb.shape[2])
    hha_size = (rgb_size[0] // 2, rgb_size[1] // 2)
    return View(_resize(rgb, rgb_size), _resize(hha, hha_size), np.array(frames.labels[index]))


def random_view(
    frames: CachedFrames,
    index: int,
    rgb_size: tuple[int, int],
    config: AugmentConfig,
    rng: np.random.Generator,
) -> View:
    """Return a random view of frame ``index`` at the network's size (width, height)."""
    height, width = frames.labels.shape[1:]
    x0, y0, x1, y1 = _window(width, height, config, rng)
    rgb = frames.rgb[index, y0:y1, x0:x1]
    labels = frames.labels[index, y0:y1, x0:x1]
    level = _hha_level(frames, index, rgb_size[0] / (x1 - x0))
    s = level.shape[1] / width
    hha = level[round(y0 * s) : max(round(y1 * s), 1), round(x0 * s) : max(round(x1 * s), 1)]
    rgb = _resize(rgb, rgb_size)
    hha = _resize(hha, (rgb_size[0] // 2, rgb_size[1] // 2))
    labels = cv2.resize(labels, rgb_size, interpolation=cv2.INTER_NEAREST)
    if rng.random() < 0.5:
        rgb, hha, labels = rgb[:, ::-1], hha[:, ::-1], labels[:, ::-1]
    rgb, hha = _jitter_colour(rgb, config, rng), _jitter_hha(hha, config, rng)
    return View(rgb, hha, np.ascontiguousarray(labels))


def _window(
    width: int, height: int, config: AugmentConfig, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    if rng.random() < config.whole:
        return 0, 0, width, height
    zoom = np.exp(rng.uniform(np.log(config.min_zoom), np.log(config.max_zoom)))
    skew = np.exp(rng.uniform(-1, 1) * 0.5 * np.log(config.aspect))
    w = round(min(1.0, skew / zoom) * width)
    h = round(min(1.0, 1 / (zoom * skew)) * height)
    x0, y0 = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    return x0, y0, x0 + w, y0 + h


def _hha_level(frames: CachedFrames, index: int, scale: float) -> np.ndarray:
    """Return the smallest cached HHA that has the detail of a view at ``scale``."""
    for level in frames.hha:
        # The depth stream sees half the colour's resolution; 0.75 lets a level serve views
        # that enlarge it a little rather than one of twice its size.
        if level.shape[2] >= 0.75 * 0.5 * scale * frames.rgb.shape[2]:
            return level[index]
    return frames.hha[-1][index]


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrinks = size[0] < image.shape[1]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _jitter_colour(rgb: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    image = rgb.astype(np.float32)
    hue = np.deg2rad(rng.uniform(-config.hue, config.hue))
    saturation = 1 + rng.uniform(-config.saturation, config.saturation)
    contrast = 1 + rng.uniform(-config.contrast, config.contrast)
    gain = 1 + rng.uniform(-config.brightness, config.brightness)
    # Hue and saturation turn and scale the chroma plane; one 3x3 matrix does both.
    axis = np.full(3, 1 / np.sqrt(3))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    grey = np.outer(axis, axis)
    turn = np.cos(hue) * (np.eye(3) - grey) + np.sin(hue) * cross
    matrix = (grey + saturation * turn) * gain * contrast
    mean = float(image.mean()) * gain * (1 - contrast)
    image = cv2.transform(image, np.hstack([matrix, np.full((3, 1), mean)]))
    sigma = rng.uniform(0, config.noise)
    image += sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def _jitter_hha(hha: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    shift = rng.uniform(-config.hha_shift, config.hha_shift, 3).astype(np.float32)
    shift[2] = 0.0  # the angle is measured, the other two depend on the camera's height and range
    return np.clip(hha + shift, 0, 255).astype(np.uint8)
