"""ScanNet v2 (Dai et al., CVPR 2017), 25k frames: every 100th frame of 1513 scans, 20 classes.

Reads ``scannet_frames_25k`` as it is unpacked: ``sceneNNNN_NN/`` with ``color/*.jpg``,
``depth/*.png`` (uint16 millimetres, 0 = no reading), ``label/*.png`` (NYU40 ids 1..40, 0 = none)
and ``intrinsics_depth.txt``; and beside the scenes the official ``scannetv2_train.txt`` and
``scannetv2_val.txt``. Labels of the test scenes are not public: the split to score on is 'val'.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from rgbd_fusion_seg import image_files, preprocess
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import UNLABELLED
from rgbd_fusion_seg.training.datasets import files, layouts
from rgbd_fusion_seg.training.datasets.base import LabelledFrame
from rgbd_fusion_seg.training.datasets.scannet_classes import (
    NYU40_IDS,
    SCANNET20,
    SCANNET20_IDS,
    STRAY_IDS,
)

SIZE = (640, 480)
"""Width and height of the depth images; the benchmark, too, compares labels at this size."""

_PARTS = (('color', '.jpg'), ('depth', '.png'), ('label', '.png'))
_UNPACK = 'unpack scannet_frames_25k.zip, fetched with the script ScanNet sends you, again'
_LISTS = 'https://github.com/ScanNet/ScanNet, folder Tasks/Benchmark'
_NOT_NYU40 = (
    'take the label folder of scannet_frames_25k, which holds NYU40 ids, not ids of ScanNet'
)


def _class_table() -> np.ndarray:
    table = np.full(max(STRAY_IDS) + 1, layouts.UNKNOWN, dtype=np.uint8)
    table[: NYU40_IDS + 1] = UNLABELLED
    table[list(STRAY_IDS)] = UNLABELLED
    table[list(SCANNET20_IDS)] = np.arange(len(SCANNET20))
    return table


_TABLE = _class_table()


class ScanNet:
    """One official split of ScanNet's 25k frames, at 640x480.

    Depth is registered to colour and keeps its pixels. Colour (1296x968) is resized to them by
    area averages; labels take the pixel at each centre, as the benchmark's evaluation does. The
    other 20 classes of NYU40 are void.

    Args:
        folder: holds the scene folders and the lists of scenes.
        split: 'train' (1201 scans) or 'val' (312).

    Raises:
        InputError: a missing list, scenes or frames that are incomplete.
    """

    SPLITS = ('train', 'val')
    TRAIN_SPLIT = 'train'
    TEST_SPLIT = 'val'

    classes = SCANNET20
    size = SIZE
    terms = (
        'ScanNet v2, 25k frames (Dai et al., CVPR 2017); non-commercial research and education '
        'under the ScanNet Terms of Use'
    )

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = Path(folder)
        self.name = f'scannet-{split}'
        listing = self.folder / f'scannetv2_{split}.txt'
        scenes = _listed_scenes(listing)
        absent = [scene for scene in scenes if not (self.folder / scene).is_dir()]
        faults = []
        if absent:
            faults.append(
                f'{self.folder} lacks {len(absent)} of the {len(scenes)} scenes of '
                f'{listing.name}: {layouts.first_of(absent)}'
            )
        self.frames, missing = [], []
        for scene in (name for name in scenes if name not in absent):
            frames, first_missing = _complete_frames(self.folder / scene)
            self.frames += [(scene, frame) for frame in frames]
            if first_missing is not None:
                missing.append(first_missing)
        if missing:
            faults.append(
                f'{len(missing)} of the {len(scenes)} scenes of {listing} '
                f'{"is" if len(missing) == 1 else "are"} incomplete, for lack of '
                f'{layouts.first_of(missing)}'
            )
        if faults:
            raise layouts.IncompleteError(f'{"; ".join(faults)}; {_UNPACK}', self)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> LabelledFrame:
        """Read frame ``index``.

        Raises:
            InputError: a damaged file, a depth image that is not 640x480, another shape of colour
                or labels, a label above 40.
            IndexError: no such frame.
        """
        color_file, depth_file, label_file, camera_file = self._files(index)
        stored = layouts.read_16bit(depth_file, _UNPACK)
        layouts.require_size(stored, depth_file, SIZE, _UNPACK)
        rgb = image_files.read_rgb(color_file)
        ids = image_files.read_plane(label_file)
        for image, file in ((rgb, color_file), (ids, label_file)):
            _require_shape_of_depth(image, file)
        rgb = np.ascontiguousarray(preprocess.rgb_image(rgb, *SIZE))
        labels = layouts.relabel(ids, _TABLE, label_file, _NOT_NYU40)
        labels = cv2.resize(labels, SIZE, interpolation=cv2.INTER_NEAREST_EXACT)
        intrinsics = layouts.read_camera(camera_file, 4, SIZE, _UNPACK)
        depth = stored.astype(np.float32) / np.float32(1000)
        return files.labelled_frame(rgb, depth, labels, intrinsics, len(self.classes), label_file)

    def describe(self) -> dict[str, object]:
        """Return what identifies the content, for the cache's key."""
        paths = [path for index in range(len(self)) for path in self._files(index)]
        return {'name': self.name, 'table': _TABLE.tolist(), 'files': files.identity(paths)}

    def _files(self, index: int) -> tuple[Path, Path, Path, Path]:
        scene, frame = self.frames[index]
        folder = self.folder / scene
        color, depth, label = (folder / part / f'{frame}{end}' for part, end in _PARTS)
        return color, depth, label, folder / 'intrinsics_depth.txt'


def _listed_scenes(listing: Path) -> list[str]:
    scenes = files.read_lines(listing) if listing.is_file() else []
    if not scenes:
        raise InputError(
            f'{listing} is missing or empty; copy the official list of scenes from {_LISTS}'
        )
    return scenes


def _complete_frames(scene: Path) -> tuple[list[str], Path | None]:
    """Return the names of a scene's frames all of whose files are there, and what is missing.

    Of that, the first file.
    """
    # Without hidden files, in which macOS keeps notes of the others on disks of other systems.
    names = [{file.stem for file in (scene / part).glob(f'[!.]*{end}')} for part, end in _PARTS]
    frames = sorted(set.intersection(*names))
    for (part, end), present in zip(_PARTS, names, strict=True):
        missing = sorted(set().union(*names) - present)
        if missing or not present:
            return frames, scene / part / f'{missing[0] if missing else "*"}{end}'
    return frames, None


def _require_shape_of_depth(image: np.ndarray, path: Path) -> None:
    """Refuse an image that does not show the depth image's view at another resolution."""
    height, width = image.shape[:2]
    if abs(width * SIZE[1] - height * SIZE[0]) > 0.01 * height * SIZE[0]:
        raise InputError(
            f'{path} is {width}x{height}, not of the shape of depth ({SIZE[0]}x{SIZE[1]}); '
            f'{_UNPACK}'
        )
