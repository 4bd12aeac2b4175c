"""How near translated images are to the real ones.

Distances are taken as in the papers' tables for everything but colour: the mean absolute and the
mean squared error of values from -1 to 1 (TPAMI version, Tables 4 and 6 to 9). What is called MSE
there is in places more than twice the MAE, which no mean of squares of such values can be; its
root can. For colour they give the Fréchet and the kernel distance (FID, KID) of features of an
Inception network, whose weights are a file of one's own; `torchmetrics` computes both. The public
code computes them on pictures that a plotting library stretched to 500x500; here they are the
images as they are, so compare networks, not figures of that code.
"""

from __future__ import annotations

from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from rgbd_fusion_seg.errors import InputError

INCEPTION_SIDE = 299
KID_SUBSETS = 50
KID_SUBSET_SIZE = 1000


class Distances:
    """Errors of made images against real ones, over a set.

    Args:
        features: of FID and KID; None leaves them out.
        num_images: of the set.

    Raises:
        InputError: features, and fewer than two images.
    """

    def __init__(self, features: nn.Module | None, num_images: int) -> None:
        self.absolute = self.squared = 0.0
        self.values = 0
        self.metrics: dict[str, nn.Module] = {}
        if features is not None and num_images < 2:
            raise InputError(
                f'FID and KID compare distributions, and there is {num_images} image; give two '
                'or more, or leave the Inception network out'
            )
        if features is not None:
            size = min(KID_SUBSET_SIZE, num_images)
            self.metrics = {
                'FID': FrechetInceptionDistance(features, normalize=False),
                'KID': KernelInceptionDistance(
                    features, subsets=KID_SUBSETS, subset_size=size, normalize=False
                ),
            }

    def update(self, made: Tensor, real: Tensor) -> None:
        """Take in images: float (N, 3, H, W), -1 to 1."""
        difference = (made - real).double()
        self.absolute += float(difference.abs().sum())
        self.squared += float(difference.square().sum())
        self.values += difference.numel()
        for metric in self.metrics.values():
            metric.to(made.device)
            metric.update(as_bytes(real), real=True)
            metric.update(as_bytes(made), real=False)

    def gather(self, fabric: Fabric) -> None:
        """Add up the errors of all processes; features are not."""
        mine = torch.tensor([self.absolute, self.squared, self.values], dtype=torch.double)
        total = fabric.all_reduce(mine.to(fabric.device), reduce_op='sum').tolist()
        self.absolute, self.squared, self.values = total[0], total[1], round(total[2])

    def result(self) -> dict[str, float]:
        """Return 'MAE' and 'MSE', of values from -1 to 1, and 'FID' and 'KID' where measured."""
        found = {'MAE': self.absolute / self.values, 'MSE': self.squared / self.values}
        for name, metric in self.metrics.items():
            value = metric.compute()
            found[name] = float(value[0] if isinstance(value, tuple) else value)
        return found


def as_bytes(images: Tensor) -> Tensor:
    """Return what is shown of images: float, -1 to 1 -> uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class InceptionFeatures(nn.Module):
    """The features of an Inception-v3 that TorchScript holds, as of NVIDIA's public file.

    Args:
        path: of a module that takes uint8 (N, 3, H, W) images and, with ``return_features=True``,
            returns the 2048 features of its last pooling: inception-v3-2015-12-05.pt.

    Raises:
        InputError: no such file, or one that does not do so.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            self.network = torch.jit.load(str(path), map_location='cpu').eval()
            probe = torch.zeros(2, 3, INCEPTION_SIDE, INCEPTION_SIDE, dtype=torch.uint8)
            self.num_features = self(probe).shape[1]
        except Exception as error:  # whatever the module in the file does with images
            reason = ' '.join(str(error).split())[:200]
            raise InputError(
                f'{path} gives no features of images ({reason}); give the TorchScript file '
                'inception-v3-2015-12-05.pt that stylegan2-ada-pytorch names, or leave it out'
            ) from error

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> (N, features)."""
        return self.network(images, return_features=True)
