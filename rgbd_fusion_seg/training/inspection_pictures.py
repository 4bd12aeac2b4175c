"""Pictures of `inspection`: scales, exchange, ensemble and feature maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from rgbd_fusion_seg.palette import overlay

if TYPE_CHECKING:
    from rgbd_fusion_seg.training.inspection import BlockMaps, Scales

DPI = 110
COLORS = {
    'rgb': '#c8553d', 'hha': '#3d6fa8', 'depth': '#5a8f4a', 'normal': '#7d5ba6',
    'shade': '#c79a3b', 'texture': '#3a9a9a', 'edge': '#b0578d', 'curvature': '#6d4c33',
    'labels': '#2f4858',
}  # fmt: skip
"""Of the modalities, in all pictures."""
GREY = '#8a929a'
STYLES = {'10%': ':', '90%': '--'}
"""Of the quantiles' lines."""
TITLES = {'rgb': 'RGB', 'hha': 'HHA'}
LOWEST = 1e-4
"""Smaller scales are counted with these in histograms, whose axis is logarithmic."""
COLUMNS = 64
"""Channels of all layers are brought to as many columns; ResNet's narrowest layer has 64."""


def title(modality: str) -> str:
    """Return a modality as pictures call it."""
    return TITLES.get(modality, modality)


def histograms(scales: Sequence[Scales], names: Sequence[str], threshold: float | None) -> Figure:
    """Draw |γ| of each modality, a row for each stage; penalised scales and the others apart.

    After the sparsity penalty the former gather near 0 (CEN §3.3).
    """
    stages = _stages(scales)
    size = (1.4 + 4.2 * len(names), 0.9 + 1.75 * len(stages))
    figure = Figure(figsize=size, layout='constrained')
    grid = figure.subplots(len(stages), len(names), sharex=True, sharey='row', squeeze=False)
    top = max(float(np.abs(block.gamma).max()) for block in scales)
    # θ is where two bins meet.
    middle = max(threshold or 100 * LOWEST, 2 * LOWEST)
    top = 1.01 * max(top, 1.0, 2 * middle)
    bins = np.append(np.geomspace(LOWEST, middle, 24)[:-1], np.geomspace(middle, top, 20))
    for row, (stage, blocks) in zip(grid, stages.items(), strict=True):
        for m, axes in enumerate(row):
            having = [block for block in blocks if names[m] in block.branches]
            if not having:
                continue
            gamma = np.abs(np.concatenate([block.gamma[block.row(names[m])] for block in having]))
            penalised = np.concatenate([block.penalised[block.row(names[m])] for block in having])
            _histogram(axes, gamma, penalised, bins, COLORS.get(names[m], GREY))
            if threshold:
                axes.axvline(threshold, color='black', linewidth=1, linestyle='--')
                _share_below(axes, gamma, penalised, threshold)
        row[0].set_ylabel(f'{stage}\nchannels, %')
    for name, axes in zip(names, grid[0], strict=True):
        axes.set_title(title(name), fontsize=11)
    for axes in grid[-1]:
        axes.set_xlabel(f'|γ|  ({LOWEST:g} and below at the left edge)')
    figure.suptitle(
        'Scales of the norms' + (f'; dashed: θ = {threshold:g}' if threshold else ''),
        fontsize=12,
    )
    return figure


def _histogram(
    axes: Axes, gamma: np.ndarray, penalised: np.ndarray, bins: np.ndarray, color: str
) -> None:
    parts = [(~penalised, 'not penalised', GREY, 0.45), (penalised, 'ℓ1-penalised', color, 0.75)]
    for mask, label, shade, alpha in parts:
        if mask.any():
            # Shares of all channels, so that the two parts can be compared.
            weights = np.full(mask.sum(), 100 / len(gamma))
            axes.hist(
                gamma[mask].clip(bins[0], bins[-1]), bins, weights=weights, color=shade,
                alpha=alpha, label=label,
            )  # fmt: skip
    axes.set_xscale('log')
    if penalised.any():
        # Right of the bar at the left edge.
        axes.legend(fontsize=8, frameon=False, loc='upper left', bbox_to_anchor=(0.07, 1))
    _plain(axes)


def _share_below(axes: Axes, gamma: np.ndarray, penalised: np.ndarray, threshold: float) -> None:
    lines = [
        f'{100 * (gamma[mask] < threshold).mean():.1f} % of the {label} < θ'
        for mask, label in ((~penalised, 'others'), (penalised, 'penalised'))
        if mask.any()
    ]
    axes.text(
        0.09, 0.62, '\n'.join(lines), transform=axes.transAxes, fontsize=8, va='top', ha='left'
    )


def exchanged(scales: Sequence[Scales], names: Sequence[str]) -> Figure:
    """Draw the share of channels that each block replaces in each modality."""
    blocks = [block for block in scales if block.kept is not None]
    figure = Figure(
        figsize=(max(1.5 + 2.5 * len(names), 1.2 + 0.34 * len(blocks)), 3.6), layout='constrained'
    )
    axes = figure.subplots()
    width = 0.8 / len(names)
    for m, name in enumerate(names):
        kept = [block.kept[block.row(name)] for block in blocks]
        shares = [100 * (1 - mask.mean()) for mask in kept]
        mean = 100 * (1 - np.concatenate(kept).mean())
        places = np.arange(len(blocks)) + (m - (len(names) - 1) / 2) * width
        axes.bar(
            places, shares, width, color=COLORS.get(name, GREY),
            label=f'{title(name)}, all in all {mean:.1f} %',
        )  # fmt: skip
    for k in range(1, len(blocks)):
        if blocks[k].stage != blocks[k - 1].stage:
            axes.axvline(k - 0.5, color='0.8', linewidth=1)
    axes.set_xticks(range(len(blocks)), [b.name for b in blocks], rotation=90, fontsize=8)
    axes.set_xlim(-0.6, len(blocks) - 0.4)
    axes.set_ylim(0, max(5.0, axes.get_ylim()[1]))
    axes.set_xlabel('block or layer')
    axes.set_ylabel('channels replaced, %')
    figure.legend(loc='outside upper center', ncols=len(names), frameon=False, fontsize=9)
    _plain(axes)
    return figure


def proportions(scales: Sequence[Scales], names: Sequence[str]) -> Figure:
    """Draw each modality's part |γ_m| / Σ|γ| of a channel, in all blocks (TPAMI Fig. 10).

    Args:
        scales: of blocks that have all of ``names``, which the sum goes over.
        names: of the branches that are compared.
    """
    rows = [block.name for block in scales]
    height = 1.3 + max(2.6, 0.16 * len(rows))
    figure = Figure(figsize=(1.6 + 3.6 * len(names), height), layout='constrained')
    grid = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    norm = TwoSlopeNorm(1 / len(names), 0, 1)
    for m, axes in enumerate(grid):
        compared = [block.gamma[[block.row(name) for name in names]] for block in scales]
        picture = np.stack([_columns(_part(gamma, m)) for gamma in compared])
        image = axes.imshow(
            picture, cmap='PuOr_r', norm=norm, aspect='auto', interpolation='nearest',
            extent=(0, 100, len(rows) - 0.5, -0.5),
        )  # fmt: skip
        axes.set_title(title(names[m]), fontsize=11)
        axes.set_xlabel('channel, % of the way to the last')
    every = -(-len(rows) // 60)
    grid[0].set_yticks(range(0, len(rows), every), rows[::every], fontsize=8)
    bar = figure.colorbar(image, ax=list(grid), shrink=0.9)
    bar.set_label("part of the channel's scales, |γ| / Σ|γ|")
    figure.suptitle('Which modality a channel belongs to', fontsize=12)
    return figure


def _part(gamma: np.ndarray, m: int) -> np.ndarray:
    sizes = np.abs(gamma)
    return sizes[m] / sizes.sum(0).clip(1e-12)


def _columns(values: np.ndarray) -> np.ndarray:
    """Bring C values to `COLUMNS`: means of neighbours, or each more than once where C is less."""
    if len(values) < COLUMNS:
        return values[np.arange(COLUMNS) * len(values) // COLUMNS]
    return np.array([part.mean() for part in np.array_split(values, COLUMNS)])


def curves(history: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw what the log tells of each modality over the steps, a panel a quantity.

    Names are those of modalities, or MODALITY/QUANTILE.
    """
    labels = {
        'ensemble': ('Weights in the ensemble', 'softmax(α)', 1),
        'exchanged': ('Channels replaced', 'channels, %', 100),
        'gamma': ('Quantiles of the penalised scales', '|γ|', 1),
    }
    figure = Figure(figsize=(7, 0.5 + 2.7 * len(history)), layout='constrained')
    panels = figure.subplots(len(history), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (quantity, lines) in zip(panels, history.items(), strict=True):
        heading, unit, factor = labels.get(quantity, (quantity, quantity, 1))
        for name, (steps, values) in lines.items():
            modality, _, quantile = name.partition('/')
            told = f'{title(modality)} {quantile}'.strip()
            axes.plot(
                steps, factor * values, color=COLORS.get(modality, GREY),
                linestyle=STYLES.get(quantile, '-'),
                label=f'{told}: {factor * values[-1]:.3g} in the end',
            )  # fmt: skip
        if quantity == 'gamma':
            axes.set_yscale('log')
        axes.set_title(heading, fontsize=11)
        axes.set_ylabel(unit)
        axes.legend(frameon=False, fontsize=9)
        _plain(axes)
    panels[-1].set_xlabel('training step')
    return figure


def feature_maps(
    block: Scales,
    maps: BlockMaps,
    inputs: Mapping[str, np.ndarray],
    labels: np.ndarray,
    colors: np.ndarray,
) -> Figure:
    """Draw a block's maps of a frame before and after the exchange (CEN Fig. 3).

    Below the inputs and the prediction, rows of `channel_groups`, each with one scale of colours.

    Args:
        block: its scales.
        maps: of the block on the frame.
        inputs: what the network sees, (H, W, 3) on the 0..255 scale, of depth (H, W, 1) metres.
        labels: the prediction, uint8 (H, W).
        colors: uint8 (K, 3) of the classes.
    """
    groups, names = channel_groups(block), block.branches
    shown = [(title(name), _picture(name, inputs[name])) for name in names]
    if 'rgb' in inputs:
        small = cv2.resize(labels, shown[0][1].shape[1::-1], interpolation=cv2.INTER_NEAREST)
        shown.append(('prediction', overlay(shown[0][1], small, colors, alpha=0.7)))
    height, width = maps.before[0].shape[1:]
    count, cell = 2 * len(names), 2.1
    figure = Figure(
        figsize=(2.0 + cell * count, 0.8 + (cell * height / width + 0.12) * (1 + len(groups))),
        layout='constrained',
    )
    grid = figure.subplots(1 + len(groups), 1 + count, width_ratios=[1.8, *[cell] * count])
    for axes in grid.ravel():
        axes.set_axis_off()
    for axes, (heading, picture) in zip(grid[0, 1:], shown, strict=False):
        axes.imshow(picture, cmap='magma_r')
        axes.set_title(heading, fontsize=9)
    for axes, when in zip(grid[1, 1:], _columns_of_maps(names), strict=True):
        axes.set_title(when, fontsize=9)
    for row, (heading, channels) in zip(grid[1:], groups.items(), strict=True):
        row[0].text(0, 0.5, heading, transform=row[0].transAxes, fontsize=9, va='center')
        means = [x[channels].mean(0) for x in (*maps.before, *maps.after)]
        low, high = np.percentile(np.stack(means), (1, 99))
        for axes, values in zip(row[1:], means, strict=True):
            axes.imshow(values, cmap='viridis', vmin=low, vmax=max(high, low + 1e-6))
    return figure


def _columns_of_maps(names: Sequence[str]) -> list[str]:
    return [f'{title(n)} branch, {when}' for when in ('before', 'after') for n in names]


def channel_groups(block: Scales) -> dict[str, np.ndarray]:
    """Return the rows of `feature_maps`: heading -> indices of channels, at least one.

    Channels that one modality alone gives up, for each modality; those that all keep; and for
    each modality one channel that it gives up and another one values, or its smallest.
    """
    gamma, groups, names = np.abs(block.gamma), {}, block.branches
    total = gamma.shape[1]
    alone = [~block.kept[m] & np.delete(block.kept, m, 0).all(0) for m in range(len(names))]
    for name, mask in zip(names, alone, strict=True):
        groups[f'{title(name)} alone\ngives them up:\nmean of {mask.sum()} of {total}'] = mask
    mask = block.kept.all(0)
    groups[f'all keep them:\nmean of {mask.sum()} of {total}'] = mask
    groups = {heading: np.flatnonzero(mask) for heading, mask in groups.items() if mask.any()}
    for m, name in enumerate(names):
        others = np.delete(gamma, m, 0).max(0)
        channel = int(np.where(alone[m], others, -1 - gamma[m]).argmax())
        what = 'smallest of' if block.kept[m, channel] else 'given up by'
        sizes = [f'γ {title(n)} {block.gamma[i, channel]:.2g}' for i, n in enumerate(names)]
        heading = '\n'.join([f'channel {channel},', f'{what} {title(name)}:', *sizes])
        groups[heading] = np.array([channel])
    return groups


def _picture(name: str, image: np.ndarray) -> np.ndarray:
    """Return an input as what imshow takes: RGB bytes, or numbers where it is depth."""
    if name == 'depth':
        return np.where(image[..., 0] > 0, image[..., 0], np.nan)
    return image.clip(0, 255).astype(np.uint8)


def _stages(scales: Sequence[Scales]) -> dict[str, list[Scales]]:
    """Return scales by stage; together where there are too many stages for a page."""
    stages: dict[str, list[Scales]] = {}
    for block in scales:
        stages.setdefault(block.stage, []).append(block)
    return stages if len(stages) <= 8 else {'whole network': list(scales)}


def _plain(axes: Axes) -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(labelsize=9)
