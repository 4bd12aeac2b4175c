from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('torch')

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'config' / 'training' / 'rfbnet_erfnet_nyu40.yaml'


def training(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-m', 'rgbd_fusion_seg.training', *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_prepare_fills_the_cache_once(nyu_pack, tmp_path):
    options = ['--data.nyudv2', nyu_pack, '--data.synthetic_frames', 0]
    options += ['--data.synthetic_test_frames', 0, '--data.cache', tmp_path / 'cache']
    first = training('prepare', *options, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert 'train: 6 frames' in first.stdout
    assert 'test: 2 frames' in first.stdout
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / 'cache').rglob('*.npy')}
    assert training('prepare', *options, cwd=tmp_path).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / 'cache').rglob('*.npy')} == made


def test_the_shipped_config_is_understood_and_unknown_keys_are_not(tmp_path):
    shown = training('train', '--config', CONFIG, '--print_config', cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert 'name: rfbnet_erfnet' in shown.stdout
    wrong = training('train', '--config', CONFIG, '--run.batchsize', 4, cwd=tmp_path)
    assert wrong.returncode == 2
    assert 'batchsize' in wrong.stderr


def test_data_that_is_not_there_is_one_sentence(tmp_path):
    result = training('train', '--run.data.nyudv2', tmp_path / 'nowhere', cwd=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ')
    assert 'nowhere' in last
    assert 'Traceback' not in result.stderr
