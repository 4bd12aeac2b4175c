"""A study: many networks trained alike, one after the other, and the table that compares them.

Rows are trained in the order of the configuration; a fusion network may start from the encoders
of unimodal rows before it, as the RFBNet paper trains. What is done is never done again: start
the same command once more and it goes on. A row that diverges is noted in its folder and left out
with all that starts from it; the others are trained. Start the command several times and the
processes share the rows, which fills a large GPU with small networks.
"""

from __future__ import annotations

import copy
import dataclasses
import fcntl
import json
import math
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rgbd_fusion_seg.errors import DivergenceError, InputError, TrainingError
from rgbd_fusion_seg.training.checkpoints import (
    check_writable,
    load_checkpoint,
    make_folder,
    write_atomically,
)
from rgbd_fusion_seg.training.config import TrainConfig
from rgbd_fusion_seg.training.continuation import (
    FREE_TO_CHANGE,
    SETTINGS_NAME,
    STATE_NAME,
    changed_settings,
    read_settings,
)
from rgbd_fusion_seg.training.cost import empty_network, gflops
from rgbd_fusion_seg.training.evaluation import predicted_labels
from rgbd_fusion_seg.training.initialisation import make_network
from rgbd_fusion_seg.training.networks import parameter_count
from rgbd_fusion_seg.training.study_config import RowConfig, StudyConfig
from rgbd_fusion_seg.training.study_record import read_record, told_settings, write_record
from rgbd_fusion_seg.training.study_report import around, write_report
from rgbd_fusion_seg.training.trainer import NO_FILES, Trainer, check_norms, check_size

MEASURED_STEPS, MEASURED_SECONDS = 4, 2.0
"""How many steps, and for how long at least, a row trains for its speed to be measured."""
MEASURED_FRAMES = 16
"""Frames labelled to measure how long a row's scores take."""
FREE_IN_ROWS = FREE_TO_CHANGE - {'epochs', 'max_minutes'}
"""Settings that the study may be continued with other values of when a row of it is done."""
PLAN_NAME, FAILURE_NAME = 'plan.json', 'failed.txt'
LOOK_AGAIN_S = 5.0
"""Pause of a process that has nothing to do until another has trained a row."""


def study(
    study: StudyConfig, report_only: bool = False, only: Sequence[str] | None = None
) -> None:
    """Train every row of a study with every seed and compare them; goes on where it stopped.

    Args:
        study: what is compared, and how it is trained.
        report_only: write the results of what is done so far, train nothing.
        only: names of the rows to train, with those that they start from; default: all.

    Raises:
        InputError: rows that name unknown rows or options, that cannot be trained at this size,
            or that were trained otherwise than the study asks for now; a document without a place
            for the study; a record of another study.
        TrainingError: rows diverged; all others that do not start from them were trained.
    """
    _check(study)
    wanted = _wanted(study, only)
    output = Path(study.output)
    check_writable(output)
    make_folder(output)
    if not report_only:
        with _claimed(output / 'plan.lock', wait=True):
            plan = _plan(study, output)
        _train_rows(study, plan, output, wanted)
    failures, entries = failed_runs(study), collect(study)
    write_report(study, entries, output, failures)
    if study.record and entries:
        write_record(study, entries)
    print(f'written to {output}')
    if failures and not report_only:
        failed = '; '.join(f'{f["row"]}-{f["seed"]}: {f["reason"]}' for f in failures)
        raise TrainingError(
            f'not every row of the study could be trained: {failed} (delete the folder of a row '
            f'in {output} to try it again)'
        )


def _check(study: StudyConfig) -> None:
    if not study.rows:
        raise InputError('the study has no rows; give it a --config such as those of the package')
    known: set[str] = set()
    for row in study.rows:
        wanted = _sources(row)
        if row.name in known or wanted - known:
            raise InputError(
                f'the study row {row.name!r} appears twice or starts from '
                f'{", ".join(sorted(wanted - known)) or "nothing"}, which no earlier row is; '
                'correct the names or the order of rows'
            )
        known.add(row.name)
    for claim in study.claims:
        if {claim.better, claim.worse} - known:
            raise InputError(f'the claim {claim.text!r} compares rows that the study lacks')
    if study.document:
        around(Path(study.document), study.name)
    _recorded(study)
    networks: dict[str, nn.Module] = {}
    for row in study.rows:
        try:
            networks[row.name] = _check_network(row_config(study, row, study.seeds[0], 1))
            _check_start(row, networks)
        except InputError as error:
            raise InputError(f'the study row {row.name!r}: {error}') from error


def _wanted(study: StudyConfig, only: Sequence[str] | None) -> set[str]:
    """Return the names of the rows to train: those asked for and what they start from."""
    known = [row.name for row in study.rows]
    wanted = set(known if only is None else only)
    if unknown := wanted - set(known):
        raise InputError(
            f'the study has no row {", ".join(sorted(unknown))}; only takes {", ".join(known)}'
        )
    for row in reversed(study.rows):
        if row.name in wanted:
            wanted |= _sources(row)
    return wanted


def _check_network(config: TrainConfig) -> nn.Module:
    """Build a row's network without memory for its weights, for errors that it would end with."""
    check_norms(config)
    bare = dataclasses.replace(config.network, **NO_FILES)
    with torch.device('meta'):
        network = make_network(bare, ('one', 'other'))
    check_size(network, config)
    return network


def _check_start(row: RowConfig, networks: Mapping[str, nn.Module]) -> None:
    """Let a row's network start from others as it will, without memory for their weights."""
    network = networks[row.name]
    for modality, source in row.encoders.items():
        given = networks[source]
        if not hasattr(network, 'initialise_encoder') or given.modalities != (modality,):
            raise InputError(
                f'{row.network.name} cannot start its encoder for {modality} from the row '
                f'{source}, which reads {" and ".join(given.modalities)}; encoders are for fusion '
                'networks, from a unimodal one of each modality'
            )
        network.initialise_encoder(modality, given.state_dict())
    if row.continues:
        ours, theirs = (
            {name: value.shape for name, value in networks[source].state_dict().items()}
            for source in (row.name, row.continues)
        )
        if ours != theirs:
            raise InputError(
                f'its network is not that of the row {row.continues}, which it continues; give '
                'both the same name and options'
            )


def _sources(row: RowConfig) -> set[str]:
    """Return the names of the rows that a row starts from."""
    return {*row.encoders.values(), *([row.continues] if row.continues else [])}


def _seeds(study: StudyConfig, row: RowConfig) -> list[int]:
    """Return the seeds that a row is trained with."""
    return study.seeds if row.shown else study.seeds[:1]


def _standing(study: StudyConfig, name: str, seed: int) -> tuple[RowConfig, int]:
    """Return the row of that name and the seed of its run that stands for ``seed``."""
    row = next(row for row in study.rows if row.name == name)
    seeds = _seeds(study, row)
    return row, seed if seed in seeds else seeds[0]


def _folder(study: StudyConfig, row: RowConfig, seed: int) -> Path:
    return Path(study.output) / f'{row.name}-{seed}'


def row_config(study: StudyConfig, row: RowConfig, seed: int, epochs: int) -> TrainConfig:
    """Return the training run of a row."""
    config = copy.deepcopy(study.run)
    config.output = str(_folder(study, row, seed))
    config.network, config.epochs, config.seed = copy.deepcopy(row.network), epochs, seed

    def last(name: str) -> str:
        return str(_folder(study, *_standing(study, name, seed)) / 'last.safetensors')

    if row.continues:
        config.network.init_from = last(row.continues)
    config.network.init_rgb = last(row.encoders['rgb']) if 'rgb' in row.encoders else ''
    config.network.init_hha = last(row.encoders['hha']) if 'hha' in row.encoders else ''
    return config


def _plan(study: StudyConfig, output: Path) -> dict[str, int]:
    """Return each row's epochs; decided once, so that a continued study keeps to them.

    Rows that come later get epochs by the same factor, beyond the time that was planned for.

    Raises:
        InputError: a time in which some row has no epoch, or a plan for another study.
    """
    path = output / PLAN_NAME
    plan = _read_plan(path)
    if plan is None:
        factor = _factor(study, output)
        plan = {'minutes': study.minutes, 'factor': factor, 'asked': {}, 'epochs': {}}
    elif 'factor' in plan:
        _check_plan(study, plan, path)
    new = [row for row in study.rows if row.name not in plan['epochs']]
    if 'factor' not in plan:  # of an older version, which its processes still read
        if new and study.minutes:
            raise InputError(
                f'{path} tells no factor for the epochs of {new[0].name}; give study.minutes 0, '
                'or the study another output'
            )
        return {**plan['epochs'], **{row.name: max(1, round(row.epochs)) for row in new}}
    for row in new:
        plan['asked'][row.name] = row.epochs
        plan['epochs'][row.name] = max(1, round(row.epochs * plan['factor']))
    text = json.dumps(plan, indent=1)
    write_atomically(path, lambda part: part.write_text(text, encoding='utf-8'))
    return plan['epochs']


def _read_plan(path: Path) -> dict[str, Any] | None:
    """Return a plan: 'epochs', 'asked' epochs and their 'factor', 'minutes' of the whole study.

    Plans of older versions hold the epochs alone.
    """
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_text(encoding='utf-8'))
        return plan if 'factor' in plan else {'epochs': {k: int(v) for k, v in plan.items()}}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f'{path} is no plan of a study ({error}); delete it') from error


def _check_plan(study: StudyConfig, plan: dict[str, Any], path: Path) -> None:
    """Refuse a plan that was made from other epochs or for more time than there is."""
    anew = f'or delete {path} and the folders of all rows to plan anew'
    for row in study.rows:
        asked = plan['asked'].get(row.name, row.epochs)
        if asked != row.epochs:
            raise InputError(
                f'the epochs of {row.name} were {asked:g} when the study was planned and are '
                f'{row.epochs:g} now; give the former, or the study another output, {anew}'
            )
    planned, now = plan['minutes'], study.minutes
    if planned == now:
        return
    if not planned or not now or now < planned:
        raise InputError(
            f'the study was planned for study.minutes {planned:g}, not {now:g}; give '
            f'{planned:g} or more to go on with its epochs, or the study another output, {anew}'
        )
    print(
        f'the epochs planned for {planned:g} minutes are kept, so that all rows have one budget; '
        f'{now:g} minutes are time to finish them'
    )


def _factor(study: StudyConfig, output: Path) -> float:
    """Return by what every row's epochs are multiplied to fit into the time.

    Raises:
        InputError: some row has not a single epoch then.
    """
    if not study.minutes:
        return 1.0
    start = time.monotonic()
    costs = [_seconds(study, row, output) for row in study.rows]
    runs = [len(_seeds(study, row)) for row in study.rows]
    fixed = time.monotonic() - start
    fixed += sum(n * once for n, (once, _) in zip(runs, costs, strict=True))
    whole = sum(
        n * row.epochs * epoch for n, row, (_, epoch) in zip(runs, study.rows, costs, strict=True)
    )
    factor = (60 * study.minutes - fixed) / whole
    least = 1 / min(row.epochs for row in study.rows)
    if factor < least:
        needed = math.ceil((fixed + least * whole) / 6) / 10
        raise InputError(
            f'in {study.minutes:g} minutes not every row of the study gets an epoch; give '
            f'study.minutes {needed:g} or more, or fewer rows or seeds'
        )
    return factor


def _seconds(study: StudyConfig, row: RowConfig, output: Path) -> tuple[float, float]:
    """Return what a row takes besides its epochs, to start and to be scored, and an epoch."""
    bare = RowConfig(row.name, network=row.network)
    config = row_config(study, bare, 0, 1)
    config.output = str(output / 'speed' / row.name)
    config.network.options.pop('freeze_norms', None)  # is for the weights that it lacks here
    start = time.perf_counter()
    trainer = Trainer(config)
    batches = trainer.views().batches(0, sys.maxsize)

    def steps(seconds: float) -> float:
        """Take steps for so long, MEASURED_STEPS at least; return the seconds of one."""
        begin, count = time.perf_counter(), 0
        while count < MEASURED_STEPS or time.perf_counter() - begin < seconds:
            loss = trainer.step(next(batches))
            count += 1
            if count % MEASURED_STEPS == 0:
                float(loss)  # waits for a GPU
        float(loss)
        return (time.perf_counter() - begin) / count

    steps(0)  # the first ones are slow: loaders start, libraries choose their algorithms
    once = time.perf_counter() - start
    epoch = trainer.steps_per_epoch * steps(MEASURED_SECONDS)
    start, test = time.perf_counter(), trainer.frames['test']
    some = range(min(MEASURED_FRAMES, len(test)))
    size = config.data.width, config.data.height
    predicted_labels(trainer.network.module, trainer.normalise, test, size, some)
    return once + (time.perf_counter() - start) * len(test) / len(some), epoch


def _is_done(study: StudyConfig, row: RowConfig, seed: int, epochs: int | None = None) -> bool:
    """Whether a run is done; None for ``epochs`` takes those that it has.

    Raises:
        InputError: it was trained with other settings than the study's.
    """
    folder = _folder(study, row, seed)
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
    return changed_settings(config, before, FREE_IN_ROWS)


def failed_runs(study: StudyConfig) -> list[dict[str, Any]]:
    """Return 'row', 'seed' and 'reason' of the runs that cannot be trained."""
    reasons = [(row.name, seed, _failure(study, row, seed)) for row, seed in _runs(study)]
    return [{'row': name, 'seed': seed, 'reason': why} for name, seed, why in reasons if why]


def _failure(study: StudyConfig, row: RowConfig, seed: int) -> str:
    """Return why a run cannot be trained: it diverged, or one that it starts from; else ''."""
    file = _folder(study, row, seed) / FAILURE_NAME
    if file.is_file():
        return file.read_text(encoding='utf-8').strip()
    origins = [_standing(study, name, seed) for name in sorted(_sources(row))]
    failed = [f'{source.name}-{n}' for source, n in origins if _failure(study, source, n)]
    return f'it starts from {", ".join(failed)}' if failed else ''


def _runs(study: StudyConfig) -> list[tuple[RowConfig, int]]:
    """Return every row with each of its seeds."""
    return [(row, seed) for row in study.rows for seed in _seeds(study, row)]


def _train_rows(
    study: StudyConfig, plan: dict[str, int], output: Path, wanted: Collection[str]
) -> None:
    """Train what of the wanted rows is not done and has not failed.

    A signal ends it after the run that it met has been saved.
    """

    def done(row: RowConfig, seed: int) -> bool:
        return _is_done(study, row, seed, plan[row.name])

    runs = [run for run in _runs(study) if run[0].name in wanted]
    left = sorted(runs, key=lambda run: study.seeds.index(run[1]))
    while left := [run for run in left if not done(*run) and not _failure(study, *run)]:
        for row, seed in left:
            if not all(done(*_standing(study, name, seed)) for name in _sources(row)):
                continue
            with _claimed(output / f'{row.name}-{seed}.lock') as mine:
                if not mine or done(row, seed) or _failure(study, row, seed):
                    continue
                if not _train_row(study, row, seed, plan[row.name]):
                    return
                break
        else:
            time.sleep(LOOK_AGAIN_S)


@contextmanager
def _claimed(lock: Path, wait: bool = False) -> Iterator[bool]:
    """Claim what a file stands for among processes; yield whether it is ours now."""
    with lock.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _train_row(study: StudyConfig, row: RowConfig, seed: int, epochs: int) -> bool:
    """Train a row, or note that it diverged; False when a signal ended it early."""
    print(f'{row.name}, seed {seed}: {epochs} epochs', flush=True)
    trainer = Trainer(row_config(study, row, seed, epochs))
    try:
        if not trainer.fit():
            return False
    except DivergenceError as error:
        text = f'{error}\n'
        path = trainer.folder / FAILURE_NAME
        write_atomically(path, lambda part: part.write_text(text, encoding='utf-8'))
        print(f'{row.name}, seed {seed} failed: {error}', flush=True)
        return True
    # A finished row is not continued; its optimiser's state is the largest file of all.
    (trainer.folder / STATE_NAME).unlink(missing_ok=True)
    return True


def collect(study: StudyConfig) -> list[dict[str, Any]]:
    """Return one entry for each finished run: row, seed, scores, cost, what it took.

    Runs of the study's record that were not trained here are among them.

    Raises:
        InputError: a run that was trained otherwise than the study asks for.
    """
    here = {
        (row.name, seed): _entry(study, row, seed)
        for row, seed in _runs(study)
        if _is_done(study, row, seed)
    }
    entries = [*here.values(), *_recorded(study, without=here)]
    order = [row.name for row in study.rows]
    return sorted(entries, key=lambda entry: (order.index(entry['row']), entry['seed']))


def _recorded(
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
    folder = _folder(study, row, seed)
    scores = json.loads((folder / 'scores.json').read_text())
    info = load_checkpoint(folder / 'last.safetensors').info
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
