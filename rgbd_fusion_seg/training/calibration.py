"""Confidence that is right as often as it says: one temperature for a bundle's logits.

C. Guo, G. Pleiss, Y. Sun, K. Weinberger, On Calibration of Modern Neural Networks, ICML 2017:
section 4.2, temperature scaling; section 2, the expected calibration error.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from rgbd_fusion_seg.bundle import ModelBundle, load_bundle
from rgbd_fusion_seg.card import write_card
from rgbd_fusion_seg.engine import Engine, open_engine
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import UNLABELLED
from rgbd_fusion_seg.locations import CARD_NAME
from rgbd_fusion_seg.preprocess import network_inputs
from rgbd_fusion_seg.progress import progress_bar
from rgbd_fusion_seg.replay.report import table_text
from rgbd_fusion_seg.training.config import DataConfig
from rgbd_fusion_seg.training.datasets.base import FrameSource
from rgbd_fusion_seg.training.datasets.cache import read_frame
from rgbd_fusion_seg.training.evaluation import check_classes, scored_sources

BINS = 15
"""Of the expected calibration error (section 5 of the paper)."""
RUNS = 8
"""Runs of frames that the two halves take in turn."""
LARGEST = 20.0
"""Temperatures are looked for from its inverse to it."""


class Pixels(NamedTuple):
    """What a network says of pixels, and what they are.

    Args:
        logits: float32 (N, K).
        truth: int64 (N,), 0..K-1.
    """

    logits: Tensor
    truth: Tensor


def calibrate(
    model: Path,
    data: DataConfig,
    every: int = 1,
    pixels: int = 1000,
    write: bool = False,
    backend: str = 'auto',
) -> None:
    """Find the temperature with which a bundle's confidence is right as often as it says.

    Labels do not depend on it. It is one number, so that some dozens of frames will do; what is
    left of the error is measured on frames that it was not taken from: each half of the frames
    with the temperature of the other half.

    Args:
        model: a bundle's folder or name.
        data: the data set; frames of its test split, which the network was not trained on.
        every: take every n-th frame.
        pixels: labelled pixels drawn from each frame.
        write: write the temperature into the bundle's card.
        backend: see the runtime's `--backend`.

    Raises:
        InputError: options or data that cannot be used, or a bundle of other classes.
        BundleError, EngineError: a bundle that cannot be run.
    """
    if every < 1 or pixels < 1:
        raise InputError(f'every and pixels must be 1 or more, not {every}, {pixels}')
    bundle = load_bundle(model)
    if bundle.fused is not None:
        raise InputError(
            f'{model} is fused and returns no logits; calibrate {bundle.fused.base_name}, then '
            'fuse it again'
        )
    name, source = next(iter(scored_sources(data).items()))
    check_classes(bundle.class_names, source, model)
    with contextlib.closing(open_engine(bundle, backend)) as engine:
        frames = drawn_pixels(engine, bundle, source, every, pixels)
    if len(frames) < 2:
        raise InputError(
            f'{source.name} has {len(frames)} frames with labels to calibrate on, of every '
            f'{every}th; 2 are the least'
        )
    found = calibration(frames)
    measured = (
        f'{len(frames)} frames of {name}, {pixels} pixels each; the error after with the '
        f'temperature of the other half of the frames, {BINS} bins'
    )
    rows = {key.replace('_', ' '): f'{value:.3f}' for key, value in found.items()}
    print(table_text(f'{model} on {name}', rows))
    if write:
        entry = {key: round(value, 4) for key, value in found.items()}
        card = {**bundle.card, 'confidence': {**entry, 'measured_with': measured}}
        write_card(bundle.path / CARD_NAME, card)


def drawn_pixels(
    engine: Engine, bundle: ModelBundle, source: FrameSource, every: int, count: int
) -> list[Pixels]:
    """Draw labelled pixels of frames, with the logits at the size of the labels.

    Args:
        engine: of the bundle.
        bundle: the network.
        source: the frames; those without any label are left out.
        every: take every n-th frame.
        count: pixels of each frame, drawn with replacement.
    """
    generator, frames = np.random.default_rng(0), []
    for index in progress_bar(range(0, len(source), every), desc='calibrate', unit='frame'):
        item = read_frame(source, index)
        rows, columns = np.nonzero(item.labels != UNLABELLED)
        if not len(rows):
            continue
        tensors = network_inputs(item.frame, bundle.inputs)
        logits = torch.from_numpy(np.array(engine.infer(**tensors)))
        large = F.interpolate(logits, item.labels.shape, mode='bilinear', align_corners=False)[0]
        drawn = generator.integers(len(rows), size=count)
        rows, columns = rows[drawn], columns[drawn]
        truth = torch.from_numpy(item.labels[rows, columns].astype(np.int64))
        frames.append(Pixels(large[:, rows, columns].T.contiguous(), truth))
    return frames


def calibration(frames: list[Pixels]) -> dict[str, float]:
    """Return ``temperature``, and the ``error_before`` and ``error_after``, 0..1.

    Args:
        frames: two or more, in the order of the data set. Neighbours may be of one scene, and far
            ones of other kinds of scenes: each half is every second of eight runs of frames.
    """
    runs = min(RUNS, len(frames))
    halves = [
        joined([frame for i, frame in enumerate(frames) if i * runs // len(frames) % 2 == half])
        for half in (0, 1)
    ]
    everything = joined(frames)
    swapped = zip(halves, reversed([temperature_of(half) for half in halves]), strict=True)
    after = [calibration_error(half, temperature) for half, temperature in swapped]
    return {
        'temperature': temperature_of(everything),
        'error_before': calibration_error(everything),
        'error_after': sum(after) / len(after),
    }


def joined(frames: list[Pixels]) -> Pixels:
    """Return the pixels of frames together."""
    return Pixels(*(torch.cat(parts) for parts in zip(*frames, strict=True)))


def temperature_of(pixels: Pixels) -> float:
    """Return the temperature of the least cross-entropy, 1/20 .. 20 (section 4.2)."""

    def loss(log_temperature: float) -> float:
        scaled = pixels.logits / math.exp(log_temperature)
        return F.cross_entropy(scaled, pixels.truth).item()

    bounds = (-math.log(LARGEST), math.log(LARGEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method='bounded').x)


def calibration_error(pixels: Pixels, temperature: float = 1.0) -> float:
    """Return the expected calibration error, 0..1 (section 2)."""
    probabilities = (pixels.logits / temperature).softmax(1)
    classes = probabilities.shape[1]
    return multiclass_calibration_error(probabilities, pixels.truth, classes, BINS).item()
