from __future__ import annotations

import ast
import inspect
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

import rgbd_fusion_seg
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.preprocess import depth_image, hha_image

pytest.importorskip('torch')

from rgbd_fusion_seg.training.datasets import DATASETS, cache, prepared_files
from rgbd_fusion_seg.training.datasets.base import ClassSet, LabelledFrame
from rgbd_fusion_seg.training.datasets.cache import cached_frames

CAMERA = Intrinsics(70.0, 70.0, 39.5, 29.5, 80, 60)


class Walls:
    """Slanted walls with holes; counts how often it is read."""

    name, terms = 'walls', 'made by a test'
    classes = ClassSet('two', ('left', 'right'), np.eye(2, 3, dtype=np.uint8))

    def __init__(self, num_frames=11, size=(80, 60), version=1):
        self.num_frames, self.size, self.version = num_frames, size, version
        self.reads = 0

    def __len__(self):
        return self.num_frames

    def describe(self):
        return {'version': self.version}

    def __getitem__(self, index):
        self.reads += 1
        rng = np.random.default_rng((self.version, index))
        u = np.arange(80, dtype=np.float32)
        depth = np.tile(1.0 + index + 0.01 * u, (60, 1)).astype(np.float32)
        depth[20:26, 10:30] = 0
        labels = np.tile((u >= 41).astype(np.uint8), (60, 1))
        labels[:2] = 255
        rgb = rng.integers(0, 256, (60, 80, 3), np.uint8)
        return LabelledFrame(RgbdFrame(rgb, depth, CAMERA), labels)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith('.'))


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith('.partial')]


def test_the_cache_holds_what_the_source_and_the_runtime_give(tmp_path):
    source = Walls()
    frames = cached_frames(source, tmp_path)
    assert (len(frames), frames.name, frames.terms) == (11, 'walls', 'made by a test')
    assert frames.classes is source.classes
    for i in range(len(source)):
        item = source[i]
        np.testing.assert_array_equal(frames.rgb[0][i], item.frame.rgb)
        blocks = item.frame.rgb.reshape(30, 2, 40, 2, 3).astype(float)
        assert np.abs(frames.rgb[1][i] - blocks.mean((1, 3))).max() <= 0.75
        np.testing.assert_array_equal(frames.labels[i], item.labels)
        for level, size in zip(frames.hha, ((20, 15), (40, 30)), strict=True):
            np.testing.assert_array_equal(level[i], hha_image(item.frame.depth, CAMERA, *size))


def test_statistics_are_those_of_the_source(tmp_path):
    source = Walls()
    frames = cached_frames(source, tmp_path)
    labels = np.stack([source[i].labels for i in range(len(source))])
    depth = [source[i].frame.depth for i in range(len(source))]
    assert frames.class_pixels == ((labels == 0).sum(), (labels == 1).sum())
    assert frames.valid_depth == pytest.approx(np.mean(np.stack(depth) > 0), abs=1e-3)
    assert frames.depth_range_m[0] == pytest.approx(
        np.percentile(depth[0][depth[0] > 0], 1), abs=0.01
    )
    assert frames.depth_range_m[1] == pytest.approx(
        np.percentile(depth[-1][depth[-1] > 0], 99), abs=0.01
    )


def test_stray_readings_are_not_in_the_range_of_depth(tmp_path):
    class Stray(Walls):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            item.frame.depth[40, 30:32] = 0.4, 19.0
            return item

    near, far = cached_frames(Stray(3), tmp_path).depth_range_m
    assert near == pytest.approx(1.0, abs=0.02)
    assert far == pytest.approx(3.8, abs=0.02)


def test_frames_without_any_reading_have_no_range(tmp_path):
    class Blind(Walls):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            item.frame.depth[:] = 0
            return item

    frames = cached_frames(Blind(2), tmp_path)
    assert (frames.depth_range_m, frames.valid_depth) == ((0.0, 0.0), 0.0)


def test_frames_of_another_size_are_kept_at_the_size_of_the_source(tmp_path):
    frames = cached_frames(Walls(size=(20, 16)), tmp_path)
    assert frames.rgb[0].shape[1:] == (16, 20, 3)
    assert frames.rgb[1].shape[1:] == (8, 10, 3)
    assert [level.shape[1:3] for level in frames.hha] == [(4, 5), (8, 10)]
    middle = frames.labels[:, 8]  # of the four columns under column 10, three are 'right'
    assert (middle[:, :10] == 0).all()
    assert (middle[:, 10:] == 1).all()


def test_a_further_size_of_hha_leaves_the_other_parts_alone(tmp_path):
    source = Walls()
    cached_frames(source, tmp_path)
    before = {name: (tmp_path / name).stat().st_ino for name in visible(tmp_path)}
    source.reads = 0
    frames = cached_frames(source, tmp_path, [(80, 60), (40, 30)])
    assert [level.shape[2] for level in frames.hha] == [20, 40, 80]
    after = {name: (tmp_path / name).stat().st_ino for name in visible(tmp_path)}
    assert before.items() < after.items()
    assert len(after) == len(before) + 1
    source.reads = 0
    cached_frames(source, tmp_path, [(80, 60)])
    cached_frames(source, tmp_path)
    assert source.reads == 0


def test_depth_in_metres_is_made_where_it_is_asked_for_and_as_fine_as_a_kinect(tmp_path):
    source = Walls()
    assert cached_frames(source, tmp_path).depth == ()
    before = {name: (tmp_path / name).stat().st_ino for name in visible(tmp_path)}
    frames = cached_frames(source, tmp_path, depth=True)
    after = {name: (tmp_path / name).stat().st_ino for name in visible(tmp_path)}
    assert before.items() < after.items()
    assert [name.rpartition('-')[0] for name in sorted(after.keys() - before.keys())] == [
        'walls-depth20x15',
        'walls-depth40x30',
    ]
    for level, size in zip(frames.depth, ((20, 15), (40, 30)), strict=True):
        assert (level.shape, level.itemsize) == ((11, size[1], size[0]), 2)
        for i in range(len(source)):
            metres = depth_image(source[i].frame.depth, *size)
            assert metres.min() >= 1  # no hole is left
            steps = 2.85e-3 * metres**2  # of a Kinect
            assert (np.abs(level[i] - metres) < 0.5 * steps).all()
    source.reads = 0
    sizes = [level.shape[2] for level in cached_frames(source, tmp_path, depth=True).depth]
    assert (sizes, source.reads) == ([20, 40], 0)
    frames = cached_frames(source, tmp_path, [(80, 60)], depth=True)
    assert [level.shape[2] for level in frames.depth] == [20, 40, 80]
    kept = np.stack([source[i].frame.depth for i in range(len(source))])
    np.testing.assert_allclose(frames.depth[2][kept > 0], kept[kept > 0], rtol=2**-11)


def test_changed_code_of_hha_makes_hha_anew_and_nothing_else(tmp_path, monkeypatch):
    constants = tmp_path / 'constants.py'
    module = types.SimpleNamespace(__file__=str(constants))
    monkeypatch.setattr(cache.inspect, 'getfile', lambda item: getattr(item, '__file__', __file__))
    monkeypatch.setattr(cache, 'HHA_CODE', (*cache.HHA_CODE, module))
    folder = tmp_path / 'cache'
    constants.write_text('RADIUS = 3')
    cached_frames(Walls(), folder)
    first = visible(folder)
    constants.write_text('RADIUS = 4')
    cached_frames(Walls(), folder)
    new = set(visible(folder)) - set(first)
    assert sorted(name.split('-')[1] for name in new) == ['hha20x15', 'hha40x30']


def test_changed_code_of_what_a_reader_inherits_makes_all_anew(tmp_path, monkeypatch):
    class Special(Walls):
        pass

    code, folder = tmp_path / 'walls.py', tmp_path / 'cache'
    getfile = cache.inspect.getfile
    monkeypatch.setattr(
        cache.inspect, 'getfile', lambda item: str(code) if item is Walls else getfile(item)
    )
    code.write_text('first')
    cached_frames(Special(2), folder)
    first = visible(folder)
    code.write_text('second')
    cached_frames(Special(2), folder)
    assert len(visible(folder)) == 2 * len(first)


WITHOUT_CONTENT = {
    *('errors', 'jit', 'bundle'),
    'kernels',  # of it, preparing uses nothing: `normalize` serves the network's tensors
    *('palette', 'cityscapes_classes', 'scannet_classes', 'sunrgbd_classes', 'nyudv2'),
    *('calibration', 'folders', 'yaml_text', 'synthetic', 'scene', 'sensor'),
}
"""Modules that no prepared number depends on, or whose part `describe` of the reader tells."""


def imported(module: types.ModuleType) -> set[str]:
    """Return the modules of the package that one imports, by the last part of their names."""
    root, found = Path(rgbd_fusion_seg.__file__).parent.parent, set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith('rgbd_fusion_seg'):
            is_package = root.joinpath(*node.module.split('.')).is_dir()
            names = [alias.name for alias in node.names] if is_package else [node.module]
            found |= {name.rpartition('.')[2] for name in names}
    return found


@pytest.mark.parametrize('kind', ['colour', 'hha'])
def test_all_code_that_is_imported_for_the_content_is_part_of_the_key(kind):
    code = cache.HHA_CODE if kind == 'hha' else cache.COLOUR_CODE
    further = {'hha'} if kind == 'colour' else set()
    readers = [inspect.getmodule(reader) for reader in DATASETS.values()]
    hashed = {Path(module.__file__).stem for module in code}
    for module in (*code, *readers):
        assert imported(module) <= hashed | further | WITHOUT_CONTENT, module.__name__


@pytest.mark.parametrize('change', [{'version': 2}, {'num_frames': 9}, {'size': (40, 30)}])
def test_other_data_never_read_an_old_cache(tmp_path, change):
    cached_frames(Walls(), tmp_path)
    source = Walls(**change)
    frames = cached_frames(source, tmp_path)
    assert source.reads == len(source)
    item = source[0].frame.rgb
    np.testing.assert_array_equal(
        frames.rgb[0][0], cv2.resize(item, source.size, interpolation=cv2.INTER_AREA)
    )


def test_the_number_of_threads_changes_nothing(tmp_path, monkeypatch):
    results = []
    for threads in (1, 4):
        monkeypatch.setattr(prepared_files, 'MAX_THREADS', threads)
        monkeypatch.setattr(os, 'cpu_count', lambda: 4)
        monkeypatch.setattr(prepared_files, 'CHUNK', 2)
        results.append(cached_frames(Walls(), tmp_path / str(threads)))
    one, four = results
    for a, b in zip(
        (*one.rgb, one.labels, *one.hha), (*four.rgb, four.labels, *four.hha), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert one.depth_range_m == four.depth_range_m


def test_a_damaged_frame_stops_the_build_and_leaves_nothing(tmp_path):
    class Damaged(Walls):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return LabelledFrame(item.frame, item.labels + 2 * (item.labels == 1))

    source = Damaged()
    with pytest.raises(InputError, match=r'walls, frame \d+: .*labels must be 0\.\.1 or 255'):
        cached_frames(source, tmp_path)
    assert visible(tmp_path) == leftovers(tmp_path) == []


@pytest.mark.parametrize('label', [2, 254])
def test_labels_that_are_no_class_are_refused(label):
    class Beyond(Walls):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            item.labels[5, 7] = label
            return item

    with pytest.raises(
        InputError, match=rf'frame 3: 1 pixels .* such as {label}; .* 0\.\.1 or 255'
    ):
        cache.read_frame(Beyond(), 3)


@pytest.mark.parametrize('name', ['rgb.npy', 'info.json'])
@pytest.mark.parametrize('left', [0.5, 0.0, None])
def test_a_damaged_cache_is_named_and_what_to_delete(tmp_path, name, left):
    cached_frames(Walls(), tmp_path)
    (path,) = tmp_path.glob(f'walls-colour-*/{name}')
    path.unlink() if left is None else os.truncate(path, int(left * path.stat().st_size))
    with pytest.raises(InputError, match=f'{name} is damaged .* delete the folder .*colour-'):
        cached_frames(Walls(), tmp_path)
    shutil.rmtree(path.parent)
    assert len(cached_frames(Walls(), tmp_path)) == 11


def test_arrays_of_another_type_are_not_taken_for_prepared_frames(tmp_path):
    cached_frames(Walls(), tmp_path, depth=True)
    (path,) = tmp_path.glob('walls-depth20x15-*/depth.npy')
    np.save(path, np.load(path).astype(np.float32))
    with pytest.raises(InputError, match=r'depth\.npy is damaged \(float32 is not float16\)'):
        cached_frames(Walls(), tmp_path, depth=True)


def test_what_is_prepared_is_that_of_its_format(tmp_path):
    """Who changes any of this raises the format, or older caches are taken for the new ones."""

    class Speckled(Walls):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            labels = np.random.default_rng(index).choice([0, 1, 255], item.labels.shape)
            return LabelledFrame(item.frame, labels.astype(np.uint8))

    source = Speckled(num_frames=2, size=(32, 16))
    frames = cached_frames(source, tmp_path, hha_sizes=[(32, 16)], depth=True)
    arrays = [*frames.rgb, frames.labels, *frames.hha, *frames.depth]
    layout = [(x.shape[1:], x.dtype.name) for x in arrays]
    assert (cache.FORMAT, layout) == (4, [
        ((16, 32, 3), 'uint8'), ((8, 16, 3), 'uint8'), ((16, 32), 'uint8'),
        ((4, 8, 3), 'uint8'), ((8, 16, 3), 'uint8'), ((16, 32, 3), 'uint8'),
        ((4, 8), 'float16'), ((8, 16), 'float16'), ((16, 32), 'float16'),
    ])  # fmt: skip
    rows, columns = (
        ((np.arange(n) + 0.5) * whole / n).astype(int) for n, whole in ((16, 60), (32, 80))
    )
    np.testing.assert_array_equal(frames.labels[1], source[1].labels[np.ix_(rows, columns)])
    metres = depth_image(source[1].frame.depth, 32, 16)
    np.testing.assert_array_equal(frames.depth[2][1], metres.astype(np.float16))


def test_a_source_without_frames_is_refused(tmp_path):
    with pytest.raises(InputError, match='walls has no frames'):
        cached_frames(Walls(num_frames=0), tmp_path)


def test_too_little_space_is_told_before_anything_is_read(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(prepared_files.shutil, 'disk_usage', lambda path: usage)
    source = Walls(num_frames=5000)
    with pytest.raises(InputError, match=rf'0\.\d+ GB.*{tmp_path}.*only 0\.00 GB are free'):
        cached_frames(source, tmp_path)
    assert source.reads == 0
    assert visible(tmp_path) == leftovers(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing_half_made(tmp_path):
    """The kernel refuses files beyond a size, as a quota does, where the check saw free space."""
    source, limits = Walls(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r'cannot be written to .* make room there'):
            cached_frames(source, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert source.reads == 0
    assert visible(tmp_path) == leftovers(tmp_path) == []
    assert len(cached_frames(source, tmp_path)) == len(source)


BUILDER = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.training.datasets.base import ClassSet, LabelledFrame
from rgbd_fusion_seg.training.datasets.cache import cached_frames

folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])

class Plain:
    name, terms, size = 'plain', 'made by a test', (16, 16)
    classes = ClassSet('two', ('all', 'none'), np.zeros((2, 3), np.uint8))
    def __len__(self): return 20
    def describe(self): return {}
    def __getitem__(self, index):
        if index == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with (folder.parent / 'reads').open('a') as file:
            file.write(f'{index}\\n')
        time.sleep(0.02)
        rgb = np.full((16, 16, 3), index, np.uint8)
        depth = np.ones((16, 16), np.float32)
        camera = Intrinsics(20.0, 20.0, 8.0, 8.0, 16, 16)
        return LabelledFrame(RgbdFrame(rgb, depth, camera), np.zeros((16, 16), np.uint8))

print('ready', flush=True)
sys.stdin.readline()
frames = cached_frames(Plain(), folder)
assert (frames.rgb[0][:, 0, 0, 0] == np.arange(20)).all()
"""


@pytest.fixture
def builder(tmp_path):
    """Start a process that builds a cache once it is told to go."""
    script = tmp_path / 'builder.py'
    script.write_text(textwrap.dedent(BUILDER))
    running = []

    def start(kill_at=-1) -> subprocess.Popen:
        command = [sys.executable, str(script), str(tmp_path / 'cache'), str(kill_at)]
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
        running.append(subprocess.Popen(command, **pipes))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_two_processes_share_one_build(tmp_path, builder):
    processes = [builder(), builder()]
    for process in processes:
        assert process.stdout.readline() == 'ready\n'
    for process in processes:
        process.stdin.write('go\n')
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    reads = (tmp_path / 'reads').read_text().split()
    assert sorted(map(int, reads)) == list(range(20))
    assert leftovers(tmp_path / 'cache') == []


def test_a_build_that_was_killed_is_made_anew(tmp_path, builder):
    killed = builder(kill_at=9)
    killed.communicate('go\n')
    assert killed.returncode == -signal.SIGKILL
    folder = tmp_path / 'cache'
    assert visible(folder) == []
    assert leftovers(folder) == ['.plain.partial']
    again = builder()
    again.communicate('go\n')
    assert again.returncode == 0
    assert leftovers(folder) == []
    assert len(visible(folder)) == 3


def test_synthetic_rooms_are_the_same_in_any_order():
    from rgbd_fusion_seg.training.datasets.synthetic_rooms import SyntheticRooms

    rooms = SyntheticRooms(6)
    forwards = [rooms[i] for i in (3, 4)]
    backwards = [SyntheticRooms(9)[i] for i in (4, 3)][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(a.frame.depth, b.frame.depth)
        np.testing.assert_array_equal(a.frame.rgb, b.frame.rgb)
    assert not np.array_equal(forwards[0].frame.rgb, forwards[1].frame.rgb)
    with pytest.raises(IndexError):
        rooms[6]
    assert len(list(itertools.islice(iter(SyntheticRooms(1)), 5))) == 1
