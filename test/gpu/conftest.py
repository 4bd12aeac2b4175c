"""Engines that are built and run on the GPU of this machine; without one the tests are skipped."""

from __future__ import annotations

import pytest
from gpu_engines import build_for

from rgbd_fusion_seg.bundle import ModelBundle, load_bundle
from rgbd_fusion_seg.engine.cuda import Device, find_device
from rgbd_fusion_seg.engine.flavours import FLAVOURS, import_flavour
from rgbd_fusion_seg.errors import EngineError


@pytest.fixture(scope='session')
def gpu() -> Device:
    """The first GPU."""
    try:
        return find_device()
    except EngineError as error:
        pytest.skip(f'needs a GPU: {error}')


@pytest.fixture(scope='session', params=FLAVOURS)
def flavour(request: pytest.FixtureRequest, gpu: Device) -> str:
    """Each TensorRT that is installed."""
    try:
        import_flavour(request.param)
    except EngineError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture(scope='session')
def built(flavour: str, gpu: Device, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """The tiny bundle with its engine in float32, which the flavour can run on this GPU."""
    from bundles import write_bundle  # which needs onnx

    folder = write_bundle(tmp_path_factory.mktemp('gpu') / 'tiny')
    bundle = load_bundle(folder)
    build_for(bundle, flavour, gpu)
    return bundle
