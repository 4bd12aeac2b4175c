"""From a checkpoint to a bundle: its graph, checked on real frames, and its card."""

from __future__ import annotations

import errno
import itertools
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch

from rgbd_fusion_seg import hha
from rgbd_fusion_seg.atomic_files import replace_folder
from rgbd_fusion_seg.bundle import (
    CARD_FORMAT,
    ModelBundle,
    file_sha256,
    load_bundle,
    sensor_of,
)
from rgbd_fusion_seg.card import write_card
from rgbd_fusion_seg.engine import Engine, open_engine
from rgbd_fusion_seg.engine_building.fused_graph import (
    check_frame_size,
    check_inputs,
    fused_beside,
)
from rgbd_fusion_seg.errors import BundleError, InputError
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.locations import CARD_NAME
from rgbd_fusion_seg.postprocess import labels_and_confidence
from rgbd_fusion_seg.preprocess import network_inputs
from rgbd_fusion_seg.replay.report import table_text
from rgbd_fusion_seg.training.checkpoints import (
    TRAINABLE_NAME,
    Checkpoint,
    command_line,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from rgbd_fusion_seg.training.config import DataConfig
from rgbd_fusion_seg.training.datasets import open_dataset
from rgbd_fusion_seg.training.datasets.base import FrameSource
from rgbd_fusion_seg.training.datasets.cache import cached_frames, read_frame
from rgbd_fusion_seg.training.evaluation import (
    check_classes,
    score_source,
    scored_sources,
    write_scores,
)
from rgbd_fusion_seg.training.networks import parameter_count
from rgbd_fusion_seg.training.networks.base import SegmentationNetwork
from rgbd_fusion_seg.training.onnx_graph import GraphOptions, build_graph
from rgbd_fusion_seg.training.predictors import open_predictor
from rgbd_fusion_seg.training.report import headline
from rgbd_fusion_seg.training.run_checks import check_sides
from rgbd_fusion_seg.training.single_sensor import (
    card_with_parts,
    part_folder,
    unimodal_checkpoints,
)

MINIMUM_AGREEMENT = 0.999
GRAPH_NAME = 'model.onnx'


def export(
    checkpoint: Path,
    bundle: Path,
    data: DataConfig,
    size: tuple[int, int] | str | None = None,
    precision: Literal['fp32', 'fp16'] = 'fp32',
    storage: Literal['fp16', 'fp32'] = 'fp16',
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    opset: int = 18,
    frames: int = 8,
    score: bool = True,
    fuse_postprocess: tuple[int, int] | str | None = None,
    fuse_hha: bool = False,
    single_sensor: bool = True,
    trainable: bool = False,
) -> None:
    """Write a bundle from a checkpoint; nothing is written where its labels are not torch's.

    A bundle that is there already stays until the new one has passed all its checks. With
    `fuse_postprocess` another one is written beside it, `BUNDLE_fused_WIDTHxHEIGHT` (and with
    `fuse_hha` `BUNDLE_fused_hha_WIDTHxHEIGHT`), whose graph takes frames of that size and returns
    labels, for GPUs (`engine_building.fused_graph`).

    Args:
        checkpoint: a .safetensors file that the train or import-weights command wrote, a run's
            folder, whose last.safetensors is taken, or a bundle with weights to train on from.
        bundle: folder to write.
        data: its test split has the frames for checks and scores.
        size: width and height of the colour input, or WIDTHxHEIGHT; default: as it was trained.
        precision: in which the graph computes; fp16 is for TensorRT's strongly typed networks.
        storage: of the weights where the graph computes in fp32.
        dynamic_batch: leave the number of images open.
        dynamic_size: leave the size of images open; `size` is what the card proposes.
        opset: version of ONNX's operators, 18 or higher.
        frames: how many frames, spread over the split, the graph is compared with torch on.
        score: also score the bundle, and write the scores into its card.
        fuse_postprocess: width and height of frames, or WIDTHxHEIGHT.
        fuse_hha: let the graph of the fused bundle make HHA from depth, too.
        single_sensor: where each branch of the network answers for itself, also write bundles
            that answer from one modality alone, into folders of the bundle; they are checked and
            scored as it is.
        trainable: also put the weights into the bundle from which others can train on, or export
            it anew with other options, about as many bytes as the graph. What is exported from
            the weights in the bundle itself keeps them.

    Raises:
        InputError: options, a checkpoint or data that cannot be used, or a checkpoint of other
            classes than the data's.
        BundleError: labels of torch and of the graph agree on less than 99.9 % of the pixels, or
            a network whose inputs a fused graph cannot make.
    """
    options = GraphOptions(precision, storage, dynamic_batch, dynamic_size, opset)
    size, fused_size = _parsed('size', size), _parsed('fuse_postprocess', fuse_postprocess)
    if fused_size is not None:
        check_frame_size(fused_size)
    elif fuse_hha:
        raise InputError('fuse_hha belongs to fuse_postprocess; give the size of frames with it')
    checkpoint = find_checkpoint(checkpoint)
    trainable = trainable or checkpoint.resolve().parent == bundle.resolve()
    print(f'exporting {checkpoint}')
    loaded = load_checkpoint(checkpoint)
    if fused_size is not None:
        check_inputs(str(checkpoint), loaded.info['statistics'], fuse_hha)
    source = open_dataset(data.dataset, 'test')
    check_classes(loaded.classes.names, source, checkpoint)
    sees_depth = set(loaded.info['statistics']) != {'rgb'}
    if sees_depth and 'depth_range_m' not in loaded.info:  # weights of others do not tell it
        train = cached_frames(open_dataset(data.dataset, 'train'), Path(data.cache))
        loaded.info['depth_range_m'] = train.depth_range_m
    parts = unimodal_checkpoints(loaded) if single_sensor else {}
    replaced = bundle.exists()
    with replacing(bundle) as draft, _blaming(checkpoint, draft):
        wanted = {'': loaded, **{part_folder(m): part for m, part in parts.items()}}
        for name, network in wanted.items():
            whole_name = f'{bundle.name}_{name}' if name else bundle.name
            found = write_bundle(network, draft / name, whole_name, source, options, size, frames)
            print(f"{whole_name}: {found['labels_equal_to_torch']:.4%} of the labels are torch's")
        if parts:
            written = {modality: load_bundle(draft / part_folder(modality)) for modality in parts}
            write_card(draft / CARD_NAME, card_with_parts(load_bundle(draft), written))
        if trainable:
            save_checkpoint(draft / TRAINABLE_NAME, loaded.build(), loaded.info, halved=True)
        if score:
            sources = scored_sources(data)
            for name in wanted:
                _score(draft / name, sources)
    print(f'written to {bundle}' + (', which held a bundle before' if replaced else ''))
    if fused_size is not None:
        fused = fused_beside(load_bundle(bundle), fused_size, fuse_hha)
        print(f'{fused.path} has the graph that takes frames')


def _parsed(option: str, size: tuple[int, int] | str | None) -> tuple[int, int] | None:
    """Return a size that may be given as the runtime's command line takes it, as text."""
    if not isinstance(size, str):
        return size
    if not (match := re.fullmatch(r'([0-9]+)x([0-9]+)', size)):
        raise InputError(f'{option} {size!r} is no size; give width and height as 640x480')
    return int(match[1]), int(match[2])


@contextmanager
def _blaming(checkpoint: Path, draft: Path) -> Iterator[None]:
    """Let errors of a bundle that is being written speak of what it is made of.

    Raises:
        BundleError: one of what the block raised; its folder will be gone when it is read.
    """
    try:
        yield
    except BundleError as error:
        if str(draft) not in str(error):
            raise
        what = str(error).partition('; ')[0].replace(f'{draft}{os.sep}', '')
        raise BundleError(
            f'{checkpoint} makes no bundle that could be read, for {what}; it has this from its '
            'training, so train it anew on data in which prepare --check true finds no fault'
        ) from error


def _score(folder: Path, sources: Mapping[str, FrameSource]) -> None:
    with closing(open_predictor(folder)) as predictor:
        sets = [score_source(predictor, source, name) for name, source in sources.items()]
    write_scores(folder, predictor, sets)
    for result in sets:
        print(table_text(f'{load_bundle(folder).name} on {result.name}', headline(result)))


def write_bundle(
    checkpoint: Checkpoint,
    folder: Path,
    name: str,
    source: FrameSource,
    options: GraphOptions,
    size: tuple[int, int] | None = None,
    frames: int = 8,
) -> dict[str, Any]:
    """Write a bundle into a new folder and check it on frames.

    Args:
        checkpoint: weights and description of the run.
        folder: is made.
        name: of the bundle.
        source: real frames.
        options: of the graph.
        size: width and height of the colour input; default: as it was trained.
        frames: how many frames are compared.

    Returns:
        the agreement, as on the card.

    Raises:
        InputError: a size that the network cannot take, or no frames.
        BundleError: see :func:`agreement`.
    """
    network = checkpoint.build()
    if size is None:
        size = checkpoint.info['width'], checkpoint.info['height']
    check_sides(checkpoint.info['network'], network, size, 'width and height of size')
    if frames < 1 or not len(source):
        raise InputError(
            f'the exported graph is checked on frames, but {frames} of the {len(source)} frames '
            f'of {source.name} were asked for; give at least one'
        )
    width, height = size
    model = build_graph(network, height, width, options)
    folder.mkdir(parents=True)
    onnx.save(model, folder / GRAPH_NAME)
    card = describe(checkpoint, network, folder, name, size, options)
    write_card(folder / CARD_NAME, card)
    card['metrics']['agreement'] = agreement(network, load_bundle(folder), source, frames)
    write_card(folder / CARD_NAME, card)
    return card['metrics']['agreement']


def describe(
    checkpoint: Checkpoint,
    network: SegmentationNetwork,
    folder: Path,
    name: str,
    size: tuple[int, int],
    options: GraphOptions,
) -> dict[str, Any]:
    """Return the card of a bundle whose weights are in ``folder``, without its metrics.

    Args:
        checkpoint, network: where the weights come from.
        folder, name: of the bundle.
        size: width and height of the colour input.
        options: of the graph.
    """
    info, classes = checkpoint.info, checkpoint.classes
    sizes = network.input_sizes(size[1], size[0])
    colour_per_leading = size[1] // next(iter(sizes.values()))[0]
    card: dict[str, Any] = {
        'format': CARD_FORMAT,
        'name': name,
        'summary': f'{info["network"]}, sees {" and ".join(sizes)}, tells the {len(classes)} '
        f'classes of {classes.name} apart',
        'network': {
            'name': info['network'],
            'options': info['options'],
            'parameters': parameter_count(network).trainable,
        },
        'inputs': {
            name: {'height': h, 'width': w, **_statistics(info, name)}
            for name, (h, w) in sizes.items()
        },
        'output': {'stride': network.stride // colour_per_leading},
        'dynamic': {
            'batch': options.dynamic_batch,
            'size': options.dynamic_size,
            'multiple': network.size_multiple // colour_per_leading,
        },
    }
    if 'hha' in sizes:
        card['hha'] = hha.constants()
    if len({sensor_of(name) for name in sizes}) > 1 and info.get('copes_without'):
        card['copes_without'] = info['copes_without']
    if set(sizes) - {'rgb'}:
        card['depth'] = {'range_m': _depth_range(info)}
    return card | {
        'classes': [
            {'name': name, 'color': [int(c) for c in color]}
            for name, color in zip(classes.names, classes.colors, strict=True)
        ],
        'weights': {
            'file': GRAPH_NAME,
            'sha256': file_sha256(folder / GRAPH_NAME),
            'stored_as': 'float16' if options.storage == 'fp16' else 'float32',
            'computes_in': 'float16' if options.precision == 'fp16' else 'float32',
            'opset': options.opset,
        },
        'training': {
            'command': info.get('command', ''),
            'data': info.get('data', []),
            'started_from': info.get('started_from', []),
            'steps': info.get('step', 0),
            'minutes': info.get('minutes', 0.0),
            **({'notes': info['notes']} if info.get('notes') else {}),
        },
        'export': {'command': command_line()},
        'metrics': {},
    }


def _depth_range(info: dict[str, Any]) -> list[float]:
    """Return nearest and farthest depth, wider by a centimetre where they are the same."""
    near, far = (float(x) for x in info['depth_range_m'])
    return [near, far] if near < far else [max(0.0, round(near - 0.01, 2)), round(near + 0.01, 2)]


def _statistics(info: dict[str, Any], name: str) -> dict[str, list[float]]:
    mean, std = info['statistics'][name]
    return {'mean': [float(x) for x in mean], 'std': [float(x) for x in std]}


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield the path for a new folder of this name, which replaces it when nothing was raised.

    Raises:
        InputError: what is there is no bundle, or the place cannot be written to or is full.
    """
    if folder.exists() and not (folder / CARD_NAME).is_file():
        raise InputError(f'{folder} exists and is no bundle; choose another folder')
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f'.{folder.name}-')
    except OSError as error:
        raise InputError(f'{folder} cannot be written: {error}; choose another folder') from error
    with temporary as place:
        draft = Path(place) / folder.name
        try:
            yield draft
        except OSError as error:  # of writing it; what was read has errors of its own
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(
                f'{folder} cannot be written: {error}; free some space there and start the same '
                'command again'
            ) from error
        try:
            replace_folder(draft, folder)
        except OSError as error:
            raise InputError(f'{folder} cannot be written: {error}; try again') from error


@torch.inference_mode()
def agreement(
    network: SegmentationNetwork, bundle: ModelBundle, source: FrameSource, count: int
) -> dict[str, Any]:
    """Compare a torch network in float32 with its bundle on frames spread over a set.

    A dynamic bundle is also compared with batches of 1, 2 and 3, and at about half its size.

    Args:
        network: in evaluation mode.
        bundle: what was exported from it.
        source: the frames.
        count: how many, at least one; all, if there are fewer.

    Raises:
        BundleError: less than 99.9 % of the pixels have the same label, or logits that are not
            finite.
    """
    indices = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist()
    inputs = [read_frame(source, i).frame for i in indices]
    found, names = [], []
    for sized in _checked_sizes(bundle):
        with closing(open_engine(sized, 'onnxruntime')) as engine:
            names.append(engine.name)
            for frames in _batches(inputs, (1, 2, 3) if bundle.dynamic.batch else (1,)):
                found.append(_compare(network, engine, sized, frames))
    equal, total, errors = zip(*found, strict=True)
    share, worst = sum(equal) / sum(total), float(np.max(errors))  # nan, if one is
    if share < MINIMUM_AGREEMENT or not np.isfinite(worst):
        raise BundleError(
            f'the exported graph agrees with the network on {share:.4%} of the pixels of '
            f'{len(indices)} frames, its largest logit error is {worst:.3g}; '
            f'{MINIMUM_AGREEMENT:.1%} are needed, so the bundle was not written'
        )
    return {
        'frames': len(indices),
        'which': f'{source.name}: {", ".join(map(str, indices))}',
        'labels_equal_to_torch': round(share, 6),
        'largest_logit_error': round(worst, 5),
        'measured_with': f'torch float32 against {names[0]}, network input '
        + ' and '.join('{}x{}'.format(*sized.input_size) for sized in _checked_sizes(bundle)),
    }


def _checked_sizes(bundle: ModelBundle) -> list[ModelBundle]:
    if not bundle.dynamic.size:
        return [bundle]
    step = bundle.dynamic.multiple
    width, height = (max(1, round(side / (2 * step))) * step for side in bundle.input_size)
    return [bundle, bundle.resized(width, height)]


def _batches(frames: Sequence[RgbdFrame], sizes: Sequence[int]) -> Iterator[Sequence[RgbdFrame]]:
    begin = 0
    for size in itertools.cycle(sizes):
        if begin >= len(frames):
            return
        yield frames[begin : begin + size]
        begin += size


def _compare(
    network: SegmentationNetwork, engine: Engine, bundle: ModelBundle, frames: Sequence[RgbdFrame]
) -> tuple[int, int, float]:
    """Return equal labels, labels, and the largest difference of logits (nan if one is)."""
    single = [network_inputs(frame, bundle.inputs) for frame in frames]
    tensors = {name: np.concatenate([x[name] for x in single]) for name in bundle.inputs}
    ours = network({name: torch.from_numpy(x) for name, x in tensors.items()}).numpy()
    theirs = engine.infer(**tensors)
    equal = 0
    for k, frame in enumerate(frames):
        labels = [
            labels_and_confidence(x[k : k + 1], *frame.depth.shape)[0] for x in (ours, theirs)
        ]
        equal += int((labels[0] == labels[1]).sum())
    return equal, sum(f.depth.size for f in frames), float(np.abs(ours - theirs).max())
