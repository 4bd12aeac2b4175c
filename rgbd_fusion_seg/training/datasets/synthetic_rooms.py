"""The package's own synthetic rooms as a labelled data set."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np

from rgbd_fusion_seg import synthetic
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.synthetic.scene import Room
from rgbd_fusion_seg.synthetic.sensor import simulate_kinect
from rgbd_fusion_seg.training.datasets.base import LabelledFrame
from rgbd_fusion_seg.training.datasets.nyudv2 import NYU40

INTRINSICS = Intrinsics(525.0, 525.0, 319.5, 239.5, 640, 480)
VIEWS_PER_ROOM = 4
HELD_OUT_SEED = 1_000_000
"""Rooms from this seed on are for testing; training never sees them."""


class SyntheticRooms:
    """Random views of random rooms with Kinect-like depth.

    Args:
        num_frames: how many views.
        first_seed: seed of the first room; `HELD_OUT_SEED` for a test set.
    """

    classes = NYU40
    size = (INTRINSICS.width, INTRINSICS.height)
    terms = 'synthetic rooms of this package, Apache-2.0 as the package'

    def __init__(self, num_frames: int, first_seed: int = 0) -> None:
        self.num_frames, self.first_seed = num_frames, first_seed
        self.name = f'synthetic-{first_seed}-{num_frames}'

    def __len__(self) -> int:
        return self.num_frames

    def describe(self) -> dict[str, object]:
        """Return what identifies the content, for the cache's key."""
        folder = Path(synthetic.__file__).parent
        files = sorted(folder.glob('*.py'))
        # Stereo pairs look at frames of any data set, and take part in no room.
        code = b''.join(file.read_bytes() for file in files if file.stem != 'stereo')
        return {'views': VIEWS_PER_ROOM, 'code': hashlib.sha256(code).hexdigest()}

    def __getitem__(self, index: int) -> LabelledFrame:
        """Render view ``index``.

        Raises:
            IndexError: no such view.
        """
        if not 0 <= index < self.num_frames:
            raise IndexError(index)
        seed = self.first_seed + index // VIEWS_PER_ROOM
        room, rng = _room(seed), np.random.default_rng((seed, index))
        view = room.render(room.random_pose(rng), INTRINSICS)
        depth = simulate_kinect(view.depth, INTRINSICS, rng, view.labels, rgb=view.rgb)
        return LabelledFrame(RgbdFrame(view.rgb, depth, INTRINSICS), view.labels)


class SyntheticDataset(SyntheticRooms):
    """The rooms as a data set of its own, for a first training without any data.

    Args:
        folder: not used; everything is rendered.
        split: 'train', or 'test' for views of rooms that 'train' does not have.
        train_frames, test_frames: how many views.

    Raises:
        InputError: more training rooms than there are seeds.
    """

    SPLITS = ('train', 'test')
    TRAIN_SPLIT, TEST_SPLIT = SPLITS

    def __init__(
        self, folder: Path, split: str, train_frames: int = 600, test_frames: int = 100
    ) -> None:
        if train_frames > HELD_OUT_SEED * VIEWS_PER_ROOM:
            raise InputError(f'{train_frames} synthetic frames reach into the test rooms')
        is_train = split == 'train'
        super().__init__(*((train_frames, 0) if is_train else (test_frames, HELD_OUT_SEED)))


@functools.lru_cache(maxsize=32)
def _room(seed: int) -> Room:
    """Return a room; as many stay in memory as threads may look at."""
    return Room.random(seed)
