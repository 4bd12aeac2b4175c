"""Messages to arrays and arrays to messages, without copies where none is needed."""

from __future__ import annotations

import array
import re
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from rgbd_fusion_seg.compressed_images import decompress_color, decompress_depth
from rgbd_fusion_seg.depth import DEPTH_ENCODINGS, depth_to_metres, grey_picture
from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.image_decoding import (
    COLOUR_ENCODINGS,
    decode_image,
    depth_from_disparity,
    stamp_to_ns,
    to_rgb,
)
from rgbd_fusion_seg.ros_environment import cv_bridge_fault

_OUTPUT_ENCODINGS = {
    ('uint8', 2): 'mono8',
    ('uint8', 3): 'rgb8',
    ('uint16', 2): '16UC1',
    ('float32', 2): '32FC1',
}
OtherImage = Any
"""A CompressedImage, or a DisparityImage where stereo_msgs is installed."""
COMPRESSED_SUFFIXES = ('/compressed', '/compressedDepth')
"""What image_transport adds to an image's topic for its compressed copies."""
_COMPRESSED_NAME = re.compile(r'[/_]compressed(_?depth)?$', re.IGNORECASE)
_DISPARITY_NAME = re.compile(r'[/_]disparity$', re.IGNORECASE)


def image_type(topic: str) -> type:
    """Return the type of an image topic, which the end of its name tells.

    It is told by no message, for a subscription needs it before there is a publisher.

    Raises:
        InputError: disparity, but stereo_msgs is not installed.
    """
    if _COMPRESSED_NAME.search(topic):
        return CompressedImage
    if not _DISPARITY_NAME.search(topic):
        return Image
    try:
        from stereo_msgs.msg import DisparityImage
    except ImportError as error:
        raise InputError(
            f'{topic} is read as stereo_msgs/DisparityImage, for its name ends in disparity, but '
            f'that type cannot be imported ({error}); install stereo_msgs with the ROS '
            'distribution, or remap the node to a topic of another name'
        ) from error
    return DisparityImage


def raw_image(msg: Image | OtherImage, sensor: str, topic: str) -> Image:
    """Return an image message of what another kind holds; an ``Image`` as it is.

    Args:
        msg: compressed, see `compressed_images`; or of depth, disparity.
        sensor: of `frame.SENSORS`.
        topic: where it came from, for error messages.

    Raises:
        FrameError: what cannot be read.
    """
    if isinstance(msg, Image):
        return msg
    if isinstance(msg, CompressedImage):
        decompress = decompress_color if sensor == 'rgb' else decompress_depth
        return msg_from_array(decompress(msg, topic), msg.header)
    if sensor == 'rgb':
        raise FrameError(f'{topic} holds disparity, not colour; name the colour topic')
    return msg_from_array(depth_from_disparity(msg, topic), msg.header)


def color_from_msg(msg: Image, topic: str = 'colour image') -> np.ndarray:
    """Read a colour image message.

    Args:
        msg: any encoding of :data:`COLOUR_ENCODINGS`; any other one that cv_bridge converts,
            where cv_bridge is installed.
        topic: where it came from, for error messages.

    Returns:
        uint8 (H, W, 3) RGB, C-contiguous. An unpadded ``rgb8`` message is not copied: the array
        shares the message's memory, so copy it before changing it.

    Raises:
        FrameError: zero size, truncated data, an encoding nobody here can read.
    """
    if msg.encoding in COLOUR_ENCODINGS:
        return to_rgb(decode_image(msg, topic), msg.encoding, topic)
    converted = _cv_bridge_convert(msg, 'rgb8', topic, COLOUR_ENCODINGS)
    return np.ascontiguousarray(converted)


def depth_from_msg(msg: Image, topic: str = 'depth image') -> np.ndarray:
    """Read a depth image message; the encoding alone decides its unit (REP 118).

    Args:
        msg: ``16UC1`` or ``mono16`` in millimetres, ``32FC1`` in metres, and ``64FC1`` where
            cv_bridge is installed.
        topic: where it came from, for error messages.

    Returns:
        float32 (H, W) metres, C-contiguous; 0 or non-finite = no reading. It may share the
        message's memory.

    Raises:
        FrameError: zero size, truncated data, an encoding that is no depth encoding.
    """
    if msg.encoding in DEPTH_ENCODINGS:
        # Contiguous, because compiled kernels specialise on the memory layout: the first padded
        # image would cost a compilation in the middle of a run.
        return depth_to_metres(np.ascontiguousarray(decode_image(msg, topic)), msg.encoding)
    # cv_bridge would turn any number of one channel into a float, whatever its unit.
    if msg.encoding != '64FC1':
        raise FrameError(
            f'{topic} has the encoding {msg.encoding!r}, which cannot be read here; '
            f'publish one of {", ".join(DEPTH_ENCODINGS)}'
        )
    converted = _cv_bridge_convert(msg, '32FC1', topic, DEPTH_ENCODINGS)
    return depth_to_metres(np.ascontiguousarray(converted), '32FC1')


def msg_from_array(pixels: np.ndarray, header: Header) -> Image:
    """Make an image message: uint8 (H, W) mono8, (H, W, 3) rgb8, uint16 16UC1, float32 32FC1.

    Raises:
        FrameError: another dtype or shape.
    """
    encoding = _OUTPUT_ENCODINGS.get((pixels.dtype.name, pixels.ndim))
    if encoding is None or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise FrameError(
            f'an array of {pixels.dtype.name} with shape {pixels.shape} is no image to publish'
        )
    msg = Image(header=header, encoding=encoding)
    msg.height, msg.width = pixels.shape[:2]
    msg.step = msg.width * pixels.itemsize * (3 if pixels.ndim == 3 else 1)
    # array.array filled by frombytes is the one type rclpy takes over without a check of every
    # byte: 0.03 ms for a 640x480 rgb8 image where a bytes or numpy object costs 20 to 40 ms.
    data = array.array('B')
    data.frombytes(memoryview(np.ascontiguousarray(pixels)).cast('B'))
    msg.data = data
    return msg


def msg_from_points(points: np.ndarray, header: Header) -> PointCloud2:
    """Make an organised point cloud message of `POINT` (H, W), see `labelled_points`."""
    height, width = points.shape
    msg = PointCloud2(header=header, height=height, width=width, is_dense=False)
    msg.fields = [
        PointField(
            name=name,
            offset=points.dtype.fields[name][1],
            # Colour is bits in a float by PCL's convention, which RViz and others look for.
            datatype=PointField.FLOAT32 if name in ('x', 'y', 'z', 'rgb') else PointField.UINT32,
            count=1,
        )
        for name in points.dtype.names
    ]
    msg.point_step, msg.row_step = points.itemsize, width * points.itemsize
    msg.is_bigendian = sys.byteorder == 'big'
    data = array.array('B')  # see `msg_from_array`
    data.frombytes(memoryview(np.ascontiguousarray(points).view(np.uint8)).cast('B'))
    msg.data = data
    return msg


def frame_from_msgs(
    color: Image | None,
    depth: Image | None,
    intrinsics: Intrinsics,
    *,
    topics: tuple[str, str] = ('colour image', 'depth image'),
    require_same_frame: bool = True,
    frame_id: str = '',
) -> RgbdFrame:
    """Make a frame of a pair of messages, or of the one that is there.

    Without depth no pixel has a reading; without colour it is a grey picture of depth.

    Args:
        color, depth: the pair, of which one may be None; the frame may share their memory.
        intrinsics: of the colour camera.
        topics: of the two messages, for error messages.
        require_same_frame: refuse a depth image whose frame_id is not the colour image's.
        frame_id: of the colour camera; default: that of colour or, without it, of depth.

    Raises:
        FrameError: an image that cannot be read, sizes or frame_ids that do not match.
    """
    headers = [msg.header for msg in (color, depth) if msg is not None]
    if require_same_frame and headers[0].frame_id != headers[-1].frame_id:
        raise FrameError(
            f'{topics[1]} is in frame {headers[1].frame_id!r} but {topics[0]} is in '
            f'{headers[0].frame_id!r}; publish depth registered to the colour camera, or set '
            'camera.require_same_frame to false if it is registered and only named otherwise'
        )
    rgb = None if color is None else color_from_msg(color, topics[0])
    metres = (
        np.zeros(rgb.shape[:2], np.float32) if depth is None else depth_from_msg(depth, topics[1])
    )
    return RgbdFrame(
        rgb=grey_picture(metres) if rgb is None else rgb,
        depth=metres,
        intrinsics=intrinsics,
        stamp_ns=stamp_to_ns(headers[0].stamp),
        frame_id=frame_id or headers[0].frame_id,
    )


def info_from_intrinsics(intrinsics: Intrinsics, header: Header) -> CameraInfo:
    """Make the CameraInfo of a rectified image, whose K and P say the same."""
    i = intrinsics
    info = CameraInfo(header=header, width=i.width, height=i.height)
    info.distortion_model = 'plumb_bob'
    info.d = [0.0] * 5
    info.k = [i.fx, 0.0, i.cx, 0.0, i.fy, i.cy, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [i.fx, 0.0, i.cx, 0.0, 0.0, i.fy, i.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


def _cv_bridge_convert(
    msg: Image, encoding: str, topic: str, accepted: Iterable[str]
) -> np.ndarray:
    bridge = load_cv_bridge()
    if bridge is None:
        raise FrameError(
            f'{topic} has the encoding {msg.encoding!r}, which is not read without cv_bridge, and '
            f'that {cv_bridge_fault()}; mend that, or publish one of {", ".join(accepted)}'
        )
    if len(msg.data) < max(1, msg.height * msg.step):
        raise FrameError(
            f'{topic} is empty or truncated: {msg.width}x{msg.height} {msg.encoding} with step '
            f'{msg.step} has {len(msg.data)} bytes; fix the publisher of this image'
        )
    try:
        return bridge.imgmsg_to_cv2(msg, desired_encoding=encoding)
    except Exception as error:  # cv_bridge and OpenCV raise a dozen kinds of error
        raise FrameError(
            f'{topic} has the encoding {msg.encoding!r}, which cv_bridge cannot read as '
            f'{encoding}: {error}; publish one of {", ".join(accepted)}'
        ) from error


@cache
def load_cv_bridge() -> Any | None:
    """Return a ``CvBridge``, or None where `cv_bridge_fault` has found one.

    This node then serves the encodings that it reads itself.
    """
    if cv_bridge_fault():
        return None
    from cv_bridge import CvBridge

    return CvBridge()
