from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.hha import encode_hha

pytest.importorskip('h5py', reason='needs the extra [train]')

from rgbd_fusion_seg.training.config import DataConfig, DatasetConfig
from rgbd_fusion_seg.training.datasets.cityscapes import Cityscapes, depth_from_disparity
from rgbd_fusion_seg.training.datasets.prepare import check_data

FRAMES = {
    'train': ('aachen_000000_000019', 'ulm_000003_000019'),
    'val': ('munster_000173_000019',),
}
BASELINE_M, FX = 0.22, 2200.0
TRAIN_ID = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11}
TRAIN_ID |= {25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}


def label_ids() -> np.ndarray:
    """uint8 (1024, 2048) with every id, permuted along the rows."""
    ids = np.random.default_rng(1).permutation(np.arange(2048) % 34).astype(np.uint8)
    return np.stack([np.roll(ids, row) for row in range(1024)])


def write(folder: Path, package: str, split: str, name: str, content: object) -> Path:
    city, frame = name.split('_', 1)
    path = folder / package / split / city / f'{city}_{frame}'
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        path.write_text(json.dumps(content))
    else:
        cv2.imwrite(str(path), content)
    return path


@pytest.fixture(scope='module')
def tree(tmp_path_factory) -> Path:
    """Three frames of three cities in the layout of the four official packages."""
    folder = tmp_path_factory.mktemp('cityscapes')
    colour = np.zeros((1024, 2048, 3), np.uint8)
    colour[:] = (30, 90, 200)
    disparity = np.zeros((1024, 2048), np.uint16)
    disparity[:, :4] = (1, 257, 2561, 12289)
    camera = {
        'extrinsic': {'baseline': BASELINE_M, 'pitch': 0.05, 'x': 1.7, 'y': -0.1, 'z': 1.18},
        'intrinsic': {'fx': FX, 'fy': 2210.5, 'u0': 1096.98, 'v0': 513.137},
    }
    for split, frames in FRAMES.items():
        for frame in frames:
            write(folder, 'leftImg8bit', split, f'{frame}_leftImg8bit.png', colour[..., ::-1])
            write(folder, 'disparity', split, f'{frame}_disparity.png', disparity)
            write(folder, 'camera', split, f'{frame}_camera.json', camera)
            write(folder, 'gtFine', split, f'{frame}_gtFine_labelIds.png', label_ids())
            write(folder, 'gtFine', split, f'{frame}_gtFine_color.png', colour[:8, :8])
    return folder


@pytest.fixture
def broken(tree, tmp_path) -> Path:
    """A copy of the tree to be damaged."""
    return Path(shutil.copytree(tree, tmp_path / 'copy'))


def test_a_frame_is_read_with_its_camera(tree):
    train = Cityscapes(tree, 'train')
    assert train.frames == ['aachen/aachen_000000_000019', 'ulm/ulm_000003_000019']
    assert (len(Cityscapes(tree, 'val')), Cityscapes.TEST_SPLIT) == (1, 'val')
    frame = train[1].frame
    assert frame.rgb.shape == (1024, 2048, 3)
    assert frame.rgb[5, 6].tolist() == [30, 90, 200]
    k = frame.intrinsics
    assert (k.fx, k.fy, k.cx, k.cy) == (2200.0, 2210.5, 1096.98, 513.137)


def test_notes_of_macos_are_no_frames(broken):
    for file in [*broken.rglob('*_000019_*')]:
        file.with_name(f'._{file.name}').write_bytes(b'\0\5\x16\7')
    assert Cityscapes(broken, 'val').frames == ['munster/munster_000173_000019']


def test_depth_is_baseline_times_focal_length_by_disparity(tree):
    """By hand: 0.22 m * 2200 px = 484; 1, 10 and 48 pixels are 484, 48.4 and 10.083 m."""
    frame = Cityscapes(tree, 'train', max_depth_m=500)[0].frame
    np.testing.assert_allclose(frame.depth[77, :5], [0, 484.0, 48.4, 10.083333, 0], rtol=1e-6)
    cut = Cityscapes(tree, 'train', max_depth_m=48.0)[0].frame
    np.testing.assert_allclose(cut.depth[77, :5], [0, 0, 0, 10.083333, 0], rtol=1e-6)
    stored = np.array([[0, 1, 257]], np.uint16)
    assert depth_from_disparity(stored, 484.0).tolist() == [[0.0, 0.0, 484.0]]
    assert depth_from_disparity(stored, 484.0, 484.0).tolist() == [[0.0, 0.0, 484.0]]
    assert depth_from_disparity(stored, 484.0, 483.9).tolist() == [[0.0, 0.0, 0.0]]


def test_readings_beyond_a_hundred_metres_are_dropped_unless_asked_for(tree):
    assert Cityscapes(tree, 'train').max_depth_m == 100
    depth = Cityscapes(tree, 'train')[0].frame.depth
    np.testing.assert_allclose(depth[77, :5], [0, 0, 48.4, 10.083333, 0], rtol=1e-6)


def test_a_street_may_be_farther_than_a_room(broken):
    for file in broken.glob('disparity/*/*/*.png'):
        cv2.imwrite(str(file), np.full((1024, 2048), 16 * 256 + 1, np.uint16))  # 484 / 16 m
    data = DatasetConfig('cityscapes', str(broken))
    assert not [fault for fault in check_data(DataConfig(data)).faults if 'median' in fault]


def test_label_ids_become_train_ids(tree, broken):
    labels = Cityscapes(tree, 'val')[0].labels
    expected = np.vectorize(lambda i: TRAIN_ID.get(i, 255), otypes=[np.uint8])
    np.testing.assert_array_equal(labels, expected(label_ids()))
    both = f'{FRAMES["val"][0]}_gtFine_labelTrainIds.png'
    write(broken, 'gtFine', 'val', both, np.full((1024, 2048), 255, np.uint8))
    np.testing.assert_array_equal(Cityscapes(broken, 'val')[0].labels, labels)
    for file in broken.glob('gtFine/val/*/*labelIds.png'):
        train_ids = file.with_name(file.name.replace('labelIds', 'labelTrainIds'))
        cv2.imwrite(str(train_ids), labels)
        file.unlink()
    np.testing.assert_array_equal(Cityscapes(broken, 'val')[0].labels, labels)


def test_the_official_names_and_colours_follow_the_train_ids():
    names, colors = Cityscapes.classes.names, Cityscapes.classes.colors.tolist()
    assert ', '.join(names) == (
        'road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, '
        'terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle'
    )
    assert (colors[0], colors[10], colors[13]) == ([128, 64, 128], [70, 130, 180], [0, 0, 142])


@pytest.mark.parametrize(
    ('package', 'archive'),
    [
        ('leftImg8bit', 'leftImg8bit_trainvaltest.zip'),
        ('disparity', 'disparity_trainvaltest.zip'),
        ('camera', 'camera_trainvaltest.zip'),
        ('gtFine', 'gtFine_trainvaltest.zip'),
    ],
)
def test_a_package_half_unpacked_or_missing_is_named(broken, package, archive):
    for file in (broken / package / 'train/ulm').iterdir():
        file.unlink()
    message = f'{package}/train has 1 of 2 frames; ulm_000003_000019.* is missing; .*{archive}'
    with pytest.raises(InputError, match=message):
        Cityscapes(broken, 'train')
    shutil.rmtree(broken / package)
    with pytest.raises(InputError, match=f'{package}/val has 0 of 1 frames.*{archive}'):
        Cityscapes(broken, 'val')


def test_a_check_names_all_packages_that_lack_frames_and_reads_the_rest(broken):
    lost = ('camera/train/ulm/ulm_000003_000019_camera.json',
            'gtFine/train/ulm/ulm_000003_000019_gtFine_labelIds.png')  # fmt: skip
    for name in lost:
        (broken / name).unlink()
    damaged = broken / 'leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png'
    damaged.write_bytes(damaged.read_bytes()[:-50])
    faults = check_data(DataConfig(DatasetConfig('cityscapes', str(broken)))).faults
    assert all(Path(name).name in faults[0] for name in lost)
    assert damaged.name in faults[1]
    shutil.rmtree(broken / 'disparity')
    first, second = check_data(DataConfig(DatasetConfig('cityscapes', str(broken)))).faults
    assert 'disparity/train has 0 of 2 frames' in first
    assert 'disparity/val has 0 of 1 frames' in second


@pytest.mark.parametrize(
    ('package', 'end', 'image', 'message'),
    [
        ('leftImg8bit', '_leftImg8bit.png', np.ones((512, 1024, 3), np.uint8), '1024x512 where'),
        ('disparity', '_disparity.png', np.ones((512, 1024), np.uint16), '1024x512 where 2048x1'),
        ('disparity', '_disparity.png', np.ones((1024, 2048), np.uint8), '8 bits a pixel'),
        ('gtFine', '_gtFine_labelIds.png', np.ones((9, 16), np.uint8), '16x9 where 2048x1024'),
        ('gtFine', '_gtFine_labelIds.png', np.full((1024, 2048), 34, np.uint8), 'label 34 on'),
        ('camera', '_camera.json', {'intrinsic': {'fx': 1}}, "no camera of Cityscapes .'fy'"),
    ],
)
def test_a_file_of_another_form_is_named(broken, package, end, image, message):
    name = f'{FRAMES["val"][0]}{end}'
    write(broken, package, 'val', name, image)
    with pytest.raises(InputError, match=f'{name}.*{message}.*unpack {package}_trainvaltest.zip'):
        Cityscapes(broken, 'val')[0]


def test_a_camera_without_a_baseline_is_named(broken):
    file = broken / f'camera/val/munster/{FRAMES["val"][0]}_camera.json'
    camera = json.loads(file.read_text())
    camera['extrinsic']['baseline'] = 0.0
    file.write_text(json.dumps(camera))
    with pytest.raises(InputError, match=r'camera\.json gives a baseline of 0\.0 m'):
        Cityscapes(broken, 'val')[0]


@pytest.mark.parametrize('package', ['leftImg8bit', 'disparity', 'gtFine', 'camera'])
def test_a_file_cut_short_is_named(broken, package):
    file = sorted((broken / package).glob('val/*/*'))[-1]
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InputError, match=file.name):
        Cityscapes(broken, 'val')[0]


def test_a_train_id_that_does_not_exist_is_named(broken):
    for file in broken.glob('gtFine/val/*/*'):
        file.unlink()
    labels = np.full((1024, 2048), 255, np.uint8)
    labels[0, 0] = 19
    write(broken, 'gtFine', 'val', f'{FRAMES["val"][0]}_gtFine_labelTrainIds.png', labels)
    with pytest.raises(InputError, match=r'labelTrainIds\.png has the unknown label 19 on 1'):
        Cityscapes(broken, 'val')[0]


def test_options_are_checked(tree):
    for wrong in (0, -5.0, float('nan'), 'far'):
        with pytest.raises(InputError, match='max_depth_m must be a number above 0'):
            Cityscapes(tree, 'train', max_depth_m=wrong)


def test_the_cache_key_tells_contents_apart(tree, broken):
    key = Cityscapes(tree, 'val').describe()
    assert key == Cityscapes(broken, 'val').describe()
    assert key != Cityscapes(tree, 'val', max_depth_m=50).describe()
    write(broken, 'leftImg8bit', 'val', f'{FRAMES["val"][0]}_leftImg8bit.png', np.ones((2, 2, 3)))
    assert key != Cityscapes(broken, 'val').describe()


def test_what_hha_keeps_of_a_street():
    """The reader's docstring, in numbers: few levels of disparity, heights up to 2.55 m."""
    intrinsics = Intrinsics(226.0, 226.0, 110.0, 51.0, 204, 102)
    v = np.arange(102, dtype=np.float64)[:, None].repeat(204, 1)
    with np.errstate(divide='ignore'):
        road = 1.2 * 226.0 / (v + 1 - 51.0)
    walls = (5.0, 10.0, 50.0, 100.0)
    level = {}
    for wall in walls:
        depth = np.where((road > 0) & (road < wall), road, wall).astype(np.float32)
        hha = encode_hha(depth, intrinsics, gravity=np.array([0.0, 1.0, 0.0]))
        level[wall] = int(hha[20, 100, 0])
    assert level == {5.0: 62, 10.0: 31, 50.0: 6, 100.0: 3}
    assert hha[95, 100, 1] <= 1
    assert hha[20, 100, 1] == 255
    assert hha[..., 0].max() < 255
    depth[101, 0] = 100.0
    stray = encode_hha(depth, intrinsics, gravity=np.array([0.0, 1.0, 0.0]))
    np.testing.assert_array_equal(stray[60:100, 5:, 1], hha[60:100, 5:, 1])
    depth[98:102, :120] = 100.0
    stray = encode_hha(depth, intrinsics, gravity=np.array([0.0, 1.0, 0.0]))
    assert (stray[60:97, 125:, 1] == 255).all()
