"""What this machine is: its processor, memory and load, and the versions of the libraries."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import math
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

_PACKAGES = (
    'numpy',
    'numba',
    'opencv-python-headless',
    'onnxruntime',
    'onnxruntime-gpu',
    'openvino',
    'cuda-bindings',
    'tensorrt',
    'tensorrt-rtx-cu13-libs',
    'torch',
)


def hardware() -> dict[str, Any]:
    """Return the processor, its load now, and the versions of Python and the libraries."""
    return {
        'cpu': cpu_model_and_flags()[0],
        'gpus': nvidia_gpus(),
        'machine': platform.machine(),
        'cores': os.cpu_count(),
        'cores_usable': usable_cores(),
        'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
        'load_average_1_5_15_min': [round(value, 2) for value in os.getloadavg()],
        'system': f'{platform.system()} {platform.release()}',
        'python': platform.python_version(),
        'packages': {name: v for name in _PACKAGES if (v := package_version(name)) is not None},
    }


def nvidia_gpus() -> list[str]:
    """Return the models of the GPUs that NVIDIA's driver tells of; on a Jetson it tells none."""
    models = []
    for file in sorted(Path('/proc/driver/nvidia/gpus').glob('*/information')):
        with suppress(OSError):
            lines = file.read_text(encoding='utf-8', errors='replace').splitlines()
            models += [
                line.partition(':')[2].strip() for line in lines if line.startswith('Model')
            ]
    return models


_CGROUPS, _OWN_CGROUP = Path('/sys/fs/cgroup'), Path('/proc/self/cgroup')


def usable_cores() -> int:
    """Return the number of cores that this process may use, by affinity and by quota of time.

    The quota is that of control groups (version 2), as of ``docker --cpus`` and systemd's
    CPUQuota: more threads than it allows are stopped together in the middle of a frame.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas())]))


def _quotas() -> list[float]:
    """Return the CPUs that each control group around this process allows, where it limits them."""
    quotas = []
    with suppress(OSError):
        lines = _OWN_CGROUP.read_text(encoding='utf-8').splitlines()
        own = next((line[3:] for line in lines if line.startswith('0::')), '/')
        place = _CGROUPS / own.lstrip('/')
        for folder in (place, *place.parents):
            with suppress(OSError, ValueError):  # no limit, which reads 'max', or no such file
                quota, period = (folder / 'cpu.max').read_text(encoding='utf-8').split()
                quotas.append(int(quota) / int(period))
            if folder == _CGROUPS:
                break
    return quotas


def release_freed_memory() -> None:
    """Give back to the system what lies unused in the C library's free lists."""
    with suppress(OSError, AttributeError):  # other C libraries than glibc have no such function
        ctypes.CDLL(None).malloc_trim(0)


def cpu_model_and_flags() -> tuple[str, frozenset[str]]:
    """Return the processor's model and feature flags, as far as Linux tells them."""
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8')
    except OSError:
        return platform.processor(), frozenset()
    entries = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(':') for line in reversed(text.splitlines()))
    }
    flags = entries.get('flags', entries.get('Features', ''))
    return entries.get('model name', platform.processor()), frozenset(flags.split())


def system_name() -> str:
    """Return operating system and processor, such as ``linux x86_64``."""
    return f'{platform.system().lower()} {platform.machine()}'


def cpu_identity() -> str:
    """Return a short name of the kind of processor: equal ones compute alike.

    The flags belong to it, for the model of a virtual machine says little and libraries choose
    their code by the flags.
    """
    model, flags = cpu_model_and_flags()
    known = '\n'.join([platform.machine(), model, *sorted(flags)])
    return hashlib.sha256(known.encode()).hexdigest()[:12]


def package_version(package: str) -> str | None:
    """Return the version of a package that pip installed; None where it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
