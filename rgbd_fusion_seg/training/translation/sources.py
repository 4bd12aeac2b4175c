"""Where image-to-image translation takes its images from: RGB-D data sets, or Taskonomy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training import datasets
from rgbd_fusion_seg.training.datasets.base import FrameSource
from rgbd_fusion_seg.training.datasets.cache import read_frame
from rgbd_fusion_seg.training.translation.domains import DOMAINS, constants, domain_images
from rgbd_fusion_seg.training.translation.taskonomy import Taskonomy

if TYPE_CHECKING:
    from rgbd_fusion_seg.training.config import DatasetConfig

TASKONOMY = 'taskonomy'
"""Data that is images of several domains already; opened like `DATASETS`."""


class ImageSource(Protocol):
    """One split of a data set, as images of several domains of each view.

    Attributes:
        name: unique among sources and splits.
        terms: one sentence for a model's card: what the data is, its licence or reference.
        domains: what it offers, keys of `domains.DOMAINS`.
    """

    name: str
    terms: str
    domains: tuple[str, ...]

    def __len__(self) -> int: ...

    def images(self, index: int, names: Sequence[str], side: int) -> dict[str, np.ndarray]:
        """Return images of view ``index``, pixel by pixel of the same view.

        Args:
            index: which view.
            names: domains it offers.
            side: width and height in pixels.

        Returns:
            name -> uint8 (side, side, 3).

        Raises:
            InputError: a domain it does not offer, a file that is absent or damaged.
            IndexError: no such view.
        """
        ...

    def describe(self) -> dict[str, object]:
        """Return what identifies the content, so that a continued run sees the same."""
        ...


class RgbdImages:
    """Domains made from the frames of an RGB-D data set.

    Args:
        frames: one split of it.
    """

    domains = tuple(DOMAINS)

    def __init__(self, frames: FrameSource) -> None:
        self.frames, self.name, self.terms = frames, frames.name, frames.terms

    def __len__(self) -> int:
        return len(self.frames)

    def images(self, index: int, names: Sequence[str], side: int) -> dict[str, np.ndarray]:
        """Make images of frame ``index``; see `ImageSource`."""
        return domain_images(read_frame(self.frames, index), names, self.frames.classes, side)

    def describe(self) -> dict[str, object]:
        """Return what identifies the content: the frames, and how domains are made of them."""
        classes = self.frames.classes
        return {
            'name': self.name,
            'frames': self.frames.describe(),
            'classes': [list(classes.names), classes.colors.tolist()],
            'domains': constants(),
        }


def open_images(config: DatasetConfig, split: str) -> ImageSource:
    """Open the images a translation is trained on or scored on.

    Args:
        config: 'taskonomy', or a key of `datasets.DATASETS`.
        split: 'train' or 'test'; which of the data set's own splits that is, ``config`` says.

    Raises:
        InputError: an unknown data set, split or option, or files that cannot be read.
    """
    known = (*datasets.DATASETS, TASKONOMY)
    if config.name not in known:
        raise InputError(
            f'there is no data set {config.name!r}; the known ones are {", ".join(known)}'
        )
    if config.name == TASKONOMY:
        return datasets.open_reader(Taskonomy, config, split)
    return RgbdImages(datasets.open_dataset(config, split))
