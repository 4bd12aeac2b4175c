"""ERFNet (Romera et al., T-ITS 2018): factorised residual encoder and light decoder.

Parameter names are those of the authors' public PyTorch code, so that its checkpoints load.
Where that file leaves dropout open (0.03/0.3 while training, 0.1/0.1 in its evaluation copy,
which has no effect there), the training values are used.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.training.networks.base import MODALITIES, SegmentationNetwork, one_of

BN_EPS = 1e-3  # the public code's value, not torch's default 1e-5
ENCODER_STRIDE = 8
ENCODER_CHANNELS = 128
QUARTER_CHANNELS = 64  # of the encoder's and the decoder's features at 1/4
DECODERS = ('erfnet', 'erfnet_quarter')
DECODER_STRIDES = {'bilinear': ENCODER_STRIDE, 'erfnet_quarter': 4, 'erfnet': 1}
"""Stride of the logits by decoder; 'bilinear' is the 1x1 head, enlarged outside the network."""


class Downsampler(nn.Module):
    """Concatenate a strided 3x3 convolution and a 2x2 max pooling, then normalise: stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2, stride=2)
        self.bn = nn.BatchNorm2d(out_channels, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H/2, W/2)."""
        return F.relu(self.bn(torch.cat([self.conv(x), self.pool(x)], 1)))


class NonBottleneck1d(nn.Module):
    """Residual unit of factorised 3x1 and 1x3 convolutions, the second pair dilated."""

    def __init__(self, channels: int, dropout: float, dilation: int) -> None:
        super().__init__()
        d = dilation
        self.conv3x1_1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv1x3_1 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.bn1 = nn.BatchNorm2d(channels, eps=BN_EPS)
        self.conv3x1_2 = nn.Conv2d(channels, channels, (3, 1), padding=(d, 0), dilation=(d, 1))
        self.conv1x3_2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, d), dilation=(1, d))
        self.bn2 = nn.BatchNorm2d(channels, eps=BN_EPS)
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()

    def residual(self, x: Tensor) -> Tensor:
        """Return the residual function F(x); RFBNet adds complementary features to its input."""
        y = F.relu(self.conv3x1_1(x))
        y = F.relu(self.bn1(self.conv1x3_1(y)))
        y = F.relu(self.conv3x1_2(y))
        return self.dropout(self.bn2(self.conv1x3_2(y)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return F.relu(x + self.residual(x))


class Encoder(nn.Module):
    """Image (N, 3, H, W) -> features (N, 128, H/8, W/8).

    ``layers[0]`` and ``layers[6]`` are the downsamplers to 1/4 and 1/8; ``layers[7:]`` are the
    eight dilated units at 1/8.
    """

    def __init__(self, dropout: tuple[float, float] = (0.03, 0.3)) -> None:
        super().__init__()
        self.initial_block = Downsampler(3, 16)
        self.layers = nn.ModuleList(
            [Downsampler(16, 64)]
            + [NonBottleneck1d(64, dropout[0], 1) for _ in range(5)]
            + [Downsampler(64, 128)]
            + [NonBottleneck1d(128, dropout[1], d) for _ in range(2) for d in (2, 4, 8, 16)]
        )

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image -> (N, 64, H/4, W/4) before the last downsampler, and the encoder's output."""
        x = self.initial_block(x)
        for layer in self.layers[:6]:
            x = layer(x)
        quarter = x
        for layer in self.layers[6:]:
            x = layer(x)
        return quarter, x

    @property
    def units(self) -> nn.ModuleList:
        """The eight residual units at 1/8, which RFBNet pairs across modalities."""
        return self.layers[7:]

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 128, H/8, W/8)."""
        return self.features(x)[1]


class Upsampler(nn.Module):
    """Transposed 3x3 convolution of stride 2, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(
            in_channels, out_channels, 3, stride=2, padding=1, output_padding=1
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, 2H, 2W)."""
        return F.relu(self.bn(self.conv(x)))


class Decoder(nn.Module):
    """ERFNet's decoder, whole or its first third.

    Args:
        num_classes: number of classes K.
        kind: 'erfnet' as published, logits at full size; 'erfnet_quarter' ends where the
            published one has reached 1/4, with a 1x1 head. Most of the decoder's arithmetic is
            done by then, and 1/16 of the logits leave the network; the runtime enlarges them.
    """

    def __init__(self, num_classes: int, kind: str = 'erfnet') -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [Upsampler(ENCODER_CHANNELS, QUARTER_CHANNELS)]
            + [NonBottleneck1d(QUARTER_CHANNELS, 0.0, 1) for _ in range(2)]
        )
        if kind == 'erfnet_quarter':
            self.output_conv: nn.Module = nn.Conv2d(QUARTER_CHANNELS, num_classes, 1)
            return
        self.layers.append(Upsampler(QUARTER_CHANNELS, 16))
        self.layers.extend(NonBottleneck1d(16, 0.0, 1) for _ in range(2))
        self.output_conv = nn.ConvTranspose2d(16, num_classes, 2, stride=2)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(N, 128, H/8, W/8) and, if any, (N, 64, H/4, W/4) added at 1/4 -> logits."""
        x = self.layers[0](x)
        if skip is not None:
            x = x + skip
        for layer in self.layers[1:]:
            x = layer(x)
        return self.output_conv(x)


class ErfNetEncoder(SegmentationNetwork):
    """Unimodal ERFNetEnc of the RFBNet paper: the encoder and a 1x1 head, logits at 1/8.

    Args:
        num_classes: number of classes K.
        modality: 'rgb', 'hha' or 'depth', the input that is read.
        shrink_depth: an input of depth has half the colour's size, as the depth stream of a fusion
            network that starts from this one; the logits then are at 1/16 of the colour's size,
            and whoever compares them with labels enlarges them to those. No effect on 'rgb'.
        dropout: rates of the 64- and the 128-channel units.

    Raises:
        ValueError: an unknown modality.
    """

    def __init__(
        self,
        num_classes: int,
        modality: str = 'rgb',
        shrink_depth: bool = False,
        dropout: tuple[float, float] = (0.03, 0.3),
    ) -> None:
        super().__init__()
        one_of('modality', modality, MODALITIES)
        self.modality = modality
        self.modalities = (modality,)
        self.shrink_depth = shrink_depth and modality != 'rgb'
        self.stride = self.size_multiple = ENCODER_STRIDE * (2 if self.shrink_depth else 1)
        self.encoder = Encoder(dropout)
        self.head = nn.Conv2d(ENCODER_CHANNELS, num_classes, 1)

    def forward(
        self, inputs: Mapping[str, Tensor], auxiliary: bool = False
    ) -> Tensor | list[Tensor]:
        """``{modality: (N, 3, h, w)}`` -> logits (N, K, h/8, w/8).

        With ``auxiliary`` a list of them alone: there is no auxiliary output.

        Raises:
            ValueError: see `check_inputs`.
        """
        self.check_inputs(inputs)
        logits = self.head(self.encoder(inputs[self.modality]))
        return [logits] if auxiliary else logits


class ErfNet(ErfNetEncoder):
    """ERFNet: encoder and decoder, 2.07 M parameters for 20 classes.

    The public code has the encoder's 1x1 head too, for the first of its two training phases.
    Here its prediction is an auxiliary output, so that one run does the work of both phases.

    Args:
        num_classes, modality, shrink_depth, dropout: see `ErfNetEncoder`; the logits have the
            size of the input (with 'erfnet_quarter' 1/4 of it).
        decoder: 'erfnet' or 'erfnet_quarter', see `Decoder`.
        multi_level: add the encoder's features at 1/4 to the decoder's, behind a 1x1 convolution
            and batch norm. Not ERFNet's; what multi-level fusion is to be compared with.

    Raises:
        ValueError: an option with an unknown value.
    """

    auxiliary_weights = (0.3,)

    def __init__(
        self,
        num_classes: int,
        modality: str = 'rgb',
        shrink_depth: bool = False,
        decoder: str = 'erfnet',
        multi_level: bool = False,
        dropout: tuple[float, float] = (0.03, 0.3),
    ) -> None:
        super().__init__(num_classes, modality, shrink_depth, dropout)
        one_of('decoder', decoder, DECODERS)
        self.stride = DECODER_STRIDES[decoder] * (2 if self.shrink_depth else 1)
        self.decoder = Decoder(num_classes, decoder)
        self.skip: nn.Module | None = None
        if multi_level:
            self.skip = nn.Sequential(
                nn.Conv2d(QUARTER_CHANNELS, QUARTER_CHANNELS, 1, bias=False),
                nn.BatchNorm2d(QUARTER_CHANNELS, eps=BN_EPS),
            )

    def forward(
        self, inputs: Mapping[str, Tensor], auxiliary: bool = False
    ) -> Tensor | list[Tensor]:
        """``{modality: (N, 3, h, w)}`` -> logits (N, K, h, w) (or at 1/4).

        With ``auxiliary`` the list of them and the encoder head's, at 1/8.

        Raises:
            ValueError: see `check_inputs`.
        """
        self.check_inputs(inputs)
        quarter, x = self.encoder.features(inputs[self.modality])
        logits = self.decoder(x, self.skip(quarter) if self.skip is not None else None)
        return [logits, self.head(x)] if auxiliary else logits
