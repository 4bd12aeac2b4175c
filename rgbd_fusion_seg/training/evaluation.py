"""Scores of networks on the way, and of checkpoints and bundles in the end.

During training, prepared frames go through the network (`evaluate_network`). What is published
comes from raw frames at the size of their labels, through `predictors` (`evaluate`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.card import write_card
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.locations import CARD_NAME
from rgbd_fusion_seg.palette import NYU40_CLASSES
from rgbd_fusion_seg.progress import progress_bar
from rgbd_fusion_seg.replay.evaluate import confusion_matrix
from rgbd_fusion_seg.replay.report import table_text
from rgbd_fusion_seg.training.checkpoints import (
    CHECKPOINT_SUFFIX,
    checkpoint_in,
    command_line,
    make_folder,
)
from rgbd_fusion_seg.training.config import DataConfig
from rgbd_fusion_seg.training.datasets import DATASETS, open_dataset
from rgbd_fusion_seg.training.datasets.base import FrameSource, frame_title
from rgbd_fusion_seg.training.datasets.cache import CachedFrames, read_frame
from rgbd_fusion_seg.training.datasets.own_folder import OwnFolder
from rgbd_fusion_seg.training.datasets.prepare import rooms_fault
from rgbd_fusion_seg.training.datasets.stereo_depth import StereoDepth
from rgbd_fusion_seg.training.datasets.synthetic_rooms import HELD_OUT_SEED, SyntheticRooms
from rgbd_fusion_seg.training.inputs import Normaliser, whole_frames
from rgbd_fusion_seg.training.metrics import (
    SetScores,
    boundary_f,
    boundary_scores,
    confusion_on_device,
    frame_accuracy,
    summary,
)
from rgbd_fusion_seg.training.predictors import (
    Predictor,
    all_logits,
    full_float32,
    labels_of,
    open_predictor,
)
from rgbd_fusion_seg.training.report import headline, write_frame, write_report
from rgbd_fusion_seg.training.single_sensor import card_with_parts

if TYPE_CHECKING:  # export need not wait for it, which loads for seconds
    from lightning_fabric import Fabric

GPU_BATCH = 8
"""Frames a GPU labels at a time; a CPU takes one, so that results do not depend on who is next."""


@torch.inference_mode()
def evaluate_network(
    network: nn.Module,
    normalise: Normaliser,
    frames: CachedFrames,
    rgb_size: tuple[int, int],
    fabric: Fabric | None = None,
) -> dict[str, Any]:
    """Score a torch module on prepared frames in float32, single scale, no flip.

    Frame i is the work of process i modulo their number; the counts of all are added, so any
    number of processes returns the same scores, on each of them.

    Args:
        network, normalise: the module, in evaluation mode, and what makes its inputs, on one
            device.
        frames: the set; labels are compared at their size in the cache.
        rgb_size: width and height of the network's colour input.
        fabric: of the processes; None = this one alone.

    Returns:
        what `metrics.summary` returns, with the branches that predict for themselves.
    """
    rank, world = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    num_classes = len(frames.classes)
    device = next(network.parameters()).device
    branches = network.predicting_branches
    shape = (1 + len(branches), num_classes, num_classes + 1)
    total = torch.zeros(shape, dtype=torch.int64, device=device)
    indices = range(rank, len(frames), world)
    results = _label(network, normalise, frames, rgb_size, indices)
    with progress_bar(
        total=len(indices),
        desc=f'score {frames.name}',
        unit='frame',
        leave=False,
        disable=rank > 0,
    ) as progress:
        for labels, truth in results:
            total += torch.stack([_count(x, truth, num_classes) for x in labels])
            progress.update(len(truth))
    if fabric is not None:
        total = fabric.all_reduce(total, reduce_op='sum')
    matrix, *others = total.cpu().numpy()
    return summary(matrix, frames.classes.names, dict(zip(branches, others, strict=True)))


@torch.inference_mode()
def predicted_labels(
    network: nn.Module,
    normalise: Normaliser,
    frames: CachedFrames,
    rgb_size: tuple[int, int],
    indices: Sequence[int],
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return colour uint8 (H, W, 3), truth and predicted labels uint8 (H, W) of some frames.

    The network is in evaluation mode. Indices beyond the last frame are left out.
    """
    indices = [i for i in indices if i < len(frames)]
    results = _label(network, normalise, frames, rgb_size, indices)
    labels = [image for (batch, *_), _ in results for image in batch.cpu().numpy()]
    rgb = max(frames.rgb, key=lambda level: level.shape[2])
    return [
        (np.array(rgb[i]), np.array(frames.labels[i]), image)
        for i, image in zip(indices, labels, strict=True)
    ]


def _label(
    network: nn.Module,
    normalise: Normaliser,
    frames: CachedFrames,
    rgb_size: tuple[int, int],
    indices: Sequence[int],
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield predicted labels, then those of each branch, and true ones, uint8 (N, H, W)."""
    device, sizes = next(network.parameters()).device, network.input_sizes(*rgb_size[::-1])
    batch_size = 1 if device.type == 'cpu' else GPU_BATCH
    with full_float32():
        for batch in whole_frames(frames, sizes, device, indices, batch_size):
            truth = batch['labels']
            logits = all_logits(network, normalise(batch))
            yield [labels_of(x, *truth.shape[1:]) for x in logits], truth


def _count(labels: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    if labels.device.type == 'cpu':
        return torch.from_numpy(confusion_matrix(labels.numpy(), truth.numpy(), num_classes))
    return confusion_on_device(labels, truth, num_classes)


def evaluate(
    model: Path,
    data: DataConfig,
    output: Path | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    boundary: bool = True,
    every: int = 1,
    pictures: int = 8,
    write: bool = False,
    device: str = 'auto',
    backend: str = 'auto',
) -> None:
    """Score a checkpoint or a bundle on the test split, and on held-out synthetic rooms.

    With `data.stereo_test` also on the test split with the depth of simulated stereo pairs.

    Frames are read as they are and labels compared at their own size. Synthetic rooms are scored
    where the data has the classes of NYU40, and `data.synthetic_test_frames` is not 0. Of a
    checkpoint whose network joins the predictions of branches, each of these is scored, too.

    Args:
        model: a .safetensors file that the train command wrote, a run's folder (its
            last.safetensors is scored), or a bundle's folder or name.
        data: the data set; `train_split` and what concerns training is not read.
        output: folder for scores.json, report.md, a confusion plot and pictures of frames.
        scales: of a checkpoint's input; the mean of the probabilities is labelled.
        flip: of a checkpoint: see each scale mirrored as well.
        boundary: measure the boundary F-score too.
        every: score every n-th frame only, for a quick look.
        pictures: how many of the worst frames to draw, and half as many of the best.
        write: write the scores into the bundle's card.
        device: of a checkpoint's network: 'auto', 'cpu', 'cuda'.
        backend: inference engine of a bundle; "rgbd-fusion-seg doctor" lists them.

    Raises:
        InputError: options or data that cannot be used, or a model of other classes.
        BundleError, EngineError: a bundle that cannot be run.
    """
    if every < 1 or pictures < 0:
        raise InputError(
            f'every must be 1 or more and pictures 0 or more, not {every}, {pictures}'
        )
    model = checkpoint_in(model)
    if write and (every > 1 or model.suffix == CHECKPOINT_SUFFIX):
        raise InputError(
            'write puts scores of a whole set into the card of a bundle; leave it out for a '
            f'checkpoint, and for every {every}th frame'
        )
    sources = scored_sources(data)
    predictor = open_predictor(model, scales, flip, device, backend)
    with contextlib.closing(predictor):
        for source in sources.values():
            check_classes(predictor.classes.names, source, model)
        if output is not None:
            make_folder(output)
        sets = []
        for name, source in sources.items():
            result = score_source(predictor, source, name, every, boundary)
            sets.append(result)
            print(table_text(f'{model} on {name}', headline(result)))
            if output is not None:
                draw_frames(predictor, source, result, output / name, pictures)
    if output is not None:
        write_report(output, predictor.model, predictor.measured_with, command_line(), sets)
        print(f'written to {output}')
    if write:
        write_scores(model, predictor, sets)


def scored_sources(data: DataConfig) -> dict[str, FrameSource]:
    """Return what is scored by default, under the names that cards use."""
    source = open_dataset(data.dataset, 'test')
    if fault := rooms_fault(data, source.classes):
        raise InputError(fault)
    dataset = source.config.name if isinstance(source, OwnFolder) else data.dataset.name
    name = f'{dataset}_{data.dataset.test_split or DATASETS[data.dataset.name].TEST_SPLIT}'
    sources: dict[str, FrameSource] = {name: source}
    if data.synthetic_test_frames and source.classes.names == NYU40_CLASSES:
        rooms = SyntheticRooms(data.synthetic_test_frames, HELD_OUT_SEED)
        sources.setdefault('synthetic_test', rooms)
    if data.stereo_test:
        sources[f'{name}_stereo'] = StereoDepth(source)
    return sources


def check_classes(ours: Sequence[str], source: FrameSource, model: Path) -> None:
    """Refuse a model that tells other classes apart than the data.

    Raises:
        InputError: names or order differ.
    """
    theirs = source.classes.names
    if ours == theirs:
        return
    pairs = zip(ours, theirs, strict=False)
    first = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    a, b = (names[first] if first < len(names) else 'nothing' for names in (ours, theirs))
    raise InputError(
        f'{model} tells {len(ours)} classes apart and {source.name} has {len(theirs)}, and class '
        f'{first} is {a!r} in one and {b!r} in the other; give data.dataset the data it was '
        'trained on'
    )


def score_source(
    predictor: Predictor,
    source: FrameSource,
    name: str,
    every: int = 1,
    boundary: bool = False,
) -> SetScores:
    """Score raw frames at the size of their labels.

    Args:
        predictor: what is scored; its classes are those of `source`.
        source: the frames.
        name: of the set, for reports.
        every: take every n-th frame.
        boundary: measure the boundary F-score too.
    """
    num_classes = len(source.classes)
    shape = (1 + len(predictor.branches), num_classes, num_classes + 1)
    matrices = np.zeros(shape, dtype=np.int64)
    indices = range(0, len(source), every)
    accuracy, boundaries, sizes = [], [], set()
    for index in progress_bar(indices, desc=f'score {source.name}', unit='frame'):
        item = read_frame(source, index)
        labels, *others = predictor.predict_all(item.frame)
        counts = [confusion_matrix(x, item.labels, num_classes) for x in (labels, *others)]
        matrices += counts
        accuracy.append(frame_accuracy(counts[0]))
        sizes.add(item.labels.shape[::-1])
        if boundary:
            boundaries.append(boundary_f(labels, item.labels, num_classes))
    return SetScores(
        name=name,
        classes=source.classes,
        terms=source.terms,
        size=sizes.pop() if len(sizes) == 1 else None,
        indices=np.array(indices),
        accuracy=np.array(accuracy),
        matrix=matrices[0],
        boundary=boundary_scores(np.stack(boundaries)) if boundary else None,
        branches=dict(zip(predictor.branches, matrices[1:], strict=True)),
    )


def draw_frames(
    predictor: Predictor, source: FrameSource, result: SetScores, folder: Path, worst: int
) -> None:
    """Write pictures of the worst frames and of half as many of the best, worst/ and best/.

    Those of an earlier evaluation are removed.
    """
    order = result.ranked()
    for kind, chosen in (('worst', order[:worst]), ('best', order[::-1][: worst // 2])):
        for old in (folder / kind).glob('*-frame*.jpg'):
            old.unlink()
        for place, position in enumerate(chosen, start=1):
            index = int(result.indices[position])
            item = read_frame(source, index)
            stem = f'{place:02d}-frame{index:05d}'
            labels = predictor.predict(item.frame)
            title = frame_title(source, index)
            write_frame(folder / kind / f'{stem}.jpg', item, labels, source.classes, title)


def write_scores(model: Path, predictor: Predictor, sets: Sequence[SetScores]) -> None:
    """Write scores into the card of a bundle; other metrics on it stay.

    Those of a bundle inside another one, which answers from one modality alone, are also listed on
    the card of that one.

    Raises:
        BundleError: no bundle.
    """
    bundle = load_bundle(model)
    metrics = dict(bundle.metrics)
    for result in sets:
        metrics[result.name] = {
            'frames': len(result.indices),
            'measured_with': f'{predictor.measured_with}, {result.comparison}',
            **result.summary(),
        }
    write_card(bundle.path / CARD_NAME, {**bundle.card, 'metrics': metrics})
    if (bundle.path.parent / CARD_NAME).is_file():
        around = load_bundle(bundle.path.parent)
        if any(part.path == bundle.path for part in around.single_sensor.values()):
            write_card(around.path / CARD_NAME, card_with_parts(around, around.single_sensor))
