"""The ONNX Runtime engine on small real networks, and every way a network can be wrong."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from bundles import (
    CLASS_NAMES,
    GAIN,
    tiny_card,
    tiny_network,
    with_open_sizes,
    write_bundle,
)
from onnx import TensorProto, helper

from rgbd_fusion_seg import engine
from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.engine import BACKENDS, available_backends, open_engine, probe_backend
from rgbd_fusion_seg.errors import BundleError, EngineError

onnx = pytest.importorskip('onnx')


def random_inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((1, 3, 48, 64), dtype=np.float32),
        rng.standard_normal((1, 3, 24, 32), dtype=np.float32),
    )


def tiny_logits(rgb: np.ndarray, hha: np.ndarray) -> np.ndarray:
    """The tiny network in numpy."""
    colour = rgb.reshape(1, 3, 6, 8, 8, 8).mean(axis=(3, 5)).mean(axis=1)
    height = hha.reshape(1, 3, 6, 4, 8, 4).mean(axis=(3, 5))[:, 1]
    signs = [(1 if k & 1 else -1, 1 if k & 2 else -1) for k in range(4)]
    return np.stack([GAIN * (b * colour + h * height) for b, h in signs], axis=1)


@pytest.mark.parametrize('backend', ['auto', 'onnxruntime'])
def test_logits_are_those_of_the_network(tiny_bundle: Path, backend):
    opened = open_engine(load_bundle(tiny_bundle), backend)
    rgb, hha = random_inputs()
    logits = opened.infer(rgb, hha)
    assert logits.dtype == np.float32
    assert logits.shape == (1, len(CLASS_NAMES), 6, 8)
    assert np.abs(logits - tiny_logits(rgb, hha)).max() < 2e-2  # weights are stored as fp16
    assert np.array_equal(opened.infer(rgb, hha), logits)


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_depth_in_metres_is_an_input_like_the_others(tmp_path: Path, backend):
    if not probe_backend(backend, {}).usable:
        pytest.skip('needs the extra [openvino]')
    card, network = (
        tiny_card(modalities=('rgb', 'depth')),
        tiny_network(modalities=('rgb', 'depth')),
    )
    opened = open_engine(load_bundle(write_bundle(tmp_path / 'metres', card, network)), backend)
    rgb, depth = random_inputs()
    colour, far = (
        x.reshape(1, 3, 6, n, 8, n).mean((1, 3, 5), dtype=np.float64)
        for x, n in ((rgb, 8), (depth, 4))
    )
    signs = [(1 if k & 1 else -1, 1 if k & 2 else -1) for k in range(4)]
    expected = np.stack([GAIN * (b * colour + f * far) for b, f in signs], axis=1)
    logits = opened.infer(rgb, depth=depth)
    assert np.abs(logits - expected).max() < 2e-2  # weights are stored as fp16
    assert np.array_equal(opened.infer(rgb=rgb, hha=depth, depth=depth), logits)
    with pytest.raises(EngineError, match='needs the inputs rgb, depth, and depth was not given'):
        opened.infer(rgb, depth)
    opened.close()


def test_results_stay_valid_while_the_engine_goes_on(tiny_bundle: Path):
    opened = open_engine(load_bundle(tiny_bundle))
    first = opened.infer(*random_inputs(0))
    kept = first.copy()
    opened.infer(*random_inputs(1))
    assert np.array_equal(first, kept)


def test_threads_are_the_usable_cores_unless_given(tiny_bundle: Path):
    bundle = load_bundle(tiny_bundle)
    assert f'{len(os.sched_getaffinity(0))} threads' in open_engine(bundle).name
    one = open_engine(bundle, num_threads=1)
    assert one.name == 'onnxruntime (CPU, 1 threads)'
    assert one._session.get_session_options().intra_op_num_threads == 1
    with pytest.raises(EngineError, match='at least 1, got 0'):
        open_engine(bundle, num_threads=0)


@pytest.mark.parametrize(
    ('version', 'spin_us', 'spins', 'limit'),
    [
        ('1.31.1', None, '1', '10'),
        ('1.26.0', 25, '1', '25'),
        ('1.31.1', 0, '0', None),
        ('1.31.1', -1, '1', None),
        ('1.25.2', 10, '0', None),
        ('1.25.2', -1, '1', None),
    ],
)
def test_idle_threads_wait_no_longer_than_told(
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    spin_us: int | None,
    spins: str,
    limit: str | None,
):
    """Older versions ignore the limit, and without one threads must not wait at all."""
    monkeypatch.setattr(onnxruntime, '__version__', version)
    chosen = {} if spin_us is None else {'spin_us': spin_us}
    opened = open_engine(load_bundle(tiny_bundle), 'onnxruntime', num_threads=2, **chosen)
    options = opened._session.get_session_options()
    assert options.get_session_config_entry('session.intra_op.allow_spinning') == spins
    if limit is None:
        with pytest.raises(RuntimeError, match='spin_duration_us'):
            options.get_session_config_entry('session.intra_op.spin_duration_us')
    else:
        assert options.get_session_config_entry('session.intra_op.spin_duration_us') == limit


def test_a_waiting_time_below_no_limit_is_refused(tiny_bundle: Path):
    with pytest.raises(EngineError, match='spin_us must be -1'):
        open_engine(load_bundle(tiny_bundle), 'onnxruntime', spin_us=-2)


def test_options_reach_the_session_and_change_no_logit(tiny_bundle: Path):
    bundle = load_bundle(tiny_bundle)
    expected = open_engine(bundle, 'onnxruntime').infer(*random_inputs())
    opened = open_engine(
        bundle, 'onnxruntime', num_threads=3, memory_arena=False, affinity='1;1-2'
    )
    options = opened._session.get_session_options()
    assert not options.enable_cpu_mem_arena
    assert options.get_session_config_entry('session.intra_op_thread_affinities') == '1;1-2'
    assert np.array_equal(opened.infer(*random_inputs()), expected)


@pytest.mark.parametrize('affinity', ['1', '1;2;3', 'all;1', '0;1', '1;', '1-1-1;1', '1,1-1;1'])
def test_an_affinity_that_does_not_fit_the_threads_is_refused(tiny_bundle: Path, affinity):
    with pytest.raises(EngineError, match='cores, such as 2, 2-4 or 2,4, of 2 threads'):
        open_engine(load_bundle(tiny_bundle), 'onnxruntime', num_threads=3, affinity=affinity)


def test_an_interval_of_cores_that_ends_before_it_begins_is_refused(
    tiny_bundle: Path, monkeypatch
):
    monkeypatch.setattr('os.cpu_count', lambda: 4)
    with pytest.raises(EngineError, match=r"'2-1' has 2-1, which ends before .* write 1-2$"):
        open_engine(load_bundle(tiny_bundle), 'onnxruntime', num_threads=2, affinity='2-1')


@pytest.mark.parametrize('affinity', ['{}', '1-{}', '1,{}'])
def test_an_affinity_to_a_core_that_is_not_there_is_refused(tiny_bundle: Path, affinity):
    beyond = (os.cpu_count() or 1) + 1
    with pytest.raises(EngineError, match=f'names core {beyond}; there are 1 to {beyond - 1}$'):
        open_engine(
            load_bundle(tiny_bundle),
            'onnxruntime',
            num_threads=2,
            affinity=affinity.format(beyond),
        )


def test_a_precision_that_the_chosen_backend_does_not_have_is_told(tiny_bundle: Path, monkeypatch):
    only = {name: BACKENDS[name] for name in ('onnxruntime', 'openvino')}
    monkeypatch.setattr('rgbd_fusion_seg.engine.BACKENDS', only)
    opened = open_engine(load_bundle(tiny_bundle), precision='bf16')
    assert opened.backend == 'onnxruntime'
    (step_down,) = opened.step_downs
    assert str(step_down).startswith('precision bf16 is not used: onnxruntime computes in the typ')
    assert not step_down.unexpected
    for precision in ('', 'fp32'):
        assert open_engine(load_bundle(tiny_bundle), precision=precision).step_downs == ()


def test_a_precision_that_no_backend_has_is_refused(tiny_bundle: Path):
    with pytest.raises(EngineError, match="no precision 'pf16'; choose one of: fp16, bf16, fp32"):
        open_engine(load_bundle(tiny_bundle), precision='pf16')


def test_a_closed_engine_says_so(tiny_bundle: Path):
    opened = open_engine(load_bundle(tiny_bundle))
    opened.close()
    opened.close()
    with pytest.raises(EngineError, match='closed'):
        opened.infer(*random_inputs())


def test_a_closed_engine_frees_its_network_though_it_is_held(tiny_bundle: Path):
    opened = open_engine(load_bundle(tiny_bundle), 'onnxruntime')
    network = weakref.ref(opened._session)
    opened.close()
    gc.collect()
    assert network() is None
    assert opened.name.startswith('onnxruntime')


@pytest.mark.parametrize('wrong', ['size', 'type'])
def test_inputs_of_another_form_are_an_engine_error(tiny_bundle: Path, wrong):
    rgb, hha = random_inputs()
    rgb = rgb[..., :32] if wrong == 'size' else rgb.astype(np.float64)
    with pytest.raises(EngineError, match='inference with onnxruntime'):
        open_engine(load_bundle(tiny_bundle)).infer(rgb, hha)


def test_unknown_backends_and_options_list_the_known_ones(tiny_bundle: Path):
    bundle = load_bundle(tiny_bundle)
    with pytest.raises(EngineError, match=r"'tpu'; choose one of: auto, .*onnxruntime"):
        open_engine(bundle, 'tpu')
    with pytest.raises(EngineError, match=r"no option 'speed'; it knows: num_threads"):
        open_engine(bundle, 'onnxruntime', speed=3)


def test_backends_tell_their_version_or_the_reason(monkeypatch, tiny_bundle: Path):
    import onnxruntime

    assert ('onnxruntime', True, onnxruntime.__version__) in available_backends()
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    monkeypatch.setitem(sys.modules, 'openvino', None)
    (backend,) = (b for b in available_backends() if b.name == 'onnxruntime')
    assert not backend.usable
    assert 'pip install onnxruntime' in backend.detail
    with pytest.raises(EngineError, match=r'onnxruntime is not used: .*pip install'):
        open_engine(load_bundle(tiny_bundle))


def test_backends_are_imported_only_when_wanted():
    """The package itself must load without any backend installed."""
    import subprocess

    code = (
        'import sys; sys.modules["onnxruntime"] = None; import rgbd_fusion_seg.segmenter; '
        'print("rgbd_fusion_seg.engine.onnxruntime" in sys.modules)'
    )
    root = Path(engine.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == 'False'


def retyped(network: onnx.ModelProto, element_type: int) -> onnx.ModelProto:
    network.graph.input[0].type.tensor_type.elem_type = element_type
    network.graph.node.insert(
        0, helper.make_node('Cast', ['rgb'], ['rgb_float'], to=TensorProto.FLOAT)
    )
    network.graph.node[1].input[0] = 'rgb_float'
    return network


def with_second_output(network: onnx.ModelProto) -> onnx.ModelProto:
    network.graph.output.append(
        helper.make_tensor_value_info('both', TensorProto.FLOAT, (1, 6, 6, 8))
    )
    return network


@pytest.mark.parametrize(
    ('network', 'words'),
    [
        (lambda: b'this is no network', ['model.onnx', 'no ONNX network']),
        (lambda: b'', ['model.onnx', 'no ONNX network']),
        (lambda: tiny_network().SerializeToString()[:200], ['no ONNX network']),
        (lambda: tiny_network(num_classes=7), ['returns 7 classes', 'card lists 4']),
        (
            lambda: with_open_sizes(tiny_network(num_classes=7)),
            ['returns 7 classes', 'card lists 4'],
        ),
        (lambda: tiny_network(96, 128), ['[1, 3, 96, 128]', '[1, 3, 48, 64]']),
        (
            lambda: tiny_network(input_names=('image', 'hha')),
            ['inputs image, hha', 'rgb and hha'],
        ),
        (lambda: retyped(tiny_network(), TensorProto.UINT8), ['rgb', 'tensor(uint8)', 'float32']),
        (lambda: with_second_output(tiny_network()), ['2 outputs']),
    ],
)
def test_a_network_that_is_not_the_card_s_is_refused_when_it_is_opened(tmp_path, network, words):
    bundle = load_bundle(write_bundle(tmp_path / 'bad', network=network()))
    with pytest.raises(BundleError) as caught:
        open_engine(bundle)
    assert '\n' not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_wrong_stride_is_refused(tmp_path):
    card = tiny_card()
    card['output']['stride'] = 4
    bundle = load_bundle(write_bundle(tmp_path / 'bad', card))
    with pytest.raises(BundleError, match=r'\[1, 4, 6, 8\].*\[1, 4, 12, 16\]'):
        open_engine(bundle)


def test_a_network_with_open_sizes_runs_with_fixed_ones(tmp_path):
    folder = write_bundle(tmp_path / 'open', network=with_open_sizes(tiny_network()))
    rgb, hha = random_inputs()
    opened = open_engine(load_bundle(folder), 'onnxruntime')
    assert np.abs(opened.infer(rgb, hha) - tiny_logits(rgb, hha)).max() < 2e-2
    shapes = {tensor.name: tensor.shape for tensor in opened._session.get_inputs()}
    assert shapes == {'rgb': [1, 3, 48, 64], 'hha': [1, 3, 24, 32]}


def test_a_network_with_open_sizes_runs_at_the_size_of_its_bundle(tmp_path):
    card = tiny_card() | {'dynamic': {'batch': False, 'size': True, 'multiple': 16}}
    bundle = load_bundle(write_bundle(tmp_path / 'open', card, with_open_sizes(tiny_network())))
    opened = open_engine(bundle.resized(32, 96), 'onnxruntime')
    rgb, hha = (tensor[..., : tensor.shape[-1] // 2] for tensor in random_inputs())
    rgb, hha = np.concatenate([rgb, rgb], 2), np.concatenate([hha, hha], 2)
    halves = tiny_logits(*(np.tile(t, 2) for t in (rgb[:, :, :48], hha[:, :, :24])))[..., :4]
    logits = opened.infer(rgb, hha)
    assert np.abs(logits - np.concatenate([halves, halves], 2)).max() < 2e-2


@pytest.mark.parametrize('modality', ['rgb', 'hha'])
def test_a_network_of_one_modality_gets_its_input_alone(tmp_path, modality):
    card, network = tiny_card(modalities=(modality,)), tiny_network(modalities=(modality,))
    opened = open_engine(load_bundle(write_bundle(tmp_path / modality, card, network)))
    rgb, hha = random_inputs()
    seen = {'rgb': rgb, 'hha': hha}[modality]
    logits = opened.infer(**{modality: seen})
    blind = tiny_logits(rgb, 0 * hha) if modality == 'rgb' else tiny_logits(0 * rgb, hha)
    possible = [0, 1] if modality == 'rgb' else [0, 2]
    assert np.abs(logits - blind)[:, possible].max() < 2e-2
    # What the network does not have is not looked at, so callers may hand over both.
    assert np.array_equal(opened.infer(rgb, hha), logits)
    with pytest.raises(EngineError, match=f'needs the inputs {modality}'):
        opened.infer(**{'hha' if modality == 'rgb' else 'rgb': seen})


def test_an_open_batch_takes_several_images_at_once(tmp_path):
    card = tiny_card() | {'dynamic': {'batch': True, 'size': False, 'multiple': 16}}
    folder = write_bundle(tmp_path / 'open', card, with_open_sizes(tiny_network()))
    opened = open_engine(load_bundle(folder))
    singles = [random_inputs(seed) for seed in range(3)]
    rgb, hha = (np.concatenate(tensors) for tensors in zip(*singles, strict=True))
    expected = np.concatenate([opened.infer(*pair) for pair in singles])
    np.testing.assert_allclose(opened.infer(rgb, hha), expected, atol=1e-5)


def test_a_network_of_another_size_than_its_bundle_was_given_is_refused(tmp_path):
    card = tiny_card() | {'dynamic': {'batch': False, 'size': True, 'multiple': 16}}
    bundle = load_bundle(write_bundle(tmp_path / 'fixed', card))  # the graph is not dynamic
    with pytest.raises(BundleError, match=r'\[1, 3, 48, 64\].*\[1, 3, 96, 64\]'):
        open_engine(bundle.resized(64, 96))


def test_weights_that_vanish_after_loading_are_named(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path / 'gone'))
    bundle.weights_path.unlink()
    with pytest.raises(BundleError, match=r'model\.onnx'):
        open_engine(bundle)
