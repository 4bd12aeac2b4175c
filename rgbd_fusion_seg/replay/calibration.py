"""Camera calibration files: OpenCV or ROS YAML, or a text file with a 3x3 camera matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.yaml_text import parse_yaml

_MATRIX_KEYS = ('camera_matrix', 'cameraMatrix', 'k', 'K', 'intrinsics')
_WIDTH_KEYS = ('image_width', 'width')
_HEIGHT_KEYS = ('image_height', 'height')


@dataclass(frozen=True, slots=True)
class Calibration:
    """Focal lengths and principal point in pixels, and the image size where the source has it."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int | None = None
    height: int | None = None

    def intrinsics(self, width: int, height: int) -> Intrinsics:
        """Return intrinsics for an image of this size, or of the source's own size if it has one.

        Raises:
            FrameError: values that no camera has.
        """
        return Intrinsics(
            self.fx, self.fy, self.cx, self.cy, self.width or width, self.height or height
        )


def parse_calibration(text: str) -> Calibration:
    """Read ``fx,fy,cx,cy`` in pixels, as given on a command line.

    Raises:
        InputError: not four numbers.
    """
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(','))
    except ValueError:
        raise InputError(
            f'intrinsics are four numbers fx,fy,cx,cy in pixels, got {text!r}'
        ) from None
    return Calibration(fx, fy, cx, cy)


def load_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    ``.yaml``/``.yml``: ``image_width``, ``image_height``, ``camera_matrix`` as OpenCV and ROS'
    camera_calibration write them, or a printed ``CameraInfo`` (``width``, ``height``, ``k``).
    Anything else: text with 9 numbers, row-major.

    Raises:
        InputError: unreadable, no camera matrix in it, or values that are no numbers.
    """
    try:
        text = path.read_text(encoding='utf-8')
        if path.suffix in ('.yaml', '.yml'):
            return _from_yaml(text, path)
        return _from_matrix(np.array(text.split(), dtype=np.float64), None, None, path)
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise InputError(f'the calibration file {path} cannot be read: {reason}') from error


def _from_yaml(text: str, path: Path) -> Calibration:
    # OpenCV writes a header and tags that are not YAML 1.1, and ros2 topic echo a final ---.
    text = re.sub(r'\A%YAML.*\n|!![\w-]+', '', text)
    card = parse_yaml(text, first=True)
    if not isinstance(card, dict):
        raise InputError(f'the calibration file {path} is not a YAML mapping')
    matrix = _first(card, _MATRIX_KEYS)
    if isinstance(matrix, dict):
        matrix = matrix.get('data')
    if matrix is None:
        raise InputError(f'the calibration file {path} has no camera_matrix')
    try:
        numbers = np.asarray(matrix, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        raise InputError(
            f'the camera matrix in {path} must be a list of 9 numbers, row by row'
        ) from None
    width, height = (_pixels(card, keys, path) for keys in (_WIDTH_KEYS, _HEIGHT_KEYS))
    return _from_matrix(numbers, width, height, path)


def _from_matrix(k: np.ndarray, width: int | None, height: int | None, path: Path) -> Calibration:
    if k.size != 9:
        raise InputError(f'the camera matrix in {path} must have 9 numbers, it has {k.size}')
    return Calibration(float(k[0]), float(k[4]), float(k[2]), float(k[5]), width, height)


def _pixels(card: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> int | None:
    value = _first(card, keys)
    if value is None:
        return None
    if isinstance(value, bool) or not re.fullmatch(r'\d+(\.0*)?', str(value)):
        raise InputError(
            f'the image size in {path} must be whole numbers of pixels, it has {value!r}'
        )
    return int(float(value))


def _first(card: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((card[key] for key in keys if key in card), None)
