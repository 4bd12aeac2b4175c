"""Builds TensorRT engines from bundles, with ``tensorrt`` or TensorRT-RTX.

``tensorrt`` measures kernels on the GPU that is to run the engine, so it builds there.
TensorRT-RTX leaves that to the machine that opens the engine, and builds anywhere, also without a
GPU. All networks are strongly typed: precision is that of the graph, see ``precision``.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from rgbd_fusion_seg.atomic_files import write_atomically
from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.engine.cuda import Device, find_device
from rgbd_fusion_seg.engine.engine_choice import built_on, runs_on
from rgbd_fusion_seg.engine.engine_files import (
    SUFFIX,
    EngineCard,
    EngineTensor,
    build_lock,
    make_writable,
    read_card,
    read_plan,
    writable_folder,
    write_engine,
)
from rgbd_fusion_seg.engine.flavours import FLAVOURS, Flavour, import_flavour
from rgbd_fusion_seg.engine.graph_engine import ONNX_TYPES, Declared, check_graph
from rgbd_fusion_seg.engine.tensorrt_bindings import DTYPES, driver_remedy, logger_of
from rgbd_fusion_seg.engine.tensorrt_rtx import rtx_default, rtx_serves, rtx_targets
from rgbd_fusion_seg.engine_building.build_options import (
    BUILDERS,
    CURRENT,
    BuildOptions,
    size_text,
)
from rgbd_fusion_seg.engine_building.build_progress import Progress, interruptible, monitor
from rgbd_fusion_seg.errors import EngineError
from rgbd_fusion_seg.file_lock import file_lock
from rgbd_fusion_seg.hardware import system_name

_log = logging.getLogger(__name__)

_SHOWN_ERRORS = 5


def build_engine(
    bundle: ModelBundle,
    options: BuildOptions | None = None,
    output: Path | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Path:
    """Build a bundle's engine and write it with its card; one that fits already is kept.

    Args:
        bundle: the network.
        options: default: those of :class:`BuildOptions`.
        output: folder to write to; default: the bundle's, or where that cannot be written to
            the user's cache.
        progress: called with the phase and how much is done, 0..1. What it raises ends the
            build and is raised from here; so does Ctrl-C in the main thread.

    Returns:
        The path of the card.

    Raises:
        EngineError: no TensorRT that can build, or none for these options; a network that it
            cannot take, or a build that failed; another process that builds in the same folder;
            no folder or no room to write to. The engine that was there stays.
        BundleError: a size or precision that the network does not have, or a network that is
            not that of the card.
        InputError: two answers to the same question.
    """
    options = options or BuildOptions()
    sized = _sized(bundle, options)
    target = _find_target(options)
    folder = _writable(output) if output else writable_folder(bundle)
    name = _engine_name(target, options, sized)
    wanted = EngineCard(
        bundle=bundle.name,
        onnx_sha256=bundle.weights_sha256,
        flavour=target.flavour.name,
        version=target.flavour.version,
        precision=options.precision,
        compute_capabilities=target.capabilities,
        gpu=target.device.name if target.device else '',
        tensors=(),
        options={'sizes': [list(b.input_size) for b in sized], **options.recorded()},
        platform=system_name(),
        memory_mib=target.device.memory_mib if target.device else 0,
    )
    with build_lock(folder, options.wait):
        path = folder / f'{name}.json'
        if not options.force and _fits(path, wanted, target.device):
            _log.debug('%s fits already, so nothing is built', path)
            return path
        for pattern in (f'.{name}-????????{SUFFIX}.*', f'.{name}.json.*'):
            for left in folder.glob(pattern):  # by a build that was killed while writing
                left.unlink(missing_ok=True)
        begin = time.perf_counter()
        built = _build(target, options, sized, progress)
        card = dataclasses.replace(
            wanted,
            tensors=built.tensors,
            build_seconds=round(time.perf_counter() - begin, 3),
            built_at=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        )
        return write_engine(folder, name, built.plan, card)


class _Target(NamedTuple):
    """What builds, and for which GPUs."""

    flavour: Flavour
    device: Device | None
    """The GPU at hand."""
    capabilities: tuple[str, ...]
    named: tuple[str, ...]
    """Those that the builder and the file's name are told; none where they are RTX's default."""


class _Built(NamedTuple):
    plan: bytes
    tensors: tuple[EngineTensor, ...]


def _find_target(options: BuildOptions) -> _Target:
    device, absence = None, ''
    try:
        device = find_device()
    except EngineError as error:
        absence = str(error)
    flavour = _find_builder(options.flavour, device is not None)
    if flavour.name == 'tensorrt' and device is None:
        raise EngineError(
            f'{flavour} builds on the GPU that is to run the engine, but {absence}; build on the '
            'robot, or with the flavour tensorrt_rtx, which needs no GPU, for RTX GPUs'
        )
    if flavour.name == 'tensorrt_rtx':
        _check_rtx(options)
        named = _rtx_capabilities(flavour, options, device)
        return _Target(flavour, device, named or rtx_default(flavour), named)
    own = (device.compute_capability,) if device else ()
    if other := [text for text in options.compute_capabilities if text not in (*own, CURRENT)]:
        raise EngineError(
            f'{flavour} builds for the GPU at hand ({device}) and not for compute capability '
            f'{", ".join(other)}; build on a machine that has it'
        )
    return _Target(flavour, device, own, own)


def _find_builder(name: str, has_device: bool) -> Flavour:
    if name and name not in BUILDERS:
        what = 'runs engines and cannot build them' if name in FLAVOURS else 'does not exist'
        raise EngineError(
            f'the TensorRT flavour {name} {what}; choose one of: {", ".join(BUILDERS)}'
        )
    if name:
        return import_flavour(name)
    reasons: list[str] = []
    found: list[Flavour] = []
    for candidate in BUILDERS:
        try:
            found.append(import_flavour(candidate))
        except EngineError as error:
            reasons.append(str(error))
    if not found:
        raise EngineError(f'no TensorRT here can build engines: {"; or ".join(reasons)}')
    return found[0] if has_device else found[-1]


def _check_rtx(options: BuildOptions) -> None:
    """Refuse what TensorRT-RTX has the names for, but not the thing."""
    if options.version_compatible:
        raise EngineError(
            'tensorrt_rtx builds no version-compatible engines; leave that out, or take tensorrt'
        )
    if options.optimization_level is not None:
        raise EngineError(
            'tensorrt_rtx has no optimisation levels: kernels are made where the engine is '
            'opened; leave that out'
        )
    if options.timing_cache is not None:
        raise EngineError(
            'tensorrt_rtx measures no kernels when it builds, so it has no use for a timing '
            'cache; leave that out'
        )


def _rtx_capabilities(
    flavour: Flavour, options: BuildOptions, device: Device | None
) -> tuple[str, ...]:
    """Return what RTX is told to build for; nothing for its default, where that will do.

    Raises:
        EngineError: capabilities that it does not know, or without a wish the GPU's own.
    """
    known, wanted = rtx_targets(flavour), options.compute_capabilities
    if wanted == (CURRENT,) and device is None:
        raise EngineError(
            'there is no GPU here whose compute capability could be taken; give it in '
            'numbers, such as 8.6'
        )
    if device is not None and wanted in ((), (CURRENT,)):
        own = device.compute_capability
        if not rtx_serves(flavour, own):
            raise EngineError(
                f'{flavour} does not run on {device}; install tensorrt for it, or name other '
                'GPUs to build for with --compute-capability'
            )
        by_default = runs_on(flavour.name, rtx_default(flavour), own)
        return () if by_default and (not wanted or own not in known) else (own,)
    if unknown := [text for text in wanted if text not in known]:
        raise EngineError(
            f'{flavour} cannot build for compute capability {", ".join(unknown)}; choose from: '
            f'{", ".join(known)}, or {CURRENT}'
        )
    return wanted


def _sized(bundle: ModelBundle, options: BuildOptions) -> tuple[ModelBundle, ...]:
    """Return the bundle at each of the wanted sizes."""
    return tuple(bundle.resized(*size) for size in options.sizes) or (bundle,)


def _engine_name(target: _Target, options: BuildOptions, sized: tuple[ModelBundle, ...]) -> str:
    parts = [target.flavour.name, options.precision, *(size_text(b.input_size) for b in sized)]
    parts += [f'sm{text.replace(".", "")}' for text in target.named]
    return '-'.join([*parts, *['compatible'] * options.version_compatible])


def _writable(folder: Path) -> Path:
    try:
        make_writable(folder)
    except OSError as error:
        raise EngineError(
            f'the folder {folder} cannot be written to ({error.strerror}); give another one'
        ) from error
    return folder


def _fits(path: Path, wanted: EngineCard, device: Device | None) -> bool:
    """Return whether there is a whole engine that a build would only make again."""
    try:
        card = read_card(path)
        read_plan(path, card)
    except EngineError:
        return False
    names = ('onnx_sha256', 'flavour', 'version', 'precision', 'compute_capabilities', 'options')
    if wanted.flavour == 'tensorrt':
        names += ('platform',)
        if device is None or not built_on(card, device):
            return False
    return all(getattr(card, name) == getattr(wanted, name) for name in names)


def _build(
    target: _Target,
    options: BuildOptions,
    sized: tuple[ModelBundle, ...],
    progress: Callable[[str, float], None] | None,
) -> _Built:
    """Parse and build; all of TensorRT's objects end here."""
    flavour, trt, logger = target.flavour, target.flavour.trt, logger_of(target.flavour)
    watch = Progress(progress)
    with interruptible(watch):
        watch.tell('reading the network', 0.0)
        model = _typed_model(sized, options.precision)
        logger.pop_error()  # of an engine before
        try:
            builder = trt.Builder(logger)
            network = builder.create_network(
                1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            )
            parser = trt.OnnxParser(network, logger)
            if not parser.parse(model):
                raise _refusal(flavour, parser, sized[0])
            tensors = _checked_tensors(network, sized)
            config = builder.create_builder_config()
            _configure(trt, config, target, options, sized[0])
            if len(sized) > 1:
                config.add_optimization_profile(_profile(builder, network, sized))
            cache = _load_timing_cache(config, options.timing_cache)
            logger.pop_error()  # of a timing cache that does not fit, which was told
            observer = monitor(trt, watch)  # it has to live as long as the build
            config.progress_monitor = observer
            plan = builder.build_serialized_network(network, config)
            if cache is not None and plan is not None:
                _save_timing_cache(config, cache, Path(options.timing_cache))
        except (RuntimeError, TypeError) as error:  # what the bindings make of a C++ failure
            raise _failure(flavour, sized[0], options, f'{error}; {logger.pop_error()}') from error
    watch.raise_if_ended()
    if plan is None:
        raise _failure(flavour, sized[0], options, logger.pop_error())
    watch.tell('writing the engine', 1.0)
    return _Built(bytes(plan), tensors)


def _typed_model(sized: tuple[ModelBundle, ...], precision: str) -> bytes:
    try:
        from rgbd_fusion_seg.engine_building.precision import typed_network
    except ImportError as error:
        raise EngineError(
            f'building engines needs onnx and onnx_ir ({error}); install them with: '
            'pip install onnx onnx-ir'
        ) from error
    bundle = sized[0]
    shapes: dict[str, tuple[int | None, ...]] = {}
    if len(sized) > 1:
        shapes = dict.fromkeys(bundle.graph_inputs, (1, 3, None, None))
    elif bundle.dynamic.batch or bundle.dynamic.size:
        shapes = {name: form.shape for name, form in bundle.graph_inputs.items()}
    return typed_network(bundle.weights_path, precision, shapes)


def _configure(
    trt: Any, config: Any, target: _Target, options: BuildOptions, bundle: ModelBundle
) -> None:
    if options.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if bundle.fused is not None:
        # Around the network are pixels and geometry, which 10 bits of mantissa do not hold.
        config.clear_flag(trt.BuilderFlag.TF32)
    if target.flavour.name == 'tensorrt_rtx':
        _configure_rtx(trt, config, target)


def _configure_rtx(trt: Any, config: Any, target: _Target) -> None:
    """Set what TensorRT-RTX alone has."""
    # Else memory may be taken while it runs, and such engines cannot be recorded in a CUDA graph.
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    known = rtx_targets(target.flavour)
    config.num_compute_capabilities = len(target.named)
    for index, text in enumerate(target.named):
        config.set_compute_capability(known[text], index)


def _profile(builder: Any, network: Any, sized: tuple[ModelBundle, ...]) -> Any:
    profile = builder.create_optimization_profile()
    for name, shapes in _ranges(network, sized).items():
        profile.set_shape(name, *shapes)
    return profile


def _ranges(
    network: Any, sized: tuple[ModelBundle, ...]
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the smallest, best and largest shape of each input with open sides."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    return {
        tensor.name: tuple(bundle.graph_inputs[tensor.name].shape for bundle in sized)
        for tensor in inputs
        if -1 in tuple(tensor.shape)
    }


def _checked_tensors(network: Any, sized: tuple[ModelBundle, ...]) -> tuple[EngineTensor, ...]:
    """Return the inputs and outputs of a parsed network, having compared them with the bundle.

    Raises:
        BundleError: they contradict the bundle's card.
    """
    tensors = _tensors(network, sized)
    modes: dict[str, list[Declared]] = {'input': [], 'output': []}
    for found in tensors:
        shape = [None if side == -1 else side for side in found.shape]
        kind = ONNX_TYPES.get(found.dtype, found.dtype)
        modes[found.mode].append(Declared(found.name, shape, kind))
    for bundle in sized:
        check_graph(modes['input'], modes['output'], bundle)
    return tensors


def _tensors(network: Any, sized: tuple[ModelBundle, ...]) -> tuple[EngineTensor, ...]:
    ranges = _ranges(network, sized)
    inputs = [('input', network.get_input(index)) for index in range(network.num_inputs)]
    outputs = [('output', network.get_output(index)) for index in range(network.num_outputs)]
    return tuple(
        EngineTensor(
            tensor.name,
            mode,
            DTYPES.get(tensor.dtype.name, tensor.dtype.name),
            tuple(tensor.shape),
            ranges.get(tensor.name, ()) if mode == 'input' else (),
        )
        for mode, tensor in (*inputs, *outputs)
    )


def _refusal(flavour: Flavour, parser: Any, bundle: ModelBundle) -> EngineError:
    """Tell which nodes of a network TensorRT does not take, and why."""
    reasons: list[str] = []
    remedy = 'take another input size' if bundle.dynamic.size else 'export the bundle again'
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        reason = ' '.join(error.desc().split())
        if reason in ('', 'false'):  # all that it says of operators it knows and cannot do
            reason = error.code().name.lower().replace('_', ' ')
        if error.node_operator():
            reason = (
                f'node {error.node_name() or error.node()} ({error.node_operator()}): {reason}'
            )
            remedy = 'export it without these operators'
        reasons.append(reason.rstrip('.'))
    reasons = list(dict.fromkeys(reasons))
    if len(reasons) > _SHOWN_ERRORS:
        reasons[_SHOWN_ERRORS:] = [f'and {len(reasons) - _SHOWN_ERRORS} nodes more']
    return EngineError(
        f'{flavour} cannot take the network {bundle.weights_path}: {"; ".join(reasons)}; {remedy}'
    )


def _failure(
    flavour: Flavour, bundle: ModelBundle, options: BuildOptions, reason: str
) -> EngineError:
    limit = options.workspace_mib
    remedy = 'take a smaller size, or a machine with more memory, if it is that'
    if limit:
        remedy = f'its kernels may use {limit} MiB: allow more (--workspace)'
    remedy = driver_remedy(flavour, reason) or remedy
    return EngineError(
        f'{flavour} could not build the engine of {bundle.name}: {reason}; {remedy}'
    )


def _load_timing_cache(config: Any, path: str | Path | None) -> Any:
    """Give the builder the times of earlier builds; returns its cache, which a build fills."""
    if path is None:
        return None
    try:
        stored = Path(path).read_bytes()
    except FileNotFoundError:
        stored = b''
    except OSError as error:
        raise EngineError(
            f'the timing cache {path} cannot be read ({error.strerror}); name another file'
        ) from error
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False):
        _log.warning('the timing cache %s is of another GPU or TensorRT; it is begun anew', path)
        cache = config.create_timing_cache(b'')
        config.set_timing_cache(cache, False)
    return cache


def _save_timing_cache(config: Any, cache: Any, path: Path) -> None:
    """Write the times of this build beside those that other builds wrote meanwhile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file itself is locked, though it is replaced: who waited opens the new one.
        with file_lock(path, wait=True):
            stored = config.create_timing_cache(path.read_bytes())
            if stored is not None:
                cache.combine(stored, False)  # leaves out what is of another GPU or TensorRT
            write_atomically(path, bytes(cache.serialize()))
    except OSError as error:  # the engine can be built, which is what was asked for
        _log.warning('the timing cache %s cannot be written (%s)', path, error.strerror)
