"""What every benchmark shares: what it ran on, timing in turn, and the result file.

Absolute times depend on the machine and its load; the ratios between callables that were timed
in turn in one run are what can be compared.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ('numpy', 'numba', 'opencv-python-headless', 'onnxruntime', 'torch')


def hardware() -> dict[str, Any]:
    """Return the processor, its load now, and the versions of Python and the libraries."""
    return {
        'cpu': _cpu_model(),
        'machine': platform.machine(),
        'cores': os.cpu_count(),
        'cores_usable': len(os.sched_getaffinity(0)),
        'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
        'load_average_1_5_15_min': [round(value, 2) for value in os.getloadavg()],
        'system': f'{platform.system()} {platform.release()}',
        'python': platform.python_version(),
        'packages': {name: v for name in PACKAGES if (v := _version(name)) is not None},
    }


def interleaved(
    callables: Mapping[str, Callable[[], Any]],
    repeats: int,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """Time callables in turn, so that a change of load meets all of them alike.

    Args:
        callables: name -> what to time; the first is the one the ratios refer to.
        repeats: rounds that count; one round calls each once.
        warmup: rounds before them that do not count.
        clock: seconds; ``time.thread_time`` leaves out waiting for a busy core, where all that
            is timed runs on the calling thread.

    Returns:
        name -> median_ms, p90_ms, min_ms, and ratio: the median over rounds of this one's time
        divided by the first one's time of the same round.
    """
    seconds = {name: np.empty(repeats) for name in callables}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for index in range(-warmup, repeats):
            for name, function in callables.items():
                start = clock()
                function()
                if index >= 0:
                    seconds[name][index] = clock() - start
    finally:
        if collecting:
            gc.enable()
    base = next(iter(seconds.values()))
    return {
        name: {
            'median_ms': round(float(np.median(taken)) * 1e3, 4),
            'p90_ms': round(float(np.percentile(taken, 90)) * 1e3, 4),
            'min_ms': round(float(taken.min()) * 1e3, 4),
            'ratio': round(float(np.median(taken / base)), 4),
        }
        for name, taken in seconds.items()
    }


def write(path: str | os.PathLike[str], payload: Mapping[str, Any]) -> None:
    """Write a result as JSON, with :func:`hardware` and the command line, creating folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    script = os.path.relpath(sys.argv[0]) if sys.argv[0] else ''
    result = {'hardware': hardware(), 'script': script, **payload}
    path.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


def table(stats: Mapping[str, Mapping[str, float]]) -> str:
    """Return the outcome of :func:`interleaved` as text, one callable a line."""
    return '\n'.join(_lines(stats))


def _lines(stats: Mapping[str, Mapping[str, float]]) -> Iterable[str]:
    width = max(map(len, stats))
    yield f'{"":{width}}  {"median ms":>10}  {"p90 ms":>10}  {"ratio":>9}'
    for name, row in stats.items():
        numbers = f'{row["median_ms"]:10.3f}  {row["p90_ms"]:10.3f}  {row["ratio"]:9.3f}'
        yield f'{name:{width}}  {numbers}'


def _cpu_model() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
