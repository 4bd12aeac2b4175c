"""Bundles that also answer from one sensor alone: what is checked, and what they answer."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import stand_in_engine
from bundles import tiny_card, tiny_network, with_open_sizes, write_bundle
from single_sensor_bundles import MEAN_IOU, change_card, write_with_parts

from rgbd_fusion_seg import doctor, engine
from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.depth import grey_picture, has_few_readings
from rgbd_fusion_seg.engine_building.fused_graph import fuse
from rgbd_fusion_seg.errors import BundleError, EngineError, InputError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.locations import list_bundles
from rgbd_fusion_seg.plausibility import depth_statistics
from rgbd_fusion_seg.segmenter import Segmenter

SENSOR = {'rgb': 'rgb', 'hha': 'depth'}


def room(height: int = 96, width: int = 128) -> RgbdFrame:
    """A wall whose upper part is high and whose right half is bright."""
    rgb = np.full((height, width, 3), 20, np.uint8)
    rgb[:, width // 2 :] = 220
    camera = Intrinsics(0.8 * width, 0.8 * width, (width - 1) / 2, (height - 1) / 2, width, height)
    return RgbdFrame(rgb, np.full((height, width), 4, np.float32), camera, 77, 'optical')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return write_with_parts(tmp_path_factory.mktemp('parts') / 'tiny')


@pytest.fixture(scope='module')
def segmenter(folder):
    with Segmenter(folder, num_threads=1) as opened:
        yield opened


def test_the_bundle_holds_a_bundle_for_each_modality(folder):
    bundle = load_bundle(folder)
    assert list(bundle.single_sensor) == ['rgb', 'hha']
    assert bundle.sensors == ('rgb', 'depth')
    assert bundle.mean_iou == {'rooms_test': 0.347}
    for modality, part in bundle.single_sensor.items():
        assert part.path == folder / f'{modality}_only'
        assert list(part.inputs) == [modality]
        assert part.mean_iou == {'rooms_test': MEAN_IOU[modality]}
        assert part.sensors == (SENSOR[modality],)
        assert bundle.alone(SENSOR[modality]) is part
        assert part.alone(SENSOR[modality]) is part
    assert bundle.single_sensor['rgb'].alone('depth') is None


def test_a_bundle_without_parts_answers_from_both_alone(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    assert bundle.single_sensor == {}
    assert bundle.alone('rgb') is bundle.alone('depth') is None


def test_parts_take_the_size_that_the_bundle_takes(tmp_path):
    bundle = load_bundle(write_with_parts(tmp_path / 'open', open_sizes=True)).resized(160, 96)
    sizes = {name: part.input_size for name, part in bundle.single_sensor.items()}
    assert sizes == {'rgb': (160, 96), 'hha': (80, 48)}
    with Segmenter(bundle) as opened:
        for sensor in ('rgb', 'depth'):
            assert opened.segment(room(), only=sensor).labels.shape == (96, 128)


def test_parts_are_no_bundles_of_the_list_but_have_a_name(folder, monkeypatch):
    monkeypatch.setenv('RGBD_FUSION_SEG_MODELS', str(folder.parent))
    assert [f for f in list_bundles() if folder in (f, *f.parents)] == [folder]
    assert load_bundle('tiny/rgb_only').path == folder / 'rgb_only'
    with pytest.raises(BundleError, match="called 'tiny/none'"):
        load_bundle('tiny/none')


def without_folder(bundle: Path):
    shutil.rmtree(bundle / 'rgb_only')


def with_other_weights(bundle: Path):
    shutil.rmtree(bundle / 'rgb_only')
    network = tiny_network(modalities=('rgb',))
    network.producer_name = 'another export'
    write_bundle(bundle / 'rgb_only', tiny_card(modalities=('rgb',)), network)


def of_other_classes(bundle: Path):
    change_card(bundle / 'rgb_only', classes=tiny_card()['classes'][::-1])


def of_another_modality(bundle: Path):
    shutil.rmtree(bundle / 'rgb_only')
    shutil.copytree(bundle / 'hha_only', bundle / 'rgb_only')


def fused(bundle: Path):
    form = {'width': 64, 'height': 48, 'hha': False, 'base': {'name': 'a', 'sha256': 'b'}}
    change_card(bundle / 'rgb_only', fused=form)


def damaged(bundle: Path):
    (bundle / 'rgb_only' / 'model.onnx').write_bytes(b'')


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (without_folder, 'lacks rgb_only, its part for rgb alone; copy it whole'),
        (with_other_weights, 'has other weights than its card names'),
        (of_other_classes, 'tells other classes apart'),
        (of_another_modality, 'sees hha, not rgb alone'),
        (fused, 'is fused'),
        (damaged, 'rgb_only/model.onnx does not match its card'),
    ],
)
def test_a_part_that_does_not_belong_is_refused_in_a_sentence(folder, tmp_path, spoil, words):
    spoil(bundle := Path(shutil.copytree(folder, tmp_path / 'bad')))
    with pytest.raises(BundleError, match=words) as caught:
        load_bundle(bundle)
    assert '\n' not in str(caught.value)
    assert str(bundle) in str(caught.value)


@pytest.mark.parametrize(
    ('entry', 'words'),
    [
        ([], "unusable entry 'single_sensor'"),
        ({'sound': {'folder': 'rgb_only', 'sha256': 'a'}}, r"'single_sensor': \['sound'\]"),
        ({'rgb': {'folder': '../tiny', 'sha256': 'a'}}, "entry 'single_sensor.rgb.folder'"),
        ({'rgb': {'folder': 'rgb_only'}}, "lacks the entry 'single_sensor.rgb.sha256'"),
        ({'rgb': 'rgb_only'}, "lacks the entry 'single_sensor.rgb.folder'"),
    ],
)
def test_an_unusable_entry_is_named(folder, tmp_path, entry, words):
    change_card(bundle := Path(shutil.copytree(folder, tmp_path / 'bad')), single_sensor=entry)
    with pytest.raises(BundleError, match=words):
        load_bundle(bundle)


def test_hashes_may_be_in_capitals(folder, tmp_path):
    bundle = Path(shutil.copytree(folder, tmp_path / 'capitals'))
    hashes = {
        name: part.weights_sha256 for name, part in load_bundle(folder).single_sensor.items()
    }
    entries = {n: {'folder': f'{n}_only', 'sha256': s.upper()} for n, s in hashes.items()}
    change_card(bundle, single_sensor=entries)
    loaded = load_bundle(bundle).single_sensor
    assert {name: part.weights_sha256 for name, part in loaded.items()} == hashes


@pytest.mark.parametrize('modality', ['rgb', 'hha'])
def test_one_sensor_alone_is_answered_as_by_its_bundle_opened_alone(folder, segmenter, modality):
    frame, sensor = room(), SENSOR[modality]
    both = segmenter.segment(frame)
    with Segmenter(folder / f'{modality}_only', num_threads=1) as opened:
        expected = opened.segment(frame)
    result = segmenter.segment(frame, only=sensor)
    assert np.array_equal(result.labels, expected.labels)
    assert np.array_equal(result.confidence, expected.confidence)
    assert not np.array_equal(result.labels, both.labels)
    assert both.sensors == ('rgb', 'depth')
    assert result.sensors == expected.sensors == (sensor,)
    assert (result.stamp_ns, result.frame_id) == (77, 'optical')


@pytest.mark.parametrize('nothing', [0.0, np.nan, np.inf])
def test_a_frame_without_any_depth_is_answered_from_colour_alone(segmenter, nothing):
    frame = room()
    depth = np.full_like(frame.depth, nothing)
    result = segmenter.segment(RgbdFrame(frame.rgb, depth, frame.intrinsics))
    assert result.sensors == ('rgb',)
    assert np.array_equal(result.labels, segmenter.segment(frame, only='rgb').labels)
    for share, sensors in ((0.05, ('rgb',)), (0.2, ('rgb', 'depth'))):
        depth[:, : round(share * depth.shape[1])] = 1.0
        few = RgbdFrame(frame.rgb, depth, frame.intrinsics)
        assert segmenter.segment(few).sensors == sensors


def test_where_nothing_answers_alone_both_go_on_and_asking_is_an_error(tiny_bundle, tmp_path):
    frame = room()
    empty = RgbdFrame(frame.rgb, np.zeros_like(frame.depth), frame.intrinsics)
    with Segmenter(tiny_bundle) as opened:
        assert opened.segment(empty).sensors == ('rgb', 'depth')
        with pytest.raises(BundleError, match='tiny cannot answer from rgb alone'):
            opened.segment(frame, only='rgb')
        with pytest.raises(InputError, match="'' or one of rgb, depth, got 'hha'"):
            opened.segment(frame, only='hha')
    with Segmenter(write_with_parts(tmp_path / 'half', parts=('hha',))) as opened:
        assert opened.segment(empty).sensors == ('rgb', 'depth')
        assert opened.segment(frame, only='depth').sensors == ('depth',)


def test_a_network_of_one_modality_is_its_own_answer(folder):
    frame = room()
    with Segmenter(folder / 'rgb_only') as opened:
        labels = opened.segment(frame).labels
        assert np.array_equal(opened.segment(frame, only='rgb').labels, labels)
        with pytest.raises(BundleError, match='tiny_rgb_only cannot answer from depth alone'):
            opened.segment(frame, only='depth')


def opened_engines(monkeypatch) -> list[str]:
    """Return a list to which the name of every bundle is added whose engine is opened."""
    names = []

    def open_engine(bundle, *args, **options):
        names.append(bundle.name)
        return engine.open_engine(bundle, *args, **options)

    monkeypatch.setattr('rgbd_fusion_seg.segmenter.open_engine', open_engine)
    return names


def test_parts_are_opened_when_needed_or_in_advance_and_closed_with_the_rest(folder, monkeypatch):
    names = opened_engines(monkeypatch)
    with Segmenter(folder) as lazy:
        lazy.warm_up()
        assert names == ['tiny']
        for _ in range(2):
            lazy.segment(room(), only='depth')
        assert names == ['tiny', 'tiny_hha_only']
    for sensor in ('rgb', 'depth'):  # one that was open, one that was not
        with pytest.raises(EngineError, match='closed'):
            lazy.segment(room(), only=sensor)
    names.clear()
    with Segmenter(folder, preload_single_sensor=True) as eager:
        eager.warm_up()
        eager.segment(room(), only='rgb')
        assert names == ['tiny', 'tiny_rgb_only', 'tiny_hha_only']


def test_a_part_that_cannot_be_opened_leaves_no_engine_open(folder, monkeypatch):
    opened, real = {}, engine.open_engine

    def open_engine(bundle, *args, **options):
        if bundle.name == 'tiny_hha_only':
            raise EngineError('out of memory')
        opened[bundle.name] = real(bundle, *args, **options)
        return opened[bundle.name]

    monkeypatch.setattr('rgbd_fusion_seg.segmenter.open_engine', open_engine)
    with pytest.raises(EngineError, match='out of memory'):
        Segmenter(folder, preload_single_sensor=True)
    assert list(opened) == ['tiny', 'tiny_rgb_only']
    for left in opened.values():
        with pytest.raises(EngineError, match='is closed'):
            left.run({})


def test_parts_take_the_options_of_the_whole(folder):
    frame = room()
    with Segmenter(folder, 'onnxruntime', min_confidence=200, num_threads=1) as opened:
        result = opened.segment(frame, only='rgb')
        assert opened.engine_names_alone == {'rgb': opened.engine_name}
    assert ((result.labels == 255) == (result.confidence < 200)).all()
    assert (result.labels == 255).any()


def test_an_engine_of_a_part_that_fails_gives_way_and_the_whole_goes_on(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr('rgbd_fusion_seg.engine.BACKENDS', dict(engine.BACKENDS))
    monkeypatch.setattr(stand_in_engine, 'BACKENDS', engine.BACKENDS)
    stand_in_engine.install()
    monkeypatch.setattr(
        stand_in_engine, 'open_engine', lambda b, **_: stand_in_engine.StandInEngine(b)
    )
    copy, told = Path(shutil.copytree(folder, tmp_path / 'tiny')), []
    with Segmenter(copy, on_step_down=told.append, preload_single_sensor=True) as opened:
        expected = opened.segment(room(), only='rgb').labels
        assert told == []
        (copy / 'rgb_only' / 'device_lost').touch()
        for _ in range(2):
            assert np.array_equal(opened.segment(room(), only='rgb').labels, expected)
        assert [s.reason for s in told if s.backend == 'tensorrt'] == [
            'the device of the stand-in was lost'
        ]
        assert opened.engine_name == 'tensorrt (stand-in)'
        assert opened.step_downs == ()
        assert opened.segment(room()).sensors == ('rgb', 'depth')


def test_a_new_engine_of_the_whole_leaves_the_parts_alone(folder):
    bundle = load_bundle(folder)
    with Segmenter(bundle) as opened:
        before = opened.segment(room(), only='rgb').labels
        opened.replace_engine(new := engine.open_engine(bundle, 'onnxruntime', num_threads=1))
        assert np.array_equal(opened.segment(room(), only='rgb').labels, before)
        opened.segment(room())
        assert opened.engine is new


def test_fused_bundles_keep_their_parts(tmp_path):
    base = load_bundle(write_with_parts(tmp_path / 'open', open_sizes=True)).resized(128, 96)
    whole = fuse(base, tmp_path / 'fused', (160, 120))
    sizes = {name: part.input_size for name, part in whole.single_sensor.items()}
    assert sizes == {'rgb': (128, 96), 'hha': (64, 48)}
    frame = room(120, 160)
    empty = RgbdFrame(frame.rgb, np.zeros_like(frame.depth), frame.intrinsics)
    with Segmenter(base) as split, Segmenter(whole) as opened:
        for sensor in ('rgb', 'depth'):
            expected = split.segment(frame, only=sensor)
            assert np.array_equal(opened.segment(frame, only=sensor).labels, expected.labels)
        assert opened.segment(empty).sensors == ('rgb',)


def test_the_doctor_tells_what_a_bundle_answers_from(folder, monkeypatch):
    monkeypatch.setenv('RGBD_FUSION_SEG_MODELS', str(folder.parent))
    (found,) = [f for f in doctor._bundles() if f.name == 'tiny']
    assert 'alone from rgb or depth' in found.text


def test_readings_are_finite_and_in_front_of_the_camera():
    for width, height in ((640, 480), (50, 30), (1, 1)):
        assert not has_few_readings(np.full((height, width), 2.0, np.float32))
        for nothing in (0.0, -1.0, np.nan, np.inf):
            assert has_few_readings(np.full((height, width), nothing, np.float32))


@pytest.mark.parametrize('size', [(160, 120), (640, 480), (1280, 720), (1920, 1080)])
@pytest.mark.parametrize(('share', 'few'), [(0.12, False), (0.08, True)])
def test_a_tenth_of_the_image_is_enough(size, share, few):
    width, height = size
    depth = np.zeros((height, width), np.float32)
    depth[:, : round(share * width)] = 2.0
    assert has_few_readings(depth) == few


@pytest.mark.parametrize(('step', 'first'), [(2, 1), (4, 0), (4, 2), (4, 3)])
def test_sparse_depth_all_over_the_image_is_not_few(step, first):
    """As of a small depth camera that is registered to a large colour image."""
    depth = np.full((480, 640), np.nan, np.float32)
    depth[first::step, first::step] = 2.0
    assert not has_few_readings(depth)
    assert depth_statistics(depth) == (1 / step**2, 2.0)


def test_the_grey_picture_is_bright_where_it_is_near():
    depth = np.array([[0.5, 3.0, 6.0, 60.0, 0.0, np.nan, np.inf]], np.float32)
    picture = grey_picture(depth)
    assert picture.shape == (1, 7, 3)
    near, middle, far, farther, *holes = picture[0, :, 0].tolist()
    assert near > middle > far == farther > 0
    assert holes == [0, 0, 0]
    assert (picture == picture[..., :1]).all()


def test_gravity_reaches_the_part(folder):
    frame, sideways = room(), np.array([1.0, 0.0, 0.0])
    with Segmenter(folder) as whole, Segmenter(folder / 'hha_only') as part:
        given = whole.segment(frame, sideways, only='depth').labels
        np.testing.assert_array_equal(given, part.segment(frame, sideways).labels)
        assert not np.array_equal(given, part.segment(frame).labels)


def test_the_height_of_the_camera_reaches_the_part(folder):
    frame, level = room(), np.array([0.0, 1.0, 0.0])
    with Segmenter(folder) as whole, Segmenter(folder / 'hha_only') as part:
        given = whole.segment(frame, level, 'depth', 0.5).labels
        np.testing.assert_array_equal(given, part.segment(frame, level, '', 0.5).labels)
        assert not np.array_equal(given, part.segment(frame, level).labels)


def test_parts_that_are_open_are_warmed_up(folder):
    with Segmenter(folder, preload_single_sensor=True) as opened:
        seen = []
        for sensor in ('rgb', 'depth'):
            engine = opened._opened_alone(sensor)._engine
            engine.infer = lambda infer=engine.infer, s=sensor, **x: seen.append(s) or infer(**x)
        opened.warm_up()
    assert seen == ['rgb', 'depth']


def test_an_engine_file_is_that_of_the_whole_alone(folder, monkeypatch):
    given, real = {}, engine.open_engine

    def opening(bundle, backend='auto', **options):
        given[bundle.name] = options
        return real(bundle, 'onnxruntime')

    monkeypatch.setattr('rgbd_fusion_seg.segmenter.open_engine', opening)
    with Segmenter(folder, 'tensorrt', engine_file='x.engine', device=1) as opened:
        opened.segment(room(), only='rgb')
    whole = {'engine_file': 'x.engine', 'device': 1}
    assert given == {'tiny': whole, 'tiny_rgb_only': {'device': 1}}


@pytest.mark.parametrize(
    ('hha', 'depth', 'best'), [(0.2, 0.3, 'depth'), (0.3, 0.2, 'hha'), (0.2, 0.2, 'hha')]
)
def test_of_two_encodings_of_depth_the_better_one_answers(tmp_path, hha, depth, best):
    def bundle(name, modalities, **entries):
        card = tiny_card(modalities=modalities) | entries
        network = tiny_network(modalities=modalities)
        return load_bundle(write_bundle(tmp_path / name, card, network))

    scores = {'hha': hha, 'depth': depth}
    parts = {n: bundle(n, (n,), metrics={'rooms_test': {'mIoU': v}}) for n, v in scores.items()}
    whole = bundle('whole', ('rgb', 'hha', 'depth'))
    assert dataclasses.replace(whole, single_sensor=parts).alone('depth') is parts[best]


def coping(folder: Path, without: tuple[str, ...] = ('rgb', 'depth'), **card) -> Path:
    """Write a bundle of one network that has learnt to do without sensors."""
    return write_bundle(folder, tiny_card() | {'copes_without': [*without]} | card)


@pytest.mark.parametrize('sensor', ['rgb', 'depth'])
def test_a_network_that_copes_sees_the_lost_half_blank(tmp_path, tiny_bundle, sensor, monkeypatch):
    frame, other = room(), room()
    lost = {'rgb': 'depth', 'depth': 'rgb'}[sensor]
    blank = dataclasses.replace(frame, **{lost: np.zeros_like(getattr(frame, lost))})
    getattr(other, lost)[:] += 1
    with Segmenter(tiny_bundle, num_threads=1) as both:
        expected, seen = both.segment(blank), both.segment(frame)
    opened = opened_engines(monkeypatch)
    bundle = load_bundle(coping(tmp_path / 'coping'))
    with Segmenter(bundle, num_threads=1, preload_single_sensor=True) as segmenter:
        segmenter.warm_up()
        results = [segmenter.segment(x, only=sensor) for x in (frame, other)]
        assert segmenter.segment(frame).sensors == ('rgb', 'depth')
        assert np.array_equal(segmenter.segment(frame).labels, seen.labels)
        assert segmenter.engine_names_alone == {}
    for result in results:
        assert result.sensors == (sensor,)
        assert np.array_equal(result.labels, expected.labels)
        assert np.array_equal(result.confidence, expected.confidence)
    assert not np.array_equal(expected.labels, seen.labels)
    assert opened == ['tiny']
    assert bundle.alone(sensor) is bundle.answering_alone(sensor) is bundle


def test_what_copes_answers_frames_without_depth_whatever_is_known_of_the_camera(tmp_path):
    frame = room()
    empty = RgbdFrame(frame.rgb, np.zeros_like(frame.depth), frame.intrinsics)
    with Segmenter(coping(tmp_path / 'coping', ('depth',))) as segmenter:
        expected = segmenter.segment(frame, only='rgb')
        for known in ({}, {'gravity': np.array([0.0, 1.0, 0.2]), 'camera_height': 0.4}):
            result = segmenter.segment(empty, **known)
            assert result.sensors == ('rgb',)
            assert np.array_equal(result.labels, expected.labels)
        with pytest.raises(BundleError, match='tiny cannot answer from depth alone'):
            segmenter.segment(frame, only='depth')


def test_a_network_for_one_sensor_comes_before_one_that_copes(folder, tmp_path):
    change_card(
        copy := Path(shutil.copytree(folder, tmp_path / 'both')), copes_without=['rgb', 'depth']
    )
    bundle = load_bundle(copy)
    assert bundle.alone('rgb') is bundle.single_sensor['rgb']
    half = load_bundle(
        write_with_parts(tmp_path / 'half', parts=('hha',), copes_without=['depth'])
    )
    assert half.alone('rgb') is half
    assert half.alone('depth') is half.single_sensor['hha']


@pytest.mark.parametrize('entry', ['rgb', ['hha'], [3], {'rgb': 1}])
def test_sensors_that_are_none_are_refused(tmp_path, entry):
    folder = write_bundle(tmp_path / 'bad', tiny_card() | {'copes_without': entry})
    with pytest.raises(BundleError, match='copes_without'):
        load_bundle(folder)


def test_what_sees_one_sensor_copes_without_none(tmp_path):
    card = tiny_card(modalities=('rgb',)) | {'copes_without': ['depth']}
    folder = write_bundle(tmp_path / 'bad', card, tiny_network(modalities=('rgb',)))
    with pytest.raises(BundleError, match=r"'copes_without': \['depth'\]"):
        load_bundle(folder)


def test_the_score_of_what_copes_is_that_of_its_answer(folder, tmp_path):
    scores = {
        'rooms_test': {'mIoU': 0.5, 'branches': {'rgb': {'mIoU': 0.3}, 'depth': {'mIoU': 0.2}}},
        'others_test': {'mIoU': 0.6},
        'agreement': {'frames': 8},
    }
    bundle = load_bundle(coping(tmp_path / 'coping', ('depth',), metrics=scores))
    assert bundle.mean_iou_alone('rgb') == {'rooms_test': 0.3}
    assert bundle.mean_iou_alone('depth') == {}
    parts = load_bundle(folder)
    assert parts.mean_iou_alone('depth') == {'rooms_test': MEAN_IOU['hha']}
    assert parts.single_sensor['rgb'].mean_iou_alone('rgb') == {'rooms_test': MEAN_IOU['rgb']}
    assert bundle.resized(64, 48).copes_without == ('depth',)


def test_a_fused_graph_copes_as_its_network_does(tmp_path):
    network, card = with_open_sizes(tiny_network()), tiny_card()
    card |= {
        'copes_without': ['rgb', 'depth'],
        'dynamic': {'batch': False, 'size': True, 'multiple': 16},
    }
    base = load_bundle(write_bundle(tmp_path / 'open', card, network)).resized(128, 96)
    frame = room(120, 160)
    for hha in (False, True):
        whole = fuse(base, tmp_path / f'fused{hha}', (160, 120), hha=hha)
        with Segmenter(base) as split, Segmenter(whole) as opened:
            for sensor in ('rgb', 'depth'):
                expected = split.segment(frame, only=sensor)
                assert np.array_equal(opened.segment(frame, only=sensor).labels, expected.labels)
