"""What the builder beside a node tells; test_engine_changes.py has it build."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')
pytest.importorskip('onnx', reason='making bundles needs onnx')

from bundles import write_bundle
from single_sensor_bundles import write_with_parts

from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.engine import open_engine
from rgbd_fusion_seg.errors import EngineError, UnbuiltEngineError
from rgbd_fusion_seg.ros import engine_builder
from rgbd_fusion_seg.ros.engine_builder import EngineBuilder, build_is_due
from rgbd_fusion_seg.segmenter import Segmenter


@pytest.mark.parametrize('error', [EngineError, UnbuiltEngineError])
def test_a_build_is_due_where_it_helps(tiny_bundle, monkeypatch, error):
    """Not where an engine that is there cannot run, for want of memory say."""

    def fail(bundle):
        raise error('it says why')

    here = SimpleNamespace(probe=lambda: (True, 'stand-in'), open_engine=fail)
    monkeypatch.setitem(sys.modules, 'rgbd_fusion_seg.engine.tensorrt', here)
    engine = open_engine(load_bundle(tiny_bundle))
    assert build_is_due(engine.step_downs) == (error is UnbuiltEngineError)
    assert engine.step_downs[0].unexpected  # in both cases somebody is to look into it
    engine.close()


class FailingProcess:
    def __init__(self, bundle, options, device):
        pass

    def wait(self, on_progress):
        raise EngineError('it was not to be')

    def stop(self):
        pass


@pytest.mark.parametrize('write', [write_bundle, write_with_parts])
def test_what_is_left_to_the_user_is_told(tmp_path, monkeypatch, write):
    monkeypatch.setattr(engine_builder, 'BuildProcess', FailingProcess)
    folder, said = write(tmp_path / 'tiny'), []
    with Segmenter(folder, 'onnxruntime') as segmenter:
        builder = EngineBuilder(segmenter, lambda: segmenter, {}, 0, lambda _, s: said.append(s))
        builder.start()
        builder._thread.join()
    building, failed = said
    for part in ('rgb_only', 'hha_only'):
        told = f'build-engine {folder / part}' in building
        assert told == (write is write_with_parts)
    assert 'it was not to be' in failed
