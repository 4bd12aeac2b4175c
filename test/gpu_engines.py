"""Builds engines on the GPU of this machine for one of the installed TensorRT flavours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.engine.cuda import Device
from rgbd_fusion_seg.engine.engine_choice import runs_engine
from rgbd_fusion_seg.engine.engine_files import read_card
from rgbd_fusion_seg.engine.flavours import import_flavour
from rgbd_fusion_seg.engine_building.tensorrt_build import BuildOptions, build_engine
from rgbd_fusion_seg.errors import EngineError


def build_for(
    bundle: ModelBundle, flavour: str, gpu: Device, precision: str = 'fp32', **options: Any
) -> Path:
    """Build an engine for a flavour and return the path of its card."""
    builder = 'tensorrt' if flavour == 'tensorrt_lean' else flavour
    try:
        import_flavour(builder)
    except EngineError as error:
        pytest.skip(f'{flavour} runs engines of {builder}, and {error}')
    compatible = flavour == 'tensorrt_lean'
    wanted = BuildOptions(builder, precision, version_compatible=compatible, **options)
    path = build_engine(bundle, wanted)
    card, installed = read_card(path), import_flavour(flavour)
    if not runs_engine(flavour, installed.version, card):
        pytest.skip(f'{installed} does not run engines of {builder} {card.version}')
    listed = card.compute_capabilities
    if gpu.compute_capability not in listed:
        pytest.skip(f'{builder} builds for {", ".join(listed)}, and this is {gpu}')
    return path
