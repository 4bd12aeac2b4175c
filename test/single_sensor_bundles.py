"""Makes bundles of bundles.py that also answer from one sensor alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from bundles import tiny_card, tiny_network, with_open_sizes, write_bundle

BOTH = ('rgb', 'hha')
MEAN_IOU = {'rgb': 0.312, 'hha': 0.254}
"""mIoU of the parts on the card; that of both is 0.347."""


def write_with_parts(
    folder: Path, parts: tuple[str, ...] = BOTH, open_sizes: bool = False, **card: Any
) -> Path:
    """Write a bundle that holds ``MODALITY_only`` for each of `parts`; return its folder.

    Args:
        folder: must not exist.
        parts: modalities.
        open_sizes: leave the size of images open, of the parts as well.
        card: further entries of the card.
    """
    _write(folder, BOTH, open_sizes, metrics={'rooms_test': {'mIoU': 0.347}}, **card)
    listed = {}
    for modality in parts:
        name = f'{modality}_only'
        metrics = {'rooms_test': {'mIoU': MEAN_IOU[modality]}}
        part = _write(folder / name, (modality,), open_sizes, name=f'tiny_{name}', metrics=metrics)
        sha256 = yaml.safe_load((part / 'model.yaml').read_text())['weights']['sha256']
        listed[modality] = {'folder': name, 'sha256': sha256}
    change_card(folder, single_sensor=listed)
    return folder


def change_card(folder: Path, **entries: Any) -> None:
    """Set entries of the card in a bundle's folder."""
    path = folder / 'model.yaml'
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | entries))


def _write(folder: Path, modalities: tuple[str, ...], open_sizes: bool, **card: Any) -> Path:
    network = tiny_network(modalities=modalities)
    card = tiny_card(modalities=modalities) | card
    if open_sizes:
        network = with_open_sizes(network)
        multiple = 16 if 'rgb' in modalities else 8
        card['dynamic'] = {'batch': False, 'size': True, 'multiple': multiple}
    return write_bundle(folder, card, network)
