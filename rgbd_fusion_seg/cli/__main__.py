"""``python -m rgbd_fusion_seg.cli`` is ``rgbd-fusion-seg``."""

import sys

from rgbd_fusion_seg.cli import main

sys.exit(main())
