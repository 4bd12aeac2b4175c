"""The gate before arithmetic that is less exact: does it give the same labels on real frames?

``rgbd-fusion-seg benchmark --frames …`` compares labels with those of ONNX Runtime in float32 and
keeps the outcome in the user's cache folder, for one network, input size, kind of processor and
version of the backend. A backend that computes in less than float32 opens if it says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rgbd_fusion_seg.atomic_files import write_atomically
from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.errors import EngineError
from rgbd_fusion_seg.hardware import cpu_identity
from rgbd_fusion_seg.locations import user_cache

MIN_AGREEMENT = 0.995
"""Share of pixels that must have the label of ONNX Runtime in float32."""
MIN_FRAMES = 10


@dataclass(frozen=True)
class Agreement:
    """How a backend's labels compare with those of ONNX Runtime in float32.

    Args:
        backend, version, precision: what was compared.
        label_agreement: share of all pixels with the same label.
        lowest_of_a_frame: the same on the frame where it is lowest.
        frames: their number.
        source: the recording.
        measured_at: date and time, ISO 8601.
    """

    backend: str
    version: str
    precision: str
    label_agreement: float
    lowest_of_a_frame: float
    frames: int
    source: str
    measured_at: str


def record_path(bundle: ModelBundle, backend: str, precision: str) -> Path:
    """Return the file with the agreement of a bundle, at its input size, on this processor."""
    size = '{}x{}'.format(*bundle.input_size)
    parts = (bundle.cache_name, size, backend, precision, cpu_identity())
    return user_cache() / 'agreement' / f'{"-".join(parts)}.json'


def write_agreement(bundle: ModelBundle, agreement: Agreement) -> Path:
    """Keep an agreement that was measured, in place of an older one; returns the file.

    Raises:
        EngineError: the file cannot be written.
    """
    path = record_path(bundle, agreement.backend, agreement.precision)
    entries = {'onnx_sha256': bundle.weights_sha256, **asdict(agreement)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(entries, indent=1) + '\n').encode())
    except OSError as error:
        raise EngineError(
            f'the agreement cannot be kept in {path} ({error.strerror}); set XDG_CACHE_HOME to a '
            'folder that can be written to'
        ) from error
    return path


def require_agreement(bundle: ModelBundle, backend: str, version: str, precision: str) -> None:
    """Refuse a precision that has not been seen to give the same labels.

    Args:
        bundle: the network, at its input size.
        backend, version, precision: what is about to compute.

    Raises:
        EngineError: not measured for this network, processor and version, on too few frames, or
            with too low an outcome.
    """
    path = record_path(bundle, backend, precision)
    remedy = f'measure it with: rgbd-fusion-seg benchmark {bundle.path} --frames FOLDER_OR_BAG'
    what = f'{backend} in {precision}'
    try:
        entries = json.loads(path.read_text(encoding='utf-8'))
        sha256 = entries.pop('onnx_sha256')
        found = Agreement(**entries)
        enough = found.frames >= MIN_FRAMES and found.label_agreement >= MIN_AGREEMENT
    except FileNotFoundError:
        raise EngineError(
            f'whether {what} gives the labels of float32 with {bundle.name} on this processor is '
            f'not known; {remedy}'
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineError(f'{path} cannot be read ({error}); {remedy}') from error
    if (sha256, found.version) != (bundle.weights_sha256, version):
        raise EngineError(
            f'the agreement of {what} was measured with version {found.version} or another '
            f'network, here is {version}; {remedy}'
        )
    if not enough:
        raise EngineError(
            f'{what} gave {found.label_agreement:.2%} of the labels of float32 on '
            f'{found.frames} frames with {bundle.name}; {MIN_AGREEMENT:.1%} on {MIN_FRAMES} are '
            'asked for: keep fp32, or give unchecked=True'
        )
