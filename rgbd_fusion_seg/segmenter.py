"""The pipeline: one RGB-D frame in, one segmentation out."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any

import numpy as np

from rgbd_fusion_seg import hha as hha_encoding
from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE, ModelBundle, TensorInput, load_bundle
from rgbd_fusion_seg.engine import open_engine
from rgbd_fusion_seg.errors import BundleError, InputError
from rgbd_fusion_seg.frame import UNLABELLED, Intrinsics, RgbdFrame, Segmentation
from rgbd_fusion_seg.postprocess import labels_and_confidence
from rgbd_fusion_seg.preprocess import hha_image, hha_tensor, rgb_tensor


class Segmenter:
    """Labels RGB-D frames with a bundle's network.

    Frames may have any size; the network sees them at the size on its card, and the labels have
    the frame's size again. One thread may use a segmenter at a time: its input buffers are
    reused from frame to frame. Results are the caller's to keep.

    Args:
        bundle: a loaded bundle, its folder, or the name of a shipped one.
        backend: inference backend, see :func:`rgbd_fusion_seg.engine.open_engine`.
        min_confidence: pixels with a confidence (0..255) below this become unlabelled.
        input_size: width and height at which the network sees frames (its depth stream may see
            a fraction of them); default: as on the card. Bundles with a dynamic size alone take
            another one.
        options: of the backend, such as ``num_threads``.

    Raises:
        BundleError, EngineError: as :func:`load_bundle`, :meth:`ModelBundle.resized` and
            :func:`open_engine`.
        InputError: a `min_confidence` outside 0..255.

    Example:
        >>> with Segmenter('rfbnet_erfnet_nyu40') as segmenter:  # doctest: +SKIP
        ...     result = segmenter.segment(frame)
        ...     print(result.labels.shape, result.timings)
    """

    def __init__(
        self,
        bundle: ModelBundle | str | os.PathLike[str] = DEFAULT_BUNDLE,
        backend: str = 'auto',
        *,
        min_confidence: int = 0,
        input_size: tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        if not 0 <= min_confidence <= 255:
            raise InputError(f'min_confidence must be 0..255, got {min_confidence}')
        self.bundle = bundle if isinstance(bundle, ModelBundle) else load_bundle(bundle)
        if input_size is not None:
            self.bundle = self.bundle.resized(*input_size)
        if self.bundle.hha is not None:
            _check_hha_constants(self.bundle)
        self._engine = open_engine(self.bundle, backend, **options)
        self._min_confidence = min_confidence
        self._buffers = {n: _empty_tensor(size) for n, size in self.bundle.inputs.items()}

    @property
    def engine_name(self) -> str:
        """Backend and device, for people."""
        return self._engine.name

    def segment(self, frame: RgbdFrame, gravity: np.ndarray | None = None) -> Segmentation:
        """Label a frame.

        A frame without any depth is labelled too, from colour alone as far as the network can;
        a network that sees depth alone then has nothing to go by.

        Args:
            frame: colour and registered depth.
            gravity: (3,) direction of gravity in optical axes (x right, y down, z forward), for
                instance from TF or an IMU; default: estimated from the depth.

        Returns:
            Labels and confidence at the frame's size, with its stamp and frame id, and the
            milliseconds of the stages ``hha`` (where the network sees depth), ``preprocess``,
            ``inference``, ``postprocess``.

        Raises:
            EngineError: inference failed, or the segmenter is closed.
        """
        clock = _StageClock()
        rgb, hha, tensors = self.bundle.rgb, self.bundle.hha, self._buffers
        if hha is not None:
            image = hha_image(frame.depth, frame.intrinsics, hha.width, hha.height, gravity)
            clock.finish('hha')
            hha_tensor(image, hha, out=tensors['hha'])
        if rgb is not None:
            rgb_tensor(frame.rgb, rgb, out=tensors['rgb'])
        clock.finish('preprocess')
        logits = self._engine.infer(**tensors)
        clock.finish('inference')
        labels, confidence = labels_and_confidence(logits, *frame.depth.shape)
        if self._min_confidence:
            labels[confidence < self._min_confidence] = UNLABELLED
        clock.finish('postprocess')
        return Segmentation(labels, confidence, clock.stages_ms, frame.stamp_ns, frame.frame_id)

    def warm_up(self) -> None:
        """Segment an empty frame, so that the first real one is not slow.

        The very first time on a machine this compiles the kernels, which takes some seconds.
        """
        width, height = self.bundle.input_size
        camera = Intrinsics(width, width, (width - 1) / 2, (height - 1) / 2, width, height)
        rgb = np.zeros((height, width, 3), dtype=np.uint8)
        self.segment(RgbdFrame(rgb, np.ones((height, width), dtype=np.float32), camera))

    def close(self) -> None:
        """Free the engine; closing again does nothing."""
        self._engine.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_hha_constants(bundle: ModelBundle) -> None:
    """Refuse a network that was trained on HHA of another kind than is computed here."""
    recorded = bundle.card.get('hha')
    if not isinstance(recorded, dict):
        raise BundleError(
            f"the card of {bundle.path} lacks the entry 'hha' with the constants of its depth "
            'encoding; export the bundle again'
        )
    for name, value in hha_encoding.constants().items():
        if recorded.get(name) != value:
            raise BundleError(
                f'the network {bundle.path} was trained on HHA with {name} = '
                f'{recorded.get(name)}, but this version computes it with {value}; use the '
                'version it was exported with, or train it again'
            )


class _StageClock:
    """Measures consecutive stages in milliseconds."""

    def __init__(self) -> None:
        self.stages_ms: dict[str, float] = {}
        self._since = time.perf_counter()

    def finish(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages_ms[stage] = (now - self._since) * 1e3
        self._since = now


def _empty_tensor(size: TensorInput) -> np.ndarray:
    return np.empty((1, 3, size.height, size.width), dtype=np.float32)
