from __future__ import annotations

from pathlib import Path

import pytest

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.replay.output_folder import FRAME_LIST, OutputFolder

FILES = ('overlay.mp4', 'contact_sheet.png', 'result.txt', 'result.json')


def write_run(output: Path, names: tuple[str, ...], finishes: bool = True) -> None:
    folder = OutputFolder(output)
    for name in names:
        for path in folder.add(name):
            path.write_text(name)
    for file in FILES if finishes else ():
        (output / file).write_text(' '.join(names))


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()}


def of_run(*names: str) -> set[str]:
    labels = {f'labels/{name}.png' for name in names}
    return labels | {f'overlay/{name}.jpg' for name in names} | {FRAME_LIST}


@pytest.mark.parametrize('finishes', [True, False])
def test_a_run_leaves_nothing_of_the_one_before(tmp_path, finishes):
    write_run(tmp_path, ('a', 'b.c', 'd'), finishes)
    (tmp_path / 'notes.txt').write_text('mine')
    (tmp_path / 'labels/notes.txt').write_text('mine')
    mine = {'notes.txt', 'labels/notes.txt'}
    folder = OutputFolder(tmp_path)
    earlier = of_run('a', 'b.c', 'd') | mine | set(FILES if finishes else ())
    assert files(tmp_path) == earlier  # until there is something to take its place
    for path in folder.add('e'):
        path.touch()
    assert files(tmp_path) == of_run('e') | mine
    write_run(tmp_path, ('f',))
    assert files(tmp_path) == of_run('f') | mine | set(FILES)


def test_notes_of_macos_stop_no_run(tmp_path):
    write_run(tmp_path, ('a',))
    notes = {'labels/._a.png', 'overlay/._a.jpg'}
    for name in notes:
        (tmp_path / name).touch()
    write_run(tmp_path, ('b',))
    assert files(tmp_path) == of_run('b') | notes | set(FILES)


def test_stamps_stand_behind_the_names(tmp_path):
    folder = OutputFolder(tmp_path)
    for name, stamp_ns in (('a', 1_700_000_000_123_456_789), ('b c', 5), ('d', None)):
        for path in folder.add(name, stamp_ns):
            path.touch()
    mark, *lines = (tmp_path / FRAME_LIST).read_text().splitlines()
    assert mark.startswith('#')
    assert lines == ['a\t1700000000123456789', 'b c\t5', 'd']
    write_run(tmp_path, ('e',))
    assert files(tmp_path) == of_run('e') | set(FILES)


@pytest.mark.parametrize('name', ['labels/mine.png', 'overlay/mine.jpg', *FILES, FRAME_LIST])
def test_files_of_others_are_kept_and_refused(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('mine')
    with pytest.raises(InputError, match=f'holds {name}, not written by an earlier run') as caught:
        OutputFolder(tmp_path)
    assert '\n' not in str(caught.value)
    assert files(tmp_path) == {name}
    assert path.read_text() == 'mine'


def test_files_added_to_a_run_are_kept_and_refused(tmp_path):
    write_run(tmp_path, ('a',))
    for name in ('b', 'c'):
        (tmp_path / f'labels/{name}.png').touch()
    before = files(tmp_path)
    with pytest.raises(InputError, match=r'labels/b.png and 1 more'):
        OutputFolder(tmp_path)
    assert files(tmp_path) == before


def test_a_list_of_somebody_else_gives_no_right_to_remove(tmp_path):
    (tmp_path / FRAME_LIST).write_text('made by a camera\na\n')
    (tmp_path / 'labels').mkdir()
    (tmp_path / 'labels/a.png').write_text('truth')
    with pytest.raises(InputError, match='not written by an earlier run'):
        OutputFolder(tmp_path)
    assert (tmp_path / 'labels/a.png').read_text() == 'truth'
