from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from rgbd_fusion_seg.ros.images import msg_from_array

SECONDS, PERIOD_S, DELAY_S = 2.0, 0.05, 0.12
HEIGHT, WIDTH = 60, 80


class Pretender(Node):
    """Answers every second of its own images with a mask after a known delay."""

    def __init__(self, context) -> None:
        super().__init__('pretender', context=context)
        topics = ('rgb/image_rect_color', 'depth_registered/image_rect', 'ground_truth/mask')
        topics += ('segmentation/mask', 'segmentation/overlay')
        self.images = {topic: self.create_publisher(Image, topic, 5) for topic in topics}
        self.diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 5)
        self.truth = np.zeros((HEIGHT, WIDTH), np.uint8)
        self.truth[:, 20:] = 1
        self.truth[:6] = 255
        self.mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        self.mask[:, 40:] = 1
        self.mask[-3:] = 255
        self.depth = np.full((HEIGHT, WIDTH), 1000, np.uint16)  # near
        self.depth[:, 40:] = 5000  # far
        self.depth[:6] = 0  # no reading
        self.color = np.full((HEIGHT, WIDTH, 3), (200, 40, 40), np.uint8)
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._publish, daemon=True)
        self.thread.start()

    def _publish(self) -> None:
        late: list[tuple[float, Header]] = []
        index, began_s = 0, time.monotonic()
        while not self.ending.wait(PERIOD_S / 10):
            now_s = time.monotonic()
            while late and late[0][0] <= now_s:
                header = late.pop(0)[1]
                self._send('segmentation/mask', self.mask, header)
                self._send('segmentation/overlay', 255 - self.color, header)
            if now_s < began_s + index * PERIOD_S:
                continue
            header = Header(stamp=self.get_clock().now().to_msg(), frame_id='c')
            self._send('rgb/image_rect_color', self.color, header)
            if index % 4:  # else it was lost on the way
                self._send('depth_registered/image_rect', self.depth, header)
            self._send('ground_truth/mask', self.truth, header)
            if index % 2 == 0:
                late.append((time.monotonic() + DELAY_S, header))
                self._send_diagnostics()
            index += 1

    def _send(self, topic: str, pixels: np.ndarray, header: Header) -> None:
        self.images[topic].publish(msg_from_array(pixels, header))

    def _send_diagnostics(self) -> None:
        status = DiagnosticStatus(
            level=DiagnosticStatus.WARN, name='node: segmentation', message='it is too dark'
        )
        status.values = [KeyValue(key='pairs', value='7')]
        self.diagnostics.publish(DiagnosticArray(status=[status]))

    def close(self) -> None:
        self.ending.set()
        self.thread.join()
        self.destroy_node()


@pytest.fixture
def pretender(ros_context):
    node = Pretender(ros_context)
    yield node
    node.close()


def run_recorder(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'rgbd_fusion_seg.ros.recorder', *arguments]
    return subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=60)


def test_records_what_was_sent(pretender, tmp_path):
    done = run_recorder(
        f'--output={tmp_path}', f'--seconds={SECONDS}', '--num-classes=2', '--wait=30'
    )
    assert done.returncode == 0, done.stderr
    recording = json.loads((tmp_path / 'recording.json').read_text())
    begin, end = recording['begin_ns'], recording['end_ns']
    assert (end - begin) * 1e-9 == pytest.approx(SECONDS)
    images = [s for s in recording['camera_stamps_ns'] if begin <= s < end]
    arrivals = dict(zip(recording['mask_stamps_ns'], recording['mask_arrivals_ns'], strict=True))
    masks = [stamp for stamp in arrivals if begin <= stamp < end]
    assert len(masks) > 5
    assert set(masks) <= set(images)
    assert len(images) == pytest.approx(2 * len(masks), abs=2)
    assert min(arrivals[stamp] - stamp for stamp in masks) * 1e-9 >= DELAY_S
    assert recording['compared'] == len(masks) == len(recording['moments'])
    # Rows 6..56 of 60 are labelled on both sides, rows 57..59 are true but unlabelled here.
    rows, wrong = 51, 3
    expected = [[20 * rows, 0, 20 * wrong], [20 * rows, 40 * rows, 60 * wrong]]
    np.testing.assert_array_equal(recording['matrix'], np.multiply(expected, len(masks)))
    assert recording['diagnostics'] == {'pairs': '7'}
    assert recording['problems'] == ['it is too dark']
    stamp = recording['moments'][0]
    color = cv2.imread(str(tmp_path / f'{stamp}.color.jpg'))[..., ::-1]
    overlay = cv2.imread(str(tmp_path / f'{stamp}.overlay.jpg'))[..., ::-1]
    assert np.abs(color.astype(int) - (200, 40, 40)).max() < 6
    assert np.abs(overlay.astype(int) - (55, 215, 215)).max() < 6
    depths = [
        cv2.imread(str(tmp_path / f'{s}.depth.jpg'))[..., ::-1] for s in recording['moments']
    ]
    black = [image for image in depths if image.max() < 20]
    assert len(black) == pytest.approx(len(depths) / 2, abs=1)
    depth = next(image for image in depths if image.max() >= 20)
    none, near, far = depth[0, 0], depth[120, 80], depth[120, 240]
    assert none.max() < 20
    assert near[0] > 2 * near[2]  # warm
    assert far[2] > 1.2 * far[0]  # cold
    truth = cv2.imread(str(tmp_path / f'{stamp}.truth.png'), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(truth)) == {0, 1, 255}


def test_silence_is_told(ros_context, tmp_path):
    mistyped = ('--ros-args', '-p', 'use_sim_tme:=true')
    done = run_recorder(f'--output={tmp_path}', '--wait=1', *mistyped)
    assert done.returncode == 1
    assert 'no mask arrived within 1 s; 0 colour images were seen' in done.stderr
    assert 'use_sim_tme (did you mean use_sim_time?)' in done.stderr
    assert not (tmp_path / 'recording.json').exists()
