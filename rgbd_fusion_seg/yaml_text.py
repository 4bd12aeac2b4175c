"""YAML of a user, in which every mistake is one kind of error."""

from __future__ import annotations

from typing import Any

import yaml


def parse_yaml(text: str, *, first: bool = False) -> Any:
    """Return the document of a text; None where there is none.

    Args:
        text: of a file.
        first: take the first of several documents, such as messages that were printed.

    Raises:
        yaml.YAMLError: it is no YAML, or has a value that is none, such as the 30th of February.
    """
    try:
        return next(yaml.safe_load_all(text), None) if first else yaml.safe_load(text)
    except (ValueError, AttributeError, RecursionError) as error:  # PyYAML's own, by the mistake
        raise yaml.YAMLError(str(error) or type(error).__name__) from error
