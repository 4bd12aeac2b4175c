"""Files and folders that are there whole, or as they were before, whatever happens meanwhile."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RENAME_EXCHANGE = 2
"""Of Linux's `renameat2`."""


@contextmanager
def replacing_file(path: Path, part: Path | None = None) -> Iterator[Path]:
    """Yield a file to be filled, which takes the place of `path` when nothing was raised.

    Args:
        path: where it is to be in the end.
        part: where it is until then, in the same folder. Default: under a name of its own, so
            that several processes can write `path` at once. A fixed name is for large files that
            one process writes: what it left when it was killed is overwritten by the next.

    Raises:
        OSError: a folder or disk that cannot be written to.
    """
    if part is None:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
        os.close(handle)
        part = Path(name)
    try:
        yield part
        part.chmod(0o644)  # some libraries leave files that only their owner can read
        to_disk(part)  # else a power cut may leave the name with nothing in the file
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    to_disk(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file with :func:`replacing_file`.

    Raises:
        OSError: a folder or disk that cannot be written to.
    """
    with replacing_file(path) as part:
        part.write_bytes(content)


def replace_folder(draft: Path, folder: Path) -> None:
    """Put a folder in the place of another one, if that is there.

    Args:
        draft: the new one, in a temporary folder on the same disk, which takes the old one.
        folder: where it is to be.

    Raises:
        OSError: the place cannot be written to; what was there is there still.
    """
    for path in draft.rglob('*'):
        if path.is_file():
            to_disk(path)
    if not (folder.exists() and _exchange(draft, folder)):
        old = draft.parent / 'replaced'
        if folder.exists():
            os.replace(folder, old)  # who is killed here leaves none by this name
        try:
            os.replace(draft, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    to_disk(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where system or disk cannot."""
    renameat2 = getattr(ctypes.CDLL(None), 'renameat2', None)
    here = -100  # AT_FDCWD: paths may be relative
    return renameat2 is not None and not renameat2(
        here, os.fsencode(one), here, os.fsencode(other), RENAME_EXCHANGE
    )


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
