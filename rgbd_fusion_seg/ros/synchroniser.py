"""Pairs colour with depth by their stamps, and says why when no pair comes.

Which matcher does the pairing is hidden here: ``message_filters`` where the ROS installation has
it, a small one of our own elsewhere. Statistics, resets and complaints are ours in both cases.
Everything here is called from the executor's one thread; the pairs leave it through ``on_pair``.
"""

from __future__ import annotations

import itertools
import math
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.image_decoding import stamp_to_ns

MATCHERS = ('auto', 'message_filters', 'builtin')
BACKWARD_RESET_NS = 100_000_000
"""A stamp this much older than its predecessor means a looped bag or a reset clock.

Anything smaller is a message that was overtaken or a clock being trimmed; order alone settles it.
"""
PAUSE = 3.0
"""A stream that is silent for so many of its periods, and as long as a lost one, has paused."""
NEIGHBOURS = 0.6
"""Stamps so many periods apart, or more, are of neighbouring frames, whatever the slop allows.

True partners of synchronised streams are less than half a period apart; the rest is for jitter.
"""
_REMEMBERED_STAMPS = 60
_STAMPS_OF_PERIOD = 31  # of a second at 30 Hz


class Matcher(Protocol):
    """Pairs messages of stream 0 (colour) with messages of stream 1 (depth)."""

    def allow(self, slop_ns: int) -> None:
        """Change the largest difference of the stamps of a pair."""

    def add(self, stream: int, stamp_ns: int, msg: Any) -> None:
        """Take a message; call ``on_pair(color, depth)`` if it completes a pair."""


PairCallback = Callable[[Any, Any], None]


class BuiltinMatcher:
    """Approximate-time matching of two streams.

    A message is paired as soon as it arrives, with the nearest stamp that waits in the other
    stream and is at most ``slop_ns`` away (the older one of two equally near). Pairs come in
    increasing order of both stamps, so what is older than a pair is forgotten; at most
    ``queue_size`` messages wait in each stream, the newest ones.
    """

    def __init__(self, on_pair: PairCallback, *, slop_ns: int, queue_size: int) -> None:
        self._on_pair = on_pair
        self._slop_ns, self._queue_size = slop_ns, queue_size
        self._stamps: tuple[list[int], list[int]] = ([], [])
        self._messages: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
        self._paired_ns: list[int | None] = [None, None]

    def allow(self, slop_ns: int) -> None:
        """Change the largest difference of the stamps of a pair."""
        self._slop_ns = slop_ns

    def add(self, stream: int, stamp_ns: int, msg: Any) -> None:
        """Take a message; call ``on_pair(color, depth)`` if it completes a pair."""
        last = self._paired_ns[stream]
        if last is not None and stamp_ns <= last:
            return
        partner = self._nearest(1 - stream, stamp_ns)
        if partner is None:
            self._keep(stream, stamp_ns, msg)
            return
        other = self._messages[1 - stream][partner]
        self._forget(stream, stamp_ns)
        self._forget(1 - stream, partner)
        self._on_pair(*((msg, other) if stream == 0 else (other, msg)))

    def _nearest(self, stream: int, stamp_ns: int) -> int | None:
        stamps = self._stamps[stream]
        index = bisect_left(stamps, stamp_ns)
        near = stamps[max(0, index - 1) : index + 1]
        best = min(near, key=lambda s: (abs(s - stamp_ns), s), default=None)
        return None if best is None or abs(best - stamp_ns) > self._slop_ns else best

    def _keep(self, stream: int, stamp_ns: int, msg: Any) -> None:
        stamps, messages = self._stamps[stream], self._messages[stream]
        if stamp_ns not in messages:
            insort(stamps, stamp_ns)
        messages[stamp_ns] = msg
        if len(stamps) > self._queue_size:
            del messages[stamps.pop(0)]

    def _forget(self, stream: int, until_ns: int) -> None:
        """Drop the messages up to a stamp, which was paired."""
        stamps, messages = self._stamps[stream], self._messages[stream]
        while stamps and stamps[0] <= until_ns:
            del messages[stamps.pop(0)]
        self._paired_ns[stream] = until_ns


class MessageFiltersMatcher:
    """``message_filters.ApproximateTimeSynchronizer``, fed by hand instead of by subscriptions.

    Feeding it ourselves keeps the subscriptions, their QoS events and their counts in one place
    for both matchers.
    """

    def __init__(self, on_pair: PairCallback, *, slop_ns: int, queue_size: int) -> None:
        from message_filters import ApproximateTimeSynchronizer, SimpleFilter
        from rclpy.duration import Duration

        self._duration, self._slop_ns = Duration, slop_ns
        self._inputs = (SimpleFilter(), SimpleFilter())
        self._synchronizer = ApproximateTimeSynchronizer(
            list(self._inputs), queue_size, slop_ns * 1e-9
        )
        self._synchronizer.registerCallback(on_pair)

    def allow(self, slop_ns: int) -> None:
        """Change the largest difference of the stamps of a pair."""
        if slop_ns != self._slop_ns:
            self._slop_ns = slop_ns
            self._synchronizer.slop = self._duration(nanoseconds=slop_ns)

    def add(self, stream: int, stamp_ns: int, msg: Any) -> None:
        """Take a message; call ``on_pair(color, depth)`` if it completes a pair."""
        self._inputs[stream].signalMessage(msg)


def make_matcher(
    kind: str, on_pair: PairCallback, *, slop_ns: int, queue_size: int
) -> tuple[str, Matcher]:
    """Return the name and the matcher for ``kind``, one of :data:`MATCHERS`.

    Raises:
        InputError: an unknown kind, or ``message_filters`` asked for where it cannot be imported.
    """
    if kind not in MATCHERS:
        raise InputError(f'there is no matcher {kind!r}; choose one of {", ".join(MATCHERS)}')
    if kind != 'builtin':
        try:
            matcher = MessageFiltersMatcher(on_pair, slop_ns=slop_ns, queue_size=queue_size)
            return 'message_filters', matcher
        except Exception as error:  # a broken installation fails in more ways than ImportError
            if kind == 'message_filters':
                raise InputError(
                    f'message_filters cannot be used ({error}); install it with the ROS '
                    'distribution or set sync.matcher to builtin'
                ) from error
    return 'builtin', BuiltinMatcher(on_pair, slop_ns=slop_ns, queue_size=queue_size)


@dataclass
class StreamStatistics:
    """What one subscribed stream has delivered since the node was activated."""

    topic: str
    messages: int = 0
    newest_ns: int | None = None
    arrived_s: float | None = None
    """Monotonic time of the newest message."""
    period_s: float | None = None
    """Between the arrivals of the two newest messages."""
    stamps_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_STAMPS))
    """Of the newest messages since the last pair."""
    recent_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_STAMPS_OF_PERIOD))
    """Stamps of the newest messages since the last reset."""

    def count(self, stamp_ns: int) -> None:
        """Note the arrival of a message."""
        self.messages += 1
        self.newest_ns = stamp_ns
        now = time.monotonic()
        self.period_s = None if self.arrived_s is None else now - self.arrived_s
        self.arrived_s = now
        self.stamps_ns.append(stamp_ns)
        self.recent_ns.append(stamp_ns)

    @property
    def recent_period_ns(self) -> float:
        """Mean difference of the newest stamps, infinite while too few are known to tell.

        The mean, not the median: frames that come in bursts are no camera of a higher rate.
        """
        if len(self.recent_ns) < _STAMPS_OF_PERIOD:
            return math.inf
        return (max(self.recent_ns) - min(self.recent_ns)) / (_STAMPS_OF_PERIOD - 1) or math.inf

    @property
    def stamps_increase(self) -> bool:
        """Whether each of the newest stamps is later than the one before."""
        return all(a < b for a, b in itertools.pairwise(self.stamps_ns))

    @property
    def stamp_period_ns(self) -> float:
        """Between the newest stamps, which increase, on average."""
        return (self.stamps_ns[-1] - self.stamps_ns[0]) / (len(self.stamps_ns) - 1)

    def silent_s(self, since_s: float) -> float:
        """Seconds since the newest message, or since ``since_s`` when there was none."""
        return time.monotonic() - (since_s if self.arrived_s is None else self.arrived_s)


class Synchroniser:
    """Turns two streams of stamped messages into pairs.

    Args:
        on_pair: called with (colour message, depth message); must return at once.
        on_reset: called with the reason when stamps or the clock jump back, so that whatever
            still waits downstream can be dropped.
        topics: names of the colour and the depth topic, for complaints.
        slop_s: largest difference of the stamps of a pair in seconds. Both matchers pair at the
            first chance, so with a slop above the period one lost image would pair all later ones
            with their neighbours: as soon as the faster stream's period is known, from 31 stamps,
            no pair is further apart than :data:`NEIGHBOURS` periods.
        queue_size: messages that may wait in each stream.
        matcher: one of :data:`MATCHERS`; ``auto`` is message_filters where it is installed.
        on_alone: by stream, 0 for colour and 1 for depth, what is called with each message of it
            while the other stream is lost; must return at once.
        lost_after_s: a stream is lost when the other one has gone on without it for so long,
            until a pair comes again; 0 = never. Pauses of both do not count.
        enough: the stream that is enough, None where both are needed: after as long without a
            pair its messages go on alone, even if the other stream arrives.
    """

    def __init__(
        self,
        on_pair: PairCallback,
        on_reset: Callable[[str], None],
        *,
        topics: tuple[str, str],
        slop_s: float = 0.02,
        queue_size: int = 10,
        matcher: str = 'auto',
        on_alone: Mapping[int, Callable[[Any], None]] | None = None,
        lost_after_s: float = 0.0,
        enough: int | None = None,
    ) -> None:
        self._on_pair, self._on_reset = on_pair, on_reset
        self._on_alone, self._lost_after_s = on_alone or {}, lost_after_s
        self._enough = enough
        self._slop_ns, self._queue_size = round(slop_s * 1e9), queue_size
        self.matcher_name, self._matcher = self._make_matcher(matcher)
        self.streams = (StreamStatistics(topics[0]), StreamStatistics(topics[1]))
        self.pairs = 0
        self.resets = 0
        self.differences_ms: deque[float] = deque(maxlen=_REMEMBERED_STAMPS)
        """Depth stamp minus colour stamp of the newest pairs."""
        self.lost: int | None = None
        """The stream that is lost."""
        self._handed_ns: int | None = None
        """Stamp under which a pair or a message alone was handed on last."""
        self._alone_depth_ns: int | None = None
        self._without_other_s: list[float | None] = [None, None]
        """By stream, the arrival of its first message since the newest one of the other."""
        self._began_s = self._last_pair_s = time.monotonic()

    @property
    def left(self) -> int | None:
        """The stream that still arrives while the other is lost and silent.

        None too while the lost one arrives again but in no pair; `complaint` then says why.
        """
        if self.lost is None:
            return None
        silences = [stream.silent_s(self._began_s) for stream in self.streams]
        left = 1 - self.lost
        return left if silences[left] < self._lost_after_s <= silences[self.lost] else None

    @property
    def goes_on_alone(self) -> bool:
        """Whether the messages of one stream are handed on, for the other is lost."""
        return self.left in self._on_alone

    def silence(self, stream: int) -> str:
        """Return for how long a stream has been silent, in words."""
        if not self.streams[stream].messages:
            return 'never received'
        return f'silent for {self.streams[stream].silent_s(self._began_s):.0f} s'

    def add_color(self, msg: Any) -> None:
        """Take a colour message."""
        self._add(0, msg)

    def add_depth(self, msg: Any) -> None:
        """Take a depth message."""
        self._add(1, msg)

    def reset(self, reason: str) -> None:
        """Forget every waiting message and all order; the next stamp may be any."""
        self.resets += 1
        _, self._matcher = self._make_matcher(self.matcher_name)
        for stream in self.streams:
            stream.newest_ns = None
            stream.stamps_ns.clear()
            stream.recent_ns.clear()
        self._handed_ns = self._alone_depth_ns = None
        self._on_reset(reason)

    def complaint(self, after_s: float = 3.0) -> str | None:
        """Return one sentence that says why no pair has come for ``after_s`` seconds, or None.

        Where one stream is enough, it says why that one does not come.
        """
        if time.monotonic() - self._last_pair_s < after_s:
            return None
        missing = [
            f'{stream.topic} ({self.silence(index)})'
            for index, stream in enumerate(self.streams)
            if self._enough in (None, index) and stream.silent_s(self._last_pair_s) >= after_s
        ]
        if missing:
            return (
                f'no image arrives on {" and ".join(missing)}; check that the camera runs and '
                'that topic names and QoS match (ros2 topic info -v)'
            )
        return self._explain_stamps() if self._enough is None else None

    def _explain_stamps(self) -> str | None:
        if min(len(stream.stamps_ns) for stream in self.streams) < 2:
            return None  # one has just begun again; its partner may be on the way
        both = f'{self.streams[0].topic} and {self.streams[1].topic} both arrive, but'
        late, early = sorted(self.streams, key=lambda stream: stream.stamps_ns[-1])
        behind_ns = early.stamps_ns[-1] - late.stamps_ns[-1]
        if late.stamps_ns[-1] < early.stamps_ns[0]:
            return (
                f'{both} the stamps of {late.topic} are {behind_ns * 1e-9:.1f} s older; their '
                f'publishers use different clocks, or {late.topic} is that late'
            )
        gap_ms, slop_ms = self._smallest_difference_ms(), self._slop_ns * 1e-6
        allowed_ms = self._allowed_ns() * 1e-6
        if allowed_ms < gap_ms <= slop_ms:
            return (
                f'{both} their stamps are at least {gap_ms:.1f} ms apart, and from '
                f'{allowed_ms:.1f} ms on they are of neighbouring frames at this rate; '
                'synchronise the camera'
            )
        if gap_ms > slop_ms:
            return (
                f'{both} their stamps are at least {gap_ms:.1f} ms apart and sync.slop_s allows '
                f'{slop_ms:.1f} ms; raise sync.slop_s or synchronise the camera'
            )
        if not all(stream.stamps_increase for stream in self.streams):
            return (
                f'{both} their stamps do not increase; check the header.stamp of their publishers'
            )
        enough = math.ceil(behind_ns / early.stamp_period_ns) + 2
        return (
            f'{both} {late.topic} comes {behind_ns * 1e-6:.0f} ms after the images of '
            f'{early.topic} that it belongs to, which do not wait so long; make it faster, or '
            f'raise sync.queue_size from {self._queue_size} to {enough}'
        )

    def _allowed_ns(self) -> int:
        """Return the largest difference of a pair: the slop, unless neighbours are nearer."""
        period_ns = min(stream.recent_period_ns for stream in self.streams)
        return round(min(self._slop_ns, NEIGHBOURS * period_ns))

    def _make_matcher(self, kind: str) -> tuple[str, Matcher]:
        return make_matcher(kind, self._paired, slop_ns=self._slop_ns, queue_size=self._queue_size)

    def _add(self, index: int, msg: Any) -> None:
        stream = self.streams[index]
        stamp_ns = stamp_to_ns(msg.header.stamp)
        newest_ns = stream.newest_ns
        if newest_ns is not None and stamp_ns < newest_ns - BACKWARD_RESET_NS:
            self.reset(
                f'the stamps of {stream.topic} jumped back by '
                f'{(newest_ns - stamp_ns) * 1e-9:.3f} s (a looped bag, a reset clock or a second '
                'publisher); waiting images were dropped'
            )
        usual_s = stream.period_s
        stream.count(stamp_ns)
        self._watch_other(index, usual_s)
        self._matcher.allow(self._allowed_ns())
        self._matcher.add(index, stamp_ns, msg)
        if index in self._on_alone and (self.lost == 1 - index or self._goes_unpaired(index)):
            self._hand_alone(index, stamp_ns, msg)

    def _paired(self, color: Any, depth: Any) -> None:
        color_ns, depth_ns = (stamp_to_ns(m.header.stamp) for m in (color, depth))
        # The first pair counts, even if one of it was handed on alone.
        if self.lost is not None or self._enough is not None:
            self.lost = None
            self._last_pair_s = time.monotonic()
        # message_filters may complete an older pair after a newer one; nobody wants it any more.
        if self._handed_ns is not None and color_ns <= self._handed_ns:
            return
        if self._alone_depth_ns is not None and depth_ns <= self._alone_depth_ns:
            return
        self._handed_ns = color_ns
        self._last_pair_s = time.monotonic()
        self.pairs += 1
        for stream in self.streams:
            stream.stamps_ns.clear()
        self.differences_ms.append((depth_ns - color_ns) * 1e-6)
        self._on_pair(color, depth)

    def _watch_other(self, index: int, usual_s: float | None) -> None:
        """Note on the arrival of a message whether the other stream is lost.

        After a pause of this stream both may begin again, so the other one is waited for anew.

        Args:
            index: of the stream whose message arrived.
            usual_s: its period before; a pause is much longer.
        """
        now, since_s = self.streams[index].arrived_s, self._without_other_s[index]
        silent_s = self.streams[index].period_s
        self._without_other_s[1 - index] = None
        paused = usual_s is not None and silent_s >= max(PAUSE * usual_s, self._lost_after_s)
        if since_s is None or (paused and self.lost is None):
            self._without_other_s[index] = now
        elif 0 < self._lost_after_s <= now - since_s and self.lost != 1 - index:
            self.lost = 1 - index
            self.streams[self.lost].stamps_ns.clear()  # they are of before the loss

    def _goes_unpaired(self, index: int) -> bool:
        """Whether a stream is enough, and has waited long enough for partners that do not fit."""
        waited_s = time.monotonic() - self._last_pair_s
        return index == self._enough and 0 < self._lost_after_s <= waited_s

    def _hand_alone(self, index: int, stamp_ns: int, msg: Any) -> None:
        if self._handed_ns is not None and stamp_ns <= self._handed_ns:
            return
        self._handed_ns = stamp_ns
        if index == 1:
            self._alone_depth_ns = stamp_ns
        self._on_alone[index](msg)

    def _smallest_difference_ms(self) -> float:
        colors, depths = (sorted(stream.stamps_ns) for stream in self.streams)
        smallest = float('inf')
        for stamp in colors:
            index = bisect_left(depths, stamp)
            for other in depths[max(0, index - 1) : index + 1]:
                smallest = min(smallest, abs(other - stamp) * 1e-6)
        return smallest
