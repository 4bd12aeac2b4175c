"""Builds the missing TensorRT engine while another one serves, and changes over to it."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.engine import StepDown
from rgbd_fusion_seg.engine_building.build_process import BuildProcess
from rgbd_fusion_seg.errors import EngineError, RgbdFusionSegError
from rgbd_fusion_seg.ros.diagnostics import OK, WARN
from rgbd_fusion_seg.segmenter import Segmenter

_LOG_PERIOD_S = 10.0
_PATIENCE_S = 10.0


def build_is_due(step_downs: Sequence[StepDown]) -> bool:
    """Return whether TensorRT and its device are here, and only an engine is missing."""
    return any(s.build_helps for s in step_downs)


def _left_to_the_user(bundle: ModelBundle) -> str:
    """Tell of the engines that are not built here, as the end of a sentence."""
    if not bundle.single_sensor:
        return ''
    commands = [f'rgbd-fusion-seg build-engine {b.path}' for b in bundle.single_sensor.values()]
    return f'; what answers from one sensor alone is not built along: {" and ".join(commands)}'


class EngineBuilder:
    """One build, in a process of its own; the engine is opened and warmed up in a thread here.

    It is the engine of the bundle itself. Those of the bundles inside it, for one sensor alone,
    are left to the user: few frames need them, and each would take as long.

    Args:
        segmenter: the one that serves and is to have the engine.
        reopen: opens a second segmenter of the same bundle and options.
        options: of the build, see :class:`BuildProcess`.
        device: index of the GPU.
        log: called with (level, sentence).
    """

    def __init__(
        self,
        segmenter: Segmenter,
        reopen: Callable[[], Segmenter],
        options: Mapping[str, Any],
        device: int,
        log: Callable[[bytes, str], None],
    ) -> None:
        self._segmenter, self._reopen, self._log = segmenter, reopen, log
        self._options, self._device = options, device
        self._name = f'TensorRT engine of {segmenter.bundle.name}'
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: BuildProcess | None = None
        self._stopped, self._tried = False, False
        self._logged_s = 0.0
        self.progress = 'not begun'
        """What it is doing, for /diagnostics."""

    def start(self) -> None:
        """Begin, unless it was done or failed before, or an earlier start has not ended."""
        if self._tried or (self._thread is not None and self._thread.is_alive()):
            return
        self._stopped = False
        # A daemon: opening an engine cannot be cut short, and must not keep a process alive.
        self._thread = threading.Thread(target=self._run, name='engine builder', daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """End the build and return when nothing of it is left; False if it takes too long."""
        with self._lock:
            self._stopped = True
            process = self._process
        if process is not None:
            process.stop()
        if self._thread is not None:
            self._thread.join(_PATIENCE_S)
            return not self._thread.is_alive()
        return True

    def _run(self) -> None:
        try:
            card = self._build()
            self._change_over(card)
        except RgbdFusionSegError as error:
            self._fail(str(error))
        except Exception:  # whatever it is, the engine in use goes on
            self._fail(traceback.format_exc())

    def _fail(self, reason: str) -> None:
        if self._stopped:
            self.progress = 'stopped'
            return
        self._tried, self.progress = True, f'failed: {reason}'
        self._log(
            WARN,
            f'the {self._name} is not there, so {self._segmenter.engine_name} goes on, and no '
            f'build is tried again until the node is configured anew: {reason}',
        )

    def _build(self) -> Path:
        with self._lock:
            if self._stopped:
                raise EngineError('stopped')
            self._process = BuildProcess(self._segmenter.bundle, self._options, self._device)
        self._log(
            OK,
            f'building the {self._name} in the background; {self._segmenter.engine_name} serves '
            f'meanwhile{_left_to_the_user(self._segmenter.bundle)}',
        )
        self.progress, self._logged_s = 'started', time.monotonic()
        try:
            return self._process.wait(self._note)
        finally:
            with self._lock:
                self._process = None

    def _note(self, phase: str, percent: float) -> None:
        self.progress = f'{phase}, {percent:.0f} %'
        if time.monotonic() - self._logged_s > _LOG_PERIOD_S:
            self._logged_s = time.monotonic()
            self._log(OK, f'building the {self._name}: {self.progress}')

    def _change_over(self, card: Path) -> None:
        """Open the engine as the node would at its start, warm it up, hand it over."""
        self.progress = 'opening the engine'
        candidate = self._reopen()
        try:
            candidate.warm_up()
            if candidate.engine.backend != 'tensorrt':
                raise EngineError(f'{card} was built, but {candidate.step_downs[0]}')
            with self._lock:
                if self._stopped:
                    raise EngineError('stopped')
                self._segmenter.replace_engine(candidate.engine)
                self._tried, self.progress = True, f'done: {card}'
        except BaseException:
            candidate.close()
            raise
        self._log(OK, f'the {self._name} is built; {candidate.engine_name} takes over')
