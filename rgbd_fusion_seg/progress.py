"""Progress bars for people: live in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LOG_INTERVAL_S = 10.0
"""Seconds between two states of a bar where standard error is no terminal."""


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """Return a bar of tqdm on standard error; into a file it writes every ten seconds at most.

    Args:
        iterable: what it goes through, if anything.
        options: of `tqdm.tqdm`.
    """
    if not sys.stderr.isatty():
        options['mininterval'] = max(LOG_INTERVAL_S, options.get('mininterval', 0))
    return tqdm(iterable, **options)
