"""Options of a network as users give them, checked before it is built."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.networks import NETWORKS
from rgbd_fusion_seg.training.networks.multimodal import HEADS

NOT_CHOSEN = {'layers', 'channels', 'num_classes'}
"""What networks and heads are given besides options."""


def check_options(name: str, options: dict[str, Any]) -> None:
    """Check that a network has these options, and that their values are of the right types.

    Raises:
        InputError: it has not, or they are not; of its head's options, too.
    """
    known = _check(name, NETWORKS[name], options)
    if of_head := options.get('head_options'):
        head = options.get('head', known['head'])
        if head in HEADS:  # unknown ones are told where the network is built
            _check(f'the head {head}', HEADS[head], of_head)


def _check(name: str, kind: type, options: dict[str, Any]) -> dict[str, Any]:
    """Check the options of a class against its signature; returns what they are by default."""
    parser = ArgumentParser(exit_on_error=False)
    # Follows ``**options`` to the classes that take them.
    known = parser.add_class_arguments(kind, skip=NOT_CHOSEN)
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
    return dict(defaults)
