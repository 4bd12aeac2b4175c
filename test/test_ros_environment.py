from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from rgbd_fusion_seg import locations, ros_environment
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.ros_environment import local_environment


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in (
        *ros_environment.PROFILE_VARIABLES,
        *('ROS_DISTRO', 'AMENT_PREFIX_PATH', 'RMW_IMPLEMENTATION'),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ros_environment, 'rclpy_path', lambda: tmp_path)


def test_wheels(monkeypatch):
    monkeypatch.setenv('_ROS_WHEELS_BOOTSTRAP_COMPLETE', '1')
    env = local_environment(42)
    assert env['ROS_DOMAIN_ID'] == '42'
    assert (env['ROS_LOCALHOST_ONLY'], env['ROS_AUTOMATIC_DISCOVERY_RANGE']) == ('1', 'LOCALHOST')
    assert env['AMENT_PREFIX_PATH'] == sys.prefix
    assert '_ROS_WHEELS_BOOTSTRAP_COMPLETE' not in env
    profile = Path(env['FASTDDS_DEFAULT_PROFILES_FILE'])
    assert profile.name == 'fastdds.xml'
    assert profile.is_file()
    # Later versions of Fast DDS warn when they see it.
    assert 'FASTRTPS_DEFAULT_PROFILES_FILE' not in env


def test_what_the_user_set_is_kept(monkeypatch):
    monkeypatch.setenv('AMENT_PREFIX_PATH', '/home/u/install/my_msgs')
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_cyclonedds_cpp')
    env = local_environment(1)
    assert env['AMENT_PREFIX_PATH'].split(os.pathsep) == [sys.prefix, '/home/u/install/my_msgs']
    assert env['RMW_IMPLEMENTATION'] == 'rmw_cyclonedds_cpp'


def test_a_sourced_ros_is_left_as_it_is(monkeypatch):
    monkeypatch.setenv('ROS_DISTRO', 'kilted')
    monkeypatch.setenv('AMENT_PREFIX_PATH', '/opt/ros/jazzy')
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_cyclonedds_cpp')
    monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', '/mine.xml')
    env = local_environment(1)
    assert env['AMENT_PREFIX_PATH'] == '/opt/ros/jazzy'
    assert env['RMW_IMPLEMENTATION'] == 'rmw_cyclonedds_cpp'
    assert env['FASTDDS_DEFAULT_PROFILES_FILE'] == '/mine.xml'


@pytest.mark.parametrize('distro', ['humble', 'jazzy'])
def test_fast_dds_2_reads_the_profile_by_its_old_name(monkeypatch, distro):
    """Its source, up to 2.14 of Jazzy, knows no other."""
    monkeypatch.setenv('ROS_DISTRO', distro)
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'/opt/ros/{distro}')
    monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', '/mine.xml')
    env = local_environment(1)
    assert Path(env['FASTRTPS_DEFAULT_PROFILES_FILE']).is_file()


def test_a_container_that_names_a_ros_has_not_sourced_it(monkeypatch):
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    env = local_environment(1)
    assert env['AMENT_PREFIX_PATH'] == sys.prefix
    assert 'FASTDDS_DEFAULT_PROFILES_FILE' in env
    assert 'ROS_DISTRO' not in env


def test_no_ros(monkeypatch):
    monkeypatch.setattr(ros_environment, 'rclpy_path', lambda: None)
    with pytest.raises(InputError, match=r'no ROS 2.*\[ros-wheels\]'):
        local_environment(1)


@pytest.mark.parametrize(
    ('prefix', 'packages'),
    [
        ('usr/local', 'lib/python3.12/dist-packages'),  # pip as root on Debian
        ('home/robot/.local', 'lib/python3.10/site-packages'),  # pip install --user
    ],
)
def test_what_pip_installed_outside_a_virtual_environment_is_found(
    monkeypatch, tmp_path, prefix, packages
):
    """It has another prefix than Python itself then."""
    package = tmp_path / prefix / packages / 'rgbd_fusion_seg'
    monkeypatch.setattr(locations, '__file__', str(package / 'locations.py'))
    monkeypatch.setattr(ros_environment, '__file__', str(package / 'ros_environment.py'))
    share = tmp_path / prefix / 'share' / 'rgbd_fusion_seg'
    profile, models = share / 'config' / 'fastdds.xml', share / 'models'
    for folder in (profile.parent, models):
        folder.mkdir(parents=True)
    profile.touch()
    assert models in locations.bundle_folders()
    assert ros_environment.fastdds_profile() == profile
    env = local_environment(1)
    assert env['AMENT_PREFIX_PATH'] == os.pathsep.join([sys.prefix, str(tmp_path / prefix)])
