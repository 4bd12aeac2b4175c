"""The pipeline: one RGB-D frame in, one segmentation out."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from rgbd_fusion_seg import hha as hha_encoding
from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE, ModelBundle, TensorInput, load_bundle
from rgbd_fusion_seg.depth import has_few_readings
from rgbd_fusion_seg.engine import Engine, StepDown, open_engine
from rgbd_fusion_seg.errors import (
    BundleError,
    EngineError,
    FrameError,
    InputError,
    RgbdFusionSegError,
)
from rgbd_fusion_seg.frame import (
    SENSORS,
    UNLABELLED,
    RgbdFrame,
    Segmentation,
    blank_frame,
    half_frame,
)
from rgbd_fusion_seg.hardware import release_freed_memory
from rgbd_fusion_seg.postprocess import labels_and_confidence
from rgbd_fusion_seg.preprocess import (
    depth_image,
    depth_tensor,
    hha_image,
    hha_tensor,
    rgb_tensor,
)

_log = logging.getLogger(__name__)


def log_step_down(step_down: StepDown) -> None:
    """Tell the log of a backend that was passed over: a warning where nobody expects it."""
    _log.log(logging.WARNING if step_down.unexpected else logging.INFO, '%s', step_down)


class Segmenter:
    """Labels RGB-D frames with a bundle's network.

    Frames may have any size; the network sees them at the size on its card, and the labels have
    the frame's size again. One thread may use a segmenter at a time: its input buffers are
    reused from frame to frame. Results are the caller's to keep.

    With the backend ``auto``, an engine that fails while it runs gives way to the next one that
    can run here, and the frame at hand is labelled by that one.

    A bundle may hold networks that answer from one sensor alone (`ModelBundle.single_sensor`);
    each is opened when it is first needed, with the same backend and options. One that has learnt
    to do without a sensor (`ModelBundle.copes_without`) answers itself, and sees that half blank.

    Args:
        bundle: a loaded bundle, its folder, or the name of a shipped one.
        backend: inference backend, see :func:`rgbd_fusion_seg.engine.open_engine`.
        min_confidence: pixels with a confidence (0..255) below this become unlabelled.
        input_size: width and height at which the network sees frames (its depth stream may see
            a fraction of them); default: as on the card. Bundles with a dynamic size alone take
            another one.
        on_step_down: told once of each better backend that ``auto`` could not take or that failed
            while it ran; by default they are logged.
        preload_single_sensor: open what answers from one sensor alone now, so that its first
            frame does not wait for it; it then takes its memory from the beginning.
        options: of the backend, such as ``num_threads``.

    Raises:
        BundleError, EngineError: as :func:`load_bundle`, :meth:`ModelBundle.resized` and
            :func:`open_engine`.
        InputError: a `min_confidence` outside 0..255.

    Example:
        >>> with Segmenter('rfbnet_erfnet_nyu40') as segmenter:  # doctest: +SKIP
        ...     result = segmenter.segment(frame)
        ...     print(result.labels.shape, result.timings)
    """

    def __init__(
        self,
        bundle: ModelBundle | str | os.PathLike[str] = DEFAULT_BUNDLE,
        backend: str = 'auto',
        *,
        min_confidence: int = 0,
        input_size: tuple[int, int] | None = None,
        on_step_down: Callable[[StepDown], None] = log_step_down,
        preload_single_sensor: bool = False,
        **options: Any,
    ) -> None:
        if not 0 <= min_confidence <= 255:
            raise InputError(f'min_confidence must be 0..255, got {min_confidence}')
        self.bundle = bundle if isinstance(bundle, ModelBundle) else load_bundle(bundle)
        if input_size is not None:
            self.bundle = self.bundle.resized(*input_size)
        if self._encodes_depth:
            _check_hha_constants(self.bundle)
        self._engine = open_engine(self.bundle, backend, **options)
        self._backend, self._options = backend, options
        self._failed: tuple[StepDown, ...] = ()
        self._told: set[StepDown] = set()
        self._alone: dict[str, Segmenter] = {}
        self._successor: Engine | None = None
        self._changing = threading.Lock()
        self._closed = False
        self._on_step_down = on_step_down
        self._min_confidence = min_confidence
        staged = self.bundle.inputs if self.bundle.fused is None else {}
        self._buffers = {name: _empty_tensor(size) for name, size in staged.items()}
        self._tell_step_downs()
        if preload_single_sensor:
            self._open_all_alone()

    @property
    def _encodes_depth(self) -> bool:
        """Whether HHA is made here: not where no network wants it, nor where the graph does."""
        fused = self.bundle.fused
        return self.bundle.hha is not None and not (fused is not None and fused.hha)

    @property
    def engine(self) -> Engine:
        """The engine in use."""
        return self._engine

    @property
    def engine_name(self) -> str:
        """Backend and device, for people."""
        return self._engine.name

    @property
    def engine_names_alone(self) -> dict[str, str]:
        """By sensor, the name of the engine that answers from it alone, where one is open."""
        return {sensor: alone.engine_name for sensor, alone in self._alone.items()}

    @property
    def step_downs(self) -> tuple[StepDown, ...]:
        """The better backends that are not in use, and why."""
        return self._engine.step_downs

    def replace_engine(self, engine: Engine) -> None:
        """Label the following frames with another engine of the same bundle; returns at once.

        Any thread may call this while another one segments. The frame under way is finished
        with the present engine, which is closed before the next one begins. The new engine
        belongs to the segmenter from now on; one that is closed already closes it.
        """
        with self._changing:
            waiting, self._successor = self._successor, None if self._closed else engine
            unused = engine if self._closed else waiting
        if unused is not None:
            _close(unused)

    def segment(
        self,
        frame: RgbdFrame,
        gravity: np.ndarray | None = None,
        only: str = '',
        camera_height: float | None = None,
    ) -> Segmentation:
        """Label a frame.

        A frame with hardly any depth (`depth.FEW_READINGS`) is labelled from colour alone, where
        the bundle can do that, else by the network for both as far as it goes; a network that sees
        depth alone then has nothing to go by. `Segmentation.sensors` tells what labels rest on.

        Args:
            frame: colour and registered depth.
            gravity: (3,) direction of gravity in optical axes (x right, y down, z forward), for
                instance from TF or an IMU; default: estimated from the depth.
            only: answer from this sensor alone, 'rgb' or 'depth'; the other half of the frame
                is not looked at.
            camera_height: of the camera above the floor in metres; default: guessed from the
                depth, wrongly where it is below 0.9 m (`hha.encode_hha`).

        Returns:
            Labels and confidence at the frame's size, with its stamp and frame id, and the
            milliseconds of the stages ``hha`` (where the network sees HHA), ``preprocess``,
            ``inference``, ``postprocess``. What a fused bundle's graph does counts as inference.

        Raises:
            FrameError: a fused bundle, and a frame of another size than its graph's; or, where
                the network sees HHA, a gravity or height that is none.
            InputError: `only` is no sensor.
            BundleError: the bundle cannot answer from that sensor alone.
            EngineError: inference failed and no other backend can take over, or the segmenter
                is closed.
        """
        if only not in ('', *SENSORS):
            raise InputError(f"only must be '' or one of {', '.join(SENSORS)}, got {only!r}")
        has_choice = not only and not self.bundle.sole_sensor
        if has_choice and self.bundle.alone('rgb') is not None:
            only = 'rgb' if has_few_readings(frame.depth) else ''
        sensors = (only,) if only else self.bundle.sensors
        if sensors != self.bundle.sensors:
            if self.bundle.answering_alone(only) is not self.bundle:
                return self._opened_alone(only).segment(frame, gravity, '', camera_height)
            frame = half_frame(frame, only)
            if only == 'rgb':  # as it learnt it, which tells nothing of the camera
                gravity = camera_height = None
        if self._successor is not None:
            self._install_successor()
        while True:
            try:
                return self._segment(frame, gravity, camera_height, sensors)
            except EngineError as error:
                self._step_down(error)

    def _segment(
        self,
        frame: RgbdFrame,
        gravity: np.ndarray | None,
        camera_height: float | None,
        sensors: tuple[str, ...],
    ) -> Segmentation:
        clock = _StageClock()
        run = self._run_stages if self.bundle.fused is None else self._run_fused
        labels, confidence = run(frame, gravity, camera_height, clock)
        if self._min_confidence:
            labels[confidence < self._min_confidence] = UNLABELLED
        clock.finish('postprocess')
        return Segmentation(
            labels,
            confidence,
            clock.stages_ms,
            frame.stamp_ns,
            frame.frame_id,
            sensors,
        )

    def _run_stages(
        self,
        frame: RgbdFrame,
        gravity: np.ndarray | None,
        camera_height: float | None,
        clock: _StageClock,
    ) -> tuple[np.ndarray, np.ndarray]:
        rgb, hha, tensors = self.bundle.rgb, self.bundle.hha, self._buffers
        if hha is not None:
            size = hha.width, hha.height
            image = hha_image(frame.depth, frame.intrinsics, *size, gravity, camera_height)
            clock.finish('hha')
            hha_tensor(image, hha, out=tensors['hha'])
        if rgb is not None:
            rgb_tensor(frame.rgb, rgb, out=tensors['rgb'])
        if (metres := self.bundle.depth) is not None:
            image = depth_image(frame.depth, metres.width, metres.height)
            depth_tensor(image, metres, out=tensors['depth'])
        clock.finish('preprocess')
        logits = self._engine.infer(**tensors)
        clock.finish('inference')
        return labels_and_confidence(logits, *frame.depth.shape, self.bundle.temperature)

    def _run_fused(
        self,
        frame: RgbdFrame,
        gravity: np.ndarray | None,
        camera_height: float | None,
        clock: _StageClock,
    ) -> tuple[np.ndarray, np.ndarray]:
        _check_size(frame, self.bundle)
        hha, camera = self.bundle.hha, frame.intrinsics
        feeds = {}
        if self._encodes_depth:
            size = hha.width, hha.height
            image = hha_image(frame.depth, camera, *size, gravity, camera_height)
            clock.finish('hha')
            feeds['hha'] = image[None]
        elif hha is not None:
            down = np.zeros(3) if gravity is None else hha_encoding.unit_direction(gravity)
            height = 0.0 if camera_height is None else hha_encoding.checked_height(camera_height)
            feeds['depth'] = np.ascontiguousarray(frame.depth)[None]
            feeds['intrinsics'] = np.float32([camera.fx, camera.fy, camera.cx, camera.cy])
            feeds['gravity'] = down.astype(np.float32)
            feeds['camera_height'] = np.float32([height])
        if self.bundle.rgb is not None:
            feeds['rgb'] = np.ascontiguousarray(frame.rgb)[None]
        clock.finish('preprocess')
        outputs = self._engine.run(feeds)
        clock.finish('inference')
        return outputs['labels'][0], outputs['confidence'][0]

    def warm_up(self) -> None:
        """Segment an empty frame, so that the first real one is not slow.

        The very first time on a machine this compiles the kernels, which takes some seconds.
        """
        self.segment(blank_frame(*self.bundle.frame_size))
        for alone in self._alone.values():
            alone.warm_up()
        release_freed_memory()  # 1 to 2 MB that loading the kernels left

    def close(self) -> None:
        """Free the engines; closing again does nothing."""
        with self._changing:
            self._closed = True
            successor, self._successor = self._successor, None
            alone = list(self._alone.values())
        for segmenter in alone:
            segmenter.close()
        _close(self._engine)
        if successor is not None:
            _close(successor)

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answers_for(self, sensor: str) -> bool:
        """Whether another network of the bundle answers from one sensor alone."""
        return self.bundle.alone(sensor) not in (None, self.bundle)

    def _open_all_alone(self) -> None:
        try:
            for sensor in filter(self._answers_for, SENSORS):
                self._opened_alone(sensor)
        except RgbdFusionSegError:
            self.close()
            raise

    def _opened_alone(self, sensor: str) -> Segmenter:
        """Return the segmenter of the network that answers from one sensor alone."""
        if sensor in self._alone:
            return self._alone[sensor]
        bundle = self.bundle.answering_alone(sensor)
        # A file named for this engine is of this network.
        options = {name: value for name, value in self._options.items() if name != 'engine_file'}
        alone = Segmenter(
            bundle,
            self._backend,
            min_confidence=self._min_confidence,
            on_step_down=self._tell,
            **options,
        )
        with self._changing:
            if not self._closed:
                self._alone[sensor] = alone
        if self._closed:
            alone.close()
        return alone

    def _install_successor(self) -> None:
        with self._changing:
            successor, self._successor = self._successor, None
        if successor is not None:
            self._take(successor)

    def _step_down(self, error: EngineError) -> None:
        """Go on with the next backend after a failure, or raise the error where none is left."""
        if self._backend != 'auto' or self._closed:
            raise error
        failed = StepDown(self._engine.backend, str(error), unexpected=True)
        try:
            engine = open_engine(self.bundle, failed=(*self._failed, failed), **self._options)
        except RgbdFusionSegError:
            raise error from None
        self._failed += (failed,)
        self._take(engine)
        self._tell_step_downs()

    def _take(self, engine: Engine) -> None:
        with self._changing:
            former = engine
            if not self._closed:
                former, self._engine = self._engine, engine
        _close(former)

    def _tell_step_downs(self) -> None:
        for step_down in self._engine.step_downs:
            self._tell(step_down)

    def _tell(self, step_down: StepDown) -> None:
        if step_down not in self._told:
            self._told.add(step_down)
            self._on_step_down(step_down)


def _close(engine: Engine) -> None:
    with suppress(EngineError):  # a device that was lost cannot be freed
        engine.close()


def _check_hha_constants(bundle: ModelBundle) -> None:
    """Refuse a network that was trained on HHA of another kind than is computed here."""
    recorded = bundle.card.get('hha')
    if not isinstance(recorded, dict):
        raise BundleError(
            f"the card of {bundle.path} lacks the entry 'hha' with the constants of its depth "
            'encoding; export the bundle again'
        )
    for name, value in hha_encoding.constants().items():
        if recorded.get(name) != value:
            raise BundleError(
                f'the network {bundle.path} was trained on HHA with {name} = '
                f'{recorded.get(name)}, but this version computes it with {value}; use the '
                'version it was exported with, or train it again'
            )


def _check_size(frame: RgbdFrame, bundle: ModelBundle) -> None:
    fused, (height, width) = bundle.fused, frame.depth.shape
    if (width, height) != (fused.width, fused.height):
        raise FrameError(
            f'the fused bundle {bundle.name} takes {fused.width}x{fused.height} frames only, got '
            f'{width}x{height}; fuse {fused.base_name} for that size, or use it as it is: it '
            'takes frames of any size'
        )


class _StageClock:
    """Measures consecutive stages in milliseconds."""

    def __init__(self) -> None:
        self.stages_ms: dict[str, float] = {}
        self._since = time.perf_counter()

    def finish(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages_ms[stage] = (now - self._since) * 1e3
        self._since = now


def _empty_tensor(size: TensorInput) -> np.ndarray:
    return np.empty((1, 3, size.height, size.width), dtype=np.float32)
