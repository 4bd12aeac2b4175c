"""Which topics of a bag are taken together."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.replay.bags import BagFrames
from rgbd_fusion_seg.replay.messages import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    DISPARITY_IMAGE,
    IMAGE,
)
from rgbd_fusion_seg.replay.topics import BagTopics, find_topics, other_cameras

from .bag_camera import Camera, stamp
from .conftest import frame_pixels

KINDS_OF_RECTIFIED = ('image_rect', 'image_rect_color', 'camera_info')


def types_of(*topics: str) -> dict[str, str]:
    kinds = {
        'info': CAMERA_INFO,
        'pressed': COMPRESSED_IMAGE,
        'dDepth': COMPRESSED_IMAGE,
        'disparity': DISPARITY_IMAGE,
    }
    return {t: next((k for end, k in kinds.items() if t.endswith(end)), IMAGE) for t in topics}


def realsense(name: str) -> tuple[str, str, str]:
    return (
        f'/{name}/color/image_raw',
        f'/{name}/aligned_depth_to_color/image_raw',
        f'/{name}/color/camera_info',
    )


def spot(name: str) -> tuple[str, str, str]:
    kinds = ('camera/{}/image', 'depth_registered/{}/image', 'camera/{}/camera_info')
    return tuple(f'/spot/{kind.format(name)}' for kind in kinds)


def kinect2(name: str) -> tuple[str, str, str]:
    kinds = ('image_color_rect', 'image_depth_rect', 'camera_info')
    return tuple(f'/kinect2/{name}/{kind}' for kind in kinds)


def behind(name: str) -> tuple[str, str, str]:
    return f'/color/{name}', f'/depth/{name}', f'/color/{name}/camera_info'


def suffixed(name: str) -> tuple[str, str, str]:
    return f'/{name}_rgb/image', f'/{name}_depth/image', f'/{name}_rgb/camera_info'


LAYOUTS = [
    [realsense('front'), realsense('rear'), realsense('a_camera')],
    [realsense('robot'), realsense('robot/arm')],
    [realsense(''), realsense('rear')],
    [spot('back'), spot('frontleft')],
    [kinect2('hd'), kinect2('qhd')],
    [behind('front'), behind('rear')],
    [suffixed('cam1'), suffixed('cam2')],
    [realsense('front'), kinect2('hd'), suffixed('cam')],
]


@pytest.mark.parametrize('cameras', LAYOUTS, ids=lambda cameras: cameras[0][0])
def test_the_topics_of_one_camera_are_taken_together(cameras):
    cameras = [tuple(t.replace('//', '/') for t in camera) for camera in cameras]
    for order in (cameras, cameras[::-1]):
        types = types_of(*(topic for camera in order for topic in camera))
        found = find_topics(types, BagTopics(), Path('bag'))
        assert found.names in cameras
        others = {color for color, *_ in cameras} - {found.color}
        assert set(other_cameras(types, found)) == others
        for color, depth, info in cameras:
            expected = BagTopics(color, depth, info)
            for wanted in (BagTopics(color=color), BagTopics(depth=depth)):
                assert find_topics(types, wanted, Path('bag')) == expected


def test_cameras_of_different_names_for_depth():
    types = types_of('/cam1/color', '/cam1/depth', '/camera2/color', '/camera2/aligned_depth')
    found = find_topics(types, BagTopics(), Path('bag'))
    assert found == BagTopics('/camera2/color', '/camera2/aligned_depth')
    assert other_cameras(types, found) == ['/cam1/color']


@pytest.mark.parametrize(
    'topics',
    [
        (
            '/camera/rgb/image_raw',
            '/camera/rgb/image_rect_color',
            '/camera/rgb/image_raw/compressed',
            '/camera/depth/image_raw',
            '/camera/depth_registered/image',
            '/camera/depth_registered/image/compressedDepth',
            '/usb_cam/image_raw',
        ),
        tuple(
            f'/zed/zed_node/{name}'
            for name in (
                'left/image_rect_color',
                'right/image_rect_color',
                'rgb/image_rect_color',
                'depth/depth_registered',
            )
        ),
        ('/oak/rgb/image_raw', '/oak/left/image_raw', '/oak/stereo/image_raw'),
    ],
)
def test_the_images_of_one_camera_are_no_others(topics):
    types = types_of(*topics)
    found = find_topics(types, BagTopics(), Path('bag'))
    assert 'rgb' in found.color
    assert other_cameras(types, found) == []


@pytest.mark.parametrize(
    'name',
    ['iris/camera', 'irobot', 'infrastructure_cam', 'labeller', 'unmasked', 'depth_camera', 'rgb'],
)
@pytest.mark.parametrize('others', [(), ('/usb/image_raw', '/usb/labels', '/usb/left_ir/image')])
def test_names_that_only_begin_like_kinds_of_images(name, others):
    preset = tuple(f'/{name}/{end}' for end in ('rgb/image', 'depth/image', 'rgb/camera_info'))
    types = types_of(*preset, *others)
    for only in ('', 'rgb', 'depth'):
        found = find_topics(types, BagTopics(), Path('bag'), only)
        # Depth that is not registered is of another camera than colour.
        assert found.names == (preset if only != 'depth' else (*preset[:2], None))


def test_a_name_that_all_images_share_tells_no_kind():
    types = types_of(
        '/depth_camera/image_raw', '/depth_camera/depth/image_raw', '/depth_camera/camera_info'
    )
    found = find_topics(types, BagTopics(), Path('bag'))
    assert found.names == (
        '/depth_camera/image_raw',
        '/depth_camera/depth/image_raw',
        list(types)[2],
    )
    # Unless none is depth without it.
    for more in ('/camera/depth/image_raw/compressedDepth', '/camera/depth/image_rect'):
        types = types_of('/camera/depth/image_raw', more)
        found = find_topics(types, BagTopics(), Path('bag'), 'depth')
        assert found.color is None


def test_colour_in_the_view_of_depth_is_no_depth():
    """As an Azure Kinect publishes both."""
    types = types_of('/rgb_to_depth/image_raw', '/rgb/image_raw', '/depth/image_raw')
    found = find_topics(types, BagTopics(), Path('bag'))
    assert (found.color, found.depth) == ('/rgb/image_raw', '/depth/image_raw')
    types |= types_of('/depth_to_rgb/image_raw')
    assert find_topics(types, BagTopics(), Path('bag')).depth == '/depth_to_rgb/image_raw'
    types = types_of('/rgb_to_depth/image_raw', '/depth/image_raw')
    assert find_topics(types, BagTopics(), Path('bag')).color == '/rgb_to_depth/image_raw'


@pytest.mark.parametrize(
    'other',
    [
        *('infra1/image_rect_raw', 'infra/image', 'infrared/image', 'ir/image_raw', 'ir2/image'),
        *('left_ir/image', 'irImage', 'confidence/confidence_map', 'confidenceMap'),
        *('segmentation/overlay', 'semantic_segmentation', 'mask', 'masks/image', 'masked'),
        *('label', 'labels/colored', 'labelMap', 'image_raw/theora'),
    ],
)
def test_other_images_are_no_colour(other):
    types = types_of(f'/camera/{other}', '/camera/depth/image_raw')
    with pytest.raises(InputError, match='looks like colour images'):
        find_topics(types, BagTopics(), Path('bag'))


def test_disparity_belongs_to_the_left_camera():
    sides = [f'/stereo/{side}/{kind}' for side in ('right', 'left') for kind in KINDS_OF_RECTIFIED]
    types = types_of(*sides, '/stereo/disparity')
    found = find_topics(types, BagTopics(), Path('bag'))
    assert found == BagTopics(
        '/stereo/left/image_rect_color', '/stereo/disparity', '/stereo/left/camera_info'
    )
    assert other_cameras(types, found) == []
    types |= types_of('/stereo/depth/image_raw')
    assert find_topics(types, BagTopics(), Path('bag')).depth == '/stereo/depth/image_raw'
    types = types_of('/left/image_rect', '/right/image_rect_color', '/disparity')
    assert find_topics(types, BagTopics(), Path('bag')).color == '/left/image_rect'


def test_disparity_is_no_colour():
    types = types_of('/left/image_rect', '/disparity', '/depth/image')
    with pytest.raises(InputError, match=r'colour topic /disparity is a stereo_msgs/.* these as'):
        find_topics(types, BagTopics(color='/disparity'), Path('bag'))


def test_others_of_one_sensor():
    types = types_of('/a/color', '/b/color', '/b/depth', '/c/depth')
    found = find_topics(types, BagTopics(), Path('bag'), 'rgb')
    assert found.color == '/b/color'
    assert other_cameras(types, found, 'rgb') == ['/a/color']
    found = find_topics(types, BagTopics(), Path('bag'), 'depth')
    assert found.depth == '/b/depth'
    assert other_cameras(types, found, 'depth') == ['/c/depth']


def test_one_topic_for_both_is_refused():
    types = types_of('/cam/color', '/cam/depth')
    with pytest.raises(InputError, match='/cam/depth is named as colour and as depth topic; name'):
        find_topics(types, BagTopics('/cam/depth', '/cam/depth'), Path('bag'))


def test_a_bag_of_several_cameras_tells_which_is_read(tmp_path, caplog):
    with Camera(tmp_path / 'bag') as camera:
        for index, name in enumerate(('front', 'rear')):
            color, depth, info = realsense(name)
            rgb, millimetres = frame_pixels(index)
            camera.info(info, stamp(0), focal=30 + index)
            camera.image(color, stamp(0), rgb, 'rgb8')
            camera.image(depth, stamp(0), millimetres, '16UC1')
    with caplog.at_level(logging.INFO):
        (frame,) = BagFrames(tmp_path / 'bag')
    read, several = (record.getMessage() for record in caplog.records)
    assert all(topic in read for topic in realsense('rear'))
    assert realsense('rear')[0] in several
    assert several.endswith(f'(segment --color-topic): {realsense("front")[0]}')
    assert (frame.rgb == frame_pixels(1)[0]).all()
    color, depth, _ = realsense('front')
    for wanted in (BagTopics(color=color), BagTopics(depth=depth)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            (frame,) = BagFrames(tmp_path / 'bag', wanted)
        assert len(caplog.records) == 1
        assert (frame.rgb == frame_pixels(0)[0]).all()
        assert (frame.depth * 1000).round().astype(int).tolist() == frame_pixels(0)[1].tolist()
        assert frame.intrinsics.fx == 30
    caplog.clear()
    source = BagFrames(tmp_path / 'bag', only='depth')
    (several,) = (record.getMessage() for record in caplog.records)
    assert source.topics.depth == realsense('rear')[1]
    assert several.endswith(f'(segment --depth-topic): {depth}')
