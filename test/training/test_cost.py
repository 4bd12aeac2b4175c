from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.training.cost import empty_network, gflops  # noqa: E402
from rgbd_fusion_seg.training.networks.base import SegmentationNetwork  # noqa: E402


def test_operations_of_a_network_of_two_convolutions_counted_by_hand():
    class Two(SegmentationNetwork):
        modalities = ('rgb',)

        def __init__(self):
            super().__init__()
            self.a = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.b = torch.nn.Conv2d(8, 5, 1)

        def forward(self, inputs):
            return self.b(self.a(inputs['rgb']))

    expected = 2 * (16 * 12) * (3 * 9 * 8 + 8 * 5)
    assert gflops(Two(), 32, 24) == pytest.approx(expected / 1e9)


def test_a_network_four_times_as_large_an_input_costs_four_times_as_much():
    network = empty_network('rfbnet_erfnet', 40)
    assert next(network.parameters()).device.type == 'meta'
    assert gflops(network, 640, 480) == pytest.approx(4 * gflops(network, 320, 240), rel=1e-6)
    # Depth in either form costs the same.
    hha, metres = (empty_network('erfnet', 40, modality=m) for m in ('hha', 'depth'))
    assert gflops(hha, 320, 240) == gflops(metres, 320, 240)
    # The figure that two-stream RFBNets on ERFNet encoders are known to cost, within a few %.
    assert gflops(network, 320, 240) == pytest.approx(9.4, rel=0.1)
