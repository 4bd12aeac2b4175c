from __future__ import annotations

import re
from math import inf
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

from rgbd_fusion_seg.engine import StepDown
from rgbd_fusion_seg.ros import diagnostics
from rgbd_fusion_seg.ros.diagnostics import ERROR, OK, WARN, Health, Rates, make_status
from rgbd_fusion_seg.ros.node import SegmentationNode
from rgbd_fusion_seg.ros.synchroniser import Synchroniser


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(diagnostics, 'time', SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def log():
    return []


@pytest.fixture
def health(clock, log):
    return Health(lambda level, sentence: log.append((level, sentence)))


def values(status):
    return {kv.key: kv.value for kv in status.values}


def test_the_log_is_throttled_but_the_newest_sentence_shown(health, clock, log):
    for second in range(12):
        clock.now = 100.0 + second
        health.complain('sizes', f'sizes differ, frame {second}', ERROR)
    assert [s for _, s in log] == [f'sizes differ, frame {n}' for n in (0, 5, 10)]
    status = make_status('node', 'cpu', health.problems(), 'fine', {})
    assert (status.level, status.message) == (ERROR, 'sizes differ, frame 11')


def test_a_problem_ends_but_is_remembered(health, clock):
    health.complain('old', 'something was wrong')
    clock.now += 60
    status = make_status('node', 'cpu', health.problems(), '30 masks/s', health.snapshot())
    assert (status.level, status.message) == (OK, '30 masks/s')
    assert values(status)['last error'] == 'something was wrong'


def test_a_sticky_problem_stays_until_cleared(health, clock):
    health.complain('qos', 'incompatible', sticky=True)
    clock.now += 1000
    assert make_status('n', '', health.problems(), 'fine', {}).message == 'incompatible'
    health.clear()
    assert make_status('n', '', health.problems(), 'fine', {}).message == 'fine'


def test_endless_variety_of_problems_is_not_kept(health, clock):
    for index in range(500):
        clock.now += 1
        health.complain(f'kind {index}', 'odd')
    assert len(health._problems) <= 60


def test_the_gravest_problem_is_the_message(health, clock):
    health.complain('a', 'grave', ERROR)
    clock.now += 1
    health.complain('b', 'light', WARN)
    status = make_status('node', '', health.problems(), 'fine', {})
    assert status.message == 'grave'
    assert values(status) == {'problem 1': 'grave', 'problem 2': 'light'}


def test_latency_percentiles_and_drops(health):
    for latency in range(1, 101):
        health.published(latency_ms=latency, age_ms=latency + 10, timings={'a': 2.0, 'b': 3.0})
    for _ in range(3):
        health.dropped('too old')
    shown = health.snapshot()
    assert shown['latency p50 ms'] == '50.5'
    assert shown['age p99 ms'] == '109.0'
    assert (shown['a p50 ms'], shown['segmentation p50 ms']) == ('2.0', '5.0')
    assert (shown['masks'], shown['dropped'], shown['dropped: too old']) == ('100', '3', '3')


def test_percentiles_are_of_the_newest_masks(health):
    for milliseconds in [900.0] * 1000 + [4.0] * 300:
        health.published(milliseconds, milliseconds, {'inference': milliseconds})
    shown = health.snapshot()
    for name in ('latency', 'age', 'inference', 'segmentation'):
        assert (shown[f'{name} p50 ms'], shown[f'{name} p99 ms']) == ('4.0', '4.0')
    assert shown['masks'] == '1300'


@pytest.mark.parametrize(
    ('depth', 'words'),
    [
        (np.zeros((48, 64)), 'no reading at all'),
        (np.full((48, 64), np.nan), 'no reading at all'),
        (np.full((48, 64), 2500.0), 'median depth is 2500 m.*16UC1.*millimetres'),
        (np.full((48, 64), 0.0025), '16UC1 must hold millimetres'),
        (np.full((48, 64), 0.4), r'0.40 m, but the network was trained on 0.7 to 8.0 m'),
        (np.pad(np.full((8, 24), 2.0), ((0, 40), (0, 40))), r'readings at 6.2 % of its pixels'),
        (np.full((48, 64), 12.0), r'12.00 m, but the network was trained on 0.7 to 8.0 m'),
    ],
)
def test_implausible_depth(health, log, depth, words):
    health.saw_depth(depth.astype(np.float32), (0.7, 8.0))
    ((_, sentence),) = log
    assert re.search(words, sentence)


def test_plausible_depth_is_no_problem_and_its_holes_are_counted(health, log):
    depth = np.full((480, 640), 2.5, np.float32)
    depth[:, :160] = np.nan
    health.saw_depth(depth, (0.7, 8.0))
    assert log == []
    assert health.snapshot()['valid depth ratio'] == '0.750'


def test_a_network_that_does_not_see_depth_has_no_training_range(health, log):
    health.saw_depth(np.full((48, 64), 12.0, np.float32), None)
    assert log == []
    assert health.snapshot()['valid depth ratio'] == '1.000'


def test_another_clock_is_noticed(health, log):
    health.saw_age(0.1)
    assert log == []
    health.saw_age(3.2e8)
    assert 'are 320000000 s older than the clock of this node' in log[0][1]
    assert 'set use_sim_time' in log[0][1]


def test_stamps_of_the_future_are_newer(health, log):
    health.saw_age(-60.0)
    assert 'are 60 s newer than the clock of this node' in log[0][1]


def test_a_problem_is_shown_as_long_as_its_cause_lasts(health, clock, log):
    health.show('qos', True)
    assert health.problems() == []
    health.complain('qos', 'incompatible', sticky=True)
    for shown in (True, False, True):
        clock.now += 60
        health.show('qos', shown)
        assert [p.sentence for p in health.problems()] == ['incompatible'] * shown
    assert len(log) == 1


def test_a_problem_ends_as_soon_as_its_cause_is_seen_to_end(health):
    health.complain('qos', 'incompatible', sticky=True)
    health.show('qos', False)
    assert health.problems() == []


def test_what_does_not_change_is_logged_once(health, clock, log):
    for _ in range(20):
        clock.now += 1
        health.complain('unrectified', 'no P', log_period_s=inf)
    assert len(log) == 1
    assert [p.sentence for p in health.problems()] == ['no P']
    clock.now += 60
    assert health.problems() == []


def test_what_has_changed_is_logged_again(health, clock, log):
    for second in range(20):
        clock.now += 1
        health.complain('frame', f'in frame {second // 7}', log_period_s=inf)
    assert [sentence for _, sentence in log] == [f'in frame {n}' for n in range(3)]


def test_depth_that_nothing_can_measure_overflows_nothing(health, log):
    with np.errstate(all='raise'):
        health.saw_depth(np.full((48, 64), np.finfo(np.float32).max), (0.7, 8.0))
    assert 'check the unit of the depth publisher' in log[0][1]


def test_only_what_looks_mistyped_is_a_problem():
    unknown = {'publish_tf': '', 'engine.bundel': 'engine.bundle'}
    assert diagnostics.unknown_parameter_values(unknown) == {
        'unknown parameters': 'publish_tf, engine.bundel (did you mean engine.bundle?)'
    }
    (problem,) = diagnostics.unknown_parameter_problems(unknown)
    assert problem.sentence.endswith(': engine.bundel (did you mean engine.bundle?)')
    assert diagnostics.unknown_parameter_problems({'publish_tf': ''}) == []


def test_rates(clock):
    rates = Rates()
    clock.now += 2
    assert rates.update({'masks': 30}) == {'masks Hz': '15.0'}
    clock.now += 0.5
    assert rates.update({'masks': 40}) == {'masks Hz': '20.0'}


def test_a_problem_that_grows_worse_is_shown_as_it_is_now(health):
    for level in (WARN, ERROR):
        health.complain('link', f'level {level[0]}', level)
    status = make_status('node', '', health.problems(), 'fine', {})
    assert (status.level, status.message) == (ERROR, f'level {ERROR[0]}')


def test_of_equally_grave_problems_the_newest_is_the_message(health, clock):
    for kind in ('first', 'second', 'third'):
        clock.now += 1
        health.complain(kind, f'{kind} problem')
    sentences = [problem.sentence for problem in health.problems()]
    assert sentences == ['third problem', 'second problem', 'first problem']


def test_masks_are_counted_by_the_sensor_that_they_rest_on_alone(health):
    for sensors in ((), ('rgb', 'depth'), ('depth',), ('rgb', 'depth'), ('depth',), ('rgb',)):
        health.published(1.0, None, {}, sensors)
    shown = health.snapshot()
    alone = {key: value for key, value in shown.items() if 'alone' in key}
    assert shown['masks'] == '6'
    assert alone == {'masks from depth alone': '2', 'masks from rgb alone': '1'}


def test_what_a_synchroniser_counted_is_told():
    """Three images of colour and one of depth, of which two make a pair 4 ms apart."""
    sync = Synchroniser(
        lambda *_: None, lambda _: None, topics=('/color', '/depth'), matcher='builtin'
    )
    for add, stamp_ms in (
        (sync.add_color, 1000),
        (sync.add_color, 1033),
        (sync.add_depth, 1029),
        (sync.add_color, 1066),
    ):
        stamp = SimpleNamespace(sec=1, nanosec=(stamp_ms - 1000) * 10**6)
        add(SimpleNamespace(header=SimpleNamespace(stamp=stamp)))
    assert diagnostics.synchroniser_values(sync) == {
        'matcher': 'builtin',
        'messages on /color': '3',
        'messages on /depth': '1',
        'pairs': '1',
        'unpaired colour': '2',
        'unpaired depth': '0',
        'resets': '0',
        'stamp difference ms': 'median 4.00, max 4.00',
    }


def test_only_the_unexpected_of_better_backends_is_a_problem():
    """That a laptop has no GPU is none."""
    absent = StepDown('tensorrt', 'there is no GPU', unexpected=False)
    broken = StepDown('openvino', 'it broke', unexpected=True)
    assert diagnostics.step_down_values((absent, broken)) == {
        'not used: tensorrt': 'there is no GPU',
        'not used: openvino': 'it broke',
    }
    (problem,) = diagnostics.step_down_problems((absent, broken))
    assert (problem.sentence, problem.level) == ('openvino is not used: it broke', WARN)
    assert problem.active


@pytest.mark.parametrize(('unexpected', 'level'), [(True, WARN), (False, OK)])
def test_a_step_down_is_logged_as_gravely_as_it_is(log, unexpected, level):
    lost = StepDown('tensorrt', 'it is lost', unexpected)
    running = SimpleNamespace(step_downs=(lost,), engine_name='cpu')
    of_another_engine = SimpleNamespace(step_downs=(), engine_name='cpu')
    for segmenter in (None, running, of_another_engine):
        node = SimpleNamespace(_segmenter=segmenter, log=lambda *entry: log.append(entry))
        SegmentationNode._tell_step_down(node, lost)
    sentence = 'tensorrt is not used: it is lost'
    assert log == [
        (level, sentence), (level, f'{sentence}; cpu takes over'), (level, sentence)
    ]  # fmt: skip
