from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg.errors import InputError

pytest.importorskip('h5py', reason='needs the extra [train]')

import h5py
import scipy.io

from rgbd_fusion_seg.training.config import DataConfig, DatasetConfig
from rgbd_fusion_seg.training.datasets import sunrgbd
from rgbd_fusion_seg.training.datasets.prepare import check_data
from rgbd_fusion_seg.training.datasets.sunrgbd import SunRgbd, decode_depth

OFFICIAL = '/n/fs/sun3d/data/SUNRGBD/'
TOOLBOX = 'SUNRGBDtoolbox'
SIZES = {'kv2/kinect2data/000002_a-resize': (73, 53), 'kv1/NYUdata/NYU0001': (56, 42)}
SIZES |= {'realsense/lg/2014_b': (68, 53), 'xtion/sun3ddata/mit/1_c': (64, 48)}
FOLDERS = tuple(SIZES)
"""In the order of SUNRGBDMeta."""
TRAIN, TEST = (FOLDERS[3], FOLDERS[0]), (FOLDERS[2], FOLDERS[1])


def frame_content(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour (RGB), depth in mm and labels of frame `index` of the list, unlike any other's."""
    width, height = SIZES[FOLDERS[index]]
    rng = np.random.default_rng(index)
    colour = np.empty((height, width, 3), np.uint8)
    colour[:] = (200, 40 + 40 * index, 20)
    millimetres = rng.integers(500, 7900, (height, width)).astype(np.uint16)
    millimetres[:5] = 0
    labels = rng.integers(0, 38, (height, width)).astype(np.uint8)
    return colour, millimetres, labels


def write_frame(folder: Path, index: int) -> None:
    for name in ('image', 'depth', 'depth_bfx'):
        (folder / name).mkdir(parents=True)
    colour, millimetres, _ = frame_content(index)
    cv2.imwrite(str(folder / f'image/{index}0.jpg'), colour[..., ::-1])
    rotated = millimetres * 8
    cv2.imwrite(str(folder / f'depth_bfx/{index}9.png'), rotated)
    cv2.imwrite(str(folder / f'depth/{index}9.png'), np.where(millimetres % 2, rotated, 0))
    row = f'529.5 0 {30 + index} 0 530.5 26.5 0 0 1'
    three = f'529.5 0 {30 + index}\n0 530.5 26.5\n0 0 1\n'
    (folder / 'intrinsics.txt').write_text(three if index % 2 else row)


def write_meta(path: Path, names: tuple[str, ...]) -> None:
    """The list of frames, in the order of their labels."""
    kind = [(name, object) for name in ('K', 'depthpath', 'rgbpath', 'rgbname', 'sensorType')]
    meta = np.zeros((1, len(names)), dtype=kind)
    for place, name in enumerate(names):
        i = FOLDERS.index(name)
        depth, rgb = (
            f'{OFFICIAL}{name}/{part}' for part in (f'depth/{i}9.png', f'image/{i}0.jpg')
        )
        meta[0, place] = (np.eye(3), depth, rgb, f'{i}0.jpg', name.split('/')[0])
    scipy.io.savemat(path, {'SUNRGBDMeta': meta}, do_compression=True)


def write_labels(path: Path, labels: list[np.ndarray]) -> None:
    """A 1xN struct array with two fields, as MATLAB writes it in its format 7.3."""
    with h5py.File(path, 'w', userblock_size=512) as file:
        contents = file.create_group('#refs#')
        struct = file.create_group('SUNRGBD2Dseg')
        struct.attrs['MATLAB_class'] = np.bytes_('struct')
        fields = {'seglabelall': [label + np.uint16(700) for label in labels], 'seglabel': labels}
        for field, images in fields.items():
            references = np.empty((len(images), 1), dtype=h5py.ref_dtype)
            for i, image in enumerate(images):
                data = contents.create_dataset(f'{field}{i}', data=image.T, compression='gzip')
                data.attrs['MATLAB_class'] = np.bytes_(str(image.dtype))
                references[i, 0] = data.ref
            struct.create_dataset(field, data=references, dtype=h5py.ref_dtype)
    with path.open('r+b') as file:
        header = b'MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .'
        file.write(header.ljust(124) + b'\x00\x02IM')


def cells(names: tuple[str, ...]) -> np.ndarray:
    row = np.empty((1, len(names)), dtype=object)
    row[0] = [OFFICIAL + name for name in names]
    return row


@pytest.fixture(scope='module')
def tree(tmp_path_factory) -> Path:
    """Four frames of four sensors in the official layout."""
    folder = tmp_path_factory.mktemp('sunrgbd')
    (folder / TOOLBOX / 'Metadata').mkdir(parents=True)
    (folder / TOOLBOX / 'traintestSUNRGBD').mkdir()
    for i, name in enumerate(FOLDERS):
        write_frame(folder / 'SUNRGBD' / name, i)
    write_meta(folder / sunrgbd.META, FOLDERS)
    split = {'alltrain': cells(TRAIN), 'alltest': cells(TEST), 'trainvalsplit': np.eye(2)}
    scipy.io.savemat(folder / sunrgbd.SPLIT, split)
    write_labels(folder / sunrgbd.LABELS, [frame_content(i)[2] for i in range(len(FOLDERS))])
    return folder


@pytest.fixture
def broken(tree, tmp_path) -> Path:
    """A copy of the tree to be damaged."""
    return Path(shutil.copytree(tree, tmp_path / 'copy'))


@pytest.mark.parametrize(('split', 'names'), [('train', TRAIN), ('test', TEST)])
def test_frames_of_a_split_come_with_their_own_labels_depth_and_camera(tree, split, names):
    data = SunRgbd(tree, split)
    assert len(data) == len(names)
    for name, item in zip(names, data, strict=True):
        index = FOLDERS.index(name)
        colour, millimetres, labels = frame_content(index)
        assert np.abs(item.frame.rgb.astype(int) - colour).max() < 8
        np.testing.assert_allclose(item.frame.depth, millimetres / 1000, rtol=1e-6)
        expected = np.where(labels == 0, 255, labels.astype(int) - 1)
        np.testing.assert_array_equal(item.labels, expected)
        k = item.frame.intrinsics
        assert (k.fx, k.fy, k.cx, k.cy) == (529.5, 530.5, 30 + index, 26.5)


def test_depth_is_rotated_by_three_bits_and_ends_at_8_m():
    """By hand: 1234 * 8 = 9872; 9000 * 8 = 72000 = 65536 + 6464, and the carry is bit 0."""
    stored = np.array([[0, 9872, 8, 64000, 64008, 6465]], np.uint16)
    expected = np.array([[0, 1.234, 0.001, 8.0, 8.0, 8.0]], np.float32)
    np.testing.assert_array_equal(decode_depth(stored), expected)
    assert decode_depth(stored).dtype == np.float32


def test_raw_depth_keeps_its_holes(tree):
    bfx, raw = (SunRgbd(tree, 'train', depth=depth)[0].frame.depth for depth in ('bfx', 'raw'))
    odd = frame_content(FOLDERS.index(TRAIN[0]))[1] % 2 == 1
    np.testing.assert_array_equal(raw, np.where(odd, bfx, 0))
    with pytest.raises(InputError, match="'bfx' or 'raw'"):
        SunRgbd(tree, 'train', depth='filled')


def test_the_cache_key_tells_contents_apart(tree, broken):
    key = SunRgbd(tree, 'train').describe()
    assert key == SunRgbd(broken, 'train').describe()
    assert key != SunRgbd(tree, 'test').describe()
    assert key != SunRgbd(tree, 'train', depth='raw').describe()
    camera = broken / 'SUNRGBD' / TRAIN[1] / 'intrinsics.txt'
    camera.write_text(camera.read_text() + '\n')
    assert key != SunRgbd(broken, 'train').describe()


def test_the_cache_key_tells_which_labels_a_frame_has(broken):
    key = SunRgbd(broken, 'train').describe()
    meta = broken / sunrgbd.META
    time_ns = meta.stat().st_mtime_ns
    write_meta(meta, FOLDERS[::-1])
    os.utime(meta, ns=(time_ns, time_ns + 10**9))
    assert SunRgbd(broken, 'train').describe() != key


def test_the_cache_key_tells_depths_apart_whose_files_are_alike(broken):
    for name in FOLDERS:
        for file in (broken / 'SUNRGBD' / name / 'depth_bfx').iterdir():
            shutil.copy2(file, broken / 'SUNRGBD' / name / 'depth' / file.name)
    keys = [SunRgbd(broken, 'train', depth=depth).describe() for depth in ('bfx', 'raw')]
    assert keys[0]['files'] == keys[1]['files']
    assert keys[0] != keys[1]


def test_a_list_that_is_replaced_is_read_anew(broken):
    assert len(SunRgbd(broken, 'train')) == 2
    meta = broken / sunrgbd.META
    time_ns = meta.stat().st_mtime_ns
    meta.write_bytes(meta.read_bytes()[:160])
    os.utime(meta, ns=(time_ns, time_ns + 10**9))
    with pytest.raises(InputError, match=r'SUNRGBDMeta\.mat cannot be read'):
        SunRgbd(broken, 'train')


def test_a_half_downloaded_set_is_refused_at_once(broken, monkeypatch):
    (broken / 'SUNRGBD' / TEST[1] / 'depth_bfx/19.png').unlink()
    assert len(SunRgbd(broken, 'train')) == 2
    with pytest.raises(InputError, match=r'the test split .* lacks 1 of 6 files.*NYU0001.*unpack'):
        SunRgbd(broken, 'test')
    monkeypatch.setitem(sunrgbd.SPLIT_SIZES, 'test', 2)
    with pytest.raises(InputError, match='the official test split'):
        SunRgbd(broken, 'test')


def test_a_check_names_the_files_that_are_missing_and_reads_the_rest(broken):
    lost = [broken / 'SUNRGBD' / TRAIN[1] / name for name in ('image/00.jpg', 'intrinsics.txt')]
    for path in lost:
        path.unlink()
    damaged = broken / 'SUNRGBD' / TRAIN[0] / 'depth_bfx/39.png'
    damaged.write_bytes(damaged.read_bytes()[:60])
    faults = check_data(DataConfig(DatasetConfig('sunrgbd', str(broken)))).faults
    incomplete, cut = (fault for fault in faults if 'field of view' not in fault)
    assert 'lacks 2 of 6 files' in incomplete
    assert all(str(path) in incomplete for path in lost)
    assert str(damaged) in cut


@pytest.mark.parametrize('name', [sunrgbd.META, sunrgbd.LABELS, sunrgbd.SPLIT])
def test_a_missing_or_damaged_toolbox_file_is_named(broken, name):
    file = broken / name
    file.write_bytes(file.read_bytes()[:160])
    with pytest.raises(InputError, match=f'{file.name}.*SUNRGBDtoolbox.zip'):
        SunRgbd(broken, 'train')
    file.unlink()
    with pytest.raises(InputError, match=f'{file.name}.*SUNRGBDtoolbox.zip'):
        SunRgbd(broken, 'train')


@pytest.mark.parametrize('name', [sunrgbd.META, sunrgbd.SPLIT])
def test_a_toolbox_file_with_other_bytes_is_named(broken, name):
    file = broken / name
    whole = file.read_bytes()
    file.write_bytes(whole[:140] + bytes(80) + whole[220:])
    with pytest.raises(InputError, match=f'{file.name}.*SUNRGBDtoolbox.zip'):
        SunRgbd(broken, 'train')


def test_labels_with_other_bytes_are_named(broken):
    with h5py.File(broken / sunrgbd.LABELS) as file:
        chunk = file['#refs#/seglabel3'].id.get_chunk_info(0)
    with (broken / sunrgbd.LABELS).open('r+b') as file:
        file.seek(512 + chunk.byte_offset)
        file.write(bytes(chunk.size))
    with pytest.raises(InputError, match=r'frame 4 in .*SUNRGBD2Dseg\.mat are damaged'):
        SunRgbd(broken, 'train')[0]


def test_lists_that_contradict_each_other_are_refused(broken):
    labels = [frame_content(i)[2] for i in range(3)]
    write_labels(broken / sunrgbd.LABELS, labels)
    with pytest.raises(InputError, match=r'labels 3 frames .* lists 4'):
        SunRgbd(broken, 'train')
    write_labels(broken / sunrgbd.LABELS, [*labels, labels[0]])
    scipy.io.savemat(broken / sunrgbd.SPLIT, {'alltrain': cells(('kv1/NYUdata/NYU9',))})
    with pytest.raises(InputError, match='the first of them kv1/NYUdata/NYU9'):
        SunRgbd(broken, 'train')
    with pytest.raises(InputError, match=r'alltest'):
        SunRgbd(broken, 'test')


def test_a_label_above_37_is_named_with_its_frame(broken):
    labels = [frame_content(i)[2] for i in range(4)]
    labels[3][7, 5] = 38
    write_labels(broken / sunrgbd.LABELS, labels)
    with pytest.raises(InputError, match=r'SUNRGBD2Dseg\.mat, frame 4 .* label 38 on 1 pixels'):
        SunRgbd(broken, 'train')[0]


def test_sizes_that_differ_are_named(broken):
    depth = broken / 'SUNRGBD' / TRAIN[0] / 'depth_bfx/39.png'
    cv2.imwrite(str(depth), np.ones((48, 63), np.uint16))
    with pytest.raises(InputError, match=r'39\.png is 63x48 where 64x48'):
        SunRgbd(broken, 'train')[0]
    labels = [frame_content(i)[2] for i in range(4)]
    write_labels(broken / sunrgbd.LABELS, [labels[0].T, *labels[1:]])
    with pytest.raises(
        InputError, match=r'frame 1 .*00\.jpg\): labels are 53x73 but colour is 73x53'
    ):
        SunRgbd(broken, 'train')[1]


@pytest.mark.parametrize(
    ('part', 'content', 'message'),
    [
        ('image/30.jpg', b'', r'30\.jpg is cut short'),
        ('depth_bfx/39.png', None, r'39\.png is cut short'),
        (
            'intrinsics.txt',
            b'529 0 30',
            r'intrinsics\.txt has 3 numbers, not 9; unpack SUNRGBD\.zip',
        ),
        ('intrinsics.txt', b'0 0 0 0 0 0 0 0 0', r'intrinsics\.txt is no camera matrix'),
        ('intrinsics.txt', b'<html>', r'intrinsics\.txt is missing or holds no numbers'),
    ],
)
def test_a_damaged_file_is_named(broken, part, content, message):
    file = broken / 'SUNRGBD' / TRAIN[0] / part
    file.write_bytes(file.read_bytes()[:-200] if content is None else content)
    data = SunRgbd(broken, 'train')
    with pytest.raises(InputError, match=message):
        data[0]
    assert data[1].labels.shape == (53, 73)


def test_colour_cut_short_is_not_taken_for_an_image(broken):
    """OpenCV alone would return the half of a JPEG with the rest in grey."""
    file = broken / 'SUNRGBD' / TRAIN[0] / 'image/30.jpg'
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    cv2.imwrite(str(file), noise)
    file.write_bytes(file.read_bytes()[:-900])
    assert cv2.imread(str(file)) is not None
    with pytest.raises(InputError, match='cut short'):
        SunRgbd(broken, 'train')[0]


def test_unknown_index(tree):
    with pytest.raises(IndexError):
        SunRgbd(tree, 'train')[2]


def test_37_classes_in_the_toolbox_s_order():
    classes = SunRgbd.classes
    assert ' '.join(classes.names) == (
        'wall floor cabinet bed chair sofa table door window bookshelf picture counter blinds '
        'desk shelves curtain dresser pillow mirror floor_mat clothes ceiling books fridge tv '
        'paper towel shower_curtain box whiteboard person night_stand toilet sink lamp bathtub bag'
    )
    assert len(set(map(tuple, classes.colors.tolist()))) == 37
