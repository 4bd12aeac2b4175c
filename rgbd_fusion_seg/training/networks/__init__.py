"""The networks by name. A file holds a family: layers, then networks."""

from __future__ import annotations

from typing import Any

from rgbd_fusion_seg.training.networks.base import SegmentationNetwork
from rgbd_fusion_seg.training.networks.erfnet import ErfNetEncoder
from rgbd_fusion_seg.training.networks.rfbnet import RfbNetErfNet
from rgbd_fusion_seg.training.networks.ssma import SsmaErfNet

NETWORKS: dict[str, type[SegmentationNetwork]] = {
    'erfnet_encoder': ErfNetEncoder,
    'ssma_erfnet': SsmaErfNet,
    'rfbnet_erfnet': RfbNetErfNet,
}


def build_network(name: str, num_classes: int, **options: Any) -> SegmentationNetwork:
    """Build a network with random weights.

    Args:
        name: a key of `NETWORKS`.
        num_classes: number of classes.
        options: the network's own options, see its class.

    Raises:
        ValueError: an unknown name (the message lists the valid ones) or option value.
        TypeError: an option the network does not have.
    """
    if name not in NETWORKS:
        raise ValueError(f'unknown network {name!r}; choose one of {", ".join(sorted(NETWORKS))}')
    return NETWORKS[name](num_classes, **options)
