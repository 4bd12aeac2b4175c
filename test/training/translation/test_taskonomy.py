from __future__ import annotations

import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg.errors import InputError

pytest.importorskip('torch')
pytest.importorskip('h5py', reason='needs the extra [train]')

from rgbd_fusion_seg.palette import NYU40_COLORS
from rgbd_fusion_seg.training.config import DatasetConfig
from rgbd_fusion_seg.training.translation.sources import open_images
from rgbd_fusion_seg.training.translation.taskonomy import (
    ARRANGEMENTS,
    OFFICIAL,
    Taskonomy,
    _spread,
)

LIST = 'id,train,val,test\nhanson,1,0,0\nmerom,1,0,0\nwiconisco,0,1,0\nihlen,0,0,1\n'
VIEWS = {'hanson': ((10, 0), (2, 1)), 'merom': ((0, 3),), 'wiconisco': ((5, 0),)}
VIEWS |= {'ihlen': ((7, 7),)}
SIXTEEN_BITS = ('depth_zbuffer', 'edge_texture', 'edge_occlusion')
SIDE = 64


def content(domain: str, point: int, view: int) -> np.ndarray:
    """An image of a domain as Taskonomy stores it, RGB or one channel."""
    rng = np.random.default_rng((sum(domain.encode()), point, view))
    if domain in SIXTEEN_BITS:
        return rng.integers(0, 11000, (SIDE, SIDE)).astype(np.uint16)
    if domain == 'segment_semantic':
        return rng.integers(0, 18, (SIDE, SIDE)).astype(np.uint8)
    return rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


def write(place: Path, domain: str, point: int, view: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    stored = 'segmentsemantic' if domain == 'segment_semantic' else domain
    image = content(domain, point, view)
    image = image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])
    cv2.imwrite(str(place / f'point_{point}_view_{view}_domain_{stored}.png'), image)


def make(folder: Path, arrangement: str) -> Path:
    for building, views in VIEWS.items():
        for domain in OFFICIAL.values():
            place = folder / arrangement.format(domain=domain, building=building)
            for point, view in views:
                write(place, domain, point, view)
    (folder / 'train_val_test_tiny.csv').write_text(LIST)
    return folder


@pytest.fixture(scope='module')
def tree(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp('taskonomy'), ARRANGEMENTS[0])


@pytest.fixture
def broken(tree, tmp_path) -> Path:
    """A copy of the tree to be damaged."""
    return Path(shutil.copytree(tree, tmp_path / 'copy'))


@pytest.mark.parametrize('arrangement', ARRANGEMENTS)
def test_every_arrangement_is_read(arrangement, tmp_path):
    source = Taskonomy(make(tmp_path, arrangement), 'train')
    assert source.domains == tuple(OFFICIAL)
    assert source.views == [('hanson', 2, 1), ('hanson', 10, 0), ('merom', 0, 3)]
    images = source.images(2, ['rgb', 'labels'], SIDE)
    np.testing.assert_array_equal(images['rgb'], content('rgb', 0, 3))


def test_splits_are_those_of_the_list(tree):
    assert Taskonomy(tree, 'val').views == [('wiconisco', 5, 0)]
    assert Taskonomy(tree, 'test').views == [('ihlen', 7, 7)]
    assert (Taskonomy.TRAIN_SPLIT, Taskonomy.TEST_SPLIT) == ('train', 'val')


@pytest.mark.parametrize(
    ('name', 'grey'),
    [
        ('depth', lambda v: np.log(1.0 + v) * 255 / 11.1),
        ('texture', lambda v: v * 255 / 11355),
        ('edge', lambda v: v * 255 / 11584),
    ],
)
def test_sixteen_bits_become_the_grey_levels_of_cen(tree, name, grey):
    image = Taskonomy(tree, 'val').images(0, [name], SIDE)[name]
    stored = content(OFFICIAL[name], 5, 0).astype(float)
    expected = grey(stored).astype(np.uint8)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.repeat(expected[..., None], 3, axis=2))
    assert expected.std() > 1


def test_what_is_brighter_than_white_stays_white(broken):
    file = broken / 'edge_texture/taskonomy/wiconisco/point_5_view_0_domain_edge_texture.png'
    cv2.imwrite(str(file), np.full((SIDE, SIDE), 20000, np.uint16))
    assert (Taskonomy(broken, 'val').images(0, ['texture'], SIDE)['texture'] == 255).all()


@pytest.mark.parametrize('name', ['rgb', 'normal', 'shade', 'curvature'])
def test_colour_images_are_rgb_as_stored(tree, name):
    image = Taskonomy(tree, 'val').images(0, [name], SIDE)[name]
    np.testing.assert_array_equal(image, content(OFFICIAL[name], 5, 0))


def test_labels_have_colours_and_uncertain_ones_are_black(tree):
    image = Taskonomy(tree, 'val').images(0, ['labels'], SIDE)['labels']
    ids = content('segment_semantic', 5, 0)
    assert not image[ids == 0].any()
    for label in range(1, 18):
        assert (image[ids == label] == NYU40_COLORS[label - 1]).all()


@pytest.mark.parametrize('side', [24, 100])
def test_images_are_resized_as_pil_does_and_labels_picked(tree, side):
    pil = pytest.importorskip('PIL.Image')
    images = Taskonomy(tree, 'val').images(0, list(OFFICIAL), side)
    assert all(image.shape == (side, side, 3) for image in images.values())
    assert all(image.dtype == np.uint8 for image in images.values())
    stored = pil.fromarray(content('rgb', 5, 0))
    expected = np.asarray(stored.resize((side, side), pil.Resampling.BILINEAR)).astype(int)
    assert np.abs(images['rgb'] - expected).max() <= 1
    known = {(0, 0, 0), *(tuple(color) for color in NYU40_COLORS.tolist())}
    assert {tuple(color) for color in images['labels'].reshape(-1, 3).tolist()} <= known


def test_a_sample_of_one_building_has_lists_of_views(tmp_path):
    """As the authors' sample, with lists as in CEN's code."""
    for domain in OFFICIAL.values():
        for point in range(4):
            write(tmp_path / domain, domain, point, 0)
    (tmp_path / 'train_domain.txt').write_text(
        '/{domain}/point_2_view_0_domain_{domain}.png\npoint_0_view_0\n'
    )
    source = Taskonomy(tmp_path, 'train')
    assert source.views == [('', 2, 0), ('', 0, 0)]
    np.testing.assert_array_equal(
        source.images(0, ['normal'], SIDE)['normal'], content('normal', 2, 0)
    )
    with pytest.raises(InputError, match=r'val_domain\.txt is missing; take those of .*CEN'):
        Taskonomy(tmp_path, 'val')
    (tmp_path / 'val_domain.txt').write_text('point_9_view_0\n')
    with pytest.raises(InputError, match=r"val_domain\.txt names 'point_9_view_0', which is no"):
        Taskonomy(tmp_path, 'val')


@pytest.mark.parametrize(
    ('lists', 'message'),
    [
        (
            {'train': 'point_1_view_0\npoint_0_view_0\npoint_1_view_0_domain_{domain}.png'},
            r'train_domain\.txt names point_1_view_0 twice; take',
        ),
        (
            {'train': 'point_1_view_0\npoint_2_view_0', 'val': 'point_3_view_0\npoint_2_view_0'},
            r'train_domain\.txt and val_domain\.txt both name point_2_view_0 and 0 more; take',
        ),
        (
            {'train': 'point_1_view_0\npoint_2_view_0', 'test': 'point_2_view_0\npoint_1_view_0'},
            r'and test_domain\.txt both name point_1_view_0 and 1 more; take',
        ),
    ],
)
def test_a_view_of_a_sample_has_one_place_in_its_lists(tmp_path, lists, message):
    for point in range(4):
        write(tmp_path / 'rgb', 'rgb', point, 0)
    for split, text in lists.items():
        (tmp_path / f'{split}_domain.txt').write_text(text)
    with pytest.raises(InputError, match=message):
        Taskonomy(tmp_path, 'train')


def test_domains_without_a_folder_are_not_offered(broken):
    shutil.rmtree(broken / 'segment_semantic')
    source = Taskonomy(broken, 'train')
    assert source.domains == tuple(name for name in OFFICIAL if name != 'labels')
    with pytest.raises(InputError, match=r"no image domain 'labels'; the files of .* have rgb, "):
        source.images(0, ['labels'], SIDE)
    with pytest.raises(InputError, match='lacks the domain segment_semantic of 2 of 2 buildings'):
        Taskonomy(broken, 'train', domains=['rgb', 'labels'])


def test_a_building_that_is_not_there_is_named(broken):
    shutil.rmtree(broken / 'normal/taskonomy/merom')
    message = 'lacks the domain normal of 1 of 2 buildings, the first of them merom; fetch it'
    with pytest.raises(InputError, match=message):
        Taskonomy(broken, 'train')
    assert len(Taskonomy(broken, 'train', domains=['rgb', 'depth'])) == 3


def test_a_view_that_lacks_a_domain_is_refused_or_left_out(broken):
    file = broken / 'reshading/taskonomy/hanson/point_10_view_0_domain_reshading.png'
    file.unlink()
    with pytest.raises(InputError, match=rf'{file.name} is missing, and 0 more .*views: complete'):
        Taskonomy(broken, 'train')
    source = Taskonomy(broken, 'train', views='complete')
    assert source.views == [('hanson', 2, 1), ('merom', 0, 3)]
    assert len(Taskonomy(broken, 'train', domains=['rgb'])) == 3


def test_a_missing_list_tells_where_it_comes_from(broken):
    with pytest.raises(InputError, match=r'train_val_test_full\.csv is missing; it is in https'):
        Taskonomy(broken, 'train', partition='full')
    (broken / 'train_val_test_tiny.csv').unlink()
    with pytest.raises(InputError, match=r'train_val_test_tiny\.csv is missing; it is in https'):
        Taskonomy(broken, 'train')


def test_lists_lie_in_their_folder_too_and_are_chosen_by_name(broken):
    (broken / 'splits_taskonomy').mkdir()
    shutil.move(broken / 'train_val_test_tiny.csv', broken / 'splits_taskonomy')
    assert len(Taskonomy(broken, 'train')) == 3
    shutil.copy(broken / 'splits_taskonomy/train_val_test_tiny.csv', broken)  # the same in both
    assert len(Taskonomy(broken, 'train')) == 3
    (broken / 'splits_taskonomy/train_val_test_full.csv').write_text(LIST.replace('merom', 'aaa'))
    with pytest.raises(InputError, match=r'several lists .* partition: one of full, tiny'):
        Taskonomy(broken, 'train')
    assert len(Taskonomy(broken, 'train', partition='tiny')) == 3
    assert Taskonomy(broken, 'train', partition='tiny').name == 'taskonomy-tiny-train'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'no columns id, train'),
        ('building,train\nhanson,1\n', 'no columns id, train'),
        ('id,train,val,test\nhanson,0,1,0\n', 'no building of the split train'),
        ('id,train,val,test\nhanson\n', 'no building of the split train'),
        ('id,train,val,test\nnowhere,1,0,0\n', 'has no image of the 1 buildings'),
        (LIST + 'hanson,1,0,0\n', r'tiny\.csv has the building hanson twice; take'),
        (LIST + 'hanson,0,1,0\n', r'tiny\.csv has the building hanson twice; take'),
        (LIST.replace('merom,1,0,0', 'merom,1,1,0'), 'building merom in 2 splits, train, val; le'),
        (LIST.replace('ihlen,0', 'ihlen,1'), 'has the building ihlen in 2 splits, train, test'),
    ],
)
def test_a_strange_list_is_refused(broken, text, message):
    (broken / 'train_val_test_tiny.csv').write_text(text)
    with pytest.raises(InputError, match=message):
        Taskonomy(broken, 'train')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'domains': ['hha']}, "no domain 'hha'; give one of rgb, depth"),
        ({'views': 'some'}, "no views 'some'; give one of all, complete"),
        ({'max_views': -1}, 'max_views of Taskonomy must be 0 or more'),
        ({'max_views': {'val': -1}}, 'max_views of Taskonomy must be 0 or more'),
        ({'max_views': '2'}, "must be 0 or more, a whole number, not '2'"),
        ({'max_views': None}, 'a whole number, not None'),
        ({'max_views': {'train': None}}, "a whole number, not {'train': None}"),
        ({'max_views': 1.5}, 'a whole number, not 1.5'),
        ({'max_views': math.nan}, 'a whole number, not nan'),
        ({'max_views': math.inf}, 'a whole number, not inf'),
        ({'max_views': {'dev': 1}}, "no split 'dev'; give one of train, val, test"),
    ],
)
def test_unknown_options_are_named(tree, options, message):
    with pytest.raises(InputError, match=message):
        Taskonomy(tree, 'train', **options)


@pytest.mark.parametrize(
    ('name', 'image', 'message'),
    [
        ('rgb', np.ones((48, 64, 3), np.uint8), '64x48, but images of Taskonomy are square'),
        ('depth', np.ones((64, 64), np.uint8), 'has 8 bits a pixel, not 16; Taskonomy'),
        ('edge', np.ones((64, 64, 3), np.uint8), '3 channels'),
        ('labels', np.full((64, 64), 18, np.uint8), 'unknown label 18; Taskonomy has 0..17'),
    ],
)
def test_an_image_of_another_form_is_named(broken, name, image, message):
    source = Taskonomy(broken, 'val')
    file = source._path(name, source.views[0])
    cv2.imwrite(str(file), image)
    with pytest.raises(InputError, match=f'{file.name}.*{message}'):
        source.images(0, [name], SIDE)


@pytest.mark.parametrize('name', list(OFFICIAL))
def test_a_damaged_file_is_named(broken, name):
    source = Taskonomy(broken, 'val')
    file = source._path(name, source.views[0])
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=f'{file.name} is cut short or damaged'):
        source.images(0, [name], SIDE)
    file.unlink()
    with pytest.raises(InputError, match=f'{file.name} is missing'):
        source.images(0, [name], SIDE)


def test_fewer_views_are_spread_over_all(tree):
    assert Taskonomy(tree, 'train', max_views=2).views == [('hanson', 2, 1), ('hanson', 10, 0)]
    assert Taskonomy(tree, 'train', max_views=1).views == [('hanson', 2, 1)]
    assert len(Taskonomy(tree, 'train', max_views=9)) == 3
    assert _spread([('a', point, 0) for point in range(10)], 3) == [
        ('a', 0, 0),
        ('a', 3, 0),
        ('a', 6, 0),
    ]


def test_each_split_has_its_own_number_of_views(tree):
    options = {'max_views': {'train': 2, 'val': 1}}
    config = DatasetConfig('taskonomy', str(tree), options)
    assert [len(open_images(config, split)) for split in ('train', 'test')] == [2, 1]
    views = Taskonomy(tree, 'train', max_views=options['max_views']).views
    assert views == Taskonomy(tree, 'train', max_views=2).views
    assert len(Taskonomy(tree, 'train', max_views={'val': 1})) == 3


def test_the_identity_tells_views_and_domains_apart(tree):
    whole = Taskonomy(tree, 'train').describe()
    assert whole == Taskonomy(tree, 'train').describe()
    assert whole != Taskonomy(tree, 'train', max_views=2).describe()
    assert whole != Taskonomy(tree, 'train', domains=['rgb']).describe()
    assert ('hanson', 10, 0) in Taskonomy(tree, 'train').views
    (file,) = tree.rglob('point_10_view_0_domain_rgb.png')
    file.write_bytes(file.read_bytes() + b' ')
    assert whole != Taskonomy(tree, 'train').describe()
    with pytest.raises(IndexError):
        Taskonomy(tree, 'train').images(3, ['rgb'], SIDE)


def test_depth_of_the_largest_number_is_not_black():
    """65535 means no surface; the public code makes it nearly white."""
    assert int(math.log(65536) * 255 / 11.1) == 254
