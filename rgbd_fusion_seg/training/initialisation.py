"""Networks as a run begins with them: built, with the weights of the checkpoints it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rgbd_fusion_seg.bundle import file_sha256
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.checkpoints import Checkpoint, find_checkpoint, load_checkpoint
from rgbd_fusion_seg.training.config import NetworkConfig
from rgbd_fusion_seg.training.cost import empty_network
from rgbd_fusion_seg.training.network_options import check_options
from rgbd_fusion_seg.training.networks import NETWORKS, build_network
from rgbd_fusion_seg.training.public_checkpoints import read_tensors
from rgbd_fusion_seg.training.public_weights import public_tensors

NO_FILES = {'init_from': '', 'init_rgb': '', 'init_hha': '', 'init_backbone': ''}
"""Of a network whose weights a state replaces; the files it started from may be gone."""


@dataclass(frozen=True, eq=False)
class Start:
    """A checkpoint that a network's first weights come from.

    Args:
        setting: which one names it: init_rgb, init_hha or init_from.
        path: what it names: a file, a run's folder or a bundle.
        file: where the checkpoint is.
        checkpoint: what is in it.
    """

    setting: str
    path: str
    file: Path
    checkpoint: Checkpoint


def starts(config: NetworkConfig) -> list[Start]:
    """Read the checkpoints that a network starts from, but for a backbone of others.

    Raises:
        InputError: one that is not there or cannot be read.
    """
    found = []
    for setting in ('init_rgb', 'init_hha', 'init_from'):
        if path := getattr(config, setting):
            file = find_checkpoint(path)
            found.append(Start(setting, path, file, load_checkpoint(file)))
    return found


def bare_network(config: NetworkConfig) -> nn.Module:
    """Build a network of two classes without memory for weights, to ask what it reads and takes.

    Raises:
        InputError: an unknown network or option.
    """
    with torch.device('meta'):
        return make_network(dataclasses.replace(config, **NO_FILES), ('one', 'other'), [])


def make_network(
    config: NetworkConfig, classes: Sequence[str], begun: Sequence[Start]
) -> nn.Module:
    """Build the network, with the weights of the checkpoints that it starts from.

    Args:
        config: the network.
        classes: names of those that it is to tell apart.
        begun: the checkpoints, see `starts`.

    Raises:
        InputError: an unknown network or option, or a checkpoint that does not fit.
    """
    if config.name in NETWORKS:
        check_options(config.name, config.options)
    try:
        network = build_network(config.name, len(classes), **config.options)
    except (TypeError, ValueError, RuntimeError) as error:  # torch's own words of odd sizes
        raise InputError(f'the network cannot be built: {error}') from error
    by_setting = {start.setting: start for start in begun}
    for modality in ('rgb', 'hha'):
        if start := by_setting.get(f'init_{modality}'):
            _start_encoder(network, config, modality, start)
    if config.init_backbone:
        _start_backbone(network, config)
    if start := by_setting.get('init_from'):
        _start_from(network, config, start, classes)
    return network


def _start_encoder(network: nn.Module, config: NetworkConfig, modality: str, start: Start) -> None:
    """Give the encoder of a modality the weights of a unimodal network."""
    if not hasattr(network, 'initialise_encoder'):
        raise InputError(
            f'{config.name} has no encoder for {modality} alone to start from {start.path}; '
            'use init_from, or a fusion network'
        )
    seen = start.checkpoint.info['options'].get('modality', 'rgb')
    if seen != modality:
        raise InputError(
            f'{start.path} was trained on {seen} but is given as {start.setting}; give a unimodal '
            f'checkpoint of {modality}'
        )
    try:
        network.initialise_encoder(modality, start.checkpoint.weights)
    except InputError as error:
        raise InputError(f'{start.setting} {start.path}: {error}') from error


def _start_backbone(network: nn.Module, config: NetworkConfig) -> None:
    """Give the encoder of every branch the weights of one that others trained."""
    encoder = getattr(network, 'encoder', None)
    if not hasattr(encoder, 'initialise'):
        raise InputError(
            f'{config.name} with the options {config.options} has no ResNet or Xception that '
            f'could start from {config.init_backbone}; use init_from, or a network of branches'
        )
    content = read_tensors(Path(config.init_backbone))
    try:
        encoder.initialise(public_tensors(content))
    except InputError as error:
        raise InputError(f'init_backbone {config.init_backbone}: {error}') from error


def _start_from(
    network: nn.Module, config: NetworkConfig, start: Start, classes: Sequence[str]
) -> None:
    """Give ``network`` the weights of a checkpoint of the same network.

    Of other classes, it takes what belongs to those of the same names; the rest begins anew.

    Raises:
        InputError: the checkpoint is of another network, other options or another number of
            modalities.
    """
    path, checkpoint, name = start.file, start.checkpoint, config.name
    if checkpoint.info['network'] != name:
        raise InputError(
            f'{path} holds {checkpoint.info["network"]}, but the run trains {name}; give a '
            'checkpoint of that network'
        )
    # The statistics are those of its inputs. Weights may fit where the modalities are others, and
    # a depth branch may well start from one of colour, but each branch needs one to start from.
    theirs, ours = tuple(checkpoint.info['statistics']), network.modalities
    if len(theirs) != len(ours):
        raise InputError(
            f'{path} is of {name} for {len(theirs)} modalities ({", ".join(theirs)}), but the run '
            f'trains it for {len(ours)} ({", ".join(ours)}); give a checkpoint of as many'
        )
    weights = checkpoint.weights
    if checkpoint.classes.names != tuple(classes):
        weights = _for_classes(network, config, checkpoint, classes)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f'the weights in {path} were trained with the options {checkpoint.info["options"]} '
            'and do not fit the options of this run; give the run the same ones'
        ) from error


def _for_classes(
    network: nn.Module, config: NetworkConfig, checkpoint: Checkpoint, classes: Sequence[str]
) -> dict[str, Tensor]:
    """Return a checkpoint's weights with those of its classes at the places of ours.

    What belongs to other classes is as ``network`` has it.
    """
    pairs = list(_common_classes(checkpoint, classes))
    there, here = [i for i, _ in pairs], [j for _, j in pairs]
    own, weights = network.state_dict(), dict(checkpoint.weights)
    for name, axes in _class_axes(config, len(classes)).items():
        source, target = weights.get(name), own[name].clone()
        expected = list(target.shape)
        # What of an axis is no class's comes first.
        rest = {a: target.shape[a] - parts * len(classes) for a, parts in axes.items()}
        for axis, parts in axes.items():
            expected[axis] = rest[axis] + parts * checkpoint.num_classes
        if source is None or list(source.shape) != expected:
            continue  # of other options, which is told when they are loaded
        places = [
            tuple(
                [
                    *range(rest[axis]),
                    *(rest[axis] + part * count + i for part in range(axes[axis]) for i in chosen),
                ]
                if axis in axes
                else range(side)
                for axis, side in enumerate(target.shape)
            )
            for chosen, count in ((here, len(classes)), (there, checkpoint.num_classes))
        ]
        target[np.ix_(*places[0])] = source[np.ix_(*places[1])]
        weights[name] = target
    return weights


def _class_axes(config: NetworkConfig, count: int) -> dict[str, dict[int, int]]:
    """Return the tensors whose sizes follow the number of classes: {name: {axis: factor}}."""
    shapes = [
        {
            k: v.shape
            for k, v in empty_network(config.name, n, **config.options).state_dict().items()
        }
        for n in (count, count + 1)
    ]
    grown = {
        name: {
            axis: after - before
            for axis, (before, after) in enumerate(zip(shape, shapes[1][name], strict=True))
            if after != before
        }
        for name, shape in shapes[0].items()
    }
    return {name: axes for name, axes in grown.items() if axes}


def _common_classes(checkpoint: Checkpoint, classes: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the places of classes of the same name, there and here."""
    places = {name.strip().casefold(): i for i, name in enumerate(checkpoint.classes.names)}
    for j, name in enumerate(classes):
        if (i := places.get(name.strip().casefold())) is not None:
            yield i, j


def first_statistics(
    config: NetworkConfig, begun: Sequence[Start], network: nn.Module
) -> dict[str, list[list[float]]]:
    """Return mean and standard deviation of the inputs that the first weights were trained with.

    Weights go with the statistics that their inputs were normalised with, so a run that starts
    from them keeps these, whatever its own frames'. What no checkpoint tells is not in it. A
    backbone of others was trained on colour alone; its file does not tell, ``network`` does.
    """
    statistics = {'rgb': network.encoder.public_statistics} if config.init_backbone else {}
    for start in begun:
        statistics |= start.checkpoint.info['statistics']
    return statistics


def origins(
    config: NetworkConfig, begun: Sequence[Start], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return what a network starts from, one entry for each checkpoint.

    Returns:
        'file' and its 'sha256', 'command' and 'steps' of its training, the 'data' with its terms,
        and 'started_from' where that began with others, so that the whole way of the weights is
        told. A checkpoint of other classes also tells 'classes_taken', how many of ``classes`` it
        has.
    """
    found = []
    for start in sorted(begun, key=lambda start: start.setting != 'init_from'):  # that one first
        checkpoint, info = start.checkpoint, start.checkpoint.info
        origin = {
            'file': start.path,
            'sha256': file_sha256(start.file),
            'command': info.get('command', ''),
            'steps': info.get('step', 0),
            **{key: info[key] for key in ('data', 'notes', 'started_from') if info.get(key)},
        }
        if start.setting == 'init_from' and checkpoint.classes.names != tuple(classes):
            origin['classes_taken'] = len(list(_common_classes(checkpoint, classes)))
        found.append(origin)
    if config.init_backbone:  # the files of others do not tell how they were made
        found.append({'file': config.init_backbone, 'command': '', 'steps': 0})
    return found
