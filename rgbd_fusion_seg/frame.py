"""The value types that travel through the package, checked once where they are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import atan, degrees, isfinite

import numpy as np

from rgbd_fusion_seg.errors import FrameError

SENSORS = ('rgb', 'depth')
"""What a frame comes from: a colour camera and a depth sensor."""
SMALLEST_FOCAL, LARGEST_INTRINSIC = 1e-3, 1e6
"""Pixels, far beyond any camera; points computed with more would not be finite."""
UNLABELLED = 255
"""Label of a pixel that has no class; the value ROS consumers and the datasets use for void."""


@dataclass(frozen=True, slots=True)
class Intrinsics:
    """Pinhole camera: focal lengths and principal point in pixels, image size in pixels.

    Pixel (u, v) counts from 0 and names the centre of a pixel, as in ROS ``CameraInfo``.

    Raises:
        FrameError: a focal length or size that is not positive, or a value that is not finite or
            far beyond those of any camera.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self) -> None:
        if not all(isfinite(v) for v in (self.fx, self.fy, self.cx, self.cy)):
            raise FrameError(
                f'camera intrinsics must be finite, got fx={self.fx}, fy={self.fy}, '
                f'cx={self.cx}, cy={self.cy}; check the camera calibration'
            )
        if self.fx <= 0 or self.fy <= 0:
            raise FrameError(
                f'focal lengths must be positive, got fx={self.fx}, fy={self.fy}; the camera '
                'publishes an uncalibrated CameraInfo, so calibrate it or give the intrinsics'
            )
        largest = max(self.fx, self.fy, abs(self.cx), abs(self.cy))
        if min(self.fx, self.fy) < SMALLEST_FOCAL or largest > LARGEST_INTRINSIC:
            raise FrameError(
                f'camera intrinsics are in pixels, with focal lengths from {SMALLEST_FOCAL:g} on '
                f'and nothing beyond {LARGEST_INTRINSIC:g}, got fx={self.fx:g}, fy={self.fy:g}, '
                f'cx={self.cx:g}, cy={self.cy:g}; check the camera calibration'
            )
        if self.width <= 0 or self.height <= 0:
            raise FrameError(
                f'image size must be positive, got {self.width}x{self.height}; '
                'set width and height of the camera info'
            )

    @classmethod
    def from_matrix(cls, matrix: Sequence[float], width: int, height: int) -> Intrinsics:
        """Make intrinsics from a 3x3 camera matrix K (nested or 9 numbers, row-major)."""
        k = np.asarray(matrix, dtype=np.float64).ravel()
        if k.size != 9:
            raise FrameError(f'a camera matrix has 9 numbers, got {k.size}')
        return cls(float(k[0]), float(k[4]), float(k[2]), float(k[5]), int(width), int(height))

    @classmethod
    def of_some_camera(cls, width: int, height: int) -> Intrinsics:
        """Return those of a usual camera, for images whose labels do not depend on them."""
        return cls(width, width, (width - 1) / 2, (height - 1) / 2, width, height)

    @property
    def fields_of_view_deg(self) -> tuple[float, float]:
        """Angles in degrees that an image sees across and down, were it centred on the axis."""
        return (
            degrees(2 * atan(self.width / (2 * self.fx))),
            degrees(2 * atan(self.height / (2 * self.fy))),
        )

    @property
    def matrix(self) -> np.ndarray:
        """float64 (3, 3) camera matrix K."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def resized(self, width: int, height: int) -> Intrinsics:
        """Return the intrinsics of the same view resampled to ``width`` x ``height`` pixels.

        Image corners stay in place, so principal points move by half-pixel centres.
        """
        sx, sy = width / self.width, height / self.height
        return Intrinsics(
            self.fx * sx,
            self.fy * sy,
            (self.cx + 0.5) * sx - 0.5,
            (self.cy + 0.5) * sy - 0.5,
            int(width),
            int(height),
        )

    def scaled(self, s: float) -> Intrinsics:
        """Return the intrinsics of the same view at ``s`` times the resolution."""
        return self.resized(max(1, round(self.width * s)), max(1, round(self.height * s)))


@dataclass(frozen=True, slots=True, eq=False)
class RgbdFrame:
    """One synchronised colour and depth image, depth registered to colour.

    Args:
        rgb: uint8 (H, W, 3), RGB order.
        depth: float32 (H, W), metres along the optical axis; 0 or non-finite = no reading.
        intrinsics: of the colour camera, at this image's size.
        stamp_ns: acquisition time of the colour image in nanoseconds.
        frame_id: optical frame of the colour image.

    Raises:
        FrameError: wrong type, shape or size.
    """

    rgb: np.ndarray
    depth: np.ndarray
    intrinsics: Intrinsics
    stamp_ns: int = 0
    frame_id: str = ''

    def __post_init__(self) -> None:
        _check(self.rgb, 'rgb', np.uint8, 3)
        _check(self.depth, 'depth', np.float32, 2)
        if self.rgb.shape[2] != 3:
            raise FrameError(f'rgb must have 3 channels, got shape {self.rgb.shape}')
        if self.rgb.shape[:2] != self.depth.shape:
            raise FrameError(
                f'colour is {_size(self.rgb)} but depth is {_size(self.depth)}; '
                'publish depth registered to the colour camera'
            )
        if self.rgb.shape[:2] != (self.intrinsics.height, self.intrinsics.width):
            raise FrameError(
                f'colour is {_size(self.rgb)} but the camera info says '
                f'{self.intrinsics.width}x{self.intrinsics.height}; use the camera info that '
                'belongs to this image'
            )


def blank_frame(width: int, height: int) -> RgbdFrame:
    """Return a black frame of a wall one metre away, seen by some camera."""
    rgb = np.zeros((height, width, 3), dtype=np.uint8)
    depth = np.ones((height, width), dtype=np.float32)
    return RgbdFrame(rgb, depth, Intrinsics.of_some_camera(width, height))


def half_frame(frame: RgbdFrame, sensor: str) -> RgbdFrame:
    """Return a frame with the half of one of `SENSORS`; the other is black, or has no reading."""
    lost = 'depth' if sensor == 'rgb' else 'rgb'
    return dataclasses.replace(frame, **{lost: np.zeros_like(getattr(frame, lost))})


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """Labels of one frame, at the size of its colour image.

    Args:
        labels: uint8 (H, W) class ids, 255 = unlabelled.
        confidence: uint8 (H, W), softmax probability of the winning class times 255.
        timings: stage name -> milliseconds.
        stamp_ns, frame_id: those of the frame.
        sensors: those of `SENSORS` that the network saw; empty where nobody tells.
    """

    labels: np.ndarray
    confidence: np.ndarray
    timings: Mapping[str, float] = field(default_factory=dict)
    stamp_ns: int = 0
    frame_id: str = ''
    sensors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self.labels, 'labels', np.uint8, 2)
        _check(self.confidence, 'confidence', np.uint8, 2)
        if self.labels.shape != self.confidence.shape:
            raise FrameError(
                f'labels are {_size(self.labels)} but confidence is {_size(self.confidence)}'
            )


def _check(array: np.ndarray, name: str, dtype: type, ndim: int) -> None:
    if not isinstance(array, np.ndarray):
        raise FrameError(f'{name} must be a numpy array, got {type(array).__name__}')
    if array.dtype != dtype or array.ndim != ndim:
        raise FrameError(
            f'{name} must be {np.dtype(dtype).name} with {ndim} dimensions, '
            f'got {array.dtype.name} with shape {array.shape}'
        )
    if array.size == 0:
        raise FrameError(f'{name} is empty: shape {array.shape}')


def _size(array: np.ndarray) -> str:
    return f'{array.shape[1]}x{array.shape[0]}'
