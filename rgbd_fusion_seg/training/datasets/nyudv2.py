"""NYU Depth V2 (Silberman et al., ECCV 2012): 1449 labelled indoor frames, official split.

Reads the small pack of the data set: ``rgb/NNNN.jpg``, ``depth8/NNNN.png`` (completed depth in
8 bit, value = floor(25.5 * metres)), ``label40/NNNN.png`` (0..39, 255 void), ``train.txt``,
``test.txt``.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.palette import NYU40_CLASSES, NYU40_COLORS
from rgbd_fusion_seg.training.datasets import files
from rgbd_fusion_seg.training.datasets.base import ClassSet, LabelledFrame

NYU40 = ClassSet('nyu40', NYU40_CLASSES, NYU40_COLORS)

INTRINSICS = Intrinsics(518.8579, 519.4696, 325.5824, 253.7362, 640, 480)
"""Colour camera of the data set, from its toolbox."""

LEVELS_PER_METRE = 25.5


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

    SPLITS = ('train', 'test')
    TRAIN_SPLIT, TEST_SPLIT = SPLITS

    classes = NYU40
    size = (INTRINSICS.width, INTRINSICS.height)
    terms = 'NYU Depth V2 (Silberman et al., ECCV 2012), for research use'

    def __init__(self, folder: Path, split: str) -> None:
        if split not in self.SPLITS:
            raise InputError(f'NYUDv2 has the splits {self.SPLITS}, not {split!r}')
        self.folder = Path(folder)
        listing = self.folder / f'{split}.txt'
        if not listing.is_file():
            raise InputError(f'{folder} is no NYUDv2 pack: it lacks {listing.name}')
        self.ids = [f'{int(line):04d}' for line in files.read_lines(listing)]
        self.name = f'nyudv2-{split}'

    def __len__(self) -> int:
        return len(self.ids)

    def describe(self) -> dict[str, object]:
        """Return what identifies the content, for the cache's key."""
        return {'files': files.identity(f for i in self.ids for f in self._files(i))}

    def __getitem__(self, index: int) -> LabelledFrame:
        """Read frame ``index``; see `FrameSource`."""
        rgb, levels, labels = self._files(self.ids[index])
        depth = depth_from_levels(files.read_plane(levels))
        return files.labelled_frame(
            files.read_rgb(rgb), depth, files.read_plane(labels), INTRINSICS, len(NYU40), labels
        )

    def _files(self, frame_id: str) -> tuple[Path, Path, Path]:
        names = f'rgb/{frame_id}.jpg', f'depth8/{frame_id}.png', f'label40/{frame_id}.png'
        rgb, depth, labels = (self.folder / name for name in names)
        return rgb, depth, labels
