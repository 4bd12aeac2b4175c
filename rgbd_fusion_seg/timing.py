"""Timing callables in turn.

Absolute times depend on the machine and its load; the ratios between callables that were timed
in turn in one run are what can be compared.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def in_turn(
    callables: Mapping[str, Callable[[], Any]],
    repeats: int,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    after_round: Callable[[], Any] = lambda: None,
) -> dict[str, np.ndarray]:
    """Time callables in turn, so that a change of load meets all of them alike.

    Args:
        callables: name -> what to time.
        repeats: rounds that count; one round calls each once.
        warmup: rounds before them that do not count.
        clock: seconds; ``time.thread_time`` leaves out waiting for a busy core, where all that
            is timed runs on the calling thread.
        after_round: called, untimed, after each round.

    Returns:
        name -> float64 (repeats,), seconds.
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
            after_round()
    finally:
        if collecting:
            gc.enable()
    return seconds


def percentiles_ms(seconds: np.ndarray) -> dict[str, float]:
    """Return the 50th, 90th and 99th percentile of times in seconds, in milliseconds."""
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99]) * 1e3
    return {'p50': round(float(p50), 3), 'p90': round(float(p90), 3), 'p99': round(float(p99), 3)}
