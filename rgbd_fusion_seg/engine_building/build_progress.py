"""How far a TensorRT build is, and ending it early: from its nested phases to one number."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class _Phase:
    parent: _Phase | None
    num_steps: int
    done: int = 0


class Progress:
    """Follows the phases of a build. Phases lie in steps of others; what is done never shrinks.

    Args:
        callback: called with the name of a phase and the share of the whole that is done, 0..1.
            What it raises ends the build.
    """

    def __init__(self, callback: Callable[[str, float], None] | None = None) -> None:
        self._callback = callback
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0
        self._cause: BaseException | None = None

    @property
    def goes_on(self) -> bool:
        """Whether nothing has ended the build."""
        return self._cause is None

    def end(self, cause: BaseException) -> None:
        """End the build at its next step."""
        self._cause = self._cause or cause

    def raise_if_ended(self) -> None:
        """Raise what ended the build, if something has."""
        if self._cause is not None:
            raise self._cause

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        """Take note that a phase begins."""
        self._phases[name] = _Phase(self._phases.get(parent or ''), max(num_steps, 1))
        self.tell(name, self._share)

    def step(self, name: str, step: int) -> bool:
        """Take note that a step, counted from 0, is done; returns whether to go on."""
        phase = self._phases.get(name)
        if phase is not None:
            phase.done = min(step + 1, phase.num_steps)
            self.tell(name, _share(phase))
        return self.goes_on

    def finish(self, name: str) -> None:
        """Take note that a phase is over."""
        self._phases.pop(name, None)

    def tell(self, name: str, share: float) -> None:
        """Pass on the phase, and the share if it is the largest yet."""
        self._share = max(self._share, share)
        if self._callback is None or not self.goes_on:
            return
        try:
            self._callback(name, self._share)
        except BaseException as error:  # it must not travel through TensorRT's C++
            self.end(error)


def _share(phase: _Phase) -> float:
    share = phase.done / phase.num_steps
    while (above := phase.parent) is not None:
        share = min(1.0, (above.done + share) / above.num_steps)
        phase = above
    return share


def monitor(trt: Any, progress: Progress) -> Any:
    """Return TensorRT's form of a :class:`Progress`; it must live as long as the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Passes all on."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


@contextmanager
def interruptible(progress: Progress) -> Iterator[None]:
    """Let Ctrl-C end the build at its next step, where this is the main thread.

    Python's own handler would raise in the middle of a call from C++.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        progress.end(KeyboardInterrupt())

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
