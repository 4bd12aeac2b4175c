"""The outcome of a comparison in words: a table for the terminal and one recommendation."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rgbd_fusion_seg.atomic_files import write_atomically
from rgbd_fusion_seg.engine.agreement import MIN_AGREEMENT, MIN_FRAMES
from rgbd_fusion_seg.errors import InputError

DEFAULT_BACKEND = 'onnxruntime'
"""It is always installed, so another engine must be worth its installation."""
WORTH_IT = 0.95
"""Share of the default's time that another engine may take at most to be recommended."""


def recommendation(engines: Sequence[Mapping[str, Any]], kept: Collection[str]) -> str:
    """Return which engine to use and why, in one sentence.

    The fastest of those that give the labels of float32 and may be opened, by the 90th percentile
    of a frame's time with load beside where that was measured, else by the median.

    Args:
        engines: rows of :func:`rgbd_fusion_seg.benchmark.compare.compare`.
        kept: labels of those with less exact arithmetic that may be opened from now on, see
            :mod:`rgbd_fusion_seg.engine.agreement`.
    """
    agreeing = [row for row in engines if row['label_agreement'] >= MIN_AGREEMENT]
    unfit = [row for row in engines if row not in agreeing]
    fit = [r for r in agreeing if not r['options'].get('unchecked') or r['label'] in kept]
    unproven = [row for row in agreeing if row not in fit]
    if not fit:
        reasons = [_disagreement(unfit)] * bool(unfit) + [_lack(unproven)] * bool(unproven)
        return f'Use none of these engines: {"; ".join(reasons)}.'
    best = min(fit, key=_frame_ms)
    default = next((row for row in fit if row['backend'] == DEFAULT_BACKEND), None)
    if default is not None and _frame_ms(best) > WORTH_IT * _frame_ms(default):
        best = default
    sentence = f'Use {best["label"]}{_with_options(best)}: {_speed(best, default)}'
    if faster := [row for row in unproven if _frame_ms(row) < _frame_ms(best)]:
        sentence += f'; faster, but {_lack(faster)}'
    if faster := [row for row in unfit if _frame_ms(row) < _frame_ms(best)]:
        sentence += f'; faster, but {_disagreement(faster)}'
    return f'{sentence}.'


def table(result: Mapping[str, Any]) -> str:
    """Return the rows of a comparison as text, one engine a line."""
    loaded = bool(result['busy_processes'])
    headings = ['engine', 'frame p50', 'p90', 'p99', 'inference p50', 'p90']
    if loaded:
        headings += ['loaded p50', 'p90', 'x']
    headings += ['same labels', 'load s', 'RSS MiB']
    on_gpu = any('gpu_mib' in row for row in result['engines'])
    lines = [headings + ['GPU MiB'] * on_gpu]
    for row in result['engines']:
        frame, stage = row['alone']['frame_ms'], row['alone']['inference_ms']
        numbers = [*(frame[p] for p in ('p50', 'p90', 'p99')), stage['p50'], stage['p90']]
        if loaded:
            under = row['loaded']['frame_ms']
            numbers += [under['p50'], under['p90'], under['p90'] / frame['p90']]
        line = [row['label'], *(f'{number:.1f}' for number in numbers)]
        line.append(f'{row["label_agreement"]:.2%}')
        line += [f'{row["load_s"]:.2f}', f'{row["rss_mib"]:.0f}'] if 'load_s' in row else ['-'] * 2
        if on_gpu:
            line.append(f'{row["gpu_mib"]:.0f}' if 'gpu_mib' in row else '-')
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = '-' * (sum(widths) + 2 * len(widths) - 2)
    text = [_line(line, widths) for line in lines]
    return '\n'.join([_title(result), rule, text[0], rule, *text[1:], rule])


def check_writable(path: Path) -> None:
    """Make sure, before all the work, that a result can be written.

    Raises:
        InputError: it cannot.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f'{path} is there and no file; give another name')
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write a comparison for machines.

    Raises:
        InputError: the file cannot be written.
    """
    check_writable(path)
    try:
        write_atomically(path, (json.dumps(result, indent=2) + '\n').encode())
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f'{path} cannot be written ({error.strerror}); give another file')


def _title(result: Mapping[str, Any]) -> str:
    title = (
        f'{result["bundle"]} at {result["input_size"]}, {result["frames"]} frames '
        f'({result["source"]}), {result["repeats"]} rounds in turn, ms'
    )
    if result['busy_processes']:
        title += f'; loaded: with {result["busy_processes"]} busy processes beside'
    return title


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return '  '.join([f'{first[0]:<{first[1]}}', *(f'{cell:>{width}}' for cell, width in others)])


def _frame_ms(row: Mapping[str, Any]) -> float:
    return row['loaded']['frame_ms']['p90'] if 'loaded' in row else row['alone']['frame_ms']['p50']


def _with_options(row: Mapping[str, Any]) -> str:
    options = {'backend': row['backend'], **row['options']}
    told = [f'{key}={value}' for key, value in options.items() if key != 'unchecked']
    return f' ({", ".join(told)})'


def _speed(best: Mapping[str, Any], default: Mapping[str, Any] | None) -> str:
    what = '90 % of the frames under load within' if 'loaded' in best else 'a frame takes'
    text = f'{what} {_frame_ms(best):.1f} ms'
    if default is None:
        return text
    if best is default:
        return f'{text}, and no other engine with these labels is more than 5 % faster'
    return f'{text}, {_frame_ms(default):.1f} ms with {default["label"]}'


def _lack(rows: Sequence[Mapping[str, Any]]) -> str:
    told = ', '.join(row['label'] for row in rows)
    return (
        f'not seen to give the labels of float32: {told}, for which {MIN_FRAMES} real frames are '
        'asked for (--frames, --max-frames)'
    )


def _disagreement(rows: Sequence[Mapping[str, Any]]) -> str:
    told = ', '.join(f'{row["label"]} {row["label_agreement"]:.2%}' for row in rows)
    return f'with other labels than float32: {told} the same, {MIN_AGREEMENT:.1%} are asked for'
