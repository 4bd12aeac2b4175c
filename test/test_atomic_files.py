"""Files and folders are replaced whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rgbd_fusion_seg import atomic_files
from rgbd_fusion_seg.atomic_files import replace_folder, replacing_file, write_atomically


@pytest.fixture
def acts(monkeypatch):
    """Return what is waited for and what takes its place, in order, by name."""
    real_sync, real_replace, done = os.fsync, os.replace, []

    def sync(handle):
        done.append(('sync', Path(os.readlink(f'/proc/self/fd/{handle}')).name))
        real_sync(handle)

    def replace(source, target):
        done.append(('replace', Path(source).name, Path(target).name))
        real_replace(source, target)

    monkeypatch.setattr(os, 'fsync', sync)
    monkeypatch.setattr(os, 'replace', replace)
    return done


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, acts):
    """Else a power cut leaves the new name with nothing behind it."""
    with replacing_file(tmp_path / 'file', tmp_path / 'part') as part:
        part.write_text('whole')
    assert acts == [('sync', 'part'), ('replace', 'part', 'file'), ('sync', tmp_path.name)]
    assert (tmp_path / 'file').read_text() == 'whole'


@pytest.fixture
def two_steps(monkeypatch):
    """As on disks and systems where folders do not change places in one step."""
    monkeypatch.setattr(atomic_files, '_exchange', lambda one, other: False)


def test_a_folder_is_replaced_in_one_step(tmp_path, monkeypatch):
    """Killed at any time, it leaves the old folder or the new one."""
    for name in ('place/new', 'folder'):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / 'file').write_text(name)
    if not atomic_files._exchange(tmp_path / 'place/new', tmp_path / 'folder'):
        pytest.skip('folders do not change places in one step on this disk')
    atomic_files._exchange(tmp_path / 'place/new', tmp_path / 'folder')

    def killed(source, target):
        raise RuntimeError

    monkeypatch.setattr(os, 'replace', killed)
    monkeypatch.chdir(tmp_path)
    replace_folder(Path('place/new'), Path('folder'))
    assert (tmp_path / 'folder/file').read_text() == 'place/new'


def test_a_folder_is_on_the_disk_before_it_takes_its_place(tmp_path, acts, two_steps):
    (tmp_path / 'place/new/inner').mkdir(parents=True)
    (tmp_path / 'place/new/inner/file').write_text('whole')
    (tmp_path / 'folder').mkdir()
    replace_folder(tmp_path / 'place/new', tmp_path / 'folder')
    assert acts == [
        ('sync', 'file'),
        ('replace', 'folder', 'replaced'),
        ('replace', 'new', 'folder'),
        ('sync', tmp_path.name),
    ]
    assert (tmp_path / 'folder/inner/file').read_text() == 'whole'


def test_a_file_stays_as_it_was_where_writing_fails(tmp_path):
    path = tmp_path / 'file'
    write_atomically(path, b'first')
    with pytest.raises(ZeroDivisionError), replacing_file(path) as part:
        part.write_bytes(b'%d' % (1 // 0))
    assert path.read_bytes() == b'first'
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_stays_where_no_other_can_take_its_place(tmp_path, monkeypatch, two_steps):
    (tmp_path / 'place/new').mkdir(parents=True)
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder/file').write_text('first')
    real_replace = os.replace

    def replace(source, target):
        if Path(source).name == 'new':
            raise OSError(28, 'No space left on device')
        real_replace(source, target)

    monkeypatch.setattr(os, 'replace', replace)
    with pytest.raises(OSError, match='No space left'):
        replace_folder(tmp_path / 'place/new', tmp_path / 'folder')
    assert (tmp_path / 'folder/file').read_text() == 'first'


def test_several_writers_of_a_file_do_not_meet(tmp_path):
    path = tmp_path / 'file'
    with replacing_file(path) as one, replacing_file(path) as other:
        one.write_text('one')
        other.write_text('other')
    assert path.read_text() == 'one'
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_can_be_read_by_others(tmp_path):
    write_atomically(tmp_path / 'file', b'')
    assert (tmp_path / 'file').stat().st_mode & 0o777 == 0o644
