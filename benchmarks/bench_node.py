"""How late masks are over real DDS, compared with inference alone and with transport alone.

Three processes: this one plays the camera and the consumer, ``segmentation_node`` labels, and an
echo node answers the same two images with an empty mask at once, which is transport alone. Pairs
go to both in turn, the next when the last was answered. Then a stream faster than inference shows
whether the age of the masks stays bounded.

    python benchmarks/bench_node.py [--bundle NAME] [--pairs 100] [--seconds 30]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tqdm import tqdm

from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE
from rgbd_fusion_seg.processes import Processes
from rgbd_fusion_seg.ros.images import info_from_intrinsics, msg_from_array, stamp_to_ns
from rgbd_fusion_seg.ros.process import run_node
from rgbd_fusion_seg.ros.synthetic_camera import encode_depth
from rgbd_fusion_seg.ros_environment import local_environment
from rgbd_fusion_seg.synthetic.scene import KINECT, Room

HERE = Path(__file__).resolve().parent
PATIENCE_S = 60.0
COLOR, DEPTH, INFO = 'rgb/image_rect_color', 'depth_registered/image_rect', 'rgb/camera_info'
MASK = 'segmentation/mask'


class Echo(Node):
    """Answers every colour image whose depth image came with an empty mask."""

    def __init__(self) -> None:
        super().__init__('echo')
        self._mask = msg_from_array(np.zeros((480, 640), np.uint8), Header())
        self._out = self.create_publisher(Image, MASK, 5)
        self._waiting: dict[int, Image] = {}
        for topic in (COLOR, DEPTH):
            self.create_subscription(Image, topic, self._take, qos_profile_sensor_data)

    def _take(self, msg: Image) -> None:
        stamp_ns = stamp_to_ns(msg.header.stamp)
        if self._waiting.pop(stamp_ns, None) is None:
            self._waiting = {stamp_ns: msg}
            return
        self._mask.header = msg.header
        self._out.publish(self._mask)

    def start(self) -> None:
        """Nothing to prepare."""

    def stop(self) -> None:
        """Nothing to free."""


class Client(Node):
    """Sends pairs of a rendered view and notes when their masks come."""

    def __init__(self, namespace: str) -> None:
        super().__init__('client', namespace=namespace)
        view = Room.random(1).render(Room.random(1).trajectory(1, 1)[0], KINECT)
        header = Header(frame_id='camera')
        self._messages = (
            info_from_intrinsics(KINECT, header),
            msg_from_array(view.rgb, header),
            msg_from_array(encode_depth(view.depth, '16UC1'), header),
        )
        kinds = ((CameraInfo, INFO), (Image, COLOR), (Image, DEPTH))
        self._outs = [self.create_publisher(kind, topic, 5) for kind, topic in kinds]
        self.arrivals: dict[int, int] = {}
        self.values: dict[str, str] = {}
        self._arrived = threading.Event()
        self.create_subscription(Image, MASK, self._take_mask, QoSProfile(depth=50))
        self.create_subscription(DiagnosticArray, '/diagnostics', self._take_values, 10)
        self._spinner = SingleThreadedExecutor()
        self._spinner.add_node(self)
        self._thread = threading.Thread(target=self._spinner.spin, daemon=True)
        self._thread.start()

    def send(self) -> int:
        """Publish a pair stamped now; return its stamp."""
        stamp = self.get_clock().now()
        for out, msg in zip(self._outs, self._messages, strict=True):
            msg.header.stamp = stamp.to_msg()
            out.publish(msg)
        return stamp.nanoseconds

    def ask(self, timeout_s: float = 5.0) -> float | None:
        """Send a pair and wait for its mask; return the milliseconds, None when it got lost."""
        self._arrived.clear()
        stamp_ns = self.send()
        deadline = time.monotonic() + timeout_s
        while stamp_ns not in self.arrivals:
            if not self._arrived.wait(max(0.0, deadline - time.monotonic())):
                return None
            self._arrived.clear()
        return (self.arrivals[stamp_ns] - stamp_ns) * 1e-6

    def wait_for_first_mask(self) -> None:
        """Send until a mask comes."""
        deadline = time.monotonic() + PATIENCE_S
        while self.ask(timeout_s=0.1) is None and not self.arrivals:
            if time.monotonic() > deadline:
                raise SystemExit(f'no mask came in {self.get_namespace()} for {PATIENCE_S:.0f} s')

    def close(self) -> None:
        """Stop listening."""
        self._spinner.shutdown()
        self._thread.join(5.0)
        self.destroy_node()

    def _take_mask(self, msg: Image) -> None:
        self.arrivals[stamp_to_ns(msg.header.stamp)] = self.get_clock().now().nanoseconds
        self._arrived.set()

    def _take_values(self, msg: DiagnosticArray) -> None:
        prefix = self.get_namespace().strip('/') + '/'
        for status in msg.status:
            if status.name.startswith(prefix):
                self.values = {kv.key: kv.value for kv in status.values}


def percentiles(samples_ms: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return p50 and p99 of milliseconds."""
    p50, p99 = np.percentile(samples_ms, (50, 99))
    return {'p50': round(float(p50), 1), 'p99': round(float(p99), 1)}


def one_by_one(node: Client, echo: Client, pairs: int) -> dict[str, Any]:
    """Time single pairs through the node and through the echo in turn."""
    taken: dict[str, list[float]] = {'node': [], 'echo': []}
    for _ in tqdm(range(pairs), desc='one by one', unit='pair'):
        for name, client in (('node', node), ('echo', echo)):
            if (milliseconds := client.ask()) is not None:
                taken[name].append(milliseconds)
    time.sleep(1.5)  # until the diagnostics hold the last of them
    late, transport = (percentiles(taken[name]) for name in ('node', 'echo'))
    inference_ms = float(node.values['inference p50 ms'])
    return {
        'pairs': pairs,
        'masks': len(taken['node']),
        'stamp_to_mask_ms': late,
        'transport_ms': transport,
        'inference_ms': inference_ms,
        'segmentation_ms': float(node.values['segmentation p50 ms']),
        'without_transport_over_inference': round(
            (late['p50'] - transport['p50']) / inference_ms, 3
        ),
    }


def fast_stream(node: Client, seconds: float) -> dict[str, Any]:
    """Send at three times the rate that the node reached, and watch the age of its masks.

    A busy node sends a mask when an inference ends and begins the next one at once, so the time
    between two masks is what the second one's inference took, under the load of that moment.
    """
    rate_hz = max(30.0, 3000.0 / float(node.values['segmentation p50 ms']))
    node.arrivals.clear()
    start = time.monotonic()
    sent: list[int] = []
    with tqdm(total=round(seconds * rate_hz), desc='stream', unit='pair') as bar:
        while (now := time.monotonic() - start) < seconds:
            sent.append(node.send())
            bar.update()
            time.sleep(max(0.0, len(sent) / rate_hz - now))
    time.sleep(2.0)
    masks = np.array(sorted((node.arrivals[s], s) for s in sent if s in node.arrivals))
    inference_ms = np.diff(masks[:, 0]) * 1e-6
    age_ms = (masks[1:, 0] - masks[1:, 1]) * 1e-6
    ratio = age_ms / inference_ms
    half = len(ratio) // 2
    return {
        'seconds': seconds,
        'camera_hz': round(rate_hz, 1),
        'masks_hz': round(len(masks) / seconds, 1),
        'between_masks_ms': percentiles(inference_ms),
        'age_ms': percentiles(age_ms),
        'age_over_inference_of_the_moment': {
            'p50': round(float(np.median(ratio)), 3),
            'p50_first_half': round(float(np.median(ratio[:half])), 3),
            'p50_second_half': round(float(np.median(ratio[half:])), 3),
            'p99': round(float(np.percentile(ratio, 99)), 3),
        },
        'share_below_two_inferences': round(float(np.mean(ratio < 2)), 4),
    }


def bench(options: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    """Start the processes and run both measurements."""
    node, echo = Client('/node'), Client('/echo')
    try:
        processes.start('echo', 'bench_node', '--echo', '--ros-args', '-r', '__ns:=/echo')
        echo.wait_for_first_mask()
        start = time.monotonic()
        processes.start(
            'node', 'rgbd_fusion_seg.ros.node', '--ros-args', '-r', '__ns:=/node',
            '-p', f'engine.bundle:={options.bundle}', '-p', 'output.diagnostics_period_s:=0.5',
        )  # fmt: skip
        node.wait_for_first_mask()
        start_s = time.monotonic() - start
        single = one_by_one(node, echo, options.pairs)
        return {
            'bundle': options.bundle,
            'engine': node.values['engine'],
            'images': '640x480 rgb8 and 16UC1',
            'process_start_to_first_mask_s': round(start_s, 2),
            'one_by_one': single,
            'stream': fast_stream(node, options.seconds),
        }
    finally:
        node.close()
        echo.close()


def main() -> int:
    """Measure and write the result; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--bundle', default=DEFAULT_BUNDLE, help='model to run')
    parser.add_argument('--pairs', type=int, default=100, help='pairs sent one by one')
    parser.add_argument('--seconds', type=float, default=30.0, help='length of the fast stream')
    parser.add_argument('--out', type=Path, default=measure.OUTPUT / 'node.json')
    parser.add_argument('--echo', action='store_true', help=argparse.SUPPRESS)
    options, ros_args = parser.parse_known_args()
    if options.echo:
        return run_node(Echo, ros_args)
    environment = local_environment(domain_id=1 + os.getpid() % 101)
    environment['PYTHONPATH'] = f'{HERE}{os.pathsep}{environment.get("PYTHONPATH", "")}'
    os.environ.update(environment)
    rclpy.init()
    with (
        tempfile.TemporaryDirectory() as folder,
        Processes(Path(folder), environment) as processes,
    ):
        result = bench(options, processes)
    rclpy.try_shutdown()
    measure.write(options.out, result)
    print(options.out.read_text(encoding='utf-8'))
    return 0


if __name__ == '__main__':
    sys.exit(main())
