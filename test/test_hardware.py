"""How many cores may be used, by affinity and by quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rgbd_fusion_seg import hardware


@pytest.mark.parametrize(
    ('quotas', 'cores'),
    [
        ({}, 8),
        ({'': 'max 100000'}, 8),
        ({'': '200000 100000'}, 2),  # docker run --cpus 2, which sees its own group as the root
        ({'': '150000 100000'}, 2),
        ({'robot.slice/node.service': '20000 100000'}, 1),
        ({'robot.slice': '300000 100000', 'robot.slice/node.service': 'max 100000'}, 3),
        ({'robot.slice': '300000 100000', 'robot.slice/node.service': '50000 25000'}, 2),
        ({'robot.slice/node.service': '9900000 100000'}, 8),
        ({'other.slice': '100000 100000'}, 8),
        ({'robot.slice': 'nonsense'}, 8),
    ],
)
def test_cores_are_limited_by_the_quotas_around_the_process(monkeypatch, tmp_path, quotas, cores):
    groups, own = tmp_path / 'cgroup', tmp_path / 'own'
    for name, text in quotas.items():
        folder = groups / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'cpu.max').write_text(text + '\n')
    own.write_text('3:cpuset:/x\n0::/robot.slice/node.service\n')
    monkeypatch.setattr(hardware, '_CGROUPS', groups)
    monkeypatch.setattr(hardware, '_OWN_CGROUP', own)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(8)), raising=False)
    assert hardware.usable_cores() == cores


def test_without_control_groups_the_affinity_counts(monkeypatch):
    monkeypatch.setattr(hardware, '_OWN_CGROUP', Path('/nonexistent'))
    assert hardware.usable_cores() == len(os.sched_getaffinity(0))
