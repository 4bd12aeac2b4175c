from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.hha import estimate_gravity

pytest.importorskip('h5py', reason='needs the extra [train]')

import h5py
import scipy.io

from rgbd_fusion_seg.training.datasets.nyudv2 import (
    INTRINSICS,
    NyuDepthV2,
    depth_from_levels,
)


def test_the_official_split_is_read(data_dir):
    train, test = (NyuDepthV2(data_dir / 'nyudv2', split) for split in ('train', 'test'))
    assert (len(train), len(test)) == (795, 654)
    assert not set(train.ids) & set(test.ids)
    item = train[0]
    assert item.frame.rgb.shape == (480, 640, 3)
    assert 0.5 < np.median(item.frame.depth) < 8.0
    assert set(np.unique(item.labels)) <= {*range(40), 255}


def test_colour_is_rgb_not_bgr(nyu_pack):
    frame = NyuDepthV2(nyu_pack, 'train')[0]
    box = frame.frame.rgb[frame.labels == 28].mean(0)
    assert box[0] > 150 > box[2]


def test_smoothing_stays_within_a_level_and_keeps_edges():
    levels = np.full((60, 80), 40, np.uint8)
    levels[:, 40:] = 90
    levels[30, 10] = 0
    depth = depth_from_levels(levels)
    valid = levels > 0
    low, high = levels / 25.5, (levels + 1) / 25.5
    assert (depth[valid] >= low[valid] - 1e-5).all()
    assert (depth[valid] <= high[valid] + 1e-5).all()
    assert depth[30, 10] == 0


def test_smoothing_brings_the_planes_of_a_slope_back():
    """A slanted plane, rounded to levels, comes back closer than its rounding."""
    true = 2.0 + np.linspace(0, 1, 200, dtype=np.float32)[None, :].repeat(100, 0)
    levels = np.floor(true * 25.5).astype(np.uint8)
    raw = (levels + 0.5) / 25.5
    inner = (slice(20, -20), slice(20, -20))
    error = np.abs(depth_from_levels(levels) - true)[inner].mean()
    assert error < 0.5 * np.abs(raw - true)[inner].mean()


def test_gravity_agrees_with_the_rotations_of_another_tool(data_dir):
    """The pack's rotations level each camera; their third axis (x, z, y) is their gravity."""
    pack = NyuDepthV2(data_dir / 'nyudv2', 'train')
    rotations = np.loadtxt(data_dir / 'nyudv2' / 'camera_rotations.txt').reshape(-1, 3, 3)
    ours, image_axis = [], []
    for i in range(0, 240, 12):
        theirs = rotations[int(pack.ids[i]) - 1][:, 2][[0, 2, 1]]
        gravity = estimate_gravity(pack[i].frame.depth, INTRINSICS)
        ours.append(np.degrees(np.arccos(np.clip(theirs @ gravity, -1, 1))))
        image_axis.append(np.degrees(np.arccos(np.clip(theirs[1], -1, 1))))
    assert np.median(ours) < 4.0
    assert np.median(ours) < 0.6 * np.median(image_axis)


def test_a_folder_that_is_no_pack_is_named(tmp_path, nyu_pack):
    with pytest.raises(InputError, match=rf'{tmp_path} is no NYUDv2: .*nyu_depth_v2_labeled'):
        NyuDepthV2(tmp_path, 'train')
    with pytest.raises(InputError, match='no raw depth'):
        NyuDepthV2(nyu_pack, 'train', depth='raw')


def test_a_missing_image_is_named(nyu_pack, tmp_path):
    broken = tmp_path / 'pack'
    shutil.copytree(nyu_pack, broken)
    (broken / 'depth8' / '0002.png').unlink()
    source = NyuDepthV2(broken, 'train')
    assert source[0].labels.shape == (480, 640)
    with pytest.raises(InputError, match=r'depth8/0002\.png is missing'):
        source[1]


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        (
            'depth8/0002.png',
            r'0002\.png \(nyudv2-train 0002\): depth is 320x240 but colour is 640x480',
        ),
        ('rgb/0002.jpg', r'0002\.jpg is 320x240 where 640x480 is expected'),
        ('label40/0002.png', r'0002\.png .*: labels are 320x240 but colour is 640x480'),
    ],
)
def test_an_image_of_another_size_is_named(nyu_pack, tmp_path, name, words):
    broken = Path(shutil.copytree(nyu_pack, tmp_path / 'pack'))
    image = cv2.imread(str(broken / name), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(broken / name), image[::2, ::2])
    folder = re.escape(str((broken / name).parent))
    with pytest.raises(InputError, match=f'^{folder}/{words}'):
        NyuDepthV2(broken, 'train')[1]


def official_frames() -> list[tuple[np.ndarray, ...]]:
    """Four frames: colour, filled and raw depth, labels 0..894."""
    rng = np.random.default_rng(3)
    frames = []
    for i in range(4):
        rgb = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (640, 480))
        filled = np.tile(np.linspace(1 + i, 3 + i, 640, dtype=np.float32), (480, 1))
        filled += np.linspace(0, 1, 480, dtype=np.float32)[:, None]
        raw = np.where(rng.random((480, 640)) < 0.2, np.float32(0), filled)
        labels = rng.integers(0, 895, (480, 640)).astype(np.uint16)
        frames.append((rgb, filled, raw, labels))
    return frames


MAP_CLASS = np.random.default_rng(4).integers(1, 41, 894)
TRAIN_INDICES, TEST_INDICES = [3, 1], [2, 4]


@pytest.fixture(scope='module')
def official(tmp_path_factory) -> Path:
    """The three official files; MATLAB 7.3 stores (H, W, 3, N) as (N, 3, W, H)."""
    folder = tmp_path_factory.mktemp('official')
    arrays = (np.stack(parts, axis=-1) for parts in zip(*official_frames(), strict=True))
    with h5py.File(folder / 'nyu_depth_v2_labeled.mat', 'w', userblock_size=512) as file:
        for name, array in zip(('images', 'depths', 'rawDepths', 'labels'), arrays, strict=True):
            file.create_dataset(name, data=array.T, compression='gzip')
        contents, names = file.create_group('#refs#'), np.empty((1, 894), h5py.ref_dtype)
        for i in range(894):
            text = np.frombuffer(f'class {i + 1}'.encode('utf-16-le'), np.uint16)
            names[0, i] = contents.create_dataset(str(i), data=text[:, None]).ref
        file.create_dataset('names', data=names, dtype=h5py.ref_dtype)
    column = {'trainNdxs': TRAIN_INDICES, 'testNdxs': TEST_INDICES}
    column = {name: np.array(values, np.uint16)[:, None] for name, values in column.items()}
    scipy.io.savemat(folder / 'splits.mat', column)
    scipy.io.savemat(folder / 'classMapping40.mat', {'mapClass': MAP_CLASS[None].astype(np.uint8)})
    return folder


@pytest.mark.parametrize(('depth', 'part'), [('filled', 1), ('raw', 2)])
def test_the_official_file_is_read(official, depth, part):
    expected = official_frames()
    for split, indices in (('train', TRAIN_INDICES), ('test', TEST_INDICES)):
        source = NyuDepthV2(official, split, depth=depth)
        assert len(source) == len(indices)
        for i, index in enumerate(indices):
            item, frame = source[i], expected[index - 1]
            np.testing.assert_array_equal(item.frame.rgb, frame[0])
            np.testing.assert_array_equal(item.frame.depth, frame[part])
            for value in (1, 17, 894):
                assert (item.labels[frame[3] == value] == MAP_CLASS[value - 1] - 1).all()
            assert (item.labels[frame[3] == 0] == 255).all()


def test_the_path_of_the_official_file_will_do(official):
    assert len(NyuDepthV2(official / 'nyu_depth_v2_labeled.mat', 'test')) == 2


@pytest.mark.parametrize(
    ('name', 'where'), [('splits.mat', 'nyu.edu'), ('classMapping40.mat', 'github.com')]
)
def test_a_missing_small_file_is_named_with_its_origin(official, tmp_path, name, where):
    folder = tmp_path / 'copy'
    shutil.copytree(official, folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf'{name} is missing; take it from .*{where}'):
        NyuDepthV2(folder, 'train')
    (folder / name).write_bytes(b'<html>not found</html>' * 40)
    with pytest.raises(InputError, match=rf'{name} has no readable'):
        NyuDepthV2(folder, 'train')


@pytest.mark.parametrize('wrong', [0, 41])
def test_a_mapping_beyond_the_classes_is_refused(official, tmp_path, wrong):
    folder = tmp_path / 'copy'
    shutil.copytree(official, folder)
    mapping = MAP_CLASS.copy()
    mapping[7] = wrong
    scipy.io.savemat(folder / 'classMapping40.mat', {'mapClass': mapping[None].astype(np.uint8)})
    with pytest.raises(InputError, match=r'does not map the 894 classes of .* to 1\.\.40'):
        NyuDepthV2(folder, 'train')


def test_a_small_file_that_is_cut_anywhere_is_told(official, tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(official, folder)
    content = {'trainNdxs': [[1]], 'testNdxs': [[2]]}
    scipy.io.savemat(folder / 'splits.mat', content, do_compression=True)
    whole = (folder / 'splits.mat').read_bytes()
    for length in range(0, len(whole), 5):
        (folder / 'splits.mat').write_bytes(whole[:length])
        with pytest.raises(InputError, match=r'splits\.mat has no readable'):
            NyuDepthV2(folder, 'test')


def test_a_half_downloaded_official_file_is_told(official, tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(official, folder)
    file = folder / 'nyu_depth_v2_labeled.mat'
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(InputError, match=r'labeled\.mat is cut short'):
        NyuDepthV2(folder, 'train')


def test_an_official_split_may_not_name_absent_frames(official, tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(official, folder)
    scipy.io.savemat(folder / 'splits.mat', {'trainNdxs': [[1], [5]], 'testNdxs': [[2]]})
    with pytest.raises(InputError, match=r'splits\.mat names frame 5 for train, .* has 4'):
        NyuDepthV2(folder, 'train')


def test_describing_the_official_file_reads_none_of_it(official, monkeypatch):
    train, test = (NyuDepthV2(official, split) for split in ('train', 'test'))
    raw = NyuDepthV2(official, 'train', depth='raw')
    monkeypatch.setattr(h5py, 'File', None)
    monkeypatch.setattr(Path, 'read_bytes', None)
    keys = [json.dumps(source.describe()) for source in (train, test, raw)]
    assert len(set(keys)) == 3
    os.utime(official / 'nyu_depth_v2_labeled.mat', (1, 1))
    assert json.dumps(train.describe()) != keys[0]


def write_images(folder: Path, labels: str, unit: float = 0.001) -> Path:
    """The official frames as folders of PNGs; labels '1..40' or '0..39'."""
    names = ('RGB', 'Depth', 'Label') if labels == '0..39' else ('rgb', 'depth', 'label40')
    for name in (*names, 'depth_raw'):
        (folder / name).mkdir(parents=True)
    mapping = np.concatenate([[0], MAP_CLASS]).astype(np.uint8)
    for i, (rgb, filled, raw, classes) in enumerate(official_frames(), 1):
        label40 = mapping[classes]
        if labels == '0..39':
            label40 = np.where(label40 == 0, 255, label40.astype(int) - 1).astype(np.uint8)
        colour, depth, label = (f'{folder}/{name}/{i:06d}.png' for name in names)
        cv2.imwrite(colour, rgb[..., ::-1])
        cv2.imwrite(depth, np.round(filled / unit).astype(np.uint16))
        cv2.imwrite(f'{folder}/depth_raw/{i:06d}.png', np.round(raw / unit).astype(np.uint16))
        cv2.imwrite(label, label40)
    for split, indices in (('train', TRAIN_INDICES), ('test', TEST_INDICES)):
        # Some lists name ids, others the files.
        line = '{0:06d}' if labels == '1..40' else 'RGB/{0:06d}.png Label/{0:06d}.png'
        text = '\n'.join(line.format(i) for i in indices)
        (folder / f'{split}.txt').write_text(text + '\n')
    return folder


def test_options_of_image_folders_are_in_the_key(tmp_path):
    folder = write_images(tmp_path, '1..40')
    options = ({}, {'depth_scale': 0.0002}, {'labels': '0..39'})
    keys = [json.dumps(NyuDepthV2(folder, 'train', **given).describe()) for given in options]
    assert len(set(keys)) == 3


@pytest.mark.parametrize(('labels', 'unit'), [('1..40', 0.001), ('0..39', 0.0002)])
def test_image_folders_give_the_frames_of_the_official_file(official, tmp_path, labels, unit):
    folder = write_images(tmp_path / 'images', labels, unit)
    for depth in ('filled', 'raw'):
        images = NyuDepthV2(folder, 'train', depth=depth, labels=labels, depth_scale=unit)
        for ours, theirs in zip(images, NyuDepthV2(official, 'train', depth=depth), strict=True):
            np.testing.assert_array_equal(ours.frame.rgb, theirs.frame.rgb)
            np.testing.assert_array_equal(ours.labels, theirs.labels)
            np.testing.assert_allclose(ours.frame.depth, theirs.frame.depth, atol=0.6 * unit)


@pytest.mark.parametrize('line', ['{}', 'rgb/{}.png label40/{}.png', '{}.PNG', './{}.jpg'])
def test_ids_may_have_dots(tmp_path, line):
    folder = write_images(tmp_path / 'images', '1..40')
    names = [f'scene.1.{i:04d}' for i in TRAIN_INDICES]
    for part in ('rgb', 'depth', 'label40'):
        for i, name in zip(TRAIN_INDICES, names, strict=True):
            image = folder / part / f'{i:06d}.png'
            image.rename(image.with_name(f'{name}.png'))
    (folder / 'train.txt').write_text('\n'.join(line.format(name, name) for name in names))
    train = NyuDepthV2(folder, 'train')
    assert train.ids == names
    np.testing.assert_array_equal(train[1].frame.rgb, official_frames()[TRAIN_INDICES[1] - 1][0])


def test_depth_at_the_end_of_its_16_bits_is_no_reading(tmp_path):
    folder = write_images(tmp_path / 'images', '1..40')
    path = f'{folder}/depth/{TRAIN_INDICES[0]:06d}.png'
    depth = np.full((480, 640), 1500, np.uint16)
    depth[0, :3] = 65535, 65534, 0
    cv2.imwrite(path, depth)
    read = NyuDepthV2(folder, 'train')[0].frame.depth
    np.testing.assert_allclose(read[0, :4], [0, 65.534, 0, 1.5], rtol=1e-6)


def test_depth_of_8_bits_is_not_taken_for_millimetres(tmp_path):
    folder = write_images(tmp_path / 'images', '1..40')
    path = f'{folder}/depth/{TRAIN_INDICES[0]:06d}.png'
    depth = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    cv2.imwrite(path, (depth // 256).astype(np.uint8))
    with pytest.raises(InputError, match=r'depth/\d+\.png has 8 bits a pixel, not 16'):
        NyuDepthV2(folder, 'train')[0]


@pytest.mark.parametrize('again', ['{0:06d}', 'rgb/{0:06d}.png label/{0:06d}.png'])
def test_a_frame_that_is_listed_twice_is_refused(tmp_path, again):
    folder = write_images(tmp_path / 'images', '1..40')
    first = TRAIN_INDICES[0]
    with (folder / 'train.txt').open('a') as listing:
        listing.write(again.format(first) + '\n')
    with pytest.raises(InputError, match=f'train split of .*images has the frame {first:06d} twi'):
        NyuDepthV2(folder, 'train')
    assert len(NyuDepthV2(folder, 'test')) == len(TEST_INDICES)


def test_lists_may_begin_with_the_mark_of_windows_editors(tmp_path):
    folder = write_images(tmp_path / 'images', '1..40')
    ids = NyuDepthV2(folder, 'train').ids
    listing = folder / 'train.txt'
    listing.write_bytes(b'\xef\xbb\xbf' + listing.read_bytes())
    assert NyuDepthV2(folder, 'train').ids == ids


def test_labels_of_the_other_form_are_found_out(tmp_path):
    source = NyuDepthV2(write_images(tmp_path / 'a', '0..39'), 'train', labels='1..40')
    with pytest.raises(InputError, match=r"label 255, not 0 .* option labels to '0\.\.39'"):
        source[0]
    source = NyuDepthV2(write_images(tmp_path / 'b', '1..40'), 'train', labels='0..39')
    with pytest.raises(InputError, match=r'such as 40; labels must be 0\.\.39 or 255'):
        source[0]
