"""The package's own synthetic rooms as a labelled data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rgbd_fusion_seg import synthetic
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.synthetic.scene import Room
from rgbd_fusion_seg.synthetic.sensor import simulate_kinect
from rgbd_fusion_seg.training.datasets.cache import LabelledFrame

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

    def __init__(self, num_frames: int, first_seed: int = 0) -> None:
        self.num_frames, self.first_seed = num_frames, first_seed
        self.name = f'synthetic-{first_seed}-{num_frames}'

    def __len__(self) -> int:
        return self.num_frames

    def describe(self) -> dict[str, object]:
        """Return what identifies the content, for the cache key."""
        folder = Path(synthetic.__file__).parent
        code = b''.join(file.read_bytes() for file in sorted(folder.glob('*.py')))
        sha256 = hashlib.sha256(code).hexdigest()
        return {'name': self.name, 'views': VIEWS_PER_ROOM, 'code': sha256}

    def __iter__(self) -> Iterator[LabelledFrame]:
        for index in range(self.num_frames):
            seed = self.first_seed + index // VIEWS_PER_ROOM
            if index % VIEWS_PER_ROOM == 0:
                room = Room.random(seed)
            rng = np.random.default_rng((seed, index))
            view = room.render(room.random_pose(rng), INTRINSICS)
            depth = simulate_kinect(view.depth, INTRINSICS, rng, view.labels, rgb=view.rgb)
            yield LabelledFrame(RgbdFrame(view.rgb, depth, INTRINSICS), view.labels)
