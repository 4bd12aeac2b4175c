from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbd_fusion_seg.replay.matching import StampMatcher

TOLERANCE_NS = 20_000_000
SECOND = 1_000_000_000


def match(messages: list[tuple[str, int]]) -> tuple[list[tuple[int, int]], int]:
    """Feed (stream, stamp) in the order of arrival; return the pairs of stamps, and unmatched."""
    matcher = StampMatcher(TOLERANCE_NS)
    pairs = []
    for stream, stamp in messages:
        pairs += matcher.add(stamp, stamp, is_partner=stream == 'depth')
    return pairs + matcher.flush(), matcher.unmatched


def matched_at_leisure(colors: list[int], depths: list[int]) -> list[tuple[int, int]]:
    """Match with all stamps at hand: the nearest depth after the one that was used last.

    Those that are nearer to the next colour image are for that.
    """
    pairs, used = [], -1
    ordered = sorted(colors)
    for color, following in itertools.pairwise([*ordered, math.inf]):
        near = [
            d
            for d in depths
            if d > used and abs(d - color) <= min(TOLERANCE_NS, abs(d - following))
        ]
        if near:
            used = min(near, key=lambda d: abs(d - color))
            pairs.append((color, used))
    return pairs


@settings(max_examples=200, deadline=None)
@given(
    colors=st.lists(st.integers(0, 600), unique=True, max_size=25),
    depths=st.lists(st.integers(0, 600), unique=True, max_size=25),
    delay_ms=st.integers(0, 300),
)
def test_arrival_order_makes_no_difference(colors, depths, delay_ms):
    """Depth comes up to 0.3 s later than colour of the same stamp, or the other way round."""
    ms = 1_000_000
    # No two depth images are equally near, which would leave the choice open.
    color_ns = [SECOND + c * ms for c in sorted(colors)]
    depth_ns = [SECOND + d * ms + 100 + d for d in sorted(depths)]
    expected = matched_at_leisure(color_ns, depth_ns)
    for late in (delay_ms * ms, -delay_ms * ms):
        arrivals = [(c, 'color', c) for c in color_ns] + [(d + late, 'depth', d) for d in depth_ns]
        pairs, unmatched = match([(stream, stamp) for _, stream, stamp in sorted(arrivals)])
        assert pairs == expected
        assert unmatched == len(colors) - len(expected)


@pytest.mark.parametrize('rate_hz', [30, 60, 90])
@pytest.mark.parametrize('depth_is_late_ms', [0, 3, 80, -80])
def test_a_lost_image_costs_its_own_pair_alone(rate_hz, depth_is_late_ms):
    """The tolerance is more than a period of a fast camera."""
    draw, arrivals, index_of, both = random.Random(rate_hz), [], {}, 0
    for index in range(2000):
        stamp = SECOND + round(index * SECOND / rate_hz)
        kept = [draw.random() > 0.02 for _ in range(2)]
        both += all(kept)
        for stream, offset in (('color', 0), ('depth', 3_000_000)):
            index_of[stream, stamp + offset] = index
        late = depth_is_late_ms * 1_000_000
        if kept[0]:
            arrivals.append((stamp, 'color', stamp))
        if kept[1]:
            arrivals.append((stamp + late, 'depth', stamp + 3_000_000))
    pairs, _ = match([(stream, stamp) for _, stream, stamp in sorted(arrivals)])
    true = [c for c, d in pairs if index_of['color', c] == index_of['depth', d]]
    assert len(true) == both
    # Where both neighbours were lost the rest of the two frames is taken for a pair.
    assert len(pairs) - len(true) < 0.005 * both


def test_messages_without_a_partner_can_be_kept():
    matcher = StampMatcher(TOLERANCE_NS, keep_unmatched=True)
    pairs = []
    for leading in range(1, 200):
        stamp = leading * SECOND
        pairs += matcher.add(stamp, leading, is_partner=False)
        if leading % 3 == 0:
            pairs += matcher.add(stamp + 1, -leading, is_partner=True)
    pairs += matcher.flush()
    assert pairs == [(n, None if n % 3 else -n) for n in range(1, 200)]
    assert matcher.unmatched == 0


def test_nearest_wins_and_is_used_once():
    ms = 1_000_000
    # The depth image at 92 ms would do for the second one too, but its time is over.
    messages = [('depth', 92), ('color', 100), ('depth', 103), ('color', 110), ('depth', 200)]
    pairs, unmatched = match([(stream, stamp * ms) for stream, stamp in messages])
    assert pairs == [(100 * ms, 103 * ms)]
    assert unmatched == 1


def test_new_recording_gets_nothing_of_the_old_one():
    """A depth image that was left over must not be matched after the stamps start again."""
    half = SECOND // 2
    first = [('color', 2), ('depth', 2), ('color', 6), ('depth', 6), ('depth', 7)]
    second = [('color', 2), ('color', 7)]
    pairs, unmatched = match([(stream, halves * half) for stream, halves in first + second])
    assert pairs == [(2 * half, 2 * half), (6 * half, 6 * half)]
    assert unmatched == 2


def test_colour_of_a_new_recording_waits_for_its_depth():
    """Although the old one had depth of later stamps."""
    first = [('color', 100 * SECOND), ('depth', 100 * SECOND)]
    second = [(stream, s * SECOND) for s in (1, 2, 3) for stream in ('color', 'depth')]
    pairs, unmatched = match(first + second)
    assert pairs == [(s * SECOND, s * SECOND) for s in (100, 1, 2, 3)]
    assert unmatched == 0


def test_memory_is_bounded_when_depth_never_comes():
    matcher = StampMatcher(TOLERANCE_NS)
    for index in range(10_000):
        assert matcher.add(index * 33_000_000, index, is_partner=False) == []
    assert matcher.unmatched > 9_900
    for index in range(10_000, 20_000):
        assert matcher.add(index * 33_000_000, index, is_partner=True) == []
    assert len(matcher._partners) <= 100


@pytest.mark.parametrize('ahead_ms', [30, 3_600_000, -30, -3_600_000])
def test_memory_is_bounded_when_stamps_never_fit(ahead_ms):
    matcher = StampMatcher(TOLERANCE_NS)
    waiting = 0
    for index in range(1000):
        depth = 5000 * SECOND + index * SECOND // 10
        matcher.add(depth + ahead_ms * 1_000_000, object(), is_partner=False)
        matcher.add(depth, object(), is_partner=True)
        waiting = max(waiting, len(matcher._partners) + len(matcher._leading))
    assert waiting <= 123  # sixty of each, and those that have just come
    matcher.flush()
    assert matcher.unmatched == 1000


def test_a_message_half_a_second_late_is_no_new_recording():
    ms, matcher = 1_000_000, StampMatcher(TOLERANCE_NS)
    for stamp in (1000, 2000):
        matcher.add(stamp * ms, stamp, is_partner=False)
    assert matcher.add(1500 * ms, 1500, is_partner=False) == []
    assert matcher.unmatched == 0  # nothing was flushed


@pytest.mark.parametrize(('apart_ns', 'pairs'), [(0, 1), (TOLERANCE_NS, 1), (TOLERANCE_NS + 1, 0)])
@pytest.mark.parametrize('sign', [1, -1])
def test_the_tolerance_is_the_greatest_difference(apart_ns, pairs, sign):
    messages = [('color', SECOND), ('depth', SECOND + sign * apart_ns), ('depth', 2 * SECOND)]
    assert len(match(messages)[0]) == pairs
