"""Does a node that runs for hours keep its memory, its threads and its files?

This process plays a camera over real DDS with whom much goes wrong: a topic falls silent, stamps
jump back, the size and the encoding change, images are empty, damaged or of NaN; listeners come
and go meanwhile. What the node's process holds is written down every other minute. `make bench`
leaves this out, for it takes as long as one wants.

    python benchmarks/soak_node.py [--minutes 60] [--hz 10] [--bundle NAME]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from tqdm import tqdm

from rgbd_fusion_seg.processes import die_with_parent
from rgbd_fusion_seg.ros.images import info_from_intrinsics, msg_from_array
from rgbd_fusion_seg.ros.synthetic_camera import encode_depth
from rgbd_fusion_seg.ros_environment import local_environment
from rgbd_fusion_seg.synthetic.scene import KINECT, Room

COLOR, DEPTH, INFO = 'rgb/image_rect_color', 'depth_registered/image_rect', 'rgb/camera_info'
OUTPUTS = {
    'segmentation/mask': Image,
    'segmentation/confidence': Image,
    'segmentation/overlay': Image,
    'segmentation/points': PointCloud2,
}
MISHAP_PERIOD_S = 3.0
SAMPLE_PERIOD_S = 120.0
START_S = 20.0


class Camera(Node):
    """Sends triples of messages and counts what comes back."""

    def __init__(self) -> None:
        super().__init__('camera', namespace='/soak')
        kinds = ((CameraInfo, INFO), (Image, COLOR), (Image, DEPTH))
        self._outs = [self.create_publisher(kind, topic, 5) for kind, topic in kinds]
        self._views = [messages(*size, e) for size in ((640, 480), (320, 240)) for e in
                       ('16UC1', '32FC1')]  # fmt: skip
        self._view, self._silent, self._late_s = self._views[0], -1, 0.0
        self._listeners: dict[str, Any] = {}
        self._random = random.Random(0)
        self.sent = 0
        self.received = dict.fromkeys(OUTPUTS, 0)
        self.toggle('segmentation/mask')

    def send(self, extra: Sequence[tuple[int, Image]] = ()) -> None:
        """Send the present view, and then wrong images by topic, all with one stamp."""
        seconds = self.get_clock().now().nanoseconds * 1e-9 - self._late_s
        triple = [(i, msg) for i, msg in enumerate(self._view) if i != self._silent]
        for i, msg in (*triple, *extra):
            msg.header.stamp.sec = int(seconds)
            msg.header.stamp.nanosec = int(seconds % 1 * 1e9)
            self._outs[i].publish(msg)
        self.sent += 1

    def mishap(self) -> None:
        """Let one thing go wrong, or right again."""
        chance = self._random
        match chance.randrange(5):
            case 0:
                self._view = chance.choice(self._views)
            case 1:
                self._silent = chance.choice((-1, -1, -1, 0, 1, 2))
            case 2:
                self._late_s = chance.choice((0.0, 0.0, 10.0, 100.0))
            case 3:
                self.toggle(chance.choice(list(OUTPUTS)))
            case _:
                self.send([(chance.choice((1, 2)), chance.choice(wrong_images()))])

    def toggle(self, topic: str) -> None:
        """Begin or cease to listen to an output."""
        if topic in self._listeners:
            self.destroy_subscription(self._listeners.pop(topic))
            return

        def count(_: Any) -> None:
            self.received[topic] += 1

        self._listeners[topic] = self.create_subscription(OUTPUTS[topic], topic, count, 5)


def messages(width: int, height: int, encoding: str) -> list[Any]:
    """Return CameraInfo, colour and depth of a view of a rendered room."""
    room = Room.random(1)
    intrinsics = KINECT.resized(width, height)
    view = room.render(room.trajectory(1, 1)[0], intrinsics)
    return [
        info_from_intrinsics(intrinsics, Header(frame_id='camera')),
        msg_from_array(view.rgb, Header(frame_id='camera')),
        msg_from_array(encode_depth(view.depth, encoding), Header(frame_id='camera')),
    ]


def wrong_images() -> list[Image]:
    """Return images that no camera should send."""
    header = Header(frame_id='camera')
    return [
        Image(header=header),
        Image(header=header, height=480, width=640, step=1920, encoding='rgb8', data=bytes(100)),
        Image(header=header, height=2, width=2, step=6, encoding='infrared', data=bytes(12)),
        msg_from_array(np.full((480, 640), np.nan, np.float32), header),
        msg_from_array(np.zeros((480, 640), np.uint8), header),
    ]


def holdings(pid: int) -> dict[str, float]:
    """Return what a process holds: memory in MiB, threads, open files."""
    status = Path(f'/proc/{pid}/status').read_text(encoding='utf-8')
    value = {k: v.split()[0] for k, _, v in (line.partition(':') for line in status.splitlines())
             if v.split()}  # fmt: skip
    return {
        'resident_mib': round(int(value['VmRSS']) / 1024, 1),
        'anonymous_mib': round(int(value['RssAnon']) / 1024, 1),
        'threads': int(value['Threads']),
        'files': len(os.listdir(f'/proc/{pid}/fd')),
    }


def soak(options: argparse.Namespace, node: subprocess.Popen[bytes]) -> list[dict[str, float]]:
    """Send for the wanted time; return what the node held, by the minute."""
    camera, executor = Camera(), SingleThreadedExecutor()
    executor.add_node(camera)
    samples: list[dict[str, float]] = []
    began_s = time.monotonic()
    mishap_s, sample_s = MISHAP_PERIOD_S + START_S, START_S
    with tqdm(total=round(60 * options.minutes), desc='soak', unit='s') as bar:
        while (now_s := time.monotonic() - began_s) < 60 * options.minutes:
            camera.send()
            if now_s > mishap_s:
                camera.mishap()
                mishap_s += MISHAP_PERIOD_S
            if now_s > sample_s:
                if node.poll() is not None:
                    raise SystemExit(f'the node ended with {node.returncode} after {now_s:.0f} s')
                sample_s += SAMPLE_PERIOD_S
                counts = {'sent': camera.sent, **camera.received}
                samples.append({'minute': round(now_s / 60, 1), **holdings(node.pid), **counts})
            while time.monotonic() - began_s < camera.sent / options.hz:
                executor.spin_once(timeout_sec=0.01)
            bar.update(round(now_s) - bar.n)
    camera.destroy_node()
    return samples


def main() -> int:
    """Soak a node and write down what became of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--minutes', type=float, default=60.0)
    parser.add_argument('--hz', type=float, default=10.0, help='pairs a second')
    parser.add_argument('--bundle', default='rfbnet_erfnet_nyu40_320x240')
    parser.add_argument('--out', type=Path, default=measure.OUTPUT / 'soak.json')
    options = parser.parse_args()
    os.environ.update(local_environment(domain_id=1 + os.getpid() % 101))
    rclpy.init()
    command = [sys.executable, '-m', 'rgbd_fusion_seg.ros.node', '--ros-args']
    command += ['-r', '__ns:=/soak', '-p', f'engine.bundle:={options.bundle}']
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent
    ) as node:
        try:
            samples = soak(options, node)
        finally:
            node.send_signal(signal.SIGINT)
    rclpy.try_shutdown()
    result = {
        'what': 'what the process of a node holds while much goes wrong around it',
        'bundle': options.bundle,
        'minutes': options.minutes,
        'camera_hz': options.hz,
        'exit_code': node.returncode,
        'samples': samples,
    }
    measure.write(options.out, result)
    for sample in samples[:: max(1, len(samples) // 12)]:
        print(sample)
    return node.returncode


if __name__ == '__main__':
    sys.exit(main())
