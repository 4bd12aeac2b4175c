"""The environment in which ROS 2 processes of this package talk to each other on one machine."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.locations import python_prefixes, share_folders

PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
"""Fast DDS 3 reads the first one, Fast DDS 2 the second."""
_FAST_DDS_2 = ('humble', 'iron', 'jazzy')
_PATIENCE_S = 60


def ros_is_sourced(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether the setup script of a ROS installation was sourced in this shell.

    Docker images of ROS set ROS_DISTRO by themselves, for shells that source nothing, too.
    """
    return bool(environ.get('ROS_DISTRO') and environ.get('AMENT_PREFIX_PATH'))


def profile_variable(environ: Mapping[str, str] = os.environ) -> str:
    """Return the variable by which Fast DDS is told its profile here.

    Only that one: Fast DDS 3 warns about the old name, Fast DDS 2 does not know the new one.
    """
    older = ros_is_sourced(environ) and environ['ROS_DISTRO'] in _FAST_DDS_2
    return PROFILE_VARIABLES[1 if older else 0]


def rclpy_path() -> Path | None:
    """Return the folder of the rclpy that this Python would import, without importing it."""
    spec = importlib.util.find_spec('rclpy')
    return Path(spec.origin).parent if spec and spec.origin else None


@cache
def cv_bridge_fault() -> str:
    """Return why cv_bridge cannot convert images here, '' where it can; asked once, in a second.

    It is tried in another process. One that was compiled for NumPy 1 can be imported beside NumPy
    2, which only warns of it, and crashes the process with the first image that it converts
    (seen with that of Debian 12; vision_opencv issue 535).
    """
    if importlib.util.find_spec('cv_bridge') is None:
        return 'is not installed'
    try:
        done = subprocess.run(
            [sys.executable, '-c', _CONVERSION],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
        )
    except subprocess.TimeoutExpired:
        return f'does not convert an image within {_PATIENCE_S} s'
    if done.returncode == 0:
        return ''
    if done.returncode < 0:
        return (
            f'crashes here ({signal.Signals(-done.returncode).name}), as when it was compiled for '
            "another NumPy (that of Ubuntu 22.04 and 24.04 needs: pip install 'numpy<2')"
        )
    told = done.stderr.strip().splitlines()
    return f'fails here ({told[-1] if told else f"exit code {done.returncode}"})'


_CONVERSION = """
from types import SimpleNamespace
from cv_bridge import CvBridge
size = dict(height=4, width=4, step=4, is_bigendian=0, data=bytes(16))
image = CvBridge().imgmsg_to_cv2(SimpleNamespace(encoding='bayer_rggb8', **size), 'rgb8')
assert image.shape == (4, 4, 3), image.shape
"""


def fastdds_profile() -> Path | None:
    """Return the Fast DDS profile of this package, which lets images through shared memory."""
    tree = Path(__file__).resolve().parent.parent
    paths = [folder / 'config' / 'fastdds.xml' for folder in (tree, *share_folders())]
    return next((path for path in paths if os.path.isfile(path)), None)


def local_environment(domain_id: int) -> dict[str, str]:
    """Return environment variables for ROS processes that keep to themselves on this machine.

    Where no ROS is sourced, rclpy from the ``[ros-wheels]`` extra is set up; its own marker is
    dropped, so that a child which is another Python sets its own libraries up. What the user set
    (middleware, DDS profile) is kept.

    Args:
        domain_id: DDS domain, 0..101, to be shared by the processes that talk to each other.

    Raises:
        InputError: this Python has no rclpy.
    """
    if rclpy_path() is None:
        raise InputError(
            'this Python has no ROS 2 (rclpy): source a ROS installation, such as '
            '/opt/ros/jazzy/setup.bash, or install the extra [ros-wheels] of this package'
        )
    env = dict(os.environ)
    env.pop('_ROS_WHEELS_BOOTSTRAP_COMPLETE', None)
    if not ros_is_sourced():
        env.pop('ROS_DISTRO', None)  # of another ROS than that of the wheels
        others = [env['AMENT_PREFIX_PATH']] if env.get('AMENT_PREFIX_PATH') else []
        env['AMENT_PREFIX_PATH'] = os.pathsep.join([*python_prefixes(), *others])
        env.setdefault('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp')
    env['ROS_DOMAIN_ID'] = str(domain_id)
    # Iron and later read the first one, Humble the second.
    env['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    env['ROS_LOCALHOST_ONLY'] = '1'
    profile, name = fastdds_profile(), profile_variable(env)
    if profile is not None and not env.get(name):
        env[name] = str(profile)
    return env
