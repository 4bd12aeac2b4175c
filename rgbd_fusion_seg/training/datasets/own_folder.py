"""A user's own labelled RGB-D images, described by a small YAML file.

``config/datasets/example_folder.yaml`` explains every key. Patterns are relative to the YAML
file; each ``*`` stands for a part of the frame's id, the same in colour, depth and labels, and
``{split}`` for the name of the split.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from rgbd_fusion_seg import image_files
from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.frame import UNLABELLED, Intrinsics
from rgbd_fusion_seg.replay.calibration import load_calibration
from rgbd_fusion_seg.replay.folders import natural_key
from rgbd_fusion_seg.training.datasets import files
from rgbd_fusion_seg.training.datasets.base import ClassSet, LabelledFrame
from rgbd_fusion_seg.yaml_text import parse_yaml

UNITS_M: dict[str | float, float] = {'mm': 0.001, 'm': 1.0}
CAMERA_KEYS = ('fx', 'fy', 'cx', 'cy', 'width', 'height')
_UNKNOWN = -1
_ID_PART = r'(?!(?<![^/])\.)([^/]*)'
"""A * begins no name with a dot: of NAME.jpg macOS keeps notes as ._NAME.jpg on other disks."""


@dataclass
class FolderConfig:
    """The keys of the YAML file; those without a default are required.

    Args:
        name: names caches and reports.
        classes: 2 to 255 names, each once; a label is a place in this list, counted from 0.
        rgb, depth, labels: patterns of the files, relative to this one, each with a ``*``; labels
            are single-channel or palette images.
        depth_unit: 'mm', 'm' or metres per unit of the depth images.
        camera: fx, fy, cx, cy, width, height in pixels, or a camera_info YAML file.
        colors: RGB of each class; default: generated ones.
        void: values in label images that mean no class, and are none.
        label_map: value in label images -> class, as name or place; others are faults then.
        splits: name -> text file with the ids of its frames, one a line.
        test_fraction: instead of `splits`: this share is 'test', the last ids, 10 after 9.
        size: width and height at which frames are kept for training; default: the camera's.
        terms: one sentence on origin and licence, for a model's card.
        outdoors: frames are not of rooms; a check expects depth of up to 500 m, not 20 m, then.
    """

    name: str
    classes: list[str]
    rgb: str
    depth: str
    labels: str
    depth_unit: str | float
    camera: dict[str, float] | str
    colors: list[list[int]] = field(default_factory=list)
    void: list[int] = field(default_factory=lambda: [UNLABELLED])
    label_map: dict[int, int | str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    test_fraction: float = 0.0
    size: list[int] = field(default_factory=list)
    terms: str = ''
    outdoors: bool = False


class OwnFolder:
    """One split of a user's own data.

    Args:
        folder: the YAML file, see `FolderConfig`.
        split: 'train', 'test', or another one that the file or its folders have.

    Raises:
        InputError: a key that is unknown, missing or wrong, or an unknown or empty split.
    """

    SPLITS: tuple[str, ...] = ()
    TRAIN_SPLIT, TEST_SPLIT = 'train', 'test'

    def __init__(self, folder: Path, split: str) -> None:
        self.file, self.split = Path(folder), split
        self.config = config = _read_config(self.file)
        if not re.fullmatch(r'[\w.-]+', config.name):
            raise self._error(f'name is {config.name!r}; use letters, digits, - and _')
        self._check_patterns()
        self.name = f'{config.name}-{split}'
        self.terms = config.terms or f'{config.name}, own data'
        self.outdoors = config.outdoors
        self.classes = self._class_set()
        self.table = self._label_table()
        self.metres_per_unit = self._unit()
        self.intrinsics = self._camera()
        size = config.size or (self.intrinsics.width, self.intrinsics.height)
        if len(size) != 2 or min(size) < 8:
            raise self._error(f'size is {config.size}; give width and height in pixels')
        self.size = (size[0], size[1])
        self.ids = self._split_ids()
        if not self.ids:
            raise self._error(f'the split {split!r} has no frames; check rgb, {config.rgb!r}')

    def __len__(self) -> int:
        return len(self.ids)

    def describe(self) -> dict[str, object]:
        """Return what identifies the content, for the cache's key."""
        return {
            'ids': self.ids,
            'files': files.identity(path for i in self.ids for path in self._paths(i)),
            'table': {i: int(v) for i, v in enumerate(self.table) if v != _UNKNOWN},
            # Files of two folders may be alike in name, size and time.
            'patterns': [self.config.rgb, self.config.depth, self.config.labels],
            'unit': self.metres_per_unit,
            'camera': repr(self.intrinsics),
        }

    def __getitem__(self, index: int) -> LabelledFrame:
        """Read frame ``index``; see `FrameSource`."""
        rgb, depth, labels = self._paths(self.ids[index])
        values = image_files.read_labels(labels)
        classes = self.table[values]
        if (classes == _UNKNOWN).any():
            raise InputError(
                f'{labels} has the label {values[classes == _UNKNOWN][0]}, which {self.file} '
                'does not know; add it to classes, label_map or void'
            )
        image = image_files.read_rgb(rgb)
        (height, width), camera = image.shape[:2], self.intrinsics
        if (width, height) != (camera.width, camera.height):
            raise self._error(
                f'camera is {camera.width}x{camera.height} but {rgb} is {width}x{height}; '
                'give the intrinsics of images of that size'
            )
        return files.labelled_frame(
            image,
            files.read_depth(depth, self.metres_per_unit),
            classes.astype(np.uint8),
            self.intrinsics,
            len(self.classes),
            labels,
            depth,
        )

    def _error(self, text: str) -> InputError:
        return InputError(f'{self.file}: {text}')

    def _check_patterns(self) -> None:
        for key in ('rgb', 'depth', 'labels'):
            pattern = getattr(self.config, key)
            if Path(pattern).is_absolute():
                raise self._error(
                    f'{key} is {pattern!r}, but patterns are relative to the folder of the YAML '
                    'file; start it there, with ../ where the files lie beside that folder'
                )
            if '**' in pattern:
                raise self._error(
                    f"{key} is {pattern!r}, but each * stands for a part of the frame's id; "
                    'write */* where frames lie in folders'
                )
            if '*' not in pattern:
                raise self._error(
                    f"{key} is {pattern!r}, but a pattern needs a * in the place of the frame's "
                    'id, such as color/*.png'
                )

    def _class_set(self) -> ClassSet:
        names, colors = self.config.classes, self.config.colors
        if not all(len(c) == 3 and all(0 <= v <= 255 for v in c) for c in colors):
            raise self._error('colors must be lists of three numbers 0..255')
        if twice := files.repeated(names):
            raise self._error(f'classes has {twice!r} twice; a class needs a name of its own')
        table = np.array(colors, np.uint8) if colors else distinct_colors(len(names))
        try:
            return ClassSet(self.config.name, tuple(names), table)
        except InputError as error:
            raise self._error(str(error)) from error

    def _label_table(self) -> np.ndarray:
        """Return int16 (65536,): the class of each value that a label image may hold."""
        names, label_map = self.config.classes, self.config.label_map
        table = np.full(2**16, _UNKNOWN, np.int16)
        for value, target in (label_map or dict(enumerate(names))).items():
            place = names.index(target) if target in names else target
            if not isinstance(place, int) or not 0 <= place < len(names):
                raise self._error(f'label_map maps {value} to {target!r}, which is no class')
            table[self._value(value)] = place
        for value in self.config.void:
            place = table[self._value(value)]
            if place not in (_UNKNOWN, UNLABELLED):
                raise self._error(
                    f'{value} is {names[place]!r} and in void, too; take it out of one of them'
                )
            table[value] = UNLABELLED
        return table

    def _value(self, value: int) -> int:
        if not 0 <= value < 2**16:
            raise self._error(f'{value} in label_map or void is no value of an image, 0..65535')
        return value

    def _unit(self) -> float:
        unit = self.config.depth_unit
        try:
            # YAML takes 2e-4 for text: its numbers have a point.
            metres = float(UNITS_M.get(unit, unit))
        except ValueError:
            metres = 0.0
        if not 0 < metres < np.inf:
            raise self._error(f'depth_unit is {unit!r}; give mm, m or metres per unit')
        return metres

    def _camera(self) -> Intrinsics:
        camera = self.config.camera
        if isinstance(camera, str):
            return read_camera(self.file.parent / camera)
        if sorted(camera) != sorted(CAMERA_KEYS):
            raise self._error(f'camera has {", ".join(camera)}; give {", ".join(CAMERA_KEYS)}')
        sides = camera['width'], camera['height']
        if not np.isfinite(sides).all():
            raise self._error('camera is {:g}x{:g}; give its size in pixels'.format(*sides))
        try:
            sizes = int(sides[0]), int(sides[1])
            return Intrinsics(*(float(camera[k]) for k in CAMERA_KEYS[:4]), *sizes)
        except FrameError as error:
            raise self._error(str(error)) from error

    def _split_ids(self) -> list[str]:
        config, split = self.config, self.split
        if sum([bool(config.splits), bool(config.test_fraction), '{split}' in config.rgb]) != 1:
            raise self._error('give one of splits, test_fraction and {split} in the patterns')
        if config.splits:
            if split not in config.splits:
                raise self._error(f'has the splits {", ".join(config.splits)}, not {split!r}')
            path = self.file.parent / config.splits[split]
            listed = files.read_lines(path)
            if twice := files.repeated(listed):
                raise InputError(f'{path} has the frame {twice!r} twice; take one of them out')
            return listed
        ids = self._found_ids()
        if not config.test_fraction:
            return ids
        if not 0 < config.test_fraction < 1 or split not in ('train', 'test'):
            raise self._error('test_fraction is a share 0..1 and makes the splits train and test')
        # In order, not at random: neighbours in a sequence show the same place.
        first = round(len(ids) * (1 - config.test_fraction))
        chosen = ids[:first] if split == 'train' else ids[first:]
        if ids and not chosen:
            raise self._error(
                f'test_fraction {config.test_fraction:g} leaves the split {split!r} none of the '
                f'{len(ids)} frames; give a share with which both splits have one'
            )
        return chosen

    def _found_ids(self) -> list[str]:
        pattern = self.config.rgb.replace('{split}', self.split)
        expression = re.compile(re.escape(pattern).replace(r'\*', _ID_PART))
        folder = self.file.parent
        paths = (path.relative_to(folder).as_posix() for path in folder.glob(pattern))
        found = [match.groups() for match in map(expression.fullmatch, paths) if match]
        # Part by part, so that the frames of a scene stay together.
        found.sort(key=lambda parts: [(natural_key(part), part) for part in parts])
        return ['/'.join(parts) for parts in found]

    def _paths(self, frame_id: str) -> tuple[Path, Path, Path]:
        rgb, depth, labels = (
            self.file.parent / self._filled(pattern, frame_id)
            for pattern in (self.config.rgb, self.config.depth, self.config.labels)
        )
        return rgb, depth, labels

    def _filled(self, pattern: str, frame_id: str) -> str:
        parts = frame_id.split('/')
        if pattern.count('*') != len(parts):
            raise self._error(
                f'the frame {frame_id!r} has {len(parts)} parts but the pattern {pattern!r} has '
                f'{pattern.count("*")} *; an id has one part, joined by /, for each *'
            )
        for part in parts:
            pattern = pattern.replace('*', part, 1)
        return pattern.replace('{split}', self.split)


def distinct_colors(count: int) -> np.ndarray:
    """Return uint8 (count, 3) RGB colours, each as far as can be from those before and black.

    Black means unlabelled; distances are those of CIELAB.
    """
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    lab = cv2.cvtColor(candidates[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    distance = np.linalg.norm(lab, axis=1)  # black is the origin of CIELAB
    chosen = []
    for _ in range(count):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return candidates[chosen]


def read_camera(path: Path) -> Intrinsics:
    """Read intrinsics from a calibration file that also has the size of the images.

    Raises:
        InputError: no such file, or no camera and size in it.
    """
    found = load_calibration(path)
    if not (found.width and found.height):
        raise InputError(
            f'{path} does not tell the size of the images; give image_width and image_height as '
            'camera_calibration writes them'
        )
    try:
        return found.intrinsics(found.width, found.height)
    except FrameError as error:
        raise InputError(f'{path}: {error}') from error


def _require_texts(file: Path, content: Any) -> None:
    """Explain what YAML makes of class names such as ``on``."""
    classes = content.get('classes') if isinstance(content, dict) else None
    for name in classes if isinstance(classes, list) else ():
        if isinstance(name, bool | int | float):
            raise InputError(
                f'{file}: the class {name} is no text; write it in quotes, for YAML takes on, '
                'off, yes and no for true and false, and digits for numbers'
            )


def _read_config(file: Path) -> FolderConfig:
    if file.is_dir():
        raise InputError(
            f'{file} is a folder; the data set "folder" wants the YAML file that describes your '
            'images, by --data.dataset.folder, see config/datasets/example_folder.yaml'
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FolderConfig, 'data')
    try:
        content = parse_yaml(file.read_text(encoding='utf-8'))
        _require_texts(file, content)
        # A key without a value is as one that is not there.
        if isinstance(content, dict):
            content = {key: value for key, value in content.items() if value is not None}
        return FolderConfig(**parser.parse_object({'data': content}).data.as_dict())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ArgumentError) as error:
        reason = ' '.join(str(error).split())
        raise InputError(
            f'{file} does not describe a data set ({reason}); see '
            'config/datasets/example_folder.yaml'
        ) from error
