"""Checkpoints of translators."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.checkpoints import checkpoint_in, read_checkpoint
from rgbd_fusion_seg.training.translation.config import GeneratorConfig, TranslationConfig
from rgbd_fusion_seg.training.translation.domains import DOMAINS, require_domains
from rgbd_fusion_seg.training.translation.generator import Translator


def described(config: TranslationConfig) -> dict[str, Any]:
    """Return what a checkpoint needs to tell of a translator, as plain values."""
    return {
        'inputs': list(config.inputs),
        'targets': list(config.targets),
        'generator': dataclasses.asdict(config.generator),
        'side': config.images.side,
    }


def make_translator(config: TranslationConfig) -> Translator:
    """Build a run's generator, with the weights that it starts from, if any.

    Raises:
        InputError: domains that make no streams, a fusion that does not fit them, or weights that
            do not fit the generator.
    """
    require_domains([*config.inputs, *config.targets], tuple(DOMAINS), 'translations')
    try:
        translator = Translator(config.inputs, config.targets, config.generator)
    except ValueError as error:
        raise InputError(f'the generator cannot be built: {error}') from error
    if config.init_from:
        path = checkpoint_in(Path(config.init_from))
        weights, about = _read(path)
        for what in ('inputs', 'targets'):
            if about['translator'][what] != list(getattr(config, what)):
                raise InputError(
                    f'{path} has the {what} {", ".join(about["translator"][what])}, and the run '
                    f'{", ".join(getattr(config, what))}; give the same ones in the same order, '
                    'or leave init_from out'
                )
        try:
            translator.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(
                f'the weights of {path} do not fit this generator '
                f'({" ".join(str(error).split())[:200]}); give those of the same inputs, targets '
                'and generator settings, or leave init_from out'
            ) from error
    return translator


def load_translator(model: Path) -> tuple[Translator, dict[str, Any]]:
    """Return the generator of a checkpoint, in evaluation mode, and what the file tells.

    Args:
        model: a .safetensors file, or a run's folder.

    Returns:
        the generator; `described` under 'translator', 'step', 'minutes', 'command', 'data'.

    Raises:
        InputError: no such file, none of a translator, or one that this version cannot build.
    """
    path = checkpoint_in(Path(model))
    weights, info = _read(path)
    about = info['translator']
    try:
        config = GeneratorConfig(**about['generator'])
        translator = Translator(about['inputs'], about['targets'], config)
        translator.load_state_dict(weights)
    except (InputError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f'the translator of {path} cannot be built ({" ".join(str(error).split())[:200]}); '
            'it is of another version, train it anew'
        ) from error
    return translator.eval(), info


def consistency_translators(config: TranslationConfig) -> list[Translator]:
    """Return the translators of `consistency_from`, in evaluation mode and without gradients.

    Raises:
        InputError: one is no translator from a target of the run to another at its side.
    """
    found = []
    for path in config.consistency_from:
        translator, info = load_translator(Path(path))
        side, ways = info['translator']['side'], translator.streams
        if side != config.images.side or len(ways) > 1 or not {*ways[0]} <= {*config.targets}:
            raise InputError(
                f'{path} of consistency_from translates {", ".join(map(str, ways))} at {side} '
                f'pixels; give a translator from one to another of {", ".join(config.targets)} '
                f'that was trained with images.side {config.images.side}'
            )
        found.append(translator.requires_grad_(False))
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    weights, info = read_checkpoint(path)
    if 'translator' not in info:
        raise InputError(
            f'{path} is of a segmentation network, not of a translator; give a file that '
            'train-translation wrote, or use evaluate'
        )
    if missing := {'inputs', 'targets', 'generator', 'side'} - {*info['translator']}:
        raise InputError(
            f'the translator of {path} does not tell its {", ".join(sorted(missing))}; it is of '
            'another version, train it anew'
        )
    return weights, info
