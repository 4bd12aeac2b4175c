"""``rgbd-fusion-seg``: segment recordings, make bags, run the demo, build engines, and more.

Exit codes: 0 good, 1 failed (with one sentence on stderr), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from tqdm.contrib.logging import logging_redirect_tqdm

from rgbd_fusion_seg.cli import engines, recordings
from rgbd_fusion_seg.cli.arguments import add_bundle, add_command
from rgbd_fusion_seg.errors import RgbdFusionSegError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        options = _parser().parse_args(argv)
        logging.basicConfig(format='%(message)s', level=logging.INFO)
        with logging_redirect_tqdm():
            code = options.run(options)
        sys.stdout.flush()  # here a closed pipe can be told from a failure
        return code
    except BrokenPipeError:
        # Nobody reads on, as with "| head"; what is still to be flushed at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RgbdFusionSegError, OSError) as error:
        print(f'rgbd-fusion-seg: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _doctor(options: argparse.Namespace) -> int:
    from rgbd_fusion_seg.doctor import examine

    report = examine(options.bundle)
    print(report.text())
    return 0 if report.healthy else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='rgbd-fusion-seg',
        description='Segment recordings, make bags, run the demo, build and compare engines, '
        'examine the installation.',
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    recordings.add_commands(commands)
    engines.add_commands(commands)
    doctor = add_command(commands, 'doctor', _doctor, 'tell what is installed and what can run')
    add_bundle(doctor)
    return parser
