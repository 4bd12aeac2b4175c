"""What a run may go on from: the settings, classes and frames that a state was trained with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from pickle import PickleError
from typing import TYPE_CHECKING, Any

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.checkpoints import LAST_NAME
from rgbd_fusion_seg.training.config import RunConfig, TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import Precision

    from rgbd_fusion_seg.training.datasets.cache import CachedFrames

SETTINGS_NAME, STATE_NAME = 'run.json', 'resume.ckpt'
FREE_TO_CHANGE = frozenset({
    'output', 'epochs', 'max_minutes', 'evaluate_every', 'save_every', 'save_minutes',
    'precision', 'accelerator', 'data.cache', 'data.workers', 'data.resident',
    'data.dataset.folder',
})  # fmt: skip
"""Settings that a run may be continued with other values of."""


def changed_settings(
    config: RunConfig, before: Mapping[str, Any], free: Collection[str] = FREE_TO_CHANGE
) -> list[str]:
    """Return the names of the settings that differ, but for those that are free to change.

    Args:
        config: the run that is wanted.
        before: settings as of `read_settings`.
        free: names such as 'data.workers'.
    """
    settings = flatten(json.loads(json.dumps(dataclasses.asdict(config))))  # tuples as lists
    # Settings that came after the run was started had their default values in it.
    old = {
        **flatten(dataclasses.asdict(type(config)())),
        **flatten(json.loads(json.dumps(before))),
    }
    changed = {key for key in {*old, *settings} if old.get(key) != settings.get(key)}
    return sorted(changed - set(free))


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings in a run's folder; None where there are none.

    Raises:
        InputError: a file that does not hold settings.
    """
    path = folder / SETTINGS_NAME
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding='utf-8'))
        if isinstance(settings, dict):
            return settings
        reason = f'it holds {type(settings).__name__}'
    except (OSError, ValueError) as error:
        reason = str(error)
    raise InputError(
        f'{path} does not hold the settings of a run ({reason}); move it away, '
        f'{STATE_NAME} tells them too'
    )


def load_state(
    fabric: Fabric,
    path: Path,
    state: dict[str, Any] | None = None,
    start: str = 'network.init_from',
) -> dict[str, Any]:
    """Load a saved state into ``state``; return what else is in the file, all without ``state``.

    Args:
        fabric: the processes.
        path: of the file.
        state: what is to take it over.
        start: the setting that starts from weights, for the message.

    Raises:
        InputError: it cannot be read, or does not fit.
    """
    try:
        return fabric.load(path, state)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, PickleError) as error:
        reason = str(error).partition('\n')[0] or type(error).__name__
        raise _unusable(path, reason, start) from error


def _unusable(path: Path, reason: str, start: str) -> InputError:
    return InputError(
        f'{path} cannot be continued from ({reason}); start in a new output folder from '
        f'{start} {path.with_name(LAST_NAME)}'
    )


class PrecisionState:
    """What a precision keeps from step to step: the scale of losses in fp16, else nothing.

    So a run may be continued in another precision, which a scaler would refuse.

    Args:
        precision: of the run.
    """

    def __init__(self, precision: Precision) -> None:
        self._precision = precision

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept."""
        return self._precision.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what was kept; nothing from a precision that keeps nothing."""
        if state:
            self._precision.load_state_dict(state)


def saved_run(
    folder: Path,
    config: RunConfig,
    fabric: Fabric,
    free: Collection[str] = FREE_TO_CHANGE,
    start: str = 'network.init_from',
) -> dict[str, Any] | None:
    """Return what the state in a run's folder tells of its run, and check its settings.

    Args:
        folder: of the run.
        config, free: see `changed_settings`.
        fabric: the processes.
        start: see `load_state`.

    Returns:
        'settings', 'classes', 'data', 'content', 'origins' and 'statistics', see `described_run`;
        the last two of segmentation alone; None where there is no state.

    Raises:
        InputError: a state that cannot be read, or of other settings; weights without a state.
    """
    if not (folder / STATE_NAME).is_file():
        if (last := folder / LAST_NAME).is_file():
            raise InputError(
                f'{folder} holds the weights of a run and no {STATE_NAME} to continue it, so they '
                f'would be overwritten; choose another output folder, with {start} {last} to '
                'train on from them'
            )
        return None
    path = folder / STATE_NAME
    run = load_state(fabric, path, start=start).get('run')
    if run is None:
        raise _unusable(path, 'it does not tell of its run', start)
    before = run['settings']
    sections = {name for name, value in before.items() if isinstance(value, dict)}
    if not sections & {f.name for f in dataclasses.fields(config)}:
        raise InputError(f'{folder} holds a run of another command; choose another output folder')
    if changed := changed_settings(config, before, free):
        raise InputError(
            f'{folder} holds a run with another {", ".join(changed)}; choose another '
            'output folder, or the same settings to continue it'
        )
    return run


def described_run(
    config: TrainConfig,
    classes: Sequence[str],
    data: Sequence[CachedFrames],
    origins: list[dict[str, Any]],
    statistics: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what a state tells of its run, as plain values.

    Args:
        config: its settings.
        classes: their names.
        data: the sets.
        origins: of the network's first weights, see `initialisation.origins`.
        statistics: input name -> mean and standard deviation that it is normalised with.
    """
    return {
        'settings': json.loads(json.dumps(dataclasses.asdict(config))),
        'classes': list(classes),
        'data': [[frames.name, len(frames)] for frames in data],
        'content': {frames.name: _content(frames) for frames in data},
        'origins': origins,
        'statistics': {name: [list(mean), list(std)] for name, (mean, std) in statistics.items()},
    }


def check_same_data(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other classes or frames than before; both as of `described_run`.

    Raises:
        InputError: they differ.
    """
    advice = 'choose another output folder, or give the data it was trained on to continue it'
    if before['classes'] != now['classes']:
        pairs = zip(before['classes'], now['classes'], strict=False)
        first = next((f'{a!r} is now {b!r}' for a, b in pairs if a != b), '')
        counts = f'{len(before["classes"])} are now {len(now["classes"])}'
        raise InputError(f'{folder} holds a run with other classes ({first or counts}); {advice}')
    if before['data'] != now['data']:
        was, is_now = (
            ', '.join(f'{name} ({frames} frames)' for name, frames in run['data'])
            for run in (before, now)
        )
        raise InputError(f'{folder} holds a run on {was}, not {is_now}; {advice}')
    for name, content in before['content'].items():
        if content != now['content'][name]:
            raise InputError(
                f'{folder} holds a run on frames of {name} with other labels or depth; {advice}'
            )


def _content(frames: CachedFrames) -> list[float]:
    """Return what differs when labels or depth do: pixels of each class, range of depth."""
    return [*map(int, frames.class_pixels), *(round(m, 3) for m in frames.depth_range_m)]


def flatten(settings: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Return nested settings as {'data.width': 320, …}."""
    flat = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = value
    return flat
