"""What the launch files would start.

ROS's launch cannot be installed from a Python package index: stand-ins record how the files call
it, and where it is installed, it builds them too.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from xml.etree import ElementTree

import pytest
import yaml

from rgbd_fusion_seg.demo import DEMO_SEED
from rgbd_fusion_seg.ros_environment import PROFILE_VARIABLES

ROOT = Path(__file__).parents[2]
HAS_LAUNCH = all(importlib.util.find_spec(name) for name in ('launch', 'launch_ros'))
# As the drivers publish them: the colour image, depth registered to it, the colour CameraInfo.
PRESETS = {
    'realsense': (
        '/camera/camera/color/image_raw',
        '/camera/camera/aligned_depth_to_color/image_raw',
        '/camera/camera/color/camera_info',
    ),
    'kinect': (
        '/camera/rgb/image_rect_color',
        '/camera/depth_registered/image_raw',
        '/camera/rgb/camera_info',
    ),
    'openni2': (
        '/camera/rgb/image_raw',
        '/camera/depth_registered/image_raw',
        '/camera/rgb/camera_info',
    ),
    'azure_kinect': ('/rgb/image_raw', '/depth_to_rgb/image_raw', '/rgb/camera_info'),
    'oak': ('/oak/rgb/image_raw', '/oak/stereo/image_raw', '/oak/rgb/camera_info'),
    'zed': (
        '/zed/zed_node/rgb/color/rect/image',
        '/zed/zed_node/depth/depth_registered',
        '/zed/zed_node/rgb/color/rect/camera_info',
    ),
}
# With the drivers' default names of the camera.
FRAMES = {
    'realsense': 'camera_color_optical_frame',
    'kinect': 'camera_rgb_optical_frame',
    'openni2': 'camera_rgb_optical_frame',
    'azure_kinect': 'rgb_camera_link',
    'oak': 'oak_rgb_camera_optical_frame',
    'zed': 'zed_left_camera_frame_optical',
    'zed_v4': 'zed_left_camera_optical_frame',
}
OURS = ('rgb/image_rect_color', 'depth_registered/image_rect', 'rgb/camera_info')


class Recorded:
    """Stands for any launch action; remembers its arguments."""

    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs


class LaunchConfiguration(Recorded):
    def perform(self, context):
        return context.launch_configurations[self.args[0]]


def fake_launch():
    names = {
        'launch': ['LaunchDescription', 'Action', 'LaunchContext'],
        'launch.actions': [
            'DeclareLaunchArgument',
            'IncludeLaunchDescription',
            'LogInfo',
            'OpaqueFunction',
            'SetEnvironmentVariable',
        ],
        'launch.conditions': ['IfCondition'],
        'launch.launch_description_sources': ['PythonLaunchDescriptionSource'],
        'launch.substitutions': ['LaunchConfiguration'],
        'launch_ros': [],
        'launch_ros.actions': ['Node'],
        'launch_ros.parameter_descriptions': ['ParameterValue'],
    }
    modules = {}
    for module, classes in names.items():
        modules[module] = ModuleType(module)
        for name in classes:
            kind = type(name, (Recorded,), {})
            if name == 'LaunchConfiguration':
                kind = LaunchConfiguration
            setattr(modules[module], name, kind)
    packages = modules['ament_index_python.packages'] = ModuleType('ament_index_python.packages')
    packages.PackageNotFoundError = type('PackageNotFoundError', (KeyError,), {})
    packages.get_package_share_directory = lambda name: f'/opt/ros/jazzy/share/{name}'
    return modules


@pytest.fixture
def load(monkeypatch):
    for name, module in fake_launch().items():
        monkeypatch.setitem(sys.modules, name, module)

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / f'launch/{name}.launch.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def started(module, **arguments):
    """Return the recorded nodes for launch arguments, the others at their defaults."""
    (entities,) = module.generate_launch_description().args
    values = {
        e.args[0]: e.kwargs['default_value']
        for e in entities
        if type(e).__name__ == 'DeclareLaunchArgument'
    }
    assert arguments.keys() <= values.keys()
    context = SimpleNamespace(launch_configurations=values | arguments)
    return [a for a in module.make_actions(context) if type(a).__name__ == 'Node']


@pytest.mark.parametrize('camera', PRESETS)
def test_presets_remap_to_the_topics_of_the_driver(load, camera):
    (node,) = started(load('segmentation'), camera=camera)
    assert node.kwargs['executable'] == 'segmentation_node'
    assert dict(node.kwargs['remappings']) == dict(zip(OURS, PRESETS[camera], strict=True))


def test_synthetic_needs_no_remapping(load):
    (node,) = started(load('segmentation'), camera='synthetic')
    assert node.kwargs['remappings'] == []


def test_custom_topics_replace_single_ones(load):
    module = load('segmentation')
    (node,) = started(module, camera='custom', color_topic='/c', depth_topic='/d')
    assert node.kwargs['remappings'] == [(OURS[0], '/c'), (OURS[1], '/d')]
    (node,) = started(module, camera='oak', depth_topic='/filled/depth')
    assert dict(node.kwargs['remappings'])[OURS[1]] == '/filled/depth'
    assert dict(node.kwargs['remappings'])[OURS[0]] == PRESETS['oak'][0]


def test_arguments_become_parameters(load):
    module = load('segmentation')
    (node,) = started(module, bundle='mine', autostart='false', use_sim_time='true')
    file, values = node.kwargs['parameters']
    assert Path(file).is_file()
    assert values == {'use_sim_time': True, 'autostart': False, 'engine.bundle': 'mine'}
    (node,) = started(module, camera_height='0.4', floor_frame='odom', backend='openvino')
    assert node.kwargs['parameters'][1] == {
        'camera.height_m': 0.4,
        'camera.floor_frame': 'odom',
        'engine.backend': 'openvino',
    }


def test_what_is_not_said_is_left_to_the_file(load, tmp_path):
    mine = tmp_path / 'mine.yaml'
    mine.touch()
    (node,) = started(load('segmentation'), params_file=str(mine))
    assert node.kwargs['parameters'] == [str(mine)]


@pytest.mark.parametrize(
    'wrong',
    [{'params_file': '/nowhere/mine.yaml'}, {'camera_height': 'low'}, {'camera_height': '0,4'}],
)
def test_wrong_arguments_are_named(load, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(RuntimeError, match=f'{name}:={value} is not'):
        started(load('segmentation'), **wrong)


def test_rviz_sees_the_cameras_depth(load):
    _, rviz = started(load('segmentation'), camera='realsense', rviz='true')
    remapped = dict(rviz.kwargs['remappings'])
    assert remapped['/depth_registered/image_rect'] == PRESETS['realsense'][1]
    assert remapped['/depth_registered/camera_info'] == (
        '/camera/camera/aligned_depth_to_color/camera_info'
    )


def test_compressed_topics_reach_the_node_and_rviz_has_the_raw_name(load):
    """RViz has a setting for the transport."""
    depth = PRESETS['realsense'][1]
    given = {'color_topic': '/link/image/compressed', 'depth_topic': f'{depth}/compressedDepth'}
    node, rviz = started(load('segmentation'), camera='realsense', rviz='true', **given)
    assert dict(node.kwargs['remappings'])['rgb/image_rect_color'] == given['color_topic']
    assert dict(node.kwargs['remappings'])['depth_registered/image_rect'] == given['depth_topic']
    remapped = dict(rviz.kwargs['remappings'])
    assert remapped['/depth_registered/image_rect'] == depth
    assert remapped['/depth_registered/camera_info'] == f'{depth.rpartition("/")[0]}/camera_info'


@pytest.mark.parametrize('camera', [*FRAMES, 'synthetic', 'custom'])
def test_rviz_looks_from_the_frame_of_the_colour_image(load, camera):
    module = load('segmentation')
    for given in ('', 'base_link'):
        _, rviz = started(module, camera=camera, rviz='true', rviz_frame=given)
        _, _, option, frame = rviz.kwargs['arguments']
        default = FRAMES.get(camera, 'camera_color_optical_frame')
        assert (option, frame) == ('-f', given or default)


@pytest.mark.parametrize('camera', ['synthetic', 'oak'])
def test_rviz_sees_what_a_namespace_holds(load, camera):
    _, rviz = started(load('segmentation'), camera=camera, rviz='true', namespace='robot1')
    remapped = dict(rviz.kwargs['remappings'])
    for output in ('overlay', 'color', 'points'):
        assert remapped.pop(f'/segmentation/{output}') == f'/robot1/segmentation/{output}'
    depth = '/oak/stereo' if camera == 'oak' else '/robot1/depth_registered'
    assert remapped['/depth_registered/camera_info'] == f'{depth}/camera_info'
    assert remapped['/depth_registered/image_rect'].startswith(depth)


def test_the_node_starts_where_rviz_is_not_installed(load, monkeypatch):
    module = load('segmentation')

    def absent(name):
        raise module.PackageNotFoundError(name)

    monkeypatch.setattr(module, 'get_package_share_directory', absent)
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    (node,) = started(module, camera='oak', rviz='true')
    assert node.kwargs['executable'] == 'segmentation_node'
    (told,) = module.rviz_actions('camera', [], '')
    assert 'ros-jazzy-rviz2' in told.kwargs['msg']


def test_rviz_needs_no_remapping_without_a_namespace(load):
    _, rviz = started(load('segmentation'), camera='synthetic', rviz='true')
    assert rviz.kwargs['remappings'] == []


def test_rviz_config_shows_our_topics():
    config = yaml.safe_load((ROOT / 'config/segmentation.rviz').read_text())
    displays = config['Visualization Manager']['Displays']
    topics = {d['Name']: d['Topic']['Value'] for d in displays if 'Topic' in d}
    assert topics == {
        'Overlay': '/segmentation/overlay',
        'Labels': '/segmentation/color',
        'Labelled points': '/segmentation/points',
    }
    (cloud,) = [d for d in displays if d['Class'].endswith('/DepthCloud')]
    assert cloud['Depth Map Topic'] == f'/{OURS[1]}'
    assert cloud['Color Image Topic'] == '/segmentation/color'


def environment(module):
    (entities,) = module.generate_launch_description().args
    return dict(e.args for e in entities if type(e).__name__ == 'SetEnvironmentVariable')


def test_fast_dds_profile_is_set_only_where_unset(load, monkeypatch):
    module = load('segmentation')
    for name in PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('AMENT_PREFIX_PATH', '/opt/ros/any')
    for distro in ('humble', 'iron', 'jazzy'):
        monkeypatch.setenv('ROS_DISTRO', distro)
        assert list(environment(module)) == ['FASTRTPS_DEFAULT_PROFILES_FILE']
    monkeypatch.setenv('ROS_DISTRO', 'kilted')
    ((name, profile),) = environment(module).items()
    assert name == 'FASTDDS_DEFAULT_PROFILES_FILE'
    assert ElementTree.parse(profile).getroot().tag.endswith('dds')
    # One that this Fast DDS does not read is not set up.
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', '/my/own.xml')
    assert list(environment(module)) == ['FASTDDS_DEFAULT_PROFILES_FILE']
    monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', '/my/own.xml')
    assert environment(module) == {}


def test_demo_starts_camera_and_node(load):
    (entities,) = load('demo').generate_launch_description().args
    (include,) = [e for e in entities if type(e).__name__ == 'IncludeLaunchDescription']
    assert Path(include.args[0].args[0]).is_file()
    passed = dict(include.kwargs['launch_arguments'])
    assert passed['camera'] == 'synthetic'
    (known,) = load('segmentation').generate_launch_description().args
    assert passed.keys() <= {e.args[0] for e in known if type(e).__name__.startswith('Declare')}
    nodes = [e.kwargs['executable'] for e in entities if type(e).__name__ == 'Node']
    assert nodes[0] == 'synthetic_camera'
    arguments = [e for e in entities if type(e).__name__ == 'DeclareLaunchArgument']
    defaults = {e.args[0]: e.kwargs['default_value'] for e in arguments}
    assert int(defaults['seed']) == DEMO_SEED


@pytest.mark.parametrize('name', ['segmentation', 'demo'])
@pytest.mark.skipif(
    not HAS_LAUNCH or not shutil.which('ros2'), reason='ros2 launch is not installed'
)
def test_launch_file_is_accepted_by_ros2(name):
    command = ['ros2', 'launch', str(ROOT / f'launch/{name}.launch.py'), '--show-args']
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "'bundle'" in shown
    assert "'rviz'" in shown


@pytest.mark.parametrize('name', ['segmentation', 'demo'])
@pytest.mark.skipif(not HAS_LAUNCH, reason="ROS's launch is not installed")
def test_ros_itself_builds_what_the_launch_file_says(name):
    import launch

    found = []

    def build(entity, context):
        found.append(entity)
        if type(entity).__name__ == 'Node':
            entity._perform_substitutions(context)
            return
        for inner in entity.visit(context) or ():
            build(inner, context)

    source = launch.launch_description_sources.PythonLaunchDescriptionSource(
        str(ROOT / f'launch/{name}.launch.py')
    )
    build(launch.actions.IncludeLaunchDescription(source), launch.LaunchContext())
    nodes = [e for e in found if type(e).__name__ == 'Node']
    executables = {'segmentation_node', *(['synthetic_camera'] if name == 'demo' else [])}
    assert executables <= {node.node_executable for node in nodes}
    (ours,) = [node for node in nodes if node.node_executable == 'segmentation_node']
    camera = 'synthetic' if name == 'demo' else 'realsense'
    topics = [] if name == 'demo' else list(zip(OURS, PRESETS[camera], strict=True))
    assert list(ours.expanded_remapping_rules or []) == topics


def test_wrappers_are_executable_and_name_real_modules():
    for script in (ROOT / 'scripts').iterdir():
        assert os.access(script, os.X_OK)
        module = script.read_text().split('from ')[1].split()[0]
        assert Path(importlib.util.find_spec(module).origin).is_relative_to(
            ROOT / 'rgbd_fusion_seg'
        )
