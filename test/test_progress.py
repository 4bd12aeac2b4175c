"""Progress bars in a log and in a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

PROGRAM = """
import time
from rgbd_fusion_seg.progress import progress_bar
for _ in progress_bar(range(60), desc='count', mininterval=0.01):
    time.sleep(0.01)
"""


def states(text: str) -> int:
    return text.count('/60')


def test_a_log_gets_few_lines_and_the_last_one():
    run = subprocess.run([sys.executable, '-c', PROGRAM], stderr=subprocess.PIPE, text=True)
    assert states(run.stderr) <= 3
    assert '60/60' in run.stderr


def test_a_terminal_sees_it_move():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))  # rows, columns
    with subprocess.Popen([sys.executable, '-c', PROGRAM], stderr=theirs) as process:
        os.close(theirs)
        seen = b''
        try:
            while chunk := os.read(ours, 65536):
                seen += chunk
        except OSError:  # Linux's way to tell that the other end is closed
            pass
        assert process.wait() == 0
    os.close(ours)
    assert states(seen.decode()) > 10
