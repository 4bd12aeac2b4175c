"""Frames prepared once for training: colour, HHA and labels as memory-mapped arrays.

HHA is kept at two resolutions, so that a view that is zoomed in reads HHA computed at the
resolution the network would be given, like the levels of a texture pyramid.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from tqdm import tqdm

from rgbd_fusion_seg import depth as depth_module
from rgbd_fusion_seg import hha as hha_module
from rgbd_fusion_seg import hha_kernels, preprocess
from rgbd_fusion_seg.frame import RgbdFrame

FRAME_SIZE = (640, 480)
"""Width and height at which colour and labels are kept."""
HHA_SIZES = ((160, 120), (320, 240))
"""Width and height of HHA for networks that see the frame at half and at full size."""
FORMAT = 3


@dataclass(frozen=True, eq=False)
class LabelledFrame:
    """A frame and its uint8 (H, W) labels, 255 = void."""

    frame: RgbdFrame
    labels: np.ndarray


class FrameSource(Protocol):
    """What a data set offers: a name, a length, its identity, its frames in order."""

    name: str

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[LabelledFrame]: ...
    def describe(self) -> dict[str, object]:
        """Return what identifies the content, for the cache key."""
        ...


@dataclass(frozen=True, eq=False)
class CachedFrames:
    """N prepared frames.

    Args:
        rgb: uint8 (N, 480, 640, 3).
        labels: uint8 (N, 480, 640).
        hha: one uint8 (N, h, w, 3) for each size of `HHA_SIZES`.
        depth_range_m: 1st and 99th percentile of the valid depth.
    """

    name: str
    rgb: np.ndarray
    labels: np.ndarray
    hha: tuple[np.ndarray, ...]
    depth_range_m: tuple[float, float]

    def __len__(self) -> int:
        return len(self.rgb)


def cached_frames(source: FrameSource, folder: Path) -> CachedFrames:
    """Return the prepared frames of ``source``, made now unless ``folder`` has them.

    The folder's name holds a hash of the data's identity and of the code that makes HHA, so a
    changed constant never reads old values.
    """
    key = _key(source)
    path = Path(folder) / f'{source.name}-{key}'
    if not (path / 'done.json').is_file():
        _build(source, path)
    info = json.loads((path / 'done.json').read_text())
    return CachedFrames(
        name=source.name,
        rgb=np.load(path / 'rgb.npy', mmap_mode='r'),
        labels=np.load(path / 'labels.npy', mmap_mode='r'),
        hha=tuple(np.load(path / f'hha{w}.npy', mmap_mode='r') for w, _ in HHA_SIZES),
        depth_range_m=tuple(info['depth_range_m']),
    )


def _key(source: FrameSource) -> str:
    code = [
        Path(m.__file__).read_bytes() for m in (depth_module, hha_module, hha_kernels, preprocess)
    ]
    text = json.dumps([FORMAT, FRAME_SIZE, HHA_SIZES, source.describe()])
    return hashlib.sha256(text.encode() + b''.join(code)).hexdigest()[:12]


def _build(source: FrameSource, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    width, height = FRAME_SIZE
    n = len(source)

    def array(name: str, *shape: int) -> np.ndarray:
        file = path / f'{name}.npy'
        return np.lib.format.open_memmap(file, 'w+', np.uint8, (n, *shape))

    rgb, labels = array('rgb', height, width, 3), array('labels', height, width)
    hha = [array(f'hha{w}', h, w, 3) for w, h in HHA_SIZES]
    percentiles = []
    progress: Iterable[LabelledFrame] = tqdm(source, total=n, desc=f'prepare {source.name}')
    for i, item in enumerate(progress):
        frame = item.frame
        rgb[i] = cv2.resize(frame.rgb, FRAME_SIZE, interpolation=cv2.INTER_AREA)
        labels[i] = cv2.resize(item.labels, FRAME_SIZE, interpolation=cv2.INTER_NEAREST)
        for level, (w, h) in zip(hha, HHA_SIZES, strict=True):
            level[i] = preprocess.hha_image(frame.depth, frame.intrinsics, w, h)
        valid = frame.depth[depth_module.valid_mask(frame.depth)]
        if valid.size:
            percentiles.append(np.percentile(valid, (1, 99)))
    for data in (rgb, labels, *hha):
        data.flush()
    near, far = np.median(percentiles, axis=0) if percentiles else (0.0, 0.0)
    low = float(np.min([p[0] for p in percentiles], initial=near))
    high = float(np.max([p[1] for p in percentiles], initial=far))
    info = {'frames': n, 'depth_range_m': [round(low, 2), round(high, 2)]}
    (path / 'done.json').write_text(json.dumps(info))
