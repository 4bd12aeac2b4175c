"""The OpenVINO backend: the CPU, in float32 or by choice in bfloat16.

How it is set up, and why (``benchmarks/bench_engines.py`` measures it again):

- float32 unless asked otherwise: left alone, OpenVINO computes in bfloat16 wherever the processor
  can, and says nothing.
- One frame at a time on all threads (its latency hint), for frames come one by one.
- Threads are not bound to cores: the system moves them away from a core that is taken.
- Sizes that the graph leaves open are fixed to the bundle's.
- The compiled network is kept in the user's cache folder, which halves the time to open it again.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rgbd_fusion_seg.atomic_files import write_atomically
from rgbd_fusion_seg.bundle import ModelBundle, file_sha256
from rgbd_fusion_seg.engine.agreement import require_agreement
from rgbd_fusion_seg.engine.graph_engine import ONNX_TYPES, Declared, GraphEngine, check_graph
from rgbd_fusion_seg.engine.onnxruntime import thread_count
from rgbd_fusion_seg.errors import BundleError, EngineError
from rgbd_fusion_seg.locations import user_cache

PRECISIONS = {'fp32': 'f32', 'bf16': 'bf16'}
"""Our names of what it may compute in, and OpenVINO's."""


def probe() -> tuple[bool, str]:
    """Return whether OpenVINO is here, and its version or the reason."""
    try:
        return True, the_library().__version__
    except ImportError as error:
        return False, f'{error}; install it with: pip install openvino'


def open_engine(
    bundle: ModelBundle,
    num_threads: int | None = None,
    precision: str = 'fp32',
    unchecked: bool = False,
    pin_threads: bool = False,
    cache: bool = True,
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
        cache: keep the compiled network in the user's cache folder; where that cannot be written
            to, it is compiled each time.

    Raises:
        BundleError: a file that is no ONNX network, or not that of the card.
        EngineError: a number of threads that is not positive, a precision that is unknown, that
            the processor does not have, or that has not been checked; a network that OpenVINO
            cannot compile.
    """
    openvino, core, threads = the_library(), the_core(), thread_count(num_threads)
    _check_precision(core, precision)
    if PRECISIONS[precision] != 'f32' and not unchecked:
        require_agreement(bundle, 'openvino', openvino.__version__, precision)
    settings = {
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_PRECISION_HINT': PRECISIONS[precision],
        'INFERENCE_NUM_THREADS': threads,
        'ENABLE_CPU_PINNING': pin_threads,
    }
    kept = CompiledNetworks(user_cache() / 'openvino', bundle) if cache else None
    if kept is not None and kept.is_ready():
        settings['CACHE_DIR'] = str(kept.folder)
    model = _read_model(core, bundle, openvino.__version__)
    inputs, outputs = _declared(model.inputs), _declared(model.outputs)
    check_graph(inputs, outputs, bundle)
    try:
        _fix_sizes(model, bundle)
        compiled = core.compile_model(model, 'CPU', settings)
    except Exception as error:  # its errors have no base class of their own
        raise EngineError(_cannot_compile(bundle, openvino.__version__, error)) from error
    if kept is not None:
        kept.seal()
    name = f'openvino (CPU, {precision}, {threads} threads)'
    return OpenVinoEngine(name, bundle, compiled)


class CompiledNetworks:
    """What OpenVINO has compiled of one network and keeps, each file with its hash beside it.

    OpenVINO sees to it that a file fits version, processor and settings, and that it is not cut
    short. It does not see bytes that changed, as in a file whose last blocks were not on the disk
    yet when power failed: such a network computes nonsense without a word (OpenVINO 2026.4).

    Args:
        root: where the folders of all networks lie.
        bundle: the network and its card.
    """

    def __init__(self, root: Path, bundle: ModelBundle) -> None:
        self.folder = root / bundle.cache_name
        self._sound: set[Path] = set()

    def is_ready(self) -> bool:
        """Make the folder and remove damaged files; returns whether it can be used now."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in self.folder.glob('*.blob'):
                if self._sealed(file) == file_sha256(file):
                    self._sound.add(file)
                else:
                    file.unlink()
        except OSError:
            return False
        return True

    def seal(self) -> None:
        """Write the hashes of new files; a folder that cannot be written to only costs time."""
        with suppress(OSError):
            for file in set(self.folder.glob('*.blob')) - self._sound:
                write_atomically(self._seal(file), file_sha256(file).encode())

    def _sealed(self, file: Path) -> str:
        try:
            return self._seal(file).read_text(encoding='ascii')
        except (OSError, UnicodeError):
            return ''

    @staticmethod
    def _seal(file: Path) -> Path:
        return file.with_suffix('.sha256')


class OpenVinoEngine(GraphEngine):
    """A compiled network; see :class:`rgbd_fusion_seg.engine.Engine`.

    Args:
        name: backend and device, for people.
        bundle: the network and its card.
        compiled: the network, checked against the card and compiled.
    """

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


def the_library() -> ModuleType:
    """Import OpenVINO without its reports, and return it.

    Left alone, each import sends an event to its maker, from a thread of its own, through the
    package openvino-telemetry. OpenVINO does without that one where it is absent.

    Raises:
        ImportError: it is not installed.
    """
    absent = {'openvino_telemetry': None} if 'openvino_telemetry' not in sys.modules else {}
    sys.modules.update(absent)
    try:
        return import_module('openvino')
    finally:
        for name in absent:
            del sys.modules[name]


@functools.cache
def the_core() -> Any:
    """Return OpenVINO's one Core of this process.

    On processors with AMX each Core sets up a stack for signal handlers and at its end puts back
    the one before, whether or not that is still there: when two end in the order in which they
    were made, the next Ctrl-C crashes the process (OpenVINO 2026.4).
    """
    return the_library().Core()


def _read_model(core: Any, bundle: ModelBundle, version: str) -> Any:
    try:
        return core.read_model(str(bundle.weights_path))
    except Exception as error:  # its errors have no base class of their own
        if 'OpConversionFailure' in str(error):  # a sound network with an operator it has not
            raise EngineError(_cannot_compile(bundle, version, error)) from error
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


def _cannot_compile(bundle: ModelBundle, version: str, error: Exception) -> str:
    return (
        f'OpenVINO {version} cannot compile {bundle.weights_path} ({_reason(error)}); '
        'take the backend onnxruntime'
    )


def _reason(error: Exception) -> str:
    """Return OpenVINO's message without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(('Exception from', 'Check '))]
    return f'{" ".join(told or lines):.300}'
