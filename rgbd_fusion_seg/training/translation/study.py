"""A study: translators trained one after the other under one budget, and a table of errors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rgbd_fusion_seg.errors import DivergenceError, InputError
from rgbd_fusion_seg.file_lock import file_lock
from rgbd_fusion_seg.training.checkpoints import check_writable, make_folder, write_text
from rgbd_fusion_seg.training.continuation import (
    SETTINGS_NAME,
    STATE_NAME,
    changed_settings,
    read_settings,
)
from rgbd_fusion_seg.training.networks import parameter_count
from rgbd_fusion_seg.training.report import escaped
from rgbd_fusion_seg.training.rules import is_folder_name, require
from rgbd_fusion_seg.training.run_lock import lock_of
from rgbd_fusion_seg.training.study_config import study_rules
from rgbd_fusion_seg.training.study_record import (
    check_record,
    read_record,
    told_settings,
    write_record,
)
from rgbd_fusion_seg.training.study_report import around, insert, spread
from rgbd_fusion_seg.training.study_runs import run_of
from rgbd_fusion_seg.training.translation.checkpoint import load_translator, make_translator
from rgbd_fusion_seg.training.translation.config import TranslationConfig
from rgbd_fusion_seg.training.translation.evaluation import (
    COLOUR,
    ENSEMBLE,
    evaluate_translation,
)
from rgbd_fusion_seg.training.translation.scores import InceptionFeatures
from rgbd_fusion_seg.training.translation.trainer import (
    FREE_TO_CHANGE,
    TranslationTrainer,
    check_alignment,
)

SCORES_NAME = 'scores.json'
COLOUR_NAME = 'colour'
"""Folder of a run's scores by an Inception network."""
INCEPTION_SCORES = {'FID': 1, 'KID': 100}
"""And what the papers multiply them by."""
TOLD = {'row', 'seed', 'epochs', 'parameters', 'scores', 'settings'}
"""What each run of a record must tell."""
FREE_IN_ROWS = FREE_TO_CHANGE - {'epochs', 'max_minutes'}
"""Settings that the study may be continued with other values of when a row of it is done."""
LEFT_OUT = FREE_IN_ROWS - {'output', 'precision'}
"""Settings that tell of the machine, not of the result."""
ROWS_OWN = {'flows', 'stream_factor'}
"""Settings of a run that rows may differ in, as they are what is compared."""
Entry = dict[str, Any]


@dataclass
class RowConfig:
    """A translator of a study.

    Args:
        name: of its runs' folders.
        title: in the table.
        inputs, targets: see `TranslationConfig`.
        generator: settings of the generator that differ from those all rows share.
        paper: what the paper has for it, by target.
        run: settings of the run that differ, of `ROWS_OWN`.
        optional: it is trained where ``only`` names it alone, and the table has it once it was.
    """

    name: str = ''
    title: str = ''
    inputs: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    generator: dict[str, Any] = field(default_factory=dict)
    paper: dict[str, str] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    optional: bool = False

    def __post_init__(self) -> None:
        rules = {
            'a name that a folder can have': is_folder_name(self.name),
            'keys of paper that are targets': {*self.paper} <= {*self.targets},
        }
        require(self, rules)


@dataclass
class TranslationStudyConfig:
    """A study.

    Args:
        name: of the study; names its section in the document.
        output: folder for its runs.
        seeds: every row is trained with each; all different, 0 or more.
        run: what all rows share.
        rows: the translators.
        document: Markdown file that gets the table between the markers `<!-- study NAME -->` and
            `<!-- end of study NAME -->`; '' leaves it out.
        record: JSON file that keeps the scores of finished runs, which stand in the table too
            where their folders are gone.
        inception: TorchScript file of an Inception-v3, as of `evaluate_translation`, by which rows
            to colour are scored too (FID and KID); '' leaves that out.
    """

    name: str = 'translation'
    output: str = 'runs/study_translation'
    seeds: list[int] = field(default_factory=lambda: [0])
    run: TranslationConfig = field(default_factory=TranslationConfig)
    rows: list[RowConfig] = field(default_factory=list)
    document: str = ''
    record: str = ''
    inception: str = ''

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        rules = {'one of rows at least, of different names': len(names) == len({*names}) > 0}
        require(self, rules | study_rules(self))


def study_translation(
    study: TranslationStudyConfig, only: Sequence[str] = (), report_only: bool = False
) -> None:
    """Train what of a study is left, and write its table; a study that was stopped goes on.

    Several processes may do so at once: each trains rows that no other one does.

    Args:
        study: the study.
        only: names of the rows to train; default: all but optional ones.
        report_only: train nothing.

    Raises:
        InputError: a row that cannot be trained, an unknown one, a document without markers, or
            an Inception network that gives no features; at the end, rows that it cannot score.
        DivergenceError: rows that diverged, at the end.
        TrainingError: the disk is full.
    """
    unknown = {*only} - {row.name for row in study.rows}
    if unknown:
        raise InputError(f'the study {study.name} has no row {", ".join(sorted(unknown))}')
    runs = [(row, seed) for row in study.rows for seed in study.seeds]
    configs = {(row.name, seed): row_config(study, row, seed) for row, seed in runs}
    for (name, _), config in configs.items():
        try:
            make_translator(config)  # so that a mistake in the last row is told at once
            check_alignment(config)
        except InputError as error:
            raise InputError(f'the row {name}: {error}') from error
    if study.document:
        around(Path(study.document), study.name)
    check_record(study)
    recorded_runs(study, configs)
    if study.inception and not report_only:
        InceptionFeatures(Path(study.inception))
    check_writable(Path(study.output))
    make_folder(Path(study.output))
    wanted = {*only} or {row.name for row in study.rows if not row.optional}
    failed: list[str] = []
    unscored: dict[str, str] = {}
    told = False
    for (name, seed), config in configs.items():
        # A finished row may lack FID and KID, be it wanted or not.
        if report_only or not (name in wanted or is_done(config)):
            continue
        with file_lock(lock_of(Path(config.output))) as mine:
            trained = mine and is_done(config)
            if not mine or (trained and not _unmeasured(study, config)):
                continue
            what = 'FID and KID' if trained else f'{config.epochs} epochs'
            print(f'{name}, seed {seed}: {what}', flush=True)
            try:
                if not trained and not _train(config):
                    return
            except DivergenceError as error:  # the others are worth having
                print(f'{name}, seed {seed} failed: {error}', flush=True)
                failed.append(name)
                continue
            try:
                if _unmeasured(study, config):
                    _measure(study, config)
            except InputError as error:  # what was trained is worth having
                print(f'{name}, seed {seed} has no FID and KID: {error}', flush=True)
                unscored[name] = str(error)
        write_results(study, configs)
        told = True
    if not told:
        write_results(study, configs)
    if failed:
        raise DivergenceError(
            f'{", ".join(failed)} diverged and stand in no table; give the study a lower run.lr '
            'with another output and record, as rows of one table are trained alike'
        )
    if unscored:
        reason = next(iter(unscored.values()))
        raise InputError(f'{", ".join(unscored)} stand in the table without FID and KID: {reason}')


def row_config(study: TranslationStudyConfig, row: RowConfig, seed: int) -> TranslationConfig:
    """Return the run of a row.

    Raises:
        InputError: settings that a run or its generator does not have or a row may not have of
            its own, or values that they cannot have.
    """
    if alien := {*row.run} - ROWS_OWN:
        raise InputError(
            f'the row {row.name} sets {", ".join(sorted(alien))} of its run, which all rows '
            f'share; its own may be {", ".join(sorted(ROWS_OWN))}'
        )
    own = {'generator': row.generator, 'inputs': row.inputs, 'targets': row.targets, **row.run}
    try:
        config = run_of(study.run, own)
    except InputError as error:
        raise InputError(f'the row {row.name}: {error}') from error
    config.output, config.seed = str(Path(study.output) / f'{row.name}-{seed}'), seed
    return config


def is_done(config: TranslationConfig) -> bool:
    """Whether a run is finished.

    Raises:
        InputError: it is one of other settings, or does not tell them.
    """
    folder = Path(config.output)
    if not (folder / SCORES_NAME).is_file():
        return False
    before = read_settings(folder)
    if before is None:
        raise InputError(
            f'{folder} has scores but no {SETTINGS_NAME}; delete the folder to train it again'
        )
    changed = changed_settings(config, before, FREE_IN_ROWS)
    if changed:
        raise InputError(
            f'{folder} holds a run with another {", ".join(changed)}; move it away, or give the '
            'study another output'
        )
    return True


def _train(config: TranslationConfig) -> bool:
    """Train a row; False when a signal ended it early."""
    trainer = TranslationTrainer(config)
    if not trainer.fit():
        return False
    # A finished run is not continued; the state is the largest file of all.
    (trainer.folder / STATE_NAME).unlink(missing_ok=True)
    return True


def _unmeasured(study: TranslationStudyConfig, config: TranslationConfig) -> bool:
    """Whether a row makes colour that the study's Inception network has still to look at."""
    measured = (Path(config.output) / COLOUR_NAME / SCORES_NAME).is_file()
    return bool(study.inception) and COLOUR in config.targets and not measured


def _measure(study: TranslationStudyConfig, config: TranslationConfig) -> None:
    """Write FID and KID of a finished row."""
    folder, network = Path(config.output), Path(study.inception)
    evaluate_translation(
        folder, config.images, folder / COLOUR_NAME, network, pictures=0, device=config.accelerator
    )


def write_results(
    study: TranslationStudyConfig, configs: dict[tuple[str, int], TranslationConfig]
) -> None:
    """Write the record and the table of what is finished."""
    output = Path(study.output)
    with file_lock(output / 'report.lock', wait=True):  # or one that saw less would write last
        found = collect(study, configs)
        text = table(study, found)
        write_text(output / 'report.md', text)
        if study.record:
            write_record(study, found, TOLD, LEFT_OUT)
        if study.document and insert(Path(study.document), study.name, text):
            print(f'written to {study.document}')


def collect(
    study: TranslationStudyConfig, configs: dict[tuple[str, int], TranslationConfig]
) -> list[Entry]:
    """Return one entry for each finished run, in the order of the rows.

    Runs of the record that were not trained here are among them, and what an Inception network
    told elsewhere of those that were.
    """
    entries = recorded_runs(study, configs)
    for key, config in configs.items():
        if is_done(config):
            entry = _entry(key, config)
            if key in entries and _same_run(entry, entries[key]):
                _keep_measures(entry, entries[key])
            entries[key] = entry
    return [entries[key] for key in configs if key in entries]


def recorded_runs(
    study: TranslationStudyConfig, configs: dict[tuple[str, int], TranslationConfig]
) -> dict[tuple[str, int], Entry]:
    """Return the runs of the record that are the study's, by row and seed.

    Raises:
        InputError: a file that is no record of this study, or runs of other settings.
    """
    found = {}
    for entry in read_record(study, TOLD, LEFT_OUT):
        key = entry['row'], entry['seed']
        if key not in configs:
            continue
        if changed := changed_settings(configs[key], entry['settings'], FREE_IN_ROWS):
            raise InputError(
                f'{entry["row"]} in study.record {study.record} was trained with another '
                f"{', '.join(changed)} than the study has now; give another record, or '' for none"
            )
        found[key] = entry
    return found


def _entry(key: tuple[str, int], config: TranslationConfig) -> Entry:
    """Return what the table and the record tell of a finished run."""
    folder = Path(config.output)
    translator, info = load_translator(folder)
    scores = _read_scores(folder)
    if (folder / COLOUR_NAME / SCORES_NAME).is_file():
        for name, values in _read_scores(folder / COLOUR_NAME)[COLOUR].items():
            scores[COLOUR][name] |= {score: values[score] for score in INCEPTION_SCORES}
    rounded = {
        target: {
            # Digits that count, not decimals: the table has the root of a small MSE.
            name: {k: float(f'{x:.7g}') for k, x in values.items()}
            for name, values in rows.items()
        }
        for target, rows in scores.items()
    }
    return {
        'row': key[0],
        'seed': key[1],
        'epochs': config.epochs,
        'minutes': info['minutes'],
        'parameters': parameter_count(translator).trainable,
        'scores': rounded,
        'settings': told_settings(read_settings(folder) or {}, LEFT_OUT),
    }


def _same_run(entry: Entry, recorded: Entry) -> bool:
    """Whether a record tells of the same weights as an entry: trained as long, of like errors."""

    def errors(of: Entry) -> dict[tuple[str, str, str], float]:
        return {
            (target, name, score): values[score]
            for target, rows in of['scores'].items()
            for name, values in rows.items()
            for score in ('MAE', 'MSE')
        }

    ours, theirs = errors(entry), errors(recorded)
    return (
        entry['minutes'] == recorded.get('minutes')
        and ours.keys() == theirs.keys()
        # Records have five decimals at least.
        and all(math.isclose(x, theirs[key], abs_tol=1e-5) for key, x in ours.items())
    )


def _keep_measures(entry: Entry, recorded: Entry) -> None:
    """Take over FID and KID that a record has and the run's folder does not."""
    for target, rows in recorded['scores'].items():
        for name, values in rows.items():
            mine = entry['scores'][target][name]
            mine |= {k: values[k] for k in INCEPTION_SCORES if k in values and k not in mine}


def _read_scores(folder: Path) -> dict[str, Any]:
    return json.loads((folder / SCORES_NAME).read_text(encoding='utf-8'))['scores']


def table(study: TranslationStudyConfig, entries: Sequence[Entry]) -> str:
    """Return the study's table, a line for each target of each row.

    Scores are in hundredths but for FID, which has a column, as KID has, where some row has it.
    """
    told = [scores for x in entries for rows in x['scores'].values() for scores in rows.values()]
    measured = any({*INCEPTION_SCORES} <= {*scores} for scores in told)
    columns = ['MAE', 'RMSE', *(INCEPTION_SCORES if measured else ())]
    heading = '| translator | from, to | parameters | MAE of each input | '
    lines = [
        f'{heading}{" | ".join(columns)} | in the paper |',
        '|---' * (5 + len(columns)) + '|',
    ]
    for row in study.rows:
        runs = [entry for entry in entries if entry['row'] == row.name]
        if row.optional and not runs:
            continue
        for target in row.targets:
            inputs = [name for name in row.inputs if name != target]
            way = f'{" + ".join(inputs)} → {target}'
            found = _cells(runs, target, inputs)
            if measured:
                found += _colour_cells(runs, target, inputs)
            cells = [row.title, way, *found, row.paper.get(target, '')]
            lines.append('| ' + ' | '.join(map(escaped, cells)) + ' |')
    return '\n'.join(lines) + '\n'


def _cells(runs: Sequence[Entry], target: str, inputs: Sequence[str]) -> list[str]:
    if not runs:
        return ['', 'not trained yet', '', '']

    def shown(name: str, power: float, score: str) -> str:
        values = [100 * run['scores'][target][name][score] ** power for run in runs]
        return spread(values, 2)

    whole = _whole(inputs)
    each = ', '.join(shown(name, 1, 'MAE') for name in inputs) if len(inputs) > 1 else ''
    parameters = f'{runs[0]["parameters"] / 1e6:.2f} M'
    return [parameters, each, shown(whole, 1, 'MAE'), shown(whole, 0.5, 'MSE')]


def _colour_cells(runs: Sequence[Entry], target: str, inputs: Sequence[str]) -> list[str]:
    scores = [run['scores'][target][_whole(inputs)] for run in runs]
    found = [x for x in scores if {*INCEPTION_SCORES} <= {*x}]
    return [
        spread([f * x[k] for x in found], 2) if found else '' for k, f in INCEPTION_SCORES.items()
    ]


def _whole(inputs: Sequence[str]) -> str:
    return ENSEMBLE if len(inputs) > 1 else inputs[0]
