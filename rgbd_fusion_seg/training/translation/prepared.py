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
from torch import Tensor

from rgbd_fusion_seg import palette
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
CONTENT_IMAGES = 8


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

    def content(self) -> list[int]:
        """Return what differs where the images do: sums over a few of each domain."""
        few = slice(None, None, max(1, len(self) // CONTENT_IMAGES))
        return [int(self.domains[name][few].sum(dtype=np.int64)) for name in sorted(self.domains)]

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
    readers = {type(source), *type(getattr(source, 'frames', source)).__mro__} - {object}
    code = [*HHA_CODE, domain_code, palette, *sorted(readers, key=lambda item: item.__name__)]
    for item in code:
        digest.update(Path(inspect.getfile(item)).read_bytes())
    return Path(folder) / f'{source.name}-{domain}{side}-{digest.hexdigest()[:12]}'


def network_image(images: Tensor) -> Tensor:
    """Return what networks see: uint8 (N, H, W, 3) -> float32 (N, 3, H, W), -1 to 1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1
