"""The data of a run: prepared frames, and a check of every file before training starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rgbd_fusion_seg.training.config import DataConfig
from rgbd_fusion_seg.training.datasets import open_dataset
from rgbd_fusion_seg.training.datasets.base import FrameSource
from rgbd_fusion_seg.training.datasets.cache import CachedFrames, cached_frames
from rgbd_fusion_seg.training.datasets.nyudv2 import NYU40
from rgbd_fusion_seg.training.datasets.synthetic_rooms import HELD_OUT_SEED, SyntheticRooms


def sources(config: DataConfig) -> dict[str, FrameSource]:
    """Open what a run reads: 'train', 'test' and, for NYU40 classes, the synthetic rooms.

    Returns:
        'train' and 'test', and where wanted 'synthetic' and 'synthetic_test'.

    Raises:
        InputError: data that cannot be opened.
    """
    opened = {split: open_dataset(config.dataset, split) for split in ('train', 'test')}
    rooms = {
        'synthetic': (config.synthetic_frames, 0),
        'synthetic_test': (config.synthetic_test_frames, HELD_OUT_SEED),
    }
    if opened['train'].classes.name == NYU40.name and config.dataset.name != 'synthetic':
        opened |= {k: SyntheticRooms(n, seed) for k, (n, seed) in rooms.items() if n > 0}
    return opened


def prepare_frames(
    config: DataConfig, hha_sizes: Sequence[tuple[int, int]] | None = None
) -> dict[str, CachedFrames]:
    """Make or open the caches of all frames of a run.

    Args:
        config: the data.
        hha_sizes: sizes (width, height) at which HHA is wanted besides the usual ones, see
            `cached_frames`.

    Returns:
        'train', 'test', and the synthetic rooms as in `sources`.

    Raises:
        InputError: data that cannot be used, or too little space on the disk.
    """
    folder = Path(config.cache)
    return {
        split: cached_frames(source, folder, hha_sizes)
        for split, source in sources(config).items()
    }
