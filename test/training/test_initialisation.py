from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch')

from tiny_checkpoints import (  # noqa: E402
    CLASSES,
    STATISTICS,
    ToyFrames,
    small_options,
    tiny_checkpoint,
)

from rgbd_fusion_seg.bundle import load_bundle  # noqa: E402
from rgbd_fusion_seg.card import write_card  # noqa: E402
from rgbd_fusion_seg.engine import open_engine  # noqa: E402
from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import (  # noqa: E402
    TRAINABLE_NAME,
    Checkpoint,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from rgbd_fusion_seg.training.config import (  # noqa: E402
    DataConfig,
    DatasetConfig,
    NetworkConfig,
    TrainConfig,
)
from rgbd_fusion_seg.training.datasets.nyudv2 import NYU40  # noqa: E402
from rgbd_fusion_seg.training.export import GraphOptions, export, write_bundle  # noqa: E402
from rgbd_fusion_seg.training.initialisation import make_network, origins, starts  # noqa: E402
from rgbd_fusion_seg.training.networks import NETWORKS  # noqa: E402
from rgbd_fusion_seg.training.trainer import Trainer  # noqa: E402

OURS = ('c', 'pallet', ' A ', 'ramp')
"""Two of the checkpoint's classes (a, b, c) at other places, one spelt otherwise, and two more."""


def saved(path: Path, checkpoint: Checkpoint, **how: bool) -> str:
    save_checkpoint(path, checkpoint.build(), checkpoint.info, **how)
    return str(path)


def inputs_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    height, width = 3 * network.size_multiple, 4 * network.size_multiple
    sizes = network.input_sizes(height, width)
    torch.manual_seed(1)
    return {name: torch.randn(2, 3, *size) for name, size in sizes.items()}


@pytest.mark.parametrize('name', sorted(NETWORKS))
def test_classes_of_the_same_names_are_told_apart_as_before(tmp_path, name):
    # AdapNet++'s last layer at full size mixes all classes, so new ones would be heard in it.
    apart = {'full_size': False} if name.endswith('adapnetpp') else {}
    checkpoint = tiny_checkpoint(name, apart)
    path, options = saved(tmp_path / 'c.safetensors', checkpoint), checkpoint.info['options']
    config = NetworkConfig(name, options, init_from=path)
    torch.manual_seed(3)
    network = make_network(config, OURS, starts(config)).eval()
    x = inputs_of(network)
    with torch.no_grad():
        ours, theirs = network(x), checkpoint.build()(x)
    torch.testing.assert_close(ours[:, 0], theirs[:, 2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[:, 2], theirs[:, 0], rtol=1e-4, atol=1e-4)
    # The others are new: nothing of the class that the run does not have.
    assert (ours[:, 1] - theirs[:, 1]).abs().max() > 0.01
    assert (ours[:, 1] - ours[:, 3]).abs().max() > 0.01
    assert origins(config, starts(config), OURS)[0]['classes_taken'] == 2


def test_a_layer_over_joined_predictions_keeps_what_both_know(tmp_path):
    options = {'ensemble': 'concat'}
    checkpoint = tiny_checkpoint('cen', options)
    path = saved(tmp_path / 'c.safetensors', checkpoint)
    options = checkpoint.info['options']
    config = NetworkConfig('cen', options, init_from=path)
    network = make_network(config, OURS, starts(config))
    before = checkpoint.weights
    (name,) = [k for k, v in before.items() if v.ndim == 4 and v.shape[:2] == (3, 6)]
    after = network.state_dict()[name]
    assert after.shape[:2] == (4, 8)
    for ours, theirs in ((0, 2), (2, 0)):
        for other, another in ((0, 2), (2, 0)):
            for branch in range(2):
                here, there = (
                    after[ours, 4 * branch + other],
                    before[name][theirs, 3 * branch + another],
                )
                torch.testing.assert_close(here, there, rtol=0, atol=0)


def test_the_same_classes_in_another_order_are_found(tmp_path):
    checkpoint = tiny_checkpoint('erfnet', {})
    path = saved(tmp_path / 'c.safetensors', checkpoint)
    config = NetworkConfig('erfnet', init_from=path)
    network = make_network(config, ('b', 'c', 'a'), starts(config)).eval()
    x = inputs_of(network)
    with torch.no_grad():
        torch.testing.assert_close(network(x), checkpoint.build()(x)[:, [1, 2, 0]])


def test_channels_of_no_class_are_taken_over_as_they_are(tmp_path):
    checkpoint = tiny_checkpoint('adapnetpp', {'width': 0.125, 'spare_channels': 1})
    path = saved(tmp_path / 'c.safetensors', checkpoint)
    config = NetworkConfig('adapnetpp', checkpoint.info['options'], init_from=path)
    network = make_network(config, ('b', 'c', 'a'), starts(config)).eval()
    x = inputs_of(network)
    with torch.no_grad():
        torch.testing.assert_close(network(x), checkpoint.build()(x)[:, [1, 2, 0]])
    more = make_network(config, OURS, starts(config)).state_dict()
    name = 'decoder.up_logits.conv.weight'
    assert more[name].shape[:2] == (5, 4)
    for here, there in ((0, 0), (1, 3), (3, 1)):  # of void, c and a
        torch.testing.assert_close(more[name][here, 2], checkpoint.weights[name][there, 0])


def test_without_a_class_in_common_all_but_the_head_is_taken_over(tmp_path):
    checkpoint = tiny_checkpoint('erfnet_encoder', {})
    path = saved(tmp_path / 'c.safetensors', checkpoint)
    config = NetworkConfig('erfnet_encoder', init_from=path)
    network = make_network(config, ('pallet', 'ramp'), starts(config))
    different = [
        key for key, value in network.state_dict().items()
        if value.shape != checkpoint.weights[key].shape or not value.equal(checkpoint.weights[key])
    ]  # fmt: skip
    assert different == ['head.weight', 'head.bias']
    assert origins(config, starts(config), ('pallet', 'ramp'))[0]['classes_taken'] == 0
    assert 'classes_taken' not in origins(config, starts(config), CLASSES.names)[0]


def test_other_options_are_told_also_with_other_classes(tmp_path):
    path = saved(tmp_path / 'c.safetensors', tiny_checkpoint('adapnetpp', {'width': 0.25}))
    config = NetworkConfig('adapnetpp', {'width': 0.125}, init_from=path)
    with pytest.raises(InputError, match='do not fit the options of this run'):
        make_network(config, OURS, starts(config))


def test_kernels_are_stored_in_half_and_statistics_are_not(tmp_path):
    checkpoint = tiny_checkpoint('erfnet_encoder', {})
    checkpoint.weights['encoder.layers.0.bn.running_var'][:] = 1e6  # beyond float16
    whole = Path(saved(tmp_path / 'whole.safetensors', checkpoint))
    half = Path(saved(tmp_path / 'half.safetensors', checkpoint, halved=True))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    again = load_checkpoint(half)
    assert {v.dtype for v in again.weights.values()} == {torch.float32, torch.int64}
    for name, value in checkpoint.weights.items():
        torch.testing.assert_close(
            again.weights[name], value, rtol=1e-3 if value.ndim > 1 else 0, atol=1e-7
        )


@pytest.fixture
def bundle(tmp_path, monkeypatch) -> Path:
    """A folder called toy among those searched for bundles, with weights to train on from."""
    folder = tmp_path / 'models' / 'toy'
    checkpoint = tiny_checkpoint('rfbnet_erfnet', {})
    write_bundle(checkpoint, folder, 'toy', ToyFrames(), GraphOptions(storage='fp32'), frames=1)
    saved(folder / TRAINABLE_NAME, checkpoint, halved=True)
    monkeypatch.setenv('RGBD_FUSION_SEG_MODELS', str(folder.parent))
    return folder


def test_a_bundle_is_trained_on_from_by_folder_or_name(bundle, tmp_path):
    with pytest.raises(InputError, match=r'there is no checkpoint toi; .* or a bundle with'):
        load_checkpoint(find_checkpoint('toi'))
    expected = load_checkpoint(bundle / TRAINABLE_NAME).weights
    for given in (str(bundle), 'toy', str(bundle / TRAINABLE_NAME)):
        config = NetworkConfig('rfbnet_erfnet', init_from=given)
        assert find_checkpoint(given) == bundle / TRAINABLE_NAME
        network = make_network(config, CLASSES.names, starts(config))
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    (bundle / TRAINABLE_NAME).unlink()
    with pytest.raises(InputError, match=r'toy has no checkpoint\.safetensors .*--trainable true'):
        find_checkpoint('toy')


def test_a_run_keeps_the_statistics_of_what_it_starts_from(
    bundle, nyu_pack, tmp_path, capsys, monkeypatch
):
    data = DataConfig(
        dataset=DatasetConfig(folder=str(nyu_pack)), synthetic_frames=0, workers=0,
        synthetic_test_frames=0, cache=str(tmp_path / 'cache'), width=64, height=48,
    )  # fmt: skip
    config = TrainConfig(
        output=str(tmp_path / 'run'), batch_size=2, precision='32-true', accelerator='cpu',
        network=NetworkConfig(init_from='toy'), data=data,
    )  # fmt: skip
    run = Trainer(config)
    expected = {name: STATISTICS[name] for name in ('rgb', 'hha')}
    assert run.normalise.statistics == expected
    assert 'toy knows 0 of the 40 classes by name' in capsys.readouterr().out
    run.save()
    info = load_checkpoint(tmp_path / 'run' / 'last.safetensors').info
    assert info['statistics'] == expected
    assert [(x['file'], x['steps'], x['classes_taken']) for x in info['started_from']] == [
        ('toy', 12, 0)
    ]
    shutil.rmtree(bundle)  # a run that is continued needs it no more
    again = Trainer(config)
    assert again.normalise.statistics == expected
    assert 'toy knows' not in capsys.readouterr().out
    fresh = Trainer(
        dataclasses.replace(config, output=str(tmp_path / 'fresh'), network=NetworkConfig())
    )
    assert fresh.normalise.statistics != expected


def test_an_export_hands_on_weights_and_takes_them(nyu_pack, tmp_path):
    checkpoint = tiny_checkpoint('erfnet_encoder', {}, NYU40, width=64, height=48)
    path = saved(tmp_path / 'c.safetensors', checkpoint)
    data = DataConfig(DatasetConfig(folder=str(nyu_pack)), synthetic_test_frames=0)
    target = tmp_path / 'mine'
    export(path, target, data, storage='fp32', frames=1, score=False, trainable=True)
    handed = load_checkpoint(target / TRAINABLE_NAME)
    assert handed.info == checkpoint.info
    assert (target / TRAINABLE_NAME).stat().st_size < 0.6 * Path(path).stat().st_size
    # At another size, from the bundle alone, and over itself, which keeps them.
    export(target, target, data, size='96x64', storage='fp32', frames=1, score=False)
    assert load_bundle(target).input_size == (96, 64)
    assert load_checkpoint(target / TRAINABLE_NAME).info == checkpoint.info
    x = {'rgb': torch.randn(1, 3, 64, 96)}
    with closing(open_engine(load_bundle(target), 'onnxruntime')) as engine, torch.no_grad():
        ours, theirs = engine.infer(rgb=x['rgb'].numpy()), checkpoint.build()(x).numpy()
    np.testing.assert_allclose(ours, theirs, atol=0.01 * np.abs(theirs).max())


def test_an_encoder_that_does_not_fit_is_told_with_its_file(tmp_path):
    path = saved(tmp_path / 'other.safetensors', tiny_checkpoint('adapnetpp', {}))
    config = NetworkConfig('rfbnet_erfnet', init_rgb=path)
    with pytest.raises(
        InputError, match=rf'^init_rgb {path}: weights for the rgb encoder .*; give'
    ):
        make_network(config, CLASSES.names, starts(config))


def test_the_whole_way_of_the_weights_is_told(tmp_path):
    """From a file, and from a bundle, whose card tells more than its checkpoint does."""
    old = {'file': 'a.safetensors', 'sha256': 64 * '0', 'command': 'train --a', 'steps': 3}
    told = {'command': 'train --b', 'step': 5, 'started_from': [old]}
    path = saved(tmp_path / 'b.safetensors', tiny_checkpoint('erfnet_encoder', {}, **told))
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    expected = {
        'file': path, 'sha256': digest, 'command': 'train --b', 'steps': 5, 'started_from': [old],
        'data': [{'name': 'toy-train', 'frames': 6, 'terms': 'drawn by a test'}],
    }  # fmt: skip
    config = NetworkConfig('erfnet_encoder', small_options('erfnet_encoder'), init_from=path)
    assert origins(config, starts(config), CLASSES.names) == [expected]

    bundle, checkpoint = tmp_path / 'bundle', load_checkpoint(Path(path))
    write_bundle(checkpoint, bundle, 'toy', ToyFrames(), GraphOptions())
    os.rename(path, bundle / TRAINABLE_NAME)
    card = yaml.safe_load((bundle / 'model.yaml').read_text())
    assert card['training']['started_from'] == [old]
    corrected = {'notes': 'by hand', 'steps': 7, 'started_from': [old | {'notes': 'too'}]}
    card['training'] |= corrected
    write_card(bundle / 'model.yaml', card)
    config = dataclasses.replace(config, init_from=str(bundle))
    expected |= corrected | {'file': str(bundle)}
    assert origins(config, starts(config), CLASSES.names) == [expected]
    again = tmp_path / 'again'
    write_bundle(
        load_checkpoint(bundle / TRAINABLE_NAME), again, 'toy', ToyFrames(), GraphOptions()
    )
    assert yaml.safe_load((again / 'model.yaml').read_text())['training'] == card['training']


def test_the_terms_of_all_data_reach_the_card(tmp_path):
    """Of data that weights two generations back were trained on, too."""
    begun: list[dict] = []
    for terms in ('research only', 'ours', 'public domain'):
        data = [{'name': f'of {terms}', 'frames': 6, 'terms': terms}]
        checkpoint = tiny_checkpoint('erfnet_encoder', {}, data=data, started_from=begun)
        path = saved(tmp_path / f'{terms}.safetensors', checkpoint)
        config = NetworkConfig('erfnet_encoder', small_options('erfnet_encoder'), init_from=path)
        begun = origins(config, starts(config), CLASSES.names)
        assert begun[0]['data'] == data
    write_bundle(checkpoint, tmp_path / 'bundle', 'toy', ToyFrames(), GraphOptions())
    training = load_bundle(tmp_path / 'bundle').card['training']
    assert [entry['terms'] for entry in training['data']] == ['public domain']
    (parent,) = training['started_from']
    (grandparent,) = parent['started_from']
    found = [entry['terms'] for origin in (parent, grandparent) for entry in origin['data']]
    assert found == ['ours', 'research only']
