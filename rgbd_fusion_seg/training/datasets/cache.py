"""Frames prepared once for training: colour, labels, HHA and depth as memory-mapped arrays.

Colour is kept at two resolutions and HHA at two or more, so that a view that is zoomed in reads
HHA computed at the resolution the network would be given, like the levels of a texture pyramid.
HHA comes from `preprocess.hha_image`, the very function of the runtime: it resamples depth, fills
holes by push-pull and keeps the filled pixels out of the normals. The papers complete depth
beforehand by means of their own; a network must be trained on what the robot will show it.
Depth in metres comes from `preprocess.depth_image` at the same sizes, for networks that read it.

A cache is made of parts, each a folder: one for colour and labels, one for each size of HHA and
of depth, so that another size costs only itself. A part's name ends in a hash of all it depends
on, the code that made it included, so a changed constant never reads old values. Of this module
`FORMAT` stands for it: who changes sizes, types or interpolation below raises that.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from rgbd_fusion_seg import depth as depths
from rgbd_fusion_seg import frame as frame_module
from rgbd_fusion_seg import hha, hha_kernels, image_files, preprocess
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.datasets import base, files, layouts
from rgbd_fusion_seg.training.datasets.base import ClassSet, FrameSource, LabelledFrame
from rgbd_fusion_seg.training.datasets.prepared_files import Images, Part, build_parts, in_chunks

FORMAT = 4
"""Of what this module makes, whose own code is not part of a part's name."""
COLOUR_CODE: tuple[ModuleType, ...] = (
    *(base, files, layouts),
    *(image_files, frame_module, depths, preprocess),
)
"""Code that the content depends on, besides that of the reader; a test compares imports."""
DEPTH_TYPE = np.float16
"""Its steps are 1 mm from 1 to 2 m and 4 mm from 4 to 8 m; a Kinect's are 3 mm at 1 m and grow
with the square (Khoshelham and Elberink, Sensors 2012). Whole millimetres would end at 65 m."""
HHA_CODE: tuple[ModuleType, ...] = (*COLOUR_CODE, hha, hha_kernels)

Prepare = Callable[[LabelledFrame], Images]
"""Makes a frame's entry in each array of a part."""


@dataclass(frozen=True, eq=False)
class CachedFrames:
    """N prepared frames of one split, as read-only memory maps.

    Args:
        name, classes, terms: those of the source.
        rgb: uint8 (N, H, W, 3) at the source's size, and the same at half of it.
        labels: uint8 (N, H, W), 255 = void.
        hha: uint8 (N, h, w, 3) for each size, smallest first.
        depth_range_m: nearest 1st and farthest 99th percentile of the frames' valid depth.
        valid_depth: share of the pixels that have a depth, 0..1.
        class_pixels: labelled pixels of each class, over all frames.
        depth: float16 (N, h, w) metres, the sizes of `hha`; empty unless it was asked for.
    """

    name: str
    classes: ClassSet
    terms: str
    rgb: tuple[np.ndarray, ...]
    labels: np.ndarray
    hha: tuple[np.ndarray, ...]
    depth_range_m: tuple[float, float]
    valid_depth: float = 1.0
    class_pixels: tuple[int, ...] = ()
    depth: tuple[np.ndarray, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def cached_frames(
    source: FrameSource,
    folder: Path,
    hha_sizes: Sequence[tuple[int, int]] | None = None,
    depth: bool = False,
    pictures: CachedFrames | None = None,
) -> CachedFrames:
    """Return the prepared frames of ``source``; what ``folder`` lacks of them is made now.

    HHA is there at a quarter and at half of the source's size, which serve networks whose depth
    stream sees half of the colour's resolution.

    Args:
        source: the frames.
        folder: for the caches of any number of sources; several processes may share it.
        hha_sizes: further sizes (width, height) of HHA, for instance the source's own for
            networks whose depth stream sees the full resolution.
        depth: have depth in metres, too, at all sizes of HHA.
        pictures: prepared frames with the colour and the labels of ``source``, in its order; of
            that nothing but depth is prepared then.

    Raises:
        InputError: frames that cannot be used, no frames, or too little space on the disk.
    """
    if not len(source):
        raise InputError(f'{source.name} has no frames; check its split file or its folder')
    prepares = _parts(source, Path(folder), hha_sizes or (), depth, pictures is None)

    def fill(parts: Sequence[Part], arrays: Sequence[Images]) -> dict[str, Any]:
        def prepare(i: int) -> _Statistics:
            item = read_frame(source, i)
            for part, out in zip(parts, arrays, strict=True):
                for name, image in prepares[part](item).items():
                    out[name][i] = image
            return _Statistics.of(item, len(source.classes))

        return _summary(in_chunks(prepare, len(source), source.name))

    parts = list(prepares)
    build_parts(source.name, parts, Path(folder), fill)
    images = [part.open() for part in parts]
    info = parts[0].info()
    if pictures is None:
        colour = images[0]
        rgb, labels = (colour['rgb'], colour['rgb_half']), colour['labels']
    else:
        rgb, labels = pictures.rgb, pictures.labels
    return CachedFrames(
        name=source.name,
        classes=source.classes,
        terms=source.terms,
        rgb=rgb,
        labels=labels,
        hha=tuple(level['hha'] for level in images if 'hha' in level),
        depth=tuple(level['depth'] for level in images if 'depth' in level),
        depth_range_m=tuple(info['depth_range_m']),
        valid_depth=info['valid_depth'],
        class_pixels=tuple(info['class_pixels']),
    )


def read_frame(source: FrameSource, index: int) -> LabelledFrame:
    """Read a frame and check what the protocol promises of it, whoever wrote the reader.

    Raises:
        InputError: a frame that cannot be used.
    """
    item = source[index]
    frame, where = item.frame, f'{source.name}, frame {index}'
    return files.labelled_frame(
        frame.rgb, frame.depth, item.labels, frame.intrinsics, len(source.classes), where
    )


def _parts(
    source: FrameSource,
    folder: Path,
    hha_sizes: Sequence[tuple[int, int]],
    depth: bool,
    pictures: bool,
) -> dict[Part, Prepare]:
    n, (w, h) = len(source), source.size
    description = [FORMAT, source.name, n, len(source.classes), source.size, source.describe()]

    def place(kind: str, code: tuple[ModuleType, ...]) -> Path:
        digest = hashlib.sha256(json.dumps([*description, kind], sort_keys=True).encode())
        for item in (*code, *(c for c in type(source).__mro__ if c is not object)):
            digest.update(Path(inspect.getfile(item)).read_bytes())
        return folder / f'{source.name}-{kind}-{digest.hexdigest()[:12]}'

    def colour(item: LabelledFrame) -> Images:
        # NEAREST_EXACT takes the pixel at the centre, as the areas of colour are about it.
        nearest = cv2.resize(item.labels, (w, h), interpolation=cv2.INTER_NEAREST_EXACT)
        rgb = item.frame.rgb
        return {
            'rgb': preprocess.rgb_image(rgb, w, h),
            'rgb_half': preprocess.rgb_image(rgb, w // 2, h // 2),
            'labels': nearest,
        }

    def level(width: int, height: int) -> tuple[Part, Prepare]:
        def prepare(item: LabelledFrame) -> Images:
            frame = item.frame
            return {'hha': preprocess.hha_image(frame.depth, frame.intrinsics, width, height)}

        path = place(f'hha{width}x{height}', HHA_CODE)
        return Part(path, {'hha': (n, height, width, 3)}), prepare

    def metres(width: int, height: int) -> tuple[Part, Prepare]:
        def prepare(item: LabelledFrame) -> Images:
            return {'depth': preprocess.depth_image(item.frame.depth, width, height)}

        path = place(f'depth{width}x{height}', COLOUR_CODE)
        return Part(path, {'depth': (n, height, width)}, DEPTH_TYPE), prepare

    shapes = {'rgb': (n, h, w, 3), 'rgb_half': (n, h // 2, w // 2, 3), 'labels': (n, h, w)}
    sizes = sorted({(w // 4, h // 4), (w // 2, h // 2), *((int(x), int(y)) for x, y in hha_sizes)})
    kinds = (level, metres) if depth else (level,)
    levels = dict(kind(*size) for kind in kinds for size in sizes)
    return {Part(place('colour', COLOUR_CODE), shapes): colour, **levels} if pictures else levels


@dataclass(frozen=True, eq=False)
class _Statistics:
    """Of one frame: 1st and 99th percentile of its depth, share that is valid, label counts."""

    range_m: tuple[float, float] | None
    valid: float
    counts: np.ndarray

    @classmethod
    def of(cls, item: LabelledFrame, num_classes: int) -> _Statistics:
        mask = depths.valid_mask(item.frame.depth)
        readings = item.frame.depth[mask]
        range_m = tuple(np.percentile(readings, (1, 99))) if readings.size else None
        counts = np.bincount(item.labels.ravel(), minlength=256)[:num_classes]
        return cls(range_m, float(mask.mean()), counts)


def _summary(statistics: list[_Statistics]) -> dict[str, object]:
    ranges = np.array([s.range_m for s in statistics if s.range_m] or [(0.0, 0.0)])
    low, high = ranges[:, 0].min(), ranges[:, 1].max()
    return {
        'frames': len(statistics),
        'depth_range_m': [round(float(low), 2), round(float(high), 2)],
        'valid_depth': round(float(np.mean([s.valid for s in statistics])), 4),
        'class_pixels': [int(c) for c in np.sum([s.counts for s in statistics], axis=0)],
    }
