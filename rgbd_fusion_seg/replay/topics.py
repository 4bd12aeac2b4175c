"""Which topics of a bag are the colour camera, its depth and its calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.replay.messages import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE
from rgbd_fusion_seg.replay.single_sensor import alone_advice

_IMAGE_TYPES = (IMAGE, COMPRESSED_IMAGE)
_OTHER_IMAGES = ('infra', '/ir', 'confidence', 'segmentation', 'mask', 'label', 'theora')


@dataclass(frozen=True, slots=True)
class BagTopics:
    """Topics to read; None stands for "find it by type and name"."""

    color: str | None = None
    depth: str | None = None
    camera_info: str | None = None


def find_topics(
    types: Mapping[str, str], wanted: BagTopics, bag: Path, only: str = ''
) -> BagTopics:
    """Choose the colour, depth and camera info topics of a bag.

    Args:
        types: topic -> message type (ROS 2 style).
        wanted: topics the user named; they only have to exist and have the right type.
        bag: for error messages.
        only: the sensor of `frame.SENSORS` without which the bag is of no use; empty: both.

    Returns:
        All three topics; what is not needed, and ``camera_info``, stays None where the bag has
        none.

    Raises:
        InputError: a named topic that is absent or of another type, or no topic that fits.
    """
    if not types:
        raise InputError(f'{bag} holds no messages; record it again')
    images = [topic for topic, kind in types.items() if kind in _IMAGE_TYPES]
    infos = [topic for topic, kind in types.items() if kind == CAMERA_INFO]
    usable = [t for t in images if not any(word in t.lower() for word in _OTHER_IMAGES)]
    depths = [t for t in usable if _shows_depth(t) and t != wanted.color]
    colors = [t for t in usable if t not in depths and t != wanted.depth]
    color = wanted.color or _best(colors, _color_rank, types)
    depth = wanted.depth or _best(depths, _depth_rank, types)
    _check_found(color, depth, images, types, bag, only)
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
    leading = depth if color is None or only == 'depth' else color
    return BagTopics(color, depth, wanted.camera_info or _info_of(str(leading), infos))


def _best(
    candidates: Sequence[str], rank: Callable[[str], tuple[int, ...]], types: Mapping[str, str]
) -> str | None:
    # Compressed copies lose to raw ones; the name breaks ties, so that the choice is stable.
    return min(
        candidates,
        key=lambda t: (rank(t), types[t] == COMPRESSED_IMAGE, len(t), t),
        default=None,
    )


def _check_found(
    color: str | None,
    depth: str | None,
    images: Sequence[str],
    types: Mapping[str, str],
    bag: Path,
    only: str,
) -> None:
    """Raise an InputError where no topic was found for a sensor that is needed."""
    for role, topic, other, rest in (
        ('colour', color, depth, 'depth'),
        ('depth', depth, color, 'rgb'),
    ):
        if topic is None and only != rest:
            # Where both are needed, the topic of the other sensor is none to name.
            free = [t for t in images if only or t != other]
            advice = [_choice(role, free, types)] if free or not other else []
            advice += [alone_advice(rest)] if other and not only else []
            raise InputError(f'no topic of {bag} looks like {role} images; {"; ".join(advice)}')


def _color_rank(topic: str) -> tuple[int, ...]:
    name = topic.lower()
    return ('rgb' not in name and 'color' not in name, 'mono' in name, 'rect' not in name)


def _shows_depth(topic: str) -> bool:
    name = topic.lower()
    # depthai_ros_driver's depth; the images of a stereo pair are called left and right.
    return 'depth' in name or '/stereo/image' in name


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
    # Registered depth is a view of the colour camera.
    of_depth = 'depth' in image.lower() and not _registered(image)
    likely = [t for t in infos if of_depth == ('depth' in t.lower() and not _registered(t))]
    return min(likely, key=lambda topic: (*_color_rank(topic), topic), default=None)


def _choice(role: str, right: Sequence[str], types: Mapping[str, str]) -> str:
    if right:
        return f'name one of these as {role} topic: {", ".join(sorted(right))}'
    return f'the bag has no such messages, only {", ".join(sorted(set(types.values())))}'
