"""Child processes that never outlive their parent."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1
_PATIENCE_S = {signal.SIGINT: 5.0, signal.SIGTERM: 3.0, signal.SIGKILL: 5.0}


class Processes:
    """Starts Python modules as processes and ends all of them at the end of a ``with`` block.

    They end as well when this process gets SIGTERM or SIGHUP, and on Linux even when it is
    killed. Output goes to ``FOLDER/NAME.log`` unless it is to be seen.

    Args:
        folder: for the logs; it exists.
        environment: of the processes.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, dict(environment)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Processes:
        self._stack.enter_context(_signals_raise())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.end_all()
        finally:
            self._stack.close()

    def start(self, name: str, module: str, *arguments: str, visible: bool = False) -> None:
        """Start ``python -m MODULE ARGUMENTS``."""
        with contextlib.ExitStack() as stack:
            log = None if visible else stack.enter_context(self.log_path(name).open('wb'))
            self._processes[name] = subprocess.Popen(
                [sys.executable, '-m', module, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=None if visible else subprocess.STDOUT,
                # Ctrl-C goes to this process alone, which then ends the others in order.
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == 'linux' else None,
            )

    def exit_code(self, name: str) -> int | None:
        """Return the exit code of a process, None while it runs."""
        return self._processes[name].poll()

    def ended(self) -> list[str]:
        """Return the names of the processes that have ended."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def log_path(self, name: str) -> Path:
        """Return the file that holds the output of a process."""
        return self._folder / f'{name}.log'

    def log_tail(self, name: str) -> str:
        """Return the last 15 lines that a process wrote."""
        path = self.log_path(name)
        if not path.is_file():
            return ''
        text = path.read_text(encoding='utf-8', errors='replace')
        return '\n'.join(text.splitlines()[-15:])

    def end_all(self) -> None:
        """End every process: politely, then firmly, then for certain."""
        for number, patience_s in _PATIENCE_S.items():
            running = [p for p in self._processes.values() if p.poll() is None]
            for process in running:
                process.send_signal(number)
            deadline_s = time.monotonic() + patience_s
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline_s - time.monotonic()))


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that ``with`` blocks end."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, _raise_exit) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _raise_exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies by whatever cause; call it in the child.

    For the kernel the parent is the thread that started the child, so that must live on.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == 'linux' else None
