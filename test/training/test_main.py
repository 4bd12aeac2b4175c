from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('torch')

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / 'config' / 'training').glob('*.yaml'))
CONFIG = ROOT / 'config' / 'training' / 'rfbnet_erfnet_nyu40.yaml'


def training(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-m', 'rgbd_fusion_seg.training', *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_a_first_training_goes_as_the_guide_says(nyu_pack, tmp_path):
    data = ['--data.dataset.folder', nyu_pack, '--data.cache', tmp_path / 'cache']
    data += ['--data.synthetic_test_frames', 0, '--data.synthetic_frames', 0]
    checked = training('prepare', '--check', 'true', *data, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    run = [str(x).replace('--data', '--run.data') for x in data]
    run += ['--run.epochs', 1, '--run.batch_size', 2, '--run.data.width', 64]
    run += ['--run.data.height', 48, '--run.output', 'mine', '--run.precision', '32-true']
    trained = training('train', '--config', CONFIG, *run, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    last = tmp_path / 'mine' / 'last.safetensors'
    scored = training('evaluate', '--model', last, '--output', 'scored', *data, cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert 'mean IoU' in scored.stdout
    bundle = tmp_path / 'bundle'
    exported = training('export', '--checkpoint', last, '--bundle', bundle, *data, cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    card = (bundle / 'model.yaml').read_text()
    assert 'python -m rgbd_fusion_seg.training train --config' in ' '.join(card.split())


@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_understood(config, tmp_path):
    command = 'study' if config.stem.startswith('study') else 'train'
    shown = training(command, '--config', config, '--print_config', cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert 'weight_decay' in shown.stdout


def test_unknown_keys_are_refused(tmp_path):
    wrong = training('train', '--config', CONFIG, '--run.batchsize', 4, cwd=tmp_path)
    assert wrong.returncode == 2
    assert 'batchsize' in wrong.stderr
    file = tmp_path / 'wrong.yaml'
    file.write_text('run:\n  optimiser:\n    learning_rate: 0.1\n')
    wrong = training('train', '--config', file, cwd=tmp_path)
    assert wrong.returncode == 2
    assert 'learning_rate' in wrong.stderr


def test_data_that_is_not_there_is_one_sentence(tmp_path):
    result = training('train', '--run.data.dataset.folder', tmp_path / 'nowhere', cwd=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ')
    assert 'nowhere' in last
    assert 'Traceback' not in result.stderr
