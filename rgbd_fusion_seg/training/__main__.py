"""python -m rgbd_fusion_seg.training COMMAND, one of `COMMANDS`.

Each command is the function that does the work; its arguments are the command's options, and
`COMMAND --help` and `COMMAND --print_config` tell them.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import NoReturn

from jsonargparse import CLI, ArgumentParser

from rgbd_fusion_seg.errors import InputError, RgbdFusionSegError

COMMANDS = {
    'prepare': 'datasets.prepare',
    'train': 'trainer',
    'evaluate': 'evaluation',
    'calibrate': 'calibration',
    'inspect': 'inspection',
    'export': 'export',
    'import-weights': 'public_checkpoints',
    'study': 'study',
    'train-translation': 'translation.trainer',
    'evaluate-translation': 'translation.evaluation',
    'inspect-translation': 'translation.inspection',
    'study-translation': 'translation.study',
}
"""Modules of this package with the function of each command."""
SECTIONS = {'run': ('train', 'train-translation'), 'study': ('study', 'study-translation')}
"""Sections of the files for --config, and the commands that have them."""
PROGRAM = 'python -m rgbd_fusion_seg.training'


class Parser(ArgumentParser):
    """Says what is wrong with the options in one line, without the hundred that there are."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message and where help is, and exit with 2."""
        # Parsers of sections know neither the program nor the command.
        command = [name for name in sys.argv[1:2] if name in COMMANDS]
        message = ' '.join(message.split())
        for name in command:
            message = re.sub(rf'(?<=[ ,]){name}\.(?=\w)', '--', message)
            message += _other_command(name, message)
        self.exit(2, f'error: {message} (see {" ".join([PROGRAM, *command])} --help)\n')


def _other_command(name: str, message: str) -> str:
    """Return which commands take what this one refused, where all of a file is for others."""
    found = re.search(r"does not accept option '(\w+)", message)
    takers = SECTIONS.get(found[1], ()) if found else ()
    return f'; it is of a file for {" or ".join(takers)}' if takers and name not in takers else ''


def functions() -> dict[str, Callable[..., None]]:
    """Load the command that is asked for, or all to tell of them: their libraries take seconds.

    Raises:
        InputError: a library is not installed.
    """
    found = {}
    for name in [name for name in COMMANDS if name in sys.argv[1:2]] or COMMANDS:
        try:
            module = import_module(f'rgbd_fusion_seg.training.{COMMANDS[name]}')
        except ModuleNotFoundError as error:
            if str(error.name).partition('.')[0] == 'rgbd_fusion_seg':
                raise
            raise InputError(
                f"{name} needs a library that is not installed ({error}); install the package's "
                "extra of training: pip install '.[train]'"
            ) from error
        found[name] = getattr(module, name.replace('-', '_'))
    return found


def main() -> int:
    """Run the command line; errors of the user's making are one sentence."""
    try:
        CLI(functions(), as_positional=False, parser_class=Parser, prog=PROGRAM)
    except RgbdFusionSegError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nstopped; the same command goes on or starts again', file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f'error: the disk is full ({error}); free some space and start the same command '
              'again', file=sys.stderr)  # fmt: skip
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
