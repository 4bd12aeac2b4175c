"""The frames of any data set, with the depth that a stereo camera would have read."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

import cv2
import numpy as np

from rgbd_fusion_seg.depth import resize_depth
from rgbd_fusion_seg.frame import RgbdFrame
from rgbd_fusion_seg.preprocess import rgb_image
from rgbd_fusion_seg.synthetic import stereo
from rgbd_fusion_seg.synthetic.stereo import StereoRig, simulate_stereo
from rgbd_fusion_seg.training.datasets.base import FrameSource, LabelledFrame

MATCHED_WIDTH = 640
"""Pairs are matched at this width, whatever the size of the data: windows and disparities of
stereo_image_proc are pixels, which at twice the width end at twice the distance."""


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
        camera = frame.intrinsics.scaled(MATCHED_WIDTH / frame.intrinsics.width)
        size = camera.width, camera.height
        rgb, exact = rgb_image(frame.rgb, *size), resize_depth(frame.depth, *size)
        depth = simulate_stereo(rgb, exact, camera, StereoRig.random(rng), rng)
        own_size = frame.intrinsics.width, frame.intrinsics.height
        depth = cv2.resize(depth, own_size, interpolation=cv2.INTER_NEAREST_EXACT)
        return LabelledFrame(RgbdFrame(frame.rgb, depth, frame.intrinsics), item.labels)
