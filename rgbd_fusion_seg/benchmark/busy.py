"""Keeps cores busy while something else is measured."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rgbd_fusion_seg.errors import RgbdFusionSegError
from rgbd_fusion_seg.processes import Processes

_POLL_S = 0.02
_PATIENCE_S = 30.0


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run so many processes that do nothing but compute, from the start of the block to its end.

    Raises:
        RgbdFusionSegError: they do not start.
    """
    if count == 0:
        yield
        return
    names = [f'busy{index}' for index in range(count)]
    with (
        tempfile.TemporaryDirectory() as folder,
        Processes(Path(folder), os.environ) as processes,
    ):
        for name in names:
            processes.start(name, __name__)
        deadline_s = time.monotonic() + _PATIENCE_S
        while not all(processes.log_tail(name) for name in names):
            if processes.ended() or time.monotonic() > deadline_s:
                raise RgbdFusionSegError('the processes that are to keep cores busy do not start')
            time.sleep(_POLL_S)
        yield


def main() -> None:
    """Tell that the loop begins, and loop until ended."""
    sys.stdout.write('busy\n')
    sys.stdout.flush()
    number = 1
    while True:
        number = number * 5 % 1_000_003


if __name__ == '__main__':
    main()
