"""Records what the segmentation node answers, with the time of its arrival, into a folder.

Run as ``python -m rgbd_fusion_seg.ros.recorder --output FOLDER``; the demo does. It listens to
the node's masks and overlays, to the camera's colour, depth and true labels, and to the
diagnostics, and writes ``recording.json`` (see :class:`Recording`), thumbnails of the moments,
and nothing else.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
import rclpy
import rclpy.utilities
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from rgbd_fusion_seg.errors import RgbdFusionSegError
from rgbd_fusion_seg.image_decoding import stamp_to_ns
from rgbd_fusion_seg.progress import progress_bar
from rgbd_fusion_seg.replay.evaluate import confusion_matrix
from rgbd_fusion_seg.replay.messages import labels_from_message
from rgbd_fusion_seg.replay.pictures import depth_picture, write_image
from rgbd_fusion_seg.ros.images import color_from_msg, depth_from_msg
from rgbd_fusion_seg.ros.parameters import unknown_parameters

THUMBNAIL_WIDTH = 320
_WAITING = 90  # images kept for a mask that may still come: three seconds at 30 Hz
_LATE_S = 1.5  # time given to masks that are under way when the recording ends


@dataclass
class Recording:
    """What ``recording.json`` holds; times in nanoseconds since the epoch.

    Args:
        begin_ns, end_ns: the recorded span; an image belongs to it by its stamp.
        camera_stamps_ns: stamps of the colour images.
        mask_stamps_ns: stamps of the masks, in the order of their arrival.
        mask_arrivals_ns: when each of them arrived here.
        moments: stamps for which ``STAMP.color.jpg``, ``STAMP.depth.jpg`` (a picture for people),
            ``STAMP.overlay.jpg`` and, with ground truth, ``STAMP.truth.png`` exist.
        matrix: confusion matrix of all masks that have ground truth, row = truth.
        compared: number of these masks.
        diagnostics: the node's values, from its last message.
        problems: the sentences the node's diagnostics complained with.
    """

    begin_ns: int = 0
    end_ns: int = 0
    camera_stamps_ns: list[int] = field(default_factory=list)
    mask_stamps_ns: list[int] = field(default_factory=list)
    mask_arrivals_ns: list[int] = field(default_factory=list)
    moments: list[int] = field(default_factory=list)
    matrix: list[list[int]] = field(default_factory=list)
    compared: int = 0
    diagnostics: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Recorder(Node):
    """Subscribes; callbacks only note the time, a thread of its own does the work.

    Args:
        folder: where thumbnails go; it exists.
        num_classes: of the network, for the confusion matrix.
    """

    def __init__(self, folder: Path, num_classes: int) -> None:
        super().__init__('rgbd_fusion_seg_recorder')
        unknown_parameters(self)
        self.recording = Recording()
        self._folder, self._num_classes = folder, num_classes
        self._matrix = np.zeros((num_classes, num_classes + 1), np.int64)
        self._moments: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()
        self._has_truth = False
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name='recorder', daemon=True)
        self._thread.start()
        # A second's worth, for this process may be kept waiting by the one it watches.
        reliable = QoSProfile(depth=30)
        sensor = QoSProfile(depth=30, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._listen('rgb/image_rect_color', 'color', sensor)
        self._listen('depth_registered/image_rect', 'depth', sensor)
        self._listen('ground_truth/mask', 'truth', sensor)
        self._listen('segmentation/mask', 'mask', reliable)
        self._listen('segmentation/overlay', 'overlay', reliable)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._take_diagnostics, 10)

    def start(self, seconds: float) -> None:
        """Record from now on for some seconds."""
        # In this order, for the other thread takes the span as empty until the end is set.
        self.recording.begin_ns = time.time_ns()
        self.recording.end_ns = self.recording.begin_ns + round(seconds * 1e9)

    def finish(self) -> Recording:
        """Wait for the work in hand and return the recording."""
        self._jobs.put(None)
        self._thread.join()
        self.recording.matrix = self._matrix.tolist()
        return self.recording

    @property
    def complete(self) -> bool:
        """True when the span is over and no mask of it can still come."""
        late_ns = time.time_ns() - self.recording.end_ns
        newest = max(self.recording.mask_stamps_ns, default=0)
        return late_ns > _LATE_S * 1e9 or (late_ns > 0 and newest >= self.recording.end_ns)

    def _listen(self, topic: str, kind: str, qos: QoSProfile) -> None:
        def receive(message: Image) -> None:
            arrival_ns, stamp = time.time_ns(), stamp_to_ns(message.header.stamp)
            if kind == 'mask':
                self.recording.mask_stamps_ns.append(stamp)
                self.recording.mask_arrivals_ns.append(arrival_ns)
            elif kind == 'color':
                self.recording.camera_stamps_ns.append(stamp)
            self._jobs.put(lambda: self._take(kind, stamp, message))

        self.create_subscription(Image, topic, receive, qos)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except RgbdFusionSegError as error:
                self.get_logger().error(str(error))

    def _take(self, kind: str, stamp_ns: int, message: Image) -> None:
        """Put an image to the others of its stamp, and do what has become possible."""
        moment = self._moments.setdefault(stamp_ns, {})
        if len(self._moments) > _WAITING:
            self._moments.popitem(last=False)
        if kind in ('mask', 'truth'):
            moment[kind] = labels_from_message(message, kind)
            self._has_truth |= kind == 'truth'
        elif kind == 'depth':
            # Depth is picked, not averaged: between two surfaces there is none.
            near = _thumbnail(depth_from_msg(message, kind), cv2.INTER_NEAREST)
            moment[kind] = depth_picture(near)
        else:
            moment[kind] = _thumbnail(color_from_msg(message, kind), cv2.INTER_AREA)
        if not self.recording.begin_ns <= stamp_ns < self.recording.end_ns:
            return
        if kind in ('mask', 'truth') and {'mask', 'truth'} <= moment.keys():
            matrix = confusion_matrix(moment['mask'], moment['truth'], self._num_classes)
            self._matrix += matrix
            self.recording.compared += 1
        shown = {'color', 'overlay'} | ({'truth'} if self._has_truth else set())
        if kind in shown and shown <= moment.keys():
            self._keep_thumbnails(stamp_ns, moment)

    def _keep_thumbnails(self, stamp_ns: int, moment: dict[str, np.ndarray]) -> None:
        # Depth comes long before its overlay; where the middleware lost it, the picture is black.
        moment.setdefault('depth', np.zeros_like(moment['color']))
        for kind in ('color', 'depth', 'overlay'):
            write_image(self._folder / f'{stamp_ns}.{kind}.jpg', moment[kind])
        if 'truth' in moment:
            truth = _thumbnail(moment['truth'], cv2.INTER_NEAREST)
            write_image(self._folder / f'{stamp_ns}.truth.png', truth)
        self.recording.moments.append(stamp_ns)

    def _take_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith('segmentation'):
                self.recording.diagnostics = {v.key: v.value for v in status.values}
                if status.level != DiagnosticStatus.OK:
                    self._note_problem(status.message)

    def _note_problem(self, sentence: str) -> None:
        if sentence not in self.recording.problems:
            self.recording.problems.append(sentence)


def record(node: Recorder, seconds: float, wait_s: float, *, progress: bool = True) -> bool:
    """Wait for the first mask, then record.

    Returns:
        False when no mask came within ``wait_s`` seconds.
    """
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    masks = node.recording.mask_stamps_ns
    began_s = time.monotonic()
    with progress_bar(
        desc='rendering the room, loading the network',
        bar_format='{desc}: {n:.0f} s',
        disable=not progress,
        mininterval=0.5,
    ) as bar:
        while not masks:
            executor.spin_once(timeout_sec=0.2)
            bar.update(time.monotonic() - began_s - bar.n)
            if bar.n > wait_s:
                return False
    node.start(seconds)
    with progress_bar(
        total=seconds,
        desc='recording',
        bar_format='{desc} {bar} {n:.0f}/{total:.0f} s{postfix}',
        disable=not progress,
        mininterval=0.5,
    ) as bar:
        while not node.complete:
            executor.spin_once(timeout_sec=0.2)
            bar.set_postfix_str(f'{len(masks)} masks', refresh=False)
            elapsed_s = (time.time_ns() - node.recording.begin_ns) * 1e-9
            bar.update(min(elapsed_s, seconds) - bar.n)
    return True


def main(args: Sequence[str] | None = None) -> int:
    """Record and write ``recording.json``; returns the exit code."""
    argv = list(sys.argv if args is None else ['recorder', *args])
    options = _parser().parse_args(rclpy.utilities.remove_ros_args(argv)[1:])
    options.output.mkdir(parents=True, exist_ok=True)
    rclpy.init(args=argv)
    node = Recorder(options.output, options.num_classes)
    try:
        heard = record(node, options.seconds, options.wait, progress=not options.quiet)
        recording = node.finish()
        if not heard:
            node.get_logger().fatal(_silence(recording, options.wait))
            return 1
        path = options.output / 'recording.json'
        path.write_text(json.dumps(asdict(recording)), encoding='utf-8')
    except (KeyboardInterrupt, ExternalShutdownException):
        return 1
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _silence(recording: Recording, wait_s: float) -> str:
    """Say why there is nothing to record, as far as it can be seen from here."""
    images = len(recording.camera_stamps_ns)
    reason = recording.problems[-1] if recording.problems else 'the node complained of nothing'
    if not recording.diagnostics:
        reason = 'the node sent no diagnostics, so it is not running or in another ROS domain'
    return f'no mask arrived within {wait_s:.0f} s; {images} colour images were seen; {reason}'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', type=Path, required=True, help='folder to write')
    parser.add_argument('--seconds', type=float, default=20.0, help='length of the recording')
    parser.add_argument('--wait', type=float, default=120.0, help='seconds to the first mask')
    parser.add_argument('--num-classes', type=int, default=40, help='classes of the network')
    parser.add_argument('--quiet', action='store_true', help='no progress bar')
    return parser


def _thumbnail(image: np.ndarray, interpolation: int) -> np.ndarray:
    height = round(image.shape[0] * THUMBNAIL_WIDTH / image.shape[1])
    return cv2.resize(image, (THUMBNAIL_WIDTH, height), interpolation=interpolation)


if __name__ == '__main__':
    sys.exit(main())
