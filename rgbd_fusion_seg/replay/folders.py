"""RGB-D frames from folders of colour and depth images."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from rgbd_fusion_seg.depth import stored_to_metres
from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.frame import SENSORS, RgbdFrame
from rgbd_fusion_seg.image_files import read_plane, read_rgb
from rgbd_fusion_seg.replay.calibration import Calibration, load_calibration
from rgbd_fusion_seg.replay.single_sensor import alone_advice, intrinsics_of, read_images

_log = logging.getLogger(__name__)

FRAME_ID = 'camera_color_optical_frame'
DEPTH_SCALE_M = 0.001
"""Metres per unit of depth images, unless told: they are in millimetres."""
FIRST_STAMP_NS = 1_000_000_000
"""Stamp of a folder's first frame: one second, for ROS takes 0 as "no time"."""
RATES_HZ = (0.001, 1000.0)
"""Least and most frames per second: ROS' stamps hold 68 years, and whole nanoseconds."""

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


@dataclass(frozen=True, slots=True)
class FrameFiles:
    """Files of one frame: colour image, 16-bit depth PNG, and its own calibration if any.

    Of frames that are labelled from one sensor alone the other one's image may be None.
    """

    name: str
    color: Path | None
    depth: Path | None
    calibration: Path | None = None

    @property
    def images(self) -> tuple[Path | None, Path | None]:
        """Those of `frame.SENSORS`."""
        return self.color, self.depth


class FolderFrames:
    """The RGB-D frames of a folder, in the natural order of their names.

    Two layouts are known: ``NAME.color.jpg`` beside ``NAME.depth.png`` (7-Scenes and the like),
    and folders ``rgb/`` and ``depth/`` with files of equal stems. Calibration comes from the
    argument, or ``calib/NAME.yaml``, or one file for all (``camera-intrinsics.txt``,
    ``intrinsics.yaml``, ``camera_info.yaml`` …). Images without a partner are left out, counted
    in ``unmatched``, with one sentence in the log.

    Args:
        folder: where the images are.
        calibration: of the colour camera; the folder's own is used where it is None.
        depth_scale_m: metres per unit of the depth images; 0.001 for millimetres.
        rate_hz: frames per second, for the stamps; within `RATES_HZ`.
        only: the sensor that frames will be labelled from, 'rgb' or 'depth': its images need no
            partner then, and no calibration if it is 'rgb'. Default: both.

    Raises:
        InputError: no such folder, no pairs in it (images of the one sensor), no calibration, or
            a rate or depth scale that no camera has.
    """

    def __init__(
        self,
        folder: Path,
        *,
        calibration: Calibration | None = None,
        depth_scale_m: float = DEPTH_SCALE_M,
        rate_hz: float = 30.0,
        only: str = '',
    ) -> None:
        if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
            least, most = RATES_HZ
            raise InputError(
                f'the rate must be {least:g} to {most:g} frames per second, got {rate_hz:g}'
            )
        if not depth_scale_m > 0:
            raise InputError(f'the depth scale must be positive, got {depth_scale_m}')
        self.folder = Path(folder)
        self.topics = None
        self.files, unmatched = _list_frames(self.folder, only)
        self.skipped, self.unmatched = 0, len(unmatched)
        if unmatched:
            _log.warning(
                '%s: %d images without a partner are left out, such as %s',
                folder,
                len(unmatched),
                unmatched[0],
            )
        self._depth_scale_m, self._rate_hz, self._only = depth_scale_m, rate_hz, only
        if calibration is None:
            self._calibrations = _calibrations(self.folder, self.files, only)
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
            InputError: an image that is damaged or none, or colour, depth and calibration that do
                not match.
        """
        files, calibration = self.files[index], self._calibrations[index]
        rgb, depth = read_images(
            files.color and partial(read_rgb, files.color),
            files.depth and partial(read_depth, files.depth, self._depth_scale_m),
            self._only,
        )
        stamp_ns = FIRST_STAMP_NS + round(index * 1e9 / self._rate_hz)
        try:
            intrinsics = intrinsics_of(rgb, calibration and calibration.intrinsics, self._only)
            return RgbdFrame(rgb, depth, intrinsics, stamp_ns, FRAME_ID)
        except FrameError as error:
            names = ' and '.join(str(path) for path in files.images if path)
            raise InputError(f'{names}: {error}') from error


def _list_frames(folder: Path, only: str) -> tuple[list[FrameFiles], list[Path]]:
    """Find the images that belong together, or all of one sensor.

    Returns:
        The frames in the natural order of their names, and the images without a partner.

    Raises:
        InputError: no such folder, or no frame in it.
    """
    if not folder.is_dir():
        raise InputError(f'there is no folder {folder}; give a folder of images or a bag')
    images = []
    for found in (_suffixed(folder), _foldered(folder)):
        found.sort(key=lambda files: (natural_key(files.name), files.name))
        images += found
        frames = [f for f in found if (f.color or only == 'depth') and (f.depth or only == 'rgb')]
        if frames:
            lone = [f for f in found if not (only or (f.color and f.depth))]
            return frames, [f.color or f.depth for f in lone]
    what = {'rgb': 'colour', 'depth': 'depth', '': 'pairs of colour and depth'}[only]
    there = {
        sensor for f in images for sensor, path in zip(SENSORS, f.images, strict=True) if path
    }
    advice = f'; {alone_advice(*there)}' if not only and len(there) == 1 else ''
    raise InputError(f'{folder} has no {what} images: expected {_LAYOUTS}{advice}')


def read_depth(path: Path, depth_scale_m: float = DEPTH_SCALE_M) -> np.ndarray:
    """Read a 16-bit depth image: float32 (H, W) in metres, 0 = no reading.

    Raises:
        InputError: as `image_files.read_plane`, or not of 16 bits.
    """
    image = read_plane(path)
    if image.dtype != np.uint16:
        raise InputError(
            f'{path} is not a depth image: it must have 16 bits, it has {image.dtype}'
        )
    return stored_to_metres(image, depth_scale_m)


def _calibrations(folder: Path, files: list[FrameFiles], only: str) -> list[Calibration | None]:
    """Load the calibration of every frame: its own, else the one of the whole folder.

    Frames that are labelled from colour alone may have none, or one that cannot be read.
    """

    def load(path: Path | None) -> Calibration | None:
        try:
            return path and load_calibration(path)
        except InputError:
            if only != 'rgb':
                raise
            return None

    common = load(next((folder / n for n in _CALIBRATION_NAMES if (folder / n).is_file()), None))
    found = []
    for frame in files:
        calibration = load(frame.calibration) if frame.calibration else common
        if calibration is None and only != 'rgb':
            raise InputError(
                f'{folder} has no calibration for {frame.name}; add a camera-intrinsics.txt '
                '(3x3 matrix) or a camera_info.yaml, or give the intrinsics fx,fy,cx,cy'
            )
        found.append(calibration)
    return found


def _suffixed(folder: Path) -> list[FrameFiles]:
    """Find NAME.color.* and NAME.depth.png."""
    return _joined(_colors(folder, '.color'), _files(folder, '.depth.png'), {})


def _foldered(folder: Path) -> list[FrameFiles]:
    """Find rgb/NAME.* and depth/NAME.png, with calib/NAME.yaml where it exists."""
    colors = next((folder / c for c in _COLOR_FOLDERS if (folder / c).is_dir()), folder / 'rgb')
    calibrations = _files(folder / 'calib', '.yaml')
    return _joined(_colors(colors), _files(folder / 'depth', '.png'), calibrations)


def _joined(
    colors: dict[str, Path], depths: dict[str, Path], calibrations: dict[str, Path]
) -> list[FrameFiles]:
    """Put the files of a name together; one of the images may be absent."""
    return [
        FrameFiles(name, colors.get(name), depths.get(name), calibrations.get(name))
        for name in colors.keys() | depths.keys()
    ]


def _colors(folder: Path, role: str = '') -> dict[str, Path]:
    """Return the colour images by name; of several formats the first one of _COLOR_SUFFIXES."""
    found: dict[str, Path] = {}
    for suffix in _COLOR_SUFFIXES:
        found = _files(folder, f'{role}{suffix}') | found
    return found


def _files(folder: Path, ending: str) -> dict[str, Path]:
    """Return the files of a folder by what stands before their ending, without hidden ones.

    Endings may be in capitals; of files that differ in that alone the one in small letters is
    taken. On disks of other systems macOS keeps what it notes of NAME.jpg as ._NAME.jpg.
    """
    found = sorted(folder.glob('[!.]*'))  # capitals first
    return {p.name[: -len(ending)]: p for p in found if p.name.lower().endswith(ending)}


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts 9 before 10."""
    parts = re.split(r'(\d+)', name)
    return [(int(part), '') if part.isdecimal() else (-1, part) for part in parts]
