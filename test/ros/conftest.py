"""Every test here has a ROS domain of its own, on the loopback interface alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Before rclpy is imported. Domains up to 101 keep clear of the ports that Linux hands out.
os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 101)
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'  # Iron and later
os.environ['ROS_LOCALHOST_ONLY'] = '1'  # Humble
for name in ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'):
    os.environ.setdefault(name, str(ROOT / 'config' / 'fastdds.xml'))
# ROS from wheels has its ament index in the environment's own prefix.
os.environ.setdefault('AMENT_PREFIX_PATH', sys.prefix)


@pytest.fixture(scope='session')
def ros_context():
    """An initialised rclpy context of this process."""
    rclpy = pytest.importorskip('rclpy', reason='needs ROS 2 (pip install .[ros-wheels])')
    context = rclpy.context.Context()
    rclpy.init(context=context)
    yield context
    context.try_shutdown()
