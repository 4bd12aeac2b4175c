"""What the inference thread does with a pair of messages: read, segment, publish, count."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

import numpy as np
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from rgbd_fusion_seg.errors import EngineError, FrameError, RgbdFusionSegError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.image_decoding import intrinsics_from_info, stamp_to_ns
from rgbd_fusion_seg.plausibility import FloorGuess, camera_fault, height_fault
from rgbd_fusion_seg.ros.camera_pose import CameraPose, FloorFrame
from rgbd_fusion_seg.ros.diagnostics import ERROR, Health
from rgbd_fusion_seg.ros.images import (
    OtherImage,
    frame_from_msgs,
    info_from_intrinsics,
    raw_image,
)
from rgbd_fusion_seg.ros.parameters import SegmentationConfig
from rgbd_fusion_seg.ros.publishers import SegmentationPublishers
from rgbd_fusion_seg.segmenter import Segmenter

CLOCK_JUMPED = 'clock jumped'
"""Why pairs are dropped whose stamps belong to a time that is over."""
FLOOR_PERIOD_S = 1.0
"""How often it is looked whether HHA guesses the floor, which takes half a millisecond."""
_VARYING = re.compile(
    r"""(?<!\w)'(?:[^'\\]|\\.)*'|(?<!\w)"(?:[^"\\]|\\.)*"|0x[0-9a-f]+|[-+.\d]+"""
)
"""Sentences that differ only in what they quote and in numbers are one to the log's throttle."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Full names of the subscribed topics."""

    color: str
    depth: str
    info: str


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A job for the inference thread.

    Args:
        color, depth: the two images; one is None where it is lost and the other goes on alone.
        info: the newest calibration of the colour camera, None before the first. It is no third
            stream to match, for it hardly ever changes, and many drivers send it only once or
            at another rate than images.
        arrived_s: monotonic time at which the pair was complete.
        epoch: number of the time its stamps belong to; every clock jump starts a new one.
    """

    color: Image | OtherImage | None
    depth: Image | OtherImage | None
    info: CameraInfo | None
    arrived_s: float
    epoch: int

    @property
    def leading(self) -> Image | OtherImage:
        """The image whose stamp the labels get: colour, unless it is lost."""
        return self.depth if self.color is None else self.color

    def raw(self, topics: Topics) -> Pair:
        """Return the pair of image messages that compressed ones and disparity amount to.

        Raises:
            FrameError: one cannot be read.
        """
        return replace(
            self,
            color=self.color and raw_image(self.color, 'rgb', topics.color),
            depth=self.depth and raw_image(self.depth, 'depth', topics.depth),
        )

    @property
    def only(self) -> str:
        """The sensor of `frame.SENSORS` that goes on alone; empty where both do."""
        if self.color is None:
            return 'depth'
        return 'rgb' if self.depth is None else ''


class Calibration(NamedTuple):
    """What is known of a pair's camera: its intrinsics, and the CameraInfo to send on, if any."""

    intrinsics: Intrinsics
    info: CameraInfo | None


class PairProcessor:
    """Turns pairs into published segmentations, on the inference thread.

    Args:
        segmenter: the network.
        publishers: where results go.
        health: where counts and complaints go.
        config: the node's parameters.
        topics: names for complaints.
        floor: where TF tells how the camera stands above the floor.
        now_ns: the node's clock in nanoseconds, for the age of stamps.
        epoch: returns the present epoch; pairs of another one are dropped.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        publishers: SegmentationPublishers,
        health: Health,
        config: SegmentationConfig,
        topics: Topics,
        floor: FloorFrame | None = None,
        *,
        now_ns: Callable[[], int],
        epoch: Callable[[], int],
    ) -> None:
        self._segmenter, self._publishers = segmenter, publishers
        self._health, self._config, self._topics = health, config, topics
        self._floor, self._now_ns, self._epoch = floor, now_ns, epoch
        self._color_frame_id = ''
        self._floor_guess, self._floor_seen_s = FloorGuess(), -inf

    def process(self, pair: Pair) -> None:
        """Segment a pair and publish the result; drop it, with a reason, where that is due.

        Raises:
            FrameError: the messages cannot be used.
            EngineError: inference failed.
        """
        if self._config.output.lazy and not self._publishers.wanted():
            return self._health.dropped('nobody subscribes')
        age_s = self._age_s(pair)
        self._health.saw_age(age_s)
        if age_s is not None and 0 < self._config.sync.max_age_s < age_s:
            return self._drop_old(age_s)
        try:
            calibration, frame = self._read(pair)
        except FrameError as error:
            alone = self._seen_alone(pair)
            if alone is None:
                raise
            calibration, frame = self._read(alone)
            self._tell_unseen(alone, error)
            pair = alone
        if calibration is None:
            return self._health.dropped('no camera info yet')
        if pair.depth is not None:
            self._health.saw_depth(frame.depth, self._segmenter.bundle.depth_range_m)
        gravity, height_m = self._pose(frame)
        self._check_floor(pair, frame, gravity, height_m)
        result = self._segmenter.segment(frame, gravity, pair.only, height_m)
        if pair.epoch != self._epoch():
            return self._health.dropped(CLOCK_JUMPED)
        header = pair.leading.header
        if pair.color is None:  # which may name the frame of the depth sensor
            header = Header(stamp=header.stamp, frame_id=frame.frame_id)
        self._publishers.publish(frame, result, header, calibration.info)
        age_s = self._age_s(pair)
        self._health.published(
            latency_ms=(time.monotonic() - pair.arrived_s) * 1e3,
            age_ms=None if age_s is None else age_s * 1e3,
            timings=result.timings,
            sensors=result.sensors,
        )

    def failed(self, error: Exception) -> None:
        """Count and complain about what :meth:`process` raised; the stream goes on."""
        reason = 'internal error'
        if isinstance(error, FrameError):
            reason = 'unusable input'
        elif isinstance(error, EngineError):
            reason = 'engine error'
        sentence = str(error)
        if not isinstance(error, RgbdFusionSegError):
            sentence = ''.join(traceback.format_exception(error))
        self._health.dropped(reason)
        self._health.complain(_VARYING.sub('#', sentence), sentence, ERROR)

    def _read(self, pair: Pair) -> tuple[Calibration, RgbdFrame] | tuple[None, None]:
        """Return a pair's calibration and frame; None before there is any calibration."""
        pair = pair.raw(self._topics)
        calibration = self._calibration(pair)
        if calibration is None:
            return None, None
        if pair.color is not None:
            self._color_frame_id = pair.color.header.frame_id
        frame = frame_from_msgs(
            pair.color,
            pair.depth,
            calibration.intrinsics,
            topics=(self._topics.color, self._topics.depth),
            require_same_frame=self._config.camera.require_same_frame,
            frame_id=self._color_frame_id,
        )
        return calibration, frame

    def _seen_alone(self, pair: Pair) -> Pair | None:
        """Return a pair without the image that the network does not see; None if it needs both."""
        sensor = self._segmenter.bundle.sole_sensor
        if pair.only or not sensor:
            return None
        if sensor == 'rgb':
            return replace(pair, depth=None)
        self._color_frame_id = ''  # depth that does not fit colour has a frame of its own
        return replace(pair, color=None)

    def _tell_unseen(self, alone: Pair, error: FrameError) -> None:
        answers = 'colour alone and go on, but segmentation/points stay empty'
        if alone.color is None:
            answers = 'depth alone and go on, but pictures are grey'
        self._health.complain('unseen sensor', f'{error}; labels rest on {answers}')

    def _pose(self, frame: RgbdFrame) -> CameraPose:
        """Return what is known of the camera's pose; it matters to HHA alone."""
        if self._floor is None:
            height_m = self._config.camera.height_m or None
            if fault := height_fault(height_m):
                self._health.complain(
                    'camera height', f'camera.height_m: {fault}', log_period_s=inf
                )
            return CameraPose(height_m=height_m)
        try:
            return self._floor.pose_of(frame.frame_id)
        except FrameError as error:
            sentence = f'{error}; until then gravity and height are estimated from the depth'
            self._health.complain('floor frame', sentence)
            return CameraPose()

    def _check_floor(
        self,
        pair: Pair,
        frame: RgbdFrame,
        gravity: np.ndarray | None,
        height_m: float | None,
    ) -> None:
        """Complain of a floor that HHA guesses wherever the camera looks."""
        if pair.depth is None or height_m is not None or self._segmenter.bundle.hha is None:
            return
        if (now_s := time.monotonic()) < self._floor_seen_s + FLOOR_PERIOD_S:
            return
        self._floor_seen_s = now_s
        if fault := self._floor_guess.fault(frame.depth, frame.intrinsics, gravity):
            self._health.complain(
                'floor guess',
                f'{fault}; if it is the floor, set camera.height_m or camera.floor_frame, or the '
                'floor is labelled as furniture',
                log_period_s=inf,
            )

    def _age_s(self, pair: Pair) -> float | None:
        """Return the age of a pair's stamp; None while simulated time has not begun."""
        now_ns = self._now_ns()
        return (now_ns - stamp_to_ns(pair.leading.header.stamp)) * 1e-9 if now_ns else None

    def _drop_old(self, age_s: float) -> None:
        limit_s = self._config.sync.max_age_s
        self._health.dropped('older than sync.max_age_s')
        self._health.complain(
            'max age',
            f'colour images are {age_s:.3f} s old when their turn comes and sync.max_age_s is '
            f'{limit_s:.3f} s, so they are dropped; raise it or make the camera link faster',
        )

    def _calibration(self, pair: Pair) -> Calibration | None:
        """Return the calibration of a pair; None without any.

        Labels that rest on colour alone need none; many a plain camera publishes none, or zeros.
        """
        image = pair.leading
        colour_alone = pair.depth is None or not self._segmenter.bundle.sees_depth
        fault = f'nothing arrives on {self._topics.info}'
        if pair.info is not None:
            try:
                intrinsics = intrinsics_from_info(pair.info, self._topics.info)
                _check_size(intrinsics, image)
            except FrameError as error:
                if not (self._config.camera.fx or colour_alone):
                    raise
                fault = str(error)
                if self._config.camera.fx:
                    self._health.complain(
                        'camera info', f'{fault}; using camera.fx and the others'
                    )
            else:
                self._check_info(pair)
                self._check_plausible(intrinsics, self._topics.info)
                return Calibration(intrinsics, pair.info)
        if (given := self._config.camera.intrinsics(image.width, image.height)) is not None:
            self._check_plausible(given, 'the section camera of the parameters')
            return Calibration(given, info_from_intrinsics(given, image.header))
        if not colour_alone:
            return None
        self._health.complain(
            'camera info',
            f'{fault}; labels of colour alone go on without, but segmentation/points and '
            'segmentation/camera_info are not published',
        )
        # An image without pixels is refused where it is read.
        some = Intrinsics.of_some_camera(max(1, image.width), max(1, image.height))
        return Calibration(some, None)

    def _check_info(self, pair: Pair) -> None:
        """Complain where a CameraInfo looks like that of another image."""
        info = pair.info
        frame_id = info.header.frame_id
        other = pair.color.header.frame_id if pair.color is not None else ''
        if frame_id and other and frame_id != other:
            self._health.complain(
                'camera info frame',
                f'{self._topics.info} is in frame {frame_id!r} but {self._topics.color} is in '
                f'{other!r}, so it may be the calibration of another camera; subscribe to the '
                'CameraInfo of the colour image',
                log_period_s=inf,
            )
        # Rectified topics often keep the D of the raw image beside a P, so D alone says nothing.
        if any(info.d) and not (info.p[0] and info.p[5]):
            self._health.complain(
                'unrectified',
                f'{self._topics.info} has a lens distortion D but no P, so {self._topics.color} '
                'looks unrectified, which costs accuracy; give this node rectified images '
                '(image_proc) and depth registered to them',
                log_period_s=inf,
            )

    def _check_plausible(self, intrinsics: Intrinsics, source: str) -> None:
        i = intrinsics
        if fault := camera_fault(i):
            self._health.complain(
                'implausible intrinsics',
                f'{source} gives a camera of {i.width}x{i.height} pixels {fault}; check the '
                'calibration and that it belongs to this image',
                log_period_s=inf,
            )


def _check_size(intrinsics: Intrinsics, image: Image) -> None:
    """Raise FrameError for the CameraInfo of another image; empty ones are refused elsewhere."""
    sizes = [f'{i.width}x{i.height}' for i in (image, intrinsics)]
    if image.width and image.height and sizes[0] != sizes[1]:
        raise FrameError(
            f'the image is {sizes[0]} but the camera info says {sizes[1]}; use the camera info '
            'that belongs to this image'
        )
