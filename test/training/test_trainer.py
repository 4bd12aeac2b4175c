from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import os
import resource
import shutil
import signal
import tempfile

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')

from lightning_fabric import Fabric  # noqa: E402
from lightning_fabric.plugins import MixedPrecision  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from rgbd_fusion_seg.errors import InputError, TrainingError  # noqa: E402
from rgbd_fusion_seg.training import checkpoints, loop, stopping, trainer  # noqa: E402
from rgbd_fusion_seg.training.augment import AugmentConfig  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import load_checkpoint  # noqa: E402
from rgbd_fusion_seg.training.config import (  # noqa: E402
    DataConfig,
    DatasetConfig,
    GroupConfig,
    LossConfig,
    NetworkConfig,
    OptimiserConfig,
    TrainConfig,
)
from rgbd_fusion_seg.training.continuation import (  # noqa: E402
    changed_settings,
    check_same_data,
    described_run,
    flatten,
)
from rgbd_fusion_seg.training.datasets.nyudv2 import NYU40, NyuDepthV2  # noqa: E402
from rgbd_fusion_seg.training.inputs import channel_statistics  # noqa: E402
from rgbd_fusion_seg.training.networks.branches import BranchLayers  # noqa: E402
from rgbd_fusion_seg.training.networks.resnet import ResNet  # noqa: E402
from rgbd_fusion_seg.training.optimiser import learning_rate  # noqa: E402
from rgbd_fusion_seg.training.trainer import Trainer  # noqa: E402

BRANCHES = {'backbone': 'resnet14', 'head_options': {'width': 8}}
SILENT = trainer.Monitor(trainer.Path(), 0, 0, speaks=False)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture
def run_config(nyu_pack, cache, tmp_path):
    """Make the configuration of a run of 3 steps an epoch in tmp_path / name."""

    def make(name: str = 'run', **changes) -> TrainConfig:
        data = DataConfig(
            dataset=DatasetConfig(folder=str(nyu_pack)), synthetic_frames=0,
            synthetic_test_frames=0, cache=str(cache), width=64, height=48, workers=0,
        )  # fmt: skip
        options = {
            'output': str(tmp_path / name), 'batch_size': 2, 'epochs': 2,
            'precision': '32-true', 'accelerator': 'cpu', 'data': data, 'save_every': 1,
            'network': NetworkConfig(options={'dropout': (0.1, 0.3)}),
            'optimiser': OptimiserConfig(lr=3e-3, warmup=0.1, ema=0.9),
        }  # fmt: skip
        return TrainConfig(**{**options, **changes})

    return make


def test_given_statistics_take_the_place_of_the_frames(run_config):
    """The public CEN code reads depth in metres, as it is."""
    options = {
        'backbone': 'resnet14',
        'head_options': {'width': 8},
        'modalities': ['rgb', 'depth'],
    }
    config = run_config(network=NetworkConfig('cen', options))
    config.data.statistics = {'depth': [0, 1]}
    run = Trainer(config)
    batch = next(iter(run.views().batches(0, 1)))
    torch.testing.assert_close(run.normalise(batch)['depth'], batch['depth'].expand(-1, 3, -1, -1))
    expected = {**channel_statistics(run.frames['train']), 'depth': [[0, 0, 0], [1, 1, 1]]}
    assert run.info()['statistics'] == {name: expected[name] for name in ('rgb', 'depth')}
    run.save()
    config.data.statistics = {'depth': [0, 2]}
    with pytest.raises(InputError, match=r'another data\.statistics\.depth'):
        Trainer(config)


def log_of(config: TrainConfig) -> list[dict]:
    path = os.path.join(config.output, 'log.jsonl')
    return [json.loads(line) for line in open(path, encoding='utf-8')]


def assert_equal_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, msg=name)


def test_training_lowers_the_loss_and_leaves_what_a_user_needs(run_config, monkeypatch):
    monkeypatch.setattr(loop, 'LOG_EVERY', 3)
    no_dropout = NetworkConfig(options={'dropout': (0, 0)})
    config = run_config(epochs=8, evaluate_every=4, network=no_dropout)
    trainer.train(config)
    losses = [entry['loss'] for entry in log_of(config)]
    assert losses[-1] < 0.9 * losses[0]
    run = {name.name for name in trainer.Path(config.output).iterdir()}
    assert {'last.safetensors', 'best.safetensors', 'resume.ckpt', 'scores.json'} <= run
    assert list((trainer.Path(config.output) / 'tensorboard').iterdir())
    checkpoint = load_checkpoint(trainer.Path(config.output) / 'last.safetensors')
    assert checkpoint.info['network'] == 'rfbnet_erfnet'
    assert checkpoint.info['step'] == 24
    assert checkpoint.num_classes == 40
    assert checkpoint.info['data'][0]['frames'] == 6
    scores = json.loads((trainer.Path(config.output) / 'scores.json').read_text())['test']
    assert scores['pixel_accuracy'] > 0.4


def test_a_network_on_depth_is_trained_and_scored_like_any_other(run_config, nyu_pack):
    options = {'modality': 'depth', 'shrink_depth': True, 'dropout': (0, 0)}
    config = run_config(epochs=12, network=NetworkConfig('erfnet_encoder', options))
    trainer.train(config)
    folder = trainer.Path(config.output)
    checkpoint = load_checkpoint(folder / 'last.safetensors')
    mean, std = checkpoint.info['statistics']['depth']
    metres = [
        (cv2.imread(str(nyu_pack / f'depth8/{i:04d}.png'), cv2.IMREAD_UNCHANGED) + 0.5) / 25.5
        for i in range(1, 7)
    ]
    assert mean == pytest.approx([np.mean(metres)] * 3, abs=0.05)
    assert std == pytest.approx([np.std(metres)] * 3, abs=0.05)
    # The wall, the floor and the box before it are told apart by depth.
    assert json.loads((folder / 'scores.json').read_text())['test']['pixel_accuracy'] > 0.6


def test_the_log_of_a_continued_run_counts_its_own_steps(run_config, monkeypatch):
    monkeypatch.setattr(loop, 'LOG_EVERY', 5)
    config = run_config()
    trainer.train(dataclasses.replace(config, epochs=1))
    seconds = iter(range(100, 1000, 4))
    monkeypatch.setattr(stopping.time, 'monotonic', lambda: float(next(seconds)))
    before = torch.load(trainer.Path(config.output) / 'resume.ckpt')['seconds']
    trainer.train(config)
    log = log_of(config)
    after = torch.load(trainer.Path(config.output) / 'resume.ckpt')['seconds']
    assert [entry['step'] for entry in log] == [3, 5, 6]  # both runs end with a look
    # Two steps, 4 and 5, since it went on, and one more.
    times = [
        steps / entry['steps_per_second'] for steps, entry in zip((2, 1), log[1:], strict=True)
    ]
    assert sum(times) == pytest.approx(after - before, rel=1e-4)


def test_the_log_has_the_mean_losses_since_the_last_look(run_config, monkeypatch):
    monkeypatch.setattr(loop, 'LOG_EVERY', 4)
    config, losses, real = run_config(), [], Trainer.step

    def step(self, batch):
        losses.append(real(self, batch)['loss'])
        return {'loss': losses[-1]}

    monkeypatch.setattr(Trainer, 'step', step)
    trainer.train(config)
    expected = [float(sum(part) / len(part)) for part in (losses[:4], losses[4:])]
    assert [entry['loss'] for entry in log_of(config)] == pytest.approx(expected, rel=1e-4)


def test_saves_and_evaluations_come_after_so_many_epochs_or_minutes(run_config, monkeypatch):
    done = []

    def step(self, batch):
        self.state['step'] += 1
        return {'loss': torch.zeros(())}

    monkeypatch.setattr(Trainer, 'step', step)
    monkeypatch.setattr(Trainer, 'save', lambda self: done.append(self.state['step']))
    monkeypatch.setattr(Trainer, 'evaluate', lambda self, name, monitor: done.append(name))
    trainer.train(run_config(epochs=5, save_every=2, save_minutes=0, evaluate_every=3))
    assert done == [6, 'scores-0003.json', 12, 15, 'scores.json']
    done.clear()
    monkeypatch.setattr(loop, 'LOG_EVERY', 1)
    looks = itertools.count(1)
    # A step takes half a minute on this clock, whatever the machine.
    monkeypatch.setattr(loop.Clock, 'seconds', property(lambda clock: 30.0 * next(looks)))
    trainer.train(run_config('by_time', save_every=0, save_minutes=1))
    assert done == [2, 4, 6, 6, 'scores.json']


@pytest.mark.parametrize('limit', [{'epochs': 4}, {'epochs': 99, 'max_minutes': 6.0}])
def test_the_end_is_scored_once(run_config, monkeypatch, limit):
    """Whether steps or minutes end the run: 12 steps of half a minute."""
    monkeypatch.setattr(loop, 'LOG_EVERY', 1)
    scored, looks = [], itertools.count(1)

    def evaluate(self, name, monitor):
        scored.append((self.state['step'], name))

    monkeypatch.setattr(Trainer, 'evaluate', evaluate)
    monkeypatch.setattr(loop.Clock, 'seconds', property(lambda clock: 30.0 * next(looks)))
    trainer.train(run_config(evaluate_every=2, save_every=0, save_minutes=0, **limit))
    assert scored == [(6, 'scores-0002.json'), (12, 'scores.json')]


def test_scoring_and_saving_take_no_time_of_training(run_config, monkeypatch):
    """Nor do they in a run that is continued."""
    monkeypatch.setattr(loop, 'LOG_EVERY', 1)
    now, real = [0.0], Trainer.save
    monkeypatch.setattr(stopping.time, 'monotonic', lambda: now[0])

    def step(self, batch):
        if dies and self.state['step'] == 4:
            raise KeyboardInterrupt
        now[0] += 2
        self.state['step'] += 1
        return {'loss': torch.zeros(())}

    def save(self):
        now[0] += 100
        real(self)

    def evaluate(self, *_):
        now[0] += 1000

    monkeypatch.setattr(Trainer, 'step', step)
    monkeypatch.setattr(Trainer, 'save', save)
    monkeypatch.setattr(Trainer, 'evaluate', evaluate)
    config = run_config(epochs=99, max_minutes=0.3, evaluate_every=1)
    dies = True
    with pytest.raises(KeyboardInterrupt):
        trainer.train(config)
    dies = False
    trainer.train(config)
    state = torch.load(trainer.Path(config.output) / 'resume.ckpt')
    assert (state['step'], state['seconds']) == (9, 18.0)
    assert [entry['steps_per_second'] for entry in log_of(config)] == [0.5] * 9


def test_one_batch_can_be_learnt_by_heart(run_config):
    config = run_config(
        epochs=1, optimiser=OptimiserConfig(lr=1e-2, warmup=0, schedule='constant', ema=0),
        network=NetworkConfig(options={'dropout': (0, 0)}),
    )  # fmt: skip
    run = Trainer(config)
    batch = next(iter(run.views().batches(0, 1)))
    losses = [float(run.step(batch)['loss']) for _ in range(60)]
    assert losses[-1] < 0.15 * losses[0]


@pytest.mark.parametrize('steps', [1, 4, 5])
def test_a_run_that_was_killed_continues_identically(run_config, monkeypatch, steps):
    whole = run_config('whole')
    trainer.train(whole)
    killed = run_config('killed')
    real, calls = Trainer.loss, []

    def dies(self, batch):
        calls.append(1)
        if len(calls) > steps:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(Trainer, 'loss', dies)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(killed)
    monkeypatch.setattr(Trainer, 'loss', real)
    trainer.train(killed)
    for name in ('last.safetensors',):
        ours = load_checkpoint(trainer.Path(killed.output) / name).weights
        assert_equal_weights(ours, load_checkpoint(trainer.Path(whole.output) / name).weights)


def test_a_signal_saves_and_the_run_goes_on_identically(run_config, monkeypatch):
    whole, stopped = run_config('whole'), run_config('stopped')
    trainer.train(whole)
    real = Trainer.loss

    def interrupted(self, batch):
        if self.state['step'] == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    monkeypatch.setattr(Trainer, 'loss', interrupted)
    assert Trainer(stopped).fit() is False
    path = trainer.Path(stopped.output) / 'last.safetensors'
    assert load_checkpoint(path).info['step'] == 2
    assert torch.load(path.with_name('resume.ckpt'))['seconds'] > 0
    monkeypatch.setattr(Trainer, 'loss', real)
    trainer.train(stopped)
    theirs = load_checkpoint(trainer.Path(whole.output) / 'last.safetensors').weights
    assert_equal_weights(load_checkpoint(path).weights, theirs)


def test_the_board_of_a_stopped_run_lacks_nothing(run_config, monkeypatch, capfd):
    monkeypatch.setattr(loop, 'LOG_EVERY', 1)
    config = run_config(epochs=2, evaluate_every=1)
    real = Trainer.loss

    def interrupted(self, batch):
        if self.state['step'] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch)

    monkeypatch.setattr(Trainer, 'loss', interrupted)
    trainer.train(config)
    assert 'saved at step 3;' in capfd.readouterr().out
    monkeypatch.setattr(Trainer, 'loss', real)
    trainer.train(config)
    board = EventAccumulator(str(trainer.Path(config.output) / 'tensorboard')).Reload()
    assert [event.step for event in board.Scalars('train/loss')] == [1, 2, 3, 4, 5, 6]
    # The stop fell together with an evaluation; the last one is that of the end.
    assert {event.step for event in board.Scalars('test/mIoU')} == {3, 6}
    assert {event.step for event in board.Images('test/0')} == {3, 6}


def test_the_end_of_a_run_is_scored_on_the_board_too(run_config):
    config = run_config(epochs=1, evaluate_every=0)
    trainer.train(config)
    board = EventAccumulator(str(trainer.Path(config.output) / 'tensorboard')).Reload()
    scores = json.loads((trainer.Path(config.output) / 'scores.json').read_text())['test']
    assert board.Scalars('test/mIoU')[-1].value == pytest.approx(scores['mIoU'])


def test_a_size_that_the_network_cannot_take_is_refused_at_once(run_config):
    config = run_config()
    config.data.height = 40
    with pytest.raises(InputError, match='multiples of 16, not 64x40; 64x'):
        Trainer(config)
    assert not trainer.Path(config.output).exists()


def test_a_run_is_not_continued_with_other_settings(run_config):
    trainer.train(run_config(epochs=1))
    longer = run_config(epochs=2)
    saved = trainer.Path(longer.output) / 'resume.ckpt'
    state = torch.load(saved)
    # As of a version that did not have the setting.
    del state['run']['settings']['optimiser']['decay_all']
    torch.save(state, saved)
    trainer.train(longer)
    path = trainer.Path(longer.output) / 'last.safetensors'
    assert load_checkpoint(path).info['step'] == 6
    other = run_config(epochs=2, seed=1, optimiser=OptimiserConfig(lr=1.0))
    with pytest.raises(InputError, match=r'optimiser\.ema, optimiser\.lr.*seed'):
        Trainer(other)


FREE = (
    'output', 'epochs', 'max_minutes', 'evaluate_every', 'save_every', 'save_minutes', 'precision',
    'accelerator', 'data.cache', 'data.workers', 'data.resident', 'data.dataset.folder',
)  # fmt: skip
"""Settings that tell how long a run goes on and where, not what it learns from a step."""


def test_only_how_long_and_where_a_run_goes_on_may_change():
    names = flatten(dataclasses.asdict(TrainConfig()))
    assert {*FREE} <= {*names}
    for name in names:
        before = dataclasses.asdict(TrainConfig())
        section = before
        *sections, last = name.split('.')
        for part in sections:
            section = section[part]
        section[last] = 'another'
        assert changed_settings(TrainConfig(), before) == ([] if name in FREE else [name])
    plain, gateless = (TrainConfig(network=NetworkConfig(options=x)) for x in ({}, {'gates': 0}))
    for now, then in ((plain, gateless), (gateless, plain)):  # left out, and given now
        assert changed_settings(now, dataclasses.asdict(then)) == ['network.options.gates']


def test_a_run_is_not_continued_on_another_range_of_depth(run_config):
    run = Trainer(run_config())
    frames = dataclasses.replace(run.frames['train'], depth_range_m=(0.5, 9.0))
    now = run.described | described_run(run.config, NYU40.names, [frames], [], {})
    now['data'] = run.described['data']
    check_same_data(run.folder, run.described, run.described)
    with pytest.raises(InputError, match='frames of nyudv2-train with other labels or depth'):
        check_same_data(run.folder, run.described, now)


def test_weights_are_not_overwritten_where_their_state_is_gone(run_config):
    config = run_config(epochs=1)
    trainer.train(config)
    folder = trainer.Path(config.output)
    (folder / 'resume.ckpt').unlink()
    before = (folder / 'last.safetensors').read_bytes()
    with pytest.raises(InputError, match=r'no resume\.ckpt .*network\.init_from .*last\.safet'):
        trainer.train(config)
    assert (folder / 'last.safetensors').read_bytes() == before


def test_a_run_is_not_continued_on_other_labels(run_config, nyu_pack, tmp_path):
    config = run_config(epochs=1)
    trainer.train(config)
    again = run_config(epochs=2)
    again.data.dataset.folder = str(tmp_path / 'changed')
    shutil.copytree(nyu_pack, again.data.dataset.folder)
    for path in (tmp_path / 'changed' / 'label40').iterdir():
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.where(labels == labels[0, 0], 39, labels).astype(np.uint8))
    with pytest.raises(InputError, match='on frames of nyudv2-train with other labels or depth'):
        Trainer(again)


@pytest.mark.parametrize('content', [None, '{"epochs": 1, ', '{"seed": 1}'])
def test_settings_are_told_by_the_state_whatever_their_file_says(run_config, content):
    trainer.train(run_config(epochs=1))
    saved = trainer.Path(run_config().output) / 'run.json'
    saved.unlink()
    if content is not None:
        saved.write_text(content)
    with pytest.raises(InputError, match=r'another optimiser\.ema, .*seed'):
        Trainer(run_config(seed=1, optimiser=OptimiserConfig()))
    Trainer(run_config(epochs=2))
    assert json.loads(saved.read_text())['epochs'] == 2


def test_a_run_is_not_continued_on_other_data(run_config, nyu_pack, tmp_path, monkeypatch):
    trainer.train(run_config(epochs=1))
    last = trainer.Path(run_config().output) / 'last.safetensors'
    before = last.read_bytes()
    fewer = run_config()
    fewer.data.dataset.folder = str(shutil.copytree(nyu_pack, tmp_path / 'pack'))
    Trainer(fewer)  # the same data in another place
    frames = (tmp_path / 'pack' / 'train.txt').read_text().split()
    (tmp_path / 'pack' / 'train.txt').write_text('\n'.join(frames[:-1]))
    with pytest.raises(InputError, match=r'nyudv2-train \(6 frames\).* not .*\(5 frames\)'):
        Trainer(fewer)
    names = ('wand', *NYU40.names[1:])
    classes = dataclasses.replace(NYU40, names=names)
    monkeypatch.setattr(NyuDepthV2, 'classes', classes)
    with pytest.raises(InputError, match="other classes \\('wall' is now 'wand'\\)"):
        Trainer(run_config())
    assert last.read_bytes() == before


def test_a_state_that_does_not_tell_of_its_run_is_not_continued(run_config):
    config = run_config(epochs=1)
    trainer.train(config)
    path = trainer.Path(config.output) / 'resume.ckpt'
    state = torch.load(path)
    assert state.pop('run')['classes'] == list(NYU40.names)
    torch.save(state, path)
    with pytest.raises(
        InputError, match=r'resume\.ckpt cannot be .* start in a new output folder'
    ):
        Trainer(run_config(epochs=2))


def test_a_time_limit_runs_the_whole_schedule(run_config, monkeypatch):
    monkeypatch.setattr(loop, 'LOG_EVERY', 1)
    looks = itertools.count(1)
    # A step takes three seconds on this clock, whatever the machine.
    monkeypatch.setattr(loop.Clock, 'seconds', property(lambda clock: 3.0 * next(looks)))
    config = run_config(epochs=1000, max_minutes=1.0)
    trainer.train(config)
    rates = [entry['lr'] for entry in log_of(config)]
    assert len(rates) == 20
    expected = learning_rate(19 / 20, config.optimiser)
    assert rates[-1] == pytest.approx(expected, rel=1e-4)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_its_checkpoint(run_config, monkeypatch):
    monkeypatch.setattr(loop, 'LOG_EVERY', 1)
    config = run_config()
    real = Trainer.loss

    def explodes(self, batch):
        loss = real(self, batch)
        return loss * math.nan if self.state['step'] == 4 else loss

    monkeypatch.setattr(Trainer, 'loss', explodes)
    with pytest.raises(TrainingError, match=r'optimiser\.lr'):
        trainer.train(config)
    checkpoint = load_checkpoint(trainer.Path(config.output) / 'last.safetensors')
    assert checkpoint.info['step'] == 3
    assert all(bool(x.isfinite().all()) for x in checkpoint.weights.values())


def test_weights_that_are_no_numbers_are_never_saved(run_config):
    run = Trainer(run_config())
    run.save()
    with torch.no_grad():
        run.average.tensors[0].fill_(math.nan)
    path = run.folder / 'last.safetensors'
    # The folder holds a state with the rate as it was, so it takes no lower one.
    words = (
        rf'not finite any more .*lower optimiser\.lr in a new output folder and .*init_from {path}'
    )
    with pytest.raises(TrainingError, match=words):
        run.save()
    assert all(bool(x.isfinite().all()) for x in load_checkpoint(path).weights.values())


def test_a_full_disk_keeps_the_older_checkpoint(run_config, monkeypatch):
    run = Trainer(run_config())
    run.save()
    before = (run.folder / 'last.safetensors').read_bytes()
    run.state['step'] = 99

    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(checkpoints, 'save_file', full)
    with pytest.raises(TrainingError, match='No space left'):
        run.save()
    assert (run.folder / 'last.safetensors').read_bytes() == before
    assert not list(run.folder.glob('*.partial'))


def test_a_state_needs_no_room_but_beside_its_file(run_config, monkeypatch, tmp_path):
    run = Trainer(run_config())
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'absent'))
    with pytest.raises(FileNotFoundError):
        tempfile.mkstemp()
    run.step(next(run.views().batches(0, 1)))
    run.save()
    again = Trainer(run_config())
    assert again.state['step'] == 1
    assert_equal_weights(again.network.state_dict(), run.network.state_dict())
    assert not list(run.folder.glob('*.partial'))


def test_why_a_state_cannot_be_written_is_told(run_config):
    run = Trainer(run_config())
    run.save()
    before = (run.folder / 'resume.ckpt').read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(TrainingError, match=r'resume\.ckpt could not .*File too large'):
            run.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (run.folder / 'resume.ckpt').read_bytes() == before
    assert not list(run.folder.glob('*.partial'))


def test_the_loss_is_the_weighted_cross_entropy_of_torch(run_config):
    config = run_config(loss=LossConfig(stride=1, auxiliary=0))
    run = Trainer(config)
    batch = next(iter(run.views().batches(0, 1)))
    run.network.eval()
    logits = run.network(run.normalise(batch))
    logits = torch.nn.functional.interpolate(logits, (48, 64), mode='bilinear')
    labels = batch['labels'].long()
    pixels = np.bincount(run.frames['train'].labels.ravel(), minlength=256)[:40]
    weights = 1 / np.log(1.05 + pixels / pixels.sum())  # ENet's, to a mean of 1
    weights = torch.tensor(weights / weights.mean(), dtype=torch.float)
    theirs = torch.nn.functional.cross_entropy(logits, labels, weights, ignore_index=255)
    assert float(run.loss(batch).detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    batch['labels'].fill_(255)
    assert float(run.loss(batch).detach()) == 0  # of views that show nothing with a label


@pytest.mark.parametrize('name', ['rfbnet_erfnet', 'multimodal'])
def test_auxiliary_losses_add_to_the_main_one(run_config, name):
    options = BRANCHES if name == 'multimodal' else {}
    run = Trainer(run_config(network=NetworkConfig(name, options)))
    run.network.eval()
    batch = next(iter(run.views().batches(0, 1)))
    values = {}
    for factor in (0.0, 0.5, 1.0):
        run.config = copy.deepcopy(run.config)
        run.config.loss = LossConfig(auxiliary=factor)
        values[factor] = float(run.loss(batch).detach())
    assert values[0.5] - values[0.0] == pytest.approx(values[1.0] - values[0.5], rel=1e-3)
    main, *others = run.network(run.normalise(batch), auxiliary=True)
    weights = run.network.auxiliary_weights
    expected = 0.0
    for weight, logits in zip((1.0, *weights), (main, *others), strict=True):
        # Branches of the paper's codes are compared at the size of the loss, hints at their own.
        if logits is main or name == 'multimodal':
            logits = torch.nn.functional.interpolate(logits, (24, 32), mode='bilinear')
        every = 48 // logits.shape[2]
        # The pixels on either side of a cell's centre, in turn.
        picked = [
            np.arange(n) * every + every // 2 - (np.arange(n) + 1) % 2 for n in logits.shape[2:]
        ]
        labels = batch['labels'][:, picked[0]][:, :, picked[1]].long()
        theirs = torch.nn.functional.cross_entropy(
            logits, labels, run.class_weights, ignore_index=255
        )
        expected += weight * float(theirs.detach())
    run.config.loss = LossConfig(stride=2, auxiliary=1.0)
    assert float(run.loss(batch).detach()) == pytest.approx(expected, rel=1e-4)


def test_what_is_saved_are_the_averages_of_the_weights(run_config):
    run = Trainer(run_config())
    expected = [p.detach().clone() for p in run.network.parameters()]
    for step, batch in enumerate(run.views().batches(0, 3)):
        run.step(batch)
        decay = min(0.9, (1 + step) / (10 + step))
        for ours, newest in zip(expected, run.network.parameters(), strict=True):
            ours.mul_(decay).add_(newest.detach(), alpha=1 - decay)
    run.save()
    saved = load_checkpoint(run.folder / 'last.safetensors').build()
    for ours, theirs in zip(saved.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_each_step_and_process_drops_other_channels(run_config, monkeypatch):
    still = OptimiserConfig(lr=1e-12, warmup=0, schedule='constant')
    run = Trainer(run_config(optimiser=still))
    batch = next(iter(run.views().batches(0, 1)))

    def loss(step: int) -> float:
        run.state['step'] = step
        return float(run.step(batch)['loss'])

    first, second = loss(0), loss(1)
    assert first == loss(0) != second
    monkeypatch.setattr(Fabric, 'world_size', 2)
    monkeypatch.setattr(Fabric, 'all_reduce', lambda fabric, tensor, **_: tensor)
    losses = {first, second}
    for step, rank in itertools.product((5, 6), (0, 1)):
        monkeypatch.setattr(Fabric, 'global_rank', rank)
        losses.add(loss(step))
    assert len(losses) == 6


def test_synthetic_views_come_on_top_of_an_epoch(run_config):
    config = run_config()
    config.data.synthetic_frames, config.data.synthetic_share = 1, 0.5
    run = Trainer(config)
    assert (len(run.frames['train']), run.steps_per_epoch) == (6, 6)  # of two views, half of them


@pytest.mark.parametrize('auxiliary', [0, 1])
def test_branches_and_the_penalty_add_to_the_loss(run_config, auxiliary):
    """Cross-entropy and λ Σ |γ|: of the ensemble (CEN's Eq. 4), or of every branch too."""
    options = {
        'backbone': 'resnet14', 'head_options': {'width': 8}, 'form': 'paper', 'penalised': 'all',
        'sparsity': 0.01,
    }  # fmt: skip
    loss = LossConfig(stride=1, auxiliary=auxiliary)
    run = Trainer(run_config(network=NetworkConfig('cen', options), loss=loss))
    batch = next(iter(run.views().batches(0, 1)))
    run.network.eval()
    *predictions, _ = run.network(run.normalise(batch), auxiliary=True)
    assert len(predictions) == 3
    labels = batch['labels'].long()
    # Every γ of both modalities begins at 1, in one block of each stage.
    theirs = 0.01 * 2 * (64 + 128 + 256 + 512)
    for logits in predictions if auxiliary else predictions[:1]:
        logits = torch.nn.functional.interpolate(logits, (48, 64), mode='bilinear')
        theirs += float(
            torch.nn.functional.cross_entropy(
                logits, labels, run.class_weights, ignore_index=255
            ).detach()
        )
    assert float(run.loss(batch).detach()) == pytest.approx(theirs, rel=1e-5)


def scaled(config):
    """Return what a GPU would run 16-mixed with, on the CPU."""
    scaler = torch.amp.GradScaler('cpu', init_scale=512.0, growth_interval=2)
    precision = MixedPrecision('16-mixed', 'cpu', scaler)
    return Fabric(accelerator='cpu', devices=1, plugins=[precision])


def test_a_run_goes_on_in_half_precision_and_back(run_config, monkeypatch):
    plain = trainer.make_fabric
    for make_fabric, scale in ((plain, None), (scaled, 512.0), (plain, None)):
        monkeypatch.setattr(trainer, 'make_fabric', make_fabric)
        run = Trainer(run_config())
        first = run.state['step']
        assert run.fabric.strategy.precision.state_dict().get('scale') == scale
        for batch in run.views().batches(first, 1):
            run.step(batch)
        assert run.state['step'] == first + 1
        run.save()
    assert first == 2


def test_the_scale_of_half_precision_losses_is_continued(run_config, monkeypatch):
    monkeypatch.setattr(trainer, 'make_fabric', scaled)
    run = Trainer(run_config())
    for batch in run.views().batches(0, 3):
        run.step(batch)
    run.save()
    state = run.fabric.strategy.precision.state_dict()
    assert state['scale'] != 512.0
    assert Trainer(run_config()).fabric.strategy.precision.state_dict() == state


def test_a_state_that_cannot_be_read_is_named(run_config):
    config = run_config(epochs=1)
    trainer.train(config)
    path = trainer.Path(config.output) / 'resume.ckpt'
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b'', b'nonsense'):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r'resume\.ckpt cannot be continued from'):
            Trainer(config)
        assert path.read_bytes() == content


def test_the_best_score_is_known_to_a_longer_run(run_config, monkeypatch):
    scores = itertools.count(90, -10)

    def worse(*args, **kwargs):
        miou = next(scores) / 100
        return {'mIoU': miou, 'pixel_accuracy': miou, 'mean_accuracy': miou}

    monkeypatch.setattr(trainer, 'evaluate_network', worse)
    trainer.train(run_config(epochs=1))
    trainer.train(run_config(epochs=2, evaluate_every=1))
    path = trainer.Path(run_config().output) / 'best.safetensors'
    assert load_checkpoint(path).info['step'] == 3


def test_a_run_that_was_killed_knows_the_score_of_its_last_state(run_config, monkeypatch):
    scores, real = itertools.count(90, -10), Trainer.loss
    monkeypatch.setattr(trainer, 'evaluate_network', lambda *_: {'mIoU': next(scores) / 100})
    monkeypatch.setattr(trainer.Monitor, 'scores', lambda *_: None)

    def dies(self, batch):
        if self.state['step'] == 4:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(Trainer, 'loss', dies)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(run_config(evaluate_every=1))
    monkeypatch.setattr(Trainer, 'loss', real)
    trainer.train(run_config(evaluate_every=1))
    path = trainer.Path(run_config().output) / 'best.safetensors'
    assert load_checkpoint(path).info['step'] == 3


def test_the_best_network_is_that_of_real_frames(run_config, monkeypatch):
    config = run_config()
    config.data.synthetic_test_frames, config.data.stereo_test = 1, True
    run = Trainer(config)
    monkeypatch.setattr(
        trainer,
        'evaluate_network',
        lambda network, normalise, frames, *_: {
            'mIoU': 0.2 if frames is run.frames['test'] else 0.9
        },
    )
    run.evaluate('scores.json', SILENT)
    written = json.loads((run.folder / 'scores.json').read_text())
    others = {name: {'mIoU': 0.9} for name in ('synthetic_test', 'stereo_test')}
    assert written == {'step': 0, 'test': {'mIoU': 0.2}, **others}
    assert run.state['best'] == 0.2


def test_a_checkpoint_tells_of_training_and_its_frames_alone(run_config):
    run = Trainer(run_config())
    train, test = run.frames['train'], run.frames['test']
    run.frames['test'] = dataclasses.replace(test, depth_range_m=(0.1, 99.0))
    run.state['seconds'] = 90.0
    info = run.info()
    assert (info['minutes'], info['width'], info['height']) == (1.5, 64, 48)
    assert info['data'] == [{'name': 'nyudv2-train', 'frames': 6, 'terms': train.terms}]
    assert info['depth_range_m'] == pytest.approx([1.6, 3.5], abs=0.05)  # the box and the wall


@pytest.mark.parametrize(
    ('options', 'learnt'),
    [
        ({}, []),
        ({'drop_rgb': 0.1}, ['rgb']),
        ({'drop_hha': 0.1}, ['depth']),
        ({'drop_rgb': 0.1, 'drop_hha': 0.1}, ['rgb', 'depth']),
    ],
)
def test_a_checkpoint_tells_what_the_network_learnt_to_do_without(run_config, options, learnt):
    config = run_config()
    config.augment = AugmentConfig(**options)
    assert Trainer(config).info()['copes_without'] == learnt


def test_a_network_of_one_sensor_learns_to_do_without_none(run_config):
    config = run_config()
    config.network.name = 'erfnet_encoder'
    config.network.options = {}
    config.augment = AugmentConfig(drop_rgb=0.1, drop_hha=0.1)
    assert Trainer(config).info()['copes_without'] == []


def test_a_full_disk_leaves_scores_whole(run_config, monkeypatch):
    run = Trainer(run_config())
    run.evaluate('scores.json', SILENT)
    before = (run.folder / 'scores.json').read_bytes()
    real = trainer.Path.write_text

    def full(path, text, **options):
        real(path, text[:10], **options)
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(trainer.Path, 'write_text', full)
    with pytest.raises(TrainingError, match='No space left'):
        run.evaluate('scores.json', SILENT)
    assert (run.folder / 'scores.json').read_bytes() == before


def test_the_log_of_a_killed_run_has_no_step_twice(run_config, monkeypatch):
    monkeypatch.setattr(loop, 'LOG_EVERY', 1)
    config = run_config()
    real = Trainer.loss

    def dies(self, batch):
        if self.state['step'] == 5:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(Trainer, 'loss', dies)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(config)
    with (trainer.Path(config.output) / 'log.jsonl').open('a') as log:
        log.write('{"step": 6, "lo')
    monkeypatch.setattr(Trainer, 'loss', real)
    trainer.train(config)
    assert [entry['step'] for entry in log_of(config)] == [1, 2, 3, 4, 5, 6]


def test_the_log_holds_all_that_a_state_covers(run_config, monkeypatch):
    """Whenever a run is killed behind a save; nothing of it is closed or flushed then."""
    monkeypatch.setattr(loop, 'LOG_EVERY', 1)
    config, told, real = run_config(), [], Trainer.save

    def save(self):
        real(self)
        told.append([entry['step'] for entry in log_of(config)])

    monkeypatch.setattr(Trainer, 'save', save)
    trainer.train(config)
    assert told[:2] == [[1, 2, 3], [1, 2, 3, 4, 5, 6]]


def test_damaged_lines_of_the_log_are_left_out(run_config, monkeypatch):
    monkeypatch.setattr(loop, 'LOG_EVERY', 1)
    config = run_config(epochs=1)
    trainer.train(config)
    with (trainer.Path(config.output) / 'log.jsonl').open('ab') as log:
        log.write(b'{"step": 3, "lo\xff\xfe\n7\n{}\n{"step": null}\n')
    trainer.train(run_config(epochs=2))
    assert [entry['step'] for entry in log_of(config)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ('section', 'settings', 'words'),
    [
        (TrainConfig, {'epochs': 0}, 'epochs >= 1'),
        (TrainConfig, {'batch_size': 0}, 'batch_size >= 1'),
        (TrainConfig, {'save_minutes': -1}, 'save_minutes >= 0'),
        (DataConfig, {'synthetic_share': 1.0}, 'synthetic_share < 1'),
        (
            DataConfig,
            {'resident': 'sometimes'},
            "auto, always, never, but resident is 'sometimes'$",
        ),
        (
            OptimiserConfig,
            {'name': 'adadelta'},
            "one of adamw, adam, sgd, but name is 'adadelta'$",
        ),
        (OptimiserConfig, {'schedule': 'cosine'}, 'schedule one of poly, step, constant, but'),
        (OptimiserConfig, {'lr': 0.0}, 'lr > 0'),
        (OptimiserConfig, {'lr': math.nan}, 'lr > 0'),
        (OptimiserConfig, {'warmup': 1.0}, 'warmup < 1'),
        (OptimiserConfig, {'power': -1.0}, 'power >= 0'),
        (OptimiserConfig, {'lr': 1e-4, 'end_lr': 1e-3}, 'end_lr <= lr, but .*end_lr is 0.001'),
        (OptimiserConfig, {'weight_decay': -1.0}, 'weight_decay >= 0'),
        (OptimiserConfig, {'momentum': 3.0}, 'momentum < 1'),
        (OptimiserConfig, {'milestones': [2.0, -1.0]}, 'milestones that rise'),
        (OptimiserConfig, {'milestones': [0.8, 0.5]}, 'milestones that rise'),
        (OptimiserConfig, {'gamma': [0.5, -0.1]}, r'gamma > 0, but gamma is \[0\.5, -0\.1\]'),
        (GroupConfig, {'lr_scale': -3.0}, 'lr_scale >= 0'),
        (GroupConfig, {'weight_decay': -3.0}, 'weight_decay >= 0'),
        (GroupConfig, {'gamma': 0.0}, 'gamma > 0'),
        (LossConfig, {'auxiliary': -3.0}, 'auxiliary >= 0'),
        (TrainConfig, {'seed': -1}, 'seed <'),
        (
            TrainConfig,
            {'precision': 'fp16'},
            "have a precision of bf16-mixed, 16-mixed or 32-true, but precision is 'fp16'$",
        ),
        (TrainConfig, {'precision': '64-true'}, 'a precision of'),
        (
            AugmentConfig,
            {'hue': -1.0},
            '^the augment settings must have hue >= 0, but hue is -1.0$',
        ),
        (
            DataConfig,
            {'workers': -1},
            '^the data settings must have workers >= 0, but workers is -1$',
        ),
        (
            DataConfig,
            {'statistics': {'dept': [0, 1]}},
            'statistics of rgb, hha, depth, but .*dept',
        ),
        (DataConfig, {'statistics': {'rgb': [0, 0]}}, 'a mean and a positive deviation'),
        (DataConfig, {'statistics': {'rgb': [[0, 1], 1]}}, 'of one number or three'),
        (DataConfig, {'statistics': {'rgb': 'imagenet'}}, 'of one number or three'),
        (LossConfig, {'class_weight': 1.0}, 'class_weight 0 or above 1'),
        (LossConfig, {'auxiliary': math.inf}, 'a finite auxiliary, but auxiliary is inf$'),
        (AugmentConfig, {'hue': math.inf}, 'must have a finite hue, but hue is inf$'),
        (AugmentConfig, {'hha_shift': math.inf}, 'a finite hha_shift, but'),
        (AugmentConfig, {'noise': math.inf}, 'a finite noise, but'),
        (AugmentConfig, {'aspect': math.inf}, 'a finite aspect, but'),
        (AugmentConfig, {'max_zoom': math.inf}, 'a finite max_zoom, but'),
        (OptimiserConfig, {'power': math.inf}, 'a finite power, but'),
        (OptimiserConfig, {'gamma': [0.1, math.inf]}, r'a finite gamma, but gamma is \[0\.1, inf'),
        (OptimiserConfig, {'clip_norm': math.nan}, 'clip_norm >= 0'),
        (GroupConfig, {'lr_scale': math.inf}, 'a finite lr_scale, but'),
        (TrainConfig, {'max_minutes': math.nan}, 'max_minutes >= 0'),
        (TrainConfig, {'output': ''}, "must have an output folder, but output is ''$"),
    ],
)
def test_settings_without_a_meaning_are_refused(section, settings, words):
    with pytest.raises(InputError, match=words):
        section(**settings)


def test_a_limit_may_be_infinite():
    assert TrainConfig(max_minutes=math.inf, save_minutes=math.inf).max_minutes == math.inf
    assert OptimiserConfig(clip_norm=math.inf).clip_norm == math.inf


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'accelerator': 'abacus'}, 'abacus'),
        ({'accelerator': 'tpu'}, 'accelerator tpu .* cannot be used'),
        ({'precision': '16-mixed'}, '16-mixed needs a GPU'),
    ],
)
def test_devices_and_precisions_that_are_not_there_are_named(run_config, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        Trainer(run_config(**changes))
    assert '\n' not in str(caught.value)


def test_a_batch_that_processes_cannot_share_is_refused(run_config, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '3')
    with pytest.raises(InputError, match=r'a batch of 4 views.*3 processes'):
        Trainer(run_config(batch_size=4))


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'loss': LossConfig(stride=49)}, r'loss\.stride 49 leaves nothing of views of 64x48'),
        (
            {'network': NetworkConfig('multimodal', {**BRANCHES, 'freeze_norms': True})},
            'init_backbone or network.init_from',
        ),
        (
            {'network': NetworkConfig('ssma_adapnetpp', {'freeze_experts': True})},
            'network.init_rgb and network.init_hha, or leave freeze_experts out',
        ),
        (
            {
                'network': NetworkConfig('multimodal', BRANCHES),
                'loss': LossConfig(auxiliary=0),
            },
            r'nothing trains the convolutions of multimodal.* loss\.auxiliary 1, or .*detach_bra',
        ),
        (
            {'network': NetworkConfig('adapnetpp', {'width': 0.125}), 'batch_size': 1},
            'adapnetpp has norms .* batch_size 2 or more',
        ),
    ],
)
def test_runs_that_cannot_train_are_refused_before_they_do(run_config, changes, words):
    with pytest.raises(InputError, match=words):
        trainer.train(run_config(**changes))
    assert not (trainer.Path(run_config().output) / 'last.safetensors').exists()


def test_an_ensemble_that_is_not_detached_trains_its_branches(run_config):
    network = NetworkConfig('multimodal', {**BRANCHES, 'detach_branches': False})
    run = Trainer(run_config(network=network, loss=LossConfig(auxiliary=0)))
    run.step(next(iter(run.views().batches(0, 1))))
    assert run.state['step'] == 1


def frozen_run(run_config, tmp_path, name: str) -> Trainer:
    """Make a run of a network whose statistics are to stay those that it starts from."""
    torch.manual_seed(5)
    if name == 'cen':
        backbone = ResNet(BranchLayers(1), 'resnet14').state_dict()
        torch.save(backbone, tmp_path / 'resnet14.pth')
        options = {**BRANCHES, 'freeze_norms': True}
        network = NetworkConfig(name, options, init_backbone=str(tmp_path / 'resnet14.pth'))
    else:
        options = {'width': 0.125}
        whole = run_config('whole', epochs=1, network=NetworkConfig(name, options))
        Trainer(whole).save()
        network = NetworkConfig(name, {**options, 'freeze_experts': True}, init_from=whole.output)
    return Trainer(run_config('frozen', network=network))


@pytest.mark.parametrize(
    ('name', 'frozen'), [('cen', 'encoder.'), ('ssma_adapnetpp', ('rgb_encoder.', 'hha_encoder.'))]
)
def test_frozen_statistics_stay_what_they_were(run_config, tmp_path, name, frozen):
    run = frozen_run(run_config, tmp_path, name)
    network = run.network.module
    kept = [key for key, _ in network.named_buffers() if key.startswith(frozen)]
    before = {key: value.clone() for key, value in network.named_buffers()}
    assert any('running_mean' in key for key in kept)
    batches = iter(run.views().batches(0, 4))
    run.step(next(batches))
    run.evaluate('scores-0001.json', SILENT)
    run.step(next(batches))
    run.save()
    again = Trainer(run.config)
    assert again.state['step'] == 2
    again.step(next(batches))
    for network in (run.network.module, again.network.module):
        buffers = dict(network.named_buffers())
        assert all(torch.equal(buffers[key], before[key]) for key in kept)
        trained = {key for key in before if not torch.equal(buffers[key], before[key])}
        assert bool(trained) == (name == 'ssma_adapnetpp')  # CEN has no norms but the encoder's
        drops = {k: x for k, x in network.named_modules() if isinstance(x, torch.nn.Dropout)}
        assert drops
        assert all(
            x.training != (name != 'cen' and k.startswith(frozen)) for k, x in drops.items()
        )


@pytest.mark.parametrize('below', ['', 'deeper'])
def test_an_output_that_is_a_file_is_refused_before_anything_is_prepared(
    run_config, tmp_path, monkeypatch, below
):
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr(trainer, 'prepare_frames', None)
    with pytest.raises(InputError, match=r'file(/deeper)? cannot be a folder, for .*/file is'):
        trainer.train(run_config(f'file/{below}'))


@pytest.mark.parametrize(
    ('pattern', 'words'),
    [('encodr', "the pattern 'encodr' .* matches none"), ('(', 'no regular expression')],
)
def test_groups_that_cannot_be_are_refused_before_anything_is_prepared(
    run_config, tmp_path, pattern, words
):
    config = run_config(optimiser=OptimiserConfig(groups=[GroupConfig(pattern)]))
    config.data.cache = str(tmp_path / 'absent')
    with pytest.raises(InputError, match=words):
        trainer.train(config)
    assert not (tmp_path / 'absent').exists()
    assert not list(tmp_path.glob('run/*.*'))


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_an_output_that_may_not_be_written_to_is_refused(run_config, tmp_path):
    (tmp_path / 'closed').mkdir(mode=0o500)
    with pytest.raises(InputError, match='closed may not be written to'):
        trainer.train(run_config('closed/run'))


def test_a_fusion_network_starts_from_unimodal_ones(run_config):
    for modality in ('rgb', 'hha'):
        network = NetworkConfig('erfnet_encoder', {'modality': modality})
        trainer.train(run_config(modality, epochs=1, network=network))
    folder = trainer.Path(run_config().output).parent
    network = NetworkConfig(
        init_rgb=str(folder / 'rgb' / 'last.safetensors'),
        init_hha=str(folder / 'hha' / 'last.safetensors'),
    )
    fused = Trainer(run_config('fused', network=network)).network.module
    for modality, encoder in (('rgb', fused.rgb_encoder), ('hha', fused.hha_encoder)):
        weights = load_checkpoint(folder / modality / 'last.safetensors').weights
        theirs = weights['encoder.initial_block.conv.weight']
        torch.testing.assert_close(encoder.initial_block.conv.weight, theirs)
    started = Trainer(run_config('again', network=network)).info()['started_from']
    assert [origin['file'] for origin in started] == [network.init_rgb, network.init_hha]
    assert [origin['steps'] for origin in started] == [3, 3]
    # A run that goes on needs them no more, and still tells of them.
    Trainer(run_config('fused', network=network)).save()
    for path in (network.init_rgb, network.init_hha):
        os.rename(path, f'{path}.gone')
    assert Trainer(run_config('fused', network=network)).info()['started_from'] == started
    for path in (network.init_rgb, network.init_hha):
        os.rename(f'{path}.gone', path)
    absent = NetworkConfig(init_rgb=str(folder / 'absent.safetensors'))
    with pytest.raises(InputError, match=r'absent\.safetensors'):
        Trainer(run_config('absent', network=absent))
    swapped = NetworkConfig(init_rgb=network.init_hha)
    with pytest.raises(InputError, match='trained on hha but is given as init_rgb'):
        Trainer(run_config('swapped', network=swapped))


@pytest.mark.parametrize(
    ('network', 'words'),
    [
        (NetworkConfig('rfbnet_of_tomorrow'), 'choose one of'),
        (NetworkConfig('rfbnet_erfnet', {'gate': True}), "no option 'gate'; it has .*gates"),
        (NetworkConfig('rfbnet_erfnet', {'combination': 'product'}), 'combination'),
        (NetworkConfig('rfbnet_erfnet', {'dropout': 0.5}), 'dropout .* of type tuple.* 0.5'),
        (NetworkConfig('cen', {'treshold': 1}), "cen has no option 'treshold'; it has .*backbone"),
        (
            NetworkConfig('cen', {'threshold': '2e-2'}),
            "float, got '2e-2'; write it without quotes",
        ),
        (
            NetworkConfig('cen', {'sparsity': '2e-4'}),
            "float or None, got '2e-4'; write it without",
        ),
        (NetworkConfig('cen', {'sparsity': 'a'}), "sparsity of cen .* float or None, got 'a'$"),
        (NetworkConfig('cen', {'detach_branches': 'no'}), "of type bool, got 'no'; write it with"),
        (NetworkConfig('cen', {'threshold': None}), 'threshold .* of type float, got None$'),
        (NetworkConfig('cen', {'backbone': 50}), 'option backbone of cen .* str, got 50$'),
        (NetworkConfig('cen', {'head_options': {'width': 0.5}}), 'width of the head refinenet'),
        (NetworkConfig('stage_fusion', {'share_convs': True}), "'share_convs'.*encoders"),
    ],
)
def test_networks_that_cannot_be_built_are_named(run_config, network, words):
    with pytest.raises(InputError, match=words):
        Trainer(run_config(network=network))


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_branches_start_from_a_resnet_of_others(run_config, tmp_path, suffix):
    torch.manual_seed(5)
    backbone = ResNet(BranchLayers(1), 'resnet14').state_dict()  # torchvision's names
    path, other = tmp_path / f'resnet14{suffix}', tmp_path / f'resnet26{suffix}'
    for file, variant in ((path, 'resnet14'), (other, 'resnet26')):
        content = backbone if file == path else ResNet(BranchLayers(1), variant).state_dict()
        content = content | {'fc.weight': torch.zeros(9, 2048), 'fc.bias': torch.zeros(9)}
        save_file(content, file) if suffix == '.safetensors' else torch.save(content, file)
    options = {'backbone': 'resnet14', 'head_options': {'width': 8}}
    config = NetworkConfig('asymfusion', options, init_backbone=str(path))
    run = Trainer(run_config('started', network=config))
    encoder = run.network.module.encoder
    for branch in (0, 1):
        ours = encoder.layer3[0].downsample[1][branch]
        torch.testing.assert_close(ours.weight, backbone['layer3.0.downsample.1.weight'])
    torch.testing.assert_close(encoder.layer4[0].conv2.weight, backbone['layer4.0.conv2.weight'])
    assert run.info()['started_from'] == [{'file': str(path), 'command': '', 'steps': 0}]
    # torchvision's transform divides by 255 before it takes 0.485 off and divides by 0.229.
    colour, frames = run.info()['statistics']['rgb'], channel_statistics(run.frames['train'])
    assert colour[0] == pytest.approx([255 * x for x in (0.485, 0.456, 0.406)])
    assert colour[1] == pytest.approx([255 * x for x in (0.229, 0.224, 0.225)])
    assert run.info()['statistics']['hha'] == frames['hha']

    for given, words in (
        (NetworkConfig('cen', options, init_backbone=str(other)), 'resnet26.* has layer1'),
        (NetworkConfig('cen', options, init_backbone=str(tmp_path / 'no.pth')), 'not exist'),
        (NetworkConfig(init_backbone=str(path)), 'rfbnet_erfnet .* has no ResNet or Xception'),
        (
            NetworkConfig(
                'multimodal', {'backbone': 'xception23_quarter', 'head': 'deeplabv3plus'},
                init_backbone=str(path),
            ),
            'lacks entry_flow/conv1_1/weights; give a TensorFlow checkpoint',
        ),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            Trainer(run_config('refused', network=given))


def test_a_checkpoint_of_another_network_is_refused(run_config, tmp_path):
    trainer.train(run_config(epochs=1))
    path = str(tmp_path / 'run' / 'last.safetensors')
    unimodal = NetworkConfig('erfnet_encoder', init_from=path)
    with pytest.raises(InputError, match='holds rfbnet_erfnet, but the run trains erfnet_encoder'):
        Trainer(run_config('other', network=unimodal))
    gateless = NetworkConfig(options={'gates': False}, init_from=path)
    with pytest.raises(InputError, match='do not fit the options'):
        Trainer(run_config('other', network=gateless))


def test_scores_of_the_report_are_those_of_the_checkpoint(run_config):
    config = run_config(epochs=1)
    trainer.train(config)
    run = Trainer(config)
    network = load_checkpoint(run.folder / 'last.safetensors').build()
    again = trainer.evaluate_network(
        network, run.normalise, run.frames['test'], (64, 48), run.fabric
    )
    scores = json.loads((run.folder / 'scores.json').read_text())['test']
    assert scores['mIoU'] == pytest.approx(again['mIoU'], abs=2e-5)  # rounded to five digits


def test_a_step_is_no_longer_than_the_clipped_gradient(run_config):
    plain = {
        'name': 'sgd', 'lr': 1.0, 'momentum': 0, 'weight_decay': 0, 'warmup': 0,
        'schedule': 'constant',
    }  # fmt: skip
    lengths = []
    for clip in (0.0, 1e-3):
        run = Trainer(
            run_config(f'clip{clip}', optimiser=OptimiserConfig(**plain, clip_norm=clip))
        )
        before = [p.detach().clone() for p in run.network.parameters()]
        run.step(next(iter(run.views().batches(0, 1))))
        moved = [a.detach() - b for a, b in zip(run.network.parameters(), before, strict=True)]
        lengths.append(float(torch.linalg.vector_norm(torch.cat([m.flatten() for m in moved]))))
    assert lengths[0] > 0.1
    assert lengths[1] == pytest.approx(1e-3, rel=1e-2)
