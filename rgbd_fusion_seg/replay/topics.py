"""Which topics of a bag are the colour camera, its depth and its calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.replay.messages import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE

_IMAGE_TYPES = (IMAGE, COMPRESSED_IMAGE)
_OTHER_IMAGES = ('infra', '/ir', 'confidence', 'segmentation', 'mask', 'label', 'theora')


@dataclass(frozen=True, slots=True)
class BagTopics:
    """Topics to read; None stands for "find it by type and name"."""

    color: str | None = None
    depth: str | None = None
    camera_info: str | None = None


def find_topics(types: Mapping[str, str], wanted: BagTopics, bag: Path) -> BagTopics:
    """Choose the colour, depth and camera info topics of a bag.

    Args:
        types: topic -> message type (ROS 2 style).
        wanted: topics the user named; they only have to exist and have the right type.
        bag: for error messages.

    Returns:
        All three topics; ``camera_info`` stays None where the bag has none.

    Raises:
        InputError: a named topic that is absent or of another type, or no topic that fits.
    """
    images = [topic for topic, kind in types.items() if kind in _IMAGE_TYPES]
    infos = [topic for topic, kind in types.items() if kind == CAMERA_INFO]
    usable = [t for t in images if not any(word in t.lower() for word in _OTHER_IMAGES)]
    depths = [topic for topic in usable if 'depth' in topic.lower()]
    colors = [topic for topic in usable if topic not in depths]
    color = wanted.color or _best('colour', colors, _color_rank, types, bag)
    depth = wanted.depth or _best('depth', depths, _depth_rank, types, bag)
    for topic, role, right in (
        (color, 'colour', images),
        (depth, 'depth', images),
        (wanted.camera_info, 'camera info', infos),
    ):
        if topic is not None and topic not in right:
            what = f'is a {types[topic]}' if topic in types else 'is not in the bag'
            raise InputError(
                f'the {role} topic {topic} {what} ({bag}); {_choice(role, right, types)}'
            )
    return BagTopics(color, depth, wanted.camera_info or _info_of(color, infos))


def _best(
    role: str,
    candidates: Sequence[str],
    rank: Callable[[str], tuple[int, ...]],
    types: Mapping[str, str],
    bag: Path,
) -> str:
    if not candidates:
        images = [topic for topic, kind in types.items() if kind in _IMAGE_TYPES]
        raise InputError(
            f'no topic of {bag} looks like {role} images; {_choice(role, images, types)}'
        )
    # Compressed copies lose to raw ones; the name breaks ties, so that the choice is stable.
    return min(candidates, key=lambda t: (rank(t), types[t] == COMPRESSED_IMAGE, len(t), t))


def _color_rank(topic: str) -> tuple[int, ...]:
    name = topic.lower()
    return ('rgb' not in name and 'color' not in name, 'mono' in name, 'rect' not in name)


def _depth_rank(topic: str) -> tuple[int, ...]:
    """Depth registered to colour first: the network needs both in one view."""
    name = topic.lower()
    # Depth compressed as a colour image (".../compressed") has lost its precision.
    return (not _registered(topic), name.endswith('/compressed'), 'rect' not in name)


def _registered(topic: str) -> bool:
    name = topic.lower()
    return any(word in name for word in ('registered', 'aligned', 'to_color', 'to_rgb'))


def _info_of(color: str, infos: Sequence[str]) -> str | None:
    """Find the camera info beside the colour image (image_transport's rule), else a likely one."""
    parts = color.split('/')
    for depth in (1, 2):
        beside = '/'.join([*parts[:-depth], 'camera_info'])
        if beside in infos:
            return beside
    likely = [topic for topic in infos if 'depth' not in topic.lower() or _registered(topic)]
    return min(likely, key=lambda topic: (*_color_rank(topic), topic), default=None)


def _choice(role: str, right: Sequence[str], types: Mapping[str, str]) -> str:
    if right:
        return f'name one of these as {role} topic: {", ".join(sorted(right))}'
    return f'the bag has no such messages, only {", ".join(sorted(set(types.values()))) or "none"}'
