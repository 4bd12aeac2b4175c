"""Taskonomy (Zamir et al., CVPR 2018): views of buildings, with an image for each domain.

Files are ``point_P_view_V_domain_NAME.png``, 512x512. They lie in one of the arrangements in which
they are handed out and commonly kept (`ARRANGEMENTS`), for the buildings that an official list
``train_val_test_PARTITION.csv`` (columns id, train, val, test) gives to a split. A folder of one
building alone, like the authors' sample on which CEN trains, has no list of buildings; its splits
are lists of views, ``train_domain.txt`` and ``val_domain.txt`` as in CEN's code.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from rgbd_fusion_seg import image_files, palette
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.datasets import files, layouts
from rgbd_fusion_seg.training.translation import domains

OFFICIAL = {
    'rgb': 'rgb',
    'depth': 'depth_zbuffer',
    'normal': 'normal',
    'shade': 'reshading',
    'texture': 'edge_texture',
    'edge': 'edge_occlusion',
    'curvature': 'principal_curvature',
    'labels': 'segment_semantic',
}
"""Our domains and Taskonomy's names of them; folders have the latter. Open: depth is "euclidean/
zbuffer" in the papers' list (CEN §4.2, TPAMI §4), and which edges theirs are, they do not tell."""
ARRANGEMENTS = (
    '{domain}/taskonomy/{building}',  # omnidata-tools, which fetches Taskonomy today
    '{domain}/{building}',
    '{building}_{domain}/{domain}',  # archives BUILDING_DOMAIN.tar, unpacked each by itself
    '{building}/{domain}',  # … or a building's into one folder
)
LIST_OF_VIEWS = '{}_domain.txt'
"""Of a sample's split."""
DESCRIBED_VIEWS = 20
SEMANTIC_CLASSES = 18
"""Labels 0 (uncertain), 1 (background) and 2..17, a part of COCO's classes."""

_FETCH = 'fetch it with omnidata-tools (omnitools.download, --components taskonomy)'
_LISTS = 'https://github.com/StanfordVL/taskonomy, data/assets/splits_taskonomy.zip'
_SAMPLE_LISTS = (
    'take those of the public CEN code (image2image_translation/data) or write one view a line, '
    'such as point_0_view_0'
)
_FILE = re.compile(r'point_(\d+)_view_(\d+)_domain_(\w+)\.png')
_VIEW = re.compile(r'point_(\d+)_view_(\d+)')

View = tuple[str, int, int]
"""Building ('' for a sample of one), point and view."""


class Taskonomy:
    """One split of Taskonomy, or of a part of it.

    Args:
        folder: holds the images and the lists; lists may lie in ``splits_taskonomy/`` as well.
        split: 'train', 'val' or 'test'.
        partition: which list of buildings: 'tiny', 'medium', 'full', 'fullplus' or another's
            name; default: the only one there is.
        domains: which domains to offer; default: all of `OFFICIAL` that have a folder.
        views: 'all' refuses data of which a view lacks a domain, 'complete' leaves it out.
        max_views: at most so many, evenly spaced over the split; 0 = all. A mapping gives each
            split its own number: CEN's are {train: 1000, val: 500}, AsymFusion's 8000 and 1000.

    Raises:
        InputError: an unknown domain or other option, lists, folders or files that are
            missing, a list that has a building or view twice or in two splits.
    """

    SPLITS = ('train', 'val', 'test')
    TRAIN_SPLIT, TEST_SPLIT = 'train', 'val'

    terms = (
        'Taskonomy (Zamir et al., CVPR 2018); non-commercial research and education under its '
        'licence'
    )

    def __init__(
        self,
        folder: Path,
        split: str,
        partition: str = '',
        domains: Sequence[str] = (),
        views: str = 'all',
        max_views: int | Mapping[str, int] = 0,
    ) -> None:
        limits = max_views if isinstance(max_views, Mapping) else {split: max_views}
        for option, value, known in (
            *(('split', name, self.SPLITS) for name in limits),
            ('views', views, ('all', 'complete')),
            *(('domain', name, tuple(OFFICIAL)) for name in domains),
        ):
            if value not in known:
                raise InputError(
                    f'Taskonomy has no {option} {value!r}; give one of {", ".join(known)}'
                )
        if not all(type(limit) is int and limit >= 0 for limit in limits.values()):
            raise InputError(
                f'max_views of Taskonomy must be 0 or more, a whole number, not {max_views!r}'
            )
        self.folder = Path(folder)
        self.name = f'taskonomy-{partition}-{split}' if partition else f'taskonomy-{split}'
        wanted = tuple(domains) or tuple(OFFICIAL)
        self._sample = _sample_arrangement(self.folder, wanted)
        buildings = [''] if self._sample else _buildings(self.folder, split, partition)
        self.domains = self._offered(wanted, buildings, named=bool(domains))
        self._files: dict[tuple[str, str], tuple[Path, str]] = {}
        found = [view for building in buildings for view in self._views(building, views)]
        if self._sample:
            found = _listed(self.folder, split, found)
        if not found:
            raise InputError(
                f'{self.folder} has no view with all of {", ".join(self.domains)} in the split '
                f'{split}; name fewer domains by the option domains, or {_FETCH}'
            )
        self.views = _spread(found, limits.get(split, 0))

    def __len__(self) -> int:
        return len(self.views)

    def images(self, index: int, names: Sequence[str], side: int) -> dict[str, np.ndarray]:
        """Read images of view ``index``; see `sources.ImageSource`.

        Resized bilinearly as PIL does, which averages where it shrinks; labels take the pixel at
        each centre.

        Raises:
            InputError: a domain that is not offered, a file that is absent, damaged, not square
                or not of its domain's kind.
            IndexError: no such view.
        """
        domains.require_domains(names, self.domains, f'the files of {self.folder}')
        view = self.views[index]
        return {name: _square(_read(name, self._path(name, view)), name, side) for name in names}

    def describe(self) -> dict[str, object]:
        """Return what identifies the content: views, domains, and a few of too many files."""
        text = '\n'.join(f'{building} {point} {view}' for building, point, view in self.views)
        few = self.views[:: max(1, len(self.views) // DESCRIBED_VIEWS)]
        paths = [self._path(name, view) for view in few for name in self.domains]
        return {
            'files': files.identity(paths),
            'name': self.name,
            'domains': list(self.domains),
            'views': hashlib.sha256(text.encode()).hexdigest(),
            'white': [domains.DEPTH_LOG_WHITE, domains.TEXTURE_WHITE, domains.EDGE_WHITE],
        }

    def _path(self, name: str, view: View) -> Path:
        building, point, number = view
        place, stored = self._files[building, name]
        return place / f'point_{point}_view_{number}_domain_{stored}.png'

    def _place(self, name: str, building: str) -> Path | None:
        """Return the folder of a domain of a building, if there is one."""
        arrangements = (self._sample,) if self._sample else ARRANGEMENTS
        paths = (
            self.folder / arrangement.format(domain=OFFICIAL[name], building=building)
            for arrangement in arrangements
        )
        return next((path for path in paths if path.is_dir()), None)

    def _offered(
        self, wanted: Sequence[str], buildings: Sequence[str], named: bool
    ) -> tuple[str, ...]:
        """Return the domains that all buildings have."""
        absent = {
            name: [building for building in buildings if self._place(name, building) is None]
            for name in wanted
        }
        offered = tuple(name for name in wanted if named or len(absent[name]) < len(buildings))
        for name in offered:
            if absent[name]:
                raise InputError(
                    f'{self.folder} lacks the domain {OFFICIAL[name]} of {len(absent[name])} of '
                    f'{len(buildings)} buildings, the first of them {absent[name][0] or "it"}; '
                    f'{_FETCH}, or take these buildings out of the list'
                )
        if not offered:
            raise InputError(
                f'{self.folder} has no image of the {len(buildings)} buildings of its list, such '
                f'as rgb/taskonomy/{buildings[0]}; {_FETCH}'
            )
        return offered

    def _views(self, building: str, which: str) -> list[View]:
        """Return a building's views, and remember where their files are."""
        found: dict[str, set[tuple[int, int]]] = {}
        for name in self.domains:
            place = self._place(name, building)
            assert place is not None  # `_offered` has seen it
            found[name], stored = _present(place, OFFICIAL[name])
            self._files[building, name] = place, stored
        every = set().union(*found.values())
        for name in self.domains if which == 'all' else ():
            missing = sorted(every - found[name])
            if missing:
                path = self._path(name, (building, *missing[0]))
                raise InputError(
                    f'{path} is missing, and {len(missing) - 1} more of {len(every)} views of '
                    f'{building or "the sample"} lack {OFFICIAL[name]}; {_FETCH}, or give the '
                    'option views: complete, which leaves such views out'
                )
        return [(building, *view) for view in sorted(every.intersection(*found.values()))]


def _sample_arrangement(folder: Path, wanted: Sequence[str]) -> str:
    """Return the arrangement of one building alone, or nothing where there are several."""
    for name in wanted:
        place = folder / OFFICIAL[name]
        if place.is_dir() and any(place.glob('point_*_view_*.png')):
            return '{domain}'
    return ''


def _buildings(folder: Path, split: str, partition: str) -> list[str]:
    """Return the buildings of a split, as the official list gives them.

    Raises:
        InputError: no list, several to choose from, or one without the split, or with a building
            twice or in two splits.
    """
    lists = sorted(
        path
        for place in (folder, folder / 'splits_taskonomy')
        for path in place.glob(f'train_val_test_{partition or "*"}.csv')
    )
    if not lists:
        raise InputError(
            f'{folder}/train_val_test_{partition or "tiny"}.csv is missing; it is in {_LISTS}'
        )
    partitions = {path.stem.removeprefix('train_val_test_') for path in lists}
    if len(partitions) > 1 and not partition:
        raise InputError(
            f'{folder} has several lists of buildings; give the option partition: one of '
            f'{", ".join(sorted(partitions))}'
        )
    rows = list(csv.DictReader(files.read_lines(lists[0])))
    if not rows or not {'id', split} <= set(rows[0]):
        raise InputError(
            f'{lists[0]} has no columns id, train, val, test; copy it again from {_LISTS}'
        )
    splits = [[s for s in Taskonomy.SPLITS if (row.get(s) or '').strip() == '1'] for row in rows]
    names = [(row['id'] or '').strip() for row in rows]
    if twice := files.repeated(names):
        raise InputError(f'{lists[0]} has the building {twice} twice; take one of them out')
    for name, found in zip(names, splits, strict=True):
        if len(found) > 1:
            raise InputError(
                f'{lists[0]} has the building {name} in {len(found)} splits, {", ".join(found)}; '
                'leave it in one of them, for scores are of what was not trained on'
            )
    buildings = [name for name, found in zip(names, splits, strict=True) if split in found]
    if not buildings:
        raise InputError(f'{lists[0]} has no building of the split {split}; take another list')
    return buildings


def _present(place: Path, domain: str) -> tuple[set[tuple[int, int]], str]:
    """Return which points and views a folder has of a domain, and how its files call it.

    Files of segment_semantic are called segmentsemantic in the published archives.
    """
    found: dict[str, set[tuple[int, int]]] = {domain: set()}
    for path in place.iterdir():
        match = _FILE.fullmatch(path.name)
        if match and match[3].replace('_', '') == domain.replace('_', ''):
            found.setdefault(match[3], set()).add((int(match[1]), int(match[2])))
    stored = max(found, key=lambda name: len(found[name]))
    return found[stored], stored


def _listed(folder: Path, split: str, found: Sequence[View]) -> list[View]:
    """Return the views of a sample that a split's list names, in its order.

    Raises:
        InputError: the list is missing, or a line names no view, one that is not there, one that
            was named before, or one that another split's list names too.
    """
    listing = folder / LIST_OF_VIEWS.format(split)
    if not listing.is_file():
        raise InputError(f'{listing} is missing; {_SAMPLE_LISTS}')
    known, views = set(found), []
    for line in files.read_lines(listing):
        view = _named_view(line)
        if view not in known:
            raise InputError(
                f'{listing} names {line!r}, which is no view that the folder has with all its '
                f'domains; take the line out, or {_SAMPLE_LISTS}'
            )
        views.append(view)
    if twice := files.repeated(map(_view_name, views)):
        raise InputError(f'{listing} names {twice} twice; take one of them out')
    for other in Taskonomy.SPLITS:
        path = folder / LIST_OF_VIEWS.format(other)
        if other == split or not path.is_file():
            continue
        theirs = {_named_view(line) for line in files.read_lines(path)}
        if common := [view for view in views if view in theirs]:
            raise InputError(
                f'{listing} and {path.name} both name {_view_name(common[0])} and '
                f'{len(common) - 1} more; take them out of one, for scores are of what was not '
                'trained on'
            )
    return views


def _named_view(line: str) -> View | None:
    """Return the view that a line of a sample's list names, if it names one."""
    match = _VIEW.search(line)
    return ('', int(match[1]), int(match[2])) if match else None


def _view_name(view: View) -> str:
    return f'point_{view[1]}_view_{view[2]}'


def _spread(views: list[View], count: int) -> list[View]:
    """Return `count` views evenly spaced over all, or all."""
    if not 0 < count < len(views):
        return views
    return [views[i * len(views) // count] for i in range(count)]


def _read_depth(path: Path) -> np.ndarray:
    return domains.depth_grey(layouts.read_16bit(path, f'Taskonomy stores 16; {_FETCH} again'))


def _read_texture(path: Path) -> np.ndarray:
    return _read_edge(path, domains.TEXTURE_WHITE)


def _read_edge(path: Path, white: float = domains.EDGE_WHITE) -> np.ndarray:
    stored = layouts.read_16bit(path, f'Taskonomy stores 16; {_FETCH} again')
    return domains.edge_grey(stored, white)


def _read_labels(path: Path) -> np.ndarray:
    """Read semantic labels as colours, uncertain ones black; as grey 0..17 all looked alike."""
    labels = image_files.read_plane(path)
    if int(labels.max()) >= SEMANTIC_CLASSES:
        raise InputError(
            f'{path} has the unknown label {labels.max()}; Taskonomy has 0..'
            f'{SEMANTIC_CLASSES - 1}, {_FETCH} again'
        )
    # One less wraps 0, uncertain, round to 255, which is void.
    return palette.colorize(labels.astype(np.uint8) - np.uint8(1), palette.NYU40_COLORS)


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    'depth': _read_depth,
    'texture': _read_texture,
    'edge': _read_edge,
    'labels': _read_labels,
}
"""Those of one channel; the others are colour images of 8 bits."""


def _read(name: str, path: Path) -> np.ndarray:
    """Return uint8 (N, N, 3), the image in the grey levels of the public CEN code."""
    image = _READERS.get(name, image_files.read_rgb)(path)
    if image.shape[0] != image.shape[1]:
        raise InputError(
            f'{path} is {image.shape[1]}x{image.shape[0]}, but images of Taskonomy are square; '
            f'{_FETCH} again'
        )
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def _square(image: np.ndarray, name: str, side: int) -> np.ndarray:
    """Resize uint8 (N, N, 3) to (side, side, 3)."""
    if image.shape[:2] == (side, side):
        return image
    if name == 'labels':
        return cv2.resize(image, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(
        pixels, (side, side), mode='bilinear', align_corners=False, antialias=True
    )
    return resized[0].permute(1, 2, 0).round().clamp(0, 255).byte().contiguous().numpy()
