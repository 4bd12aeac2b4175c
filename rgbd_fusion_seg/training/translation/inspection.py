"""What a trained translator has learnt: scales of its norms, exchange, ensembles.

The figures of `rgbd_fusion_seg.training.inspection` that need no images and no log, for each group
of streams between which channels may be exchanged: those to a target, in encoders, and those from
an input, in decoders. Proportions of the scales are TPAMI's Fig. 10, all layers as on its right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from rgbd_fusion_seg.training.checkpoints import checkpoint_in, make_folder
from rgbd_fusion_seg.training.inspection import (
    SIGNS,
    Scales,
    by_branch,
    draw_scales,
    exchange_scales,
    unexchanged_scales,
    write_summary,
)
from rgbd_fusion_seg.training.translation.checkpoint import load_translator
from rgbd_fusion_seg.training.translation.fusions import Exchange
from rgbd_fusion_seg.training.translation.generator import Translator


def inspect_translation(model: Path, output: Path | None = None) -> None:
    """Draw what a translator has learnt: scales of its norms, and exchange.

    Writes summary.json, summary.md and pictures for each group of streams, into to_TARGET (of
    encoders) and from_INPUT (of decoders).

    Args:
        model: a .safetensors file that train-translation wrote, or a run's folder.
        output: folder; default: inspection/ beside the checkpoint.

    Raises:
        InputError: no checkpoint of a translator, or a folder that cannot be written.
    """
    path = checkpoint_in(Path(model))
    translator, info = load_translator(path)
    for name, layers in scales_of(translator).items():
        folder = (output or path.parent / 'inspection') / name
        make_folder(folder)
        branches, exchanges = layers[0].branches, layers[0].kept is not None
        threshold = translator.config.threshold if exchanges else None
        summary = {
            'network': f'Translator, {name.replace("_", " ")}',
            'model': {'path': str(path)},
            'options': info['translator']['generator'],
            'step': info.get('step'),
            'branches': list(branches),
            'threshold': threshold,
            'ensemble': _ensemble(translator, name),
            'whole': by_branch(branches, layers, threshold),
            'blocks': {layer.name: by_branch(branches, [layer], threshold) for layer in layers},
            'not_shown': [],
        }
        if not exchanges:
            summary['not_shown'] = [
                'No channels are exchanged here, so there are no shares of it.'
            ]
        elif translator.config.form == 'paper':
            summary['not_shown'] = [SIGNS]
        drawn = draw_scales(folder, layers, summary, history={})
        write_summary(folder, summary, layers, drawn)
        print(f'written to {folder}')


@torch.no_grad()
def scales_of(translator: Translator) -> dict[str, list[Scales]]:
    """Return the scales of the norms whose channels are exchanged, else those of the encoders.

    Returns:
        'to_TARGET' or 'from_INPUT' -> layers, from the 1st on, whose branches are the streams'
        other domains.
    """
    config = translator.config
    which = config.penalised if config.sparsity else 'none'
    found: dict[str, list[Scales]] = {}
    for part, number, group, exchange in _layers(translator):
        streams = [translator.streams[i] for i in group]
        if part == 'encoder':
            name, norms = f'to_{streams[0].target}', translator.encoder_norms[number]
            branches = tuple(stream.input for stream in streams)
        else:
            name, norms = f'from_{streams[0].input}', translator.decoder_norms[number]
            branches = tuple(stream.target for stream in streams)
        layer, gamma = f'{part} {number + 1}', [norms.of(i).weight for i in group]
        found.setdefault(name, []).append(
            exchange_scales(layer, branches, gamma, exchange, which)
            if exchange
            else unexchanged_scales(layer, branches, gamma)
        )
    return found


def _layers(translator: Translator) -> Iterator[tuple[str, int, Sequence[int], Exchange | None]]:
    """Yield part, number from 0, streams and exchange of the layers that are told of."""
    exchanges = translator.exchanges()
    for name, fusions in exchanges.items():
        part, _, number = name.partition('.')
        for group, exchange in zip(fusions.groups, fusions.fusions, strict=True):
            yield part, int(number), group, exchange
    for number in range(1, translator.config.depth - 1) if not exchanges else ():
        for group in translator.by_target.values():
            yield 'encoder', number, group, None


def _ensemble(translator: Translator, name: str) -> dict[str, float]:
    """Return the weights of the ensemble that a group of streams makes, by input, if it does."""
    target = name.removeprefix('to_')
    if name == target or target not in translator.ensembles:
        return {}
    inputs = [translator.streams[i].input for i in translator.by_target[target]]
    return dict(zip(inputs, translator.ensembles[target].weights.tolist(), strict=True))
