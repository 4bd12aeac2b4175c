from __future__ import annotations

import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch')
onnx = pytest.importorskip('onnx')

from rgbd_fusion_seg.bundle import load_bundle  # noqa: E402
from rgbd_fusion_seg.errors import BundleError  # noqa: E402
from rgbd_fusion_seg.segmenter import Segmenter  # noqa: E402
from rgbd_fusion_seg.training import export  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import Checkpoint  # noqa: E402
from rgbd_fusion_seg.training.datasets.nyudv2 import NyuDepthV2  # noqa: E402
from rgbd_fusion_seg.training.networks import build_network  # noqa: E402

STATISTICS = {
    'rgb': ([120.0, 110.0, 100.0], [70.0] * 3),
    'hha': ([130.0, 90.0, 110.0], [60.0] * 3),
}
CARD = {
    'summary': 'a network for the test',
    'depth': {'range_m': [0.5, 9.0]},
    'training': {'data': [], 'steps': 0},
}


def trained_looking_network() -> torch.nn.Module:
    """Random weights with batch norms that have seen data, so that folding can go wrong."""
    torch.manual_seed(2)
    network = build_network('rfbnet_erfnet', 40)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    torch.nn.init.normal_(network.head.weight, std=1.0)
    return network.eval()


@pytest.fixture(scope='module')
def checkpoint() -> Checkpoint:
    info = {
        'network': 'rfbnet_erfnet', 'options': {}, 'statistics': STATISTICS, 'width': 128,
        'height': 96, 'step': 0, 'minutes': 0.0,
    }  # fmt: skip
    return Checkpoint(trained_looking_network().state_dict(), info)


@pytest.fixture(scope='module')
def bundle_folder(checkpoint, nyu_pack, tmp_path_factory):
    folder = tmp_path_factory.mktemp('models') / 'exported'
    return export.export_bundle(checkpoint, folder, CARD, NyuDepthV2(nyu_pack, 'test'), 2)


def test_folded_batch_norms_leave_the_network_as_it_was():
    network, reference = trained_looking_network(), trained_looking_network()
    x = {'rgb': torch.randn(1, 3, 64, 64), 'hha': torch.randn(1, 3, 32, 32)}
    folded = export.fold_batch_norms(network)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), reference(x), rtol=1e-3, atol=1e-3)
    norms = [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 6  # only those behind a concatenation, three in each encoder


def test_the_bundle_holds_the_network(bundle_folder, nyu_pack):
    bundle = load_bundle(bundle_folder)
    assert (bundle.rgb.height, bundle.rgb.width) == (96, 128)
    assert (bundle.hha.height, bundle.hha.width) == (48, 64)
    assert bundle.num_classes == 40
    assert bundle.stride == 8
    np.testing.assert_allclose(bundle.rgb.mean, STATISTICS['rgb'][0])
    assert bundle.metrics['agreement']['labels_equal_to_torch'] >= 0.999
    item = next(iter(NyuDepthV2(nyu_pack, 'test')))
    with Segmenter(bundle) as segmenter:
        assert segmenter.segment(item.frame).labels.shape == (480, 640)


def test_weights_are_stored_in_half_the_bytes(bundle_folder, checkpoint):
    size = (bundle_folder / 'model.onnx').stat().st_size
    unused = ('rgb_head', 'hha_head', 'num_batches', 'running', 'bn')
    floats = sum(
        v.numel() for k, v in checkpoint.weights.items() if not any(u in k for u in unused)
    )
    assert size < 2.5 * floats
    model = onnx.load(bundle_folder / 'model.onnx')
    kinds = {t.data_type for t in model.graph.initializer if np.prod(t.dims) > 64}
    assert onnx.TensorProto.FLOAT not in kinds


def test_a_graph_that_says_something_else_is_refused(checkpoint, nyu_pack, tmp_path, monkeypatch):
    real = export.store_as_half

    def spoil(model):
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if tuple(values.shape) == (40, 128, 1, 1):
                spoilt = onnx.numpy_helper.from_array(np.ascontiguousarray(values[::-1]))
                spoilt.name = tensor.name
                tensor.CopyFrom(spoilt)
        real(model)

    monkeypatch.setattr(export, 'store_as_half', spoil)
    with pytest.raises(BundleError, match='agrees'):
        export.export_bundle(
            checkpoint, tmp_path / 'spoilt', CARD, NyuDepthV2(nyu_pack, 'test'), 1
        )
    assert not (tmp_path / 'spoilt').exists()


def test_weights_too_large_for_half_are_refused():
    values = np.full((8, 16), 1e6, np.float32)
    graph = onnx.helper.make_graph([], 'g', [], [], [onnx.numpy_helper.from_array(values, 'huge')])
    with pytest.raises(BundleError, match='huge'):
        export.store_as_half(onnx.helper.make_model(graph))


def test_the_card_is_plain_yaml_a_person_can_read(bundle_folder):
    card = yaml.safe_load((bundle_folder / 'model.yaml').read_text())
    assert card['network']['parameters'] > 4_000_000
    assert card['classes'][0]['name'] == 'wall'
    assert card['weights']['stored_as'] == 'float16'
