"""Compiling of the kernels: Numba, set up once for all of them.

Kernels are compiled on first use and kept on disk: beside their source or, where that cannot be
written to, in the user's cache folder. What is damaged there is compiled and kept anew. They run
on the calling thread and release the GIL, for the cores belong to inference, and divide as NumPy
does, without exceptions.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType
from typing import Any

import numba
import numpy as np
from numba.core.caching import FunctionCache

_log = logging.getLogger(__name__)


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a kernel; ``@jit`` or ``@jit(fastmath=True)``.

    Where no folder can be written to, as in a container whose user has no home, or the disk is
    full, kernels are compiled anew by every process.

    Args:
        function: a function that Numba can compile.
        options: of ``numba.njit`` besides.
    """
    if function is None:
        return functools.partial(jit, **options)
    options = {'nogil': True, 'error_model': 'numpy', **options}
    try:
        cache = _Cache(function)
    except RuntimeError as error:
        if 'cannot cache' not in str(error):
            raise
        _warn_of_missing_cache(
            "neither the folder of rgbd_fusion_seg nor the user's cache folder can be written to"
        )
        return numba.njit(**options)(function)
    kernel = numba.njit(**options)(function)
    kernel._cache = cache
    return kernel


class _Cache(FunctionCache):
    """What was compiled of one kernel; Numba's own ends the process where it cannot be used.

    Files can be cut short by a loss of power, for Numba does not wait until they are on the disk.
    It looks at the kernel's own file alone for changes, but constants and kernels of other files
    are compiled into it.
    """

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), self._fingerprint)

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for part in _compiled_in(self._py_func, set()):
            digest.update(part.encode())
        return digest.hexdigest()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled kernel, None where it must be compiled."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever damaged bytes make of it
            _log.warning('a compiled kernel in %s is damaged; it is made again', self.cache_path)
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel, where that can be done."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn_of_missing_cache(f'they cannot be kept in {self.cache_path} ({error.strerror})')


def _compiled_in(function: Callable[..., Any], seen: set[int]) -> Iterator[str]:
    """Yield what a kernel is made of: its code, the constants that it names, kernels it calls."""
    if id(function) in seen:
        return
    seen.add(id(function))
    codes = [function.__code__]
    for code in codes:
        codes += [c for c in code.co_consts if isinstance(c, CodeType)]
        yield code.co_code.hex()
        yield repr([c for c in code.co_consts if not isinstance(c, CodeType)])
        for name in code.co_names:
            value = function.__globals__.get(name)
            if hasattr(value, 'py_func'):
                yield from _compiled_in(value.py_func, seen)
            elif isinstance(value, np.ndarray):
                yield f'{name}={value.dtype}{value.tolist()}'
            elif isinstance(value, int | float | complex | str | tuple | np.generic):
                yield f'{name}={value!r}'


@functools.cache
def _warn_of_missing_cache(reason: str) -> None:
    _log.warning(
        'kernels are compiled again at every start, for about ten seconds, as %s; set '
        'NUMBA_CACHE_DIR to a folder that can be written to',
        reason,
    )
