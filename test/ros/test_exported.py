"""Bundles that the export wrote, in the node: one that sees both inputs, one that sees colour."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')
pytest.importorskip('torch', reason='exporting bundles needs torch (pip install .[train])')

from ros_harness import labelling_node
from tiny_checkpoints import ToyFrames, tiny_checkpoint

from rgbd_fusion_seg.segmenter import Segmenter
from rgbd_fusion_seg.training.export import write_bundle
from rgbd_fusion_seg.training.onnx_graph import GraphOptions


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
    write_bundle(tiny_checkpoint(network, {}), folder, folder.name, ToyFrames(), options, frames=1)
    width, height = size or (0, 0)
    parameters = {
        'engine.bundle': folder,
        'engine.input_width': width,
        'engine.input_height': height,
        'output.diagnostics_period_s': 0.1,
    }
    with labelling_node(ros_context, network, parameters) as (client, frame, mask):
        with Segmenter(folder, input_size=size) as segmenter:
            np.testing.assert_array_equal(mask, segmenter.segment(frame).labels)
        client.wait_for(lambda: 'inference p50 ms' in client.values(), 'timings')
        measured = {k.removesuffix(' p50 ms') for k in client.values() if k.endswith(' p50 ms')}
        assert measured - {'latency', 'age', 'segmentation'} == stages
