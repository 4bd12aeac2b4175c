"""The frames of any data set, with the depth that a stereo camera would have read."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

import numpy as np

from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.synthetic import stereo
from rgbd_fusion_seg.synthetic.stereo import StereoRig, simulate_stereo
from rgbd_fusion_seg.training.datasets.base import FrameSource, LabelledFrame


class StereoDepth:
    """A data set seen by random stereo rigs, each frame always by the same.

    Args:
        source: the data set.
    """

    def __init__(self, source: FrameSource) -> None:
        self.source = source
        self.name = f'{source.name}-stereo'
        self.classes, self.size = source.classes, source.size
        self.terms = f'{source.terms}; depth of simulated stereo pairs'
        self.ids = getattr(source, 'ids', None)

    def __len__(self) -> int:
        return len(self.source)

    def describe(self) -> dict[str, object]:
        """Return what identifies the content, for the cache's key."""
        readers = [c for c in type(self.source).__mro__ if c is not object]
        files = [inspect.getfile(item) for item in (stereo, *readers)]
        code = b''.join(Path(file).read_bytes() for file in files)
        return {'source': self.source.describe(), 'code': hashlib.sha256(code).hexdigest()}

    def __getitem__(self, index: int) -> LabelledFrame:
        """Read frame ``index``; see `FrameSource`."""
        item = self.source[index]
        frame, rng = item.frame, np.random.default_rng(index)
        rgb, intrinsics = frame.rgb, frame.intrinsics
        depth = simulate_stereo(rgb, frame.depth, intrinsics, StereoRig.random(rng), rng)
        return LabelledFrame(RgbdFrame(rgb, depth, intrinsics), item.labels)
