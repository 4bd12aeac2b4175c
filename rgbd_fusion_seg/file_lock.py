"""A lock between processes of a machine; the system lets it go when its holder dies.

What its holder forks, such as loader processes, does not hold it: they may outlive it by seconds.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_held: set[int] = set()
"""Descriptors of open locks."""


@contextmanager
def file_lock(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock; yield whether it is ours, which it always is after waiting.

    Args:
        path: of a file that stands for what is locked, made if absent; it stays, unless its
            holder removes it.
        wait: until another process lets it go.

    Raises:
        OSError: the file cannot be opened, or is on a disk without locks.
    """
    file, mine = _locked(path, wait)
    _held.add(file)
    try:
        yield mine
    finally:
        if file in _held:  # not where it was forked meanwhile
            _held.remove(file)
            os.close(file)


def _leave_to_parent() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_leave_to_parent)


def open_lock(path: Path) -> int:
    """Open a lock's file, made if absent; returns its descriptor.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # of another user; on most disks reading is enough to lock it
        return os.open(path, os.O_RDONLY)


def _locked(path: Path, wait: bool) -> tuple[int, bool]:
    """Return the descriptor of the open lock, and whether it is ours."""
    while True:
        file = open_lock(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return file, False
        except OSError:
            os.close(file)
            raise
        # Its holder may have removed what was opened; the lock is that of a new file then.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file)):
                return file, True
        os.close(file)
