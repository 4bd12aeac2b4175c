from __future__ import annotations

import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.image_decoding import intrinsics_from_info
from rgbd_fusion_seg.replay.calibration import load_calibration, parse_calibration
from rgbd_fusion_seg.replay.folders import FolderFrames

from .conftest import HEIGHT, MATRIX, WIDTH, frame_pixels, write_frame

INTRINSICS = Intrinsics(30, 30, 15.5, 11.5, WIDTH, HEIGHT)


def assert_frame(frame, index):
    rgb, millimetres = frame_pixels(index)
    np.testing.assert_array_equal(frame.rgb, rgb)
    np.testing.assert_allclose(frame.depth, millimetres / 1000, rtol=1e-6)
    assert frame.intrinsics == INTRINSICS
    assert frame.frame_id == 'camera_color_optical_frame'


def test_suffixed_layout_in_natural_order(kinect_folder):
    source = FolderFrames(kinect_folder, rate_hz=10)
    frames = list(source)
    assert len(frames) == len(source) == 12
    assert [source.name(i) for i in (0, 2, 10)] == ['frame-0', 'frame-2', 'frame-10']
    for index, frame in enumerate(frames):
        assert_frame(frame, index)
    stamps = [frame.stamp_ns for frame in frames]
    assert stamps[0] > 0
    assert set(np.diff(stamps)) == {100_000_000}


def test_superscripts_in_names_are_no_numbers(tmp_path):
    """They are digits to Python, but none that it reads as a number."""
    names = ['9m1', '9m²', '9m1²', '10m²']
    for index, name in enumerate(names):
        write_frame(tmp_path, f'rgb/{name}.png', f'depth/{name}.png', index)
    (tmp_path / 'intrinsics.txt').write_text(MATRIX)
    source = FolderFrames(tmp_path)
    assert {source.name(i) for i in range(4)} == {*names}
    assert source.name(3) == '10m²'


def test_notes_of_macos_are_no_images(tmp_path):
    suffixed, foldered = tmp_path / 'suffixed', tmp_path / 'foldered'
    write_frame(suffixed, 'a.color.png', 'a.depth.png', 0)
    write_frame(foldered, 'rgb/a.png', 'depth/a.png', 0)
    for folder in (suffixed, foldered):
        (folder / 'intrinsics.txt').write_text(MATRIX)
        for image in [*folder.rglob('*.png')]:
            image.with_name(f'._{image.name}').write_bytes(b'\0\5\x16\7')
        source = FolderFrames(folder)
        assert [source.name(i) for i in range(len(source))] == ['a']
        assert source.unmatched == 0
        assert_frame(source.read(0), 0)


@pytest.mark.parametrize('colors', ['rgb', 'color'])
def test_foldered_layout(tmp_path, colors):
    for index in range(2):
        write_frame(tmp_path, f'{colors}/{index}.png', f'depth/{index}.png', index)
    (tmp_path / 'intrinsics.txt').write_text(MATRIX)
    for index, frame in enumerate(FolderFrames(tmp_path)):
        assert_frame(frame, index)
    assert index == 1


YAMLS = {
    'OpenCV': '%YAML:1.0\n---\nimage_width: 32\nimage_height: 24\n'
    'camera_matrix: !!opencv-matrix\n   rows: 3\n   cols: 3\n   dt: d\n'
    '   data: [ 30., 0., 15.5, 0., 30., 11.5, 0., 0., 1. ]\n',
    'camera_calibration': 'image_width: 32\nimage_height: 24\ncamera_name: c\n'
    'camera_matrix: {rows: 3, cols: 3, data: [30, 0, 15.5, 0, 30, 11.5, 0, 0, 1]}\n',
    'printed message': 'width: 32\nheight: 24\nk: [30.0, 0, 15.5, 0, 30, 11.5, 0, 0, 1]\n',
}


@pytest.mark.parametrize('flavour', YAMLS)
def test_yaml_calibration(tmp_path, flavour):
    path = tmp_path / 'camera_info.yaml'
    path.write_text(YAMLS[flavour])
    calibration = load_calibration(path)
    assert calibration.intrinsics(1, 1) == INTRINSICS
    write_frame(tmp_path, 'rgb/a.png', 'depth/a.png', 3)
    assert_frame(next(iter(FolderFrames(tmp_path))), 3)


def test_calibration_written_by_opencv(tmp_path):
    path = tmp_path / 'intrinsics.yaml'
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    storage.write('image_width', 32)
    storage.write('image_height', 24)
    storage.write('camera_matrix', INTRINSICS.matrix)
    storage.release()
    assert load_calibration(path).intrinsics(1, 1) == INTRINSICS


def test_own_calibration_of_a_frame_wins(tmp_path):
    write_frame(tmp_path, 'rgb/a.png', 'depth/a.png', 0)
    write_frame(tmp_path, 'rgb/b.png', 'depth/b.png', 1)
    (tmp_path / 'intrinsics.txt').write_text(MATRIX)
    (tmp_path / 'calib').mkdir()
    (tmp_path / 'calib/b.yaml').write_text(YAMLS['OpenCV'].replace('15.5', '17.5'))
    assert [frame.intrinsics.cx for frame in FolderFrames(tmp_path)] == [15.5, 17.5]


def test_given_calibration_and_depth_scale(kinect_folder):
    (kinect_folder / 'camera-intrinsics.txt').unlink()
    source = FolderFrames(
        kinect_folder, calibration=parse_calibration('1,2,3,4'), depth_scale_m=0.0002
    )
    frame = source.read(0)
    assert frame.intrinsics == Intrinsics(1, 2, 3, 4, WIDTH, HEIGHT)
    np.testing.assert_allclose(frame.depth, frame_pixels(0)[1] / 5000, rtol=1e-6)


def test_colour_alone_needs_no_calibration_that_can_be_read(kinect_folder):
    for path in ('camera-intrinsics.txt', 'intrinsics.txt'):
        (kinect_folder / path).write_text('525 525 319.5 239.5')
        assert len(list(FolderFrames(kinect_folder, only='rgb'))) == 12
        for only in ('', 'depth'):
            with pytest.raises(InputError, match='must have 9 numbers, it has 4'):
                FolderFrames(kinect_folder, only=only)


def test_endings_in_capitals(tmp_path):
    for index in range(2):
        write_frame(tmp_path, f'rgb/{index}.png', f'depth/{index}.png', index)
        for sensor in ('rgb', 'depth'):
            path = tmp_path / sensor / f'{index}.png'
            path.rename(path.with_suffix('.PNG'))
    (tmp_path / 'intrinsics.txt').write_text(MATRIX)
    for index, frame in enumerate(FolderFrames(tmp_path)):
        assert_frame(frame, index)
    assert index == 1
    suffixed = tmp_path / 'suffixed'
    write_frame(suffixed, 'a.color.png', 'a.depth.png', 0)
    (suffixed / 'a.color.png').rename(suffixed / 'a.Color.JPG')
    (suffixed / 'a.depth.png').rename(suffixed / 'a.Depth.PNG')
    (source,) = FolderFrames(suffixed, calibration=parse_calibration('30,30,15.5,11.5')).files
    assert (source.name, source.color.name) == ('a', 'a.Color.JPG')


def test_saturated_depth_is_no_reading(kinect_folder):
    depth = frame_pixels(0)[1]
    depth[0, 0] = 65535
    cv2.imwrite(str(kinect_folder / 'frame-0.depth.png'), depth)
    assert FolderFrames(kinect_folder).read(0).depth[0, 0] == 0


def test_real_frames(data_dir):
    source = FolderFrames(data_dir / 'kinect_sequence')
    assert len(source) == 150
    frame = source.read(0)
    assert frame.intrinsics == Intrinsics(585, 585, 320, 240, 640, 480)
    assert 0.3 < np.median(frame.depth[frame.depth > 0]) < 10
    xtion = FolderFrames(data_dir / 'frames/xtion')
    assert [xtion.name(i) for i in range(len(xtion))] == ['17', '154']
    assert xtion.read(0).intrinsics == Intrinsics(525, 525, 319.5, 239.5, 640, 480)


def damage(folder, what):
    if what == 'no folder':
        shutil.rmtree(folder)
    elif what == 'empty':
        shutil.rmtree(folder)
        folder.mkdir()
    elif what == 'colour alone':
        for path in folder.glob('*.depth.png'):
            path.unlink()
    elif what == 'no calibration':
        (folder / 'camera-intrinsics.txt').unlink()
    elif what == 'short calibration':
        (folder / 'camera-intrinsics.txt').write_text('1 2 3')
    elif what == 'calibration of words':
        (folder / 'camera-intrinsics.txt').write_text('fx fy')
    elif what == 'zero focal length':
        (folder / 'camera-intrinsics.txt').write_text('0 0 15 0 0 11 0 0 1')
    elif what == 'broken colour':
        (folder / 'frame-1.color.png').write_bytes(b'not an image')
    elif what == 'cut colour':  # decoders paint what is missing grey
        image = cv2.imencode('.jpg', frame_pixels(1)[0])[1]
        (folder / 'frame-1.color.jpg').write_bytes(image[: len(image) * 2 // 3])
    elif what == 'cut depth':
        path = folder / 'frame-1.depth.png'
        path.write_bytes(path.read_bytes()[:-20])
    elif what == 'colour as depth':
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        cv2.imwrite(str(folder / 'frame-1.depth.png'), image)
    elif what == 'broken depth':
        (folder / 'frame-1.depth.png').write_bytes(b'')
    elif what == '8-bit depth':
        cv2.imwrite(str(folder / 'frame-1.depth.png'), np.zeros((HEIGHT, WIDTH), np.uint8))
    elif what == 'other size':
        cv2.imwrite(str(folder / 'frame-1.depth.png'), np.zeros((HEIGHT, 16), np.uint16))


@pytest.mark.parametrize(
    ('what', 'message'),
    [
        ('no folder', 'there is no folder .*kinect'),
        ('empty', 'no pairs of colour and depth.*NAME.color.jpg'),
        ('colour alone', 'no pairs of colour and depth'),
        ('no calibration', 'no calibration for frame-0.*camera-intrinsics.txt'),
        ('short calibration', 'camera-intrinsics.txt must have 9 numbers, it has 3'),
        ('calibration of words', 'camera-intrinsics.txt cannot be read'),
        ('zero focal length', 'frame-0.*focal lengths must be positive'),
        ('broken colour', 'frame-1.color.png is no image'),
        ('broken depth', 'frame-1.depth.png is cut short'),
        ('cut colour', 'frame-1.color.jpg is cut short or damaged'),
        ('cut depth', 'frame-1.depth.png is cut short or damaged'),
        ('colour as depth', 'frame-1.depth.png has 3 channels'),
        ('8-bit depth', 'frame-1.depth.png is not a depth image.*16 bits'),
        ('other size', 'frame-1.*colour is 32x24 but depth is 16x24'),
    ],
)
def test_refusals(kinect_folder, what, message):
    damage(kinect_folder, what)
    with pytest.raises(InputError, match=message):
        list(FolderFrames(kinect_folder))


def test_yaml_of_another_size_is_refused(tmp_path):
    write_frame(tmp_path, 'rgb/a.png', 'depth/a.png', 0)
    (tmp_path / 'camera_info.yaml').write_text(YAMLS['OpenCV'].replace('32', '640'))
    with pytest.raises(InputError, match='32x24 but the camera info says 640x24'):
        list(FolderFrames(tmp_path))


@pytest.mark.parametrize(
    ('was', 'becomes', 'message'),
    [
        ('image_height: 24', 'image_height: six', "whole numbers of pixels, it has 'six'"),
        ('image_width: 32', 'image_width: 32.5', 'it has 32.5'),
        ('image_width: 32', 'image_width: .nan', 'it has nan'),
        ('image_width: 32', 'image_width: true', 'it has True'),
        ('image_width: 32', 'image_width: [32]', r'it has \[32\]'),
        ('data: [30, 0,', 'data: [[30], 0,', 'must be a list of 9 numbers'),
        ('data: [30, 0,', 'data: [{a: 1}, 0,', 'must be a list of 9 numbers'),
        ('30, 0, 15.5, 0, 30, 11.5, 0, 0, 1', 'f', 'must be a list of 9 numbers'),
        ('[30, 0, 15.5, 0, 30, 11.5, 0, 0, 1]', '{a: 1}', 'must be a list of 9 numbers'),
    ],
)
def test_yaml_of_other_values_is_refused(tmp_path, was, becomes, message):
    path = tmp_path / 'camera_info.yaml'
    path.write_text(YAMLS['camera_calibration'].replace(was, becomes))
    with pytest.raises(InputError, match=message) as caught:
        load_calibration(path)
    assert str(path) in str(caught.value)


def test_sizes_that_are_whole_or_absent(tmp_path):
    path = tmp_path / 'camera_info.yaml'
    for width in ('32.0', '"32"'):
        text = YAMLS['camera_calibration'].replace('image_width: 32', f'image_width: {width}')
        path.write_text(text.replace('image_height: 24', 'image_height:'))
        assert load_calibration(path).intrinsics(1, 24) == INTRINSICS


def test_a_printed_camera_info_ends_a_document(tmp_path):
    path = tmp_path / 'camera_info.yaml'
    path.write_text(YAMLS['printed message'] + '---\n')
    assert load_calibration(path).intrinsics(1, 1) == INTRINSICS


PRINTED = {
    'k': [600.0, 0.0, 320.0, 0.0, 600.0, 240.0, 0.0, 0.0, 1.0],
    'p': [560.0, 0.0, 310.0, 0.0, 0.0, 565.0, 245.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    'width': 640,
    'height': 480,
    'binning_x': 0,
    'binning_y': 0,
    'roi': {'x_offset': 0, 'y_offset': 0, 'height': 0, 'width': 0, 'do_rectify': False},
}


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({}, (560, 565, 310, 245, 640, 480)),
        ({'p': [0.0] * 12}, (600, 600, 320, 240, 640, 480)),
        ({'binning_x': 2, 'binning_y': 4}, (280, 141.25, 155, 61.25, 320, 120)),
        (
            {'roi': {**PRINTED['roi'], 'x_offset': 10, 'y_offset': 20, 'width': 60, 'height': 50}},
            (560, 565, 300, 225, 60, 50),
        ),
    ],
)
def test_a_printed_camera_info_is_read_like_the_message(tmp_path, changes, expected):
    card = {**PRINTED, **changes}
    path = tmp_path / 'camera_info.yaml'
    path.write_text(yaml.safe_dump(card))
    message = SimpleNamespace(**{**card, 'roi': SimpleNamespace(**card['roi'])})
    assert load_calibration(path).intrinsics(1, 1) == Intrinsics(*expected)
    assert intrinsics_from_info(message) == Intrinsics(*expected)


def test_camera_calibration_tells_the_rectified_image_by_its_projection(tmp_path):
    path = tmp_path / 'camera.yaml'
    projection = (
        'projection_matrix: {rows: 3, cols: 4, data: [28, 0, 15, 0, 0, 29, 11, 0, 0, 0, 1, 0]}'
    )
    path.write_text(f'{YAMLS["camera_calibration"]}{projection}\n')
    assert load_calibration(path).intrinsics(1, 1) == Intrinsics(28, 29, 15, 11, WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ('was', 'becomes', 'message'),
    [
        ('- 0.0\nroi', 'roi', 'projection matrix in .* must have 12 numbers, it has 11'),
        ('p:\n- 560.0', 'p:\n- a', 'projection matrix in .* must be a list of 12 numbers'),
        ('binning_x: 0', 'binning_x: 0.5', 'binning_x in .* must be whole numbers of pixels'),
        ('x_offset: 0', 'x_offset: -1', 'x_offset in .* must be whole numbers of pixels'),
        ('roi:\n', 'roi: 5\nother:\n', 'roi in .* must be a mapping'),
    ],
)
def test_a_printed_camera_info_of_other_values_is_refused(tmp_path, was, becomes, message):
    path = tmp_path / 'camera_info.yaml'
    text = yaml.safe_dump(PRINTED)
    assert was in text
    path.write_text(text.replace(was, becomes))
    with pytest.raises(InputError, match=message):
        load_calibration(path)


@pytest.mark.parametrize('rate_hz', [1e-12, 0, -1, 1e12, float('nan'), float('inf')])
def test_rates_that_no_stamps_can_tell(kinect_folder, rate_hz):
    with pytest.raises(InputError, match=r'rate must be 0\.001 to 1000 frames per second'):
        FolderFrames(kinect_folder, rate_hz=rate_hz)
    for fits in (0.001, 1000):
        source = FolderFrames(kinect_folder, rate_hz=fits)
        assert source.read(11).stamp_ns - source.read(0).stamp_ns == round(11e9 / fits)


@pytest.mark.parametrize('text', ['1,2,3', 'a,b,c,d', '', '1,2,3,4,5'])
def test_intrinsics_on_the_command_line(text):
    with pytest.raises(InputError, match='four numbers'):
        parse_calibration(text)


def test_of_two_files_the_documented_one_is_read(kinect_folder):
    cv2.imwrite(
        str(kinect_folder / 'frame-0.color.jpg'), np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    )
    (kinect_folder / 'intrinsics.txt').write_text('99 0 15.5\n0 99 11.5\n0 0 1\n')
    frame = FolderFrames(kinect_folder).read(0)
    assert np.ptp(frame.rgb) < 4
    assert frame.intrinsics == INTRINSICS


def test_stamps_do_not_drift(kinect_folder):
    source = FolderFrames(kinect_folder, rate_hz=30)
    assert source.read(9).stamp_ns - source.read(0).stamp_ns == 300_000_000
