"""What the card of an engine tells of its worth: agreement with ONNX Runtime, and latency."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.engine.engine_files import EngineCard, build_lock, read_card, write_card
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.preprocess import hha_image, hha_tensor, rgb_tensor
from rgbd_fusion_seg.replay.segment import open_source
from rgbd_fusion_seg.segmenter import Segmenter
from rgbd_fusion_seg.synthetic.scene import KINECT, Room
from rgbd_fusion_seg.synthetic.sensor import simulate_kinect
from rgbd_fusion_seg.timing import percentiles_ms

_log = logging.getLogger(__name__)

ROOM_SEED = 1_000_002
"""A room that no network was trained on."""
ENOUGH_AGREEMENT = 0.99
"""Share of equal labels below which something is wrong rather than rounded."""


def check_engine(
    bundle: ModelBundle,
    path: Path,
    source: Path | None = None,
    num_frames: int = 8,
    repeats: int = 100,
) -> EngineCard:
    """Run a TensorRT engine on frames, and note on its card how it did.

    Args:
        bundle: the network, at a size that the engine takes.
        path: of the engine's card.
        source: a recording, as of ``rgbd-fusion-seg segment``; default: a synthetic room.
        num_frames: to compare, spread over the recording.
        repeats: inferences to time.

    Returns:
        The card with its new entries.

    Raises:
        EngineError: no GPU, or an engine that cannot run on it.
        InputError: a recording that cannot be used.
    """
    frames = sample_frames(source, num_frames)
    which = str(source) if source else f'synthetic room {ROOM_SEED}'
    with (
        Segmenter(bundle, 'tensorrt', engine_file=str(path)) as engine,
        Segmenter(bundle, 'onnxruntime') as reference,
    ):
        agreement = {'frames': len(frames), 'which': which, **compare(engine, reference, frames)}
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
    card = dataclasses.replace(read_card(path), agreement=agreement, latency_ms=latency)
    with build_lock(path.parent, wait=True):
        write_card(path, card)
    return card


def compare(
    engine: Segmenter, reference: Segmenter, frames: Sequence[RgbdFrame]
) -> dict[str, Any]:
    """Compare two segmenters of the same bundle.

    Returns:
        ``equal_labels``: share of the pixels, 0..1; ``largest_logit_error``, and
        ``largest_logit`` to compare it with (both None where the graph returns labels);
        ``reference``: its name.
    """
    equal = total = 0
    logits: list[tuple[float, float]] = []
    for frame in frames:
        ours, theirs = engine.segment(frame).labels, reference.segment(frame).labels
        equal, total = equal + int((ours == theirs).sum()), total + ours.size
        if engine.bundle.fused is None:
            logits.append(_logit_error(engine, reference, frame))
    error, largest = np.max(logits, axis=0).tolist() if logits else (None, None)
    return {
        'equal_labels': round(equal / total, 6),
        'largest_logit_error': error,
        'largest_logit': largest,
        'reference': reference.engine_name,
    }


def sample_frames(source: Path | None, count: int) -> list[RgbdFrame]:
    """Return frames spread over a recording, or of a walk through a synthetic room.

    Raises:
        InputError: a recording that cannot be used, or has no frames.
    """
    if source is None:
        return list(_synthetic_frames(count))
    recording = open_source(source)
    step = max(1, len(recording) // count)
    frames = list(islice(recording, 0, step * count, step))
    if not frames:
        raise InputError(f'{source} has no frames to compare engines on; give another recording')
    return frames


def _logit_error(engine: Segmenter, reference: Segmenter, frame: RgbdFrame) -> tuple[float, float]:
    bundle, tensors = engine.bundle, {}
    if bundle.rgb is not None:
        tensors['rgb'] = rgb_tensor(frame.rgb, bundle.rgb)
    if (size := bundle.hha) is not None:
        image = hha_image(frame.depth, frame.intrinsics, size.width, size.height)
        tensors['hha'] = hha_tensor(image, size)
    ours, theirs = engine.engine.infer(**tensors), reference.engine.infer(**tensors)
    return float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())


def _synthetic_frames(count: int) -> Iterator[RgbdFrame]:
    room, rng = Room.random(ROOM_SEED), np.random.default_rng(ROOM_SEED)
    for pose in room.trajectory(ROOM_SEED, count, 1.0):
        view = room.render(pose, KINECT)
        depth = simulate_kinect(view.depth, KINECT, rng, view.labels, rgb=view.rgb)
        yield RgbdFrame(view.rgb, depth, KINECT)
