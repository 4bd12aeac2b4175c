"""What an evaluation leaves behind: numbers, a page to read, a plot, and pictures of frames."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import UNLABELLED
from rgbd_fusion_seg.palette import legend, overlay
from rgbd_fusion_seg.replay.evaluate import confusion_matrix
from rgbd_fusion_seg.replay.pictures import contact_sheet, main_classes, write_image
from rgbd_fusion_seg.replay.report import Value
from rgbd_fusion_seg.training.checkpoints import make_folder
from rgbd_fusion_seg.training.datasets.base import ClassSet, LabelledFrame
from rgbd_fusion_seg.training.metrics import (
    SetScores,
    frame_accuracy,
    matrix_scores,
    most_confused,
    plain,
)

_WRONG = np.array((230, 40, 40), np.uint8)
_PICTURE_WIDTH = 400
_WRITTEN_SHARE = 0.05
"""Cells of the confusion plot from this share on are written out in percent."""


def headline(result: SetScores) -> dict[str, Value]:
    """Return the scores of a set in percent, for a table of a few lines."""
    scores = matrix_scores(result.matrix)
    overall = scores.overall
    rows: dict[str, Value] = {
        'frames': len(result.indices),
        'mean IoU [%]': 100 * overall.mean_iou,
        'pixel accuracy [%]': 100 * overall.pixel_accuracy,
        'mean accuracy [%]': 100 * overall.mean_accuracy,
        'frequency-weighted IoU [%]': 100 * scores.frequency_weighted_iou,
    }
    for name, matrix in result.branches.items():
        rows[f'mean IoU, {name} [%]'] = 100 * matrix_scores(matrix).overall.mean_iou
    if result.boundary is not None:
        rows['boundary F [%]'] = 100 * result.boundary.mean
    return rows


def class_rows(result: SetScores) -> list[dict[str, Any]]:
    """Return one entry a class: numbers 0..1, None where undefined."""
    scores = matrix_scores(result.matrix)
    shown = result.matrix[:, : len(result.classes)].sum(axis=0)
    right = np.diagonal(result.matrix)
    rows = []
    for k, name in enumerate(result.classes.names):
        row = {
            'class': name,
            'frequency': plain(scores.frequency[k]),
            'iou': plain(scores.overall.iou[k]),
            'accuracy': plain(scores.overall.accuracy[k]),
            'precision': plain(right[k] / shown[k]) if shown[k] else None,
        }
        if result.boundary is not None:
            row['boundary_f'] = plain(result.boundary.by_class[k])
        confused = most_confused(result.matrix, k)
        if confused is not None:
            other = (*result.classes.names, 'unlabelled')[confused[0]]
            row['taken_for'] = {'class': other, 'share': plain(confused[1])}
        rows.append(row)
    return rows


def write_report(
    folder: Path,
    model: Mapping[str, Any],
    measured_with: str,
    command: str,
    sets: Sequence[SetScores],
) -> None:
    """Write scores.json and report.md, and for each set SET/confusion.png.

    Args:
        folder: made where it is missing.
        model: what was measured: path, hash, ….
        measured_with: how, as the words of a sentence.
        command: the command line.
        sets: what came out.

    Raises:
        InputError: the folder cannot be written.
    """
    body = {
        'model': dict(model),
        'measured_with': measured_with,
        'command': command,
        'sets': {result.name: _as_json(result) for result in sets},
    }
    make_folder(folder)
    try:
        (folder / 'scores.json').write_text(json.dumps(body, indent=1) + '\n', encoding='utf-8')
        text = markdown(folder, model, measured_with, command, sets)
        (folder / 'report.md').write_text(text, encoding='utf-8')
        for result in sets:
            (folder / result.name).mkdir(exist_ok=True)
            write_confusion(folder / result.name / 'confusion.png', result)
    except OSError as error:
        raise InputError(
            f'the report cannot be written to {folder} ({error.strerror}); choose another output'
        ) from error


def _as_json(result: SetScores) -> dict[str, Any]:
    numbers = result.summary()
    del numbers['classes']
    frames = zip(result.indices.tolist(), result.accuracy.tolist(), strict=True)
    return {
        'frames': len(result.indices),
        'data': result.terms,
        'compared': result.comparison,
        **numbers,
        'classes': class_rows(result),
        'frame_accuracy': {index: plain(value) for index, value in frames},
        'confusion': result.matrix.tolist(),
    }


def markdown(
    folder: Path,
    model: Mapping[str, Any],
    measured_with: str,
    command: str,
    sets: Sequence[SetScores],
) -> str:
    """Return the page: what was measured, the scores, a table of the classes of each set."""
    lines = [f'# Scores of {Path(str(model["path"])).name}', '']
    lines += [f'* {key}: `{value}`' for key, value in model.items()]
    lines += [f'* measured with {measured_with}', '', '```', command, '```', '']
    names = list(headline(sets[0]))
    lines += _table(['set', *names], [[r.name, *map(_cell, headline(r).values())] for r in sets])
    for result in sets:
        lines += ['', f'## {result.name}', '', f'{result.terms}; {result.comparison}.', '']
        lines += _class_table(result)
        lines += ['', f'![confusion]({result.name}/confusion.png)']
        for kind in ('worst', 'best'):
            files = sorted((folder / result.name / kind).glob('*.jpg'))
            lines += ['', f'### {kind.capitalize()} frames', ''] if files else []
            lines += [f'![{f.stem}]({result.name}/{kind}/{f.name})\n' for f in files]
    return '\n'.join(lines) + '\n'


def _class_table(result: SetScores) -> list[str]:
    columns = {
        'frequency': 'pixels', 'iou': 'IoU', 'accuracy': 'accuracy', 'precision': 'precision',
    }  # fmt: skip
    if result.boundary is not None:
        columns['boundary_f'] = 'boundary F'
    body = []
    for row in class_rows(result):
        values = [row[key] for key in columns]
        cells = [_cell(None if v is None else 100 * v) for v in values]
        other = row.get('taken_for')
        mistaken = f'{other["class"]} ({100 * other["share"]:.0f} %)' if other else ''
        body.append([row['class'], *cells, mistaken])
    heads = [f'{title} [%]' for title in columns.values()]
    return _table(['class', *heads, 'most often taken for'], body)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = ['---', *['--:'] * (len(head) - 1)]
    return [f'| {" | ".join(map(escaped, cells))} |' for cells in (head, rule, *body)]


def escaped(text: str) -> str:
    """Return text as a cell of a Markdown table: its bars are none of the table's."""
    return text.replace('|', '\\|')


def _cell(value: Value) -> str:
    if value is None or value != value:  # NaN
        return '–'
    return f'{value:.1f}' if isinstance(value, float) else str(value)


def write_confusion(path: Path, result: SetScores) -> None:
    """Plot the confusion matrix, each row in shares of the true pixels of its class."""
    matrix, names = result.matrix.astype(np.float64), list(result.classes.names)
    if matrix[:, -1].any():
        names.append('unlabelled')
    columns, k = len(names), len(matrix)
    pixels = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(
        matrix[:, :columns], pixels, out=np.full((k, columns), np.nan), where=pixels > 0
    )
    size = max(5.0, 2.0 + 0.3 * k)
    figure = Figure(figsize=(size, size), dpi=110, layout='constrained')
    axes = figure.subplots()
    colors = matplotlib.colormaps['Blues'].with_extremes(bad='0.92')
    # The root shows a few percent, which in many classes are most of the mistakes.
    image = axes.imshow(np.sqrt(shares), cmap=colors, vmin=0, vmax=1)
    for y, x in zip(*np.nonzero(np.nan_to_num(shares) >= _WRITTEN_SHARE), strict=True):
        color = 'white' if shares[y, x] > 0.4 else 'black'
        text = f'{100 * shares[y, x]:.0f}'
        axes.text(x, y, text, ha='center', va='center', fontsize=6.5, color=color)
    total = max(pixels.sum(), 1)
    rows = [f'{n}  {100 * p / total:.1f} %' for n, p in zip(names, pixels[:, 0], strict=False)]
    axes.set_xticks(range(columns), names, rotation=90, fontsize=8)
    axes.set_yticks(range(k), rows, fontsize=8)
    axes.set_xlabel('predicted')
    axes.set_ylabel('true class, and its share of the pixels')
    axes.set_title(f'{result.name}: where the pixels of each class go, percent')
    bar = figure.colorbar(image, ax=axes, shrink=0.6, ticks=np.sqrt([0, 0.05, 0.2, 0.5, 1]))
    bar.ax.set_yticklabels(['0', '5', '20', '50', '100 %'])
    figure.savefig(path, bbox_inches='tight')


def write_frame(
    path: Path, item: LabelledFrame, labels: np.ndarray, classes: ClassSet, title: str
) -> None:
    """Write colour | truth | prediction | errors of a frame, with a legend.

    Args:
        path: .jpg or .png; its folder is made.
        item: the frame and its truth.
        labels: uint8 (H, W) prediction.
        classes: names and colours.
        title: of the frame, for its heading.

    Raises:
        InputError: the file cannot be written.
    """
    rgb, truth = item.frame.rgb, item.labels
    right = frame_accuracy(confusion_matrix(labels, truth, len(classes)))
    pictures = [overlay(rgb, x, classes.colors, alpha=0.7) for x in (truth, labels)]
    row = [rgb, *pictures, error_map(rgb, labels, truth, len(classes))]
    counts = sum(np.bincount(x.ravel(), minlength=256)[: len(classes)] for x in (truth, labels))
    names = legend(classes.names, classes.colors, main_classes(counts))
    headings = [f'frame {title}', 'truth', 'prediction', f'red = wrong; {right:.1%} right']
    make_folder(path.parent)
    write_image(path, contact_sheet([row], headings, names, width=_PICTURE_WIDTH))


def error_map(
    rgb: np.ndarray, labels: np.ndarray, truth: np.ndarray, num_classes: int
) -> np.ndarray:
    """Show where a prediction is wrong.

    Args:
        rgb: uint8 (H, W, 3).
        labels, truth: uint8 (H, W).
        num_classes: ids from here on are void in the truth.

    Returns:
        uint8 (H, W, 3) RGB: the image in grey where it is right, red where it is wrong, black
        where the truth is void.
    """
    grey = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    wrong = np.where(labels != truth, 0, UNLABELLED).astype(np.uint8)
    picture = overlay(grey, wrong, _WRONG[None], alpha=0.7)
    picture[truth >= num_classes] = 0
    return picture
