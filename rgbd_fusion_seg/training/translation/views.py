"""Training views: windows of prepared images, the same of every domain, some of them mirrored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rgbd_fusion_seg.training.translation.config import TranslationConfig
from rgbd_fusion_seg.training.translation.prepared import PreparedImages
from rgbd_fusion_seg.training.view_reader import shuffled, step_batches

NORMAL = 'normal'
"""The domain whose first channel is a direction to the right, which a mirror turns round."""


class TranslationViews(Dataset):
    """Batches by the number of the step; a batch depends on the seed and the step alone.

    As the public code cuts: a window anywhere in the image, mirrored or not. Its windows may begin
    a pixel too far, and have a black row then; and it mirrors the pictures of normals without what
    they mean. Here windows are whole, and a mirrored wall looks to the other side.

    Args:
        images: prepared at `images.load_side`.
        config: the run.
        rank, world_size: this training process and how many share a batch, equal parts each.
    """

    def __init__(
        self, images: PreparedImages, config: TranslationConfig, rank: int = 0, world_size: int = 1
    ) -> None:
        self.images, self.config = images, config
        share = config.batch_size // world_size
        self.places = range(rank * share, (rank + 1) * share)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Return step's batch: uint8 (n, side, side, 3) of each domain."""
        views = [self._view(step * self.config.batch_size + place) for place in self.places]
        return {
            name: torch.from_numpy(np.stack([view[name] for view in views]))
            for name in self.images.domains
        }

    def _view(self, number: int) -> dict[str, np.ndarray]:
        """Return a view's uint8 (side, side, 3) windows."""
        settings, seed = self.config.images, self.config.seed
        epoch, place = divmod(number, len(self.images))
        order = shuffled(len(self.images), seed, 0, epoch)
        rng = np.random.default_rng((seed, 1, number))
        top, left = rng.integers(0, settings.load_side - settings.side + 1, 2)
        mirrored = rng.random() < 0.5 and settings.flip
        rows, columns = slice(top, top + settings.side), slice(left, left + settings.side)
        windows = {}
        for name, images in self.images.domains.items():
            window = images[order[place]][rows, columns]
            windows[name] = mirror(name, window) if mirrored else window
        return windows

    def batches(
        self, first_step: int, num_steps: int, pinned: bool = False
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of ``num_steps`` steps from ``first_step`` on.

        Pinned memory is copied to a GPU while that works.
        """
        yield from step_batches(self, first_step, num_steps, self.config.images.workers, pinned)


def mirror(domain: str, image: np.ndarray) -> np.ndarray:
    """Return an image of a domain as a mirror shows it: uint8 (H, W, 3) -> the same."""
    mirrored = image[:, ::-1]
    if domain != NORMAL:
        return mirrored
    mirrored = mirrored.copy()
    mirrored[..., 0] = 255 - mirrored[..., 0]
    return mirrored
