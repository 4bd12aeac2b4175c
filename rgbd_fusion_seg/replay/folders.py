"""RGB-D frames from folders of colour and depth images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.replay.calibration import Calibration, load_calibration

FRAME_ID = 'camera_color_optical_frame'
FIRST_STAMP_NS = 1_000_000_000
"""Stamp of a folder's first frame: one second, for ROS takes 0 as "no time"."""

_COLOR_FOLDERS = ('rgb', 'color', 'colour', 'image', 'images')
_COLOR_SUFFIXES = ('.jpg', '.jpeg', '.png')
_CALIBRATION_NAMES = (
    'camera-intrinsics.txt',
    'intrinsics.txt',
    'intrinsics.yaml',
    'camera_info.yaml',
    'camera.yaml',
)
_LAYOUTS = (
    'NAME.color.jpg beside NAME.depth.png, or folders rgb/ and depth/ with files of equal names'
)
# 7-Scenes and some recorders mark missing depth by the largest value instead of 0.
_SATURATED = 65535


@dataclass(frozen=True, slots=True)
class FrameFiles:
    """Files of one frame: colour image, 16-bit depth PNG, and its own calibration if any."""

    name: str
    color: Path
    depth: Path
    calibration: Path | None = None


class FolderFrames:
    """The RGB-D frames of a folder, in the natural order of their names.

    Two layouts are known: ``NAME.color.jpg`` beside ``NAME.depth.png`` (7-Scenes and the like),
    and folders ``rgb/`` and ``depth/`` with files of equal stems. Calibration comes from the
    argument, or ``calib/NAME.yaml``, or one file for all (``camera-intrinsics.txt``,
    ``intrinsics.yaml``, ``camera_info.yaml`` …).

    Args:
        folder: where the images are.
        calibration: of the colour camera; the folder's own is used where it is None.
        depth_scale_m: metres per unit of the depth images; 0.001 for millimetres.
        rate_hz: frames per second, for the stamps.

    Raises:
        InputError: no such folder, no pairs in it, or no calibration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        calibration: Calibration | None = None,
        depth_scale_m: float = 0.001,
        rate_hz: float = 30.0,
    ) -> None:
        if not rate_hz > 0 or not depth_scale_m > 0:
            raise InputError(
                f'rate and depth scale must be positive, got {rate_hz} and {depth_scale_m}'
            )
        self.folder = Path(folder)
        self.files = list_frames(self.folder)
        self.skipped = 0
        self._depth_scale_m, self._rate_hz = depth_scale_m, rate_hz
        if calibration is None:
            self._calibrations = _calibrations(self.folder, self.files)
        else:
            self._calibrations = [calibration] * len(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[RgbdFrame]:
        """Yield the frames; InputError names the files that cannot be used."""
        for index in range(len(self.files)):
            yield self.read(index)

    def name(self, index: int) -> str:
        """Return the name that the frame's files share."""
        return self.files[index].name

    def read(self, index: int) -> RgbdFrame:
        """Read one frame.

        Raises:
            InputError: an unreadable image, or colour, depth and calibration that do not match.
        """
        files = self.files[index]
        rgb = read_color(files.color)
        depth = read_depth(files.depth, self._depth_scale_m)
        stamp_ns = FIRST_STAMP_NS + round(index * 1e9 / self._rate_hz)
        try:
            intrinsics = self._calibrations[index].intrinsics(rgb.shape[1], rgb.shape[0])
            return RgbdFrame(rgb, depth, intrinsics, stamp_ns, FRAME_ID)
        except FrameError as error:
            raise InputError(f'{files.color} and {files.depth.name}: {error}') from error


def read_frames(
    folder: Path,
    *,
    calibration: Calibration | None = None,
    depth_scale_m: float = 0.001,
    rate_hz: float = 30.0,
) -> Iterator[RgbdFrame]:
    """Yield the frames of a folder; see :class:`FolderFrames`."""
    return iter(
        FolderFrames(folder, calibration=calibration, depth_scale_m=depth_scale_m, rate_hz=rate_hz)
    )


def list_frames(folder: Path) -> list[FrameFiles]:
    """Find the colour and depth images that belong together.

    Raises:
        InputError: no such folder, or no pair of images in it.
    """
    if not folder.is_dir():
        raise InputError(f'there is no folder {folder}; give a folder of images or a bag')
    pairs = _suffixed(folder) or _foldered(folder)
    if not pairs:
        raise InputError(f'{folder} has no pairs of colour and depth images: expected {_LAYOUTS}')
    return sorted(pairs, key=lambda files: _natural(files.name))


def read_color(path: Path) -> np.ndarray:
    """Read a colour image: uint8 (H, W, 3), RGB.

    Raises:
        InputError: not an image.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f'{path} cannot be read as an image; replace or remove it')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_depth(path: Path, depth_scale_m: float = 0.001) -> np.ndarray:
    """Read a 16-bit depth image: float32 (H, W) in metres, 0 = no reading.

    Raises:
        InputError: not an image, or not one of 16 bits and one channel.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise InputError(f'{path} cannot be read as an image; replace or remove it')
    if image.dtype != np.uint16 or image.ndim != 2:
        raise InputError(
            f'{path} is not a depth image: it must have 16 bits and one channel, '
            f'it has {image.dtype} and shape {image.shape}'
        )
    depth = image * np.float32(depth_scale_m)
    depth[image == _SATURATED] = 0
    return depth


def _calibrations(folder: Path, files: list[FrameFiles]) -> list[Calibration]:
    """Load the calibration of every frame: its own, else the one of the whole folder."""
    path = next((folder / n for n in _CALIBRATION_NAMES if (folder / n).is_file()), None)
    common = None if path is None else load_calibration(path)
    found = []
    for frame in files:
        calibration = load_calibration(frame.calibration) if frame.calibration else common
        if calibration is None:
            raise InputError(
                f'{folder} has no calibration for {frame.name}; add a camera-intrinsics.txt '
                '(3x3 matrix) or a camera_info.yaml, or give the intrinsics fx,fy,cx,cy'
            )
        found.append(calibration)
    return found


def _suffixed(folder: Path) -> list[FrameFiles]:
    """Find NAME.color.* beside NAME.depth.png."""
    found = []
    for depth in folder.glob('*.depth.png'):
        name = depth.name[: -len('.depth.png')]
        color = _with_suffix(folder, f'{name}.color')
        if color is not None:
            found.append(FrameFiles(name, color, depth))
    return found


def _foldered(folder: Path) -> list[FrameFiles]:
    """Find rgb/NAME.* beside depth/NAME.png, with calib/NAME.yaml where it exists."""
    found = []
    colors = next((folder / c for c in _COLOR_FOLDERS if (folder / c).is_dir()), folder / 'rgb')
    for depth in (folder / 'depth').glob('*.png'):
        color = _with_suffix(colors, depth.stem)
        if color is not None:
            calibration = folder / 'calib' / f'{depth.stem}.yaml'
            own = calibration if calibration.is_file() else None
            found.append(FrameFiles(depth.stem, color, depth, own))
    return found


def _with_suffix(folder: Path, stem: str) -> Path | None:
    paths = (folder / f'{stem}{suffix}' for suffix in _COLOR_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts 9 before 10."""
    parts = re.split(r'(\d+)', name)
    return [(int(part), '') if part.isdigit() else (-1, part) for part in parts]
