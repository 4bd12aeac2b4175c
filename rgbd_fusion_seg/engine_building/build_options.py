"""What can be chosen when a TensorRT engine is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgbd_fusion_seg.engine import PRECISIONS
from rgbd_fusion_seg.errors import InputError

BUILDERS = ('tensorrt', 'tensorrt_rtx')
"""The flavours that can build, best first."""
CURRENT = 'current'
"""Stands for the compute capability of the GPU at hand."""


MOST_WORKSPACE_MIB = 1 << 20
"""A TiB, more than any GPU has."""


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Args:
        flavour: one of :data:`BUILDERS`; default: the first that can build here.
        precision: ``fp16``, ``bf16`` or ``fp32``. On GPUs since Ampere fp32 means TF32, as is
            TensorRT's default.
        sizes: width and height of the leading input: none for the bundle's, one, or the
            smallest, best and largest for an engine that takes all between.
        workspace_mib: memory a kernel may use beside its tensors; 0: all there is.
        optimization_level: 0 (fastest build) to 5 (fastest engine); None: TensorRT's default.
            RTX has none of it.
        timing_cache: file with measured times of kernels, read and written; it makes the next
            build with ``tensorrt`` fast.
        compute_capabilities: of the GPUs to build for, such as ``8.6``, or ``current``; default:
            with ``tensorrt`` that of this GPU, with RTX 8.0 and newer, or that of this GPU where
            it is none of these.
        version_compatible: an engine of ``tensorrt`` that newer versions and the lean runtime
            also run.
        force: build even if the engine there fits.
        wait: until another process that builds in the same folder is done.

    Raises:
        InputError: a value that makes no sense.
    """

    flavour: str = ''
    precision: str = 'fp16'
    sizes: tuple[tuple[int, int], ...] = ()
    workspace_mib: int = 0
    optimization_level: int | None = None
    timing_cache: str | Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    force: bool = False
    wait: bool = False

    def __post_init__(self) -> None:
        sizes = tuple((int(width), int(height)) for width, height in self.sizes)
        object.__setattr__(self, 'sizes', sizes[:1] if len(set(sizes)) == 1 else sizes)
        wanted = sorted(set(self.compute_capabilities), key=lambda text: (len(text), text))
        object.__setattr__(self, 'compute_capabilities', tuple(wanted))
        if self.precision not in PRECISIONS:
            raise InputError(
                f'the precision must be one of {", ".join(PRECISIONS)}, got {self.precision!r}'
            )
        if len(self.sizes) not in (0, 1, 3):
            raise InputError(
                f'give one size or three (smallest, best, largest), not {len(self.sizes)}'
            )
        for sides in zip(*self.sizes, strict=True):
            if list(sides) != sorted(sides):
                raise InputError(
                    f'the sizes {", ".join(map(size_text, self.sizes))} do not grow; give the '
                    'smallest, the best and the largest, in this order'
                )
        if not 0 <= self.workspace_mib <= MOST_WORKSPACE_MIB:
            raise InputError(
                f'workspace_mib must be 0 to {MOST_WORKSPACE_MIB}, got {self.workspace_mib}'
            )
        if self.optimization_level is not None and self.optimization_level not in range(6):
            raise InputError(
                f'the optimisation level must be 0 to 5, got {self.optimization_level}'
            )
        if CURRENT in self.compute_capabilities and len(self.compute_capabilities) > 1:
            raise InputError('the compute capability "current" goes with no other')

    def recorded(self) -> dict[str, Any]:
        """Return what the engine's card tells of them, beside what has an entry of its own."""
        recorded = {
            'workspace_mib': self.workspace_mib,
            'version_compatible': self.version_compatible,
        }
        if self.optimization_level is not None:
            recorded['optimization_level'] = self.optimization_level
        return recorded


def size_text(size: tuple[int, int]) -> str:
    """Return a width and height as ``320x240``."""
    return f'{size[0]}x{size[1]}'
