"""The parts of a bundle that answer from one modality alone: their networks and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.training.checkpoints import Checkpoint

HEADLINES = ('frames', 'mIoU', 'pixel_accuracy', 'mean_accuracy')
"""What the card of the whole repeats of the scores of its parts."""


def part_folder(modality: str) -> str:
    """Return the name of a part's folder inside a bundle."""
    return f'{modality}_only'


def unimodal_checkpoints(checkpoint: Checkpoint) -> dict[str, Checkpoint]:
    """Return the networks of one modality that a network holds, by modality.

    They are its own branches with its weights (`SegmentationNetwork.unimodal_form`), described as
    it is: size, statistics, classes, data and command. None where the network has no such form, or
    reads one modality anyway.
    """
    network = checkpoint.build()
    parts = {}
    for modality in network.modalities if len(network.modalities) > 1 else ():
        form = network.unimodal_form(modality)
        if form is not None:
            name, options, weights = form
            statistics = {modality: checkpoint.info['statistics'][modality]}
            own = {'network': name, 'options': options, 'statistics': statistics}
            parts[modality] = Checkpoint(weights, {**checkpoint.info, **own})
    return parts


def card_with_parts(bundle: ModelBundle, parts: Mapping[str, ModelBundle]) -> dict[str, Any]:
    """Return a bundle's card that names its parts, with their scores beside its own.

    Args:
        bundle: the whole.
        parts: bundles in folders of its folder, by modality.
    """
    scores = {
        modality: {
            name: {key: measured[key] for key in HEADLINES if key in measured}
            for name, measured in part.metrics.items()
            if name in part.mean_iou
        }
        for modality, part in parts.items()
    }
    scores = {modality: measured for modality, measured in scores.items() if measured}
    rest = {key: value for key, value in bundle.card.items() if key != 'metrics'}
    metrics = {key: value for key, value in bundle.metrics.items() if key != 'single_sensor'}
    entries = {
        modality: {'folder': part.path.name, 'sha256': part.weights_sha256}
        for modality, part in parts.items()
    }
    if scores:
        metrics['single_sensor'] = scores
    return {**rest, 'single_sensor': entries, 'metrics': metrics}
