"""The record of a study: what its finished runs scored, in a file small enough to be kept.

The folders of runs are large and stay where they were trained. A record goes with the project, so
that rows which another machine trains later come into the same table. It holds once the defaults
of all settings as they were when it was begun, and of each run what differs from them: a default
that is another one today is noticed like any other setting.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.checkpoints import check_writable, make_folder, write_text
from rgbd_fusion_seg.training.continuation import FREE_TO_CHANGE, flatten

TOLD = {'row', 'seed', 'epochs', 'parameters', 'gflops', 'modalities', 'scores', 'settings'}
"""What each run of a record must tell."""
LEFT_OUT = FREE_TO_CHANGE - {'output', 'epochs', 'max_minutes', 'precision'}
"""Settings that tell of the machine, not of the result."""


def told_settings(
    settings: Mapping[str, Any], left_out: Collection[str] = LEFT_OUT
) -> dict[str, Any]:
    """Return the settings of a run that a record tells of, flat: {'data.width': 240, …}.

    Args:
        settings: as in a run's folder, see `continuation.read_settings`.
        left_out: settings that are not told.
    """
    flat = {key: value for key, value in flatten(settings).items() if key not in left_out}
    return {'output': flat['output'], 'epochs': flat['epochs'], **flat}


def default_settings(study: Any, left_out: Collection[str] = LEFT_OUT) -> dict[str, Any]:
    """Return today's defaults of what `told_settings` tells, but for what every run tells."""
    flat = flatten(json.loads(json.dumps(dataclasses.asdict(type(study.run)()))))
    return {k: v for k, v in flat.items() if k not in {*left_out, 'output', 'epochs'}}


def check_record(study: Any) -> None:
    """Refuse a record that could not be written; nothing is made yet.

    Args:
        study: `StudyConfig`, or another one with a record, a name, rows and a run.

    Raises:
        InputError: a folder is in its place, or its own cannot be made or written to.
    """
    path = Path(study.record)
    if not study.record:
        return
    if path.is_dir():
        raise InputError(f'study.record {path} is a folder; give the name of a file')
    check_writable(path.parent)


def read_record(
    study: Any, told: Collection[str] = TOLD, left_out: Collection[str] = LEFT_OUT
) -> list[dict[str, Any]]:
    """Return the runs in a study's record, as of `study_runs.collect`; none without a file.

    Settings that came after the record was begun are not among a run's.

    Args:
        study: as of `check_record`.
        told: what each run must tell.
        left_out: settings that are not told.

    Raises:
        InputError: the file is no record, or of another study.
    """
    record, today = _read(study, told), default_settings(study, left_out)
    # A setting that there is no more was nothing else than its default where no run tells of it.
    then = {k: v for k, v in record['defaults'].items() if k in today}
    return [
        # What a run tells comes first, in its order, so that a record is written as it was read.
        {**run, 'settings': {**run['settings'], **then, **run['settings']}}
        for run in record['runs']
    ]


def _read(study: Any, told: Collection[str]) -> dict[str, Any]:
    """Return what a study's record holds, without runs where there is no file."""
    path = Path(study.record)
    if not study.record or not path.is_file():
        return {'defaults': {}, 'runs': []}
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
        name, runs = record['study'], record['runs']
        missing = {key for run in runs for key in {*told} - {*run}}
        dict(record['defaults'])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f'study.record {path} is no record of a study ({type(error).__name__}: {error}); give '
            'another file, which is then made'
        ) from error
    if name != study.name or missing:
        wrong = f'it lacks {", ".join(sorted(missing))}' if missing else f'it is of {name}'
        raise InputError(f'study.record {path} is not of {study.name}: {wrong}; give another file')
    return record


def write_record(
    study: Any,
    entries: list[dict[str, Any]],
    told: Collection[str] = TOLD,
    left_out: Collection[str] = LEFT_OUT,
) -> None:
    """Write a study's record, a line for each run, so that versions of it can be compared.

    Runs of rows that the study does not have now stay in it. Arguments as of `read_record`.
    """
    path = Path(study.record)
    make_folder(path.parent)
    rows = {row.name for row in study.rows}
    others = [run for run in read_record(study, told, left_out) if run['row'] not in rows]
    defaults = default_settings(study, left_out) | _read(study, told)['defaults']
    lines = [
        json.dumps({**run, 'settings': _different(run['settings'], defaults)}, ensure_ascii=False)
        for run in (*entries, *others)
    ]
    head = f' "study": {json.dumps(study.name)},\n "defaults": {json.dumps(defaults)},\n'
    runs = ',\n  '.join(lines)
    text = f'{{\n{head} "runs": [\n  {runs}\n ]\n}}\n'
    write_text(path, text)


def _different(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k not in defaults or defaults[k] != v}
