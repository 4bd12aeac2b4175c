"""Rules that settings keep to."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection
from typing import Any

from rgbd_fusion_seg.errors import InputError


def require(settings: Any, rules: dict[str, bool], limits: Collection[str] = ()) -> None:
    """Raise InputError that names the rules which settings do not keep to.

    Numbers must be finite besides.

    Args:
        settings: a dataclass; the message shows those of its values that the rules speak of, of
            its sections by names like 'images.side'.
        rules: as the user is told them, and whether they hold.
        limits: names of fields of which infinity means that there is no limit.
    """
    broken = [rule for rule, holds in rules.items() if not holds]
    broken += [f'a finite {name}' for name in _not_finite(settings) if name not in limits]
    if not broken:
        return
    words = set(re.findall(r'\w+(?:\.\w+)*', ' '.join(broken)))
    told = [f'{name} is {x!r}' for name, x in _values(settings).items() if name in words]
    section = type(settings).__name__.removesuffix('Config').lower()
    but = f', but {", ".join(told)}' if told else ''
    raise InputError(f'the {section} settings must have {", ".join(broken)}{but}')


def is_folder_name(name: str) -> bool:
    """Whether a folder can have this name."""
    return name not in ('', '.', '..') and not {'/', '\0'} & {*name}


def _values(settings: Any, prefix: str = '') -> dict[str, Any]:
    """Return values by name, those of sections too, without lists of sections."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        name, value = prefix + field.name, getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            values |= _values(value, f'{name}.')
        elif not (isinstance(value, list) and any(map(dataclasses.is_dataclass, value))):
            values[name] = value
    return values


def _not_finite(settings: Any) -> list[str]:
    """Return the names of fields that are, or list, numbers which are infinite or none."""
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    listed = {name: x if isinstance(x, list) else [x] for name, x in values.items()}
    return [
        name
        for name, numbers in listed.items()
        if any(isinstance(x, float) and not math.isfinite(x) for x in numbers)
    ]
