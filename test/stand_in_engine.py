"""A stand-in for the TensorRT backend where no GPU is, and the node with it.

As the real one it needs an engine file that belongs to the bundle, which a real builder may write;
it computes with ONNX Runtime. A file ``device_lost`` in the bundle's folder makes it fail while it
runs, one called ``engine_unfit`` makes it refuse every engine. One called ``hang`` is renamed
``hangs`` by the next inference, which waits until that is gone.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from rgbd_fusion_seg.engine import BACKENDS, StepDown, onnxruntime
from rgbd_fusion_seg.engine.engine_files import EngineCard, belongs_to, list_engines
from rgbd_fusion_seg.errors import EngineError, UnbuiltEngineError


def install():
    """Put it in the place of the TensorRT backend."""
    others = {name: module for name, module in BACKENDS.items() if name != 'tensorrt'}
    BACKENDS.clear()
    BACKENDS.update({'tensorrt': 'stand_in_engine', **others})


def probe():
    return True, 'stand-in'


def open_engine(bundle, device=0, flavour='', engine_file='', precision=''):
    cards = list_engines(bundle).values()
    if not any(isinstance(card, EngineCard) and belongs_to(card, bundle) for card in cards):
        raise UnbuiltEngineError(f'{bundle.name} has no engine for the stand-in; build one')
    if (bundle.path / 'engine_unfit').exists():
        raise EngineError('the engine is for another GPU than the stand-in')
    return StandInEngine(bundle)


class StandInEngine:
    name = 'tensorrt (stand-in)'
    step_downs: tuple[StepDown, ...] = ()

    def __init__(self, bundle):
        self._engine = onnxruntime.open_engine(bundle, num_threads=1)
        self._lost: Path = bundle.path / 'device_lost'
        self._hang: Path = bundle.path / 'hang'
        self.closed = False

    def infer(self, **tensors):
        self._check_device()
        hangs = self._hang.with_name('hangs')
        with contextlib.suppress(FileNotFoundError):
            self._hang.rename(hangs)
            while hangs.exists():
                time.sleep(0.01)
        return self._engine.infer(**tensors)

    def run(self, feeds):
        self._check_device()
        return self._engine.run(feeds)

    def close(self):
        self.closed = True
        self._engine.close()
        self._check_device()

    def _check_device(self):
        if self._lost.exists():
            raise EngineError('the device of the stand-in was lost')


if __name__ == '__main__':
    from rgbd_fusion_seg.ros import stream
    from rgbd_fusion_seg.ros.node import main

    stream.HANGS_S = 3.0  # no test need wait as long as a robot
    install()
    sys.exit(main())
