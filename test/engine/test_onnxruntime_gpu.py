"""ONNX Runtime on a GPU: politely refused without one, and never the CPU in disguise."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from bundles import tiny_card, tiny_network, with_open_sizes, write_bundle

from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.engine import available_backends, onnxruntime_gpu, open_engine, probe_backend
from rgbd_fusion_seg.engine.cuda import Device
from rgbd_fusion_seg.engine.onnxruntime_gpu import PROVIDERS, open_gpu_session
from rgbd_fusion_seg.engine_building import fused_graph
from rgbd_fusion_seg.errors import BundleError, EngineError
from rgbd_fusion_seg.locations import CARD_NAME
from rgbd_fusion_seg.segmenter import Segmenter

MODELS = Path(__file__).resolve().parents[2] / 'models'
SHIPPED = sorted(card.parent for card in MODELS.rglob(CARD_NAME))

CUDA_OPERATORS = """
Abs Add And ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Conv ConvTranspose Cos
Div Elu Equal Erf Exp Expand Flatten Floor Gather Gemm GlobalAveragePool GlobalMaxPool Greater
GreaterOrEqual HardSigmoid HardSwish Identity InstanceNormalization LeakyRelu Less LessOrEqual
Log LogSoftmax MatMul Max MaxPool Min Mul Neg Not Or Pad Pow PRelu Reciprocal ReduceL1 ReduceL2
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize Round Sigmoid Sign Sin
Slice Softmax Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Unsqueeze Where Xor
"""
"""Operators of opset 18 that CUDAExecutionProvider has for float32 (bool: the logical ones): from
docs/OperatorKernels.md of ONNX Runtime, commit 001d12d."""

INSTALLED = [p for p in PROVIDERS.values() if p in onnxruntime.get_available_providers()]
cpu_build = pytest.mark.skipif(bool(INSTALLED), reason='this ONNX Runtime is one for GPUs')


@cpu_build
def test_an_onnx_runtime_for_cpus_is_told_and_auto_steps_down(tiny_bundle: Path):
    (backend,) = (b for b in available_backends() if b.name == 'onnxruntime_gpu')
    assert not backend.usable
    assert 'CPU alone; install onnxruntime-gpu in its place' in backend.detail
    bundle = load_bundle(tiny_bundle)
    with pytest.raises(EngineError, match=r'onnxruntime_gpu cannot run here: .* CPU alone'):
        open_engine(bundle, 'onnxruntime_gpu')
    reasons = {step.backend: step.reason for step in open_engine(bundle).step_downs}
    assert reasons['onnxruntime_gpu'] == backend.detail


@cpu_build
@pytest.mark.filterwarnings('ignore:Specified provider')
@pytest.mark.parametrize(
    ('provider', 'libraries'),
    [(PROVIDERS['cuda'], 'cuDNN that'), (PROVIDERS['tensorrt'], 'libnvinfer.so.10')],
)
def test_a_silent_fall_back_to_the_cpu_is_an_error(tiny_bundle: Path, provider, libraries):
    """ONNX Runtime opens the session all the same, on the CPU."""
    bundle = load_bundle(tiny_bundle)
    session = onnxruntime.InferenceSession(
        str(bundle.weights_path), providers=[provider, 'CPUExecutionProvider']
    )
    assert session.get_providers() == ['CPUExecutionProvider']
    with pytest.raises(EngineError, match=f'{provider} and fell back to CPU.*{libraries}'):
        open_gpu_session(bundle, [(provider, {})])


def test_the_reason_of_a_provider_that_fails_is_told(tiny_bundle: Path, monkeypatch, capfd):
    """ONNX Runtime would try the CPU next, which we forbid, and tell of that instead."""
    provider, session = 'AzureExecutionProvider', onnxruntime.InferenceSession
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f'this ONNX Runtime has no {provider}')
    create = session._create_inference_session

    def without_libraries(self, providers, *rest):
        if provider in str(providers):
            raise RuntimeError('CUDA failure 35: driver version is insufficient')
        return create(self, providers, *rest)

    monkeypatch.setattr(session, '_create_inference_session', without_libraries)
    with pytest.raises(EngineError, match='CUDA failure 35: driver version is insufficient'):
        open_gpu_session(load_bundle(tiny_bundle), [(provider, {})])
    assert 'EP Error' not in capfd.readouterr().out


def test_a_part_that_a_provider_leaves_to_the_cpu_is_an_error(tiny_bundle: Path):
    """Azure's runs a single operator, and so leaves all others to the CPU; it comes with Linux."""
    provider = 'AzureExecutionProvider'
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f'this ONNX Runtime has no {provider}')
    bundle = load_bundle(tiny_bundle)
    session = onnxruntime.InferenceSession(str(bundle.weights_path), providers=[provider])
    assert session.get_providers()[0] == provider
    with pytest.raises(EngineError, match=r'on the CPU \((AveragePool, Concat, Conv|it does not)'):
        open_gpu_session(bundle, [(provider, {})])


def test_shapes_of_an_open_batch_may_be_computed_on_the_cpu(tmp_path: Path):
    provider = 'AzureExecutionProvider'
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f'this ONNX Runtime has no {provider}')
    card = tiny_card() | {'dynamic': {'batch': True, 'size': True, 'multiple': 16}}
    bundle = load_bundle(write_bundle(tmp_path / 'open', card, with_open_sizes(tiny_network())))
    assert open_gpu_session(bundle, [(provider, {})]).get_providers()[0] == provider


def _nodes(network: Path, tmp_path: Path) -> set[str]:
    """Return the operators that are left when ONNX Runtime gives them to its providers."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / 'optimised.onnx')
    onnxruntime.InferenceSession(str(network), options, providers=['CPUExecutionProvider'])
    return {node.op_type for node in onnx.load(tmp_path / 'optimised.onnx').graph.node}


@pytest.mark.parametrize('folder', SHIPPED, ids=lambda folder: folder.name)
def test_no_shapes_are_computed_where_sizes_are_fixed(tmp_path: Path, folder):
    """Else ONNX Runtime would leave that to the CPU on purpose, and be refused for it."""
    operators = _nodes(load_bundle(folder).weights_path, tmp_path)
    assert not operators & {'Shape', 'Size', 'Gather', 'ConstantOfShape'}
    assert 'Conv' in operators


@pytest.mark.parametrize('folder', SHIPPED, ids=lambda folder: folder.name)
@pytest.mark.parametrize('hha', [None, False, True], ids=['split', 'fused', 'fused with HHA'])
def test_onnx_runtime_has_kernels_for_gpus_for_all_of_a_shipped_network(tmp_path, folder, hha):
    """Fused forms are for GPUs; a single operator without a kernel there refuses them."""
    bundle = load_bundle(folder)
    if hha is not None:
        bundle = fused_graph.fuse(bundle, tmp_path / 'fused', (640, 480), hha)
    assert onnx.load(bundle.weights_path).opset_import[0].version == 18
    operators = _nodes(bundle.weights_path, tmp_path)
    assert not operators - set(CUDA_OPERATORS.split())
    assert {'Conv', 'Resize'} <= operators


@pytest.fixture
def refusing(monkeypatch) -> dict[str, str]:
    """ONNX Runtime as on a machine with a GPU, with what each provider raises, if anything."""
    refusing = {'CUDAExecutionProvider': 'CUDA failure 2: out of memory ; GPU=0'}
    session = onnxruntime.InferenceSession

    def open_session(path, options=None, providers=(), **settings):
        name = providers[0] if isinstance(providers[0], str) else providers[0][0]
        if name in refusing:
            raise RuntimeError(f'{refusing[name]}\nat line 1')
        return session(path, options, providers=providers, **settings)

    gpu = Device(0, 'Some GPU', '8.7', 8000)
    monkeypatch.setattr(onnxruntime, 'InferenceSession', open_session)
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime_gpu, 'find_device', lambda *_: gpu)
    return refusing


def test_a_provider_that_fails_gives_way_to_the_cpu(tiny_bundle: Path, refusing):
    bundle = load_bundle(tiny_bundle)
    with pytest.raises(EngineError, match=r'with CUDAExecutionProvider: .* memory ; GPU=0$'):
        open_engine(bundle, 'onnxruntime_gpu')
    with Segmenter(bundle) as opened:
        assert opened.engine.backend == 'onnxruntime'
        (step_down,) = (s for s in opened.step_downs if s.backend == 'onnxruntime_gpu')
        assert 'out of memory' in step_down.reason
        assert step_down.unexpected


def test_the_gpu_that_is_meant_is_looked_at(tiny_bundle: Path, refusing, monkeypatch):
    def find_device(index: int = 0) -> Device:
        raise EngineError(f'there is no CUDA device {index}')

    monkeypatch.setattr(onnxruntime_gpu, 'find_device', find_device)
    with pytest.raises(EngineError, match='cannot run here: there is no CUDA device 3'):
        open_engine(load_bundle(tiny_bundle), 'onnxruntime_gpu', device=3)


def test_a_damaged_file_is_not_the_provider_s_fault(tmp_path: Path, refusing):
    bundle = load_bundle(write_bundle(tmp_path / 'bad', network=b'nonsense'))
    for backend in ('onnxruntime_gpu', 'auto'):
        with pytest.raises(BundleError, match='is no ONNX network'):
            open_engine(bundle, backend)


def test_what_onnx_runtime_alone_refuses_runs_on_openvino(tiny_bundle: Path, refusing):
    if not probe_backend('openvino', {}).usable:
        pytest.skip('needs the extra [openvino]')
    refusing['CPUExecutionProvider'] = 'an operator that it does not have'
    opened = open_engine(load_bundle(tiny_bundle))
    assert opened.backend == 'openvino'
    reasons = {step.backend: step.reason for step in opened.step_downs}
    assert 'an operator that it does not have' in reasons['onnxruntime']


def test_tensorrt_s_engines_are_kept_for_one_network_and_size(
    tmp_path: Path, refusing, monkeypatch
):
    """ONNX Runtime names them by the names in a graph, which another training does not change."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    folders = []

    def note(bundle, providers):
        (_, settings), (behind, _) = providers
        assert behind == PROVIDERS['cuda']
        if settings.get('trt_engine_cache_enable'):
            folders.append(Path(settings['trt_engine_cache_path']))
        return onnxruntime.InferenceSession(
            str(bundle.weights_path), providers=['CPUExecutionProvider']
        )

    monkeypatch.setattr(onnxruntime_gpu, 'open_gpu_session', note)
    refusing.clear()
    card = tiny_card() | {'dynamic': {'batch': False, 'size': True, 'multiple': 16}}
    for training in ('first', 'second'):
        network = with_open_sizes(tiny_network())
        network.doc_string = training  # other bytes of the same graph, as other weights are
        bundle = load_bundle(write_bundle(tmp_path / training / 'tiny', card, network))
        for size in ((64, 48), (128, 96), (64, 48)):
            open_engine(bundle.resized(*size), 'onnxruntime_gpu', provider='tensorrt').close()
    assert all(folder.is_dir() and tmp_path / 'cache' in folder.parents for folder in folders)
    assert folders[0] == folders[2]
    assert len(folders) == 6
    assert len(set(folders)) == 4
    assert not list(tmp_path.rglob('engines'))
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))  # no folder can be made there
    open_engine(bundle, 'onnxruntime_gpu', provider='tensorrt').close()
    assert len(folders) == 6
