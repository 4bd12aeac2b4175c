"""What every benchmark shares: what it ran on, timing in turn, and the result file.

Timing and the description of the machine are the package's own (:mod:`rgbd_fusion_seg.timing`,
:mod:`rgbd_fusion_seg.hardware`), as `rgbd-fusion-seg benchmark` uses them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rgbd_fusion_seg.hardware import hardware
from rgbd_fusion_seg.timing import in_turn, interleaved

__all__ = ['OUTPUT', 'hardware', 'in_turn', 'interleaved', 'table', 'write']

OUTPUT = Path('bench_output')
"""For results by default; `results/` beside this file has those that the documents tell."""


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
