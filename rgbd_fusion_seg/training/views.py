"""Batches of views for the networks: deterministic in the seed and the step alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rgbd_fusion_seg.training.augment import View, random_view, whole_view
from rgbd_fusion_seg.training.config import TrainConfig
from rgbd_fusion_seg.training.datasets.cache import CachedFrames


class TrainingBatches(Dataset):
    """Item ``step`` is the batch of that step; a resumed run continues with the same ones.

    Args:
        real: frames that are visited in a new random order each epoch.
        synthetic: frames drawn at random, ``synthetic_share`` of each batch on average.
        config: the run.
        first_step, num_steps: the items are steps first_step .. num_steps - 1.
    """

    def __init__(
        self,
        real: CachedFrames,
        synthetic: CachedFrames | None,
        config: TrainConfig,
        first_step: int,
        num_steps: int,
    ) -> None:
        self.real, self.synthetic, self.config = real, synthetic, config
        self.first_step, self.num_steps = first_step, num_steps

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        step = self.first_step + item
        config, data = self.config, self.config.data
        views = []
        for k in range(config.batch_size):
            draw = step * config.batch_size + k
            rng = np.random.default_rng((config.seed, draw))
            if self.synthetic is not None and rng.random() < data.synthetic_share:
                frames, index = self.synthetic, int(rng.integers(len(self.synthetic)))
            else:
                frames, index = self.real, self._real_index(draw)
            views.append(
                random_view(frames, index, (data.width, data.height), config.augment, rng)
            )
        return to_tensors(views)

    def _real_index(self, draw: int) -> int:
        epoch, position = divmod(draw, len(self.real))
        order = np.random.default_rng((self.config.seed, 1, epoch)).permutation(len(self.real))
        return int(order[position])


class WholeFrames(Dataset):
    """Every frame once, whole, at the network's size; labels at their own size."""

    def __init__(self, frames: CachedFrames, rgb_size: tuple[int, int]) -> None:
        self.frames, self.rgb_size = frames, rgb_size

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return to_tensors([whole_view(self.frames, index, self.rgb_size)])


def to_tensors(views: list[View]) -> dict[str, Tensor]:
    """Stack views: uint8 rgb (N, H, W, 3), hha (N, h, w, 3), labels (N, H, W)."""
    return {
        name: torch.from_numpy(np.stack([getattr(view, name) for view in views]))
        for name in ('rgb', 'hha', 'labels')
    }


def batches(dataset: Dataset, workers: int) -> DataLoader:
    """Return a loader over a dataset whose items are whole batches."""
    return DataLoader(dataset, batch_size=None, shuffle=False, num_workers=workers)


class Normaliser(torch.nn.Module):
    """uint8 images (N, H, W, 3) -> float (N, 3, H, W): (pixel - mean) / std, as on the card.

    Args:
        statistics: input name -> (mean, std), each 3 numbers on the 0..255 scale.
    """

    def __init__(self, statistics: dict[str, tuple[list[float], list[float]]]) -> None:
        super().__init__()
        self.statistics = statistics
        for name, (mean, std) in statistics.items():
            self.register_buffer(f'{name}_mean', torch.tensor(mean).view(1, 3, 1, 1))
            self.register_buffer(f'{name}_std', torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the network's inputs, channels last in memory."""
        out = {}
        for name in self.statistics:
            image = batch[name].permute(0, 3, 1, 2).float()
            out[name] = (image - getattr(self, f'{name}_mean')) / getattr(self, f'{name}_std')
        return out


def channel_statistics(frames: CachedFrames) -> dict[str, tuple[list[float], list[float]]]:
    """Return mean and standard deviation of each channel of colour and HHA, 0..255 scale."""
    out = {}
    for name, images in (('rgb', frames.rgb[::4]), ('hha', frames.hha[-1][::4])):
        pixels = np.asarray(images[:, ::4, ::4], dtype=np.float64).reshape(-1, 3)
        mean, std = pixels.mean(0), pixels.std(0)
        out[name] = ([round(float(v), 3) for v in mean], [round(float(v), 3) for v in std])
    return out
