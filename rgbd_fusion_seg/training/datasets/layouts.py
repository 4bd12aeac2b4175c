"""What readers of official layouts share: complete sets, stored numbers, label tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rgbd_fusion_seg import image_files
from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.frame import Intrinsics

UNKNOWN = 254
"""Entry of a label table for a value that the data set does not define."""
MOST_NAMED = 10
"""Of what is missing an error names so many."""


class IncompleteError(InputError):
    """A split of which files are missing.

    Args:
        message: for the user.
        source: the reader, with the frames that are complete.
    """

    def __init__(self, message: str, source: Any) -> None:
        super().__init__(message)
        self.source = source


def first_of(missing: Sequence[object]) -> str:
    """Return the first names of what is missing, and how many more there are."""
    more = len(missing) - MOST_NAMED
    named = ', '.join(map(str, missing[:MOST_NAMED]))
    return f'{named} and {more} more' if more > 0 else named


def require_files(paths: Iterable[Path], what: str, remedy: str) -> None:
    """Refuse a set of which files are missing.

    Args:
        paths: the files.
        what: what they make up, for the message.
        remedy: ends that message; what brings them.

    Raises:
        InputError: telling how many are missing of how many, and the first ones.
    """
    paths = list(paths)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f'{what} lacks {len(missing)} of {len(paths)} files: {first_of(missing)}; {remedy}'
        )


def require_size(image: np.ndarray, path: Path, size: tuple[int, int], remedy: str) -> None:
    """Refuse an image of another width and height.

    Raises:
        InputError: naming both sizes.
    """
    height, width = image.shape[:2]
    if (width, height) != size:
        raise InputError(
            f'{path} is {width}x{height} where {size[0]}x{size[1]} is expected; {remedy}'
        )


def read_16bit(path: Path, remedy: str) -> np.ndarray:
    """Return uint16 (H, W), a depth or disparity image in the numbers it stores.

    Raises:
        InputError: the file is absent, cut short, or not one channel of 16 bits.
    """
    image = image_files.read_plane(path)
    if image.dtype != np.uint16:
        raise InputError(f'{path} has {image.dtype.itemsize * 8} bits a pixel, not 16; {remedy}')
    return image


def read_camera(path: Path, rows: int, size: tuple[int, int], remedy: str) -> Intrinsics:
    """Read intrinsics from a camera matrix in a text file.

    Args:
        path: a matrix of 3x3 or 4x4 numbers, row by row.
        rows: 3 or 4.
        size: width and height of the images it belongs to.
        remedy: ends the message of an error.

    Raises:
        InputError: the file is missing or holds something else.
    """
    try:
        numbers = np.array(path.read_text().split(), dtype=np.float64)
    except (OSError, ValueError):
        raise InputError(f'{path} is missing or holds no numbers; {remedy}') from None
    if numbers.size != rows * rows:
        raise InputError(f'{path} has {numbers.size} numbers, not {rows * rows}; {remedy}')
    try:
        return Intrinsics.from_matrix(numbers.reshape(rows, rows)[:3, :3], *size)
    except FrameError as error:
        raise InputError(f'{path} is no camera matrix ({error}); {remedy}') from None


def relabel(ids: np.ndarray, table: np.ndarray, where: Path | str, remedy: str) -> np.ndarray:
    """Map the values of a label image to classes.

    Args:
        ids: integers (H, W), 0 or above.
        table: uint8; entry i is the class of value i, `UNLABELLED` or `UNKNOWN`.
        where: the file `ids` come from, for the message.
        remedy: ends that message.

    Returns:
        uint8 (H, W).

    Raises:
        InputError: a value that the table lacks or calls `UNKNOWN`.
    """
    known = np.flatnonzero(table != UNKNOWN)
    if int(ids.max()) < len(table):
        labels = table[ids]
        if len(known) == len(table) or not (labels == UNKNOWN).any():
            return labels
    unknown = np.setdiff1d(ids, known)
    count = np.count_nonzero(ids == unknown[0])
    raise InputError(f'{where} has the unknown label {unknown[0]} on {count} pixels; {remedy}')
