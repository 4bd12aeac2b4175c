"""What becomes of a pair on the inference thread, without ROS processes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

from ros_harness import Camera
from sensor_msgs.msg import CameraInfo

from rgbd_fusion_seg.errors import EngineError, FrameError
from rgbd_fusion_seg.image_decoding import stamp_to_ns
from rgbd_fusion_seg.point_cloud import labelled_points
from rgbd_fusion_seg.ros import pipeline
from rgbd_fusion_seg.ros.camera_pose import CameraPose
from rgbd_fusion_seg.ros.diagnostics import Health
from rgbd_fusion_seg.ros.parameters import CameraConfig, OutputConfig, SegmentationConfig
from rgbd_fusion_seg.ros.pipeline import Pair, PairProcessor, Topics
from rgbd_fusion_seg.segmenter import Segmenter


class Outputs:
    """Stands where messages would leave the process."""

    def __init__(self):
        self.subscribers, self.published = True, []

    def wanted(self):
        return self.subscribers

    def publish(self, frame, result, header, info):
        self.published.append((frame, result, header, info))


class Bench:
    """A processor with a clock and an epoch that the test sets."""

    def __init__(self, bundle, config=None, floor=None):
        self.floor = floor
        self.now_ns, self.epoch, self.log = 5_000_000_000, 0, []
        self.outputs = Outputs()
        self.segmenter = Segmenter(bundle)
        self.health = Health(lambda level, sentence: self.log.append(sentence))
        self.processor = PairProcessor(
            self.segmenter,
            self.outputs,
            self.health,
            config or SegmentationConfig(),
            Topics('/color', '/depth', '/info'),
            floor,
            now_ns=lambda: self.now_ns,
            epoch=lambda: self.epoch,
        )
        self.camera = Camera(None)

    def pair(self, stamp_ns=4_900_000_000, **replaced):
        messages = {
            'color': self.camera.color(),
            'depth': self.camera.depth(),
            'info': self.camera.info(),
        } | replaced
        for msg in (messages['color'], messages['depth']):
            msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        return Pair(**messages, arrived_s=0.0, epoch=0)

    def dropped(self):
        shown = self.health.snapshot()
        return {k.removeprefix('dropped: ') for k in shown if k.startswith('dropped: ')}


@pytest.fixture
def bench(tiny_bundle):
    return Bench(tiny_bundle)


def test_a_good_pair_is_published_with_its_header(bench):
    pair = bench.pair()
    bench.processor.process(pair)
    ((frame, result, header, info),) = bench.outputs.published
    assert header is pair.color.header
    assert info is pair.info
    np.testing.assert_array_equal(result.labels, bench.segmenter.segment(frame).labels)
    assert bench.health.snapshot()['age p50 ms'] == '100.0'
    assert bench.log == []


def test_depth_out_of_range_matters_to_networks_that_see_depth(tiny_bundle, tmp_path):
    bundles = pytest.importorskip('bundles')
    parts = bundles.tiny_card(modalities=('rgb',)), bundles.tiny_network(modalities=('rgb',))
    for folder, problems in (
        (tiny_bundle, 1),
        (bundles.write_bundle(tmp_path / 'rgb', *parts), 0),
    ):
        bench = Bench(folder)
        bench.processor.process(bench.pair(depth=bench.camera.depth(9.0)))
        assert len(bench.outputs.published) == 1
        assert sum('was trained on' in str(entry) for entry in bench.log) == problems


def test_time_that_jumps_during_inference_drops_the_result(bench):
    pair = bench.pair()
    bench.epoch = 1
    bench.processor.process(pair)
    assert bench.outputs.published == []
    assert bench.dropped() == {'clock jumped'}


def test_nobody_listens(bench):
    bench.outputs.subscribers = False
    bench.processor.process(bench.pair())
    assert bench.dropped() == {'nobody subscribes'}


def test_eager_work_is_done_for_nobody(tiny_bundle):
    bench = Bench(tiny_bundle, SegmentationConfig(output=OutputConfig(lazy=False)))
    bench.outputs.subscribers = False
    bench.processor.process(bench.pair())
    assert len(bench.outputs.published) == 1


def test_no_camera_info_yet_is_no_error(bench):
    bench.processor.process(bench.pair(info=None))
    assert bench.dropped() == {'no camera info yet'}
    assert bench.log == []


class Floor:
    """Stands where TF tells of the camera."""

    def __init__(self, pose):
        self.pose, self.asked = pose, []

    def pose_of(self, camera_frame):
        self.asked.append(camera_frame)
        if self.pose is None:
            raise FrameError('TF has no way')
        return self.pose


ASIDE = CameraPose(np.array([1.0, 0.0, 0.0]), 0.3)


@pytest.mark.parametrize(
    ('height_m', 'floor', 'known'),
    [
        (0.0, None, CameraPose()),
        (0.3, None, CameraPose(None, 0.3)),
        (0.0, ASIDE, ASIDE),
    ],
)
def test_labels_rest_on_what_is_known_of_the_camera(tiny_bundle, height_m, floor, known):
    config = SegmentationConfig(camera=CameraConfig(height_m=height_m))
    bench = Bench(tiny_bundle, config, floor and Floor(floor))
    bench.processor.process(bench.pair())
    ((frame, result, _, _),) = bench.outputs.published
    expected = bench.segmenter.segment(frame, known.gravity, '', known.height_m).labels
    np.testing.assert_array_equal(result.labels, expected)
    changed = (expected != bench.segmenter.segment(frame).labels).mean()
    assert (changed > 0.1) == (known.height_m is not None)


def test_while_tf_is_silent_the_camera_is_estimated(tiny_bundle):
    bench = Bench(tiny_bundle, floor=Floor(None))
    for _ in range(2):
        bench.processor.process(bench.pair())
    assert len(bench.outputs.published) == 2
    frame, result, _, _ = bench.outputs.published[0]
    np.testing.assert_array_equal(result.labels, bench.segmenter.segment(frame).labels)
    (told,) = bench.log
    assert told == 'TF has no way; until then gravity and height are estimated from the depth'
    assert bench.floor.asked == ['camera_color_optical_frame'] * 2


def test_given_intrinsics_serve_for_a_camera_without_calibration(tiny_bundle):
    bench = Bench(tiny_bundle, SegmentationConfig(camera=CameraConfig(fx=55.0, cx=30.0)))
    uncalibrated = bench.camera.info()
    uncalibrated.k, uncalibrated.p = np.zeros(9), np.zeros(12)
    for info in (None, uncalibrated):
        bench.processor.process(bench.pair(info=info))
        frame, _, _, sent = bench.outputs.published[-1]
        assert (frame.intrinsics.fx, frame.intrinsics.cx, frame.intrinsics.cy) == (55, 30, 23.5)
        assert sent.p[0] == 55
    assert len(bench.log) == 1
    assert 'focal lengths must be positive' in bench.log[0]


@pytest.mark.parametrize('stamp_s', [4.9, 1.8e9])
def test_simulated_time_that_never_begins_makes_no_age(tiny_bundle, stamp_s):
    config = SegmentationConfig()
    bench = Bench(tiny_bundle, replace(config, sync=replace(config.sync, max_age_s=0.5)))
    bench.now_ns = 0
    bench.processor.process(bench.pair(stamp_ns=round(stamp_s * 1e9)))
    assert len(bench.outputs.published) == 1
    assert 'use_sim_time is set but nothing comes on /clock' in bench.log[0]
    assert 'age p50 ms' not in bench.health.snapshot()


UNDISTORTED, DISTORTED = [0.0] * 5, [0.1, -0.2, 1e-4, 0.0, 0.0]


@pytest.mark.parametrize(
    ('distortion', 'has_p', 'warned'),
    [
        (DISTORTED, False, True),
        (DISTORTED, True, False),  # a rectified topic often keeps the D of the raw image
        (UNDISTORTED, False, False),
        ([], False, False),
        (UNDISTORTED, True, False),
    ],
)
def test_images_that_look_unrectified_are_told_once(bench, distortion, has_p, warned):
    for _ in range(2):
        info = bench.camera.info()
        info.d = distortion
        info.p = info.p if has_p else np.zeros(12)
        bench.processor.process(bench.pair(info=info))
    assert len(bench.outputs.published) == 2
    told = ['/info has a lens distortion D but no P, so /color looks unrectified'] * warned
    assert [sentence.partition(', which')[0] for sentence in bench.log] == told


def test_a_calibration_of_another_frame_is_told_once_for_each(bench):
    frames = ('', 'camera_color_optical_frame', 'left', 'left')
    for frame_id in frames:
        info = bench.camera.info()
        info.header.frame_id = frame_id
        bench.processor.process(bench.pair(info=info))
    assert len(bench.outputs.published) == len(frames)
    (told,) = bench.log
    assert told.startswith(
        "/info is in frame 'left' but /color is in 'camera_color_optical_frame', so it may be"
    )


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({}, None),
        ({'cx': 0.0, 'cy': 0.0}, 'the principal point (0, 0) outside the image'),
        ({'cx': 60.0}, None),
        ({'cy': 60.0}, 'the principal point (31.5, 60) outside the image'),
        ({'cy': 700.0}, 'the principal point (31.5, 700) outside the image'),
        ({'fx': 5e5, 'fy': 5e5}, 'a field of view of 0.00733 by 0.0055 degrees'),
        ({'fy': 1.0}, 'a field of view of 62.7 by 175 degrees'),
    ],
)
def test_intrinsics_that_no_camera_has_are_told(bench, changes, words):
    bench.camera.intrinsics = replace(bench.camera.intrinsics, **changes)
    with np.errstate(all='raise'):
        for _ in range(2):
            bench.processor.process(bench.pair())
    assert len(bench.outputs.published) == 2
    frame, result, _, _ = bench.outputs.published[0]
    points = labelled_points(frame, result)
    assert np.isfinite([points['x'], points['y']]).all()
    told = [f'/info gives a camera of 64x48 pixels {words}; check the calibration'] * bool(words)
    assert [sentence.partition(' and that')[0] for sentence in bench.log] == told


def test_parameters_that_no_camera_has_are_told(tiny_bundle):
    bench = Bench(tiny_bundle, SegmentationConfig(camera=CameraConfig(fx=55.0, cx=0.0)))
    bench.processor.process(bench.pair(info=None))
    (told,) = bench.log
    assert told.startswith('the section camera of the parameters gives a camera of 64x48 pixels')


@pytest.mark.parametrize(('height_m', 'told'), [(1.2, False), (43.0, True)])
def test_a_height_that_no_camera_has_is_told_once(tiny_bundle, height_m, told):
    bench = Bench(tiny_bundle, SegmentationConfig(camera=CameraConfig(height_m=height_m)))
    for _ in range(2):
        bench.processor.process(bench.pair())
    assert len(bench.outputs.published) == 2
    sentence = 'camera.height_m: the camera is said to be 43 m above the floor; give metres'
    assert bench.log == [sentence] * told


@pytest.mark.parametrize(('given', 'told'), [(0.0, True), (0.2, False)])
def test_a_floor_that_is_guessed_all_the_time_is_told_once(tiny_bundle, given, told, monkeypatch):
    monkeypatch.setattr(pipeline, 'FLOOR_PERIOD_S', 0.0)
    bench = Bench(tiny_bundle, SegmentationConfig(camera=CameraConfig(height_m=given)))
    for _ in range(25):  # a wall 2 m ahead, seen 0.87 m downwards
        bench.processor.process(bench.pair())
    assert len(bench.log) == told
    if told:
        assert 'm below the camera, so HHA takes the lowest surface for furniture' in bench.log[0]
        assert 'set camera.height_m or camera.floor_frame' in bench.log[0]


@pytest.mark.parametrize(
    ('error', 'reason', 'words'),
    [
        (EngineError('the engine is out of memory'), 'engine error', 'out of memory'),
        (ZeroDivisionError('oops'), 'internal error', 'ZeroDivisionError: oops'),
    ],
)
def test_errors_are_counted_and_told(bench, error, reason, words):
    bench.processor.failed(error)
    assert bench.dropped() == {reason}
    assert words in bench.log[0]


def test_complaints_that_differ_in_numbers_are_throttled_together(bench):
    for index in range(5):
        bench.processor.failed(EngineError(f'failed on frame {index} after {index / 7} s'))
    bench.processor.failed(EngineError('another thing'))
    assert len(bench.log) == 2


def test_complaints_that_differ_in_names_are_throttled_together(bench):
    for name in ('left', "it's", 'a "b" \'c\''):
        bench.camera.frame_id = name
        color, depth = bench.camera.color(), bench.camera.depth()
        depth.header.frame_id = 'depth of ' + name
        with pytest.raises(FrameError) as caught:
            bench.processor.process(bench.pair(color=color, depth=depth))
        bench.processor.failed(caught.value)
    (told,) = bench.log
    assert told.startswith("/depth is in frame 'depth of left' but /color is in 'left';")


def test_old_pairs_are_dropped(tiny_bundle):
    config = SegmentationConfig()
    config = replace(config, sync=replace(config.sync, max_age_s=0.5))
    bench = Bench(tiny_bundle, config)
    bench.processor.process(bench.pair(stamp_ns=4_400_000_000))
    assert bench.dropped() == {'older than sync.max_age_s'}
    bench.processor.process(bench.pair(stamp_ns=4_600_000_000))
    assert len(bench.outputs.published) == 1


@pytest.fixture(scope='module')
def with_parts(tmp_path_factory):
    """A bundle that also answers from one sensor alone."""
    parts = pytest.importorskip('single_sensor_bundles', reason='making bundles needs onnx')
    return parts.write_with_parts(tmp_path_factory.mktemp('parts') / 'tiny')


def test_half_a_pair_is_published_with_the_stamp_and_frame_of_colour(with_parts):
    bench = Bench(with_parts)
    bench.processor.process(bench.pair())
    half = bench.pair(stamp_ns=4_950_000_000)
    half.depth.header.frame_id = 'depth_sensor'
    alone = Pair(None, half.depth, half.info, half.arrived_s, half.epoch)
    bench.processor.process(alone)
    frame, result, header, _ = bench.outputs.published[-1]
    assert result.sensors == ('depth',)
    assert stamp_to_ns(header.stamp) == frame.stamp_ns == 4_950_000_000
    assert header.frame_id == bench.camera.frame_id
    expected = bench.segmenter.segment(frame, only='depth')
    np.testing.assert_array_equal(result.labels, expected.labels)
    assert bench.log == []


def test_a_camera_without_calibration_is_known_by_depth_too(with_parts):
    bench = Bench(with_parts, SegmentationConfig(camera=CameraConfig(fx=55.0)))
    whole = bench.pair()
    half = Pair(None, whole.depth, None, whole.arrived_s, whole.epoch)
    bench.processor.process(half)
    frame, _, header, info = bench.outputs.published[-1]
    assert (frame.intrinsics.fx, info.width, info.height) == (55.0, 64, 48)
    assert header.frame_id == whole.depth.header.frame_id


@pytest.mark.parametrize('zeros', [False, True], ids=['no camera info', 'one of zeros'])
def test_colour_alone_needs_no_calibration(with_parts, zeros):
    bench = Bench(with_parts)
    whole = bench.pair()
    info = CameraInfo(width=64, height=48) if zeros else None
    bench.processor.process(Pair(whole.color, None, info, whole.arrived_s, whole.epoch))
    frame, result, _, sent = bench.outputs.published[-1]
    np.testing.assert_array_equal(result.labels, bench.segmenter.segment(frame, only='rgb').labels)
    assert sent is None
    (told,) = bench.log
    assert 'segmentation/points and segmentation/camera_info are not published' in told
    assert 'valid depth ratio' not in bench.health.snapshot()
    # Of depth they tell how high things are.
    half = Pair(None, whole.depth, None, whole.arrived_s, whole.epoch)
    bench.processor.process(half)
    assert bench.dropped() == {'no camera info yet'}
    assert len(bench.outputs.published) == 1


def test_depth_without_readings_is_told_and_counted(with_parts):
    bench = Bench(with_parts)
    bench.processor.process(bench.pair(depth=bench.camera.depth(0.0)))
    _, result, _, _ = bench.outputs.published[-1]
    assert result.sensors == ('rgb',)
    assert bench.health.snapshot()['masks from rgb alone'] == '1'
    assert 'no reading at all' in bench.log[0]


def test_latency_counts_from_the_arrival_of_the_pair(bench, monkeypatch):
    monkeypatch.setattr(pipeline, 'time', SimpleNamespace(monotonic=lambda: 102.5))
    bench.processor.process(replace(bench.pair(), arrived_s=100.25))
    assert bench.health.snapshot()['latency p50 ms'] == '2250.0'


def test_the_age_of_a_mask_is_that_at_which_it_is_sent(bench, monkeypatch):
    def segment_for_a_second(*given):
        bench.now_ns += 10**9
        return segment(*given)

    segment = bench.segmenter.segment
    monkeypatch.setattr(bench.segmenter, 'segment', segment_for_a_second)
    bench.processor.process(bench.pair(stamp_ns=4_900_000_000))
    assert bench.health.snapshot()['age p50 ms'] == '1100.0'


@pytest.fixture
def sole(tmp_path):
    """Make a bench with a network that sees one sensor."""
    bundles = pytest.importorskip('bundles')

    def make(modality):
        parts = (
            bundles.tiny_card(modalities=(modality,)),
            bundles.tiny_network(modalities=(modality,)),
        )
        return Bench(bundles.write_bundle(tmp_path / modality, *parts))

    return make


def other_frame(image):
    image.header.frame_id = 'elsewhere'
    return image


def without_unit(image):
    image.encoding = '8UC1'
    return image


def of_another_size(image):
    image.height //= 2
    image.data = image.data[: image.height * image.step]
    return image


@pytest.mark.parametrize(('modality', 'told'), [('rgb', 0), ('depth', 0), ('hha', 1)])
def test_a_guessed_floor_matters_to_networks_that_see_hha(sole, modality, told, monkeypatch):
    monkeypatch.setattr(pipeline, 'FLOOR_PERIOD_S', 0.0)
    bench = sole(modality)
    for _ in range(25):
        bench.processor.process(bench.pair())
    assert sum('takes the lowest surface for furniture' in entry for entry in bench.log) == told


@pytest.mark.parametrize('spoil', [other_frame, without_unit, of_another_size])
def test_depth_that_a_network_does_not_see_may_be_unusable(sole, spoil):
    bench = sole('rgb')
    pair = bench.pair(depth=spoil(bench.camera.depth()))
    bench.processor.process(pair)
    ((frame, result, header, info),) = bench.outputs.published
    np.testing.assert_array_equal(result.labels, bench.segmenter.segment(frame).labels)
    assert (header, info) == (pair.color.header, pair.info)
    assert not frame.depth.any()
    assert 'labels rest on colour alone and go on, but segmentation/points' in bench.log[0]


@pytest.mark.parametrize('spoil', [other_frame, of_another_size])
def test_colour_that_a_network_does_not_see_may_be_unusable(sole, spoil):
    bench = sole('hha')
    pair = bench.pair(color=spoil(bench.camera.color()))
    bench.processor.process(pair)
    ((frame, result, header, _),) = bench.outputs.published
    np.testing.assert_array_equal(result.labels, bench.segmenter.segment(frame).labels)
    assert header.frame_id == pair.depth.header.frame_id
    assert any('labels rest on depth alone and go on' in told for told in bench.log)


@pytest.mark.parametrize('spoil', [other_frame, of_another_size])
def test_what_a_network_sees_must_be_usable(bench, sole, spoil):
    with pytest.raises(FrameError):
        bench.processor.process(bench.pair(depth=spoil(bench.camera.depth())))
    bench = sole('rgb')
    empty = bench.camera.color()
    empty.data = []
    with pytest.raises(FrameError, match='/color'):
        bench.processor.process(bench.pair(color=empty))


@pytest.mark.parametrize('calibrated', [True, False])
def test_an_image_without_pixels_is_told_as_such(sole, calibrated):
    bench = sole('rgb')
    empty = bench.camera.color()
    empty.height = empty.width = empty.step = 0
    empty.data = []
    info = {} if calibrated else {'info': None}
    with pytest.raises(FrameError, match='/color has no pixels: its size is 0x0'):
        bench.processor.process(bench.pair(color=empty, **info))


def test_a_pair_without_pixels_is_told_as_such(bench):
    color, depth = bench.camera.color(), bench.camera.depth()
    for empty in (color, depth):
        empty.height = empty.width = empty.step = 0
        empty.data = []
    with pytest.raises(FrameError, match='has no pixels: its size is 0x0'):
        bench.processor.process(bench.pair(color=color, depth=depth))


def test_a_calibration_of_another_size(bench, with_parts):
    large = bench.camera.info()
    large.width, large.height = 1280, 720
    with pytest.raises(FrameError, match='the image is 64x48 but the camera info says 1280x720'):
        bench.processor.process(bench.pair(info=large))
    alone = Bench(with_parts)
    whole = alone.pair(info=large)
    alone.processor.process(Pair(whole.color, None, large, whole.arrived_s, whole.epoch))
    ((_, _, _, sent),) = alone.outputs.published
    assert sent is None
    assert 'camera info says 1280x720' in alone.log[0]
    given = Bench(with_parts, SegmentationConfig(camera=CameraConfig(fx=55.0)))
    given.processor.process(given.pair(info=large))
    ((frame, _, _, sent),) = given.outputs.published
    assert (frame.intrinsics.fx, sent.width) == (55.0, 64)
