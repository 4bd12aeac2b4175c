"""The runs of a study, one for each row and seed, in a folder of its own, and what they scored.

A run is done when it has scores, failed when it diverged or starts from one that did; a record
stands for runs that were trained elsewhere.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.checkpoints import LAST_NAME, load_checkpoint
from rgbd_fusion_seg.training.config import TrainConfig
from rgbd_fusion_seg.training.continuation import (
    FREE_TO_CHANGE,
    SETTINGS_NAME,
    changed_settings,
    flatten,
    read_settings,
)
from rgbd_fusion_seg.training.cost import empty_network, gflops
from rgbd_fusion_seg.training.networks import parameter_count
from rgbd_fusion_seg.training.study_config import RowConfig, StudyConfig
from rgbd_fusion_seg.training.study_record import read_record, told_settings

Run = TypeVar('Run')
FREE_IN_ROWS = FREE_TO_CHANGE - {'epochs', 'max_minutes'}
"""Settings that the study may be continued with other values of when a row of it is done."""
FAILURE_NAME = 'failed.txt'
"""In the folder of a run that diverged: why."""


def all_runs(study: StudyConfig) -> list[tuple[RowConfig, int]]:
    """Return every row with each of its seeds."""
    return [(row, seed) for row in study.rows for seed in row_seeds(study, row)]


def row_seeds(study: StudyConfig, row: RowConfig) -> list[int]:
    """Return the seeds that a row is trained with."""
    return study.seeds if row.shown else study.seeds[:1]


def standing(study: StudyConfig, name: str, seed: int) -> tuple[RowConfig, int]:
    """Return the row of that name and the seed of its run that stands for ``seed``."""
    row = next(row for row in study.rows if row.name == name)
    seeds = row_seeds(study, row)
    return row, seed if seed in seeds else seeds[0]


def origin_rows(row: RowConfig) -> set[str]:
    """Return the names of the rows that a row starts from."""
    return {*row.encoders.values(), *row.best_of, *([row.continues] if row.continues else [])}


def forms(study: StudyConfig, row: RowConfig) -> list[RowConfig]:
    """Return what a row may become: itself, or a row that goes on with each of its `best_of`."""
    return [
        dataclasses.replace(row, network=other.network, continues=other.name, best_of=[])
        for other in study.rows
        if other.name in row.best_of
    ] or [row]


def settled(study: StudyConfig, row: RowConfig) -> RowConfig:
    """Return a row as it is trained; where none of its `best_of` has scores, the first counts."""

    def score(form: RowConfig) -> float:
        if any(failure(study, *standing(study, form.continues, n)) for n in study.seeds):
            return -2.0
        source, seed = standing(study, form.continues, study.seeds[0])
        path = run_folder(study, source, seed) / 'scores.json'
        if path.is_file():
            return json.loads(path.read_text())['test']['mIoU']
        told = (e for e in read_record(study) if (e['row'], e['seed']) == (source.name, seed))
        return next((e['scores']['test']['mIoU'] for e in told), -1.0)

    return max(forms(study, row), key=score) if row.best_of else row


def run_folder(study: StudyConfig, row: RowConfig, seed: int) -> Path:
    """Return the folder of a run."""
    return Path(study.output) / f'{row.name}-{seed}'


def row_config(study: StudyConfig, row: RowConfig, seed: int, epochs: int) -> TrainConfig:
    """Return the training run of a row."""
    row = settled(study, row)
    config = run_of(study.run, row.run)
    config.output = str(run_folder(study, row, seed))
    config.network, config.epochs, config.seed = copy.deepcopy(row.network), epochs, seed

    def last(name: str) -> str:
        return str(run_folder(study, *standing(study, name, seed)) / LAST_NAME)

    if row.continues:
        config.network.init_from = last(row.continues)
    if 'rgb' in row.encoders:
        config.network.init_rgb = last(row.encoders['rgb'])
    if 'hha' in row.encoders:
        config.network.init_hha = last(row.encoders['hha'])
    return config


def run_of(run: Run, changes: Mapping[str, Any]) -> Run:
    """Return a study's run, a dataclass, with what is otherwise in a row.

    Raises:
        InputError: settings that a run does not have, or values that they cannot have.
    """
    if not changes:
        return copy.deepcopy(run)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(type(run))
    try:
        parsed = parser.parse_object(_merged(dataclasses.asdict(run), changes))
        return type(run)(**vars(parser.instantiate(parsed)))
    except ArgumentError as error:
        reason = ' '.join(str(error).split())
        raise InputError(f'run has what no run takes: {reason}') from error
    except TypeError as error:  # a null, which the parser takes for any type
        raise InputError(
            f'run has a null where a value is needed, in {dict(changes)} ({error}); give one'
        ) from error


def _merged(old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**old, **new}
    for key in new:
        if isinstance(old.get(key), dict):
            if not isinstance(new[key], Mapping):
                raise InputError(
                    f'run has {key}: {new[key]!r}, but {key} is a section of settings'
                )
            merged[key] = _merged(old[key], new[key])
    return merged


def is_done(study: StudyConfig, row: RowConfig, seed: int, epochs: int | None = None) -> bool:
    """Whether a run is done; None for ``epochs`` takes those that it has.

    Raises:
        InputError: it was trained with other settings than the study's.
    """
    folder = run_folder(study, row, seed)
    if not (folder / 'scores.json').is_file():
        return False
    before = read_settings(folder)
    if before is None:
        raise InputError(
            f'{folder} has scores but no {SETTINGS_NAME}; delete the folder to train it again'
        )
    if changed := _changed(study, row, seed, before, epochs):
        raise InputError(
            f'{folder} was trained with another {", ".join(changed)} than the study has now; give '
            f'the study another output or the settings in its {SETTINGS_NAME}, or delete the '
            'folder to train it again'
        )
    return True


def _changed(
    study: StudyConfig, row: RowConfig, seed: int, before: Mapping[str, Any], epochs: int | None
) -> list[str]:
    """Return the names of the settings in which a run differs from the study's."""
    # What a row started from lay beside it, wherever the study was then.
    seeds = list(dict.fromkeys([*study.seeds, seed]))
    there = dataclasses.replace(study, output=str(Path(before['output']).parent), seeds=seeds)
    config = row_config(there, row, seed, before['epochs'] if epochs is None else epochs)
    changed = changed_settings(config, before, FREE_IN_ROWS)
    # Which of several was the best is known of the time when it began.
    changed = [name for name in changed if not (row.best_of and name.startswith('network.'))]
    # Rows that are not shown have one seed, the first of those that the study then had.
    unshown = {row.name for row in study.rows if not row.shown}
    now, then = flatten(dataclasses.asdict(config)), flatten(before)
    return [
        name
        for name in changed
        if not name.startswith('network.init_')
        or origin_name(now[name]) not in unshown
        or origin_name(now[name]) != origin_name(then.get(name, ''))
    ]


def origin_name(checkpoint: str) -> str:
    """Return the name of the row of a study that a checkpoint is of."""
    return Path(checkpoint).parent.name.rpartition('-')[0]


def failed_runs(study: StudyConfig) -> list[dict[str, Any]]:
    """Return 'row', 'seed' and 'reason' of the runs that cannot be trained."""
    reasons = [(row.name, seed, failure(study, row, seed)) for row, seed in all_runs(study)]
    return [{'row': name, 'seed': seed, 'reason': why} for name, seed, why in reasons if why]


def failure(study: StudyConfig, row: RowConfig, seed: int) -> str:
    """Return why a run cannot be trained: it diverged, or one that it starts from; else ''."""
    file = run_folder(study, row, seed) / FAILURE_NAME
    if file.is_file():
        return file.read_text(encoding='utf-8').strip()
    origins = [standing(study, name, seed) for name in sorted(origin_rows(row))]
    failed = [f'{source.name}-{n}' for source, n in origins if failure(study, source, n)]
    if len(failed) < len(row.best_of):  # the best of the others
        return ''
    return f'it starts from {", ".join(failed)}' if failed else ''


def collect(study: StudyConfig) -> list[dict[str, Any]]:
    """Return one entry for each finished run: row, seed, scores, cost, what it took.

    Runs of the study's record that were not trained here are among them.

    Raises:
        InputError: a run that was trained otherwise than the study asks for.
    """
    here = {
        (row.name, seed): _entry(study, row, seed)
        for row, seed in all_runs(study)
        if is_done(study, row, seed)
    }
    entries = [*here.values(), *recorded_runs(study, without=here)]
    order = [row.name for row in study.rows]
    return sorted(entries, key=lambda entry: (order.index(entry['row']), entry['seed']))


def recorded_runs(
    study: StudyConfig, without: Collection[tuple[str, int]] = ()
) -> list[dict[str, Any]]:
    """Return the runs of the study's record, but for those of rows that it has no more.

    Raises:
        InputError: they were trained otherwise than the study asks for.
    """
    rows, entries = {row.name: row for row in study.rows}, []
    for entry in read_record(study):
        key = row, seed = entry['row'], entry['seed']
        if row not in rows or key in without:
            continue
        if changed := _changed(study, rows[row], seed, entry['settings'], None):
            raise InputError(
                f'{row} with seed {seed} in study.record {study.record} was trained with another '
                f"{', '.join(changed)} than the study has now; give another record, or '' for none"
            )
        # The table's words are the study's, which may have changed.
        entries.append(entry | {'title': rows[row].title})
    return entries


def _entry(study: StudyConfig, row: RowConfig, seed: int) -> dict[str, Any]:
    folder = run_folder(study, row, seed)
    scores = json.loads((folder / 'scores.json').read_text())
    info = load_checkpoint(folder / LAST_NAME).info
    size = info['width'], info['height']
    network = empty_network(info['network'], len(info['classes']['names']), **info['options'])
    return {
        'row': row.name,
        'title': row.title,
        'seed': seed,
        'epochs': read_settings(folder)['epochs'],
        'steps': info['step'],
        'minutes': info['minutes'],
        'parameters': parameter_count(network)[0],
        'gflops': round(gflops(network, *size), 2),
        'size': list(size),
        'modalities': list(network.modalities),
        'scores': {k: v for k, v in scores.items() if k != 'step'},
        'settings': told_settings(read_settings(folder)),
    }
