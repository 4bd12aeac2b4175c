"""Building an engine in a process of its own, beside work that must not be held up.

Inside the process that segments, a builder would take the interpreter's lock, half of the memory
and, where it crashes, everything with it. The two sides are here: :class:`BuildProcess` starts
the child and hears from it, :func:`main` is what the child runs. The child writes lines to stdout,
each a JSON object: ``{"phase": …, "percent": …}``, and last ``{"card": PATH}`` or
``{"error": SENTENCE}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

from rgbd_fusion_seg.bundle import ModelBundle, load_bundle
from rgbd_fusion_seg.errors import EngineError, RgbdFusionSegError
from rgbd_fusion_seg.processes import die_with_parent

_NICENESS = 10
_PATIENCE_S = 3.0


class BuildProcess:
    """A child process that builds the TensorRT engine of a bundle at low priority.

    It ends when the thread that started it does, and so, on Linux, even when this process is
    killed.

    Args:
        bundle: the network, at the size that is wanted.
        options: of :class:`rgbd_fusion_seg.engine_building.build_options.BuildOptions`.
        device: index of the GPU to build for.

    Raises:
        EngineError: the process cannot be started.
    """

    def __init__(self, bundle: ModelBundle, options: Mapping[str, Any], device: int = 0) -> None:
        self._name = bundle.name
        task = {
            'parent': os.getpid(),
            'bundle': str(bundle.path),
            'input_size': bundle.input_size,
            'options': dict(options),
        }
        try:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in wait
            self._process = subprocess.Popen(
                [sys.executable, '-m', __name__, json.dumps(task)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=os.environ | {'CUDA_VISIBLE_DEVICES': _cuda_name(device)},
                text=True,
                # Ctrl-C goes to the parent alone, which then ends this one.
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(
                f'no process can be started that builds the engine of {bundle.name} ({error})'
            ) from error

    def wait(self, on_progress: Callable[[str, float], None]) -> Path:
        """Wait until the engine is built, in the thread that started the process.

        Args:
            on_progress: called with the phase and how much of it is done, in percent. What it
                raises ends the process and is raised from here.

        Returns:
            The path of the engine's card.

        Raises:
            EngineError: it could not be built, or the process was stopped.
        """
        message: dict[str, Any] = {}
        with cast(IO[str], self._process.stdout) as lines, self._errors:
            try:
                for line in lines:
                    message = json.loads(line)
                    if 'percent' in message:
                        on_progress(message['phase'], message['percent'])
            except BaseException:  # nobody else could stop it
                self.stop()
                raise
            code = self._process.wait()
            if 'card' in message:
                return Path(message['card'])
            raise EngineError(message.get('error') or self._epitaph(code))

    def stop(self) -> None:
        """End the process; from any thread."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE_S)
                return

    def _epitaph(self, code: int) -> str:
        end = f'exit code {code}' if code >= 0 else signal.Signals(-code).name
        self._errors.seek(0)
        said = self._errors.read().decode(errors='replace').strip().splitlines()
        last = f' ({said[-1]})' if said else ''
        return (
            f'the process that built the engine of {self._name} ended with {end}{last}; run '
            'rgbd-fusion-seg build-engine to see all that it says'
        )


def _cuda_name(device: int) -> str:
    """Return how the variable that hides all GPUs but one calls a GPU that is visible here."""
    names = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
    return names[device] if device < len(names) else str(device)


def main(task: str) -> int:
    """Build as the parent asks; returns the exit code."""
    # Native libraries may write to stdout too: keep it for us and send theirs to stderr.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), 'w', buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    wanted = json.loads(task)
    die_with_parent()
    if os.getppid() != wanted['parent']:  # it died before the kernel could be asked
        return 1
    os.nice(_NICENESS)

    def say(**message: Any) -> None:
        channel.write(json.dumps(message) + '\n')

    try:
        card = _build(wanted, lambda phase, done: say(phase=phase, percent=round(100 * done, 1)))
    except RgbdFusionSegError as error:
        say(error=str(error))
        return 1
    say(card=str(card))
    return 0


def _build(wanted: Mapping[str, Any], progress: Callable[[str, float], None]) -> Path:
    from rgbd_fusion_seg.engine_building.build_options import BuildOptions
    from rgbd_fusion_seg.engine_building.tensorrt_build import build_engine

    bundle = load_bundle(wanted['bundle']).resized(*wanted['input_size'])
    return build_engine(bundle, BuildOptions(**wanted['options']), progress=progress)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
