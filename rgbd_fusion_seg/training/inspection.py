"""What a trained network of branches does: scales, exchange, ensemble, feature maps.

After the figures with which the CEN papers explain themselves: penalised scales γ over the
training steps (TPAMI Fig. 8, there each of one layer, here quantiles of all), proportions of the
scales (Fig. 10), feature maps of channels whose γ is near 0 in one modality (NeurIPS Fig. 3); and
besides histograms of the scales, the share of exchanged channels and the ensemble's weights. The
paper's Fig. 10 is of a translator, of which `translation.inspection` draws it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.training import inspection_pictures as pictures
from rgbd_fusion_seg.training.checkpoints import (
    find_checkpoint,
    load_checkpoint,
    make_folder,
    write_text,
)
from rgbd_fusion_seg.training.config import DataConfig
from rgbd_fusion_seg.training.datasets import open_dataset
from rgbd_fusion_seg.training.datasets.cache import read_frame
from rgbd_fusion_seg.training.networks.branches import OneEach, SharedBatchNorm2d, norm_scales
from rgbd_fusion_seg.training.networks.cen import NO_SELECTION, ChannelExchange
from rgbd_fusion_seg.training.predictors import (
    NetworkPredictor,
    open_predictor,
)
from rgbd_fusion_seg.training.run_log import LOG_NAME, read_log

FUSED = 'fused'
"""Name of what a fusion has, which is no modality's, as `stage_fusion` names its stream."""
ALL_NORMS = 'all norms'
"""Name of the one "branch" of networks that are not made of branches."""
SIGNS = (
    'In this form scales up to θ are small, so negative ones are too; here all figures and '
    'pictures show |γ|.'
)
LOW_QUANTILE = 0.03
"""The authors of CEN report this quantile of the penalised scales."""


@dataclass(frozen=True, eq=False)
class Scales:
    """Scales of a norm in each of M branches.

    Args:
        name: of the block or the norm.
        branches: names of the M.
        gamma: float32 (M, C).
        penalised: bool (M, C), under the l1 penalty.
        kept: bool (M, C), where a branch keeps its own channel; None: nothing is exchanged here.
    """

    name: str
    branches: tuple[str, ...]
    gamma: np.ndarray
    penalised: np.ndarray
    kept: np.ndarray | None = None

    def row(self, branch: str) -> int:
        """Return the place of a branch among the M."""
        return self.branches.index(branch)

    @property
    def stage(self) -> str:
        """First part of the name: 'layer1' of 'layer1.0'."""
        return self.name.partition('.')[0]


@dataclass(frozen=True, eq=False)
class BlockMaps:
    """Maps of a block on one frame: M times float32 (C, h, w), before and after the exchange."""

    before: list[np.ndarray]
    after: list[np.ndarray]


def inspect(
    model: Path,
    data: DataConfig,
    output: Path | None = None,
    frames: int = 2,
    blocks: tuple[str, ...] = (),
    device: str = 'auto',
) -> None:
    """Draw what a network of branches has learnt: scales, exchange, ensemble, feature maps.

    Writes summary.json, summary.md and pictures. Those of feature maps show frames of the data
    set, whose terms hold for them too.

    Args:
        model: a run's folder, a .safetensors file that the train command wrote, or the folder or
            name of a bundle that has one; the log of the run is looked for beside it.
        data: the data set that frames are taken from; needed where `frames` is not 0.
        output: folder; default: inspection/ beside the checkpoint.
        frames: of the test split, evenly spread, whose feature maps are drawn.
        blocks: whose maps are drawn, such as layer2.3; default: of each stage the block that
            exchanges most.
        device: 'auto', 'cpu', 'cuda'.

    Raises:
        InputError: no checkpoint, a bundle without one, an unknown block, or data that cannot be
            read.
    """
    if frames < 0:
        raise InputError(f'frames must be 0 or more, not {frames}')
    path = find_checkpoint(model)
    info = load_checkpoint(path).info
    with contextlib.closing(open_predictor(path, device=device)) as predictor:
        network = predictor.network
        scales = scales_of(network)
        chosen = chosen_blocks(scales, blocks)
        folder = output or path.parent / 'inspection'
        make_folder(folder)
        summary = summarise(network, scales, info)
        summary['model'] = predictor.model
        history = read_history(path.with_name(LOG_NAME), network.monitored())
        drawn = draw_scales(folder, scales, summary, history)
        if chosen and frames:
            drawn += draw_maps(folder, predictor, scales, chosen, data, frames)
    summary['not_shown'] = missing(summary, history)
    write_summary(folder, summary, scales, drawn)
    print(f'written to {folder}')


def write_summary(
    folder: Path, summary: dict[str, Any], scales: Sequence[Scales], drawn: Sequence[Path]
) -> None:
    """Write summary.json and summary.md."""
    write_text(folder / 'summary.json', json.dumps(summary, indent=1) + '\n')
    write_text(folder / 'summary.md', markdown(summary, scales, drawn))


@torch.no_grad()
def scales_of(network: nn.Module) -> list[Scales]:
    """Return the scales of the norms whose channels are exchanged, else those of all norms.

    Networks without branches count as one branch. The stream that `stage_fusion` makes, and what
    a fusion has of its own, is one more.
    """
    found = []
    exchanges = network.exchanges() if hasattr(network, 'exchanges') else {}
    for name, (exchange, norm) in exchanges.items():
        gamma = norm_scales(norm, network.num_branches)
        which = network.penalised if network.sparsity else 'none'
        found.append(exchange_scales(name, network.modalities, gamma, exchange, which))
    if found:
        return found
    modules = dict(network.named_modules())
    for name, module in modules.items():
        inside = isinstance(modules.get(name.rpartition('.')[0]), OneEach)
        single = module[0] if isinstance(module, OneEach) else module
        if inside or not isinstance(single, nn.BatchNorm2d):
            continue
        branches = _branches_of(module, network)
        gamma = norm_scales(module, len(branches))
        found.append(unexchanged_scales(name.removeprefix('encoder.'), branches, gamma))
    return found


def exchange_scales(
    name: str,
    branches: tuple[str, ...],
    gamma: Sequence[Tensor],
    exchange: ChannelExchange,
    which: str,
) -> Scales:
    """Return what is told of norms whose channels an exchange may replace.

    Args:
        name, branches: see `Scales`.
        gamma: M tensors (C,).
        exchange: behind the norms.
        which: scales are penalised: 'own', 'all' or 'none'.
    """
    penalised = np.full((len(gamma), len(gamma[0])), which == 'all')
    if which == 'own':
        for mask, own in zip(penalised, exchange.own, strict=True):
            mask[own] = True
    selects = exchange.exchange not in NO_SELECTION
    kept = _array(exchange.kept_by(gamma)) if selects else None
    return Scales(name, branches, _array(gamma), penalised, kept)


def unexchanged_scales(name: str, branches: tuple[str, ...], gamma: Sequence[Tensor]) -> Scales:
    """Return what is told of norms behind which nothing is exchanged: M scales (C,)."""
    return Scales(name, branches, _array(gamma), np.zeros((len(gamma), len(gamma[0])), bool))


def _array(tensors: Sequence[Tensor]) -> np.ndarray:
    return torch.stack(list(tensors)).cpu().numpy()


def _branches_of(norm: nn.Module, network: nn.Module) -> tuple[str, ...]:
    """Return the names of the branches that a norm has scales of."""
    if not hasattr(network, 'num_branches'):
        return (ALL_NORMS,)
    modalities, outputs = network.modalities, network.outputs
    if isinstance(norm, OneEach):
        return outputs if len(norm) == len(outputs) else modalities
    if isinstance(norm, SharedBatchNorm2d):  # of the one stream that goes on, or of all branches
        return outputs if len(outputs) == 1 else modalities
    return (FUSED,)


def branch_names(scales: Sequence[Scales]) -> tuple[str, ...]:
    """Return the names of all branches that some norm has scales of, in the order of the norms."""
    return tuple(dict.fromkeys(name for block in scales for name in block.branches))


def chosen_blocks(scales: Sequence[Scales], wanted: Sequence[str]) -> list[str]:
    """Return the blocks whose maps are drawn: those wanted, else one of each stage.

    Raises:
        InputError: a block that is not there, or that exchanges nothing.
    """
    exchanging = {block.name: block for block in scales if block.kept is not None}
    for name in wanted:
        if name not in exchanging:
            raise InputError(
                f'{name} is no block that exchanges channels; '
                + (f'choose of {", ".join(exchanging)}' if exchanging else 'the network has none')
            )
    stages: dict[str, Scales] = {}
    for block in exchanging.values():
        best = stages.get(block.stage)
        if best is None or block.kept.mean() < best.kept.mean():
            stages[block.stage] = block
    return list(wanted) or [block.name for block in stages.values()]


def summarise(
    network: nn.Module, scales: Sequence[Scales], info: dict[str, Any]
) -> dict[str, Any]:
    """Return what summary.json holds: shares, quantiles and weights, over all and a block each."""
    names, threshold = branch_names(scales), getattr(network, 'threshold', None)
    weights = {k: v for k, v in network.monitored().items() if k.startswith('ensemble_')}
    return {
        'network': info['network'],
        'options': info['options'],
        'step': info.get('step'),
        'branches': list(names),
        'threshold': threshold,
        'ensemble': {key.removeprefix('ensemble_'): value for key, value in weights.items()},
        'whole': by_branch(names, scales, threshold),
        'blocks': {block.name: by_branch(names, [block], threshold) for block in scales},
    }


def by_branch(
    names: Sequence[str], blocks: Sequence[Scales], threshold: float | None
) -> dict[str, dict[str, Any]]:
    """Return the numbers of each branch over some blocks: shares and quantiles."""
    having = {name: [block for block in blocks if name in block.branches] for name in names}
    return {name: _numbers(name, own, threshold) for name, own in having.items() if own}


def _numbers(name: str, blocks: Sequence[Scales], threshold: float | None) -> dict[str, Any]:
    gamma = np.abs(np.concatenate([block.gamma[block.row(name)] for block in blocks]))
    penalised = np.concatenate([block.penalised[block.row(name)] for block in blocks])
    numbers: dict[str, Any] = {'channels': len(gamma), 'median': float(np.median(gamma))}
    if all(block.kept is not None for block in blocks):
        kept = np.concatenate([block.kept[block.row(name)] for block in blocks])
        numbers['exchanged'] = float(1 - kept.mean())
    if penalised.any():
        part = gamma[penalised]
        numbers['penalised_low_quantile'] = float(np.quantile(part, LOW_QUANTILE))
        numbers['penalised_below_threshold'] = float((part < threshold).mean())
    return numbers


def read_history(path: Path, keys: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """Return what a run's log tells of a network's outputs.

    Args:
        path: of the log.
        keys: names QUANTITY_OUTPUT of `SegmentationNetwork.monitored`.

    Returns:
        quantity -> output -> (2, n) steps and values.
    """
    entries = read_log(path)
    history: dict[str, dict[str, np.ndarray]] = {}
    for key in keys:
        points = [(entry['step'], entry[key]) for entry in entries if key in entry]
        if points:
            quantity, _, name = key.partition('_')
            history.setdefault(quantity, {})[name] = np.array(points).T
    return history


def draw_scales(
    folder: Path,
    scales: Sequence[Scales],
    summary: dict[str, Any],
    history: dict[str, dict[str, np.ndarray]],
) -> list[Path]:
    """Draw what needs no frames; returns the pictures, relative to the folder."""
    names, threshold = summary['branches'], summary['threshold']
    figures = {}
    if scales:
        figures['gammas.png'] = pictures.histograms(scales, names, threshold)
    several = [block for block in scales if len(block.branches) > 1]
    compared = [name for name in names if all(name in block.branches for block in several)]
    if several:
        figures['proportions.png'] = pictures.proportions(several, compared)
    if any(block.kept is not None for block in scales):
        figures['exchanged.png'] = pictures.exchanged(scales, names)
    if history:
        figures['history.png'] = pictures.curves(history)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=pictures.DPI)
    return [Path(name) for name in figures]


def draw_maps(
    folder: Path,
    predictor: NetworkPredictor,
    scales: Sequence[Scales],
    chosen: Sequence[str],
    data: DataConfig,
    count: int,
) -> list[Path]:
    """Draw the chosen blocks' feature maps on ``count`` frames; returns the pictures."""
    source = open_dataset(data.dataset, 'test')
    indices = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int))
    by_name = {block.name: block for block in scales}
    drawn = []
    for index in indices.tolist():
        item = read_frame(source, index)
        inputs, labels, maps = look(predictor, item.frame, chosen)
        for name in chosen:
            figure = pictures.feature_maps(
                by_name[name], maps[name], inputs, labels, predictor.classes.colors
            )
            figure.suptitle(f'{name}: channels before and after the exchange, frame {index}')
            drawn.append(Path('maps') / f'frame{index:05d}-{name}.png')
            make_folder(folder / 'maps')
            figure.savefig(folder / drawn[-1], dpi=pictures.DPI)
    return drawn


def look(
    predictor: NetworkPredictor, frame: RgbdFrame, blocks: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, BlockMaps]]:
    """Label a frame and note what the network sees and what its blocks exchange.

    Returns:
        the inputs as they are before normalisation, float32 (H, W, 3), of depth (H, W, 1); labels
        uint8 at the frame's size; and each block's maps.
    """
    seen: dict[str, Any] = {}
    exchanges = {name: predictor.network.exchanges()[name] for name in blocks}
    with contextlib.ExitStack() as hooks:
        for name, (_, norm) in exchanges.items():
            hooks.enter_context(_noting(norm, seen, name))
        # Before they are normalised, inputs are pictures.
        hooks.enter_context(_noting_input(predictor.normalise, seen, 'inputs'))
        labels = predictor.predict(frame)
    inputs = {
        name: image[0].permute(1, 2, 0).cpu().numpy()
        for name, image in seen['inputs'].items()
        if name in predictor.network.modalities
    }
    with torch.inference_mode():
        maps = {
            name: BlockMaps(_arrays(seen[name]), _arrays(exchange.after_norm(seen[name], norm)))
            for name, (exchange, norm) in exchanges.items()
        }
    return inputs, labels, maps


def _arrays(maps: Sequence[Tensor]) -> list[np.ndarray]:
    return [x[0].float().cpu().numpy() for x in maps]


@contextlib.contextmanager
def _noting(module: nn.Module, seen: dict[str, Any], key: str) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, __, output: seen.update({key: output}))
    with handle:
        yield


@contextlib.contextmanager
def _noting_input(module: nn.Module, seen: dict[str, Any], key: str) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda _, given: seen.update({key: given[0]}))
    with handle:
        yield


def missing(summary: dict[str, Any], history: dict[str, Any]) -> list[str]:
    """Return a sentence for each thing that cannot be shown of this network."""
    network, sentences = summary['network'], []
    if not any('exchanged' in numbers for numbers in summary['whole'].values()):
        way = summary['options'].get('exchange')
        sentences.append(
            f'{network}{f" with exchange: {way}" if way else ""} replaces no channels, so there '
            'are no shares of exchanged channels and no feature maps of them.'
        )
    elif summary['options'].get('form') == 'paper':
        sentences.append(SIGNS)
    if not summary['ensemble']:
        sentences.append(f'{network} has no learnt ensemble here, so no weights of one.')
    elif not history:
        sentences.append(
            f'No {LOG_NAME} beside the checkpoint tells of them, so there is no history.'
        )
    if not summary['whole']:
        sentences.append(f'{network} has no batch norms, so no scales.')
    return sentences


def markdown(summary: dict[str, Any], scales: Sequence[Scales], drawn: Sequence[Path]) -> str:
    """Return the page: tables of the stages, what is not shown, and the pictures."""
    names, threshold = summary['branches'], summary['threshold']
    step = f' after {summary["step"]} steps' if summary['step'] is not None else ''
    lines = [f'# {summary["network"]}{step}', '', f'`{summary["model"]["path"]}`', '']
    if summary['ensemble']:
        weights = ', '.join(f'{m} {w:.3f}' for m, w in summary['ensemble'].items())
        lines += [f'Weights in the ensemble: {weights}.', '']
    rows = {
        'exchanged': 'channels exchanged, percent',
        'penalised_below_threshold': f'penalised scales with |γ| < θ = {threshold}, percent',
        'penalised_low_quantile': f'{LOW_QUANTILE:.0%} quantile of the penalised |γ|',
        'median': 'median |γ|',
    }
    stages = {b.stage: [x for x in scales if x.stage == b.stage] for b in scales}
    lines += [f'| | {" | ".join([*stages, "all"])} |', '|---' * (len(stages) + 2) + '|']
    columns = [by_branch(names, blocks, threshold) for blocks in stages.values()]
    for m in names if scales else ():
        for key, title in rows.items():
            cells = [_cell(column.get(m, {}), key) for column in (*columns, summary['whole'])]
            if any(cells):
                lines.append(f'| {m}: {title} | {" | ".join(cells)} |')
    lines += ['', *summary['not_shown'], '']
    lines += [f'![{path.stem}]({path.as_posix()})\n' for path in drawn]
    return '\n'.join(lines)


def _cell(numbers: dict[str, Any], key: str) -> str:
    if key not in numbers:
        return ''
    percent = key in ('exchanged', 'penalised_below_threshold')
    return f'{100 * numbers[key]:.1f}' if percent else f'{numbers[key]:.3g}'
