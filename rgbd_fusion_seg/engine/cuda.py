"""CUDA through ``cuda.bindings``: devices, memory, streams and graphs, without torch or pycuda."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from rgbd_fusion_seg.errors import EngineError

_BINDINGS = 'cuda.bindings.runtime'
_REMEDY = "install it with: pip install 'cuda-python>=12.9.1'"
"""Older ones hold the interpreter while they wait for the device, but not 12.6.2."""
_JETSON_REMEDY = (
    "install that of JetPack's CUDA, for JetPack 6.2 with: pip install 'cuda-python~=12.6.2'"
)
"""A newer one does not run there: only on other systems a driver serves all of a major version."""
MEMORY_REMEDY = (
    'end other programs that use the GPU, or take a lower precision, a smaller input size or a '
    'smaller network'
)


class Device(NamedTuple):
    """A GPU that CUDA can use."""

    index: int
    name: str
    compute_capability: str
    """Such as ``8.7``."""
    memory_mib: int
    """It tells models of one name apart; all Jetson Orins are `Orin`."""

    def __str__(self) -> str:
        return f'{self.name}, compute capability {self.compute_capability}'


def find_device(index: int = 0) -> Device:
    """Return a GPU, having made sure that there is one that CUDA knows.

    TensorRT must not be asked before: without a device its runtimes crash the process. The GPU is
    looked at alone: selecting it would take memory on it, a context's.

    Raises:
        EngineError: no cuda-python, no driver or one that is too old, no such device.
    """
    if _BINDINGS not in sys.modules and not _has_driver():
        # Most machines without a GPU end here, and are spared 20 MB and 0.2 s for the bindings.
        raise EngineError('there is no usable CUDA device (no NVIDIA driver is installed)')
    cuda = _cuda()
    driver = cuda.cudaDriverGetVersion()[1] or 0
    error, count = cuda.cudaGetDeviceCount()
    if error != cuda.cudaError_t.cudaSuccess:
        raise EngineError(f'there is no usable CUDA device ({_why_none(cuda, error, driver)})')
    if not 0 <= index < count:
        raise EngineError(
            f'there is no CUDA device {index}; this machine has {count}, numbered from 0'
        )
    properties = call('cudaGetDeviceProperties', index)
    name = properties.name
    return Device(
        index,
        (name.decode() if isinstance(name, bytes) else str(name)).rstrip('\0'),
        f'{properties.major}.{properties.minor}',
        properties.totalGlobalMem >> 20,
    )


def free_memory_mib(device: int = 0) -> float:
    """Return what all programs leave of a GPU's memory, in units of 2^20 bytes.

    To ask takes memory itself, once per process: a context's.

    Args:
        device: index of the GPU.

    Raises:
        EngineError: no such device, or one that has failed.
    """
    call('cudaSetDevice', device)
    return call('cudaMemGetInfo') / 2**20


def call(function: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime and return its value, if it has one.

    Raises:
        EngineError: it failed, or cuda-python is absent.
    """
    cuda = _cuda()
    error, *values = getattr(cuda, function)(*arguments)
    if error == cuda.cudaError_t.cudaSuccess:
        return values[0] if values else None
    if error == cuda.cudaError_t.cudaErrorMemoryAllocation:
        what = f' for {arguments[0] / 2**20:.1f} MB' if function in _ALLOCATIONS else ''
        raise EngineError(f'the GPU is out of memory ({function}{what}); {MEMORY_REMEDY}')
    described = _describe(cuda, error)
    if function in _RECORDING or 'StreamCapture' in described:
        raise EngineError(f'work cannot be recorded with {function} ({described})')
    raise EngineError(
        f'the GPU failed in {function} ({described}); see dmesg for a fault of the device, and '
        'start this process again'
    )


_ALLOCATIONS = ('cudaMalloc', 'cudaMallocHost')
_RECORDING = ('cudaStreamBeginCapture', 'cudaStreamEndCapture', 'cudaGraphInstantiate')


class Stream:
    """A CUDA stream, which waits for no other.

    Args:
        device: index of the GPU.
    """

    def __init__(self, device: int) -> None:
        self._device = device
        self.select_device()
        self.handle = call('cudaStreamCreateWithFlags', _cuda().cudaStreamNonBlocking)

    def __int__(self) -> int:
        return int(self.handle)

    def select_device(self) -> None:
        """Make the stream's GPU the one of the calling thread; each thread has its own."""
        call('cudaSetDevice', self._device)

    def synchronize(self) -> None:
        """Wait until all work is done.

        Raises:
            EngineError: some of the work failed.
        """
        call('cudaStreamSynchronize', self.handle)

    def close(self) -> None:
        """Free the stream once its work is done."""
        _free('cudaStreamSynchronize', self.handle)
        _free('cudaStreamDestroy', self.handle)


class Buffer:
    """Memory for one tensor: the same number of bytes on the device and, pinned, on the host.

    Only pinned memory is copied while the host goes on, and only such copies can be captured.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = max(num_bytes, 1)
        self.device = int(call('cudaMalloc', self.num_bytes))
        try:
            self._host = int(call('cudaMallocHost', self.num_bytes))
        except EngineError:
            _free('cudaFree', self.device)
            raise
        self.array((self.num_bytes,), np.uint8)[:] = 0

    def array(self, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
        """Return the host memory as an array.

        The array does not keep the memory alive: it must not leave the owner of the buffer.
        """
        memory = (ctypes.c_uint8 * self.num_bytes).from_address(self._host)
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(memory, dtype, count).reshape(shape)

    def upload(self, num_bytes: int, stream: Stream) -> None:
        """Copy the first bytes to the device, in the order of the stream."""
        self._copy(self.device, self._host, num_bytes, 'cudaMemcpyHostToDevice', stream)

    def download(self, num_bytes: int, stream: Stream) -> None:
        """Copy the first bytes to the host, in the order of the stream."""
        self._copy(self._host, self.device, num_bytes, 'cudaMemcpyDeviceToHost', stream)

    def _copy(self, to: int, source: int, num_bytes: int, kind: str, stream: Stream) -> None:
        direction = getattr(_cuda().cudaMemcpyKind, kind)
        call('cudaMemcpyAsync', to, source, num_bytes, direction, stream.handle)

    def close(self) -> None:
        """Free both; nothing may be using them."""
        _free('cudaFree', self.device)
        _free('cudaFreeHost', self._host)


class Graph:
    """Work recorded once, to be started again as a whole.

    Args:
        stream: on which to record.
        enqueue: puts the work on the stream.

    Raises:
        EngineError: the work cannot be recorded; the stream is as before.
    """

    def __init__(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        # In the global mode, what other threads do would break the recording (and be broken by
        # it): an engine that is opened beside this one allocates memory.
        mode = _cuda().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call('cudaStreamBeginCapture', stream.handle, mode)
        try:
            enqueue()
        except BaseException:
            _end_capture(stream)
            raise
        graph = call('cudaStreamEndCapture', stream.handle)
        try:
            self._executable = call('cudaGraphInstantiate', graph, 0)
        finally:
            _free('cudaGraphDestroy', graph)

    def launch(self, stream: Stream) -> None:
        """Start the work on a stream."""
        call('cudaGraphLaunch', self._executable, stream.handle)

    def close(self) -> None:
        """Free the graph; it must not be running."""
        _free('cudaGraphExecDestroy', self._executable)


def _end_capture(stream: Stream) -> None:
    """Make a stream usable again after a recording that went wrong."""
    with suppress(EngineError):
        _free('cudaGraphDestroy', call('cudaStreamEndCapture', stream.handle))


def _free(function: str, handle: Any) -> None:
    """Free something. A device that has failed cannot, and then nothing can be done about it."""
    with suppress(EngineError):
        call(function, handle)


def _cuda() -> ModuleType:
    try:
        return import_module(_BINDINGS)
    except (ImportError, OSError, RuntimeError) as error:
        remedy = _JETSON_REMEDY if _is_jetson() else _REMEDY
        raise EngineError(f'cuda-python is not here ({error}); {remedy}') from error


def _is_jetson() -> bool:
    """Return whether the driver is part of the system, NVIDIA's Linux for Tegra."""
    return 'tegra' in platform.release() or Path('/etc/nv_tegra_release').exists()


def _has_driver() -> bool:
    try:
        ctypes.CDLL('libcuda.so.1')
    except OSError:
        return False
    return True


def _why_none(cuda: ModuleType, error: Any, driver: int) -> str:
    described = _describe(cuda, error)
    if error != cuda.cudaError_t.cudaErrorInsufficientDriver:
        return f'{described}; see nvidia-smi'
    if not driver:
        return f'{described}; no NVIDIA driver is installed'
    version = _cuda_version(driver)
    if _is_jetson():
        return (
            f'{described}; the driver of this JetPack serves CUDA up to {version}: pip install '
            f"'cuda-python~={version}.0', or NVIDIA's package cuda-compat for a newer CUDA"
        )
    served = f'{described}; the driver serves CUDA up to {version}: update it'
    major = driver // 1000
    if cuda.cudaRuntimeGetVersion()[1] // 1000 <= major:
        return served
    return f"{served}, or pip install 'cuda-python<{major + 1}'"


def _describe(cuda: ModuleType, error: Any) -> str:
    texts = [cuda.cudaGetErrorName(error)[1], cuda.cudaGetErrorString(error)[1]]
    decoded = [text.decode() if isinstance(text, bytes) else str(text) for text in texts]
    return f'{decoded[0]}: {decoded[1]}'


def _cuda_version(number: int) -> str:
    return f'{number // 1000}.{number % 1000 // 10}'
