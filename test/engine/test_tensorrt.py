"""The TensorRT backend: what it refuses, and how it runs engines.

No GPU is needed. The refusals meet the real CUDA bindings and the real libraries; the running
meets a CUDA runtime in host memory and engines that ONNX Runtime computes, so its bytes are real.
`test/gpu` holds the same contract on a GPU.
"""

from __future__ import annotations

import ctypes.util
import dataclasses
import gc
import inspect
import json
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from bundles import tiny_card, tiny_network, with_open_sizes, write_bundle
from onnx import TensorProto, helper

from rgbd_fusion_seg.bundle import ModelBundle, load_bundle
from rgbd_fusion_seg.engine import StepDown, open_engine, tensorrt
from rgbd_fusion_seg.engine.engine_files import EngineCard, EngineTensor, read_card, write_engine
from rgbd_fusion_seg.engine.tensorrt_bindings import logger_of
from rgbd_fusion_seg.errors import EngineError
from rgbd_fusion_seg.hardware import system_name

pytest.importorskip('cuda.bindings.runtime', reason='needs cuda-python')

import tensorrt_standin
from cuda_standin import Error, HostCuda
from tensorrt_standin import StandInTrt, plan_of

onnx = pytest.importorskip('onnx')

FIXED = (
    EngineTensor('rgb', 'input', 'float32', (1, 3, 48, 64)),
    EngineTensor('hha', 'input', 'float32', (1, 3, 24, 32)),
    EngineTensor('logits', 'output', 'float32', (1, 4, 6, 8)),
)


def random_inputs(seed: int = 0, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        'rgb': rng.standard_normal((batch, 3, 48, 64), dtype=np.float32),
        'hha': rng.standard_normal((batch, 3, 24, 32), dtype=np.float32),
    }


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch) -> ModelBundle:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return load_bundle(write_bundle(tmp_path / 'tiny'))


@pytest.fixture
def cuda(monkeypatch) -> HostCuda:
    """A GPU of compute capability 8.7; all that was made on it must be freed in the end."""
    cuda = HostCuda()
    monkeypatch.setitem(sys.modules, 'cuda.bindings.runtime', cuda)
    yield cuda
    gc.collect()
    assert cuda.live == 0


def install(monkeypatch, cuda: HostCuda, name: str = 'tensorrt', **options) -> StandInTrt:
    for other in ('tensorrt', 'tensorrt_rtx', 'tensorrt_lean'):
        monkeypatch.setitem(sys.modules, other, None)
        if other != 'tensorrt':
            monkeypatch.setitem(sys.modules, f'{other}_libs', None)
    trt = StandInTrt(cuda, rtx=name == 'tensorrt_rtx', **options)
    monkeypatch.setitem(sys.modules, name, trt)
    return trt


@pytest.fixture
def trt(monkeypatch, cuda: HostCuda) -> StandInTrt:
    return install(monkeypatch, cuda)


def write(bundle: ModelBundle, name: str = 'tiny', plan: bytes = b'', **entries) -> Path:
    """Write an engine of the stand-in into a bundle; return the path of its card."""
    card = EngineCard(
        bundle.name,
        bundle.weights_sha256,
        **{
            'flavour': 'tensorrt',
            'version': '10.3.0',
            'precision': 'fp16',
            'compute_capabilities': ('8.7',),
            'gpu': 'Stand-in GPU',
            'tensors': FIXED,
            'platform': system_name(),
            'memory_mib': HostCuda().memory_bytes >> 20,
        }
        | entries,
    )
    folder = bundle.path / 'engines'
    folder.mkdir(exist_ok=True)
    return write_engine(folder, name, plan or plan_of(onnx.load(bundle.weights_path)), card)


def expected(bundle: ModelBundle, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return open_engine(bundle, 'onnxruntime').infer(**feeds)


# Running.


@pytest.mark.parametrize('cuda_graph', [True, False])
def test_logits_are_those_of_onnx_runtime_frame_after_frame(bundle, cuda, trt, cuda_graph):
    write(bundle)
    engine = open_engine(bundle, 'tensorrt', cuda_graph=cuda_graph)
    assert engine.uses_cuda_graph == cuda_graph
    results = [engine.infer(**random_inputs(seed)) for seed in range(4)]
    for seed, logits in enumerate(results):  # also those of long ago: they are the caller's
        np.testing.assert_allclose(logits, expected(bundle, random_inputs(seed)), atol=1e-5)
    assert engine.name == 'tensorrt (Stand-in GPU, fp16, tensorrt 10.3.0)'
    engine.close()
    engine.close()
    assert cuda.live == 0
    with pytest.raises(EngineError, match='is closed'):
        engine.infer(**random_inputs())


def test_an_inference_with_a_graph_is_one_launch(bundle, cuda, trt):
    write(bundle)
    engine = open_engine(bundle, 'tensorrt')
    cuda.calls.clear()
    engine.infer(**random_inputs())
    assert cuda.calls == ['cudaSetDevice', 'cudaGraphLaunch', 'cudaStreamSynchronize']
    engine.close()


def test_inputs_that_are_not_contiguous_and_results_that_are_changed_do_no_harm(bundle, cuda, trt):
    write(bundle)
    engine = open_engine(bundle, 'tensorrt')
    feeds = random_inputs()
    mirrored = {name: tensor[..., ::-1] for name, tensor in feeds.items()}
    engine.infer(**mirrored)[:] = np.nan
    np.testing.assert_allclose(engine.infer(**mirrored), expected(bundle, mirrored), atol=1e-5)
    engine.close()


def test_two_engines_run_side_by_side_from_several_threads(bundle, cuda, trt):
    cuda.num_devices = 2
    write(bundle)
    engines = [open_engine(bundle, 'tensorrt', device=device) for device in (0, 1)]
    wanted = [expected(bundle, random_inputs(seed)) for seed in range(8)]
    wrong: list[int] = []

    def work(engine, offset):
        for seed in range(offset, 8, 2):
            if not np.allclose(engine.infer(**random_inputs(seed)), wanted[seed], atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(engine, i)) for i, engine in enumerate(engines)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for engine in engines:
        engine.close()


def test_an_engine_that_nobody_closes_frees_its_memory(bundle, cuda, trt):
    write(bundle)
    engine = open_engine(bundle, 'tensorrt')
    assert cuda.live
    del engine
    gc.collect()
    assert cuda.live == 0


def test_depth_in_metres_is_an_input_like_the_others(tmp_path, monkeypatch, trt):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    card, network = (
        tiny_card(modalities=('rgb', 'depth')),
        tiny_network(modalities=('rgb', 'depth')),
    )
    bundle = load_bundle(write_bundle(tmp_path / 'metres', card, network))
    write(bundle, tensors=[dataclasses.replace(FIXED[1], name='depth'), FIXED[0], FIXED[2]])
    engine = open_engine(bundle, 'tensorrt')
    rgb, depth = random_inputs().values()
    wanted = expected(bundle, {'rgb': rgb, 'depth': depth})
    np.testing.assert_allclose(engine.infer(rgb, None, depth), wanted, atol=1e-5)
    with pytest.raises(EngineError, match='depth'):
        engine.infer(rgb, depth)
    engine.close()


def test_a_refused_graph_is_said_once_and_inference_goes_on(bundle, cuda, monkeypatch, caplog):
    install(monkeypatch, cuda, capturable=False)
    write(bundle)
    engine = open_engine(bundle, 'tensorrt')
    feeds = random_inputs()
    for _ in range(3):
        np.testing.assert_allclose(engine.infer(**feeds), expected(bundle, feeds), atol=1e-5)
    assert not engine.uses_cuda_graph
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert 'without a CUDA graph' in warnings[0]
    assert 'not permitted in a capture' in warnings[0]
    engine.close()


def test_a_refused_graph_is_not_tried_again_for_other_shapes(tmp_path, monkeypatch, cuda, caplog):
    install(monkeypatch, cuda, capturable=False)
    bundle = open_batch(tmp_path, monkeypatch)
    engine = open_engine(bundle, 'tensorrt')
    for batch in (2, 1, 4):
        feeds = random_inputs(batch, batch)
        np.testing.assert_allclose(engine.infer(**feeds), expected(bundle, feeds), atol=1e-5)
    assert cuda.calls.count('cudaStreamBeginCapture') == 1
    assert sum('without a CUDA graph' in record.getMessage() for record in caplog.records) == 1
    engine.close()


@pytest.mark.parametrize('function', ['cudaGraphInstantiate', 'cudaStreamBeginCapture'])
def test_a_graph_that_cuda_refuses_leaves_nothing_behind(bundle, cuda, trt, function, caplog):
    write(bundle)
    cuda.failing[function] = [Error.cudaErrorNotSupported]
    engine = open_engine(bundle, 'tensorrt')
    np.testing.assert_allclose(
        engine.infer(**random_inputs()), expected(bundle, random_inputs()), atol=1e-5
    )
    assert not cuda.graphs
    assert f'work cannot be recorded with {function} (cudaErrorNotSupported' in caplog.text
    assert 'dmesg' not in caplog.text  # the device is well
    engine.close()


@pytest.mark.parametrize('modality', ['rgb', 'hha'])
def test_a_network_of_one_modality_gets_its_input_alone(
    tmp_path, monkeypatch, cuda, trt, modality
):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    network = tiny_network(modalities=(modality,))
    folder = write_bundle(tmp_path / modality, tiny_card(modalities=(modality,)), network)
    bundle = load_bundle(folder)
    write(bundle, tensors=tuple(t for t in FIXED if t.name in (modality, 'logits')))
    engine = open_engine(bundle, 'tensorrt')
    np.testing.assert_allclose(
        engine.infer(**random_inputs()), expected(bundle, random_inputs()), atol=1e-5
    )
    with pytest.raises(EngineError, match=f'needs the input {modality}'):
        engine.infer()
    engine.close()


def open_batch(tmp_path: Path, monkeypatch, most: int = 4, **entries) -> ModelBundle:
    """Return a bundle with any batch and size, and its engine for batches up to `most`."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    card = tiny_card() | {'dynamic': {'batch': True, 'size': True, 'multiple': 16}}
    bundle = load_bundle(write_bundle(tmp_path / 'open', card, with_open_sizes(tiny_network())))
    profile = {
        name: [(n, 3, *size) for n in (1, 1, most)]
        for name, size in {'rgb': (48, 64), 'hha': (24, 32)}.items()
    }
    tensors = tuple(
        dataclasses.replace(
            tensor, shape=(-1,) * 4, profile=tuple(map(tuple, profile.get(tensor.name, ())))
        )
        for tensor in FIXED
    )
    plan = plan_of(onnx.load(bundle.weights_path), profile)
    write(bundle, plan=plan, tensors=tensors, **entries)
    return bundle


def test_an_open_batch_takes_any_number_of_images_in_any_order(tmp_path, monkeypatch, cuda, trt):
    bundle = open_batch(tmp_path, monkeypatch)
    engine = open_engine(bundle, 'tensorrt')
    kept = []
    for seed, batch in enumerate((1, 4, 2, 4, 1)):
        feeds = random_inputs(seed, batch)
        logits = engine.infer(**feeds)
        assert logits.shape == (batch, 4, 6, 8)
        assert engine.uses_cuda_graph
        kept.append((feeds, logits))
    for feeds, logits in kept:
        np.testing.assert_allclose(logits, expected(bundle, feeds), atol=1e-5)
    assert len(cuda.executables) == 1  # the graphs of other shapes are gone
    with pytest.raises(EngineError, match=r'takes 1x3x48x64 to 4x3x48x64 .* not 5x3x48x64'):
        engine.infer(**random_inputs(0, 5))
    np.testing.assert_allclose(
        engine.infer(**random_inputs()), expected(bundle, random_inputs()), atol=1e-5
    )
    engine.close()


def test_a_batch_beyond_the_memory_leaves_the_engine_usable(tmp_path, monkeypatch, cuda, trt):
    bundle = open_batch(tmp_path, monkeypatch)
    engine = open_engine(bundle, 'tensorrt')
    cuda.memory_bytes = sum(map(len, cuda.device_memory.values())) + 1000
    with pytest.raises(EngineError, match=r'out of memory \(cudaMalloc for 0\.\d MB\)'):
        engine.infer(**random_inputs(0, 4))
    np.testing.assert_allclose(
        engine.infer(**random_inputs()), expected(bundle, random_inputs()), atol=1e-5
    )
    engine.close()


@pytest.mark.parametrize('wrong', ['size', 'type', 'absent'])
def test_inputs_of_another_form_are_an_engine_error(bundle, cuda, trt, wrong):
    write(bundle)
    engine = open_engine(bundle, 'tensorrt')
    feeds = random_inputs()
    feeds['rgb'] = {
        'size': feeds['rgb'][..., :32],
        'type': feeds['rgb'].astype(np.float64),
        'absent': None,
    }[wrong]
    words = {
        'size': 'takes 1x3x48x64 for its input rgb, not 1x3x48x32',
        'type': 'takes float32 for its input rgb, not float64',
        'absent': 'needs the input rgb',
    }
    with pytest.raises(EngineError, match=words[wrong]):
        engine.infer(**feeds)
    engine.close()


def test_a_graph_of_bytes_runs_through_the_same_engine(tmp_path, monkeypatch, cuda, trt):
    """The form of a fused bundle: uint8 in, several outputs of uint8."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    frame, labels = (1, 48, 64, 3), (1, 48, 64)
    kind = TensorProto.UINT8
    nodes = [
        helper.make_node('ReduceMax', ['rgb', 'axis'], ['labels'], keepdims=0),
        helper.make_node('ReduceMin', ['rgb', 'axis'], ['confidence'], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        'bytes',
        [helper.make_tensor_value_info('rgb', kind, frame)],
        [helper.make_tensor_value_info(name, kind, labels) for name in ('labels', 'confidence')],
        [onnx.numpy_helper.from_array(np.array([3]), 'axis')],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)
    base = {'name': 'tiny', 'sha256': '0' * 64}
    card = tiny_card(modalities=('rgb',)) | {
        'fused': {'width': 64, 'height': 48, 'hha': False, 'base': base}
    }
    bundle = load_bundle(write_bundle(tmp_path / 'fused', card, network))
    tensors = (
        EngineTensor('rgb', 'input', 'uint8', frame),
        EngineTensor('labels', 'output', 'uint8', labels),
        EngineTensor('confidence', 'output', 'uint8', labels),
    )
    write(bundle, tensors=tensors)
    engine = open_engine(bundle, 'tensorrt')
    picture = np.random.default_rng(0).integers(0, 256, frame, np.uint8)
    results = engine.run({'rgb': picture})
    assert np.array_equal(results['labels'], picture.max(axis=3))
    assert np.array_equal(results['confidence'], picture.min(axis=3))
    with pytest.raises(EngineError, match='labels, confidence, no logits'):
        engine.infer(rgb=picture)
    engine.close()


# Failures of the device.


def test_a_device_that_fails_while_running_is_one_engine_error(bundle, cuda, trt):
    write(bundle)
    engine = open_engine(bundle, 'tensorrt')
    cuda.failing['cudaStreamSynchronize'] = [Error.cudaErrorIllegalAddress]
    for _ in range(2):  # nothing works after it
        with pytest.raises(EngineError, match='cudaErrorIllegalAddress') as caught:
            engine.infer(**random_inputs())
        assert '\n' not in str(caught.value)
    engine.close()


@pytest.mark.parametrize(
    ('function', 'skipped'),
    [
        ('cudaStreamCreateWithFlags', 0),
        ('cudaMalloc', 0),
        ('cudaMalloc', 1),
        ('cudaMalloc', 3),
        ('cudaMallocHost', 0),
        ('cudaMallocHost', 2),
        ('cudaMemcpyAsync', 1),
    ],
)
def test_whatever_fails_while_opening_everything_is_freed(bundle, cuda, trt, function, skipped):
    write(bundle)
    cuda.failing[function] = [None] * skipped + [Error.cudaErrorMemoryAllocation]
    with pytest.raises(EngineError, match='out of memory'):
        open_engine(bundle, 'tensorrt')
    gc.collect()
    assert cuda.live == 0


def test_an_engine_that_could_not_be_opened_keeps_no_memory(bundle, cuda, trt):
    """The next one needs it, on this GPU, before Python happens to collect garbage."""
    write(bundle)
    cuda.failing['cudaMalloc'] = [None, None, Error.cudaErrorMemoryAllocation]
    gc.disable()
    try:
        engine = open_engine(bundle)
        assert engine.backend != 'tensorrt'
        assert trt.alive() == 0
    finally:
        gc.enable()
    assert any('out of memory' in step.reason for step in engine.step_downs)


def test_the_lean_runtime_without_a_driver_is_refused_and_crashes_nothing():
    """It is returned all the same; using it is a segmentation fault, and so is freeing it."""
    pytest.importorskip('tensorrt_lean_libs', reason='needs tensorrt-lean-cu13')
    if ctypes.util.find_library('cuda'):
        pytest.skip('there is a driver here')
    script = (
        'from types import SimpleNamespace\n'
        'from rgbd_fusion_seg.engine import tensorrt\n'
        'from rgbd_fusion_seg.engine.flavours import import_flavour\n'
        'card = SimpleNamespace(engine_file="some.engine", bundle="tiny", options={})\n'
        'for _ in range(2):\n'
        '    try:\n'
        '        tensorrt._deserialise(import_flavour("tensorrt_lean"), bytes(99), card)\n'
        '    except tensorrt.EngineError as error:\n'
        '        print(error, flush=True)\n'
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r'cannot load the engine some.engine of tiny: .*', done.stdout)) == 2
    assert 'update the driver' in done.stdout


def test_a_runtime_without_a_driver_for_its_cuda_is_not_used(bundle, cuda, monkeypatch):
    """It is not even asked whether the engine fits."""
    trt = install(
        monkeypatch,
        cuda,
        complaint='createInferRuntime: Error Code 6: API Usage Error (CUDA initialization failure '
        'with error: 35. In checkCudaInstallation)',
    )
    write(bundle)
    with pytest.raises(EngineError, match=r'failure with error: 35.*update the driver.*cu12'):
        open_engine(bundle, 'tensorrt')
    assert trt.runtime.plans == 0


def test_a_context_that_needs_too_much_memory_tells_what_tensorrt_said(bundle, cuda, monkeypatch):
    install(monkeypatch, cuda, context_bytes=2 << 30)
    write(bundle)
    with pytest.raises(EngineError, match=r'cannot load .*out of memory') as caught:
        open_engine(bundle, 'tensorrt')
    assert 'end other programs that use the GPU' in str(caught.value)
    assert 'build' not in str(caught.value)


@pytest.mark.parametrize('words', ['Error Code 2: OutOfMemory (no further information)', 'other'])
def test_a_build_helps_where_an_engine_is_absent_or_damaged_and_not_for_want_of_memory(
    bundle, cuda, trt, monkeypatch, words
):
    def helps() -> bool:
        engine = open_engine(bundle)
        (step_down,) = (s for s in engine.step_downs if s.backend == 'tensorrt')
        assert step_down.unexpected
        return step_down.build_helps

    assert helps()
    path = write(bundle)
    plan = path.parent / read_card(path).engine_file
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-1])
    assert helps()
    plan.write_bytes(whole)

    def refuse(runtime, plan):
        runtime.logger.log(tensorrt_standin.ILogger.ERROR, words)

    monkeypatch.setattr(tensorrt_standin.Runtime, 'deserialize_cuda_engine', refuse)
    assert not helps()
    remedy = 'end other programs' if 'Memory' in words else 'build it again with --force'
    with pytest.raises(EngineError, match=rf'{re.escape(words)}; {remedy}'):
        open_engine(bundle, 'tensorrt')
    write(bundle, 'damaged', precision='fp32')
    next(path.parent.glob('damaged-*.engine')).write_bytes(b'')
    assert not helps()


@pytest.mark.parametrize(
    ('flavour', 'capability', 'words'),
    [
        ('tensorrt', (8, 7), ''),
        ('tensorrt_rtx', (8, 9), ''),
        ('tensorrt_rtx', (7, 5), ''),
        ('tensorrt_rtx', (12, 9), ''),
        ('tensorrt_rtx', (8, 7), 'tensorrt_rtx 11.0.0 has none for it; tensorrt is not here'),
        ('tensorrt_rtx', (9, 0), 'tensorrt_rtx 11.0.0 has none for it; tensorrt is not here'),
        ('tensorrt_lean', (8, 9), 'copy an engine here that was built with --version-compatible'),
    ],
)
@pytest.mark.parametrize('damaged', [False, True])
def test_a_build_is_not_recommended_where_nothing_can_build(
    bundle, cuda, monkeypatch, flavour, capability, words, damaged
):
    cuda.capability = capability
    install(monkeypatch, cuda, flavour, version='11.0.0')
    if damaged:
        path = write(
            bundle,
            flavour='tensorrt' if flavour == 'tensorrt_lean' else flavour,
            version='11.0.0',
            compute_capabilities=('{}.{}'.format(*capability),),
            options={'version_compatible': flavour == 'tensorrt_lean'},
        )
        (path.parent / read_card(path).engine_file).unlink()
    engine = open_engine(bundle)
    (step_down,) = (s for s in engine.step_downs if s.backend == 'tensorrt')
    assert step_down.unexpected
    assert step_down.build_helps == (not words)
    if damaged:
        assert 'cannot be read' in step_down.reason
    else:
        assert ('rgbd-fusion-seg build-engine' in step_down.reason) == (not words)
        assert words in step_down.reason
        assert ('pip install tensorrt)' in step_down.reason) == bool(words)


# Choosing and validating files.


@pytest.mark.parametrize('backend', ['tensorrt', 'auto'])
def test_a_damaged_engine_is_passed_over_for_the_next_best(bundle, cuda, trt, backend):
    path = write(bundle, 'a_half', precision='fp16')
    (path.parent / read_card(path).engine_file).write_bytes(b'plan cut')
    write(bundle, 'b_full', precision='fp32')
    engine = open_engine(bundle, backend)
    assert engine.card.precision == 'fp32'
    (passed,) = engine.step_downs
    assert passed.unexpected
    assert str(passed).startswith(f'{path.name} is not used: ')
    assert 'damaged, cut short or replaced' in passed.reason
    engine.close()
    with pytest.raises(EngineError, match='damaged, cut short or replaced'):
        open_engine(bundle, 'tensorrt', precision='fp16')


def test_a_plan_that_tensorrt_cannot_read_gives_its_first_error(bundle, cuda, trt):
    write(bundle, plan=b'not a plan')
    with pytest.raises(EngineError, match=r'tensorrt 10\.3\.0 cannot load .*parsePlan') as caught:
        open_engine(bundle, 'tensorrt')
    assert 'follows from it' not in str(caught.value)


@pytest.mark.parametrize(
    ('tensors', 'name'),
    [
        ((*FIXED[:2], dataclasses.replace(FIXED[2], shape=(1, 4, 12, 16))), 'logits'),
        ((*FIXED[:2], dataclasses.replace(FIXED[2], dtype='uint8')), 'logits'),
        ((*FIXED, EngineTensor('labels', 'output', 'uint8', (1, 48, 64))), 'labels'),
        (FIXED[:2], 'logits'),
    ],
)
def test_an_engine_that_contradicts_its_card_is_refused(bundle, cuda, trt, tensors, name):
    write(bundle, tensors=tensors)
    with pytest.raises(EngineError, match=f'not as its card describes it, see {name}'):
        open_engine(bundle, 'tensorrt')


def test_an_engine_with_other_outputs_than_the_bundle_is_refused(bundle, cuda, trt):
    seven = dataclasses.replace(FIXED[2], shape=(1, 7, 6, 8))
    write(bundle, plan=plan_of(tiny_network(num_classes=7)), tensors=(*FIXED[:2], seven))
    with pytest.raises(
        EngineError, match=r'\[1, 7, 6, 8\], expected logits float32 \[1, 4, 6, 8\]'
    ):
        open_engine(bundle, 'tensorrt')


def test_an_engine_file_may_be_named_itself(bundle, cuda, trt, tmp_path):
    path = write(bundle, 'half', precision='fp16')
    full = write(bundle, 'full', precision='fp32')
    for name in (full, full.parent / read_card(full).engine_file):
        engine = open_engine(bundle, 'tensorrt', engine_file=name)
        assert engine.card.precision == 'fp32'
        engine.close()
    with pytest.raises(EngineError, match=r'absent\.json'):
        open_engine(bundle, 'tensorrt', engine_file=tmp_path / 'absent.json')
    path.unlink()
    orphan = next(path.parent.glob('half-*.engine'))
    with pytest.raises(EngineError, match='no card beside it'):
        open_engine(bundle, 'tensorrt', engine_file=orphan)


def test_only_a_version_compatible_engine_may_bring_code_along(bundle, cuda, trt):
    write(bundle)
    open_engine(bundle, 'tensorrt').close()
    assert trt.runtime.engine_host_code_allowed is False
    write(bundle, version='10.0.1', options={'version_compatible': True})
    open_engine(bundle, 'tensorrt').close()
    assert trt.runtime.engine_host_code_allowed is True


def test_auto_takes_it_first_and_tells_why_it_could_not(bundle, cuda, trt):
    card = write(bundle)
    engine = open_engine(bundle)
    assert engine.backend == 'tensorrt'
    engine.close()
    card.unlink()
    engine = open_engine(bundle)
    assert engine.backend == 'onnxruntime'
    (reason,) = (s.reason for s in engine.step_downs if s.backend == 'tensorrt')
    assert 'there is no TensorRT engine of tiny' in reason
    assert f'rgbd-fusion-seg build-engine {bundle.path}' in reason
    assert tensorrt.probe() == (
        True,
        'tensorrt 10.3.0 on Stand-in GPU, compute capability 8.7',
    )


def test_the_gpu_that_is_meant_is_looked_at(bundle, cuda, trt):
    write(bundle)
    engine = open_engine(bundle, device=1)
    assert engine.backend == 'onnxruntime'
    (step_down,) = (s for s in engine.step_downs if s.backend == 'tensorrt')
    words = 'there is no CUDA device 1; this machine has 1, numbered from 0'
    assert step_down == StepDown('tensorrt', words, unexpected=False)
    with pytest.raises(EngineError, match=f'tensorrt cannot run here: {words}'):
        open_engine(bundle, 'tensorrt', device=1)
    assert not trt.configs
    assert 'cudaSetDevice' not in cuda.calls


# TensorRT-RTX.


RTX = {'flavour': 'tensorrt_rtx', 'version': '1.7.1'}


def test_rtx_keeps_compiled_kernels_for_the_next_start(bundle, cuda, monkeypatch):
    trt = install(monkeypatch, cuda, 'tensorrt_rtx', version='1.7.1')
    path = write(bundle, **RTX)
    for _ in range(2):
        engine = open_engine(bundle, 'tensorrt')
        np.testing.assert_allclose(
            engine.infer(**random_inputs()), expected(bundle, random_inputs()), atol=1e-5
        )
        assert engine.uses_cuda_graph
        engine.close()
    assert [config.cache.loaded for config in trt.configs] == [b'', b'kernels compiled']
    assert trt.configs[0].cuda_graph_strategy.name == 'DISABLED'
    assert trt.configs[0].dynamic_shapes_kernel_specialization_strategy.name == 'EAGER'
    # Those of another build are not used, and damaged ones do no harm.
    (kept,) = path.parent.glob('*.kernels')
    assert kept.name == f'{path.stem}-stand-in-gpu.kernels'
    write(bundle, plan=plan_of(tiny_network()) + b' ', **RTX)
    monkeypatch.setattr(tensorrt_standin.CudaEngine, '__init__', _lenient_init)
    open_engine(bundle, 'tensorrt').close()
    assert trt.configs[-1].cache.loaded == b''
    kept.write_bytes(kept.read_bytes()[:70])
    open_engine(bundle, 'tensorrt').close()
    assert trt.configs[-1].cache.loaded == b''
    assert kept.read_bytes().endswith(b'kernels compiled')


_strict_init = tensorrt_standin.CudaEngine.__init__


def _lenient_init(self, runtime, profile, network):
    _strict_init(self, runtime, profile, network.rstrip(b' '))


def test_rtx_captures_graphs_itself_where_none_can_be_recorded_around_it(
    bundle, cuda, monkeypatch, caplog
):
    trt = install(monkeypatch, cuda, 'tensorrt_rtx', version='1.7.1', capturable=False)
    write(bundle, **RTX)
    engine = open_engine(bundle, 'tensorrt')
    strategies = [config.cuda_graph_strategy.name for config in trt.configs]
    assert strategies == ['DISABLED', 'WHOLE_GRAPH_CAPTURE']
    assert trt.configs[0].cache is trt.configs[1].cache  # what the first one compiled is not lost
    assert not engine.uses_cuda_graph
    assert 'cudaStreamBeginCapture' not in cuda.calls
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    np.testing.assert_allclose(
        engine.infer(**random_inputs()), expected(bundle, random_inputs()), atol=1e-5
    )
    engine.close()


def test_rtx_is_asked_about_graphs_with_shapes_that_an_open_engine_has(
    tmp_path, cuda, monkeypatch
):
    trt = install(monkeypatch, cuda, 'tensorrt_rtx', version='1.7.1')
    bundle = open_batch(tmp_path, monkeypatch, **RTX)
    engine = open_engine(bundle, 'tensorrt')
    assert engine.uses_cuda_graph
    assert len(trt.configs) == 1
    engine.close()


def test_kernels_that_do_not_fit_are_not_the_reason_of_a_later_failure(bundle, cuda, monkeypatch):
    trt = install(monkeypatch, cuda, 'tensorrt_rtx', version='1.7.1')
    path = write(bundle, **RTX)
    open_engine(bundle, 'tensorrt').close()
    (kept,) = path.parent.glob('*.kernels')
    kept.write_bytes(kept.read_bytes() + b' of another driver')
    trt.context_bytes = cuda.memory_bytes + 1
    with pytest.raises(EngineError, match='out of memory') as caught:
        open_engine(bundle, 'tensorrt')
    assert 'another version' not in str(caught.value)


def test_rtx_captures_nothing_where_no_graph_is_wanted(bundle, cuda, monkeypatch):
    trt = install(monkeypatch, cuda, 'tensorrt_rtx', version='1.7.1', capturable=False)
    write(bundle, **RTX)
    engine = open_engine(bundle, 'tensorrt', cuda_graph=False)
    assert [config.cuda_graph_strategy.name for config in trt.configs] == ['DISABLED']
    assert not engine.uses_cuda_graph
    engine.close()


def test_kernels_that_cannot_be_serialised_only_cost_time(bundle, cuda, monkeypatch):
    install(monkeypatch, cuda, 'tensorrt_rtx', version='1.7.1')
    path = write(bundle, **RTX)
    monkeypatch.setattr(tensorrt_standin.RuntimeCache, 'serialize', lambda _: None)
    engine = open_engine(bundle, 'tensorrt')
    np.testing.assert_allclose(
        engine.infer(**random_inputs()), expected(bundle, random_inputs()), atol=1e-5
    )
    engine.close()
    assert not list(path.parent.glob('*.kernels'))


def test_kernels_of_a_bundle_that_cannot_be_written_to_lie_in_the_cache(
    bundle, cuda, monkeypatch, tmp_path
):
    install(monkeypatch, cuda, 'tensorrt_rtx', version='1.7.1')
    path = write(bundle, **RTX)
    monkeypatch.setattr(tensorrt.os, 'access', lambda *_: False)  # root may write anywhere
    open_engine(bundle, 'tensorrt').close()
    assert not list(path.parent.glob('*.kernels'))
    assert len(list((tmp_path / 'cache').rglob('*.kernels'))) == 1


def test_rtx_names_every_cause_of_its_refusal(bundle, cuda, monkeypatch):
    install(monkeypatch, cuda, 'tensorrt_rtx', version='1.7.1')
    write(bundle, plan=b'not a plan', **RTX)
    with pytest.raises(EngineError) as caught:
        open_engine(bundle, 'tensorrt')
    assert 'VERSION_MISMATCH' in str(caught.value)
    assert 'is damaged; build it again (MALFORMED_ENGINE)' in str(caught.value)


def rtx_flavour():
    from rgbd_fusion_seg.engine.flavours import import_flavour

    pytest.importorskip('tensorrt_rtx_bindings', reason='needs the wheels of TensorRT-RTX')
    return import_flavour('tensorrt_rtx')


@pytest.fixture(scope='module')
def real_plan() -> bytes:
    """An engine that TensorRT-RTX built from the tiny network, which it does without a GPU."""
    flavour = rtx_flavour()
    trt = flavour.trt
    logger = logger_of(flavour)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(tiny_network().SerializeToString())
    return bytes(builder.build_serialized_network(network, builder.create_builder_config()))


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda plan: plan[:20], 'MALFORMED_ENGINE'),
        (lambda plan: b'x' * len(plan), 'MALFORMED_ENGINE'),
        (lambda plan: plan, 'cannot ask the GPU|CUDA'),  # whole; the real library wants a real GPU
        (lambda plan: plan[: len(plan) // 2], 'refuses|cannot load'),
    ],
)
def test_the_real_rtx_refuses_what_it_cannot_run(bundle, cuda, real_plan, damage, words):
    flavour = rtx_flavour()
    write(bundle, plan=damage(real_plan), flavour='tensorrt_rtx', version=flavour.version)
    with pytest.raises(EngineError, match=words) as caught:
        open_engine(bundle, 'tensorrt', flavour='tensorrt_rtx')
    assert '\n' not in str(caught.value)


def test_a_real_rtx_engine_of_another_version_is_not_even_loaded(bundle, cuda, real_plan):
    flavour = rtx_flavour()
    write(bundle, plan=real_plan, flavour='tensorrt_rtx', version='1.2.0')
    words = rf'was built by tensorrt_rtx 1\.2\.0, and here is {flavour.version}'
    with pytest.raises(EngineError, match=words):
        open_engine(bundle, 'tensorrt')


# Without a GPU.

NO_GPU = """
import sys
from pathlib import Path
from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.engine import open_engine
from rgbd_fusion_seg.engine.flavours import import_flavour
from rgbd_fusion_seg.errors import EngineError
import_flavour(sys.argv[2])
try:
    open_engine(load_bundle(sys.argv[1]), 'tensorrt', flavour=sys.argv[2])
except EngineError as error:
    print(error)
"""


@pytest.mark.parametrize('flavour', ['tensorrt_rtx', 'tensorrt_lean'])
def test_without_a_gpu_the_real_libraries_are_refused_politely(bundle, flavour):
    """In a process of its own: touched wrongly, the lean runtime crashes it."""
    pytest.importorskip(f'{flavour}_bindings', reason=f'needs the wheels of {flavour}')
    write(bundle, options={'version_compatible': True}, version='11.0.0')
    root = Path(tensorrt.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, '-c', NO_GPU, str(bundle.path), flavour],
        capture_output=True,
        text=True,
        cwd=root,
        env={'PATH': '', 'CUDA_VISIBLE_DEVICES': ''},  # also on a machine that has one
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 'there is no usable CUDA device' in done.stdout


def test_no_tensorrt_library_is_imported_before_a_gpu_is_found(monkeypatch, bundle):
    asked = []
    monkeypatch.setattr(tensorrt, 'import_flavour', lambda name: asked.append(name))
    cuda = HostCuda()
    cuda.failing['cudaGetDeviceCount'] = [Error.cudaErrorNoDevice] * 2
    monkeypatch.setitem(sys.modules, 'cuda.bindings.runtime', cuda)
    usable, reason = tensorrt.probe()
    assert not usable
    assert 'no usable CUDA device (cudaErrorNoDevice' in reason
    with pytest.raises(EngineError, match='no usable CUDA device'):
        tensorrt.open_engine(bundle)
    assert asked == []


# The stand-ins against the real thing.


def test_what_the_stand_in_offers_is_in_every_flavour_s_api(goldens_dir):
    golden = json.loads((goldens_dir / 'tensorrt_api.json').read_text())
    classes = {
        'Runtime': tensorrt_standin.Runtime,
        'ICudaEngine': tensorrt_standin.CudaEngine,
        'IExecutionContext': tensorrt_standin.ExecutionContext,
        'IRuntimeConfig': tensorrt_standin.RuntimeConfig,
        'IRuntimeCache': tensorrt_standin.RuntimeCache,
        'ComputeCapability': tensorrt_standin.ComputeCapability,
        'EngineValidity': tensorrt_standin.Validity,
        'EngineInvalidityDiagnostics': tensorrt_standin.Flag,
        'CudaGraphStrategy': tensorrt_standin.GraphStrategy,
        'DynamicShapesKernelSpecializationStrategy': tensorrt_standin.Specialization,
        'TensorIOMode': tensorrt_standin.TensorIOMode,
        'ILogger': tensorrt_standin.ILogger,
    }
    rtx_alone = {'get_engine_validity', 'is_stream_capturable', 'create_runtime_config'}
    own = {'content', 'cache'}
    for release, api in golden.items():
        for name, stand_in in classes.items():
            used = {key for key in vars(stand_in) if not key.startswith('_')} - own
            if not release.startswith('tensorrt_rtx'):
                used -= rtx_alone
                if list(classes).index(name) in range(3, 10):
                    continue
            assert used <= set(api[name]), (release, name)


def test_the_stand_in_s_functions_take_what_the_real_ones_take():
    from cuda_standin import real

    names = [name for name in vars(HostCuda) if name.startswith('cuda')]
    functions = [name for name in names if inspect.isfunction(vars(HostCuda)[name])]
    assert len(functions) > 15
    for name in functions:
        documented = getattr(real, name).__doc__.strip().splitlines()[0]
        inside = documented[documented.index('(') + 1 : documented.rindex(')')]
        parameters = [p for p in inside.split(',') if p.strip()]
        own = list(inspect.signature(vars(HostCuda)[name]).parameters)[1:]
        assert len(parameters) == len(own), documented


@pytest.mark.parametrize(
    ('name', 'version', 'usable'),
    [
        ('tensorrt', '8.6.1', False),
        ('tensorrt', '10.3.0', True),
        ('tensorrt_rtx', '1.1.1.26', False),
        ('tensorrt_rtx', '1.2.0.54', True),
    ],
)
def test_a_tensorrt_that_is_too_old_is_told(monkeypatch, name, version, usable):
    """Those that lack what is used: an attribute error in the middle of a build else."""
    from rgbd_fusion_seg.engine import flavours

    found = ModuleType(name)
    found.__version__ = version
    monkeypatch.setattr(flavours, '_import', lambda _: found)
    if usable:
        assert flavours.import_flavour(name).version == version
    else:
        with pytest.raises(EngineError, match=rf'{name} {version} is too old, .* or newer'):
            flavours.import_flavour(name)
