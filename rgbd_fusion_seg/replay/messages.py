"""Image messages as they lie in bags, raw, compressed or disparity, to colour and depth arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from rgbd_fusion_seg.compressed_images import decompress_color, decompress_depth
from rgbd_fusion_seg.depth import depth_to_metres
from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.image_decoding import (
    decode_image,
    depth_from_disparity,
    stamp_to_ns,
    to_rgb,
)

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
DISPARITY_IMAGE = 'stereo_msgs/msg/DisparityImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'

LABEL_ENCODINGS = ('mono8', '8UC1', 'mono16', '16UC1')


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
    return decompress_color(message, topic)


def depth_from_message(message: Any, topic: str) -> np.ndarray:
    """Decode depth: an ``Image``, ``CompressedImage`` (PNG, RVL), ``DisparityImage``.

    Returns:
        float32 (H, W) metres; 0 or non-finite = no reading.

    Raises:
        FrameError: an unknown encoding, damaged or truncated data.
    """
    if hasattr(message, 'encoding'):
        image = np.ascontiguousarray(decode_image(message, topic))
        return depth_to_metres(image, message.encoding)
    if hasattr(message, 'min_disparity'):
        return depth_from_disparity(message, topic)
    depth = decompress_depth(message, topic)
    return depth_to_metres(depth, '16UC1' if depth.dtype == np.uint16 else '32FC1')


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
