"""ONNX Runtime on a GPU: politely refused without one, and never the CPU in disguise."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.engine import available_backends, open_engine
from rgbd_fusion_seg.engine.onnxruntime_gpu import PROVIDERS, open_gpu_session
from rgbd_fusion_seg.errors import EngineError

INSTALLED = [p for p in PROVIDERS.values() if p in onnxruntime.get_available_providers()]
cpu_build = pytest.mark.skipif(bool(INSTALLED), reason='this ONNX Runtime is one for GPUs')


@cpu_build
def test_an_onnx_runtime_for_cpus_is_told_and_auto_steps_down(tiny_bundle: Path):
    (backend,) = (b for b in available_backends() if b.name == 'onnxruntime_gpu')
    assert not backend.usable
    assert 'CPU alone; install onnxruntime-gpu in its place' in backend.detail
    bundle = load_bundle(tiny_bundle)
    with pytest.raises(EngineError, match=r'onnxruntime_gpu cannot run here: .* CPU alone'):
        open_engine(bundle, 'onnxruntime_gpu')
    reasons = {step.backend: step.reason for step in open_engine(bundle).step_downs}
    assert reasons['onnxruntime_gpu'] == backend.detail


@cpu_build
@pytest.mark.filterwarnings('ignore:Specified provider')
@pytest.mark.parametrize('provider', PROVIDERS.values())
def test_a_silent_fall_back_to_the_cpu_is_an_error(tiny_bundle: Path, provider):
    """ONNX Runtime opens the session all the same, on the CPU."""
    bundle = load_bundle(tiny_bundle)
    session = onnxruntime.InferenceSession(
        str(bundle.weights_path), providers=[provider, 'CPUExecutionProvider']
    )
    assert session.get_providers() == ['CPUExecutionProvider']
    with pytest.raises(EngineError, match=f'{provider} and fell back to CPUExecutionProvider'):
        open_gpu_session(bundle, provider, {})
