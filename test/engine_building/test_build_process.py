"""A real builder in a real process; what ends it, and what it says."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip('onnx', reason='making bundles needs onnx')

import bundles

from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.engine.engine_files import belongs_to, read_card
from rgbd_fusion_seg.engine.flavours import Flavour, installed_flavours
from rgbd_fusion_seg.engine_building import build_process
from rgbd_fusion_seg.engine_building.build_process import BuildProcess
from rgbd_fusion_seg.errors import EngineError


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return load_bundle(bundles.write_bundle(tmp_path / 'tiny'))


def test_it_builds_at_low_priority_and_tells_how_far_it_is(tmp_path, monkeypatch):
    found = installed_flavours().values()
    if not any(isinstance(flavour, Flavour) and flavour.can_build for flavour in found):
        pytest.skip('needs a TensorRT that builds (pip install .[tensorrt-rtx])')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    card = bundles.tiny_card() | {'dynamic': {'batch': False, 'size': True, 'multiple': 16}}
    network = bundles.with_open_sizes(bundles.tiny_network())
    bundle = load_bundle(bundles.write_bundle(tmp_path / 'open', card, network)).resized(128, 96)
    told, priorities = [], []

    def take(phase, percent):
        told.append(percent)
        priorities.append(os.getpriority(os.PRIO_PROCESS, process._process.pid))

    options = {'precision': 'fp32', 'flavour': 'tensorrt_rtx', 'compute_capabilities': ['8.6']}
    process = BuildProcess(bundle, options)
    built = read_card(process.wait(take))
    assert belongs_to(built, bundle)
    assert (built.precision, built.flavour) == ('fp32', 'tensorrt_rtx')
    shapes = {tensor.name: tensor.shape for tensor in built.tensors}
    assert shapes['rgb'] == (1, 3, 96, 128)
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] <= 100
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert set(priorities) == {min(own + 10, 19)}


def test_what_the_builder_complains_of_arrives(bundle):
    with pytest.raises(EngineError, match='tensorrt_lean runs engines and cannot build them'):
        BuildProcess(bundle, {'flavour': 'tensorrt_lean'}).wait(lambda *_: None)


def test_an_end_without_a_word_is_told(bundle):
    process = BuildProcess(bundle, {})
    process._process.kill()
    with pytest.raises(EngineError, match='the engine of tiny ended with SIGKILL; run'):
        process.wait(lambda *_: None)
    with pytest.raises(EngineError, match=r'exit code 1 \(TypeError: .*colour'):
        BuildProcess(bundle, {'colour': 'red'}).wait(lambda *_: None)


def test_another_thread_can_stop_it(bundle):
    process = BuildProcess(bundle, {})
    threading.Timer(0.05, process.stop).start()
    with pytest.raises(EngineError, match='ended with SIGTERM'):
        process.wait(lambda *_: None)
    assert not Path(f'/proc/{process._process.pid}').exists()
    process.stop()


def test_a_caller_that_fails_leaves_no_build_behind(tmp_path, monkeypatch):
    child = 'import json, time; print(json.dumps({"phase": "p", "percent": 1}), flush=True)'
    (tmp_path / 'endless.py').write_text(f'{child}; time.sleep(600)')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setattr(build_process, '__name__', 'endless')
    process = BuildProcess(load_bundle(bundles.write_bundle(tmp_path / 'tiny')), {})

    def fail(phase, percent):
        raise LookupError(phase)

    with pytest.raises(LookupError, match='p'):
        process.wait(fail)
    assert process._process.poll() is not None


def test_a_child_whose_parent_is_another_does_nothing(bundle, capfd):
    task = '{"parent": 1, "bundle": "absent", "input_size": [64, 48], "options": {}}'
    command = [sys.executable, '-m', build_process.__name__, task]
    assert os.spawnv(os.P_WAIT, command[0], command) == 1
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize(
    ('visible', 'device', 'name'),
    [('', 0, '0'), ('', 3, '3'), ('2,GPU-8f', 1, 'GPU-8f'), ('2', 0, '2')],
)
def test_the_child_sees_the_gpu_that_is_meant(monkeypatch, visible, device, name):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    assert build_process._cuda_name(device) == name
