"""What every benchmark shares: what it ran on, timing in turn, and the result file.

Timing and the description of the machine are the package's own (:mod:`rgbd_fusion_seg.timing`,
:mod:`rgbd_fusion_seg.hardware`), as `rgbd-fusion-seg benchmark` uses them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rgbd_fusion_seg.hardware import hardware
from rgbd_fusion_seg.replay.evaluate import scores
from rgbd_fusion_seg.timing import in_turn

__all__ = [
    'OUTPUT',
    'figures',
    'frames_in_turn',
    'hardware',
    'in_turn',
    'interleaved',
    'one_by_one',
    'reason',
    'table',
    'write',
]

OUTPUT = Path('bench_output')
"""For results by default; `results/` beside this file has those that the documents tell."""


def write(path: str | os.PathLike[str], payload: Mapping[str, Any]) -> None:
    """Write a result as JSON, with :func:`hardware` and the command line, creating folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    script = os.path.relpath(sys.argv[0]) if sys.argv[0] else ''
    result = {'hardware': hardware(), 'script': script, **payload}
    path.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


def figures(matrix: np.ndarray) -> dict[str, float]:
    """Return figures in percent of a matrix (K, K + 1), rows truth, last column unlabelled."""
    found = scores(matrix)
    return {
        'pixel_accuracy': round(100 * found.pixel_accuracy, 1),
        'mIoU': round(100 * found.mean_iou, 1),
    }


def interleaved(
    callables: Mapping[str, Callable[[], Any]],
    repeats: int,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """Time callables as :func:`in_turn` and sum it up.

    Returns:
        name -> median_ms, p90_ms, min_ms, and ratio: the median over rounds of this one's time
        divided by the first one's time of the same round.
    """
    seconds = in_turn(callables, repeats, warmup, clock)
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


def frames_in_turn(
    segmenters: Mapping[str, Any], frames: Sequence[Any], repeats: int
) -> dict[str, dict[str, Any]]:
    """Time segmenters as :func:`interleaved`, on one frame after the other.

    Returns:
        As that, and stages_ms: the median of each stage.
    """
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in segmenters}

    def labelling(name: str) -> Callable[[], None]:
        source = cycle(frames)

        def label() -> None:
            stages[name].append(dict(segmenters[name].segment(next(source)).timings))

        return label

    rows: dict[str, dict[str, Any]] = interleaved({n: labelling(n) for n in segmenters}, repeats)
    for name, row in rows.items():
        taken = stages[name][-repeats:]
        row['stages_ms'] = {
            stage: round(float(np.median([t[stage] for t in taken])), 4) for stage in taken[0]
        }
    return rows


def one_by_one(
    names: Iterable[str],
    measured: Callable[[str], Any],
    keep: Callable[[dict[str, Any], dict[str, str]], None],
) -> int:
    """Measure one after another, and go on after one that fails, as for want of memory.

    Args:
        names: of what is to be measured.
        measured: returns the result of one of them.
        keep: writes what there is so far, results and reasons of failures, both by name; called
            after each of them.

    Returns:
        The exit code of the program: 1 where one failed.
    """
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            results[name] = measured(name)
        except Exception as error:
            failed[name] = reason(error)
            sys.stderr.write(f'{name} was not measured: {failed[name]}\n')
        keep(results, failed)
    return int(bool(failed))


def reason(error: Exception) -> str:
    """Return what was raised as one line, not too long a one."""
    return f'{type(error).__name__}: {" ".join(str(error).split()):.300}'


def table(stats: Mapping[str, Mapping[str, float]]) -> str:
    """Return the outcome of :func:`interleaved` as text, one callable a line."""
    return '\n'.join(_lines(stats))


def _lines(stats: Mapping[str, Mapping[str, float]]) -> Iterable[str]:
    width = max(map(len, stats))
    yield f'{"":{width}}  {"median ms":>10}  {"p90 ms":>10}  {"ratio":>9}'
    for name, row in stats.items():
        numbers = f'{row["median_ms"]:10.3f}  {row["p90_ms"]:10.3f}  {row["ratio"]:9.3f}'
        yield f'{name:{width}}  {numbers}'
