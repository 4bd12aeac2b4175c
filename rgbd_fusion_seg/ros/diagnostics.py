"""What the node counts, what it complains about, and how both appear on /diagnostics."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from rgbd_fusion_seg.depth import has_few_readings
from rgbd_fusion_seg.engine import StepDown
from rgbd_fusion_seg.plausibility import depth_statistics, training_range_fault, unit_fault
from rgbd_fusion_seg.ros.parameters import name_unknown
from rgbd_fusion_seg.ros.synchroniser import Synchroniser

ACTIVE_S = 5.0
"""A complaint counts as present this long after it was last made."""
LOG_PERIOD_S = 5.0
"""The same complaint is logged at most once in this time."""
_WINDOW = 300
_MAX_PROBLEMS = 50
_CLOCK_TOLERANCE_S = 10.0

OK = DiagnosticStatus.OK
WARN = DiagnosticStatus.WARN
ERROR = DiagnosticStatus.ERROR


@dataclass
class Problem:
    """One complaint: its newest sentence, how grave it is, and when it was made."""

    sentence: str
    level: bytes
    sticky: bool
    made_s: float = 0.0
    logged: str = ''
    logged_s: float = float('-inf')

    @property
    def active(self) -> bool:
        """True while the complaint is recent, or for good when it cannot repeat itself."""
        return self.sticky or time.monotonic() - self.made_s < ACTIVE_S


class Health:
    """Counters and complaints of one node; every method may be called from any thread.

    Args:
        log: called with (level, sentence) for complaints, throttled for each kind.
    """

    def __init__(self, log: Callable[[bytes, str], None]) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._problems: dict[str, Problem] = {}
        self.clear()

    def clear(self, keep: Collection[str] = ()) -> None:
        """Start anew, as when the node is activated again.

        Args:
            keep: kinds of problems that outlast it.
        """
        with self._lock:
            self._problems = {k: p for k, p in self._problems.items() if k in keep}
            self._drops: Counter[str] = Counter()
            self._masks = 0
            self._alone: Counter[str] = Counter()
            self._latency_ms: deque[float] = deque(maxlen=_WINDOW)
            self._age_ms: deque[float] = deque(maxlen=_WINDOW)
            self._stages_ms: dict[str, deque[float]] = {}
            self._valid_ratio: float | None = None
            self._median_m: float | None = None
            self._last_error = ''

    def complain(
        self,
        kind: str,
        sentence: str,
        level: bytes = WARN,
        *,
        sticky: bool = False,
        log_period_s: float = LOG_PERIOD_S,
    ) -> None:
        """Note a problem, for the log (throttled) and for /diagnostics.

        Args:
            kind: complaints of one kind are throttled together.
            sentence: what is wrong, where, what to do.
            level: WARN or ERROR.
            sticky: show it until :meth:`clear` or :meth:`show`, for events that happen once.
            log_period_s: log the same sentence at most once in this time; ``inf`` for what does
                not repeat itself. Another one is logged after the usual time.
        """
        now = time.monotonic()
        with self._lock:
            if len(self._problems) >= _MAX_PROBLEMS and kind not in self._problems:
                # Sentences quote what came over the network, which may be anything.
                self._problems = {k: p for k, p in self._problems.items() if p.active}
            problem = self._problems.setdefault(kind, Problem(sentence, level, sticky))
            problem.sentence, problem.level, problem.made_s = sentence, level, now
            self._last_error = sentence
            period_s = log_period_s if sentence == problem.logged else LOG_PERIOD_S
            loud = now - problem.logged_s >= period_s
            if loud:
                problem.logged, problem.logged_s = sentence, now
        if loud:
            self._log(level, sentence)

    def show(self, kind: str, shown: bool) -> None:
        """Go on showing a sticky problem whose cause can be seen to last, or no longer."""
        with self._lock:
            if problem := self._problems.get(kind):
                problem.sticky = shown
                problem.made_s = problem.made_s if shown else float('-inf')

    def dropped(self, reason: str) -> None:
        """Count a pair that got no mask."""
        with self._lock:
            self._drops[reason] += 1

    def published(
        self,
        latency_ms: float,
        age_ms: float | None,
        timings: Mapping[str, float],
        sensors: Sequence[str] = (),
    ) -> None:
        """Count a mask.

        Args:
            latency_ms: from the arrival of the pair to its mask being sent.
            age_ms: from the colour stamp to its mask being sent, by the node's clock; None while
                that does not tell the time.
            timings: of the segmentation, stage -> milliseconds.
            sensors: those of `frame.SENSORS` that the network saw.
        """
        with self._lock:
            self._masks += 1
            if len(sensors) == 1:
                self._alone[sensors[0]] += 1
            self._latency_ms.append(latency_ms)
            if age_ms is not None:
                self._age_ms.append(age_ms)
            for stage, taken_ms in {**timings, 'segmentation': sum(timings.values())}.items():
                self._stages_ms.setdefault(stage, deque(maxlen=_WINDOW)).append(taken_ms)

    def saw_depth(self, depth: np.ndarray, trained_range_m: tuple[float, float] | None) -> None:
        """Check the plausibility of a depth image and note its valid ratio.

        Args:
            depth: float32 (H, W) metres.
            trained_range_m: nearest and farthest depth that the network's training data holds;
                None for a network that does not see depth.
        """
        ratio, median_m = depth_statistics(depth)
        with self._lock:
            self._valid_ratio, self._median_m = ratio, median_m
        if median_m is None:
            self.complain(
                'depth empty',
                'the depth image has no reading at all; labels rest on colour alone at best until '
                'the sensor sees something within its range',
            )
        elif fault := unit_fault(median_m):
            self.complain(
                'depth implausible',
                f'{fault}; 16UC1 must hold millimetres and 32FC1 metres (REP 118), so check the '
                'unit of the depth publisher',
            )
        elif has_few_readings(depth):
            self.complain(
                'depth nearly empty',
                f'the depth image has readings at {100 * ratio:.1f} % of its pixels only; labels '
                'rest on colour alone, where the network can do without depth, until the sensor '
                'sees more within its range',
                log_period_s=inf,
            )
        elif fault := training_range_fault(median_m, trained_range_m):
            self.complain('depth out of training range', fault)

    def saw_age(self, age_s: float | None) -> None:
        """Complain when image stamps and the node's clock cannot be the same clock.

        Args:
            age_s: of a colour image by the node's clock; None while that does not tell the time.
        """
        if age_s is None:
            self.complain(
                'clock',
                'use_sim_time is set but nothing comes on /clock, so the age of images is '
                'unknown; publish it (ros2 bag play --clock) or set use_sim_time to false',
            )
        elif abs(age_s) > _CLOCK_TOLERANCE_S:
            self.complain(
                'clock',
                f'colour stamps are {abs(age_s):.0f} s {"older" if age_s > 0 else "newer"} than '
                'the clock of this node; for a replayed bag publish /clock and set use_sim_time, '
                'else synchronise the clocks',
            )

    def problems(self) -> list[Problem]:
        """Return the present problems, gravest and newest first."""
        with self._lock:
            active = [p for p in self._problems.values() if p.active]
        return sorted(active, key=lambda p: (p.level, p.made_s), reverse=True)

    def snapshot(self) -> dict[str, str]:
        """Return the numbers as text, in the order in which they are shown."""
        with self._lock:
            values = {'masks': str(self._masks)}
            values |= {f'masks from {name} alone': str(n) for name, n in self._alone.items()}
            values['dropped'] = str(sum(self._drops.values()))
            values |= {f'dropped: {reason}': str(n) for reason, n in sorted(self._drops.items())}
            samples = {'latency': self._latency_ms, 'age': self._age_ms, **self._stages_ms}
            for name, taken_ms in samples.items():
                values |= _percentiles(name, taken_ms)
            values['last error'] = self._last_error
            if self._valid_ratio is not None:
                values['valid depth ratio'] = f'{self._valid_ratio:.3f}'
            if self._median_m is not None:
                values['median depth m'] = f'{self._median_m:.2f}'
        return values

    @property
    def masks(self) -> int:
        """Number of masks published."""
        return self._masks


class Rates:
    """Events per second between two looks at counters that only grow."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._looked_s = time.monotonic()

    def update(self, counters: Mapping[str, int]) -> dict[str, str]:
        """Return ``'<name> Hz' -> rate`` since the last call."""
        now = time.monotonic()
        seconds = max(now - self._looked_s, 1e-6)
        rates = {
            f'{name} Hz': f'{max(0, count - self._seen.get(name, 0)) / seconds:.1f}'
            for name, count in counters.items()
        }
        self._seen, self._looked_s = dict(counters), now
        return rates


def synchroniser_values(sync: Synchroniser) -> dict[str, str]:
    """Return the statistics of a synchroniser as text."""
    color, depth = sync.streams
    differences = np.abs(np.asarray(sync.differences_ms))
    values = {
        'matcher': sync.matcher_name,
        f'messages on {color.topic}': str(color.messages),
        f'messages on {depth.topic}': str(depth.messages),
        'pairs': str(sync.pairs),
        'unpaired colour': str(color.messages - sync.pairs),
        'unpaired depth': str(depth.messages - sync.pairs),
        'resets': str(sync.resets),
    }
    if differences.size:
        values['stamp difference ms'] = (
            f'median {np.median(differences):.2f}, max {differences.max():.2f}'
        )
    return values


def step_down_values(step_downs: Sequence[StepDown]) -> dict[str, str]:
    """Return the better backends that are not in use, with the reasons."""
    return {f'not used: {s.backend}': s.reason for s in step_downs}


def step_down_problems(step_downs: Sequence[StepDown]) -> list[Problem]:
    """Return those of them that somebody should look into."""
    return [Problem(str(s), WARN, sticky=True) for s in step_downs if s.unexpected]


def unknown_parameter_values(unknown: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters that were given but do not exist (`unknown_parameters`)."""
    return {'unknown parameters': name_unknown(unknown)} if unknown else {}


def unknown_parameter_problems(unknown: Mapping[str, str]) -> list[Problem]:
    """Return those of them as a problem that look mistyped rather than meant for other nodes."""
    mistyped = {name: near for name, near in unknown.items() if near}
    if not mistyped:
        return []
    return [Problem(f'ignored parameters: {name_unknown(mistyped)}', WARN, sticky=True)]


def make_status(
    name: str,
    hardware_id: str,
    problems: Sequence[Problem],
    ok_message: str,
    values: Mapping[str, str],
) -> DiagnosticStatus:
    """Make the status of a node: the first problem, or ``ok_message``, and values."""
    status = DiagnosticStatus(name=name, hardware_id=hardware_id, level=OK, message=ok_message)
    if problems:
        status.level, status.message = problems[0].level, problems[0].sentence
    shown = {**values, **{f'problem {i}': p.sentence for i, p in enumerate(problems, start=1)}}
    status.values = [KeyValue(key=k, value=v) for k, v in shown.items()]
    return status


def _percentiles(name: str, samples_ms: deque[float]) -> dict[str, str]:
    if not samples_ms:
        return {}
    p50, p99 = np.percentile(np.asarray(samples_ms), (50, 99))
    return {f'{name} p50 ms': f'{p50:.1f}', f'{name} p99 ms': f'{p99:.1f}'}
