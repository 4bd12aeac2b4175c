"""Real TensorRT-RTX builds, on any machine; and what happens where building goes wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import onnxruntime
import pytest
from bundles import tiny_card, tiny_network, with_open_sizes, write_bundle
from onnx import helper

from rgbd_fusion_seg.bundle import ModelBundle, load_bundle
from rgbd_fusion_seg.cli import main
from rgbd_fusion_seg.engine import PRECISIONS
from rgbd_fusion_seg.engine.cuda import Device
from rgbd_fusion_seg.engine.engine_files import list_engines, read_card, read_plan
from rgbd_fusion_seg.engine.flavours import Flavour
from rgbd_fusion_seg.engine_building import fused_graph, tensorrt_build
from rgbd_fusion_seg.engine_building.build_options import BuildOptions
from rgbd_fusion_seg.engine_building.build_progress import Progress
from rgbd_fusion_seg.engine_building.precision import typed_network
from rgbd_fusion_seg.engine_building.tensorrt_build import (
    _load_timing_cache,
    _save_timing_cache,
    build_engine,
)
from rgbd_fusion_seg.errors import BundleError, EngineError, InputError
from rgbd_fusion_seg.file_lock import file_lock
from rgbd_fusion_seg.locations import CARD_NAME

REASON = 'needs TensorRT-RTX (pip install .[tensorrt-rtx])'
pytest.importorskip('tensorrt_rtx_libs', reason=REASON)
trt = pytest.importorskip('tensorrt_rtx_bindings', reason=REASON)

MODELS = Path(__file__).resolve().parents[2] / 'models'
SHIPPED = sorted(card.parent for card in MODELS.glob(f'*/{CARD_NAME}'))
CAPABILITY_BITS = {'7.5': 1, '8.0': 2, '8.6': 4, '8.9': 8, '12.0': 16, '12.1': 32}
"""In the header of a plan: found from plans that were built for one capability each."""
ORT_TYPES = {'tensor(float)': 'float32', 'tensor(uint8)': 'uint8'}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch) -> ModelBundle:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return load_bundle(write_bundle(tmp_path / 'tiny'))


@pytest.fixture
def open_bundle(tmp_path: Path, monkeypatch) -> ModelBundle:
    """Takes any number of images of any size in steps of 16."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    card = tiny_card() | {'dynamic': {'batch': True, 'size': True, 'multiple': 16}}
    return load_bundle(write_bundle(tmp_path / 'open', card, with_open_sizes(tiny_network())))


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch) -> None:
    """RTX builds on all machines alike, unless it finds a GPU that it does not run on."""

    def find_device() -> Device:
        raise EngineError('there is no usable CUDA device (none is installed)')

    monkeypatch.setattr(tensorrt_build, 'find_device', find_device)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')  # and in processes that a test starts


@pytest.fixture
def as_tensorrt(monkeypatch) -> Device:
    """RTX's builder under the name of tensorrt, which has the same interface, and a GPU."""
    device = Device(0, 'Some GPU', '8.6', 8000)
    monkeypatch.setattr(tensorrt_build, 'find_device', lambda: device)
    monkeypatch.setattr(
        tensorrt_build, 'import_flavour', lambda name: Flavour('tensorrt', trt, '11.4.0')
    )
    return device


def plan_of(path: Path) -> bytes:
    return read_plan(path, read_card(path))


def header_of(plan: bytes) -> tuple[tuple[int, ...], set[str]]:
    """Return version and compute capabilities from the header of a plan of RTX."""
    assert plan[:4] == plan[28:32] == b'vtrt'
    bits = int.from_bytes(plan[32:36], 'little')
    return tuple(plan[24:28]), {name for name, bit in CAPABILITY_BITS.items() if bits & bit}


def interface_of(network: Path) -> set[tuple[str, str, str, tuple[int, ...]]]:
    """Return the tensors of an ONNX file as ONNX Runtime knows them."""
    session = onnxruntime.InferenceSession(str(network))
    modes = (('input', session.get_inputs()), ('output', session.get_outputs()))
    return {
        (t.name, mode, ORT_TYPES[t.type], tuple(t.shape))
        for mode, tensors in modes
        for t in tensors
    }


def parsed_interface(network: bytes) -> set[tuple[str, str, tuple[int, ...]]]:
    """Return the tensors of an ONNX file as TensorRT's own parser sees them."""
    logger = trt.Logger(trt.Logger.ERROR)
    parsed = trt.Builder(logger).create_network(0)
    assert trt.OnnxParser(parsed, logger).parse(network)
    inputs = [('input', parsed.get_input(i)) for i in range(parsed.num_inputs)]
    outputs = [('output', parsed.get_output(i)) for i in range(parsed.num_outputs)]
    return {(t.name, mode, tuple(t.shape)) for mode, t in (*inputs, *outputs)}


def parsed_layers(network: bytes) -> list[tuple[str, int]]:
    """Return type and number of inputs of each layer that TensorRT's parser makes."""
    logger = trt.Logger(trt.Logger.ERROR)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    parsed = trt.Builder(logger).create_network(typed)
    assert trt.OnnxParser(parsed, logger).parse(network)
    layers = [parsed.get_layer(i) for i in range(parsed.num_layers)]
    return [(layer.type.name, layer.num_inputs) for layer in layers]


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, '-m', 'rgbd_fusion_seg.cli', *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors='replace'
    )


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True
    )


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
@pytest.mark.parametrize('folder', SHIPPED, ids=lambda f: f.name)
def test_shipped_bundles_build(folder, precision, tmp_path):
    bundle = load_bundle(folder)
    path = build_engine(bundle, BuildOptions('tensorrt_rtx', precision), tmp_path)
    card, plan = read_card(path), plan_of(path)
    tensors = {(t.name, t.mode, t.dtype, t.shape) for t in card.tensors}
    assert tensors == interface_of(bundle.weights_path)
    network = bundle.weights_path.read_bytes()
    assert {(t.name, t.mode, t.shape) for t in card.tensors} == parsed_interface(network)
    assert all(t.name.encode() in plan for t in card.tensors)
    version, capabilities = header_of(plan)
    assert '.'.join(map(str, version)) == card.version
    assert capabilities == set(card.compute_capabilities) == set(CAPABILITY_BITS) - {'7.5'}
    single = 4 * bundle.card['network']['parameters']
    assert (len(plan) > single) == (precision == 'fp32')
    assert len(plan) > single / 2
    assert (card.precision, card.bundle) == (precision, bundle.name)
    assert card.onnx_sha256 == bundle.weights_sha256
    assert card.build_seconds > 0
    assert card.agreement is card.latency_ms is None


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('folder', SHIPPED, ids=lambda f: f.name)
def test_weights_are_constants_to_tensorrt(folder, precision):
    """A convolution whose weights are computed, if only cast, has inputs for them."""
    bundle = load_bundle(folder)
    layers = parsed_layers(typed_network(bundle.weights_path, precision))
    assert {inputs for kind, inputs in layers if kind == 'CONVOLUTION'} == {1}
    at_the_ends = len(bundle.graph_inputs) + len(bundle.graph_outputs)
    casts = sum(kind == 'CAST' for kind, _ in layers)
    assert casts == (0 if precision == 'fp32' else at_the_ends)


def test_bf16(bundle):
    plan = plan_of(build_engine(bundle, BuildOptions('tensorrt_rtx', 'bf16')))
    assert header_of(plan)[1] == set(CAPABILITY_BITS) - {'7.5'}


@pytest.mark.parametrize('wanted', [('8.6',), ('12.0', '7.5', '8.9')])
def test_compute_capabilities(bundle, wanted):
    path = build_engine(bundle, BuildOptions('tensorrt_rtx', compute_capabilities=wanted))
    assert header_of(plan_of(path))[1] == set(wanted)
    assert set(read_card(path).compute_capabilities) == set(wanted)
    assert all(f'sm{text.replace(".", "")}' in path.stem for text in wanted)


@pytest.mark.parametrize(
    ('own', 'wanted', 'built_for', 'suffix'),
    [
        ('8.6', (), {'8.0', '8.6', '8.9', '12.0', '12.1'}, ''),
        ('12.9', (), {'8.0', '8.6', '8.9', '12.0', '12.1'}, ''),  # "and later"
        ('7.5', (), {'7.5'}, '-sm75'),
        ('8.6', ('current',), {'8.6'}, '-sm86'),
        ('12.9', ('current',), {'8.0', '8.6', '8.9', '12.0', '12.1'}, ''),
        ('9.0', ('8.6',), {'8.6'}, '-sm86'),
    ],
)
def test_rtx_builds_what_the_gpu_at_hand_can_run(
    bundle, monkeypatch, own, wanted, built_for, suffix
):
    gpu = Device(0, 'Some GPU', own, 8000)
    monkeypatch.setattr(tensorrt_build, 'find_device', lambda: gpu)
    path = build_engine(bundle, BuildOptions('tensorrt_rtx', compute_capabilities=wanted))
    assert header_of(plan_of(path))[1] == set(read_card(path).compute_capabilities) == built_for
    assert path.stem == f'tensorrt_rtx-fp16-64x48{suffix}'


@pytest.mark.parametrize('own', ['8.7', '9.0'])
@pytest.mark.parametrize('wanted', [(), ('current',)])
def test_a_gpu_that_rtx_does_not_run_on_is_told_before_the_build(bundle, monkeypatch, own, wanted):
    gpu = Device(0, 'Some GPU', own, 8000)
    monkeypatch.setattr(tensorrt_build, 'find_device', lambda: gpu)
    with pytest.raises(EngineError) as refused:
        build_engine(bundle, BuildOptions('tensorrt_rtx', compute_capabilities=wanted))
    assert str(refused.value) == (
        f'tensorrt_rtx {trt.__version__} does not run on Some GPU, compute capability {own}; '
        'install tensorrt for it, or name other GPUs to build for with --compute-capability'
    )
    assert not list_engines(bundle)


def test_a_range_of_sizes(open_bundle):
    options = BuildOptions('tensorrt_rtx', sizes=((32, 32), (64, 48), (128, 96)))
    path = build_engine(open_bundle, options)
    assert path.stem == 'tensorrt_rtx-fp16-32x32-64x48-128x96'
    tensors = {t.name: t for t in read_card(path).tensors}
    assert tensors['rgb'].shape == tensors['hha'].shape == (1, 3, -1, -1)
    assert tensors['rgb'].profile == ((1, 3, 32, 32), (1, 3, 48, 64), (1, 3, 96, 128))
    assert tensors['hha'].profile == ((1, 3, 16, 16), (1, 3, 24, 32), (1, 3, 48, 64))
    assert tensors['logits'].shape == (1, 4, -1, -1)
    assert tensors['logits'].profile == ()


@pytest.mark.parametrize('by_option', [True, False])
def test_one_size_of_an_open_network(open_bundle, by_option):
    """The node resizes the bundle, the command line gives the size: to the same end."""
    sizes = ((128, 96),) if by_option else ()
    sized = open_bundle if by_option else open_bundle.resized(128, 96)
    path = build_engine(sized, BuildOptions('tensorrt_rtx', sizes=sizes))
    card = read_card(path)
    assert [(t.shape, t.profile) for t in card.tensors] == [
        ((1, 3, 96, 128), ()),
        ((1, 3, 48, 64), ()),
        ((1, 4, 12, 16), ()),
    ]
    assert card.options['sizes'] == [[128, 96]]
    assert path.stem == 'tensorrt_rtx-fp16-128x96'


def test_fused_bundles_build(bundle, tmp_path):
    fused = fused_graph.fuse(bundle, tmp_path / 'fused', (96, 72))
    path = build_engine(fused, BuildOptions('tensorrt_rtx', 'fp16'))
    tensors = {(t.name, t.mode, t.dtype, t.shape) for t in read_card(path).tensors}
    assert tensors == interface_of(fused.weights_path)
    assert {t[2] for t in tensors} == {'uint8'}


def test_an_engine_that_fits_is_kept(bundle, caplog):
    options = BuildOptions('tensorrt_rtx')
    caplog.set_level('DEBUG')
    path = build_engine(bundle, options)
    engine = path.parent / read_card(path).engine_file
    written = engine.stat().st_mtime_ns, path.stat().st_mtime_ns
    calls: list[str] = []
    assert build_engine(bundle, options, progress=lambda *step: calls.append(step[0])) == path
    assert (engine.stat().st_mtime_ns, path.stat().st_mtime_ns) == written
    assert not calls
    assert f'{path} fits already' in caplog.text

    build_engine(bundle, dataclasses.replace(options, force=True))
    assert path.stat().st_mtime_ns > written[1]
    build_engine(bundle, dataclasses.replace(options, workspace_mib=512))
    assert read_card(path).options['workspace_mib'] == 512


@pytest.mark.parametrize('damage', ['engine', 'card', 'version', 'network'])
def test_an_engine_that_does_not_fit_is_built_anew(bundle, damage):
    path = build_engine(bundle, BuildOptions('tensorrt_rtx'))
    engine = path.parent / read_card(path).engine_file
    if damage == 'engine':
        engine.write_bytes(engine.read_bytes()[:-1])
    elif damage == 'card':
        path.write_text(path.read_text()[:-20])
    else:
        key = {'version': 'version', 'network': 'onnx_sha256'}[damage]
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: '1.0.0'}))
    calls: list[str] = []
    again = build_engine(
        bundle, BuildOptions('tensorrt_rtx'), progress=lambda *step: calls.append(step[0])
    )
    assert calls
    assert again == path
    assert len(plan_of(path)) == engine.stat().st_size
    assert read_card(path).version == trt.__version__


@pytest.mark.parametrize(
    ('changes', 'error', 'words'),
    [
        ({'flavour': 'tensorrt_lean'}, EngineError, 'tensorrt_lean runs engines and cannot build'),
        ({'flavour': 'abacus'}, EngineError, 'abacus does not exist; choose one of: tensorrt, t'),
        ({'version_compatible': True}, EngineError, 'tensorrt_rtx builds no version-compatible'),
        ({'optimization_level': 5}, EngineError, 'tensorrt_rtx has no optimisation levels'),
        ({'timing_cache': 'times'}, EngineError, 'no use for a timing cache'),
        ({'compute_capabilities': ('9.0',)}, EngineError, '9.0; choose from: 7.5, 8.0, 8.6, 8.9'),
        ({'compute_capabilities': ('current',)}, EngineError, 'no GPU here whose compute capab'),
        (
            {'workspace_mib': 1},
            EngineError,
            r'could not build .* may use 1 MiB: allow more \(--workspace\)',
        ),
        ({'sizes': ((128, 96),)}, BundleError, 'takes 64x48 images only, not 128x96'),
    ],
)
def test_refusals(bundle, no_gpu, changes, error, words):
    options = BuildOptions(**({'flavour': 'tensorrt_rtx'} | changes))
    with pytest.raises(error, match=words):
        build_engine(bundle, options)
    assert not list_engines(bundle)


@pytest.mark.parametrize('sizes', [((128, 96),), ((64, 48), (96, 64), (128, 96))])
def test_a_card_that_promises_other_sizes_than_the_graph_has_is_told(tmp_path, no_gpu, sizes):
    card = tiny_card()
    card['dynamic'] = {'batch': False, 'size': True, 'multiple': 16}
    bundle = load_bundle(write_bundle(tmp_path / 'liar', card))
    words = 'is fixed to' if len(sizes) == 1 else '64x48|48x64|3, 48, 64'
    with pytest.raises(BundleError, match=words):
        build_engine(bundle, BuildOptions('tensorrt_rtx', sizes=sizes))
    assert not list_engines(bundle)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'precision': 'int8'}, "must be one of fp16, bf16, fp32, got 'int8'"),
        ({'sizes': ((32, 32), (64, 48))}, r'one size or three \(smallest, best, largest\), not 2'),
        ({'sizes': ((64, 48), (32, 96), (128, 96))}, 'the sizes 64x48, 32x96, 128x96 do not grow'),
        ({'workspace_mib': -1}, 'workspace_mib must be 0 to'),
        ({'workspace_mib': 1 << 44}, 'workspace_mib must be 0 to'),
        ({'optimization_level': 6}, 'must be 0 to 5, got 6'),
        ({'compute_capabilities': ('current', '8.6')}, 'goes with no other'),
    ],
)
def test_options_without_a_meaning(changes, words):
    with pytest.raises(InputError, match=words):
        BuildOptions(**changes)


def test_operators_that_tensorrt_does_not_have(tmp_path):
    """All of them are told, by name where they have one."""
    network = tiny_network(64, 64)
    network.graph.node[-1].output[0] = 'before'
    network.graph.node.extend(
        [
            helper.make_node('Det', ['before'], ['a'], name='the_determinant'),
            helper.make_node('Unheard', ['before'], ['logits'], domain='nobody'),
        ]
    )
    network.opset_import.append(helper.make_opsetid('nobody', 1))
    bundle = load_bundle(write_bundle(tmp_path / 'odd', tiny_card(64, 64), network))
    with pytest.raises(EngineError) as refused:
        build_engine(bundle, BuildOptions('tensorrt_rtx'))
    message = str(refused.value)
    assert f'cannot take the network {bundle.weights_path}: ' in message
    assert 'node the_determinant (Det): unsupported node; ' in message
    assert 'node Unheard_6 (Unheard): ' in message
    assert 'Plugin not found' in message
    assert '\n' not in message


@pytest.mark.parametrize(
    ('network', 'words'),
    [
        (lambda: tiny_network(num_classes=7), 'returns 7 classes but its card lists 4'),
        (lambda: tiny_network(96, 128), r'\[1, 3, 96, 128\] but its card says \[1, 3, 48, 64\]'),
        (lambda: tiny_network(input_names=('image', 'hha')), 'inputs image, hha, expected rgb'),
    ],
)
def test_a_network_that_is_not_the_card_s(tmp_path, network, words):
    bundle = load_bundle(write_bundle(tmp_path / 'bad', network=network()))
    with pytest.raises(BundleError, match=words):
        build_engine(bundle, BuildOptions('tensorrt_rtx'))
    assert not list_engines(bundle)


@pytest.mark.parametrize('three', [False, True])
def test_open_sizes_do_not_hide_other_classes(tmp_path, three):
    card = tiny_card() | {'dynamic': {'batch': True, 'size': True, 'multiple': 16}}
    network = with_open_sizes(tiny_network(num_classes=7))
    bundle = load_bundle(write_bundle(tmp_path / 'bad', card, network))
    sizes = ((32, 32), (64, 48), (96, 96)) if three else ((96, 96),)
    with pytest.raises(BundleError, match='returns 7 classes but its card lists 4'):
        build_engine(bundle, BuildOptions('tensorrt_rtx', sizes=sizes))


def test_a_size_beyond_all_measure(open_bundle):
    options = BuildOptions('tensorrt_rtx', sizes=((1_600_000, 1_600_000),))
    with pytest.raises(EngineError, match=r'take another input size$'):
        build_engine(open_bundle, options)


@pytest.mark.parametrize('content', [b'nonsense', b''])
def test_no_network(tmp_path, content):
    bundle = load_bundle(write_bundle(tmp_path / 'no', network=content))
    with pytest.raises(BundleError, match='cannot be read as an ONNX network'):
        build_engine(bundle, BuildOptions('tensorrt_rtx'))


def test_no_builder(bundle, monkeypatch):
    """The lean runtime may be there, but it builds nothing."""
    for name in ('tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_libs', 'tensorrt_rtx_bindings'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError) as refused:
        build_engine(bundle)
    assert str(refused.value).startswith('no TensorRT here can build engines: tensorrt is not')
    assert 'pip install tensorrt-rtx-cu13-libs' in str(refused.value)


def test_without_onnx(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rgbd_fusion_seg.engine_building.precision', None)
    with pytest.raises(EngineError, match='building engines needs onnx and onnx_ir'):
        build_engine(bundle, BuildOptions('tensorrt_rtx'))


def test_rtx_builds_where_there_is_no_gpu(bundle, no_gpu):
    card = read_card(build_engine(bundle))
    assert (card.flavour, card.gpu) == ('tensorrt_rtx', '')


def test_tensorrt_builds_on_a_gpu_only(bundle, monkeypatch, no_gpu):
    monkeypatch.setattr(
        tensorrt_build, 'import_flavour', lambda name: Flavour('tensorrt', trt, '11.4.0')
    )
    with pytest.raises(EngineError, match=r'tensorrt 11\.4\.0 builds on the GPU.*no usable CUDA'):
        build_engine(bundle, BuildOptions('tensorrt'))


def test_tensorrt_builds_for_the_gpu_at_hand(bundle, as_tensorrt):
    path = build_engine(bundle, BuildOptions('tensorrt'))
    card = read_card(path)
    assert path.stem == 'tensorrt-fp16-64x48-sm86'
    assert (card.gpu, card.compute_capabilities) == (as_tensorrt.name, ('8.6',))
    assert 'optimization_level' not in card.options
    given = build_engine(bundle, BuildOptions('tensorrt', optimization_level=0))
    assert read_card(given).options['optimization_level'] == 0
    with pytest.raises(EngineError, match=r'for the GPU at hand \(Some GPU.*not for.*8\.7'):
        build_engine(bundle, BuildOptions('tensorrt', compute_capabilities=('8.7', '8.6')))
    # RTX lacks the library that a version-compatible engine takes along, so it was asked for one.
    with pytest.raises(EngineError, match='libnvinfer_lean'):
        build_engine(bundle, BuildOptions('tensorrt', version_compatible=True))


@pytest.mark.parametrize('change', [{'name': 'Another GPU'}, {'memory_mib': 16000}])
def test_an_engine_of_another_gpu_is_built_anew(bundle, as_tensorrt, monkeypatch, change):
    path = build_engine(bundle, BuildOptions('tensorrt'))
    other = as_tensorrt._replace(**change)
    monkeypatch.setattr(tensorrt_build, 'find_device', lambda: other)
    assert build_engine(bundle, BuildOptions('tensorrt')) == path
    assert (read_card(path).gpu, read_card(path).memory_mib) == (other.name, other.memory_mib)


def test_a_little_less_memory_is_no_other_gpu(bundle, as_tensorrt, monkeypatch):
    path = build_engine(bundle, BuildOptions('tensorrt'))
    written = path.stat().st_mtime_ns
    same = as_tensorrt._replace(memory_mib=7900)
    monkeypatch.setattr(tensorrt_build, 'find_device', lambda: same)
    assert build_engine(bundle, BuildOptions('tensorrt')) == path
    assert path.stat().st_mtime_ns == written


@pytest.mark.filterwarnings('ignore:.*[Tt]iming cache:DeprecationWarning')
def test_the_timing_cache_is_kept(bundle, as_tensorrt, tmp_path, caplog):
    cache = tmp_path / 'new folder' / 'times'
    options = BuildOptions('tensorrt', timing_cache=cache)
    build_engine(bundle, options)
    first = cache.read_bytes()
    assert first
    build_engine(bundle, dataclasses.replace(options, force=True))
    assert cache.read_bytes() == first
    with pytest.raises(EngineError, match=f'cache {tmp_path} cannot be read'):
        build_engine(bundle, dataclasses.replace(options, timing_cache=tmp_path, force=True))
    lost = Path('/proc/absent/times')
    path = build_engine(bundle, dataclasses.replace(options, timing_cache=lost, force=True))
    assert plan_of(path)
    assert f'the timing cache {lost} cannot be written' in caplog.text


class Times:
    """Stands in for a timing cache: lines, of which the first is the GPU they were measured on."""

    def __init__(self, content: bytes, gpu: bytes) -> None:
        self.gpu, *lines = content.splitlines() or [gpu]
        self.lines = set(lines)

    def combine(self, other: Times, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if other.gpu == self.gpu:
            self.lines |= other.lines
        return other.gpu == self.gpu

    def serialize(self) -> bytes:
        return b'\n'.join([self.gpu, *sorted(self.lines)])


class Config:
    """Stands in for a builder's configuration on the GPU ``here``."""

    def create_timing_cache(self, content: bytes) -> Times:
        return Times(content, b'here')

    def set_timing_cache(self, cache: Times, ignore_mismatch: bool) -> bool:
        return cache.gpu == b'here' or ignore_mismatch


def test_builds_that_share_a_timing_cache_keep_each_other_s_times(tmp_path):
    path = tmp_path / 'times'
    path.write_bytes(b'here\nearlier')
    builds = [(config, _load_timing_cache(config, path)) for config in (Config(), Config())]
    for (config, cache), kernel in zip(builds, (b'mine', b'theirs'), strict=True):
        cache.lines.add(kernel)
        _save_timing_cache(config, cache, path)
    assert path.read_bytes() == b'here\nearlier\nmine\ntheirs'


def test_no_other_build_writes_times_while_they_are_combined(tmp_path):
    path, free = tmp_path / 'times', []

    class Watching(Config):
        def create_timing_cache(self, content: bytes) -> Times:
            with file_lock(path) as mine:
                free.append(mine)
            return super().create_timing_cache(content)

    config = Watching()
    cache = _load_timing_cache(config, path)
    _save_timing_cache(config, cache, path)
    assert free == [True, False]
    with file_lock(path) as mine:
        assert mine


def test_a_timing_cache_of_another_gpu_is_begun_anew(tmp_path, caplog):
    path, config = tmp_path / 'times', Config()
    path.write_bytes(b'elsewhere\nfast')
    cache = _load_timing_cache(config, path)
    assert f'the timing cache {path} is of another GPU or TensorRT; it is begun' in caplog.text
    cache.lines.add(b'slow')
    _save_timing_cache(config, cache, path)
    assert path.read_bytes() == b'here\nslow'


def test_progress(bundle):
    seen: list[tuple[str, float]] = []
    build_engine(bundle, BuildOptions('tensorrt_rtx'), progress=lambda *step: seen.append(step))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert len({name for name, _ in seen}) > 4
    assert len(set(shares)) > 4


def test_nested_phases_are_one_number():
    seen: list[tuple[str, float]] = []
    progress = Progress(lambda name, share: seen.append((name, share)))
    progress.start('all', None, 4)
    assert progress.step('all', 0)
    progress.start('part', 'all', 2)
    progress.start('bit', 'part', 5)
    progress.step('bit', 0)
    progress.finish('bit')
    progress.step('part', 0)
    progress.finish('part')
    progress.start('second part', 'all', 10)
    progress.step('second part', 0)  # in the same step as the first, so it is less
    progress.step('all', 3)
    progress.step('unknown', 7)
    assert seen == [
        ('all', 0),
        ('all', 1 / 4),
        ('part', 1 / 4),
        ('bit', 1 / 4),
        ('bit', (1 + (1 / 5) / 2) / 4),
        ('part', (1 + 1 / 2) / 4),
        ('second part', (1 + 1 / 2) / 4),
        ('second part', (1 + 1 / 2) / 4),
        ('all', 1),
    ]


def test_a_caller_can_end_a_build(bundle):
    """From its callback, in a thread too; the engine that was there stays."""
    options = BuildOptions('tensorrt_rtx')
    path = build_engine(bundle, options)
    content = path.read_bytes(), plan_of(path)
    calls: list[float] = []
    errors: list[BaseException] = []

    def stop(phase: str, share: float) -> None:
        calls.append(share)
        if share > 0.1:
            raise LookupError(phase)

    def build() -> None:
        try:
            build_engine(bundle, dataclasses.replace(options, force=True), progress=stop)
        except LookupError as error:
            errors.append(error)

    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert sum(share > 0.1 for share in calls) == 1
    assert (path.read_bytes(), plan_of(path)) == content


def test_ctrl_c_ends_a_build(bundle):
    handler = signal.getsignal(signal.SIGINT)
    calls: list[float] = []

    def interrupt(phase: str, share: float) -> None:
        calls.append(share)
        if share > 0.1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_engine(bundle, BuildOptions('tensorrt_rtx'), progress=interrupt)
    assert max(calls) < 0.8
    assert not list_engines(bundle)
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_while_tensorrt_is_at_work(tmp_path):
    """Between two calls of ours Python would raise in TensorRT's hands, which swallow it."""
    code = """if True:
        import os, signal, sys, threading, time
        from pathlib import Path
        from rgbd_fusion_seg.bundle import load_bundle
        from rgbd_fusion_seg.engine_building.build_options import BuildOptions
        from rgbd_fusion_seg.engine_building.build_progress import Progress
        from rgbd_fusion_seg.engine_building.tensorrt_build import build_engine

        class Watched(Progress):
            def start(self, name, parent, num_steps):
                if name == 'Optimizing graph':
                    began.set()
                super().start(name, parent, num_steps)

        def interrupt():
            began.wait()
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

        began = threading.Event()
        threading.Thread(target=interrupt, daemon=True).start()
        sys.modules['rgbd_fusion_seg.engine_building.tensorrt_build'].Progress = Watched
        try:
            build_engine(load_bundle(sys.argv[1]), BuildOptions('tensorrt_rtx'), Path(sys.argv[2]))
        except KeyboardInterrupt:
            print('interrupted')
    """
    ended = run_python(code, SHIPPED[-1], tmp_path)
    assert ended.stdout == 'interrupted\n', ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['.build.lock']


def waits_for_a_lock(pid: int) -> bool:
    """Tell whether a process stands in the kernel's queue for a lock on a file."""
    queue = (line.split() for line in Path('/proc/locks').read_text().splitlines())
    return any(words[1] == '->' and str(pid) in words for words in queue)


def test_two_processes(bundle, tmp_path, monkeypatch):
    """While one builds, another is refused or waits; Ctrl-C ends the first one neatly."""
    monkeypatch.setenv('COLUMNS', '80')
    folder = tmp_path / 'engines'
    first = start('build-engine', SHIPPED[-1], '--output', folder, '--flavour', 'tensorrt_rtx')
    said = ''
    while 'building' not in said:
        character = first.stderr.read(1)
        assert character, said
        said += character
    first.send_signal(signal.SIGSTOP)  # so that it holds the folder until the others have come
    try:
        with pytest.raises(
            EngineError, match=f'another process is building an engine in {folder}'
        ):
            build_engine(bundle, BuildOptions('tensorrt_rtx'), folder)
        second = start('build-engine', bundle.path, '--output', folder, '--wait')
        while not waits_for_a_lock(second.pid):
            assert second.poll() is None
            time.sleep(0.01)
    finally:
        first.send_signal(signal.SIGINT)
        first.send_signal(signal.SIGCONT)
    said += first.communicate()[1]
    assert first.returncode == 130
    assert 'Traceback' not in said
    output = second.communicate()[0]
    assert second.returncode == 0
    assert 'tensorrt_rtx-fp16-64x48.json' in output
    assert sorted(path.suffix for path in folder.iterdir()) == ['.engine', '.json', '.lock']


@pytest.mark.parametrize('suffix', ['.engine', '.json'])
def test_killed_while_writing(bundle, suffix):
    """At either of the two moments when a file is put in its place."""
    path = build_engine(bundle, BuildOptions('tensorrt_rtx'))
    content = path.read_bytes(), plan_of(path)
    code = f"""if True:
        import os, signal, sys
        from rgbd_fusion_seg.bundle import load_bundle
        from rgbd_fusion_seg.engine_building.build_options import BuildOptions
        from rgbd_fusion_seg.engine_building.tensorrt_build import build_engine
        replace = os.replace
        def die_at(source, target):
            if str(target).endswith({suffix!r}):
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
        os.replace = die_at
        options = BuildOptions('tensorrt_rtx', workspace_mib=700, force=True)
        build_engine(load_bundle(sys.argv[1]), options)
    """
    killed = run_python(code, bundle.path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (path.read_bytes(), plan_of(path)) == content
    assert len(list(path.parent.iterdir())) > 3
    build_engine(bundle, BuildOptions('tensorrt_rtx', force=True))
    left = sorted(p.name for p in path.parent.iterdir())
    assert left == ['.build.lock', read_card(path).engine_file, path.name]


def test_no_room_on_the_disk(bundle):
    """A file may have 100 kB here, and an engine has more."""
    path = build_engine(bundle, BuildOptions('tensorrt_rtx'))
    content = path.read_bytes(), plan_of(path)
    code = """if True:
        import resource, sys
        from rgbd_fusion_seg.cli import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        sys.exit(main(['build-engine', sys.argv[1], '--flavour', 'tensorrt_rtx', '--force']))
    """
    failed = run_python(code, bundle.path)
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith(f'rgbd-fusion-seg: {path.parent}')
    assert 'cannot be written (File too large); make room' in last
    assert (path.read_bytes(), plan_of(path)) == content
    assert len(list(path.parent.iterdir())) == 3


def test_a_bundle_that_cannot_be_written_to(bundle, tmp_path):
    (bundle.path / 'engines').write_text('in the way, as a read-only folder would be')
    path = build_engine(bundle, BuildOptions('tensorrt_rtx'))
    assert path.is_relative_to(tmp_path / 'cache')
    assert list(list_engines(bundle)) == [path]
    with pytest.raises(EngineError, match=r'engines cannot be written to \(File exists\)'):
        build_engine(bundle, BuildOptions('tensorrt_rtx'), bundle.path / 'engines')


def test_the_command(bundle, capsys):
    arguments = ['build-engine', str(bundle.path), '--flavour', 'tensorrt_rtx']
    arguments += ['--precision', 'bf16', '--compute-capability', '8.6', '8.9', '--force']
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert 'building tiny' in printed.err
    path = bundle.path / 'engines' / 'tensorrt_rtx-bf16-64x48-sm86-sm89.json'
    assert f'card       {path}\n' in printed.out
    assert str(path.parent / read_card(path).engine_file) in printed.out
    assert 'bf16, for compute capability 8.6, 8.9' in printed.out
    assert 'rgb float32 1x3x48x64, hha float32 1x3x24x32, logits float32 1x4x6x8' in printed.out
    if read_card(path).agreement is None:
        assert 'agreement with ONNX Runtime and latency were not measured: ' in printed.err


def test_the_command_says_that_nothing_was_built(bundle, capsys):
    command = ['build-engine', str(bundle.path), '--flavour', 'tensorrt_rtx']
    assert main(command) == 0
    first = capsys.readouterr().out
    assert 'nothing was built' not in first
    assert main(command) == 0
    again = capsys.readouterr().out
    assert again.startswith(first)
    assert again.endswith('nothing was built, for this engine fits; --force builds it again\n')


def test_frames_that_are_not_there_are_told_before_the_build(bundle, no_gpu, tmp_path, capsys):
    command = ['build-engine', str(bundle.path), '--frames', str(tmp_path / 'absent')]
    assert main(command) == 1
    assert f'there is no folder {tmp_path / "absent"}' in capsys.readouterr().err
    assert not list_engines(bundle)


def test_the_command_with_a_range(open_bundle, capsys):
    command = ['build-engine', str(open_bundle.path), '--flavour', 'tensorrt_rtx', '--sizes']
    assert main([*command, '32x32', '64x48', '128x96']) == 0
    assert main([*command, '64x48', '32x32', '128x96']) == 1
    assert 'do not grow' in capsys.readouterr().err
    assert main([*command, '32x32', '60x48', '128x96']) == 1
    assert 'cannot take 60x48 images; choose multiples of 16' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['tiny', '--precision', 'int8'],
        ['tiny', '--sizes', '32x32', '64x48'],
        ['tiny', '--input-size', '32x32', '--sizes', '32x32', '64x48', '96x96'],
        ['tiny', '--workspace', '0'],
        ['tiny', '--optimization-level', '6'],
    ],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(['build-engine', *arguments])
    assert ended.value.code == 2
    assert 'usage: rgbd-fusion-seg build-engine' in capsys.readouterr().err
