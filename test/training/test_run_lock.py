"""Who trains into a folder."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip('torch')

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.file_lock import file_lock
from rgbd_fusion_seg.training.config import DataConfig, DatasetConfig, TrainConfig
from rgbd_fusion_seg.training.run_lock import lock_of, only_trainer
from rgbd_fusion_seg.training.trainer import train
from rgbd_fusion_seg.training.translation.config import TranslationConfig
from rgbd_fusion_seg.training.translation.trainer import train_translation


@pytest.mark.parametrize(
    ('start', 'config'), [(train, TrainConfig), (train_translation, TranslationConfig)]
)
def test_a_folder_that_another_process_trains_into_is_left_alone(tmp_path, start, config):
    folder = tmp_path / 'run'
    with file_lock(lock_of(folder)), pytest.raises(InputError, match='another process is train'):
        start(config(output=str(folder)))
    assert not folder.exists()


def test_a_folder_is_given_back(tmp_path):
    folder = tmp_path / 'runs' / 'one'
    for _ in range(2):
        with only_trainer(folder), file_lock(lock_of(folder)) as mine:
            assert not mine
    with only_trainer(folder), only_trainer(folder.with_name('other')):
        pass


def test_a_run_that_never_began_leaves_nothing(tmp_path):
    folder = tmp_path / 'run'
    with pytest.raises(InputError, match='is no NYUDv2'):
        train(
            TrainConfig(output=str(folder), data=DataConfig(DatasetConfig(folder=str(tmp_path))))
        )
    assert list(tmp_path.iterdir()) == []
    with only_trainer(folder):
        folder.mkdir()
    assert lock_of(folder).exists()


@pytest.mark.parametrize('wait', [False, True])
def test_a_lock_that_its_holder_removes_is_one_of_nobody(tmp_path, monkeypatch, wait):
    """Who opened it before, and locks it after, must not hold it beside who comes next."""
    path, flock = tmp_path / 'lock', fcntl.flock

    def flock_after_the_removal(file, operation):
        monkeypatch.setattr(fcntl, 'flock', flock)
        path.unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, 'flock', flock_after_the_removal)
    with file_lock(path, wait) as late, file_lock(path) as next_one:
        assert (late, next_one) == (True, False)


HOLDER = """
import os, sys, time
from pathlib import Path
from rgbd_fusion_seg.file_lock import file_lock

with file_lock(Path(sys.argv[1])) as mine:
    if not os.fork():
        print(mine, os.getpid(), flush=True)
    time.sleep(600)
"""


def test_a_process_that_its_holder_forked_does_not_keep_the_lock(tmp_path):
    path = tmp_path / 'lock'
    command = [sys.executable, '-c', HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        mine, child = holder.stdout.readline().split()
        try:
            with file_lock(path) as ours:
                assert (mine, ours) == ('True', False)
            holder.kill()
            holder.wait()
            os.kill(int(child), 0)  # is there still, as a loader process is for seconds
            with file_lock(path) as ours:
                assert ours
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_processes_of_one_run_do_not_lock_each_other_out(tmp_path, monkeypatch):
    with only_trainer(tmp_path / 'run'):
        monkeypatch.setenv('RANK', '1')
        with only_trainer(tmp_path / 'run'):
            pass


def test_a_disk_without_locks_is_told(tmp_path, monkeypatch):
    def flock(lock, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', flock)
    with pytest.raises(InputError, match=r'run\.lock cannot be locked \(No locks available\)'):
        only_trainer(tmp_path / 'run').__enter__()
