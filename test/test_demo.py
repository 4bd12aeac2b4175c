from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

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
        'matrix': [[6, 2, 0], [0, 0, 0]],
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
    assert rows['pixel accuracy (%)'] == pytest.approx(75)
    assert rows['mIoU against the synthetic truth (%)'] == pytest.approx((75 + 0) / 2)


def test_table_without_masks_or_truth():
    rows = result_rows(
        recording(mask_stamps_ns=[], mask_arrivals_ns=[], matrix=[[0, 0, 0], [0, 0, 0]])
    )
    assert rows['masks out'] == 0
    assert rows['latency p50, colour stamp to mask (ms)'] is None
    assert np.isnan(rows['mIoU against the synthetic truth (%)'])
