"""DeepLabv3+'s head against itself written out."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch')

from plain_layers import conv_norm, enlarged, image, randomised, separable, with_bias  # noqa: E402

from rgbd_fusion_seg.training.networks.branches import BranchLayers  # noqa: E402
from rgbd_fusion_seg.training.networks.deeplabv3plus import DeepLabV3Plus  # noqa: E402


# One size reaches the dilated convolutions' outer columns, one does not.
@pytest.mark.parametrize('size', [(20, 21), (5, 3)])
def test_the_head_is_what_is_written_out(size):
    head = randomised(DeepLabV3Plus(BranchLayers(1), (12, 10, 16), 5, width=8))
    weights = head.state_dict()
    height, width = 4 * size[0], 4 * size[1]
    features = [
        [image(2, 12, height, width)],
        [image(2, 10, *size, seed=2)],
        [image(2, 16, *size, seed=3)],
    ]
    x = features[-1][0]
    mean = conv_norm(x.mean((2, 3), keepdim=True), weights, 'pyramid.pooling')
    parts = [mean * torch.ones_like(x[:, :1]), conv_norm(x, weights, 'pyramid.point')]
    for i, rate in enumerate((6, 12, 18)):
        name = f'pyramid.dilated.{i}'
        parts.append(separable(x, weights, name, dilation=rate, eps=1e-5, relu=True))
    x = conv_norm(torch.cat(parts, 1), weights, 'pyramid.project')
    low = conv_norm(features[0][0], weights, 'low_level')
    x = torch.cat([enlarged(x, height, width), low], 1)
    for i in range(2):
        x = separable(x, weights, f'decoder.{i}', eps=1e-5, relu=True)
    torch.testing.assert_close(head(features)[0], with_bias(x, weights, 'classifier'))


def test_dropout_is_drawn_for_each_branch_by_itself():
    torch.manual_seed(0)
    head = DeepLabV3Plus(BranchLayers(2), (8, 16), 3, width=8, dropout=0.5)
    randomised(head)
    head.dropout.train()
    features = [[image(1, 8, 8, 8)] * 2, [image(1, 16, 2, 2, seed=2)] * 2]
    first, second = head(features)
    assert not torch.allclose(first, second)
    head.eval()
    torch.testing.assert_close(*head(features))
