"""What of a network and its views cannot be trained is told before the work."""

from __future__ import annotations

from torch import nn

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.config import TrainConfig
from rgbd_fusion_seg.training.optimiser import parameter_groups


def check_frozen(config: TrainConfig) -> None:
    """Raise InputError where norms or encoders would keep what they do not have."""
    network = config.network
    whole = network.init_from or (network.init_rgb and network.init_hha)
    if network.options.get('freeze_experts') and not whole:
        raise InputError(
            'freeze_experts keeps the weights of both encoders, which are random here; give '
            'network.init_rgb and network.init_hha, or leave freeze_experts out'
        )
    if network.options.get('freeze_norms') and not (network.init_from or network.init_backbone):
        raise InputError(
            'freeze_norms keeps the statistics of norms, and a network from scratch has none; '
            'give network.init_backbone or network.init_from, or leave freeze_norms out'
        )


def check_sides(name: str, network: nn.Module, size: tuple[int, int], settings: str) -> None:
    """Raise InputError unless a network takes images of a size.

    Args:
        name: of the network.
        network: what is asked for its multiple.
        size: width and height.
        settings: what sets them, for the message.
    """
    multiple = network.size_multiple
    if any(side < multiple or side % multiple for side in size):
        fits = [max(1, round(side / multiple)) * multiple for side in size]
        raise InputError(
            f'{name} needs {settings} to be multiples of {multiple}, not {size[0]}x{size[1]}; '
            f'{fits[0]}x{fits[1]} would do'
        )


def check_network(network: nn.Module, config: TrainConfig) -> None:
    """Raise InputError unless a network takes the run's views and has what its groups name."""
    check_size(network, config)
    parameter_groups(network, config.optimiser)


def check_size(network: nn.Module, config: TrainConfig) -> None:
    """Raise InputError unless network and loss take views of the size that is set."""
    size = config.data.width, config.data.height
    check_sides(config.network.name, network, size, 'data.width and data.height')
    if config.loss.stride > min(size):
        raise InputError(
            f'loss.stride {config.loss.stride} leaves nothing of views of {size[0]}x{size[1]}; '
            f'give {min(size)} or less, 2 is usual'
        )
