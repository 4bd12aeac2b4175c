"""Image messages as they lie in bags, raw and compressed, to colour and depth arrays."""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np

from rgbd_fusion_seg.depth import depth_to_metres
from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.image_decoding import decode_image, stamp_to_ns, to_rgb
from rgbd_fusion_seg.image_files import AS_STORED

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'

LABEL_ENCODINGS = ('mono8', '8UC1', 'mono16', '16UC1')

# compressed_depth_image_transport puts an int32 and two float32 before the PNG.
_DEPTH_HEADER = struct.Struct('<iff')


def stamp_ns(message: Any) -> int:
    """Return the header's stamp in nanoseconds."""
    return stamp_to_ns(message.header.stamp)


def color_from_message(message: Any, topic: str) -> np.ndarray:
    """Decode a colour ``Image`` or ``CompressedImage`` (JPEG, PNG): uint8 (H, W, 3) RGB.

    Raises:
        FrameError: an unknown encoding, damaged or truncated data.
    """
    if hasattr(message, 'encoding'):
        return to_rgb(decode_image(message, topic), message.encoding, topic)
    if 'compresseddepth' in message.format.lower():
        raise FrameError(f'{topic} holds compressed depth, not colour; name the colour topic')
    return cv2.cvtColor(_imdecode(message.data, AS_STORED, topic), cv2.COLOR_BGR2RGB)


def depth_from_message(message: Any, topic: str) -> np.ndarray:
    """Decode a depth ``Image`` or a PNG ``CompressedImage``: float32 (H, W) metres.

    Compressed depth is that of compressed_depth_image_transport: 16UC1 as it is, 32FC1 as
    quantised inverse depth; a plain 16-bit PNG is read as 16UC1.

    Raises:
        FrameError: an unknown encoding or compression, damaged or truncated data.
    """
    if hasattr(message, 'encoding'):
        image = np.ascontiguousarray(decode_image(message, topic))
        return depth_to_metres(image, message.encoding)
    kind = message.format.lower()
    if 'rvl' in kind:
        raise FrameError(
            f'{topic} is compressed by RVL, which is not read here; record the raw topic or '
            'set the transport to png'
        )
    if 'compresseddepth' not in kind:
        return depth_to_metres(_sixteen_bits(message.data, topic), '16UC1')
    if len(message.data) <= _DEPTH_HEADER.size:
        raise FrameError(f'{topic} is truncated: it has {len(message.data)} bytes')
    _, quant_a, quant_b = _DEPTH_HEADER.unpack_from(message.data)
    image = _sixteen_bits(message.data[_DEPTH_HEADER.size :], topic)
    if '32fc1' not in kind:
        return depth_to_metres(image, '16UC1')
    inverse = image.astype(np.float32)
    depth = np.zeros_like(inverse)
    with np.errstate(divide='ignore'):
        np.divide(np.float32(quant_a), inverse - np.float32(quant_b), out=depth, where=image > 0)
    return depth


def labels_from_message(message: Any, topic: str) -> np.ndarray:
    """Decode an ``Image`` of class ids: uint8 or uint16 (H, W).

    Raises:
        FrameError: an encoding of something else, or truncated data.
    """
    if message.encoding not in LABEL_ENCODINGS:
        raise FrameError(
            f'{topic} has the encoding {message.encoding!r}, which holds no class ids; name a '
            f'topic with one of {", ".join(LABEL_ENCODINGS)}'
        )
    return np.ascontiguousarray(decode_image(message, topic))


def _sixteen_bits(data: np.ndarray, topic: str) -> np.ndarray:
    image = _imdecode(data, cv2.IMREAD_UNCHANGED, topic)
    if image.dtype != np.uint16 or image.ndim != 2:
        raise FrameError(
            f'{topic} holds {image.dtype} images of shape {image.shape}, not 16-bit depth; '
            'name the depth topic'
        )
    return image


def _imdecode(data: np.ndarray, flags: int, topic: str) -> np.ndarray:
    image = cv2.imdecode(np.asarray(data), flags) if len(data) else None
    if image is None:
        raise FrameError(f'{topic} has compressed data that is no image ({len(data)} bytes)')
    return image
