"""Fused graphs against the stages they replace, on analytic and on real frames."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest

onnx = pytest.importorskip('onnx', reason='fusing needs onnx')
pytest.importorskip('onnxscript', reason='fusing needs onnxscript')
from bundles import (  # noqa: E402
    GAIN,
    tiny_card,
    tiny_network,
    with_open_sizes,
    write_bundle,
)
from onnxruntime import InferenceSession  # noqa: E402

from rgbd_fusion_seg import doctor  # noqa: E402
from rgbd_fusion_seg import hha as hha_encoding  # noqa: E402
from rgbd_fusion_seg.bundle import ModelBundle, load_bundle  # noqa: E402
from rgbd_fusion_seg.cli import main  # noqa: E402
from rgbd_fusion_seg.engine import open_engine  # noqa: E402
from rgbd_fusion_seg.engine.engine_files import belongs_to, list_engines  # noqa: E402
from rgbd_fusion_seg.engine_building.fused_graph import fuse, fused_beside, fused_name  # noqa: E402
from rgbd_fusion_seg.errors import BundleError, EngineError, FrameError, InputError  # noqa: E402
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame  # noqa: E402
from rgbd_fusion_seg.locations import list_bundles  # noqa: E402
from rgbd_fusion_seg.postprocess import labels_and_confidence  # noqa: E402
from rgbd_fusion_seg.preprocess import hha_image, rgb_image  # noqa: E402
from rgbd_fusion_seg.segmenter import Segmenter  # noqa: E402
from rgbd_fusion_seg.synthetic.scene import Room  # noqa: E402
from rgbd_fusion_seg.synthetic.sensor import simulate_kinect  # noqa: E402

ESTIMATE = np.zeros(3, np.float32)
"""The graph's input `gravity` that asks it to find gravity itself."""
GUESS = np.zeros(1, np.float32)
"""The graph's input `camera_height` that asks it to guess where the floor is."""
MEAN, STD = 100.0, 50.0


def bundle_of(folder: Path, height: int, width: int, classes: int = 4) -> ModelBundle:
    """A tiny bundle with a colour input of a size; HHA has half of it."""
    card = tiny_card(height, width)
    card['classes'] += [{'name': f'class {k}', 'color': [k, k, k]} for k in range(4, classes)]
    return load_bundle(write_bundle(folder, card, tiny_network(height, width, classes)))


def part(bundle: ModelBundle, outputs: list[str], inputs: list[str]) -> InferenceSession:
    """The part of a fused graph between values; the network's own are called ``network.…``."""
    model = onnx.shape_inference.infer_shapes(onnx.load(bundle.weights_path))
    found = onnx.utils.Extractor(model).extract_model(inputs, outputs)
    return InferenceSession(found.SerializeToString(), providers=['CPUExecutionProvider'])


def intrinsics(camera: Intrinsics) -> np.ndarray:
    return np.float32([camera.fx, camera.fy, camera.cx, camera.cy])


def smooth_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random((height, width, 3), np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def colour_seen(folder: Path, image: np.ndarray, height: int, width: int) -> np.ndarray:
    """What the network of a fused bundle sees of an image, back as grey levels."""
    bundle = fuse(bundle_of(folder / 'base', height, width), folder / 'fused', image.shape[1::-1])
    tensor = part(bundle, ['network.rgb'], ['rgb']).run(None, {'rgb': image[None]})[0]
    assert tensor.dtype == np.float32
    return (tensor[0] * STD + MEAN).transpose(1, 2, 0)


@pytest.mark.parametrize(
    'frame',
    [(48, 64), (96, 128), (48, 128), (60, 80), (144, 192), (60, 106), (240, 320)],
)
def test_a_shrunken_colour_image_is_the_very_one_of_preprocessing(tmp_path, frame):
    image = smooth_image(*frame)
    seen = colour_seen(tmp_path, image, 48, 64)
    assert np.abs(seen - rgb_image(image, 64, 48)).max() < 1e-3


@pytest.mark.parametrize('frame', [(96, 106), (480, 640), (53, 200)])
def test_only_exact_halves_of_a_shrunken_image_may_be_rounded_otherwise(tmp_path, frame):
    image = smooth_image(*frame)
    off = np.abs(colour_seen(tmp_path, image, 48, 64) - rgb_image(image, 64, 48))
    assert off.max() < 1.001
    assert (off > 0.5).mean() < 0.02  # halves: one sum in twice the denominator, at the most


@pytest.mark.parametrize('frame', [(24, 32), (35, 57), (30, 200)])
def test_an_enlarged_colour_image_is_within_one_grey_level(tmp_path, frame):
    image = smooth_image(*frame)
    off = np.abs(colour_seen(tmp_path, image, 48, 64) - rgb_image(image, 64, 48))
    assert off.max() < 1.001
    assert (off > 0.5).mean() < 0.2  # OpenCV drops bits on its way


def labelled(bundle: ModelBundle, logits: np.ndarray) -> list[np.ndarray]:
    session = part(bundle, ['labels', 'confidence'], ['network.logits'])
    labels, confidence = session.run(None, {'network.logits': logits})
    assert labels.dtype == confidence.dtype == np.uint8
    return [labels[0], confidence[0]]


@pytest.mark.parametrize('frame', [(48, 64), (121, 161), (240, 320)])
@pytest.mark.parametrize(('scale', 'temperature'), [(0.5, 1.0), (4.0, 1.0), (4.0, 1.5)])
def test_labels_and_confidence_are_those_of_torch(tmp_path, frame, scale, temperature):
    torch = pytest.importorskip('torch')
    base = replace(bundle_of(tmp_path / 'base', 48, 64, 40), temperature=temperature)
    bundle = fuse(base, tmp_path / 'fused', frame[::-1])
    rng = np.random.default_rng(0)
    logits = scale * rng.standard_normal((1, 40, 6, 8), dtype=np.float32)
    upsampled = torch.nn.functional.interpolate(
        torch.from_numpy(logits), size=frame, mode='bilinear', align_corners=False
    )
    labels, confidence = labelled(bundle, logits)
    runner_up, winner = upsampled[0].topk(2, dim=0).values.flip(0).numpy()
    decided = winner - runner_up > 1e-5
    assert decided.mean() > 0.99
    assert np.array_equal(labels[decided], upsampled[0].argmax(0).numpy()[decided])
    assert np.array_equal(labels, labels_and_confidence(logits, *frame)[0]) or not decided.all()
    exact = 255 * (upsampled[0].double() / temperature).softmax(0).amax(0).numpy()
    assert np.abs(confidence - exact).max() < 0.501


@pytest.mark.parametrize('wrong', [np.nan, np.inf, -np.inf])
def test_pixels_that_touch_a_logit_which_is_not_finite_are_unlabelled(tmp_path, wrong):
    bundle = fuse(bundle_of(tmp_path / 'base', 48, 64), tmp_path / 'fused', (320, 240))
    logits = np.random.default_rng(1).standard_normal((1, 4, 6, 8), dtype=np.float32)
    logits[0, 2, 3, 4] = wrong
    expected = labels_and_confidence(logits, 240, 320)
    assert 0 < (expected[0] == 255).mean() < 0.2
    labels, confidence = labelled(bundle, logits)
    assert np.array_equal(labels, expected[0])
    assert not confidence[labels == 255].any()


def encoded(
    bundle: ModelBundle,
    frame: RgbdFrame,
    gravity: np.ndarray = ESTIMATE,
    camera_height: np.ndarray = GUESS,
) -> np.ndarray:
    """HHA uint8 (h, w, 3) that the network of a fused bundle sees."""
    feeds = {
        'depth': frame.depth[None],
        'intrinsics': intrinsics(frame.intrinsics),
        'gravity': gravity,
        'camera_height': camera_height,
    }
    tensor = part(bundle, ['network.hha'], list(feeds)).run(None, feeds)[0]
    image = (tensor[0] * STD + MEAN).transpose(1, 2, 0)
    assert np.abs(image - np.rint(image)).max() < 1e-3
    return np.rint(image).astype(np.uint8)


@lru_cache
def kinect_room(seed: int, width: int, height: int) -> RgbdFrame:
    """A view of a synthetic room with the holes and the noise of a Kinect."""
    camera = Intrinsics(585.0, 585.0, 320.0, 240.0, 640, 480).resized(width, height)
    room, rng = Room.random(seed), np.random.default_rng(seed)
    view = room.render(room.random_pose(rng), camera)
    depth = simulate_kinect(view.depth, camera, rng, view.labels, rgb=view.rgb)
    return RgbdFrame(view.rgb, depth, camera)


def assert_close(found: np.ndarray, expected: np.ndarray, share: float = 0.02) -> None:
    """Require at most one grey level, and equality but for a share of the values."""
    off = np.abs(found.astype(int) - expected)
    assert off.max() <= 1
    assert (off > 0).mean(axis=(0, 1)).max() <= share


@pytest.mark.parametrize(
    ('frame', 'network'),
    [
        ((640, 480), (384, 512)),
        ((320, 240), (480, 640)),
        ((320, 240), (192, 256)),
        ((299, 201), (112, 144)),
        ((160, 120), (384, 512)),
    ],
)
def test_hha_of_rooms_is_that_of_the_kernels(tmp_path, frame, network):
    bundle = fuse(bundle_of(tmp_path / 'base', *network), tmp_path / 'fused', frame, hha=True)
    size = bundle.hha.width, bundle.hha.height
    for seed in range(2):
        view = kinect_room(seed, *frame)
        assert 0.01 < (view.depth == 0).mean() < 0.9
        expected = hha_image(view.depth, view.intrinsics, *size)
        assert_close(encoded(bundle, view), expected)


@pytest.fixture(scope='module')
def fused_hha(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    folder = tmp_path_factory.mktemp('fused_hha')
    return fuse(bundle_of(folder / 'base', 96, 128), folder / 'fused', (160, 120), hha=True)


def plain_view(depth: np.ndarray) -> RgbdFrame:
    camera = Intrinsics(150.0, 152.0, 81.0, 58.0, 160, 120)
    return RgbdFrame(np.zeros((120, 160, 3), np.uint8), depth.astype(np.float32), camera)


def holed_ramp() -> np.ndarray:
    """A floor that rises ahead, with readings on some single pixels and a line alone."""
    depth = np.broadcast_to(np.linspace(4, 1.2, 120)[:, None], (120, 160)).copy()
    depth[20:70, 30:120] = 0
    depth[40, 60:66] = 2.0
    depth[55, 90] = 3.0
    return depth


def straying_floor(period: int) -> np.ndarray:
    """A floor 1.4 m below and a wall, every so many readings of it thrice as far."""
    v = np.arange(120)[:, None] - 58.0
    depth = np.minimum(3.0, 1.4 * 152 / np.maximum(v, 1e-3)) * np.ones((1, 160))
    return np.where(np.arange(19200).reshape(120, 160) % period == 7, 3 * depth, depth)


def plane(*normal: float) -> np.ndarray:
    """A plane 2 m away that fills the view: gravity may turn about its normal."""
    v, u = np.mgrid[:120, :160]
    x, y, z = np.array(normal) / np.linalg.norm(normal)
    return 2.0 / (x * (u - 81) / 150 + y * (v - 58) / 152 + z)


@pytest.mark.parametrize(
    'depth',
    [
        plane(0.0, 0.35, 0.94),
        plane(0.3, 0.2, 0.93),
        np.zeros((120, 160)),
        np.full((120, 160), np.nan),
        np.full((120, 160), 3.0),
        np.full((120, 160), 1e30),
        np.full((120, 160), 1e-6),
        holed_ramp(),
        straying_floor(400),
        straying_floor(71),
        straying_floor(20),
        np.where(np.arange(120)[:, None] < 90, straying_floor(71), 0),
        np.where(holed_ramp() == 0, -np.inf, holed_ramp()),
        np.where(np.arange(160) == 70, 2.0, 0.0) * np.ones((120, 1)),
        np.where(np.arange(19200).reshape(120, 160) == 9999, 2.0, np.inf),
    ],
    ids=[
        'pitched',
        'skew',
        'none',
        'nan',
        'wall',
        'far',
        'near',
        'holes',
        'few strays',
        'some strays',
        'many strays',
        'nothing near the feet',
        'infinite holes',
        'a line',
        'a pixel',
    ],
)
def test_hha_of_odd_depth_is_that_of_the_kernels(fused_hha, depth):
    view = plain_view(depth)
    size = fused_hha.hha.width, fused_hha.hha.height
    expected = hha_image(view.depth, view.intrinsics, *size)
    assert_close(encoded(fused_hha, view), expected)


def test_pixels_on_a_diagonal_line_have_no_normal(tmp_path):
    """Where nothing is resampled, so that the line stays one; its determinants are all 0."""
    bundle = fuse(bundle_of(tmp_path / 'base', 96, 128), tmp_path / 'fused', (64, 48), hha=True)
    depth = np.where(np.eye(64)[:48] > 0, np.linspace(2, 3, 64), 0).astype(np.float32)
    camera = Intrinsics(60.0, 60.0, 31.5, 23.5, 64, 48)
    found = encoded(bundle, RgbdFrame(np.zeros((48, 64, 3), np.uint8), depth, camera))
    assert_close(found, hha_image(depth, camera, 64, 48))
    assert (found[..., 2] == 218).all()


def test_every_resized_reading_is_the_one_that_the_kernels_take(fused_hha):
    """Disparity alone tells readings apart: steps of 2 grey levels, two thirds of them holes."""
    rng = np.random.default_rng(5)
    metres = 310.0 / (2 * rng.integers(40, 110, (120, 160)))
    depth = np.where(rng.random(metres.shape) < 0.33, metres, 0)
    view = plain_view(depth)
    size = fused_hha.hha.width, fused_hha.hha.height
    expected = hha_image(view.depth, view.intrinsics, *size, np.array([0.0, 1.0, 0.0]))
    found = encoded(fused_hha, view, np.float32([0, 1, 0]))
    assert np.array_equal(found[..., 0], expected[..., 0])


@pytest.mark.parametrize('gravity', [[0.0, 1.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.6, 0.8]])
def test_gravity_is_taken_from_outside_where_it_is_given(fused_hha, gravity):
    view = plain_view(holed_ramp())
    size = fused_hha.hha.width, fused_hha.hha.height
    expected = hha_image(view.depth, view.intrinsics, *size, np.array(gravity))
    found = encoded(fused_hha, view, np.float32(gravity))
    assert_close(found, expected)
    own = encoded(fused_hha, view)
    assert (np.abs(own.astype(int) - found).max(axis=2) > 5).mean() > 0.2


@pytest.mark.parametrize('height', [0.2, 2.0])
def test_the_height_of_the_camera_is_taken_from_outside_where_it_is_given(fused_hha, height):
    view, down = plain_view(holed_ramp()), np.float32([0, 1, 0])
    size = fused_hha.hha.width, fused_hha.hha.height
    expected = hha_image(view.depth, view.intrinsics, *size, down, height)
    found = encoded(fused_hha, view, down, np.float32([height]))
    assert_close(found, expected)
    own = encoded(fused_hha, view, down)
    assert (np.abs(own.astype(int) - found)[..., 1] > 5).mean() > 0.2


def kinect_frames(folder: Path, count: int) -> list[RgbdFrame]:
    if not folder.is_dir():
        pytest.skip(f'needs the Kinect sequence, and {folder} is absent')
    camera, frames = Intrinsics(585.0, 585.0, 320.0, 240.0, 640, 480), []
    for path in sorted(folder.glob('*.color.jpg'))[:: 150 // count][:count]:
        rgb = np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])
        depth = cv2.imread(str(path).replace('color.jpg', 'depth.png'), cv2.IMREAD_UNCHANGED)
        frames.append(RgbdFrame(rgb, np.float32(depth * 1e-3), camera))
    return frames


def test_the_default_network_labels_real_frames_alike_in_all_forms(tmp_path, data_dir):
    base = load_bundle()
    for hha, share in ((False, 1e-5), (True, 2e-3)):
        bundle = fuse(base, tmp_path / f'fused_{hha}', (640, 480), hha)
        with Segmenter(base) as split, Segmenter(bundle) as fused:
            for frame in kinect_frames(data_dir / 'kinect_sequence', 2):
                expected, result = split.segment(frame), fused.segment(frame)
                assert (result.labels != expected.labels).mean() <= share
                off = result.confidence.astype(int) - expected.confidence
                # The stages' confidence is a little low by design, see postprocess.
                assert (np.abs(off) >= 3).mean() < 0.03
                assert 0 < off.mean() < 0.5


def half_bright(height: int = 120, width: int = 160) -> RgbdFrame:
    rgb = np.full((height, width, 3), 20, np.uint8)
    rgb[:, width // 2 :] = 220
    camera = Intrinsics(0.8 * width, 0.8 * width, width / 2, height / 2, width, height)
    return RgbdFrame(rgb, np.full((height, width), 4.0, np.float32), camera, 77, 'camera')


@pytest.mark.parametrize('hha', [False, True])
def test_a_segmenter_takes_a_fused_bundle_as_any_other(tmp_path, tiny_bundle, hha):
    base = load_bundle(tiny_bundle)
    bundle = fuse(base, tmp_path / 'fused', (160, 120), hha)
    frame, down = half_bright(), np.array([0.0, 2.0, 0.0])
    for array in (frame.rgb, frame.depth):
        array.flags.writeable = False
    with (
        Segmenter(base) as split,
        Segmenter(bundle) as fused,
        Segmenter(bundle, min_confidence=200) as careful,
    ):
        fused.warm_up()
        for gravity in (None, down, np.array([1.0, 0.0, 0.0])):
            expected, result = split.segment(frame, gravity), fused.segment(frame, gravity)
            assert np.array_equal(result.labels, expected.labels)
            assert np.abs(result.confidence.astype(int) - expected.confidence).max() <= 2
            assert len(np.unique(result.labels)) >= 3
        assert (result.stamp_ns, result.frame_id) == (77, 'camera')
        stages = ['preprocess', 'inference', 'postprocess']
        assert list(result.timings) == (stages if hha else ['hha', *stages])
        kept = careful.segment(frame, gravity).labels
        assert np.array_equal(kept == 255, result.confidence < 200)
        assert 0 < (kept == 255).mean() < 1
        expected, low = (s.segment(frame, gravity, '', 0.4).labels for s in (split, fused))
        assert np.array_equal(low, expected)
        assert (low != result.labels).mean() > 0.1
        with pytest.raises(FrameError, match=r'fused bundle tiny_fused.* takes 160x120 .* 80x60'):
            fused.segment(half_bright(60, 80))
        if hha:
            with pytest.raises(FrameError, match='gravity'):
                fused.segment(frame, np.zeros(3))
            with pytest.raises(FrameError, match='height of the camera'):
                fused.segment(frame, down, '', -0.4)


@pytest.mark.parametrize('modality', ['rgb', 'hha'])
def test_networks_of_one_modality_are_fused_too(tmp_path, modality):
    card, network = tiny_card(modalities=(modality,)), tiny_network(modalities=(modality,))
    base = load_bundle(write_bundle(tmp_path / 'base', card, network))
    bundle = fuse(base, tmp_path / 'fused', (160, 120), hha=modality == 'hha')
    inputs = {'rgb': {'rgb'}, 'hha': {'depth', 'intrinsics', 'gravity', 'camera_height'}}[modality]
    assert set(bundle.graph_inputs) == inputs
    with Segmenter(base) as split, Segmenter(bundle) as fused:
        expected, result = split.segment(half_bright()), fused.segment(half_bright())
    assert np.array_equal(result.labels, expected.labels)
    assert len(np.unique(result.labels)) == 2


def test_a_network_of_open_sizes_is_fixed_to_the_one_that_is_asked_for(tmp_path):
    card = tiny_card() | {'dynamic': {'batch': True, 'size': True, 'multiple': 16}}
    folder = write_bundle(tmp_path / 'open', card, with_open_sizes(tiny_network()))
    base = load_bundle(folder).resized(128, 96)
    bundle = fuse(base, tmp_path / 'fused', (160, 120), hha=True)
    assert bundle.input_size == (128, 96)
    assert not bundle.dynamic.size
    assert not bundle.dynamic.batch
    with Segmenter(base) as split, Segmenter(bundle) as fused:
        expected, result = split.segment(half_bright()), fused.segment(half_bright())
    assert np.array_equal(result.labels, expected.labels)


def test_the_doctor_tries_a_frame_of_the_right_size(tmp_path, tiny_bundle):
    bundle = fuse(load_bundle(tiny_bundle), tmp_path / 'fused', (200, 90), hha=True)
    assert [finding.mark for finding in doctor._trial(str(bundle.path))] == ['ok'] * 3


def test_the_card_keeps_what_the_base_card_says_and_tells_the_base(tmp_path):
    card = tiny_card()
    card['metrics'] = {'nyuv2': {'mean_iou': 0.5}}
    base = load_bundle(write_bundle(tmp_path / 'tiny', card))
    bundle = fuse(base, tmp_path / 'other' / 'fused', (160, 120), hha=True)
    assert bundle.name == fused_name(base, (160, 120), hha=True) == 'tiny_fused_hha_160x120'
    assert bundle.metrics == base.metrics
    assert bundle.class_names == base.class_names
    assert bundle.logits_shape == base.logits_shape
    assert bundle.weights_sha256 != base.weights_sha256
    assert bundle.fused.base_name == 'tiny'
    assert bundle.fused.base_sha256 == base.weights_sha256
    (bundle.path / 'engines').mkdir()
    assert fuse(base, bundle.path, (160, 120), hha=True).weights_sha256 == bundle.weights_sha256
    assert (bundle.path / 'engines').is_dir()
    again = fuse(base, bundle.path, (320, 240))
    assert (again.fused.width, again.fused.hha) == (320, False)
    assert not (bundle.path / 'engines').exists()
    assert [path.name for path in bundle.path.parent.iterdir()] == ['fused']


def test_the_fused_form_lies_beside_its_base_or_in_the_cache(tmp_path, monkeypatch):
    base = load_bundle(write_bundle(tmp_path / 'models' / 'tiny'))
    beside = fused_beside(base, (160, 120))
    assert beside.path == tmp_path / 'models' / 'tiny_fused_160x120'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr('os.access', lambda path, mode: False)  # root may write anywhere
    cached = fused_beside(base, (160, 120), hha=True)
    assert (tmp_path / 'cache') in cached.path.parents
    assert cached.path.name == 'tiny_fused_hha_160x120'
    assert load_bundle('tiny_fused_hha_160x120').path == cached.path
    assert cached.path in list_bundles()


def test_engines_stay_where_the_graph_is_the_same(tmp_path):
    card = tiny_card()
    base = load_bundle(write_bundle(tmp_path / 'tiny', card))
    fused = fused_beside(base, (160, 120))
    (fused.path / 'engines').mkdir()
    (fused.path / 'engines' / 'a.engine').write_bytes(b'engine')
    base.card['summary'] = 'scored anew'
    again = fused_beside(base, (160, 120))
    assert again.card['summary'] == 'scored anew'
    assert (again.path / 'engines' / 'a.engine').read_bytes() == b'engine'
    # Another bundle of the same name does not meet it.
    twin = load_bundle(write_bundle(tmp_path / 'twin', card))
    assert fused_beside(twin, (160, 120)).path == tmp_path / 'twin_fused_160x120'
    assert (again.path / 'engines').is_dir()


@pytest.mark.parametrize('damage', ['weights', 'nothing but the card'])
def test_a_damaged_fused_bundle_is_made_again(tmp_path, damage):
    base = load_bundle(write_bundle(tmp_path / 'tiny'))
    fused = fused_beside(base, (160, 120))
    if damage == 'weights':
        fused.weights_path.write_bytes(b'')
    else:
        fused.weights_path.unlink()
    assert fused_beside(base, (160, 120)).weights_sha256 == fused.weights_sha256


def test_the_fused_form_lies_beside_a_bundle_that_is_named_from_inside(tmp_path, monkeypatch):
    folder = write_bundle(tmp_path / 'tiny')
    for place, given in ((folder, '.'), (folder, 'model.yaml'), (folder / 'engines', '..')):
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        assert fused_beside(load_bundle(given), (160, 120)).path == tmp_path / 'tiny_fused_160x120'
    assert {path.name for path in folder.iterdir()} == {'model.yaml', 'model.onnx', 'engines'}


def test_what_cannot_be_fused_is_told(tmp_path, tiny_bundle):
    base = load_bundle(tiny_bundle)
    with pytest.raises(InputError, match='0x120'):
        fuse(base, tmp_path / 'a', (0, 120))
    fused = fuse(base, tmp_path / 'fused', (160, 120))
    with pytest.raises(BundleError, match=r'fused already; fuse .* tiny$'):
        fuse(fused, tmp_path / 'a', (160, 120))
    with pytest.raises(InputError, match='exists and is no fused bundle'):
        fuse(base, tiny_bundle, (160, 120))
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='cannot be written'):
        fuse(base, tmp_path / 'file' / 'a', (160, 120))
    card, network = tiny_card(modalities=('rgb',)), tiny_network(modalities=('rgb',))
    colour = load_bundle(write_bundle(tmp_path / 'colour', card, network))
    with pytest.raises(BundleError, match='sees no HHA'):
        fuse(colour, tmp_path / 'a', (160, 120), hha=True)
    names = 'rgb', 'hha', 'depth'
    card, network = tiny_card(modalities=names), tiny_network(modalities=names)
    metres = load_bundle(write_bundle(tmp_path / 'metres', card, network))
    for hha in (False, True):
        with pytest.raises(BundleError, match='reads depth in metres'):
            fuse(metres, tmp_path / 'a', (160, 120), hha)
    assert not (tmp_path / 'a').exists()


def test_networks_that_do_not_fit_their_card_or_are_too_old_are_not_fused(tmp_path):
    card = tiny_card()
    card['hha']['angle_offset'] = 0.0
    other = load_bundle(write_bundle(tmp_path / 'other', card))
    with pytest.raises(BundleError, match='other constants'):
        fuse(other, tmp_path / 'a', (160, 120), hha=True)
    old = tiny_network()
    old.opset_import[0].version = 17
    with pytest.raises(BundleError, match='opset 17'):
        fuse(load_bundle(write_bundle(tmp_path / 'old', network=old)), tmp_path / 'a', (160, 120))
    named = tiny_network(input_names=('colour_image', 'hha'))
    with pytest.raises(BundleError, match='colour_image'):
        fuse(load_bundle(write_bundle(tmp_path / 'n', network=named)), tmp_path / 'a', (160, 120))
    with pytest.raises(BundleError, match='no ONNX network'):
        fuse(load_bundle(write_bundle(tmp_path / 'x', network=b'?')), tmp_path / 'a', (160, 120))


def test_an_engine_of_a_fused_bundle_has_no_logits_and_wants_all_inputs(tmp_path, tiny_bundle):
    bundle = fuse(load_bundle(tiny_bundle), tmp_path / 'fused', (160, 120))
    engine = open_engine(bundle, 'onnxruntime', num_threads=1)
    feeds = {name: np.zeros(shape, dtype) for name, (dtype, shape) in bundle.graph_inputs.items()}
    outputs = engine.run(feeds)
    assert {name: (a.dtype.name, a.shape) for name, a in outputs.items()} == bundle.graph_outputs
    with pytest.raises(EngineError, match='no logits'):
        engine.infer(np.zeros((1, 3, 48, 64), np.float32), np.zeros((1, 3, 24, 32), np.float32))
    with pytest.raises(EngineError, match='rgb'):
        engine.run({'hha': feeds['hha']})
    with pytest.raises(EngineError, match='failed'):
        engine.run(feeds | {'rgb': feeds['rgb'].astype(np.float32)})
    engine.close()
    with pytest.raises(EngineError, match='closed'):
        engine.run(feeds)


def test_a_graph_of_another_form_than_its_card_tells_is_refused(tmp_path, tiny_bundle):
    bundle = fuse(load_bundle(tiny_bundle), tmp_path / 'fused', (160, 120))
    split = dict(bundle.card)
    del split['fused']
    del split['weights']['sha256']
    network = bundle.weights_path.read_bytes()
    with pytest.raises(BundleError, match=r'tensor\(uint8\)'):
        open_engine(load_bundle(write_bundle(tmp_path / 'split', split, network)), 'onnxruntime')
    larger = {**split, 'fused': {**bundle.card['fused'], 'width': 320}}
    with pytest.raises(BundleError, match='shape'):
        open_engine(load_bundle(write_bundle(tmp_path / 'large', larger, network)), 'onnxruntime')
    plain = {**split, 'fused': bundle.card['fused']}
    with pytest.raises(BundleError, match='tensor'):
        open_engine(load_bundle(write_bundle(tmp_path / 'plain', plain)), 'onnxruntime')


@pytest.mark.parametrize(('precision', 'hha'), [('fp32', False), ('fp16', True)])
def test_tensorrt_rtx_builds_fused_bundles(tmp_path, precision, hha):
    """From the command line, as the plan and its card say."""
    pytest.importorskip('tensorrt_rtx_libs', reason='needs the libraries of TensorRT-RTX')
    pytest.importorskip('tensorrt_rtx_bindings', reason='needs TensorRT-RTX')
    folder = write_bundle(tmp_path / 'tiny')
    command = ['build-engine', str(folder), '--flavour', 'tensorrt_rtx', '--precision', precision]
    command += ['--compute-capability', '8.6']  # that of a GPU here may be none of RTX's
    fusing = ['--fuse-hha' if hha else '--fuse-postprocess', '--frame-size', '160x120']
    assert main([*command, *fusing]) == 0
    bundle = load_bundle(tmp_path / fused_name(load_bundle(folder), (160, 120), hha))
    (card,) = list_engines(bundle).values()
    assert (card.precision, belongs_to(card, bundle)) == (precision, True)
    for mode, expected in (('input', bundle.graph_inputs), ('output', bundle.graph_outputs)):
        tensors = [tensor for tensor in card.tensors if tensor.mode == mode]
        assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors} == expected


def test_the_command_fuses_an_open_network_at_the_size_that_is_wanted(tmp_path, capsys):
    pytest.importorskip('tensorrt_rtx_libs', reason='needs the libraries of TensorRT-RTX')
    pytest.importorskip('tensorrt_rtx_bindings', reason='needs TensorRT-RTX')
    card = tiny_card() | {'dynamic': {'batch': False, 'size': True, 'multiple': 16}}
    folder = write_bundle(tmp_path / 'tiny', card, with_open_sizes(tiny_network()))
    command = ['build-engine', str(folder), '--flavour', 'tensorrt_rtx', '--fuse-postprocess']
    command += ['--frame-size', '160x120', '--compute-capability', '8.6']
    assert main([*command, '--sizes', '32x32', '64x48', '96x96']) == 1
    assert 'give --input-size in place of --sizes' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['tiny']
    for size in ('96x64', '32x32'):
        assert main([*command, '--input-size', size]) == 0
    for width, height in ((96, 64), (32, 32)):
        bundle = load_bundle(tmp_path / f'tiny_fused_160x120_at_{width}x{height}')
        assert bundle.input_size == (width, height)
        assert bundle.graph_inputs['hha'].shape == (1, height // 2, width // 2, 3)
        assert len(list_engines(bundle)) == 1


def test_a_size_of_frames_belongs_to_fusing(tiny_bundle, capsys):
    assert main(['build-engine', str(tiny_bundle), '--frame-size', '160x120']) == 1
    assert '--fuse-postprocess' in capsys.readouterr().err


def test_all_around_a_network_in_fp16_stays_float32(tmp_path, tiny_bundle):
    from rgbd_fusion_seg.engine_building.precision import typed_network

    bundle = fuse(load_bundle(tiny_bundle), tmp_path / 'fused', (160, 120), hha=True)
    typed = onnx.load_from_string(typed_network(bundle.weights_path, 'fp16'))
    whole = onnx.shape_inference.infer_shapes(typed, strict_mode=True)
    kinds = {v.name: v.type.tensor_type.elem_type for v in whole.graph.value_info}
    around = [node for node in whole.graph.node if node.name.startswith('fused/')]
    assert len(around) > 100
    half = onnx.TensorProto.FLOAT16
    assert not [node.name for node in around if half in map(kinds.get, node.output)]
    assert half in kinds.values()
    session = InferenceSession(typed.SerializeToString(), providers=['CPUExecutionProvider'])
    frame = half_bright()
    feeds = {
        'rgb': frame.rgb[None],
        'depth': frame.depth[None],
        'intrinsics': intrinsics(frame.intrinsics),
        'gravity': ESTIMATE,
        'camera_height': GUESS,
    }
    labels, confidence = session.run(['labels', 'confidence'], feeds)
    with Segmenter(bundle) as segmenter:
        expected = segmenter.segment(frame)
    assert (labels[0] != expected.labels).mean() < 1e-3
    assert np.abs(confidence[0].astype(int) - expected.confidence).max() <= GAIN


def test_the_constants_of_hha_are_those_in_the_graph(fused_hha):
    assert fused_hha.card['hha'] == hha_encoding.constants()
