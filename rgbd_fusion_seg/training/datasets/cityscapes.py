"""Cityscapes (Cordts et al., CVPR 2016): 3475 finely labelled stereo frames of streets.

Reads the official packages as they are unpacked into one folder: ``leftImg8bit``, ``disparity``,
``camera`` and ``gtFine``, each with ``SPLIT/CITY/CITY_SEQUENCE_FRAME_*``. Labels of the test
split are not public: the split to score on is 'val'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rgbd_fusion_seg import image_files
from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.frame import UNLABELLED, Intrinsics
from rgbd_fusion_seg.training.datasets import files, layouts
from rgbd_fusion_seg.training.datasets.base import LabelledFrame
from rgbd_fusion_seg.training.datasets.cityscapes_classes import (
    CITYSCAPES19,
    CITYSCAPES19_IDS,
    NUM_LABEL_IDS,
)

NATIVE_SIZE = (2048, 1024)
MAX_DEPTH_M = 100.0
"""Ours. A disparity that is wrong by half a pixel moves a point at 100 m by 10 m."""

SITE = 'https://www.cityscapes-dataset.com'


class _Package(NamedTuple):
    suffix: str
    archive: str

    @property
    def remedy(self) -> str:
        return f'unpack {self.archive} of {SITE} again'


_PACKAGES = {
    'leftImg8bit': _Package('_leftImg8bit.png', 'leftImg8bit_trainvaltest.zip'),
    'disparity': _Package('_disparity.png', 'disparity_trainvaltest.zip'),
    'camera': _Package('_camera.json', 'camera_trainvaltest.zip'),
    'gtFine': _Package('_gtFine_labelIds.png', 'gtFine_trainvaltest.zip'),
}
_TRAIN_IDS = '_gtFine_labelTrainIds.png'


def _class_tables() -> dict[str, np.ndarray]:
    """Return the classes of the values of each kind of label image, by the files' ending."""
    label_ids = np.full(NUM_LABEL_IDS, UNLABELLED, dtype=np.uint8)
    label_ids[list(CITYSCAPES19_IDS)] = np.arange(len(CITYSCAPES19))
    train_ids = np.full(256, layouts.UNKNOWN, dtype=np.uint8)
    train_ids[: len(CITYSCAPES19)] = np.arange(len(CITYSCAPES19))
    train_ids[255] = UNLABELLED
    return {_PACKAGES['gtFine'].suffix: label_ids, _TRAIN_IDS: train_ids}


_TABLES = _class_tables()


class Cityscapes:
    """One official split of Cityscapes, at its native 2048x1024.

    Depth is baseline times focal length by disparity. ``*_labelTrainIds.png`` serve where there
    are no ``*_labelIds.png``.

    HHA is made for rooms; of a street `hha.encode_hha` keeps this much. Disparity is 31 at 10 m,
    6 at 50 m, 3 at 100 m: what is nearer than 10 m has most of the levels, what is farther few,
    and saturation (nearer than 1.2 m) does not occur. Height saturates 2.55 m above the lowest
    reading: it tells road from kerb and car, not storeys. Stray readings below the road lift all
    heights where they are many (`hha.OUTLIER_SHARE`), which is the second reason to cut far
    readings. The angle is free of scale.

    Args:
        folder: holds the four packages.
        split: 'train' (2975 frames) or 'val' (500).
        max_depth_m: readings beyond are dropped, in metres.

    Raises:
        InputError: packages that are missing or incomplete.
    """

    SPLITS = ('train', 'val')
    TRAIN_SPLIT = 'train'
    TEST_SPLIT = 'val'

    classes = CITYSCAPES19
    size = (1024, 512)
    outdoors = True
    terms = (
        'Cityscapes (Cordts et al., CVPR 2016); non-commercial use under the Cityscapes licence '
        'agreement'
    )

    def __init__(self, folder: Path, split: str, max_depth_m: float = MAX_DEPTH_M) -> None:
        if not isinstance(max_depth_m, (int, float)) or not max_depth_m > 0:
            raise InputError(f'max_depth_m must be a number above 0, got {max_depth_m!r}')
        self.folder = Path(folder)
        self.split = split
        self.max_depth_m = float(max_depth_m)
        self.name = f'cityscapes-{split}'
        self.suffixes = {package: _PACKAGES[package].suffix for package in _PACKAGES}
        if not any(self._names('gtFine')) and any(self._names('gtFine', _TRAIN_IDS)):
            self.suffixes['gtFine'] = _TRAIN_IDS
        names = {package: self._names(package) for package in _PACKAGES}
        self.frames = sorted(set.intersection(*names.values()))
        if faults := self._missing(names):
            raise layouts.IncompleteError('; '.join(faults), self)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> LabelledFrame:
        """Read frame ``index``.

        Raises:
            InputError: a damaged file, an image that is not 2048x1024, an unknown label.
            IndexError: no such frame.
        """
        paths = self._files(index)
        label_file = paths['gtFine']
        rgb = image_files.read_rgb(paths['leftImg8bit'])
        stored = layouts.read_16bit(paths['disparity'], _PACKAGES['disparity'].remedy)
        ids = image_files.read_plane(label_file)
        for image, package in ((rgb, 'leftImg8bit'), (stored, 'disparity'), (ids, 'gtFine')):
            layouts.require_size(image, paths[package], NATIVE_SIZE, _PACKAGES[package].remedy)
        table = _TABLES[self.suffixes['gtFine']]
        labels = layouts.relabel(ids, table, label_file, _PACKAGES['gtFine'].remedy)
        intrinsics, baseline_m = _read_camera(paths['camera'])
        depth = depth_from_disparity(stored, baseline_m * intrinsics.fx, self.max_depth_m)
        return files.labelled_frame(rgb, depth, labels, intrinsics, len(self.classes), label_file)

    def describe(self) -> dict[str, object]:
        """Return what identifies the content, for the cache's key."""
        paths = [path for index in range(len(self)) for path in self._files(index).values()]
        return {
            'name': self.name,
            'max_depth_m': self.max_depth_m,
            'table': _TABLES[self.suffixes['gtFine']].tolist(),
            'files': files.identity(paths),
        }

    def _files(self, index: int) -> dict[str, Path]:
        return {package: self._file(package, self.frames[index]) for package in _PACKAGES}

    def _file(self, package: str, frame: str) -> Path:
        return self.folder / package / self.split / f'{frame}{self.suffixes[package]}'

    def _names(self, package: str, suffix: str = '') -> set[str]:
        """Return CITY/CITY_SEQUENCE_FRAME of every file of a package, without hidden ones.

        On disks of other systems macOS keeps what it notes of NAME.png as ._NAME.png.
        """
        suffix = suffix or self.suffixes[package]
        paths = (self.folder / package / self.split).glob(f'[!.]*/[!.]*{suffix}')
        return {f'{path.parent.name}/{path.name[: -len(suffix)]}' for path in paths}

    def _missing(self, names: Mapping[str, set[str]]) -> list[str]:
        """Return what packages lack of the frames that any of them has, half a sentence each."""
        frames, faults = set().union(*names.values()), []
        for package, present in names.items():
            missing = sorted(frames - present) or ([] if present else ['CITY/CITY_SEQUENCE_FRAME'])
            if missing:
                lost = layouts.first_of([self._file(package, name).name for name in missing])
                faults.append(
                    f'{self.folder / package / self.split} has {len(present)} of {len(frames)} '
                    f'frames; {lost} {"is" if len(missing) == 1 else "are"} missing; '
                    f'{_PACKAGES[package].remedy}'
                )
        return faults


def depth_from_disparity(
    stored: np.ndarray, baseline_fx: float, max_depth_m: float = np.inf
) -> np.ndarray:
    """uint16 (H, W) as Cityscapes stores disparity -> float32 metres, 0 = no reading.

    A value p above 0 is a disparity of (p - 1) / 256 pixels, 0 is none; a disparity of 0 is
    infinitely far and so no reading either.

    Args:
        stored: the disparity image.
        baseline_fx: baseline in metres times focal length in pixels.
        max_depth_m: readings beyond become 0.
    """
    disparity = (stored.astype(np.float32) - 1) / 256
    depth = np.zeros(stored.shape, dtype=np.float32)
    np.divide(np.float32(baseline_fx), disparity, out=depth, where=disparity > 0)
    depth[depth > max_depth_m] = 0
    return depth


def _read_camera(path: Path) -> tuple[Intrinsics, float]:
    remedy = _PACKAGES['camera'].remedy
    try:
        camera = json.loads(path.read_text())
        fx, fy, u0, v0 = (float(camera['intrinsic'][key]) for key in ('fx', 'fy', 'u0', 'v0'))
        baseline_m = float(camera['extrinsic']['baseline'])
        intrinsics = Intrinsics(fx, fy, u0, v0, *NATIVE_SIZE)
    except (OSError, ValueError, KeyError, TypeError, FrameError) as error:
        raise InputError(f'{path} is no camera of Cityscapes ({error}); {remedy}') from None
    if not baseline_m > 0:
        raise InputError(f'{path} gives a baseline of {baseline_m} m; {remedy}')
    return intrinsics, baseline_m
