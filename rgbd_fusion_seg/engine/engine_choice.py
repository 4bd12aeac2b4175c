"""Which engine file fits this machine, from the cards alone, and why the others do not.

The rules are NVIDIA's ("Engine Compatibility" and "Support Matrix" in the documentation of
TensorRT 11.4 and of TensorRT-RTX 1.7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.engine import PRECISIONS, check_precision
from rgbd_fusion_seg.engine.cuda import Device
from rgbd_fusion_seg.engine.engine_files import (
    EngineCard,
    EngineTensor,
    belongs_to,
    engine_folders,
)
from rgbd_fusion_seg.engine.flavours import FLAVOURS, version_numbers
from rgbd_fusion_seg.errors import EngineError, UnbuiltEngineError
from rgbd_fusion_seg.hardware import system_name
from rgbd_fusion_seg.locations import list_bundles


class Candidate(NamedTuple):
    """An engine that fits."""

    path: Path
    """Of its card."""
    card: EngineCard
    flavour: str
    """The installed one that is to run it."""


_SAME_MEMORY = 0.1
"""Relative difference up to which two GPUs have the same memory. Drivers keep a little of it to
themselves; models that share a name differ by a sixth (10 and 12 GB) or more."""


class _MisfitError(Exception):
    """Why an engine does not fit, as the end of a sentence that begins with its name."""


def fitting_engines(
    cards: Mapping[Path, EngineCard | EngineError],
    bundle: ModelBundle,
    device: Device,
    runtimes: Mapping[str, str | EngineError],
    precision: str = '',
    unbuildable: str = '',
) -> list[Candidate]:
    """Return the engines of a bundle that fit this machine, the best one first.

    Args:
        cards: by path, see :func:`rgbd_fusion_seg.engine.engine_files.list_engines`.
        bundle: the network; its input sizes count.
        device: the GPU.
        runtimes: version of each TensorRT flavour, or why it is not here.
        precision: one of :data:`PRECISIONS`; default: the best there is.
        unbuildable: why none can be built here, and what to do; empty where one can.

    Raises:
        UnbuiltEngineError: no engine that fits, and one can be built; it says why each does not.
        EngineError: no engine that fits otherwise, or an unknown precision.
    """
    check_precision(precision)
    found: list[Candidate] = []
    reasons: list[str] = []
    for path, card in cards.items():
        try:
            if isinstance(card, EngineError):
                raise _MisfitError(f'has an unusable card: {card}')
            _check_card(card, bundle, device, precision)
            found.append(Candidate(path, card, _runtime_for(card, runtimes)))
        except _MisfitError as misfit:
            reasons.append(f'{path.name} {misfit}')
    if not found:
        kind = EngineError if unbuildable else UnbuiltEngineError
        raise kind(_none_fits(bundle, device, reasons, unbuildable))
    return sorted(found, key=_rank)


def misfit_here(
    card: EngineCard,
    bundle: ModelBundle,
    runtimes: Mapping[str, str | EngineError],
    device: Device | None,
) -> str:
    """Return why an engine does not fit, as the end of a sentence that begins with its name.

    Args:
        card, bundle, runtimes: as of :func:`fitting_engines`.
        device: the GPU; None where there is none, which is no reason here.

    Returns:
        The reason; empty where it fits.
    """
    try:
        if device is not None:
            _check_card(card, bundle, device, '')
        _check_network(card, bundle)
        _runtime_for(card, runtimes)
    except _MisfitError as misfit:
        return str(misfit)
    return ''


def runs_engine(flavour: str, version: str, card: EngineCard) -> bool:
    """Return whether a flavour of TensorRT can run an engine.

    An engine runs on the very version that built it. A version-compatible one of ``tensorrt``
    also runs on newer versions of the same major version, one of TensorRT 10 on TensorRT 11 too,
    and it is the only kind that the lean runtime takes. TensorRT-RTX has no such engines.
    """
    compatible = card.flavour == 'tensorrt' and card.options.get('version_compatible') is True
    if flavour == card.flavour and version == card.version:
        return True
    if not compatible or flavour not in ('tensorrt', 'tensorrt_lean'):
        return False
    built, here = version_numbers(card.version), version_numbers(version)
    return here >= built and (built[:1] == here[:1] or (built[:1], here[:1]) == ((10,), (11,)))


def built_on(card: EngineCard, device: Device) -> bool:
    """Return whether a GPU is of the model that an engine was built on.

    TensorRT loads plans from other models of the same compute capability, and warns that this
    "is likely to affect performance or even cause errors". Multiprocessors are not counted: on a
    Jetson the power mode switches some of them off.
    """
    memory = card.memory_mib, device.memory_mib
    same_memory = max(memory) - min(memory) <= _SAME_MEMORY * max(memory)
    return card.gpu == device.name and same_memory


def runs_on(flavour: str, built_for: Sequence[str], capability: str) -> bool:
    """Return whether an engine for some compute capabilities runs on a GPU of another one."""
    if capability in built_for:
        return True
    # "8.0, 8.6, 8.9, 12.0, and later": of the newest generation RTX engines fit what follows.
    newest = max(map(version_numbers, built_for), default=())
    return flavour == 'tensorrt_rtx' and (12, 0) <= newest <= version_numbers(capability)


def sizes_misfit(tensor: EngineTensor, shape: tuple[int, ...]) -> str:
    """Return why an input cannot have a shape, as ``takes …, not …``; empty where it can."""
    low, high = (tensor.profile[0], tensor.profile[-1]) if tensor.profile else (tensor.shape,) * 2
    sides = zip(shape, low, high, strict=False)
    if len(shape) == len(low) and all(a <= side <= b for side, a, b in sides):
        return ''
    takes = _sides(low) if low == high else f'{_sides(low)} to {_sides(high)}'
    return f'takes {takes} for its input {tensor.name}, not {_sides(shape)}'


def _check_card(card: EngineCard, bundle: ModelBundle, device: Device, precision: str) -> None:
    _check_network(card, bundle)
    if precision and card.precision != precision:
        raise _MisfitError(f'computes in {card.precision}, not in {precision}')
    here = system_name()
    if card.flavour != 'tensorrt_rtx' and card.platform != here:
        raise _MisfitError(f'was built for {card.platform}, and this is {here}')
    if not runs_on(card.flavour, card.compute_capabilities, device.compute_capability):
        built_for = ', '.join(card.compute_capabilities)
        raise _MisfitError(
            f'was built for compute capability {built_for}, and this GPU has '
            f'{device.compute_capability}'
        )
    if card.flavour == 'tensorrt' and not built_on(card, device):
        raise _MisfitError(
            f'was built on {card.gpu} of {card.memory_mib} MiB, and this GPU is {device.name} of '
            f'{device.memory_mib} MiB'
        )


def _check_network(card: EngineCard, bundle: ModelBundle) -> None:
    if not belongs_to(card, bundle):
        raise _MisfitError(f'was built from another ONNX file than {bundle.weights_path.name}')
    inputs = {tensor.name: tensor for tensor in card.tensors if tensor.mode == 'input'}
    expected = bundle.graph_inputs
    if set(inputs) != set(expected):
        raise _MisfitError(
            f'has the inputs {", ".join(inputs)}, and the bundle has {", ".join(expected)}'
        )
    for name, form in expected.items():
        if inputs[name].dtype != form.dtype:
            raise _MisfitError(
                f'takes {inputs[name].dtype} for its input {name}, not {form.dtype}'
            )
        if reason := sizes_misfit(inputs[name], form.shape):
            raise _MisfitError(reason)


def _runtime_for(card: EngineCard, runtimes: Mapping[str, str | EngineError]) -> str:
    here = {name: version for name, version in runtimes.items() if isinstance(version, str)}
    for name, version in here.items():
        if runs_engine(name, version, card):
            return name
    built = f'was built by {card.flavour} {card.version}'
    if card.flavour in here:
        raise _MisfitError(f'{built}, and here is {here[card.flavour]}')
    installed = ', '.join(f'{name} {version}' for name, version in here.items())
    raise _MisfitError(f'{built}, and here is {installed or "no TensorRT"}')


def _rank(candidate: Candidate) -> tuple[int, int, bool, bool]:
    """Sort by precision, flavour, the very version that built it, and fixed sizes."""
    _, card, flavour = candidate
    known = card.precision in PRECISIONS
    return (
        PRECISIONS.index(card.precision) if known else len(PRECISIONS),
        FLAVOURS.index(flavour),
        card.options.get('version_compatible') is True,
        any(tensor.profile for tensor in card.tensors),
    )


def _none_fits(bundle: ModelBundle, device: Device, reasons: list[str], unbuildable: str) -> str:
    named = bundle.path.name if bundle.path in list_bundles() else bundle.path
    remedy = f'build one with: rgbd-fusion-seg build-engine {named}'
    if unbuildable:
        remedy = f'none can be built here: {unbuildable}'
    if not reasons:
        folders = ' or '.join(str(folder) for folder in engine_folders(bundle))
        return f'there is no TensorRT engine of {bundle.name} in {folders}; {remedy}'
    return (
        f'no TensorRT engine of {bundle.name} fits this machine ({device}): '
        f'{"; ".join(reasons)}; {remedy}'
    )


def _sides(shape: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape))
