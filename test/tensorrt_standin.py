"""A TensorRT whose engines are ONNX files, run by ONNX Runtime on a stand-in's device memory.

Its kernels are put on the stream and see the device's memory when the stream comes to them, so
everything around the context is exercised: shapes, addresses, order, graphs, lifetimes.
"""

# ruff: noqa: N802 — the names are NVIDIA's
from __future__ import annotations

import enum
import json
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from cuda_standin import HostCuda

MAGIC = b'plan '


def plan_of(network: onnx.ModelProto, profile: dict[str, Sequence[Sequence[int]]] | None = None):
    """Return an engine of the stand-in: a network, and the ranges of its open sizes."""
    return MAGIC + json.dumps(profile or {}).encode() + b'\n' + network.SerializeToString()


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    ERROR, INTERNAL_ERROR, WARNING = Severity.ERROR, Severity.INTERNAL_ERROR, Severity.WARNING


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class Flag(enum.IntFlag):
    """As the real enumeration of RTX."""

    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    MALFORMED_ENGINE = 32


class Validity(enum.Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class GraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class Specialization(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class ComputeCapability(enum.Enum):
    NONE = 0
    SM75 = 75
    SM80 = 80
    SM86 = 86
    SM89 = 89
    SM120 = 120
    SM121 = 121


class StandInTrt:
    """Stands in for the module of a flavour.

    Args:
        cuda: whose memory and streams it uses.
        capturable: False where its contexts cannot be recorded in a graph.
        context_bytes: device memory that each context takes.
        rtx: have what only TensorRT-RTX has.
        version: of the library.
        complaint: what it logs as an error when a runtime is made, which it returns all the same.
    """

    ILogger, TensorIOMode = ILogger, TensorIOMode
    __spec__ = SimpleNamespace()  # so that it is found like a module

    def __init__(
        self,
        cuda: HostCuda,
        *,
        capturable: bool = True,
        context_bytes: int = 64,
        rtx: bool = False,
        version: str = '10.3.0',
        complaint: str = '',
    ) -> None:
        self.complaint = complaint
        self.__version__ = version
        self.cuda, self.capturable, self.context_bytes = cuda, capturable, context_bytes
        self.runtime: Any = None
        self.configs: list[Any] = []
        """What each context was created with."""
        self.engines: weakref.WeakSet[CudaEngine] = weakref.WeakSet()
        if rtx:
            self.ComputeCapability = ComputeCapability
            self.EngineValidity, self.EngineInvalidityDiagnostics = Validity, Flag
            self.CudaGraphStrategy = GraphStrategy
            self.DynamicShapesKernelSpecializationStrategy = Specialization

    def alive(self) -> int:
        """Return how many engines hold their weights."""
        return len(self.engines)

    def Runtime(self, logger: Any) -> Runtime:
        self.runtime = Runtime(self, logger)
        if self.complaint:
            logger.log(ILogger.ERROR, self.complaint)
        return self.runtime


class Runtime:
    def __init__(self, trt: StandInTrt, logger: Any) -> None:
        self.trt, self.logger = trt, logger
        self.engine_host_code_allowed = False
        self.plans = 0

    def get_engine_validity(self, plan: bytes) -> tuple[Any, int]:
        if not plan.startswith(MAGIC):
            return Validity.INVALID, int(Flag.MALFORMED_ENGINE | Flag.VERSION_MISMATCH)
        return Validity.VALID, 0

    def deserialize_cuda_engine(self, plan: bytes) -> CudaEngine | None:
        self.plans += 1
        if not plan.startswith(MAGIC):
            self.logger.log(ILogger.ERROR, 'Serialization assertion failed.\n In parsePlan')
            self.logger.log(ILogger.ERROR, 'and this follows from it')
            return None
        head, _, network = plan[len(MAGIC) :].partition(b'\n')
        return CudaEngine(self, json.loads(head), network)


class CudaEngine:
    def __init__(self, runtime: Runtime, profile: dict[str, Any], network: bytes) -> None:
        self.runtime, self.profile = runtime, profile
        runtime.trt.engines.add(self)
        self.session = onnxruntime.InferenceSession(network, providers=['CPUExecutionProvider'])
        self.inputs = {tensor.name: tensor for tensor in self.session.get_inputs()}
        self.outputs = {tensor.name: tensor for tensor in self.session.get_outputs()}

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = (self.inputs | self.outputs)[name].shape
        return tuple(side if isinstance(side, int) else -1 for side in shape)

    def get_tensor_dtype(self, name: str) -> Any:
        kind = (self.inputs | self.outputs)[name].type
        return SimpleNamespace(name={'tensor(float)': 'FLOAT', 'tensor(uint8)': 'UINT8'}[kind])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[Any]:
        return [tuple(shape) for shape in self.profile[name]]

    def create_runtime_config(self) -> Any:
        return RuntimeConfig(self.runtime.logger)

    def create_execution_context(self, config: Any = None) -> ExecutionContext | None:
        trt = self.runtime.trt
        error, memory = trt.cuda.cudaMalloc(trt.context_bytes)
        if memory is None:
            self.runtime.logger.log(ILogger.ERROR, f'Cuda Runtime (out of memory, {error})')
            return None
        context = ExecutionContext(self, memory, config)
        trt.configs.append(config)
        return context


class RuntimeConfig:
    cuda_graph_strategy = None
    dynamic_shapes_kernel_specialization_strategy = None
    cache = None

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self._logger)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    content = b'kernels compiled'

    def __init__(self, logger: Any) -> None:
        self.loaded, self._logger = b'', logger

    def deserialize(self, blob: bytes) -> bool:
        if blob == self.content:
            self.loaded = blob
        else:
            self._logger.log(ILogger.ERROR, 'the cache is of another version')
        return blob == self.content

    def serialize(self) -> bytes:
        return self.content


class ExecutionContext:
    def __init__(self, engine: CudaEngine, memory: int, config: Any) -> None:
        self.engine, self.memory, self.config = engine, memory, config
        self.cuda = engine.runtime.trt.cuda
        self.shapes: dict[str, tuple[int, ...]] = {
            name: engine.get_tensor_shape(name) for name in engine.inputs
        }
        self.addresses: dict[str, int] = {}
        self.settled = False

    def __del__(self) -> None:
        self.cuda.cudaFree(self.memory)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        own = self.engine.get_tensor_shape(name)
        low, high = own, own
        if -1 in own:
            low, _, high = self.engine.get_tensor_profile_shape(name, 0)
        if not all(a <= side <= b for side, a, b in zip(shape, low, high, strict=True)):
            self.engine.runtime.logger.log(ILogger.ERROR, 'not satisfying profile dimensions')
            return False
        self.shapes[name] = shape
        self.settled = False
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        zeros = {
            n: np.zeros(s, self._dtype(self.engine.inputs[n])) for n, s in self.shapes.items()
        }
        return self.engine.session.run([name], zeros)[0].shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        known = all(side >= 0 for shape in self.shapes.values() for side in shape)
        return known and self.engine.runtime.trt.capturable

    def execute_async_v3(self, stream: int) -> bool:
        if self.cuda.capturing(stream) and not self.settled:
            self.cuda.invalidate_capture(stream)
        if self.cuda.capturing(stream) and not self.engine.runtime.trt.capturable:
            self.engine.runtime.logger.log(ILogger.ERROR, 'operation not permitted in a capture')
            return False
        self.settled = True
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        self.cuda.enqueue(stream, lambda: self._compute(shapes, addresses))
        return True

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        feeds = {}
        for name, shape in shapes.items():
            dtype = np.dtype(self._dtype(self.engine.inputs[name]))
            num_bytes = int(np.prod(shape)) * dtype.itemsize
            memory = self.cuda.device_array(addresses[name], num_bytes)
            feeds[name] = np.frombuffer(memory, dtype).reshape(shape).copy()
        names = list(self.engine.outputs)
        for name, result in zip(names, self.engine.session.run(names, feeds), strict=True):
            content = np.ascontiguousarray(result).tobytes()
            self.cuda.device_array(addresses[name], len(content))[:] = content

    @staticmethod
    def _dtype(tensor: Any) -> str:
        return {'tensor(float)': 'float32', 'tensor(uint8)': 'uint8'}[tensor.type]
