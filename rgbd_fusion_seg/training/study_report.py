"""Results of a study as JSON, as a Markdown section and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.checkpoints import write_text
from rgbd_fusion_seg.training.report import escaped

if TYPE_CHECKING:
    from rgbd_fusion_seg.training.study_config import RowConfig, StudyConfig

Entry = dict[str, Any]


def write_report(
    study: StudyConfig, entries: list[Entry], output: Path, failures: Sequence[Entry] = ()
) -> None:
    """Write results.json, report.md and miou.png, and the section of the study's document.

    The document's section shows the picture too, from ``images/study_NAME.png`` beside it.
    ``failures`` have 'row', 'seed' and 'reason' of the runs that cannot be trained.

    Raises:
        InputError: the document lacks the study's markers.
    """
    text = report(study, entries, failures)
    results = {'study': study.name, 'runs': entries, 'failed': list(failures)}
    write_text(output / 'results.json', json.dumps(results, indent=1))
    write_text(output / 'report.md', text)
    pictures = [output / 'miou.png']
    if study.document:
        document = Path(study.document)
        image = document.parent / 'images' / f'study_{study.name}.png'
        shown = f'\n![mIoU of each row](images/{image.name})\n' if entries else ''
        # Another version of the plotting library draws the same numbers in other bytes.
        if insert(document, study.name, text + shown) or not image.is_file():
            pictures.append(image)
            print(f'written to {document}')
    for path in pictures if entries else ():
        path.parent.mkdir(exist_ok=True)
        # Tight, for long titles leave a label wider than the bars, which would be cut off.
        picture(study, entries).savefig(path, dpi=110, bbox_inches='tight')


def report(study: StudyConfig, entries: list[Entry], failures: Sequence[Entry] = ()) -> str:
    """Return the study's table and what became of its claims, as Markdown."""
    rows = [(r, [e for e in entries if e['row'] == r.name]) for r in study.rows if r.shown]
    told = any(row.paper_parameters for row, _ in rows)
    measured = {
        head: cell
        for head, cell in MEASURED_FOR_SOME.items()
        if any(cell(row, runs) for row, runs in rows)
    }
    heads = ''.join(f'{head} | ' for head in measured)
    lines = [
        f'| network | parameters{" (paper)" if told else ""} | GFLOP | epochs | mIoU '
        f'| {heads}pixel acc. | mean acc. | mIoU in the paper |',
        f'|---|---|---|---|---|{"---|" * len(measured)}---|---|---|',
    ]
    for row, runs in rows:
        failed = [str(f['seed']) for f in failures if f['row'] == row.name]
        if not runs:
            if row.optional and not failed:
                continue
            state = 'failed' if failed else 'not trained yet'
            title, paper = escaped(row.title), escaped(row.paper_miou)
            empty = ' |' * (2 + len(measured))
            lines.append(f'| {title} | | | | {state} |{empty} {paper} |')
            continue
        first = runs[0]
        parameters = f'{first["parameters"] / 1e6:.2f} M'
        if row.paper_parameters:
            parameters += f' ({row.paper_parameters})'
        title = row.title
        if row.best_of:  # the run's first weights lie in the folder of the one that was the best
            best = Path(first['settings']['network.init_from']).parent.name.rpartition('-')[0]
            title += f': {next((r.title for r in study.rows if r.name == best), best)}'
        if failed:
            title += f' (failed with seed {", ".join(failed)})'
        cells = [title, parameters, f'{first["gflops"]:.1f}', str(epochs(study, entries, row))]
        scores = [spread(values(runs, key)) for key in ('pixel_accuracy', 'mean_accuracy')]
        added = [cell(row, runs) for cell in measured.values()]
        cells += [spread(values(runs, 'mIoU')), *added, *scores]
        lines.append('| ' + ' | '.join(map(escaped, [*cells, row.paper_miou])) + ' |')
    if study.claims:
        lines += ['', '| claim | here | in the paper | verdict |', '|---|---|---|---|']
        lines += [_claim(claim, entries, study.noise) for claim in study.claims]
    return '\n'.join(lines) + '\n'


def _of_branches(row: RowConfig, runs: list[Entry]) -> str:
    """Return the mIoU of each branch, in the network's order; '' where it was not measured."""
    scored = [run['scores']['test'].get('branches') for run in runs]
    if not scored or not all(scored):
        return ''
    here = [spread([100 * run[name]['mIoU'] for run in scored]) for name in scored[0]]
    return ' / '.join(here) + (f' ({row.paper_branches})' if row.paper_branches else '')


def _of_several_views(row: RowConfig, runs: list[Entry]) -> str:
    """Return the mIoU over several scales or mirrored; '' where it was not measured."""
    scored = [run['scores'].get('multi_scale') for run in runs]
    return spread([100 * run['mIoU'] for run in scored]) if scored and all(scored) else ''


MEASURED_FOR_SOME = {
    'of each branch (paper)': _of_branches,
    'multi-scale': _of_several_views,
}
"""Columns beside mIoU of what not every run knows; they are there where one row has something."""


def epochs(study: StudyConfig, entries: list[Entry], row: Any) -> str:
    """Return the epochs of a row, those of the rows it starts from before a plus sign.

    '?' stands for those of a row whose run is neither here nor in a record.
    """
    own = next((e['epochs'] for e in entries if e['row'] == row.name), '?')
    origins = {row.continues, *row.encoders.values(), *row.best_of} - {''}
    before = {e['epochs'] for e in entries if e['row'] in origins}
    earlier = (r for r in study.rows if r.name in origins and (r.continues or r.encoders))
    if origin := next(earlier, None):
        return f'{epochs(study, entries, origin)} + {own}'
    return f'{max(before, default="?")} + {own}' if origins else str(own)


def values(runs: list[Entry], key: str) -> list[float]:
    """Return a score of the test split over seeds, in percent."""
    return [100 * run['scores']['test'][key] for run in runs]


def spread(numbers: Sequence[float], digits: int = 1) -> str:
    """Return 'mean ± sample standard deviation', or the one number there is.

    Args:
        numbers: one or more.
        digits: behind the point.
    """
    if len(numbers) < 2:
        return f'{numbers[0]:.{digits}f}'
    return f'{mean(numbers):.{digits}f} ± {stdev(numbers):.{digits}f}'


def _claim(claim: Any, entries: list[Entry], noise: float) -> str:
    runs = {
        name: {e['seed']: 100 * e['scores']['test']['mIoU'] for e in entries if e['row'] == name}
        for name in (claim.better, claim.worse)
    }
    both = sorted(set(runs[claim.better]) & set(runs[claim.worse]))
    text, paper = escaped(claim.text), escaped(claim.paper)
    if not both:
        return f'| {text} | not trained yet | {paper} | open |'
    # As they are shown: what rounds to nothing is nothing.
    differences = [round(runs[claim.better][s] - runs[claim.worse][s], 1) for s in both]
    if abs(mean(differences)) < noise:
        verdict = 'within noise'
    elif all(d > 0 for d in differences):
        verdict = 'holds'
    elif mean(differences) > 0:
        verdict = 'holds on average, not for every seed'
    else:
        verdict = 'does not reproduce'
    if len(both) == 1:
        verdict += ' (one seed)'
    here = ', '.join(f'{d:+.1f}' for d in differences)
    return f'| {text} | {here} | {paper} | {verdict} |'


def picture(study: StudyConfig, entries: list[Entry]) -> Figure:
    """Return bars of the rows' mIoU, a dot for each seed."""
    rows = [r for r in study.rows if r.shown and any(e['row'] == r.name for e in entries)]
    figure = Figure(figsize=(8, 0.6 + 0.38 * len(rows)), layout='constrained')
    axes = figure.subplots()
    for y, row in enumerate(rows):
        runs = [e for e in entries if e['row'] == row.name]
        numbers, fused = values(runs, 'mIoU'), len(runs[0]['modalities']) > 1
        axes.barh(y, mean(numbers), color='#4878a8' if fused else '#b0b8c0')
        axes.plot(numbers, [y] * len(numbers), 'k.')
        axes.text(max(numbers), y, f'  {mean(numbers):.1f}', va='center', fontsize=9)
    axes.set_yticks(range(len(rows)), [row.title for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel('mIoU on the test split, percent (blue: fusion networks)')
    axes.spines[['top', 'right']].set_visible(False)
    return figure


def insert(document: Path, name: str, text: str) -> bool:
    """Replace what stands between a study's markers in a Markdown file.

    Returns:
        Whether something else stood there.

    Raises:
        InputError: the file or the markers are not there.
    """
    before, after = around(document, name)
    whole = f'{before}\n{text}{after}'
    if whole == document.read_text(encoding='utf-8'):
        return False
    write_text(document, whole)
    return True


def around(document: Path, name: str) -> tuple[str, str]:
    """Return a Markdown file up to a study's first marker and from the second one on.

    Raises:
        InputError: there is no such file, or the markers are not in it.
    """
    start, end = f'<!-- study {name} -->', f'<!-- end of study {name} -->'
    if not document.is_file():
        raise InputError(
            f'study.document {document} is not there; give a Markdown file with the lines '
            f"{start} and {end}, or '' to have the results in the study's folder alone"
        )
    text = document.read_text(encoding='utf-8')
    before, started, rest = text.partition(start)
    _, ended, after = rest.partition(end)
    if not (started and ended):
        raise InputError(
            f'{document} has no section for the study; write {start} and {end} on lines of '
            'their own where its table is to be'
        )
    return before + start, end + after
