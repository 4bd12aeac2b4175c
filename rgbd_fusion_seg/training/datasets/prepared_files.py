"""Prepared frames as files: arrays that are made once, mapped into memory, and whole or not there.

What is prepared is made of parts, each a folder with arrays and their statistics. Parts that are
absent are made in a workspace beside them and moved to their places when they are whole; of
several processes that want them one makes them, and the others wait.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.file_lock import file_lock
from rgbd_fusion_seg.progress import progress_bar

INFO_NAME = 'info.json'
MAX_THREADS = 16
CHUNK = 8
"""Frames that a thread prepares in a row, so that neighbours can share work (views of a room)."""

Images = dict[str, np.ndarray]
T = TypeVar('T')
R = TypeVar('R')


@dataclass(frozen=True, eq=False)
class Part:
    """What is prepared in a folder of its own.

    Args:
        folder: where it is once it is whole.
        shapes: of the arrays, N first.
        dtype: of the arrays.
    """

    folder: Path
    shapes: dict[str, tuple[int, ...]]
    dtype: type[np.generic] = np.uint8

    @property
    def num_bytes(self) -> int:
        """Size of the arrays."""
        pixels = sum(int(np.prod(shape)) for shape in self.shapes.values())
        return pixels * np.dtype(self.dtype).itemsize

    def open(self) -> Images:
        """Map the arrays.

        Raises:
            InputError: one that is absent, cut short, or of another shape or type.
        """
        images = {}
        for name, shape in self.shapes.items():
            path = self.folder / f'{name}.npy'
            try:
                images[name] = np.load(path, mmap_mode='r')
            except (OSError, ValueError, EOFError) as error:
                raise self._damaged(path, error) from error
            if images[name].shape != shape:
                raise self._damaged(path, f'{images[name].shape} is not {shape}')
            if images[name].dtype != self.dtype:
                raise self._damaged(path, f'{images[name].dtype} is not {np.dtype(self.dtype)}')
        return images

    def info(self) -> dict[str, Any]:
        """Read the statistics of the frames.

        Raises:
            InputError: they are absent or damaged.
        """
        path = self.folder / INFO_NAME
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise self._damaged(path, error) from error

    def _damaged(self, path: Path, reason: object) -> InputError:
        return InputError(
            f'{path} is damaged ({reason}); delete the folder {self.folder}, and its prepared '
            'frames are made again'
        )


Fill = Callable[[Sequence[Part], Sequence[Images]], dict[str, Any]]
"""(parts, their writable arrays) -> statistics of the frames, as plain values."""


def build_parts(name: str, parts: Sequence[Part], folder: Path, fill: Fill) -> None:
    """Make the parts that are not there.

    Args:
        name: of the frames; workspace and lock are named by it.
        parts: in ``folder``.
        folder: for the parts of any number of sources.
        fill: makes the content.

    Raises:
        InputError: too little space on the disk, or a folder that cannot be written to.
    """
    if all(part.folder.is_dir() for part in parts):
        return
    needed = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_builder(folder / f'.{name}.lock'):
            # Another process may have made them while this one waited.
            parts = [part for part in parts if not part.folder.is_dir()]
            if not parts:
                return
            needed = sum(part.num_bytes for part in parts)
            workspace = folder / f'.{name}.partial'
            shutil.rmtree(workspace, ignore_errors=True)  # of a build that was killed
            _require_space(needed, folder)
            try:
                _fill(parts, workspace, fill)
                for part in parts:
                    os.rename(workspace / part.folder.name, part.folder)
            finally:
                shutil.rmtree(workspace, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f'the {needed / 1e9:.2f} GB of prepared frames of {name} cannot be written to '
            f'{folder} ({error.strerror}); make room there or give another folder for the cache'
        ) from error


def in_chunks(function: Callable[[int], R], count: int, name: str) -> list[R]:
    """Return what a function makes of the frames 0..count-1, in order, with a progress bar.

    Args:
        function: prepares a frame; called in several threads.
        count: N.
        name: of the frames.
    """
    chunks = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    results: list[R] = []
    with progress_bar(total=count, desc=f'prepare {name}', unit='frame') as progress:
        for made in map_in_threads(lambda chunk: [function(i) for i in chunk], chunks):
            results += made
            progress.update(len(made))
    return results


def map_in_threads(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yield the results for all items in their order; an error or Ctrl-C drops what is waiting.

    Threads do, because decoding, HHA and rendering all let go of Python's lock.
    """
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS))
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _only_builder(lock: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(file_lock(lock)):
            tqdm.write(f'waiting for another process that prepares frames ({lock})')
            stack.enter_context(file_lock(lock, wait=True))
        yield


def _require_space(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        text = f'only {free / 1e9:.2f} GB are free'
        raise OSError(errno.ENOSPC, text)


def _fill(parts: Sequence[Part], workspace: Path, fill: Fill) -> None:
    arrays = []
    for part in parts:
        path = workspace / part.folder.name
        path.mkdir(parents=True)
        arrays.append(
            {k: _reserve(path / f'{k}.npy', v, part.dtype) for k, v in part.shapes.items()}
        )
    info = json.dumps(fill(parts, arrays))
    for part, out in zip(parts, arrays, strict=True):
        for data in out.values():
            data.flush()
        (workspace / part.folder.name / INFO_NAME).write_text(info)


def _reserve(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.memmap:
    """Make an array whose space is taken; a full disk would kill a writer to a sparse one."""
    data = np.lib.format.open_memmap(path, 'w+', dtype, shape)
    if hasattr(os, 'posix_fallocate'):
        with path.open('r+b') as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return data
