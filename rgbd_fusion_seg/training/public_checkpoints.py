"""Imports the checkpoints that the papers' authors published: reads files, writes ours."""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.palette import NYU40_COLORS
from rgbd_fusion_seg.training.checkpoints import (
    CHECKPOINT_SUFFIX,
    check_writable,
    class_entries,
    command_line,
    make_folder,
    save_checkpoint,
)
from rgbd_fusion_seg.training.datasets.base import ClassSet
from rgbd_fusion_seg.training.datasets.cityscapes_classes import CITYSCAPES19
from rgbd_fusion_seg.training.datasets.nyudv2 import NYU40
from rgbd_fusion_seg.training.network_options import check_options
from rgbd_fusion_seg.training.networks import build_network
from rgbd_fusion_seg.training.networks.base import SegmentationNetwork
from rgbd_fusion_seg.training.public_names import SYSTEMS, Variant
from rgbd_fusion_seg.training.public_weights import translate
from rgbd_fusion_seg.training.run_checks import check_sides
from rgbd_fusion_seg.training.tf_checkpoint import read_tf_checkpoint
from rgbd_fusion_seg.yaml_text import parse_yaml


def import_weights(
    system: str,
    source: Path,
    output: Path,
    options: dict[str, Any] | None = None,
    classes: Path | None = None,
    num_classes: int | None = None,
    width: int | None = None,
    height: int | None = None,
    keep_void: bool = False,
) -> None:
    """Write a checkpoint of this package from a file of a paper's authors.

    Args:
        system: whose file it is: erfnet, adapnetpp, ssma, cen or asymfusion.
        source: the file (.pth, .pth.tar, .npz, .safetensors), or a TensorFlow checkpoint by the
            name that its .index and .data files share.
        output: the checkpoint to write, .safetensors.
        options: further options of our network, such as {modality: hha},
            {easpp_rates: [6, 12, 18]} or {modalities: [rgb, hha]}, which weights alone do not
            tell.
        classes: YAML file with the classes of the head, without void: `names`, a list, and
            optionally `name` and `colors`, a list of [red, green, blue].
        num_classes: number of classes, as a check; needed where the file has no head.
        width: of the colour input; default: that of the authors' trainings.
        height: of the colour input; default: that of the authors' trainings.
        keep_void: keep the output for void that erfnet, adapnetpp and ssma have, as a class. No
            data set has it, so it is for comparison with the authors' networks alone.

    Raises:
        InputError: the file cannot be read, is not of that system or has weights that are not
            finite, the output cannot be written, or an option does not fit.
    """
    if output.suffix != CHECKPOINT_SUFFIX:
        raise InputError(
            f'the output {output} is not named as checkpoints are; give a name that ends with '
            f'{CHECKPOINT_SUFFIX}'
        )
    check_writable(output.parent)
    if num_classes is not None and not 2 <= num_classes <= 255:
        raise InputError(f'num_classes must be 2 to 255, not {num_classes}')
    tensors = read_tensors(source)
    try:
        variant, found, weights = translate(system, tensors)
    except InputError as error:
        raise InputError(f'{source}: {error}') from error
    _check_finite(source, weights)
    published = SYSTEMS[system]()
    dropped = bool(found) and published.void is not None and not keep_void
    left = found - 1 if dropped else found
    if classes:
        class_set = _read_classes(classes)
    elif left:
        class_set = _usual(system, found, published.void, dropped)
    else:
        class_set = _numbered(system, num_classes)
    for what, number in (('num_classes', num_classes), (str(classes), len(class_set))):
        if left and number and number != left:
            raise InputError(
                f'{source} has {left} classes{" without void" if dropped else ""}, but {what} '
                f'tells {number}; give {left} or none'
            )
    without_void = published.without_void if dropped else {}
    network_options = {**variant.options, **without_void, **(options or {})}
    check_options(variant.network, network_options)
    _check_branches(source, variant, network_options)
    void = published.void % found if dropped else None
    network = _network(variant, len(class_set), network_options, weights, void)
    size = tuple(
        usual if given is None else given
        for given, usual in zip((width, height), published.size, strict=True)
    )
    check_sides(variant.network, network, size, 'width and height')
    if unknown := [name for name in network.modalities if name not in published.statistics]:
        raise InputError(
            f'the public {system} was trained on {" and ".join(published.statistics)}, so how '
            f'{" and ".join(unknown)} is to be normalised is not known; take one of those'
        )
    info = {
        'network': variant.network,
        'options': network_options,
        'classes': class_entries(class_set),
        'statistics': {name: published.statistics[name] for name in network.modalities},
        'width': size[0],
        'height': size[1],
        'step': 0,
        'minutes': 0.0,
        'command': command_line(),
        'data': [{'name': source.name, 'frames': 0, 'terms': published.reference}],
    }
    make_folder(output.parent)
    save_checkpoint(output, network, info)
    print(f'wrote {output}: {variant.network} with {len(class_set)} classes')


USUAL_CLASSES = {
    ('erfnet', len(CITYSCAPES19)): CITYSCAPES19,
    ('cen', len(NYU40)): NYU40,
    ('asymfusion', len(NYU40)): NYU40,
}
"""Of a system's networks with so many classes."""


def read_tensors(source: Path) -> dict[str, Any]:
    """Read what a file holds by name, as it is; see `import_weights` for the forms.

    Raises:
        InputError: no such file, a form that is not read here, or a damaged one.
    """
    prefix = source.with_name(re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', source.name))
    if prefix != source or prefix.with_name(f'{prefix.name}.index').is_file():
        return read_tf_checkpoint(prefix)
    if source.suffix not in READERS:
        raise InputError(
            f'{source} is neither {", ".join(READERS)} nor a TensorFlow checkpoint, which has '
            f'{source.name}.index beside its data; give such a file'
        )
    try:
        return READERS[source.suffix](source)
    except FileNotFoundError as error:
        raise InputError(f'{source} does not exist; give the file of the authors') from error
    except READ_ERRORS as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f'{source} cannot be read ({why}); download it again, or, if it holds more than '
            'tensors and plain values, save its state dict alone'
        ) from error


def _read_torch(path: Path) -> dict[str, Any]:
    # Nothing but tensors and plain values is unpickled: such a file can run no code.
    return torch.load(path, map_location='cpu', weights_only=True)


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    '.pth': _read_torch,
    '.pt': _read_torch,
    '.tar': _read_torch,
    '.npz': _read_npz,
    '.safetensors': load_file,
}
# What the libraries raise on damaged files.
READ_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    SafetensorError,
)


def _check_finite(source: Path, weights: Mapping[str, Tensor]) -> None:
    """Raise InputError where a weight is infinite or no number."""
    for name, values in weights.items():
        if not bool(values.isfinite().all()):
            raise InputError(
                f'{source} has values in {name} (as it is named here) that are not finite; '
                'download it again, or save it from before its training diverged'
            )


def _check_branches(source: Path, variant: Variant, options: Mapping[str, Any]) -> None:
    """Raise InputError where the options tell another number of modalities than the file."""
    found, wanted = variant.options.get('modalities'), options.get('modalities')
    if found and isinstance(wanted, list | tuple) and len(wanted) != len(found):
        raise InputError(
            f'{source} has branches of {len(found)} modalities, but the options tell '
            f'{len(wanted)}: {", ".join(map(str, wanted))}; give {len(found)} or none'
        )


def _network(
    variant: Variant,
    num_classes: int,
    options: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    void: int | None,
) -> SegmentationNetwork:
    """Build the network with its public weights, without output ``void`` unless it is None."""
    try:
        if variant.head:  # no weights are drawn that are replaced at once
            with torch.device('meta'):
                network = build_network(variant.network, num_classes, **options)
        else:  # the head is drawn, the same each time
            torch.manual_seed(0)
            network = build_network(variant.network, num_classes, **options)
    except (TypeError, ValueError) as error:
        raise InputError(
            f'the options {dict(options)} do not fit {variant.network}: {error}'
        ) from error
    if void is not None:
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        weights = {k: _without(void, v, shapes.get(k, v.shape)) for k, v in weights.items()}
    try:
        network.load_state_dict(weights, strict=bool(variant.head), assign=bool(variant.head))
    except RuntimeError as error:
        raise InputError(
            f'the public weights of {variant.network} do not fit its options {dict(options)}; '
            'leave out those that change what tensors it has'
        ) from error
    return network


def _without(index: int, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Leave an index out along each axis that is longer by one than ``shape`` says."""
    for axis, (length, wanted) in enumerate(zip(values.shape, shape, strict=False)):
        if length == wanted + 1:
            kept = [i for i in range(length) if i != index]
            values = values.index_select(axis, torch.tensor(kept))
    return values


def _read_classes(path: Path) -> ClassSet:
    """Read names and colours of classes from YAML."""
    try:
        content = parse_yaml(path.read_text(encoding='utf-8'))
        names = tuple(str(name) for name in content['names'])
        colors = np.array(content.get('colors', _colors(len(names))), np.uint8)
        return ClassSet(content.get('name', path.stem), names, colors.reshape(-1, 3))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f'{path} cannot be read as YAML ({error}); mend it') from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f'{path} does not list classes; give `names: [wall, …]` and, if wanted, '
            '`colors: [[184, 190, 208], …]`'
        ) from error


def _usual(system: str, count: int, void: int | None, dropped: bool) -> ClassSet:
    """Classes of a head: the data's where they are known by their number, else by number.

    Args:
        system: whose they are.
        count: how many the head of the authors has.
        void: index of void among them, None: they have none.
        dropped: leave void out; the others keep their numbers.
    """
    names = [f'class {i}' for i in range(count)]
    if void is not None:
        names[void] = 'void'
    if dropped:
        names.remove('void')
    known = USUAL_CLASSES.get((system, len(names)))
    if known and 'void' not in names:
        return known
    return ClassSet(f'{system}{len(names)}', tuple(names), _colors(len(names)))


def _numbered(system: str, count: int | None) -> ClassSet:
    """Classes of a file without a head."""
    if not count:
        raise InputError(f'this {system} file has no head; give num_classes or classes')
    return ClassSet(f'{system}{count}', tuple(f'class {i}' for i in range(count)), _colors(count))


def _colors(count: int) -> np.ndarray:
    """Distinct colours, repeated from the 41st on."""
    return np.resize(NYU40_COLORS, (count, 3))
