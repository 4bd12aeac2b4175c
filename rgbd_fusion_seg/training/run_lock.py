"""One process at a time trains into a folder, whose state two would take turns to overwrite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.file_lock import file_lock
from rgbd_fusion_seg.training.checkpoints import check_writable, make_folder


def lock_of(folder: Path) -> Path:
    """Return the lock of a run's folder: beside it, so that a refused run leaves no folder."""
    return folder.with_name(f'{folder.name}.lock')


@contextmanager
def only_trainer(folder: Path) -> Iterator[None]:
    """Keep other processes from training into a folder.

    Of the processes of a `torchrun`, the first claims it for all. A run that ends before it has
    made its folder, as one that is refused for its data, leaves no lock either.

    Raises:
        InputError: another one is training there, or the folder cannot be made or locked.
    """
    check_writable(folder)
    if os.environ.get('RANK', '0') != '0':
        yield
        return
    folder = folder.absolute()
    make_folder(folder.parent)
    with ExitStack() as stack:
        try:
            mine = stack.enter_context(file_lock(lock_of(folder)))
        except OSError as error:
            raise InputError(
                f'{lock_of(folder)} cannot be locked ({error.strerror}); choose an output folder '
                'on a disk of this machine'
            ) from error
        if not mine:
            raise InputError(
                f'another process is training into {folder}; wait until it is done, or choose '
                'another output folder'
            )
        try:
            yield
        finally:
            if not folder.exists():
                with suppress(OSError):  # of another user
                    lock_of(folder).unlink()
