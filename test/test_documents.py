"""Figures of speed in the documents are those of the result files beside the benchmarks.

What docs/interfaces.md lists is what the code has: topics, keys of /diagnostics, files, variables.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from rgbd_fusion_seg.benchmark.compare import graph_sha256
from rgbd_fusion_seg.bundle import load_bundle

ROOT = Path(__file__).resolve().parent.parent
README, ENGINES = (ROOT / name for name in ('README.md', 'docs/engines.md'))
INTERFACES = ROOT / 'docs/interfaces.md'
NAMES = re.compile(r'\b(SENSOR|BACKEND|TOPIC|REASON|STAGE|N)\b')
"""What stands for names in the keys of /diagnostics."""
OF_OTHERS = {'RANK', 'LOCAL_WORLD_SIZE', 'WORLD_SIZE'}
"""Environment variables that torchrun sets and nobody else needs to know."""


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


def test_the_readme_tells_what_becomes_of_stereo_depth():
    found = result('stereo')['bundles']['rfbnet_erfnet_nyu40']
    names = ('Kinect', 'stereo', 'stereo, height and gravity given')
    kinect, stereo, given = (found[name]['pixel_accuracy'] for name in names)
    told = ' '.join(README.read_text(encoding='utf-8').split())
    assert (
        f'{kinect:.0f} % of the pixels right with the depth of a synthetic Kinect, {stereo:.0f} % '
        f'with that of semi-global matching, {given:.0f} % where height and gravity are given'
        in told
    )
    assert found['stereo']['mIoU'] > found['stereo, lowest reading']['mIoU']


def test_the_documents_tell_what_becomes_of_poor_and_failing_sensors():
    found = result('sensors')
    default, before, small, small_before = found['rows']
    shipped = [load_bundle(ROOT / 'models' / row['bundle']) for row in (default, small)]
    assert [row['weights_sha256'] for row in (default, small)] == [
        bundle.weights_sha256 for bundle in shipped
    ]
    told = ' '.join(README.read_text(encoding='utf-8').split())
    names = (
        'as in the data set', 'stereo, semi-global matching', 'no depth in the left half',
        'no depth', 'colour in dim light', 'colour at night', 'no colour',
    )  # fmt: skip
    own, stereo, half, no_depth, dim, night, no_colour = (
        f'{default["sensors"][name]["pixel_accuracy"]:.0f} %' for name in names
    )
    assert (
        f"{own} right with the data's own depth, {stereo} with that of a simulated stereo pair, "
        f'{half} where half of the picture has no depth, as in the sun, {no_depth} without any, '
        f'{dim} with colour as in dim light, {night} as at night and {no_colour} without colour'
        in told
    )
    results = (ROOT / 'docs/results.md').read_text(encoding='utf-8')
    for name, share in found['pixels_with_a_reading'].items():
        cells = [row['sensors'][name] for row in (default, before, small, small_before)]
        figures = ' | '.join(f'{x["mIoU"]:.1f} / {x["pixel_accuracy"]:.1f}' for x in cells)
        assert f'| {name} | {share:.0f} % | {figures} |' in results


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


def test_training_has_the_throughput_that_was_measured():
    told = ' '.join((ROOT / 'docs/training.md').read_text(encoding='utf-8').split())
    networks = result('training')['networks']
    rfbnet, encoder, adapnetpp, ssma = (
        f'{100 * networks[name]["throughput_against_bare"]:.0f} %'
        for name in ('rfbnet_erfnet', 'erfnet_encoder', 'adapnetpp', 'ssma_adapnetpp')
    )
    assert (
        f"has {rfbnet} of the throughput of RFBNet's bare forward and backward pass, {encoder} of "
        f"the ERFNet encoder's, {adapnetpp} of AdapNet++'s and {ssma} of its SSMA's" in told
    )


def test_the_exchange_costs_what_was_measured():
    told = ' '.join((ROOT / 'docs/networks.md').read_text(encoding='utf-8').split())
    ratio = result('exchange')['inference']['ratio']
    assert f'takes at most {ratio:.2f} times as long as without exchange' in told


@pytest.mark.parametrize(
    ('bundle', 'file'),
    [
        ('rfbnet_erfnet_nyu40', 'comparison'),
        ('rfbnet_erfnet_nyu40_320x240', 'comparison_320x240'),
    ],
)
def test_frames_a_second_are_those_of_the_comparison(bundle, file):
    assert result(file)['bundle'] == bundle
    pytest.importorskip('onnx', reason='graphs are compared with onnx')
    # Other weights in the same graph take the same time.
    weights = load_bundle(ROOT / 'models' / bundle).weights_path
    assert result(file)['graph_sha256'] == graph_sha256(weights)
    frame_ms = engine(file, 'onnxruntime')['alone']['frame_ms']['p50']
    (row,) = re.findall(rf'^\| `{bundle}`.*', README.read_text(encoding='utf-8'), re.MULTILINE)
    assert f'| {1000 / frame_ms:.1f} |' in row
    results = (ROOT / 'docs/results.md').read_text(encoding='utf-8')
    assert f'{frame_ms:.0f} ms ({1000 / frame_ms:.1f} frames/s)' in results


def share_of_peak(backend: str) -> str:
    return (
        f'{100 * result("engines")["share_of_peak"]["2 threads"][backend]["share_of_peak"]:.0f} %'
    )


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
    assert cells[3] == share_of_peak(label.partition(' ')[0]) * (label != 'openvino bf16')
    assert cells[4] == f'{loaded["p90"]:.0f} ({loaded_over_alone(entry):.1f}x)'
    assert cells[6] == f'{entry["load_s"]:.2f} s'
    assert cells[7].startswith(f'{entry["rss_mib"]:.0f} MiB')


def table(section: str) -> list[list[str]]:
    """Return the cells of a table of docs/interfaces.md, without its head."""
    text = INTERFACES.read_text(encoding='utf-8').partition(f'\n## {section}\n')[2]
    rows = re.findall(r'^\|(.*)\|$', text.partition('\n## ')[0], re.MULTILINE)[2:]
    return [[cell.strip() for cell in row.split('|')] for row in rows]


def coded(cell: str) -> list[str]:
    return re.findall(r'`([^`]+)`', cell)


class FakeNode:
    """Notes what is made on it, as topic -> (type, QoS)."""

    def __init__(self):
        self.made = {}

    def resolve_topic_name(self, topic):
        return f'/{topic}'

    def create_lifecycle_publisher(self, msg_type, topic, qos, **_):
        self.made[topic] = msg_type, qos
        return SimpleNamespace(topic_name=topic)

    def create_subscription(self, msg_type, topic, _, qos, **__):
        self.made[topic] = msg_type, qos


def ros_name(msg_type: type) -> str:
    return f'{msg_type.__module__.partition(".")[0]}/{msg_type.__name__}'


def test_the_listed_topics_are_those_of_the_node(tiny_bundle, monkeypatch):
    pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')
    from rclpy.qos import QoSDurabilityPolicy, QoSReliabilityPolicy

    from rgbd_fusion_seg.bundle import load_bundle
    from rgbd_fusion_seg.ros import publishers, stream
    from rgbd_fusion_seg.ros.parameters import OutputConfig

    label_info = type('LabelInfo', (), {'__module__': 'vision_msgs.msg'})
    messages = SimpleNamespace(LabelInfo=label_info)
    monkeypatch.setattr(publishers, '_load_vision_msgs', lambda: messages)
    outputs, inputs = FakeNode(), FakeNode()
    bundle = load_bundle(tiny_bundle)
    publishers.SegmentationPublishers(outputs, bundle, OutputConfig(), print)
    inputs.complain_about_qos = print
    subscriber = SimpleNamespace(_node=inputs, _subscriptions=[])
    for topic, kind in (
        (stream.COLOR_TOPIC, stream.Image),
        (stream.DEPTH_TOPIC, stream.Image),
        (stream.INFO_TOPIC, stream.CameraInfo),
    ):
        stream.Stream._subscribe(subscriber, kind, topic, print)
    for section, node in (('Topics in', inputs), ('Topics out', outputs)):
        listed = {coded(row[0])[0]: row for row in table(section)}
        assert listed.keys() == node.made.keys()
        for topic, (msg_type, qos) in node.made.items():
            assert listed[topic][1] == ros_name(msg_type)
            latched = listed[topic][2].startswith('latched')
            assert qos.depth == (1 if latched else 5)
            assert (qos.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL) == latched
            best_effort = qos.reliability == QoSReliabilityPolicy.BEST_EFFORT
            assert best_effort == (section == 'Topics in')
    example = re.search(r'```json\n(.*?)```', INTERFACES.read_text('utf-8'), re.DOTALL)[1]
    told, meant = json.loads(publishers.label_info_json(bundle)), example.replace(', …', '')
    assert told.keys() == json.loads(meant).keys()
    assert told['classes'][0].keys() == json.loads(meant)['classes'][0].keys()


def keys_of_diagnostics(bundle: Any) -> set[str]:
    """Return every key that a status of the node can have, from the code that makes them."""
    from builtin_interfaces.msg import Time

    from rgbd_fusion_seg.engine import StepDown
    from rgbd_fusion_seg.ros import diagnostics, synchroniser
    from rgbd_fusion_seg.ros.node import SegmentationNode
    from rgbd_fusion_seg.ros.stream import Stream

    class DepthIsLost(synchroniser.Synchroniser):
        left, goes_on_alone = 0, True

    sync = DepthIsLost(
        print, print, topics=('/color', '/depth'), slop_s=0.02, queue_size=5, matcher='builtin'
    )
    stamp = SimpleNamespace(sec=1, nanosec=0)
    for add in (sync.add_color, sync.add_depth):
        add(SimpleNamespace(header=SimpleNamespace(stamp=stamp)))
    health = diagnostics.Health(lambda level, sentence: None)
    health.saw_depth(np.ones((8, 8), np.float32), None)
    for sensors in (('rgb',), ('depth',)):
        timings = dict.fromkeys(('hha', 'preprocess', 'inference', 'postprocess'), 1.0)
        health.published(1.0, 1.0, timings, sensors)
    health.dropped('a newer pair came')
    health.complain('kind', 'a problem')
    stream = SimpleNamespace(sync=sync, _health=health, _info_count=0, lacks_calibration=False)
    stream.counters, stream.complain_about_silence = partial(Stream.counters, stream), lambda: None
    statuses = []
    node = SimpleNamespace(
        health=health,
        config=SimpleNamespace(output=SimpleNamespace(lazy=False)),
        get_clock=lambda: SimpleNamespace(now=lambda: SimpleNamespace(to_msg=Time)),
        get_fully_qualified_name=lambda: '/segmentation_node',
        _complain_about_rivals=lambda: None,
        _topics_of_misfits=(),
        _unknown_parameters={'sync.slop': 'sync.slop_s'},
        _rates=diagnostics.Rates(),
        _builder=SimpleNamespace(progress='10 %'),
        _stream=stream,
        _segmenter=SimpleNamespace(
            engine_name='cpu',
            bundle=bundle,
            engine_names_alone={'rgb': 'cpu', 'depth': 'cpu'},
            step_downs=[StepDown('tensorrt', 'no GPU', False)],
        ),
        _diagnostics=SimpleNamespace(publish=lambda message: statuses.extend(message.status)),
    )
    node._publish_status = partial(SegmentationNode._publish_status, node)
    SegmentationNode._report(node)
    (status,) = statuses
    return {value.key for value in status.values}


def test_the_listed_keys_of_diagnostics_are_those_of_the_node(tiny_bundle):
    pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')
    from rgbd_fusion_seg.bundle import load_bundle

    keys = keys_of_diagnostics(load_bundle(tiny_bundle))
    listed = [key for row in table('/diagnostics') for key in coded(row[0])]
    patterns = {key: re.compile(NAMES.sub('.+', key)) for key in listed}
    assert [k for k in keys if not any(p.fullmatch(k) for p in patterns.values())] == []
    assert [k for k, p in patterns.items() if not any(map(p.fullmatch, keys))] == []


def test_the_listed_reasons_of_drops_are_those_of_the_node():
    pipeline = pytest.importorskip('rgbd_fusion_seg.ros.pipeline', reason='needs ROS 2')
    sources = [ROOT / f'rgbd_fusion_seg/ros/{name}.py' for name in ('pipeline', 'stream')]
    text = '\n'.join(path.read_text(encoding='utf-8') for path in sources)
    used = {*re.findall(r"(?:dropped\(|reason = )'([^']+)'", text), pipeline.CLOCK_JUMPED}
    (row,) = (row for row in table('/diagnostics') if row[0] == '`dropped: REASON`')
    assert {*coded(row[2])} == used


def test_the_listed_files_variables_and_limits_are_those_of_the_code():
    from rgbd_fusion_seg import plausibility
    from rgbd_fusion_seg.replay import folders

    text = ' '.join(INTERFACES.read_text(encoding='utf-8').split())
    for names, ending in ((folders._CALIBRATION_NAMES, ''), (folders._COLOR_FOLDERS, '/')):
        assert ', '.join(f'`{name}{ending}`' for name in names) in text
    (near, far), (narrow, wide) = (
        plausibility.PLAUSIBLE_MEDIAN_M, plausibility.PLAUSIBLE_FIELD_OF_VIEW_DEG
    )  # fmt: skip
    assert f'outside {near:g} to {far:g} m' in text
    assert f'outside {narrow:g} to {wide:g} degrees' in text
    assert f'more than {plausibility.HIGHEST_CAMERA_M:g} m above the floor' in text
    used = set()
    for path in (ROOT / 'rgbd_fusion_seg').rglob('*.py'):
        found = r'environ(?:\.get\(|\.setdefault\(|\[)[\'"](\w+)'
        used |= {*re.findall(found, path.read_text(encoding='utf-8'))}
    listed = {name for row in table('Environment variables') for name in coded(row[0])}
    assert used - OF_OTHERS <= listed


def test_the_range_of_depth_is_that_of_the_shipped_cards():
    for path in (ROOT / 'models').glob('*/model.yaml'):
        near, far = yaml.safe_load(path.read_text(encoding='utf-8'))['depth']['range_m']
        assert f'{near:g} to {far:g} m for the shipped' in INTERFACES.read_text(encoding='utf-8')
