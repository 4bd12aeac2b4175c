from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg.errors import InputError

pytest.importorskip('h5py', reason='needs the extra [train]')

from rgbd_fusion_seg.training.config import DataConfig, DatasetConfig
from rgbd_fusion_seg.training.datasets.prepare import check_data
from rgbd_fusion_seg.training.datasets.scannet import ScanNet
from rgbd_fusion_seg.training.datasets.scannet_classes import SCANNET20

SCENES = {'train': ('scene0270_00', 'scene0001_01'), 'val': ('scene0011_00',)}
FRAMES = ('000000', '000100')
COLOR_INTRINSICS = (1169.621094, 1167.105103, 646.295044, 489.927032)
DEPTH_INTRINSICS = (577.590698, 578.729797, 318.905426, 242.683609)
CLASS_OF_ID = {i: i - 1 for i in range(1, 13)}
CLASS_OF_ID |= {14: 12, 16: 13, 24: 14, 28: 15, 33: 16, 34: 17, 36: 18, 39: 19}


def matrix_text(fx: float, fy: float, cx: float, cy: float) -> str:
    return f'{fx} 0.0 {cx} 0.0\n0.0 {fy} {cy} 0.0\n0.0 0.0 1.0 0.0\n0.0 0.0 0.0 1.0\n'


def label_ids(frame: str) -> np.ndarray:
    """uint8 (968, 1296): every id in every neighbourhood."""
    rng = np.random.default_rng(int(frame))
    return rng.permutation(np.arange(968 * 1296) % 41).reshape(968, 1296).astype(np.uint8)


def write_frame(scene: Path, frame: str) -> None:
    colour = np.zeros((968, 1296, 3), np.uint8)
    colour[:, :648] = (10, 60, 220)
    colour[:, 648:] = (240, 120, 20)
    cv2.imwrite(str(scene / f'color/{frame}.jpg'), colour[..., ::-1])
    depth = np.full((480, 640), 1000 + int(frame), np.uint16)
    depth[:, 320:] = 4321
    depth[:9] = 0
    cv2.imwrite(str(scene / f'depth/{frame}.png'), depth)
    cv2.imwrite(str(scene / f'label/{frame}.png'), label_ids(frame))
    (scene / f'pose/{frame}.txt').write_text(matrix_text(1, 1, 0, 0))


@pytest.fixture(scope='module')
def tree(tmp_path_factory) -> Path:
    """Three scans of two frames in the layout of scannet_frames_25k, and the lists."""
    folder = tmp_path_factory.mktemp('scannet_frames_25k')
    for split, scenes in SCENES.items():
        (folder / f'scannetv2_{split}.txt').write_text('\n'.join(scenes) + '\n')
        for scene in scenes:
            for part in ('color', 'depth', 'label', 'instance', 'pose'):
                (folder / scene / part).mkdir(parents=True)
            for frame in FRAMES if scene == SCENES['train'][0] else FRAMES[1:]:
                write_frame(folder / scene, frame)
            (folder / scene / 'intrinsics_color.txt').write_text(matrix_text(*COLOR_INTRINSICS))
            (folder / scene / 'intrinsics_depth.txt').write_text(matrix_text(*DEPTH_INTRINSICS))
    return folder


@pytest.fixture
def broken(tree, tmp_path) -> Path:
    """A copy of the tree to be damaged."""
    return Path(shutil.copytree(tree, tmp_path / 'copy'))


def test_splits_are_the_listed_scenes(tree):
    train, val = ScanNet(tree, 'train'), ScanNet(tree, 'val')
    assert train.frames == [
        ('scene0270_00', '000000'),
        ('scene0270_00', '000100'),
        ('scene0001_01', '000100'),
    ]
    assert val.frames == [('scene0011_00', '000100')]
    assert ScanNet.TEST_SPLIT == 'val'


def test_notes_of_macos_are_no_frames(broken):
    for image in [*broken.rglob('000???.*')]:
        image.with_name(f'._{image.name}').write_bytes(b'\0\5\x16\7')
    assert ScanNet(broken, 'val').frames == [('scene0011_00', '000100')]


def test_labels_are_those_the_benchmark_compares(tree):
    """The evaluation takes of full-size ids the pixel under each centre of 640x480."""
    item = ScanNet(tree, 'train')[1]
    rows = ((np.arange(480) + 0.5) * 968 / 480).astype(int)
    columns = ((np.arange(640) + 0.5) * 1296 / 640).astype(int)
    ids = label_ids('000100')[np.ix_(rows, columns)]
    expected = np.vectorize(lambda i: CLASS_OF_ID.get(int(i), 255), otypes=[np.uint8])(ids)
    np.testing.assert_array_equal(item.labels, expected)
    assert set(np.unique(item.labels)) == {*range(20), 255}


def test_the_official_names_and_colours_follow_the_ids():
    names, colors = ScanNet.classes.names, ScanNet.classes.colors.tolist()
    assert len(names) == 20
    by_id = {1: 'wall', 14: 'desk', 16: 'curtain', 24: 'refrigerator', 28: 'shower curtain'}
    by_id |= {33: 'toilet', 34: 'sink', 36: 'bathtub', 39: 'otherfurniture'}
    assert {i: names[CLASS_OF_ID[i]] for i in by_id} == by_id
    assert colors[CLASS_OF_ID[1]] == [174, 199, 232]
    assert colors[CLASS_OF_ID[28]] == [158, 218, 229]
    assert colors[CLASS_OF_ID[39]] == [82, 84, 163]


def test_colour_comes_to_the_pixels_of_depth(tree):
    frame = ScanNet(tree, 'train')[1].frame
    expected = np.full((480, 640), 1.1, np.float32)
    expected[:, 320:], expected[:9] = 4.321, 0
    np.testing.assert_allclose(frame.depth, expected, rtol=1e-6)
    assert np.abs(frame.rgb[:, :316].astype(int) - (10, 60, 220)).max() < 12
    assert np.abs(frame.rgb[:, 324:].astype(int) - (240, 120, 20)).max() < 12
    k = frame.intrinsics
    assert (k.fx, k.fy, k.cx, k.cy) == DEPTH_INTRINSICS


def test_depth_and_resized_colour_share_one_camera():
    """Depth needs no registration: its camera is that of colour at 640x480."""
    fx, fy, cx, cy = COLOR_INTRINSICS
    scaled = (fx * 640 / 1296, fy * 480 / 968, cx * 640 / 1296, cy * 480 / 968)
    np.testing.assert_allclose(DEPTH_INTRINSICS, scaled, atol=0.4)


def test_stray_ids_of_the_official_labels_are_void(broken):
    file = broken / 'scene0011_00/label/000100.png'
    ids = np.full((968, 1296), 5, np.uint8)
    ids[:400], ids[400:500] = 50, 149
    cv2.imwrite(str(file), ids)
    labels = ScanNet(broken, 'val')[0].labels
    assert (labels[:247] == 255).all()
    assert (labels[249:] == 4).all()


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_ids_of_the_raw_annotation_are_refused(broken, dtype):
    ids = np.full((968, 1296), 2, dtype)
    ids[3, 4] = 41 if dtype == np.uint8 else 1163
    cv2.imwrite(str(broken / 'scene0011_00/label/000100.png'), ids)
    with pytest.raises(InputError, match=rf'000100\.png.* label {ids[3, 4]} on 1 pixels.*NYU40'):
        ScanNet(broken, 'val')[0]


def test_a_missing_list_tells_where_it_comes_from(broken):
    (broken / 'scannetv2_val.txt').unlink()
    with pytest.raises(InputError, match=r'scannetv2_val\.txt is missing.*Tasks/Benchmark'):
        ScanNet(broken, 'val')


def test_a_list_may_begin_with_the_mark_of_windows_but_must_be_text(broken):
    listing = broken / 'scannetv2_train.txt'
    frames = ScanNet(broken, 'train').frames
    listing.write_bytes(b'\xef\xbb\xbf' + listing.read_bytes())
    assert ScanNet(broken, 'train').frames == frames
    listing.write_bytes(b'scene0270_00\n\xff\xfe\n')
    with pytest.raises(InputError, match=r'scannetv2_train\.txt cannot be read .*copy the data'):
        ScanNet(broken, 'train')


def test_a_half_unpacked_set_is_refused_at_once(broken):
    (broken / 'scene0270_00/label/000100.png').unlink()
    with pytest.raises(
        InputError, match=r'1 of the 2 scenes .*scene0270_00/label/000100\.png; unp'
    ):
        ScanNet(broken, 'train')
    shutil.rmtree(broken / 'scene0270_00')
    with pytest.raises(InputError, match=r'lacks 1 of the 2 scenes .* scene0270_00; unpack'):
        ScanNet(broken, 'train')
    shutil.rmtree(broken / 'scene0011_00/depth')
    with pytest.raises(InputError, match=r'for lack of .*scene0011_00/depth/000100\.png'):
        ScanNet(broken, 'val')


def test_a_check_names_all_that_is_incomplete_and_reads_the_rest(broken):
    (broken / 'scannetv2_train.txt').write_text('gone_00\nscene0270_00\nscene0001_01\n')
    (broken / 'scene0270_00/label/000100.png').unlink()
    (broken / 'scene0001_01/color/000100.jpg').unlink()
    damaged = broken / 'scene0270_00/depth/000000.png'
    damaged.write_bytes(damaged.read_bytes()[:-40])
    incomplete, cut = check_data(DataConfig(DatasetConfig('scannet', str(broken)))).faults
    assert 'lacks 1 of the 3 scenes of scannetv2_train.txt: gone_00;' in incomplete
    assert '2 of the 3 scenes' in incomplete
    for name in ('scene0270_00/label/000100.png', 'scene0001_01/color/000100.jpg'):
        assert name in incomplete
    assert 'scene0270_00/depth/000000.png is cut short' in cut


def test_of_many_incomplete_scenes_the_first_ones_are_named(tmp_path):
    scenes = [f'scene{n:04d}_00' for n in range(25)]
    (tmp_path / 'scannetv2_train.txt').write_text('\n'.join(scenes))
    for scene in scenes[12:]:
        (tmp_path / scene).mkdir()
    with pytest.raises(InputError) as caught:
        ScanNet(tmp_path, 'train')
    named = [scene for scene in scenes if scene in str(caught.value)]
    assert named == scenes[:10] + scenes[12:22]
    assert 'and 2 more' in str(caught.value)
    assert 'and 3 more' in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'image', 'message'),
    [
        ('depth/000100.png', np.ones((240, 320), np.uint16), r'320x240 where 640x480'),
        ('depth/000100.png', np.ones((480, 640), np.uint8), '8 bits a pixel, not 16; unpack'),
        ('label/000100.png', np.ones((480, 480), np.uint8), r'480x480, not of the shape of depth'),
        ('label/000100.png', np.ones((48, 64, 3), np.uint8), '3 channels'),
        ('color/000100.jpg', np.ones((720, 1280, 3), np.uint8), '1280x720, not of the shape'),
    ],
)
def test_an_image_of_another_form_is_named(broken, name, image, message):
    cv2.imwrite(str(broken / 'scene0011_00' / name), image)
    with pytest.raises(InputError, match=f'{name}.*{message}'):
        ScanNet(broken, 'val')[0]


@pytest.mark.parametrize('name', ['depth/000100.png', 'color/000100.jpg', 'intrinsics_depth.txt'])
def test_a_damaged_file_is_named(broken, name):
    file = broken / 'scene0011_00' / name
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(InputError, match=name):
        ScanNet(broken, 'val')[0]


def test_the_cache_key_tells_contents_apart(tree, broken):
    key = ScanNet(tree, 'val').describe()
    assert key == ScanNet(broken, 'val').describe()
    cv2.imwrite(str(broken / 'scene0011_00/label/000100.png'), np.ones((968, 1296), np.uint8))
    assert key != ScanNet(broken, 'val').describe()


def test_classes_are_those_of_the_benchmark_in_its_order_and_colours():
    """As the benchmark's documentation lists them."""
    official = """
        wall 174 199 232, floor 152 223 138, cabinet 31 119 180, bed 255 187 120,
        chair 188 189 34, sofa 140 86 75, table 255 152 150, door 214 39 40,
        window 197 176 213, bookshelf 148 103 189, picture 196 156 148, counter 23 190 207,
        desk 247 182 210, curtain 219 219 141, refrigerator 255 127 14,
        shower curtain 158 218 229, toilet 44 160 44, sink 112 128 144, bathtub 227 119 194,
        otherfurniture 82 84 163"""
    expected = [entry.strip().rsplit(maxsplit=3) for entry in official.split(',')]
    assert list(SCANNET20.names) == [name for name, *_ in expected]
    assert SCANNET20.colors.tolist() == [[int(x) for x in color] for _, *color in expected]
