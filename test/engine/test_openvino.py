"""The OpenVINO engine against ONNX Runtime, and the gate before bfloat16."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bundles import tiny_card, tiny_network, with_open_sizes, write_bundle
from onnx import TensorProto, helper

from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE, ModelBundle, load_bundle
from rgbd_fusion_seg.engine import open_engine
from rgbd_fusion_seg.engine.agreement import MIN_FRAMES, Agreement, record_path, write_agreement
from rgbd_fusion_seg.engine.openvino import probe, the_core, the_library
from rgbd_fusion_seg.errors import BundleError, EngineError

if not probe()[0]:
    pytest.skip('needs the extra [openvino]', allow_module_level=True)
openvino = the_library()
LARGE_BUNDLE = 'rfbnet_erfnet_nyu40_320x240'
HAS_BF16 = 'BF16' in the_core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason='this processor has no bf16')


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def random_inputs(bundle: ModelBundle, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(form.shape, dtype=np.float32)
        for name, form in bundle.graph_inputs.items()
    }


def logits_of(bundle: ModelBundle, backend: str, **options) -> np.ndarray:
    opened = open_engine(bundle, backend, **options)
    try:
        return opened.infer(**random_inputs(bundle))
    finally:
        opened.close()


@pytest.mark.parametrize('name', ['tiny', DEFAULT_BUNDLE, LARGE_BUNDLE])
def test_logits_are_those_of_onnx_runtime(tiny_bundle: Path, name):
    bundle = load_bundle(tiny_bundle if name == 'tiny' else name)
    expected = logits_of(bundle, 'onnxruntime')
    logits = logits_of(bundle, 'openvino')
    assert logits.dtype == np.float32
    assert logits.shape == bundle.logits_shape
    # Sums of float32 in another order; bf16 is a hundred times as far off.
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.ptp(expected))


@needs_bf16
def test_it_computes_in_float32_unless_asked_otherwise(tiny_bundle: Path):
    """OpenVINO's own choice on such a processor is bfloat16."""
    bundle = load_bundle(tiny_bundle)
    core = the_core()
    assert core.get_property('CPU', 'INFERENCE_PRECISION_HINT') == openvino.Type.bf16
    for precision, expected in (('fp32', openvino.Type.f32), ('bf16', openvino.Type.bf16)):
        opened = open_engine(bundle, 'openvino', precision=precision, unchecked=True)
        assert opened._compiled.get_property('INFERENCE_PRECISION_HINT') == expected
        assert precision in opened.name


def test_options_reach_the_network(tiny_bundle: Path, cache: Path):
    bundle = load_bundle(tiny_bundle)
    opened = open_engine(bundle, 'openvino', num_threads=1, pin_threads=True)
    assert opened.name == 'openvino (CPU, fp32, 1 threads)'
    assert opened._compiled.get_property('INFERENCE_NUM_THREADS') == 1
    assert opened._compiled.get_property('PERFORMANCE_HINT') == 'LATENCY'
    assert opened._compiled.get_property('ENABLE_CPU_PINNING')
    assert not open_engine(bundle, 'openvino')._compiled.get_property('ENABLE_CPU_PINNING')


def compiled_files(cache: Path) -> list[Path]:
    return list((cache / 'rgbd_fusion_seg' / 'openvino').rglob('*.blob'))


def came_from_the_cache(bundle: ModelBundle) -> bool:
    return open_engine(bundle, 'openvino')._compiled.get_property('LOADED_FROM_CACHE')


@pytest.mark.parametrize('precision', ['fp32', pytest.param('bf16', marks=needs_bf16)])
def test_a_compiled_network_is_kept_and_computes_alike(tiny_bundle: Path, cache: Path, precision):
    bundle = load_bundle(tiny_bundle)
    options = {'precision': precision, 'unchecked': True}
    expected = logits_of(bundle, 'openvino', cache=False, **options)
    assert not compiled_files(cache)
    first = logits_of(bundle, 'openvino', **options)
    assert compiled_files(cache)
    assert came_from_the_cache(bundle)
    assert np.array_equal(first, expected)
    assert np.array_equal(logits_of(bundle, 'openvino', **options), expected)


@pytest.mark.parametrize('damage', ['changed', 'cut short', 'empty', 'never sealed'])
def test_a_damaged_compiled_network_is_compiled_again(tiny_bundle: Path, cache: Path, damage):
    """OpenVINO computes with changed weights without noticing; power failures make such files."""
    # In the file of a small network there is little that OpenVINO reads without checking it.
    bundle = load_bundle(LARGE_BUNDLE if damage == 'changed' else tiny_bundle)
    expected = logits_of(bundle, 'openvino')
    (file,) = compiled_files(cache)
    whole = file.read_bytes()
    file.chmod(0o644)
    if damage == 'never sealed':
        file.with_suffix('.sha256').unlink()
    else:
        middle = len(whole) // 2
        changed = bytes(byte ^ 0xFF for byte in whole[middle : middle + 64])
        parts = {
            'changed': whole[:middle] + changed + whole[middle + 64 :],
            'cut short': whole[:middle],
            'empty': b'',
        }
        file.write_bytes(parts[damage])
    assert np.array_equal(logits_of(bundle, 'openvino'), expected)
    assert came_from_the_cache(bundle)


@pytest.mark.parametrize('obstacle', ['file in the way', 'damaged and not removable'])
def test_where_nothing_sound_can_be_kept_it_is_compiled_each_time(
    tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, obstacle
):
    bundle = load_bundle(tiny_bundle)
    if obstacle == 'file in the way':
        cache.mkdir()
        (cache / 'rgbd_fusion_seg').write_text('a file')
    else:
        logits_of(bundle, 'openvino')
        (file,) = compiled_files(cache)
        file.chmod(0o644)
        file.write_bytes(bytes(len(file.read_bytes())))

        def refuse(path: Path) -> None:
            raise PermissionError(13, 'Permission denied', str(path))

        monkeypatch.setattr(Path, 'unlink', refuse)
    assert not came_from_the_cache(bundle)
    assert not came_from_the_cache(bundle)


def test_signals_are_survived_whatever_engines_were_closed_before(tiny_bundle: Path):
    """With a Core for each engine this crashed on processors with AMX."""
    code = (
        'import os, signal, sys\n'
        'from rgbd_fusion_seg.bundle import load_bundle\n'
        'from rgbd_fusion_seg.engine import open_engine\n'
        'bundle = load_bundle(sys.argv[1])\n'
        'engines = [open_engine(bundle, "openvino") for _ in range(2)]\n'
        'while engines: engines.pop(0).close()\n'
        'signal.signal(signal.SIGINT, lambda *_: print("handled"))\n'
        'os.kill(os.getpid(), signal.SIGINT)\n'
    )
    command = [sys.executable, '-c', code, str(tiny_bundle)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, 'handled')


def test_results_stay_valid_while_the_engine_goes_on(tiny_bundle: Path):
    bundle = load_bundle(tiny_bundle)
    opened = open_engine(bundle, 'openvino')
    first = opened.infer(**random_inputs(bundle, 0))
    kept = first.copy()
    opened.infer(**random_inputs(bundle, 1))
    assert np.array_equal(first, kept)


def test_a_view_of_other_memory_is_read_rightly(tiny_bundle: Path):
    bundle = load_bundle(tiny_bundle)
    inputs = random_inputs(bundle)
    mirrored = {name: tensor[..., ::-1] for name, tensor in inputs.items()}
    logits = open_engine(bundle, 'openvino').infer(**mirrored)
    np.testing.assert_allclose(logits[..., ::-1], logits_of(bundle, 'openvino'), atol=1e-5)


@pytest.mark.parametrize('dynamic', [{}, {'size': True}, {'batch': True, 'size': True}])
def test_open_sizes_become_those_of_the_bundle(tmp_path: Path, dynamic):
    entry = {'batch': False, 'size': False, 'multiple': 16} | dynamic
    folder = write_bundle(
        tmp_path / 'open', tiny_card() | {'dynamic': entry}, with_open_sizes(tiny_network())
    )
    bundle = load_bundle(folder)
    if entry['size']:
        bundle = bundle.resized(32, 96)
    opened = open_engine(bundle, 'openvino')
    inputs = random_inputs(bundle)
    expected = logits_of(bundle, 'onnxruntime')
    np.testing.assert_allclose(opened.infer(**inputs), expected, atol=1e-5)
    two = {name: np.concatenate([tensor, -tensor]) for name, tensor in inputs.items()}
    if entry['batch']:
        assert opened.infer(**two).shape == (2, *expected.shape[1:])
        np.testing.assert_allclose(opened.infer(**two)[:1], expected, atol=1e-5)
    else:
        with pytest.raises(EngineError, match=r'rgb must be float32 \(1, 3, '):
            opened.infer(**two)


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'num_threads': 0}, 'at least 1, got 0'),
        ({'precision': 'fp8'}, "no precision 'fp8'; choose one of: fp32, bf16"),
        ({'speed': 3}, "no option 'speed'; it knows: num_threads"),
    ],
)
def test_options_that_cannot_be_are_refused(tiny_bundle: Path, options, sentence):
    with pytest.raises(EngineError, match=sentence):
        open_engine(load_bundle(tiny_bundle), 'openvino', **options)


def with_unknown_operator():
    network = tiny_network()
    network.graph.node[-1].op_type = 'Sorcery'
    return network.SerializeToString()


def as_bytes_input():
    network = tiny_network()
    network.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    cast = helper.make_node('Cast', ['rgb'], ['rgb_float'], to=TensorProto.FLOAT)
    network.graph.node.insert(0, cast)
    network.graph.node[1].input[0] = 'rgb_float'
    return network


@pytest.mark.parametrize(
    ('network', 'words'),
    [
        (lambda: b'this is no network', ['model.onnx', 'no ONNX network']),
        (lambda: tiny_network().SerializeToString()[:200], ['no ONNX network']),
        (with_unknown_operator, ['Sorcery', 'take the backend onnxruntime']),
        (lambda: tiny_network(num_classes=7), ['returns 7 classes', 'card lists 4']),
        (lambda: tiny_network(96, 128), ['[1, 3, 96, 128]', '[1, 3, 48, 64]']),
        (lambda: tiny_network(input_names=('image', 'hha')), ['inputs image, hha']),
        (as_bytes_input, ['rgb', 'tensor(uint8)', 'float32']),
    ],
)
def test_a_network_that_is_not_the_card_s_is_refused_when_it_is_opened(tmp_path, network, words):
    bundle = load_bundle(write_bundle(tmp_path / 'bad', network=network()))
    with pytest.raises((BundleError, EngineError)) as caught:
        open_engine(bundle, 'openvino')
    assert '\n' not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_inputs_of_another_form_and_closed_engines_are_told(tiny_bundle: Path):
    bundle = load_bundle(tiny_bundle)
    opened, inputs = open_engine(bundle, 'openvino'), random_inputs(bundle)
    with pytest.raises(EngineError, match=r'rgb must be float32 .*got float64'):
        opened.infer(inputs['rgb'].astype(np.float64), inputs['hha'])
    with pytest.raises(EngineError, match=r'got float32 \(1, 3, 48, 32\)'):
        opened.infer(inputs['rgb'][..., :32], inputs['hha'])
    with pytest.raises(EngineError, match='needs the inputs rgb, hha'):
        opened.infer(inputs['rgb'])
    opened.close()
    opened.close()
    with pytest.raises(EngineError, match='closed'):
        opened.infer(**inputs)


def test_without_the_package_the_reason_is_told(tiny_bundle: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(EngineError, match='pip install openvino'):
        open_engine(load_bundle(tiny_bundle), 'openvino')


def measured(**changes) -> Agreement:
    good = Agreement(
        backend='openvino',
        version=openvino.__version__,
        precision='bf16',
        label_agreement=0.9951,
        lowest_of_a_frame=0.98,
        frames=MIN_FRAMES,
        source='a recording',
        measured_at='2026-01-01T00:00:00+00:00',
    )
    return dataclasses.replace(good, **changes)


@needs_bf16
def test_bf16_opens_once_it_was_seen_to_give_the_same_labels(tiny_bundle: Path):
    bundle = load_bundle(tiny_bundle)
    command = r'not known; measure it with: rgbd-fusion-seg benchmark .* --frames'
    with pytest.raises(EngineError, match=command):
        open_engine(bundle, 'openvino', precision='bf16')
    write_agreement(bundle, measured())
    assert 'bf16' in open_engine(bundle, 'openvino', precision='bf16').name


@needs_bf16
@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'label_agreement': 0.9949}, r'gave 99\.49% of the labels'),
        ({'frames': MIN_FRAMES - 1}, f'on {MIN_FRAMES - 1} frames'),
        ({'version': '2020.1'}, r'measured with version 2020\.1'),
    ],
)
def test_bf16_stays_shut_where_the_measurement_does_not_hold(tiny_bundle: Path, changes, sentence):
    bundle = load_bundle(tiny_bundle)
    path = write_agreement(bundle, measured(version=openvino.__version__))
    assert path == record_path(bundle, 'openvino', 'bf16')
    write_agreement(bundle, measured(**changes))
    with pytest.raises(EngineError, match=sentence):
        open_engine(bundle, 'openvino', precision='bf16')
    assert 'bf16' in open_engine(bundle, 'openvino', precision='bf16', unchecked=True).name


@needs_bf16
def test_a_measurement_counts_for_its_network_and_size_alone(tmp_path: Path):
    entry = {'batch': False, 'size': True, 'multiple': 16}
    card = tiny_card() | {'dynamic': entry}
    bundle = load_bundle(write_bundle(tmp_path / 'one', card, with_open_sizes(tiny_network())))
    write_agreement(bundle, measured())
    with pytest.raises(EngineError, match='not known'):
        open_engine(bundle.resized(32, 96), 'openvino', precision='bf16')
    other = load_bundle(write_bundle(tmp_path / 'two'))
    record_path(bundle, 'openvino', 'bf16').rename(record_path(other, 'openvino', 'bf16'))
    with pytest.raises(EngineError, match='another network'):
        open_engine(other, 'openvino', precision='bf16')
    record_path(other, 'openvino', 'bf16').write_text('{')
    with pytest.raises(EngineError, match='cannot be read'):
        open_engine(other, 'openvino', precision='bf16')
