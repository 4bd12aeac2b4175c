"""The log of a run: a line of JSON for each look at the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LOG_NAME = 'log.jsonl'


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return what a run's log tells, none where there is no log.

    Returns:
        'step' and numbers by name, of every line that is whole: a run that was killed and disks
        leave others.
    """
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get('step'), int):
            entries.append(entry)
    return entries
