"""The entries of a bundle's card (``model.yaml``), each checked when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rgbd_fusion_seg.atomic_files import write_atomically
from rgbd_fusion_seg.errors import BundleError
from rgbd_fusion_seg.yaml_text import parse_yaml

_LARGEST = float(np.finfo(np.float32).max)


def read_card(path: Path) -> Card:
    """Read a card.

    Raises:
        BundleError: it cannot be read, or is no YAML mapping.
    """
    try:
        card = parse_yaml(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise BundleError(f'the card {path} cannot be read: {reason}') from error
    if not isinstance(card, dict):
        raise BundleError(f'the card {path} is not a YAML mapping; export the bundle again')
    return Card(card, path)


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Write a card, its entries in the order of the mapping.

    Raises:
        OSError: a folder or disk that cannot be written to.
    """
    text = yaml.safe_dump(card, sort_keys=False, default_flow_style=None, width=99)
    write_atomically(path, text.encode())


class Card:
    """Typed access to the entries of a card.

    Args:
        card: the card, as parsed.
        path: of its file, for errors.

    Raises:
        BundleError: by the methods, for an entry that is absent or wrong; it names entry and file.
    """

    def __init__(self, card: dict[str, Any], path: Path) -> None:
        self.card, self.path = card, path

    def get(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """Return the entry at a path of keys joined by dots; of one of the types, no flag."""
        value: Any = self.card
        for part in key.split('.'):
            if not isinstance(value, dict) or part not in value:
                raise BundleError(
                    f'the card {self.path} lacks the entry {key!r}; export the bundle again'
                )
            value = value[part]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(key, value)
        return value

    def wrong(self, key: str, value: Any, why: str = '') -> BundleError:
        """Return the error that an entry cannot be used, for a reason that begins with a comma."""
        return BundleError(
            f'the card {self.path} has an unusable entry {key!r}: {value!r:.80}{why}; export '
            'the bundle again'
        )

    def name(self, key: str) -> str:
        """Return an entry that files or folders are called by; it cannot lead elsewhere."""
        value = self.get(key, str)
        if not value.isprintable() or Path(value).name != value or value in ('', '..'):
            raise self.wrong(key, value)
        return value

    def flag(self, key: str) -> bool:
        """Return whether an entry is there and true."""
        *parents, last = key.split('.')
        value = self.get('.'.join(parents), dict).get(last, False)
        if not isinstance(value, bool):
            raise self.wrong(key, value)
        return value

    def numbers(self, key: str, count: int) -> np.ndarray:
        """Return a list of so many finite numbers as float32 (count,)."""
        value = self.get(key, list)
        plain = [v for v in value if isinstance(v, int | float) and not isinstance(v, bool)]
        # So written, what is not a number (NaN) is too large as well.
        if not (len(plain) == len(value) == count and all(abs(v) <= _LARGEST for v in plain)):
            raise self.wrong(key, value)
        return np.asarray(value, dtype=np.float32)
