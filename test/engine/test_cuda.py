"""The layer over CUDA: the real bindings where no GPU is needed, else a runtime in host memory."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rgbd_fusion_seg.engine import cuda
from rgbd_fusion_seg.errors import EngineError

real = pytest.importorskip('cuda.bindings.runtime', reason='needs cuda-python')

from cuda_standin import Error, HostCuda  # noqa: E402 — it needs cuda-python too


@pytest.fixture
def host(monkeypatch) -> HostCuda:
    host = HostCuda()
    monkeypatch.setitem(sys.modules, 'cuda.bindings.runtime', host)
    yield host
    assert host.live == 0


def test_the_real_bindings_tell_why_there_is_no_device():
    error, count = real.cudaGetDeviceCount()
    if error == real.cudaError_t.cudaSuccess and count:
        pytest.skip('needs a machine without a GPU')
    with pytest.raises(EngineError, match=r'no usable CUDA device \(cudaError\w+: ') as caught:
        cuda.find_device()
    assert '\n' not in str(caught.value)
    assert real.cudaGetErrorName(error)[1].decode() in str(caught.value)


def test_without_cuda_python_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cuda.bindings.runtime', None)
    with pytest.raises(EngineError, match=r'pip install .cuda-python'):
        cuda.find_device()


def test_a_device_is_described(host):
    device = cuda.find_device()
    assert device == (0, 'Stand-in GPU', '8.7', 1024)
    assert str(device) == 'Stand-in GPU, compute capability 8.7'
    assert 'cudaSetDevice' not in host.calls  # which takes memory on it


def test_free_memory_is_that_of_the_device_which_is_asked(host):
    host.num_devices = 2
    buffer = cuda.Buffer(256 << 20)
    assert cuda.free_memory_mib(1) == 1024 - 256
    assert host.current_device == 1
    buffer.close()
    assert cuda.free_memory_mib(1) == 1024


@pytest.mark.parametrize('index', [-1, 2])
def test_a_device_that_is_not_there_is_told_with_their_number(host, index):
    host.num_devices = 2
    with pytest.raises(EngineError, match=f'no CUDA device {index}; this machine has 2'):
        cuda.find_device(index)


@pytest.mark.parametrize(
    ('driver', 'words'),
    [
        (0, 'no NVIDIA driver is installed'),
        (12060, "up to 12.6: update it, or pip install 'cuda-python<13'"),
        (13000, r'up to 13.0: update it\)'),  # an older cuda-python of this version is no help
    ],
)
def test_an_old_driver_and_none_are_told_apart(host, monkeypatch, driver, words):
    host.failing['cudaGetDeviceCount'] = [Error.cudaErrorInsufficientDriver]
    monkeypatch.setattr(HostCuda, 'cudaDriverGetVersion', lambda _: (Error.cudaSuccess, driver))
    with pytest.raises(EngineError, match=words):
        cuda.find_device()


def test_on_a_jetson_the_driver_cannot_be_updated(host, monkeypatch):
    monkeypatch.setattr(cuda.platform, 'release', lambda: '5.15.148-tegra')
    host.failing['cudaGetDeviceCount'] = [Error.cudaErrorInsufficientDriver]
    with pytest.raises(EngineError) as caught:
        cuda.find_device()
    assert "JetPack serves CUDA up to 12.6: pip install 'cuda-python~=12.6.0'" in str(caught.value)
    assert 'cuda-compat' in str(caught.value)
    assert 'update' not in str(caught.value)
    monkeypatch.setitem(sys.modules, 'cuda.bindings.runtime', None)
    with pytest.raises(EngineError, match=r"pip install 'cuda-python~=12\.6\.2'"):
        cuda.find_device()


def test_bytes_go_to_the_device_and_back_in_the_order_of_the_stream(host):
    stream, buffer = cuda.Stream(0), cuda.Buffer(24)
    array = buffer.array((2, 3), np.float32)
    assert not array.any()  # what is warmed up with must be numbers
    array[:] = sent = np.arange(6, dtype=np.float32).reshape(2, 3)
    buffer.upload(24, stream)
    stream.synchronize()
    array[:] = -1
    buffer.download(24, stream)
    assert (array == -1).all()
    stream.synchronize()
    assert np.array_equal(array, sent)
    buffer.close()
    stream.close()


def test_a_buffer_without_its_host_half_leaves_none_of_it(host):
    host.failing['cudaMallocHost'] = [Error.cudaErrorMemoryAllocation]
    with pytest.raises(EngineError, match=r'out of memory \(cudaMallocHost for 2\.0 MB\)'):
        cuda.Buffer(2 << 20)
    assert not host.device_memory


def test_a_graph_repeats_what_was_recorded(host):
    stream, buffer = cuda.Stream(0), cuda.Buffer(4)
    array = buffer.array((4,), np.uint8)

    def there_and_back():
        buffer.upload(4, stream)
        buffer.download(4, stream)

    graph = cuda.Graph(stream, there_and_back)
    assert not host.graphs  # only what can be started is kept
    for value in (1, 2):
        array[:] = value
        graph.launch(stream)
        array[:] = value + 10  # before the work is done, so this is what goes there
        stream.synchronize()
        assert (array == value + 10).all()
    for thing in (graph, buffer, stream):
        thing.close()


def test_a_recording_that_goes_wrong_leaves_the_stream_usable(host):
    stream, buffer = cuda.Stream(0), cuda.Buffer(4)

    def give_up():
        buffer.upload(4, stream)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cuda.Graph(stream, give_up)
    with pytest.raises(EngineError, match='cudaErrorStreamCaptureUnsupported'):
        cuda.Graph(stream, lambda: cuda.Buffer(4))
    buffer.download(4, stream)
    stream.synchronize()
    buffer.close()
    stream.close()


def test_all_is_freed_on_a_device_that_failed_without_another_error(host):
    stream, buffer = cuda.Stream(0), cuda.Buffer(4)
    host.failing['cudaStreamSynchronize'] = [Error.cudaErrorIllegalAddress]
    with pytest.raises(EngineError, match=r'cudaErrorIllegalAddress.*start this process again'):
        stream.synchronize()
    buffer.close()
    stream.close()


def called_names(source: str) -> set[str]:
    """Return the names of the CUDA runtime that a module uses."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Constant):
            name = node.attr if isinstance(node, ast.Attribute) else node.value
            if isinstance(name, str) and name.startswith('cuda') and name.isidentifier():
                names.add(name)
    return names - {'cuda_graph', 'cuda_graph_strategy'}


def test_every_name_of_cuda_that_is_used_is_in_the_real_bindings():
    used = set()
    for path in Path(cuda.__file__).parent.glob('*.py'):
        used |= called_names(path.read_text())
    assert {'cudaMemcpyAsync', 'cudaErrorMemoryAllocation', 'cudaGraphLaunch'} <= used
    members = {
        *dir(real),
        *real.cudaError_t.__members__,
        *real.cudaMemcpyKind.__members__,
        *real.cudaStreamCaptureMode.__members__,
    }
    assert used <= members


@pytest.mark.skipif(Path('/proc/driver/nvidia').exists(), reason='a driver is here')
def test_without_a_driver_the_bindings_are_not_loaded():
    code = (
        'import sys\n'
        'from rgbd_fusion_seg.engine.cuda import find_device\n'
        'from rgbd_fusion_seg.errors import EngineError\n'
        'try:\n'
        '    find_device()\n'
        'except EngineError as error:\n'
        '    print(error, "cuda.bindings" in sys.modules)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith('(no NVIDIA driver is installed) False')
