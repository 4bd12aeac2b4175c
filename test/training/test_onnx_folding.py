"""The graph's forms for runtimes: the same numbers as torch's, and no detours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='needs torch (pip install .[train])')

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from rgbd_fusion_seg.training.networks import build_network  # noqa: E402
from rgbd_fusion_seg.training.networks.erfnet import Downsampler  # noqa: E402
from rgbd_fusion_seg.training.onnx_folding import fold  # noqa: E402
from rgbd_fusion_seg.training.onnx_graph import GraphOptions, build_graph  # noqa: E402


class Pooled(nn.Module):
    """Average pooling that rounds up, as between RFBNet's streams."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2, ceil_mode=True)


class Gated(nn.Module):
    """A gate of one channel over many; ``shared`` returns the gate as well."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.gate, self.features, self.shared = nn.Conv2d(4, 1, 1), nn.Conv2d(4, 6, 3), shared

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x[..., 1:-1, 1:-1]))
        gated = gate * self.features(x)
        return torch.cat([gated, gate], 1) if self.shared else gated


def exported(module: nn.Module, x: Tensor, **options) -> onnx.ModelProto:
    program = torch.onnx.export(
        module.eval(), (x,), dynamo=True, opset_version=18, verbose=False, **options
    )
    fold(program.model)
    model = program.model_proto
    onnx.checker.check_model(model)
    return model


def settled(module: nn.Module) -> nn.Module:
    """With norms that do something."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight.data, norm.running_var):
                tensor.uniform_(0.5, 2, generator=generator)
            for tensor in (norm.bias.data, norm.running_mean):
                tensor.normal_(generator=generator)
    return module.eval()


def assert_same(model: onnx.ModelProto, module: nn.Module, x: Tensor) -> None:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, module(x).numpy(), rtol=1e-5, atol=1e-5)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(('height', 'width', 'rounds'), [(8, 6, 0), (7, 6, 1), (8, 5, 1)])
def test_only_what_does_not_divide_is_rounded_up(height: int, width: int, rounds: int):
    x = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    model = exported(Pooled(), x)
    pool = next(node for node in model.graph.node if node.op_type == 'AveragePool')
    mode = {a.name: a.i for a in pool.attribute}.get('ceil_mode', 0)
    assert mode == rounds
    assert_same(model, Pooled(), x)


def test_open_sizes_are_rounded_up_as_before():
    """A side may be odd there."""
    side = torch.export.Dim('side', min=2)
    model = exported(Pooled(), torch.zeros(1, 3, 8, 6), dynamic_shapes=({2: side},))
    for height in (8, 7):
        assert_same(model, Pooled(), torch.rand(1, 3, height, 6))


def test_gates_have_the_channels_of_what_they_weigh():
    torch.manual_seed(0)
    module, x = Gated().eval(), torch.randn(1, 4, 8, 8)
    model = exported(module, x)
    shapes = sorted(t.dims[0] for t in model.graph.initializer if len(t.dims) == 4)
    assert shapes == [6, 6]
    assert_same(model, module, x)


def test_a_gate_that_others_read_stays():
    torch.manual_seed(0)
    module, x = Gated(shared=True).eval(), torch.randn(1, 4, 8, 8)
    model = exported(module, x)
    shapes = sorted(t.dims[0] for t in model.graph.initializer if len(t.dims) == 4)
    assert shapes == [1, 6]
    assert_same(model, module, x)


class Reordered(nn.Module):
    """Convolutions with shared filters, behind some order of the channels and as they come."""

    def __init__(self, order: list[int], shown: bool = False) -> None:
        super().__init__()
        self.conv, self.order, self.shown = nn.Conv2d(len(order), 5, 3), order, shown

    def forward(self, x: Tensor) -> Tensor:
        y = x.index_select(1, torch.tensor(self.order))
        found = self.conv(y) * self.conv(x[:, : y.shape[1]])
        return torch.cat([found, y[..., 1:-1, 1:-1]], 1) if self.shown else found


@pytest.mark.parametrize(
    ('order', 'shown', 'gathers'),
    [([2, 0, 3, 1], False, 0), ([2, 0, 3, 1], True, 1), ([2, 0, 0, 1], False, 1), ([3, 1], 0, 1)],
    ids=['all', 'read by others', 'one twice', 'some'],
)
def test_filters_are_reordered_in_place_of_what_they_read(order, shown, gathers):
    torch.manual_seed(0)
    module, x = Reordered(order, shown), torch.randn(1, 4, 8, 8)
    model = exported(module, x)
    assert operators(model).count('Gather') == gathers
    assert_same(model, module, x)


@pytest.mark.parametrize(('pooled', 'joined'), [(3, 0), (16, 1)])
def test_few_channels_join_by_a_sum(pooled: int, joined: int):
    torch.manual_seed(0)
    module, x = settled(Downsampler(pooled, 48)), torch.randn(1, pooled, 8, 12)
    model = exported(module, x)
    assert operators(model).count('Concat') == joined
    assert operators(model).count('BatchNormalization') == joined
    assert_same(model, module, x)


def test_features_stay_in_blocks_from_end_to_end(tmp_path: Path):
    """ONNX Runtime's own optimised graph, where its convolutions are blocked at all."""
    torch.manual_seed(0)
    network = settled(build_network('rfbnet_erfnet', 5))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / 'optimised.onnx')
    options.log_severity_level = 3
    model = build_graph(network, 64, 96, GraphOptions(storage='fp32'))
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    found = operators(onnx.load(tmp_path / 'optimised.onnx'))
    assert found.count('Conv') > 150
    assert found.count('ReorderInput') + found.count('ReorderOutput') <= 8
