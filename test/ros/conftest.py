"""Every test here has a ROS domain of its own, on the loopback interface alone."""

from __future__ import annotations

import os

import pytest

from rgbd_fusion_seg.ros_environment import local_environment, rclpy_path

# Before rclpy is initialised. Domains up to 101 keep clear of the ports that Linux hands out.
if rclpy_path() is not None:
    os.environ.update(local_environment(domain_id=1 + os.getpid() % 101))


@pytest.fixture(scope='session')
def ros_context():
    """An initialised rclpy context of this process."""
    rclpy = pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')
    context = rclpy.context.Context()
    rclpy.init(context=context)
    yield context
    context.try_shutdown()
