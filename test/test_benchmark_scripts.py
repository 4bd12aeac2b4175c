"""What the programs in benchmarks/ share."""

from __future__ import annotations

import copy
import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.errors import EngineError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame

BENCHMARKS = Path(__file__).resolve().parents[1] / 'benchmarks'


@pytest.fixture
def script(monkeypatch):
    """Imports a program by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield import_module
    for name in {path.stem for path in BENCHMARKS.glob('*.py')} - before:
        sys.modules.pop(name, None)


def test_a_measurement_that_fails_costs_no_other_one_s_result(script, capsys):
    measure = script('measure')
    kept = []

    def measured(name: str) -> int:
        if name == 'large':
            raise MemoryError('no room\nfor it')
        return len(name)

    def keep(results, failed) -> None:
        kept.append(copy.deepcopy((results, failed)))

    assert measure.one_by_one(['a', 'large', 'abc'], measured, keep) == 1
    reason = {'large': 'MemoryError: no room for it'}
    assert kept == [({'a': 1}, {}), ({'a': 1}, reason), ({'a': 1, 'abc': 3}, reason)]
    assert capsys.readouterr().err == 'large was not measured: MemoryError: no room for it\n'
    assert measure.one_by_one(['a'], measured, keep) == 0


def test_ratios_are_those_of_the_same_round(script):
    """Load that changes from round to round leaves the ratio of two callables alone."""
    now_s, load = [0.0], iter([1, 1, 10, 10, 3, 3])

    def working(seconds: float):
        return lambda: now_s.append(now_s[-1] + seconds * next(load))

    stats = script('measure').interleaved(
        {'first': working(0.010), 'second': working(0.025)},
        repeats=3,
        warmup=0,
        clock=lambda: now_s[-1],
    )
    assert stats['second']['ratio'] == 2.5
    assert stats['first']['median_ms'] == 30
    assert stats['first']['min_ms'] == 10


def test_the_stages_are_medians_of_the_rounds_that_count(script):
    """Each segmenter gets all frames in their order; three rounds warm up."""
    given = {'one': [], 'other': []}

    class Stages:
        def __init__(self, name: str) -> None:
            self._seen = given[name]

        def segment(self, frame: str):
            self._seen.append(frame)
            return SimpleNamespace(timings={'hha': 0.5, 'inference': float(len(self._seen))})

    rows = script('measure').frames_in_turn({n: Stages(n) for n in given}, 'abcd', 5)
    assert given == {name: list('abcdabcd') for name in given}
    for row in rows.values():
        assert row['stages_ms'] == {'hha': 0.5, 'inference': 6.0}
        assert row['median_ms'] >= 0


def run_fused(script, monkeypatch, bundle: Path, out: Path, refused: str) -> None:
    """Run bench_fused.py on one frame with a backend that cannot open one of the forms."""
    fused = script('bench_fused')
    camera = Intrinsics.of_some_camera(64, 48)
    frame = RgbdFrame(np.full((48, 64, 3), 90, np.uint8), np.ones((48, 64), np.float32), camera)
    monkeypatch.setattr(fused, 'frames_of', lambda *_: ([frame], 'a wall', False))
    opens = fused.Segmenter

    def refuse(bundle, backend):
        kind = 'split' if bundle.fused is None else 'hha' if bundle.fused.hha else 'fused'
        if kind == refused:
            raise EngineError('it has no kernels for Acos')
        return opens(bundle, backend)

    monkeypatch.setattr(fused, 'Segmenter', refuse)
    arguments = ['bench', '--bundle', str(bundle), '--repeats', '1', '--out', str(out)]
    monkeypatch.setattr(sys, 'argv', arguments)
    fused.main()


def test_a_form_that_a_backend_cannot_open_is_left_out(
    script, monkeypatch, tmp_path, tiny_bundle, capsys
):
    pytest.importorskip('onnxscript', reason='fusing needs onnxscript')
    out = tmp_path / 'fused.json'
    run_fused(script, monkeypatch, tiny_bundle, out, 'hha')
    result = json.loads(out.read_text())
    assert list(result['timing']) == list(result['bytes_over_the_bus']) == ['split', 'fused']
    assert list(result['unlike_split']) == ['fused']
    assert result['left_out'] == {'fused with HHA': 'it has no kernels for Acos'}
    assert 'fused with HHA was not measured: it has no kernels' in capsys.readouterr().out
    assert result['onnx_sha256'] == load_bundle(tiny_bundle).weights_sha256
    with pytest.raises(SystemExit, match='nothing to compare with: it has no kernels'):
        run_fused(script, monkeypatch, tiny_bundle, out, 'split')


def test_fused_forms_are_taken_from_where_they_were_built(
    script, monkeypatch, tmp_path, tiny_bundle
):
    pytest.importorskip('onnxscript', reason='fusing needs onnxscript')
    fused_graph = import_module('rgbd_fusion_seg.engine_building.fused_graph')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(fused_graph.os, 'access', lambda *_: False)  # root may write anywhere
    base = load_bundle(tiny_bundle)
    built = fused_graph.fused_beside(base, (64, 48)).path
    assert built.is_relative_to(tmp_path / 'cache')
    forms = script('bench_fused').bundles(base, (64, 48), tmp_path / 'scratch')
    assert forms['fused'].path == built
    assert forms['fused with HHA'].path.parent == tmp_path / 'scratch'


def test_a_graph_is_held_against_its_kernels_alone(
    script, monkeypatch, tmp_path, tiny_bundle, capsys
):
    """With a stand-in for the GPU: 2 ms of kernels and 1 ms of copies in a graph of 2.2 ms."""
    benchmark = script('bench_tensorrt')

    class Engine:
        name, uses_cuda_graph = 'a stand-in', True
        execution = SimpleNamespace(infer=lambda: None)

        def run(self, feeds):
            pass

        def close(self):
            pass

    medians_ms = {'CUDA graph': 2.2, 'no graph': 3.0, 'with host copies': 2.5}
    frame = {'fp16': {'median_ms': 10.0, 'outside the engine': 0.15}}
    table = {
        name: dict.fromkeys(('median_ms', 'p90_ms', 'ratio'), ms)
        for name, ms in medians_ms.items()
    }
    monkeypatch.setattr(benchmark, 'open_engine', lambda *_, **__: Engine())
    monkeypatch.setattr(benchmark.measure, 'interleaved', lambda *_: table)
    monkeypatch.setattr(benchmark, 'on_the_gpu', lambda *_: (2.0, 1.0))
    monkeypatch.setattr(benchmark, 'whole_frames', lambda *_: frame)
    monkeypatch.setattr(benchmark, 'find_device', lambda: 'a GPU')
    monkeypatch.setattr(benchmark, 'precisions', lambda _: ['fp16'])
    monkeypatch.setattr(benchmark, 'frames_of', lambda *_: ([], 'none', False))
    out = tmp_path / 'tensorrt.json'
    monkeypatch.setattr(sys, 'argv', ['bench', '--bundle', str(tiny_bundle), '--out', str(out)])
    torch = pytest.importorskip('torch')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    benchmark.main()
    assert 'nothing is measured: times of kernels come from torch' in capsys.readouterr().out
    assert not out.exists()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    benchmark.main()
    result = json.loads(out.read_text())
    assert result['limits'] == {
        'fp16': {
            'graph over kernels': {'measured': 1.1, 'limit': 1.05, 'within': False},
            'outside the engine': {'measured': 0.15, 'limit': 0.15, 'within': True},
        }
    }
    said = capsys.readouterr().out
    assert 'graph over kernels: 1.1, limit 1.05: NOT within' in said
    assert 'outside the engine: 0.15, limit 0.15: within' in said


def test_a_network_that_cannot_be_compiled_is_measured_otherwise(
    script, monkeypatch, tmp_path, capsys
):
    torch = pytest.importorskip('torch', reason='networks need torch (pip install .[train])')
    benchmark = script('bench_networks')

    def compile_badly(network):
        def run(images):
            raise RuntimeError('no compiler\nwas found')

        return run

    monkeypatch.setattr(torch, 'compile', compile_badly)
    out = tmp_path / 'networks.json'
    arguments = '--size 64x48 --networks erfnet --repeats 1 --device cpu --compile --out'
    monkeypatch.setattr(sys, 'argv', ['bench', *arguments.split(), str(out)])
    assert benchmark.main() == 0
    (row,) = json.loads(out.read_text())['networks'].values()
    assert list(row['timing']) == ['eager fp32', 'eager bf16']
    assert row['failed'] == {'compiled bf16': 'RuntimeError: no compiler was found'}
    assert 'compiled bf16 failed: RuntimeError: no compiler' in ''.join(capsys.readouterr())
