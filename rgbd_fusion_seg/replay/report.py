"""Tables of results, for the terminal, for a text file and for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgbd_fusion_seg.atomic_files import write_atomically
from rgbd_fusion_seg.errors import InputError

Value = str | int | float | None


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The table of a run and the files it left."""

    rows: dict[str, Value]
    files: list[Path]


def table_text(title: str, rows: Mapping[str, Value]) -> str:
    """Return a two-column table; numbers have at most one decimal, None and NaN show a dash."""
    shown = {name: _shown(value) for name, value in rows.items()}
    left = max(len(name) for name in shown)
    right = max(len(value) for value in shown.values())
    rule = '-' * (left + 2 + right)
    lines = [f'{name:<{left}}  {value:>{right}}' for name, value in shown.items()]
    return '\n'.join([title, rule, *lines, rule])


def write_table(
    folder: Path,
    stem: str,
    title: str,
    rows: Mapping[str, Value],
    parts: Mapping[str, Mapping[str, Value]] | None = None,
) -> list[Path]:
    """Write ``STEM.txt`` and ``STEM.json`` (NaN as null); returns both paths.

    Args:
        folder: must exist.
        stem: of the names of both files.
        title: of the table.
        rows: of the table; in the JSON file a key each.
        parts: further tables by their titles; in the JSON file an object each.

    Raises:
        InputError: a file cannot be written; what was there is there still.
    """
    text, data = folder / f'{stem}.txt', folder / f'{stem}.json'
    tables = {title: rows, **(parts or {})}
    content = '\n\n'.join(table_text(*table) for table in tables.items())
    clean = _without_nan(rows) | {name: _without_nan(part) for name, part in (parts or {}).items()}
    try:
        write_atomically(text, f'{content}\n'.encode())
        write_atomically(data, f'{json.dumps(clean, indent=2)}\n'.encode())
    except OSError as error:
        raise InputError(
            f'the table {text} cannot be written ({error.strerror}); make room on the disk, or '
            'choose another folder for the results'
        ) from error
    return [text, data]


def _without_nan(rows: Mapping[str, Value]) -> dict[str, Any]:
    return {name: None if _is_nan(value) else value for name, value in rows.items()}


def _shown(value: Value) -> str:
    if value is None or _is_nan(value):
        return '-'
    return f'{value:.1f}' if isinstance(value, float) else str(value)


def _is_nan(value: Value) -> bool:
    return isinstance(value, float) and math.isnan(value)
