"""From a frame to the tensors of the network; training makes its inputs here as well."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from rgbd_fusion_seg import depth as depths
from rgbd_fusion_seg import hha, kernels
from rgbd_fusion_seg.bundle import TensorInput
from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame

FARTHEST_INPUT_M = 100.0
"""Farther readings count as this where a network reads metres; no indoor sensor gets so far, and
a driver's number for "nothing there" must not drown the rest of the image."""


def hha_image(
    depth: np.ndarray,
    intrinsics: Intrinsics,
    width: int,
    height: int,
    gravity: np.ndarray | None = None,
    camera_height: float | None = None,
) -> np.ndarray:
    """Encode a depth image as HHA at the size the network wants.

    Depth is resampled first, so that HHA costs what its size costs; then holes are filled, and
    the filled pixels are kept out of the normals, and out of the search for the floor.

    Args:
        depth: float32 (H, W) metres; 0 and non-finite = no reading. Without any reading at all
            the result is the HHA of depth 0: disparity 255, height the camera's own, angle 218.
        intrinsics: of `depth`.
        width, height: size of the result in pixels.
        gravity: (3,) direction of gravity in optical axes; default: estimated from the image.
        camera_height: metres above the floor; default: guessed, see :func:`hha.encode_hha`.

    Returns:
        uint8 (height, width, 3): disparity, height, angle.
    """
    depth = depths.resize_depth(depth, width, height)
    readings = depths.valid_mask(depth)
    filled = depths.fill_holes(depth)
    resized = intrinsics.resized(width, height)
    return hha.encode_hha(filled, resized, ~readings, gravity, camera_height, readings)


def depth_image(depth: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return depth in metres as a network sees it that reads it without an encoding.

    It is resampled as for HHA, and holes are filled as for HHA: the frames that the papers train
    on are completed beforehand, a 0 would be the nearest surface of all, and each sensor has holes
    of its own. The public CEN code takes its depth images as they are.

    Args:
        depth: float32 (H, W) metres; 0 and non-finite = no reading.
        width, height: size of the result in pixels.

    Returns:
        float32 (height, width), up to FARTHEST_INPUT_M; all 0 without any reading.
    """
    filled = depths.fill_holes(depths.resize_depth(depth, width, height))
    return np.minimum(filled, np.float32(FARTHEST_INPUT_M), out=filled)


def rgb_image(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resample a colour image: area averages when shrinking along both axes, else bilinear.

    Args:
        rgb: uint8 (H, W, 3).
        width, height: size of the result in pixels.

    Returns:
        uint8 (height, width, 3), the image itself where it has this size already.
    """
    if rgb.shape[:2] == (height, width):
        return rgb
    shrinks = height <= rgb.shape[0] and width <= rgb.shape[1]
    return cv2.resize(
        rgb, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def rgb_tensor(
    rgb: np.ndarray, tensor_input: TensorInput, out: np.ndarray | None = None
) -> np.ndarray:
    """Resample and normalise a colour image.

    Args:
        rgb: uint8 (H, W, 3), any size.
        tensor_input: size, mean and standard deviation.
        out: float32 (1, 3, height, width) to write to; new memory costs as much as the work.

    Returns:
        float32 (1, 3, height, width), ``(pixel - mean) / std``.
    """
    return _normalised(rgb_image(rgb, tensor_input.width, tensor_input.height), tensor_input, out)


def hha_tensor(
    image: np.ndarray, tensor_input: TensorInput, out: np.ndarray | None = None
) -> np.ndarray:
    """Normalise an HHA image as :func:`rgb_tensor` does a colour image, without resampling.

    HHA is not resampled: averages of its angles and disparities are those of no surface.

    Raises:
        FrameError: an image of another size.
    """
    size = (tensor_input.height, tensor_input.width, 3)
    if image.shape != size:
        raise FrameError(
            f'the HHA image has shape {image.shape} but the network wants {size}; '
            'make it with hha_image at that size'
        )
    return _normalised(image, tensor_input, out)


def depth_tensor(
    image: np.ndarray, tensor_input: TensorInput, out: np.ndarray | None = None
) -> np.ndarray:
    """Normalise depth in metres and tile it to three channels, without resampling.

    Tiling lets depth enter a network made for colour, and one that shares its convolutions with
    colour (CEN, supplement: the public code feeds three equal channels). Mean and standard
    deviation are of the card, in metres. The recipe of the public code, depth images of 5000
    units a metre over 5000, is mean 0 and std 1.

    Args:
        image: float32 (height, width), see :func:`depth_image`.
        tensor_input: size, mean and standard deviation.
        out: as of :func:`rgb_tensor`.

    Returns:
        float32 (1, 3, height, width), ``(metres - mean) / std``.

    Raises:
        FrameError: an image of another size.
    """
    size = (tensor_input.height, tensor_input.width)
    if image.shape != size:
        raise FrameError(
            f'the depth image has shape {image.shape} but the network wants {size}; '
            'make it with depth_image at that size'
        )
    if out is None:
        out = np.empty((1, 3, *size), dtype=np.float32)
    for channel, mean, std in zip(out[0], tensor_input.mean, tensor_input.std, strict=True):
        np.subtract(image, mean, out=channel)
        np.divide(channel, std, out=channel)
    return out


def network_inputs(frame: RgbdFrame, inputs: Mapping[str, TensorInput]) -> dict[str, np.ndarray]:
    """Return a network's input tensors of a frame by name.

    Args:
        frame: colour and depth.
        inputs: those of `ModelBundle.inputs`.

    Returns:
        float32 (1, 3, height, width) each.
    """
    tensors = {}
    for name, size in inputs.items():
        if name == 'rgb':
            tensors[name] = rgb_tensor(frame.rgb, size)
        elif name == 'hha':
            image = hha_image(frame.depth, frame.intrinsics, size.width, size.height)
            tensors[name] = hha_tensor(image, size)
        else:
            tensors[name] = depth_tensor(depth_image(frame.depth, size.width, size.height), size)
    return tensors


def _normalised(
    image: np.ndarray, tensor_input: TensorInput, out: np.ndarray | None
) -> np.ndarray:
    if out is None:
        out = np.empty((1, 3, *image.shape[:2]), dtype=np.float32)
    values = np.arange(256, dtype=np.float32)
    table = (values - tensor_input.mean[:, None]) / tensor_input.std[:, None]
    kernels.normalize(depths.readable(image, np.uint8), table, out[0])
    return out
