"""A rendered room instead of a camera: ros2 launch rgbd_fusion_seg demo.launch.py rviz:=true."""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / 'config'


def generate_launch_description() -> LaunchDescription:
    """Describe the launch."""
    seed = ParameterValue(LaunchConfiguration('seed'), value_type=int)
    return LaunchDescription(
        [
            # The command line's, which no shipped network was trained on.
            DeclareLaunchArgument('seed', default_value='1000002', description='Which room.'),
            DeclareLaunchArgument('rviz', default_value='false', description='Show it in RViz.'),
            DeclareLaunchArgument('bundle', default_value='', description='Model to run.'),
            # First, because it sets the transport up for all nodes that follow.
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(HERE / 'segmentation.launch.py')),
                launch_arguments={
                    'camera': 'synthetic',
                    'bundle': LaunchConfiguration('bundle'),
                    'rviz': LaunchConfiguration('rviz'),
                    'rviz_frame': 'camera_link',
                }.items(),
            ),
            Node(
                package='rgbd_fusion_seg',
                executable='synthetic_camera',
                name='synthetic_camera',
                parameters=[str(CONFIG / 'synthetic_camera.yaml'), {'seed': seed}],
                output='screen',
            ),
            # Optical frames look along z with y down; RViz shows the room upright in this one.
            Node(
                package='tf2_ros',
                executable='static_transform_publisher',
                arguments=[
                    *('--roll', '-1.5707963', '--yaw', '-1.5707963'),
                    *('--frame-id', 'camera_link'),
                    *('--child-frame-id', 'camera_color_optical_frame'),
                ],
                condition=IfCondition(LaunchConfiguration('rviz')),
            ),
        ]
    )
