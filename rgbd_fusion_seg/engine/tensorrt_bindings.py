"""What building and running share of TensorRT's Python bindings: its types and its log."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from rgbd_fusion_seg.engine.flavours import Flavour

_log = logging.getLogger(__name__)

DTYPES = {
    'FLOAT': 'float32',
    'HALF': 'float16',
    'INT8': 'int8',
    'INT32': 'int32',
    'INT64': 'int64',
    'UINT8': 'uint8',
    'BOOL': 'bool',
}
"""Names of TensorRT's types -> NumPy's; the others have none."""
_LEVELS = {'WARNING': logging.INFO}
"""Its warnings are for builders of engines, and its errors become exceptions."""


@cache
def logger_of(flavour: Flavour) -> Any:
    """Return the one logger of a TensorRT library, which keeps the first it is given for good."""
    trt = flavour.trt

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        """Passes warnings on to Python's logging and keeps errors for the exception to come."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._error = ''

        def log(self, severity: Any, message: str) -> None:
            _log.log(_LEVELS.get(severity.name, logging.DEBUG), '%s: %s', flavour, message)
            if severity.name.endswith('ERROR') and not self._error:
                self._error = ' '.join(message.split())  # what follows is its consequence

        def pop_error(self) -> str:
            """Return the first error since the last call."""
            error, self._error = self._error, ''
            return error or 'it does not say why'

    return Logger()
