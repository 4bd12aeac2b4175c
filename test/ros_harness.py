"""Nodes as processes and a client that talks to them, for tests over real DDS."""

from __future__ import annotations

import array
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.image_decoding import stamp_to_ns
from rgbd_fusion_seg.ros.images import (
    frame_from_msgs,
    info_from_intrinsics,
    msg_from_array,
)

WAIT_S = 60.0
"""Patience with a machine that is busy with other things; what works takes a fraction of it."""
START_S = 240.0
"""Patience with a process that may be the first ever to run, and then compiles its kernels."""


class NodeProcess:
    """A node started with ``python -m``, its output in a file.

    Args:
        module: of the node.
        parameters: name -> value, as text for ``-p``.
        namespace: of the node, so that several tests can share a domain.
        arguments: further ROS arguments.
        path: a folder to look in for modules first.
    """

    def __init__(
        self,
        module: str,
        parameters: Mapping[str, Any],
        namespace: str,
        arguments: tuple[str, ...] = (),
        path: Path | None = None,
    ) -> None:
        command = [sys.executable, '-m', module, '--ros-args', '-r', f'__ns:={namespace}']
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            command += ['-p', f'{name}:={text}']
        folders = [str(path)] if path is not None else []
        folders += os.environ['PYTHONPATH'].split(os.pathsep) if 'PYTHONPATH' in os.environ else []
        self._file = tempfile.TemporaryFile('w+')  # noqa: SIM115 - closed in stop
        self._process = subprocess.Popen(
            [*command, *arguments],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env=os.environ
            | {'RCUTILS_COLORIZED_OUTPUT': '0', 'PYTHONPATH': os.pathsep.join(folders)},
        )

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def output(self) -> str:
        """Return what it has written so far."""
        return os.pread(self._file.fileno(), 1 << 22, 0).decode()

    def wait_for_output(self, text: str) -> None:
        """Wait until the output contains a text; fail if the process ends before."""
        deadline = time.monotonic() + START_S
        while text not in self.output():
            assert self.alive, f'the process ended:\n{self.output()}'
            assert time.monotonic() < deadline, f'no {text!r} in:\n{self.output()}'
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        return self._process.wait(WAIT_S)

    def stop(self) -> None:
        """End it if it still runs."""
        if self.alive:
            self.signal(signal.SIGINT)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._file.close()


class Client(Node):
    """Publishes camera messages and collects what the node answers, spun by a thread.

    ``received[topic]`` is a list of (arrival in ns on the ROS clock, message).
    """

    def __init__(self, context: Any, namespace: str, name: str = 'client') -> None:
        super().__init__(name, context=context, namespace=namespace)
        self.received: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        self.statuses: list[Any] = []
        qos = QoSProfile(depth=5)
        self.color = self.create_publisher(Image, 'rgb/image_rect_color', qos)
        self.depth = self.create_publisher(Image, 'depth_registered/image_rect', qos)
        self.info = self.create_publisher(CameraInfo, 'rgb/camera_info', qos)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._take_diagnostics, 10)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def collect(self, topic: str, msg_type: type, qos: QoSProfile | None = None) -> None:
        """Subscribe to an output."""
        # Deep and reliable: the test itself must lose nothing while it is busy.
        lossless = QoSProfile(depth=100, reliability=QoSReliabilityPolicy.RELIABLE)
        self.create_subscription(
            msg_type,
            topic,
            lambda msg: self.received[topic].append((self.now_ns(), msg)),
            qos or lossless,
        )

    def now_ns(self) -> int:
        """Return the ROS time."""
        return self.get_clock().now().nanoseconds

    def values(self) -> dict[str, str]:
        """Return the values of the newest diagnostic status of the node in our namespace."""
        return {kv.key: kv.value for kv in self.statuses[-1].values} if self.statuses else {}

    def wait_for(self, condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f'waited in vain for {what}'
            time.sleep(0.005)

    def wait_for_matched(self) -> None:
        """Wait until the node subscribes to all that we publish."""
        publishers = (self.color, self.depth, self.info)
        self.wait_for(lambda: all(p.get_subscription_count() for p in publishers), 'subscriptions')

    def complains(self, words: str) -> bool:
        """Tell whether the newest diagnostic status has a problem that contains some words."""
        return any(words in v for k, v in self.values().items() if k.startswith('problem'))

    def wait_for_complaint(self, words: str) -> Any:
        """Wait for a diagnostic status with a problem that contains some words; return it."""
        self.wait_for(lambda: self.complains(words), f'{words!r} on /diagnostics')
        return self.statuses[-1]

    def destroy_publisher(self, publisher: Any) -> bool:
        """Destroy a publisher, where the thread that spins does not wait for its events."""
        return self._between_waits(super().destroy_publisher, publisher)

    def destroy_subscription(self, subscription: Any) -> bool:
        """Destroy a subscription, likewise."""
        return self._between_waits(super().destroy_subscription, subscription)

    def close(self) -> None:
        """Stop spinning and destroy the node."""
        self._executor.shutdown()
        self._thread.join(5)
        self.destroy_node()

    def _take_diagnostics(self, msg: DiagnosticArray) -> None:
        prefix = self.get_namespace().strip('/') + '/'
        self.statuses += [s for s in msg.status if s.name.startswith(prefix)]

    def _between_waits(self, destroy: Callable[[Any], bool], entity: Any) -> bool:
        """Let the thread that spins destroy it: the executor fails on what vanishes meanwhile."""
        if not self._thread.is_alive():
            return destroy(entity)
        task = self._executor.create_task(destroy, entity)
        self.wait_for(task.done, 'destruction')
        return task.result()

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()


class Manager:
    """Calls the services of a node, by default the lifecycle node."""

    def __init__(self, client: Client, node: str = 'segmentation_node') -> None:
        self._client = client
        self._services = {
            kind: client.create_client(kind, f'{node}/{name}')
            for kind, name in (
                (ChangeState, 'change_state'),
                (GetState, 'get_state'),
                (SetParameters, 'set_parameters'),
            )
        }

    def call(self, kind: Any, request: Any) -> Any:
        """Call a service and return its response."""
        service = self._services[kind]
        assert service.wait_for_service(30)
        # The answer is lost where the server has not found its reader yet, so what may be asked
        # twice is asked again.
        future = service.call_async(request)
        if kind in (GetState, SetParameters):
            with contextlib.suppress(AssertionError):
                self._client.wait_for(future.done, kind.__name__, 10.0)
            if not future.done():
                future = service.call_async(request)
        self._client.wait_for(future.done, kind.__name__, START_S)
        return future.result()

    def change(self, transition: int) -> bool:
        """Ask for a transition; return whether it went well."""
        request = ChangeState.Request(transition=Transition(id=transition))
        return self.call(ChangeState, request).success

    def ask(self, transition: int) -> None:
        """Ask for a transition without waiting for it."""
        service = self._services[ChangeState]
        assert service.wait_for_service(30)
        service.call_async(ChangeState.Request(transition=Transition(id=transition)))

    def state(self) -> int:
        """Return the id of the present state."""
        return self.call(GetState, GetState.Request()).current_state.id

    def set(self, name: str, value: Any) -> Any:
        """Set a parameter; return the answer."""
        parameter = Parameter(name, value=value).to_parameter_msg()
        request = SetParameters.Request(parameters=[parameter])
        return self.call(SetParameters, request).results[0]


def bare_image(encoding: str, height: int, width: int, step: int, data: Any) -> Image:
    """Make an image message of raw parts, as wrong as the test wants."""
    msg = Image(encoding=encoding, height=height, width=width, step=step)
    msg.data = array.array('B', bytes(data))
    return msg


class Camera:
    """Makes consistent messages of a flat wall and sends them through a client."""

    def __init__(self, client: Client, width: int = 64, height: int = 48) -> None:
        self.client = client
        self.intrinsics = Intrinsics(
            width * 0.82, width * 0.82, (width - 1) / 2, (height - 1) / 2, width, height
        )
        self.frame_id = 'camera_color_optical_frame'

    def color(self, value: int | np.ndarray = 128) -> Image:
        """Return a colour image: one grey, or an array."""
        i = self.intrinsics
        pixels = np.empty((i.height, i.width, 3), np.uint8)
        pixels[:] = value
        return msg_from_array(pixels, self.header())

    def depth(self, metres: float | np.ndarray = 2.0) -> Image:
        """Return a depth image in millimetres."""
        i = self.intrinsics
        pixels = np.empty((i.height, i.width), np.uint16)
        pixels[:] = np.asarray(metres) * 1000
        return msg_from_array(pixels, self.header())

    def info(self) -> CameraInfo:
        """Return the calibration."""
        return info_from_intrinsics(self.intrinsics, self.header())

    def header(self) -> Header:
        """Return a header with the frame and no stamp."""
        return Header(frame_id=self.frame_id)

    def send(
        self,
        color: Image | None = None,
        depth: Image | None = None,
        info: CameraInfo | None = None,
        stamp_ns: int | None = None,
    ) -> int:
        """Publish a pair and its CameraInfo with one stamp, now unless given; return the stamp."""
        stamp_ns = self.client.now_ns() if stamp_ns is None else stamp_ns
        messages = (
            (self.client.info, self.info() if info is None else info),
            (self.client.color, self.color() if color is None else color),
            (self.client.depth, self.depth() if depth is None else depth),
        )
        for publisher, msg in messages:
            msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(stamp_ns, 10**9)
            if not msg.header.frame_id:
                msg.header.frame_id = self.frame_id
            publisher.publish(msg)
        return stamp_ns

    def send_until(self, condition: Callable[[], Any], what: str, period_s: float = 0.05) -> None:
        """Publish pairs until a condition holds."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f'waited in vain for {what}'
            self.send()
            time.sleep(period_s)


def mask_stamps(client: Client) -> list[int]:
    """Return the stamps of the masks received so far."""
    return [stamp_to_ns(m.header.stamp) for _, m in client.received['segmentation/mask']]


@contextlib.contextmanager
def labelling_node(
    context: Any, namespace: str, parameters: Mapping[str, Any]
) -> Iterator[tuple[Client, RgbdFrame, np.ndarray]]:
    """Run a segmentation node; yield a client, a frame that it was sent, and its mask of it."""
    # A machine under load must not be taken for a camera that is silent.
    parameters = {'single_sensor.after_s': 0.0, **parameters}
    node = NodeProcess('rgbd_fusion_seg.ros.node', parameters, f'/{namespace}')
    client = Client(context, f'/{namespace}')
    client.collect('segmentation/mask', Image)
    try:
        node.wait_for_output('waiting for')
        client.wait_for_matched()
        camera = Camera(client)
        pixels = np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8)
        color, depth = camera.color(pixels), camera.depth()
        masks = client.received['segmentation/mask']
        client.wait_for(lambda: camera.send(color, depth) and masks, 'a mask', 60.0)
        mask = np.frombuffer(masks[0][1].data, np.uint8).reshape(48, 64)
        assert stamp_to_ns(masks[0][1].header.stamp) > 0
        yield client, frame_from_msgs(color, depth, camera.intrinsics), mask
    finally:
        client.close()
        node.stop()
