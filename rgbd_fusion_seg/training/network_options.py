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
    defaults = parser.get_defaults()
    for option, value in options.items():
        try:
            read = parser.parse_object({option: value}, defaults=False)[option]
        except ArgumentError:
            read = None
        missing = read is None and not (value is None and defaults[option] is None)
        # A number in quotes, such as '2e-2', would be text in the checkpoint too.
        quoted = isinstance(value, str) and read != value
        if missing or quoted:
            remedy = '' if missing else '; write it without quotes'
            raise InputError(
                f'the option {option} of {name} must be of type {_type(kind, option)}, '
                f'got {value!r}{remedy}'
            )
    return dict(defaults)


def _type(kind: type, option: str) -> str:
    """Return the type of a class's option in words, which a base class may take."""
    annotations: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        annotations |= getattr(owner.__init__, '__annotations__', {})
    return annotations[option].replace(' | ', ' or ')
