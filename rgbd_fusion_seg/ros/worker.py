"""One thread that always works on the newest job and forgets the ones it had no time for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Job = TypeVar('Job')


class LatestOnlyWorker(Generic[Job]):
    """Runs ``process(job)`` on its own thread; at most one job waits, the newest.

    So the age of a result is bounded by the time of the job under way plus its own, however fast
    jobs come: a queue would let the age grow without end.

    Args:
        process: the work. An exception it lets through goes to ``on_error``; the thread lives on.
        on_error: called on the worker's thread.
        on_replaced: called by :meth:`submit` when a waiting job gives way to a newer one.
        name: of the thread.
    """

    def __init__(
        self,
        process: Callable[[Job], None],
        *,
        on_error: Callable[[Exception], None],
        on_replaced: Callable[[], None],
        name: str = 'worker',
    ) -> None:
        self._process, self._on_error, self._on_replaced = process, on_error, on_replaced
        self._condition = threading.Condition()
        self._waiting: Job | None = None
        self._began_s: float | None = None
        self._stopping = False
        # A daemon, so that an inference that hangs cannot keep a dying process alive.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Hand over a job; returns at once."""
        with self._condition:
            replaced = self._waiting is not None
            self._waiting = job
            self._condition.notify()
        if replaced:
            self._on_replaced()

    def clear(self) -> bool:
        """Forget the waiting job, return whether there was one; that under way is not stopped."""
        with self._condition:
            waited = self._waiting is not None
            self._waiting = None
        return waited

    @property
    def busy_s(self) -> float:
        """For how many seconds the job under way has run, 0 without one."""
        began_s = self._began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs, as it does after :meth:`stop` when its work hangs."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Let the job under way finish, start no other; return False if it takes too long."""
        with self._condition:
            self._stopping = True
            self._waiting = None
            self._condition.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopping or self._waiting is not None)
                if self._stopping:
                    return
                job, self._waiting = self._waiting, None
            self._began_s = time.monotonic()
            try:
                self._process(job)
            except Exception as error:  # the stream goes on: one bad frame must not end it
                self._on_error(error)
            finally:
                self._began_s = None
