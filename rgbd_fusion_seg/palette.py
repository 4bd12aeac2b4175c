"""Colours: label images, overlays, legends, and the palette of the NYU40 classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from rgbd_fusion_seg import kernels
from rgbd_fusion_seg.depth import readable
from rgbd_fusion_seg.errors import FrameError

_NYU40 = (
    ('wall', (184, 190, 208)),
    ('floor', (112, 184, 104)),
    ('cabinet', (204, 128, 56)),
    ('bed', (64, 104, 208)),
    ('chair', (220, 56, 64)),
    ('sofa', (152, 64, 176)),
    ('table', (244, 204, 64)),
    ('door', (96, 56, 24)),
    ('window', (88, 200, 232)),
    ('bookshelf', (120, 40, 80)),
    ('picture', (255, 160, 144)),
    ('counter', (24, 136, 128)),
    ('blinds', (160, 255, 64)),
    ('desk', (176, 168, 48)),
    ('shelves', (160, 88, 72)),
    ('curtain', (184, 144, 224)),
    ('dresser', (16, 255, 144)),
    ('pillow', (152, 232, 176)),
    ('mirror', (80, 80, 240)),
    ('floor mat', (255, 96, 16)),
    ('clothes', (255, 64, 224)),
    ('ceiling', (240, 232, 208)),
    ('books', (16, 160, 16)),
    ('refridgerator', (224, 240, 16)),
    ('television', (40, 48, 104)),
    ('paper', (16, 255, 240)),
    ('towel', (16, 160, 240)),
    ('shower curtain', (80, 96, 32)),
    ('box', (255, 16, 112)),
    ('whiteboard', (208, 144, 176)),
    ('person', (255, 96, 176)),
    ('night stand', (255, 160, 16)),
    ('toilet', (192, 240, 112)),
    ('sink', (255, 208, 144)),
    ('lamp', (176, 32, 80)),
    ('bathtub', (208, 96, 255)),
    ('bag', (224, 240, 160)),
    ('otherstructure', (96, 104, 120)),
    ('otherfurniture', (152, 120, 104)),
    ('otherprop', (136, 160, 136)),
)

NYU40_CLASSES = tuple(name for name, _ in _NYU40)
"""The 40 classes of NYUDv2 in label order, spelled as the dataset spells them."""

NYU40_COLORS = np.array([color for _, color in _NYU40], dtype=np.uint8)
"""uint8 (40, 3) RGB: quiet colours for what fills a room, walls and floors; strong and unlike
ones for furniture; the rest chosen one by one as far as possible, in CIELAB, from those before.
The closest two are 20 CIELAB units apart, and none is near black, which means unlabelled."""

_ROWS, _ROW_PX, _COLUMN_PX, _SWATCH_PX = 20, 22, 190, 30


def colorize(labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Paint a label image, every pixel in exactly the colour of its class.

    Args:
        labels: uint8 (H, W); 255 and labels without a colour become black.
        colors: uint8 (K, 3) RGB.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        FrameError: arrays of another form.
    """
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(colors)] = _checked(labels, colors)
    image = np.empty((*labels.shape, 3), dtype=np.uint8)
    kernels.paint(readable(labels, np.uint8), table, image)
    return image


def overlay(
    rgb: np.ndarray, labels: np.ndarray, colors: np.ndarray, alpha: float = 0.5
) -> np.ndarray:
    """Blend the colours of the labels over an image.

    Args:
        rgb: uint8 (H, W, 3) RGB.
        labels: uint8 (H, W); pixels labelled 255 or without a colour show the image alone.
        colors: uint8 (K, 3) RGB.
        alpha: weight of the colours, 0..1, rounded to a multiple of 1/256.

    Returns:
        uint8 (H, W, 3) RGB, ``rgb * (1 - alpha) + color * alpha`` rounded.

    Raises:
        FrameError: arrays of another form or sizes that differ.
    """
    colors = _checked(labels, colors)
    if rgb.dtype != np.uint8 or rgb.shape != (*labels.shape, 3):
        raise FrameError(
            f'the image is {rgb.dtype.name} {rgb.shape} but the labels are {labels.shape}; '
            'blend labels with the colour image they belong to'
        )
    weight = round(256 * min(max(alpha, 0.0), 1.0))
    keep = np.full(256, 256, dtype=np.uint32)
    keep[: len(colors)] = 256 - weight
    tint = np.zeros((256, 3), dtype=np.uint32)
    tint[: len(colors)] = colors.astype(np.uint32) * weight + 128
    image = np.empty(rgb.shape, dtype=np.uint8)
    kernels.blend(readable(rgb, np.uint8), readable(labels, np.uint8), keep, tint, image)
    return image


def legend(
    class_names: Sequence[str], colors: np.ndarray, present: Iterable[int] | None = None
) -> np.ndarray:
    """Draw a swatch and the name of every class, 20 to a column.

    Args:
        class_names: one name a class; characters beyond ASCII show as question marks.
        colors: uint8 (K, 3) RGB.
        present: the labels to list, for instance ``np.unique(labels)``; others, and labels
            without a name such as 255, are left out. Default: all classes.

    Returns:
        uint8 (H, W, 3) RGB; one empty row where no class is listed.
    """
    wanted = range(len(class_names)) if present is None else sorted({int(k) for k in present})
    shown = [k for k in wanted if 0 <= k < len(class_names)]
    columns, rows = max(1, -(-len(shown) // _ROWS)), max(1, min(len(shown), _ROWS))
    image = np.full((rows * _ROW_PX + 6, columns * _COLUMN_PX + 6, 3), 255, dtype=np.uint8)
    for place, k in enumerate(shown):
        x, y = place // _ROWS * _COLUMN_PX + 6, place % _ROWS * _ROW_PX + 6
        bottom = y + _ROW_PX - 6
        color = tuple(int(v) for v in colors[k])
        cv2.rectangle(image, (x, y), (x + _SWATCH_PX - 1, bottom - 1), color, cv2.FILLED)
        place_text = (x + _SWATCH_PX + 8, bottom - 3)
        font = (cv2.FONT_HERSHEY_SIMPLEX, 0.45, (30, 30, 30), 1, cv2.LINE_AA)
        cv2.putText(image, class_names[k], place_text, *font)
    return image


def _checked(labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    colors = np.asarray(colors)
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise FrameError(
            f'labels must be uint8 (H, W), got {labels.dtype.name} with shape {labels.shape}'
        )
    if colors.dtype != np.uint8 or colors.ndim != 2 or colors.shape[1] != 3 or len(colors) > 255:
        raise FrameError(
            f'colors must be uint8 (K, 3) for at most 255 classes, got {colors.dtype.name} '
            f'with shape {colors.shape}'
        )
    return colors
