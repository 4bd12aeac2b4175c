from __future__ import annotations

import copy
import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.training import trainer  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import load_checkpoint, save_checkpoint  # noqa: E402
from rgbd_fusion_seg.training.config import (  # noqa: E402
    DataConfig,
    LossConfig,
    NetworkConfig,
    OptimiserConfig,
    TrainConfig,
)
from rgbd_fusion_seg.training.evaluation import evaluate_network  # noqa: E402
from rgbd_fusion_seg.training.networks import build_network  # noqa: E402


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


def run_config(nyu_pack, cache, output, **changes) -> TrainConfig:
    data = DataConfig(
        nyudv2=str(nyu_pack), synthetic_frames=0, synthetic_test_frames=0, cache=str(cache),
        width=64, height=48, workers=0,
    )  # fmt: skip
    options = {
        'output': str(output), 'batch_size': 2, 'epochs': 2, 'precision': '32-true',
        'accelerator': 'cpu', 'data': data, 'network': NetworkConfig(options={'dropout': (0, 0)}),
        'optimiser': OptimiserConfig(lr=3e-3, warmup=0.1, ema=0.9),
    }  # fmt: skip
    return TrainConfig(**{**options, **changes})


def test_the_schedule_warms_up_and_decays_polynomially():
    config = OptimiserConfig(lr=0.1, warmup=0.2, power=0.9)
    rates = [trainer.learning_rate(p, config) for p in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.05)
    assert rates[60] == pytest.approx(0.1 * 0.5**0.9)
    assert rates[100] == 0.0
    assert all(a >= b for a, b in itertools.pairwise(rates[20:]))


def test_weight_decay_spares_norms_and_biases():
    network = build_network('erfnet_encoder', 5)
    decayed, spared = trainer.parameter_groups(network, OptimiserConfig(weight_decay=0.5))
    assert decayed['weight_decay'] == 0.5
    assert spared['weight_decay'] == 0.0
    assert all(p.ndim == 4 for p in decayed['params'])
    total = len(decayed['params']) + len(spared['params'])
    assert total == len(list(network.parameters()))


def test_training_lowers_the_loss_and_writes_a_checkpoint(nyu_pack, cache, tmp_path):
    config = run_config(nyu_pack, cache, tmp_path / 'run', epochs=8)
    path = trainer.train(config)
    losses = [json.loads(x)['loss'] for x in (tmp_path / 'run' / 'log.jsonl').open()]
    assert losses[-1] < 0.9 * losses[0]
    checkpoint = load_checkpoint(path)
    assert checkpoint.info['network'] == 'rfbnet_erfnet'
    assert checkpoint.info['step'] == 24
    scores = json.loads((tmp_path / 'run' / 'scores.json').read_text())['test']
    assert scores['pixel_accuracy'] > 0.4


def test_a_run_that_was_killed_continues_identically(nyu_pack, cache, tmp_path, monkeypatch):
    options = {'epochs': 2, 'network': NetworkConfig(options={'dropout': (0.1, 0.3)})}
    whole = trainer.train(run_config(nyu_pack, cache, tmp_path / 'whole', **options))
    killed = run_config(nyu_pack, cache, tmp_path / 'killed', **options)
    calls = 0
    real_loss = trainer.training_loss

    def dies(*args):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return real_loss(*args)

    monkeypatch.setattr(trainer, 'training_loss', dies)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(killed)
    monkeypatch.setattr(trainer, 'training_loss', real_loss)
    resumed = trainer.train(killed)
    ours, theirs = load_checkpoint(resumed).weights, load_checkpoint(whole).weights
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, msg=name)


def test_auxiliary_losses_add_to_the_main_one(nyu_pack, cache, tmp_path):
    config = run_config(nyu_pack, cache, tmp_path)
    frames = trainer.prepare(config.data)
    torch.manual_seed(0)
    network = build_network('rfbnet_erfnet', 40, dropout=(0, 0)).eval()
    normalise = trainer.Normaliser(trainer.channel_statistics(frames['train']))
    batch = trainer.TrainingBatches(frames['train'], None, config, 0, 1)[0]
    values = {}
    for weight in (0.0, 0.5, 1.0):
        changed = copy.deepcopy(config)
        changed.loss = LossConfig(auxiliary=weight)
        values[weight] = float(
            trainer.training_loss(network, normalise, batch, None, changed).detach()
        )
    assert values[0.5] - values[0.0] == pytest.approx(values[1.0] - values[0.5], rel=1e-4)
    assert values[1.0] - values[0.0] > 1.0


def test_the_average_follows_the_weights():
    average = trainer.ema_average(0.5)
    value = torch.tensor(0.0)
    for count in range(20):
        value = average(value, torch.tensor(1.0), torch.tensor(count))
    assert float(value) == pytest.approx(1.0, abs=1e-4)
    late = trainer.ema_average(0.999)(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(10**6))
    assert float(late) == pytest.approx(0.001, rel=1e-3)


def test_evaluation_of_a_perfect_and_a_constant_network(nyu_pack, cache, tmp_path):
    frames = trainer.prepare(run_config(nyu_pack, cache, tmp_path).data)['test']
    normalise = trainer.Normaliser(trainer.channel_statistics(frames))

    class Constant(torch.nn.Module):
        stride = 8

        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(1, 40, 30, 40))

        def forward(self, inputs):
            return self.logits

    network = Constant()
    with torch.no_grad():
        network.logits[:, 1] = 1.0
    result = evaluate_network(network, normalise, frames, (320, 240))
    truth = np.asarray(frames.labels)
    counted = truth[truth != 255]
    assert result['pixel_accuracy'] == pytest.approx((counted == 1).mean(), abs=1e-4)
    present = len(np.unique(counted))
    assert result['mIoU'] == pytest.approx((counted == 1).mean() / present, abs=1e-4)


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    from rgbd_fusion_seg.errors import InputError

    (tmp_path / 'x.safetensors').write_bytes(b'nonsense')
    for name in ('x.safetensors', 'absent.safetensors'):
        with pytest.raises(InputError, match=name):
            load_checkpoint(tmp_path / name)


def test_checkpoints_rebuild_the_network(tmp_path):
    network = build_network('rfbnet_erfnet', 40, gates=False).eval()
    info = {'network': 'rfbnet_erfnet', 'options': {'gates': False}}
    save_checkpoint(tmp_path / 'c.safetensors', network, info)
    again = load_checkpoint(tmp_path / 'c.safetensors').network(40)
    x = {'rgb': torch.rand(1, 3, 32, 32), 'hha': torch.rand(1, 3, 16, 16)}
    with torch.no_grad():
        torch.testing.assert_close(network(x), again(x))
