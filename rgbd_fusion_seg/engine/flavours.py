"""The TensorRT packages that may be installed: tensorrt, TensorRT-RTX and the lean runtime."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

from rgbd_fusion_seg.errors import EngineError

_WHEELS = {
    'tensorrt_rtx': ('tensorrt_rtx_libs', 'tensorrt_rtx_bindings'),
    'tensorrt_lean': ('tensorrt_lean_libs', 'tensorrt_lean_bindings'),
}
"""Wheels without their meta package: the libraries must be imported before the bindings."""
_REMEDIES = {
    'tensorrt': 'install TensorRT (JetPack brings it; else: pip install tensorrt)',
    'tensorrt_rtx': 'pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings',
    'tensorrt_lean': 'pip install tensorrt-lean-cu13-libs tensorrt-lean-cu13-bindings',
}
_OLDEST = {'tensorrt': (10,), 'tensorrt_rtx': (1, 2), 'tensorrt_lean': (10,)}
"""The first versions that have all that is used: strongly typed networks in the API of TensorRT
10, and of RTX engines that ask for no memory of their own."""
FLAVOURS = tuple(_REMEDIES)
"""Names, best first. The lean one runs engines and cannot build them."""


class Flavour(NamedTuple):
    """One TensorRT package, imported."""

    name: str
    trt: ModuleType
    """Its Python bindings."""
    version: str
    """Of the library, such as ``10.3.0``."""

    @property
    def can_build(self) -> bool:
        """Whether it has a builder and a parser, not a runtime alone."""
        return hasattr(self.trt, 'Builder') and hasattr(self.trt, 'OnnxParser')

    def __str__(self) -> str:
        return f'{self.name} {self.version}'


def import_flavour(name: str) -> Flavour:
    """Import one of :data:`FLAVOURS`.

    Raises:
        EngineError: an unknown name, a package that is absent, too old, or one that cannot be
            imported.
    """
    if name not in FLAVOURS:
        raise EngineError(
            f'there is no TensorRT flavour {name!r}; choose one of: {", ".join(FLAVOURS)}'
        )
    try:
        trt = _import(name)
    except ImportError as error:
        raise EngineError(f'{name} is not here ({error}); {_REMEDIES[name]}') from error
    except Exception as error:  # the libraries of another platform or driver fail in many ways
        raise EngineError(
            f'{name} is installed but cannot be imported ({type(error).__name__}: {error}); '
            f'{_REMEDIES[name]} anew'
        ) from error
    found, oldest = trt.__version__, _OLDEST[name]
    if version_numbers(found)[: len(oldest)] < oldest:
        needed = '.'.join(map(str, oldest))
        raise EngineError(
            f'{name} {found} is too old, {needed} or newer is needed; {_REMEDIES[name]}'
        )
    return Flavour(name, trt, found)


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers in a version or a compute capability, to compare them."""
    return tuple(int(part) for part in version.split('.') if part.isdecimal())


def installed_flavours() -> dict[str, Flavour | EngineError]:
    """Return for each name the imported package, or why it is not here; the best comes first."""
    found: dict[str, Flavour | EngineError] = {}
    for name in FLAVOURS:
        try:
            found[name] = import_flavour(name)
        except EngineError as error:
            found[name] = error
    return found


def _import(name: str) -> ModuleType:
    libs, bindings = _WHEELS.get(name, ('', ''))
    if bindings and find_spec(name) is None:
        import_module(libs)
        return import_module(bindings)
    return import_module(name)
