"""Cards of engines as other hands leave them, and the folders that engines lie in."""

from __future__ import annotations

import copy
import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
from bundles import write_bundle

from rgbd_fusion_seg import doctor
from rgbd_fusion_seg.bundle import ModelBundle, load_bundle
from rgbd_fusion_seg.engine.cuda import Device
from rgbd_fusion_seg.engine.engine_choice import fitting_engines
from rgbd_fusion_seg.engine.engine_files import (
    EngineCard,
    EngineTensor,
    build_lock,
    list_engines,
    read_card,
    read_plan,
    writable_folder,
    write_engine,
)
from rgbd_fusion_seg.errors import EngineError

ORIN = Device(0, 'Orin', '8.7', 62841)
TENSORS = (
    EngineTensor(
        'rgb', 'input', 'float32', (1, 3, -1, -1), ((1, 3, 32, 32), (1, 3, 48, 64), (1, 3, 96, 96))
    ),
    EngineTensor('logits', 'output', 'float32', (1, 4, -1, -1)),
)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch) -> ModelBundle:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return load_bundle(write_bundle(tmp_path / 'models/tiny'))


@pytest.fixture
def written(bundle: ModelBundle) -> Path:
    card = EngineCard(
        bundle.name,
        bundle.weights_sha256,
        'tensorrt',
        '10.3.0',
        'fp16',
        ('8.7',),
        'Orin',
        TENSORS,
        options={'sizes': [[64, 48]], 'version_compatible': False},
        build_seconds=6,
        agreement={'frames': 8, 'largest_logit_error': None},
        latency_ms={'p50': 3.5},
    )
    return write_engine(writable_folder(bundle), 'tiny', b'an engine', card)


def test_a_card_is_read_as_it_was_written(written):
    card = read_card(written)
    assert card.tensors == TENSORS
    assert card.compute_capabilities == ('8.7',)
    assert card.latency_ms == {'p50': 3.5}
    again = write_engine(written.parent, 'tiny', b'an engine', card)
    assert read_card(again) == card


def changed(entries: dict[str, Any], place: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    entries = inner = copy.deepcopy(entries)
    *parents, last = place
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return entries


@pytest.mark.parametrize(
    ('place', 'value'),
    [
        (('format',), 2),
        (('bundle',), None),
        (('bundle',), '\ud800'),
        (('gpu',), 'Orin\n'),
        (('version',), 10.3),
        (('onnx_sha256',), []),
        (('options',), None),
        (('options',), 'none'),
        (('gpu',), 3),
        (('build_seconds',), 'long'),
        (('build_seconds',), True),
        (('agreement',), 'good'),
        (('latency_ms',), {'p50': 'fast'}),
        (('compute_capabilities',), [8.7]),
        (('compute_capabilities',), '8.7'),
        (('compute_capabilities',), None),
        (('tensors',), {}),
        (('tensors', 0), 'rgb'),
        (('tensors', 0, 'mode'), 'sideways'),
        (('tensors', 0, 'shape'), '1x3'),
        (('tensors', 0, 'shape', 1), '3'),
        (('tensors', 0, 'shape', 1), None),
        (('tensors', 0, 'shape', 1), 3.0),
        (('tensors', 0, 'shape'), [1, 3, -1]),
        (('tensors', 0, 'profile', 1, 2), '48'),
        (('tensors', 0, 'profile', 1), None),
        (('tensors', 0, 'profile', 1), [1, 3]),
        (('tensors', 0, 'profile'), [[1, 3, 32, 32]]),
        (('tensors', 0, 'colour'), 'red'),
        (('engine_file',), ''),
        (('engine_file',), '..'),
        (('engine_file',), '../tiny.engine'),
        (('engine_file',), 'tiny\0.engine'),
        (('owner',), 'nobody'),
    ],
)
def test_a_card_with_an_entry_of_another_kind_is_refused(bundle, written, place, value):
    entries = json.loads(written.read_text())
    written.write_text(json.dumps(changed(entries, place, value)))
    with pytest.raises(EngineError, match=r'cannot be used .*; build the engine again'):
        read_card(written)
    # Nobody stumbles over it.
    with pytest.raises(EngineError, match=r'tiny\.json has an unusable card'):
        fitting_engines(list_engines(bundle), bundle, ORIN, {'tensorrt': '10.3.0'})
    told = doctor._tensorrt(str(bundle.path))
    assert 'bad' in {f.mark for f in told if f.name == written.stem}


@pytest.mark.parametrize('text', ['', '[]', 'null', '"card"', '{"format": 1}', '{"format": null}'])
def test_a_file_that_is_no_card_is_refused(written, text):
    written.write_text(text)
    with pytest.raises(EngineError, match='cannot be used'):
        read_card(written)


@pytest.fixture
def refused(monkeypatch) -> set[tuple[str, int]]:
    """Pairs of a folder's name and a mode in which its lock cannot be opened, for root neither."""
    refused: set[tuple[str, int]] = set()
    opened = os.open

    def open_file(path, flags, *more, **keywords):
        place = Path(path)
        if place.name == '.build.lock' and (place.parent.name, flags & os.O_ACCMODE) in refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, *more, **keywords)

    monkeypatch.setattr(os, 'open', open_file)
    return refused


def test_the_lock_of_another_user_is_taken_all_the_same(bundle, refused):
    folder = writable_folder(bundle)
    refused.add((folder.name, os.O_RDWR))
    assert writable_folder(bundle) == folder
    with build_lock(folder), pytest.raises(EngineError, match='another process is building'):
        build_lock(folder).__enter__()
    with build_lock(folder, wait=True):  # and it was given back
        pass


def test_a_lock_that_is_closed_to_this_user_leads_to_the_cache(bundle, refused, tmp_path):
    folder = writable_folder(bundle)
    refused |= {(folder.name, os.O_RDWR), (folder.name, os.O_RDONLY)}
    assert writable_folder(bundle).is_relative_to(tmp_path / 'cache')
    with pytest.raises(EngineError, match=r'engines cannot be locked .* \(Permission denied\)'):
        build_lock(folder).__enter__()


@pytest.mark.parametrize('wait', [False, True])
def test_a_disk_without_locks_is_no_other_process(bundle, monkeypatch, wait):
    def flock(lock, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', flock)
    with pytest.raises(EngineError, match=r'cannot be locked .* \(No locks available\)'):
        build_lock(writable_folder(bundle), wait).__enter__()


def test_other_engines_stay_and_everybody_may_read_them(tmp_path):
    card = EngineCard('tiny', 'ab', 'tensorrt', '10.3.0', 'fp16', ('8.7',), '', ())
    kept = write_engine(tmp_path, 'tensorrt-fp16-64x48-sm87-compatible', b'one', card)
    for plan in (b'two', b'three'):
        path = write_engine(tmp_path, 'tensorrt-fp16-64x48-sm87', plan, card)
    assert [read_plan(p, read_card(p)) for p in (kept, path)] == [b'one', b'three']
    assert len(list(tmp_path.glob('*.engine'))) == 2
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o644}
