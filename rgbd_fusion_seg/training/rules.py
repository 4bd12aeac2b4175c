"""Rules that settings keep to."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from rgbd_fusion_seg.errors import InputError


def require(settings: Any, rules: dict[str, bool]) -> None:
    """Raise InputError that names the rules which settings do not keep to.

    Args:
        settings: a dataclass; the message shows those of its fields that the rules speak of.
        rules: as the user is told them, and whether they hold.
    """
    broken = [rule for rule, holds in rules.items() if not holds]
    if not broken:
        return
    words = set(re.findall(r'\w+', ' '.join(broken)))
    names = [f.name for f in dataclasses.fields(settings) if f.name in words]
    values = ', '.join(f'{name} is {getattr(settings, name)!r}' for name in names)
    section = type(settings).__name__.removesuffix('Config').lower()
    raise InputError(f'the {section} settings must have {", ".join(broken)}, but {values}')
