from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from goldens import fill  # noqa: E402

from rgbd_fusion_seg.training.networks.erfnet import Encoder, ErfNetEncoder  # noqa: E402


@pytest.fixture
def golden(goldens_dir):
    return np.load(goldens_dir / 'erfnet.npz')


def golden_network(golden) -> ErfNetEncoder:
    network = ErfNetEncoder(20)
    shapes = json.loads(str(golden['state_keys']))
    names = {'head.': 'encoder.output_conv.', 'encoder.': 'encoder.'}
    weights = {}
    for name, value in network.state_dict().items():
        prefix = 'head.' if name.startswith('head.') else 'encoder.'
        theirs = names[prefix] + name[len(prefix) :]
        assert tuple(shapes[theirs]) == tuple(value.shape), theirs
        weights[name] = torch.from_numpy(fill(theirs, tuple(value.shape)))
    network.load_state_dict(weights)
    return network.eval()


def test_features_and_logits_are_those_of_the_public_code(golden):
    network = golden_network(golden)
    x = torch.from_numpy(golden['x'])
    with torch.no_grad():
        features = network.encoder(x).numpy()
        logits = network({'rgb': x}).numpy()
    for ours, theirs in ((features, golden['enc_feat']), (logits, golden['enc_only_logits'])):
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_every_public_layer_matches(golden):
    network = golden_network(golden)
    seen = {}
    for i, layer in enumerate(network.encoder.layers):
        layer.register_forward_hook(lambda _m, _i, out, i=i: seen.__setitem__(i, out))
    with torch.no_grad():
        network({'rgb': torch.from_numpy(golden['x'])})
    for i in (0, 1, 5, 6, 7, 14):
        theirs = golden[f'enc_layer{i}']
        ours = seen[i][:, : theirs.shape[1]].numpy()
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max(), f'layer {i}'


def test_encoder_has_the_papers_number_of_parameters():
    assert sum(p.numel() for p in Encoder().parameters()) == 1_874_044


def test_an_unknown_modality_is_refused():
    with pytest.raises(ValueError, match='modality'):
        ErfNetEncoder(20, modality='lidar')
