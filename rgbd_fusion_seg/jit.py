"""Compiling of the kernels: Numba, set up once for all of them.

Kernels are compiled on first use and kept on disk: beside their source or, where that cannot be
written to, in the user's cache folder. They run on the calling thread and release the GIL, for the
cores belong to inference, and divide as NumPy does, without exceptions.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import numba

_log = logging.getLogger(__name__)


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a kernel; ``@jit`` or ``@jit(fastmath=True)``.

    Where no folder can be written to, as in a container whose user has no home, kernels are
    compiled anew by every process.

    Args:
        function: a function that Numba can compile.
        options: of ``numba.njit`` besides.
    """
    if function is None:
        return functools.partial(jit, **options)
    options = {'nogil': True, 'error_model': 'numpy', **options}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError as error:
        if 'cannot cache' not in str(error):
            raise
        _warn_of_missing_cache()
        return numba.njit(**options)(function)


@functools.cache
def _warn_of_missing_cache() -> None:
    _log.warning(
        'kernels are compiled again at every start, for about ten seconds, as neither the '
        "folder of rgbd_fusion_seg nor the user's cache folder can be written to; set "
        'NUMBA_CACHE_DIR to a folder that can'
    )
