"""What ``Image``, ``DisparityImage`` and ``CameraInfo`` hold, as arrays and intrinsics.

The live node and the bag reader both decode here, so that they agree on every encoding.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.frame import Intrinsics

LAYOUTS: dict[str, tuple[type[np.generic], int]] = {
    'rgb8': (np.uint8, 3),
    'bgr8': (np.uint8, 3),
    'rgba8': (np.uint8, 4),
    'bgra8': (np.uint8, 4),
    'mono8': (np.uint8, 1),
    '8UC1': (np.uint8, 1),
    '8UC3': (np.uint8, 3),
    '16UC1': (np.uint16, 1),
    'mono16': (np.uint16, 1),
    '32FC1': (np.float32, 1),
}
"""Encoding (names of ``sensor_msgs/image_encodings``) -> element type and channels."""

_TO_RGB = {
    'bgr8': cv2.COLOR_BGR2RGB,
    # OpenCV's own name of a matrix type, so it has OpenCV's channel order.
    '8UC3': cv2.COLOR_BGR2RGB,
    'rgba8': cv2.COLOR_RGBA2RGB,
    'bgra8': cv2.COLOR_BGRA2RGB,
    'mono8': cv2.COLOR_GRAY2RGB,
    '8UC1': cv2.COLOR_GRAY2RGB,
    'mono16': cv2.COLOR_GRAY2RGB,
}
COLOUR_ENCODINGS = ('rgb8', *_TO_RGB)
"""Encodings that :func:`to_rgb` accepts."""


def decode_image(message: Any, what: str = 'image') -> np.ndarray:
    """View the pixels of an image message, without a copy unless the bytes must be swapped.

    Args:
        message: a ``sensor_msgs/Image`` or any object with the same fields, of an encoding of
            :data:`LAYOUTS`; its data any bytes-like object.
        what: name of the image in error messages, such as a topic.

    Returns:
        (H, W) or (H, W, C) array of the encoding's element type in native byte order. It shares
        memory with the message and its rows may be padded: copy before changing or keeping it.

    Raises:
        FrameError: unknown encoding, zero size, a step too small for a row, truncated data.
    """
    encoding, step = message.encoding, message.step
    height, width = message.height, message.width
    if encoding not in LAYOUTS:
        raise FrameError(
            f'{what} has the encoding {encoding!r}, which is not supported; '
            f'publish one of {", ".join(LAYOUTS)}'
        )
    if height <= 0 or width <= 0:
        raise FrameError(f'{what} has no pixels: its size is {width}x{height}; check the camera')
    kind, channels = LAYOUTS[encoding]
    dtype = np.dtype(kind)
    row_bytes = width * channels * dtype.itemsize
    if step < row_bytes:
        raise FrameError(
            f'{what} has a step of {step} bytes, but {width} pixels of {encoding} take '
            f'{row_bytes}; fix the publisher of this image'
        )
    view = memoryview(message.data).cast('B')
    # The padding of the last row may be missing; no pixel is lost by that.
    needed = (height - 1) * step + row_bytes
    if view.nbytes < needed:
        raise FrameError(
            f'{what} is truncated: {width}x{height} {encoding} with step {step} takes {needed} '
            f'bytes, but its data has {view.nbytes}; fix the publisher of this image'
        )
    shape: tuple[int, ...] = (height, width)
    strides: tuple[int, ...] = (step, channels * dtype.itemsize)
    if channels > 1:
        shape, strides = (*shape, channels), (*strides, dtype.itemsize)
    stored = dtype.newbyteorder('>' if message.is_bigendian else '<')
    array = np.ndarray(shape, stored, view, strides=strides)
    return array if stored.isnative else array.astype(dtype)


def to_rgb(array: np.ndarray, encoding: str, what: str = 'colour image') -> np.ndarray:
    """Convert a decoded colour or grey image to RGB.

    Args:
        array: as :func:`decode_image` returns it for this encoding.
        encoding: one of :data:`COLOUR_ENCODINGS`; ``8UC3`` is read in OpenCV's order, BGR.
        what: name of the image in error messages.

    Returns:
        uint8 (H, W, 3), C-contiguous; shares memory with ``array`` where that is so already.

    Raises:
        FrameError: the encoding holds no colour or grey values.
    """
    if encoding == 'rgb8':
        return np.ascontiguousarray(array)
    if encoding not in _TO_RGB:
        raise FrameError(
            f'{what} has the encoding {encoding!r}, which is no colour encoding; '
            f'use a topic with one of {", ".join(COLOUR_ENCODINGS)}'
        )
    if encoding == 'mono16':
        array = (array >> 8).astype(np.uint8)
    return cv2.cvtColor(array, _TO_RGB[encoding])


def depth_from_disparity(message: Any, what: str = 'disparity image') -> np.ndarray:
    """Compute the depth that a stereo pair's disparity tells, Z = fT / d.

    Args:
        message: a ``stereo_msgs/DisparityImage`` of ROS 2 (``t``) or ROS 1 (``T``), or any object
            with the same fields. What is less than its ``min_disparity``, or lies outside its
            ``valid_window`` if that lies in the image, is no reading.
        what: name of the image in error messages, such as a topic.

    Returns:
        float32 (H, W) metres along the optical axis of the left camera; 0 = no reading.

    Raises:
        FrameError: no focal length or baseline, another encoding than 32FC1, truncated data.
    """
    image, window = message.image, message.valid_window
    baseline = message.t if hasattr(message, 't') else message.T
    if image.encoding != '32FC1':
        raise FrameError(
            f'{what} has the encoding {image.encoding!r}, but disparity is 32FC1; fix its '
            'publisher'
        )
    if not (0 < message.f < np.inf and 0 < baseline < np.inf):
        raise FrameError(
            f'{what} has a focal length of {message.f:g} pixels and a baseline of {baseline:g} m, '
            'from which no depth follows; calibrate the stereo camera'
        )
    disparity = decode_image(image, what)
    depth = np.zeros(disparity.shape, np.float32)
    right, bottom = window.x_offset + window.width, window.y_offset + window.height
    inside = np.s_[:, :]
    # stereo_image_proc of ROS 2 computes its window before it knows the image's size.
    if window.x_offset < right <= image.width and window.y_offset < bottom <= image.height:
        inside = np.s_[window.y_offset : bottom, window.x_offset : right]
    seen = disparity[inside]
    valid = np.isfinite(seen) & (seen > 0) & (seen >= message.min_disparity)
    np.divide(np.float32(message.f * baseline), seen, out=depth[inside], where=valid)
    return depth


def stamp_to_ns(stamp: Any) -> int:
    """Return a ``builtin_interfaces/Time`` as nanoseconds."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def intrinsics_from_info(info: Any, what: str = 'camera info') -> Intrinsics:
    """Read the pinhole model of a rectified image from its CameraInfo.

    A rectified image is described by the projection matrix P; K describes the raw image before
    rectification. Drivers that publish undistorted images without a rectification leave P zero:
    then K holds for the image as it is. Region of interest and binning are applied, for P and K
    are those of the full sensor (REP 104).

    Args:
        info: a ``sensor_msgs/CameraInfo`` of ROS 2 (``k``, ``p``) or ROS 1 (``K``, ``P``), or
            any object with the same fields.
        what: name of the message in error messages, such as a topic.

    Raises:
        FrameError: zero focal length in both matrices, or no image size.
    """
    try:
        return Intrinsics(*numbers_of_info(info))
    except FrameError as error:
        raise FrameError(f'{what}: {error}') from error


def numbers_of_info(info: Any) -> tuple[float, float, float, float, int, int]:
    """Return those of which `intrinsics_from_info` makes intrinsics, whatever they are.

    Returns:
        fx, fy, cx, cy, width and height in pixels.
    """
    k, p = (info.k, info.p) if hasattr(info, 'k') else (info.K, info.P)
    fx, fy, cx, cy = (p[0], p[5], p[2], p[6]) if p[0] and p[5] else (k[0], k[4], k[2], k[5])
    roi, bin_x, bin_y = info.roi, max(1, info.binning_x), max(1, info.binning_y)
    return (
        float(fx / bin_x),
        float(fy / bin_y),
        float((cx - roi.x_offset) / bin_x),
        float((cy - roi.y_offset) / bin_y),
        (roi.width or info.width) // bin_x,
        (roi.height or info.height) // bin_y,
    )
