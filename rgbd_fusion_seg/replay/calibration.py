"""Camera calibration files: OpenCV or ROS YAML, or a text file with a 3x3 camera matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.image_decoding import numbers_of_info
from rgbd_fusion_seg.yaml_text import parse_yaml

_MATRIX_KEYS = ('camera_matrix', 'cameraMatrix', 'k', 'K', 'intrinsics')
_PROJECTION_KEYS = ('projection_matrix', 'p', 'P')
_WIDTH_KEYS = ('image_width', 'width')
_HEIGHT_KEYS = ('image_height', 'height')
_ROI_KEYS = ('x_offset', 'y_offset', 'width', 'height')


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
    camera_calibration write them, or a printed ``CameraInfo`` (``width``, ``height``, ``k``); the
    projection matrix, binning and region of interest count as `intrinsics_from_info` says.
    Anything else: text with 9 numbers, row-major.

    Raises:
        InputError: unreadable, no camera matrix in it, or values that are no numbers.
    """
    try:
        text = path.read_text(encoding='utf-8')
        if path.suffix.lower() in ('.yaml', '.yml'):
            return _from_yaml(text, path)
        return _from_matrix(np.array(text.split(), dtype=np.float64), path)
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise InputError(f'the calibration file {path} cannot be read: {reason}') from error


def _from_yaml(text: str, path: Path) -> Calibration:
    # OpenCV writes a header and tags that are not YAML 1.1, and ros2 topic echo a final ---.
    text = re.sub(r'\A%YAML.*\n|!![\w-]+', '', text)
    card = parse_yaml(text, first=True)
    if not isinstance(card, dict):
        raise InputError(f'the calibration file {path} is not a YAML mapping')
    k = _matrix(card, _MATRIX_KEYS, 'camera', 9, path)
    if k is None:
        raise InputError(f'the calibration file {path} has no camera_matrix')
    p = _matrix(card, _PROJECTION_KEYS, 'projection', 12, path)
    roi = card.get('roi') or {}
    if not isinstance(roi, dict):
        raise InputError(f'the roi in {path} must be a mapping, it has {roi!r}')
    info = SimpleNamespace(
        k=k,
        p=np.zeros(12) if p is None else p,
        width=_pixels(card, _WIDTH_KEYS, path),
        height=_pixels(card, _HEIGHT_KEYS, path),
        binning_x=_pixels(card, ('binning_x',), path),
        binning_y=_pixels(card, ('binning_y',), path),
        roi=SimpleNamespace(**{key: _pixels(roi, (key,), path) for key in _ROI_KEYS}),
    )
    fx, fy, cx, cy, width, height = numbers_of_info(info)
    return Calibration(fx, fy, cx, cy, width or None, height or None)


def _matrix(
    card: Mapping[str, Any], keys: tuple[str, ...], name: str, size: int, path: Path
) -> np.ndarray | None:
    """Return the numbers of a matrix, row by row; None where the card has none."""
    matrix = _first(card, keys)
    if isinstance(matrix, dict):
        matrix = matrix.get('data')
    if matrix is None:
        return None
    try:
        numbers = np.asarray(matrix, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        raise InputError(
            f'the {name} matrix in {path} must be a list of {size} numbers, row by row'
        ) from None
    if numbers.size != size:
        raise InputError(
            f'the {name} matrix in {path} must have {size} numbers, it has {numbers.size}'
        )
    return numbers


def _from_matrix(k: np.ndarray, path: Path) -> Calibration:
    if k.size != 9:
        raise InputError(f'the camera matrix in {path} must have 9 numbers, it has {k.size}')
    return Calibration(float(k[0]), float(k[4]), float(k[2]), float(k[5]))


def _pixels(card: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> int:
    """Return a number of pixels, 0 where the card has none."""
    value = _first(card, keys)
    if value is None:
        return 0
    if isinstance(value, bool) or not re.fullmatch(r'\d+(\.0*)?', str(value)):
        what = 'image size' if keys in (_WIDTH_KEYS, _HEIGHT_KEYS) else keys[0]
        raise InputError(f'the {what} in {path} must be whole numbers of pixels, it has {value!r}')
    return int(float(value))


def _first(card: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((card[key] for key in keys if key in card), None)
