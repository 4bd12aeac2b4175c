from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from png_files import png

from rgbd_fusion_seg.errors import InputError

pytest.importorskip('jsonargparse', reason='needs the extra [train]')

from rgbd_fusion_seg.training.datasets.own_folder import (
    OwnFolder,
    distinct_colors,
    read_camera,
)

EXAMPLE = Path(__file__).parents[3] / 'config' / 'datasets' / 'example_folder.yaml'
CAMERA = {'fx': 31.0, 'fy': 32.0, 'cx': 15.5, 'cy': 11.5, 'width': 32, 'height': 24}
BASE = {
    'name': 'lab',
    'classes': ['floor', 'wall', 'chair'],
    'rgb': 'color/*.png',
    'depth': 'depth/*.png',
    'labels': 'labels/*.png',
    'depth_unit': 'mm',
    'camera': CAMERA,
    'splits': {'train': 'train.txt', 'test': 'test.txt'},
}


def content(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour (RGB), depth in metres, labels 0..2."""
    rng = np.random.default_rng(number)
    depth = rng.integers(500, 4000, (24, 32)).astype(np.float32) / 1000
    depth[0] = 0
    return (
        rng.integers(0, 256, (24, 32, 3), np.uint8),
        depth,
        rng.integers(0, 3, (24, 32)).astype(np.uint8),
    )


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


def write_frame(folder: Path, name: str, number: int) -> None:
    rgb, depth, labels = content(number)
    write(folder / f'color/{name}.png', rgb)
    write(folder / f'depth/{name}.png', np.round(depth * 1000).astype(np.uint16))
    write(folder / f'labels/{name}.png', labels)


@pytest.fixture
def lab(tmp_path) -> Path:
    """Five frames, three of them for training."""
    for number in range(5):
        write_frame(tmp_path, f'f{number}', number)
    (tmp_path / 'train.txt').write_text('f0\nf2\nf4\n')
    (tmp_path / 'test.txt').write_text('f1\n\nf3\n')
    return tmp_path


def describe(folder: Path, **changes: Any) -> Path:
    """Write the YAML file; a key changed to None is left out."""
    keys = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    (folder / 'lab.yaml').write_text(yaml.safe_dump(keys))
    return folder / 'lab.yaml'


def check(source: OwnFolder, numbers: list[int]) -> None:
    assert len(source) == len(numbers)
    for item, number in zip(source, numbers, strict=True):
        rgb, depth, labels = content(number)
        np.testing.assert_array_equal(item.frame.rgb, rgb)
        np.testing.assert_allclose(item.frame.depth, depth, rtol=1e-6)
        np.testing.assert_array_equal(item.labels, labels)


def test_frames_of_listed_splits_are_read(lab):
    file = describe(lab)
    train = OwnFolder(file, 'train')
    check(train, [0, 2, 4])
    check(OwnFolder(file, 'test'), [1, 3])
    assert train.name == 'lab-train'
    assert train.size == (32, 24)
    assert train.classes.names == ('floor', 'wall', 'chair')
    camera = train[0].frame.intrinsics
    assert {key: getattr(camera, key) for key in CAMERA} == CAMERA


def test_the_last_frames_are_for_testing_where_a_share_is_given(lab):
    file = describe(lab, splits=None, test_fraction=0.4)
    check(OwnFolder(file, 'train'), [0, 1, 2])
    check(OwnFolder(file, 'test'), [3, 4])


def test_the_last_frames_are_those_of_the_highest_numbers(tmp_path):
    names = ['run2/9', 'run2/10', 'run10/8', 'run10/11']
    for number, name in enumerate(names):
        write_frame(tmp_path, name, number)
    scenes = {'rgb': 'color/*/*.png', 'depth': 'depth/*/*.png', 'labels': 'labels/*/*.png'}
    file = describe(tmp_path, splits=None, test_fraction=0.25, **scenes)
    train = OwnFolder(file, 'train')
    assert train.ids == names[:3]
    check(train, [0, 1, 2])
    check(OwnFolder(file, 'test'), [3])


def test_a_scene_is_not_mixed_with_one_of_the_same_number(tmp_path):
    names = ['1/a', '1/b', '01/a', '01/b']
    for number, name in enumerate(names):
        write_frame(tmp_path, name, number)
    scenes = {'rgb': 'color/*/*.png', 'depth': 'depth/*/*.png', 'labels': 'labels/*/*.png'}
    file = describe(tmp_path, splits=None, test_fraction=0.5, **scenes)
    assert {name.split('/')[0] for name in OwnFolder(file, 'train').ids} == {'01'}


def test_a_share_that_leaves_no_frame_for_testing_is_named(lab):
    file = describe(lab, splits=None, test_fraction=0.001)
    with pytest.raises(InputError, match=r"test_fraction 0\.001 .* 'test' none of the 5 frames"):
        OwnFolder(file, 'test')


def test_files_may_lie_beside_the_folder_of_the_description(lab):
    (lab / 'described').mkdir()
    patterns = {'rgb': '../color/*.png', 'depth': '../depth/*.png', 'labels': '../labels/*.png'}
    file = describe(lab / 'described', splits=None, test_fraction=0.4, **patterns)
    check(OwnFolder(file, 'train'), [0, 1, 2])


def test_splits_may_be_folders_and_frames_lie_in_folders_of_scenes(tmp_path):
    names = ['train/a/001', 'train/b/001', 'test/c/007']
    for number, name in enumerate(names):
        write_frame(tmp_path, name, number)
    patterns = {
        key: f'{folder}/{{split}}/*/*.png'
        for key, folder in (('rgb', 'color'), ('depth', 'depth'), ('labels', 'labels'))
    }
    file = describe(tmp_path, splits=None, **patterns)
    train = OwnFolder(file, 'train')
    assert train.ids == ['a/001', 'b/001']
    check(train, [0, 1])
    check(OwnFolder(file, 'test'), [2])


def test_notes_of_macos_are_no_frames(lab):
    for image in [*lab.rglob('f*.png')]:
        image.with_name(f'._{image.name}').write_bytes(b'\0\5\x16\7')
    check(OwnFolder(describe(lab, splits=None, test_fraction=0.4), 'test'), [3, 4])


def test_hidden_scenes_are_read_where_the_patterns_name_them(lab):
    for number, name in enumerate(('.kept/a', '.kept/b', '.trash/c')):
        write_frame(lab, name, number)
    scenes = {'rgb': 'color/*/*.png', 'depth': 'depth/*/*.png', 'labels': 'labels/*/*.png'}
    file = describe(lab, splits=None, test_fraction=0.5, **scenes)
    with pytest.raises(InputError, match='has no frames'):
        OwnFolder(file, 'train')
    named = {key: pattern.replace('/*/', '/.kept/') for key, pattern in scenes.items()}
    file = describe(lab, splits=None, test_fraction=0.5, **named)
    check(OwnFolder(file, 'train'), [0])


def test_label_values_are_mapped_and_void(lab):
    for path in (lab / 'labels').iterdir():
        values = np.array([700, 12, 9], np.uint16)[cv2.imread(str(path), cv2.IMREAD_UNCHANGED)]
        values[0] = 3
        write(path, values)
    file = describe(lab, label_map={700: 'floor', 12: 1, 9: 'chair'}, void=[3, 255])
    item, (_, _, labels) = OwnFolder(file, 'train')[1], content(2)
    np.testing.assert_array_equal(item.labels[1:], labels[1:])
    assert (item.labels[0] == 255).all()
    source = OwnFolder(describe(lab, label_map={700: 0, 9: 2}, void=[3]), 'train')
    with pytest.raises(InputError, match=r'f0\.png has the label 12, .*label_map or void'):
        source[0]


def test_a_palette_image_gives_its_indices(lab):
    """As a tool writes it that labels by colours: 8-bit indices and a palette."""
    (lab / 'labels/f0.png').write_bytes(png(content(0)[2], 8, 3))
    assert cv2.imread(str(lab / 'labels/f0.png'), cv2.IMREAD_UNCHANGED).ndim == 3
    check(OwnFolder(describe(lab, splits=None, test_fraction=0.8), 'train'), [0])


def test_depth_in_metres_may_be_an_array_or_a_tiff(lab):
    for number in range(5):
        np.save(lab / f'depth/f{number}.npy', content(number)[1])
        write(lab / f'depth/f{number}.tiff', content(number)[1])
    check(OwnFolder(describe(lab, depth='depth/*.npy', depth_unit='m'), 'train'), [0, 2, 4])
    check(OwnFolder(describe(lab, depth='depth/*.tiff', depth_unit=1), 'train'), [0, 2, 4])


@pytest.mark.parametrize('unit', ['2e-4', '"0.0002"', '2.0e-4'])
def test_the_unit_may_be_written_in_any_way_numbers_are(lab, unit):
    """YAML 1.1 takes a number with an exponent and without a point for text."""
    file = describe(lab)
    file.write_text(file.read_text().replace('depth_unit: mm', f'depth_unit: {unit}'))
    assert OwnFolder(file, 'train').metres_per_unit == 0.0002


@pytest.mark.parametrize('ending', ['png', 'npy'])
def test_depth_at_the_end_of_its_16_bits_is_no_reading(lab, ending):
    depth = np.full((24, 32), 1500, np.uint16)
    depth[0, :3] = 65535, 65534, 0
    write(lab / 'depth/f0.png', depth)
    np.save(lab / 'depth/f0.npy', depth.astype('>u2'))
    item = OwnFolder(describe(lab, depth=f'depth/*.{ending}'), 'train')[0]
    np.testing.assert_allclose(item.frame.depth[0, :4], [0, 65.534, 0, 1.5], rtol=1e-6)


@pytest.mark.parametrize(
    'strange', [np.ones((24, 32), bool), np.ones((24, 32), np.complex64), np.ones((24, 32, 1))]
)
def test_an_array_that_is_no_depth_is_refused(lab, strange):
    np.save(lab / 'depth/f0.npy', strange)
    source = OwnFolder(describe(lab, depth='depth/*.npy', depth_unit='m'), 'train')
    with pytest.raises(InputError, match=rf'f0\.npy is {strange.dtype} .*, not numbers'):
        source[0]


CALIBRATION = {
    'image_width': 32,
    'image_height': 24,
    'camera_name': 'head',
    'camera_matrix': {'rows': 3, 'cols': 3, 'data': [31.0, 0, 15.5, 0, 32.0, 11.5, 0, 0, 1]},
}
TOPIC = {'width': 32, 'height': 24, 'k': [31.0, 0, 15.5, 0, 32.0, 11.5, 0, 0, 1]}


@pytest.mark.parametrize(
    'text',
    [
        yaml.safe_dump(CALIBRATION),
        '%YAML:1.0\n---\n'
        + yaml.safe_dump(CALIBRATION).replace('matrix:', 'matrix: !!opencv-matrix'),
        yaml.safe_dump(TOPIC) + '---\n',
    ],
)
def test_the_camera_may_be_a_file_of_ros(lab, text):
    (lab / 'camera.yaml').write_text(text)
    camera = OwnFolder(describe(lab, camera='camera.yaml'), 'train').intrinsics
    assert {key: getattr(camera, key) for key in CAMERA} == CAMERA


def test_a_calibration_of_a_real_camera_is_read(data_dir):
    camera = read_camera(data_dir / 'frames/xtion/calib/17.yaml')
    assert (camera.width, camera.height, camera.fx, camera.cy) == (640, 480, 525.0, 239.5)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'depht_unit': 'mm'}, 'depht_unit'),
        ({'rgb': None}, 'required: data.rgb'),
        ({'depth_unit': 'cm'}, "depth_unit is 'cm'; give mm, m or"),
        ({'depth_unit': '-2e-4'}, "depth_unit is '-2e-4'; give mm, m or"),
        ({'depth_unit': 'nan'}, "depth_unit is 'nan'; give mm, m or"),
        ({'depth_unit': 'inf'}, "depth_unit is 'inf'; give mm, m or"),
        ({'classes': 'floor'}, 'classes'),
        ({'colors': [[1, 2, 3]]}, '3 names and 1 colours'),
        ({'classes': ['floor']}, r'lab\.yaml: .* 1 names and 1 colours; give 2 to 255'),
        ({'classes': [f'c{i}' for i in range(256)]}, '256 names .* 2 to 255'),
        ({'colors': [[1, 2, 300]] * 3}, '0..255'),
        ({'label_map': {1: 'ceiling'}}, "maps 1 to 'ceiling', which is no class"),
        ({'classes': ['floor', 'wall', 'floor']}, "classes has 'floor' twice"),
        ({'classes': ['off', True, 'blinking']}, 'the class True is no text; write it in quotes'),
        ({'classes': ['floor', 7]}, 'the class 7 is no text'),
        ({'void': [0, 255]}, "0 is 'floor' and in void, too"),
        ({'label_map': {1: 0, 255: 'chair'}}, "255 is 'chair' and in void, too"),
        ({'splits': {'train': 'twice.txt'}}, r"twice\.txt has the frame 'f2' twice"),
        ({'label_map': {1: 3}}, 'maps 1 to 3, which is no class'),
        ({'void': [-1]}, '-1 in label_map or void'),
        ({'camera': {'fx': 1.0}}, 'camera has fx; give fx, fy, cx, cy, width, height'),
        ({'camera': {**CAMERA, 'fx': -1.0}}, 'focal lengths must be positive'),
        ({'camera': {**CAMERA, 'width': float('inf')}}, 'camera is infx24; give its size'),
        ({'camera': {**CAMERA, 'height': float('nan')}}, 'camera is 32xnan; give its size'),
        ({'camera': 'endless.yaml'}, r'the image size in .*endless\.yaml must be whole numbers'),
        ({'camera': 'absent.yaml'}, r'calibration file .*absent\.yaml cannot be read'),
        ({'splits': {'val': 'test.txt'}}, "has the splits val, not 'train'"),
        ({'splits': {'train': 'absent.txt'}}, r'absent\.txt cannot be read'),
        ({'splits': None}, 'give one of splits, test_fraction and'),
        ({'test_fraction': 0.5}, 'give one of splits, test_fraction and'),
        ({'splits': None, 'test_fraction': 1.5}, 'share 0..1'),
        ({'splits': None, 'test_fraction': 0.2, 'rgb': 'color/*.jpg'}, 'no frames; check rgb'),
        ({'splits': None, 'test_fraction': 0.999}, "0.999 leaves the split 'train' none of the 5"),
        ({'rgb': '/data/color/*.png'}, "rgb is '/data/.*relative to the folder of the YAML file"),
        ({'depth': '/data/*.png'}, 'depth is .*relative to the folder of the YAML file'),
        ({'labels': '/data/*.png'}, 'labels is .*relative to the folder of the YAML file'),
        ({'rgb': 'color/f0.png'}, r"rgb is 'color/f0\.png', but a pattern needs a \*"),
        ({'rgb': 'color', 'splits': None, 'test_fraction': 0.4}, r'a pattern needs a \*'),
        ({'rgb': 'color/**.png'}, r"rgb is 'color/\*\*\.png', but each \* stands for a part"),
        ({'labels': '**/*.png'}, r'labels is .* write \*/\* where frames lie in folders'),
        ({'depth': 'depth/'}, r"depth is 'depth/', but a pattern needs a \*"),
        ({'labels': 'labels/f0.png'}, r'labels is .*a pattern needs a \*'),
        ({'name': 'a/b'}, "name is 'a/b'"),
        ({'size': [640]}, 'give width and height'),
        ({'size': [32, 7]}, r'size is \[32, 7\]; give width and height'),
    ],
)
def test_a_wrong_description_is_refused(lab, changes, message):
    (lab / 'twice.txt').write_text('f2\nf0\nf2\n')
    endless = {'k': [31, 0, 15, 0, 31, 11, 0, 0, 1], 'width': float('inf'), 'height': 24}
    (lab / 'endless.yaml').write_text(yaml.safe_dump(endless))
    with pytest.raises(InputError, match=message) as caught:
        OwnFolder(describe(lab, **changes), 'train')
    assert '\n' not in str(caught.value)


def test_frames_may_be_kept_at_another_size(lab):
    assert OwnFolder(describe(lab, size=[16, 8]), 'train').size == (16, 8)


@pytest.mark.parametrize('side', ['width', 'height'])
def test_images_of_another_size_than_the_camera_are_refused(lab, side):
    source = OwnFolder(describe(lab, camera={**CAMERA, side: 16}), 'train')
    size = f'{source.intrinsics.width}x{source.intrinsics.height}'
    with pytest.raises(InputError, match=rf'camera is {size} but .*f0\.png is 32x24'):
        source[0]


def test_a_description_that_is_absent_or_no_yaml_is_refused(tmp_path):
    with pytest.raises(InputError, match='No such file'):
        OwnFolder(tmp_path / 'absent.yaml', 'train')
    (tmp_path / 'broken.yaml').write_text('name: [')
    with pytest.raises(InputError, match=r'broken\.yaml does not describe'):
        OwnFolder(tmp_path / 'broken.yaml', 'train')


def test_an_id_of_the_wrong_form_is_told(lab):
    (lab / 'train.txt').write_text('scene/f0\n')
    with pytest.raises(InputError, match="'scene/f0' has 2 parts but the pattern"):
        OwnFolder(describe(lab), 'train')[0]


def test_whatever_changes_the_frames_changes_their_description(lab):
    base = OwnFolder(describe(lab), 'train').describe()
    assert OwnFolder(describe(lab), 'train').describe() == base
    changes = (
        {'depth_unit': 'm'},
        {'camera': {**CAMERA, 'fx': 40.0}},
        {'void': [200]},
        {'splits': {'train': 'test.txt'}},
    )
    for change in changes:
        assert OwnFolder(describe(lab, **change), 'train').describe() != base
    file = lab / 'labels/f2.png'
    before = file.stat()
    write(file, np.zeros((24, 32), np.uint8))
    assert OwnFolder(describe(lab), 'train').describe() != base
    # Copied with the time of the older one.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size != before.st_size
    assert OwnFolder(describe(lab), 'train').describe() != base


def test_generated_colours_differ_and_none_is_near_black():
    colors = distinct_colors(255)
    assert len(np.unique(colors, axis=0)) == 255
    assert colors.max(1).min() > 30
    few = distinct_colors(20).astype(int)
    assert few.max(1).min() > 60
    distance = np.abs(few[:, None] - few).sum(2) + 999 * np.eye(20, dtype=int)
    assert distance.min() > 80


def test_the_example_reads_data_of_its_layout(tmp_path):
    file = tmp_path / 'example.yaml'
    file.write_text(EXAMPLE.read_text())
    rgb, depth, labels = (
        np.kron(x, np.ones((20, 20) + (1,) * (x.ndim - 2), x.dtype)) for x in content(0)
    )
    write(tmp_path / 'color/0001.jpg', rgb)
    write(tmp_path / 'depth/0001.png', np.round(depth * 1000).astype(np.uint16))
    write(tmp_path / 'labels/0001.png', labels)
    for split in ('train', 'test'):
        (tmp_path / f'{split}.txt').write_text('0001\n')
    item = OwnFolder(file, 'train')[0]
    np.testing.assert_array_equal(item.labels, labels)
    assert item.frame.rgb.shape == (480, 640, 3)
