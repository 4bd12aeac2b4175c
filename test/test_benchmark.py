"""The comparison of engines: what it counts, keeps, says, and leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bundles import tiny_network, write_bundle
from onnx import helper

from rgbd_fusion_seg.benchmark import compare as comparing
from rgbd_fusion_seg.benchmark import footprint as footprints
from rgbd_fusion_seg.benchmark import report
from rgbd_fusion_seg.benchmark.busy import busy_processes
from rgbd_fusion_seg.benchmark.compare import BenchmarkOptions, Contender, Frames, compare
from rgbd_fusion_seg.benchmark.footprint import footprint
from rgbd_fusion_seg.benchmark.report import recommendation, table
from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.cli import main
from rgbd_fusion_seg.engine import BACKENDS, available_backends, open_engine
from rgbd_fusion_seg.engine.agreement import MIN_FRAMES, record_path
from rgbd_fusion_seg.errors import EngineError
from rgbd_fusion_seg.replay.folders import FolderFrames
from rgbd_fusion_seg.segmenter import Segmenter

HEIGHT, WIDTH = 96, 128
USABLE = {backend.name for backend in available_backends() if backend.usable}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Frames of noise before a floor and a wall: many pixels are near the edge of a class."""
    folder = tmp_path / 'recording'
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = np.arange(HEIGHT)[:, None]
    depth = np.minimum(2500, 110_000 / np.maximum(rows - 40, 1)).astype(np.uint16)
    depth = np.broadcast_to(depth, (HEIGHT, WIDTH)).copy()
    for index in range(MIN_FRAMES):
        rgb = np.clip(rng.normal(100, 30, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f'f{index:02d}.color.png'), rgb)
        cv2.imwrite(str(folder / f'f{index:02d}.depth.png'), depth)
    (folder / 'camera-intrinsics.txt').write_text('110 0 63.5\n0 110 47.5\n0 0 1\n')
    return folder


def busy_children() -> dict[int, float]:
    """Return the seconds of processor time of the busy processes that are our children."""
    found = {}
    for path in Path('/proc').glob('[0-9]*'):
        try:
            command = (path / 'cmdline').read_text()
            state = (path / 'stat').read_text().rsplit(')', 1)[1].split()
        except OSError:
            continue
        if 'rgbd_fusion_seg.benchmark.busy' in command and int(state[1]) == os.getpid():
            found[int(path.name)] = int(state[11]) / os.sysconf('SC_CLK_TCK')
    return found


@pytest.mark.parametrize('count', [0, 2])
def test_busy_processes_compute_and_end_with_the_block(count):
    with busy_processes(count):
        before = busy_children()
        assert len(before) == count
        time.sleep(0.5)
        assert all(seconds > before[pid] for pid, seconds in busy_children().items())
    assert busy_children() == {}


def test_busy_processes_end_when_the_block_fails():
    def failing() -> None:
        with busy_processes(1):
            assert len(busy_children()) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert busy_children() == {}


def test_agreement_is_what_a_hand_counts():
    expected = [np.zeros((2, 5), np.uint8), np.full((2, 5), 7, np.uint8)]
    one, two = (labels.copy() for labels in expected)
    one[0, 0] = 1
    two[1] = (7, 7, 255, 6, 5)
    share, lowest = comparing.label_agreement([one, two], expected)
    assert share == pytest.approx(16 / 20)
    assert lowest == pytest.approx(7 / 10)
    assert comparing.label_agreement(expected, expected) == (1, 1)


@pytest.mark.skipif('openvino' not in USABLE, reason='needs the extra [openvino]')
def test_the_command_compares_all_engines_on_a_recording(folder, tiny_bundle, tmp_path, capsys):
    written = tmp_path / 'new' / 'result.json'
    arguments = ['--frames', folder, '--repeats', 3, '--load', 1, '--json', written]
    assert main(['benchmark', str(tiny_bundle), *map(str, arguments)]) == 0
    assert busy_children() == {}
    printed, result = capsys.readouterr().out, json.loads(written.read_text())
    engines = {row['label']: row for row in result['engines']}
    assert next(iter(engines)) == 'onnxruntime'
    assert 'openvino fp32' in engines
    assert {row['backend'] for row in engines.values()} <= USABLE
    for row in engines.values():
        for series in ('alone', 'loaded'):
            frame, stage = row[series]['frame_ms'], row[series]['inference_ms']
            assert 0 < frame['p50'] <= frame['p90'] <= frame['p99']
            assert 0 < stage['p50'] < frame['p99']
        assert row['load_s'] > 0
        assert 0 < row['rss_mib'] <= row['peak_rss_mib']
        assert row['label'] in printed
    assert engines['onnxruntime']['label_agreement'] == 1
    assert engines['openvino fp32']['label_agreement'] > 0.999
    assert result['frames'] == MIN_FRAMES
    assert result['real_frames']
    assert result['busy_processes'] == 1
    assert result['hardware']['cores_usable'] >= 1
    assert result['recommendation'] in printed
    for name in {backend.name for backend in available_backends()} - USABLE:
        assert f'not compared: {name}: {result["not_compared"][name]}' in printed
    if 'openvino bf16' in engines:
        bundle = load_bundle(tiny_bundle)
        path = record_path(bundle, 'openvino', 'bf16')
        assert result['kept'] == [f'~/{path.relative_to(tmp_path)}']
        kept = json.loads(path.read_text())
        agreement = engines['openvino bf16']['label_agreement']
        assert kept['label_agreement'] == agreement == counted_agreement(tiny_bundle, folder)
        if agreement >= 0.995:
            assert 'bf16' in open_engine(bundle, 'openvino', precision='bf16').name
        else:
            with pytest.raises(EngineError, match='of the labels of float32'):
                open_engine(bundle, 'openvino', precision='bf16')


def counted_agreement(bundle: Path, folder: Path) -> float:
    frames = list(FolderFrames(folder))
    with Segmenter(bundle, 'onnxruntime') as exact:
        expected = np.stack([exact.segment(frame).labels for frame in frames])
    with Segmenter(bundle, 'openvino', precision='bf16', unchecked=True) as rough:
        found = np.stack([rough.segment(frame).labels for frame in frames])
    assert (found != expected).any()  # else this test would see nothing
    return float((found == expected).mean())


def test_synthetic_frames_are_named_and_open_no_gate(tiny_bundle, tmp_path, capsys, cache):
    written = tmp_path / 'result.json'
    arguments = ['--repeats', '2', '--max-frames', '1', '--json', str(written)]
    assert main(['benchmark', str(tiny_bundle), '--backends', 'onnxruntime', *arguments]) == 0
    captured = capsys.readouterr()
    result = json.loads(written.read_text())
    assert 'synthetic rooms' in captured.err
    assert 'synthetic rooms' in captured.out
    assert not result['real_frames']
    assert result['kept'] == []
    assert [row['label'] for row in result['engines']] == ['onnxruntime']
    assert 'loaded' not in result['engines'][0]
    assert not (cache / 'rgbd_fusion_seg' / 'agreement').exists()


def test_a_form_that_cannot_be_opened_is_told_and_the_others_go_on(folder, tiny_bundle):
    contenders = (
        Contender('good', 'onnxruntime', {'num_threads': 1}),
        Contender('bad', 'onnxruntime', {'num_threads': 0}),
    )
    frames = Frames(list(FolderFrames(folder))[:2], 'a folder', real=True)
    bundle = load_bundle(tiny_bundle)
    options = BenchmarkOptions(repeats=2, contenders=contenders)
    result = compare(bundle, frames, options)
    assert [row['label'] for row in result['engines']] == ['good']
    assert 'at least 1' in result['not_compared']['bad']
    assert 'good' in table(result)
    with pytest.raises(EngineError, match='no engine can run tiny here: bad: '):
        compare(bundle, frames, BenchmarkOptions(repeats=2, contenders=contenders[1:]))


def test_a_network_that_openvino_cannot_convert_is_compared_without_it(folder, tmp_path):
    pytest.importorskip('openvino')
    network = tiny_network()
    first = network.graph.node[0]
    network.graph.node.insert(0, helper.make_node('Optional', ['rgb'], ['maybe']))
    network.graph.node.insert(1, helper.make_node('OptionalGetElement', ['maybe'], ['there']))
    first.input[0] = 'there'
    bundle = load_bundle(write_bundle(tmp_path / 'optional', network=network))
    contenders = (
        Contender('ort', 'onnxruntime', {'num_threads': 1}),
        Contender('ov', 'openvino', {'num_threads': 1}),
    )
    frames = Frames(list(FolderFrames(folder))[:2], 'a folder', real=True)
    result = compare(bundle, frames, BenchmarkOptions(repeats=2, contenders=contenders))
    assert [row['label'] for row in result['engines']] == ['ort']
    assert 'Optional' in result['not_compared']['ov']


def test_frames_come_from_all_over_a_recording(folder):
    source = FolderFrames(folder)
    every = list(source)
    taken = comparing.recorded_frames(source, folder, 3)
    positions = [
        next(i for i, f in enumerate(every) if np.array_equal(f.rgb, frame.rgb))
        for frame in taken.frames
    ]
    assert len(positions) == 3
    assert positions[0] <= 1
    assert positions[-1] >= len(every) - 2
    assert len(comparing.recorded_frames(source, folder, 99).frames) == len(every)


def test_a_process_of_its_own_that_fails_says_why(tiny_bundle):
    with pytest.raises(EngineError, match=r'exit code 1 .* at least 1, got 0'):
        footprint(load_bundle(tiny_bundle), 'onnxruntime', {'num_threads': 0})


def test_memory_of_a_gpu_is_what_is_free_before_and_not_at_the_end(tiny_bundle, monkeypatch):
    """The processor stands in for the GPU: in the other process, and for it in this one."""
    asked = []

    def free_mib(device: int) -> float:
        asked.append(device)
        return 1000.0 - 300 * len(asked)

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        answer = json.dumps(footprints.measure(json.loads(command[-1])))
        return subprocess.CompletedProcess(command, 0, f'\n{answer}\n', '')

    monkeypatch.setitem(BACKENDS, 'onnxruntime_gpu', 'rgbd_fusion_seg.engine.onnxruntime')
    monkeypatch.setattr(footprints, 'free_memory_mib', free_mib)
    monkeypatch.setattr(footprints.subprocess, 'run', run)
    bundle = load_bundle(tiny_bundle)
    found = footprint(bundle, 'onnxruntime_gpu', {})
    assert (found['gpu_mib'], asked) == (300.0, [0, 0])
    assert footprint(bundle, 'onnxruntime', {}).keys() == found.keys() - {'gpu_mib'}


def test_the_table_tells_memory_of_a_gpu_where_an_engine_has_it():
    times = {
        key: dict.fromkeys(('p50', 'p90', 'p99'), 1.0) for key in ('frame_ms', 'inference_ms')
    }
    row = {'alone': times, 'label_agreement': 1.0, 'load_s': 0.1, 'rss_mib': 99.0}
    result = {'bundle': 'b', 'input_size': '1x1', 'frames': 1, 'source': 's', 'repeats': 1}
    result |= {'busy_processes': 0, 'engines': [{'label': 'cpu', **row}]}
    assert 'GPU' not in table(result)
    result['engines'].append({'label': 'gpu', **row, 'gpu_mib': 411.6})
    cells = {line.split()[0]: line.split() for line in table(result).splitlines()}
    assert cells['cpu'][-2:] == ['99', '-']
    assert cells['gpu'][-2:] == ['99', '412']


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['--backends', 'abacus'], "no inference backend 'abacus'; choose from: tensorrt"),
        (['--backends', 'tensorrt'], 'tensorrt cannot run here: '),
        (['--frames', 'absent'], 'there is no folder absent'),
        (['--intrinsics', '1,1,1,1'], 'tell of --frames; give these too'),
        (['--depth-scale', '0.5'], 'tell of --frames; give these too'),
        (['--input-size', '128x96'], 'takes 64x48 images only'),
        (['--json', '/proc/x/y.json'], '/proc/x/y.json cannot be written'),
    ],
)
def test_failures_are_one_sentence_before_the_work(tiny_bundle, capsys, arguments, sentence):
    if 'tensorrt' in arguments and 'tensorrt' in USABLE:
        pytest.skip('TensorRT can run here')
    assert main(['benchmark', str(tiny_bundle), *arguments]) == 1
    told = capsys.readouterr().err.strip()
    assert sentence in told
    assert '\n' not in told


def row(label: str, p50: float, agreement: float = 1.0, loaded: float = 0.0, **options) -> dict:
    loaded_part = {'loaded': {'frame_ms': {'p50': loaded, 'p90': loaded}}} if loaded else {}
    return {
        'label': label,
        'backend': label.split()[0],
        'options': options,
        'label_agreement': agreement,
        'alone': {'frame_ms': {'p50': p50, 'p90': 2 * p50}},
        **loaded_part,
    }


DEFAULT = row('onnxruntime', 100)
BF16 = {'precision': 'bf16', 'unchecked': True}


@pytest.mark.parametrize(
    ('engines', 'beginning'),
    [
        ([DEFAULT, row('openvino fp32', 90)], 'Use openvino fp32 (backend=openvino): '),
        # Not worth an installation.
        ([DEFAULT, row('openvino fp32', 96)], 'Use onnxruntime (backend=onnxruntime): '),
        ([DEFAULT, row('openvino fp32', 120)], 'Use onnxruntime '),
        # Other labels.
        ([DEFAULT, row('openvino bf16', 40, 0.9949, **BF16)], 'Use onnxruntime '),
        (
            [DEFAULT, row('openvino bf16', 40, 0.9951, **BF16)],
            'Use openvino bf16 (backend=openvino, precision=bf16): a frame takes 40.0 ms, 100.0',
        ),
        # Under load the order may change.
        (
            [row('onnxruntime', 100, loaded=150), row('openvino fp32', 80, loaded=300)],
            'Use onnxruntime ',
        ),
        (
            [row('onnxruntime', 80, loaded=300), row('openvino fp32', 100, loaded=150)],
            'Use openvino fp32 (backend=openvino): 90 % of the frames under load within 150.0 ms',
        ),
        ([row('tensorrt fp16', 5)], 'Use tensorrt fp16 (backend=tensorrt): a frame takes 5.0 ms.'),
        ([row('openvino bf16', 5, 0.9)], 'Use none of these engines: '),
    ],
)
def test_the_recommendation_weighs_speed_labels_and_load(engines, beginning):
    sentence = recommendation(engines, kept={'openvino bf16'})
    assert sentence.startswith(beginning)
    assert sentence.endswith('.')
    assert '. ' not in sentence
    disagreeing = [r for r in engines if r['label_agreement'] < 0.995]
    assert ('with other labels than float32' in sentence) == bool(disagreeing)


def test_arithmetic_that_could_not_be_opened_is_not_recommended():
    bf16 = row('openvino bf16', 40, **BF16)
    sentence = recommendation([DEFAULT, bf16], kept=())
    assert sentence.startswith('Use onnxruntime ')
    assert f'openvino bf16, for which {MIN_FRAMES} real frames are asked for' in sentence
    assert '--frames' not in recommendation([DEFAULT, bf16], kept={'openvino bf16'})
    assert recommendation([bf16], kept=()).startswith('Use none of these engines: not seen to ')


@pytest.mark.skipif('openvino' not in USABLE, reason='needs the extra [openvino]')
@pytest.mark.parametrize('why', ['too few frames', 'no room for the agreement'])
def test_what_the_gate_would_refuse_is_not_recommended(
    folder, tiny_bundle, cache, monkeypatch, why
):
    """However fast it is."""
    bundle = load_bundle(tiny_bundle)
    count = MIN_FRAMES - (why == 'too few frames')
    if why == 'no room for the agreement':
        cache.write_text('in the way')
    # In float32, so that any processor has it and all labels are the same.
    monkeypatch.setattr(comparing, '_time', lambda segmenters, frames, options, rows, bar: None)
    monkeypatch.setattr(comparing, '_footprints', lambda *_: None)
    monkeypatch.setattr(report, '_frame_ms', lambda row: 1 + (row['backend'] == 'onnxruntime'))
    monkeypatch.setattr(report, '_speed', lambda *_: 'fast')
    forms = (
        Contender('onnxruntime', 'onnxruntime', {}),
        Contender('rough', 'openvino', {'precision': 'fp32', 'unchecked': True}),
    )
    frames = Frames(list(FolderFrames(folder))[:count], 'a folder', real=True)
    result = compare(bundle, frames, BenchmarkOptions(repeats=1, contenders=forms))
    assert result['kept'] == []
    assert result['recommendation'].startswith('Use onnxruntime ')
    assert 'faster, but not seen to give the labels of float32: rough' in result['recommendation']


def test_a_failing_process_for_memory_loses_no_more_than_that(folder, tiny_bundle, monkeypatch):
    def failing(bundle, backend, options):
        if options:
            raise EngineError('it was killed')
        return footprint(bundle, backend, options)

    monkeypatch.setattr(comparing, 'footprint', failing)
    forms = (
        Contender('good', 'onnxruntime', {}),
        Contender('big', 'onnxruntime', {'num_threads': 1}),
    )
    frames = Frames(list(FolderFrames(folder))[:2], 'a folder', real=True)
    options = BenchmarkOptions(repeats=2, contenders=forms)
    result = compare(load_bundle(tiny_bundle), frames, options)
    good, big = result['engines']
    assert good['rss_mib'] > 0
    assert big['alone']['frame_ms']['p50'] > 0
    assert result['not_compared'] == {'memory of big': 'it was killed'}
    (line,) = (line for line in table(result).splitlines() if line.startswith('big'))
    assert line.split()[-2:] == ['-', '-']


def test_a_comparison_that_fails_leaves_the_result_before_as_it_was(
    tiny_bundle, tmp_path, monkeypatch, capsys
):
    def fail(*_, **__):
        raise EngineError('the device was lost')

    monkeypatch.setattr(comparing, 'compare', fail)
    before = tmp_path / 'before.json'
    before.write_text('a result')
    arguments = ['benchmark', str(tiny_bundle), '--max-frames', '1', '--json']
    for path in (before, tmp_path / 'new.json'):
        assert main([*arguments, str(path)]) == 1
    assert before.read_text() == 'a result'
    assert not (tmp_path / 'new.json').exists()
    assert main([*arguments, str(tmp_path)]) == 1
    assert f'{tmp_path} is there and no file' in capsys.readouterr().err


def test_the_programs_beside_import_no_more_than_they_need():
    code = (
        'import sys, rgbd_fusion_seg.benchmark.busy; '
        'print([m for m in ("numpy", "cv2", "numba") if m in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr


def test_folders_of_images_need_no_rosbags(folder, tiny_bundle, tmp_path):
    """Nor does the check of a new engine; a bag does, and says so."""
    bag = tmp_path / 'recording.bag'
    bag.touch()
    code = """if True:
        import sys
        sys.modules['rosbags'] = None
        import rgbd_fusion_seg.benchmark.engine_check
        from rgbd_fusion_seg.cli import main
        command = ['benchmark', sys.argv[1], '--backends', 'onnxruntime', '--repeats', '1']
        sys.exit(main([*command, '--frames', sys.argv[2]]))
    """

    def run(frames: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, '-c', code, str(tiny_bundle), str(frames)]
        return subprocess.run(command, capture_output=True, text=True)

    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert 'onnxruntime' in done.stdout
    refused = run(bag)
    assert refused.returncode == 1
    assert 'bags need rosbags, which is not here' in refused.stderr
    assert refused.stderr.strip().endswith('install it with: pip install rosbags')
    assert 'Traceback' not in refused.stderr


def test_a_graph_is_the_same_with_other_weights_and_notes(tmp_path, monkeypatch):
    onnx = pytest.importorskip('onnx')

    def saved(model) -> Path:
        onnx.save(model, tmp_path / 'model.onnx')
        return tmp_path / 'model.onnx'

    first = comparing.graph_sha256(saved(tiny_network()))
    other = tiny_network()
    (weights,) = (tensor for tensor in other.graph.initializer if tensor.name == 'weights_half')
    weights.raw_data = bytes(len(weights.raw_data))
    other.graph.node[0].metadata_props.add(key='stack_trace', value='line 7')
    assert comparing.graph_sha256(saved(other)) == first
    assert comparing.graph_sha256(saved(tiny_network(height=64))) != first
    numbers = onnx.numpy_helper.from_array(np.array([1, 2]), 'repeats')
    other.graph.initializer.append(numbers)
    repeated = comparing.graph_sha256(saved(other))
    other.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(np.array([1, 3]), 'repeats'))
    assert len({first, repeated, comparing.graph_sha256(saved(other))}) == 3
    other.graph.node[0].op_type = 'MaxPool'
    assert comparing.graph_sha256(saved(other)) != first
    monkeypatch.setitem(sys.modules, 'onnx', None)
    assert comparing.graph_sha256(tmp_path / 'model.onnx') is None
