from __future__ import annotations

import json

from rgbd_fusion_seg.replay.report import table_text, write_table

ROWS = {'frames': 12, 'latency (ms)': 12.345, 'mIoU': float('nan'), 'p99': None}


def test_text():
    lines = table_text('a title', ROWS).splitlines()
    assert lines[0] == 'a title'
    assert [line.split() for line in lines[2:-1]] == [
        ['frames', '12'],
        ['latency', '(ms)', '12.3'],
        ['mIoU', '-'],
        ['p99', '-'],
    ]
    assert len({len(line) for line in lines[1:]}) == 1


def test_files(tmp_path):
    text, data = write_table(tmp_path, 'result', 'a title', ROWS)
    assert text.read_text().startswith('a title\n')
    assert json.loads(data.read_text()) == {**ROWS, 'mIoU': None}


def test_further_tables(tmp_path):
    parts = {'IoU': {'wall': 50.0, 'floor': float('nan')}}
    text, data = write_table(tmp_path, 'result', 'a title', ROWS, parts)
    expected = (table_text('a title', ROWS), table_text('IoU', parts['IoU']))
    assert text.read_text() == '{}\n\n{}\n'.format(*expected)
    content = {**ROWS, 'mIoU': None, 'IoU': {'wall': 50.0, 'floor': None}}
    assert json.loads(data.read_text()) == content
