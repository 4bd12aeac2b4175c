"""Inference libraries must not report to their makers what a robot does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rgbd_fusion_seg.engine import available_backends

CODE = """
import sys
import numpy as np
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.segmenter import Segmenter
camera = Intrinsics(60, 60, 32, 24, 64, 48)
frame = RgbdFrame(np.zeros((48, 64, 3), np.uint8), np.ones((48, 64), np.float32), camera)
with Segmenter(sys.argv[1], backend=sys.argv[2]) as segmenter:
    print(segmenter.segment(frame).labels.shape)
"""
OUR_OWN = (Path('.cache', 'rgbd_fusion_seg'), Path('.cache', 'numba'))


@pytest.mark.parametrize('backend', [b.name for b in available_backends() if b.usable])
def test_a_network_runs_without_leaving_an_identifier(tiny_bundle: Path, tmp_path: Path, backend):
    """Both ONNX Runtime and OpenVINO first make a file that identifies the user."""
    # Of the environment only what Python needs, for they keep quiet by themselves under a CI.
    kept = ('PATH', 'LD_LIBRARY_PATH', 'PYTHONPATH', 'VIRTUAL_ENV')
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment['HOME'] = str(tmp_path)
    command = [sys.executable, '-c', CODE, str(tiny_bundle), backend]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, '(48, 64)'), done.stderr
    left = [file.relative_to(tmp_path) for file in tmp_path.rglob('*') if file.is_file()]
    assert [file for file in left if not any(map(file.is_relative_to, OUR_OWN))] == []
