"""What only TensorRT-RTX has: the check of an engine before it is loaded, and the JIT's cache.

RTX compiles the kernels for the GPU at hand when a context is created. What it compiled is kept
in a file, so that the next start is fast.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rgbd_fusion_seg.atomic_files import write_atomically
from rgbd_fusion_seg.engine.cuda import MEMORY_REMEDY
from rgbd_fusion_seg.engine.engine_choice import runs_on
from rgbd_fusion_seg.engine.flavours import Flavour
from rgbd_fusion_seg.engine.tensorrt_bindings import logger_of
from rgbd_fusion_seg.engine.tensorrt_execution import Context
from rgbd_fusion_seg.errors import EngineError

_log = logging.getLogger(__name__)

_CAUSES = {
    'VERSION_MISMATCH': 'another version of TensorRT-RTX built it; build it again',
    'UNSUPPORTED_CC': 'it was not built for the compute capability of this GPU; build it again',
    'OLD_CUDA_DRIVER': 'the NVIDIA driver is too old for it; update the driver',
    'OLD_CUDA_RUNTIME': 'the CUDA runtime is too old for it; update CUDA',
    'INSUFFICIENT_GPU_MEMORY': f'the GPU has too little memory for it; {MEMORY_REMEDY}',
    'MALFORMED_ENGINE': 'it is no engine of TensorRT-RTX, or is damaged; build it again',
    'CUDA_ERROR': 'the CUDA driver or runtime is not installed correctly; see nvidia-smi',
}


def rtx_targets(flavour: Flavour) -> dict[str, Any]:
    """Return RTX's names of the compute capabilities that it can be told to build for."""
    members = flavour.trt.ComputeCapability.__members__.items()
    return {f'{name[2:-1]}.{name[-1]}': member for name, member in members if name[:2] == 'SM'}


def rtx_default(flavour: Flavour) -> tuple[str, ...]:
    """Return what RTX builds for where it is told nothing: all but Turing.

    The header of its plans tells so: a set of bits, one a member of ComputeCapability in their
    order, of which the default has all but the first (and one that no member stands for).
    """
    return tuple(text for text in rtx_targets(flavour) if text != '7.5')


def rtx_serves(flavour: Flavour, capability: str) -> bool:
    """Return whether RTX has engines for a compute capability, by default or told to."""
    by_default = runs_on(flavour.name, rtx_default(flavour), capability)
    return by_default or capability in rtx_targets(flavour)


def check_validity(flavour: Flavour, runtime: Any, plan: bytes, name: str) -> None:
    """Ask RTX whether it can run an engine here, without loading it.

    Raises:
        EngineError: it cannot; the message says why.
    """
    trt = flavour.trt
    validity, diagnostics = runtime.get_engine_validity(plan)
    if validity == trt.EngineValidity.INVALID:
        flags = trt.EngineInvalidityDiagnostics.__members__.items()
        names = [key for key, flag in flags if int(diagnostics) & int(flag)]
        causes = [f'{_CAUSES.get(key, "")} ({key})'.lstrip() for key in names]
        raise EngineError(
            f'{flavour} refuses the engine {name}: '
            f'{", ".join(causes) or "it cannot ask the GPU for its properties"}'
        )
    if validity == trt.EngineValidity.SUBOPTIMAL:
        _log.info('%s would run faster if it were built on this machine, says %s', name, flavour)


class KernelFile(NamedTuple):
    """Where the compiled kernels of an engine are kept."""

    path: Path
    engine_sha256: str
    """Leads the file: those of an older build are not read and go with the next saving."""

    def read(self) -> bytes:
        """Return what was saved for this engine; empty where there is nothing."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return b''
        head = self.engine_sha256.encode()
        return content[len(head) :] if content.startswith(head) else b''

    def save(self, cache: Any) -> None:
        """Keep a runtime cache; a folder that cannot be written to only costs time."""
        serialised = cache.serialize()
        kernels = b'' if serialised is None else bytes(memoryview(serialised))
        if kernels == self.read():
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, self.engine_sha256.encode() + kernels)
        except OSError as error:
            _log.info('compiled kernels cannot be kept in %s (%s)', self.path, error.strerror)


def create_rtx_context(
    flavour: Flavour,
    engine: Any,
    kernels: KernelFile,
    stream: int,
    cuda_graph: bool,
    shapes: Mapping[str, tuple[int, ...]],
) -> Context:
    """Create an execution context, with the kernels that an earlier start compiled.

    Args:
        flavour, engine: RTX, and what it loaded.
        kernels: the file of compiled kernels.
        stream: handle of the stream it will run on.
        cuda_graph: whether inferences are to be started as a CUDA graph.
        shapes: of the inputs that it will begin with, by name.
    """
    cache = _load_kernels(flavour, engine, kernels)
    made = _create(flavour, engine, cache, flavour.trt.CudaGraphStrategy.DISABLED)
    if made.context is None or not cuda_graph:
        return made
    for name, shape in shapes.items():  # whether it can be captured may depend on them
        made.context.set_input_shape(name, shape)
    if made.context.is_stream_capturable(stream):
        return made
    _log.info('%s captures the engine by itself, without the copies around it', flavour)
    made.close()
    made = _create(flavour, engine, cache, flavour.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE)
    made.capturable = False
    return made


def _load_kernels(flavour: Flavour, engine: Any, kernels: KernelFile) -> Any:
    """Return a runtime cache, which any number of contexts may share and fill."""
    config = engine.create_runtime_config()
    cache = config.create_runtime_cache()
    stored = kernels.read()
    if stored and not cache.deserialize(stored):  # of another driver or version
        logger_of(flavour).pop_error()  # it is told here, and not of what fails later
        _log.info('the compiled kernels in %s do not fit; compiling them again', kernels.path)
    return cache


def _create(flavour: Flavour, engine: Any, cache: Any, graph_strategy: Any) -> Context:
    config = engine.create_runtime_config()
    config.set_runtime_cache(cache)
    config.cuda_graph_strategy = graph_strategy
    # A graph that is recorded around the context would keep the slow kernels that stand in
    # until those for the shapes at hand are compiled.
    config.dynamic_shapes_kernel_specialization_strategy = (
        flavour.trt.DynamicShapesKernelSpecializationStrategy.EAGER
    )
    return Context(engine.create_execution_context(config), config, cache)
