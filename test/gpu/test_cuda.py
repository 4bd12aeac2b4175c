"""CUDA memory, streams and graphs on a real GPU, around a context that only copies.

It needs cuda-python and a GPU but no TensorRT, so it also runs on GPUs that no TensorRT is for.
"""

from __future__ import annotations

import gc
import itertools
import logging
import threading
from typing import Any

import numpy as np
import pytest

from rgbd_fusion_seg.engine.cuda import Buffer, Device, Graph, Stream, call, free_memory_mib
from rgbd_fusion_seg.engine.engine_files import EngineTensor
from rgbd_fusion_seg.engine.tensorrt_execution import Context, Execution
from rgbd_fusion_seg.errors import EngineError

TENSORS = (
    EngineTensor('x', 'input', 'float32', (-1, 256), ((1, 256), (1, 256), (1 << 20, 256))),
    EngineTensor('y', 'output', 'float32', (-1, 256)),
)


class CopyingContext:
    """Stands in for an execution context of TensorRT: its output is a copy of its input.

    Args:
        breaks_captures: do what no capture allows, as TensorRT does after a change of shapes.
    """

    def __init__(self, breaks_captures: bool = False) -> None:
        self.breaks_captures = breaks_captures
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.enqueued = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream: int) -> bool:
        import cuda.bindings.runtime as cudart

        self.enqueued += 1
        if self.breaks_captures:
            call('cudaStreamSynchronize', stream)
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        num_bytes = 4 * int(np.prod(self.shape))
        target, source = self.addresses['y'], self.addresses['x']
        call('cudaMemcpyAsync', target, source, num_bytes, kind, stream)
        return True


class Logger:
    def pop_error(self) -> str:
        return 'it does not say why'


class Runner:
    """An execution of a :class:`CopyingContext`, with a stream of its own."""

    def __init__(self, gpu: Device, use_graph: bool = True, **options: Any) -> None:
        self.stream = Stream(gpu.index)
        self.context = CopyingContext(**options)
        context = Context(self.context)
        self.execution = Execution(context, TENSORS, self.stream, use_graph, 'copy', Logger())

    def run(self, x: np.ndarray) -> np.ndarray:
        return self.execution.run({'x': x})['y']

    def close(self) -> None:
        self.execution.close()
        self.stream.close()


@pytest.fixture
def runner(gpu: Device) -> Runner:
    runner = Runner(gpu)
    yield runner
    runner.close()


def batch(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, 256), np.float32)


def test_the_gpu_is_described_as_cuda_does(gpu: Device):
    import cuda.bindings.runtime as cudart

    _, _, total = cudart.cudaMemGetInfo()
    attributes = cudart.cudaDeviceAttr
    major, minor = (
        call('cudaDeviceGetAttribute', attribute, gpu.index)
        for attribute in (
            attributes.cudaDevAttrComputeCapabilityMajor,
            attributes.cudaDevAttrComputeCapabilityMinor,
        )
    )
    assert gpu.compute_capability == f'{major}.{minor}'
    assert gpu.name.isprintable()
    assert gpu.memory_mib == pytest.approx(total / 2**20, rel=0.01)


@pytest.mark.parametrize('use_graph', [True, False])
def test_results_belong_to_their_frame_and_to_the_caller(gpu: Device, use_graph):
    runner = Runner(gpu, use_graph)
    frames = [batch(300, seed) for seed in range(20)]
    results = [runner.run(frame) for frame in frames]
    assert all(map(np.array_equal, results, frames))
    assert runner.execution.uses_graph == use_graph
    # With a graph the context is asked twice: to warm up, and to be recorded.
    assert runner.context.enqueued == (2 if use_graph else 21)
    runner.close()


def test_other_shapes_get_memory_and_a_graph_of_their_own(runner: Runner):
    for rows in (1, 5000, 3, 20000, 20000, 1):
        frame = batch(rows, rows)
        assert np.array_equal(runner.run(frame), frame)
        assert runner.execution.uses_graph


def test_a_capture_that_fails_is_told_and_all_goes_on_without(gpu: Device, caplog):
    caplog.set_level(logging.WARNING)
    runner = Runner(gpu, breaks_captures=True)
    for seed, rows in enumerate((10, 10, 400, 10)):
        frame = batch(rows, seed)
        assert np.array_equal(runner.run(frame), frame)
        assert not runner.execution.uses_graph
    assert ['without a CUDA graph' in record.getMessage() for record in caplog.records] == [True]
    runner.close()


def test_an_exception_in_a_capture_leaves_the_stream_usable(runner: Runner):
    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        Graph(runner.stream, fail)
    frame = batch(10)
    assert np.array_equal(runner.run(frame), frame)
    assert runner.execution.uses_graph


def test_too_little_memory_is_told_and_does_no_harm(runner: Runner):
    frame = batch(10)
    assert np.array_equal(runner.run(frame), frame)
    words = rf'out of memory \(cudaMalloc for {2**45 / 2**20:.1f} MB\); end other programs'
    with pytest.raises(EngineError, match=words):
        Buffer(1 << 45)
    assert np.array_equal(runner.run(frame), frame)


def test_threads_do_not_disturb_each_other_s_captures(gpu: Device):
    """While two run, others are opened, which allocates and records."""
    wrong: list[int] = []

    def work(runner: Runner, first: int) -> None:
        for seed in range(first, first + 200):
            frame = batch(1 + seed % 5, seed)  # of other shapes, so it records too
            if not np.array_equal(runner.run(frame), frame):
                wrong.append(seed)
        if not runner.execution.uses_graph:
            wrong.append(-1)

    runners = [Runner(gpu) for _ in range(2)]
    threads = [
        threading.Thread(target=work, args=(runner, 1000 * i)) for i, runner in enumerate(runners)
    ]
    for thread in threads:
        thread.start()
    for seed in range(20):
        late = Runner(gpu)
        assert np.array_equal(late.run(batch(3, seed)), batch(3, seed))
        late.close()
    for thread in threads:
        thread.join()
    assert not wrong
    for runner in runners:
        runner.close()


def test_free_memory_shrinks_by_what_is_taken(gpu: Device):
    before_mib = free_memory_mib(gpu.index)
    buffer = Buffer(512 << 20)
    assert before_mib - free_memory_mib(gpu.index) == pytest.approx(512, rel=0.05)
    buffer.close()


def test_memory_comes_back(gpu: Device):
    def use() -> None:
        runner = Runner(gpu)
        runner.run(batch(1 << 16))  # 64 MB in, 64 MB out
        runner.run(batch(1))
        runner.close()

    use()  # what stays of the first one is the context of the device
    gc.collect()
    before = call('cudaMemGetInfo')
    for _ in range(10):
        use()
    assert before - call('cudaMemGetInfo') < 16 << 20


def test_closing_waits_for_what_is_under_way_and_may_be_repeated(gpu: Device):
    """An interruption may leave work on the stream whose memory is to be freed."""
    runners = [Runner(gpu) for _ in range(2)]
    for runner in runners:
        runner.run(batch(1 << 14))
        runner.execution._enqueue()  # and nobody waits
    runners[0].execution.close()
    runners[0].close()
    frame = batch(1 << 14, 1)
    assert np.array_equal(runners[1].run(frame), frame)
    runners[1].close()


def test_work_on_a_stream_is_done_in_order(gpu: Device):
    """Each copy reads what the one before it wrote."""
    stream = Stream(gpu.index)
    buffers = [Buffer(1 << 20) for _ in range(8)]
    values = np.random.default_rng(0).integers(0, 256, 1 << 20).astype(np.uint8)
    buffers[0].array(values.shape, np.uint8)[:] = values

    def pass_on() -> None:
        for one, other in itertools.pairwise(buffers):
            one.upload(1 << 20, stream)
            other._copy(other._host, one.device, 1 << 20, 'cudaMemcpyDeviceToHost', stream)

    pass_on()
    stream.synchronize()
    assert np.array_equal(buffers[-1].array(values.shape, np.uint8), values)
    for buffer in buffers:
        buffer.close()
    stream.close()
