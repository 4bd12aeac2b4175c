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
_NO_CUDA = 'CUDA initialization failure'
"""What TensorRT says of a driver that is too old for the CUDA it was built for."""
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

        @property
        def has_error(self) -> bool:
            """Whether there was an error since the last call of :meth:`pop_error`."""
            return bool(self._error)

        def pop_error(self) -> str:
            """Return the first error since the last call."""
            error, self._error = self._error, ''
            return error or 'it does not say why'

    return Logger()


def driver_remedy(flavour: Flavour, reason: str) -> str:
    """Return what to do where TensorRT cannot use the driver; empty where it is not that."""
    if _NO_CUDA not in reason:
        return ''
    return (
        f'the driver does not serve the CUDA that this {flavour.name} was built for: update the '
        'driver, or install the TensorRT of an older CUDA (of the wheels those with cu12 in '
        'their names)'
    )
