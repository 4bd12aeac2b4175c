"""What ``sensor_msgs/CompressedImage`` holds: JPEG or PNG colour, PNG or RVL depth.

The live node and the bag reader both decode here. The formats are those of image_transport's
plugins ``compressed`` and ``compressedDepth``.
"""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np

from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.image_files import AS_STORED
from rgbd_fusion_seg.rvl import unpack_rvl

# compressed_depth_image_transport puts an int32 and two float32 before the data, and columns and
# rows before those of RVL.
_DEPTH_HEADER = struct.Struct('<iff')
_RVL_SIZE = struct.Struct('<II')
_LARGEST_SIDE = 1 << 14


def decompress_color(message: Any, what: str = 'colour image') -> np.ndarray:
    """Decode compressed colour.

    Args:
        message: a ``sensor_msgs/CompressedImage`` or any object with the same fields; its data
            any bytes-like object.
        what: name of the image in error messages, such as a topic.

    Returns:
        uint8 (H, W, 3) RGB, C-contiguous.

    Raises:
        FrameError: depth, a Bayer mosaic, or data that is no image.
    """
    encoding, _, compression = message.format.lower().partition(';')
    if 'compresseddepth' in compression:
        raise FrameError(f'{what} holds compressed depth, not colour; name the colour topic')
    if encoding.startswith('bayer'):
        raise FrameError(
            f'{what} holds a Bayer mosaic ({encoding}), not colour; name a topic that image_proc '
            'made of it'
        )
    image = _imdecode(_bytes(message), AS_STORED, what)
    # image_transport has always made its files of BGR since it says so; what says otherwise was
    # made of RGB, whose channels then lie in each other's place.
    of_rgb = encoding.startswith(('rgb', 'bgr')) and 'compressed bgr' not in compression
    return image if compression and of_rgb else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decompress_depth(message: Any, what: str = 'depth image') -> np.ndarray:
    """Decode compressed depth.

    Args:
        message: as for :func:`decompress_color`. Of ``compressedDepth``, PNG or RVL, 16UC1 is
            stored as it is, 32FC1 as quantised inverse depth; a plain 16-bit PNG is 16UC1.
        what: name of the image in error messages, such as a topic.

    Returns:
        (H, W), C-contiguous: uint16 millimetres, or float32 metres where 32FC1 was compressed;
        0 = no reading.

    Raises:
        FrameError: colour, data that is no image or truncated.
    """
    kind = message.format.lower()
    data = _bytes(message)
    if 'compresseddepth' not in kind:
        return _sixteen_bits(data, what)
    if len(data) <= _DEPTH_HEADER.size:
        raise FrameError(f'{what} is truncated: it has {len(data)} bytes')
    _, quant_a, quant_b = _DEPTH_HEADER.unpack_from(data)
    unpack = _unpack_rvl if 'rvl' in kind else _sixteen_bits
    image = unpack(data[_DEPTH_HEADER.size :], what)
    if '32fc1' not in kind:
        return image
    inverse = image.astype(np.float32)
    depth = np.zeros_like(inverse)
    with np.errstate(divide='ignore'):
        np.divide(np.float32(quant_a), inverse - np.float32(quant_b), out=depth, where=image > 0)
    return depth


def _bytes(message: Any) -> np.ndarray:
    return np.frombuffer(message.data, np.uint8)


def _unpack_rvl(data: np.ndarray, what: str) -> np.ndarray:
    try:
        width, height = _RVL_SIZE.unpack_from(data) if len(data) >= _RVL_SIZE.size else (0, 0)
        if not 0 < min(width, height) <= max(width, height) <= _LARGEST_SIDE:
            raise FrameError(f'its size is {width}x{height}')
        return unpack_rvl(data[_RVL_SIZE.size :], width * height).reshape(height, width)
    except FrameError as error:
        raise FrameError(
            f'{what} has RVL data that is no image ({len(data)} bytes): {error}'
        ) from error


def _sixteen_bits(data: np.ndarray, what: str) -> np.ndarray:
    image = _imdecode(data, cv2.IMREAD_UNCHANGED, what)
    if image.dtype != np.uint16 or image.ndim != 2:
        raise FrameError(
            f'{what} holds {image.dtype} images of shape {image.shape}, not 16-bit depth; '
            'name the depth topic'
        )
    return image


def _imdecode(data: np.ndarray, flags: int, what: str) -> np.ndarray:
    try:
        image = cv2.imdecode(data, flags) if len(data) else None
    except cv2.error:  # a header that claims more pixels than OpenCV reads
        image = None
    if image is None:
        raise FrameError(f'{what} has compressed data that is no image ({len(data)} bytes)')
    return image
