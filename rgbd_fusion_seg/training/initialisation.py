"""Networks as a run begins with them: built, with the weights of the checkpoints it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.checkpoints import load_checkpoint
from rgbd_fusion_seg.training.config import NetworkConfig
from rgbd_fusion_seg.training.networks import NETWORKS, build_network
from rgbd_fusion_seg.training.public_checkpoints import read_tensors
from rgbd_fusion_seg.training.public_weights import public_tensors


def make_network(config: NetworkConfig, num_classes: int) -> nn.Module:
    """Build the network, with the weights of the checkpoints that the configuration names.

    Raises:
        InputError: an unknown network or option, or a checkpoint that does not fit.
    """
    if config.name in NETWORKS:
        _check_options(config.name, config.options)
    try:
        network = build_network(config.name, num_classes, **config.options)
    except (TypeError, ValueError, RuntimeError) as error:  # torch's own words of odd sizes
        raise InputError(f'the network cannot be built: {error}') from error
    for modality, path in (('rgb', config.init_rgb), ('hha', config.init_hha)):
        if not path:
            continue
        if not hasattr(network, 'initialise_encoder'):
            raise InputError(
                f'{config.name} has no encoder for {modality} alone to start from {path}; '
                'use init_from, or a fusion network'
            )
        checkpoint = load_checkpoint(Path(path))
        seen = checkpoint.info['options'].get('modality', 'rgb')
        if seen != modality:
            raise InputError(
                f'{path} was trained on {seen} but is given as init_{modality}; give a unimodal '
                f'checkpoint of {modality}'
            )
        network.initialise_encoder(modality, checkpoint.weights)
    if config.init_backbone:
        _start_backbone(network, config)
    if config.init_from:
        _start_from(network, config.name, num_classes, Path(config.init_from))
    return network


def _check_options(name: str, options: dict[str, Any]) -> None:
    """Check that a network has these options, and that their values are of the right types."""
    parser = ArgumentParser(exit_on_error=False)
    # Follows ``**options`` to the classes that take them.
    known = parser.add_class_arguments(NETWORKS[name], skip={'num_classes'})
    for option in options.keys() - {*known}:
        raise InputError(f'{name} has no option {option!r}; it has {", ".join(known)}')
    try:
        parsed = parser.parse_object(options, defaults=False)
    except ArgumentError as error:
        reason = ' '.join(str(error).replace('Parser key', 'option').split())
        raise InputError(f'{name} cannot be built, {reason}') from error
    defaults = parser.get_defaults()
    for option, value in options.items():
        absent = value is None and defaults[option] is not None
        # A number that YAML reads as text, such as 2e-2, would be text in the checkpoint too.
        if absent or (isinstance(value, str) and parsed[option] != value):
            raise InputError(
                f'the option {option} of {name} must be a {type(defaults[option]).__name__}, '
                f'got {value!r}; YAML reads a number such as 2.0e-2 only with its point'
            )


def _start_backbone(network: nn.Module, config: NetworkConfig) -> None:
    """Give the encoder of every branch the weights of a ResNet that others trained."""
    encoder = getattr(network, 'encoder', None)
    if not hasattr(encoder, 'initialise'):
        raise InputError(
            f'{config.name} with the options {config.options} has no ResNet that could start from '
            f'{config.init_backbone}; use init_from, or a network of branches on a ResNet'
        )
    content = read_tensors(Path(config.init_backbone))
    try:
        encoder.initialise(public_tensors(content))
    except InputError as error:
        raise InputError(f'init_backbone {config.init_backbone}: {error}') from error


def _start_from(network: nn.Module, name: str, num_classes: int, path: Path) -> None:
    """Give ``network`` the weights of a checkpoint of the same network and class count.

    Raises:
        InputError: the checkpoint is of another network, other options, another number of
            modalities or other classes.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.info['network'] != name or checkpoint.num_classes != num_classes:
        raise InputError(
            f'{path} holds {checkpoint.info["network"]} with {checkpoint.num_classes} classes, '
            f'but the run trains {name} with {num_classes}; give a checkpoint of that network'
        )
    # The statistics are those of its inputs. Weights may fit where the modalities are others, and
    # a depth branch may well start from one of colour, but each branch needs one to start from.
    theirs, ours = tuple(checkpoint.info['statistics']), network.modalities
    if len(theirs) != len(ours):
        raise InputError(
            f'{path} is of {name} for {len(theirs)} modalities ({", ".join(theirs)}), but the run '
            f'trains it for {len(ours)} ({", ".join(ours)}); give a checkpoint of as many'
        )
    try:
        network.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise InputError(
            f'the weights in {path} were trained with the options {checkpoint.info["options"]} '
            'and do not fit the options of this run; give the run the same ones'
        ) from error


def origins(config: NetworkConfig) -> list[dict[str, Any]]:
    """Return file, command and steps of the checkpoints that a network starts from."""
    files = [path for path in (config.init_from, config.init_rgb, config.init_hha) if path]
    infos = {path: load_checkpoint(Path(path)).info for path in files}
    if config.init_backbone:  # the files of others do not tell how they were made
        infos[config.init_backbone] = {}
    return [
        {'file': path, 'command': info.get('command', ''), 'steps': info.get('step', 0)}
        for path, info in infos.items()
    ]
