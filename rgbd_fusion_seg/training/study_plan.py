"""The plan of a study: the epochs of each row, scaled to the time there is, decided once."""

from __future__ import annotations

import json
import math
import sys
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.checkpoints import write_text
from rgbd_fusion_seg.training.evaluation import predicted_labels
from rgbd_fusion_seg.training.study_config import RowConfig, StudyConfig
from rgbd_fusion_seg.training.study_runs import forms, row_config, row_seeds
from rgbd_fusion_seg.training.trainer import Trainer

RESERVE = 0.05
"""Share of a study's time that is not planned for, so that slower rows still end within it."""
PLAN_NAME = 'plan.json'
MEASURED_STEPS, MEASURED_SECONDS = 4, 2.0
"""How many steps, and for how long at least, a row trains for its speed to be measured."""
MEASURED_FRAMES = 16
"""Frames labelled to measure how long a row's scores take."""


def planned_epochs(study: StudyConfig, output: Path) -> dict[str, int]:
    """Return each row's epochs; decided once, so that a continued study keeps to them.

    Rows that come later get epochs by the same factor, beyond the time that was planned for.

    Raises:
        InputError: a time in which some row has no epoch, or a plan for another study.
    """
    path = output / PLAN_NAME
    plan = _read_plan(path)
    if plan is None:
        factor, seconds = _factor(study, output)
        plan = {'minutes': study.minutes, 'factor': factor, 'seconds': seconds}
        plan |= {'asked': {}, 'epochs': {}}
    else:
        _check_plan(study, plan, path)
    for row in [row for row in study.rows if row.name not in plan['epochs']]:
        plan['asked'][row.name] = row.epochs
        plan['epochs'][row.name] = max(1, round(row.epochs * plan['factor']))
    write_text(path, json.dumps(plan, indent=1))
    return plan['epochs']


def planned_seconds(output: Path) -> dict[str, tuple[float, float]]:
    """Return what each row takes as measured when it was planned, see `measured_seconds`.

    Rows of which that is not known are not in it.
    """
    plan = _read_plan(output / PLAN_NAME) or {'seconds': {}}
    return {row: (once, epoch) for row, (once, epoch) in plan['seconds'].items()}


def _read_plan(path: Path) -> dict[str, Any] | None:
    """Return a plan: 'epochs', 'asked' epochs and their 'factor', 'minutes' of the whole study.

    Besides, 'seconds' as of `planned_seconds`. None where nothing is planned yet.
    """
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_text(encoding='utf-8'))
        missing = {'minutes', 'factor', 'seconds', 'asked', 'epochs'} - {*plan}
    except (ValueError, TypeError) as error:
        raise InputError(f'{path} is no plan of a study ({error}); delete it') from error
    if missing:
        lacks = ', '.join(sorted(missing))
        raise InputError(f'{path} is no plan of a study (it lacks {lacks}); delete it')
    return plan


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
    if not planned or now < planned:
        raise InputError(
            f'the study was planned for study.minutes {planned:g}, not {now:g}; give '
            f'{planned:g} or more to go on with its epochs, or the study another output, {anew}'
        )
    print(
        f'the epochs planned for {planned:g} minutes are kept, so that all rows have one budget; '
        f'{now:g} minutes are time to finish them'
    )


def _factor(study: StudyConfig, output: Path) -> tuple[float, dict[str, tuple[float, float]]]:
    """Return by what every row's epochs are multiplied to fit into the time, and what each takes.

    Raises:
        InputError: some row has not a single epoch then.
    """
    if not study.minutes:
        return 1.0, {}
    start = time.monotonic()
    rows = [row for row in study.rows if not row.optional]
    costs = [
        max(
            (measured_seconds(study, form, output) for form in forms(study, row)),
            key=itemgetter(1),
        )
        for row in rows
    ]
    runs = [len(row_seeds(study, row)) for row in rows]
    fixed = time.monotonic() - start
    fixed += sum(n * once for n, (once, _) in zip(runs, costs, strict=True))
    whole = sum(
        n * row.epochs * epoch for n, row, (_, epoch) in zip(runs, rows, costs, strict=True)
    )
    factor = (60 * study.minutes * (1 - RESERVE) - fixed) / whole
    least = 1 / min(row.epochs for row in rows)
    if factor < least:
        needed = math.ceil((fixed + least * whole) / (1 - RESERVE) / 6) / 10
        raise InputError(
            f'in {study.minutes:g} minutes not every row of the study gets an epoch; give '
            f'study.minutes {needed:g} or more, or fewer rows or seeds'
        )
    return factor, {row.name: cost for row, cost in zip(rows, costs, strict=True)}


def measured_seconds(study: StudyConfig, row: RowConfig, output: Path) -> tuple[float, float]:
    """Return what a row takes besides its epochs, to start and to be scored, and an epoch."""
    bare = RowConfig(row.name, network=row.network, run=row.run)
    config = row_config(study, bare, 0, 1)
    config.output = str(output / 'speed' / row.name)
    for option in ('freeze_norms', 'freeze_experts'):  # are for weights that it lacks here
        config.network.options.pop(option, None)
    start = time.perf_counter()
    trainer = Trainer(config)
    batches = trainer.views().batches(0, sys.maxsize)

    def steps(seconds: float) -> float:
        """Take steps for so long, MEASURED_STEPS at least; return the seconds of one."""
        begin, count = time.perf_counter(), 0
        while count < MEASURED_STEPS or time.perf_counter() - begin < seconds:
            loss = trainer.step(next(batches))['loss']
            count += 1
            if count % MEASURED_STEPS == 0:
                float(loss)  # waits for a GPU
        float(loss)
        return (time.perf_counter() - begin) / count

    steps(0)  # the first ones are slow: loaders start, libraries choose their algorithms
    once = time.perf_counter() - start
    epoch = trainer.steps_per_epoch * steps(MEASURED_SECONDS)
    network, test = trainer.saved_network(), trainer.frames['test']
    start = time.perf_counter()
    some = range(min(MEASURED_FRAMES, len(test)))
    size = config.data.width, config.data.height
    predicted_labels(network, trainer.normalise, test, size, some)
    return once + (time.perf_counter() - start) * len(test) / len(some), epoch
