"""The pipeline on a network whose labels are known, on analytic and on real frames."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import stand_in_engine
from bundles import (
    MEAN,
    MEAN_M,
    STD,
    STD_M,
    tiny_card,
    tiny_network,
    with_open_sizes,
    write_bundle,
)

from rgbd_fusion_seg import engine
from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.engine import StepDown
from rgbd_fusion_seg.engine.engine_files import EngineCard, writable_folder, write_engine
from rgbd_fusion_seg.errors import BundleError, EngineError, InputError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.preprocess import hha_image
from rgbd_fusion_seg.segmenter import Segmenter

LEVEL = np.array([0.0, 1.0, 0.0])


def half_lit_room(height: int, width: int) -> RgbdFrame:
    """A wall 4 m ahead of a level camera 1.5 m above the floor; the right half is bright.

    The wall's lowest visible point is the zero of heights; MEAN cm above it HHA becomes "high".
    """
    camera = Intrinsics(0.8 * width, 0.8 * width, (width - 1) / 2, (height - 1) / 2, width, height)
    rgb = np.full((height, width, 3), 20, np.uint8)
    rgb[:, width // 2 :] = 220
    depth = np.full((height, width), 4.0, np.float32)
    return RgbdFrame(rgb, depth, camera, stamp_ns=123_456_789, frame_id='camera_optical')


@pytest.fixture(scope='module')
def segmenter(tiny_bundle: Path):
    with Segmenter(tiny_bundle, num_threads=1) as opened:
        yield opened


@pytest.mark.parametrize('size', [(48, 64), (240, 320), (480, 640), (35, 57), (24, 32)])
def test_brightness_and_height_become_labels_at_the_size_of_the_frame(segmenter, size):
    height, width = size
    frame = half_lit_room(height, width)
    result = segmenter.segment(frame, gravity=LEVEL)
    assert result.labels.shape == result.confidence.shape == size
    v = (np.arange(height) - frame.intrinsics.cy) / frame.intrinsics.fy
    heights_cm = 400.0 * (v[-1] - v)
    expected = np.where(heights_cm > MEAN, 2, 0)[:, None] + (np.arange(width) >= width // 2)
    # Logits stand for 8x8 network pixels: leave that much around both borders.
    cell_y, cell_x = height / 6, width / 8
    row_border = np.searchsorted(-heights_cm, -MEAN)
    rows = np.abs(np.arange(height) - row_border) > cell_y
    columns = np.abs(np.arange(width) - width // 2) > cell_x
    inner = rows[:, None] & columns[None]
    assert set(np.unique(expected[inner])) == {0, 1, 2, 3}
    assert np.array_equal(result.labels[inner], expected[inner])


def test_results_carry_the_stamp_the_frame_and_the_time_of_every_stage(segmenter):
    result = segmenter.segment(half_lit_room(48, 64))
    assert result.stamp_ns == 123_456_789
    assert result.frame_id == 'camera_optical'
    assert list(result.timings) == ['hha', 'preprocess', 'inference', 'postprocess']
    assert all(milliseconds > 0 for milliseconds in result.timings.values())


def test_gravity_is_estimated_unless_given(segmenter):
    """A frame seen by a camera lying on its side: only the given gravity tells what is high."""
    frame = half_lit_room(48, 64)
    upright = segmenter.segment(frame, gravity=LEVEL).labels
    on_its_side = segmenter.segment(frame, gravity=np.array([1.0, 0.0, 0.0])).labels
    assert np.array_equal(segmenter.segment(frame).labels, upright)
    assert (upright[:8] >= 2).all()
    assert (upright[-8:] < 2).all()
    assert (on_its_side[:, :8] >= 2).all()
    assert (on_its_side[:, -8:] < 2).all()


def test_the_floor_is_guessed_unless_the_height_of_the_camera_is_given(segmenter):
    """The wall ends 1.5 m above and below the camera; MEAN cm above the floor it becomes high."""
    frame = half_lit_room(48, 64)
    low, high = (segmenter.segment(frame, LEVEL, '', height).labels for height in (0.5, 2.7))
    middle = segmenter.segment(frame, LEVEL).labels
    assert [round((found >= 2).mean(), 1) for found in (low, middle, high)] == [0.3, 0.7, 0.9]


def test_earlier_results_survive_later_frames(segmenter):
    first = segmenter.segment(half_lit_room(48, 64))
    kept = first.labels.copy(), first.confidence.copy()
    dark = half_lit_room(48, 64)
    segmenter.segment(RgbdFrame(np.zeros_like(dark.rgb), dark.depth, dark.intrinsics))
    assert np.array_equal(first.labels, kept[0])
    assert np.array_equal(first.confidence, kept[1])


@pytest.mark.parametrize('nothing', [0.0, np.nan, np.inf, -1.0])
def test_frames_without_any_depth_are_labelled_from_colour(segmenter, nothing):
    frame = half_lit_room(48, 64)
    empty = RgbdFrame(frame.rgb, np.full_like(frame.depth, nothing), frame.intrinsics)
    labels = segmenter.segment(empty).labels
    assert (labels[:, 8:24] % 2 == 0).all()
    assert (labels[:, 40:56] % 2 == 1).all()


def test_holes_do_not_change_labels_around_them(segmenter):
    frame = half_lit_room(240, 320)
    depth = frame.depth.copy()
    depth[np.random.default_rng(0).random(depth.shape) < 0.3] = 0
    depth[60:90, 100:140] = np.nan
    holed = RgbdFrame(frame.rgb, depth, frame.intrinsics)
    assert np.array_equal(
        segmenter.segment(holed, LEVEL).labels, segmenter.segment(frame, LEVEL).labels
    )


def test_the_temperature_on_the_card_makes_the_confidence(tmp_path: Path, segmenter):
    card = tiny_card() | {'confidence': {'temperature': 40}}
    frame = half_lit_room(240, 320)
    sure = segmenter.segment(frame, LEVEL)
    with Segmenter(write_bundle(tmp_path / 'calibrated', card)) as calibrated:
        result = calibrated.segment(frame, LEVEL)
    assert np.array_equal(result.labels, sure.labels)
    assert (result.confidence <= sure.confidence).all()
    assert result.confidence.mean() < sure.confidence.mean() - 20


def test_pixels_below_the_wanted_confidence_are_unlabelled(tiny_bundle: Path, segmenter):
    frame = half_lit_room(240, 320)
    everything = segmenter.segment(frame, LEVEL)
    assert everything.confidence.min() < 200 < everything.confidence.max()
    with Segmenter(tiny_bundle, min_confidence=200) as careful:
        result = careful.segment(frame, LEVEL)
    unsure = everything.confidence < 200
    assert (result.labels[unsure] == 255).all()
    assert np.array_equal(result.labels[~unsure], everything.labels[~unsure])
    assert np.array_equal(result.confidence, everything.confidence)


def test_frames_may_be_views_of_read_only_memory(segmenter):
    frame = half_lit_room(48, 64)
    rgb = np.frombuffer(frame.rgb.tobytes(), np.uint8).reshape(48, 64, 3)
    depth = np.frombuffer(frame.depth.tobytes(), np.float32).reshape(48, 64)
    same = segmenter.segment(RgbdFrame(rgb, depth, frame.intrinsics))
    assert np.array_equal(same.labels, segmenter.segment(frame).labels)


def test_after_warming_up_no_kernel_is_compiled_for_frames_of_messages(tiny_bundle: Path):
    """Numba takes read-only images, as those of bags, for another type than writeable ones."""
    code = """
import sys
import numpy as np
from rgbd_fusion_seg import kernels, palette, rvl
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame, Segmentation
from rgbd_fusion_seg.point_cloud import labelled_points
from rgbd_fusion_seg.segmenter import Segmenter

def compiled():
    functions = {**vars(kernels), **vars(rvl)}
    return {k: len(f.signatures) for k, f in functions.items() if hasattr(f, 'signatures')}

kernels.warm_up()
before = compiled()
segmenter = Segmenter(sys.argv[1])
for writeable, height, width in ((True, 48, 64), (False, 48, 64), (False, 96, 128)):
    rgb = np.zeros((height, width, 3), np.uint8)
    depth = np.ones((height, width), np.float32)
    rgb.flags.writeable = depth.flags.writeable = writeable
    frame = RgbdFrame(rgb, depth, Intrinsics(60.0, 60.0, 32.0, 24.0, width, height))
    result = segmenter.segment(frame)
    labels, confidence = result.labels, result.confidence
    labels.flags.writeable = confidence.flags.writeable = writeable
    labelled_points(frame, Segmentation(labels, confidence))
    painted = palette.overlay(rgb, labels, segmenter.bundle.colors)
    labelled_points(frame, result, painted)
    palette.colorize(labels, segmenter.bundle.colors)
rvl.unpack_rvl(np.frombuffer(b'\\xff\\x00\\x00\\x00', np.uint8), 0)
changed = {k: n for k, n in compiled().items() if n != before[k]}
assert before and not changed, changed
"""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, '-c', code, str(tiny_bundle)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_bundle_may_be_loaded_named_or_given_by_path(tiny_bundle: Path, monkeypatch):
    monkeypatch.setenv('RGBD_FUSION_SEG_MODELS', str(tiny_bundle.parent))
    for given in (load_bundle(tiny_bundle), str(tiny_bundle), tiny_bundle.name):
        with Segmenter(given) as opened:
            assert opened.bundle.path == tiny_bundle
            assert opened.engine_name.startswith('onnxruntime')
    with pytest.raises(BundleError, match='nowhere'):
        Segmenter('nowhere')


def test_wrong_options_are_refused(tiny_bundle: Path):
    with pytest.raises(InputError, match=r'0\.\.255, got 256'):
        Segmenter(tiny_bundle, min_confidence=256)
    with pytest.raises(EngineError, match="'tpu'"):
        Segmenter(tiny_bundle, backend='tpu')
    with pytest.raises(EngineError, match="'speed'"):
        Segmenter(tiny_bundle, speed=1)


@pytest.mark.parametrize('modality', ['rgb', 'hha'])
def test_a_network_of_one_modality_labels_by_what_it_sees(tmp_path, segmenter, modality):
    card, network = tiny_card(modalities=(modality,)), tiny_network(modalities=(modality,))
    frame = half_lit_room(240, 320)
    with Segmenter(write_bundle(tmp_path / modality, card, network)) as opened:
        opened.warm_up()
        result = opened.segment(frame, LEVEL)
    fused = segmenter.segment(frame, LEVEL).labels
    assert set(np.unique(fused)) == {0, 1, 2, 3}
    assert np.array_equal(result.labels, fused & (1 if modality == 'rgb' else 2))
    stages = ['preprocess', 'inference', 'postprocess']
    assert list(result.timings) == (stages if modality == 'rgb' else ['hha', *stages])


@pytest.mark.parametrize('modalities', [('rgb', 'depth'), ('depth',), ('rgb', 'hha', 'depth')])
def test_depth_in_metres_becomes_labels(tmp_path, modalities):
    card, network = tiny_card(modalities=modalities), tiny_network(modalities=modalities)
    frame = half_lit_room(240, 320)
    frame.depth[:] = np.linspace(0.5, 4.0, 320)
    frame.depth[:, 120:200] = 1.2
    with Segmenter(write_bundle(tmp_path / 'metres', card, network)) as opened:
        opened.warm_up()
        result = opened.segment(frame, LEVEL)
    stages = ['preprocess', 'inference', 'postprocess']
    assert list(result.timings) == (['hha', *stages] if 'hha' in modalities else stages)
    # Depth streams take the middle of 10x10 pixels, and the network averages 4x4 of those.
    evidence = (frame.depth[5::10, 5::10].reshape(6, 4, 8, 4).mean((1, 3)) - MEAN_M) / STD_M
    if 'hha' in modalities:
        heights = hha_image(frame.depth, frame.intrinsics, 32, 24, LEVEL)[..., 1]
        evidence += (heights.reshape(6, 4, 8, 4).mean((1, 3)) - MEAN) / STD
    bright = ('rgb' in modalities) * (np.arange(8) >= 4)
    clear = np.abs(evidence) > 0.05
    assert clear.mean() > 0.8
    assert set(np.unique(evidence > 0)) == {False, True}
    expected = 2 * (evidence > 0) + bright
    np.testing.assert_array_equal(result.labels[20::40, 20::40][clear], expected[clear])


@pytest.mark.parametrize('modality', ['rgb', 'depth'])
def test_the_kind_of_hha_does_not_matter_to_a_network_that_does_not_see_it(tmp_path, modality):
    card, network = tiny_card(modalities=(modality,)), tiny_network(modalities=(modality,))
    del card['hha']
    with Segmenter(write_bundle(tmp_path / modality, card, network)) as opened:
        highest = 1 if modality == 'rgb' else 2
        assert opened.segment(half_lit_room(48, 64)).labels.max() == highest


def test_the_network_sees_frames_at_the_size_it_is_given(tmp_path, tiny_bundle: Path):
    card = tiny_card() | {'dynamic': {'batch': False, 'size': True, 'multiple': 16}}
    network = with_open_sizes(tiny_network())
    folder = write_bundle(tmp_path / 'open', card, network)
    large = write_bundle(tmp_path / 'large', tiny_card(96, 128), tiny_network(96, 128))
    frame = half_lit_room(240, 320)
    with Segmenter(folder, input_size=(128, 96)) as chosen, Segmenter(large) as made:
        assert chosen.bundle.input_size == (128, 96)
        chosen.warm_up()
        expected = made.segment(frame, LEVEL)
        result = chosen.segment(frame, LEVEL)
    assert np.array_equal(result.labels, expected.labels)
    assert np.array_equal(result.confidence, expected.confidence)
    with pytest.raises(BundleError, match='takes 64x48 images only'):
        Segmenter(tiny_bundle, input_size=(128, 96))


def test_a_closed_segmenter_says_so(tiny_bundle: Path):
    with Segmenter(tiny_bundle) as opened:
        opened.warm_up()
    with pytest.raises(EngineError, match='closed'):
        opened.segment(half_lit_room(48, 64))


def test_a_real_kinect_frame_goes_through(segmenter, data_dir: Path):
    folder = data_dir / 'kinect_sequence'
    if not folder.is_dir():
        pytest.skip(f'needs the Kinect sequence, and {folder} is absent')
    rgb = cv2.imread(str(folder / 'frame-000000.color.jpg'))[..., ::-1]
    millimetres = cv2.imread(str(folder / 'frame-000000.depth.png'), cv2.IMREAD_UNCHANGED)
    camera = Intrinsics(585.0, 585.0, 320.0, 240.0, 640, 480)
    frame = RgbdFrame(np.ascontiguousarray(rgb), (millimetres / 1000).astype(np.float32), camera)
    result = segmenter.segment(frame)
    # The tiny network is a threshold on block averages, so numpy can say what comes out.
    hha = hha_image(frame.depth, camera, 32, 24)
    high = hha.reshape(6, 4, 8, 4, 3).mean(axis=(1, 3))[..., 1]
    bright = frame.rgb.reshape(6, 80, 8, 80, 3).mean(axis=(1, 3, 4))
    expected = (bright > MEAN) + 2 * (high > MEAN)
    clear = (np.abs(bright - MEAN) > 5) & (np.abs(high - MEAN) > 5)
    centres = result.labels[40::80, 40::80]
    assert clear.mean() > 0.7
    assert np.array_equal(centres[clear], expected[clear])


def test_a_network_trained_on_another_kind_of_hha_is_refused(tmp_path):
    card = tiny_card()
    card['hha']['disparity_scale'] = 30000.0
    with pytest.raises(BundleError, match=r'disparity_scale = 30000\.0'):
        Segmenter(write_bundle(tmp_path / 'other', card))
    del card['hha']
    with pytest.raises(BundleError, match="'hha'"):
        Segmenter(write_bundle(tmp_path / 'none', card))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A bundle with an engine of the stand-in for TensorRT, which is the best backend."""
    monkeypatch.setattr('rgbd_fusion_seg.engine.BACKENDS', dict(engine.BACKENDS))
    monkeypatch.setattr(stand_in_engine, 'BACKENDS', engine.BACKENDS)
    stand_in_engine.install()
    bundle = load_bundle(write_bundle(tmp_path / 'tiny'))
    card = EngineCard(
        bundle.name, bundle.weights_sha256, 'tensorrt', '10.3.0', 'fp32', ('8.7',), '', ()
    )
    write_engine(writable_folder(bundle), 'tiny', b'an engine', card)
    return bundle


def test_an_engine_that_fails_while_it_runs_gives_way_to_the_next(stand_in, segmenter):
    frame, told = half_lit_room(48, 64), []
    expected = segmenter.segment(frame).labels
    with Segmenter(stand_in, on_step_down=told.append) as opened:
        assert opened.engine_name == 'tensorrt (stand-in)'
        assert np.array_equal(opened.segment(frame).labels, expected)
        assert (opened.step_downs, told) == ((), [])
        lost = opened.engine
        (stand_in.path / 'device_lost').touch()
        for _ in range(2):
            assert np.array_equal(opened.segment(frame).labels, expected)
        assert lost.closed
        assert opened.engine_name.startswith('onnxruntime')
        failed = StepDown('tensorrt', 'the device of the stand-in was lost', unexpected=True)
        assert failed in opened.step_downs
        assert told.count(failed) == 1
        assert sorted(told) == sorted(opened.step_downs)


def test_an_engine_that_was_asked_for_by_name_has_no_deputy(stand_in):
    with Segmenter(stand_in, backend='tensorrt') as opened:
        (stand_in.path / 'device_lost').touch()
        with pytest.raises(EngineError, match='was lost'):
            opened.segment(half_lit_room(48, 64))


def test_the_last_engine_that_fails_says_why(tiny_bundle, monkeypatch):
    with Segmenter(tiny_bundle) as opened:
        only = {opened.engine.backend: engine.BACKENDS[opened.engine.backend]}
        monkeypatch.setattr('rgbd_fusion_seg.engine.BACKENDS', only)
        opened.engine.close()
        with pytest.raises(EngineError, match='is closed'):
            opened.segment(half_lit_room(48, 64))


def test_step_downs_are_logged_each_as_loudly_as_it_deserves(stand_in, caplog):
    shutil.rmtree(stand_in.path / 'engines')
    with caplog.at_level('INFO'), Segmenter(stand_in) as opened:
        assert opened.engine_name.startswith('onnxruntime')
    levels = {record.levelname: record.getMessage() for record in caplog.records}
    assert levels['WARNING'] == (
        'tensorrt is not used: tiny has no engine for the stand-in; build one'
    )


def test_an_engine_is_replaced_between_frames_while_another_thread_segments(tiny_bundle):
    """Every frame has its labels, whichever engine made them, and each engine is closed once."""
    frames = [half_lit_room(48, 64) for _ in range(2)]
    frames[1].rgb[:] = 220
    bundle = load_bundle(tiny_bundle)
    with Segmenter(bundle) as opened:
        expected = [opened.segment(frame).labels for frame in frames]
        given = [CountingEngine(bundle) for _ in range(20)]
        stop = threading.Event()
        results = []

        def segment():
            while not stop.is_set() or opened.engine is not given[-1]:
                turn = len(results) % 2
                results.append(np.array_equal(opened.segment(frames[turn]).labels, expected[turn]))

        thread = threading.Thread(target=segment)
        thread.start()
        for new in given:
            opened.replace_engine(new)
            time.sleep(0.01)
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
        assert all(results)
        assert len(results) > 20
        assert [e.closings for e in given] == [1] * 19 + [0]
        assert [e.failures for e in given] == [0] * 20
    opened.replace_engine(late := CountingEngine(bundle))
    assert (given[-1].closings, late.closings) == (1, 1)


def test_an_engine_that_waits_for_the_next_frame_is_closed_with_the_segmenter(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    with Segmenter(bundle) as opened:
        first, second = CountingEngine(bundle), CountingEngine(bundle)
        opened.replace_engine(first)
        opened.replace_engine(second)  # no frame came meanwhile
        assert (first.closings, second.closings) == (1, 0)
    assert (first.closings, second.closings) == (1, 1)


class CountingEngine:
    name, backend, step_downs = 'counting', 'onnxruntime', ()

    def __init__(self, bundle):
        self._engine = engine.open_engine(bundle, 'onnxruntime', num_threads=1)
        self.closings = self.failures = 0

    def infer(self, **tensors):
        if self.closings:
            self.failures += 1
        return self._engine.infer(**tensors)

    def close(self):
        self.closings += 1
        self._engine.close()


def test_an_engine_that_failed_is_not_tried_again(tiny_bundle, monkeypatch):
    opened = []

    class Failing:
        step_downs = ()

        def __init__(self, backend):
            self.backend = self.name = backend

        def infer(self, **_):
            raise EngineError(f'{self.backend} broke')

        def close(self):
            pass

    def opening(bundle, backend='auto', failed=(), **_):
        gone = {step_down.backend for step_down in failed}
        left = [name for name in ('tensorrt', 'openvino', 'onnxruntime') if name not in gone]
        if not left:
            raise EngineError('none left')
        assert len(opened) < 10, 'it goes round in circles'
        opened.append(left[0])
        return Failing(left[0])

    monkeypatch.setattr('rgbd_fusion_seg.segmenter.open_engine', opening)
    told = pytest.raises(EngineError, match='onnxruntime broke')
    with Segmenter(load_bundle(tiny_bundle)) as segmenter, told:
        segmenter.segment(half_lit_room(48, 64))
    assert opened == ['tensorrt', 'openvino', 'onnxruntime']
