from __future__ import annotations

import gc

import numpy as np

from rgbd_fusion_seg.timing import in_turn, percentiles_ms


class Clock:
    """A clock that moves only when somebody works."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def work(self, seconds: float) -> None:
        self.now_s += seconds


def test_callables_are_timed_in_turn_without_the_warm_up():
    clock, calls = Clock(), []

    def working(name: str, seconds: list[float]):
        def run() -> None:
            assert not gc.isenabled()
            clock.work(seconds[sum(called == name for called in calls)])
            calls.append(name)

        return run

    seconds = in_turn(
        {'a': working('a', [9, 1, 2]), 'b': working('b', [9, 4, 3])},
        repeats=2,
        warmup=1,
        clock=clock,
        after_round=lambda: (calls.append('round'), clock.work(100)),
    )
    assert calls == ['a', 'b', 'round'] * 3
    np.testing.assert_allclose(seconds['a'], [1, 2])
    np.testing.assert_allclose(seconds['b'], [4, 3])
    assert gc.isenabled()


def test_percentiles_are_numpy_s_in_milliseconds():
    seconds = np.random.default_rng(0).gamma(2, 0.01, 200)
    expected = {f'p{q}': np.percentile(seconds * 1e3, q) for q in (50, 90, 99)}
    found = percentiles_ms(seconds)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), atol=1e-3)
