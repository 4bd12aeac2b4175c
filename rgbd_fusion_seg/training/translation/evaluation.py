"""Scores of translators, and pictures of what they make."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.progress import progress_bar
from rgbd_fusion_seg.replay.pictures import contact_sheet, evenly, write_image
from rgbd_fusion_seg.replay.report import table_text
from rgbd_fusion_seg.training.checkpoints import (
    LAST_NAME,
    check_writable,
    make_folder,
    write_text,
)
from rgbd_fusion_seg.training.continuation import SETTINGS_NAME
from rgbd_fusion_seg.training.predictors import full_float32, usable_device
from rgbd_fusion_seg.training.translation.checkpoint import load_translator
from rgbd_fusion_seg.training.translation.config import ImagesConfig
from rgbd_fusion_seg.training.translation.generator import Translator
from rgbd_fusion_seg.training.translation.prepared import (
    PreparedImages,
    network_image,
    prepared_images,
)
from rgbd_fusion_seg.training.translation.scores import Distances, InceptionFeatures, as_bytes
from rgbd_fusion_seg.training.translation.sources import open_images

BATCH = 8
SHEET_WIDTH = 200
"""Least width of an image on a sheet, for its heading to fit."""
ENSEMBLE = 'ensemble'
COLOUR = 'rgb'
"""The target that Inception networks know."""

Scores = dict[str, dict[str, dict[str, float]]]
"""Target -> input, or 'ensemble' where there are several -> score -> value."""


def evaluate_translation(
    model: Path,
    images: ImagesConfig,
    output: Path | None = None,
    inception: Path | None = None,
    dropout: bool = False,
    pictures: int = 8,
    device: str = 'auto',
) -> None:
    """Score a translator on the test split: each stream, and the ensemble of each target.

    Args:
        model: a .safetensors file that train-translation wrote, or a run's folder.
        images: the data; `load_side`, `flip` and `workers` are not read, the side is the model's.
        output: folder for scores.json and a sheet of pictures for each target; not a run's own.
        inception: TorchScript file of an Inception-v3 for FID and KID of colour, one of the
            model's targets then.
        dropout: leave dropout on, as pix2pix and the public code of CEN do.
        pictures: rows of a sheet.
        device: 'auto', 'cpu', 'cuda'.

    Raises:
        InputError: options or images that cannot be used.
    """
    if pictures < 0:
        raise InputError(f'pictures must be 0 or more, not {pictures}')
    if output is not None:
        check_writable(output)
        _check_no_run(output)
    where = usable_device(device)
    translator, info = load_translator(model)
    if inception is not None and COLOUR not in translator.targets:
        raise InputError(
            f'inception {inception} is for FID and KID of colour, and {model} makes '
            f'{", ".join(translator.targets)}; leave it out'
        )
    translator = translator.to(where)
    translator.keeps_dropout = dropout
    torch.manual_seed(0)
    features = None if inception is None else InceptionFeatures(inception).to(where)
    side = info['translator']['side']
    names = sorted({name for stream in translator.streams for name in stream})
    source = open_images(images.dataset, 'test')
    found = prepared_images(source, names, side, Path(images.cache))
    scores = score_translator(translator, found, where, features)
    for target, rows in scores.items():
        print(table_text(f'{target} of {len(found)} images of {found.name}', shown_scores(rows)))
    if output is not None:
        make_folder(output)
        text = json.dumps({'images': len(found), 'data': found.name, 'scores': scores}, indent=1)
        write_text(output / 'scores.json', text)
        if pictures:
            draw_sheets(translator, found, output, pictures, where)
        print(f'written to {output}')


def _check_no_run(folder: Path) -> None:
    """Refuse a run's folder, whose own scores.json tells that it is done, and how well."""
    for name in (SETTINGS_NAME, LAST_NAME):
        if (folder / name).is_file():
            raise InputError(
                f'{folder} holds a run ({name}), whose own scores.json would be overwritten; '
                f'choose another output, such as {folder / "scored"}'
            )


def shown_scores(rows: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Return a target's scores as papers print them: FID as it is, the others in hundredths."""
    shown = {}
    for name, scores in rows.items():
        for score, value in scores.items():
            hundredths = score != 'FID'
            label = f'{name}, {score}{" x 100" if hundredths else ""}'
            shown[label] = f'{100 * value if hundredths else value:.2f}'
    return shown


@full_float32()
def score_translator(
    translator: Translator,
    images: PreparedImages,
    device: torch.device | str,
    features: torch.nn.Module | None = None,
    fabric: Fabric | None = None,
) -> Scores:
    """Return the errors of every stream and ensemble over a set of images.

    Args:
        translator: on the device; its mode is kept.
        images: of the side that it is for.
        device: of the computation.
        features: of FID and KID, for colour; None leaves them out.
        fabric: processes that share the images; each returns the scores of all. Without features.
    """
    distances: dict[tuple[str, str], Distances] = {}
    for target, group in translator.by_target.items():
        names = [translator.streams[i].input for i in group]
        for name in [*names, ENSEMBLE] if target in translator.ensembles else names:
            used = features if target == COLOUR else None
            distances[target, name] = Distances(used, len(images))
    rank, size = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    for batch in _batches(images, device, rank, size):
        made = translated(translator, batch)
        for (target, name), metric in distances.items():
            metric.update(made[target][name], batch[target])
    found: Scores = {}
    for (target, name), metric in distances.items():
        if size > 1:
            metric.gather(fabric)
        found.setdefault(target, {})[name] = metric.result()
    return found


@torch.no_grad()
def translated(translator: Translator, batch: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return what a translator makes: target -> input or 'ensemble' -> (N, 3, H, W), -1 to 1."""
    made = translator(batch)
    found: dict[str, dict[str, Tensor]] = {}
    for stream, image in zip(translator.streams, made.streams, strict=True):
        found.setdefault(stream.target, {})[stream.input] = image.float()
    for target in translator.ensembles:
        found[target][ENSEMBLE] = made.ensembles[target].float()
    return found


def _batches(
    images: PreparedImages, device: torch.device | str, rank: int, world_size: int
) -> Iterator[dict[str, Tensor]]:
    starts = range(rank * BATCH, len(images), world_size * BATCH)
    for first in progress_bar(starts, desc=f'score {images.name}', unit='batch'):
        yield _batch(images, slice(first, first + BATCH), device)


def _batch(images: PreparedImages, which: slice, device: torch.device | str) -> dict[str, Tensor]:
    return {
        name: network_image(torch.from_numpy(np.array(all_images[which])).to(device))
        for name, all_images in images.domains.items()
    }


@full_float32()
def picture_row(
    translator: Translator, images: PreparedImages, index: int, device: torch.device | str
) -> dict[str, list[Tensor]]:
    """Return what is shown of an image, by target: uint8 (H, W, 3) of inputs, made and real.

    The order is that of `picture_headings`.
    """
    batch = _batch(images, slice(index, index + 1), device)
    rows = {}
    for target, made in translated(translator, batch).items():
        inputs = [batch[name] for name in made if name != ENSEMBLE]
        row = [*inputs, *made.values(), batch[target]]
        rows[target] = [as_bytes(x[0]).permute(1, 2, 0).cpu() for x in row]
    return rows


def picture_headings(translator: Translator, target: str) -> list[str]:
    """Return what the images of `picture_row` are."""
    inputs = [stream.input for stream in translator.streams if stream.target == target]
    made = [f'{target} from {name}' for name in inputs]
    ensemble = [ENSEMBLE] if target in translator.ensembles else []
    return [*inputs, *made, *ensemble, target]


def draw_sheets(
    translator: Translator,
    images: PreparedImages,
    folder: Path,
    count: int,
    device: torch.device | str,
) -> None:
    """Write TARGET.jpg for each target, rows of images spread over the set."""
    rows = [picture_row(translator, images, i, device) for i in evenly(len(images), count)]
    for target in translator.targets:
        moments = [[image.numpy() for image in row[target]] for row in rows]
        width = max(images.side, SHEET_WIDTH)
        sheet = contact_sheet(moments, picture_headings(translator, target), width=width)
        write_image(folder / f'{target}.jpg', sheet)
