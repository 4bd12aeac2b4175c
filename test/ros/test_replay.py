"""Real Kinect frames, from an MCAP bag, over real DDS at 30 Hz."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

from ros_harness import Client, NodeProcess, mask_stamps
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE
from rgbd_fusion_seg.image_decoding import stamp_to_ns
from rgbd_fusion_seg.locations import list_bundles
from rgbd_fusion_seg.replay.bags import BagFrames, folder_to_bag
from rgbd_fusion_seg.ros.images import info_from_intrinsics, msg_from_array

RATE_HZ = 30.0


@pytest.fixture(scope='module')
def bag(data_dir, tmp_path_factory):
    """The Kinect sequence as a bag."""
    folder = data_dir / 'kinect_sequence'
    if not folder.is_dir():
        pytest.skip(f'needs real Kinect frames, and {folder} is absent')
    path = tmp_path_factory.mktemp('bags') / 'kinect'
    assert folder_to_bag(folder, path, RATE_HZ) == len(list(folder.glob('*.color.jpg')))
    return path


@pytest.fixture(scope='module')
def messages(bag):
    """(stamp in ns, CameraInfo, colour, depth) of each frame of the bag."""
    found = []
    for frame in BagFrames(bag):
        header = Header(frame_id=frame.frame_id)
        header.stamp.sec, header.stamp.nanosec = divmod(frame.stamp_ns, 10**9)
        millimetres = np.rint(frame.depth * 1000).astype(np.uint16)
        found.append(
            (
                frame.stamp_ns,
                info_from_intrinsics(frame.intrinsics, header),
                msg_from_array(frame.rgb, header),
                msg_from_array(millimetres, header),
            )
        )
    return found


def bundles(tiny_bundle):
    """The tiny bundle keeps up with 30 Hz anywhere; the shipped one is what users run."""
    shipped = {path.name for path in list_bundles()}
    return {'tiny': tiny_bundle} | (
        {'shipped': DEFAULT_BUNDLE} if DEFAULT_BUNDLE in shipped else {}
    )


@pytest.mark.parametrize('name', ['tiny', 'shipped'])
def test_masks_of_a_real_recording(ros_context, messages, tiny_bundle, name):
    bundle = bundles(tiny_bundle).get(name)
    if bundle is None:
        pytest.skip(f'the model {DEFAULT_BUNDLE} is not installed')
    namespace = f'/replay_{name}'
    parameters = {'engine.bundle': bundle, 'output.diagnostics_period_s': 0.1}
    node = NodeProcess('rgbd_fusion_seg.ros.node', parameters, namespace)
    client = Client(ros_context, namespace)
    client.collect('segmentation/mask', Image)
    client.collect('segmentation/confidence', Image)
    try:
        node.wait_for_output('waiting for')
        client.wait_for_matched()
        play(client, messages)
        client.statuses.clear()
        client.wait_for(lambda: is_quiet(client.values()), 'the last mask')
        values = client.values()
        output = node.output()
    finally:
        client.close()
        node.stop()
    stamps = mask_stamps(client)
    colors = {stamp: color for stamp, _, color, _ in messages}
    assert stamps == sorted(set(stamps))
    assert len(stamps) >= 5
    # Reliable delivery, but a client that is starved for long may lose a few.
    assert int(values['masks']) - 5 <= len(stamps) <= int(values['masks'])
    for topic in ('segmentation/mask', 'segmentation/confidence'):
        for _, mask in client.received[topic]:
            color = colors[stamp_to_ns(mask.header.stamp)]
            assert mask.header == color.header
            assert (mask.height, mask.width) == (color.height, color.width) == (480, 640)
            assert (mask.encoding, mask.step, len(mask.data)) == ('mono8', 640, 640 * 480)
    # The bag's stamps lie in 1970, which the node must mention; nothing else is wrong with it.
    complaints = [line for line in output.splitlines() if 'WARN' in line or 'ERROR' in line]
    assert {'use_sim_time' in line for line in complaints} == {True}
    assert 0.5 < float(values['valid depth ratio']) < 1.0
    counts = Counter()
    for _, mask in client.received['segmentation/mask']:
        counts.update(np.unique(np.frombuffer(mask.data, np.uint8)).tolist())
    assert len(counts) >= 2


def is_quiet(values):
    """Nothing came since the status before, and every pair has met its fate."""
    return (
        values.get('pairs Hz') == '0.0'
        and values.get('masks Hz') == '0.0'
        and int(values['pairs']) == int(values['masks']) + int(values['dropped'])
    )


def play(client, messages):
    """Publish the messages with their own stamps, in real time."""
    publishers = (client.info, client.color, client.depth)
    started = threading.Event()
    start = time.monotonic()
    for index, (_, *triple) in enumerate(messages):
        started.wait(max(0.0, start + index / RATE_HZ - time.monotonic()))
        for publisher, msg in zip(publishers, triple, strict=True):
            publisher.publish(msg)
