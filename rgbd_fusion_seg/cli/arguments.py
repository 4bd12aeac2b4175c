"""Arguments that several commands have, and how all of them speak."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.replay.calibration import Calibration, parse_calibration

Commands: TypeAlias = 'argparse._SubParsersAction[argparse.ArgumentParser]'

LARGEST_SEED = 2**31
"""Of the synthetic camera, see its parameter ``seed``."""


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Add a command; `run` gets its options and returns the exit code."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add ``--bundle``."""
    parser.add_argument(
        '--bundle', default=DEFAULT_BUNDLE, help='name or folder of a model (default: %(default)s)'
    )


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add ``--backend``."""
    parser.add_argument(
        '--backend',
        default='auto',
        help='inference engine; "doctor" lists them (default: %(default)s)',
    )


def add_input_size(parser: argparse.ArgumentParser) -> None:
    """Add ``--input-size``."""
    parser.add_argument(
        '--input-size',
        type=size,
        metavar='WxH',
        help='at which the network sees frames (default: as on the card of the bundle)',
    )


def add_camera(parser: argparse.ArgumentParser) -> None:
    """Add what tells of the camera of a recording."""
    parser.add_argument(
        '--intrinsics',
        type=intrinsics,
        metavar='FX,FY,CX,CY',
        help='of the colour camera, in pixels, instead of the calibration that was recorded',
    )
    parser.add_argument(
        '--depth-scale',
        type=positive,
        metavar='METRES',
        help='one unit of the depth images of a folder (default: 0.001, a millimetre)',
    )


def intrinsics(text: str) -> Calibration:
    """Parse ``FX,FY,CX,CY``."""
    try:
        return parse_calibration(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> float:
    """Parse a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is not a positive number')
    return value


def direction(text: str) -> tuple[float, float, float]:
    """Parse ``X,Y,Z``, not all 0."""
    try:
        x, y, z = (float(number) for number in text.split(','))
    except ValueError:
        x = y = z = 0.0
    if not 0 < abs(x) + abs(y) + abs(z) < float('inf'):
        raise argparse.ArgumentTypeError(
            f'{text} is no direction; give it as X,Y,Z, such as 0,1,0'
        )
    return x, y, z


def size(text: str) -> tuple[int, int]:
    """Parse ``WIDTHxHEIGHT``."""
    width, cross, height = text.partition('x')
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text} is no size; give it as 320x240')
    return int(width), int(height)


def count(text: str) -> int:
    """Parse a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a whole number above 0')
    return int(text)


def seed(text: str) -> int:
    """Parse the seed of a synthetic room."""
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(
            f'{text} is no seed of a room; give a whole number, 0 to {LARGEST_SEED}'
        )
    return int(text)


def tell(sentence: str) -> None:
    """Say something that is no result."""
    print(sentence, file=sys.stderr)


def print_files(files: Sequence[Path]) -> None:
    """Name the files that were written."""
    for path in files:
        print(f'wrote {path}')
