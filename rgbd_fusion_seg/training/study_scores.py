"""Scores of a study's finished runs, measured anew from their weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.checkpoints import LAST_NAME, write_text
from rgbd_fusion_seg.training.datasets import open_dataset
from rgbd_fusion_seg.training.evaluation import check_classes, score_source
from rgbd_fusion_seg.training.predictors import open_predictor
from rgbd_fusion_seg.training.study_config import StudyConfig
from rgbd_fusion_seg.training.study_runs import all_runs, is_done, row_config, run_folder


def rescore(
    study: StudyConfig, names: Sequence[str], scales: tuple[float, ...], flip: bool
) -> None:
    """Score the finished runs of rows on the test split, and write it into their scores.json.

    One view of each frame, not mirrored, replaces what stands there under 'test'; several come
    under 'multi_scale', with 'views', what they were.

    Args:
        study: whose rows they are.
        names: of the rows.
        scales, flip: as of `predictors.NetworkPredictor`.

    Raises:
        InputError: scales that are none, or a row without a finished run in the study's folder.
    """
    runs = [(row, seed) for row, seed in all_runs(study) if row.name in names]
    done = [run for run in runs if is_done(study, *run)]
    if missing := set(names) - {row.name for row, _ in done}:
        raise InputError(
            f'{study.output} has no finished run of {", ".join(sorted(missing))} to score; train '
            'it there first'
        )
    for row, seed in done:
        folder = run_folder(study, row, seed)
        source = open_dataset(row_config(study, row, seed, 1).data.dataset, 'test')
        print(f'{row.name}, seed {seed}: scored', flush=True)
        with contextlib.closing(open_predictor(folder / LAST_NAME, scales, flip)) as predictor:
            check_classes(predictor.classes.names, source, folder / LAST_NAME)
            found = score_source(predictor, source, 'test').summary()
        scores = json.loads((folder / 'scores.json').read_text())
        if tuple(scales) == (1.0,) and not flip:
            scores['test'] = found
        else:
            del found['classes']
            scores['multi_scale'] = {'views': predictor.views, **found}
        write_text(folder / 'scores.json', json.dumps(scores, indent=1))
