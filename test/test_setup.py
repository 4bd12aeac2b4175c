"""What builders do with setup.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_setup_runs_through_a_link_from_another_folder(tmp_path: Path):
    """As colcon build --symlink-install does."""
    for name in ('setup.py', 'setup.cfg', 'rgbd_fusion_seg', 'resource', 'package.xml'):
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, 'setup.py', '--name']
    shown = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert shown.stdout.split()[-1] == 'rgbd_fusion_seg'
