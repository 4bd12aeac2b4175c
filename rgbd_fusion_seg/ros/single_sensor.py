"""What the node says while one of its two cameras is silent."""

from __future__ import annotations

from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.frame import SENSORS
from rgbd_fusion_seg.ros.diagnostics import WARN, Problem
from rgbd_fusion_seg.ros.synchroniser import Synchroniser

NAMES = {'rgb': 'colour', 'depth': 'depth'}
"""What people call the sensors; streams of the synchroniser have the order of `SENSORS`."""


def rests_on(bundle: ModelBundle, sensor: str) -> str:
    """Tell what labels rest on while one sensor alone goes on, and how good that is.

    Args:
        bundle: what runs while both go on.
        sensor: the one of `SENSORS` that goes on.
    """
    if bundle.alone(sensor) is None:
        return f'nothing: {bundle.name} cannot answer from {NAMES[sensor]} alone'
    measured = 'mIoU not measured'
    for name, iou in [*bundle.mean_iou_alone(sensor).items()][:1]:  # on data as in its training
        both = None if bundle.sole_sensor else bundle.mean_iou.get(name)
        instead = f' instead of {both:.1%}' if both is not None else ''
        measured = f'mIoU {iou:.1%}{instead} on {name}'
    return f'{NAMES[sensor]} alone, {measured}'


def loss_sentence(bundle: ModelBundle, sync: Synchroniser) -> str:
    """Tell which topic is lost while the other goes on, since when, and what labels rest on."""
    if sync.left is None:
        return ''
    lost = 1 - sync.left
    return (
        f'no image arrives on {sync.streams[lost].topic} ({sync.silence(lost)}), so labels rest '
        f'on {rests_on(bundle, SENSORS[sync.left])}; check that the camera runs and that topic '
        'names and QoS match (ros2 topic info -v)'
    )


def loss_values(bundle: ModelBundle, sync: Synchroniser) -> dict[str, str]:
    """Return the same for the values of /diagnostics."""
    if sync.left is None:
        return {}
    lost = 1 - sync.left
    return {
        'lost sensor': f'{NAMES[SENSORS[lost]]}, {sync.silence(lost)}',
        'labels rest on': rests_on(bundle, SENSORS[sync.left]),
    }


def loss_problems(bundle: ModelBundle, sync: Synchroniser) -> list[Problem]:
    """Return the loss as a problem where labels go on, for it is in the log already.

    It is none to a network that does not see the lost sensor.
    """
    if not sync.goes_on_alone or bundle.sole_sensor:
        return []
    return [Problem(loss_sentence(bundle, sync), WARN, sticky=True)]
