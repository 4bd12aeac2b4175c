from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('torch')

from rgbd_fusion_seg.training import augment
from rgbd_fusion_seg.training.augment import AugmentConfig
from rgbd_fusion_seg.training.config import DataConfig, TrainConfig
from rgbd_fusion_seg.training.view_reader import ViewReader, window


def test_the_order_of_frames_is_that_of_every_version():
    """A run that is continued by another version goes on with the same frames."""
    sources = {
        name: {'labels': [np.zeros((count, 6, 8), np.uint8)]}
        for name, count in (('train', 5), ('synthetic', 3))
    }
    config = TrainConfig(seed=9, data=DataConfig(synthetic_share=0.25))
    chosen = [ViewReader(sources, config, {}, 0, 1, True).choose(k)[:2] for k in range(40)]
    for source, stream, count, epochs in (('train', 1, 5, 6), ('synthetic', 2, 3, 3)):
        orders = [
            np.random.default_rng((9, epoch, stream)).permutation(count) for epoch in range(epochs)
        ]
        ours = [index for other, index in chosen if other == source]
        np.testing.assert_array_equal(ours[: count * epochs], np.concatenate(orders))


@pytest.mark.parametrize('zoom', [1.0, 1.2, 2.0, 4.0])
def test_a_window_is_no_larger_than_what_is_shown(zoom):
    config = AugmentConfig(min_zoom=zoom, max_zoom=zoom, whole=0, aspect=1)
    pyramid = [np.zeros((1, s * 60, s * 80, 3), np.uint8) for s in (1, 2, 4)]
    size = (120, 160)
    for seed in range(20):
        view = augment.draw_view(config, (240, 320), np.random.default_rng(seed))
        level, rows, columns, pixel_map = window(pyramid, view, size)
        image = pyramid[level][0, rows, columns]
        width = {1.0: 160, 1.2: 160, 2.0: 320, 4.0: 320}[zoom]
        assert abs(pixel_map[0, 0]) == pytest.approx(width / zoom / 160)
        np.testing.assert_array_less(image.shape[:2], np.array([60, 80]) * width / 80 / zoom + 4)


def test_rotated_views_keep_the_pixels_of_their_frame_square():
    sources = {'train': {'labels': [np.zeros((5, 60, 120), np.uint8)]}}
    config = TrainConfig(
        seed=1, augment=AugmentConfig(max_zoom=1.5, aspect=1, whole=0, max_rotation_deg=40)
    )
    reader, sides = ViewReader(sources, config, {}, 0, 1, True), np.array([120, 60])
    turned = []
    for draw in range(10):
        linear = reader.choose(draw)[2].to_frame[:, :2] * sides[:, None] / sides
        square = linear.T @ linear
        np.testing.assert_allclose(square, np.eye(2) * square[0, 0], atol=1e-9)
        turned.append(abs(linear[0, 1]))
    assert max(turned) > 0.3
