from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('torch')

from rgbd_fusion_seg.training.augment import (
    AugmentConfig,
    random_view,
    whole_view,
)
from rgbd_fusion_seg.training.datasets.cache import CachedFrames

SIZE = (320, 240)
STILL = AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0, noise=0, hha_shift=0)


def gradients() -> CachedFrames:
    """Frames in which every image says where a pixel comes from: 0..1 along x and y."""

    def ramp(height, width):
        v, u = np.mgrid[0:height, 0:width]
        x, y = (u + 0.5) / width, (v + 0.5) / height
        return np.stack([250 * x, 250 * y, np.full_like(x, 77)], -1).astype(np.uint8)[None]

    v, u = np.mgrid[0:480, 0:640]
    labels = ((u // 64) + 10 * (v // 120)).astype(np.uint8)[None]
    return CachedFrames('ramp', ramp(480, 640), labels, (ramp(120, 160), ramp(240, 320)), (0, 1))


def test_colour_hha_and_labels_keep_the_same_geometry():
    frames = gradients()
    for seed in range(30):
        view = random_view(frames, 0, SIZE, STILL, np.random.default_rng(seed))
        assert view.rgb.shape == (240, 320, 3)
        assert view.hha.shape == (120, 160, 3)
        small = view.rgb.astype(float).reshape(120, 2, 160, 2, 3).mean((1, 3))
        assert np.abs(small - view.hha)[2:-2, 2:-2].max() < 5
        x, y = view.rgb[..., 0] / 250, view.rgb[..., 1] / 250
        expected = np.floor(x * 10) + 10 * np.floor(y * 4)
        assert (expected == view.labels).mean() > 0.93


def test_views_zoom_in_shift_and_flip():
    frames = gradients()
    views = [
        random_view(frames, 0, SIZE, STILL, np.random.default_rng(s)).rgb[..., 0].astype(int)
        for s in range(60)
    ]
    flipped = [v[0, -1] < v[0, 0] for v in views]
    widths = [abs(v[0, -1] - v[0, 0]) / 250 for v in views]
    assert 15 < sum(flipped) < 45
    assert min(widths) < 0.6
    assert max(widths) > 0.97
    assert min(widths) >= 0.45


def test_the_same_seed_gives_the_same_view():
    frames = gradients()
    first, second = (
        random_view(frames, 0, SIZE, AugmentConfig(), np.random.default_rng(9)) for _ in range(2)
    )
    for name in ('rgb', 'hha', 'labels'):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_colour_jitter_leaves_labels_and_angles_alone():
    frames = gradients()
    still = random_view(frames, 0, SIZE, STILL, np.random.default_rng(4))
    loud = random_view(frames, 0, SIZE, AugmentConfig(), np.random.default_rng(4))
    np.testing.assert_array_equal(still.labels, loud.labels)
    np.testing.assert_array_equal(still.hha[..., 2], loud.hha[..., 2])
    assert np.abs(still.rgb.astype(int) - loud.rgb).mean() > 1


def test_whole_views_read_the_hha_of_their_resolution():
    frames = gradients()
    np.testing.assert_array_equal(whole_view(frames, 0, (320, 240)).hha, frames.hha[0][0])
    np.testing.assert_array_equal(whole_view(frames, 0, (640, 480)).hha, frames.hha[1][0])
    np.testing.assert_array_equal(whole_view(frames, 0, (640, 480)).rgb, frames.rgb[0])
