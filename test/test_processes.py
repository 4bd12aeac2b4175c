from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rgbd_fusion_seg import processes
from rgbd_fusion_seg.processes import Processes

ROOT = Path(__file__).resolve().parent.parent
WAIT_S = 20.0

CHILD = """
import os, signal, sys, time
if 'deaf' in sys.argv:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
print('alive', os.getpid(), flush=True)
if 'brief' in sys.argv:
    sys.exit(3)
time.sleep(600)
"""

PARENT = """
import os, sys, time
from pathlib import Path
from rgbd_fusion_seg.processes import Processes
with Processes(Path(sys.argv[1]), os.environ) as processes:
    processes.start('child', 'a_child')
    while 'alive' not in processes.log_tail('child'):
        time.sleep(0.01)
    print('ready', flush=True)
    time.sleep(600)
"""


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    (tmp_path / 'a_child.py').write_text(CHILD)
    (tmp_path / 'a_parent.py').write_text(PARENT)
    return dict(os.environ, PYTHONPATH=f'{tmp_path}{os.pathsep}{ROOT}')


def wait_for(condition, what: str):
    deadline = time.monotonic() + WAIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f'waited in vain for {what}'
        time.sleep(0.01)
    return value


def child_pid(log: Path) -> int:
    return int(wait_for(lambda: log.is_file() and log.read_text().split(), 'the child')[1])


def is_running(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except FileNotFoundError:
        return False


def test_all_end_with_the_block(tmp_path, environment):
    with Processes(tmp_path, environment) as running:
        running.start('one', 'a_child')
        running.start('two', 'a_child')
        pids = [child_pid(tmp_path / f'{name}.log') for name in ('one', 'two')]
        assert running.ended() == []
        assert running.exit_code('one') is None
    assert not any(is_running(pid) for pid in pids)


def test_an_error_ends_them_too(tmp_path, environment):
    def fail() -> None:
        with Processes(tmp_path, environment) as running:
            running.start('one', 'a_child')
            child_pid(tmp_path / 'one.log')
            raise RuntimeError('something')

    with pytest.raises(RuntimeError, match='something'):
        fail()
    assert not is_running(child_pid(tmp_path / 'one.log'))


def test_the_deaf_are_killed(tmp_path, environment, monkeypatch):
    patience = {signal.SIGINT: 0.1, signal.SIGTERM: 0.1, signal.SIGKILL: WAIT_S}
    monkeypatch.setattr(processes, '_PATIENCE_S', patience)
    with Processes(tmp_path, environment) as running:
        running.start('one', 'a_child', 'deaf')
        pid = child_pid(tmp_path / 'one.log')
    assert running.exit_code('one') == -signal.SIGKILL
    assert not is_running(pid)


def test_exit_code_and_log(tmp_path, environment):
    with Processes(tmp_path, environment) as running:
        running.start('one', 'a_child', 'brief')
        wait_for(running.ended, 'the end of the child')
        assert running.exit_code('one') == 3
        assert running.log_tail('one').startswith('alive ')
        assert running.log_tail('absent') == ''


@pytest.mark.skipif(sys.platform != 'linux', reason='the kernel of Linux does it')
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_none_outlives_its_parent(tmp_path, environment, number):
    parent = subprocess.Popen(
        [sys.executable, '-m', 'a_parent', str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert parent.stdout.readline() == 'ready\n'
        pid = child_pid(tmp_path / 'child.log')
        assert is_running(pid)
        parent.send_signal(number)
        code = parent.wait(WAIT_S)
        # A handled signal unwinds the stack, so that what is open gets closed.
        assert code == (128 + number if number in (signal.SIGTERM, signal.SIGHUP) else code)
        wait_for(lambda: not is_running(pid), 'the end of the child')
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
