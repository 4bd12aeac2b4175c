"""Running a TensorRT execution context: its buffers, and the CUDA graph of one inference."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rgbd_fusion_seg.engine.cuda import Buffer, Graph, Stream
from rgbd_fusion_seg.engine.engine_choice import sizes_misfit
from rgbd_fusion_seg.engine.engine_files import EngineTensor
from rgbd_fusion_seg.errors import EngineError

_log = logging.getLogger(__name__)


@dataclass
class Context:
    """An execution context of TensorRT, and what must live as long."""

    context: Any
    """None where it could not be made."""
    config: Any = None
    cache: Any = None
    """The kernels that TensorRT-RTX compiled for it."""
    capturable: bool = True
    """Whether it can be recorded in a CUDA graph."""

    def close(self) -> None:
        """Free all of it, in this order."""
        self.context = None
        self.config = None
        self.cache = None


class Execution:
    """An execution context with its tensors' memory, used by one thread at a time.

    Args:
        context: of TensorRT; its owner closes it after this.
        tensors: of the engine.
        stream: on which all work is done, in order.
        use_graph: record copies and inference as a CUDA graph. Where TensorRT refuses, the log
            says so once and each inference is enqueued anew.
        name: of the engine, for messages.
        logger: its ``pop_error()`` tells what TensorRT logged.
    """

    def __init__(
        self,
        context: Context,
        tensors: Sequence[EngineTensor],
        stream: Stream,
        use_graph: bool,
        name: str,
        logger: Any,
    ) -> None:
        self._context = context
        self._inputs = {tensor.name: tensor for tensor in tensors if tensor.mode == 'input'}
        self._outputs = {tensor.name: tensor for tensor in tensors if tensor.mode == 'output'}
        self._stream, self._name, self._logger = stream, name, logger
        self._use_graph = use_graph and context.capturable
        self._graph: Graph | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._buffers: dict[str, Buffer] = {}
        # Views of the buffers' host memory. They never leave this object: see Buffer.array.
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def uses_graph(self) -> bool:
        """Whether the last inference was a CUDA graph."""
        return self._graph is not None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs, which are the caller's to keep, for inputs of the engine's types.

        The first run with other shapes than before is slower: it prepares memory and graph.

        Raises:
            EngineError: inputs of another form, too little memory, or a failing device.
        """
        shapes = {name: _checked(tensor, feeds) for name, tensor in self._inputs.items()}
        self._stream.select_device()
        if shapes != self._shapes:
            self._prepare(shapes)
        for name in self._inputs:
            np.copyto(self._arrays[name], feeds[name])
        self.infer()
        return {name: self._arrays[name].copy() for name in self._outputs}

    def infer(self) -> None:
        """Run on what is in the inputs' pinned memory, from there and back to it, and wait."""
        if self._graph is None:
            self._enqueue()
        else:
            self._graph.launch(self._stream)
        self._stream.synchronize()

    def close(self) -> None:
        """Free the graph and the memory."""
        self._shapes = {}
        self._arrays.clear()
        self._drop_graph()
        while self._buffers:
            self._buffers.popitem()[1].close()

    def _prepare(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Make the context, the memory and the graph fit new shapes of the inputs."""
        self._shapes = {}  # until all of it has succeeded
        self._drop_graph()
        for name, shape in shapes.items():
            self._demand(
                self._context.context.set_input_shape(name, shape), f'take {name} of {shape}'
            )
        for name, tensor in (self._inputs | self._outputs).items():
            shape = tuple(self._context.context.get_tensor_shape(name))
            self._demand(all(side >= 0 for side in shape), f'tell the shape of {name}')
            buffer = self._buffer(name, int(np.prod(shape)) * np.dtype(tensor.dtype).itemsize)
            self._arrays[name] = buffer.array(shape, tensor.dtype)
            self._demand(
                self._context.context.set_tensor_address(name, buffer.device), f'use {name}'
            )
        # After a change of shapes TensorRT does work in the first inference that no graph can
        # hold; it is the warm-up too.
        self._enqueue()
        self._stream.synchronize()
        self._record()
        self._shapes = shapes

    def _buffer(self, name: str, num_bytes: int) -> Buffer:
        """Return the tensor's buffer, a new one where the old one is too small."""
        old = self._buffers.get(name)
        if old is not None and old.num_bytes >= num_bytes:
            return old
        if old is not None:
            self._arrays.pop(name, None)
            self._buffers.pop(name).close()
        self._buffers[name] = Buffer(num_bytes)
        return self._buffers[name]

    def _enqueue(self) -> None:
        """Put copies and inference on the stream."""
        for name in self._inputs:
            self._buffers[name].upload(self._arrays[name].nbytes, self._stream)
        self._demand(self._context.context.execute_async_v3(int(self._stream)), 'run')
        for name in self._outputs:
            self._buffers[name].download(self._arrays[name].nbytes, self._stream)

    def _record(self) -> None:
        if not self._use_graph:
            return
        try:
            self._graph = Graph(self._stream, self._enqueue)
        except EngineError as error:
            self._use_graph = False
            self._logger.pop_error()  # it is told here, and not of what fails later
            _log.warning('%s runs without a CUDA graph, a little slower: %s', self._name, error)

    def _drop_graph(self) -> None:
        """Free the graph, once no work is under way that an interruption left behind."""
        try:
            self._stream.select_device()
            self._stream.synchronize()
        except EngineError:  # of that work; who waited for it was told
            _log.debug('%s failed in work that nobody waited for', self._name)
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _demand(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise EngineError(f'the engine {self._name} cannot {what}: {self._logger.pop_error()}')


def _checked(tensor: EngineTensor, feeds: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Return the shape of an input that the engine can take."""
    given = feeds.get(tensor.name)
    if given is None:
        raise EngineError(f'the engine needs the input {tensor.name}; give it too')
    if given.dtype != np.dtype(tensor.dtype):
        raise EngineError(
            f'the engine takes {tensor.dtype} for its input {tensor.name}, not {given.dtype}'
        )
    if reason := sizes_misfit(tensor, given.shape):
        raise EngineError(f'the engine {reason}; give that size or build an engine for this one')
    return given.shape
