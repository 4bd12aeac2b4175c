"""Draws the views of a batch and cuts what they show out of the prepared frames.

The half of `views` that loader processes do; it knows no device.
"""

from __future__ import annotations

import functools
import itertools
import math
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rgbd_fusion_seg.training import augment
from rgbd_fusion_seg.training.augment import View
from rgbd_fusion_seg.training.config import TrainConfig
from rgbd_fusion_seg.training.datasets.cache import CachedFrames

ENOUGH_DETAIL = 0.75
"""A level of a pyramid serves a view that enlarges it up to 1 / this; one of twice its size would
only be shrunk again."""
FIELDS = {
    'to_frame': (2, 3), 'rgb_matrix': (3, 3), 'contrast': (1,), 'noise': (1,),
    'hha_scale': (3,), 'hha_shift': (3,), 'depth_scale': (1,), 'depth_noise': (1,),
    'drop_rgb': (1,), 'drop_hha': (1,), 'drop_depth': (1,),
}  # fmt: skip
"""Numbers of a view in a batch, and their shapes; each modality's (2, 3) map comes after them."""
PLACE = 4
"""Numbers of a window in a batch: first pixel, pixels a row of its level, columns and rows."""
CORNERS = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
"""Of a view, as in `View.to_frame`."""

Levels = dict[str, list[Any]]
"""'rgb', 'hha', 'depth' and 'labels' -> (N, h, w, ...) arrays or tensors, the smallest first."""


class ViewReader(Dataset):
    """Item ``step`` is what a process needs for its part of the batch of that step.

    Args:
        sources: the frames 'train' and, if there are any, 'synthetic', and 'stereo', which are
            those of 'train' with other depth.
        config: the run.
        sizes: modalities and 'labels' -> (height, width) of the views; what is absent here is
            not read.
        rank, world_size: this process and how many there are.
        resident: the frames lie on the device, one level after the other as by `to_device`, so
            only the places of windows are told.
    """

    def __init__(
        self,
        sources: Mapping[str, Levels],
        config: TrainConfig,
        sizes: Mapping[str, tuple[int, int]],
        rank: int,
        world_size: int,
        resident: bool,
    ) -> None:
        self.sources, self.config, self.sizes, self.resident = sources, config, sizes, resident
        share = config.batch_size // world_size
        self.slice = range(rank * share, (rank + 1) * share)
        self.starts = {name: level_starts(sources, name) for name in sizes}

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Return the views of a step.

        Returns:
            'numbers' float32 (n, ...) and 'places' int64 (n, ...), see `FIELDS` and `PLACE`, one
            tensor each, so that they reach a device in one copy; 'noise_offset', n numbers;
            'canvas', (height, width) of each modality's canvas; and unless frames are resident
            the canvases, (n, height, width, ...) with a window in each corner.
        """
        chosen = [self.choose(step * self.config.batch_size + k) for k in self.slice]
        numbers = [[np.ravel(getattr(view, name)) for name in FIELDS] for _, _, view in chosen]
        places: list[list[int]] = [[] for _ in chosen]
        batch: dict[str, Any] = {'canvas': {}}
        for name, size in self.sizes.items():
            windows = []
            for k, (source, index, view) in enumerate(chosen):
                levels = self.sources[source][name]
                level, rows, columns, pixel_map = window(levels, view, size)
                height, width = levels[level].shape[1:3]
                first = (index * height + rows.start) * width + columns.start
                first += self.starts[name][source][level]
                places[k] += [first, width, columns.stop - columns.start, rows.stop - rows.start]
                numbers[k].append(pixel_map.ravel())
                windows.append((levels[level], index, rows, columns))
            shapes = [(rows.stop - rows.start, c.stop - c.start) for _, _, rows, c in windows]
            canvas = tuple(power_of_two(max(sides)) for sides in zip(*shapes, strict=True))
            batch['canvas'][name] = canvas
            if not self.resident:
                batch[name] = stack_windows([x[i, rows, c] for x, i, rows, c in windows], canvas)
        batch['numbers'] = torch.tensor(
            np.stack([np.concatenate(row) for row in numbers]), dtype=torch.float
        )
        batch['places'] = torch.tensor(places)
        batch['noise_offset'] = [view.noise_offset for _, _, view in chosen]
        return batch

    def choose(self, draw: int) -> tuple[str, int, View]:
        """Return source, index and view of a run's draw number ``draw``.

        Every `1 / synthetic_share`-th draw is synthetic, so an epoch of the real frames holds
        each of them once, whatever comes on top; and every `1 / stereo_share`-th of these has the
        depth of stereo.
        """
        share = self.config.data.synthetic_share if 'synthetic' in self.sources else 0.0
        synthetic = int(draw * share)
        source = 'synthetic' if is_turn(draw, share) else 'train'
        labels = self.sources[source]['labels'][-1]
        position = synthetic if source == 'synthetic' else draw - synthetic
        epoch, within = divmod(position, len(labels))
        # Not 0 behind the epoch: numpy pads seeds with zeros, and (seed, draw) are those of views.
        stream = 2 if source == 'synthetic' else 1
        index = int(shuffled(len(labels), self.config.seed, epoch, stream)[within])
        by_stereo = self.config.data.stereo_share if 'stereo' in self.sources else 0.0
        if source == 'train' and is_turn(position, by_stereo):
            source = 'stereo'
        rng = np.random.default_rng((self.config.seed, draw))
        return source, index, augment.draw_view(self.config.augment, labels.shape[1:3], rng)


def is_turn(draw: int, share: float) -> bool:
    """Tell whether a draw is one of the evenly spaced ones that make up a share of all."""
    return int((draw + 1) * share) > int(draw * share)


def step_batches(
    reader: Dataset, first: int, count: int, workers: int, pinned: bool
) -> DataLoader:
    """Return what goes through a reader's items of ``count`` steps from ``first`` on.

    Args:
        reader: its item ``step`` is the batch of that step.
        first, count: the steps.
        workers: loader processes; 0 reads in this one.
        pinned: into pinned memory, which is copied to a GPU while that works.
    """
    return DataLoader(
        reader,
        batch_size=None,
        sampler=range(first, first + count),
        num_workers=workers,
        pin_memory=pinned,
        # Forked processes share the memory maps; others would be sent copies of them.
        multiprocessing_context='fork' if workers else None,
        worker_init_fn=leave_signals,
    )


def leave_signals(worker: int) -> None:
    """Leave SIGINT and SIGTERM to the training process, which needs its loaders to end in order.

    Terminals and `timeout` send them to a whole group of processes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@functools.lru_cache(maxsize=8)
def shuffled(count: int, *seed: int) -> np.ndarray:
    """Return the order in which an epoch visits ``count`` frames; the seed tells which one."""
    return np.random.default_rng(seed).permutation(count)


def window(
    levels: Sequence[Any], view: View, size: tuple[int, int]
) -> tuple[int, slice, slice, np.ndarray]:
    """Tell where to cut what a view shows out of a frame.

    Args:
        levels: (N, h, w, ...) arrays, the smallest first; only their shapes matter.
        view: what to show.
        size: height and width at which it will be shown.

    Returns:
        the number of the smallest level that has the detail; the rows and columns there, with a
        pixel's margin for interpolation; and the float64 (2, 3) map from pixels of the view to
        those of the window, see `augment.positions`.
    """
    chosen = next(
        (i for i, x in enumerate(levels) if pixels_per_pixel(x, view, size) >= ENOUGH_DETAIL),
        len(levels) - 1,
    )
    extent = np.array(levels[chosen].shape[2:0:-1])
    to_level = view.to_frame * extent[:, None]
    corners = to_level @ CORNERS
    low = np.clip(np.floor(corners.min(1) - 0.5).astype(int), 0, extent - 1)
    high = np.clip(np.ceil(corners.max(1) + 0.5).astype(int), low + 1, extent)
    pixel_map = to_level / (size[1], size[0], 1)
    pixel_map[:, 2] -= low
    (left, top), (right, bottom) = low.tolist(), high.tolist()
    return chosen, slice(top, bottom), slice(left, right), pixel_map


def pixels_per_pixel(level: Any, view: View, size: tuple[int, int]) -> float:
    """Return how many pixels of a level a pixel of a view covers along an axis, on average."""
    share = abs(np.linalg.det(view.to_frame[:, :2]))
    return math.sqrt(share * level.shape[1] * level.shape[2] / (size[0] * size[1]))


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is not less: the sides of canvases.

    Places on such a canvas are rounded by no other view's size, see `augment.sample_images`.
    """
    return 1 << (size - 1).bit_length()


def stack_windows(windows: Sequence[np.ndarray], canvas: tuple[int, ...]) -> Tensor:
    """Put windows of different sizes into the corners of (N, *canvas, ...) anything."""
    result = np.empty((len(windows), *canvas, *windows[0].shape[2:]), windows[0].dtype)
    for place, image in zip(result, windows, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(result)


def distinct(sources: Mapping[str, Levels], name: str) -> list[Any]:
    """Return the levels of all sources, each once: by stereo, frames have the same pictures."""
    return list({id(x): x for source in sources.values() for x in source[name]}.values())


def level_starts(sources: Mapping[str, Levels], name: str) -> dict[str, list[int]]:
    """Return the first pixel of each source's levels, where `to_device` lays distinct ones."""
    arrays = distinct(sources, name)
    first = itertools.accumulate((math.prod(x.shape[:3]) for x in arrays), initial=0)
    starts = {id(x): start for x, start in zip(arrays, first, strict=False)}
    return {k: [starts[id(x)] for x in source[name]] for k, source in sources.items()}


def levels(frames: CachedFrames, name: str) -> list[np.ndarray]:
    """Return the images of a modality, or the labels, the smallest level first."""
    images = getattr(frames, name)
    images = list(images) if isinstance(images, tuple) else [images]
    return sorted(images, key=lambda level: level.shape[2])
