"""What a run tells while it goes: progress bar, log file, TensorBoard curves and overlays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from rgbd_fusion_seg import palette
from rgbd_fusion_seg.progress import progress_bar
from rgbd_fusion_seg.training.checkpoints import write_text
from rgbd_fusion_seg.training.run_log import LOG_NAME, read_log


class Monitor:
    """Progress of one run; on every process but the first it keeps silent.

    Args:
        folder: the run's folder; gets log.jsonl and TensorBoard's event files.
        step: where the run stands.
        num_steps: steps of the whole run.
        speaks: False makes a monitor that does nothing.
    """

    def __init__(self, folder: Path, step: int, num_steps: int, speaks: bool = True) -> None:
        self.speaks = speaks
        if not speaks:
            return
        # A run that was killed has told more than it saved; that is taken back.
        path = folder / LOG_NAME
        kept = ''.join(
            json.dumps(entry) + '\n' for entry in read_log(path) if entry['step'] <= step
        )
        write_text(path, kept)
        # Line by line, so that a run that is killed has told all that its state covers.
        self.log = path.open('a', encoding='utf-8', buffering=1)
        self.board = SummaryWriter(str(folder / 'tensorboard'), purge_step=step + 1)
        self.bar = progress_bar(
            total=num_steps, initial=step, desc='train', unit='step', smoothing=0.05
        )

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.speaks:
            self.bar.close()
            self.board.close()
            self.log.close()

    def step(self) -> None:
        """Count one step."""
        if self.speaks:
            self.bar.update()

    def say(self, text: str) -> None:
        """Write a line above the progress bar."""
        if self.speaks:
            tqdm.write(text)

    def numbers(self, step: int, progress: float, **values: float) -> None:
        """Record scalars at ``step``, when a share ``progress`` of the run is done.

        Those with a slash in their names are too many for the progress bar.
        """
        if not self.speaks:
            return
        if progress > 0:  # a run with a time limit has its real length only now
            self.bar.total = max(step, round(step / progress))
        self.bar.set_postfix({k: f'{value:.4g}' for k, value in values.items() if '/' not in k})
        entry = {'step': step, **{key: float(f'{v:.6g}') for key, v in values.items()}}
        self.log.write(json.dumps(entry) + '\n')
        for key, value in values.items():
            self.board.add_scalar(f'train/{key}', value, step)

    def scores(self, step: int, name: str, result: dict[str, Any]) -> None:
        """Record the scores of one test set: a line of text, and curves."""
        if not self.speaks:
            return
        miou, accuracy = result['mIoU'], result['pixel_accuracy']
        self.say(f'{name} at step {step}: mIoU {miou:.4f}, pixel accuracy {accuracy:.4f}')
        kept = ('mIoU', 'pixel_accuracy', 'mean_accuracy')
        self.curves(step, {f'{name}/{key}': result[key] for key in kept})

    def overlays(
        self,
        step: int,
        name: str,
        pictures: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
        colors: np.ndarray,
    ) -> None:
        """Show frames as colour | truth | prediction.

        Args:
            step: where the run stands.
            name: of the set.
            pictures: uint8 colour (H, W, 3), truth (H, W) and predicted labels (H, W).
            colors: uint8 (K, 3) RGB of the classes.
        """
        if not self.speaks:
            return
        for number, (rgb, truth, labels) in enumerate(pictures):
            row = [rgb, *(palette.overlay(rgb, x, colors) for x in (truth, labels))]
            self.picture(step, f'{name}/{number}', np.concatenate(row, axis=1))

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        """Record scores by name as curves."""
        if self.speaks:
            for key, value in values.items():
                self.board.add_scalar(key, value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Show a uint8 (H, W, 3) picture."""
        if self.speaks:
            self.board.add_image(name, image, step, dataformats='HWC')
