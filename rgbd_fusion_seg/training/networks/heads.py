"""What heads over the branches of modalities have in common."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.branches import BranchLayers, Maps, each


class Head(nn.Module):
    """From the features of an encoder to the logits of each branch.

    A head is made from the layers of the branches, the channels of the encoder's features, the
    number of classes K and options of its own; ``forward(features)`` returns the branches' logits
    (N, K, H/stride, W/stride). Features go from fine to coarse: the first at 1/4, the last at
    `output_stride`.
    """

    output_stride: int
    """Of the encoder that it works on."""
    stride: int
    """Of its logits."""
    auxiliary_weights: tuple[float, ...] = ()
    """Loss weights of what `auxiliary_logits` returns."""
    read_stages: tuple[int, ...] = (0, 1, 2, 3)
    """Stages of a ResNet whose features it reads."""

    def auxiliary_logits(self, features: Sequence[Maps]) -> list[list[Tensor]]:
        """Return further predictions of each branch, (N, K, h, w), for training alone."""
        return []


def check_head(dropout: float, width: int = 1) -> None:
    """Raise ValueError where a head's dropout is no rate, or its width not positive."""
    if width < 1:
        raise ValueError(f'width of the head must be at least 1, got {width}')
    if not 0 <= dropout <= 1:
        raise ValueError(f'dropout of the head must be 0 to 1, got {dropout}')


class ConvNormRelu(nn.Module):
    """Convolution without bias, norm and ReLU."""

    def __init__(
        self,
        layers: BranchLayers,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.conv = layers.conv(in_channels, out_channels, kernel_size, padding=padding)
        self.norm = layers.norm(out_channels)

    def forward(self, maps: Maps) -> list[Tensor]:
        """Maps (N, in, h, w) -> maps (N, out, h, w)."""
        return each(F.relu, self.norm(self.conv(maps)))


def head_layers(layers: BranchLayers, private_norms: bool) -> BranchLayers:
    """Return the layers of a head: its norms are shared where its convolutions are.

    CEN and AsymFusion keep norms private in the encoder and share those of the decoder (CEN's
    journal version §3.3, AsymFusion §4.2); networks that share nothing share no norms either.
    Norms shared in the encoder are shared in the head. ``private_norms`` makes the head's each
    branch's own in any case.
    """
    share_norms = (layers.share_convs or layers.share_norms) and not private_norms
    return BranchLayers(layers.num_branches, layers.share_convs, share_norms)
