"""Bundles: what a good one holds, and one clear sentence for each bad one."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from bundles import CLASS_NAMES, MEAN, MEAN_M, STD, tiny_card, write_bundle

from rgbd_fusion_seg import bundle as bundle_module
from rgbd_fusion_seg.bundle import FusedForm, file_sha256, load_bundle
from rgbd_fusion_seg.errors import BundleError
from rgbd_fusion_seg.locations import bundle_folders, list_bundles

MISSING = object()


def card_with(path: str, value: object) -> dict:
    """Return the tiny card with one entry, named by a dotted path, changed or removed."""
    card = tiny_card()
    *parents, last = path.split('.')
    node = card
    for part in parents:
        node = node[part]
    if value is MISSING:
        del node[last]
    else:
        node[last] = value
    return card


def sentence(excinfo) -> str:
    text = str(excinfo.value)
    assert '\n' not in text
    return text


def test_a_bundle_holds_what_its_card_says(tiny_bundle: Path):
    bundle = load_bundle(tiny_bundle)
    assert bundle.name == 'tiny'
    assert bundle.class_names == CLASS_NAMES
    assert bundle.num_classes == 4
    assert bundle.colors.dtype == np.uint8
    assert bundle.colors.tolist() == [c['color'] for c in tiny_card()['classes']]
    assert (bundle.rgb.height, bundle.rgb.width) == (48, 64)
    assert (bundle.hha.height, bundle.hha.width) == (24, 32)
    assert bundle.hha.mean.tolist() == [MEAN] * 3
    assert bundle.hha.std.tolist() == [STD] * 3
    assert bundle.logits_shape == (1, 4, 6, 8)
    assert bundle.temperature == 1
    assert bundle.depth_range_m == (0.5, 8.0)
    assert bundle.weights_path == tiny_bundle / 'model.onnx'
    assert bundle.weights_sha256 == file_sha256(bundle.weights_path)


@pytest.mark.parametrize(
    ('modality', 'size', 'logits'),
    [('rgb', (64, 48), (1, 4, 6, 8)), ('hha', (32, 24), (1, 4, 6, 8))],
)
def test_a_bundle_may_lack_an_input(tmp_path: Path, modality, size, logits):
    bundle = load_bundle(write_bundle(tmp_path / 'one', tiny_card(modalities=(modality,))))
    assert list(bundle.inputs) == [modality]
    assert (bundle.rgb is None, bundle.hha is None) == (modality == 'hha', modality == 'rgb')
    assert bundle.input_size == size
    assert bundle.logits_shape == logits


def test_a_bundle_may_read_depth_in_metres(tmp_path: Path):
    both = tiny_card(modalities=('rgb', 'hha', 'depth'))
    both['inputs'] = dict(reversed(both['inputs'].items()))
    bundle = load_bundle(write_bundle(tmp_path / 'three', both))
    assert list(bundle.inputs) == ['rgb', 'hha', 'depth']
    assert (bundle.depth.width, bundle.depth.height) == (32, 24)
    assert bundle.depth.mean.tolist() == [MEAN_M] * 3
    assert bundle.graph_inputs['depth'] == ('float32', (1, 3, 24, 32))
    one = load_bundle(write_bundle(tmp_path / 'one', tiny_card(modalities=('depth',))))
    assert (one.rgb, one.hha, one.input_size) == (None, None, (32, 24))
    assert one.logits_shape == (1, 4, 6, 8)


def test_what_sees_depth_in_any_form_is_told(tmp_path: Path):
    for modality, sees in (('rgb', False), ('hha', True), ('depth', True)):
        card = tiny_card(modalities=(modality,))
        assert load_bundle(write_bundle(tmp_path / modality, card)).sees_depth == sees


def test_both_forms_of_depth_have_one_size(tmp_path: Path):
    card = tiny_card(modalities=('rgb', 'hha', 'depth'))
    card['inputs']['depth'] |= {'height': 48, 'width': 64}
    with pytest.raises(BundleError, match='hha and depth different sizes'):
        load_bundle(write_bundle(tmp_path / 'bad', card))


def test_a_fused_graph_does_not_make_metres(tmp_path: Path):
    card = tiny_card(modalities=('rgb', 'depth')) | {'fused': FUSED}
    with pytest.raises(BundleError, match="unusable entry 'fused'"):
        load_bundle(write_bundle(tmp_path / 'bad', card))


def test_a_dynamic_bundle_takes_other_sizes(tmp_path: Path):
    card = tiny_card() | {'dynamic': {'batch': False, 'size': True, 'multiple': 16}}
    bundle = load_bundle(write_bundle(tmp_path / 'open', card))
    assert (bundle.dynamic.batch, bundle.dynamic.size) == (False, True)
    larger = bundle.resized(160, 96)
    assert larger.input_size == (160, 96)
    assert (larger.hha.width, larger.hha.height) == (80, 48)
    assert larger.hha.mean.tolist() == [MEAN] * 3
    assert larger.logits_shape == (1, 4, 12, 20)
    assert bundle.input_size == (64, 48)
    for width, height in ((100, 96), (96, 100), (0, 48), (-64, 48)):
        with pytest.raises(BundleError, match=f'take {width}x{height}.*multiples of 16') as caught:
            bundle.resized(width, height)
        assert str(tmp_path / 'open') in sentence(caught)


def test_a_fixed_bundle_takes_its_own_size_only(tiny_bundle: Path):
    bundle = load_bundle(tiny_bundle)
    assert bundle.resized(64, 48) is bundle
    with pytest.raises(BundleError, match='takes 64x48 images only, not 128x96'):
        bundle.resized(128, 96)


def test_the_forms_of_a_network_alone_are_its_tensors(tiny_bundle: Path):
    bundle = load_bundle(tiny_bundle)
    assert bundle.fused is None
    assert bundle.graph_inputs == {
        'rgb': ('float32', (1, 3, 48, 64)),
        'hha': ('float32', (1, 3, 24, 32)),
    }
    assert bundle.graph_outputs == {'logits': ('float32', (1, 4, 6, 8))}


FUSED = {'width': 160, 'height': 120, 'hha': False, 'base': {'name': 'tiny', 'sha256': 'ab'}}
NO_TEMPERATURES = (0, -1.5, float('nan'), 10**400, True, '1.2')
GEOMETRY = {
    'depth': ('float32', (1, 120, 160)),
    'intrinsics': ('float32', (4,)),
    'gravity': ('float32', (3,)),
    'camera_height': ('float32', (1,)),
}


@pytest.mark.parametrize(
    ('modalities', 'hha', 'inputs'),
    [
        (('rgb', 'hha'), False, {'hha': ('uint8', (1, 24, 32, 3))}),
        (('rgb', 'hha'), True, GEOMETRY),
        (('hha',), True, GEOMETRY),
        (('rgb',), False, {}),
    ],
)
def test_a_fused_bundle_takes_bytes_and_returns_labels(tmp_path: Path, modalities, hha, inputs):
    card = tiny_card(modalities=modalities) | {'fused': FUSED | {'hha': hha}}
    bundle = load_bundle(write_bundle(tmp_path / 'fused', card))
    assert bundle.fused == FusedForm(160, 120, hha, 'tiny', 'ab')
    colour = {'rgb': ('uint8', (1, 120, 160, 3))} if 'rgb' in modalities else {}
    assert bundle.graph_inputs == colour | inputs
    frame = ('uint8', (1, 120, 160))
    assert bundle.graph_outputs == {'labels': frame, 'confidence': frame}
    assert set(bundle.inputs) == set(modalities)


@pytest.mark.parametrize('given', ['folder', 'card', 'text'])
def test_a_bundle_is_found_by_folder_and_by_card(tiny_bundle: Path, given):
    path = {'folder': tiny_bundle, 'card': tiny_bundle / 'model.yaml', 'text': str(tiny_bundle)}
    assert load_bundle(path[given]).path == tiny_bundle


def test_bundles_are_found_by_name(tmp_path: Path, monkeypatch):
    card = tiny_card()
    first = write_bundle(tmp_path / 'a' / 'mine', card)
    write_bundle(tmp_path / 'b' / 'mine', card)
    installed = tmp_path / 'prefix' / 'share' / 'rgbd_fusion_seg' / 'models'
    second = write_bundle(installed / 'installed', card)
    monkeypatch.setenv('RGBD_FUSION_SEG_MODELS', f'{tmp_path / "a"}:{tmp_path / "b"}')
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path / 'prefix'))
    assert load_bundle('mine').path == first
    assert load_bundle('installed').path == second
    assert {first, second} <= set(list_bundles())
    assert bundle_folders()[:2] == [tmp_path / 'a', tmp_path / 'b']


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path, monkeypatch):
    write_bundle(tmp_path / 'mine')
    monkeypatch.setenv('RGBD_FUSION_SEG_MODELS', str(tmp_path))
    with pytest.raises(BundleError) as caught:
        load_bundle('yours')
    assert "'yours'" in sentence(caught)
    assert 'mine' in sentence(caught)


def test_a_folder_without_a_card_is_no_bundle(tmp_path: Path):
    with pytest.raises(BundleError, match=r'no bundle: it has no model\.yaml'):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    'text',
    [
        *('{unclosed: [', '- just\n- a list\n', '\x00', 'a: 1\n---\nb: 2\n'),
        *('made: 2026-13-01\n', 'format: !!int one\n', 'made: !!timestamp today\n', 3000 * '['),
    ],
)
def test_cards_that_cannot_be_read(tmp_path: Path, text):
    folder = write_bundle(tmp_path / 'bad')
    (folder / 'model.yaml').write_text(text)
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert str(folder / 'model.yaml') in sentence(caught)


@pytest.mark.parametrize(
    'entry',
    [
        'format',
        'name',
        'inputs',
        'inputs.rgb.height',
        'inputs.hha.std',
        'inputs.rgb.width',
        'output.stride',
        'depth.range_m',
        'classes',
        'weights.file',
        'metrics',
    ],
)
def test_a_missing_entry_is_named(tmp_path: Path, entry):
    folder = write_bundle(tmp_path / 'bad', card_with(entry, MISSING))
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert 'lacks the entry' in sentence(caught)
    assert f"'{entry}" in sentence(caught)


def test_a_network_that_reads_no_depth_has_no_range_of_it(tmp_path: Path):
    card = tiny_card(modalities=('rgb',))
    depth = card.pop('depth')
    for name, entry in (('without', {}), ('with', {'depth': depth})):
        bundle = load_bundle(write_bundle(tmp_path / name, card | entry))
        assert bundle.depth_range_m is None


@pytest.mark.parametrize('modalities', [('hha',), ('depth',), ('rgb', 'depth')])
def test_a_network_that_reads_depth_in_any_form_has_a_range_of_it(tmp_path: Path, modalities):
    bundle = load_bundle(write_bundle(tmp_path / 'bundle', tiny_card(modalities=modalities)))
    assert bundle.depth_range_m == (0.5, 8.0)


@pytest.mark.parametrize(
    'also',
    [
        tiny_card(modalities=('rgb',)) | {'fused': FUSED | {'hha': True}},
        tiny_card() | {'fused': FUSED, 'dynamic': {'batch': False, 'size': True, 'multiple': 16}},
    ],
    ids=['no depth', 'open sizes'],
)
def test_a_fused_form_that_the_network_cannot_have_is_refused(tmp_path: Path, also):
    with pytest.raises(BundleError, match="unusable entry 'fused'"):
        load_bundle(write_bundle(tmp_path / 'bad', also))


def test_a_card_without_a_hash_is_refused(tmp_path: Path):
    folder = write_bundle(tmp_path / 'bad')
    card = yaml.safe_load((folder / 'model.yaml').read_text())
    del card['weights']['sha256']
    (folder / 'model.yaml').write_text(yaml.safe_dump(card))
    with pytest.raises(BundleError, match=r"lacks the entry 'weights\.sha256'"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ('entry', 'value', 'named'),
    [
        ('inputs.rgb.width', '64', 'inputs.rgb.width'),
        ('inputs.rgb.width', 0, 'inputs.rgb'),
        ('inputs.rgb.width', True, 'inputs.rgb.width'),
        ('inputs.hha.std', [1.0, 0.0, 1.0], 'inputs.hha'),
        ('inputs.hha.mean', [1.0, 2.0], 'inputs.hha.mean'),
        ('inputs.hha.mean', [1.0, 2.0, float('nan')], 'inputs.hha.mean'),
        ('inputs.hha.std', [1.0, 2.0, float('inf')], 'inputs.hha.std'),
        ('inputs.rgb.mean', [1.0, 2.0, 'x'], 'inputs.rgb.mean'),
        ('inputs.rgb.mean', [1.0, 2.0, True], 'inputs.rgb.mean'),
        ('inputs', {}, 'inputs'),
        ('inputs', {'rgb': tiny_card()['inputs']['rgb'], 'thermal': {}}, 'inputs'),
        ('dynamic', {'batch': True, 'size': True, 'multiple': 12}, 'dynamic.multiple'),
        ('dynamic', {'batch': True, 'size': True, 'multiple': 32}, 'dynamic.multiple'),
        ('dynamic', {'batch': True, 'size': True, 'multiple': 4}, 'dynamic.multiple'),
        ('dynamic', {'batch': True, 'size': 1, 'multiple': 16}, 'dynamic.size'),
        ('output.stride', 7, 'inputs.rgb.width'),
        ('inputs.rgb.height', 50, 'inputs.rgb.height'),
        ('output.stride', -8, 'output.stride'),
        *(('confidence', {'temperature': x}, 'confidence.temperature') for x in NO_TEMPERATURES),
        ('depth.range_m', [1.0], 'depth.range_m'),
        ('depth.range_m', [8.0, 0.5], 'depth.range_m'),
        ('depth.range_m', [2.0, 2.0], 'depth.range_m'),
        ('inputs.rgb.mean', [1.0, 2.0, 10**400], 'inputs.rgb.mean'),
        ('inputs', {'rgb': {}, 1: {}, None: {}}, 'inputs'),
        ('inputs.rgb.std', [1.0, 2.0, 1e39], 'inputs.rgb.std'),
        ('name', 5, 'name'),
        ('name', '', 'name'),
        ('name', '..', 'name'),
        ('name', '../elsewhere', 'name'),
        ('name', '/tmp/elsewhere', 'name'),
        ('name', 'two\nlines', 'name'),
        ('name', 'a\0', 'name'),
        ('weights.file', '../model.onnx', 'weights.file'),
        ('classes', [{'name': 'a'}] * 4, 'classes[0].color'),
        ('classes', [{'name': 'a', 'color': [0, 0, 256]}] * 4, 'classes[0].color'),
        ('classes', [{'name': 'a', 'color': [0, -1, 0]}] * 4, 'classes[0].color'),
        ('classes', [{'color': [0, 0, 0]}] * 4, 'classes[0]'),
        ('classes', ['wall', 'floor'], 'classes[0]'),
        ('fused', FUSED | {'width': '160'}, 'fused.width'),
        ('fused', FUSED | {'height': 0}, 'fused'),
        ('fused', FUSED | {'hha': 'yes'}, 'fused.hha'),
        ('fused', FUSED | {'base': {'name': 'tiny', 'sha256': 1}}, 'fused.base.sha256'),
        ('fused', FUSED | {'base': {'name': 'a/b', 'sha256': '1'}}, 'fused.base.name'),
    ],
)
def test_an_unusable_entry_is_named(tmp_path: Path, entry, value, named):
    folder = write_bundle(tmp_path / 'bad', card_with(entry, value))
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert 'unusable entry' in sentence(caught)
    assert f"'{named}'" in sentence(caught)


def test_a_size_that_is_no_multiple_names_the_stride(tmp_path: Path):
    folder = write_bundle(tmp_path / 'bad', card_with('inputs.rgb.width', 65))
    with pytest.raises(BundleError, match=r"'inputs\.rgb\.width': 65, no multiple of output"):
        load_bundle(folder)


def test_a_future_format_says_both_numbers(tmp_path: Path):
    folder = write_bundle(tmp_path / 'bad', card_with('format', 2))
    with pytest.raises(BundleError, match='format 2, this version reads format 1'):
        load_bundle(folder)


@pytest.mark.parametrize('count', [1, 256])
def test_the_number_of_classes_fits_a_label_image(tmp_path: Path, count):
    classes = [{'name': f'c{i}', 'color': [i, 0, 0]} for i in range(255)] + [
        {'name': 'c255', 'color': [0, 1, 0]}
    ]
    folder = write_bundle(tmp_path / 'bad', card_with('classes', classes[:count]))
    with pytest.raises(BundleError, match=f'lists {count} classes; 2 to 255'):
        load_bundle(folder)


def test_two_classes_of_one_name_are_refused(tmp_path: Path):
    card = tiny_card()
    card['classes'][3]['name'] = card['classes'][1]['name']
    folder = write_bundle(tmp_path / 'bad', card)
    with pytest.raises(BundleError, match="'bright low' twice"):
        load_bundle(folder)


def test_missing_weights_are_named(tmp_path: Path):
    folder = write_bundle(tmp_path / 'bad')
    (folder / 'model.onnx').unlink()
    with pytest.raises(BundleError, match=r'lacks its weights model\.onnx'):
        load_bundle(folder)


def test_changed_weights_do_not_match_their_card(tmp_path: Path):
    folder = write_bundle(tmp_path / 'bad')
    data = bytearray((folder / 'model.onnx').read_bytes())
    data[len(data) // 2] ^= 1
    (folder / 'model.onnx').write_bytes(data)
    with pytest.raises(BundleError, match='does not match its card') as caught:
        load_bundle(folder)
    assert file_sha256(folder / 'model.onnx')[:12] in sentence(caught)


def test_the_hash_may_be_written_in_capitals(tmp_path: Path):
    folder = write_bundle(tmp_path / 'loud')
    card = yaml.safe_load((folder / 'model.yaml').read_text())
    loud = copy.deepcopy(card)
    loud['weights']['sha256'] = card['weights']['sha256'].upper()
    (folder / 'model.yaml').write_text(yaml.safe_dump(loud))
    assert load_bundle(folder).weights_sha256 == card['weights']['sha256']


def test_a_home_of_another_user_is_no_obstacle(tmp_path: Path):
    (tmp_path / 'home').mkdir(mode=0)
    code = (
        'import os\n'
        'from rgbd_fusion_seg.locations import bundle_folders, user_cache\n'
        'os.geteuid() or os.setuid(12345)\n'
        'bundle_folders()\n'
        'print(user_cache())\n'
    )
    environment = {key: value for key, value in os.environ.items() if key != 'XDG_CACHE_HOME'}
    environment['HOME'] = str(tmp_path / 'home')
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == '/nonexistent/rgbd_fusion_seg\n', done.stderr


@pytest.mark.parametrize('given', ['~nobody-of-that-name/bundle', 'x' * 300])
def test_paths_that_cannot_be_are_told(given):
    with pytest.raises(BundleError, match='cannot be reached') as caught:
        load_bundle(given)
    assert '\n' not in str(caught.value)


def test_files_that_cannot_be_read_are_told(tiny_bundle: Path, monkeypatch):
    def refused(path):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(bundle_module, 'file_sha256', refused)
    with pytest.raises(BundleError, match=r'cannot be read \(.*Permission denied.*model\.onnx'):
        load_bundle(tiny_bundle)
