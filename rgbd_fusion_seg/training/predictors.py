"""What can be scored, behind one interface: a checkpoint's network, or a bundle as it ships."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rgbd_fusion_seg.bundle import file_sha256, load_bundle
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import UNLABELLED, RgbdFrame
from rgbd_fusion_seg.postprocess import labels_and_confidence
from rgbd_fusion_seg.preprocess import depth_image, hha_image, rgb_image
from rgbd_fusion_seg.segmenter import Segmenter
from rgbd_fusion_seg.training.checkpoints import CHECKPOINT_SUFFIX, Checkpoint, load_checkpoint
from rgbd_fusion_seg.training.datasets.base import ClassSet
from rgbd_fusion_seg.training.inputs import Normaliser


class Predictor(Protocol):
    """Labels frames at their own size.

    Attributes:
        classes: what the labels mean.
        model: what was measured, as plain values for a report: path, hash, network, …
        measured_with: how, as the words of a sentence.
        branches: of a network that joins predictions: their names, see `SegmentationNetwork`; of
            a bundle that copes without a sensor: those from which it answers alone.
    """

    classes: ClassSet
    model: dict[str, Any]
    measured_with: str
    branches: tuple[str, ...]

    def predict(self, frame: RgbdFrame) -> np.ndarray:
        """Return uint8 (H, W) labels at the frame's size; 255 = unlabelled."""
        ...

    def predict_all(self, frame: RgbdFrame) -> list[np.ndarray]:
        """Return the labels of `predict`, and then those of each of `branches`."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def open_predictor(
    model: Path,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    device: str = 'auto',
    backend: str = 'auto',
) -> Predictor:
    """Open a checkpoint (.safetensors) or a bundle (folder or name).

    Args:
        model: what to open.
        scales, flip: as of `NetworkPredictor`; a bundle ships with one scale and no flip.
        device: of a checkpoint's network: 'auto' (a GPU if there is one), 'cpu', 'cuda', ….
        backend: of a bundle, see `rgbd_fusion_seg.engine.open_engine`.

    Raises:
        InputError: no checkpoint, or scales, flip or a device that cannot be used.
        BundleError, EngineError: no bundle, or one that cannot be run.
    """
    if model.suffix != CHECKPOINT_SUFFIX:
        if flip or tuple(scales) != (1.0,):
            raise InputError(
                f'{model} is a bundle, which is scored as it ships: at one scale, not mirrored; '
                f'leave scales and flip out, or give the checkpoint ({CHECKPOINT_SUFFIX})'
            )
        return BundlePredictor(Segmenter(load_bundle(model), backend), str(model))
    device = usable_device(device)
    checkpoint = load_checkpoint(model)
    described = {'path': str(model), 'kind': 'checkpoint', 'sha256': file_sha256(model)}
    return NetworkPredictor.of_checkpoint(checkpoint, described, scales, flip, device)


def usable_device(name: str) -> str:
    """Return the name of a device that torch can use; 'auto' is a GPU if there is one.

    Raises:
        InputError: it cannot.
    """
    if name == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition('\n')[0]
        raise InputError(
            f'the device {name} cannot be used ({reason}); give cpu, cuda or auto'
        ) from error
    return name


class BundlePredictor:
    """A bundle through the runtime's own pipeline, so that what is scored is what ships.

    Args:
        segmenter: the opened bundle; closing the predictor closes it.
        path: what the user calls the bundle.
    """

    def __init__(self, segmenter: Segmenter, path: str) -> None:
        bundle = segmenter.bundle
        own = [sensor for sensor in bundle.sensors if bundle.alone(sensor) is bundle]
        self.branches = () if bundle.sole_sensor else tuple(own)
        self.segmenter = segmenter
        self.classes = ClassSet(bundle.name, bundle.class_names, bundle.colors)
        width, height = bundle.input_size
        self.model = {
            'path': path,
            'kind': 'bundle',
            'sha256': bundle.weights_sha256,
            'network': bundle.card.get('network', {}).get('name', bundle.name),
            'input': f'{width}x{height}',
        }
        self.measured_with = (
            f'the runtime pipeline ({segmenter.engine_name}), network input {width}x{height}, '
            'single scale'
        )

    def predict(self, frame: RgbdFrame) -> np.ndarray:
        """Return uint8 (H, W) labels at the frame's size; 255 = unlabelled."""
        return self.segmenter.segment(frame).labels

    def predict_all(self, frame: RgbdFrame) -> list[np.ndarray]:
        """Return the labels of `predict`, and then those from each of `branches` alone."""
        alone = (self.segmenter.segment(frame, only=sensor).labels for sensor in self.branches)
        return [self.predict(frame), *alone]

    def close(self) -> None:
        """Free the engine."""
        self.segmenter.close()


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Convolve float32 in float32: on GPUs since Ampere torch keeps 10 bits of mantissa (TF32)."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class NetworkPredictor:
    """A torch network in float32 on raw frames, which it sees at one or several scales.

    At each scale colour is resampled and HHA is computed anew from the depth, as the runtime
    would at that input size; the logits are interpolated to the frame. The mirrored view is the
    mirror image of all inputs: depth, disparity, height and angle do not change when a scene is
    mirrored. Softmax probabilities of all views are averaged with equal weight, so that no view
    counts more for larger logits; one view alone is labelled as the runtime does.

    Args:
        network: in evaluation mode, on any device.
        normalise: what makes its inputs, on the same device.
        classes: of its K logits.
        size: width and height of its colour input at scale 1.
        model: what it is, for reports.
        scales: factors on `size`; sizes are rounded to what the network can take, each side apart,
            so that small ones are not quite of the same shape.
        flip: see each view mirrored as well.

    Raises:
        InputError: scales that are none.
    """

    def __init__(
        self,
        network: nn.Module,
        normalise: Normaliser,
        classes: ClassSet,
        size: tuple[int, int],
        model: dict[str, Any],
        scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
    ) -> None:
        if not scales or not all(0 < scale <= 8 for scale in scales):
            raise InputError(f'scales must be numbers above 0, up to 8, got {list(scales)}')
        self.network, self.normalise, self.classes = network, normalise, classes
        self.branches = network.predicting_branches
        self.flip = flip
        self.device = next(network.parameters()).device
        multiple = network.size_multiple
        self.sizes = [tuple(_rounded(x * scale, multiple) for x in size) for scale in scales]
        width, height = size
        self.model = {**model, 'input': f'{width}x{height}'}
        views = 'single scale' if len(scales) == 1 else f'scales {", ".join(map(str, scales))}'
        if tuple(scales) != (1.0,):
            if len(scales) == 1:
                views = f'scale {scales[0]}'
            views += f' ({", ".join(f"{w}x{h}" for w, h in self.sizes)})'
        mirrored = ' and mirrored' if flip else ''
        mean = ', mean of probabilities' if flip or len(scales) > 1 else ''
        self.views = f'{views}{mirrored}'
        self.measured_with = (
            f'torch float32 on {self.device.type}, network input {width}x{height}, '
            f'{self.views}{mean}'
        )

    @classmethod
    def of_checkpoint(
        cls,
        checkpoint: Checkpoint,
        model: dict[str, Any],
        scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
        device: str = 'cpu',
    ) -> NetworkPredictor:
        """Return the predictor of a checkpoint; ``model`` as of the class, without 'input'."""
        info = checkpoint.info
        network = checkpoint.build().to(device, memory_format=torch.channels_last)
        normalise = Normaliser(info['statistics']).to(device)
        model = {**model, 'network': info['network'], 'options': info['options']}
        size = info['width'], info['height']
        return cls(network, normalise, checkpoint.classes, size, model, scales, flip)

    def predict(self, frame: RgbdFrame) -> np.ndarray:
        """Return uint8 (H, W) labels at the frame's size; 255 = unlabelled."""
        return self.predict_all(frame)[0]

    @torch.inference_mode()
    @full_float32()
    def predict_all(self, frame: RgbdFrame) -> list[np.ndarray]:
        """Return the labels of `predict`, and then those of each of `branches`."""
        height, width = frame.depth.shape
        views = [self._inputs(frame, size) for size in self.sizes]
        if len(views) == 1 and not self.flip:
            labels = [labels_of(x, height, width) for x in self._logits(views[0])]
        else:
            labels = [best_class(x) for x in self._summed_probabilities(views, height, width)]
        return [x[0].cpu().numpy() for x in labels]

    def _summed_probabilities(
        self, views: Sequence[dict[str, Tensor]], height: int, width: int
    ) -> list[Tensor]:
        """Return the sum over all views, and their mirror images, of probabilities."""
        totals: list[Tensor | int] = [0] * (1 + len(self.branches))
        for view in views:
            logits = [self._logits(view)]
            if self.flip:
                mirrored = {name: image.flip(-1) for name, image in view.items()}
                logits.append([x.flip(-1) for x in self._logits(mirrored)])
            for of_view in logits:
                # On a CPU softmax is five times as fast where a class's pixels lie side by side.
                totals = [
                    total + enlarged(x.contiguous(), height, width).softmax(1)
                    for total, x in zip(totals, of_view, strict=True)
                ]
        return totals

    def close(self) -> None:
        """Free the network."""
        del self.network

    def _logits(self, view: dict[str, Tensor]) -> list[Tensor]:
        return all_logits(self.network, self.normalise(view))

    def _inputs(self, frame: RgbdFrame, size: tuple[int, int]) -> dict[str, Tensor]:
        width, height = size
        images = {}
        for name, (h, w) in self.network.input_sizes(height, width).items():
            if name == 'rgb':
                images[name] = rgb_image(frame.rgb, w, h)
            elif name == 'hha':
                images[name] = hha_image(frame.depth, frame.intrinsics, w, h)
            else:
                images[name] = depth_image(frame.depth, w, h)[..., None]
        return {name: to_tensor(image[None], self.device) for name, image in images.items()}


def all_logits(network: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return a network's logits, float32 (N, K, h, w), and then those of each branch of it.

    Branches are those of `SegmentationNetwork.predicting_branches`.
    """
    count = len(network.predicting_branches)
    outputs = network(inputs, auxiliary=True) if count else [network(inputs)]
    return [x.float() for x in outputs[: 1 + count]]


def to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """Return (N, H, W, C) as float32 (N, C, H, W) on a device, values as they are."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float()


def enlarged(logits: Tensor, height: int, width: int) -> Tensor:
    """Interpolate logits (N, K, h, w) to an image's size, as the runtime does."""
    return F.interpolate(logits, (height, width), mode='bilinear', align_corners=False)


def best_class(values: Tensor) -> Tensor:
    """Return uint8 (N, H, W) winners of (N, K, H, W); 255 where a value is not finite."""
    winners = values.argmax(1).to(torch.uint8)
    return torch.where(values.sum(1).isfinite(), winners, UNLABELLED)


def labels_of(logits: Tensor, height: int, width: int) -> Tensor:
    """Label images from logits: uint8 (N, height, width) on the device of (N, K, h, w).

    On a CPU by the runtime's own code, elsewhere by torch; labels differ at most where two
    classes tie.
    """
    if logits.device.type != 'cpu':
        return best_class(enlarged(logits, height, width))
    single = [x[None] for x in logits.float().contiguous().numpy()]
    labels = [labels_and_confidence(x, height, width)[0] for x in single]
    return torch.from_numpy(np.stack(labels))


def _rounded(size: float, multiple: int) -> int:
    return max(1, round(size / multiple)) * multiple
