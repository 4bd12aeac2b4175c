"""Frames that are labelled from one sensor alone: what stands for the other one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np

from rgbd_fusion_seg.depth import grey_picture
from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.frame import Intrinsics

ReadImage = Callable[[], np.ndarray]


def read_images(
    read_color: ReadImage | None, read_depth: ReadImage | None, only: str
) -> tuple[np.ndarray, np.ndarray]:
    """Read the two images of a frame.

    Where it is labelled from one sensor alone, the other one's image is for people to look at:
    if it is absent, unusable or of another size, depth has no reading and colour is a grey picture
    of depth, as in the node.

    Args:
        read_color: returns uint8 (H, W, 3) RGB; None where there is no such image.
        read_depth: returns float32 (H, W) metres; None where there is no such image.
        only: the sensor that is labelled from, of `frame.SENSORS`; empty: both are needed.

    Raises:
        FrameError, InputError: as what reads an image that is needed.
    """
    if only == 'rgb':
        rgb = read_color()
        depth = _read_optional(read_depth, rgb.shape[:2])
        return rgb, np.zeros(rgb.shape[:2], np.float32) if depth is None else depth
    if only == 'depth':
        depth = read_depth()
        rgb = _read_optional(read_color, depth.shape)
        return grey_picture(depth) if rgb is None else rgb, depth
    return read_color(), read_depth()


def intrinsics_of(
    rgb: np.ndarray, read: Callable[[int, int], Intrinsics] | None, only: str
) -> Intrinsics:
    """Return what `read` makes of an image's width and height.

    Networks that see colour alone need no intrinsics: recordings of webcams, which seldom have a
    calibration that fits, get those of some camera.

    Args:
        rgb: uint8 (H, W, 3).
        read: may be None where `only` is 'rgb'.
        only: as of :func:`read_images`.

    Raises:
        FrameError: as `read`, unless `only` is 'rgb'.
    """
    height, width = rgb.shape[:2]
    if only != 'rgb':
        return read(width, height)
    with suppress(FrameError):
        found = None if read is None else read(width, height)
        if found is not None and (found.width, found.height) == (width, height):
            return found
    return Intrinsics.of_some_camera(width, height)


def alone_advice(sensor: str) -> str:
    """Return what can be done with a recording of one sensor of `frame.SENSORS`."""
    return f'what is there can be labelled with --only {sensor} and a bundle that answers from it'


def _read_optional(read: ReadImage | None, size: tuple[int, ...]) -> np.ndarray | None:
    if read is None:
        return None
    try:
        image = read()
    except (FrameError, InputError):
        return None
    return image if image.shape[:2] == size else None
