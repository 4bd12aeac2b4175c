"""The OpenVINO backend: the CPU, in float32 or by choice in bfloat16.

How it is set up, and why (``benchmarks/bench_engines.py`` measures it again):

- float32 unless asked otherwise: left alone, OpenVINO computes in bfloat16 wherever the processor
  can, and says nothing.
- One frame at a time on all threads (its latency hint), for frames come one by one.
- Threads are not bound to cores: the system moves them away from a core that is taken.
- Sizes that the graph leaves open are fixed to the bundle's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from rgbd_fusion_seg.bundle import ModelBundle, user_cache
from rgbd_fusion_seg.engine.agreement import require_agreement
from rgbd_fusion_seg.engine.graph_engine import ONNX_TYPES, Declared, GraphEngine, check_graph
from rgbd_fusion_seg.engine.onnxruntime import thread_count
from rgbd_fusion_seg.errors import BundleError, EngineError

PRECISIONS = {'fp32': 'f32', 'bf16': 'bf16'}
"""Our names of what it may compute in, and OpenVINO's."""


def probe() -> tuple[bool, str]:
    """Return whether OpenVINO is here, and its version or the reason."""
    try:
        return True, import_module('openvino').__version__
    except ImportError as error:
        return False, f'{error}; install it with: pip install openvino'


def open_engine(
    bundle: ModelBundle,
    num_threads: int | None = None,
    precision: str = 'fp32',
    unchecked: bool = False,
    pin_threads: bool = False,
    cache: bool = False,
) -> OpenVinoEngine:
    """Open a bundle's network.

    Args:
        bundle: the network and its card.
        num_threads: threads of one inference; default: the cores this process may use.
        precision: ``fp32``, or ``bf16`` on processors that have it.
        unchecked: take ``bf16`` although no benchmark has shown that it gives the same labels
            (see :mod:`rgbd_fusion_seg.engine.agreement`).
        pin_threads: bind each thread to a core. On a machine that does other things too, frames
            then wait for the core that is taken.
        cache: keep the compiled network in the user's cache folder, which halves the time to
            open it the next time; OpenVINO itself sees to it that it fits.

    Raises:
        BundleError: a file that is no ONNX network, or not that of the card.
        EngineError: a number of threads that is not positive, a precision that is unknown, that
            the processor does not have, or that has not been checked; a network that OpenVINO
            cannot compile.
    """
    openvino, core, threads = import_module('openvino'), the_core(), thread_count(num_threads)
    _check_precision(core, precision)
    if PRECISIONS[precision] != 'f32' and not unchecked:
        require_agreement(bundle, 'openvino', openvino.__version__, precision)
    settings = {
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_PRECISION_HINT': PRECISIONS[precision],
        'INFERENCE_NUM_THREADS': threads,
        'ENABLE_CPU_PINNING': pin_threads,
    }
    if cache:
        settings['CACHE_DIR'] = str(user_cache() / 'openvino')
    model = _read_model(core, bundle, openvino.__version__)
    inputs, outputs = _declared(model.inputs), _declared(model.outputs)
    check_graph(inputs, outputs, bundle)
    try:
        _fix_sizes(model, bundle)
        compiled = core.compile_model(model, 'CPU', settings)
    except Exception as error:  # its errors have no base class of their own
        raise EngineError(
            f'OpenVINO {openvino.__version__} cannot compile {bundle.weights_path} '
            f'({_reason(error)}); take the backend onnxruntime'
        ) from error
    name = f'openvino (CPU, {precision}, {threads} threads)'
    return OpenVinoEngine(name, bundle, compiled)


class OpenVinoEngine(GraphEngine):
    """A compiled network; see :class:`rgbd_fusion_seg.engine.Engine`.

    Args:
        name: backend and device, for people.
        bundle: the network and its card.
        compiled: the network, checked against the card and compiled.
    """

    backend = 'openvino'

    def __init__(self, name: str, bundle: ModelBundle, compiled: Any) -> None:
        request = compiled.create_infer_request()

        def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            contiguous = {k: np.ascontiguousarray(v) for k, v in feeds.items()}
            return list(request.infer(contiguous, share_inputs=True).values())

        self._compiled = compiled
        super().__init__(name, bundle, run, _declared(compiled.outputs))

    def close(self) -> None:
        """Free the network; closing again does nothing."""
        super().close()
        self._compiled = None


def _declared(ports: Sequence[Any]) -> list[Declared]:
    described = []
    for port in ports:
        sides = port.get_partial_shape()
        open_rank = sides.rank.is_dynamic
        shape = () if open_rank else tuple(s.get_length() if s.is_static else '?' for s in sides)
        kind = port.get_element_type().to_dtype().name
        described.append(Declared(port.get_any_name(), shape, ONNX_TYPES.get(kind, kind)))
    return described


def _check_precision(core: Any, precision: str) -> None:
    if precision not in PRECISIONS:
        raise EngineError(
            f'openvino has no precision {precision!r}; choose one of: {", ".join(PRECISIONS)}'
        )
    if precision == 'bf16' and 'BF16' not in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        raise EngineError('this processor does not compute in bf16; choose the precision fp32')


@functools.cache
def the_core() -> Any:
    """Return OpenVINO's one Core of this process.

    On processors with AMX each Core sets up a stack for signal handlers and at its end puts back
    the one before, whether or not that is still there: when two end in the order in which they
    were made, the next Ctrl-C crashes the process (OpenVINO 2026.4).
    """
    return import_module('openvino').Core()


def _read_model(core: Any, bundle: ModelBundle, version: str) -> Any:
    try:
        return core.read_model(str(bundle.weights_path))
    except Exception as error:  # its errors have no base class of their own
        raise BundleError(
            f'{bundle.weights_path} is no ONNX network that OpenVINO {version} can open '
            f'({_reason(error)}); export the bundle again'
        ) from error


def _fix_sizes(model: Any, bundle: ModelBundle) -> None:
    if not model.is_dynamic():
        return
    first = -1 if bundle.dynamic.batch else 1
    forms = bundle.graph_inputs
    model.reshape(
        {
            name: [first, *form.shape[1:]] if len(form.shape) == 4 else list(form.shape)
            for name, form in forms.items()
        }
    )


def _reason(error: Exception) -> str:
    """Return OpenVINO's message without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(('Exception from', 'Check '))]
    return f'{" ".join(told or lines):.300}'
