from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from rgbd_fusion_seg import demo, palette
from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.demo import DemoOptions, result_rows, run_demo
from rgbd_fusion_seg.errors import InputError

SECOND = 1_000_000_000


@pytest.fixture
def needs_ros():
    pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')


def processes_that_mention(text: str) -> list[str]:
    """Return the command lines of running processes that contain a text."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            line = path.read_bytes().replace(b'\0', b' ').decode()
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


@pytest.mark.slow
def test_end_to_end(needs_ros, tiny_bundle, tmp_path):
    options = DemoOptions(
        output=tmp_path / 'out',
        seconds=3,
        bundle=str(tiny_bundle),
        num_frames=6,
        progress=False,
    )
    result = run_demo(options)
    rows = result.rows
    assert rows['pairs in'] > 0
    assert 0 < rows['masks out'] <= rows['pairs in']
    assert rows['dropped (a newer pair came)'] == rows['pairs in'] - rows['masks out']
    assert rows['frames/s'] == pytest.approx(rows['masks out'] / 3)
    p50, p99 = (rows[f'latency {p}, colour stamp to mask (ms)'] for p in ('p50', 'p99'))
    assert 0 < p50 <= p99
    assert rows['masks compared with the truth'] == rows['masks out']
    assert 0 <= rows['pixel accuracy (%)'] <= 100
    video = cv2.VideoCapture(str(tmp_path / 'out/overlay.mp4'))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == rows['masks out']
    assert cv2.imread(str(tmp_path / 'out/contact_sheet.png')) is not None
    assert all(path.is_file() for path in result.files)
    assert json.loads((tmp_path / 'out/result.json').read_text()) == rows
    assert (tmp_path / 'out/node.log').stat().st_size > 0
    assert processes_that_mention(str(tiny_bundle)) == []


@pytest.mark.slow
def test_node_that_dies_is_told(needs_ros, tiny_bundle, tmp_path):
    options = DemoOptions(
        output=tmp_path / 'out', bundle=str(tiny_bundle), backend='abacus', progress=False
    )
    with pytest.raises(InputError, match='node with exit code 1') as raised:
        run_demo(options)
    assert "no inference backend 'abacus'" in str(raised.value)
    assert processes_that_mention(str(tiny_bundle)) == []


@pytest.mark.parametrize('seconds', [0.0, -1.0, float('nan')])
def test_a_demo_takes_some_time(tmp_path, seconds):
    with pytest.raises(InputError, match=f'must last longer than {seconds} s'):
        run_demo(DemoOptions(output=tmp_path / 'out', seconds=seconds))


class StartedProcesses:
    """Notes what is started, and ends at once."""

    def __init__(self, *_):
        self.commands = {}
        StartedProcesses.latest = self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self, name, module, *arguments, visible=False):
        self.commands[name] = [module, *arguments]

    def ended(self):
        return ['recorder']

    def exit_code(self, _):
        return 0


@pytest.mark.parametrize('progress', [True, False])
def test_what_a_user_chooses_reaches_the_processes(tiny_bundle, tmp_path, monkeypatch, progress):
    monkeypatch.setattr(demo, 'Processes', StartedProcesses)
    options = DemoOptions(seconds=7, backend='openvino', seed=11, num_frames=13, progress=progress)
    demo._record(options, load_bundle(tiny_bundle), {}, tmp_path, print)
    commands = StartedProcesses.latest.commands
    assert {'seed:=11', 'num_frames:=13'} <= set(commands['camera'])
    assert {f'engine.bundle:={tiny_bundle}', 'engine.backend:=openvino'} <= set(commands['node'])
    told = {f'--output={tmp_path}', '--seconds=7', '--num-classes=4'}
    assert told <= set(commands['recorder'])
    assert ('--quiet' in commands['recorder']) is not progress


def test_output_that_cannot_be_written(needs_ros, tiny_bundle, tmp_path):
    (tmp_path / 'file').write_text('')
    options = DemoOptions(output=tmp_path / 'file/out', bundle=str(tiny_bundle), progress=False)
    with pytest.raises(InputError, match='cannot be used for the results'):
        run_demo(options)


@pytest.mark.parametrize('name', ['overlay.mp4', 'result.json', 'node.log', 'demo.txt'])
def test_files_that_no_demo_wrote_are_kept_and_refused(needs_ros, tiny_bundle, tmp_path, name):
    (tmp_path / 'labels').mkdir()
    mine = {tmp_path / name: 'mine', tmp_path / 'labels/a.png': 'labels'}
    for path, text in mine.items():
        path.write_text(text)
    options = DemoOptions(output=tmp_path, bundle=str(tiny_bundle), progress=False)
    with pytest.raises(InputError, match=f'holds {name}, not written by an earlier run') as caught:
        run_demo(options)
    assert '\n' not in str(caught.value)
    assert {path: path.read_text() for path in tmp_path.rglob('*') if path.is_file()} == mine


@pytest.mark.slow
def test_a_demo_that_fails_leaves_the_results_of_the_one_before(needs_ros, tiny_bundle, tmp_path):
    fails = DemoOptions(output=tmp_path, bundle=str(tiny_bundle), backend='abacus', progress=False)
    with pytest.raises(InputError, match='node with exit code 1'):
        run_demo(fails)  # marks the folder as a demo's
    (tmp_path / 'result.json').write_text('of a good one')
    with pytest.raises(InputError, match='node with exit code 1'):
        run_demo(fails)
    assert (tmp_path / 'result.json').read_text() == 'of a good one'


def recording(**changes) -> dict:
    """Five images a tenth of a second apart; two get masks, after 30 and 50 ms."""
    stamps = [SECOND + i * SECOND // 10 for i in range(-1, 6)]
    values = {
        'begin_ns': SECOND,
        'end_ns': SECOND + SECOND // 2,
        'camera_stamps_ns': stamps,
        'mask_stamps_ns': [stamps[0], stamps[1], stamps[3], stamps[6]],
        'mask_arrivals_ns': [
            s + ms * 1_000_000
            for s, ms in zip(
                (stamps[0], stamps[1], stamps[3], stamps[6]), (900, 30, 50, 900), strict=True
            )
        ],
        'moments': [],
        'matrix': [[6, 2, 0], [1, 1, 0]],
        'compared': 2,
    }
    return {**values, **changes}


def test_table_counts_the_recorded_span_alone():
    rows = result_rows(recording())
    assert rows['seconds'] == pytest.approx(0.5)
    assert rows['pairs in'] == 5
    assert rows['masks out'] == 2
    assert rows['dropped (a newer pair came)'] == 3
    assert rows['frames/s'] == pytest.approx(4)
    assert rows['latency p50, colour stamp to mask (ms)'] == pytest.approx(40)
    assert rows['latency p99, colour stamp to mask (ms)'] == pytest.approx(49.8)
    assert rows['pixel accuracy (%)'] == pytest.approx(70)
    iou = 100 * (6 / 9 + 1 / 4) / 2
    assert rows['mIoU against the synthetic truth (%)'] == pytest.approx(iou)


def test_images_that_only_the_recorder_lost_are_counted_by_their_masks():
    stamps = recording()['camera_stamps_ns']
    rows = result_rows(recording(camera_stamps_ns=[stamps[1], *stamps[4:]]))
    assert (rows['pairs in'], rows['masks out']) == (4, 2)
    assert rows['dropped (a newer pair came)'] == 2


def test_table_without_masks_or_truth():
    rows = result_rows(
        recording(mask_stamps_ns=[], mask_arrivals_ns=[], matrix=[[0, 0, 0], [0, 0, 0]])
    )
    assert rows['masks out'] == 0
    assert rows['pairs in'] == rows['dropped (a newer pair came)'] == 5
    assert rows['latency p50, colour stamp to mask (ms)'] is None
    assert np.isnan(rows['mIoU against the synthetic truth (%)'])


@pytest.fixture
def moments(tmp_path):
    """Four moments of flat colours, of which the first overlay came before any true labels."""
    stamps = [SECOND + index for index in range(4)]
    for index, stamp in enumerate(stamps):
        for place, kind in enumerate(('color', 'depth', 'overlay')):
            picture = np.full((240, 320, 3), 60 * place + 10 * index, np.uint8)
            cv2.imwrite(str(tmp_path / f'{stamp}.{kind}.jpg'), picture)
        if index:
            truth = np.full((240, 320), 2, np.uint8)
            cv2.imwrite(str(tmp_path / f'{stamp}.truth.png'), truth)
    # One mask was of class 1 where class 2 was right; class 3 is rare.
    matrix = np.zeros((4, 5), int)
    matrix[2, 1], matrix[2, 3] = 5000, 1
    return recording(moments=stamps[::-1], matrix=matrix.tolist())


def test_the_video_shows_the_moments_in_their_order(moments, tiny_bundle, tmp_path):
    path, _ = demo._write_pictures(moments, tmp_path, tmp_path, load_bundle(tiny_bundle))
    video = cv2.VideoCapture(str(path))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(4 / 0.5)
    for index in range(4):
        frame = video.read()[1]
        assert frame.shape == (240, 960, 3)
        for place in range(3):
            part = frame[:, 320 * place + 20 : 320 * place + 300].mean()
            assert part == pytest.approx(60 * place + 10 * index, abs=4)
    assert not video.read()[0]


def test_the_sheet_shows_moments_with_their_truth(moments, tiny_bundle, tmp_path):
    bundle = load_bundle(tiny_bundle)
    _, path = demo._write_pictures(moments, tmp_path, tmp_path, bundle)
    sheet = cv2.imread(str(path))[..., ::-1]
    rows = [sheet[24 + 248 * row :][:240] for row in range(3)]
    for index, row in enumerate(rows, start=1):
        color = np.full((1, 1, 3), 10 * index, np.uint8)
        truth = palette.overlay(color, np.full((1, 1), 2, np.uint8), bundle.colors)[0, 0]
        for place, shade in enumerate((10 * index, 60 + 10 * index, 120 + 10 * index, truth)):
            shown = row[:, 8 + 328 * place :][:, :320].mean(axis=(0, 1))
            np.testing.assert_allclose(shown, np.broadcast_to(shade, 3), atol=4)
    told = [(sheet == color).all(axis=2).sum() > 100 for color in bundle.colors]
    assert told == [False, True, True, False]


def test_a_sheet_without_any_truth(moments, tiny_bundle, tmp_path):
    for path in tmp_path.glob('*.truth.png'):
        path.unlink()
    _, path = demo._write_pictures(moments, tmp_path, tmp_path, load_bundle(tiny_bundle))
    four_moments = 24 + 4 * 248
    assert cv2.imread(str(path)).shape[0] == four_moments


def test_a_demo_without_overlays_tells_where_to_look(tiny_bundle, tmp_path):
    with pytest.raises(InputError, match='no overlay did; look at node'):
        demo._write_pictures(recording(), tmp_path, tmp_path, load_bundle(tiny_bundle))
