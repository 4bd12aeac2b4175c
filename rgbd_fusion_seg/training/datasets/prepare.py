"""The data of a run: prepared frames, and a check of every file before training starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rgbd_fusion_seg.depth import valid_mask
from rgbd_fusion_seg.errors import InputError, RgbdFusionSegError
from rgbd_fusion_seg.plausibility import PLAUSIBLE_MEDIAN_M, camera_fault
from rgbd_fusion_seg.progress import progress_bar
from rgbd_fusion_seg.training.config import DataConfig, NetworkConfig
from rgbd_fusion_seg.training.datasets import open_dataset
from rgbd_fusion_seg.training.datasets.base import ClassSet, FrameSource
from rgbd_fusion_seg.training.datasets.cache import CachedFrames, cached_frames, read_frame
from rgbd_fusion_seg.training.datasets.layouts import IncompleteError
from rgbd_fusion_seg.training.datasets.nyudv2 import NYU40
from rgbd_fusion_seg.training.datasets.own_folder import OwnFolder
from rgbd_fusion_seg.training.datasets.prepared_files import map_in_threads
from rgbd_fusion_seg.training.datasets.stereo_depth import StereoDepth
from rgbd_fusion_seg.training.datasets.synthetic_rooms import HELD_OUT_SEED, SyntheticRooms
from rgbd_fusion_seg.training.initialisation import bare_network
from rgbd_fusion_seg.training.networks.base import SegmentationNetwork
from rgbd_fusion_seg.training.run_checks import check_sides

NEAREST_MEDIAN_M = 0.2
"""A frame whose median depth is less is depth in another unit."""
FARTHEST_MEDIAN_M = {'indoors': PLAUSIBLE_MEDIAN_M[1], 'outdoors': 500.0}
"""So is one of which it is more."""


def prepare(data: DataConfig, network: NetworkConfig, check: bool = False) -> None:
    """Prepare the frames of a run, or check the data they are made of; prints class frequencies.

    Args:
        data: the data.
        network: that is to be trained on them at `data.width` x `data.height`; which depth it
            reads, and how large, its name and options tell.
        check: read every frame of the train and the test split and report all faults; nothing
            is prepared.

    Raises:
        InputError: data or a network that cannot be used; with `check`, after all faults are
            reported.
    """
    if not check:
        bare, size = bare_network(network), (data.width, data.height)
        check_sides(network.name, bare, size, 'data.width and data.height')
        for frames in prepare_frames(data, bare).values():
            print(f'{frames.name}: {len(frames)} frames in {data.cache}')
            print(class_table(frames.classes, frames.class_pixels))
        return
    found = check_data(data)
    for name, (classes, pixels) in found.class_pixels.items():
        print(f'{name}:')
        print(class_table(classes, pixels))
    for fault in found.faults:
        print(f'fault: {fault}')
    if found.faults:
        count = len(found.faults)
        raise InputError(f'{count} fault{"s" * (count > 1)} in the data, listed above')
    print('no faults')


def prepare_frames(config: DataConfig, network: SegmentationNetwork) -> dict[str, CachedFrames]:
    """Make or open the caches of all frames of a run.

    Args:
        config: the data.
        network: has depth at its size and, for views that zoom in, at twice that where frames
            are so wide, and in metres where it reads them.

    Returns:
        'train' and 'test'; for data of the NYU40 classes also 'synthetic' and 'synthetic_test'
        where frames of them are wanted; and where stereo depth is, and the network reads any,
        'stereo' and 'stereo_test', with the very pictures of 'train' and 'test'.

    Raises:
        InputError: data that cannot be used, such as a split without a labelled pixel, synthetic
            rooms that were asked for besides data of other classes, or too little space on the
            disk.
    """
    sources = {split: open_dataset(config.dataset, split) for split in ('train', 'test')}
    if fault := rooms_fault(config, sources['train'].classes):
        raise InputError(fault)
    if sources['train'].classes.names == NYU40.names and config.dataset.name != 'synthetic':
        sources |= _rooms(config)
    folder = Path(config.cache)
    reads_depth = bool({'hha', 'depth'} & {*network.modalities})
    sizes = _depth_sizes(network, config, sources['train'].size) if reads_depth else []
    metres = 'depth' in network.modalities
    found = {k: cached_frames(source, folder, sizes, metres) for k, source in sources.items()}
    if reads_depth:
        for name, split in _by_stereo(config).items():
            source = StereoDepth(sources[split])
            found[name] = cached_frames(source, folder, sizes, metres, found[split])
    for frames in found.values():
        if fault := label_fault(frames.name, frames.class_pixels):
            raise InputError(fault)
    return found


def _depth_sizes(
    network: SegmentationNetwork, config: DataConfig, frame_size: tuple[int, int]
) -> list[tuple[int, int]]:
    """Return the network's own size, at which a robot computes HHA, and twice that for zoom.

    Frames that are smaller than the network's input are enlarged once, as on a robot.
    """
    height, width = network.hha_size(config.height, config.width)
    return [(width * k, height * k) for k in (1, 2) if k == 1 or width * k <= frame_size[0]]


def _rooms(config: DataConfig) -> dict[str, FrameSource]:
    trained_on = config.synthetic_frames if config.synthetic_share > 0 else 0
    wanted = {
        'synthetic': (trained_on, 0),
        'synthetic_test': (config.synthetic_test_frames, HELD_OUT_SEED),
    }
    return {name: SyntheticRooms(n, seed) for name, (n, seed) in wanted.items() if n > 0}


def _by_stereo(config: DataConfig) -> dict[str, str]:
    """Return which frames are wanted by stereo, and of which split they are."""
    wanted = {
        'stereo': ('train', config.stereo_share > 0),
        'stereo_test': ('test', config.stereo_test),
    }
    return {name: split for name, (split, is_on) in wanted.items() if is_on}


def rooms_fault(config: DataConfig, classes: ClassSet) -> str:
    """Return why synthetic rooms cannot be had besides data of these classes; '' if they can.

    Numbers of frames that are the default ones were not asked for; the rooms are left out then.
    """
    if classes.names == NYU40.names:
        return ''
    defaults = DataConfig()
    for name in ('synthetic_frames', 'synthetic_test_frames'):
        if (wanted := getattr(config, name)) not in (0, getattr(defaults, name)):
            return (
                f'data.{name} is {wanted}, but synthetic rooms have the classes of NYU40, other '
                f'ones than {classes.name}; leave it out or give 0'
            )
    return ''


@dataclass
class DataCheck:
    """What a check found.

    Args:
        faults: a sentence each.
        class_pixels: name of the split -> its classes, and labelled pixels of each.
    """

    faults: list[str] = field(default_factory=list)
    class_pixels: dict[str, tuple[ClassSet, np.ndarray]] = field(default_factory=dict)


def check_data(config: DataConfig) -> DataCheck:
    """Read every frame of both splits once and collect all faults; raises none of them.

    Of a split of which files are missing the frames that are complete are read.
    """
    found = DataCheck()
    seen: dict[bytes, tuple[str, str]] = {}
    for split in ('train', 'test'):
        try:
            source = open_dataset(config.dataset, split)
        except IncompleteError as error:
            found.faults.append(str(error))
            source = error.source
            if not len(source):
                continue
        except RgbdFusionSegError as error:
            if str(error) not in found.faults:  # both splits may have it from one file
                found.faults.append(str(error))
            continue
        if not len(source):
            found.faults.append(f'{source.name} has no frames; check its split file or its folder')
        if split == 'train' and (fault := rooms_fault(config, source.classes)):
            found.faults.append(fault)
        readable = 0
        pixels = np.zeros(len(source.classes), np.int64)
        cameras: set[str] = set()  # most data sets have one camera for all frames
        for i, frame in enumerate(_read_all(source)):
            where = frame_name(source, i)
            found.faults += [f'{where}: {fault}' for fault in frame.faults]
            if frame.camera and frame.camera not in cameras:
                cameras.add(frame.camera)
                found.faults.append(
                    f'{where}: its camera has {frame.camera}; give the intrinsics of the colour '
                    'images in pixels'
                )
            readable += bool(frame.digest)
            pixels += frame.class_pixels
            other_split, other = seen.setdefault(frame.digest, (split, where))
            if frame.digest and other_split != split:
                found.faults.append(
                    f'{where} shows the same picture as {other}; take it out of one of the splits'
                )
        if readable and (fault := label_fault(source.name, pixels)):
            found.faults.append(fault)
        found.class_pixels[source.name] = source.classes, pixels
    return found


def label_fault(name: str, pixels: Sequence[int]) -> str:
    """Return what is wrong with a split whose classes have so many pixels; '' if nothing is."""
    if sum(int(n) > 0 for n in pixels) > 1:
        return ''
    if any(pixels):
        return (
            f'all labelled pixels of {name} are of one class, so nothing can be learnt from it or '
            'compared on it; check its labels, and which of their values are void'
        )
    return (
        f'no pixel of {name} has a class, so nothing can be learnt from it or scored on it; '
        'check its labels, and which of their values are void'
    )


def depth_fault(frames: CachedFrames) -> str:
    """Return why a network that reads depth learns nothing from frames; '' if it does."""
    if frames.valid_depth or any(frames.depth_range_m):
        return ''
    return (
        f'no depth image of {frames.name} has a reading, but the network reads depth; check the '
        'depth images, or train a network on rgb alone'
    )


def class_table(classes: ClassSet, pixels: Sequence[int]) -> str:
    """Return a line for each class, its share of the labelled pixels, and which never occur."""
    total = max(sum(int(n) for n in pixels), 1)
    width = max(len(name) for name in classes.names)
    lines = [
        f'  {k:3d} {name:{width}s} {100 * int(n) / total:7.3f} %'
        for k, (name, n) in enumerate(zip(classes.names, pixels, strict=True))
    ]
    absent = [name for name, n in zip(classes.names, pixels, strict=True) if not n]
    if absent:
        lines.append(f'  never: {", ".join(absent)}')
    return '\n'.join(lines)


def frame_name(source: FrameSource, index: int) -> str:
    """Return what names a frame to the user: the reader's id of it where it has ids."""
    ids = getattr(source, 'ids', None)
    return f'{source.name} frame {ids[index] if ids else index}'


@dataclass(frozen=True, eq=False)
class _CheckedFrame:
    """Faults of a frame, a digest of its colour (empty if unreadable), its label counts.

    Besides, what its camera has that no camera has, see `camera_fault`.
    """

    faults: tuple[str, ...]
    digest: bytes
    class_pixels: np.ndarray
    camera: str = ''


def _read_all(source: FrameSource) -> Iterator[_CheckedFrame]:
    frames = range(len(source))
    checks = map_in_threads(lambda i: _check_frame(source, i), frames)
    return iter(progress_bar(checks, total=len(frames), desc=f'check {source.name}', unit='frame'))


def _check_frame(source: FrameSource, index: int) -> _CheckedFrame:
    num_classes = len(source.classes)
    try:
        item = read_frame(source, index)
    except RgbdFusionSegError as error:
        return _CheckedFrame((str(error),), b'', np.zeros(num_classes, np.int64))
    faults = []
    readings = item.frame.depth[valid_mask(item.frame.depth)]
    outdoors = getattr(source, 'outdoors', False)
    farthest = FARTHEST_MEDIAN_M['outdoors' if outdoors else 'indoors']
    if not readings.size:
        faults.append(
            'its depth image has no reading; take it out of the split, unless the network reads '
            'rgb alone'
        )
    elif not NEAREST_MEDIAN_M <= (median := float(np.median(readings))) <= farthest:
        street = isinstance(source, OwnFolder) and not outdoors and median > farthest
        faults.append(
            f'its median depth is {median:g} m; the unit of its depth images is another one, '
            'so set the option of the data set that tells it'
            + (', or give outdoors: true if it shows no room' if street else '')
        )
    digest = hashlib.blake2b(item.frame.rgb.tobytes(), digest_size=16).digest()
    counts = np.bincount(item.labels.ravel(), minlength=256)[:num_classes]
    return _CheckedFrame(tuple(faults), digest, counts, camera_fault(item.frame.intrinsics))
