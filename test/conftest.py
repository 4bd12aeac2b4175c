"""Fixtures shared by all tests: where the reference data is, or why a test is skipped."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the key pythonpath came with pytest 7

import nyu_packs

import rgbd_fusion_seg  # noqa: F401  Before ONNX Runtime, whose reports it switches off.

# Before torch is loaded, here or in a process that a test starts: on tensors as small as those of
# tests, more threads only wait for each other.
os.environ.setdefault('OMP_NUM_THREADS', '1')

# A shell starts what runs in its background with Ctrl-C ignored, and so would start every process
# that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'


@pytest.fixture(scope='session')
def data_dir() -> Path:
    """Folder with nyudv2/, kinect_sequence/ and frames/; the test is skipped without it."""
    path = Path(os.environ.get('RGBD_FUSION_SEG_DATA', SHARED / 'data'))
    if not path.is_dir():
        pytest.skip(f'needs the reference data, and {path} is absent')
    return path


@pytest.fixture(scope='session')
def goldens_dir() -> Path:
    """Folder with outputs of the papers' public code; the test is skipped without it."""
    path = SHARED / 'goldens'
    if not path.is_dir():
        pytest.skip(f'needs the golden outputs, and {path} is absent')
    return path


@pytest.fixture(scope='session')
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a bundle that labels by brightness and height (bundles.py); leave it as it is."""
    bundles = pytest.importorskip('bundles', reason='making bundles needs onnx')
    return bundles.write_bundle(tmp_path_factory.mktemp('bundles') / 'tiny')


@pytest.fixture(scope='session')
def nyu_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 6 training and 2 test frames in the layout of the NYUDv2 pack (nyu_packs.py)."""
    return nyu_packs.write_pack(tmp_path_factory.mktemp('pack'))
