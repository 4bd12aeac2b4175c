"""The ONNX Runtime backend: on the CPU, everywhere. fp16 networks run too, slowly.

How it is set up, and why (``benchmarks/bench_engines.py`` measures it again):

- As many threads as cores. Between two operators an idle thread waits actively for 10 us and then
  sleeps: 5 % faster than sleeping at once, and where another process takes a core, between 1 %
  faster and 8 % slower, by the hour it is measured in. Threads that wait without a limit gain no
  more, and are a quarter slower beside that process, for they burn the time that the working
  thread needs.
- Threads are not bound to cores: the system moves them away from a core that is taken.
- No planning of one block for all activations: it saves no time (ratio 1.00), and as the first
  inference has filled the arena by then, the block costs 15 to 20 MB more.
- What loading left in the C library's free lists goes back to the system, 15 to 25 MB.
- Sizes that the graph leaves open are fixed to the bundle's: 2 to 3 % faster.
- Denormals are left alone: inputs are normalised bytes, and even an image of zeros takes no
  longer than a real one.
- The optimised graph is not kept on disk: it would halve a load time of under 0.3 s, and a file
  made for one processor must not be used by another.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.engine.graph_engine import GraphEngine, check_graph
from rgbd_fusion_seg.errors import BundleError, EngineError
from rgbd_fusion_seg.hardware import release_freed_memory, usable_cores

CPU = ('CPUExecutionProvider',)
SPIN_US = 10
"""How long an idle thread waits actively before it sleeps."""
BOUNDS_SPINNING = (1, 26)
"""The first ONNX Runtime that can be told how long; older ones spin without a limit or not at
all."""
_SOME = r'[1-9]\d*(-[1-9]\d*|(,[1-9]\d*)*)'
_CORES = rf'{_SOME}(;{_SOME})*'


def probe() -> tuple[bool, str]:
    """Return whether ONNX Runtime is here, and its version or the reason."""
    try:
        return True, import_module('onnxruntime').__version__
    except ImportError as error:
        return False, f'{error}; install it with: pip install onnxruntime'


def open_engine(
    bundle: ModelBundle,
    num_threads: int | None = None,
    spin_us: int = SPIN_US,
    memory_arena: bool = True,
    affinity: str = '',
) -> OnnxRuntimeEngine:
    """Open a bundle's network.

    Args:
        bundle: the network and its card.
        num_threads: threads of one inference; default: the cores this process may use.
        spin_us: how long an idle thread waits actively for work before it sleeps, in
            microseconds; 0: not at all, -1: for as long as ONNX Runtime does by itself. Before
            ONNX Runtime 1.26 a limit cannot be set, and they do not wait.
        memory_arena: keep the memory of activations from one inference to the next. Without it
            the C library is asked each time: it takes as long, and memory goes up and down.
        affinity: cores of the threads besides the calling one, as ONNX Runtime writes them:
            ``2;3`` binds one thread to the second and one to the third core (they count from
            1); default: any core.

    Raises:
        BundleError: a file that is no ONNX network, or not that of the card.
        EngineError: a number of threads that is not positive, a time below -1, or an affinity
            that ONNX Runtime cannot use.
    """
    threads = thread_count(num_threads)
    session_options = cpu_options(threads, spin_us)
    session_options.enable_cpu_mem_arena = memory_arena
    if affinity:
        _check_affinity(affinity, threads)
        session_options.add_session_config_entry('session.intra_op_thread_affinities', affinity)
    session = open_session(bundle, session_options, CPU)
    return OnnxRuntimeEngine(f'onnxruntime (CPU, {threads} threads)', bundle, session)


def _check_affinity(affinity: str, threads: int) -> None:
    """Raise EngineError unless ONNX Runtime can bind the threads so."""
    if not re.fullmatch(_CORES, affinity) or affinity.count(';') != threads - 2:
        raise EngineError(
            f'affinity {affinity!r} must name the cores, such as 2, 2-4 or 2,4, of {threads - 1} '
            'threads, parted by semicolons: those of num_threads without the calling one'
        )
    if (last := max(map(int, re.findall(r'\d+', affinity)))) > (cores := os.cpu_count() or 1):
        raise EngineError(f'affinity {affinity!r} names core {last}; there are 1 to {cores}')
    for first, final in re.findall(r'(\d+)-(\d+)', affinity):
        if int(first) > int(final):
            raise EngineError(
                f'affinity {affinity!r} has {first}-{final}, which ends before it begins; write '
                f'{final}-{first}'
            )


class OnnxRuntimeEngine(GraphEngine):
    """An ONNX Runtime session; see :class:`rgbd_fusion_seg.engine.Engine`.

    Args:
        name: backend and device, for people.
        bundle: the network and its card.
        session: the network, loaded.

    Raises:
        BundleError: a network that is not that of the card.
    """

    def __init__(self, name: str, bundle: ModelBundle, session: Any) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        check_graph(inputs, outputs, bundle)
        names = [output.name for output in outputs]
        self._session = session
        super().__init__(name, bundle, lambda feeds: session.run(names, feeds), outputs)

    def close(self) -> None:
        """Free the network; closing again does nothing."""
        super().close()
        self._session = None


def thread_count(num_threads: int | None) -> int:
    """Return the number of threads that is meant: by default the cores this process may use.

    Raises:
        EngineError: a number that is not positive.
    """
    if num_threads is None:
        return usable_cores()
    if num_threads < 1:
        raise EngineError(f'num_threads must be at least 1, got {num_threads}')
    return num_threads


def cpu_options(num_threads: int, spin_us: int = 0) -> Any:
    """Return ONNX Runtime's options for what runs on the CPU; see :func:`open_engine`."""
    if spin_us < -1:
        raise EngineError(f'spin_us must be -1 (no limit), 0 (never) or more, got {spin_us}')
    runtime = import_module('onnxruntime')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    bounded = _version(runtime.__version__) >= BOUNDS_SPINNING
    spinning = spin_us < 0 or (spin_us > 0 and bounded)
    options.add_session_config_entry('session.intra_op.allow_spinning', str(int(spinning)))
    if spinning and spin_us > 0:
        options.add_session_config_entry('session.intra_op.spin_duration_us', str(spin_us))
    return options


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r'\d+', text)[:2])


def open_session(
    bundle: ModelBundle, options: Any, providers: Sequence[str | tuple[str, dict[str, Any]]]
) -> Any:
    """Load a bundle's network, with fixed sizes: a graph with open ones is loaded twice.

    For another provider it is first looked at on the CPU, which tells open sizes and damage.

    Args:
        bundle: the network and its card.
        options: of the session.
        providers: :data:`CPU`, or another of ONNX Runtime's execution providers with its options.

    Raises:
        BundleError: a file that is no ONNX network, for the CPU neither.
        EngineError: another provider than the CPU's cannot load a network that the CPU's can.
    """
    session = _session(bundle, options if providers == CPU else cpu_options(1), CPU)
    sizes = _open_sizes(session.get_inputs(), bundle)
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    if sizes or providers != CPU:
        session = _session(bundle, options, providers)
    release_freed_memory()
    return session


def _session(bundle: ModelBundle, options: Any, providers: Sequence[Any]) -> Any:
    runtime = import_module('onnxruntime')
    try:
        # Its own fallback would put the failure of the CPU that we forbid in place of the reason.
        return runtime.InferenceSession(
            str(bundle.weights_path), options, providers=providers, enable_fallback=0
        )
    except Exception as error:  # its errors have no base class of their own
        here, reason = f'ONNX Runtime {runtime.__version__}', str(error).partition('\n')[0][:200]
        if providers != CPU:
            raise EngineError(
                f'{here} cannot load {bundle.weights_path} with {providers[0][0]}: {reason}'
            ) from error
        raise BundleError(
            f'{bundle.weights_path} is no ONNX network that {here} can open ({reason}); export '
            'the bundle again'
        ) from error


def _open_sizes(inputs: Sequence[Any], bundle: ModelBundle) -> dict[str, int]:
    """Return the sizes that the graph leaves open by name, and the bundle fixes."""
    first = 1 if bundle.dynamic.batch else 0
    sizes: dict[str, int] = {}
    for tensor in inputs:
        form = bundle.graph_inputs.get(tensor.name)
        if form is None or len(tensor.shape) != len(form.shape):
            return {}  # a network of another bundle, which is refused later
        for name, size in list(zip(tensor.shape, form.shape, strict=True))[first:]:
            if isinstance(name, str) and sizes.setdefault(name, size) != size:
                return {}
    return sizes
