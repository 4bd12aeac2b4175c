"""Inference engines: one backend a module, imported only when it is opened or asked after."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.errors import BundleError, EngineError, UnbuiltEngineError

BACKENDS = {
    'tensorrt': 'rgbd_fusion_seg.engine.tensorrt',
    'onnxruntime_gpu': 'rgbd_fusion_seg.engine.onnxruntime_gpu',
    'onnxruntime': 'rgbd_fusion_seg.engine.onnxruntime',
    'openvino': 'rgbd_fusion_seg.engine.openvino',
}
"""Backend name -> module, best first: ``auto`` opens the first that can run here.

A module has ``open_engine(bundle, **options)`` and ``probe(**options) -> (usable, version or
reason)``, which takes those of the options that matter to it.
"""


PRECISIONS = ('fp16', 'bf16', 'fp32')
"""What networks compute in, the fastest first."""


class StepDown(NamedTuple):
    """A better backend that was passed over, and why."""

    backend: str
    """Its name; ``precision bf16`` where the backend in use has no such option."""
    reason: str
    unexpected: bool
    """True where the backend is here with its device, so that somebody should look into it."""
    build_helps: bool = False
    """True where only an engine file is missing that can be built here."""

    def __str__(self) -> str:
        return f'{self.backend} is not used: {self.reason}'


class Engine(ABC):
    """A network that is ready to run. One thread may use it at a time."""

    name: str
    """Backend and device, for people: ``onnxruntime (CPU, 4 threads)``."""
    backend = ''
    """Its key in :data:`BACKENDS`; :func:`open_engine` tells it."""
    step_downs: tuple[StepDown, ...] = ()
    """The better backends that ``auto`` could not take."""
    _bundle: ModelBundle
    _outputs: Sequence[str]

    def infer(
        self,
        rgb: np.ndarray | None = None,
        hha: np.ndarray | None = None,
        depth: np.ndarray | None = None,
    ) -> np.ndarray:
        """Run the network.

        Args:
            rgb, hha, depth: float32 (N, 3, height, width), each of the size of the bundle it was
                opened with; N is 1 unless the bundle's batch is dynamic. An input that the
                network does not have is not looked at.

        Returns:
            Logits, float32 (N, K, h, w); they are the caller's to keep.

        Raises:
            EngineError: an input that is absent or of another form, a failure of the backend, a
                closed engine, or one of a fused bundle, which has no logits.
        """
        if self._bundle.fused is not None:
            raise EngineError(f'{self.name} returns {", ".join(self._outputs)}, no logits: run it')
        given = {'rgb': rgb, 'hha': hha, 'depth': depth}
        feeds = {name: given[name] for name in self._bundle.inputs if given[name] is not None}
        return self.run(feeds)[self._outputs[0]]

    @abstractmethod
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph of any bundle, a fused one among them.

        Args:
            feeds: what `ModelBundle.graph_inputs` lists, by name.

        Returns:
            What `ModelBundle.graph_outputs` lists, by name; the caller's to keep.

        Raises:
            EngineError: as :meth:`infer`.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the network and the device; closing again does nothing."""


class Backend(NamedTuple):
    """What :func:`available_backends` tells of a backend."""

    name: str
    usable: bool
    detail: str
    """Its version, or why it cannot run here."""


def available_backends() -> list[Backend]:
    """Tell of every backend whether it can run here."""
    return [probe_backend(name, {}) for name in BACKENDS]


def probe_backend(name: str, options: Mapping[str, Any]) -> Backend:
    """Tell of one of :data:`BACKENDS` whether it can run here with options of its own."""
    probe = _module(name).probe
    return Backend(name, *probe(**_known(probe, options)))


def options_known_to(backend: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options that one of :data:`BACKENDS` has."""
    return _known(_module(backend).open_engine, options)


def check_precision(precision: str | None) -> None:
    """Raise EngineError where a precision is none of :data:`PRECISIONS`, nor left open."""
    if precision and precision not in PRECISIONS:
        raise EngineError(
            f'there is no precision {precision!r}; choose one of: {", ".join(PRECISIONS)}'
        )


def open_engine(
    bundle: ModelBundle,
    backend: str = 'auto',
    *,
    failed: Sequence[StepDown] = (),
    **options: Any,
) -> Engine:
    """Open a bundle's network.

    Args:
        bundle: the network and its card; `ModelBundle.resized` for another input size.
        backend: one of :data:`BACKENDS`, or ``auto`` for the first that can run here; its
            ``step_downs`` then tell why the ones before it could not.
        failed: backends that ``auto`` is not to try, for they failed while they ran.
        options: of the ``open_engine`` of the backend's module, which documents them. With
            ``auto`` each backend is given those that it knows.

    Raises:
        EngineError: an unknown or unusable backend, an option it does not know, or an unknown
            precision.
        BundleError: a network that is damaged or contradicts its card; with ``auto`` one that no
            backend can open.
    """
    if backend == 'auto':
        return _open_best(bundle, failed, options)
    if backend not in BACKENDS:
        raise EngineError(
            f'there is no inference backend {backend!r}; choose one of: auto, '
            f'{", ".join(BACKENDS)}'
        )
    module = _module(backend)
    _, usable, detail = probe_backend(backend, options)
    if not usable:
        raise EngineError(f'the backend {backend} cannot run here: {detail}')
    known = _options(module)
    if unknown := sorted(set(options) - set(known)):
        raise EngineError(
            f'the backend {backend} has no option {unknown[0]!r}; it knows: {", ".join(known)}'
        )
    engine = module.open_engine(bundle, **options)
    engine.backend = backend
    return engine


def _open_best(bundle: ModelBundle, failed: Sequence[StepDown], options: dict[str, Any]) -> Engine:
    modules = {name: _module(name) for name in BACKENDS}
    known = {option for module in modules.values() for option in _options(module)}
    if unknown := sorted(set(options) - known):
        raise EngineError(
            f'no backend has the option {unknown[0]!r}; there are: {", ".join(sorted(known))}'
        )
    precision = options.get('precision')
    check_precision(precision)
    passed = list(failed)
    damage: BundleError | None = None
    for name, module in modules.items():
        if any(name == step_down.backend for step_down in failed):
            continue
        _, usable, detail = probe_backend(name, options)
        if not usable:
            passed.append(StepDown(name, detail, unexpected=False))
            continue
        try:
            engine = module.open_engine(bundle, **options_known_to(name, options))
        except (BundleError, EngineError) as error:
            if isinstance(error, BundleError):
                damage = damage or error
            unbuilt = isinstance(error, UnbuiltEngineError)
            passed.append(StepDown(name, str(error), unexpected=True, build_helps=unbuilt))
            continue
        if precision not in (None, '', 'fp32') and 'precision' not in _options(module):
            reason = f'{name} computes in the types that the network has'
            passed.append(StepDown(f'precision {precision}', reason, unexpected=False))
        engine.backend, engine.step_downs = name, (*passed, *engine.step_downs)
        return engine
    if damage is not None:
        raise damage
    reasons = '; '.join(map(str, passed))
    raise EngineError(f'no inference backend can run {bundle.name} here: {reasons}')


def _known(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options that a function takes."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in names}


def _options(module: ModuleType) -> list[str]:
    return list(inspect.signature(module.open_engine).parameters)[1:]


def _module(backend: str) -> ModuleType:
    return import_module(BACKENDS[backend])
