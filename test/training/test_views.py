from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import signal

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from prepared_frames import HEIGHT, WIDTH, random_frames, with_depth  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from rgbd_fusion_seg import preprocess  # noqa: E402
from rgbd_fusion_seg.training import augment, views  # noqa: E402
from rgbd_fusion_seg.training.augment import AugmentConfig  # noqa: E402
from rgbd_fusion_seg.training.config import DataConfig, TrainConfig  # noqa: E402
from rgbd_fusion_seg.training.view_reader import levels  # noqa: E402
from rgbd_fusion_seg.training.views import TrainingViews  # noqa: E402

WILD = AugmentConfig(
    min_zoom=0.7, max_rotation_deg=20, depth_scaling=True, drop_rgb=0.1, drop_hha=0.1
)
PLAIN = AugmentConfig(
    whole=1, flip=0, brightness=0, contrast=0, saturation=0, hue=0, noise=0, hha_shift=0,
    depth_noise=0,
)  # fmt: skip
HHA_SIZE = (HEIGHT // 4, WIDTH // 4)
ALL = ('rgb', 'hha', 'depth')
Batch = dict[str, torch.Tensor]


def make_views(
    workers: int = 0,
    resident: str = 'never',
    rank: int = 0,
    world_size: int = 1,
    share: float = 0.25,
    stereo_share: float = 0.0,
    **options,
) -> TrainingViews:
    """Views of 6 frames of noise, and of 5 others for synthetic ones, at half their size."""
    config = TrainConfig(
        batch_size=options.pop('batch_size', 4),
        seed=options.pop('seed', 7),
        augment=options.pop('augment', WILD),
        data=DataConfig(
            width=WIDTH // 2, height=HEIGHT // 2, workers=workers, resident=resident,
            synthetic_share=share, stereo_share=stereo_share,
        ),
    )  # fmt: skip
    frames = {'train': with_depth(random_frames(6))}
    if share:
        frames['synthetic'] = with_depth(random_frames(5, seed=1))
    if stereo_share:
        frames['stereo'] = with_depth(random_frames(6, seed=2))
    modalities, device = options.pop('modalities', ('rgb', 'hha')), options.pop('device', 'cpu')
    colour = HEIGHT // 2, WIDTH // 2
    sizes = {name: colour if name == 'rgb' else HHA_SIZE for name in modalities}
    return TrainingViews(frames, config, sizes, device, rank, world_size, **options)


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            torch.testing.assert_close(value, b[name], rtol=0, atol=0, msg=name)


def test_batches_are_what_they_promise():
    for batch in make_views().batches(0, 3):
        assert list(batch) == ['rgb', 'hha', 'labels']
        assert batch['rgb'].shape == (4, 3, HEIGHT // 2, WIDTH // 2)
        assert batch['hha'].shape == (4, 3, *HHA_SIZE)
        assert batch['labels'].shape == (4, HEIGHT // 2, WIDTH // 2)
        assert batch['labels'].dtype == torch.uint8
        for name in ('rgb', 'hha'):
            assert batch[name].dtype == torch.float32
            assert batch[name].is_contiguous(memory_format=torch.channels_last)
            assert batch[name].min() >= 0
            assert 200 < batch[name].max() <= 255


def test_depth_comes_in_metres():
    for batch in make_views(modalities=ALL).batches(0, 3):
        assert list(batch) == ['rgb', 'hha', 'depth', 'labels']
        assert batch['depth'].shape == (4, 1, *HHA_SIZE)
        assert batch['depth'].dtype == torch.float32
        assert batch['depth'].min() >= 0
        assert 5 < batch['depth'].max() < 14


@pytest.mark.parametrize(
    'way',
    [{'workers': 1}, {'workers': 2}, {'resident': 'always'}, {'resident': 'always', 'workers': 1}],
    ids=str,
)
def test_how_frames_are_read_changes_nothing(way):
    made = make_views(**way, modalities=ALL)
    assert_same(list(made.batches(3, 5)), list(make_views(modalities=ALL).batches(3, 5)))


def test_processes_make_slices_of_the_same_batch():
    whole = list(make_views(modalities=ALL).batches(0, 5))
    parts = [
        list(make_views(rank=rank, world_size=2, modalities=ALL).batches(0, 5)) for rank in (0, 1)
    ]
    joined = [{k: torch.cat([a[k], b[k]]) for k in a} for a, b in zip(*parts, strict=True)]
    assert_same(joined, whole)


def test_a_resumed_run_sees_the_batches_it_would_have_seen():
    assert_same(list(make_views().batches(5, 3)), list(make_views().batches(0, 8))[5:])


def test_views_differ_between_steps_and_seeds():
    batches = [*make_views().batches(0, 3), *make_views(seed=8).batches(0, 3)]
    for a, b in itertools.combinations(batches, 2):
        assert (a['rgb'] - b['rgb']).abs().mean() > 5


def test_an_epoch_visits_every_real_frame_once_whatever_comes_on_top():
    for share in (0.0, 0.25, 0.4):
        reader = make_views(share=share).reader
        chosen = [reader.choose(draw)[:2] for draw in range(240)]
        real = [index for source, index in chosen if source == 'train']
        epochs = [real[i : i + 6] for i in range(0, len(real) - 5, 6)]
        assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
        synthetic = [index for source, index in chosen if source == 'synthetic']
        assert len(synthetic) == round(240 * share)
        assert not share or set(synthetic) == set(range(5))


@pytest.mark.parametrize('stereo_share', [0.25, 0.4, 1.0])
def test_some_of_the_real_views_have_the_depth_of_stereo(stereo_share):
    """Each frame in its turn, now with its own depth and now with that of stereo."""
    plain = make_views(share=0.25).reader
    mixed = make_views(share=0.25, stereo_share=stereo_share).reader
    chosen = [[reader.choose(draw)[:2] for draw in range(480)] for reader in (plain, mixed)]
    assert [index for _, index in chosen[0]] == [index for _, index in chosen[1]]
    for (before, _), (now, _) in zip(*chosen, strict=True):
        assert now == before or (before, now) == ('train', 'stereo')
    stereo = [index for source, index in chosen[1] if source == 'stereo']
    assert len(stereo) == round(360 * stereo_share)
    counts = np.bincount(stereo, minlength=6) / 60
    np.testing.assert_allclose(counts, stereo_share, atol=0.15)


@pytest.mark.parametrize('resident', ['never', 'always'])
def test_views_of_stereo_read_the_depth_of_stereo(resident):
    own, by_stereo = random_frames(6), random_frames(6, seed=2)
    frames = {'train': own, 'stereo': dataclasses.replace(own, hha=by_stereo.hha)}
    data = DataConfig(width=WIDTH, height=HEIGHT, workers=0, resident=resident, stereo_share=0.5)
    config = TrainConfig(batch_size=6, augment=PLAIN, data=data)
    sizes = {'rgb': (HEIGHT, WIDTH), 'hha': (HEIGHT // 2, WIDTH // 2)}
    made = TrainingViews(frames, config, sizes, 'cpu')
    batch = next(made.batches(0, 1))
    sources = set()
    for i in range(6):
        source, index, _ = made.reader.choose(i)
        sources.add(source)
        for name, images in (('rgb', own.rgb[0]), ('hha', frames[source].hha[1])):
            shown = torch.from_numpy(images[index]).permute(2, 0, 1).float()
            torch.testing.assert_close(batch[name][i], shown, rtol=0, atol=0.01)
        np.testing.assert_array_equal(batch['labels'][i], own.labels[index])
    assert sources == {'train', 'stereo'}
    if resident == 'always':  # the pictures once, the depth of either
        counts = {name: pixels.shape[0] for name, pixels in made.pixels.items()}
        assert counts['labels'] == own.labels.size
        assert counts['rgb'] == sum(x.size for x in own.rgb) / 3
        assert counts['hha'] == 2 * sum(x.size for x in own.hha) / 3


def test_a_share_of_stereo_that_was_not_prepared_is_none():
    """As for a network that reads no depth."""
    with_share, without = make_views(stereo_share=0.5, share=0), make_views(share=0)
    del with_share.reader.sources['stereo']
    for a, b in zip(with_share.batches(0, 2), without.batches(0, 2), strict=True):
        assert_same([a], [b])


def test_a_whole_unchanged_view_is_the_prepared_frame():
    frames = with_depth(random_frames(6))
    for size, level in (((HEIGHT, WIDTH), 0), ((HEIGHT // 2, WIDTH // 2), 1)):
        data = DataConfig(width=size[1], height=size[0], workers=0)
        config = TrainConfig(batch_size=6, augment=PLAIN, data=data)
        half = size[0] // 2, size[1] // 2
        sizes = {'rgb': size, 'hha': half, 'depth': half}
        made = TrainingViews({'train': frames}, config, sizes, 'cpu')
        batch = next(made.batches(0, 1))
        order = [made.reader.choose(draw)[1] for draw in range(6)]
        for name, expected in (('rgb', frames.rgb[level]), ('hha', frames.hha[1 - level])):
            images = torch.from_numpy(expected[order]).permute(0, 3, 1, 2).float()
            torch.testing.assert_close(batch[name], images, rtol=0, atol=0.01)
        np.testing.assert_array_equal(batch['depth'][:, 0], frames.depth[1 - level][order])
        step = HEIGHT // size[0]  # each pixel's centre is at the corner of step x step labels
        expected = frames.labels[order][:, step - 1 :: step, step - 1 :: step]
        np.testing.assert_array_equal(batch['labels'].numpy(), expected)


def test_views_that_zoom_out_take_more_samples_of_small_images():
    """Bilinear samples average two pixels an axis of colour at half the size of the frame."""
    data = DataConfig(width=WIDTH // 4, height=HEIGHT // 4, workers=0)
    sizes = {'rgb': (data.height, data.width)}
    for zoom, taps in ((1.0, 1), (0.5, 2), (0.25, 4)):
        config = TrainConfig(augment=AugmentConfig(min_zoom=zoom), data=data)
        assert TrainingViews({'train': random_frames(1)}, config, sizes, 'cpu').rgb_taps == taps


def test_noise_on_depth_is_not_that_on_colour():
    frames = with_depth(random_frames(6))
    flat = [np.full_like(level, 100) for level in frames.rgb]
    metres = [np.ones_like(level) for level in frames.depth]
    frames = dataclasses.replace(frames, rgb=tuple(flat), depth=tuple(metres))
    noisy = dataclasses.replace(PLAIN, noise=9.0, depth_noise=0.01)
    data = DataConfig(width=WIDTH // 2, height=HEIGHT // 2, workers=0)
    config = TrainConfig(batch_size=4, augment=noisy, data=data)
    size = HEIGHT // 2, WIDTH // 2
    sizes = {'rgb': size, 'depth': size}
    batch = next(TrainingViews({'train': frames}, config, sizes, 'cpu').batches(0, 1))
    for colour, depth in zip(batch['rgb'], batch['depth'], strict=True):
        assert float(depth.std()) > 0
        planes = torch.cat([colour, depth]).flatten(1).numpy()
        assert np.abs(np.corrcoef(planes) - np.eye(4)).max() < 0.3


def test_a_sensor_that_fails_is_black_or_without_readings():
    def batch(**changes: float) -> Batch:
        changed = dataclasses.replace(PLAIN, **changes)
        return next(make_views(augment=changed, modalities=ALL).batches(0, 1))

    lost, kept = batch(drop_rgb=1.0), batch()
    assert (lost['rgb'] == 0).all()
    for name in ('hha', 'depth', 'labels'):
        torch.testing.assert_close(lost[name], kept[name], rtol=0, atol=0)
    lost = batch(drop_hha=1.0)
    assert (lost['hha'] == torch.tensor(augment.MISSING_HHA).view(3, 1, 1)).all()
    assert (lost['depth'] == 0).all()
    assert (preprocess.depth_image(np.zeros((9, 9), np.float32), 9, 9) == 0).all()
    torch.testing.assert_close(lost['rgb'], kept['rgb'], rtol=0, atol=0)
    both = AugmentConfig(drop_rgb=0.3, drop_hha=0.2)
    drawn = [augment.draw_view(both, (9, 9), np.random.default_rng(i)).drop for i in range(500)]
    assert 0.23 < drawn.count('rgb') / 500 < 0.37
    assert 0.14 < drawn.count('hha') / 500 < 0.26


def test_only_what_the_network_reads_is_made():
    colour = make_views(modalities=('rgb',))
    depth = make_views(modalities=('hha',))
    for a, b, both in zip(
        colour.batches(0, 2), depth.batches(0, 2), make_views().batches(0, 2), strict=True
    ):
        assert list(a) == ['rgb', 'labels']
        assert list(b) == ['hha', 'labels']
        assert_same([a, b], [{k: both[k] for k in a}, {k: both[k] for k in b}])
    assert 'rgb' not in depth.reader[0]
    metres = next(make_views(modalities=('depth',)).batches(0, 1))
    whole = next(make_views(modalities=ALL).batches(0, 1))
    assert_same([metres], [{name: whole[name] for name in ('depth', 'labels')}])


def test_resident_frames_must_leave_memory_to_train_in(monkeypatch):
    size = sum(x.nbytes for name in ('rgb', 'labels') for x in levels(random_frames(6), name))
    sources = {'train': {name: levels(random_frames(6), name) for name in ('rgb', 'labels')}}
    gpu, cpu = torch.device('cuda'), torch.device('cpu')
    for free, expected in ((2 * size, True), (2 * size - 1, False)):
        monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda _, free=free: (free, 10 * size))
        assert views.is_resident('auto', sources, gpu) is expected
        assert not views.is_resident('never', sources, gpu)
        assert views.is_resident('always', sources, gpu)
    assert not views.is_resident('auto', sources, cpu)


class DeviceTasks(TorchDispatchMode):
    """Counts what is launched on another device than the CPU, and copies between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = self.copies = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, out))
        devices = {x.device.type for x in leaves if isinstance(x, torch.Tensor)}
        self.tasks += 'meta' in devices and not function.is_view
        self.copies += len(devices) > 1
        return out


def test_a_larger_batch_is_no_more_work_for_who_launches_it():
    # The meta device computes nothing, but refuses tensors that are not on it, as a GPU would.
    counted = []
    for batch_size in (4, 16):
        made = make_views(resident='always', device='meta', batch_size=batch_size, modalities=ALL)
        batches = made.batches(0, 2)
        next(batches)
        with DeviceTasks() as tasks:
            batch = next(batches)
        assert {x.device.type for x in batch.values()} == {'meta'}
        counted.append((tasks.tasks, tasks.copies))
    assert counted[0] == counted[1]
    assert counted[0][1] == 2


def test_signals_to_a_whole_group_do_not_end_the_loaders():
    before = set(multiprocessing.active_children())
    batches = make_views(workers=2).batches(0, 12)
    made = [next(batches), next(batches)]  # each loader has begun then
    for loader in set(multiprocessing.active_children()) - before:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(loader.pid, number)
    made += list(batches)
    assert_same(made, list(make_views().batches(0, 12)))
