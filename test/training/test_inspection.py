from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')

from rgbd_fusion_seg.errors import InputError  # noqa: E402
from rgbd_fusion_seg.palette import NYU40_CLASSES, NYU40_COLORS  # noqa: E402
from rgbd_fusion_seg.training import inspection  # noqa: E402
from rgbd_fusion_seg.training import inspection_pictures as pictures  # noqa: E402
from rgbd_fusion_seg.training.checkpoints import class_entries, save_checkpoint  # noqa: E402
from rgbd_fusion_seg.training.config import DataConfig, DatasetConfig  # noqa: E402
from rgbd_fusion_seg.training.datasets import open_dataset  # noqa: E402
from rgbd_fusion_seg.training.datasets.base import ClassSet  # noqa: E402
from rgbd_fusion_seg.training.datasets.cache import read_frame  # noqa: E402
from rgbd_fusion_seg.training.inspection import Scales, inspect, look, scales_of  # noqa: E402
from rgbd_fusion_seg.training.networks import build_network  # noqa: E402
from rgbd_fusion_seg.training.predictors import open_predictor  # noqa: E402

SMALL = {'backbone': 'resnet14', 'head_options': {'width': 8}}
STATISTICS = {
    'rgb': ([120.0, 110.0, 100.0], [60.0, 70.0, 80.0]),
    'hha': ([130.0, 120.0, 110.0], [50.0, 60.0, 40.0]),
    'depth': ([2.0, 2.0, 2.0], [1.5, 1.5, 1.5]),
}
CLASSES = ClassSet('nyu40', NYU40_CLASSES, NYU40_COLORS)
SMALL_SCALES = {'layer1.0': ([3, 9, 40], [50, 51]), 'layer2.0': ([], [127]), 'layer4.0': ([0], [])}
"""Channels whose scale is near 0 in colour and in HHA; in the halves without penalty too."""


def trained(name: str, folder: Path, **options) -> Path:
    """Write the checkpoint of a network of which some scales of CEN are near 0."""
    torch.manual_seed(0)
    network = build_network(name, 40, **{**SMALL, **options} if name != 'erfnet_encoder' else {})
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.3, 1.0)
                module.bias.normal_()
        for block, channels in SMALL_SCALES.items() if name == 'cen' else ():
            for m, chosen in enumerate(channels):
                norm = network.encoder.get_submodule(block).bn2[m]
                norm.weight[chosen] = torch.linspace(-0.019, 0.019, len(chosen))
    options = options if name == 'erfnet_encoder' else {**SMALL, **options}
    info = {
        'network': name, 'options': options, 'classes': class_entries(CLASSES), 'step': 30,
        'statistics': {m: STATISTICS[m] for m in network.modalities}, 'width': 64, 'height': 48,
    }  # fmt: skip
    save_checkpoint(folder / 'last.safetensors', network, info)
    return folder / 'last.safetensors'


@pytest.fixture
def data(nyu_pack):
    return DataConfig(dataset=DatasetConfig(folder=str(nyu_pack)))


def assert_pictures(page: str, folder: Path, *names: str) -> None:
    """Every picture of the page is there, has something on it, and is of a size to look at."""
    linked = {part.partition(')')[0] for part in page.split('](')[1:]}
    assert linked == set(names)
    for name in linked:
        image = cv2.imread(str(folder / name))
        assert all(300 <= side <= 2500 for side in image.shape[:2]), name
        assert (image < 200).any(-1).mean() > 0.01, name


def test_a_run_of_cen_is_told_in_numbers_and_pictures(tmp_path, data):
    run = tmp_path / 'run'
    run.mkdir()
    trained('cen', run)
    rows = [
        {'step': s, 'loss': 1.0, 'ensemble_rgb': 0.5 + s / 100, 'ensemble_hha': 0.5 - s / 100,
         'exchanged_rgb': 0.1, 'exchanged_hha': 0.0}
        for s in (10, 20)
    ]  # fmt: skip
    cut = '{"step": 30, "lo'  # by a power cut
    (run / 'log.jsonl').write_bytes('\n'.join([*map(json.dumps, rows), cut]).encode() + b'\xff')
    inspect(run, data, frames=1, blocks=('layer1.0',))
    folder = run / 'inspection'
    summary = json.loads((folder / 'summary.json').read_text())
    for block, total in (('layer1.0', 64), ('layer2.0', 128), ('layer4.0', 512)):
        for m, modality in enumerate(('rgb', 'hha')):
            found, small = summary['blocks'][block][modality], SMALL_SCALES[block][m]
            assert found['channels'] == total
            assert found['exchanged'] == pytest.approx(len(small) / total)
            half = range(total // 2) if m == 0 else range(total // 2, total)
            penalised = len([c for c in small if c in half]) / len(half)
            assert found['penalised_below_threshold'] == pytest.approx(penalised)
    assert summary['whole']['rgb']['exchanged'] == pytest.approx(4 / 960)
    assert summary['whole']['hha']['exchanged'] == pytest.approx(3 / 960)
    assert summary['ensemble'] == pytest.approx({'rgb': 0.5, 'hha': 0.5})
    assert summary['not_shown'] == []
    page = (folder / 'summary.md').read_text()
    assert '| rgb: channels exchanged, percent | 4.7 | 0.0 | 0.0 | 0.2 | 0.4 |' in page
    assert_pictures(
        page, folder, 'gammas.png', 'proportions.png', 'exchanged.png', 'history.png',
        'maps/frame00000-layer1.0.png',
    )  # fmt: skip
    history = inspection.read_history(run / 'log.jsonl', ['ensemble_rgb', 'exchanged_hha'])
    assert history.keys() == {'ensemble', 'exchanged'}
    np.testing.assert_allclose(history['ensemble']['rgb'], [[10, 20], [0.6, 0.7]])


def test_scales_over_the_run_are_drawn_where_the_log_has_them(tmp_path):
    log, keys = tmp_path / 'log.jsonl', ['exchanged_rgb', 'gamma_rgb/10%', 'gamma_rgb/50%']
    old = [{'step': s, 'exchanged_rgb': 0.1} for s in (10, 20)]
    new = [{'step': s, 'gamma_rgb/10%': 1 / s, 'gamma_rgb/50%': 1.0} for s in (30, 40)]
    log.write_text('\n'.join(map(json.dumps, old)))
    assert inspection.read_history(log, keys).keys() == {'exchanged'}
    log.write_text('\n'.join(map(json.dumps, old + new)))
    _, axes = pictures.curves(inspection.read_history(log, keys)).axes
    low, middle = axes.get_lines()
    np.testing.assert_allclose(low.get_xydata(), [[30, 1 / 30], [40, 1 / 40]])
    assert low.get_label() == 'RGB 10%: 0.025 in the end'
    assert low.get_color() == middle.get_color() == pictures.COLORS['rgb']
    assert low.get_linestyle() != middle.get_linestyle()
    assert axes.get_yscale() == 'log'


def test_the_checkpoint_of_a_bundle_is_found_by_folder_and_name(tmp_path, data, monkeypatch):
    bundle = tmp_path / 'models' / 'mine'
    bundle.mkdir(parents=True)
    trained('erfnet_encoder', bundle).rename(bundle / 'checkpoint.safetensors')
    (bundle / 'model.yaml').write_text('{}')
    monkeypatch.setenv('RGBD_FUSION_SEG_MODELS', str(tmp_path / 'models'))
    for model in (bundle, Path('mine')):
        inspect(model, data, output=tmp_path / 'out', frames=0)
        summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
        assert summary['model']['path'] == str(bundle / 'checkpoint.safetensors')
    (bundle / 'checkpoint.safetensors').unlink()
    with pytest.raises(InputError, match=r'mine has no checkpoint\.safetensors'):
        inspect(bundle, data, frames=0)


def test_maps_are_those_that_the_network_exchanges(tmp_path, data):
    with_depth = trained('cen', tmp_path, modalities=['rgb', 'depth'])
    predictor = open_predictor(with_depth, device='cpu')
    frame = read_frame(open_dataset(data.dataset, 'test'), 0).frame
    network, block = predictor.network, 'layer1.0'
    inputs, labels, maps = look(predictor, frame, [block])
    np.testing.assert_array_equal(labels, predictor.predict(frame))
    assert inputs.keys() == {'rgb', 'depth'}
    assert inputs['rgb'].shape == (48, 64, 3)
    assert inputs['depth'].shape[:2] == (48, 64)
    assert 1 < inputs['depth'].max() < 11  # metres
    before, after = maps[block].before, maps[block].after
    for m, small in enumerate(SMALL_SCALES[block]):
        for c in range(64):
            source = before[1 - m] if c in small else before[m]
            np.testing.assert_array_equal(after[m][c], source[c])
    # The whole network's answer follows from these maps.
    layer = network.encoder.get_submodule(block)
    seen = []
    handle = layer.conv3.register_forward_pre_hook(lambda _, given: seen.extend(given[0]))
    predictor.predict(frame)
    handle.remove()
    for ours, theirs in zip(after, seen, strict=True):
        np.testing.assert_array_equal(ours.clip(0), theirs[0].numpy())
    figure = pictures.feature_maps(
        scales_of(network)[0], maps[block], inputs, labels, CLASSES.colors
    )
    shown = {axes.get_title() for axes in figure.axes if axes.get_images()}
    assert {'RGB', 'depth', 'prediction', 'RGB branch, before', 'depth branch, after'} <= shown


def test_rows_of_maps_are_groups_of_channels():
    gamma = np.array([[0.01, 0.5, 0.9, 0.015, 0.3], [0.5, 0.4, 0.01, 0.8, 0.01]])
    kept = gamma >= 0.02
    scales = Scales('layer1.0', ('rgb', 'hha'), gamma, kept, kept)
    groups = list(pictures.channel_groups(scales).items())
    assert [list(channels) for _, channels in groups] == [[0, 3], [2, 4], [1], [3], [2]]
    assert 'mean of 2 of 5' in groups[0][0]
    assert 'given up by RGB' in groups[3][0]
    assert '0.015' in groups[3][0]
    nothing = Scales('layer1.0', ('rgb', 'hha'), gamma + 1, kept, np.ones_like(kept))
    groups = list(pictures.channel_groups(nothing).items())
    assert [list(channels) for _, channels in groups] == [[0, 1, 2, 3, 4], [0], [2]]
    assert 'smallest of HHA' in groups[2][0]


def test_histograms_count_every_channel_once():
    rng = np.random.default_rng(0)
    gamma = 10 ** rng.uniform(-6, 0.3, (2, 64))
    penalised = np.zeros((2, 64), bool)
    penalised[0, :32] = penalised[1, 32:] = True
    blocks = [
        Scales(f'layer{k}.0', ('rgb', 'hha'), gamma, penalised, gamma >= 0.02) for k in (1, 2)
    ]
    figure = pictures.histograms(blocks, ('rgb', 'hha'), 0.02)
    assert len(figure.axes) == 4
    for m, axes in enumerate(figure.axes[:2]):
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(100)
        below = [b for b in axes.patches if b.get_x() + b.get_width() <= 0.02 * 1.0001]
        share = 100 * (gamma[m] < 0.02).mean()
        assert sum(bar.get_height() for bar in below) == pytest.approx(share)
        told = 100 * (gamma[m][penalised[m]] < 0.02).mean()
        assert f'{told:.1f} % of the penalised' in axes.texts[0].get_text()


def test_proportions_are_parts_of_a_channels_scales():
    names = ('rgb', 'hha', 'depth')
    gamma = np.stack([np.linspace(-1, 2, 128), np.full(128, 0.5), np.full(128, 0.25)])
    block = Scales('layer2.0', names, gamma, gamma > 9)
    narrow = Scales('stem', names, gamma[:, :48], gamma[:, :48] > 9)
    figure = pictures.proportions([block, narrow], names)
    images = [axes.get_images()[0].get_array() for axes in figure.axes[:3]]
    np.testing.assert_allclose(sum(images), 1)
    expected = np.abs(gamma[0]) / (np.abs(gamma[0]) + 0.75)
    np.testing.assert_allclose(images[0][0], expected.reshape(64, 2).mean(1))
    assert set(images[0][1]) == set(expected[:48])


def test_networks_without_exchange_are_told_as_far_as_it_goes(tmp_path, data):
    for name, pages in (
        ('multimodal', ['gammas.png', 'proportions.png']),
        ('erfnet_encoder', ['gammas.png']),
    ):
        folder = tmp_path / name
        folder.mkdir()
        inspect(trained(name, folder), data, folder / 'out')
        page = (folder / 'out' / 'summary.md').read_text()
        assert_pictures(page, folder / 'out', *pages)
        assert f'{name} replaces no channels' in page
        summary = json.loads((folder / 'out' / 'summary.json').read_text())
        assert all('exchanged' not in numbers for numbers in summary['whole'].values())
        assert bool(summary['ensemble']) == (name == 'multimodal')
        assert summary['whole'].keys() == (
            {'rgb', 'hha'} if name == 'multimodal' else {'all norms'}
        )


@pytest.mark.parametrize('exchange', ['sum', 'gated_sum', 'none'])
def test_a_cen_that_replaces_no_channels_shows_no_exchange(tmp_path, data, exchange):
    path = trained('cen', tmp_path, exchange=exchange)
    inspect(path, data, tmp_path / 'out')
    page = (tmp_path / 'out' / 'summary.md').read_text()
    assert f'cen with exchange: {exchange} replaces no channels' in page
    assert 'channels exchanged' not in page
    assert 'penalised scales with |γ| < θ = 0.02, percent' in page
    assert_pictures(page, tmp_path / 'out', 'gammas.png', 'proportions.png')
    with pytest.raises(InputError, match=r'layer1\.0 is no block .* the network has none'):
        inspect(path, data, blocks=('layer1.0',))


@pytest.mark.parametrize(
    ('options', 'behind'),
    [
        ({'encoders': 'individual'}, ('fused',)),
        ({'encoders': 'shared'}, ('rgb', 'hha', 'fused')),
        ({'encoders': 'individual', 'stages': 'all'}, ()),
    ],
)
def test_the_stream_that_a_fusion_makes_is_one_of_its_own(tmp_path, data, options, behind):
    options = {'fusion': 'attention', 'stages': 'middle', **options}
    path = trained('stage_fusion', tmp_path, **options)
    inspect(path, data, tmp_path / 'out', frames=0)
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    blocks, network = summary['blocks'], open_predictor(path, device='cpu').network
    assert summary['branches'] == ['rgb', 'hha', 'fused']
    fusions = [name for name in blocks if name.startswith('fusions.')]
    assert fusions
    assert all([*blocks[name]] == ['fused'] for name in fusions)
    if not behind:
        return
    assert [*blocks['layer3.0.bn3']] == ['rgb', 'hha']
    assert tuple(blocks['layer4.0.bn3']) == behind
    norm = network.encoder.layer4[0].bn3
    norms = list(norm) if len(behind) > 1 else [norm]
    for name, single in zip(behind, norms, strict=True):
        median = float(np.median(single.weight.detach().numpy()))
        assert blocks['layer4.0.bn3'][name]['median'] == pytest.approx(median)
    page = (tmp_path / 'out' / 'summary.md').read_text()
    assert_pictures(page, tmp_path / 'out', 'gammas.png', 'proportions.png')
    assert '\n| fused: median |γ| |  |' in page  # none in the stem, before the fusion


def test_without_a_penalty_nothing_is_penalised(tmp_path, data):
    inspect(trained('cen', tmp_path, sparsity=0.0), data, tmp_path / 'out', frames=0)
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert all('penalised_low_quantile' not in numbers for numbers in summary['whole'].values())


def test_the_papers_form_is_told_to_look_at_the_sign(tmp_path, data):
    inspect(trained('cen', tmp_path, form='paper'), data, tmp_path / 'out', frames=0)
    assert 'so negative ones are too' in (tmp_path / 'out' / 'summary.md').read_text()


def test_what_cannot_be_inspected_is_one_sentence(tmp_path, data):
    with pytest.raises(InputError, match=r'no checkpoint .*last\.safetensors'):
        inspect(tmp_path, data)
    path = trained('cen', tmp_path)
    with pytest.raises(InputError, match=r'layer9\.0 is no block .* layer1\.0, layer2\.0'):
        inspect(path, data, blocks=('layer9.0',))
    assert not (tmp_path / 'inspection').exists()
    with pytest.raises(InputError, match='frames must be 0 or more'):
        inspect(path, data, frames=-1)
    nowhere = DataConfig(dataset=DatasetConfig(folder=str(tmp_path / 'nowhere')))
    inspect(path, nowhere, frames=0)  # needs no data
    with pytest.raises(InputError, match='nowhere'):
        inspect(path, nowhere)
