"""NYU Depth V2 (Silberman et al., ECCV 2012): 1449 labelled indoor frames, official split.

Reads the small pack of the data set: ``rgb/NNNN.jpg``, ``depth8/NNNN.png`` (completed depth in
8 bit, value = floor(25.5 * metres)), ``label40/NNNN.png`` (0..39, 255 void), ``train.txt``,
``test.txt``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.training.datasets.cache import LabelledFrame

INTRINSICS = Intrinsics(518.8579, 519.4696, 325.5824, 253.7362, 640, 480)
"""Colour camera of the data set, from its toolbox."""

LEVELS_PER_METRE = 25.5
SPLITS = ('train', 'test')


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


class NyuDepthV2:
    """One split of the pack.

    Args:
        folder: the pack's folder.
        split: 'train' (795 frames) or 'test' (654).

    Raises:
        InputError: not the pack's layout, or an unknown split.
    """

    def __init__(self, folder: Path, split: str) -> None:
        if split not in SPLITS:
            raise InputError(f'NYUDv2 has the splits {SPLITS}, not {split!r}')
        self.folder = Path(folder)
        listing = self.folder / f'{split}.txt'
        if not listing.is_file():
            raise InputError(f'{folder} is no NYUDv2 pack: it lacks {listing.name}')
        self.ids = [f'{int(line):04d}' for line in listing.read_text().split()]
        self.name = f'nyudv2-{split}'

    def __len__(self) -> int:
        return len(self.ids)

    def describe(self) -> dict[str, object]:
        """Return what identifies the content, for the cache key."""
        files = [self.folder / f for i in self.ids for f in self._files(i)]
        return {'name': self.name, 'bytes': [f.stat().st_size for f in files if f.is_file()]}

    def __iter__(self) -> Iterator[LabelledFrame]:
        for frame_id in self.ids:
            rgb, levels, labels = (self._read(file) for file in self._files(frame_id))
            frame = RgbdFrame(
                cv2.cvtColor(rgb, cv2.COLOR_BGR2RGB), depth_from_levels(levels), INTRINSICS
            )
            yield LabelledFrame(frame, labels)

    @staticmethod
    def _files(frame_id: str) -> tuple[str, str, str]:
        return f'rgb/{frame_id}.jpg', f'depth8/{frame_id}.png', f'label40/{frame_id}.png'

    def _read(self, name: str) -> np.ndarray:
        flag = cv2.IMREAD_COLOR if name.endswith('.jpg') else cv2.IMREAD_UNCHANGED
        image = cv2.imread(str(self.folder / name), flag)
        if image is None:
            raise InputError(f'{self.folder / name} is missing or no image; copy the pack again')
        return image
