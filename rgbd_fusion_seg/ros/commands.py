"""The nodes' commands, which end quietly when they are interrupted while they still load."""

from __future__ import annotations

import os
import signal
from importlib import import_module


def segmentation_node() -> int:
    """Run ``segmentation_node``; returns the exit code, 130 where SIGINT comes first."""
    return _run('node')


def synthetic_camera() -> int:
    """Run ``synthetic_camera``; returns the exit code, 130 where SIGINT comes first."""
    return _run('synthetic_camera')


def _run(module: str) -> int:
    # Not an exception, which what is being imported might swallow; `run_node` takes over later.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    return import_module(f'rgbd_fusion_seg.ros.{module}').main()
