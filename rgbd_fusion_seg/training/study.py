"""A study: many networks trained alike, one after the other, and the table that compares them.

Rows are trained in the order of the configuration; a fusion network may start from the encoders
of unimodal rows before it, as the RFBNet paper trains. What is done is never done again: start
the same command once more and it goes on. A row that diverges is noted in its folder and left out
with all that starts from it; the others are trained. Start the command several times and the
processes share the rows, which fills a large GPU with small networks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import nn

from rgbd_fusion_seg.errors import DivergenceError, InputError, TrainingError
from rgbd_fusion_seg.file_lock import file_lock
from rgbd_fusion_seg.training.checkpoints import check_writable, make_folder, write_text
from rgbd_fusion_seg.training.config import TrainConfig
from rgbd_fusion_seg.training.continuation import STATE_NAME
from rgbd_fusion_seg.training.initialisation import bare_network
from rgbd_fusion_seg.training.run_checks import check_frozen, check_network
from rgbd_fusion_seg.training.run_lock import lock_of
from rgbd_fusion_seg.training.study_config import RowConfig, StudyConfig
from rgbd_fusion_seg.training.study_plan import planned_epochs, planned_seconds
from rgbd_fusion_seg.training.study_record import check_record, write_record
from rgbd_fusion_seg.training.study_report import around, write_report
from rgbd_fusion_seg.training.study_runs import (
    FAILURE_NAME,
    all_runs,
    collect,
    failed_runs,
    failure,
    forms,
    is_done,
    origin_rows,
    recorded_runs,
    row_config,
    run_folder,
    standing,
)
from rgbd_fusion_seg.training.study_scores import rescore as score_again
from rgbd_fusion_seg.training.trainer import Trainer

LOOK_AGAIN_S = 5.0
"""Pause of a process that has nothing to do until another has trained a row."""


def study(
    study: StudyConfig,
    report_only: bool = False,
    only: Sequence[str] | None = None,
    rescore: Sequence[str] = (),
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
) -> None:
    """Train every row of a study with every seed and compare them; goes on where it stopped.

    Args:
        study: what is compared, and how it is trained.
        report_only: write the results of what is done so far, train nothing.
        only: names of the rows to train, with those that they start from; default: all but the
            optional ones.
        rescore: names of rows whose finished runs are scored once more; nothing is trained then.
        scales: of ``rescore``, as of the evaluate command; scores of several views stand beside
            those of one.
        flip: of ``rescore``, as of the evaluate command: mirror images are views, too.

    Raises:
        InputError: rows that name unknown rows or options, that cannot be trained at this size,
            or that were trained otherwise than the study asks for now; a document without a place
            for the study; a record of another study.
        TrainingError: rows diverged; all others that do not start from them were trained.
    """
    deadline = time.monotonic() + (60 * study.minutes or math.inf)
    _check(study)
    wanted = _wanted(study, only)
    if not rescore and (flip or tuple(scales) != (1.0,)):
        raise InputError('scales and flip are of what rescore names; give it the names of rows')
    output = Path(study.output)
    check_writable(output)
    make_folder(output)
    if rescore:
        score_again(study, rescore, scales, flip)
    elif not report_only:
        with file_lock(output / 'plan.lock', wait=True):
            plan = planned_epochs(study, output)
        _train_rows(study, plan, output, wanted, deadline)
    failures, entries = failed_runs(study), collect(study)
    write_report(study, entries, output, failures)
    if study.record and entries:
        write_record(study, entries)
    print(f'written to {output}')
    if failures and not (report_only or rescore):
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
        wanted = origin_rows(row)
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
    check_record(study)
    networks: dict[str, nn.Module] = {}
    for row in study.rows:
        try:
            for form in forms(study, row):
                networks[row.name] = _check_network(row_config(study, form, study.seeds[0], 1))
                _check_start(form, networks)
        except InputError as error:
            raise InputError(f'the study row {row.name!r}: {error}') from error
    recorded_runs(study)


def _wanted(study: StudyConfig, only: Sequence[str] | None) -> set[str]:
    """Return the names of the rows to train: those asked for and what they start from."""
    known = [row.name for row in study.rows]
    usual = [row.name for row in study.rows if not row.optional]
    wanted = set(usual if only is None else only)
    if unknown := wanted - set(known):
        raise InputError(
            f'the study has no row {", ".join(sorted(unknown))}; only takes {", ".join(known)}'
        )
    for row in reversed(study.rows):
        if row.name in wanted:
            wanted |= origin_rows(row)
    return wanted


def _check_network(config: TrainConfig) -> nn.Module:
    """Build a row's network without memory for its weights, for errors that it would end with."""
    check_frozen(config)
    network = bare_network(config.network)
    check_network(network, config)
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


def _train_rows(
    study: StudyConfig,
    plan: dict[str, int],
    output: Path,
    wanted: Collection[str],
    deadline: float,
) -> None:
    """Train what of the wanted rows is not done and has not failed.

    A signal ends it after the run that it met has been saved; so does the deadline, before which
    no run is begun that would end after it.
    """
    seconds = planned_seconds(output)

    def done(row: RowConfig, seed: int) -> bool:
        return is_done(study, row, seed, plan[row.name])

    def is_ready(row: RowConfig, seed: int) -> bool:
        origins = [standing(study, name, seed) for name in origin_rows(row)]
        return all(done(*run) or (row.best_of and failure(study, *run)) for run in origins)

    def is_late(row: RowConfig, seed: int) -> bool:
        once, epoch = seconds.get(row.name, (0.0, 0.0))
        is_under_way = (run_folder(study, row, seed) / STATE_NAME).is_file()
        needed = once + epoch * (1 if is_under_way else plan[row.name])
        return time.monotonic() + needed > deadline

    runs = [run for run in all_runs(study) if run[0].name in wanted]
    left = sorted(runs, key=lambda run: study.seeds.index(run[1]))
    while left := [run for run in left if not done(*run) and not failure(study, *run)]:
        ready = [run for run in left if is_ready(*run)]
        for row, seed in ready:
            if is_late(row, seed):
                continue
            with file_lock(lock_of(output / f'{row.name}-{seed}')) as mine:
                if not mine or done(row, seed) or failure(study, row, seed):
                    continue
                ends = deadline - seconds.get(row.name, (0.0,))[0]  # its scores come after that
                if not _train_row(study, row, seed, plan[row.name], ends):
                    return _tell_left(left)
                break
        else:
            if any(is_late(*run) for run in ready):
                return _tell_left(left)
            time.sleep(LOOK_AGAIN_S)


def _tell_left(runs: Sequence[tuple[RowConfig, int]]) -> None:
    names = ', '.join(f'{row.name}-{seed}' for row, seed in runs)
    print(f'left to train: {names}; start the same command again to go on', flush=True)


def _train_row(
    study: StudyConfig, row: RowConfig, seed: int, epochs: int, deadline: float
) -> bool:
    """Train a row, or note that it diverged; False when it was saved to be continued."""
    print(f'{row.name}, seed {seed}: {epochs} epochs', flush=True)
    trainer = Trainer(row_config(study, row, seed, epochs))
    trainer.deadline = deadline
    try:
        if not trainer.fit():
            return False
    except DivergenceError as error:
        write_text(trainer.folder / FAILURE_NAME, f'{error}\n')
        print(f'{row.name}, seed {seed} failed: {error}', flush=True)
        return True
    # A finished row is not continued; its optimiser's state is the largest file of all.
    (trainer.folder / STATE_NAME).unlink(missing_ok=True)
    return True
