"""From prepared frames to batches on the training device.

Loader processes draw the views. Frames are kept on the device where they fit, else the loaders
read them from the memory maps; either way only the windows that the views show are gathered, still
as they are, and everything else is done by torch on the device (`augment`), a whole batch at a
time: a GPU is kept waiting by the number of its tasks more than by their size. A batch depends on
the seed and the step alone: not on the number of loader processes, nor on where the frames are
kept, and with several training processes each makes its slice of the same batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rgbd_fusion_seg import preprocess
from rgbd_fusion_seg.training import augment
from rgbd_fusion_seg.training.config import TrainConfig
from rgbd_fusion_seg.training.datasets.cache import CachedFrames
from rgbd_fusion_seg.training.inputs import channel_statistics
from rgbd_fusion_seg.training.view_reader import (
    FIELDS,
    PLACE,
    Levels,
    ViewReader,
    distinct,
    levels,
    step_batches,
)

RESIDENT_SHARE = 0.5
"""Frames stay on the device when they take no more than this share of its free memory."""
SOURCES = ('train', 'synthetic', 'stereo')
"""Sets of frames that views are drawn from."""
COPIED_FRAMES = 64
"""Frames copied to the device at a time."""


class TrainingViews:
    """Batches of random views on the training device.

    Args:
        frames: 'train', visited in a new random order each epoch; and where there are any
            'synthetic', of which ``config.data.synthetic_share`` of the views are made, and
            'stereo', those of 'train' with other depth, ``config.data.stereo_share`` of the rest.
        config: the run.
        sizes: height and width of the network's inputs, see `SegmentationNetwork.input_sizes`.
        device: where batches are made.
        rank, world_size: this training process and how many share a batch, equal parts each.
    """

    def __init__(
        self,
        frames: Mapping[str, CachedFrames],
        config: TrainConfig,
        sizes: Mapping[str, tuple[int, int]],
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.config, self.device = config, torch.device(device)
        size = config.data.height, config.data.width
        self.sizes = {**sizes, 'labels': size}
        sources = {
            source: {name: levels(frames[source], name) for name in self.sizes}
            for source in SOURCES
            if source in frames
        }
        self.resident = is_resident(config.data.resident, sources, self.device)
        self.pixels = {
            name: to_device(distinct(sources, name), self.device)
            for name in self.sizes
            if self.resident
        }
        self.reader = ViewReader(sources, config, self.sizes, rank, world_size, self.resident)
        self.rgb_taps = self._taps(sources) if 'rgb' in self.sizes else 1
        self.noise = augment.noise_table(size[0] * size[1]).to(self.device)
        leaves_frame = config.augment.leaves_frame
        mean = channel_statistics(frames['train'])['rgb'][0] if leaves_frame else (0, 0, 0)
        values = {
            'mean': mean,
            'rgb': augment.MISSING_RGB,
            'hha': augment.MISSING_HHA,
            'depth': augment.MISSING_DEPTH,
        }
        self.blanks = {
            name: torch.tensor(value, dtype=torch.float, device=self.device)
            for name, value in values.items()
        }

    def batches(self, first_step: int, num_steps: int) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of ``num_steps`` steps from ``first_step`` on, this process' part.

        Yields:
            'rgb' float32 (n, 3, H, W) and 'hha' float32 (n, 3, h, w), both 0..255 and channels
            last in memory, and 'depth' float32 (n, 1, h, w) in metres, as far as the network reads
            them, and 'labels' uint8 (n, H, W), 255 = void.
        """
        workers, pinned = self.config.data.workers, self.device.type == 'cuda'
        for batch in step_batches(self.reader, first_step, num_steps, workers, pinned):
            yield self._render(batch)

    def _taps(self, sources: Mapping[str, Levels]) -> int:
        """Samples per pixel and axis that the smallest colour images need, see sample_images."""
        # Bilinear samples average two pixels an axis, so they serve down to half the size.
        height, width = self.sizes['rgb']
        smallest = [source['rgb'][0].shape[1:3] for source in sources.values()]
        scale = max(math.sqrt(h * w / (height * width)) for h, w in smallest)
        return max(1, math.ceil(scale / self.config.augment.min_zoom / 2 - 1e-6))

    def _render(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        batch = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
        shapes = {**FIELDS, **{f'{name}_map': (2, 3) for name in self.sizes}}
        parts = batch['numbers'].split([math.prod(x) for x in shapes.values()], dim=1)
        for (name, shape), part in zip(shapes.items(), parts, strict=True):
            batch[name] = part.unflatten(1, shape)
        result = {}
        if 'rgb' in self.sizes:
            result['rgb'] = self._render_rgb(batch)
        if 'hha' in self.sizes:
            result['hha'] = self._render_hha(batch)
        if 'depth' in self.sizes:
            result['depth'] = self._render_depth(batch)
        size = self.sizes['labels']
        labels, extents = self._canvas(batch, 'labels')
        labels = augment.sample_nearest(labels, extents, batch['labels_map'], size)
        if self.config.augment.leaves_frame:
            labels.masked_fill_(~augment.inside_frame(batch['to_frame'], size), augment.VOID)
        return {**result, 'labels': labels}

    def _canvas(self, batch: dict[str, Any], name: str) -> tuple[Tensor, Tensor]:
        """Return (n, h, w, ...) windows, and float32 (n, 2) columns and rows of each."""
        place = PLACE * list(self.sizes).index(name)
        first, stride, *sides = batch['places'][:, place : place + PLACE].unbind(1)
        extents = torch.stack(sides, 1)
        if not self.resident:
            return batch[name], extents.float()
        last = (extents - 1)[:, :, None, None]
        rows, columns = (torch.arange(side, device=self.device) for side in batch['canvas'][name])
        # Beyond a window its last row or column is repeated, which nobody looks at.
        rows = rows[:, None].minimum(last[:, 1]) * stride[:, None, None]
        index = first[:, None, None] + rows + columns.minimum(last[:, 0])
        pixels = self.pixels[name]
        windows = pixels.index_select(0, index.flatten())
        return windows.view(*index.shape, *pixels.shape[1:]), extents.float()

    def _render_rgb(self, batch: dict[str, Any]) -> Tensor:
        size = self.sizes['rgb']
        canvas = self._canvas(batch, 'rgb')
        image = augment.sample_images(*canvas, batch['rgb_map'], size, self.rgb_taps)
        run = 3 * size[0] * size[1]
        noise = torch.stack([self.noise[i : i + run] for i in batch['noise_offset']])
        image = augment.jitter_rgb(
            image, batch['rgb_matrix'], batch['contrast'], noise.view_as(image), batch['noise']
        )
        return self._finish(image, batch, 'rgb', self.blanks['mean'])

    def _render_hha(self, batch: dict[str, Any]) -> Tensor:
        canvas = self._canvas(batch, 'hha')
        image = augment.sample_images(*canvas, batch['hha_map'], self.sizes['hha'])
        scale, shift = (batch[name][..., None, None] for name in ('hha_scale', 'hha_shift'))
        image = torch.addcmul(shift, image, scale).clamp_(0, 255)
        return self._finish(image, batch, 'hha', self.blanks['hha'])

    def _render_depth(self, batch: dict[str, Any]) -> Tensor:
        size = self.sizes['depth']
        canvas = self._canvas(batch, 'depth')
        image = augment.sample_nearest(*canvas, batch['depth_map'], size)[:, None].float()
        scale, strength = (batch[name][..., None, None] for name in ('depth_scale', 'depth_noise'))
        run = size[0] * size[1]
        starts = [augment.NOISE_OFFSETS - i for i in batch['noise_offset']]
        noise = torch.stack([self.noise[i : i + run] for i in starts]).view_as(image)
        image = image * scale
        image = torch.addcmul(image, noise * strength, image.square())
        image = image.clamp_(0, preprocess.FARTHEST_INPUT_M)
        return self._finish(image, batch, 'depth', self.blanks['depth'])

    def _finish(self, image: Tensor, batch: dict[str, Any], name: str, outside: Tensor) -> Tensor:
        """Fill what is outside the frame, and the views of a lost sensor."""
        config = self.config.augment
        if config.leaves_frame:
            inside = augment.inside_frame(batch['to_frame'], self.sizes[name])
            image = augment.blank(image, ~inside, outside)
        if config.drop_rgb or config.drop_hha:
            lost = batch[f'drop_{name}'][:, None] > 0
            image = augment.blank(image, lost, self.blanks[name])
        return image.contiguous(memory_format=torch.channels_last)


def is_resident(wish: str, sources: Mapping[str, Levels], device: torch.device) -> bool:
    """Tell whether frames are kept on the device, see DataConfig.resident."""
    if wish != 'auto' or device.type != 'cuda':
        return wish == 'always'
    size = sum(x.nbytes for name in sources['train'] for x in distinct(sources, name))
    free, _ = torch.cuda.mem_get_info(device)
    return size <= RESIDENT_SHARE * free


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Lay (N, h, w, ...) maps of one type on a device, one after the other: (pixels, ...)."""
    counts = [math.prod(x.shape[:3]) for x in arrays]
    dtype = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
    result = torch.empty((sum(counts), *arrays[0].shape[3:]), dtype=dtype, device=device)
    for images, target in zip(arrays, result.split(counts), strict=True):
        target = target.view(images.shape)
        for i in range(0, len(images), COPIED_FRAMES):
            part = torch.from_numpy(np.array(images[i : i + COPIED_FRAMES]))
            target[i : i + COPIED_FRAMES] = part
    return result
