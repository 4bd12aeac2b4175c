"""Which topics of a bag are the colour camera, its depth and its calibration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product, takewhile
from pathlib import Path

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.replay.messages import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    DISPARITY_IMAGE,
    IMAGE,
)
from rgbd_fusion_seg.replay.single_sensor import alone_advice

_IMAGE_TYPES = (IMAGE, COMPRESSED_IMAGE)
_DEPTH_TYPES = (*_IMAGE_TYPES, DISPARITY_IMAGE)
# Whole words of a topic: /iris and /labeller are names of robots.
_OTHER_IMAGES = re.compile(
    r'(?:ir|infra|infrared|masks?|masked|labels?|labell?ed|theora)\d*|(?:confidence|segmentation).*',
    re.IGNORECASE,
)
_BETWEEN_WORDS = re.compile(r'[/_]|(?<=[a-z])(?=[A-Z])')
_COLORS = frozenset(('rgb', 'color', 'colour'))
# By which drivers tell the images of one camera apart; what is left of a topic names the camera.
_KINDS_OF_IMAGE = frozenset(
    (
        *('image', 'raw', 'rect', 'color', 'colour', 'rgb', 'mono'),
        *('depth', 'stereo', 'disparity'),
        *('aligned', 'registered', 'to', 'sw', 'hw', 'compressed', 'compresseddepth'),
    )
)


@dataclass(frozen=True, slots=True)
class BagTopics:
    """Topics to read; None stands for "find it by type and name"."""

    color: str | None = None
    depth: str | None = None
    camera_info: str | None = None

    @property
    def names(self) -> tuple[str | None, str | None, str | None]:
        """All three."""
        return self.color, self.depth, self.camera_info


def find_topics(
    types: Mapping[str, str], wanted: BagTopics, bag: Path, only: str = ''
) -> BagTopics:
    """Choose the colour, depth and camera info topics of a bag, all of one camera.

    Colour and depth are chosen together: the pair whose topics share most of their namespace,
    then depth that is registered to colour, then colour that is called so.

    Args:
        types: topic -> message type (ROS 2 style).
        wanted: topics the user named; they only have to exist and have the right type.
        bag: for error messages.
        only: the sensor of `frame.SENSORS` without which the bag is of no use; empty: both.

    Returns:
        All three topics; what is not needed, and ``camera_info``, stays None where the bag has
        none.

    Raises:
        InputError: a named topic that is absent or of another type, one that is named as both
            colour and depth, or no topic that fits.
    """
    if not types:
        raise InputError(f'{bag} holds no messages; record it again')
    if wanted.color is not None and wanted.color == wanted.depth:
        raise InputError(
            f'{wanted.color} is named as colour and as depth topic; name one topic for each'
        )
    images = [topic for topic, kind in types.items() if kind in _IMAGE_TYPES]
    depths = [topic for topic, kind in types.items() if kind in _DEPTH_TYPES]
    infos = [topic for topic, kind in types.items() if kind == CAMERA_INFO]
    color, depth = _best_pair(*_candidates(types, wanted), types)
    _check_found(color, depth, (images, depths), types, bag, only)
    for topic, role, right in (
        (color, 'colour', images),
        (depth, 'depth', depths),
        (wanted.camera_info, 'camera info', infos),
    ):
        if topic is not None and topic not in right:
            what = f'is a {types[topic]}' if topic in types else 'is not in the bag'
            raise InputError(
                f'the {role} topic {topic} {what} ({bag}); {_choice(role, right, types)}'
            )
    leading = depth if color is None or only == 'depth' else color
    return BagTopics(color, depth, wanted.camera_info or _info_of(str(leading), infos))


def other_cameras(types: Mapping[str, str], used: BagTopics, only: str = '') -> list[str]:
    """Return a topic of each camera of a bag that is not the one in use.

    Args:
        types: topic -> message type (ROS 2 style).
        used: what `find_topics` returned.
        only: as of `find_topics`. Where it is empty, a camera is colour with depth of its own.

    Returns:
        The topics by which a user takes these cameras: depth topics if `only` is 'depth', else
        colour topics.
    """
    colors, depths = _candidates(types, BagTopics())
    mine, its = str(used.color), str(used.depth)
    if only == 'depth':
        colors, mine = depths, its
    others: dict[tuple[str, ...], str] = {}
    for topic in sorted(colors, key=lambda t: (_color_rank(t), _depth_rank(t), len(t), t)):
        partner = min(depths, key=partial(_distance, topic), default='')
        elsewhere = min(_distance(topic, its), _distance(mine, partner))
        if _camera(topic) != _camera(mine) and (only or _distance(topic, partner) < elsewhere):
            others.setdefault(_camera(topic), topic)
    return sorted(others.values())


def _candidates(types: Mapping[str, str], wanted: BagTopics) -> tuple[list[str], list[str]]:
    """Return the topics that may be colour and those that may be depth."""
    usable = [
        topic
        for topic, kind in types.items()
        if kind in _DEPTH_TYPES
        and not any(map(_OTHER_IMAGES.fullmatch, _BETWEEN_WORDS.split(topic)))
    ]
    shows_depth = {t for t in usable if types[t] == DISPARITY_IMAGE}
    shows_depth |= _depth_topics([t for t in usable if t not in shows_depth])
    depths = [t for t in usable if t in shows_depth and t != wanted.color]
    colors = [t for t in usable if t not in shows_depth and t != wanted.depth]
    return (
        [wanted.color] if wanted.color else colors,
        [wanted.depth] if wanted.depth else depths,
    )


def _best_pair(
    colors: Sequence[str], depths: Sequence[str], types: Mapping[str, str]
) -> tuple[str | None, str | None]:
    """Return the colour and the depth topic that fit each other best, None where there is none."""

    def rank(pair: tuple[str, str]) -> tuple[object, ...]:
        color, depth = pair
        # Compressed copies and disparity lose to raw images; names break ties, always alike.
        copies = [(types.get(t, IMAGE) != IMAGE, len(t), t) for t in pair]
        return (_distance(color, depth), _depth_rank(depth), _color_rank(color), *copies)

    color, depth = min(product(colors or [''], depths or ['']), key=rank)
    return color or None, depth or None


def _distance(topic: str, other: str) -> tuple[int, int]:
    """Sort key that puts topics of the same camera first, of nested namespaces the nearest."""
    one, two = _camera(topic), _camera(other)
    pairs = enumerate(zip(one, two, strict=False))
    shared = next((i for i, (a, b) in pairs if a != b), min(len(one), len(two)))
    # Cameras may be named behind what they publish: /robot/camera/back and /robot/depth/back.
    return -shared, len(set(one) ^ set(two))


def _camera(topic: str) -> tuple[str, ...]:
    """Return what a topic says of its camera: its names, without the words for kinds of images."""
    names = (
        '_'.join(word for word in name.split('_') if word not in _KINDS_OF_IMAGE)
        for name in topic.lower().removesuffix('/camera_info').split('/')
    )
    return tuple(name for name in names if name)


def _check_found(
    color: str | None,
    depth: str | None,
    images: tuple[Sequence[str], Sequence[str]],
    types: Mapping[str, str],
    bag: Path,
    only: str,
) -> None:
    """Raise an InputError where no topic was found for a sensor that is needed."""
    for role, topic, right, other, rest in (
        ('colour', color, images[0], depth, 'depth'),
        ('depth', depth, images[1], color, 'rgb'),
    ):
        if topic is None and only != rest:
            # Where both are needed, the topic of the other sensor is none to name.
            free = [t for t in right if only or t != other]
            advice = [_choice(role, free, types)] if free or not other else []
            advice += [alone_advice(rest)] if other and not only else []
            raise InputError(f'no topic of {bag} looks like {role} images; {"; ".join(advice)}')


def _color_rank(topic: str) -> tuple[int, ...]:
    name = topic.lower()
    # What a stereo pair computes is seen from its left camera.
    of_right = 'right' in name.split('/')
    no_color = 'rgb' not in name and 'color' not in name
    # Colour seen from the depth camera holds less than colour itself.
    return of_right, 'to_depth' in name, no_color, 'mono' in name, 'rect' not in name


def _depth_topics(images: Sequence[str]) -> set[str]:
    """Return the images that show depth, by the names behind those that all of them share.

    Of /depth_camera/image_raw and /depth_camera/depth/image_raw the first one is colour. Where
    none shows depth that way, all of their names count.
    """
    names = {t: t.lower().removesuffix('/compressed').split('/') for t in images}
    packed = {t for t in images if t.lower().endswith('/compresseddepth')}
    for topic in packed:
        names[topic].pop()
    columns = zip(*names.values(), strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    found = {t for t in images if _shows_depth(names[t][shared:])}
    return packed | (found or {t for t in images if _shows_depth(names[t])})


def _shows_depth(names: Sequence[str]) -> bool:
    """Whether the last name that tells of a sensor is depth: /depth_camera/rgb/image is colour."""
    for name in reversed(names):
        if 'depth' in name:
            return 'to_depth' not in name  # colour in the view of the depth camera
        if not _registered(name) and not _COLORS.isdisjoint(name.split('_')):
            return False
    # depthai_ros_driver's depth; the images of a stereo pair are called left and right.
    return '/stereo/image' in '/'.join(('', *names))


def _depth_rank(topic: str) -> tuple[int, ...]:
    """Depth registered to colour first: the network needs both in one view."""
    name = topic.lower()
    # Depth compressed as a colour image (".../compressed") has lost its precision.
    return (not _registered(topic), name.endswith('/compressed'), 'rect' not in name)


def _registered(topic: str) -> bool:
    name = topic.lower()
    return any(word in name for word in ('registered', 'aligned', 'to_color', 'to_rgb'))


def _info_of(image: str, infos: Sequence[str]) -> str | None:
    """Find the camera info beside an image (image_transport's rule), else a likely one."""
    parts = image.split('/')
    for depth in (1, 2):
        beside = '/'.join([*parts[:-depth], 'camera_info'])
        if beside in infos:
            return beside
    likely = [t for t in infos if _of_depth_camera(t) == _of_depth_camera(image)]
    return min(likely, key=lambda t: (_distance(image, t), *_color_rank(t), t), default=None)


def _of_depth_camera(topic: str) -> bool:
    """Whether a topic is seen from the depth camera; registered depth is from that of colour."""
    name = topic.lower()
    return 'depth' in name and _shows_depth(name.split('/')) and not _registered(topic)


def _choice(role: str, right: Sequence[str], types: Mapping[str, str]) -> str:
    if right:
        return f'name one of these as {role} topic: {", ".join(sorted(right))}'
    return f'the bag has no such messages, only {", ".join(sorted(set(types.values())))}'
