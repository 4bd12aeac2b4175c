"""SUN RGB-D (Song et al., CVPR 2015): 10335 indoor frames of four sensors, 37 classes.

Reads the official files as they are unpacked: ``SUNRGBD/`` with a folder for each frame, and of
``SUNRGBDtoolbox/`` the frame list ``Metadata/SUNRGBDMeta.mat``, the labels
``Metadata/SUNRGBD2Dseg.mat`` and the splits ``traintestSUNRGBD/allsplit.mat``. The labels are a
MATLAB 7.3 file, which is HDF5; the other two are MATLAB 5 files.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import scipy.io

from rgbd_fusion_seg import image_files
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import UNLABELLED
from rgbd_fusion_seg.training.datasets import files, layouts
from rgbd_fusion_seg.training.datasets.base import LabelledFrame
from rgbd_fusion_seg.training.datasets.sunrgbd_classes import SPLIT_SIZES, SUNRGBD37

META = 'SUNRGBDtoolbox/Metadata/SUNRGBDMeta.mat'
LABELS = 'SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat'
SPLIT = 'SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat'
DEPTH_FOLDERS = {'bfx': 'depth_bfx', 'raw': 'depth'}
MAX_DEPTH_M = 8.0
"""The toolbox takes farther readings for this far (``read3dPoints.m``)."""

SITE = 'https://rgbd.cs.princeton.edu'
_UNPACK = f'unpack SUNRGBD.zip of {SITE} again'
_UNPACK_TOOLBOX = f'unpack SUNRGBDtoolbox.zip of {SITE} again'

_TABLE = np.array([UNLABELLED, *range(len(SUNRGBD37))], dtype=np.uint8)


class _Frame(NamedTuple):
    """A frame: its folder below ``SUNRGBD/``, its files' names, its place in the toolbox."""

    folder: str
    rgb: str
    depth: str
    index: int


class SunRgbd:
    """One official split of SUN RGB-D, at the native sizes of its sensors.

    Intrinsics are those of ``intrinsics.txt``, made for MATLAB's pixels, which count from 1.

    Args:
        folder: holds ``SUNRGBD`` and ``SUNRGBDtoolbox``.
        split: 'train' (5285 frames) or 'test' (5050).
        depth: 'bfx', refined and filled by the authors, or 'raw'.

    Raises:
        InputError: an unknown depth, files that are missing or of another kind.
    """

    SPLITS = ('train', 'test')
    TRAIN_SPLIT = 'train'
    TEST_SPLIT = 'test'

    classes = SUNRGBD37
    size = (640, 480)
    terms = (
        'SUN RGB-D (Song, Lichtenberg, Xiao, CVPR 2015), which contains frames of NYU Depth V2, '
        'Berkeley B3DO and SUN3D; for research use'
    )

    def __init__(self, folder: Path, split: str, depth: str = 'bfx') -> None:
        if depth not in DEPTH_FOLDERS:
            raise InputError(f"the depth of SUN RGB-D is 'bfx' or 'raw', not {depth!r}")
        self.folder = Path(folder)
        self.name = f'sunrgbd-{split}'
        self.depth = depth
        self.frames = self._listed_frames(split)
        official = len(self.frames) == SPLIT_SIZES[split]
        what = f'the {"official " if official else ""}{split} split of SUN RGB-D'
        paths = [self._files(i) for i in range(len(self))]
        try:
            layouts.require_files((file for frame in paths for file in frame), what, _UNPACK)
        except InputError as error:
            whole = [all(file.is_file() for file in frame) for frame in paths]
            self.frames = [x for x, is_whole in zip(self.frames, whole, strict=True) if is_whole]
            raise layouts.IncompleteError(str(error), self) from error

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> LabelledFrame:
        """Read frame ``index``.

        Raises:
            InputError: a damaged file, sizes that differ, a label above 37.
            IndexError: no such frame.
        """
        rgb_file, depth_file, camera_file = self._files(index)
        rgb = image_files.read_rgb(rgb_file)
        size = (rgb.shape[1], rgb.shape[0])
        stored = layouts.read_16bit(depth_file, _UNPACK)
        layouts.require_size(stored, depth_file, size, _UNPACK)
        intrinsics = layouts.read_camera(camera_file, 3, size, _UNPACK)
        labels_file = self.folder / LABELS
        ids = _read_labels(labels_file, self.frames[index].index)
        where = f'{labels_file}, frame {self.frames[index].index + 1} ({rgb_file})'
        labels = layouts.relabel(ids, _TABLE, where, _UNPACK_TOOLBOX)
        depth = decode_depth(stored)
        return files.labelled_frame(rgb, depth, labels, intrinsics, len(self.classes), where)

    def describe(self) -> dict[str, object]:
        """Return what identifies the content, for the cache's key."""
        paths = [path for index in range(len(self)) for path in self._files(index)]
        return {
            'name': self.name,
            'depth': self.depth,
            'max_depth_m': MAX_DEPTH_M,
            'labels': [(frame.folder, frame.index) for frame in self.frames],
            'files': files.identity([*paths, self.folder / LABELS]),
        }

    def _files(self, index: int) -> tuple[Path, Path, Path]:
        frame = self.frames[index]
        folder = self.folder / 'SUNRGBD' / frame.folder
        return (
            folder / 'image' / frame.rgb,
            folder / DEPTH_FOLDERS[self.depth] / frame.depth,
            folder / 'intrinsics.txt',
        )

    def _listed_frames(self, split: str) -> list[_Frame]:
        toolbox = [self.folder / name for name in (META, LABELS, SPLIT)]
        layouts.require_files(toolbox, str(self.folder), _UNPACK_TOOLBOX)
        meta_file, labels_file, split_file = toolbox
        frames = _read_frames(meta_file, meta_file.stat().st_mtime_ns)
        if _count_labels(labels_file) != len(frames):
            raise InputError(
                f'{labels_file} labels {_count_labels(labels_file)} frames but '
                f'{meta_file.name} lists {len(frames)}; {_UNPACK_TOOLBOX}'
            )
        listed = _read_split(split_file, split)
        unknown = [name for name in listed if name not in frames]
        if unknown:
            raise InputError(
                f'{split_file} lists {len(unknown)} frames that {meta_file.name} lacks, the first '
                f'of them {unknown[0]}; {_UNPACK_TOOLBOX}'
            )
        return [frames[name] for name in listed]


def decode_depth(stored: np.ndarray) -> np.ndarray:
    """uint16 (H, W) as SUN RGB-D stores depth -> float32 metres, 0 = no reading.

    The millimetres are rotated left by three bits, and readings beyond 8 m count as 8 m
    (``read3dPoints.m`` of the toolbox).
    """
    millimetres = (stored >> np.uint16(3)) | (stored << np.uint16(13))
    depth = millimetres.astype(np.float32) / np.float32(1000)
    return np.minimum(depth, np.float32(MAX_DEPTH_M))


@lru_cache(maxsize=2)
def _read_frames(path: Path, mtime_ns: int) -> dict[str, _Frame]:
    """Return the frames by folder; reading takes seconds, so both splits share it."""
    meta = _load_v5(path, 'SUNRGBDMeta').ravel()
    try:
        paths = [(str(m['rgbpath'].item()), str(m['depthpath'].item())) for m in meta]
    except (IndexError, ValueError, TypeError, AttributeError):
        raise InputError(f'{path} is no list of frames; {_UNPACK_TOOLBOX}') from None
    frames = {}
    for index, (rgb, depth) in enumerate(paths):
        folder = _below_sunrgbd(rgb, path).rsplit('/', 2)[0]
        frames[folder] = _Frame(folder, rgb.rsplit('/', 1)[-1], depth.rsplit('/', 1)[-1], index)
    return frames


def _read_split(path: Path, split: str) -> list[str]:
    cells = _load_v5(path, f'all{split}').ravel()
    return [_below_sunrgbd(str(np.squeeze(cell)), path) for cell in cells]


def _below_sunrgbd(name: str, path: Path) -> str:
    """Return what follows ``SUNRGBD/`` in a path on the authors' machine."""
    parts = [part for part in name.split('/') if part]
    if 'SUNRGBD' not in parts:
        raise InputError(f'{path} names {name!r}, which is not in SUNRGBD; {_UNPACK_TOOLBOX}')
    return '/'.join(parts[parts.index('SUNRGBD') + 1 :])


def _load_v5(path: Path, variable: str) -> np.ndarray:
    try:
        return scipy.io.loadmat(path, variable_names=[variable])[variable]
    except files.MAT_FAULTS as error:
        reason = str(error).strip('\'"') or type(error).__name__
        raise InputError(
            f'{path} cannot be read as a MATLAB 5 file with {variable} ({reason}); '
            f'{_UNPACK_TOOLBOX}'
        ) from None


def _count_labels(path: Path) -> int:
    with _open_labels(path) as file:
        return int(file['SUNRGBD2Dseg/seglabel'].size)


def _read_labels(path: Path, index: int) -> np.ndarray:
    # MATLAB stores columns first, so h5py sees an image transposed.
    with _open_labels(path) as file:
        try:
            return file[file['SUNRGBD2Dseg/seglabel'][index, 0]][()].T
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f'the labels of frame {index + 1} in {path} are damaged ({error}); '
                f'{_UNPACK_TOOLBOX}'
            ) from None


def _open_labels(path: Path) -> h5py.File:
    # Opened for each frame, in a millisecond, so that no handle is shared between processes.
    try:
        file = h5py.File(path, 'r')
    except OSError as error:
        raise InputError(
            f'{path} cannot be read as a MATLAB 7.3 file ({error}); {_UNPACK_TOOLBOX}'
        ) from None
    if 'SUNRGBD2Dseg/seglabel' not in file:
        file.close()
        raise InputError(f'{path} lacks SUNRGBD2Dseg.seglabel; {_UNPACK_TOOLBOX}')
    return file
