"""What the programs in benchmarks/ share."""

from __future__ import annotations

import copy
import sys
from importlib import import_module
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1] / 'benchmarks'


def test_a_measurement_that_fails_costs_no_other_one_s_result(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    measure = import_module('measure')
    kept = []

    def measured(name: str) -> int:
        if name == 'large':
            raise MemoryError('no room\nfor it')
        return len(name)

    def keep(results, failed) -> None:
        kept.append(copy.deepcopy((results, failed)))

    assert measure.one_by_one(['a', 'large', 'abc'], measured, keep) == 1
    reason = {'large': 'MemoryError: no room for it'}
    assert kept == [({'a': 1}, {}), ({'a': 1}, reason), ({'a': 1, 'abc': 3}, reason)]
    assert capsys.readouterr().err == 'large was not measured: MemoryError: no room for it\n'
    assert measure.one_by_one(['a'], measured, keep) == 0
    monkeypatch.delitem(sys.modules, 'measure')
