"""Descriptors and ranges on a real node; the YAML files beside the dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')

from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSPolicyKind
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.ros.parameters import (
    CameraConfig,
    EngineConfig,
    SegmentationConfig,
    SyntheticCameraConfig,
    declare_parameters,
    read_parameters,
    setting,
    unknown_parameters,
    unknown_qos_overrides,
)
from rgbd_fusion_seg.segmenter import Segmenter

CONFIG = Path(__file__).parents[2] / 'config'


@pytest.fixture
def make_node(ros_context):
    nodes = []

    def make(**overrides):
        parameters = [Parameter(name.replace('__', '.'), value=v) for name, v in overrides.items()]
        node = Node('parameters', context=ros_context, parameter_overrides=parameters)
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.destroy_node()


def test_values_arrive_in_their_sections(make_node):
    node = make_node(sync__slop_s=0.5, engine__backend='onnxruntime', autostart=False)
    declare_parameters(node, SegmentationConfig)
    config = read_parameters(node, SegmentationConfig)
    assert config.sync.slop_s == 0.5
    assert config.engine.backend == 'onnxruntime'
    assert config.autostart is False
    assert config.output == SegmentationConfig().output


def test_every_parameter_is_described(make_node):
    node = make_node()
    declare_parameters(node, SegmentationConfig)
    names = [n for n in node._parameters if n.partition('.')[0] in vars(SegmentationConfig())]
    assert 'sync.max_age_s' in names
    for name in names:
        assert node.describe_parameter(name).description.endswith('.')


def test_integers_do_for_numbers_with_a_fraction(make_node):
    node = make_node(sync__slop_s=1, camera__cx=-1)
    declare_parameters(node, SegmentationConfig)
    config = read_parameters(node, SegmentationConfig)
    assert (config.sync.slop_s, config.camera.cx) == (1.0, -1.0)
    assert type(config.sync.slop_s) is float
    assert node.get_parameter('sync.slop_s').type_ == Parameter.Type.DOUBLE


def test_what_the_node_does_not_have_is_told(make_node, capfd):
    overrides = {
        'engine__bundel': 'mine',
        'syncc__slop_s': 0.5,
        'publish_tf': True,
        'engine__backend': 'onnxruntime',
        'use_sim_time': False,
        'start_type_description_service': True,
        'qos_overrides__/some_topic__publisher__depth': 3,
    }
    node = make_node(**overrides)
    declare_parameters(node, SegmentationConfig)
    found = {
        'engine.bundel': 'engine.bundle',
        'syncc.slop_s': 'sync.slop_s',
        'publish_tf': '',
    }
    capfd.readouterr()
    assert unknown_parameters(node) == found
    log = capfd.readouterr().err
    assert log.count('WARN') == 1
    assert 'engine.bundel (did you mean engine.bundle?)' in log
    assert 'publish_tf' in log


def test_qos_overrides_that_no_topic_takes_are_told(make_node, capfd):
    taken = '/ns/image.publisher.depth'
    near = ['/image.publisher.depth', '/ns/image.publisher.dept', '/ns/image.pubilsher.depth']
    far = ['/tf.publisher.depth', '/camera/color/image_raw.subscription.reliability']
    node = make_node(**{f'qos_overrides.{name}': 3 for name in (taken, *near, *far)})
    node.create_publisher(
        Image, '/ns/image', 1, qos_overriding_options=QoSOverridingOptions((QoSPolicyKind.DEPTH,))
    )
    capfd.readouterr()
    found = unknown_qos_overrides(node)
    assert found == {
        **{f'qos_overrides.{name}': f'qos_overrides.{taken}' for name in near},
        **{f'qos_overrides.{name}': '' for name in far},
    }
    log = capfd.readouterr().err
    assert log.count('WARN') == 1
    assert all(name in log for name in found)


def test_what_is_read_at_start_alone_cannot_be_set_later(make_node):
    node = make_node(autostart=False)
    declare_parameters(node, SegmentationConfig, read_only={'autostart'})
    assert node.get_parameter('autostart').value is False
    late = [Parameter('autostart', value=True), Parameter('sync.slop_s', value=0.5)]
    refused, accepted = node.set_parameters(late)
    assert not refused.successful
    assert 'autostart' in refused.reason
    assert accepted.successful


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('sync__slop_s', -1.0),
        ('sync__queue_size', 0),
        ('sync__slop_s', 11),
        ('sync__slop_s', 'far'),
    ],
)
def test_out_of_range_or_of_wrong_type_is_refused(make_node, name, value):
    with pytest.raises(ParameterException, match=name.replace('__', '.')):
        declare_parameters(make_node(**{name: value}), SegmentationConfig)


def test_wrong_choice_lists_the_choices(make_node):
    node = make_node(sync__matcher='exact')
    declare_parameters(node, SegmentationConfig)
    with pytest.raises(InputError, match=r'sync\.matcher.*auto, message_filters, builtin'):
        read_parameters(node, SegmentationConfig)


def test_other_dataclasses_work_alike(make_node):
    @dataclass(frozen=True)
    class Plain:
        count: int = setting(3, 'How many.', minimum=1, maximum=5)

    # Annotations are strings here; give them a module to be resolved in.
    node = make_node(count=4)
    declare_parameters(node, Plain)
    assert read_parameters(node, Plain) == Plain(count=4)
    descriptor = node.describe_parameter('count')
    assert (descriptor.integer_range[0].from_value, descriptor.integer_range[0].to_value) == (1, 5)


@pytest.mark.parametrize(
    ('file', 'config'),
    [('segmentation.yaml', SegmentationConfig), ('synthetic_camera.yaml', SyntheticCameraConfig)],
)
def test_yaml_files_hold_the_defaults(file, config):
    def as_dict(value):
        nested = getattr(value, '__dataclass_fields__', None)
        return value if nested is None else {n: as_dict(getattr(value, n)) for n in nested}

    written = yaml.safe_load((CONFIG / file).read_text())['/**']['ros__parameters']
    assert written == as_dict(config())


def test_input_size_from_parameters():
    assert EngineConfig().input_size is None
    assert EngineConfig(input_width=640, input_height=480).input_size == (640, 480)
    for given, missing in (('input_width', 'input_height'), ('input_height', 'input_width')):
        with pytest.raises(
            InputError, match=rf'engine\.{given} is given .*engine\.{missing} is not'
        ):
            EngineConfig(**{given: 160})


def test_intrinsics_from_parameters():
    assert CameraConfig().intrinsics(640, 480) is None
    given = CameraConfig(fx=500.0).intrinsics(640, 480)
    assert (given.fx, given.fy, given.cx, given.cy) == (500.0, 500.0, 319.5, 239.5)
    for place in ({'cx': 300.0}, {'cy': 300.0}):
        given = CameraConfig(fx=500.0, **place).intrinsics(640, 480)
        assert (given.cx, given.cy) == (place.get('cx', 319.5), place.get('cy', 239.5))
    given = CameraConfig(fx=500.0, fy=510.0, cx=0.0, cy=7.0).intrinsics(64, 48)
    assert (given.fy, given.cx, given.cy, given.width) == (510.0, 0.0, 7.0, 64)


def test_only_options_that_were_given_go_to_the_backends():
    assert EngineConfig().options == {}
    assert EngineConfig().build_options == {}
    given = EngineConfig(num_threads=2, device=1, precision='bf16')
    assert given.options == {'num_threads': 2, 'device': 1, 'precision': 'bf16'}
    assert given.build_options == {'precision': 'bf16'}


@pytest.mark.parametrize(
    ('backend', 'concerning'),
    [
        ('auto', {'num_threads': 2, 'device': 1}),
        ('tensorrt', {'device': 1}),
        ('onnxruntime_gpu', {'device': 1}),
        ('onnxruntime', {'num_threads': 2}),
        ('openvino', {'num_threads': 2}),
        ('abacus', {'num_threads': 2, 'device': 1}),  # told when it is opened
    ],
)
def test_what_does_not_concern_a_backend_does_not_go_to_it(backend, concerning):
    given = {'num_threads': 2, 'device': 1}
    assert EngineConfig(backend=backend, **given).options == concerning
    # A precision that a backend does not have is told rather than left out.
    config = EngineConfig(backend=backend, precision='bf16')
    assert config.options == {'precision': 'bf16'}


def test_an_engine_opens_with_settings_for_another_device(tiny_bundle):
    config = EngineConfig(backend='onnxruntime', device=1, num_threads=2)
    with Segmenter(tiny_bundle, config.backend, **config.options) as segmenter:
        assert segmenter.engine_name == 'onnxruntime (CPU, 2 threads)'


def test_a_camera_has_one_height():
    with pytest.raises(InputError, match=r'height_m and camera\.floor_frame both tell'):
        CameraConfig(height_m=0.4, floor_frame='base_footprint')


def test_a_build_beside_the_work_needs_an_engine_that_works(make_node):
    node = make_node(engine__build='background', engine__backend='tensorrt')
    declare_parameters(node, SegmentationConfig)
    with pytest.raises(InputError, match=r'engine\.backend is tensorrt; set it to auto'):
        read_parameters(node, SegmentationConfig)
