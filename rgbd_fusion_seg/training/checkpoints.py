"""Checkpoints: weights in safetensors, with what is needed to rebuild the network beside them."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rgbd_fusion_seg.atomic_files import replacing_file
from rgbd_fusion_seg.card import read_card
from rgbd_fusion_seg.errors import BundleError, InputError, TrainingError
from rgbd_fusion_seg.locations import CARD_NAME, find_bundle
from rgbd_fusion_seg.training.datasets.base import ClassSet
from rgbd_fusion_seg.training.networks import build_network
from rgbd_fusion_seg.training.public_weights import from_public as from_public

LAST_NAME = 'last.safetensors'
"""In a run's folder: the averaged weights, which are exported."""
CHECKPOINT_SUFFIX = '.safetensors'
TRAINABLE_NAME = 'checkpoint.safetensors'
"""In a bundle's folder, where it has one: the weights to train on from."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights by parameter name, and the run's description.

    Args:
        weights: the network's state dict.
        info: 'network' and 'options' as for `build_network`; 'classes' as of `class_entries`;
            'statistics', input name -> [mean, std]; 'width' and 'height' of the colour input;
            'step', 'minutes', 'command' and 'data' of the training, and what it 'started_from', as
            of `initialisation.origins`.
    """

    weights: dict[str, Tensor]
    info: dict[str, Any]

    @property
    def classes(self) -> ClassSet:
        """The classes that the network tells apart."""
        entries = self.info['classes']
        return ClassSet(
            entries['name'], tuple(entries['names']), np.array(entries['colors'], np.uint8)
        )

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.info['classes']['names'])

    def build(self) -> nn.Module:
        """Build the network with these weights, in evaluation mode."""
        network = build_network(self.info['network'], self.num_classes, **self.info['options'])
        network.load_state_dict(self.weights)
        return network.eval()


def class_entries(classes: ClassSet) -> dict[str, Any]:
    """Return classes in the plain form in which checkpoints hold them."""
    return {
        'name': classes.name,
        'names': list(classes.names),
        'colors': [[int(c) for c in color] for color in classes.colors],
    }


def save_checkpoint(
    path: Path, network: nn.Module, info: dict[str, Any], halved: bool = False
) -> None:
    """Write a checkpoint; an existing one is replaced only when the new one is whole.

    Args:
        path: of the file.
        network: whose weights are saved.
        info: see `Checkpoint`.
        halved: store kernels in float16, as bundles do; scales, shifts and statistics, which
            may be beyond its range, stay as they are.

    Raises:
        TrainingError: the disk does not take it.
    """
    weights = {k: v.contiguous().cpu() for k, v in network.state_dict().items()}
    if halved:
        weights = {k: v.half() if v.ndim > 1 else v for k, v in weights.items()}
    metadata = {'info': json.dumps(info)}
    write_output(path, lambda part: save_file(weights, part, metadata=metadata))


def write_output(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file of a run or study, which replaces one that is there at once.

    Raises:
        TrainingError: writing failed; what was at ``path`` before is still there.
    """
    try:
        with replacing_file(path, path.with_name(f'{path.name}.partial')) as part:
            write(part)
    except (OSError, RuntimeError, SafetensorError) as error:
        # safetensors wraps a full disk into an error of its own, without a number.
        full = getattr(error, 'errno', None) in (None, errno.ENOSPC, errno.EDQUOT)
        raise TrainingError(
            f'{path} could not be written ({error}); {"free some space" if full else "mend that"} '
            'and start the same command again, a run goes on from its last checkpoint'
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file of a run or study, see `write_output`."""
    write_output(path, lambda part: part.write_text(text, encoding='utf-8'))


def command_line() -> str:
    """Return the command that this process runs, as files that it writes tell of it."""
    return shlex.join(['python', '-m', 'rgbd_fusion_seg.training', *sys.argv[1:]])


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to; nothing is made yet.

    Raises:
        InputError: a file is in the way, or this user may not write there.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not nearest.is_dir():
        raise InputError(f'{folder} cannot be a folder, for {nearest} is a file; choose another')
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f'{nearest} may not be written to; choose another output than {folder}')


def make_folder(folder: Path) -> None:
    """Make a folder for results.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f'the folder {folder} cannot be made ({error.strerror}); choose another output'
        ) from error


def checkpoint_in(path: Path) -> Path:
    """Return the last checkpoint of a run's folder, or what is no such folder as it is."""
    last = Path(path) / LAST_NAME
    return last if last.is_file() else Path(path)


def find_checkpoint(path_or_name: str | os.PathLike[str]) -> Path:
    """Return the checkpoint of a run's folder or of a bundle; a file's path as it is.

    Args:
        path_or_name: a .safetensors file, a run's folder, or a bundle's folder or name.

    Raises:
        InputError: a bundle without weights to train on from.
    """
    path = checkpoint_in(Path(path_or_name))
    if path.is_file() or path.suffix == CHECKPOINT_SUFFIX:
        return path
    try:
        bundle = find_bundle(path_or_name)
    except BundleError:
        return path
    if not (bundle / TRAINABLE_NAME).is_file():
        raise InputError(
            f'the bundle {bundle} has no {TRAINABLE_NAME} to train on from or to export anew; '
            "give the run's folder, or export the bundle with --trainable true"
        )
    return bundle / TRAINABLE_NAME


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of a segmentation network; one in a bundle, with what its card tells.

    Raises:
        InputError: no such file, or not such a checkpoint of this package.
    """
    weights, info = read_checkpoint(path)
    if 'translator' in info:
        raise InputError(
            f'{path} is a checkpoint of a translator; score it with evaluate-translation, or look '
            'inside with inspect-translation'
        )
    missing = {'network', 'options', 'classes', 'statistics', 'width', 'height'} - set(info)
    if missing:
        raise InputError(
            f'the checkpoint {path} does not tell its {", ".join(sorted(missing))}; '
            'it is of an older version, train it anew'
        )
    return Checkpoint(weights, info | _told_by_card(Path(path)))


def _told_by_card(path: Path) -> dict[str, Any]:
    """Return how the weights in a bundle were trained, which its card knows best."""
    card = path.with_name(CARD_NAME)
    if path.name != TRAINABLE_NAME or not card.is_file():
        return {}
    training = read_card(card).card.get('training')
    if not isinstance(training, dict):  # a runtime needs no such entry
        return {}
    names = {name: name for name in ('command', 'data', 'started_from', 'minutes', 'notes')}
    return {ours: training[k] for k, ours in {**names, 'steps': 'step'}.items() if training.get(k)}


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights in a file and what it tells of their run, see `save_checkpoint`.

    Raises:
        InputError: no such file, or not one of this package.
    """
    if not Path(path).is_file():
        raise InputError(
            f"there is no checkpoint {path}; give the path of a .safetensors file, a run's folder "
            f'with {LAST_NAME}, or a bundle with {TRAINABLE_NAME}'
        )
    try:
        with safe_open(path, framework='pt') as file:
            info = json.loads((file.metadata() or {})['info'])
            weights = {key: _whole(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise InputError(
            f'{path} is no checkpoint of this package ({error}); give a .safetensors file '
            'that a command of this package wrote'
        ) from error
    return weights, info


def _whole(values: Tensor) -> Tensor:
    """Return what may be stored in float16 as networks compute it."""
    return values.float() if values.dtype == torch.float16 else values
