"""Labelled RGB-D data: where it comes from, how it is read, and the cache training reads."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.datasets.base import FrameSource
from rgbd_fusion_seg.training.datasets.cityscapes import Cityscapes
from rgbd_fusion_seg.training.datasets.nyudv2 import NyuDepthV2
from rgbd_fusion_seg.training.datasets.own_folder import OwnFolder
from rgbd_fusion_seg.training.datasets.scannet import ScanNet
from rgbd_fusion_seg.training.datasets.sunrgbd import SunRgbd
from rgbd_fusion_seg.training.datasets.synthetic_rooms import SyntheticDataset

if TYPE_CHECKING:
    from rgbd_fusion_seg.training.config import DatasetConfig

DATASETS: dict[str, Any] = {
    'nyudv2': NyuDepthV2,
    'sunrgbd': SunRgbd,
    'scannet': ScanNet,
    'cityscapes': Cityscapes,
    'synthetic': SyntheticDataset,
    'folder': OwnFolder,
}
"""Name -> reader: ``Reader(folder, split, **options)`` is a `FrameSource`, with the attributes
SPLITS (all it has, of which it is given one; () where a file says), TRAIN_SPLIT and TEST_SPLIT
(the default ones)."""


def open_dataset(config: DatasetConfig, split: str) -> FrameSource:
    """Open the data a run trains on or is scored on.

    Args:
        config: the data set.
        split: 'train' or 'test'; which of the data set's own splits that is, ``config`` says.

    Raises:
        InputError: an unknown data set, split or option, or files that cannot be read.
    """
    if config.name not in DATASETS:
        raise InputError(
            f'there is no data set {config.name!r}; the known ones are {", ".join(DATASETS)}'
        )
    return open_reader(DATASETS[config.name], config, split)


def open_reader(reader: Any, config: DatasetConfig, split: str) -> Any:
    """Open one split of a data set with its own options.

    Args:
        reader: ``Reader(folder, split, **options)``, as in `DATASETS`.
        config: the data set.
        split: 'train' or 'test', see `open_dataset`.

    Raises:
        InputError: an unknown split or option, or files that cannot be read.
    """
    own = {
        'train': config.train_split or reader.TRAIN_SPLIT,
        'test': config.test_split or reader.TEST_SPLIT,
    }
    if reader.SPLITS and own[split] not in reader.SPLITS:
        raise InputError(
            f'the data set {config.name!r} has the splits {", ".join(reader.SPLITS)}, not '
            f'{own[split]!r}; correct {split}_split of the dataset'
        )
    options = list(inspect.signature(reader).parameters)[2:]
    for name in config.options:
        if name not in options:
            raise InputError(
                f'the data set {config.name!r} has no option {name!r}; '
                f'it has {", ".join(options) or "none"}'
            )
    try:
        source = reader(Path(config.folder), own[split], **config.options)
        len(source)  # no number of frames may come of them either
        return source
    except (TypeError, ValueError) as error:
        if not config.options:
            raise
        raise InputError(
            f'the options {config.options} of the data set {config.name!r} cannot be used: {error}'
        ) from error
