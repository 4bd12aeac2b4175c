from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from goldens import fill  # noqa: E402

from rgbd_fusion_seg.training.networks import parameter_count  # noqa: E402
from rgbd_fusion_seg.training.networks.erfnet import (  # noqa: E402
    Encoder,
    ErfNet,
    ErfNetEncoder,
)


@pytest.fixture
def golden(goldens_dir):
    return np.load(goldens_dir / 'erfnet.npz')


def golden_network(golden, network: ErfNetEncoder) -> ErfNetEncoder:
    """Fill a network as the public one was filled, by the public names."""
    shapes = json.loads(str(golden['state_keys']))
    weights = {}
    for name, value in network.state_dict().items():
        theirs = name.replace('head.', 'encoder.output_conv.')
        assert tuple(shapes[theirs]) == tuple(value.shape), theirs
        weights[name] = torch.from_numpy(fill(theirs, tuple(value.shape)))
    network.load_state_dict(weights)
    return network.eval()


def checksum(x: np.ndarray) -> np.ndarray:
    flat = x.astype(np.float64).ravel()
    return np.array(
        [flat.sum(), np.abs(flat).sum(), (flat * np.sin(0.01 * np.arange(flat.size))).sum()]
    )


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_features_and_logits_are_those_of_the_public_code(golden):
    network = golden_network(golden, ErfNetEncoder(20))
    x = torch.from_numpy(golden['x'])
    with torch.no_grad():
        features = network.encoder(x).numpy()
        logits = network({'rgb': x}).numpy()
    for ours, theirs in ((features, golden['enc_feat']), (logits, golden['enc_only_logits'])):
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_every_public_layer_matches(golden):
    network = golden_network(golden, ErfNetEncoder(20))
    seen = {}
    for i, layer in enumerate(network.encoder.layers):
        layer.register_forward_hook(lambda _m, _i, out, i=i: seen.__setitem__(i, out))
    with torch.no_grad():
        network({'rgb': torch.from_numpy(golden['x'])})
    for i in (0, 1, 5, 6, 7, 14):
        theirs = golden[f'enc_layer{i}']
        ours = seen[i][:, : theirs.shape[1]].numpy()
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max(), f'layer {i}'


def test_the_decoders_logits_are_those_of_the_public_code(golden):
    network = golden_network(golden, ErfNet(20))
    assert set(json.loads(str(golden['state_keys']))) == {
        name.replace('head.', 'encoder.output_conv.') for name in network.state_dict()
    }
    with torch.no_grad():
        out, encoder_only = (
            x.numpy() for x in network({'rgb': torch.from_numpy(golden['x'])}, auxiliary=True)
        )
    assert out.shape == (2, 20, 64, 96)
    assert_close(out[:, :, ::2, ::2], golden['out'])
    assert_close(encoder_only, golden['enc_only_logits'])
    # The sums run over all pixels; they are held against the sum of magnitudes.
    error = np.abs(checksum(out) - golden['out_full_chk'])
    assert error.max() <= 1e-5 * golden['out_full_chk'][1]
    np.testing.assert_array_equal(out.argmax(1), golden['argmax'])


def test_a_real_photo_is_labelled_as_by_the_public_code(golden):
    network = golden_network(golden, ErfNet(20))
    photo = torch.from_numpy(golden['img_u8']).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        out = network({'rgb': photo}).numpy()
    assert_close(out[:, :, ::8, ::8], golden['img_logits_sub8'])
    error = np.abs(checksum(out) - golden['img_logits_chk'])
    assert error.max() <= 1e-5 * golden['img_logits_chk'][1]
    assert (out.argmax(1) == golden['img_argmax']).mean() >= 0.9999


def test_parameter_counts_are_those_of_the_public_code(goldens_dir):
    info = json.loads((goldens_dir / 'erfnet_info.json').read_text())
    for classes, key in ((20, 'total'), (19, 'total_19'), (41, 'total_41')):
        assert parameter_count(ErfNet(classes)).trainable == info[key]
    network = ErfNet(20)
    assert parameter_count(network.decoder).trainable == info['decoder']
    assert parameter_count(network.head).trainable == info['encoder_output_conv']
    # The public state also counts batches, one number a norm.
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    assert parameter_count(network).with_buffers == info['state_numel'] - norms


def test_the_encoder_alone_has_the_papers_number_of_parameters():
    assert parameter_count(Encoder()).trainable == 1_874_044


def test_a_quarter_of_the_decoder_is_its_beginning():
    """Up to 1/4 both decoders compute the same; only what follows is left out."""
    torch.manual_seed(0)
    whole, quarter = ErfNet(7).eval(), ErfNet(7, decoder='erfnet_quarter').eval()
    shared = {k: v for k, v in whole.state_dict().items() if k in quarter.state_dict()}
    shared = {k: v for k, v in shared.items() if 'output_conv' not in k}
    missing, unexpected = quarter.load_state_dict(shared, strict=False)
    assert missing == ['decoder.output_conv.weight', 'decoder.output_conv.bias']
    assert not unexpected
    x, seen = {'rgb': torch.randn(1, 3, 32, 48)}, []
    whole.decoder.layers[2].register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        whole(x)
        expected = quarter.decoder.output_conv(seen[0])
        torch.testing.assert_close(quarter(x), expected)
    assert expected.shape == (1, 7, 8, 12)


def test_features_at_a_quarter_join_the_decoder_where_wanted():
    torch.manual_seed(0)
    network = ErfNet(7, multi_level=True).eval()
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        quarter, deep = network.encoder.features(x)
        y = network.decoder.layers[0](deep) + network.skip(quarter)
        for layer in network.decoder.layers[1:]:
            y = layer(y)
        torch.testing.assert_close(network({'rgb': x}), network.decoder.output_conv(y))
    assert quarter.shape == (1, 64, 8, 12)


def test_hha_of_half_size_gives_logits_of_twice_the_stride():
    encoder = ErfNetEncoder(7, modality='hha', shrink_depth=True).eval()
    assert (encoder.stride, encoder.hha_size(64, 96)) == (16, (32, 48))
    with torch.no_grad():
        assert encoder({'hha': torch.randn(1, 3, 32, 48)}).shape == (1, 7, 4, 6)
    assert ErfNet(7, modality='hha', shrink_depth=True).stride == 2
    assert ErfNetEncoder(7, modality='rgb', shrink_depth=True).stride == 8


@pytest.mark.parametrize('network', [ErfNetEncoder, ErfNet])
def test_an_unknown_modality_is_refused(network):
    with pytest.raises(ValueError, match='modality'):
        network(20, modality='lidar')


def test_an_unknown_decoder_is_refused():
    with pytest.raises(ValueError, match='erfnet_quarter'):
        ErfNet(20, decoder='bilinear')
