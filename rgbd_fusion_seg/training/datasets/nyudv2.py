"""NYU Depth V2 (Silberman et al., ECCV 2012): 1449 labelled indoor frames, official split.

It is read in three forms, told apart by what the folder holds:

* the official ``nyu_depth_v2_labeled.mat`` (MATLAB 7.3), beside it ``splits.mat`` and
  ``classMapping40.mat``, which maps its 894 classes to 40 (Gupta et al., CVPR 2013);
* folders of images as many code bases lay them out: ``rgb/``, ``depth/`` (16-bit PNG),
  ``label40/``, ``train.txt``, ``test.txt``;
* the small pack: ``rgb/NNNN.jpg``, ``depth8/NNNN.png`` (completed depth in 8 bit, value =
  floor(25.5 * metres)), ``label40/NNNN.png`` (0..39, 255 void), ``train.txt``, ``test.txt``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import cv2
import h5py
import numpy as np
import scipy.io

from rgbd_fusion_seg import image_files
from rgbd_fusion_seg.depth import stored_to_metres
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import UNLABELLED, Intrinsics
from rgbd_fusion_seg.palette import NYU40_CLASSES, NYU40_COLORS
from rgbd_fusion_seg.training.datasets import files, layouts
from rgbd_fusion_seg.training.datasets.base import ClassSet, LabelledFrame

NYU40 = ClassSet('nyu40', NYU40_CLASSES, NYU40_COLORS)

INTRINSICS = Intrinsics(518.8579, 519.4696, 325.5824, 253.7362, 640, 480)
"""Colour camera of the data set, from its toolbox."""

MAT_FILE = 'nyu_depth_v2_labeled.mat'
LEVELS_PER_METRE = 25.5
FROM_ONE, FROM_ZERO = '1..40', '0..39'
_SPLITS_FROM = 'http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat'
_MAPPING_FROM = 'https://github.com/ankurhanda/nyuv2-meta-data'
_RGB = ('rgb', 'RGB', 'image', 'images')
_FILLED = ('depth', 'Depth')
_RAW = ('depth_raw', 'raw_depth', 'rawDepth')
_LABELS = ('label40', 'labels40', 'labels_40', 'label', 'Label', 'labels', 'masks')
_SUFFIXES = ('.png', '.jpg', '.jpeg')

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Colour uint8 (H, W, 3), depth float32 (H, W) metres, labels uint8 (H, W)."""


class NyuDepthV2:
    """One split of the data set.

    Args:
        folder: one of the three forms; the ``.mat`` file itself will do as well.
        split: 'train' (795 frames) or 'test' (654).
        depth: 'filled', the data set's own completion, as the papers use it, or 'raw', with the
            sensor's holes, which are then filled as on the robot. Folders keep raw depth in
            ``depth_raw/``; the pack has none.
        labels: of image folders: '1..40' with 0 for void, or '0..39' with 255 for void.
        depth_scale: of image folders: metres per unit of the depth images.

    Raises:
        InputError: none of the forms, a missing or damaged file of lists, a frame that is listed
            twice, or an unknown option.
    """

    SPLITS = ('train', 'test')
    TRAIN_SPLIT, TEST_SPLIT = SPLITS

    classes = NYU40
    size = (INTRINSICS.width, INTRINSICS.height)
    terms = 'NYU Depth V2 (Silberman et al., ECCV 2012), for research use'

    def __init__(
        self,
        folder: Path,
        split: str,
        depth: str = 'filled',
        labels: str = FROM_ONE,
        depth_scale: float = 0.001,
    ) -> None:
        _require_one_of(depth, ('filled', 'raw'), 'depth')
        _require_one_of(labels, (FROM_ONE, FROM_ZERO), 'labels')
        if not 0 < depth_scale < np.inf:
            raise InputError(
                f'NYUDv2: depth_scale must be metres per unit of the depth images, such as 0.001, '
                f'not {depth_scale}'
            )
        self._options = [depth, labels, depth_scale]
        self._form = _open(Path(folder), depth == 'raw', labels, depth_scale)
        self.ids = self._form.ids(split)
        if twice := files.repeated(self.ids):
            raise InputError(
                f'the {split} split of {folder} has the frame {twice} twice; take one of them out '
                'of its list'
            )
        self.name = f'nyudv2-{split}'

    def __len__(self) -> int:
        return len(self.ids)

    def describe(self) -> dict[str, object]:
        """Return what identifies the content, for the cache's key."""
        form = self._form
        paths = dict.fromkeys(path for i in self.ids for path in form.paths(i))
        return {
            'form': type(form).__name__,
            'options': self._options,
            'ids': list(self.ids),
            'files': files.identity(paths),
        }

    def __getitem__(self, index: int) -> LabelledFrame:
        """Read frame ``index``; see `FrameSource`."""
        frame_id = self.ids[index]
        rgb, depth, labels = self._form.read(frame_id)
        _, depth_file, label_file = self._form.paths(frame_id)
        where, depth_where = (
            f'{path} ({self.name} {frame_id})' for path in (label_file, depth_file)
        )
        return files.labelled_frame(rgb, depth, labels, INTRINSICS, len(NYU40), where, depth_where)


def depth_from_levels(levels: np.ndarray) -> np.ndarray:
    """uint8 (H, W) depth of the pack -> float32 metres, smoothed within its rounding.

    A level is 39 mm deep, so raw normals point anywhere. Smoothing that may not leave half a
    level on either side keeps edges and lowers the error of the normals.
    """
    centre = (levels.astype(np.float32) + 0.5) / LEVELS_PER_METRE
    half = np.float32(0.5 / LEVELS_PER_METRE)
    depth = centre
    for _ in range(4):
        depth = cv2.GaussianBlur(depth, (0, 0), 3.0)
        depth = np.clip(depth, centre - half, centre + half)
    depth[levels == 0] = 0.0
    return depth


class _Form(Protocol):
    """A form in which the data set lies on disk."""

    def ids(self, split: str) -> list[str]: ...
    def paths(self, frame_id: str) -> Sequence[Path]: ...
    def read(self, frame_id: str) -> Arrays: ...


def _open(folder: Path, raw: bool, labels: str, depth_scale: float) -> _Form:
    file = folder if folder.suffix == '.mat' else folder / MAT_FILE
    if file.is_file():
        return _Official(file, raw)
    if (folder / 'depth8').is_dir():
        if raw:
            raise InputError(f"{folder} has no raw depth; set the option depth to 'filled'")
        return _Pack(folder)
    if _subfolder(folder, _RGB) is not None:
        return _Images(folder, raw, labels, depth_scale)
    raise InputError(
        f'{folder} is no NYUDv2: it holds neither {MAT_FILE} nor folders of images such as rgb, '
        'depth and label40; set dataset.folder to the one that does'
    )


class _Official:
    """``nyu_depth_v2_labeled.mat``. Its arrays are in MATLAB's order: (frame, ..., x, y)."""

    def __init__(self, file: Path, raw: bool) -> None:
        self.file, self.depth_name = file, 'rawDepths' if raw else 'depths'
        with self._opened() as data:
            num_classes = data['names'].size
            self.num_frames = len(data['images'])
        mapping = _small_mat(file.with_name('classMapping40.mat'), 'mapClass', _MAPPING_FROM)
        if mapping.size != num_classes or not ((mapping >= 1) & (mapping <= 40)).all():
            raise InputError(
                f'{file.with_name("classMapping40.mat")} does not map the {num_classes} classes '
                f'of {file.name} to 1..40; take it from {_MAPPING_FROM}'
            )
        self.table = np.full(num_classes + 1, UNLABELLED, np.uint8)
        self.table[1:] = mapping - 1

    def ids(self, split: str) -> list[str]:
        splits = self.file.with_name('splits.mat')
        indices = _small_mat(splits, f'{split}Ndxs', _SPLITS_FROM)
        absent = indices[(indices < 1) | (indices > self.num_frames)]
        if absent.size:
            raise InputError(
                f'{splits} names frame {absent[0]} for {split}, but {self.file.name} has '
                f'{self.num_frames}; copy both again'
            )
        return [f'{i:04d}' for i in indices]

    def paths(self, frame_id: str) -> Sequence[Path]:
        return self.file.with_name('classMapping40.mat'), self.file, self.file

    def read(self, frame_id: str) -> Arrays:
        i = int(frame_id) - 1
        with self._opened() as data:
            rgb, depth, labels = (data[k][i] for k in ('images', self.depth_name, 'labels'))
        if labels.max() >= len(self.table):
            raise InputError(
                f'{self.file}, frame {frame_id}, has label {labels.max()} but only '
                f'{len(self.table) - 1} classes; copy the file again'
            )
        rgb = np.ascontiguousarray(rgb.transpose(2, 1, 0))
        depth = np.ascontiguousarray(depth.T, dtype=np.float32)
        return rgb, depth, np.ascontiguousarray(self.table[labels.T])

    @contextlib.contextmanager
    def _opened(self) -> Iterator[h5py.File]:
        # Opened for each frame: threads and forked processes cannot share an open file.
        try:
            with h5py.File(self.file, 'r') as data:
                yield data
        except (OSError, KeyError) as error:
            raise InputError(
                f'{self.file} is cut short or not the official file ({error}); copy it again'
            ) from error


class _Images:
    """Folders of images; a frame's id is the name of its files without the suffix."""

    def __init__(self, folder: Path, raw: bool, labels: str, depth_scale: float) -> None:
        self.folder, self.labels, self.depth_scale = folder, labels, depth_scale
        parts = {'rgb': _RGB, 'depth': _RAW if raw else _FILLED, 'label40': _LABELS}
        found = {name: _subfolder(folder, choices) for name, choices in parts.items()}
        for name, choices in parts.items():
            if found[name] is None:
                raise InputError(
                    f'{folder} is no NYUDv2 of image folders: it lacks the folder {name} '
                    f'(or one named {", ".join(choices[1:])})'
                )
        self.folders = [path for path in found.values() if path is not None]
        # The name of a frame's file is looked up once, not tried suffix by suffix each time.
        self.names = [
            {p.stem: p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES}
            for path in self.folders
        ]

    def ids(self, split: str) -> list[str]:
        # Lists name a frame by its number, or by its files: 'rgb/0001.png label/0001.png'.
        named = [Path(line.split()[0]) for line in files.read_lines(_list(self.folder, split))]
        return [file.stem if file.suffix.lower() in _SUFFIXES else file.name for file in named]

    def paths(self, frame_id: str) -> Sequence[Path]:
        return [
            names.get(frame_id, folder / f'{frame_id}.png')
            for names, folder in zip(self.names, self.folders, strict=True)
        ]

    def read(self, frame_id: str) -> Arrays:
        rgb, depth, labels = self.paths(frame_id)
        classes = image_files.read_plane(labels)
        if self.labels == FROM_ONE:
            if classes.max() > len(NYU40):
                raise InputError(
                    f'{labels} has label {classes.max()}, not 0 for void or 1..40; if the files '
                    f"hold 0..39 and 255 for void, set the option labels to '{FROM_ZERO}'"
                )
            classes = classes.astype(np.uint8) - np.uint8(1)  # 0 becomes 255
        remedy = 'give depth images in units of depth_scale, such as millimetres'
        units = layouts.read_16bit(depth, remedy)
        return _read_colour(rgb), stored_to_metres(units, self.depth_scale), classes


class _Pack:
    """The small pack with 8-bit depth; its lists hold plain numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ids(self, split: str) -> list[str]:
        lines = files.read_lines(_list(self.folder, split))
        return [line.zfill(4) for line in lines]

    def paths(self, frame_id: str) -> Sequence[Path]:
        names = f'rgb/{frame_id}.jpg', f'depth8/{frame_id}.png', f'label40/{frame_id}.png'
        return [self.folder / name for name in names]

    def read(self, frame_id: str) -> Arrays:
        rgb, levels, labels = self.paths(frame_id)
        depth = depth_from_levels(image_files.read_plane(levels))
        return _read_colour(rgb), depth, image_files.read_plane(labels)


def _read_colour(path: Path) -> np.ndarray:
    rgb = image_files.read_rgb(path)
    remedy = 'give images as the authors publish them, of which the camera is known'
    layouts.require_size(rgb, path, NyuDepthV2.size, remedy)
    return rgb


def _subfolder(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _list(folder: Path, split: str) -> Path:
    listing = folder / f'{split}.txt'
    if not listing.is_file():
        raise InputError(
            f'{listing} is missing; it lists the frames of the split, one a line, as the official '
            f'one from {_SPLITS_FROM} does'
        )
    return listing


def _small_mat(file: Path, key: str, source: str) -> np.ndarray:
    """Return a variable of a small .mat file as a flat array of integers."""
    if not file.is_file():
        raise InputError(f'{file} is missing; take it from {source}')
    try:
        return scipy.io.loadmat(file)[key].ravel().astype(np.int64)
    except files.MAT_FAULTS as error:
        raise InputError(
            f'{file} has no readable {key} ({error}); take it from {source}'
        ) from error


def _require_one_of(value: str, choices: tuple[str, ...], what: str) -> None:
    if value not in choices:
        raise InputError(f'NYUDv2: {what} must be one of {", ".join(choices)}, not {value!r}')
