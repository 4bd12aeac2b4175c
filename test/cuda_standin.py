"""A CUDA runtime in host memory, so that copies, order and lifetimes can be tested without a GPU.

It really copies bytes. Work on a stream is done when the stream is waited for and no sooner, so
what is read or overwritten too early comes out wrong; addresses are checked when work is enqueued
and again when it is done; what is freed twice or never is noticed.
"""

# ruff: noqa: N802, N815 — the names are NVIDIA's
from __future__ import annotations

import ctypes
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import cuda.bindings.runtime as real

Result = tuple[Any, ...]
Error = real.cudaError_t
JUNK = 0xCD


class HostCuda:
    """Stands in for the module ``cuda.bindings.runtime``.

    Args:
        num_devices: how many GPUs there are.
        memory_bytes: of the device; allocations beyond it fail.
    """

    cudaError_t = Error
    cudaMemcpyKind = real.cudaMemcpyKind
    cudaStreamCaptureMode = real.cudaStreamCaptureMode
    cudaStreamNonBlocking = real.cudaStreamNonBlocking

    def __init__(self, num_devices: int = 1, memory_bytes: int = 1 << 30) -> None:
        self.num_devices, self.memory_bytes = num_devices, memory_bytes
        self.capability = 8, 7
        self.device_memory: dict[int, Any] = {}
        self.host_memory: dict[int, Any] = {}
        self.streams: dict[int, int] = {}  # handle -> device
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.executables: dict[int, list[Callable[[], None]]] = {}
        self.calls: list[str] = []
        self.failing: dict[str, list[Error | None]] = defaultdict(list)
        self._queues: dict[int, list[Callable[[], None]]] = {}
        self._captures: dict[int, list[Callable[[], None]] | None] = {}
        self._capturing_threads: dict[int, int] = {}
        self._next_handle = 1000
        self._sticky: Error | None = None
        self._thread = threading.local()
        self._freed: list[Any] = []  # kept, so that a view of freed memory shows junk

    # What tests ask and do.

    @property
    def live(self) -> int:
        """Number of things that were made and not freed."""
        kept = (self.device_memory, self.host_memory, self.streams, self.graphs, self.executables)
        return sum(map(len, kept))

    @property
    def current_device(self) -> int:
        return getattr(self._thread, 'device', 0)

    def capturing(self, stream: int) -> bool:
        return stream in self._captures

    def invalidate_capture(self, stream: int) -> None:
        self._captures[stream] = None

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Put a kernel on a stream."""
        if self.streams[stream] != self.current_device:
            raise RuntimeError('a kernel was started on a stream of another device')
        captured = self._captures.get(stream, self._queues[stream])
        if captured is not None:
            captured.append(work)

    def device_array(self, address: int, num_bytes: int) -> Any:
        """Return device memory, checked, as a kernel would see it."""
        return self._memory(self.device_memory, address, num_bytes)

    # The functions of the runtime.

    def cudaDriverGetVersion(self) -> Result:
        return Error.cudaSuccess, 12060

    def cudaRuntimeGetVersion(self) -> Result:
        return Error.cudaSuccess, 13050

    def cudaGetDeviceCount(self) -> Result:
        return self._result('cudaGetDeviceCount', self.num_devices)

    def cudaGetErrorName(self, error: Error) -> Result:
        return real.cudaGetErrorName(error)

    def cudaGetErrorString(self, error: Error) -> Result:
        return real.cudaGetErrorString(error)

    def cudaGetDeviceProperties(self, device: int) -> Result:
        properties = real.cudaDeviceProp()
        properties.name = b'Stand-in GPU'.ljust(256, b'\0')
        properties.major, properties.minor = self.capability
        properties.totalGlobalMem = self.memory_bytes
        return self._result('cudaGetDeviceProperties', properties)

    def cudaSetDevice(self, device: int) -> Result:
        self._thread.device = device
        return self._result('cudaSetDevice')

    def cudaStreamCreateWithFlags(self, flags: int) -> Result:
        assert flags == real.cudaStreamNonBlocking
        error, *_ = self._result('cudaStreamCreateWithFlags')
        if error != Error.cudaSuccess:
            return error, None
        handle = self._handle()
        self.streams[handle], self._queues[handle] = self.current_device, []
        return error, real.cudaStream_t(handle)

    def cudaStreamDestroy(self, stream: Any) -> Result:
        del self.streams[int(stream)], self._queues[int(stream)]
        return self._result('cudaStreamDestroy')

    def cudaStreamSynchronize(self, stream: Any) -> Result:
        handle = int(stream)
        if handle in self._captures:
            self.invalidate_capture(handle)
            return (Error.cudaErrorStreamCaptureUnsupported,)
        queue, self._queues[handle] = self._queues[handle], []
        error, *_ = self._result('cudaStreamSynchronize')
        if error == Error.cudaSuccess:
            for work in queue:
                work()
        return (error,)

    def cudaMemGetInfo(self) -> Result:
        used = sum(len(memory) for memory in self.device_memory.values())
        return self._result('cudaMemGetInfo', self.memory_bytes - used, self.memory_bytes)

    def cudaMalloc(self, size: int) -> Result:
        used = sum(len(memory) for memory in self.device_memory.values())
        if used + size > self.memory_bytes:
            return Error.cudaErrorMemoryAllocation, None
        return self._allocate('cudaMalloc', self.device_memory, size)

    def cudaMallocHost(self, size: int) -> Result:
        return self._allocate('cudaMallocHost', self.host_memory, size)

    def cudaFree(self, devPtr: int) -> Result:
        self._bury(self.device_memory.pop(devPtr))
        return self._result('cudaFree')

    def cudaFreeHost(self, ptr: int) -> Result:
        self._bury(self.host_memory.pop(ptr))
        return self._result('cudaFreeHost')

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: Any) -> Result:
        spaces = {
            real.cudaMemcpyKind.cudaMemcpyHostToDevice: (self.device_memory, self.host_memory),
            real.cudaMemcpyKind.cudaMemcpyDeviceToHost: (self.host_memory, self.device_memory),
        }
        to, source = spaces[kind]

        def copy() -> None:
            self._memory(to, dst, count)[:] = self._memory(source, src, count)[:]

        self._memory(to, dst, count), self._memory(source, src, count)
        captured = self._captures.get(int(stream), self._queues[int(stream)])
        if captured is not None:
            captured.append(copy)
        return self._result('cudaMemcpyAsync')

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> Result:
        assert mode == real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        error, *_ = self._result('cudaStreamBeginCapture')
        if error == Error.cudaSuccess:
            self._captures[int(stream)] = []
            self._capturing_threads[threading.get_ident()] = int(stream)
        return (error,)

    def cudaStreamEndCapture(self, stream: Any) -> Result:
        work = self._captures.pop(int(stream))
        self._capturing_threads.pop(threading.get_ident())
        error, *_ = self._result('cudaStreamEndCapture')
        if work is None or error != Error.cudaSuccess:
            return Error.cudaErrorStreamCaptureInvalidated, None
        handle = self._handle()
        self.graphs[handle] = work
        return error, real.cudaGraph_t(handle)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Result:
        error, *_ = self._result('cudaGraphInstantiate')
        if error != Error.cudaSuccess:
            return error, None
        handle = self._handle()
        self.executables[handle] = list(self.graphs[int(graph)])
        return error, real.cudaGraphExec_t(handle)

    def cudaGraphDestroy(self, graph: Any) -> Result:
        del self.graphs[int(graph)]
        return self._result('cudaGraphDestroy')

    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> Result:
        for work in self.executables[int(graphExec)]:
            self.enqueue(int(stream), work)
        return self._result('cudaGraphLaunch')

    def cudaGraphExecDestroy(self, graphExec: Any) -> Result:
        del self.executables[int(graphExec)]
        return self._result('cudaGraphExecDestroy')

    # How they work.

    def _result(self, function: str, *values: Any) -> Result:
        """Return what a function returns: the next planned failure of it, or its values."""
        self.calls.append(function)
        if self._sticky is None and self.failing[function]:
            error = self.failing[function].pop(0)
            if error == Error.cudaErrorIllegalAddress:
                self._sticky = error  # after such a fault nothing works in the process
            if error is not None:
                return (error, *[None] * len(values))
        return (self._sticky or Error.cudaSuccess, *values)

    def _allocate(self, function: str, space: dict[int, Any], size: int) -> Result:
        if (stream := self._capturing_threads.get(threading.get_ident())) is not None:
            self.invalidate_capture(stream)
            return Error.cudaErrorStreamCaptureUnsupported, None
        error, *_ = self._result(function)
        if error != Error.cudaSuccess:
            return error, None
        memory = (ctypes.c_uint8 * size)()
        ctypes.memset(memory, JUNK, size)
        space[ctypes.addressof(memory)] = memory
        return error, ctypes.addressof(memory)

    def _bury(self, memory: Any) -> None:
        ctypes.memset(memory, JUNK, len(memory))
        self._freed.append(memory)

    def _memory(self, space: dict[int, Any], address: int, num_bytes: int) -> Any:
        memory = space[address]  # a KeyError is a use after freeing, or of the wrong side
        assert num_bytes <= len(memory), 'a copy beyond the end of its memory'
        return memoryview(memory).cast('B')[:num_bytes]

    def _handle(self) -> int:
        self._next_handle += 1
        return self._next_handle
