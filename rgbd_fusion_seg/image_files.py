"""Images as files, in the numbers they store, so that a damaged one is found and named."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np

from rgbd_fusion_seg.errors import InputError

_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8'
_JPEG_SCAN, _JPEG_END = b'\xff\xda', b'\xff\xd9'
_PALETTE, _GREY = 3, 0
AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
"""How to decode colour: not turned as a tag may ask, for depth and labels are not either."""
_PNG_BITS = 24
"""Where the header of a PNG has the bits of a channel."""


def read_rgb(path: Path) -> np.ndarray:
    """Read a colour image as uint8 (H, W, 3) RGB.

    Raises:
        InputError: the file is absent, cut short or no image.
    """
    return cv2.cvtColor(_decode(_whole(path), AS_STORED, path), cv2.COLOR_BGR2RGB)


def read_plane(path: Path) -> np.ndarray:
    """Read an image of one channel, such as depth or labels, in the numbers it stores.

    A PNG with a palette gives its indices, which is what label tools store there; one of fewer
    than 8 bits, such as a mask of two classes, gives its numbers, too.

    Returns:
        (H, W) of the type that it stores, such as uint8 or uint16.

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


def read_labels(path: Path) -> np.ndarray:
    """Read a label image in the numbers it stores, see `read_plane`.

    Returns:
        uint8 or uint16 (H, W).

    Raises:
        InputError: as `read_plane`, or the image does not hold integers.
    """
    values = read_plane(path)
    if values.dtype.kind != 'u':
        raise InputError(f'{path} holds {values.dtype}; save labels as an 8 or 16-bit PNG')
    return values


def _whole(path: Path) -> bytes:
    """Read a file and check that an image in it is not cut short, which decoders tolerate."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f'{path} is missing; copy it again, or take it out of the list that names it'
        ) from error
    except OSError as error:
        raise InputError(f'{path} cannot be read ({error}); check the disk') from error
    if data.startswith(_PNG):
        whole = _png_is_whole(data)
    elif data.startswith(_JPEG):
        whole = _jpeg_is_whole(data)
    else:
        whole = len(data) > 0
    if not whole:
        raise InputError(f'{path} is cut short or damaged; copy it again')
    return data


def _jpeg_is_whole(data: bytes) -> bool:
    """Look for the end behind the header, where a thumbnail has an end of its own.

    Cameras and tools may pad a file; inside a scan the two bytes never occur.
    """
    at = len(_JPEG)
    while data[at : at + 1] == b'\xff' and data[at : at + 2] != _JPEG_SCAN:
        filled = data[at + 1 : at + 2] == b'\xff'
        at += 1 if filled else 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
    return _JPEG_END in data[at:]


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
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:  # a header that tells of more pixels than OpenCV takes
        image = None
    if image is None:
        raise InputError(f'{path} is no image that can be read; copy it again')
    return image
