"""Segments the images of a camera: ros2 launch rgbd_fusion_seg segmentation.launch.py camera:=oak.

Every camera of config/cameras.yaml is a preset of topics; the arguments color_topic, depth_topic
and camera_info_topic replace single ones.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from rgbd_fusion_seg.ros_environment import profile_variable

CONFIG = Path(__file__).resolve().parent.parent / 'config'
CAMERAS = yaml.safe_load((CONFIG / 'cameras.yaml').read_text(encoding='utf-8'))
# Our name of a topic -> its key in cameras.yaml and, with _topic, its launch argument.
TOPICS = {
    'rgb/image_rect_color': 'color',
    'depth_registered/image_rect': 'depth',
    'rgb/camera_info': 'camera_info',
}
# What config/segmentation.rviz shows.
SHOWN = (
    'depth_registered/image_rect',
    'segmentation/overlay',
    'segmentation/color',
    'segmentation/points',
)
GIVEN = {
    'use_sim_time': ('use_sim_time', 'true'.__eq__),
    'autostart': ('autostart', 'true'.__eq__),
    'bundle': ('engine.bundle', str),
    'backend': ('engine.backend', str),
    'camera_height': ('camera.height_m', float),
    'floor_frame': ('camera.floor_frame', str),
}
"""The node's parameters by the arguments that replace those of the file, and their types."""


def remappings(camera: str, overrides: dict[str, str]) -> list[tuple[str, str]]:
    """Return (our name, camera's name) of the topics that differ.

    Args:
        camera: a key of cameras.yaml.
        overrides: key (color, depth, camera_info) -> topic, empty where the preset holds.
    """
    chosen = {name: overrides.get(key) or CAMERAS[camera][key] for name, key in TOPICS.items()}
    return [(name, topic) for name, topic in chosen.items() if name != topic]


def rviz_remappings(pairs: list[tuple[str, str]], namespace: str) -> list[tuple[str, str]]:
    """Return (name, topic) of the topics that RViz's config names otherwise than they are.

    RViz runs outside the node's namespace and its config names topics from the root; its depth
    cloud reads the CameraInfo beside the depth image, and knows compressed ones by another setting
    than their name.

    Args:
        pairs: of :func:`remappings`.
        namespace: of the node; may be empty.
    """
    inside = f'/{namespace.strip("/")}' if namespace.strip('/') else ''
    topics = {name: name for name in SHOWN} | dict(pairs)
    absolute = {
        name: topic if topic.startswith('/') else f'{inside}/{topic}'
        for name, topic in topics.items()
    }
    depth = absolute['depth_registered/image_rect'].removesuffix('/compressedDepth')
    absolute['depth_registered/image_rect'] = depth
    absolute['depth_registered/camera_info'] = depth.rpartition('/')[0] + '/camera_info'
    return [(f'/{name}', topic) for name, topic in absolute.items() if f'/{name}' != topic]


def transport_actions() -> list[Action]:
    """Return actions that let Fast DDS carry images, where the user has not set it up."""
    name = profile_variable()
    if os.environ.get(name):
        return []
    return [SetEnvironmentVariable(name, str(CONFIG / 'fastdds.xml'))]


def rviz_actions(frame: str, pairs: list[tuple[str, str]], namespace: str) -> list[Action]:
    """Return actions that start RViz, or say how to install it, for robots seldom have it."""
    try:
        get_package_share_directory('rviz2')
    except PackageNotFoundError:
        name = f'ros-{os.environ.get("ROS_DISTRO", "<distro>")}-rviz2'
        return [LogInfo(msg=f'rviz:=true, but rviz2 is not installed: sudo apt install {name}')]
    return [
        Node(
            package='rviz2',
            executable='rviz2',
            arguments=['-d', str(CONFIG / 'segmentation.rviz'), '-f', frame],
            remappings=rviz_remappings(pairs, namespace),
        )
    ]


def typed(argument: str, text: str, kind: Callable[[str], Any]) -> Any:
    """Return the value of a launch argument in the type of its parameter."""
    try:
        return kind(text)
    except ValueError:
        raise RuntimeError(f'{argument}:={text} is not a number; write it as 0.4') from None


def make_actions(context: LaunchContext) -> list[Action]:
    """Return the actions for the values of the launch arguments."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    camera, params_file = value('camera'), value('params_file')
    if not os.path.isfile(params_file):  # launch itself only warns, and the node has defaults
        raise RuntimeError(
            f'params_file:={params_file} is not there; give the path of a YAML file'
        )
    pairs = remappings(camera, {key: value(f'{key}_topic') for key in TOPICS.values()})
    parameters = {
        name: typed(given, value(given), kind)
        for given, (name, kind) in GIVEN.items()
        if value(given)
    }
    actions = [
        LogInfo(msg=f'camera {camera} needs: {CAMERAS[camera]["needs"]}'),
        Node(
            package='rgbd_fusion_seg',
            executable='segmentation_node',
            name='segmentation_node',
            namespace=value('namespace'),
            parameters=[params_file, *([parameters] if parameters else [])],
            remappings=pairs,
            output='screen',
        ),
    ]
    if value('rviz') == 'true':
        frame = value('rviz_frame') or CAMERAS[camera]['frame']
        actions += rviz_actions(frame, pairs, value('namespace'))
    return actions


def generate_launch_description() -> LaunchDescription:
    """Describe the launch."""

    def argument(name: str, default: str, description: str, **options: Any) -> Action:
        return DeclareLaunchArgument(
            name, default_value=default, description=description, **options
        )

    switch, maybe = {'choices': ['true', 'false']}, {'choices': ['', 'true', 'false']}
    return LaunchDescription(
        [
            argument('camera', 'realsense', 'Which topics to read.', choices=list(CAMERAS)),
            argument('color_topic', '', 'Colour, also …/compressed; empty = as preset.'),
            argument(
                'depth_topic', '', 'Depth, also …/compressedDepth or …/disparity; empty = preset.'
            ),
            argument('camera_info_topic', '', 'CameraInfo of the colour image; empty = preset.'),
            argument('namespace', '', 'Namespace of the node and its outputs.'),
            argument('params_file', str(CONFIG / 'segmentation.yaml'), 'Parameters (YAML).'),
            argument('bundle', '', 'Model name or folder; empty = as in params_file.'),
            argument('backend', '', 'Inference backend; empty = as in params_file.'),
            argument('camera_height', '', 'Metres above the floor; empty = as in params_file.'),
            argument('floor_frame', '', 'Frame of TF on the floor; empty = as in params_file.'),
            argument('autostart', '', 'Configure, activate; empty = as in params_file.', **maybe),
            argument('use_sim_time', '', 'Time of /clock; empty = as in params_file.', **maybe),
            argument('rviz', 'false', 'Show overlay, labels and depth cloud.', **switch),
            argument('rviz_frame', '', 'Fixed frame of RViz; empty = as the camera preset says.'),
            *transport_actions(),
            OpaqueFunction(function=make_actions),
        ]
    )
