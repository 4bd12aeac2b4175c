"""What the card of an engine tells of its worth: agreement with ONNX Runtime, and latency."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rgbd_fusion_seg.benchmark.compare import frames_of, label_agreement
from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.engine.engine_files import EngineCard, build_lock, read_card, write_card
from rgbd_fusion_seg.errors import EngineError
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.preprocess import network_inputs
from rgbd_fusion_seg.segmenter import Segmenter
from rgbd_fusion_seg.timing import percentiles_ms

_log = logging.getLogger(__name__)

ENOUGH_AGREEMENT = 0.99
"""Share of equal labels below which something is wrong rather than rounded."""


def check_engine(
    bundle: ModelBundle,
    path: Path,
    source: Path | None = None,
    num_frames: int = 8,
    repeats: int = 100,
    **camera: Any,
) -> EngineCard:
    """Run a TensorRT engine on frames, and note on its card how it did.

    Args:
        bundle: the network, at a size that the engine takes.
        path: of the engine's card.
        source: a recording, as of ``rgbd-fusion-seg segment``; default: synthetic rooms.
        num_frames: to compare, spread over the recording.
        repeats: inferences to time.
        camera: calibration and depth scale of the recording, as of `open_source`.

    Returns:
        The card with its new entries.

    Raises:
        EngineError: no GPU, an engine that cannot run on it, or one that a build replaced
            meanwhile.
        InputError: a recording that cannot be used.
        FrameError: frames of another size than a fused bundle takes.
    """
    frames, which, _ = frames_of(source, num_frames, bundle, **camera)
    measured = read_card(path)
    with (
        Segmenter(bundle, 'tensorrt', engine_file=str(path)) as engine,
        Segmenter(bundle, 'onnxruntime') as reference,
    ):
        agreement = {
            'frames': len(frames),
            'which': which,
            **differences(engine, reference, frames),
        }
        last = frames[-1]
        times = [engine.segment(last).timings['inference'] for _ in range(repeats)]
    share, error = agreement['equal_labels'], agreement['largest_logit_error']
    if not (share >= ENOUGH_AGREEMENT and (error is None or np.isfinite(error))):
        _log.warning(
            '%s labels only %.2f %% of the pixels of %s as ONNX Runtime does (largest logit '
            'error %s); another precision may do better',
            path,
            100 * share,
            which,
            error,
        )
    # The first ones still warm up clocks and caches.
    latency = percentiles_ms(np.asarray(times[len(times) // 10 :]) / 1e3)
    with build_lock(path.parent, wait=True):
        card = read_card(path)
        if card.engine_sha256 != measured.engine_sha256:
            raise EngineError(
                f'{path} was replaced while its engine was measured; run build-engine again, '
                'which measures the new one'
            )
        card = dataclasses.replace(card, agreement=agreement, latency_ms=latency)
        write_card(path, card)
    return card


def differences(
    engine: Segmenter, reference: Segmenter, frames: Sequence[RgbdFrame]
) -> dict[str, Any]:
    """Compare two segmenters of the same bundle.

    Returns:
        ``equal_labels``: share of the pixels, 0..1; ``largest_logit_error``, and
        ``largest_logit`` to compare it with (both None where the graph returns labels);
        ``reference``: its name.
    """
    share, _ = label_agreement(
        *([s.segment(f).labels for f in frames] for s in (engine, reference))
    )
    error = largest = None
    if engine.bundle.fused is None:
        logits = [_logit_error(engine, reference, frame) for frame in frames]
        error, largest = np.max(logits, axis=0).tolist()
    return {
        'equal_labels': round(share, 6),
        'largest_logit_error': error,
        'largest_logit': largest,
        'reference': reference.engine_name,
    }


def _logit_error(engine: Segmenter, reference: Segmenter, frame: RgbdFrame) -> tuple[float, float]:
    tensors = network_inputs(frame, engine.bundle.inputs)
    ours, theirs = engine.engine.infer(**tensors), reference.engine.infer(**tensors)
    return float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
