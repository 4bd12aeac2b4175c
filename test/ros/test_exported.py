"""Bundles that the export wrote, in the node: one that sees both inputs, one that sees colour."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')
pytest.importorskip('torch', reason='exporting bundles needs torch (pip install .[train])')

from ros_harness import Camera, Client, NodeProcess
from sensor_msgs.msg import Image
from tiny_checkpoints import ToyFrames, tiny_checkpoint

from rgbd_fusion_seg.ros.images import frame_from_msgs, stamp_to_ns
from rgbd_fusion_seg.segmenter import Segmenter
from rgbd_fusion_seg.training.export import write_bundle
from rgbd_fusion_seg.training.onnx_graph import GraphOptions

MASK = 'segmentation/mask'


@pytest.mark.parametrize(
    ('network', 'size', 'stages'),
    [
        ('ssma_erfnet', None, {'hha', 'preprocess', 'inference', 'postprocess'}),
        ('erfnet_encoder', (64, 48), {'preprocess', 'inference', 'postprocess'}),
    ],
)
def test_the_node_labels_as_the_exported_bundle_does(ros_context, tmp_path, network, size, stages):
    options = GraphOptions(storage='fp32', dynamic_size=size is not None)
    folder = tmp_path / 'exported'
    write_bundle(tiny_checkpoint(network, {}), folder, ToyFrames(), options, frames=1)
    width, height = size or (0, 0)
    parameters = {
        'engine.bundle': folder,
        'engine.input_width': width,
        'engine.input_height': height,
        'output.diagnostics_period_s': 0.1,
    }
    node = NodeProcess('rgbd_fusion_seg.ros.node', parameters, f'/{network}')
    client = Client(ros_context, f'/{network}')
    client.collect(MASK, Image)
    try:
        node.wait_for_output('waiting for')
        client.wait_for_matched()
        camera = Camera(client)
        pixels = np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8)
        color, depth = camera.color(pixels), camera.depth()
        client.wait_for(
            lambda: camera.send(color, depth) and client.received[MASK], 'a mask', 60.0
        )
        stamp, mask = client.received[MASK][0][1].header.stamp, client.received[MASK][0][1]
        with Segmenter(folder, input_size=size) as segmenter:
            expected = segmenter.segment(frame_from_msgs(color, depth, camera.intrinsics)).labels
        assert stamp_to_ns(stamp) > 0
        np.testing.assert_array_equal(np.frombuffer(mask.data, np.uint8).reshape(48, 64), expected)
        client.wait_for(lambda: 'inference p50 ms' in client.values(), 'timings')
        measured = {k.removesuffix(' p50 ms') for k in client.values() if k.endswith(' p50 ms')}
        assert measured - {'latency', 'age', 'segmentation'} == stages
    finally:
        client.close()
        node.stop()
