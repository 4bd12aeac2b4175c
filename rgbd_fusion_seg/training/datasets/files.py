"""Reading the files of data sets, so that a damaged one is found and named."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.io.matlab import MatReadError

from rgbd_fusion_seg.depth import stored_to_metres
from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.frame import UNLABELLED, Intrinsics, RgbdFrame
from rgbd_fusion_seg.image_files import read_plane
from rgbd_fusion_seg.training.datasets.base import LabelledFrame

MAT_FAULTS = (
    *(OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError),
    *(MatReadError, zlib.error),
)
"""What scipy raises on .mat files that are damaged, cut short or of another format."""


def read_depth(path: Path, metres_per_unit: float) -> np.ndarray:
    """Read a depth image as float32 (H, W) metres, 0 or non-finite = no reading.

    65535 in 16 bits is no reading either.

    Args:
        path: an image of one channel (PNG, TIFF, …), or a ``.npy`` array.
        metres_per_unit: what its numbers count.

    Raises:
        InputError: the file is absent, damaged, or not of one channel.
    """
    path = Path(path)
    if path.suffix != '.npy':
        return stored_to_metres(read_plane(path), metres_per_unit)
    try:
        depth = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header is read by Python's own parser
        raise InputError(f'{path} is no array that can be read ({error})') from error
    if depth.ndim != 2 or depth.dtype.kind not in 'fui':
        raise InputError(f'{path} is {depth.dtype} {depth.shape}, not numbers (H, W)')
    return stored_to_metres(depth, metres_per_unit)


def read_lines(path: Path) -> list[str]:
    """Read a text file as its non-empty lines, stripped.

    Raises:
        InputError: the file is absent or no text.
    """
    try:
        # Editors of Windows begin files with a mark, which is no part of the first line.
        lines = Path(path).read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path} cannot be read ({error}); copy the data set again') from error
    return [line.strip() for line in lines if line.strip()]


def repeated(names: Iterable[str]) -> str:
    """Return the first name that occurs twice, or nothing."""
    return next((name for name, count in Counter(names).items() if count > 1), '')


def labelled_frame(
    rgb: np.ndarray,
    depth: np.ndarray,
    labels: np.ndarray,
    intrinsics: Intrinsics,
    num_classes: int,
    where: object,
    depth_file: object = None,
) -> LabelledFrame:
    """Put a frame together and check it.

    Args:
        rgb: uint8 (H, W, 3).
        depth: float32 (H, W) metres.
        labels: (H, W) integers, 0 .. num_classes - 1 or 255 = void.
        intrinsics: of the colour image.
        num_classes: how many classes there are.
        where: what names the frame to the user, such as the path of its labels.
        depth_file: what names its depth; default: ``where``.

    Raises:
        InputError: sizes that differ, or labels that are no classes.
    """
    if depth.shape != rgb.shape[:2]:
        raise InputError(
            f'{depth_file or where}: depth is {depth.shape[1]}x{depth.shape[0]} but colour is '
            f'{rgb.shape[1]}x{rgb.shape[0]}; give depth that was brought to the pixels of colour '
            '(registered)'
        )
    if labels.shape != rgb.shape[:2]:
        raise InputError(
            f'{where}: labels are {labels.shape[1]}x{labels.shape[0]} but colour is '
            f'{rgb.shape[1]}x{rgb.shape[0]}; both must show the same pixels'
        )
    strange = labels[(labels >= num_classes) & (labels != UNLABELLED)]
    if strange.size:
        raise InputError(
            f'{where}: {strange.size} pixels have labels that are no class, such as '
            f'{int(strange[0])}; labels must be 0..{num_classes - 1} or {UNLABELLED} for void'
        )
    try:
        frame = RgbdFrame(rgb, depth, intrinsics)
    except FrameError as error:
        raise InputError(f'{where}: {error}') from error
    return LabelledFrame(frame, labels.astype(np.uint8, copy=False))


def identity(paths: Iterable[Path]) -> str:
    """Return a hash of the files' names, sizes and times of change; contents are not read."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = path.stat()
            text = f'{path.name} {status.st_size} {status.st_mtime_ns}\n'
        except OSError:
            text = f'{path.name} absent\n'
        digest.update(text.encode())
    return digest.hexdigest()
