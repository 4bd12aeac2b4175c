"""The contract of an engine, on a real GPU with every TensorRT that is installed."""

from __future__ import annotations

import dataclasses
import gc
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from bundles import tiny_card, tiny_network, with_open_sizes, write_bundle
from gpu_engines import build_for

from rgbd_fusion_seg.bundle import ModelBundle, load_bundle
from rgbd_fusion_seg.engine import open_engine
from rgbd_fusion_seg.engine.cuda import Device, call
from rgbd_fusion_seg.engine.engine_choice import runs_on
from rgbd_fusion_seg.engine.engine_files import read_card, read_plan, write_engine
from rgbd_fusion_seg.engine.flavours import import_flavour
from rgbd_fusion_seg.engine_building.tensorrt_build import BuildOptions, build_engine
from rgbd_fusion_seg.errors import EngineError

TOLERANCE = 5e-2
"""Sums of six products up to 8 * 4 in TF32, which has ten bits of mantissa."""


def inputs_of(bundle: ModelBundle, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(form.shape, dtype=np.float32)
        for name, form in bundle.graph_inputs.items()
    }


def expected(bundle: ModelBundle, seed: int = 0) -> np.ndarray:
    return open_engine(bundle, 'onnxruntime').infer(**inputs_of(bundle, seed))


def opened(bundle: ModelBundle, flavour: str, precision: str = 'fp32', **options):
    return open_engine(bundle, 'tensorrt', flavour=flavour, precision=precision, **options)


@pytest.mark.parametrize('cuda_graph', [True, False])
def test_logits_are_those_of_onnx_runtime_frame_after_frame(built, flavour, cuda_graph):
    engine = opened(built, flavour, cuda_graph=cuda_graph)
    assert engine.uses_cuda_graph == cuda_graph
    results = [engine.infer(**inputs_of(built, seed)) for seed in range(50)]
    for seed, logits in enumerate(results):
        assert np.abs(logits - expected(built, seed)).max() < TOLERANCE
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match='is closed'):
        engine.infer(**inputs_of(built))


def test_many_inferences_give_the_same_as_the_first(built, flavour):
    engine = opened(built, flavour)
    feeds = inputs_of(built)
    first = engine.infer(**feeds)
    assert all(np.array_equal(engine.infer(**feeds), first) for _ in range(500))
    engine.close()


@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_half_precision_is_near(built, flavour, gpu, precision):
    path = build_for(built, flavour, gpu, precision)
    engine = opened(built, flavour, precision)
    assert engine.card == read_card(path)
    logits, wanted = engine.infer(**inputs_of(built)), expected(built)
    assert logits.dtype == np.float32
    relative = {'fp16': 2**-10, 'bf16': 2**-7}[precision]
    assert np.abs(logits - wanted).max() < 8 * relative * np.abs(wanted).max()
    engine.close()


def test_two_engines_run_at_once_in_two_threads_each_opened_elsewhere(built, flavour):
    engines = [opened(built, flavour) for _ in range(2)]
    wrong: list[int] = []

    def work(engine, first):
        for seed in range(first, first + 100):
            logits = engine.infer(**inputs_of(built, seed % 7))
            if np.abs(logits - wanted[seed % 7]).max() > TOLERANCE:
                wrong.append(seed)

    wanted = [expected(built, seed) for seed in range(7)]
    threads = [
        threading.Thread(target=work, args=(engine, 3 * i)) for i, engine in enumerate(engines)
    ]
    for thread in threads:
        thread.start()
    late = opened(built, flavour)  # allocates and records while the others run
    for thread in threads:
        thread.join()
    assert not wrong
    for engine in (*engines, late):
        engine.close()


def test_memory_comes_back_with_every_engine_closed_or_forgotten(built, flavour):
    opened(built, flavour).close()  # what stays of the first one belongs to the libraries
    before = call('cudaMemGetInfo')
    for turn in range(20):
        engine = opened(built, flavour)
        engine.infer(**inputs_of(built))
        if turn % 2:
            engine.close()
        del engine
    gc.collect()
    assert before - call('cudaMemGetInfo') < 16 << 20


@contextmanager
def full_memory():
    """Take all the memory of the GPU that can be had."""
    taken, size = [], 1 << 40
    while size >= 4096:
        try:
            taken.append(call('cudaMalloc', size))
        except EngineError:
            size //= 2
    try:
        yield
    finally:
        for address in taken:
            call('cudaFree', address)


def test_too_little_memory_is_one_error_and_no_harm(built, flavour, gpu):
    if call('cudaGetDeviceProperties', gpu.index).integrated:
        pytest.skip('the memory of this GPU is that of the whole machine')
    engine = opened(built, flavour)
    with full_memory(), pytest.raises(EngineError) as caught:
        # Several: the first may still find room in what the libraries hold.
        _ = [opened(built, flavour) for _ in range(100)]
    assert '\n' not in str(caught.value)
    assert np.abs(engine.infer(**inputs_of(built)) - expected(built)).max() < TOLERANCE
    engine.close()


@pytest.mark.parametrize('modality', ['rgb', 'hha'])
def test_a_network_of_one_modality(tmp_path: Path, flavour, gpu, modality):
    card, network = tiny_card(modalities=(modality,)), tiny_network(modalities=(modality,))
    bundle = load_bundle(write_bundle(tmp_path / modality, card, network))
    build_for(bundle, flavour, gpu)
    engine = opened(bundle, flavour)
    assert np.abs(engine.infer(**inputs_of(bundle)) - expected(bundle)).max() < TOLERANCE
    engine.close()


def test_one_engine_for_a_range_of_sizes(tmp_path: Path, flavour, gpu):
    card = tiny_card() | {'dynamic': {'batch': True, 'size': True, 'multiple': 16}}
    folder = write_bundle(tmp_path / 'open', card, with_open_sizes(tiny_network()))
    bundle = load_bundle(folder)
    build_for(bundle, flavour, gpu, sizes=((64, 48), (64, 48), (128, 96)))
    for size in [(64, 48), (128, 96), (96, 64)]:
        sized = bundle.resized(*size)
        engine = opened(sized, flavour)
        assert np.abs(engine.infer(**inputs_of(sized)) - expected(sized)).max() < TOLERANCE
        engine.close()


def test_a_fused_bundle_returns_what_onnx_runtime_returns(tmp_path: Path, flavour, gpu):
    fused_graph = pytest.importorskip(
        'rgbd_fusion_seg.engine_building.fused_graph', reason='needs onnx_ir'
    )
    base = load_bundle(write_bundle(tmp_path / 'tiny'))
    bundle = fused_graph.fuse(base, tmp_path / 'fused', (128, 96))
    build_for(bundle, flavour, gpu)
    rng = np.random.default_rng(0)
    feeds = {
        name: np.kron(rng.integers(0, 256, (1, 6, 8, 3)), np.ones((1, f.shape[1] // 6, 1, 1)))
        .repeat(f.shape[2] // 8, axis=2)
        .astype(np.uint8)
        for name, f in bundle.graph_inputs.items()
    }
    engine = opened(bundle, flavour)
    ours, reference = engine.run(feeds), open_engine(bundle, 'onnxruntime').run(feeds)
    assert (ours['labels'] == reference['labels']).mean() > 0.995
    difference = np.abs(ours['confidence'].astype(int) - reference['confidence'])
    assert np.percentile(difference, 99) <= 2
    engine.close()


def test_fused_hha_takes_what_cameras_write_where_they_see_nothing(tmp_path: Path, flavour, gpu):
    """NaN, infinities and zeros are all the same: no reading."""
    fused_graph = pytest.importorskip(
        'rgbd_fusion_seg.engine_building.fused_graph', reason='needs onnx_ir and onnxscript'
    )
    base = load_bundle(write_bundle(tmp_path / 'tiny'))
    bundle = fused_graph.fuse(base, tmp_path / 'fused', (128, 96), hha=True)
    build_for(bundle, flavour, gpu)
    rng = np.random.default_rng(0)
    wall = np.full((96, 128), 3.0, np.float32)
    wall[30:50, 40:70] = 0
    holes = rng.random(wall.shape) < 0.02
    feeds = {
        'rgb': rng.integers(0, 256, (1, 6, 8, 3), np.uint8).repeat(16, 1).repeat(16, 2),
        'intrinsics': np.float32([110, 110, 64, 48]),
        'gravity': np.float32([0, 1, 0]),
        'camera_height': np.float32([1]),  # so the wall is low below and high above
    }
    engine, reference = opened(bundle, flavour), open_engine(bundle, 'onnxruntime')
    results = []
    for nothing in (0, np.nan, np.inf, -np.inf):
        feeds['depth'] = np.where(holes, np.float32(nothing), wall)[None]
        results.append(engine.run(feeds))
        expected = reference.run(feeds)
        assert (results[-1]['labels'] == expected['labels']).mean() > 0.995
        difference = np.abs(results[-1]['confidence'].astype(int) - expected['confidence'])
        assert np.percentile(difference, 99) <= 2
        assert len(np.unique(expected['labels'])) == 4
    for other in results[1:]:
        assert np.array_equal(other['labels'], results[0]['labels'])
        assert np.array_equal(other['confidence'], results[0]['confidence'])
    engine.close()


def test_a_plan_that_is_cut_short_is_refused(tmp_path: Path, built, flavour):
    (path,) = (p for p in (built.path / 'engines').glob('*fp32*.json'))
    card = read_card(path)
    cut = read_plan(path, card)[:-100]
    damaged = write_engine(tmp_path, 'cut', cut, card)  # with a hash that is right
    with pytest.raises(EngineError):
        opened(built, flavour, engine_file=damaged)
    engine = opened(built, flavour)  # and the next one works
    engine.close()


def test_what_rtx_says_of_a_gpu_that_it_does_not_list(
    tmp_path: Path, gpu: Device, record_property
):
    try:
        import_flavour('tensorrt_rtx')
    except EngineError as error:
        pytest.skip(str(error))
    bundle = load_bundle(write_bundle(tmp_path / 'tiny'))
    all_known = ('7.5', '8.0', '8.6', '8.9', '12.0')
    if runs_on('tensorrt_rtx', all_known, gpu.compute_capability):
        pytest.skip(f'TensorRT-RTX runs on {gpu}')
    with pytest.raises(EngineError, match=f'does not run on {gpu}'):
        build_engine(bundle, BuildOptions('tensorrt_rtx', 'fp32'))
    options = BuildOptions('tensorrt_rtx', 'fp32', compute_capabilities=all_known)
    path = build_engine(bundle, options)
    card = read_card(path)
    with pytest.raises(EngineError, match=f'this GPU has {gpu.compute_capability}'):
        opened(bundle, 'tensorrt_rtx')
    claimed = dataclasses.replace(card, compute_capabilities=(gpu.compute_capability,))
    forced = write_engine(tmp_path, 'forced', read_plan(path, card), claimed)
    with pytest.raises(EngineError, match=r'refuses|cannot load') as caught:
        opened(bundle, 'tensorrt_rtx', engine_file=forced)
    record_property('tensorrt_rtx', str(caught.value))
    print(f'{gpu}: {caught.value}')
