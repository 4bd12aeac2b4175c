"""Figures of speed in the documents are those of the result files beside the benchmarks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rgbd_fusion_seg.bundle import load_bundle

ROOT = Path(__file__).resolve().parent.parent
README, ENGINES = (ROOT / name for name in ('README.md', 'docs/engines.md'))


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / f'benchmarks/results/{name}.json').read_text())


def engine(name: str, label: str) -> dict[str, Any]:
    return next(entry for entry in result(name)['engines'] if entry['label'] == label)


def percent(share: float) -> str:
    return f'{100 * share:.0f} %'


def times(ratio: float) -> str:
    return f'{ratio:.0f} times'


def loaded_over_alone(entry: dict[str, Any]) -> float:
    return entry['loaded']['frame_ms']['p90'] / entry['alone']['frame_ms']['p90']


def readme_figures() -> list[str]:
    stages = result('pipeline')['pipeline']['timing']
    around_ms = sum(stages[stage]['median_ms'] for stage in stages.keys() - {'inference'})
    ort, bf16 = (engine('comparison', label) for label in ('onnxruntime', 'openvino bf16'))
    hha, labels = result('hha'), result('pipeline')
    node = result('node')
    ages = node['stream']['age_over_inference_of_the_moment']
    whole, against = hha['640x480']['encode_hha'], hha['640x480_against_plain_numpy']['encode_hha']
    return [
        f'{ort["alone"]["inference_ms"]["p50"]:.0f} ms; OpenVINO takes as long, and '
        f'{bf16["alone"]["inference_ms"]["p50"]:.0f} ms in bf16',
        f'{around_ms:.1f} ms, '
        f'{percent(labels["pipeline"]["share_around_inference"])} of inference',
        f'{whole["median_ms"]:.1f} to {against["median_ms"]:.1f} ms; the formulae of the public '
        f'code in plain numpy {times(hha["speedup_over_plain_numpy_640x480"])} that',
        f'{labels["labels_network"]["timing"]["labels and confidence"]["median_ms"]:.1f} ms; '
        "torch's upsample and argmax "
        + ' that ('.join(
            times(labels[f'labels_{kind}']['timing']['torch interpolate + argmax']['ratio'])
            for kind in ('network', 'smooth')
        ),
        f'within {loaded_over_alone(ort):.1f} times what 90 % take without it',
        f'{node["one_by_one"]["without_transport_over_inference"]:.2f} times inference',
        f'a {node["stream"]["camera_hz"]:.0f} Hz camera outruns it | {ages["p50"]:.1f} times',
    ]


def test_the_readme_tells_what_the_height_of_the_camera_is_worth():
    found = result('low_camera')['bundles']['rfbnet_erfnet_nyu40']
    low = [
        ' and '.join(f'{found[height][kind]["floor_found"]:.0f}' for height in ('0.3 m', '0.6 m'))
        for kind in ('guessed', 'given')
    ]
    told = ' '.join(README.read_text(encoding='utf-8').split())
    assert f'finds {low[0]} % without the height and {low[1]} % with it' in told
    for height in ('0.9 m', '1.2 m'):
        (a, b) = (found[height][kind]['floor_found'] for kind in ('guessed', 'given'))
        assert abs(a - b) < 0.5


def test_the_readme_tells_how_right_the_confidence_is():
    default, small = (
        load_bundle(ROOT / 'models' / name).card['confidence']
        for name in ('rfbnet_erfnet_nyu40', 'rfbnet_erfnet_nyu40_320x240')
    )
    told = ' '.join(README.read_text(encoding='utf-8').split())
    after, before = (100 * default[f'error_{when}'] for when in ('after', 'before'))
    assert (
        f'{after:.1f} points apart (expected calibration error; {before:.1f} without), '
        f'{100 * small["error_after"]:.1f} with the 320x240 bundle' in told
    )


def test_the_readme_tells_what_was_measured():
    told = README.read_text(encoding='utf-8')
    assert [figure for figure in readme_figures() if figure not in told] == []


@pytest.mark.parametrize(
    ('bundle', 'file'),
    [
        ('rfbnet_erfnet_nyu40', 'comparison'),
        ('rfbnet_erfnet_nyu40_320x240', 'comparison_320x240'),
    ],
)
def test_frames_a_second_are_those_of_the_comparison(bundle, file):
    assert result(file)['bundle'] == bundle
    frame_ms = engine(file, 'onnxruntime')['alone']['frame_ms']['p50']
    (row,) = re.findall(rf'^\| `{bundle}`.*', README.read_text(encoding='utf-8'), re.MULTILINE)
    assert f'| {1000 / frame_ms:.1f} |' in row
    results = (ROOT / 'docs/results.md').read_text(encoding='utf-8')
    assert f'{frame_ms:.0f} ms ({1000 / frame_ms:.1f} frames/s)' in results


@pytest.mark.parametrize(
    ('row', 'label'),
    [
        ('ONNX Runtime, float32 (default)', 'onnxruntime'),
        ('OpenVINO, float32', 'openvino fp32'),
        ('OpenVINO, bf16', 'openvino bf16'),
    ],
)
def test_the_comparison_of_engines_is_the_measured_one(row, label):
    (found,) = re.findall(rf'^\| {re.escape(row)}.*', ENGINES.read_text('utf-8'), re.MULTILINE)
    cells = [cell.strip() for cell in found.strip('|').split('|')]
    entry = engine('comparison', label)
    frame, loaded = entry['alone']['frame_ms'], entry['loaded']['frame_ms']
    assert cells[1] == f'{frame["p50"]:.0f}, {frame["p90"]:.0f}'
    assert cells[2] == f'{entry["alone"]["inference_ms"]["p50"]:.0f}'
    assert cells[4] == f'{loaded["p90"]:.0f} ({loaded_over_alone(entry):.1f}x)'
    assert cells[6] == f'{entry["load_s"]:.2f} s'
    assert cells[7].startswith(f'{entry["rss_mib"]:.0f} MiB')
