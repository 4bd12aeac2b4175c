"""Images of two streams of a recording, matched by stamp."""

from __future__ import annotations

from collections import deque
from typing import Any

_MAX_WAITING = 60  # messages kept of a stream while the other lags: two seconds at 30 Hz
_JUMP_NS = 1_000_000_000  # a stamp this far back is a new recording, not a late message


class StampMatcher:
    """Pairs every message of the leading stream with the nearest of the other, each used once.

    One that is nearer to the next leading message is left to that, so that a lost message costs
    its own pair alone, however fast the camera. Unlike the live node, which must decide at once, a
    recording can wait for the messages on both sides. Memory is bounded: at most 60 messages of a
    stream wait.

    Args:
        tolerance_ns: greatest difference of the stamps of a pair.
        keep_unmatched: return leading messages without a partner with None in its place, instead
            of counting them in `unmatched`.
    """

    def __init__(self, tolerance_ns: int, *, keep_unmatched: bool = False) -> None:
        self.unmatched = 0
        self._tolerance_ns, self._keep_unmatched = tolerance_ns, keep_unmatched
        self._leading: deque[tuple[int, Any]] = deque()
        self._partners: deque[tuple[int, Any]] = deque()
        self._newest = {'leading': -1, 'partner': -1}

    def add(self, stamp_ns: int, message: Any, *, is_partner: bool) -> list[tuple[Any, Any]]:
        """Take a message; return the (leading, partner) pairs that it completes."""
        stream = 'partner' if is_partner else 'leading'
        pairs = []
        if stamp_ns < self._newest[stream] - _JUMP_NS:
            pairs = self.flush()
        self._newest[stream] = max(stamp_ns, self._newest[stream])
        (self._partners if is_partner else self._leading).append((stamp_ns, message))
        while self._leading and self._is_decided():
            pairs += self._decide()
        while len(self._partners) > _MAX_WAITING and self._too_old(self._partners[0][0]):
            self._partners.popleft()
        return pairs

    def flush(self) -> list[tuple[Any, Any]]:
        """Return the pairs among what still waits, and start afresh."""
        pairs = []
        while self._leading:
            pairs += self._decide()
        self._partners.clear()
        self._newest = {'leading': -1, 'partner': -1}
        return pairs

    def _is_decided(self) -> bool:
        """Whether nothing that comes can change the partner of the oldest leading message."""
        if max(len(self._leading), len(self._partners)) > _MAX_WAITING:
            return True  # it has waited long enough
        stamp = self._leading[0][0]
        # A partner within the tolerance may be nearer to a leading message within twice of it.
        return (
            self._newest['partner'] >= stamp + self._tolerance_ns
            and self._newest['leading'] >= stamp + 2 * self._tolerance_ns
        )

    def _too_old(self, partner_ns: int) -> bool:
        """Whether no leading message that waits, or comes in order, can have this partner."""
        return not self._leading or partner_ns < self._leading[0][0] - self._tolerance_ns

    def _decide(self) -> list[tuple[Any, Any]]:
        """Match the oldest leading message, or tell that it has no partner."""
        stamp, leading = self._leading.popleft()
        near = [d for d in self._partners if abs(d[0] - stamp) <= self._tolerance_ns]
        if self._leading:
            following = self._leading[0][0]
            near = [d for d in near if abs(d[0] - stamp) <= abs(d[0] - following)]
        if not near:
            if self._keep_unmatched:
                return [(leading, None)]
            self.unmatched += 1
            return []
        partner = min(near, key=lambda d: abs(d[0] - stamp))
        while self._partners.popleft() is not partner:
            pass
        return [(leading, partner[1])]
