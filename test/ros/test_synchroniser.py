from __future__ import annotations

import importlib.util
import random
import re
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.ros.synchroniser import BuiltinMatcher, Synchroniser

try:
    from builtin_interfaces.msg import Time  # message_filters insists on it
except ImportError:
    Time = SimpleNamespace

MS = 1_000_000


def message(stamp_ns: int, label: str = ''):
    stamp = Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return SimpleNamespace(header=SimpleNamespace(stamp=stamp), stamp_ns=stamp_ns, label=label)


def run_builtin(arrivals, slop_ns, queue_size):
    pairs = []
    matcher = BuiltinMatcher(
        lambda color, depth: pairs.append((color, depth)), slop_ns=slop_ns, queue_size=queue_size
    )
    for stream, stamp in arrivals:
        matcher.add(stream, stamp, stamp)
    return pairs


def run_brute_force(arrivals, slop, queue_size):
    """The definition, computed anew from the whole history at every arrival.

    A stream's waiting stamps are the newest queue_size of those that were kept and are newer
    than its last paired one.
    """
    pairs = []
    waiting = {0: set(), 1: set()}
    for stream, stamp in arrivals:
        if any(pair[stream] >= stamp for pair in pairs):
            continue
        in_reach = [s for s in waiting[1 - stream] if abs(s - stamp) <= slop]
        if not in_reach:
            waiting[stream] = set(sorted(waiting[stream] | {stamp})[-queue_size:])
            continue
        smallest = min(abs(s - stamp) for s in in_reach)
        partner = min(s for s in in_reach if abs(s - stamp) == smallest)
        pairs.append((stamp, partner) if stream == 0 else (partner, stamp))
        for i in (0, 1):
            waiting[i] = {s for s in waiting[i] if s > pairs[-1][i]}
    return pairs


arrivals = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 60)), max_size=60)


@given(arrivals, st.integers(0, 20), st.integers(1, 5))
@example([(1, 10), (1, 20), (0, 15)], 20, 5)  # of two that are equally near the older one
def test_builtin_is_the_definition(arrivals, slop, queue_size):
    found = run_builtin(arrivals, slop, queue_size)
    assert found == run_brute_force(arrivals, slop, queue_size)
    assert all(abs(c - d) <= slop for c, d in found)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(found))


@given(
    st.lists(
        st.tuples(st.floats(-8, 8), st.floats(0, 20), st.floats(0, 20), st.booleans()),
        min_size=1,
        max_size=40,
    )
)
def test_true_partners_are_found_at_30_hz(frames):
    """Jittered stamps, jittered arrival and lost depth images: never a wrong partner."""
    arrivals, expected = [], []
    for i, (jitter_ms, delay_color, delay_depth, lost) in enumerate(frames):
        color = round(i * 33.3 * MS)
        depth = color + round(jitter_ms * MS)
        arrivals.append((color + delay_color * MS, 0, color))
        if not lost:
            arrivals.append((depth + delay_depth * MS, 1, depth))
            expected.append((color, depth))
    in_order = [(stream, stamp) for _, stream, stamp in sorted(arrivals)]
    assert run_builtin(in_order, slop_ns=round(16.6 * MS), queue_size=10) == expected


def make(matcher='builtin', **options):
    pairs, resets = [], []
    sync = Synchroniser(
        lambda color, depth: pairs.append((color.stamp_ns, depth.stamp_ns)),
        resets.append,
        topics=('/color', '/depth'),
        matcher=matcher,
        **options,
    )
    return sync, pairs, resets


HAS_MESSAGE_FILTERS = importlib.util.find_spec('message_filters') is not None
MATCHERS = [
    'builtin',
    pytest.param(
        'message_filters',
        marks=pytest.mark.skipif(
            not HAS_MESSAGE_FILTERS, reason='message_filters is not installed'
        ),
    ),
]


@pytest.mark.parametrize('matcher', MATCHERS)
class TestBothMatchers:
    @pytest.mark.parametrize('rate_hz', [30, 60, 90])
    @pytest.mark.parametrize('first', [0, 1])
    def test_a_lost_image_costs_its_own_pair_alone(self, matcher, rate_hz, first):
        """Although neighbours of a fast camera are no further apart than the slop."""
        sync, pairs, _ = make(matcher, slop_s=0.02)
        draw, both = random.Random(rate_hz), set()
        for index in range(1000):
            stamp = round(index * 1000 * MS / rate_hz)
            kept = [index < 40 or draw.random() > 0.05 for _ in range(2)]
            if all(kept):
                both.add((stamp, stamp + 2 * MS))
            for stream in (first, 1 - first):
                if kept[stream]:
                    add = (sync.add_color, sync.add_depth)[stream]
                    add(message(stamp + 2 * MS * stream))
        assert set(pairs) == both

    def test_pairs_and_statistics(self, matcher):
        sync, pairs, _ = make(matcher)
        for i in range(5):
            sync.add_color(message(i * 33 * MS))
            if i != 2:
                sync.add_depth(message(i * 33 * MS + 4 * MS))
        assert [c for c, _ in pairs] == [0, 33 * MS, 99 * MS, 132 * MS]
        assert (sync.streams[0].messages, sync.streams[1].messages, sync.pairs) == (5, 4, 4)
        assert list(sync.differences_ms) == pytest.approx([4.0] * 4)
        assert sync.matcher_name == matcher

    def test_looped_bag_starts_afresh(self, matcher):
        sync, pairs, resets = make(matcher)
        for start in (50, 0):
            for i in range(3):
                stamp = start * 1000 * MS + i * 33 * MS
                sync.add_color(message(stamp))
                sync.add_depth(message(stamp))
        assert len(pairs) == 6
        # Colour and depth each jump once; the second jump may cost no pair.
        assert 'stamps of /color jumped back by 50' in resets[0]
        assert pairs[3:] == [(s, s) for s in (0, 33 * MS, 66 * MS)]

    def test_no_pair_across_a_jump(self, matcher):
        sync, pairs, resets = make(matcher)
        sync.add_color(message(1000 * MS))
        sync.add_depth(message(2000 * MS))
        sync.add_depth(message(1000 * MS))
        assert len(resets) == 1
        assert pairs == []

    def test_pairs_never_go_back(self, matcher):
        sync, pairs, resets = make(matcher)
        for stamp in (100, 130):
            sync.add_color(message(stamp * MS))
        for stamp in (130, 100):
            sync.add_depth(message(stamp * MS))
        assert pairs == [(130 * MS, 130 * MS)]
        assert resets == []


@pytest.mark.skipif(HAS_MESSAGE_FILTERS, reason='message_filters is installed')
def test_without_message_filters():
    assert make('auto')[0].matcher_name == 'builtin'
    with pytest.raises(InputError, match=r'message_filters cannot be used.*builtin'):
        make('message_filters')


def test_unknown_matcher_lists_the_known_ones():
    with pytest.raises(InputError, match='auto, message_filters, builtin'):
        make('exact')


class TestComplaint:
    def after(self, monkeypatch, seconds):
        import rgbd_fusion_seg.ros.synchroniser as module

        now = module.time.monotonic() + seconds
        monkeypatch.setattr(module, 'time', SimpleNamespace(monotonic=lambda: now))

    def test_none_before_its_time(self):
        sync, _, _ = make()
        assert sync.complaint(after_s=3.0) is None

    def test_names_the_topics_never_received(self, monkeypatch):
        sync, _, _ = make()
        self.after(monkeypatch, 4)
        sentence = sync.complaint(3.0)
        assert '/color (never received) and /depth (never received)' in sentence

    def test_names_the_one_that_went_silent(self, monkeypatch):
        sync, _, _ = make()
        sync.add_color(message(0))
        sync.add_depth(message(0))
        self.after(monkeypatch, 4)
        sync.add_color(message(4000 * MS))
        assert sync.complaint(3.0).startswith('no image arrives on /depth (silent for 4 s);')

    def test_tells_how_far_apart_stamps_are(self, monkeypatch):
        sync, _, _ = make(slop_s=0.02)
        self.after(monkeypatch, 4)
        for i in range(4):
            sync.add_color(message(i * 200 * MS))
            sync.add_depth(message(i * 200 * MS + 70 * MS))
        assert 'at least 70.0 ms apart and sync.slop_s allows 20.0 ms' in sync.complaint(3.0)

    def test_tells_of_different_clocks(self, monkeypatch):
        sync, _, _ = make()
        self.after(monkeypatch, 4)
        for i in range(2):
            sync.add_color(message(10**18 + i * MS))
            sync.add_depth(message(10**12 + i * MS))
        assert 'different clocks' in sync.complaint(3.0)

    def test_tells_of_stamps_that_stand_still(self, monkeypatch):
        sync, pairs, _ = make()
        sync.add_color(message(0))
        sync.add_depth(message(0))
        self.after(monkeypatch, 4)
        for _ in range(3):
            sync.add_color(message(0))
            sync.add_depth(message(0))
        assert len(pairs) == 1
        assert 'do not increase' in sync.complaint(3.0)

    @pytest.mark.parametrize('late_ms', [400, 900, 1500])
    def test_tells_what_comes_too_late_and_what_helps(self, monkeypatch, late_ms):
        def play(sync):
            arrivals = [(i * 40, sync.add_color, i * 40) for i in range(150)]
            arrivals += [(i * 40 + late_ms, sync.add_depth, i * 40) for i in range(150)]
            for _, add, stamp_ms in sorted(arrivals, key=lambda a: a[0])[:-60]:
                add(message(stamp_ms * MS))
            return sync

        sync, pairs, _ = make(slop_s=0.02, queue_size=8)
        self.after(monkeypatch, 4)
        sentence = play(sync).complaint(3.0)
        assert pairs == []
        told = re.search(
            r'/depth comes (\d+) ms after .* raise sync.queue_size from 8 to (\d+)$', sentence
        )
        assert abs(int(told[1]) - late_ms) <= 40
        sync, pairs, _ = make(slop_s=0.02, queue_size=int(told[2]))
        play(sync)
        assert len(pairs) > 30

    def test_tells_what_comes_later_than_stamps_are_remembered(self, monkeypatch):
        sync, _, _ = make()
        self.after(monkeypatch, 4)
        for i in range(200):
            sync.add_color(message(i * 33 * MS))
            if i >= 90:
                sync.add_depth(message((i - 90) * 33 * MS))
        assert 'the stamps of /depth are 3.0 s older; their publishers use' in sync.complaint(3.0)

    def test_pairs_that_were_good_before_do_not_count(self, monkeypatch):
        sync, pairs, _ = make(slop_s=0.02)
        for i in range(10):
            sync.add_color(message(i * 100 * MS))
            sync.add_depth(message(i * 100 * MS))
        self.after(monkeypatch, 4)
        for i in range(10, 14):
            sync.add_color(message(i * 100 * MS))
            sync.add_depth(message(i * 100 * MS + 35 * MS))
        assert len(pairs) == 10
        assert 'at least 35.0 ms apart and sync.slop_s allows 20.0 ms' in sync.complaint(3.0)

    def test_stamps_of_before_a_jump_do_not_count(self, monkeypatch):
        sync, pairs, resets = make(slop_s=0.02)
        self.after(monkeypatch, 4)
        for start_ms in (100_000, 0):
            for i in range(4):
                sync.add_color(message((start_ms + i * 200) * MS))
                sync.add_depth(message((start_ms + i * 200 + 70) * MS))
        assert (pairs, len(resets)) == ([], 1)
        assert 'at least 70.0 ms apart' in sync.complaint(3.0)


class Clocked:
    """A synchroniser with a clock that the test sets, and what it hands on."""

    def __init__(self, monkeypatch, answers=(0, 1), lost_after_s=1.0, enough=None):
        import rgbd_fusion_seg.ros.synchroniser as module

        self.now = 100.0
        monkeypatch.setattr(module, 'time', SimpleNamespace(monotonic=lambda: self.now))
        self.handed = []
        self.sync = Synchroniser(
            lambda color, depth: self.handed.append(('both', color.stamp_ns // MS)),
            lambda reason: None,
            topics=('/color', '/depth'),
            matcher='builtin',
            on_alone={
                k: lambda m, k=k: self.handed.append((k, m.stamp_ns // MS)) for k in answers
            },
            lost_after_s=lost_after_s,
            enough=enough,
        )

    def play(self, *arrivals):
        """Take (milliseconds, stream, stamp in milliseconds) each; return what was handed on."""
        self.handed.clear()
        for arrived_ms, stream, stamp_ms in arrivals:
            self.now = 100.0 + arrived_ms / 1e3
            (self.sync.add_color, self.sync.add_depth)[stream](message(stamp_ms * MS))
        return self.handed


@pytest.mark.parametrize('left', [0, 1])
def test_a_stream_is_lost_after_its_time_and_until_a_pair_comes(monkeypatch, left):
    clocked, lost = Clocked(monkeypatch), 1 - left
    assert clocked.play((0, 0, 0), (1, 1, 0)) == [('both', 0)]
    assert clocked.play((100, left, 100), (900, left, 900)) == []
    assert clocked.sync.lost is None
    assert clocked.play((1100, left, 1100), (1200, left, 1200)) == [(left, 1100), (left, 1200)]
    assert clocked.sync.lost == lost
    assert clocked.sync.goes_on_alone
    assert clocked.play((1300, lost, 1300), (1301, left, 1300)) == [('both', 1300)]
    assert clocked.sync.lost is None
    assert clocked.play((1400, left, 1400)) == []


@pytest.mark.parametrize('left', [0, 1])
def test_no_image_is_handed_on_twice_and_stamps_grow(monkeypatch, left):
    """Also where the images that go on come before those that return."""
    clocked = Clocked(monkeypatch)
    arrivals = [(0, 0, 0), (1, 1, 0)]
    for k in range(1, 80):
        arrivals.append((33 * k, left, 33 * k))
        if k > 50:
            arrivals.append((33 * k + 10, 1 - left, 33 * k + 4))
    handed = clocked.play(*arrivals)
    kinds = [kind for kind, _ in handed]
    assert kinds.count(left) > 15
    assert kinds[-25:] == ['both'] * 25
    stamps = [stamp for _, stamp in handed]
    assert all(a < b for a, b in pairwise(stamps))
    used = [stamp // 33 for stamp in stamps]
    assert len(used) == len(set(used))


def test_who_is_lost_may_change_and_a_stream_may_never_have_come(monkeypatch):
    clocked = Clocked(monkeypatch)
    assert clocked.play((900, 0, 900), (2000, 0, 2000)) == [(0, 2000)]
    assert clocked.sync.silence(1) == 'never received'
    assert clocked.play((3000, 1, 3000), (4000, 1, 4000), (4100, 1, 4100)) == [
        (1, 4000),
        (1, 4100),
    ]
    assert clocked.sync.lost == 0
    assert clocked.sync.silence(0) == 'silent for 2 s'
    clocked.now += 5
    assert not clocked.sync.goes_on_alone
    assert '/color (silent for 7 s) and /depth (silent for 5 s)' in clocked.sync.complaint(3.0)


def test_what_cannot_answer_alone_or_is_switched_off_is_not_handed_on(monkeypatch):
    arrivals = (
        (0, 0, 0),
        (1, 1, 0),
        (900, 0, 900),
        (2000, 0, 2000),
        (2100, 0, 2100),
        (2101, 1, 2100),
    )
    clocked = Clocked(monkeypatch, answers=(1,))
    assert clocked.play(*arrivals[:-1]) == [('both', 0)]
    assert clocked.sync.lost == 1
    assert not clocked.sync.goes_on_alone
    assert clocked.play(arrivals[-1]) == [('both', 2100)]
    clocked = Clocked(monkeypatch, lost_after_s=0.0)
    assert clocked.play(*arrivals) == [('both', 0), ('both', 2100)]
    assert clocked.sync.lost is None


def test_one_goes_on_alone_while_the_other_returns_with_stamps_that_do_not_fit(monkeypatch):
    clocked = Clocked(monkeypatch)
    clocked.play((0, 0, 0), (4000, 0, 4000))
    assert clocked.sync.left == 0
    arrivals = ((4100, 1, 90_000), (4133, 0, 4133), (4140, 1, 90_033), (4166, 0, 4166))
    assert clocked.play(*arrivals) == [(0, 4133), (0, 4166)]
    assert clocked.sync.left is None
    assert 'different clocks' in clocked.sync.complaint(3.0)
    assert clocked.play((4200, 1, 4200), (4201, 0, 4200)) == [('both', 4200)]
    assert clocked.sync.lost is None


@pytest.mark.parametrize('last', [0, 1])
@pytest.mark.parametrize('first', [0, 1])
def test_a_pause_of_both_loses_neither(monkeypatch, last, first):
    """A bag that stands still, a machine that was busy; any of them ends and begins."""
    clocked = Clocked(monkeypatch)
    before = [(t + d, stream, t) for t in (0, 20, 40) for d, stream in ((0, 1 - last), (1, last))]
    after = [(9000, first, 9000), (9010, first, 9033), (9020, 1 - first, 9000)]
    handed = clocked.play(*before, *after)
    assert handed == [('both', 0), ('both', 20), ('both', 40), ('both', 9000)]
    assert clocked.sync.lost is None
    # What does not come back is lost all the same, only later.
    arrivals = ((9600, first, 9600), (10_000, first, 10_000), (10_650, first, 10_650))
    assert clocked.play(*arrivals) == [(first, 10_650)]


def test_a_slow_camera_goes_on_alone_too(monkeypatch):
    clocked = Clocked(monkeypatch)
    assert clocked.play((0, 0, 0), (1, 1, 0), (2000, 0, 2000), (2001, 1, 2000)) == [
        ('both', 0),
        ('both', 2000),
    ]
    assert clocked.play((4000, 0, 4000), (6000, 0, 6000)) == [(0, 6000)]


def test_what_returns_is_not_blamed_for_stamps(monkeypatch):
    """Its first image waits for a partner, or belongs to one that was labelled alone."""
    clocked = Clocked(monkeypatch)
    arrivals = [(33 * k, 0, 33 * k) for k in range(1, 200)]
    clocked.play((0, 0, 0), (1, 1, 0), *arrivals)
    assert clocked.sync.lost == 1
    clocked.play((6605, 1, 6600))
    assert clocked.sync.complaint(3.0) is None
    clocked.play((6620, 0, 6600), (6635, 0, 6633), (6638, 1, 6633))
    assert clocked.sync.complaint(3.0) is None


def test_pairs_that_repeat_are_told(monkeypatch):
    """As message_filters makes them where publishers do not stamp; ours makes none."""
    clocked = Clocked(monkeypatch)
    sync = clocked.sync
    sync._matcher = SimpleNamespace(
        allow=lambda slop_ns: None, add=lambda stream, stamp_ns, msg: sync._paired(msg, msg)
    )
    handed = clocked.play(*((40 * k, k % 2, 7) for k in range(150)))
    assert handed == [('both', 7)]
    assert 'do not increase' in sync.complaint(3.0)


def test_stamps_that_jump_back_begin_anew(monkeypatch):
    clocked = Clocked(monkeypatch)
    assert clocked.play((0, 0, 89_000), (2000, 0, 90_000), (2033, 0, 90_033)) == [
        (0, 90_000),
        (0, 90_033),
    ]
    assert clocked.play((2066, 0, 10), (2099, 0, 43)) == [(0, 10), (0, 43)]


def test_a_bag_that_starts_over_after_depth_was_alone_gives_pairs(monkeypatch):
    clocked = Clocked(monkeypatch)
    clocked.play((0, 1, 89_000), (2000, 1, 91_000), (2010, 0, 91_033), (2011, 1, 91_033))
    assert clocked.handed == [(1, 91_000), ('both', 91_033)]
    assert clocked.play((2043, 0, 10), (2044, 1, 10)) == [('both', 10)]


@pytest.mark.parametrize(('back_ms', 'resets'), [(99, 0), (101, 1)])
def test_how_far_back_a_stamp_may_be(back_ms, resets):
    sync, _, told = make()
    sync.add_color(message(1000 * MS))
    sync.add_color(message((1000 - back_ms) * MS))
    assert len(told) == resets


@pytest.mark.parametrize('enough', [0, 1])
def test_what_is_enough_goes_on_without_partners_that_fit(monkeypatch, enough):
    """The other stream arrives all the time, first by another clock, then in step, but late."""
    clocked, other = Clocked(monkeypatch, enough=enough), 1 - enough
    strangers = [
        (t, s, t if s == enough else 10**6 + t) for t in range(0, 3000, 100) for s in (0, 1)
    ]
    alone = clocked.play(*strangers)
    assert alone == [(enough, t) for t in range(1000, 3000, 100)]
    assert clocked.sync.complaint(0.5) is None
    in_step = [
        arrival for t in range(3000, 4000, 100) for arrival in ((t, enough, t), (t + 20, other, t))
    ]
    clocked.sync.reset('the other clock was set')
    both = clocked.play(*in_step)
    assert both == [(enough, 3000)] + [('both', t) for t in range(3100, 4000, 100)]


def test_what_is_enough_is_missed_alone(monkeypatch):
    clocked = Clocked(monkeypatch, enough=1)
    clocked.play((0, 0, 0), (5000, 0, 5000))
    sentence = clocked.sync.complaint(3.0)
    assert sentence.startswith('no image arrives on /depth (never received);')


@pytest.mark.parametrize('enough', [0, 1])
def test_what_is_enough_does_not_go_on_alone_where_that_is_switched_off(monkeypatch, enough):
    clocked = Clocked(monkeypatch, lost_after_s=0.0, enough=enough)
    assert clocked.play((0, enough, 0), (5000, enough, 5000), (9000, enough, 9000)) == []


def test_stamps_of_before_the_loss_are_not_blamed(monkeypatch):
    """Depth that fitted no colour, then was lost, and returns before the colour of its time."""
    clocked = Clocked(monkeypatch)
    arrivals = [(100 * k, 0, 100 * k) for k in range(1, 67)]
    clocked.play((0, 0, 0), (1, 1, 0), (50, 1, 50), *arrivals[:1], (150, 1, 150), *arrivals[1:])
    assert clocked.sync.lost == 1
    clocked.play((6690, 1, 6700))
    assert clocked.sync.complaint(3.0) is None


def test_message_filters_is_told_the_slop_in_seconds(monkeypatch):
    """With a stand-in for it, which no package index has."""
    given = []

    class ApproximateTimeSynchronizer:
        def __init__(self, filters, queue_size, slop):
            given.append((len(filters), queue_size, slop))

        def registerCallback(self, callback):  # noqa: N802 - its name there
            pass

    played = SimpleNamespace(
        ApproximateTimeSynchronizer=ApproximateTimeSynchronizer, SimpleFilter=object
    )
    monkeypatch.setitem(sys.modules, 'message_filters', played)
    sync, _, _ = make('auto', slop_s=0.02, queue_size=7)
    assert sync.matcher_name == 'message_filters'
    assert given == [(2, 7, pytest.approx(0.02))]
