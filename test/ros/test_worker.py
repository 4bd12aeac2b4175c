from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rgbd_fusion_seg.ros.worker import LatestOnlyWorker


class Recorder:
    """Work that takes as long as the test wants."""

    def __init__(self):
        self.done, self.errors, self.replaced = [], [], 0
        self.go = threading.Event()
        self.started = threading.Event()
        self.worker = LatestOnlyWorker(
            self.work, on_error=self.errors.append, on_replaced=self.count
        )

    def work(self, job):
        self.started.set()
        self.go.wait(5)
        if isinstance(job, Exception):
            raise job
        self.done.append(job)

    def count(self):
        self.replaced += 1

    def wait_for(self, condition):
        deadline = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)


@pytest.fixture
def recorder():
    recorder = Recorder()
    yield recorder
    recorder.go.set()
    recorder.worker.stop()


def test_only_the_newest_waits(recorder):
    recorder.worker.submit(0)
    recorder.started.wait(5)
    for job in range(1, 100):
        recorder.worker.submit(job)
    recorder.go.set()
    recorder.wait_for(lambda: len(recorder.done) == 2)
    # Whatever else waited would be done before this one.
    recorder.worker.submit('last')
    recorder.wait_for(lambda: 'last' in recorder.done)
    assert recorder.done == [0, 99, 'last']
    assert recorder.replaced == 98


def test_an_error_does_not_end_the_thread(recorder):
    recorder.go.set()
    error = ValueError('bad frame')
    recorder.worker.submit(error)
    recorder.wait_for(lambda: recorder.errors)
    recorder.worker.submit('next')
    recorder.wait_for(lambda: recorder.done)
    assert recorder.errors == [error]
    assert recorder.done == ['next']


def test_cleared_jobs_are_not_done(recorder):
    recorder.worker.submit('under way')
    recorder.started.wait(5)
    assert not recorder.worker.clear()
    recorder.worker.submit('stale')
    assert recorder.worker.clear()
    assert not recorder.worker.clear()
    recorder.go.set()
    assert recorder.worker.stop()
    assert recorder.done == ['under way']


def test_stop_tells_of_work_that_hangs(recorder):
    recorder.worker.submit('hanging')
    recorder.started.wait(5)
    assert not recorder.worker.stop(timeout_s=0.05)
    recorder.go.set()
    assert recorder.worker.stop()


def test_work_that_hangs_does_not_keep_a_process_alive():
    code = """
import threading
from rgbd_fusion_seg.ros.worker import LatestOnlyWorker

started = threading.Event()

def hang(job):
    started.set()
    threading.Event().wait()

LatestOnlyWorker(hang, on_error=print, on_replaced=print).submit('job')
started.wait()
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, '-c', code], cwd=root, timeout=60, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b'')
