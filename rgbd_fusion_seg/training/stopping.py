"""When a run ends early or saves on the way: by signals and by the clock."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of training, over all the times that a run was continued."""

    def __init__(self, before: float) -> None:
        self._before, self._start, self._saved = before, time.monotonic(), before

    @property
    def seconds(self) -> float:
        """Seconds spent in the training loop, but for what it was stopped for."""
        return self._before + time.monotonic() - self._start

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stand still while the block runs, which is no training."""
        begin = time.monotonic()
        yield
        self._start += time.monotonic() - begin

    def saved(self, seconds: float) -> None:
        """Remember when the last checkpoint was written."""
        self._saved = seconds

    def minutes_since_save(self, seconds: float) -> float:
        """Minutes of training that would be lost if the process died."""
        return (seconds - self._saved) / 60


class StopSignal:
    """Notes the first SIGINT or SIGTERM, so that the run can save and end; a second one kills."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, speaks: bool = True) -> None:
        self.received = False
        self._speaks = speaks

    def __enter__(self) -> StopSignal:
        self._before = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, *_: object) -> None:
        self.received = True
        self._restore()
        if self._speaks:  # past Python's buffers, which the signal may have met half written
            text = '\nstopping: saves first; once more ends it without\n'
            os.write(sys.__stderr__.fileno(), text.encode())

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
