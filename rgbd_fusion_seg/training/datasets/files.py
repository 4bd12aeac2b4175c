"""Reading the files of data sets, so that a damaged one is found and named."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from scipy.io.matlab import MatReadError

from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.frame import UNLABELLED, Intrinsics, RgbdFrame
from rgbd_fusion_seg.training.datasets.base import LabelledFrame

MAT_FAULTS = (
    *(OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError),
    *(MatReadError, zlib.error),
)
"""What scipy raises on .mat files that are damaged, cut short or of another format."""

_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8'
_JPEG_END = b'\xff\xd9'
_PALETTE, _GREY = 3, 0
_PNG_BITS = 24
"""Where the header of a PNG has the bits of a channel."""


def read_rgb(path: Path) -> np.ndarray:
    """Read a colour image as uint8 (H, W, 3) RGB.

    Raises:
        InputError: the file is absent, cut short or no image.
    """
    return cv2.cvtColor(_decode(_whole(path), cv2.IMREAD_COLOR, path), cv2.COLOR_BGR2RGB)


def read_plane(path: Path) -> np.ndarray:
    """Read an image of one channel, such as depth or labels, in the numbers it stores.

    A PNG with a palette gives its indices, which is what label tools store there; one of fewer
    than 8 bits, such as a mask of two classes, gives its numbers, too.

    Returns:
        uint8 or uint16 (H, W).

    Raises:
        InputError: the file is absent, cut short, no image, or has several channels.
    """
    data = _indices_as_grey(_whole(path))
    image = _decode(data, cv2.IMREAD_UNCHANGED, path)
    if image.ndim != 2:
        raise InputError(
            f'{path} has {image.shape[2]} channels; depth and labels are images of one channel'
        )
    if data.startswith(_PNG) and (bits := data[_PNG_BITS]) < 8:
        # Decoders spread fewer than 8 bits over all grey levels.
        image //= 255 // (2**bits - 1)
    return image


def read_depth(path: Path, metres_per_unit: float) -> np.ndarray:
    """Read a depth image as float32 (H, W) metres, 0 or non-finite = no reading.

    Args:
        path: an image of one channel (PNG, TIFF, …), or a ``.npy`` array.
        metres_per_unit: what its numbers count.

    Raises:
        InputError: the file is absent, damaged, or not of one channel.
    """
    path = Path(path)
    if path.suffix != '.npy':
        return read_plane(path).astype(np.float32) * np.float32(metres_per_unit)
    try:
        depth = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header is read by Python's own parser
        raise InputError(f'{path} is no array that can be read ({error})') from error
    if depth.ndim != 2 or depth.dtype.kind not in 'fui':
        raise InputError(f'{path} is {depth.dtype} {depth.shape}, not numbers (H, W)')
    return depth.astype(np.float32) * np.float32(metres_per_unit)


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
) -> LabelledFrame:
    """Put a frame together and check it.

    Args:
        rgb: uint8 (H, W, 3).
        depth: float32 (H, W) metres.
        labels: (H, W) integers, 0 .. num_classes - 1 or 255 = void.
        intrinsics: of the colour image.
        num_classes: how many classes there are.
        where: what names the frame to the user, such as the path of its labels.

    Raises:
        InputError: sizes that differ, or labels that are no classes.
    """
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


def _whole(path: Path) -> bytes:
    """Read a file and check that an image in it is not cut short, which decoders tolerate."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f'{path} is missing; copy the data set again, or take its frame out of the split'
        ) from error
    except OSError as error:
        raise InputError(f'{path} cannot be read ({error}); check the disk') from error
    if data.startswith(_PNG):
        whole = _png_is_whole(data)
    elif data.startswith(_JPEG):
        # Cameras and tools may pad a file; inside a scan these two bytes never occur.
        whole = _JPEG_END in data[-1024:]
    else:
        whole = len(data) > 0
    if not whole:
        raise InputError(f'{path} is cut short or damaged; copy it again')
    return data


def _png_is_whole(data: bytes) -> bool:
    at = len(_PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], 'big')
        body = data[at + 4 : at + 8 + length]
        checksum = data[at + 8 + length : at + 12 + length]
        if zlib.crc32(body) != int.from_bytes(checksum, 'big') or len(checksum) < 4:
            return False
        if body[:4] == b'IEND':
            return True
        at += 12 + length
    return False


def _indices_as_grey(data: bytes) -> bytes:
    """Return a PNG of palette indices as one of grey levels; decoders apply the palette."""
    header = data[16:29]
    if not data.startswith(_PNG) or header[9] != _PALETTE:
        return data
    header = header[:9] + bytes([_GREY]) + header[10:]
    start = data[:16] + header + zlib.crc32(b'IHDR' + header).to_bytes(4, 'big')
    chunks, at = [], 33
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], 'big')
        if data[at + 4 : at + 8] in (b'IDAT', b'IEND'):
            chunks.append(data[at:end])
        at = end
    return start + b''.join(chunks)


def _decode(data: bytes, flag: int, path: Path) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if image is None:
        raise InputError(f'{path} is no image that can be read; copy it again')
    return image
