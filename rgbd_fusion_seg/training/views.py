"""From prepared frames to batches on the training device.

Loader processes draw the views. Frames are kept on the device where they fit, else the loaders
read them from the memory maps; either way only the windows that the views show are gathered, still
as they are, and everything else is done by torch on the device (`augment`), a whole batch at a
time: a GPU is kept waiting by the number of its tasks more than by their size. A batch depends on
the seed and the step alone: not on the number of loader processes, nor on where the frames are
kept, and with several training processes each makes its slice of the same batch.
"""

from __future__ import annotations

import functools
import itertools
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rgbd_fusion_seg import depth as depths
from rgbd_fusion_seg import preprocess
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training import augment
from rgbd_fusion_seg.training.augment import View
from rgbd_fusion_seg.training.config import TrainConfig
from rgbd_fusion_seg.training.datasets.cache import CachedFrames
from rgbd_fusion_seg.training.networks.base import MODALITIES

ENOUGH_DETAIL = 0.75
"""A level of a pyramid serves a view that enlarges it up to 1 / this; one of twice its size would
only be shrunk again."""
RESIDENT_SHARE = 0.5
"""Frames stay on the device when they take no more than this share of its free memory."""
COPIED_FRAMES = 64
"""Frames copied to the device at a time."""
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
        sources: the real frames and, if there are any, the synthetic ones.
        config: the run.
        sizes: modalities and 'labels' -> (height, width) of the views; what is absent here is
            not read.
        rank, world_size: this process and how many there are.
        resident: the frames lie on the device, one level after the other as by `to_device`, so
            only the places of windows are told.
    """

    def __init__(
        self,
        sources: Sequence[Levels],
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

    def choose(self, draw: int) -> tuple[int, int, View]:
        """Return source, index and view of a run's draw number ``draw``.

        Every `1 / synthetic_share`-th draw is synthetic, so an epoch of the real frames holds
        each of them once, whatever comes on top.
        """
        share = self.config.data.synthetic_share if len(self.sources) > 1 else 0.0
        synthetic = int(draw * share)
        source = int(int((draw + 1) * share) > synthetic)
        labels = self.sources[source]['labels'][-1]
        position = synthetic if source else draw - synthetic
        epoch, within = divmod(position, len(labels))
        index = int(shuffled(len(labels), self.config.seed, epoch, source)[within])
        rng = np.random.default_rng((self.config.seed, draw))
        return source, index, augment.draw_view(self.config.augment, labels.shape[1:3], rng)


@functools.lru_cache(maxsize=8)
def shuffled(count: int, seed: int, epoch: int, source: int) -> np.ndarray:
    """Return the order in which an epoch visits ``count`` frames."""
    # The last number is not 0: numpy pads seeds with zeros, and (seed, draw) are those of views.
    return np.random.default_rng((seed, epoch, 1 + source)).permutation(count)


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


def level_starts(sources: Sequence[Levels], name: str) -> list[list[int]]:
    """Return the first pixel of each source's levels, where `to_device` lays them."""
    counts = [[math.prod(level.shape[:3]) for level in source[name]] for source in sources]
    starts = iter(itertools.accumulate(itertools.chain(*counts), initial=0))
    return [[next(starts) for _ in pyramid] for pyramid in counts]


class TrainingViews:
    """Batches of random views on the training device.

    Args:
        real: frames that are visited in a new random order each epoch.
        synthetic: frames of which ``config.data.synthetic_share`` of the views are made.
        config: the run.
        hha_size: height and width of the network's HHA or depth input; None where it reads
            neither.
        device: where batches are made.
        modalities: inputs that the network reads.
        rank, world_size: this training process and how many there are.

    Raises:
        InputError: a batch that cannot be shared by the processes, or an unknown ``resident``.
    """

    def __init__(
        self,
        real: CachedFrames,
        synthetic: CachedFrames | None,
        config: TrainConfig,
        hha_size: tuple[int, int] | None,
        device: torch.device | str,
        modalities: Sequence[str] = ('rgb', 'hha'),
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if config.batch_size % world_size:
            raise InputError(
                f'a batch of {config.batch_size} views cannot be shared by {world_size} '
                'processes; make batch_size a multiple of their number'
            )
        self.config, self.device = config, torch.device(device)
        size = config.data.height, config.data.width
        sizes = {'rgb': size, 'hha': hha_size, 'depth': hha_size, 'labels': size}
        self.sizes = {
            name: size
            for name, size in sizes.items()
            if size is not None and (name in modalities or name == 'labels')
        }
        frames = [real] if synthetic is None else [real, synthetic]
        sources = [{name: levels(f, name) for name in self.sizes} for f in frames]
        self.resident = is_resident(config.data.resident, sources, self.device)
        self.pixels = {
            name: to_device([x for source in sources for x in source[name]], self.device)
            for name in self.sizes
            if self.resident
        }
        self.reader = ViewReader(sources, config, self.sizes, rank, world_size, self.resident)
        self.rgb_taps = self._taps(sources) if 'rgb' in self.sizes else 1
        self.noise = augment.noise_table(size[0] * size[1]).to(self.device)
        mean = channel_statistics(real)['rgb'][0] if config.augment.leaves_frame else (0, 0, 0)
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
        workers = self.config.data.workers
        gathered = DataLoader(
            self.reader,
            batch_size=None,
            sampler=range(first_step, first_step + num_steps),
            num_workers=workers,
            pin_memory=self.device.type == 'cuda',
            # Forked processes share the memory maps; others would be sent copies of them.
            multiprocessing_context='fork' if workers else None,
            worker_init_fn=leave_signals,
        )
        for batch in gathered:
            yield self._render(batch)

    def _taps(self, sources: Sequence[Levels]) -> int:
        """Samples per pixel and axis that the smallest colour images need, see sample_images."""
        # Bilinear samples average two pixels an axis, so they serve down to half the size.
        height, width = self.sizes['rgb']
        smallest = [source['rgb'][0].shape[1:3] for source in sources]
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


def leave_signals(worker: int) -> None:
    """Leave SIGINT and SIGTERM to the training process, which needs its loaders to end in order.

    Terminals and `timeout` send them to a whole group of processes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def levels(frames: CachedFrames, name: str) -> list[np.ndarray]:
    """Return the images of a modality, or the labels, the smallest level first."""
    images = getattr(frames, name)
    images = list(images) if isinstance(images, tuple) else [images]
    return sorted(images, key=lambda level: level.shape[2])


def is_resident(wish: str, sources: Sequence[Levels], device: torch.device) -> bool:
    """Tell whether frames are kept on the device, see DataConfig.resident."""
    if wish not in ('auto', 'always', 'never'):
        raise InputError(f"data.resident is 'auto', 'always' or 'never', not {wish!r}")
    if wish != 'auto' or device.type != 'cuda':
        return wish == 'always'
    size = sum(x.nbytes for source in sources for pyramid in source.values() for x in pyramid)
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


def whole_frames(
    frames: CachedFrames,
    rgb_size: tuple[int, int] | None,
    hha_size: tuple[int, int] | None,
    device: torch.device | str,
    indices: Sequence[int] | None = None,
    batch_size: int = 1,
    depth_size: tuple[int, int] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield whole frames as the runtime would feed them to a network.

    Colour is resampled by the runtime's own `preprocess.rgb_image`. HHA and depth are the cached
    ones of that size, which the runtime's `preprocess.hha_image` and `depth_image` made; where the
    cache has no such size, they are resampled from the next larger one.

    Args:
        frames: the set.
        rgb_size, hha_size: height and width of the network's inputs; None where it reads none.
        device: where the batches go.
        indices: which frames, in which order; default: all.
        batch_size: frames a batch.
        depth_size: of the network's depth input; None where it reads none.

    Yields:
        'rgb' float32 (n, 3, H, W), 'hha' float32 (n, 3, h, w), both 0..255 and channels last in
        memory, 'depth' float32 (n, 1, h, w) in metres, and 'labels' uint8 (n, H', W') at their own
        size.
    """
    indices = range(len(frames)) if indices is None else indices
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        images = {
            name: [_whole_image(levels(frames, name), i, size, name) for i in chosen]
            for name, size in (('rgb', rgb_size), ('hha', hha_size), ('depth', depth_size))
            if size is not None
        }
        batch = {
            name: torch.from_numpy(np.reshape(stack, (len(stack), *stack[0].shape[:2], -1)))
            for name, stack in images.items()
        }
        batch = {k: x.to(device).permute(0, 3, 1, 2).float() for k, x in batch.items()}
        batch['labels'] = torch.from_numpy(np.stack([frames.labels[i] for i in chosen])).to(device)
        yield batch


def _whole_image(
    pyramid: Sequence[np.ndarray], index: int, size: tuple[int, int], name: str
) -> np.ndarray:
    height, width = size
    for level in pyramid:
        if level.shape[1:3] == size:
            return level[index]
    larger = [x for x in pyramid if x.shape[1] >= height and x.shape[2] >= width]
    source = larger[0] if larger and name != 'rgb' else pyramid[-1]
    if name == 'depth':
        return depths.resize_depth(source[index], width, height)
    return preprocess.rgb_image(source[index], width, height)


class Normaliser(torch.nn.Module):
    """Images (N, 3, H, W) on the 0..255 scale -> (pixel - mean) / std, as on a model's card.

    Depth (N, 1, H, W) in metres becomes three channels.

    Args:
        statistics: input name -> (mean, std), each 3 numbers on the 0..255 scale, or in metres.
    """

    def __init__(self, statistics: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
        super().__init__()
        self.statistics = dict(statistics)
        for name, (mean, std) in statistics.items():
            self.register_buffer(f'{name}_mean', torch.tensor(mean).view(1, 3, 1, 1))
            self.register_buffer(f'{name}_std', torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the network's inputs; what else is in the batch is left out."""
        return {
            name: (batch[name] - getattr(self, f'{name}_mean')) / getattr(self, f'{name}_std')
            for name in self.statistics
        }


def channel_statistics(frames: CachedFrames) -> dict[str, tuple[list[float], list[float]]]:
    """Return mean and standard deviation of each channel of the modalities that frames have.

    On the 0..255 scale; of depth in metres, three times.
    """
    out = {}
    for name in MODALITIES:
        if not (pyramid := levels(frames, name)):
            continue
        # Every fourth frame, row and column: enough for three digits.
        pixels = pyramid[-1][::4, ::4, ::4]
        pixels = pixels.reshape(-1, *pixels.shape[3:] or (1,))
        mean = np.broadcast_to(pixels.mean(0, dtype=np.float64), 3)
        std = np.broadcast_to(pixels.std(0, dtype=np.float64), 3)
        out[name] = ([round(float(v), 3) for v in mean], [round(float(v), 3) for v in std])
    return out
