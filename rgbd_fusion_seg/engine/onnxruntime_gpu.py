"""ONNX Runtime on the GPU, through its CUDA or its TensorRT execution provider.

It needs no engine file, so it serves where none has been built yet. Where a provider cannot work
or has no kernel for an operator, ONNX Runtime itself falls back to the CPU and merely logs it;
here that is an error, so that ``auto`` can say why and open the CPU backend in its own right.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.engine.cuda import find_device
from rgbd_fusion_seg.engine.graph_engine import zero_inputs
from rgbd_fusion_seg.engine.onnxruntime import OnnxRuntimeEngine, cpu_options, open_session
from rgbd_fusion_seg.errors import EngineError
from rgbd_fusion_seg.locations import user_cache

PROVIDERS = {'cuda': 'CUDAExecutionProvider', 'tensorrt': 'TensorrtExecutionProvider'}
"""Our names, the default first, and ONNX Runtime's."""
_LIBRARIES = {
    PROVIDERS['cuda']: 'CUDA and cuDNN',
    PROVIDERS['tensorrt']: 'CUDA, cuDNN and TensorRT (libnvinfer.so.10)',
}
_LEFT_TO_CPU = 'fallback to CPU EP has been explicitly disabled'
"""How ONNX Runtime words that it would not run all of a network on the GPU."""


def probe(device: int = 0) -> tuple[bool, str]:
    """Return whether ONNX Runtime can use that GPU, and which it is, or what is missing."""
    try:
        runtime = import_module('onnxruntime')
        there = _installed(runtime)
        gpu = find_device(device)
    except ImportError as error:
        return False, f'{error}; install it with: pip install onnxruntime-gpu'
    except EngineError as error:
        return False, str(error)
    return True, f'{runtime.__version__} with {", ".join(there)} on {gpu}'


def open_engine(
    bundle: ModelBundle, device: int = 0, provider: str = '', allow_tf32: bool = False
) -> OnnxRuntimeEngine:
    """Open a bundle's network on a GPU.

    Args:
        bundle: the network and its card.
        device: index of the GPU.
        provider: ``cuda``, or ``tensorrt``, which builds an engine on first use (minutes) and
            keeps it in the user's cache folder; default: the first that is installed.
        allow_tf32: let float32 be multiplied with 10 bits of mantissa, which is faster. It is for
            ``cuda``: TensorRT does so by itself on GPUs since Ampere, and ONNX Runtime has no
            option against it (``NVIDIA_TF32_OVERRIDE=0`` in the environment forbids it to all).

    Raises:
        BundleError: a file that is no ONNX network, or not that of the card.
        EngineError: no such GPU or provider, one that ONNX Runtime could not use after all, or a
            network with operators that it has on the CPU alone.
    """
    runtime = import_module('onnxruntime')
    there = _installed(runtime)
    chosen = provider or there[0]
    if chosen not in there:
        raise EngineError(
            f'onnxruntime {runtime.__version__} has no provider {chosen!r} here; '
            f'it has: {", ".join(there)}'
        )
    gpu = find_device(device)
    if hasattr(runtime, 'preload_dlls'):  # CUDA's libraries of pip are not on the loader's path
        runtime.preload_dlls()
    cuda = {'device_id': device, 'use_tf32': '1' if allow_tf32 else '0'}
    providers: list[tuple[str, dict[str, Any]]] = [(PROVIDERS['cuda'], cuda)]
    if chosen == 'tensorrt':  # what it declines is left to CUDA
        settings = {'device_id': device, **_engine_cache(bundle)}
        providers.insert(0, (PROVIDERS['tensorrt'], settings))
    name = f'onnxruntime ({chosen}, {gpu.name})'
    session = open_gpu_session(bundle, providers)
    engine = OnnxRuntimeEngine(name, bundle, session)
    # Memory is taken and kernels are chosen by the first frame; what fails then shows here.
    engine.run(zero_inputs(bundle))
    return engine


def _engine_cache(bundle: ModelBundle) -> dict[str, Any]:
    """Return the settings that keep TensorRT's engine of a network at its size.

    Each has a folder of its own, for ONNX Runtime names engines by the names in the graph: it
    would take one with the weights of yesterday's training for today's.
    """
    width, height = bundle.input_size
    name = f'{bundle.cache_name}-{width}x{height}'
    folder = user_cache() / 'onnxruntime_tensorrt' / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # it is built at every start then
        return {}
    return {'trt_engine_cache_enable': True, 'trt_engine_cache_path': str(folder)}


def open_gpu_session(bundle: ModelBundle, providers: list[tuple[str, dict[str, Any]]]) -> Any:
    """Load a network with providers of the GPU, and make sure that they compute all of it.

    Of a bundle with an open batch this cannot be asked for: ONNX Runtime rightly computes on the
    CPU what depends on shapes alone. All else that does is folded where sizes are fixed.

    Args:
        bundle: the network and its card.
        providers: with their options, the one that is meant first.

    Raises:
        BundleError: as :func:`rgbd_fusion_seg.engine.onnxruntime.open_session`.
        EngineError: the provider failed, or ONNX Runtime fell back to the CPU.
    """
    options = cpu_options(1)
    if not bundle.dynamic.batch:
        options.add_session_config_entry('session.disable_cpu_ep_fallback', '1')
    try:
        session = open_session(bundle, options, providers)
    except EngineError as error:
        if _LEFT_TO_CPU in str(error):
            raise _left_to_cpu(bundle, providers) from error
        raise
    _check_in_use(session, providers[0][0])
    session.disable_fallback()  # nor may a failure while it runs move it to the CPU
    return session


def _left_to_cpu(bundle: ModelBundle, providers: list[tuple[str, dict[str, Any]]]) -> EngineError:
    """Return what is to be said of a network of which providers leave a part or all to the CPU."""
    options = cpu_options(1)
    options.add_session_config_entry('session.record_ep_graph_assignment_info', '1')
    session = open_session(bundle, options, providers)
    _check_in_use(session, providers[0][0])
    operators: set[str] = set()
    if hasattr(session, 'get_provider_graph_assignment_info'):
        operators = {
            node.op_type
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name == 'CPUExecutionProvider'
            for node in part.get_nodes()
        }
    return EngineError(
        f'onnxruntime would run operators of {bundle.weights_path} on the CPU '
        f'({", ".join(sorted(operators)) or "it does not say which"}), for which '
        f'{providers[0][0]} has no kernels; take another provider, the CPU or a TensorRT engine'
    )


def _check_in_use(session: Any, provider: str) -> None:
    """Raise EngineError unless a session has a provider."""
    in_use = session.get_providers()
    if in_use[0] != provider:
        raise EngineError(
            f'onnxruntime could not use {provider} and fell back to {in_use[0]}; the libraries of '
            f'{_LIBRARIES.get(provider, provider)} that this version of onnxruntime-gpu asks for '
            'must be installed'
        )


def _installed(runtime: Any) -> list[str]:
    listed = runtime.get_available_providers()
    there = [name for name, provider in PROVIDERS.items() if provider in listed]
    if not there:
        raise EngineError(
            f'onnxruntime {runtime.__version__} is built for '
            f'{", ".join(p.removesuffix("ExecutionProvider") for p in listed)} alone; install '
            'onnxruntime-gpu in its place'
        )
    return there
