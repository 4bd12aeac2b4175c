from __future__ import annotations

import logging
import re
import struct
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from rosbags.highlevel import AnyReader
from rvl_packing import pack_rvl

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.replay.bag_files import is_bag
from rgbd_fusion_seg.replay.bags import BagFrames, folder_to_bag
from rgbd_fusion_seg.replay.calibration import parse_calibration
from rgbd_fusion_seg.replay.folders import FolderFrames
from rgbd_fusion_seg.replay.messages import CAMERA_INFO, IMAGE
from rgbd_fusion_seg.replay.topics import BagTopics, find_topics

from .bag_camera import COLOUR, DEPTH, INFO, Camera, stamp, write_pair
from .conftest import HEIGHT, WIDTH, frame_pixels

CAMERAS = yaml.safe_load((Path(__file__).parents[2] / 'config' / 'cameras.yaml').read_text())
INTRINSICS = Intrinsics(30, 30, 15.5, 11.5, WIDTH, HEIGHT)


def assert_frame(frame, index):
    rgb, millimetres = frame_pixels(index)
    np.testing.assert_array_equal(frame.rgb, rgb)
    np.testing.assert_allclose(frame.depth, millimetres / 1000, rtol=1e-6)
    assert frame.intrinsics == INTRINSICS
    assert frame.stamp_ns == stamp(index)
    assert frame.frame_id == 'optical'


def test_folder_to_bag_and_back(kinect_folder, tmp_path):
    bag = tmp_path / 'out'
    assert folder_to_bag(kinect_folder, bag, rate_hz=15) == 12
    assert is_bag(bag)
    assert list(bag.glob('*.mcap'))
    source = BagFrames(bag)
    assert source.topics == BagTopics(
        '/rgb/image_rect_color', '/depth_registered/image_rect', '/rgb/camera_info'
    )
    assert len(source) == 12
    expected = list(FolderFrames(kinect_folder, rate_hz=15))
    for got, want in zip(source, expected, strict=True):
        np.testing.assert_array_equal(got.rgb, want.rgb)
        np.testing.assert_array_equal(got.depth, want.depth)
        assert (got.intrinsics, got.stamp_ns, got.frame_id) == (
            want.intrinsics,
            want.stamp_ns,
            want.frame_id,
        )
    assert (source.skipped, source.unmatched) == (0, 0)


def test_depth_of_finer_units_is_rounded_to_millimetres(kinect_folder, tmp_path):
    folder_to_bag(kinect_folder, tmp_path / 'out', depth_scale_m=0.0002)
    for index, frame in enumerate(BagFrames(tmp_path / 'out')):
        exact_m = frame_pixels(index)[1] / 5000
        assert np.abs(frame.depth - exact_m).max() <= 0.000501
    assert index == 11


def test_bag_of_real_frames(data_dir, tmp_path):
    folder = tmp_path / 'some'
    folder.mkdir()
    for path in data_dir.glob('kinect_sequence/frame-00000*'):
        (folder / path.name).symlink_to(path)
    (folder / 'camera-intrinsics.txt').write_text('585 0 320 0 585 240 0 0 1')
    assert folder_to_bag(folder, tmp_path / 'bag') == 10
    for got, path in zip(
        BagFrames(tmp_path / 'bag'), sorted(folder.glob('*.depth.png')), strict=True
    ):
        millimetres = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(np.rint(got.depth * 1000), millimetres)
        bgr = cv2.imread(str(path).replace('depth.png', 'color.jpg'))
        np.testing.assert_array_equal(got.rgb, bgr[..., ::-1])


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3', 'ros1'])
def test_every_storage(tmp_path, storage):
    bag = tmp_path / ('r.bag' if storage == 'ros1' else 'bag')
    with Camera(bag, storage) as camera:
        for index in range(4):
            camera.info(INFO, stamp(index))
            write_pair(camera, index)
    frames = list(BagFrames(bag))
    assert len(frames) == 4
    for index, frame in enumerate(frames):
        assert_frame(frame, index)


def test_a_storage_file_alone(kinect_folder, tmp_path):
    folder_to_bag(kinect_folder, tmp_path / 'b')
    path = tmp_path / 'b' / 'b.mcap'
    assert is_bag(path)
    assert len(list(BagFrames(path))) == 12


def test_a_folder_without_metadata(kinect_folder, tmp_path):
    """As a recorder leaves it that was killed."""
    bag = tmp_path / 'bag'
    folder_to_bag(kinect_folder, bag)
    (bag / 'metadata.yaml').unlink()
    assert is_bag(bag)
    assert len(list(BagFrames(bag))) == 12
    (storage,) = bag.glob('*.mcap')
    (bag / f'._{storage.name}').touch()  # by macOS
    assert len(list(BagFrames(bag))) == 12
    (bag / 'second.mcap').write_bytes(storage.read_bytes())
    with pytest.raises(InputError, match=r'2 files of a bag and no metadata.yaml.*ros2 bag reind'):
        BagFrames(bag)
    # Beside images it is a recording that somebody keeps there.
    (bag / 'rgb').mkdir()
    (bag / 'rgb' / '0.PNG').touch()
    assert not is_bag(bag)


def test_damaged_storage_names_its_remedy(tmp_path):
    with Camera(tmp_path / 'bag', 'sqlite3') as camera:
        camera.info(INFO, stamp(0))
        for index in range(9):
            write_pair(camera, index)
    file = tmp_path / 'bag/bag.db3'
    file.write_bytes(file.read_bytes()[:20_000])
    for path in (file, tmp_path / 'bag'):
        with pytest.raises(InputError, match=f'malformed; .* with: sqlite3 {file} .recover'):
            list(BagFrames(path))


@pytest.mark.parametrize('kept', [0.9, 0.3])
def test_what_a_killed_recorder_leaves_names_its_remedy(kinect_folder, tmp_path, kept):
    folder_to_bag(kinect_folder, tmp_path / 'bag')
    file = tmp_path / 'bag/bag.mcap'
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    (tmp_path / 'bag/metadata.yaml').unlink()
    for path in (file, tmp_path / 'bag'):
        with pytest.raises(InputError, match=f'read as a bag: .* with: mcap recover {file} -o'):
            BagFrames(path)


@pytest.mark.parametrize('damage', ['not indexed', 'cut'])
def test_a_bag_of_ros1_without_its_index_names_its_remedy(tmp_path, damage):
    path = tmp_path / 'run.bag'
    with Camera(path, 'ros1') as camera:
        camera.info(INFO, stamp(0))
        for index in range(3):
            write_pair(camera, index)
    content = path.read_bytes()
    if damage == 'cut':
        content = content[: len(content) // 2]
    else:  # as a recorder leaves it that was killed
        begin = content.index(b'index_pos=') + len(b'index_pos=')
        content = content[:begin] + bytes(8) + content[begin + 8 :]
    path.write_bytes(content)
    with pytest.raises(InputError, match=f'read as a bag: .* with: rosbag reindex {path}$'):
        BagFrames(path)


def test_an_mcap_of_ros1_is_nothing_to_recover(kinect_folder, tmp_path):
    folder_to_bag(kinect_folder, tmp_path / 'bag')
    content = (tmp_path / 'bag/bag.mcap').read_bytes()
    (tmp_path / 'other.mcap').write_bytes(content.replace(b'ros2', b'ros1', 1))
    with pytest.raises(InputError, match='messages of ROS 1; give') as caught:
        BagFrames(tmp_path / 'other.mcap')
    assert 'recover' not in str(caught.value)


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_a_compressed_file_without_metadata_is_named(tmp_path, storage):
    """Not even taken for a folder of images."""
    file = tmp_path / f'bag_0.{"mcap" if storage == "mcap" else "db3"}.zstd'
    file.write_bytes(b'compressed')
    for path in (tmp_path, file):
        assert is_bag(path)
        with pytest.raises(InputError, match=rf'unzstd {file}\) and give {file.stem}$'):
            BagFrames(path)


def test_a_ros2_bag_that_is_named_as_one_of_ros1(kinect_folder, tmp_path):
    folder_to_bag(kinect_folder, tmp_path / 'run')
    bag = (tmp_path / 'run').rename(tmp_path / 'run.bag')
    assert len(list(BagFrames(bag))) == 12
    (storage,) = bag.glob('*.mcap')
    (bag / 'second.mcap').write_bytes(storage.read_bytes())
    with pytest.raises(InputError, match='rename it without'):
        BagFrames(bag)


@pytest.mark.parametrize('big', [False, True])
def test_padded_and_big_endian_images(tmp_path, big):
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        for index in range(3):
            write_pair(camera, index, padding=7, big=big)
    frames = list(BagFrames(tmp_path / 'bag'))
    assert len(frames) == 3
    for index, frame in enumerate(frames):
        assert_frame(frame, index)


def test_metres_and_bgr(tmp_path):
    rgb, millimetres = frame_pixels(0)
    metres = (millimetres / 1000).astype(np.float32)
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        camera.image(COLOUR, stamp(0), np.ascontiguousarray(rgb[..., ::-1]), 'bgr8')
        camera.image(DEPTH, stamp(0), metres, '32FC1')
    (frame,) = BagFrames(tmp_path / 'bag')
    assert_frame(frame, 0)


def test_bad_messages_are_skipped_and_counted(tmp_path, caplog):
    rgb, depth = frame_pixels(0)
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        for index in range(8):
            if index == 1:
                camera.image(COLOUR, stamp(1), rgb, 'yuv422')
                camera.image(DEPTH, stamp(1), depth, '16UC1')
            elif index == 3:
                camera.image(COLOUR, stamp(3), rgb, 'rgb8', data=rgb.ravel()[:99])
                camera.image(DEPTH, stamp(3), depth, '16UC1')
            elif index == 5:
                camera.image(COLOUR, stamp(5), rgb, 'rgb8')
                camera.image(DEPTH, stamp(5), depth[:, :16], '16UC1')
            elif index == 6:
                camera.write(COLOUR, 'sensor_msgs/msg/Image', raw=b'\0\1\0\0\7')
                camera.image(DEPTH, stamp(6), depth, '16UC1')
            else:
                write_pair(camera, index)
    source = BagFrames(tmp_path / 'bag')
    with caplog.at_level(logging.WARNING):
        frames = list(source)
    for frame, index in zip(frames, (0, 2, 4, 7), strict=True):
        assert_frame(frame, index)
    assert source.skipped == 4
    skipped = [r.getMessage() for r in caplog.records if r.getMessage().startswith('skipped')]
    assert len(skipped) == 4
    text = '\n'.join(skipped)
    for part in ("'yuv422'", 'truncated', 'colour is 32x24 but depth is 16x24', 'damaged'):
        assert part in text
    assert COLOUR in skipped[0]
    assert '4 skipped' in caplog.records[-1].getMessage()
    assert len(list(source)) == 4
    assert source.skipped == 4  # those of the latest iteration alone


def test_of_many_bad_messages_ten_are_told(tmp_path, caplog):
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        for index in range(12):
            camera.image(COLOUR, stamp(index), frame_pixels(index)[0], 'yuv422')
            camera.image(DEPTH, stamp(index), frame_pixels(index)[1], '16UC1')
        write_pair(camera, 12)
    with caplog.at_level(logging.WARNING):
        assert len(list(BagFrames(tmp_path / 'bag'))) == 1
    *skipped, last = (r.getMessage() for r in caplog.records)
    assert [text.startswith('skipped: ') for text in skipped] == [True] * 10
    assert '12 skipped' in last


def test_damaged_camera_infos_are_counted_once(tmp_path, caplog):
    with Camera(tmp_path / 'bag') as camera:
        for _ in range(3):
            camera.write(INFO, CAMERA_INFO, raw=b'\0\1\0\0\7')
        camera.info(INFO, stamp(0))
        for index in range(3):
            write_pair(camera, index)
    source = BagFrames(tmp_path / 'bag')
    with caplog.at_level(logging.WARNING):
        assert len(list(source)) == 3
    assert source.skipped == 3
    assert sum(r.getMessage().startswith('skipped') for r in caplog.records) == 3


def test_stamps_decide_not_the_order_of_arrival(tmp_path, caplog):
    """Depth arrives late, is 3 ms off, and one depth image is missing."""
    with Camera(tmp_path / 'bag') as camera:
        for index in range(8):
            rgb, _ = frame_pixels(index)
            camera.image(COLOUR, stamp(index), rgb, 'rgb8')
            if index >= 2 and index - 2 != 3:
                _, depth = frame_pixels(index - 2)
                camera.image(DEPTH, stamp(index - 2) + 3_000_000, depth, '16UC1')
        for index in (6, 7):
            camera.image(DEPTH, stamp(index) + 3_000_000, frame_pixels(index)[1], '16UC1')
        camera.info(INFO, stamp(7))
    source = BagFrames(tmp_path / 'bag')
    with caplog.at_level(logging.WARNING):
        for frame, index in zip(source, (0, 1, 2, 4, 5, 6, 7), strict=True):
            assert_frame(frame, index)
    assert source.unmatched == 1
    (told,) = (record.getMessage() for record in caplog.records)
    assert f'8 colour images on {COLOUR}, 1 without a depth image on {DEPTH}' in told


def test_whoever_stops_early_knows_what_had_no_partner_till_then(tmp_path):
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        for index in range(9):
            rgb, depth = frame_pixels(index)
            camera.image(COLOUR, stamp(index), rgb, 'rgb8')
            if index % 4 != 1:
                camera.image(DEPTH, stamp(index), depth, '16UC1')
    source = BagFrames(tmp_path / 'bag')
    assert [frame.stamp_ns for frame in islice(source, 2)] == [stamp(0), stamp(2)]
    assert source.unmatched == 1


def test_recording_that_starts_again(tmp_path):
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        for _ in range(2):
            for index in range(0, 90, 30):
                write_pair(camera, index)
    source = BagFrames(tmp_path / 'bag')
    frames = list(source)
    assert [frame.stamp_ns for frame in frames] == [stamp(i) for i in (0, 30, 60)] * 2
    for frame, index in zip(frames, (0, 30, 60) * 2, strict=True):
        assert_frame(frame, index)


def test_compressed_topics(tmp_path):
    rgb, millimetres = frame_pixels(0)
    _, png = cv2.imencode('.png', rgb[..., ::-1])
    _, depth_png = cv2.imencode('.png', millimetres)
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        camera.compressed(
            f'{COLOUR}/compressed', stamp(0), png.tobytes(), 'rgb8; png compressed bgr8'
        )
        data = struct.pack('<iff', 0, 0, 0) + depth_png.tobytes()
        camera.compressed(f'{DEPTH}/compressedDepth', stamp(0), data, '16UC1; compressedDepth')
    source = BagFrames(tmp_path / 'bag')
    assert source.topics.camera_info == INFO
    (frame,) = source
    assert_frame(frame, 0)


def test_jpeg_keeps_the_order_of_channels(tmp_path):
    rgb = np.full((HEIGHT, WIDTH, 3), (200, 100, 20), np.uint8)
    _, jpeg = cv2.imencode('.jpg', rgb[..., ::-1])
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        camera.compressed(f'{COLOUR}/compressed', stamp(0), jpeg.tobytes(), 'jpeg')
        camera.image(DEPTH, stamp(0), frame_pixels(0)[1], '16UC1')
    (frame,) = BagFrames(tmp_path / 'bag')
    assert np.abs(frame.rgb.astype(int) - rgb).max() <= 4


def test_quantised_inverse_depth(tmp_path):
    """32FC1 as compressed_depth_image_transport writes it: code = A / depth + B."""
    depth = np.linspace(0.5, 8, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    quant_a = 100.0 * 101.0
    quant_b = 1.0 - quant_a / 10.0
    codes = (quant_a / depth + quant_b).astype(np.uint16)
    codes[0, 0] = 0
    _, png = cv2.imencode('.png', codes)
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        camera.image(COLOUR, stamp(0), frame_pixels(0)[0], 'rgb8')
        data = struct.pack('<iff', 0, quant_a, quant_b) + png.tobytes()
        camera.compressed(f'{DEPTH}/compressedDepth', stamp(0), data, '32FC1; compressedDepth png')
    (frame,) = BagFrames(tmp_path / 'bag')
    assert frame.depth[0, 0] == 0
    # One code is depth^2 / A metres: 6 mm at 8 m.
    assert np.abs(frame.depth - depth).ravel()[1:].max() < 0.007


@pytest.mark.parametrize('storage', ['mcap', 'ros1'])
def test_a_stereo_camera(tmp_path, storage):
    """Disparity is of the left camera; 0 is its mark here of what matched nowhere."""
    path = tmp_path / ('bag.bag' if storage == 'ros1' else 'bag')
    rgb, millimetres = frame_pixels(0)
    metres = millimetres / 1000
    disparity = np.divide(3, metres, out=np.zeros_like(metres), where=metres > 0)
    with Camera(path, storage) as camera:
        for side, pixels in (('right', 255 - rgb), ('left', rgb)):
            camera.info(f'/stereo/{side}/camera_info', stamp(0))
            camera.image(f'/stereo/{side}/image_rect_color', stamp(0), pixels, 'rgb8')
        camera.disparity('/stereo/disparity', stamp(0), disparity.astype(np.float32))
    source = BagFrames(path)
    assert source.topics.names == (
        '/stereo/left/image_rect_color', '/stereo/disparity', '/stereo/left/camera_info'
    )  # fmt: skip
    (frame,) = source
    np.testing.assert_array_equal(frame.rgb, rgb)
    np.testing.assert_allclose(frame.depth, metres, rtol=1e-5)


def test_rvl_of_a_bag(tmp_path):
    rgb, millimetres = frame_pixels(0)
    height, width = millimetres.shape
    header = struct.pack('<iffII', 0, 0, 0, width, height)
    data = header + pack_rvl(millimetres.ravel())
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        camera.image(COLOUR, stamp(0), rgb, 'rgb8')
        camera.compressed(f'{DEPTH}/compressedDepth', stamp(0), data, '16UC1; compressedDepth rvl')
    (frame,) = BagFrames(tmp_path / 'bag')
    assert_frame(frame, 0)


def test_topics_by_type_and_name(tmp_path):
    rgb, depth = frame_pixels(0)
    with Camera(tmp_path / 'bag') as camera:
        camera.info('/camera/depth/camera_info', stamp(0), focal=77.0)
        camera.info('/camera/color/camera_info', stamp(0))
        camera.image('/camera/infra1/image_raw', stamp(0), rgb[..., 0], 'mono8')
        camera.image('/camera/depth/image_raw', stamp(0), depth, '16UC1')
        camera.image('/camera/aligned_depth_to_color/image_raw', stamp(0), depth, '16UC1')
        camera.image('/camera/color/image_raw', stamp(0), rgb, 'rgb8')
        camera.image('/segmentation/overlay', stamp(0), rgb, 'rgb8')
    source = BagFrames(tmp_path / 'bag')
    assert source.topics == BagTopics(
        '/camera/color/image_raw',
        '/camera/aligned_depth_to_color/image_raw',
        '/camera/color/camera_info',
    )
    chosen = BagFrames(
        tmp_path / 'bag',
        BagTopics(depth='/camera/depth/image_raw', camera_info='/camera/depth/camera_info'),
    )
    (frame,) = chosen
    assert frame.intrinsics.fx == 77.0


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3', 'ros1'])
def test_topics_without_a_message_give_way_to_those_with_some(tmp_path, storage, caplog):
    """Drivers advertise more than they publish, and recorders write down all of that."""
    bag = tmp_path / ('run.bag' if storage == 'ros1' else 'run')
    color, depth, info = (
        f'{COLOUR}/compressed',
        f'{DEPTH}/compressedDepth',
        '/cam/rgb2/camera_info',
    )
    with Camera(bag, storage) as camera:
        for topic in (COLOUR, DEPTH, '/a/rgb/image_raw', '/a/depth/image_raw'):
            camera.advertise(topic, IMAGE)
        for topic in (INFO, '/a/rgb/camera_info'):
            camera.advertise(topic, CAMERA_INFO)
        for index in range(3):
            rgb, millimetres = frame_pixels(index)
            camera.info(info, stamp(index))
            png = cv2.imencode('.png', rgb[..., ::-1])[1].tobytes()
            camera.compressed(color, stamp(index), png, 'rgb8; png compressed bgr8')
            png = cv2.imencode('.png', millimetres)[1].tobytes()
            camera.compressed(depth, stamp(index), bytes(12) + png, '16UC1; compressedDepth png')
    for wanted in (BagTopics(), BagTopics(color=color), BagTopics(depth=depth)):
        source = BagFrames(bag, wanted)
        assert source.topics == BagTopics(color, depth, info)
        for index, frame in enumerate(source):
            assert_frame(frame, index)
        assert index == 2
    assert caplog.records == []  # a camera that is silent is no other camera

    assert BagFrames(bag, BagTopics(color=COLOUR)).topics == BagTopics(COLOUR, depth, info)
    (record,) = caplog.records
    assert record.getMessage() == f'{bag} holds no messages on {COLOUR}; name another topic'


def test_counts_that_are_all_0_tell_nothing(tmp_path, caplog):
    """As recorders wrote them that were killed, and tools that do not count."""
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        write_pair(camera, 0)
    metadata = tmp_path / 'bag/metadata.yaml'
    metadata.write_text(re.sub(r'message_count: \d+', 'message_count: 0', metadata.read_text()))
    (frame,) = BagFrames(tmp_path / 'bag', BagTopics(color=COLOUR))
    assert_frame(frame, 0)
    assert caplog.records == []


@pytest.mark.parametrize('camera', sorted(CAMERAS))
def test_topics_of_every_camera_preset_are_found(camera):
    kinds = {'color': IMAGE, 'depth': IMAGE, 'camera_info': CAMERA_INFO}
    preset = {key: f'/{CAMERAS[camera][key].lstrip("/")}' for key in kinds}
    types = {preset[key]: kinds[key] for key in kinds}
    assert find_topics(types, BagTopics(), Path('bag')) == BagTopics(**preset)


def test_camera_info_in_force(tmp_path):
    """A camera that changes its zoom, and one bad camera info in between."""
    with Camera(tmp_path / 'bag') as camera:
        for index, focal in enumerate((30.0, 0.0, 50.0)):
            camera.info(INFO, stamp(10 * index), focal=focal)
            for further in range(3):
                write_pair(camera, 10 * index + further)
    source = BagFrames(tmp_path / 'bag')
    assert [frame.intrinsics.fx for frame in source] == [30.0] * 3 + [50.0] * 3
    assert source.skipped == 3


@pytest.mark.parametrize('info_comes_first', [True, False])
def test_an_image_that_waited_keeps_its_camera_info(tmp_path, info_comes_first):
    """Of a camera that zooms all the time; depth comes five frames later."""
    with Camera(tmp_path / 'bag') as camera:
        for index in range(20):
            rgb, _ = frame_pixels(index)
            if info_comes_first:
                camera.info(INFO, stamp(index), focal=30.0 + index)
            camera.image(COLOUR, stamp(index), rgb, 'rgb8')
            if not info_comes_first:
                camera.info(INFO, stamp(index), focal=30.0 + index)
            if index >= 5:
                camera.image(DEPTH, stamp(index - 5), frame_pixels(index - 5)[1], '16UC1')
    source = BagFrames(tmp_path / 'bag')
    assert [frame.intrinsics.fx for frame in source] == [30.0 + index for index in range(15)]


def test_a_picture_that_claims_to_be_huge_is_skipped(tmp_path):
    """Two flipped bits of a JPEG's size, at which OpenCV raises an error of its own."""
    jpeg = cv2.imencode('.jpg', frame_pixels(0)[0])[1].tobytes()
    size = jpeg.index(b'\xff\xc0') + 5
    huge = bytearray(jpeg)
    huge[size] |= 0x80
    huge[size + 2] |= 0x80
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        for index in range(3):
            data = bytes(huge) if index == 1 else jpeg
            camera.compressed(f'{COLOUR}/compressed', stamp(index), data, 'jpeg')
            camera.image(DEPTH, stamp(index), frame_pixels(index)[1], '16UC1')
    source = BagFrames(tmp_path / 'bag')
    assert [frame.stamp_ns for frame in source] == [stamp(0), stamp(2)]
    assert source.skipped == 1


@pytest.mark.parametrize(
    ('topics', 'message'),
    [
        (BagTopics(color='/nope'), 'colour topic /nope is not in the bag.*name one of.*/cam/rgb'),
        (BagTopics(depth=INFO), 'depth topic .* is a sensor_msgs/msg/CameraInfo'),
        (BagTopics(camera_info=COLOUR), f'camera info topic .*Image.*{INFO}'),
    ],
)
def test_unknown_topics(tmp_path, topics, message):
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        write_pair(camera, 0)
    with pytest.raises(InputError, match=message):
        BagFrames(tmp_path / 'bag', topics)


def test_without_camera_info(tmp_path):
    with Camera(tmp_path / 'bag') as camera:
        write_pair(camera, 0)
    with pytest.raises(InputError, match=r'no camera info for /cam/rgb/image_raw.*fx,fy,cx,cy'):
        BagFrames(tmp_path / 'bag')
    calibration = parse_calibration('30,30,15.5,11.5')
    (frame,) = BagFrames(tmp_path / 'bag', calibration=calibration)
    assert_frame(frame, 0)


def test_no_usable_frame(tmp_path):
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0), focal=0.0)
        for index in range(3):
            write_pair(camera, index)
    with pytest.raises(InputError, match=r'no usable frame: 3 colour images.*3 skipped'):
        list(BagFrames(tmp_path / 'bag'))
    with Camera(tmp_path / 'apart') as camera:
        camera.info(INFO, stamp(0))
        for index in range(3):
            write_pair(camera, index, depth_delay_ns=500_000_000)
    with pytest.raises(InputError, match=r'3 without a\s+depth image'):
        list(BagFrames(tmp_path / 'apart'))


def test_bags_that_are_none(tmp_path, kinect_folder):
    with pytest.raises(InputError, match='no bag'):
        BagFrames(tmp_path / 'absent.mcap')
    for name in ('bad.mcap', 'bad.db3', 'bad.bag'):
        (tmp_path / name).write_bytes(b'nothing of a bag' * 9)
        with pytest.raises(InputError, match=f'{name} cannot be read as a bag'):
            BagFrames(tmp_path / name)
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
    with pytest.raises(InputError, match=r'looks like colour images.*only sensor_msgs'):
        BagFrames(tmp_path / 'bag')
    with Camera(tmp_path / 'nothing'):
        pass
    with pytest.raises(InputError, match=r'nothing holds no messages; record it again$'):
        BagFrames(tmp_path / 'nothing')


def test_existing_bag_is_kept(kinect_folder, tmp_path):
    bag = tmp_path / 'bag'
    folder_to_bag(kinect_folder, bag)
    before = (bag / 'bag.mcap').read_bytes()
    with pytest.raises(InputError, match='exists already'):
        folder_to_bag(kinect_folder, bag)
    assert (bag / 'bag.mcap').read_bytes() == before


def test_no_half_bag_is_left(kinect_folder, tmp_path):
    (kinect_folder / 'frame-7.color.png').write_bytes(b'no image')
    with pytest.raises(InputError, match='frame-7'):
        folder_to_bag(kinect_folder, tmp_path / 'bag')
    assert not (tmp_path / 'bag').exists()


@pytest.mark.parametrize('name', ['out.bag', 'out.mcap', 'out.db3'])
def test_bag_is_not_named_like_a_file(kinect_folder, tmp_path, name):
    with pytest.raises(InputError, match=f'{name} is no good name; call it out'):
        folder_to_bag(kinect_folder, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_given_calibration_wins_over_that_of_the_bag(tmp_path):
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0), focal=99.0)
        write_pair(camera, 0)
    given = parse_calibration('30,30,15.5,11.5')
    source = BagFrames(tmp_path / 'bag', calibration=given)
    (frame,) = source
    assert_frame(frame, 0)
    assert source.topics == BagTopics(COLOUR, DEPTH, None)


@pytest.mark.parametrize('sign', [-1, 1])
def test_stamps_of_a_pair_differ_by_at_most_20_ms(tmp_path, sign):
    for delay_ns in (20_000_000, 20_000_001):
        with Camera(tmp_path / str(delay_ns)) as camera:
            camera.info(INFO, stamp(0))
            write_pair(camera, 0, depth_delay_ns=sign * delay_ns)
    assert len(list(BagFrames(tmp_path / '20000000'))) == 1
    with pytest.raises(InputError, match=r'1 without a depth image .* within 20 ms'):
        list(BagFrames(tmp_path / '20000001'))


def test_depth_of_another_frame_is_told_once(tmp_path, caplog):
    with Camera(tmp_path / 'bag') as camera:
        camera.info(INFO, stamp(0))
        for index in range(3):
            rgb, depth = frame_pixels(index)
            camera.image(COLOUR, stamp(index), rgb, 'rgb8')
            header = camera.header(stamp(index), 'depth')
            camera.image(DEPTH, stamp(index), depth, '16UC1', header=header)
    with caplog.at_level(logging.WARNING):
        assert len(list(BagFrames(tmp_path / 'bag'))) == 3
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 1
    assert "depth is in the frame 'depth' but colour in 'optical'" in told[0]
    caplog.clear()
    assert len(list(BagFrames(tmp_path / 'bag', only='rgb'))) == 3
    assert caplog.records == []  # where depth is not labelled, nothing is shifted


def test_what_other_tools_read_of_a_written_bag(kinect_folder, tmp_path):
    (kinect_folder / 'camera-intrinsics.txt').write_text('30 0 15.5\n0 31 11.5\n0 0 1\n')
    folder_to_bag(kinect_folder, tmp_path / 'bag', rate_hz=15)
    with AnyReader([tmp_path / 'bag']) as reader:
        messages = [(c.msgtype, time_ns, raw) for c, time_ns, raw in reader.messages()]
        info = next(reader.deserialize(raw, k) for k, _, raw in messages if k == CAMERA_INFO)
    # By these times a player waits between the frames.
    times_ns = sorted({time_ns for _, time_ns, _ in messages})
    np.testing.assert_allclose(np.diff(times_ns), [10**9 / 15] * 11, atol=1)
    assert info.k.tolist() == [30, 0, 15.5, 0, 31, 11.5, 0, 0, 1]
    assert info.p.tolist() == [30, 0, 15.5, 0, 0, 31, 11.5, 0, 0, 0, 1, 0]
    assert (info.width, info.height) == (WIDTH, HEIGHT)


def test_depth_beyond_16_bits_is_none(kinect_folder, tmp_path):
    depth = np.full((HEIGHT, WIDTH), 6000, np.uint16)
    depth[0, 0] = 7000
    cv2.imwrite(str(kinect_folder / 'frame-0.depth.png'), depth)
    folder_to_bag(kinect_folder, tmp_path / 'bag', depth_scale_m=0.01)
    frame = next(iter(BagFrames(tmp_path / 'bag')))
    assert frame.depth[0, 0] == 0
    assert frame.depth[1, 1] == pytest.approx(60.0)
