from __future__ import annotations

import numpy as np
import pytest

from rgbd_fusion_seg.errors import InputError

pytest.importorskip('torch')
pytest.importorskip('h5py', reason='needs the extra [train]')

from rgbd_fusion_seg.training.config import DatasetConfig
from rgbd_fusion_seg.training.datasets import open_dataset
from rgbd_fusion_seg.training.translation import domains
from rgbd_fusion_seg.training.translation.sources import RgbdImages, open_images


def config(folder, name: str = 'nyudv2', **options) -> DatasetConfig:
    return DatasetConfig(name=name, folder=str(folder), options=options)


def test_a_data_set_gives_the_domains_of_its_frames(nyu_pack):
    source = open_images(config(nyu_pack), 'test')
    frames = open_dataset(config(nyu_pack), 'test')
    assert (len(source), source.name, source.terms) == (2, 'nyudv2-test', frames.terms)
    assert source.domains == tuple(domains.DOMAINS)
    names = ['shade', 'labels', 'rgb']
    found = source.images(1, names, 96)
    expected = domains.domain_images(frames[1], names, frames.classes, 96)
    assert list(found) == names
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name])


def test_splits_are_those_of_the_configuration(nyu_pack):
    assert len(open_images(config(nyu_pack), 'train')) == 6
    swapped = DatasetConfig(name='nyudv2', folder=str(nyu_pack), test_split='train')
    assert open_images(swapped, 'test').name == 'nyudv2-train'


@pytest.mark.parametrize('name', ['nyudv2', 'sunrgbd', 'scannet', 'cityscapes', 'synthetic',
                                  'taskonomy'])  # fmt: skip
def test_unknown_splits_are_named_with_the_known_ones(name, tmp_path):
    unknown = DatasetConfig(name=name, folder=str(tmp_path), test_split='dev')
    words = rf"'{name}' has the splits train, (val|test).*, not 'dev'; correct test_split"
    with pytest.raises(InputError, match=words):
        open_images(unknown, 'test')


def test_rendered_rooms_need_no_files(tmp_path):
    source = open_images(config(tmp_path, 'synthetic', train_frames=4), 'train')
    image = source.images(0, ['normal'], 48)['normal']
    assert (image.shape, image.dtype) == ((48, 48, 3), np.uint8)


def test_the_identity_follows_frames_and_constants(nyu_pack, monkeypatch):
    train, test = (open_images(config(nyu_pack), split).describe() for split in ('train', 'test'))
    assert train != test
    assert train == open_images(config(nyu_pack), 'train').describe()
    monkeypatch.setattr(domains, 'NOISE', 0.01)
    assert train != open_images(config(nyu_pack), 'train').describe()


def test_an_unknown_domain_or_frame_is_refused(nyu_pack):
    source = RgbdImages(open_dataset(config(nyu_pack), 'test'))
    with pytest.raises(InputError, match="no image domain 'hha'"):
        source.images(0, ['hha'], 64)
    with pytest.raises(IndexError):
        source.images(2, ['rgb'], 64)


def test_unknown_data_sets_and_options_are_named(tmp_path, nyu_pack):
    with pytest.raises(InputError, match=r"no data set 'imagenet'; .*nyudv2.*taskonomy"):
        open_images(config(tmp_path, 'imagenet'), 'train')
    with pytest.raises(InputError, match="'taskonomy' has no option 'size'; it has partition, "):
        open_images(config(tmp_path, 'taskonomy', size=3), 'train')
    with pytest.raises(InputError, match="'nyudv2' has no option 'size'"):
        open_images(config(nyu_pack, size=3), 'train')
    with pytest.raises(InputError, match=r'train_val_test_tiny\.csv is missing'):
        open_images(config(tmp_path, 'taskonomy'), 'train')
    with pytest.raises(InputError, match=r"options .* of the data set 'taskonomy' cannot be used"):
        open_images(config(tmp_path, 'taskonomy', domains=5), 'train')
