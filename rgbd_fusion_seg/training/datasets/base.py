"""What every data set offers: labelled frames, their classes, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import RgbdFrame


@dataclass(frozen=True, eq=False)
class ClassSet:
    """The classes of a data set; a label is an index into them, 255 is void.

    Args:
        name: short name of the set, e.g. 'nyu40'.
        names: K names.
        colors: uint8 (K, 3) RGB.

    Raises:
        InputError: names and colours differ in number, or K is not 2..255, as bundles need it.
    """

    name: str
    names: tuple[str, ...]
    colors: np.ndarray

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colors) or not 2 <= len(self.names) <= 255:
            raise InputError(
                f'the classes {self.name!r} have {len(self.names)} names and '
                f'{len(self.colors)} colours; give 2 to 255 of both'
            )

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, eq=False)
class LabelledFrame:
    """A frame and its uint8 (H, W) labels, 255 = void; labels and colour have the same size."""

    frame: RgbdFrame
    labels: np.ndarray


def frame_title(source: object, index: int) -> str:
    """Return how people call a frame: its number and, where the source has ids, its id."""
    ids = getattr(source, 'ids', None)
    return f'{index}' if ids is None else f'{index}, {ids[index]}'


class FrameSource(Protocol):
    """One split of a data set.

    Attributes:
        name: unique among sources and splits, e.g. 'nyudv2-test'; names caches and reports.
        classes: what the labels mean.
        size: width and height at which its frames are best kept for training.
        terms: one sentence for a model's card: what the data is, its licence or reference.

    One that is not of rooms also has `outdoors`, True, for depth is farther there.
    """

    name: str
    classes: ClassSet
    size: tuple[int, int]
    terms: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> LabelledFrame:
        """Read frame ``index``.

        Raises:
            InputError: a file that is absent or damaged, sizes that differ, labels out of range.
            IndexError: no such frame.
        """
        ...

    def describe(self) -> dict[str, object]:
        """Return what identifies the content, for the cache's key."""
        ...
