from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')

from torch.nn import functional as F  # noqa: E402

from rgbd_fusion_seg.errors import InputError, TrainingError  # noqa: E402
from rgbd_fusion_seg.training import checkpoints, loop  # noqa: E402
from rgbd_fusion_seg.training.config import DatasetConfig, TrainConfig  # noqa: E402
from rgbd_fusion_seg.training.continuation import saved_run  # noqa: E402
from rgbd_fusion_seg.training.processes import make_fabric  # noqa: E402
from rgbd_fusion_seg.training.translation import trainer  # noqa: E402
from rgbd_fusion_seg.training.translation.checkpoint import load_translator  # noqa: E402
from rgbd_fusion_seg.training.translation.config import (  # noqa: E402
    GeneratorConfig,
    ImagesConfig,
    TranslationConfig,
)
from rgbd_fusion_seg.training.translation.trainer import TranslationTrainer  # noqa: E402


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture
def run_config(nyu_pack, cache, tmp_path):
    """Make the configuration of a run of 3 steps an epoch in tmp_path / name."""

    def make(name: str = 'run', **changes) -> TranslationConfig:
        generator = GeneratorConfig(width=8, depth=5, initial_scales='uniform', threshold=0.1)
        images = ImagesConfig(
            dataset=DatasetConfig(folder=str(nyu_pack)), cache=str(cache), side=32, load_side=36,
            workers=0,
        )  # fmt: skip
        options = {
            'output': str(tmp_path / name), 'batch_size': 2, 'epochs': 2, 'precision': '32-true',
            'accelerator': 'cpu', 'images': images, 'generator': generator, 'lr': 2e-3,
            'discriminator_width': 8, 'inputs': ['depth', 'texture'],
        }  # fmt: skip
        return TranslationConfig(**{**options, **changes})

    return make


SCENARIOS = {
    'fusion': {},
    'asymmetric': {'generator': GeneratorConfig(width=8, depth=5, fusion='both')},
    'align': {'generator': GeneratorConfig(width=8, depth=5, fusion='align')},
    'cycle': {'inputs': ['rgb', 'depth', 'texture'], 'targets': ['rgb', 'depth', 'texture']},
    'tasks': {
        'inputs': ['rgb'],
        'targets': ['depth', 'normal', 'labels'],
        'generator': GeneratorConfig(
            width=8, depth=5, fusion='none', exchange_decoders=True, decoders='per_target'
        ),
    },
    'both': {
        'inputs': ['rgb', 'depth'],
        'targets': ['normal', 'shade'],
        'generator': GeneratorConfig(
            width=8, depth=5, exchange_decoders=True, decoders='per_target'
        ),
    },
}


def log_of(config: TranslationConfig) -> list[dict]:
    text = (Path(config.output) / 'log.jsonl').read_text(encoding='utf-8')
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize('scenario', SCENARIOS)
def test_every_scenario_trains_and_leaves_what_a_user_needs(run_config, monkeypatch, scenario):
    monkeypatch.setattr(loop, 'LOG_EVERY', 3)
    config = run_config(epochs=2, evaluate_every=1, **SCENARIOS[scenario])
    trainer.train_translation(config)
    folder = Path(config.output)
    names = {path.name for path in folder.iterdir()}
    assert {'last.safetensors', 'resume.ckpt', 'run.json', 'scores.json'} <= names
    assert 'scores-0001.json' in names
    assert list((folder / 'tensorboard').iterdir())
    scores = json.loads((folder / 'scores.json').read_text())
    assert scores['step'] == 6
    assert list(scores['scores']) == config.targets
    for target, rows in scores['scores'].items():
        inputs = [name for name in config.inputs if name != target]
        assert list(rows) == [*inputs, *(['ensemble'] if len(inputs) > 1 else [])]
        assert all(r['MAE'] ** 2 < r['MSE'] < 2 * r['MAE'] < 4 for r in rows.values())
    translator, info = load_translator(folder)
    assert info['step'] == 6
    assert info['translator']['inputs'] == config.inputs
    assert info['data'][0]['images'] == 6
    assert [s.target for s in translator.streams[:1]] == config.targets[:1]
    assert {'discriminators', 'distance', 'adversarial', 'penalty'} <= set(log_of(config)[-1])


def test_a_translator_learns_images_by_heart(run_config):
    """Texture and depth tell the six images apart, so little is left of the distance."""
    config = run_config(
        epochs=60, adversarial=0.1, images=dataclasses.replace(
            run_config().images, load_side=32, flip=False),
    )  # fmt: skip
    made = TranslationTrainer(config)
    distances = [float(made.step(batch)['distance']) for batch in made.batches(0, 180)]
    assert np.mean(distances[-6:]) < 0.4 * np.mean(distances[:6])


@pytest.mark.parametrize('changes', [{}, {'targets': ['rgb', 'normal'], 'flows': 'one'}])
def test_a_run_that_was_stopped_goes_on_identically(run_config, monkeypatch, changes):
    whole, parts = (run_config(name, epochs=4, **changes) for name in ('whole', 'parts'))
    monkeypatch.setattr(loop, 'LOG_EVERY', 1)
    trainer.train_translation(whole)
    step = TranslationTrainer.step

    def stops(self, batch):
        losses = step(self, batch)
        if self.state['step'] == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(TranslationTrainer, 'step', stops)
        assert TranslationTrainer(parts).fit() is False
    assert load_translator(Path(parts.output))[1]['step'] == 5
    trainer.train_translation(parts)
    ours, theirs = (load_translator(Path(c.output))[0].state_dict() for c in (parts, whole))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0, msg=name)
    keys = ('step', 'discriminators', 'distance', 'adversarial')
    logs = [[{k: entry[k] for k in keys} for entry in log_of(c)] for c in (parts, whole)]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 12


def test_the_losses_are_those_of_the_public_code(run_config):
    """A step's losses against the formulas of the digest, from the networks themselves."""
    config = run_config(inputs=['rgb', 'depth'], targets=['normal', 'shade'], generator=(
        GeneratorConfig(width=8, depth=5, dropout=0, sparsity=0.01)))  # fmt: skip
    run = TranslationTrainer(config)
    batch = next(run.batches(0, 1))
    made = run.generator.train()(batch)
    judges = run.discriminators.module.judges
    wrong, right, near = 0.0, 0.0, 0.0
    with torch.no_grad():
        for stream, image in zip(run.translator.streams, made.streams, strict=True):
            given, real = batch[stream.input], batch[stream.target]
            judge = judges[stream.target]
            wrong += 0.5 * -torch.log(torch.sigmoid(judge(given, real))).mean()
            wrong += 0.5 * -torch.log(1 - torch.sigmoid(judge(given, image))).mean()
            near += (image - real).abs().mean()
        for target, image in made.ensembles.items():
            near += (image - batch[target]).abs().mean()
    before = {k: v.clone() for k, v in run.translator.state_dict().items()}
    losses = run.step(batch)
    torch.testing.assert_close(losses['discriminators'], wrong, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses['distance'], 100 * near, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses['penalty'], made.penalty, rtol=1e-4, atol=1e-5)
    # The discriminators have been trained when they judge for the generator.
    with torch.no_grad():
        for stream, image in zip(run.translator.streams, made.streams, strict=True):
            logits = judges[stream.target](batch[stream.input], image)
            right += F.softplus(-logits).mean()
    torch.testing.assert_close(losses['adversarial'], right, rtol=1e-3, atol=1e-4)
    after = run.translator.state_dict()
    moved = {k for k, v in before.items() if not torch.equal(after[k], v)}
    assert any('encoder.' in k for k in moved)
    assert any('alpha' in k for k in moved)


def test_the_discriminators_learn_from_their_own_loss_alone(run_config):
    run = TranslationTrainer(run_config())
    batch = next(run.batches(0, 1))
    made = run.generator.train()(batch)
    run.generator_losses(batch, made)['adversarial'].backward()
    judges = run.discriminators.module
    assert all(p.grad is None and p.requires_grad for p in judges.parameters())
    before = {k: v.clone() for k, v in run.translator.state_dict().items()}
    run._train_discriminators(batch, run.generator(batch))
    after = run.translator.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_without_an_adversary_distance_is_all(run_config, monkeypatch):
    monkeypatch.setattr(loop, 'LOG_EVERY', 1)
    config = run_config(adversarial=0.0)
    trainer.train_translation(config)
    assert {'discriminators', 'adversarial'}.isdisjoint(log_of(config)[0])


def test_the_rate_falls_to_nothing_in_the_last_part(run_config):
    run = TranslationTrainer(run_config(epochs=10, decay_from=0.5))
    rates = []
    for step in (0, 15, 18, 24, 30):
        run.state['step'] = step
        run._set_rates()
        rates.append(
            [group['lr'] for o in (run.optimiser, run.judging) for group in o.param_groups]
        )
    assert np.allclose(rates, [[2e-3] * 2, [2e-3] * 2, [1.6e-3] * 2, [0.8e-3] * 2, [0, 0]])


def test_a_run_starts_from_another_ones_weights(run_config):
    first = run_config('first', epochs=1)
    trainer.train_translation(first)
    second = TranslationTrainer(run_config('second', init_from=first.output))
    expected = load_translator(Path(first.output))[0].state_dict()
    for name, value in second.translator.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    swapped = run_config('swapped', init_from=first.output, inputs=['texture', 'depth'])
    with pytest.raises(InputError, match='has the inputs depth, texture, and the run'):
        TranslationTrainer(swapped)
    wider = GeneratorConfig(width=16, depth=5)
    with pytest.raises(InputError, match=r'weights of .* do not fit .* or leave init_from out'):
        TranslationTrainer(run_config('third', init_from=first.output, generator=wider))


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'inputs': ['rgb'], 'targets': ['depth']}, 'no target has two inputs'),
        ({'inputs': ['heat', 'rgb']}, "there is no image domain 'heat'; translations have rgb"),
        ({'batch_size': 2, 'precision': '16-mixed'}, 'precision 16-mixed needs a GPU'),
    ],
)
def test_what_cannot_be_trained_is_told_before_it_begins(run_config, changes, match):
    config = run_config(**changes)
    with pytest.raises(InputError, match=match) as caught:
        trainer.train_translation(config)
    assert '\n' not in str(caught.value)
    assert not Path(config.output).exists()


def test_a_folder_with_another_run_is_left_alone(run_config):
    config = run_config(epochs=1)
    trainer.train_translation(config)
    before = (Path(config.output) / 'last.safetensors').read_bytes()
    with pytest.raises(InputError, match=r'holds a run with another inputs, lr; choose another'):
        trainer.train_translation(run_config(epochs=1, lr=1e-4, inputs=['shade', 'texture']))
    (Path(config.output) / 'resume.ckpt').unlink()
    with pytest.raises(InputError, match=r'no resume\.ckpt .* with init_from .* to train on'):
        trainer.train_translation(config)
    assert (Path(config.output) / 'last.safetensors').read_bytes() == before


def test_other_images_than_before_are_refused(run_config, nyu_pack, tmp_path):
    config = run_config(epochs=1)
    trainer.train_translation(config)
    other = tmp_path / 'other'
    shutil.copytree(nyu_pack, other)
    for path in (other / 'rgb').iterdir():
        cv2.imwrite(str(path), 255 - cv2.imread(str(path)))
    images = dataclasses.replace(config.images, dataset=DatasetConfig(folder=str(other)))
    longer = dataclasses.replace(config, epochs=2, images=images)
    with pytest.raises(InputError, match='holds a run on frames of nyudv2-train with other'):
        trainer.train_translation(longer)
    moved = tmp_path / 'moved'
    shutil.copytree(nyu_pack, moved)
    images = dataclasses.replace(config.images, dataset=DatasetConfig(folder=str(moved)))
    trainer.train_translation(dataclasses.replace(config, epochs=2, images=images))
    assert load_translator(Path(config.output))[1]['step'] == 6


def test_a_run_of_the_other_kind_is_not_continued(run_config):
    config = run_config(epochs=1)
    trainer.train_translation(config)
    segmentation = TrainConfig(output=config.output, precision='32-true', accelerator='cpu')
    with pytest.raises(InputError, match='holds a run of another command; choose another'):
        saved_run(Path(config.output), segmentation, make_fabric(segmentation))


def test_a_run_ends_with_a_look_at_its_losses(run_config, monkeypatch):
    """Also one of fewer steps than there are between two looks."""
    with monkeypatch.context() as patch:
        patch.setattr(trainer, 'realness_loss', lambda logits, real: logits.sum() * np.nan)
        config = run_config(epochs=1)
        with pytest.raises(TrainingError, match='the discriminators is nan near step 3'):
            trainer.train_translation(config)
    assert not (Path(config.output) / 'last.safetensors').exists()
    config = run_config('other', epochs=1)
    trainer.train_translation(config)
    assert [entry['step'] for entry in log_of(config)] == [3]


def test_weights_of_losses_and_settings_of_adam_are_those_that_are_given(run_config):
    config = run_config(reconstruction=7.0, adversarial=3.0, beta1=0.4, discriminator_width=16)
    run = TranslationTrainer(config)
    batch = next(run.batches(0, 1))
    made = run.generator(batch)
    near = [F.l1_loss(x, batch['rgb']) for x in (*made.streams, made.ensembles['rgb'])]
    losses = run.generator_losses(batch, made)
    assert float(losses['distance']) == pytest.approx(7 * float(sum(near).detach()), rel=1e-4)
    losses = {name: x.detach() for name, x in losses.items()}
    judged = run.discriminators.module(batch, made.streams)
    taken = sum(float(F.softplus(-logits).mean().detach()) for logits in judged)
    assert float(losses['adversarial']) == pytest.approx(3 * taken, rel=1e-4)
    for optimiser in (run.optimiser, run.judging):
        assert optimiser.param_groups[0]['betas'] == (0.4, 0.999)
    assert run.discriminators.module.judges['rgb'].convs[0].out_channels == 16


def test_a_step_of_one_flow_moves_nothing_of_the_others(run_config):
    """Nor does what Adam remembers of earlier steps."""
    domains = ['rgb', 'depth', 'normal']
    generator = GeneratorConfig(width=8, depth=5, dropout=0, sparsity=0.01)
    run = TranslationTrainer(
        run_config(inputs=domains, targets=domains, flows='one', generator=generator)
    )
    batch = next(run.batches(0, 1))
    modules = {'': run.translator, 'judge': run.discriminators.module}

    def weights() -> dict[str, torch.Tensor]:
        return {
            f'{owner}{name}': value.clone()
            for owner, module in modules.items()
            for name, value in module.state_dict().items()
        }

    drawn = []
    for _ in range(12):
        target, before = run.drawn_target(), weights()
        run.step(batch)
        moved = {name for name, value in weights().items() if not torch.equal(value, before[name])}
        numbers = {str(i) for i, s in enumerate(run.translator.streams) if s.target == target}
        assert {n.split('.')[2] for n in moved if n.startswith('encoder_norms.2')} == numbers
        assert {n.split('.')[2] for n in moved if n.startswith('decoder_norms.2')} == numbers
        assert {n.split('.')[1] for n in moved if n.startswith('judge')} == {target}
        assert {n.split('.')[1] for n in moved if n.startswith('ensembles')} == {target}
        assert {n.split('.')[2] for n in moved if n.startswith('encoder.')} == {'0'}
        drawn.append(target)
    assert set(drawn) == set(domains)
    run.state['step'] = 0
    assert run.drawn_target() == drawn[0]


def test_streams_of_an_ensemble_count_by_their_factor(run_config):
    """A target with one stream has no ensemble in whose place it could stand."""
    config = run_config(inputs=['rgb', 'depth'], targets=['normal', 'depth'], stream_factor=0.25)
    run = TranslationTrainer(config)
    batch = next(run.batches(0, 1))
    made = run.generator(batch)
    losses = run.generator_losses(batch, made)
    ensemble = F.l1_loss(made.ensembles['normal'], batch['normal'])
    normals = [F.l1_loss(x, batch['normal']) for x in made.streams[:2]]
    depth = F.l1_loss(made.streams[2], batch['depth'])
    expected = 100 * float((ensemble + 0.25 * sum(normals) + depth).detach())
    assert float(losses['distance'].detach()) == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def between_tasks(run_config) -> list[str]:
    """Translators from depth to normals and back, as train-translation leaves them."""
    generator = GeneratorConfig(width=8, depth=4, fusion='none')
    folders = []
    for given, target in (('depth', 'normal'), ('normal', 'depth')):
        config = run_config(given, epochs=1, inputs=[given], targets=[target], generator=generator)
        trainer.train_translation(config)
        folders.append(config.output)
    return folders


def test_predictions_are_to_make_the_other_target(run_config, between_tasks):
    generator = GeneratorConfig(width=8, depth=5, fusion='none', dropout=0)
    config = run_config(
        inputs=['rgb'], targets=['depth', 'normal'], generator=generator, reconstruction=0.0,
        adversarial=0.0, consistency_from=between_tasks, consistency=7.0,
    )  # fmt: skip
    run = TranslationTrainer(config)
    batch = next(run.batches(0, 1))
    depth, normal = run.generator.train()(batch).streams
    to_normal, to_depth = (load_translator(Path(folder))[0] for folder in between_tasks)
    expected = (to_normal({'depth': depth}).streams[0] - batch['normal']).abs().mean()
    expected = expected + (to_depth({'normal': normal}).streams[0] - batch['depth']).abs().mean()
    before = {k: v.clone() for k, v in run.translator.state_dict().items()}
    losses = run.step(batch)
    torch.testing.assert_close(losses['consistency'], 7 * expected.detach(), rtol=1e-4, atol=1e-5)
    after = run.translator.state_dict()  # of no other loss
    assert any(not torch.equal(after[k], v) for k, v in before.items() if 'decoder.' in k)
    for ours, theirs in zip(run.consistency, (to_normal, to_depth), strict=True):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=0)
    run.save()
    assert load_translator(Path(config.output))[0].state_dict().keys() == before.keys()


def test_translators_that_are_not_between_targets_are_refused(run_config, between_tasks):
    generator = GeneratorConfig(width=8, depth=4, fusion='none')
    options = {'inputs': ['rgb'], 'generator': generator, 'consistency_from': between_tasks}
    words = r'translates depth to normal at 32 pixels; give .* of normal, shade that was trained'
    with pytest.raises(InputError, match=words):
        TranslationTrainer(run_config(targets=['normal', 'shade'], **options))
    images = dataclasses.replace(run_config().images, side=64, load_side=64)
    with pytest.raises(InputError, match=r'at 32 pixels; .* with images\.side 64$'):
        TranslationTrainer(run_config(targets=['depth', 'normal'], images=images, **options))
    with pytest.raises(InputError, match='flows all for consistency_from'):
        run_config(targets=['depth', 'normal'], flows='one', **options)


def test_time_is_kept(run_config, monkeypatch):
    monkeypatch.setattr(loop, 'LOG_EVERY', 1)
    run = TranslationTrainer(run_config(max_minutes=1.0))
    run.state['seconds'] = 30.0
    assert run.progress == pytest.approx(0.5)
    saves = []
    monkeypatch.setattr(TranslationTrainer, 'save', lambda self: saves.append(self.state['step']))
    TranslationTrainer(run_config('often', save_minutes=1e-9)).fit()
    assert saves == [1, 2, 3, 4, 5, 6, 6]
    saves.clear()
    TranslationTrainer(run_config('rarely', save_minutes=100)).fit()
    assert saves == [6]
    saves.clear()
    TranslationTrainer(run_config('by_epochs', save_every=1, save_minutes=0)).fit()
    assert saves == [3, 6, 6]


def test_half_precision_trains_too(run_config):
    config = run_config(precision='bf16-mixed', epochs=1)
    trainer.train_translation(config)
    scores = json.loads((Path(config.output) / 'scores.json').read_text())['scores']['rgb']
    assert 0 < scores['ensemble']['MAE'] < 1


def test_losses_that_are_not_finite_end_a_run(run_config, monkeypatch):
    monkeypatch.setattr(loop, 'LOG_EVERY', 1)
    monkeypatch.setattr(trainer, 'realness_loss', lambda logits, real: logits.sum() * np.nan)
    with pytest.raises(
        TrainingError, match=r'the discriminators is nan near step 1; .* lower lr in a new'
    ):
        trainer.train_translation(run_config())


def test_a_checkpoint_is_not_taken_for_one_of_the_other_kind(run_config, tmp_path):
    config = run_config(epochs=1)
    trainer.train_translation(config)
    with pytest.raises(
        InputError, match=r'of a translator; .* look inside with inspect-translation'
    ):
        checkpoints.load_checkpoint(Path(config.output) / 'last.safetensors')
    other = tmp_path / 'segmentation.safetensors'
    checkpoints.save_checkpoint(other, torch.nn.Linear(2, 2), {'network': 'erfnet'})
    with pytest.raises(InputError, match='is of a segmentation network, not of a translator'):
        load_translator(other)


@pytest.mark.parametrize('more', [[], ['--run.targets', '[rgb, normal]', '--run.flows', 'one']])
def test_two_processes_train_as_one_does(run_config, tmp_path, more):
    """Instance norms know single images, so nothing tells the runs apart but the order of sums."""
    script = tmp_path / 'train.py'
    script.write_text(
        'from jsonargparse import CLI\n'
        'from rgbd_fusion_seg.training import loop\n'
        'from rgbd_fusion_seg.training.translation import evaluation, trainer\n'
        'loop.LOG_EVERY = 1\n'
        'evaluation.BATCH = 1  # or one process would score both images\n'
        'CLI(trainer.train_translation, as_positional=False)\n'
    )
    config = run_config()
    losses, scores = [], []
    for processes in (1, 2):
        output = tmp_path / f'run{processes}'
        torchrun = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}']
        command = [
            sys.executable, *(torchrun if processes > 1 else []), str(script),
            '--run.output', str(output), '--run.batch_size', '2', '--run.epochs', '1',
            '--run.precision', '32-true', '--run.accelerator', 'cpu',
            '--run.inputs', '[depth, texture]', '--run.discriminator_width', '8',
            '--run.generator', '{width: 8, depth: 5, dropout: 0}',
            '--run.images.dataset.folder', config.images.dataset.folder,
            '--run.images.cache', config.images.cache,
            '--run.images.side', '32', '--run.images.load_side', '36', '--run.images.workers', '0',
            *more,
        ]  # fmt: skip
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-20000:]
        lines = (output / 'log.jsonl').read_text().splitlines()
        losses.append([[json.loads(x)[k] for k in ('distance', 'discriminators')] for x in lines])
        scores.append(json.loads((output / 'scores.json').read_text())['scores']['rgb'])
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-5)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-2)
    for name, row in scores[0].items():
        assert scores[1][name] == pytest.approx(row, rel=1e-2)
        assert {*row} == {'MAE', 'MSE'}
