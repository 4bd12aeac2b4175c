"""Colour and depth messages of a recording, matched by stamp."""

from __future__ import annotations

from collections import deque
from typing import Any

_MAX_WAITING = 60  # messages kept of a stream while the other lags: two seconds at 30 Hz
_JUMP_NS = 1_000_000_000  # a stamp this far back is a new recording, not a late message


class StampMatcher:
    """Pairs every colour message with the nearest depth message, each used once.

    Unlike the live node, which must decide at once, a recording can wait for the depth messages
    on both sides of a colour image. Memory is bounded: at most 60 messages of a stream wait.

    Args:
        tolerance_ns: greatest difference of the stamps of a pair.
    """

    def __init__(self, tolerance_ns: int) -> None:
        self.unmatched = 0
        self._tolerance_ns = tolerance_ns
        self._colors: deque[tuple[int, Any]] = deque()
        self._depths: deque[tuple[int, Any]] = deque()
        self._newest = {'color': -1, 'depth': -1}

    def add(self, stamp_ns: int, message: Any, *, is_depth: bool) -> list[tuple[Any, Any]]:
        """Take a message; return the (color, depth) pairs that it completes."""
        stream = 'depth' if is_depth else 'color'
        pairs = []
        if stamp_ns < self._newest[stream] - _JUMP_NS:
            pairs = self.flush()
        self._newest[stream] = max(stamp_ns, self._newest[stream])
        (self._depths if is_depth else self._colors).append((stamp_ns, message))
        if len(self._depths) > _MAX_WAITING and not self._colors:
            self._depths.popleft()
        while self._colors and (
            self._newest['depth'] >= self._colors[0][0] + self._tolerance_ns
            or len(self._colors) > _MAX_WAITING
        ):
            pairs += self._decide()
        return pairs

    def flush(self) -> list[tuple[Any, Any]]:
        """Return the pairs among what still waits, and start afresh."""
        pairs = []
        while self._colors:
            pairs += self._decide()
        self._depths.clear()
        self._newest = {'color': -1, 'depth': -1}
        return pairs

    def _decide(self) -> list[tuple[Any, Any]]:
        """Match the oldest colour message, or count it as unmatched."""
        stamp, color = self._colors.popleft()
        near = [d for d in self._depths if abs(d[0] - stamp) <= self._tolerance_ns]
        if not near:
            self.unmatched += 1
            return []
        depth = min(near, key=lambda d: abs(d[0] - stamp))
        while self._depths.popleft() is not depth:
            pass
        return [(color, depth[1])]
