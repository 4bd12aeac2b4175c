"""Colours, overlays and legends, pixel by pixel against numpy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg import kernels
from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.palette import NYU40_CLASSES, NYU40_COLORS, colorize, legend, overlay

COLORS = np.array([[255, 0, 0], [0, 250, 0], [1, 2, 3]], np.uint8)


def random_labels(height: int = 33, width: int = 47) -> np.ndarray:
    values = np.array([0, 1, 2, 3, 200, 255], np.uint8)
    return np.random.default_rng(0).choice(values, (height, width))


def expected_colors(labels: np.ndarray) -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    table[:3] = COLORS
    return table[labels]


def test_every_pixel_has_exactly_the_colour_of_its_class_and_others_are_black():
    labels = random_labels()
    image = colorize(labels, COLORS)
    assert image.dtype == np.uint8
    assert np.array_equal(image, expected_colors(labels))
    assert np.array_equal(colorize(labels[::2, ::3], COLORS), image[::2, ::3])


@pytest.mark.parametrize('alpha', [0.0, 0.3, 0.5, 1.0])
def test_overlays_blend_the_colour_and_leave_unlabelled_pixels_alone(alpha):
    labels = random_labels()
    rgb = np.random.default_rng(1).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    image = overlay(rgb, labels, COLORS, alpha)
    blended = rgb * (1 - alpha) + expected_colors(labels) * alpha
    expected = np.where((labels < 3)[..., None], blended, rgb)
    assert np.abs(image - expected).max() <= 0.5 + 255 / 512
    assert np.array_equal(image[labels >= 3], rgb[labels >= 3])


def test_overlays_do_not_overflow():
    labels = np.zeros((4, 4), np.uint8)
    white = np.full((4, 4, 3), 255, np.uint8)
    for alpha in np.linspace(0, 1, 41):
        assert (overlay(white, labels, white[0, :1], alpha) == 255).all()


def test_read_only_and_strided_images_are_accepted():
    labels = random_labels()
    rgb = np.random.default_rng(1).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    expected = overlay(rgb, labels, COLORS)
    rgb.flags.writeable = False
    assert np.array_equal(overlay(rgb, labels, COLORS), expected)
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    assert np.array_equal(overlay(bgr[..., ::-1], labels, COLORS), expected)


def test_no_memory_layout_compiles_anew():
    """A frame must not wait seconds for the compiler."""
    labels = random_labels(34, 48)[::2, ::2]
    rgb = np.zeros((17, 48, 3), np.uint8)[:, ::2, ::-1]
    colorize(labels, COLORS)
    overlay(rgb, labels, COLORS)
    signatures = kernels.paint.signatures + kernels.blend.signatures
    assert {array.layout for arrays in signatures for array in arrays} == {'C'}


@pytest.mark.parametrize(('alpha', 'shown'), [(-0.5, 0.0), (1.5, 1.0)])
def test_a_weight_beyond_its_range_is_the_nearest_one(alpha, shown):
    labels = random_labels()
    rgb = np.random.default_rng(1).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    assert np.array_equal(overlay(rgb, labels, COLORS, alpha), overlay(rgb, labels, COLORS, shown))


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda: colorize(np.zeros((2, 2), np.int64), COLORS), 'labels must be uint8'),
        (lambda: colorize(np.zeros((2, 2, 1), np.uint8), COLORS), '(2, 2, 1)'),
        (lambda: colorize(np.zeros((2, 2), np.uint8), COLORS.astype(float)), 'colors must be'),
        (  # 255 is unlabelled
            lambda: colorize(np.zeros((2, 2), np.uint8), np.ones((256, 3), np.uint8)),
            'at most 255 classes',
        ),
        (
            lambda: overlay(np.zeros((3, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), COLORS),
            '(3, 2, 3)',
        ),
    ],
)
def test_wrong_arrays_are_refused(call, words):
    with pytest.raises(FrameError) as caught:
        call()
    assert words in str(caught.value)


def swatches(image: np.ndarray) -> list[tuple[int, ...]]:
    """Return the colours of the filled boxes, read off the pixels, column by column."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(
        (np.abs(image.astype(int) - 255).max(axis=2) > 0).astype(np.uint8)
    )
    boxes = sorted(tuple(stats[i][:4]) for i in range(1, count) if stats[i][4] > 400)
    return [tuple(int(c) for c in image[y + h // 2, x + w // 2]) for x, y, w, h in boxes]


def test_a_legend_lists_the_classes_that_are_present_in_order():
    names = [f'class {i}' for i in range(40)]
    colors = np.array([[5 * i, 3 * i, 200 - 4 * i] for i in range(40)], np.uint8)
    shown = legend(names, colors, present=np.array([255, 30, 2, 2], np.uint8))
    assert swatches(shown) == [tuple(colors[2]), tuple(colors[30])]
    assert swatches(legend(names, colors)) == [tuple(c) for c in colors]
    for count in (1, 20, 21, 39):
        assert swatches(legend(names[:count], colors)) == [tuple(c) for c in colors[:count]]
    assert legend(names, colors, present=[]).dtype == np.uint8


def test_names_stand_beside_their_swatch():
    with_name, without = (legend([name], COLORS[:1]) for name in ('wall', ''))
    assert swatches(with_name) == swatches(without)
    assert (with_name != without).any(axis=2)[:, 40:].sum() > 50


OFFICIAL_NYU40 = (
    'wall floor cabinet bed chair sofa table door window bookshelf picture counter blinds desk '
    'shelves curtain dresser pillow mirror floormat clothes ceiling books refridgerator '
    'television paper towel showercurtain box whiteboard person nightstand toilet sink lamp '
    'bathtub bag otherstructure otherfurniture otherprop'
)
"""In the order of Gupta's classMapping40, with its spelling."""


def test_the_palette_has_a_distinct_visible_colour_for_each_of_the_40_classes():
    assert ' '.join(name.replace(' ', '') for name in NYU40_CLASSES) == OFFICIAL_NYU40
    assert NYU40_COLORS.shape == (40, 3)
    lab = cv2.cvtColor(NYU40_COLORS[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1e3 * np.eye(40)
    assert distance.min() > 19, 'two classes look alike'
    assert lab[:, 0].min() > 20, 'black means unlabelled'
    furniture = [NYU40_CLASSES.index(n) for n in ('wall', 'floor', 'cabinet', 'bed', 'chair')]
    assert distance[np.ix_(furniture, furniture)].min() > 40
