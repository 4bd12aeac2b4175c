"""python -m rgbd_fusion_seg.training prepare | train | evaluate | export | import-weights | study.

Each command is the function that does the work; its arguments are the command's options, and
`COMMAND --help` and `COMMAND --print_config` tell them.
"""

from __future__ import annotations

import sys

from jsonargparse import CLI

from rgbd_fusion_seg.errors import RgbdFusionSegError
from rgbd_fusion_seg.training.datasets.prepare import prepare
from rgbd_fusion_seg.training.evaluation import evaluate
from rgbd_fusion_seg.training.export import export
from rgbd_fusion_seg.training.public_checkpoints import import_weights
from rgbd_fusion_seg.training.study import study
from rgbd_fusion_seg.training.trainer import train

COMMANDS = {
    'prepare': prepare,
    'train': train,
    'evaluate': evaluate,
    'export': export,
    'import-weights': import_weights,
    'study': study,
}


def main() -> int:
    """Run the command line; errors of the user's making are one sentence."""
    try:
        CLI(COMMANDS, as_positional=False)
    except RgbdFusionSegError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
