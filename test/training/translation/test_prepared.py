from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('torch')

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.training.config import DatasetConfig
from rgbd_fusion_seg.training.translation import prepared
from rgbd_fusion_seg.training.translation.prepared import prepared_images
from rgbd_fusion_seg.training.translation.sources import open_images


class Numbers:
    """A source whose images tell their number, domain and side."""

    name, terms, domains = 'numbers', 'ours', ('rgb', 'depth', 'shade')

    def __init__(self, count: int = 20, version: int = 1) -> None:
        self.count, self.version, self.made = count, version, []

    def __len__(self) -> int:
        return self.count

    def images(self, index, names, side):
        self.made += [(index, *names)]
        return {
            name: np.full((side, side, 3), 10 * self.domains.index(name) + index, np.uint8)
            for name in names
        }

    def describe(self):
        return {'version': self.version}


def test_every_image_is_there_in_every_domain(tmp_path):
    source = Numbers()
    found = prepared_images(source, ['shade', 'rgb'], 8, tmp_path)
    assert (len(found), found.side, found.name, found.terms) == (20, 8, 'numbers', 'ours')
    for name, offset in (('rgb', 0), ('shade', 20)):
        images = found.domains[name]
        assert images.shape == (20, 8, 8, 3)
        np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(20) + offset)
        assert not images.flags.writeable
    assert len(source.made) == 20  # both domains of an image at once


def test_only_what_is_absent_is_made(tmp_path):
    prepared_images(Numbers(), ['rgb'], 8, tmp_path)
    again = Numbers()
    prepared_images(again, ['rgb'], 8, tmp_path)
    assert again.made == []
    more = Numbers()
    prepared_images(more, ['rgb', 'depth'], 8, tmp_path)
    assert {names for _, *names in more.made for names in [tuple(names)]} == {('depth',)}


@pytest.mark.parametrize('other', [(Numbers(version=2), 8), (Numbers(), 16), (Numbers(19), 8)])
def test_other_content_or_another_side_is_made_anew(tmp_path, other):
    prepared_images(Numbers(), ['rgb'], 8, tmp_path)
    source, side = other
    source.made = []
    found = prepared_images(source, ['rgb'], side, tmp_path)
    assert len(source.made) == len(source)
    assert found.side == side


@pytest.mark.parametrize('changed', ['domains.py', 'palette.py', 'hha.py', 'test_prepared.py'])
def test_changed_code_makes_images_anew(tmp_path, monkeypatch, changed):
    """Of the domains, of what they are made by, and of the reader."""
    prepared_images(Numbers(), ['rgb'], 8, tmp_path / 'cache')
    other = tmp_path / changed
    other.write_text('changed')
    getfile = prepared.inspect.getfile
    monkeypatch.setattr(
        prepared.inspect,
        'getfile',
        lambda item: str(other) if Path(getfile(item)).name == changed else getfile(item),
    )
    source = Numbers()
    prepared_images(source, ['rgb'], 8, tmp_path / 'cache')
    assert source.made


def test_other_colours_of_classes_are_other_images(nyu_pack, tmp_path):
    source = open_images(DatasetConfig(folder=str(nyu_pack)), 'train')
    before = prepared_images(source, ['labels'], 16, tmp_path)
    classes = source.frames.classes
    source.frames.classes = dataclasses.replace(classes, colors=classes.colors[::-1].copy())
    after = prepared_images(source, ['labels'], 16, tmp_path)
    assert not np.array_equal(before.domains['labels'], after.domains['labels'])
    assert before.content() != after.content()


def test_what_cannot_be_prepared_is_told(tmp_path):
    with pytest.raises(
        InputError, match='numbers has no images of heat; it has rgb, depth, shade'
    ):
        prepared_images(Numbers(), ['rgb', 'heat'], 8, tmp_path)
    with pytest.raises(InputError, match='numbers has no images; check'):
        prepared_images(Numbers(0), ['rgb'], 8, tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    prepared_images(Numbers(), ['rgb'], 8, tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (folder / 'image.npy').write_bytes(b'')
    with pytest.raises(InputError, match=r'image\.npy is damaged .* delete the folder'):
        prepared_images(Numbers(), ['rgb'], 8, tmp_path)
    shutil.rmtree(folder)
    assert len(prepared_images(Numbers(), ['rgb'], 8, tmp_path)) == 20
