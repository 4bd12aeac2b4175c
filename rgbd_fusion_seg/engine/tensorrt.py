"""The TensorRT backend: runs engines of tensorrt, TensorRT-RTX and the lean runtime on a GPU."""

from __future__ import annotations

import ctypes
import os
import re
import weakref
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.engine import Engine, StepDown
from rgbd_fusion_seg.engine.cuda import MEMORY_REMEDY, Device, Stream, find_device
from rgbd_fusion_seg.engine.engine_choice import Candidate, fitting_engines
from rgbd_fusion_seg.engine.engine_files import (
    EngineCard,
    EngineTensor,
    engine_folders,
    list_engines,
    read_card,
    read_plan,
)
from rgbd_fusion_seg.engine.flavours import FLAVOURS, Flavour, import_flavour
from rgbd_fusion_seg.engine.graph_engine import zero_inputs
from rgbd_fusion_seg.engine.tensorrt_bindings import DTYPES, driver_remedy, logger_of
from rgbd_fusion_seg.engine.tensorrt_execution import Context, Execution
from rgbd_fusion_seg.engine.tensorrt_rtx import (
    KernelFile,
    check_validity,
    create_rtx_context,
    rtx_serves,
)
from rgbd_fusion_seg.errors import EngineError, UnbuiltEngineError

_OUT_OF_MEMORY = re.compile('out ?of ?memory', re.IGNORECASE)
"""``Cuda Runtime (out of memory)`` and ``Error Code 2: OutOfMemory``, says TensorRT."""


def probe(device: int = 0) -> tuple[bool, str]:
    """Return whether that GPU and a TensorRT are here, and which, or what is missing."""
    try:
        gpu = find_device(device)
    except EngineError as error:
        return False, str(error)
    reasons = []
    for name in FLAVOURS:
        try:
            return True, f'{import_flavour(name)} on {gpu}'
        except EngineError as error:
            reasons.append(str(error))
    return False, '; '.join(reasons)


def open_engine(
    bundle: ModelBundle,
    device: int = 0,
    flavour: str = '',
    engine_file: str | os.PathLike[str] = '',
    precision: str = '',
    cuda_graph: bool = True,
) -> TensorRtEngine:
    """Open the engine of a bundle that fits this machine best.

    Args:
        bundle: the network and its card.
        device: index of the GPU.
        flavour: the TensorRT package to run it; default: whichever can, `tensorrt` first.
        engine_file: card of an engine, or the engine beside it; default: the best of those in
            the bundle's folder and in the user's cache.
        precision: ``fp16``, ``bf16`` or ``fp32``; default: the first of them that there is.
        cuda_graph: record copies and inference as one CUDA graph.

    Raises:
        UnbuiltEngineError: no engine that fits (it says why each does not), or damaged ones
            alone, and one can be built here.
        EngineError: the same where none can be built, no usable GPU, or too little memory.
    """
    gpu = find_device(device)  # first of all: without one TensorRT crashes the process
    cards = _card_of(Path(engine_file)) if engine_file else list_engines(bundle)
    runtimes, unbuildable = _runtimes(cards, flavour), _why_unbuildable(gpu)
    # Sentences, for an exception holds what was made when it was raised, and memory on the GPU.
    failures: dict[str, str] = {}
    damaged = True
    for candidate in fitting_engines(cards, bundle, gpu, runtimes, precision, unbuildable):
        try:
            opened = TensorRtEngine(bundle, gpu, candidate, cuda_graph)
        except EngineError as error:
            failures[candidate.path.name] = str(error)
            damaged &= isinstance(error, UnbuiltEngineError)
            continue
        opened.step_downs = tuple(
            StepDown(name, reason, unexpected=True) for name, reason in failures.items()
        )
        return opened
    kind = UnbuiltEngineError if damaged and not unbuildable else EngineError
    raise kind('; '.join(failures.values()))


class TensorRtEngine(Engine):
    """A loaded engine with its memory; see :class:`rgbd_fusion_seg.engine.Engine`.

    Args:
        bundle: the network and its card.
        device: the GPU.
        candidate: the engine, and the flavour that runs it.
        cuda_graph: as for :func:`open_engine`.
    """

    def __init__(
        self, bundle: ModelBundle, device: Device, candidate: Candidate, cuda_graph: bool
    ) -> None:
        card, flavour = candidate.card, import_flavour(candidate.flavour)
        plan = read_plan(candidate.path, card)
        self.name = f'tensorrt ({device.name}, {card.precision}, {flavour})'
        self.card = card
        self._bundle = bundle
        kernels = KernelFile(_kernel_path(candidate, bundle, device), card.engine_sha256)
        with ExitStack() as made:
            stream = Stream(device.index)
            made.callback(stream.close)
            engine = _deserialise(flavour, plan, card)
            tensors = _checked_tensors(engine, flavour, card)
            self._outputs = _checked_outputs(tensors, bundle, card)
            context = _create_context(flavour, engine, kernels, stream, card, bundle, cuda_graph)
            made.callback(context.close)
            self.execution = Execution(
                context, tensors, stream, cuda_graph, card.engine_file, logger_of(flavour)
            )
            made.callback(self.execution.close)
            # So that the first frame is not slow, and a failure shows while opening.
            self.execution.run(zero_inputs(bundle))
            if context.cache is not None:
                kernels.save(context.cache)
            # Also where nobody closes the engine, and then before TensorRT is unloaded.
            self._close = weakref.finalize(self, made.pop_all().close)

    @property
    def uses_cuda_graph(self) -> bool:
        """Whether inferences are started as one CUDA graph."""
        return self.execution.uses_graph

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return all outputs by name, for inputs by name; results are the caller's to keep.

        Raises:
            EngineError: as :meth:`infer`.
        """
        if not self._close.alive:
            raise EngineError(f'the engine {self.name} is closed; open a new one')
        return self.execution.run(feeds)

    def close(self) -> None:
        """Free the engine, its memory and its stream; closing again does nothing."""
        self._close()


def _card_of(path: Path) -> dict[Path, EngineCard | EngineError]:
    """Return the card of an engine that is named by either of its files."""
    if path.suffix == '.json' or not path.is_file():
        return {path: read_card(path)}
    for other in sorted(path.parent.glob('*.json')):
        with suppress(EngineError):
            card = read_card(other)
            if card.engine_file == path.name:
                return {other: card}
    raise EngineError(f'the engine {path} has no card beside it; build it again')


def _runtimes(
    cards: Mapping[Path, EngineCard | EngineError], wanted: str
) -> dict[str, str | EngineError]:
    """Return the versions of the flavours that could run one of the engines.

    The others are not imported, for each takes much memory.
    """
    if wanted:
        return {wanted: import_flavour(wanted).version}
    built = [card for card in cards.values() if isinstance(card, EngineCard)]
    useful = {card.flavour for card in built}
    if any(card.options.get('version_compatible') for card in built):
        useful |= {'tensorrt', 'tensorrt_lean'}
    found: dict[str, str | EngineError] = {}
    for name in FLAVOURS:
        if name in useful:
            try:
                found[name] = import_flavour(name).version
            except EngineError as error:
                found[name] = error
    return found


def _why_unbuildable(gpu: Device) -> str:
    """Return why no engine can be built here for a GPU, and what to do; empty where one can.

    What is imported was imported by :func:`probe` already.
    """
    try:
        import_flavour('tensorrt')
        return ''
    except EngineError as error:
        absence = str(error)
    try:
        rtx = import_flavour('tensorrt_rtx')
    except EngineError:
        return (
            f'{absence}, or copy an engine here that was built with --version-compatible on a '
            'machine with this GPU'
        )
    return '' if rtx_serves(rtx, gpu.compute_capability) else f'{rtx} has none for it; {absence}'


def _kernel_path(candidate: Candidate, bundle: ModelBundle, device: Device) -> Path:
    """Return where TensorRT-RTX's kernels are kept; those for another model of GPU do not fit."""
    folder = candidate.path.parent
    if not os.access(folder, os.W_OK):
        folder = engine_folders(bundle)[-1]
    gpu = re.sub(r'[^a-z0-9]+', '-', device.name.lower()).strip('-')
    return folder / f'{candidate.path.stem}-{gpu}.kernels'


def _deserialise(flavour: Flavour, plan: bytes, card: EngineCard) -> Any:
    """Load an engine onto the GPU; it keeps TensorRT's runtime alive."""
    logger = logger_of(flavour)
    logger.pop_error()  # of an engine before
    try:
        runtime = flavour.trt.Runtime(logger)
        if logger.has_error:  # lean 11.4 returns a runtime all the same
            # It crashes when it is used and when it is freed: it stays for good.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))
            raise _refusal(flavour, card, logger.pop_error())
        if flavour.name == 'tensorrt_rtx':
            check_validity(flavour, runtime, plan, card.engine_file)
        if card.options.get('version_compatible') is True:
            # Such an engine brings the lean runtime of its version along, to be executed.
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
    except (RuntimeError, TypeError) as error:  # what the bindings make of a C++ failure
        raise _refusal(flavour, card, f'{error}; {logger.pop_error()}') from error
    if engine is None:
        raise _refusal(flavour, card, logger.pop_error())
    return engine


def _create_context(
    flavour: Flavour,
    engine: Any,
    kernels: KernelFile,
    stream: Stream,
    card: EngineCard,
    bundle: ModelBundle,
    cuda_graph: bool,
) -> Context:
    logger = logger_of(flavour)
    try:
        if flavour.name == 'tensorrt_rtx':
            shapes = {name: form.shape for name, form in bundle.graph_inputs.items()}
            made = create_rtx_context(flavour, engine, kernels, int(stream), cuda_graph, shapes)
        else:
            made = Context(engine.create_execution_context())
    except (RuntimeError, TypeError) as error:
        raise _refusal(flavour, card, f'{error}; {logger.pop_error()}') from error
    if made.context is None:
        raise _refusal(flavour, card, logger.pop_error())
    return made


def _refusal(flavour: Flavour, card: EngineCard, reason: str) -> EngineError:
    # A build would find that a whole engine fits already, and leave it.
    remedy = MEMORY_REMEDY if _OUT_OF_MEMORY.search(reason) else 'build it again with --force'
    remedy = driver_remedy(flavour, reason) or remedy
    return EngineError(
        f'{flavour} cannot load the engine {card.engine_file} of {card.bundle}: {reason}; {remedy}'
    )


def _checked_tensors(engine: Any, flavour: Flavour, card: EngineCard) -> tuple[EngineTensor, ...]:
    """Return the inputs and outputs of an engine, having compared them with its card."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    tensors = tuple(_tensor(engine, flavour, name) for name in names)
    described = {tensor.name: tensor for tensor in card.tensors}
    for tensor in tensors:
        other = described.pop(tensor.name, None)
        if other is None or not _same(tensor, other):
            raise _contradiction(card, tensor.name)
    if described:
        raise _contradiction(card, min(described))
    return tensors


def _same(tensor: EngineTensor, other: EngineTensor) -> bool:
    types_equal = (tensor.mode, tensor.dtype) == (other.mode, other.dtype)
    return types_equal and _same_sides(tensor.shape, other.shape)


def _contradiction(card: EngineCard, name: str) -> EngineError:
    return EngineError(
        f'the engine {card.engine_file} is not as its card describes it, see {name}; '
        'build it again with --force'
    )


def _tensor(engine: Any, flavour: Flavour, name: str) -> EngineTensor:
    is_input = engine.get_tensor_mode(name) == flavour.trt.TensorIOMode.INPUT
    shape = tuple(engine.get_tensor_shape(name))
    profile: tuple[tuple[int, ...], ...] = ()
    if is_input and -1 in shape:
        profile = tuple(map(tuple, engine.get_tensor_profile_shape(name, 0)))
    dtype = engine.get_tensor_dtype(name).name
    return EngineTensor(
        name, 'input' if is_input else 'output', DTYPES.get(dtype, dtype), shape, profile
    )


def _checked_outputs(
    tensors: tuple[EngineTensor, ...], bundle: ModelBundle, card: EngineCard
) -> tuple[str, ...]:
    """Return the names of the outputs, having compared them with the bundle."""
    outputs = {tensor.name: tensor for tensor in tensors if tensor.mode == 'output'}
    expected = bundle.graph_outputs
    if bundle.fused is None and len(outputs) == 1:  # logits have any name
        expected = dict(zip(outputs, expected.values(), strict=True))
    if set(outputs) != set(expected) or any(
        tensor.dtype != expected[name].dtype or not _same_sides(tensor.shape, expected[name].shape)
        for name, tensor in outputs.items()
    ):
        found = ', '.join(f'{t.name} {t.dtype} {list(t.shape)}' for t in outputs.values())
        wanted = ', '.join(f'{n} {form.dtype} {list(form.shape)}' for n, form in expected.items())
        raise EngineError(
            f'the engine {card.engine_file} returns {found}, expected {wanted}; build it '
            'again with --force'
        )
    return tuple(expected)


def _same_sides(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether two shapes, which may have open sides, can be the same."""
    if len(shape) != len(expected):
        return False
    return all(a == b or -1 in (a, b) for a, b in zip(shape, expected, strict=True))
