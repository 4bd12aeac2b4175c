"""ONNX Runtime on the GPU, through its CUDA or its TensorRT execution provider.

It needs no engine file, so it serves where none has been built yet. Where a provider cannot work,
ONNX Runtime itself falls back to the CPU and merely logs it; here that is an error, so that
``auto`` can say why and open the CPU backend in its own right.
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
        allow_tf32: let float32 be multiplied with 10 bits of mantissa, which is faster.

    Raises:
        BundleError: a file that is no ONNX network, or not that of the card.
        EngineError: no such GPU or provider, or one that ONNX Runtime could not use after all.
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
    settings: dict[str, Any] = {'device_id': device}
    if chosen == 'cuda':
        settings['use_tf32'] = '1' if allow_tf32 else '0'
    else:
        settings |= _engine_cache(bundle)
    name = f'onnxruntime ({chosen}, {gpu.name})'
    session = open_gpu_session(bundle, PROVIDERS[chosen], settings)
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
    name = f'{bundle.name}-{bundle.weights_sha256[:12]}-{width}x{height}'
    folder = user_cache() / 'onnxruntime_tensorrt' / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # it is built at every start then
        return {}
    return {'trt_engine_cache_enable': True, 'trt_engine_cache_path': str(folder)}


def open_gpu_session(bundle: ModelBundle, provider: str, settings: dict[str, Any]) -> Any:
    """Load a network with a provider, and make sure that it is the one that will compute.

    Raises:
        BundleError: as :func:`rgbd_fusion_seg.engine.onnxruntime.open_session`.
        EngineError: the provider failed, or ONNX Runtime fell back to another one.
    """
    session = open_session(bundle, cpu_options(1), [(provider, settings)])
    in_use = session.get_providers()
    if in_use[0] != provider:
        raise EngineError(
            f'onnxruntime could not use {provider} and fell back to {in_use[0]}; the libraries '
            'of CUDA and cuDNN that this version of onnxruntime-gpu asks for must be installed'
        )
    session.disable_fallback()  # nor may a failure while it runs move it to the CPU
    return session


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
