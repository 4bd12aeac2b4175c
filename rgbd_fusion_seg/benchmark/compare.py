"""Compare the engines that can run here: in turn, on the same frames, through the pipeline."""

from __future__ import annotations

import datetime
import functools
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rgbd_fusion_seg.benchmark.busy import busy_processes
from rgbd_fusion_seg.benchmark.footprint import footprint
from rgbd_fusion_seg.benchmark.report import recommendation
from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.engine import BACKENDS, Backend, available_backends
from rgbd_fusion_seg.engine.agreement import MIN_FRAMES, Agreement, write_agreement
from rgbd_fusion_seg.engine.cuda import find_device
from rgbd_fusion_seg.engine.engine_files import EngineCard, belongs_to, list_engines
from rgbd_fusion_seg.errors import EngineError, InputError
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.hardware import hardware
from rgbd_fusion_seg.progress import progress_bar
from rgbd_fusion_seg.replay.pictures import evenly
from rgbd_fusion_seg.replay.segment import FrameSource, open_source
from rgbd_fusion_seg.segmenter import Segmenter
from rgbd_fusion_seg.timing import in_turn, percentiles_ms

_log = logging.getLogger(__name__)

REFERENCE = 'onnxruntime'
"""The backend whose labels, in float32, are the yardstick."""
_WARMUP = 3


class Contender(NamedTuple):
    """An engine with its options."""

    label: str
    backend: str
    options: dict[str, Any]


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure.

    Args:
        backends: names; empty: all that can run here.
        repeats: rounds that are timed; one round labels a frame with each engine.
        load: busy processes beside a second series of rounds; 0: no such series.
        contenders: instead of those that `backends` stands for.
    """

    backends: tuple[str, ...] = ()
    repeats: int = 50
    load: int = 0
    contenders: tuple[Contender, ...] = ()


class Frames(NamedTuple):
    """What is labelled."""

    frames: list[RgbdFrame]
    source: str
    real: bool


def frames_of(
    path: Path | None, count: int, bundle: ModelBundle | None = None, **camera: Any
) -> Frames:
    """Return frames from all over a recording or, without one, views of synthetic rooms.

    Args:
        path: folder or bag, as of ``rgbd-fusion-seg segment``.
        count: of frames, at most.
        bundle: what will label them, if they are to suit it.
        camera: calibration and depth scale of the recording, as of `open_source`.

    Raises:
        InputError: a recording that cannot be used.
    """
    if path is None:
        return synthetic_frames(count, bundle)
    source = open_source(path, only=bundle.sole_sensor if bundle else '', **camera)
    return recorded_frames(source, path, count)


def recorded_frames(source: FrameSource, path: Path, count: int) -> Frames:
    """Return frames from all over a recording.

    Raises:
        InputError: the recording has none.
    """
    wanted = set(evenly(len(source), min(count, len(source))))
    last = max(wanted, default=-1)
    frames = [f for i, f in enumerate(islice(source, last + 1)) if i in wanted]
    if not frames:
        raise InputError(f'{path} has no frames to compare engines on')
    return Frames(frames, str(path), real=True)


def synthetic_frames(count: int, bundle: ModelBundle | None = None) -> Frames:
    """Return views of synthetic rooms with Kinect-like depth, each of another room.

    They are 640x480, or of the one size that a fused bundle takes.
    """
    from rgbd_fusion_seg.synthetic.scene import KINECT, Room
    from rgbd_fusion_seg.synthetic.sensor import simulate_kinect

    camera = KINECT
    if bundle is not None and bundle.fused is not None:
        camera = KINECT.resized(bundle.fused.width, bundle.fused.height)
    frames = []
    for seed in range(count):
        rng = np.random.Generator(np.random.PCG64(seed))
        room = Room.random(seed)
        view = room.render(room.random_pose(rng), camera)
        depth = simulate_kinect(view.depth, camera, rng, view.labels, rgb=view.rgb)
        frames.append(RgbdFrame(view.rgb, depth, camera))
    return Frames(frames, 'synthetic rooms', real=False)


def find_contenders(
    bundle: ModelBundle, backends: Sequence[str] = ()
) -> tuple[list[Contender], dict[str, str]]:
    """Return the engines that may run here, and why the others do not.

    Raises:
        EngineError: a backend that was asked for is unknown or cannot run here.
    """
    if unknown := sorted(set(backends) - set(BACKENDS)):
        raise EngineError(
            f'there is no inference backend {unknown[0]!r}; choose from: {", ".join(BACKENDS)}'
        )
    found: list[Contender] = []
    passed: dict[str, str] = {}
    for backend in available_backends():
        if backends and backend.name not in backends:
            continue
        if not backend.usable:
            if backends:
                raise EngineError(f'{backend.name} cannot run here: {backend.detail}')
            passed[backend.name] = backend.detail
            continue
        found += _forms(backend, bundle)
    # The yardstick comes first: ratios refer to it.
    return sorted(found, key=lambda contender: contender.backend != REFERENCE), passed


def _forms(backend: Backend, bundle: ModelBundle) -> Iterator[Contender]:
    """Yield the forms in which a backend may run a bundle."""
    name = backend.name
    if name == 'openvino':
        yield Contender('openvino fp32', name, {})
        # Unchecked, for this is what checks it.
        yield Contender('openvino bf16', name, {'precision': 'bf16', 'unchecked': True})
    elif name == 'onnxruntime_gpu':
        for provider in ('cuda', 'tensorrt'):
            yield Contender(f'onnxruntime_gpu {provider}', name, {'provider': provider})
    elif name == 'tensorrt':
        for path, card in list_engines(bundle).items():
            if isinstance(card, EngineCard) and belongs_to(card, bundle):
                label = f'tensorrt {card.precision} ({path.stem})'
                yield Contender(label, name, {'engine_file': str(path)})
    else:
        yield Contender(name, name, {})


def compare(
    bundle: ModelBundle, frames: Frames, options: BenchmarkOptions, progress: bool = False
) -> dict[str, Any]:
    """Measure engines on frames.

    Every round labels one frame with each engine, so that a change of load on the machine meets
    all of them alike.

    Args:
        bundle: at the input size that is to be measured.
        frames: what to label; with real ones, agreement of less exact arithmetic is kept for
            :mod:`rgbd_fusion_seg.engine.agreement`.
        options: what to measure.
        progress: show a progress bar on stderr.

    Returns:
        What goes into the JSON file: ``engines`` (a list, see the code of this module for its
        entries; without those of memory where ``memory of LABEL`` was not compared),
        ``not_compared`` (label -> reason), ``recommendation``, and what it was measured on.

    Raises:
        EngineError: none of the engines can run here, or one failed while it ran.
    """
    if options.contenders:
        contenders, passed = list(options.contenders), {}
    else:
        contenders, passed = find_contenders(bundle, options.backends)
    series = 1 + bool(options.load)
    # Once more each frame for the yardstick, rounds, and processes for memory.
    steps = (len(contenders) + 1) * len(frames.frames) + len(contenders)
    steps += series * (options.repeats + _WARMUP)
    with progress_bar(total=steps, disable=not progress, unit='step') as bar:
        with ExitStack() as opened:
            segmenters = _opened(bundle, contenders, passed, opened)
            rows = _agreements(bundle, contenders, segmenters, frames, bar)
            _time(segmenters, frames.frames, options, rows, bar)
        _footprints(bundle, rows, passed, bar)
    kept = _keep_agreements(bundle, rows, frames)
    return {
        'hardware': {**hardware(), 'gpu': _gpu()},
        'bundle': bundle.name,
        'onnx_sha256': bundle.weights_sha256,
        'graph_sha256': graph_sha256(bundle.weights_path),
        'input_size': '{}x{}'.format(*bundle.input_size),
        'frames': len(frames.frames),
        'source': frames.source,
        'real_frames': frames.real,
        'repeats': options.repeats,
        'busy_processes': options.load,
        'engines': rows,
        'not_compared': passed,
        'kept': list(kept.values()),
        'recommendation': recommendation(rows, kept),
    }


def graph_sha256(file: Path) -> str | None:
    """Return the SHA-256 of an ONNX graph without weights and notes, on which times depend.

    None where onnx is not installed.
    """
    try:
        import onnx
    except ImportError:
        return None
    model = onnx.load(file)
    graph = model.graph
    tensors = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for part in (model, graph, *graph.node, *tensors):
        part.ClearField('metadata_props')
    # Whole numbers are no weights: how often to repeat, where to cut, the shape to take.
    weights = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    for tensor in graph.initializer:
        if tensor.data_type in weights:
            for values in ('raw_data', 'float_data', 'int32_data'):
                tensor.ClearField(values)
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _opened(
    bundle: ModelBundle,
    contenders: Sequence[Contender],
    passed: dict[str, str],
    opened: ExitStack,
) -> dict[str, Segmenter]:
    """Return a segmenter for each contender that can be opened by label; add why to `passed`."""
    segmenters = {}
    for contender in contenders:
        try:
            segmenter = Segmenter(bundle, contender.backend, **contender.options)
            segmenters[contender.label] = opened.enter_context(segmenter)
        except EngineError as error:
            passed[contender.label] = str(error)
    if not segmenters:
        reasons = '; '.join(f'{name}: {reason}' for name, reason in passed.items())
        raise EngineError(f'no engine can run {bundle.name} here: {reasons}')
    return segmenters


def label_agreement(
    labels: Iterable[np.ndarray], expected: Iterable[np.ndarray]
) -> tuple[float, float]:
    """Return the share of pixels with the same label, of all and of the frame where it is least.

    Args:
        labels, expected: uint8 (H, W), frame by frame.
    """
    equal = [found == wanted for found, wanted in zip(labels, expected, strict=True)]
    pixels = sum(e.size for e in equal)
    return sum(int(e.sum()) for e in equal) / pixels, min(float(e.mean()) for e in equal)


def _agreements(
    bundle: ModelBundle,
    contenders: Sequence[Contender],
    segmenters: dict[str, Segmenter],
    frames: Frames,
    bar: Any,
) -> list[dict[str, Any]]:
    """Label all frames with all engines; returns the beginnings of the rows of the result."""
    bar.set_description('labels')

    def labels_of(segmenter: Segmenter) -> list[np.ndarray]:
        found = []
        for frame in frames.frames:
            found.append(segmenter.segment(frame).labels)
            bar.update()
        return found

    with Segmenter(bundle, REFERENCE) as reference:
        expected = labels_of(reference)
    rows = []
    for contender in contenders:
        if contender.label not in segmenters:
            continue
        segmenter = segmenters[contender.label]
        share, lowest = label_agreement(labels_of(segmenter), expected)
        rows.append(
            {
                **contender._asdict(),
                'engine': segmenter.engine_name,
                'label_agreement': share,
                'lowest_of_a_frame': lowest,
            }
        )
    return rows


def _time(
    segmenters: dict[str, Segmenter],
    frames: Sequence[RgbdFrame],
    options: BenchmarkOptions,
    rows: Sequence[dict[str, Any]],
    bar: Any,
) -> None:
    """Add the times of a frame and of inference to the rows, without and with load."""
    for key, load in {'alone': 0, 'loaded': options.load}.items():
        if key == 'loaded' and not load:
            continue
        bar.set_description(f'{load} busy processes' if load else 'timing')
        rounds = _Rounds(segmenters, frames, bar)
        callables = {label: functools.partial(rounds.label, label) for label in segmenters}
        with busy_processes(load):
            seconds = in_turn(callables, options.repeats, _WARMUP, after_round=rounds.turn)
        for row in rows:
            stage_ms = rounds.inference_ms[row['label']][-options.repeats :]
            row[key] = {
                'frame_ms': percentiles_ms(seconds[row['label']]),
                'inference_ms': percentiles_ms(np.array(stage_ms) * 1e-3),
            }


class _Rounds:
    """Labels one frame after the other, each with all engines."""

    def __init__(
        self, segmenters: dict[str, Segmenter], frames: Sequence[RgbdFrame], bar: Any
    ) -> None:
        self._segmenters, self._frames, self._bar = segmenters, frames, bar
        self._index = 0
        self.inference_ms: dict[str, list[float]] = {label: [] for label in segmenters}

    def label(self, engine: str) -> None:
        result = self._segmenters[engine].segment(self._frames[self._index])
        self.inference_ms[engine].append(result.timings['inference'])

    def turn(self) -> None:
        self._index = (self._index + 1) % len(self._frames)
        self._bar.update()


def _footprints(
    bundle: ModelBundle, rows: Sequence[dict[str, Any]], passed: dict[str, str], bar: Any
) -> None:
    """Add what each engine costs in a process of its own to the rows, or why not to `passed`."""
    bar.set_description('memory')
    for row in rows:
        try:
            row.update(footprint(bundle, row['backend'], row['options']))
        except EngineError as error:
            passed[f'memory of {row["label"]}'] = str(error)
        bar.update()


def _keep_agreements(
    bundle: ModelBundle, rows: Sequence[dict[str, Any]], frames: Frames
) -> dict[str, str]:
    """Keep what opens the gate before less exact arithmetic; returns the files by label."""
    if not frames.real or len(frames.frames) < MIN_FRAMES:
        return {}
    versions = {backend.name: backend.detail for backend in available_backends()}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat('T', 'seconds')
    kept = {}
    for row in rows:
        if not row['options'].get('unchecked'):
            continue
        agreement = Agreement(
            backend=row['backend'],
            version=versions[row['backend']],
            precision=row['options']['precision'],
            label_agreement=row['label_agreement'],
            lowest_of_a_frame=row['lowest_of_a_frame'],
            frames=len(frames.frames),
            source=frames.source,
            measured_at=now,
        )
        try:
            kept[row['label']] = _from_home(write_agreement(bundle, agreement))
        except EngineError as error:
            _log.warning('%s', error)
    return kept


def _from_home(path: Path) -> str:
    """Return a path as ``~/…`` where it lies there, so that results tell nothing of a user."""
    home = Path(os.path.expanduser('~'))
    return f'~/{path.relative_to(home)}' if path.is_relative_to(home) else str(path)


def _gpu() -> str | None:
    try:
        return str(find_device())
    except EngineError:
        return None
