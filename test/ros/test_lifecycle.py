"""The node led by a lifecycle manager instead of starting by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

from lifecycle_msgs.msg import State, Transition
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from ros_harness import Camera, Client, Manager, NodeProcess
from sensor_msgs.msg import Image


@pytest.fixture
def managed(ros_context):
    parameters = {
        'autostart': False,
        'engine.bundle': 'no_such_model',
        'output.diagnostics_period_s': 0.1,
    }
    node = NodeProcess('rgbd_fusion_seg.ros.node', parameters, '/managed')
    client = Client(ros_context, '/managed')
    client.collect('segmentation/mask', Image)
    yield node, client, Manager(client)
    client.close()
    node.stop()


def test_a_managed_life(managed, tiny_bundle):
    node, client, manager = managed
    camera = Camera(client)
    assert manager.state() == State.PRIMARY_STATE_UNCONFIGURED
    assert 'autostart' in manager.set('autostart', True).reason

    # A configuration that fails can be mended and tried again.
    assert not manager.change(Transition.TRANSITION_CONFIGURE)
    assert manager.state() == State.PRIMARY_STATE_UNCONFIGURED
    client.wait_for_complaint("cannot configure: there is no bundle at or called 'no_such_model'")
    refused = manager.set('sync.matcher', 'foo')
    assert not refused.successful
    assert "sync.matcher is 'foo'; choose one of auto, message_filters" in refused.reason
    assert manager.set('sync.matcher', 'builtin').successful
    assert manager.set('engine.bundle', str(tiny_bundle)).successful
    assert client.complains('cannot configure')
    assert manager.change(Transition.TRANSITION_CONFIGURE)
    client.wait_for(lambda: not client.complains('cannot configure'), 'the end of the complaint')

    # What could have no effect now is refused, with a way out.
    refused = manager.set('sync.slop_s', 0.1)
    assert not refused.successful
    assert 'sync.slop_s is read when the node is configured' in refused.reason
    assert manager.set('use_sim_time', False).successful

    for _ in range(2):
        assert client.color.get_subscription_count() == 0
        assert manager.change(Transition.TRANSITION_ACTIVATE)
        client.received.clear()
        camera.send_until(lambda: client.received['segmentation/mask'], 'a mask')
        assert manager.change(Transition.TRANSITION_DEACTIVATE)
        client.wait_for(lambda: client.color.get_subscription_count() == 0, 'unsubscribing')

    client.statuses.clear()
    client.wait_for(lambda: client.statuses, 'diagnostics')
    assert client.statuses[-1].message == 'inactive'
    client.received.clear()
    for _ in range(5):
        camera.send()
    assert manager.change(Transition.TRANSITION_CLEANUP)
    client.wait_for(lambda: client.count_publishers('segmentation/mask') == 0, 'cleaning up')
    assert not client.received['segmentation/mask']
    assert manager.set('sync.slop_s', 0.1).successful

    assert manager.change(Transition.TRANSITION_CONFIGURE)
    assert manager.change(Transition.TRANSITION_ACTIVATE)
    camera.send_until(lambda: client.received['segmentation/mask'], 'a mask')
    assert manager.change(Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert manager.state() == State.PRIMARY_STATE_FINALIZED
    client.wait_for(lambda: client.count_publishers('segmentation/mask') == 0, 'freeing all')
    assert client.color.get_subscription_count() == 0
    assert node.alive
    assert 'Traceback' not in node.output()


def test_diagnostics_come_as_often_as_was_set_before_configuring(ros_context):
    parameters = {
        'autostart': False,
        'engine.bundle': 'no_such_model',
        'output.diagnostics_period_s': 60.0,
    }
    node = NodeProcess('rgbd_fusion_seg.ros.node', parameters, '/seldom')
    client = Client(ros_context, '/seldom')
    manager = Manager(client)
    try:
        assert manager.set('output.diagnostics_period_s', 0.1).successful
        assert not manager.change(Transition.TRANSITION_CONFIGURE)
        client.wait_for(lambda: len(client.statuses) >= 3, 'diagnostics', timeout_s=20.0)
    finally:
        client.close()
        node.stop()


def test_an_activation_that_fails_leaves_nothing_behind(ros_context, tiny_bundle):
    name = '/mistyped'
    override = f'qos_overrides.{name}/rgb/camera_info.subscription.reliability'
    parameters = {'autostart': False, 'engine.bundle': str(tiny_bundle), override: 'relaible'}
    node = NodeProcess('rgbd_fusion_seg.ros.node', parameters, name)
    client = Client(ros_context, name)
    manager = Manager(client)
    try:
        assert manager.change(Transition.TRANSITION_CONFIGURE)
        threads = Path(f'/proc/{node.pid}/task')
        counts = []
        for _ in range(3):
            assert not manager.change(Transition.TRANSITION_ACTIVATE)
            counts.append(len(list(threads.iterdir())))
        client.wait_for(lambda: client.color.get_subscription_count() == 0, 'unsubscribing')
        assert counts[1:] == counts[:1] * 2
        assert 'policy `reliability`: `relaible`; correct the parameters qos_ov' in node.output()
        assert 'Traceback' not in node.output()
    finally:
        client.close()
        node.stop()


def test_a_configuration_that_fails_halfway_can_be_mended(ros_context, tiny_bundle):
    """The network is there already when the outputs cannot be made."""
    name = '/halfway'
    override = f'qos_overrides.{name}/segmentation/mask.publisher.reliability'
    parameters = {'autostart': False, 'engine.bundle': str(tiny_bundle), override: 'relaible'}
    node = NodeProcess('rgbd_fusion_seg.ros.node', parameters, name)
    client = Client(ros_context, name)
    manager = Manager(client)
    try:
        assert not manager.change(Transition.TRANSITION_CONFIGURE)
        assert 'policy `reliability`: `relaible`; correct the parameters qos_ov' in node.output()
        # What could have no effect would be refused.
        assert manager.set('sync.slop_s', 0.1).successful
    finally:
        client.close()
        node.stop()


def test_a_subscriber_that_does_not_fit_is_told_after_activating_too(ros_context, tiny_bundle):
    parameters = {
        'autostart': False,
        'engine.bundle': str(tiny_bundle),
        'output.diagnostics_period_s': 0.1,
    }
    node = NodeProcess('rgbd_fusion_seg.ros.node', parameters, '/early')
    client = Client(ros_context, '/early')
    manager = Manager(client)
    try:
        assert manager.change(Transition.TRANSITION_CONFIGURE)
        latched = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        misfit = client.create_subscription(Image, 'segmentation/mask', lambda _: None, latched)
        client.wait_for_complaint('incompatible QoS (DURABILITY)')
        assert manager.change(Transition.TRANSITION_ACTIVATE)
        client.statuses.clear()
        client.wait_for(lambda: len(client.statuses) >= 3, 'diagnostics')
        assert 'incompatible QoS (DURABILITY)' in client.statuses[-1].message
        client.destroy_subscription(misfit)
        client.wait_for(
            lambda: 'incompatible' not in client.statuses[-1].message, 'the misfit to be gone'
        )
    finally:
        client.close()
        node.stop()
