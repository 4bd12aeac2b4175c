"""Tests for rgbd_fusion_seg.jit."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core import caching, config

from rgbd_fusion_seg import jit as jit_module
from rgbd_fusion_seg.jit import jit

ROOT = Path(__file__).resolve().parent.parent


def half(x, y):
    return x / y


@pytest.mark.parametrize('decorate', [jit, jit(fastmath={'contract'})])
def test_kernels_compile_and_divide_as_numpy_does(decorate):
    kernel = decorate(half)
    assert kernel(3.0, 2.0) == 1.5
    assert kernel(1.0, 0.0) == float('inf')
    assert kernel.signatures
    assert kernel.targetoptions['nogil']


def test_without_a_folder_for_the_cache_kernels_are_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(caching.CacheImpl, '_locator_classes', [])
    jit_module._warn_of_missing_cache.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [jit(half)(3.0, 2.0), jit(half)(1.0, 2.0)] == [1.5, 0.5]
    (told,) = caplog.messages
    assert 'NUMBA_CACHE_DIR' in told


@pytest.mark.parametrize('suffix', ['.nbi', '.nbc'])
@pytest.mark.parametrize('keep', [0, 0.5])
def test_what_is_damaged_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    suffix: str,
    keep: float,
):
    """As after a loss of power."""
    monkeypatch.setattr(config, 'CACHE_DIR', str(tmp_path))
    assert jit(half)(3.0, 2.0) == 1.5
    (file,) = tmp_path.rglob(f'*{suffix}')
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    with caplog.at_level(logging.WARNING):
        kernel = jit(half)
        assert kernel(3.0, 2.0) == 1.5
    (told,) = caplog.messages
    assert 'damaged' in told
    assert kernel.stats.cache_misses
    healed = jit(half)
    assert healed(3.0, 2.0) == 1.5
    assert healed.stats.cache_hits


def test_a_full_disk_only_costs_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    monkeypatch.setattr(config, 'CACHE_DIR', str(tmp_path))

    def full(*_args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(caching.IndexDataCacheFile, '_save_data', full)
    jit_module._warn_of_missing_cache.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert jit(half)(3.0, 2.0) == 1.5
    (told,) = caplog.messages
    assert 'No space left on device' in told


def test_other_errors_of_numba_are_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def fail(*_args, **_options):
        raise RuntimeError('something else')

    monkeypatch.setattr(caching.CacheImpl, '__init__', fail)
    with pytest.raises(RuntimeError, match='something else'):
        jit(half)


def test_a_network_runs_where_nothing_can_be_written(tiny_bundle: Path):
    """As in a container that knows neither a home of its user nor a disk for him."""
    code = (
        'import sys\n'
        'from pathlib import Path\n'
        'from numba.core import caching\n'
        'def no_home(): raise RuntimeError("Could not determine home directory.")\n'
        'caching.CacheImpl._locator_classes, Path.home = [], no_home\n'
        'import numpy as np\n'
        'from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame\n'
        'from rgbd_fusion_seg.segmenter import Segmenter\n'
        'frame = RgbdFrame(np.full((48, 64, 3), 255, np.uint8), np.ones((48, 64), np.float32),\n'
        '                  Intrinsics(60, 60, 32, 24, 64, 48))\n'
        'print(Segmenter(sys.argv[1]).segment(frame).labels.shape)\n'
    )
    environment = {key: value for key, value in os.environ.items() if key != 'XDG_CACHE_HOME'}
    command = [sys.executable, '-c', code, str(tiny_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, '(48, 64)'), done.stderr
    assert done.stderr.count('NUMBA_CACHE_DIR') == 1


KERNELS = """
from rgbd_fusion_seg.jit import jit
from others import NEAR, twice

@jit
def kernel(x):
    return twice(x) + NEAR

print(kernel(1.0), sum(kernel.stats.cache_hits.values()))
"""


def test_what_other_files_give_a_kernel_is_compiled_anew(tmp_path: Path):
    (tmp_path / 'kernels.py').write_text(KERNELS)

    def run(near: float, factor: int) -> list[str]:
        others = 'from rgbd_fusion_seg.jit import jit\n\n@jit\ndef twice(x):\n'
        text = f'{others}    return {factor} * x\n\nNEAR = {near}\n'
        (tmp_path / 'others.py').write_text(text)
        folders = [str(ROOT), str(tmp_path)]
        env = os.environ | {
            'PYTHONPATH': os.pathsep.join(folders),
            'NUMBA_CACHE_DIR': str(tmp_path / 'cache'),
        }
        command = [sys.executable, str(tmp_path / 'kernels.py')]
        return subprocess.run(
            command, env=env, check=True, capture_output=True, text=True
        ).stdout.split()

    assert run(0.5, 2) == ['2.5', '0']
    assert run(0.5, 2) == ['2.5', '1']
    assert run(0.25, 2) == ['2.25', '0']
    assert run(0.25, 3) == ['3.25', '0']
