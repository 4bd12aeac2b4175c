from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.training.config import DataConfig, TrainConfig  # noqa: E402
from rgbd_fusion_seg.training.datasets.cache import cached_frames  # noqa: E402
from rgbd_fusion_seg.training.datasets.nyudv2 import NyuDepthV2  # noqa: E402
from rgbd_fusion_seg.training.views import (  # noqa: E402
    Normaliser,
    TrainingBatches,
    channel_statistics,
)


@pytest.fixture(scope='module')
def frames(nyu_pack, tmp_path_factory):
    return cached_frames(NyuDepthV2(nyu_pack, 'train'), tmp_path_factory.mktemp('cache'))


def config(**data) -> TrainConfig:
    return TrainConfig(batch_size=2, data=DataConfig(synthetic_share=0.5, **data))


def test_the_cache_holds_the_source(frames, nyu_pack):
    for i, item in enumerate(NyuDepthV2(nyu_pack, 'train')):
        np.testing.assert_array_equal(frames.rgb[i], item.frame.rgb)
        np.testing.assert_array_equal(frames.labels[i], item.labels)
    floor, wall = frames.labels[0] == 1, frames.labels[0] == 0
    angle = np.repeat(np.repeat(frames.hha[1][0, ..., 2], 2, 0), 2, 1)
    assert abs(np.median(angle[floor]) - 38) < 8
    assert abs(np.median(angle[wall]) - 128) < 8


def test_a_changed_source_is_prepared_anew(frames, nyu_pack, tmp_path):
    source = NyuDepthV2(nyu_pack, 'train')
    cached_frames(source, tmp_path)
    source.ids = source.ids[:3]
    assert len(cached_frames(source, tmp_path)) == 3


def test_a_resumed_run_sees_the_batches_it_would_have_seen(frames):
    whole = TrainingBatches(frames, frames, config(), 0, 8)
    rest = TrainingBatches(frames, frames, config(), 5, 8)
    assert len(rest) == 3
    for i in range(3):
        for name, value in whole[5 + i].items():
            torch.testing.assert_close(rest[i][name], value, rtol=0, atol=0)


def test_an_epoch_visits_every_real_frame_once(frames):
    data = TrainingBatches(frames, None, config(), 0, 6)
    orders = [[data._real_index(draw) for draw in range(e * 6, e * 6 + 6)] for e in range(4)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_normalised_inputs_have_zero_mean_and_unit_spread(frames):
    statistics = channel_statistics(frames)
    batch = {
        'rgb': torch.from_numpy(np.array(frames.rgb)),
        'hha': torch.from_numpy(np.array(frames.hha[-1])),
    }
    for value in Normaliser(statistics)(batch).values():
        assert value.shape[1] == 3
        assert value.mean((0, 2, 3)).abs().max() < 0.1
        assert (value.std((0, 2, 3)) - 1).abs().max() < 0.1
