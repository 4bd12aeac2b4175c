from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from prepared_frames import HEIGHT, WIDTH, ramp_frames, random_frames, with_depth  # noqa: E402

from rgbd_fusion_seg import preprocess  # noqa: E402
from rgbd_fusion_seg.bundle import TensorInput  # noqa: E402
from rgbd_fusion_seg.frame import Intrinsics  # noqa: E402
from rgbd_fusion_seg.training.datasets.cache import CachedFrames  # noqa: E402
from rgbd_fusion_seg.training.inputs import (  # noqa: E402
    Normaliser,
    channel_statistics,
    whole_frames,
)

HHA_SIZE = (HEIGHT // 4, WIDTH // 4)


def test_whole_frames_are_what_the_runtime_feeds():
    camera = Intrinsics(260.0, 260.0, 159.5, 119.5, 320, 240)
    frames = ramp_frames()
    rng = np.random.default_rng(0)
    depth = np.linspace(1, 4, 240, dtype=np.float32)[:, None] + rng.random((240, 320)) * 0.1
    depth = depth.astype(np.float32)
    hha = tuple(preprocess.hha_image(depth, camera, *s)[None] for s in ((80, 60), (160, 120)))
    frames = dataclasses.replace(frames, hha=hha)
    for height, width in ((240, 320), (120, 160), (96, 112), (300, 400)):
        (batch,) = whole_frames(frames, {'rgb': (height, width), 'hha': (60, 80)}, 'cpu')
        expected = preprocess.rgb_image(frames.rgb[0][0], width, height)
        got = batch['rgb'][0].permute(1, 2, 0).numpy()
        # The half size is in the cache; rounding may differ from this test's own averages.
        assert np.abs(got - expected).max() <= (1 if height == 120 else 0)
        image = preprocess.hha_image(depth, camera, 80, 60)
        np.testing.assert_array_equal(batch['hha'][0].permute(1, 2, 0).numpy(), image)
        np.testing.assert_array_equal(batch['labels'], frames.labels)


def test_hha_of_another_size_comes_from_the_next_larger_one():
    frames = random_frames(1)
    small, large = ((HEIGHT // s, WIDTH // s) for s in (4, 2))
    for size, level in (((small[0] - 8, small[1] - 8), 0), ((small[0] + 8, small[1] + 8), 1)):
        (batch,) = whole_frames(frames, {'hha': size}, 'cpu')
        expected = preprocess.rgb_image(frames.hha[level][0], size[1], size[0])
        np.testing.assert_array_equal(batch['hha'][0].permute(1, 2, 0).numpy(), expected)
    (batch,) = whole_frames(frames, {'hha': (large[0] * 3, large[1] * 3)}, 'cpu')
    expected = preprocess.rgb_image(frames.hha[1][0], large[1] * 3, large[0] * 3)
    np.testing.assert_array_equal(batch['hha'][0].permute(1, 2, 0).numpy(), expected)


def test_whole_frames_come_in_the_order_asked_for():
    frames = random_frames(6)
    batches = list(whole_frames(frames, {'hha': HHA_SIZE}, 'cpu', [4, 0, 2], batch_size=2))
    assert [list(batch) for batch in batches] == [['hha', 'labels']] * 2
    labels = torch.cat([batch['labels'] for batch in batches])
    np.testing.assert_array_equal(labels, frames.labels[[4, 0, 2]])
    hha = torch.cat([batch['hha'] for batch in batches]).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(hha, frames.hha[0][[4, 0, 2]].astype(np.float32))
    assert len(list(whole_frames(frames, {}, 'cpu'))) == 6


def test_whole_frames_hold_the_depth_that_the_runtime_feeds():
    rng = np.random.default_rng(0)
    # Sixteenths of a metre, which sixteen bits hold exactly.
    depth = (np.linspace(16, 80, 240)[:, None] + rng.random((240, 320))).round().astype('f4') / 16
    depth[60:90, 100:140] = 0
    levels = tuple(preprocess.depth_image(depth, *s)[None] for s in ((80, 60), (160, 120)))
    frames = dataclasses.replace(ramp_frames(), depth=tuple(np.float16(x) for x in levels))
    mean, std = 2.75, 1.25
    normalise = Normaliser({'depth': ([mean] * 3, [std] * 3)})
    for width, height in ((80, 60), (160, 120), (40, 30)):
        batches = whole_frames(frames, {'depth': (height, width)}, 'cpu')
        (batch,) = batches
        assert list(batch) == ['depth', 'labels']
        size = TensorInput(height, width, np.full(3, mean, 'f4'), np.full(3, std, 'f4'))
        expected = preprocess.depth_tensor(preprocess.depth_image(depth, width, height), size)
        ours = normalise(batch)['depth'].numpy()
        assert ours.shape == expected.shape
        # Where holes were filled, 16 bits do not hold the depth exactly; 40x30 is resampled.
        assert np.abs(ours - expected).max() < (0.003 if width > 40 else 0.15)
        if width > 40:
            assert (ours == expected).mean() > 0.9


def test_normalised_inputs_have_zero_mean_and_unit_spread():
    frames = random_frames(40)
    frames = dataclasses.replace(frames, rgb=tuple(level // 2 + 20 for level in frames.rgb))
    normalise = Normaliser(channel_statistics(frames))
    sizes = {'rgb': (HEIGHT, WIDTH), 'hha': HHA_SIZE}
    for batch in whole_frames(frames, sizes, 'cpu', batch_size=40):
        result = normalise(batch)
        assert list(result) == ['rgb', 'hha']
        for value in result.values():
            assert value.mean((0, 2, 3)).abs().max() < 0.05
            assert (value.std((0, 2, 3)) - 1).abs().max() < 0.05
            assert value.is_contiguous(memory_format=torch.channels_last)


def test_statistics_are_those_of_each_channel():
    value = np.zeros((8, 8, 8, 3), np.uint8)
    value[..., 0], value[:4, ..., 1], value[4:, ..., 1] = 30, 10, 50
    frames = CachedFrames(
        'two', random_frames(1).classes, '', (value,), value[..., 0], (value,), (1.0, 2.0)
    )
    for mean, std in channel_statistics(frames).values():
        assert mean == [30, 30, 0]
        assert std == [1, 20, 1]  # what never varies must not be divided by 0


def test_statistics_of_depth_are_in_metres_three_times():
    frames = with_depth(random_frames(12))
    statistics = channel_statistics(frames)
    assert list(statistics) == ['rgb', 'hha', 'depth']
    mean, std = statistics['depth']
    assert mean == [mean[0]] * 3
    assert std == [std[0]] * 3
    assert mean[0] == pytest.approx(4.75, abs=0.3)
    assert std[0] == pytest.approx(8.5 / 12**0.5, abs=0.2)
