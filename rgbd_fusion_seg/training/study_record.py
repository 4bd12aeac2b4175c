"""The record of a study: what its finished runs scored, in a file small enough to be kept.

The folders of runs are large and stay where they were trained. A record goes with the project, so
that rows which another machine trains later come into the same table.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.checkpoints import check_writable, make_folder, write_output
from rgbd_fusion_seg.training.config import TrainConfig
from rgbd_fusion_seg.training.continuation import FREE_TO_CHANGE, flatten

TOLD = {'row', 'seed', 'epochs', 'parameters', 'gflops', 'modalities', 'scores', 'settings'}
"""What each run of a record must tell."""
LEFT_OUT = FREE_TO_CHANGE - {'output', 'epochs', 'max_minutes', 'precision'}
"""Settings that tell of the machine, not of the result."""


def told_settings(
    settings: Mapping[str, Any],
    kind: type = TrainConfig,
    left_out: Collection[str] = LEFT_OUT,
) -> dict[str, Any]:
    """Return the settings of a run that are not the defaults, flat: {'data.width': 240, …}.

    Args:
        settings: as in a run's folder, see `continuation.read_settings`.
        kind: of the run's settings, a dataclass whose fields have defaults.
        left_out: settings that are not told.
    """
    defaults = flatten(json.loads(json.dumps(dataclasses.asdict(kind()))))
    flat = {key: value for key, value in flatten(settings).items() if key not in left_out}
    different = {k: v for k, v in flat.items() if k not in defaults or defaults[k] != v}
    return {'output': flat['output'], 'epochs': flat['epochs'], **different}


def check_record(study: Any) -> None:
    """Refuse a record that could not be written; nothing is made yet.

    Args:
        study: `StudyConfig`, or another one with a record, a name and rows.

    Raises:
        InputError: a folder is in its place, or its own cannot be made or written to.
    """
    path = Path(study.record)
    if not study.record:
        return
    if path.is_dir():
        raise InputError(f'study.record {path} is a folder; give the name of a file')
    check_writable(path.parent)


def read_record(study: Any, told: Collection[str] = TOLD) -> list[dict[str, Any]]:
    """Return the runs in a study's record, as of `study_runs.collect`; none without a file.

    Args:
        study: as of `check_record`.
        told: what each run must tell.

    Raises:
        InputError: the file is no record, or of another study.
    """
    path = Path(study.record)
    if not study.record or not path.is_file():
        return []
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
        name, runs = record['study'], record['runs']
        missing = {key for run in runs for key in {*told} - {*run}}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f'study.record {path} is no record of a study ({type(error).__name__}: {error}); give '
            'another file, which is then made'
        ) from error
    if name != study.name or missing:
        wrong = f'it lacks {", ".join(sorted(missing))}' if missing else f'it is of {name}'
        raise InputError(f'study.record {path} is not of {study.name}: {wrong}; give another file')
    return runs


def write_record(study: Any, entries: list[dict[str, Any]], told: Collection[str] = TOLD) -> None:
    """Write a study's record, a line for each run, so that versions of it can be compared.

    Runs of rows that the study does not have now stay in it. Arguments as of `read_record`.
    """
    path = Path(study.record)
    make_folder(path.parent)
    rows = {row.name for row in study.rows}
    entries = [
        *entries,
        *(entry for entry in read_record(study, told) if entry['row'] not in rows),
    ]
    runs = ',\n'.join(f'  {json.dumps(entry, ensure_ascii=False)}' for entry in entries)
    text = f'{{\n "study": {json.dumps(study.name)},\n "runs": [\n{runs}\n ]\n}}\n'
    write_output(path, lambda part: part.write_text(text, encoding='utf-8'))
