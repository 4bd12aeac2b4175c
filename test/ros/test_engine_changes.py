"""The node's engine changes while it runs: built in the background, or lost.

TensorRT's backend is a stand-in that asks for the engine as the real one does and computes with
ONNX Runtime, for it needs a GPU; builder, engine files, processes and ROS are the real ones.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')
pytest.importorskip('onnx', reason='making bundles needs onnx')

import bundles
from lifecycle_msgs.msg import State, Transition
from ros_harness import Camera, Client, Manager, NodeProcess, mask_stamps
from sensor_msgs.msg import Image

from rgbd_fusion_seg.bundle import load_bundle
from rgbd_fusion_seg.engine import open_engine
from rgbd_fusion_seg.engine.engine_files import (
    EngineCard,
    build_lock,
    list_engines,
    writable_folder,
    write_engine,
)
from rgbd_fusion_seg.engine.flavours import Flavour, installed_flavours
from rgbd_fusion_seg.ros.images import frame_from_msgs
from rgbd_fusion_seg.segmenter import Segmenter

MASK = 'segmentation/mask'
OK, WARN, ERROR = b'\x00', b'\x01', b'\x02'
WAIT_S = 60.0


class Rig:
    """A bundle of its own, the node with the stand-in, and a camera that waits for each mask."""

    def __init__(self, context, folder, namespace):
        self.bundle = load_bundle(bundles.write_bundle(folder))
        self.client = Client(context, namespace)
        self.client.collect(MASK, Image)
        self.camera = Camera(self.client)
        self.rng = np.random.default_rng(0)
        self.node = None
        self.segmenter = Segmenter(self.bundle, 'onnxruntime', num_threads=1)

    def start(self, **parameters):
        given = {
            'engine.bundle': self.bundle.path,
            'output.diagnostics_period_s': 0.1,
            'sync.warn_after_s': 600.0,  # the pauses of a busy machine are no problem here
        }
        namespace = self.client.get_namespace()
        self.node = NodeProcess('stand_in_engine', given | parameters, namespace)

    def ready(self):
        self.node.wait_for_output('waiting for')
        self.client.wait_for_matched()
        self.client.received.clear()
        # Best-effort images are lost until both sides know of each other.
        self.camera.send_until(lambda: self.client.received[MASK], 'a mask')

    def send_and_compare(self):
        """Send one frame, wait for its mask and compare it."""
        i = self.camera.intrinsics
        grey = np.kron(self.rng.integers(0, 256, (6, 8, 1)), np.ones((8, 8, 1)))
        color = self.camera.color(grey)
        depth = self.camera.depth(self.rng.uniform(0.8, 4.0, (i.height, i.width)))
        self.client.received.clear()
        stamp = self.camera.send(color, depth)
        self.client.wait_for(lambda: stamp in mask_stamps(self.client), 'the mask of a frame')
        (mask,) = (
            m for _, m in self.client.received[MASK] if m.header.stamp == color.header.stamp
        )
        expected = self.segmenter.segment(frame_from_msgs(color, depth, i)).labels
        np.testing.assert_array_equal(np.frombuffer(mask.data, np.uint8), expected.ravel())

    def engine(self):
        return self.client.values().get('engine', '')

    def value(self, key):
        return self.client.values().get(key, '')

    def add_engine_file(self):
        """Write what the stand-in takes for an engine."""
        sha256 = self.bundle.weights_sha256
        card = EngineCard(self.bundle.name, sha256, 'tensorrt', '10.3.0', 'fp32', ('8.7',), '', ())
        write_engine(writable_folder(self.bundle), 'by_hand', b'an engine', card)

    def close(self):
        self.segmenter.close()
        self.client.close()
        if self.node is not None:
            self.node.stop()


@pytest.fixture
def rig(ros_context, tmp_path, monkeypatch, request):
    here = str(Path(__file__).resolve().parent.parent)
    paths = [here, *filter(None, [os.environ.get('PYTHONPATH')])]
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(paths))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    namespace = '/changes_' + str(abs(hash(request.node.name)))
    made = Rig(ros_context, tmp_path / 'tiny', namespace)
    yield made
    made.close()


@pytest.fixture
def builder():
    """Skips a test where nothing can build engines."""
    found = installed_flavours().values()
    if not any(isinstance(flavour, Flavour) and flavour.can_build for flavour in found):
        pytest.skip('needs a TensorRT that builds (pip install .[tensorrt-rtx])')


def children(pid):
    """Return the process ids of the children of a process."""
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, parent = stat.read_text().rpartition(')')[2].split()[:2]
        except (OSError, ValueError):
            continue
        if int(parent) == pid and state != 'Z':
            found.append(int(stat.parent.name))
    return found


def run_until_progress(rig, child):
    """Let the process that builds run a little at a time until /diagnostics tells a percentage."""
    deadline = time.monotonic() + WAIT_S
    while not rig.value('engine build').endswith(' %'):
        assert time.monotonic() < deadline, rig.value('engine build')
        os.kill(child, signal.SIGCONT)
        time.sleep(0.05)
        os.kill(child, signal.SIGSTOP)
        seen = len(rig.client.statuses)
        rig.client.wait_for(lambda seen=seen: len(rig.client.statuses) > seen + 1, 'diagnostics')
    os.kill(child, signal.SIGCONT)


def wait_for_child(rig):
    rig.client.wait_for(lambda: children(rig.node.pid), 'the process that builds')
    (child,) = children(rig.node.pid)
    # Until it runs its own program, its parent waits for it: stopped now, it would stop both.
    program = Path(f'/proc/{child}/cmdline')
    rig.client.wait_for(lambda: b'build_process' in program.read_bytes(), 'its program')
    return child


def wait_for_end_of(child):
    deadline = time.monotonic() + WAIT_S
    while Path(f'/proc/{child}').exists():
        assert time.monotonic() < deadline, 'the process that builds goes on'
        time.sleep(0.01)


def test_every_step_down_is_said_once_and_shown(rig):
    rig.start()
    rig.ready()
    reason = 'tiny has no engine for the stand-in; build one'
    status = rig.client.wait_for_complaint(f'tensorrt is not used: {reason}')
    assert status.level == WARN
    assert rig.value('not used: tensorrt') == reason
    assert rig.engine().startswith('onnxruntime')
    assert 'engine build' not in rig.client.values()  # which nobody has asked for
    # What is merely not installed here is no problem.
    expected = [s for s in open_engine(rig.bundle).step_downs if s.backend != 'tensorrt']
    for step_down in expected:
        assert rig.value(f'not used: {step_down.backend}') == step_down.reason
        assert not rig.client.complains(step_down.reason)
    for sentence in (f'tensorrt is not used: {reason}', *map(str, expected)):
        assert rig.node.output().count(sentence) == 1


def test_an_engine_that_is_lost_gives_way_and_no_frame_is_lost(rig):
    rig.add_engine_file()
    rig.start()
    rig.ready()
    rig.client.wait_for(lambda: rig.engine() == 'tensorrt (stand-in)', 'the stand-in')
    assert not rig.client.complains('')
    rig.send_and_compare()
    (rig.bundle.path / 'device_lost').touch()
    for _ in range(3):
        rig.send_and_compare()
    reason = 'the device of the stand-in was lost'
    status = rig.client.wait_for_complaint(f'tensorrt is not used: {reason}')
    assert status.level == WARN
    assert rig.engine().startswith('onnxruntime')
    assert 'dropped: engine error' not in rig.client.values()
    said = rig.node.output()
    assert said.count(reason) == 1
    assert f'{reason}; {rig.engine()} takes over' in said
    assert 'Traceback' not in said


def test_the_engine_is_built_while_another_one_serves(rig, builder):
    rig.start(**{'engine.build': 'background'})
    child = wait_for_child(rig)
    os.kill(child, signal.SIGSTOP)  # a small network would be built before the first frame
    rig.ready()
    rig.node.wait_for_output('building the TensorRT engine of tiny in the background; onnxr')
    run_until_progress(rig, child)
    deadline = time.monotonic() + WAIT_S
    while rig.engine() != 'tensorrt (stand-in)':
        assert time.monotonic() < deadline, rig.node.output()
        rig.send_and_compare()
        assert not rig.value('engine build').startswith('failed'), rig.value('engine build')
        time.sleep(0.02)  # leaves the builder some of the processor
    for _ in range(3):
        rig.send_and_compare()
    rig.client.wait_for(lambda: rig.value('engine build').startswith('done: '), 'the end')
    card = Path(rig.value('engine build').removeprefix('done: '))
    assert card.is_relative_to(rig.bundle.path)
    assert 'dropped: engine error' not in rig.client.values()
    assert not rig.client.complains('')
    assert 'not used: tensorrt' not in rig.client.values()
    rig.node.wait_for_output('is built; tensorrt (stand-in) takes over')
    assert not children(rig.node.pid)
    assert 'Traceback' not in rig.node.output()


def test_a_build_that_fails_is_told_once_and_not_tried_again(rig, builder):
    manager = Manager(rig.client)
    (rig.bundle.path / 'engine_unfit').touch()
    with build_lock(writable_folder(rig.bundle)):
        rig.start(**{'engine.build': 'background'})
        rig.ready()
        rig.client.wait_for(lambda: rig.value('engine build').startswith('failed'), 'the failure')
    reason = 'another process is building an engine'
    assert reason in rig.value('engine build')
    rig.send_and_compare()
    assert manager.change(Transition.TRANSITION_DEACTIVATE)
    assert manager.change(Transition.TRANSITION_ACTIVATE)
    rig.ready()
    rig.send_and_compare()
    assert reason in rig.value('engine build')
    assert rig.node.output().count(reason) == 1
    assert not children(rig.node.pid)

    assert manager.change(Transition.TRANSITION_DEACTIVATE)
    assert manager.change(Transition.TRANSITION_CLEANUP)
    assert manager.change(Transition.TRANSITION_CONFIGURE)
    assert manager.change(Transition.TRANSITION_ACTIVATE)
    rig.ready()
    # This time it is built, and then does not fit.
    words = 'the engine is for another GPU than the stand-in'
    rig.client.wait_for(lambda: words in rig.value('engine build'), 'the other failure')
    assert len(list_engines(rig.bundle)) == 1
    rig.send_and_compare()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize('moment', ['just begun', 'under way'])
def test_no_build_outlives_its_node(rig, tmp_path, builder, number, moment):
    if moment == 'under way':  # a network that takes some seconds
        shipped = load_bundle('rfbnet_erfnet_nyu40_320x240').path
        rig.bundle = load_bundle(shutil.copytree(shipped, tmp_path / 'shipped'))
    rig.start(**{'engine.build': 'background'})
    child = wait_for_child(rig)
    if moment == 'under way':
        run_until_progress(rig, child)
    rig.node.signal(number)
    assert rig.node.wait() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    wait_for_end_of(child)
    assert not list_engines(rig.bundle), 'the build went on to its end'
    assert 'Traceback' not in rig.node.output()


def test_deactivating_stops_the_build_and_activating_begins_another(rig, builder):
    manager = Manager(rig.client)
    rig.start(**{'engine.build': 'background'})
    child = wait_for_child(rig)
    os.kill(child, signal.SIGSTOP)  # so that the build cannot end before
    assert manager.change(Transition.TRANSITION_DEACTIVATE)
    assert not children(rig.node.pid)
    assert not Path(f'/proc/{child}').exists()
    rig.client.wait_for(lambda: rig.value('engine build') == 'stopped', 'the news')
    assert not list_engines(rig.bundle)
    assert manager.change(Transition.TRANSITION_ACTIVATE)
    assert wait_for_child(rig) != child
    assert 'WARN' not in rig.node.output().partition('building the TensorRT engine')[2]
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
        assert manager.change(transition)
    assert manager.set('engine.build', 'never').successful
    rig.client.statuses.clear()
    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        assert manager.change(transition)
    rig.client.wait_for(lambda: 'pairs' in rig.client.values(), 'the status of an active node')
    assert 'engine build' not in rig.client.values()


@pytest.fixture
def hanging(rig):
    """A node whose inference hangs with a frame, and the stamps that it may no longer publish."""
    rig.add_engine_file()
    rig.start()
    rig.ready()
    hang = rig.bundle.path / 'hang'
    hang.touch()
    rig.camera.send_until(lambda: not hang.exists(), 'a frame that hangs')
    old_ns = rig.client.now_ns()
    rig.client.received.clear()
    rig.camera.send_until(
        lambda: rig.client.complains('the network has not answered for'), 'the complaint'
    )
    assert rig.client.statuses[-1].level == ERROR
    assert 'on tensorrt (stand-in); if it' in rig.client.statuses[-1].message
    manager = Manager(rig.client)
    assert manager.change(Transition.TRANSITION_DEACTIVATE)
    yield rig, manager, old_ns
    (rig.bundle.path / 'hangs').unlink(missing_ok=True)


def test_nothing_is_begun_beside_an_inference_that_hangs(hanging):
    rig, manager, old_ns = hanging
    assert not manager.change(Transition.TRANSITION_ACTIVATE)
    rig.client.wait_for_complaint('the network still works on a frame of before on tensorrt')
    assert manager.state() == State.PRIMARY_STATE_INACTIVE
    (rig.bundle.path / 'hangs').unlink()
    rig.client.wait_for(lambda: manager.change(Transition.TRANSITION_ACTIVATE), 'activation')
    rig.client.wait_for_matched()
    rig.camera.send_until(lambda: len(mask_stamps(rig.client)) >= 3, 'masks')
    assert min(mask_stamps(rig.client)) > old_ns
    rig.client.wait_for(lambda: rig.client.statuses[-1].level == OK, 'no problem left')
    assert 'Traceback' not in rig.node.output()


def test_a_network_that_is_loaded_anew_serves_while_the_old_one_hangs(hanging):
    rig, manager, old_ns = hanging
    for transition in (
        Transition.TRANSITION_CLEANUP,
        Transition.TRANSITION_CONFIGURE,
        Transition.TRANSITION_ACTIVATE,
    ):
        assert manager.change(transition)
    rig.client.wait_for_matched()
    rig.camera.send_until(lambda: len(mask_stamps(rig.client)) >= 3, 'masks')
    (rig.bundle.path / 'hangs').unlink()
    rig.client.received.clear()
    rig.camera.send_until(lambda: len(mask_stamps(rig.client)) >= 3, 'masks')
    assert min(mask_stamps(rig.client)) > old_ns
    assert 'Traceback' not in rig.node.output()
