"""The ONNX Runtime backend: on the CPU, everywhere. fp16 networks run too, slowly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.engine import StepDown
from rgbd_fusion_seg.errors import BundleError, EngineError


def probe() -> tuple[bool, str]:
    """Return whether ONNX Runtime is here, and its version or the reason."""
    try:
        return True, import_module('onnxruntime').__version__
    except ImportError as error:
        return False, f'{error}; install it with: pip install onnxruntime'


def open_engine(
    bundle: ModelBundle, num_threads: int | None = None, allow_spinning: bool = False
) -> OnnxRuntimeEngine:
    """Open a bundle's network.

    Args:
        bundle: the network and its card.
        num_threads: threads of one inference; default: the cores this process may use.
        allow_spinning: let idle threads wait actively. It gains about 1 % on a machine that
            does nothing else and loses up to two thirds of the speed on one that does.

    Raises:
        BundleError: a file that is no ONNX network, or not that of the card.
        EngineError: a number of threads that is not positive.
    """
    return OnnxRuntimeEngine(bundle, num_threads, allow_spinning)


class OnnxRuntimeEngine:
    """An ONNX Runtime session; see :class:`rgbd_fusion_seg.engine.Engine`."""

    step_downs: tuple[StepDown, ...] = ()

    def __init__(self, bundle: ModelBundle, num_threads: int | None, allow_spinning: bool) -> None:
        if num_threads is None:
            num_threads = _usable_cores()
        if num_threads < 1:
            raise EngineError(f'num_threads must be at least 1, got {num_threads}')
        self.name = f'onnxruntime (CPU, {num_threads} threads)'
        self._session = _open_session(bundle, num_threads, allow_spinning)
        _check_inputs(self._session.get_inputs(), bundle)
        self._inputs = tuple(bundle.inputs)
        self._outputs = [_only_output(self._session, bundle)]
        _check_logits(self._logits_shape(bundle), bundle)

    def infer(self, rgb: np.ndarray | None = None, hha: np.ndarray | None = None) -> np.ndarray:
        """Return logits float32 (N, K, h, w) for float32 (N, 3, height, width) inputs.

        Raises:
            EngineError: an input that is absent or of another form, a failure of the runtime,
                or a closed engine.
        """
        if self._session is None:
            raise EngineError(f'the engine {self.name} is closed; open a new one')
        given = {'rgb': rgb, 'hha': hha}
        feeds = {name: given[name] for name in self._inputs}
        if any(tensor is None for tensor in feeds.values()):
            raise EngineError(
                f'the network on {self.name} needs the inputs {", ".join(feeds)}; give them all'
            )
        try:
            return self._session.run(self._outputs, feeds)[0]
        except Exception as error:  # its errors have no base class of their own
            raise EngineError(f'inference with {self.name} failed: {error}') from error

    def close(self) -> None:
        """Free the network; closing again does nothing."""
        self._session = None

    def _logits_shape(self, bundle: ModelBundle) -> Sequence[int]:
        shape = self._session.get_outputs()[0].shape
        if all(isinstance(size, int) for size in shape):
            return shape
        # The graph leaves sizes open: only a run tells them.
        zeros = {
            name: np.zeros((1, 3, size.height, size.width), np.float32)
            for name, size in bundle.inputs.items()
        }
        return self.infer(**zeros).shape


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _open_session(bundle: ModelBundle, num_threads: int, allow_spinning: bool) -> Any:
    runtime = import_module('onnxruntime')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry(
        'session.intra_op.allow_spinning', '1' if allow_spinning else '0'
    )
    try:
        return runtime.InferenceSession(
            str(bundle.weights_path), options, providers=['CPUExecutionProvider']
        )
    except Exception as error:  # its errors have no base class of their own
        raise BundleError(
            f'{bundle.weights_path} is no ONNX network that ONNX Runtime {runtime.__version__} '
            f'can open ({str(error).splitlines()[0]:.200}); export the bundle again'
        ) from error


def _check_inputs(inputs: Sequence[Any], bundle: ModelBundle) -> None:
    """Compare names, types and sizes with the card; an open size is a name, not a number."""
    expected = {name: (1, 3, size.height, size.width) for name, size in bundle.inputs.items()}
    names = [tensor.name for tensor in inputs]
    if sorted(names) != sorted(expected):
        raise BundleError(
            f'the network {bundle.weights_path} has the inputs {", ".join(names)}, expected '
            f'{" and ".join(expected)}; export it with these names'
        )
    for tensor in inputs:
        _check_float(tensor, bundle)
        shape = expected[tensor.name]
        fixed = [(a, e) for a, e in zip(tensor.shape, shape, strict=False) if isinstance(a, int)]
        if len(tensor.shape) != len(shape) or any(a != e for a, e in fixed):
            raise _contradiction(tensor.name, tensor.shape, shape, bundle)


def _only_output(session: Any, bundle: ModelBundle) -> str:
    outputs = session.get_outputs()
    if len(outputs) != 1:
        raise BundleError(
            f'the network {bundle.weights_path} has {len(outputs)} outputs, expected the logits '
            'alone; export it with one output'
        )
    _check_float(outputs[0], bundle)
    return outputs[0].name


def _check_logits(shape: Sequence[int], bundle: ModelBundle) -> None:
    if len(shape) == 4 and shape[1] != bundle.num_classes:
        raise BundleError(
            f'the network {bundle.weights_path} returns {shape[1]} classes but its card lists '
            f'{bundle.num_classes}; card and weights belong to different networks'
        )
    if tuple(shape) != bundle.logits_shape:
        raise _contradiction('the output', shape, bundle.logits_shape, bundle)


def _check_float(tensor: Any, bundle: ModelBundle) -> None:
    if tensor.type != 'tensor(float)':
        raise BundleError(
            f'{tensor.name} of the network {bundle.weights_path} is {tensor.type}, expected '
            'tensor(float); export it in float32'
        )


def _contradiction(
    name: str, actual: Sequence[int | str], expected: Sequence[int], bundle: ModelBundle
) -> BundleError:
    return BundleError(
        f'{name} of the network {bundle.weights_path} has the shape {list(actual)} but its card '
        f'says {list(expected)}; card and weights belong to different networks'
    )
