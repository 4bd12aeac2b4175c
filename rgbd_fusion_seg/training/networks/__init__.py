"""The networks by name. A file holds a family: layers, then networks."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from rgbd_fusion_seg.training.networks.adapnetpp import AdapNetPp
from rgbd_fusion_seg.training.networks.asymfusion import AsymFusion
from rgbd_fusion_seg.training.networks.base import SegmentationNetwork
from rgbd_fusion_seg.training.networks.cen import ChannelExchangingNetwork
from rgbd_fusion_seg.training.networks.erfnet import ErfNet, ErfNetEncoder
from rgbd_fusion_seg.training.networks.multimodal import MultimodalNetwork
from rgbd_fusion_seg.training.networks.rfbnet import RfbNetErfNet
from rgbd_fusion_seg.training.networks.rfbnet_adapnetpp import RfbNetAdapNetPp
from rgbd_fusion_seg.training.networks.ssma import SsmaErfNet
from rgbd_fusion_seg.training.networks.ssma_adapnetpp import SsmaAdapNetPp
from rgbd_fusion_seg.training.networks.stage_fusion import StageFusionNetwork

NETWORKS: dict[str, type[SegmentationNetwork]] = {
    'erfnet_encoder': ErfNetEncoder,
    'erfnet': ErfNet,
    'ssma_erfnet': SsmaErfNet,
    'rfbnet_erfnet': RfbNetErfNet,
    'adapnetpp': AdapNetPp,
    'ssma_adapnetpp': SsmaAdapNetPp,
    'rfbnet_adapnetpp': RfbNetAdapNetPp,
    'multimodal': MultimodalNetwork,
    'cen': ChannelExchangingNetwork,
    'asymfusion': AsymFusion,
    'stage_fusion': StageFusionNetwork,
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


class ParameterCount(NamedTuple):
    """Size of a network: its parameters, and these with the statistics of its batch norms."""

    trainable: int
    with_buffers: int


def parameter_count(network: nn.Module) -> ParameterCount:
    """Count the numbers a network is made of.

    Papers differ: ERFNet's 2.07 M are the parameters alone, AdapNet++'s 30.20 M include the
    running means and variances. Counters of batches are not counted.
    """
    trainable = sum(p.numel() for p in network.parameters())
    buffers = sum(b.numel() for b in network.buffers() if b.is_floating_point())
    return ParameterCount(trainable, trainable + buffers)
