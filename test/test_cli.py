from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg import palette
from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.cli import main
from rgbd_fusion_seg.cli.arguments import LARGEST_SEED
from rgbd_fusion_seg.replay.bags import BagFrames
from rgbd_fusion_seg.replay.folders import FolderFrames
from rgbd_fusion_seg.segmenter import Segmenter

ROOT = Path(__file__).resolve().parent.parent
COUNT, HEIGHT, WIDTH = 4, 96, 128


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Frames of a floor and a wall under moving light, so that labels differ between frames."""
    folder = tmp_path / 'recording'
    folder.mkdir()
    rows = np.arange(HEIGHT)[:, None]
    depth = np.minimum(2500, 110_000 / np.maximum(rows - 40, 1)).astype(np.uint16)
    depth = np.broadcast_to(depth, (HEIGHT, WIDTH)).copy()
    depth[:, :9] = 0
    for index in range(COUNT):
        light = 60 + 45 * index + np.arange(WIDTH) // 4
        rgb = np.broadcast_to(light.astype(np.uint8)[None, :, None], (HEIGHT, WIDTH, 3))
        cv2.imwrite(str(folder / f'f{index}.color.png'), rgb)
        cv2.imwrite(str(folder / f'f{index}.depth.png'), depth)
    (folder / 'camera-intrinsics.txt').write_text('110 0 63.5\n0 110 47.5\n0 0 1\n')
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_segment_writes_the_labels_of_the_segmenter(folder, tiny_bundle, tmp_path, capsys):
    output = tmp_path / 'out'
    assert run('segment', folder, '--bundle', tiny_bundle, '--output', output) == 0
    printed = capsys.readouterr().out
    with Segmenter(tiny_bundle) as segmenter:
        results = [segmenter.segment(frame) for frame in FolderFrames(folder)]
    for index, expected in enumerate(results):
        labels = cv2.imread(str(output / f'labels/f{index}.png'), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected.labels)
    assert len({result.labels.tobytes() for result in results}) > 1
    video = cv2.VideoCapture(str(output / 'overlay.mp4'))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == COUNT
    colors = load_bundle(tiny_bundle).colors
    for index, (frame, result) in enumerate(zip(FolderFrames(folder), results, strict=True)):
        expected = palette.overlay(frame.rgb, result.labels, colors)[..., ::-1].astype(float)
        assert np.abs(expected - frame.rgb).mean() > 20
        for shown in (cv2.imread(str(output / f'overlay/f{index}.jpg')), video.read()[1]):
            assert np.abs(expected - shown).mean() < 5  # both are lossy
    assert cv2.imread(str(output / 'contact_sheet.png')) is not None
    table = json.loads((output / 'result.json').read_text())
    assert table['frames'] == COUNT
    assert table['inference, median (ms)'] > 0
    assert 'frames/s, segmentation alone' in printed
    assert str(output / 'overlay.mp4') in printed


def test_segment_knows_where_the_camera_is(folder, tiny_bundle, tmp_path):
    arguments = ('--bundle', tiny_bundle, '--output', tmp_path, '--max-frames', '1')
    given = ('--camera-height', '0.3', '--gravity', '0.5,1,-0.5')
    assert run('segment', folder, *arguments, *given) == 0
    labels = cv2.imread(str(tmp_path / 'labels/f0.png'), cv2.IMREAD_UNCHANGED)
    frame = next(iter(FolderFrames(folder)))
    with Segmenter(tiny_bundle) as segmenter:
        expected = segmenter.segment(frame, np.array([0.5, 1, -0.5]), '', 0.3).labels
        for known in ((None, '', 0.3), (np.array([0.5, 1, -0.5]), '', None)):
            assert (segmenter.segment(frame, *known).labels != expected).any()
    np.testing.assert_array_equal(labels, expected)


UNITS = {
    'depth scale': (
        ('--depth-scale', 1),
        'f0: the median depth is 2500 m',
        '--depth-scale (0.001',
    ),
    'trained range': (('--depth-scale', 0.0001), 'f0: the median depth is 0.25 m', '0.5 to 8.0 m'),
    'intrinsics': (('--intrinsics', '0.11,0.11,63,47'), 'view of 180 by 180 degrees', 'in pixels'),
    'principal point': (('--intrinsics', '110,110,0,0'), 'point (0, 0) outside', 'of 128x96'),
    'camera height': (('--camera-height', 43), 'the camera is said to be 43 m', 'give metres'),
}


@pytest.mark.parametrize('kind', UNITS)
def test_segment_tells_once_of_another_unit(folder, tiny_bundle, tmp_path, kind, caplog):
    given, *words = UNITS[kind]
    arguments = ('--bundle', tiny_bundle, '--no-video', '--output', tmp_path / 'out')
    assert run('segment', folder, *arguments) == 0
    assert not [r for r in caplog.records if r.levelname == 'WARNING']
    assert run('segment', folder, *arguments, *given) == 0
    (warning,) = (r.getMessage() for r in caplog.records if r.levelname == 'WARNING')
    assert all(word in warning for word in words)


def test_segment_tells_of_another_unit_in_a_bag(folder, tiny_bundle, tmp_path, caplog):
    bag = tmp_path / 'bag'
    assert run('bag', folder, bag, '--depth-scale', 0.025) == 0  # 16 bits hold no more
    arguments = ('--bundle', tiny_bundle, '--no-video', '--output', tmp_path / 'out')
    assert run('segment', bag, *arguments) == 0
    (warning,) = (r.getMessage() for r in caplog.records if r.levelname == 'WARNING')
    assert 'the median depth is 62.5 m; 16UC1 must hold millimetres' in warning


def test_units_matter_to_no_label_of_colour_alone(folder, tiny_bundle, tmp_path, caplog):
    parts = pytest.importorskip('single_sensor_bundles', reason='making bundles needs onnx')
    bundle = parts.write_with_parts(tmp_path / 'parts')
    arguments = ('--bundle', bundle, '--no-video', '--output', tmp_path / 'out')
    given = ('--depth-scale', 1, '--intrinsics', '0.11,0.11,63,47', '--camera-height', 43)
    alone = ('--bundle', bundle / 'rgb_only', *arguments[2:])
    for chosen in ((*arguments, '--only', 'rgb'), alone):
        assert run('segment', folder, *chosen, *given) == 0
        assert not [r for r in caplog.records if r.levelname == 'WARNING']
    assert run('segment', folder, *arguments, *given) == 0
    told = [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']
    for words in ('camera is said to be 43 m', 'the median depth is', 'field of view'):
        assert sum(words in warning for warning in told) == 1


def test_segment_labels_from_one_sensor_alone(folder, tiny_bundle, tmp_path, capsys):
    parts = pytest.importorskip('single_sensor_bundles', reason='making bundles needs onnx')
    bundle = parts.write_with_parts(tmp_path / 'parts')
    without_depth = np.zeros((HEIGHT, WIDTH), np.uint16)
    cv2.imwrite(str(folder / 'f1.depth.png'), without_depth)
    for only, path in (('rgb', 'rgb_only'), ('depth', 'hha_only'), ('', '')):
        output = tmp_path / f'out_{only}'
        chosen = ('--only', only) if only else ()
        assert run('segment', folder, '--bundle', bundle, '--output', output, *chosen) == 0
        with Segmenter(bundle / path) as segmenter:
            for index, frame in enumerate(FolderFrames(folder)):
                labels = cv2.imread(str(output / f'labels/f{index}.png'), cv2.IMREAD_UNCHANGED)
                np.testing.assert_array_equal(labels, segmenter.segment(frame).labels)
    output = tmp_path / 'none'
    assert (
        run('segment', folder, '--bundle', tiny_bundle, '--output', output, '--only', 'rgb') == 1
    )
    assert 'tiny cannot answer from rgb alone' in capsys.readouterr().err


@pytest.mark.parametrize('only', ['rgb', 'depth'])
def test_segment_a_recording_of_one_sensor(folder, tmp_path, only, capsys):
    parts = pytest.importorskip('single_sensor_bundles', reason='making bundles needs onnx')
    bundle = parts.write_with_parts(tmp_path / 'parts')
    part = bundle / {'rgb': 'rgb_only', 'depth': 'hha_only'}[only]
    with Segmenter(part) as segmenter:
        expected = [segmenter.segment(frame).labels for frame in FolderFrames(folder)]
    for path in folder.glob({'rgb': '*.depth.png', 'depth': '*.color.png'}[only]):
        path.unlink()
    for chosen in (('--bundle', bundle, '--only', only), ('--bundle', part)):
        output = tmp_path / f'out{len(chosen)}'
        assert run('segment', folder, '--output', output, *chosen) == 0
        for index, labels in enumerate(expected):
            written = cv2.imread(str(output / f'labels/f{index}.png'), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(written, labels)
        video = cv2.VideoCapture(str(output / 'overlay.mp4'))
        assert video.get(cv2.CAP_PROP_FRAME_COUNT) == COUNT
        assert cv2.imread(str(output / 'contact_sheet.png')) is not None
    capsys.readouterr()
    assert run('segment', folder, '--output', tmp_path / 'out', '--bundle', bundle) == 1
    assert f'--only {only}' in capsys.readouterr().err


def test_segment_tells_of_images_without_a_partner(folder, tiny_bundle, tmp_path, capsys):
    bag = tmp_path / 'bag'
    arguments = ('--bundle', tiny_bundle, '--no-video', '--output')
    (folder / 'f3.color.png').unlink()
    assert run('bag', folder, bag) == 0
    (folder / 'f2.depth.png').unlink()
    for path, lone in ((folder, 2), (bag, 0)):
        output = tmp_path / f'out{lone}'
        assert run('segment', path, *arguments, output) == 0
        assert json.loads((output / 'result.json').read_text())['images without a partner'] == lone
        printed = capsys.readouterr().out.splitlines()
        (row,) = (line for line in printed if line.startswith('images without a partner'))
        assert row.split()[-1] == str(lone)


def test_a_second_run_replaces_the_results_of_the_first(folder, tiny_bundle, tmp_path, capsys):
    bag, output = tmp_path / 'bag', tmp_path / 'out'
    assert run('bag', folder, bag) == 0
    arguments = ('--bundle', tiny_bundle, '--output', output)
    assert run('segment', folder, *arguments) == 0
    assert run('segment', bag, *arguments, '--no-video', '--max-frames', 2) == 0
    names = ['frame-000000', 'frame-000001']
    assert sorted(path.stem for path in (output / 'labels').iterdir()) == names
    assert sorted(path.stem for path in (output / 'overlay').iterdir()) == names
    assert not (output / 'overlay.mp4').exists()
    (output / 'labels/truth.png').write_bytes(b'of a user')
    assert run('segment', folder, *arguments) == 1
    assert 'labels/truth.png' in capsys.readouterr().err
    assert (output / 'labels/truth.png').read_bytes() == b'of a user'


def test_bag_gives_the_same_labels_as_its_folder(folder, tiny_bundle, tmp_path):
    bag = tmp_path / 'a_bag'
    assert run('bag', folder, bag, '--rate', 15) == 0
    assert len(BagFrames(bag)) == COUNT
    for path, output in ((folder, tmp_path / 'one'), (bag, tmp_path / 'two')):
        assert run('segment', path, '--bundle', tiny_bundle, '--output', output) == 0
    for index in range(COUNT):
        one = cv2.imread(str(tmp_path / f'one/labels/f{index}.png'), -1)
        two = cv2.imread(str(tmp_path / f'two/labels/frame-{index:06d}.png'), -1)
        np.testing.assert_array_equal(one, two)


def test_labels_of_a_bag_are_told_with_stamps_and_topics(folder, tiny_bundle, tmp_path, capsys):
    bag, output = tmp_path / 'a_bag', tmp_path / 'out'
    assert run('bag', folder, bag, '--rate', 8) == 0
    arguments = ('--bundle', tiny_bundle, '--output', output)
    assert run('segment', bag, *arguments) == 0
    topics = ['/rgb/image_rect_color', '/depth_registered/image_rect', '/rgb/camera_info']
    printed = capsys.readouterr().out
    table = json.loads((output / 'result.json').read_text())
    for role, topic in zip(('colour', 'depth', 'camera info'), topics, strict=True):
        assert table[f'{role} topic'] == topic
        assert topic in printed
        assert topic in (output / 'result.txt').read_text()
    lines = (output / 'frames.txt').read_text().splitlines()[1:]
    expected = [f'frame-{i:06d}\t{frame.stamp_ns}' for i, frame in enumerate(BagFrames(bag))]
    assert lines == expected
    assert len(lines) == COUNT
    assert cv2.VideoCapture(str(output / 'overlay.mp4')).get(cv2.CAP_PROP_FPS) == 8
    # The stamps of a folder's frames are made up; their names are those of its files.
    assert run('segment', folder, *arguments) == 0
    assert (output / 'frames.txt').read_text().splitlines()[1:] == ['f0', 'f1', 'f2', 'f3']
    assert 'colour topic' not in json.loads((output / 'result.json').read_text())
    assert cv2.VideoCapture(str(output / 'overlay.mp4')).get(cv2.CAP_PROP_FPS) == 30


@pytest.mark.parametrize('kind', ['folder', 'bag'])
def test_segment_scores_labels_against_a_truth(folder, tiny_bundle, tmp_path, kind, capsys):
    recording, names = folder, [f'f{i}' for i in range(COUNT)]
    if kind == 'bag':
        recording, names = tmp_path / 'bag', [f'frame-{i:06d}' for i in range(COUNT)]
        assert run('bag', folder, recording) == 0
    output, truth = tmp_path / 'out', tmp_path / 'truth'
    arguments = ('segment', recording, '--bundle', tiny_bundle, '--no-video', '--output', output)
    assert run(*arguments) == 0
    assert 'frames scored' not in json.loads((output / 'result.json').read_text())
    shutil.copytree(output / 'labels', truth)
    capsys.readouterr()
    assert run(*arguments, '--truth', truth) == 0
    assert re.search(r'pixel accuracy \(%\) +100.0\n', capsys.readouterr().out)
    result = json.loads((output / 'result.json').read_text())
    assert result['frames scored'] == COUNT
    perfect = [f'{score} (%)' for score in ('mIoU', 'pixel accuracy', 'mean accuracy')]
    assert [result[score] for score in perfect] == [100] * 3

    for name in names[1:3]:
        (truth / f'{name}.png').unlink()
    right = wrong = 0
    for name, rows in ((names[0], 10), (names[3], 90)):
        labels = cv2.imread(str(truth / f'{name}.png'), cv2.IMREAD_UNCHANGED)
        labels[:rows] = (labels[:rows] + 1) % 4
        labels[rows:, 20:] = 255
        cv2.imwrite(str(truth / f'{name}.png'), labels)
        right, wrong = right + (HEIGHT - rows) * 20, wrong + rows * WIDTH
    assert run(*arguments, '--truth', truth) == 0
    result = json.loads((output / 'result.json').read_text())
    assert (result['frames'], result['frames scored']) == (COUNT, 2)
    assert result['pixel accuracy (%)'] == pytest.approx(100 * right / (right + wrong))
    iou = result['IoU of classes (%)']
    assert list(iou) == ['dark low', 'bright low', 'dark high', 'bright high']
    assert result['mIoU (%)'] == pytest.approx(np.mean([v for v in iou.values() if v is not None]))
    assert 'IoU of classes (%)' in (output / 'result.txt').read_text()


def test_truth_of_a_bag_is_found_by_stamp(folder, tiny_bundle, tmp_path):
    """A run with other topics may have left frames out, and named the others otherwise."""
    bag, one, truth = tmp_path / 'bag', tmp_path / 'one', tmp_path / 'truth'
    assert run('bag', folder, bag) == 0
    arguments = ('segment', bag, '--bundle', tiny_bundle, '--no-video', '--output')
    assert run(*arguments, one) == 0
    mark, *lines = (one / 'frames.txt').read_text().splitlines()
    names, stamps = zip(*(line.split('\t') for line in lines), strict=True)
    truth.mkdir()
    for name, earlier in zip(names[1:], names, strict=False):
        shutil.copy(one / f'labels/{name}.png', truth / f'{earlier}.png')
    listed = [f'{n}\t{s}' for n, s in zip(names, stamps[1:], strict=False)]
    (truth / 'frames.txt').write_text('\n'.join([mark, *listed]))
    found = []
    for _ in range(2):
        assert run(*arguments, tmp_path / 'two', '--truth', truth) == 0
        result = json.loads((tmp_path / 'two/result.json').read_text())
        found.append((result['frames scored'], result['pixel accuracy (%)']))
        (truth / 'frames.txt').unlink(missing_ok=True)
    assert found[0] == (COUNT - 1, 100)
    assert found[1][1] < 100


def test_a_bag_brings_its_truth(folder, tiny_bundle, tmp_path, capsys):
    bag, out = tmp_path / 'bag', tmp_path / 'out'
    assert run('bag', folder, bag) == 0
    arguments = ('segment', bag, '--bundle', tiny_bundle, '--no-video', '--output', out)
    # A depth image holds numbers, too: those of no class are void.
    assert run(*arguments, '--truth-topic', '/depth_registered/image_rect') == 0
    result = json.loads((out / 'result.json').read_text())
    assert result['frames scored'] == COUNT
    assert result['pixel accuracy (%)'] < 100
    for recording, topic, words in (
        (bag, '/labels', 'has no images on /labels'),
        (folder, '/labels', 'a folder of images has no topic /labels'),
    ):
        assert run('segment', recording, *arguments[2:], '--truth-topic', topic) == 1
        assert words in capsys.readouterr().err.splitlines()[-1]


def test_the_contact_sheet_shows_the_truth(folder, tiny_bundle, tmp_path):
    output, truth = tmp_path / 'out', tmp_path / 'truth'
    arguments = ('segment', folder, '--bundle', tiny_bundle, '--no-video', '--output', output)
    assert run(*arguments) == 0
    without = cv2.imread(str(output / 'contact_sheet.png'))
    shutil.copytree(output / 'labels', truth)
    (truth / 'f1.png').unlink()
    assert run(*arguments, '--truth', truth) == 0
    sheet = cv2.imread(str(output / 'contact_sheet.png'))
    assert sheet.shape == (without.shape[0], without.shape[1] + 320 + 8, 3)
    for index in range(COUNT):
        moment = sheet[24 + index * (240 + 8) :][:240]
        colour, _, labels, shown = (moment[:, 8 + i * (320 + 8) :][:, :320] for i in range(4))
        np.testing.assert_array_equal(shown, colour if index == 1 else labels)
        assert (colour != labels).any()


def test_a_truth_that_cannot_be_used_is_told_before_the_work(
    folder, tiny_bundle, tmp_path, capsys
):
    output, truth = tmp_path / 'out', tmp_path / 'truth'
    arguments = ('segment', folder, '--bundle', tiny_bundle, '--output', output, '--truth', truth)
    truth.mkdir()
    cv2.imwrite(str(truth / 'f3.png'), np.zeros((HEIGHT, WIDTH), np.uint8))
    assert run(*arguments, '--max-frames', 3) == 1
    assert 'none of the 3 frames has a truth' in capsys.readouterr().err.splitlines()[-1]
    assert not output.exists()
    assert run(*arguments) == 0
    cv2.imwrite(str(truth / 'f3.png'), np.zeros((HEIGHT, 9), np.uint8))
    assert run(*arguments) == 1
    assert 'f3.png is 9x96 but' in capsys.readouterr().err.splitlines()[-1]


def test_a_truth_is_not_replaced_by_labels(folder, tiny_bundle, tmp_path, capsys):
    output, other = tmp_path / 'out', tmp_path / 'other'
    arguments = ('segment', folder, '--bundle', tiny_bundle, '--no-video')
    assert run(*arguments, '--output', output) == 0
    corrected = output / 'labels/f2.png'
    cv2.imwrite(str(corrected), np.full((HEIGHT, WIDTH), 3, np.uint8))
    before = corrected.read_bytes()
    link = tmp_path / 'link'
    link.symlink_to(output / 'labels')
    for truth in (output / 'labels', link):
        assert run(*arguments, '--output', output, '--truth', truth) == 1
        assert 'is where this run writes its labels' in capsys.readouterr().err.splitlines()[-1]
    assert run(*arguments, '--output', other, '--truth', output / 'labels') == 0
    assert corrected.read_bytes() == before


def test_the_list_of_a_truth_is_not_replaced(folder, tiny_bundle, tmp_path, capsys):
    """Another run may number the frames otherwise, and the next find others in the truth."""
    bag, output = tmp_path / 'bag', tmp_path / 'out'
    assert run('bag', folder, bag) == 0
    arguments = ('segment', bag, '--bundle', tiny_bundle, '--no-video', '--output')
    assert run(*arguments, output) == 0
    truth, frame_list = output / 'truth', output / 'frames.txt'
    shutil.copytree(output / 'labels', truth)
    frame_list.write_text(frame_list.read_text() + 'frame-000009\t9\n')
    before = frame_list.read_bytes()
    link = tmp_path / 'link'
    link.symlink_to(output)
    for place in (output, link):
        assert run(*arguments, place, '--truth', truth) == 1
        told = capsys.readouterr().err.splitlines()[-1]
        assert f'{frame_list}, which tells the frames of the truth {truth}, is replaced' in told
        assert frame_list.read_bytes() == before
    assert run(*arguments, tmp_path / 'other', '--truth', truth) == 0
    shutil.copy(frame_list, truth)
    assert run(*arguments, output, '--truth', truth) == 0
    assert (truth / 'frames.txt').read_bytes() == before
    assert json.loads((output / 'result.json').read_text())['frames scored'] == COUNT
    # Frames of folders are known by their names alone.
    frames, corrected = tmp_path / 'frames', tmp_path / 'frames/truth'
    of_folder = ('segment', folder, *arguments[2:], frames)
    assert run(*of_folder) == 0
    shutil.copytree(frames / 'labels', corrected)
    assert run(*of_folder, '--truth', corrected) == 0


def test_images_of_a_line_of_pixels_are_labelled(folder, tiny_bundle, tmp_path):
    for path in folder.glob('*.png'):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[70:71])
    assert run('segment', folder, '--bundle', tiny_bundle, '--output', tmp_path / 'out') == 0
    assert cv2.imread(str(tmp_path / 'out/labels/f0.png')).shape == (1, WIDTH, 3)


def test_max_frames_and_no_video(folder, tiny_bundle, tmp_path):
    output = tmp_path / 'out'
    arguments = ('--bundle', tiny_bundle, '--output', output, '--max-frames', 2, '--no-video')
    assert run('segment', folder, *arguments) == 0
    assert sorted(path.name for path in (output / 'labels').iterdir()) == ['f0.png', 'f1.png']
    assert not (output / 'overlay.mp4').exists()


def test_options_of_the_camera(folder, tiny_bundle, tmp_path, capsys):
    (folder / 'camera-intrinsics.txt').unlink()
    arguments = ('--bundle', tiny_bundle, '--output', tmp_path / 'out')
    assert run('segment', folder, *arguments) == 1
    given = ('--intrinsics', '110,110,63.5,47.5', '--depth-scale', '0.002')
    bag = tmp_path / 'bag'
    assert run('segment', folder, *arguments, *given) == 0
    assert run('bag', folder, bag, *given) == 0
    capsys.readouterr()
    assert run('segment', bag, *arguments, '--depth-scale', '0.001') == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert 'bag is a bag, whose depth messages tell their unit' in told
    frame = next(iter(BagFrames(bag)))
    assert frame.depth.max() == pytest.approx(5.0)
    assert frame.intrinsics.fx == 110


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['segment', 'absent'], 'there is no folder absent'),
        (['segment', 'absent.mcap'], 'there is no bag absent.mcap'),
        (['segment', '{empty}'], 'no pairs of colour and depth images'),
        (['segment', '{folder}', '--bundle', 'nonsense'], "no bundle at or called 'nonsense'"),
        (['segment', '{folder}', '--depth-topic', '/d'], 'which has no topics'),
        (['segment', '{folder}', '--input-size', '128x96'], 'takes 64x48 images only'),
        (['segment', '{folder}', '--backend', 'abacus'], "no inference backend 'abacus'"),
        (['segment', '{folder}', '--output', '/proc/x'], '/proc/x cannot be used'),
        (['segment', '{folder}', '--truth', '{empty}'], 'which holds no .png; name'),
        (['segment', '{folder}', '--truth', 'absent'], 'there is no folder absent'),
        (['bag', '{empty}', '{empty}/bag'], 'no pairs of colour and depth images'),
        (['bag', '{folder}', '{empty}'], 'exists already'),
        (['bag', '{folder}', '/proc/b'], '/proc/b cannot be written'),
        (['bag', '{folder}', '{empty}/b', '--rate', '1e-12'], 'rate must be 0.001 to 1000'),
        (['demo', '--bundle', 'nonsense', '--output', '{empty}/o'], "called 'nonsense'"),
    ],
)
def test_failures_are_one_sentence(folder, tiny_bundle, tmp_path, capsys, arguments, sentence):
    empty = tmp_path / 'empty'
    empty.mkdir()
    arguments = [text.format(folder=folder, empty=empty) for text in arguments]
    if arguments[0] == 'segment' and '--bundle' not in arguments:
        arguments += ['--bundle', str(tiny_bundle)]
    if arguments[0] == 'segment' and '--output' not in arguments:
        arguments += ['--output', str(tmp_path / 'out')]
    if arguments[0] == 'demo':
        pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')
    assert run(*arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('rgbd-fusion-seg: ')
    assert sentence in error


@pytest.mark.parametrize('private', ['recording', 'out', 'truth', 'result.json'])
def test_a_place_that_may_not_be_looked_into_is_one_sentence(
    folder, tiny_bundle, tmp_path, capsys, monkeypatch, private
):
    stat = Path.stat

    def refusing(path, **options):
        if private in path.parts:
            raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, 'stat', refusing)
    if private == 'result.json':
        assert run('benchmark', tiny_bundle, '--json', tmp_path / private) == 1
    else:
        truth = ('--truth', tmp_path / 'truth') if private == 'truth' else ()
        arguments = ('--bundle', tiny_bundle, '--no-video', '--output', tmp_path / 'out', *truth)
        assert run('segment', folder, *arguments) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith('rgbd-fusion-seg: ')
    assert 'Permission denied' in last
    assert str(tmp_path / private) in last


def test_a_full_disk_is_one_sentence_and_leaves_no_empty_table(
    folder, tiny_bundle, tmp_path, capsys, monkeypatch
):
    def full(path, *_, **__):
        path.touch()
        raise OSError(errno.ENOSPC, 'No space left on device')

    for name in ('write_text', 'write_bytes'):
        whole = getattr(Path, name)
        monkeypatch.setattr(
            Path,
            name,
            lambda path, *given, _whole=whole, **named: (
                full if 'result.' in path.name else _whole
            )(path, *given, **named),
        )
    output = tmp_path / 'out'
    arguments = ('--bundle', tiny_bundle, '--no-video', '--output', output)
    assert run('segment', folder, *arguments) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f'rgbd-fusion-seg: the table {output / "result.txt"} cannot be written')
    assert 'No space left on device' in last
    assert not [path for path in output.iterdir() if 'result' in path.name]


def test_names_that_are_no_unicode(folder, tiny_bundle, tmp_path):
    """Linux takes any bytes; OpenCV crashes on such a path."""
    latin = os.fsdecode(b'caf\xe9')
    for path in [*folder.glob('f0.*'), *folder.glob('f1.*')]:
        path.rename(path.with_name(path.name.replace('f', latin, 1)))
    output = tmp_path / 'out'
    arguments = ('segment', folder, '--bundle', tiny_bundle, '--output')
    for _ in range(2):  # the second removes what the first one left
        assert run(*arguments, output) == 0
        labels = {path.name for path in (output / 'labels').iterdir()}
        assert labels == {f'{latin}0.png', f'{latin}1.png', 'f2.png', 'f3.png'}
    assert b'caf\xe90\n' in (output / 'frames.txt').read_bytes()


def test_a_reader_that_goes_away_is_no_traceback():
    command = [sys.executable, '-m', 'rgbd_fusion_seg.cli', 'doctor']
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert 'BrokenPipe' not in done.stderr


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['segment', 'x', '--gravity', '0,1'], '0,1 is no direction; give it as X,Y,Z, such as'),
        (['segment', 'x', '--gravity', 'abc'], 'abc is no direction; give it as X,Y,Z, such as'),
        (['segment', 'x', '--intrinsics', '1,2'], 'intrinsics are four numbers fx,fy,cx,cy in'),
        (['segment', 'x', '--camera-height', 'abc'], 'abc is not a positive number'),
        (['segment', 'x', '--camera-height', 'nan'], 'nan is not a positive number'),
        (['segment', 'x', '--max-frames', '2.5'], '2.5 is not a whole number above 0'),
        (['segment', 'x', '--max-frames', '0'], '0 is not a whole number above 0'),
        (['benchmark', '--load', 'x'], 'x is not a whole number above 0'),
        (
            ['demo', '--seed', '-1'],
            '-1 is no seed of a room; give a whole number, 0 to 2147483648',
        ),
        (['demo', '--seed', '2147483649'], 'no seed of a room'),
    ],
)
def test_wrong_values_are_told_in_the_words_of_the_option(capsys, arguments, words):
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in last
    assert f'argument {arguments[-2]}: ' in last


def test_the_largest_seed_is_that_of_the_synthetic_camera():
    parameters = pytest.importorskip('rgbd_fusion_seg.ros.parameters', reason='needs ROS 2')
    (seed,) = (f for f in fields(parameters.SyntheticCameraConfig) if f.name == 'seed')
    assert (seed.metadata['minimum'], seed.metadata['maximum']) == (0, LARGEST_SEED)


def test_damaged_image_in_the_middle(folder, tiny_bundle, tmp_path, capsys):
    (folder / 'f2.color.png').write_bytes(b'no image')
    output = tmp_path / 'out'
    assert run('segment', folder, '--bundle', tiny_bundle, '--output', output) == 1
    assert 'f2.color.png is no image' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['dance'],
        ['segment'],
        ['segment', 'x', '--max-frames', '0'],
        ['segment', 'x', '--input-size', '320'],
        ['segment', 'x', '--max-frames', 'many'],
        ['bag', 'x', 'y', '--rate', '-3'],
        ['bag', 'x', 'y', '--depth-scale', 'nan'],
        ['demo', '--seconds', '0'],
        ['segment', 'x', '--camera-height', '0'],
        ['segment', 'x', '--gravity', '0,1'],
        ['segment', 'x', '--gravity', '0,0,0'],
        ['segment', 'x', '--gravity', '0,inf,0'],
    ],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert 'usage: rgbd-fusion-seg' in capsys.readouterr().err


def test_as_a_process(tmp_path):
    """Without a traceback, and with help that does not load the network's libraries."""
    command = [sys.executable, '-m', 'rgbd_fusion_seg.cli']
    failed = subprocess.run(
        [*command, 'segment', str(tmp_path / 'x')], capture_output=True, text=True, cwd=ROOT
    )
    assert failed.returncode == 1
    assert 'Traceback' not in failed.stderr
    code = (
        'import sys; from rgbd_fusion_seg import cli\n'
        'try: cli.main(["--help"])\n'
        'except SystemExit as end: assert end.code == 0\n'
        'print(*[m for m in ("numba", "onnxruntime", "rclpy", "torch") if m in sys.modules])'
    )
    helped = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    for command_name in ('segment', 'bag', 'demo', 'doctor'):
        assert command_name in helped.stdout
    assert helped.stdout.splitlines()[-1] == ''


def test_frames_of_a_bag_are_as_far_apart_as_the_rate_says(folder, tmp_path):
    assert run('bag', folder, tmp_path / 'b', '--rate', 8) == 0
    stamps = [frame.stamp_ns for frame in BagFrames(tmp_path / 'b')]
    assert set(np.diff(stamps)) == {125_000_000}
