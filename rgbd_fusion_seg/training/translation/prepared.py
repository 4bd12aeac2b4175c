"""Images of all domains that a run needs, prepared once and mapped into memory."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.datasets.cache import HHA_CODE
from rgbd_fusion_seg.training.datasets.prepared_files import (
    Images,
    Part,
    build_parts,
    in_chunks,
)
from rgbd_fusion_seg.training.translation import domains as domain_code
from rgbd_fusion_seg.training.translation.sources import ImageSource

FORMAT = 1


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """N views in several domains.

    Args:
        name, terms: those of the source.
        domains: uint8 (N, side, side, 3) read-only memory maps, by domain.
    """

    name: str
    terms: str
    domains: Images

    def __len__(self) -> int:
        return len(next(iter(self.domains.values())))

    @property
    def side(self) -> int:
        """Pixels of an image's side."""
        return next(iter(self.domains.values())).shape[1]


def prepared_images(
    source: ImageSource, domains: Sequence[str], side: int, folder: Path
) -> PreparedImages:
    """Return the images of a source; what ``folder`` lacks of them is made now.

    Args:
        source: of the images.
        domains: which are wanted.
        side: of the images.
        folder: for the images of any number of sources.

    Raises:
        InputError: a domain that the source does not have, images that cannot be used, no images,
            or too little space on the disk.
    """
    for name in domains:
        if name not in source.domains:
            raise InputError(
                f'{source.name} has no images of {name}; it has {", ".join(source.domains)}'
            )
    if not len(source):
        raise InputError(f'{source.name} has no images; check its split file or its folder')
    shape = (len(source), side, side, 3)
    parts = {name: Part(_place(source, name, side, folder), {'image': shape}) for name in domains}

    def fill(missing: Sequence[Part], arrays: Sequence[Images]) -> dict[str, Any]:
        names = [name for name, part in parts.items() if part in missing]

        def prepare(i: int) -> None:
            images = source.images(i, names, side)
            for name, out in zip(names, arrays, strict=True):
                out['image'][i] = images[name]

        in_chunks(prepare, len(source), source.name)
        return {'frames': len(source)}

    build_parts(source.name, list(parts.values()), Path(folder), fill)
    opened = {name: part.open()['image'] for name, part in parts.items()}
    return PreparedImages(source.name, source.terms, opened)


def _place(source: ImageSource, domain: str, side: int, folder: Path) -> Path:
    described = [FORMAT, source.name, len(source), domain, side, source.describe()]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    reader = getattr(source, 'frames', source)
    for item in (*HHA_CODE, domain_code, type(source), type(reader)):
        digest.update(Path(inspect.getfile(item)).read_bytes())
    return Path(folder) / f'{source.name}-{domain}{side}-{digest.hexdigest()[:12]}'


def network_image(image: np.ndarray) -> np.ndarray:
    """Return what networks see: uint8 (N, H, W, 3) -> float32 (N, 3, H, W), -1 to 1."""
    planes = np.ascontiguousarray(image.transpose(0, 3, 1, 2), dtype=np.float32)
    return planes / np.float32(127.5) - np.float32(1)


def shown_image(made: np.ndarray) -> np.ndarray:
    """Return the inverse of `network_image`, rounded and cut off: uint8 (N, H, W, 3)."""
    values = np.rint((made.transpose(0, 2, 3, 1) + 1) * 127.5)
    return values.clip(0, 255).astype(np.uint8)
