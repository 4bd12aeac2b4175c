"""The discriminator of pix2pix: tells for each patch whether an image is real, given the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.translation.fusions import instance_norm

SLOPE = 0.2
INITIAL_STD = 0.02


class PatchDiscriminator(nn.Module):
    """Five convolutions of kernel 4, one discriminator for all streams of a target.

    Args:
        width: channels of the first layer.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths, strides = [6, width, 2 * width, 4 * width, 8 * width, 1], [2, 2, 2, 1, 1]
        pairs = zip(widths[:-1], widths[1:], strides, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, s, 1) for a, b, s in pairs)
        self.norms = nn.ModuleList(instance_norm(x) for x in widths[2:-1])
        for conv in self.convs:
            nn.init.normal_(conv.weight, 0, INITIAL_STD)

    def forward(self, given: Tensor, image: Tensor) -> Tensor:
        """(N, 3, H, W) of the input and of the image in question -> logits (N, 1, h, w)."""
        x = self.convs[0](torch.cat([given, image], 1))
        for conv, norm in zip(self.convs[1:-1], self.norms, strict=True):
            x = norm(conv(F.leaky_relu(x, SLOPE)))
        return self.convs[-1](F.leaky_relu(x, SLOPE))


def realness_loss(logits: Tensor, real: bool) -> Tensor:
    """Return the binary cross-entropy of patches that are, or are to be taken for, real or not."""
    wanted = torch.full_like(logits, float(real), dtype=torch.float)
    return F.binary_cross_entropy_with_logits(logits.float(), wanted)
