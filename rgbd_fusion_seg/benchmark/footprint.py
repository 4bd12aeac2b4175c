"""What an engine costs in a process of its own: time to open it, and memory.

``python -m rgbd_fusion_seg.benchmark.footprint REQUEST`` opens the engine and prints the answer;
:func:`footprint` starts that.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rgbd_fusion_seg.bundle import ModelBundle, load_bundle
from rgbd_fusion_seg.engine.cuda import free_memory_mib
from rgbd_fusion_seg.errors import EngineError, RgbdFusionSegError
from rgbd_fusion_seg.frame import blank_frame

_PATIENCE_S = 600
_FRAMES = 10
_FRAME_SIZE = (640, 480)
_ON_GPU = ('tensorrt', 'onnxruntime_gpu')


def footprint(bundle: ModelBundle, backend: str, options: Mapping[str, Any]) -> dict[str, float]:
    """Open an engine in a fresh process and label some frames of 640x480 with it.

    Returns:
        ``import_s``: importing the backend's library; ``load_s``: opening the engine after that;
        ``rss_mib``, ``peak_rss_mib``: memory of the whole process in units of 2^20 bytes, at the
        end and at most, with Python and the kernels of pre- and post-processing; for engines on
        a GPU ``gpu_mib``: by how much less of its memory was free at the end, CUDA's context and
        what other programs took meanwhile included.

    Raises:
        EngineError: the process failed.
    """
    free_mib = _free_gpu_mib(backend, options)
    request = {
        'bundle': str(bundle.path),
        'input_size': bundle.input_size,
        'backend': backend,
        'options': dict(options),
    }
    command = [sys.executable, '-m', __name__, json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f'{backend} did not open within {_PATIENCE_S} s') from error
    if done.returncode != 0:
        told = done.stderr.strip().splitlines()
        raise EngineError(
            f'{backend} ended with exit code {done.returncode} in a process of its own: '
            f'{told[-1] if told else "it said nothing"}'
        )
    answer = json.loads(done.stdout.splitlines()[-1])
    left_mib = answer.pop('free_gpu_mib')
    return answer if free_mib is None else {**answer, 'gpu_mib': round(free_mib - left_mib, 1)}


def measure(request: Mapping[str, Any]) -> dict[str, float | None]:
    """Do in this process what :func:`footprint` asks for.

    Returns:
        As that, but for ``gpu_mib`` what is left free: ``free_gpu_mib``, None without a GPU.
    """
    from rgbd_fusion_seg.engine import probe_backend

    began_s = time.perf_counter()
    _, usable, reason = probe_backend(request['backend'], request['options'])
    imported_s = time.perf_counter()
    if not usable:
        raise EngineError(reason)
    from rgbd_fusion_seg.segmenter import Segmenter

    bundle = load_bundle(request['bundle'])
    bundle = bundle.resized(*request['input_size'])
    loading_s = time.perf_counter()
    segmenter = Segmenter(bundle, request['backend'], **request['options'])
    loaded_s = time.perf_counter()
    with segmenter:
        segmenter.warm_up()
        fused = bundle.fused
        frame = blank_frame(*((fused.width, fused.height) if fused else _FRAME_SIZE))
        for _ in range(_FRAMES):
            segmenter.segment(frame)
        return {
            'import_s': round(imported_s - began_s, 3),
            'load_s': round(loaded_s - loading_s, 3),
            'rss_mib': _memory_mib('VmRSS'),
            'peak_rss_mib': _memory_mib('VmHWM'),
            'free_gpu_mib': _free_gpu_mib(request['backend'], request['options']),
        }


def _free_gpu_mib(backend: str, options: Mapping[str, Any]) -> float | None:
    return free_memory_mib(options.get('device', 0)) if backend in _ON_GPU else None


def _memory_mib(entry: str) -> float:
    lines = Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith(f'{entry}:'))
    return round(kib / 1024, 1)


def main() -> int:
    """Print the answer to the request on the command line; returns the exit code."""
    try:
        answer = measure(json.loads(sys.argv[1]))
    except RgbdFusionSegError as error:
        sys.stderr.write(f'{error}\n')
        return 1
    sys.stdout.write(f'\n{json.dumps(answer)}\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
