"""What a network is given: whole frames as the runtime would feed them, and normalised images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rgbd_fusion_seg import depth as depths
from rgbd_fusion_seg import preprocess
from rgbd_fusion_seg.training.datasets.cache import CachedFrames
from rgbd_fusion_seg.training.networks.base import MODALITIES
from rgbd_fusion_seg.training.view_reader import levels


def whole_frames(
    frames: CachedFrames,
    sizes: Mapping[str, tuple[int, int]],
    device: torch.device | str,
    indices: Sequence[int] | None = None,
    batch_size: int = 1,
) -> Iterator[dict[str, Tensor]]:
    """Yield whole frames as the runtime would feed them to a network.

    Colour is resampled by the runtime's own `preprocess.rgb_image`. HHA and depth are the cached
    ones of that size, which the runtime's `preprocess.hha_image` and `depth_image` made; where the
    cache has no such size, they are resampled from the next larger one.

    Args:
        frames: the set.
        sizes: height and width of the network's inputs, see `SegmentationNetwork.input_sizes`.
        device: where the batches go.
        indices: which frames, in which order; default: all.
        batch_size: frames a batch.

    Yields:
        of those in ``sizes`` 'rgb' float32 (n, 3, H, W), 'hha' float32 (n, 3, h, w), both 0..255
        and channels last in memory, 'depth' float32 (n, 1, h, w) in metres, and 'labels' uint8
        (n, H', W') at their own size.
    """
    indices = range(len(frames)) if indices is None else indices
    for start in range(0, len(indices), batch_size):
        chosen = indices[start : start + batch_size]
        images = {
            name: [_whole_image(levels(frames, name), i, size, name) for i in chosen]
            for name, size in sizes.items()
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

    On the 0..255 scale; of depth in metres, three times. What never varies is divided by 1.
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
        out[name] = ([round(float(v), 3) for v in mean], [round(float(v), 3) or 1.0 for v in std])
    return out


def given_statistics(statistics: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """Return the statistics of `DataConfig` with three numbers for each mean and deviation."""
    return {
        name: [np.broadcast_to(numbers, 3).astype(float).tolist() for numbers in pair]
        for name, pair in statistics.items()
    }
