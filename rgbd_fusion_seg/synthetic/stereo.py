"""A pair of cameras that looks at what a colour and a depth image show, and the depth it finds.

The right picture is the left one moved by its disparity, the way Watson et al. ("Learning
Stereo from Single Images", ECCV 2020, §3) turn single images into pairs. What the right camera
alone would see is filled with the background beside it, mirrored. The pair is matched by OpenCV
at the settings that stereo_image_proc has by default, so holes, fattened edges and false matches
are where a real pair of cameras has them: on bare walls, in glare, behind edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from rgbd_fusion_seg.depth import NEAREST_M, fill_holes
from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.jit import jit

MATCHERS = ('block', 'semi-global')
"""Block matching and semi-global block matching, 0 and 1 of stereo_image_proc's
``stereo_algorithm``."""
DISPARITIES, WINDOW, STEPS_A_PIXEL = 64, 15, 16
BASELINES_M = (0.05, 0.12)
"""From those of a RealSense D435 (50 mm) and an OAK-D (75 mm) to that of a ZED (120 mm)."""
_EDGE_PX = 1.0  # of disparity between neighbours: an edge, between whose sides nothing is seen
_GRAIN = {'d': 7, 'sigmaColor': 15, 'sigmaSpace': 3}  # bilateral filter, about 4 grey levels
_DOTS = 0.1  # share of pixels that the centre of a projected dot is in


@dataclass(frozen=True)
class StereoRig:
    """Two cameras side by side, without distortion, whose rows agree.

    Args:
        baseline_m: how far the right one stands to the right of the left one, in metres.
        matcher: one of `MATCHERS`.
        noise: standard deviation in each picture, grey levels.
        gain: of the right camera's picture over the left one's.
        projector: grey levels of the dots that are thrown on the scene, at 1 m; 0 = none.

    Raises:
        FrameError: another matcher.
    """

    baseline_m: float = 0.075
    matcher: str = 'semi-global'
    noise: float = 1.5
    gain: float = 1.0
    projector: float = 0.0

    def __post_init__(self) -> None:
        if self.matcher not in MATCHERS:
            raise FrameError(
                f'{self.matcher!r} is no stereo matcher; give one of {", ".join(MATCHERS)}'
            )

    @classmethod
    def random(cls, rng: Generator) -> StereoRig:
        """Draw a rig: any baseline of `BASELINES_M`, every third one with a projector."""
        return cls(
            baseline_m=float(np.exp(rng.uniform(*np.log(BASELINES_M)))),
            matcher=str(rng.choice(MATCHERS)),
            noise=float(rng.uniform(0.5, 2.5)),
            gain=float(rng.uniform(0.95, 1.05)),
            projector=float(rng.choice([0, 0, 120])),
        )


def simulate_stereo(
    rgb: np.ndarray, depth: np.ndarray, intrinsics: Intrinsics, rig: StereoRig, rng: Generator
) -> np.ndarray:
    """Return what a stereo pair, whose left camera took the picture, would read.

    Args:
        rgb: uint8 (H, W, 3).
        depth: float32 (H, W) metres along the optical axis; holes are filled first, for the
            right camera sees what is there.
        intrinsics: of both.
        rig: the cameras.
        rng: source of noise and dots.

    Returns:
        float32 (H, W) metres, 0 = no reading.

    Raises:
        FrameError: sizes that do not match.
    """
    shape = intrinsics.height, intrinsics.width
    if rgb.shape[:2] != shape or depth.shape != shape:
        raise FrameError(
            f'colour is {rgb.shape[1]}x{rgb.shape[0]}, depth {depth.shape[1]}x{depth.shape[0]} '
            f'and the intrinsics are for {intrinsics.width}x{intrinsics.height}; scale them to '
            'one size'
        )
    depth = np.maximum(fill_holes(depth), NEAREST_M)
    # The grain of the picture would move with the surfaces, and bare walls would match by it.
    grey = cv2.bilateralFilter(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), **_GRAIN).astype(np.float32)
    if rig.projector:
        dots = cv2.GaussianBlur((rng.random(shape) < _DOTS).astype(np.float32), (0, 0), 0.7)
        grey += rig.projector * dots / np.square(np.maximum(depth, 1))
    disparity = np.float32(intrinsics.fx * rig.baseline_m) / depth
    right = grey.copy()
    _move_left(grey, disparity, right)
    seen = [
        np.rint(picture + rng.normal(0, rig.noise, shape)).clip(0, 255).astype(np.uint8)
        for picture in (grey, rig.gain * right)
    ]
    return match_stereo(*seen, intrinsics.fx, rig.baseline_m, rig.matcher)


def match_stereo(
    left: np.ndarray,
    right: np.ndarray,
    fx: float,
    baseline_m: float,
    matcher: str = 'semi-global',
) -> np.ndarray:
    """Return the depth of a rectified pair as stereo_image_proc computes it by default.

    Args:
        left, right: uint8 (H, W) grey.
        fx: focal length, pixels.
        baseline_m: distance of the cameras, metres.
        matcher: one of `MATCHERS`.

    Returns:
        float32 (H, W) metres in the left camera, 0 = no match. The left `DISPARITIES` columns
        have none, as OpenCV leaves them, and pictures no larger than a window have none at all.
    """
    if min(left.shape) <= WINDOW:
        return np.zeros(left.shape, np.float32)
    if matcher == 'block':
        engine = cv2.StereoBM_create(DISPARITIES, WINDOW)
        engine.setPreFilterSize(9)
        engine.setTextureThreshold(10)
    else:
        engine = cv2.StereoSGBM_create(
            numDisparities=DISPARITIES, blockSize=WINDOW, P1=200, P2=400
        )
    engine.setPreFilterCap(31)
    engine.setUniquenessRatio(15)
    engine.setSpeckleWindowSize(100)
    engine.setSpeckleRange(4)
    disparity = engine.compute(left, right).astype(np.float32) / STEPS_A_PIXEL
    depth = np.zeros_like(disparity)
    np.divide(fx * baseline_m, disparity, out=depth, where=disparity > 0)
    return depth


@jit
def _move_left(left: np.ndarray, disparity: np.ndarray, right: np.ndarray) -> None:
    """Fill float32 (H, W) `right` with `left` moved by float32 (H, W) pixels of disparity.

    Each row is drawn between neighbouring pixels of one surface; the nearest surface is in front.
    """
    height, width = left.shape
    nearest = np.empty(width, np.float32)
    for v in range(height):
        nearest[:] = -np.inf
        for u in range(width - 1):
            d0, d1 = disparity[v, u], disparity[v, u + 1]
            begin, end = u - d0, u + 1 - d1
            if abs(d1 - d0) > _EDGE_PX or end <= begin:
                continue
            for x in range(max(0, int(np.ceil(begin))), min(width - 1, int(np.floor(end))) + 1):
                t = (x - begin) / (end - begin)
                d = d0 + t * (d1 - d0)
                if d > nearest[x]:
                    nearest[x] = d
                    right[v, x] = left[v, u] + t * (left[v, u + 1] - left[v, u])
        _fill_background(right[v], nearest)


@jit
def _fill_background(row: np.ndarray, nearest: np.ndarray) -> None:
    """Fill what was not drawn, where `nearest` is -inf, from the farther of its sides.

    That side's surface is mirrored, as far as it goes; beyond, the last pixel of it is repeated.
    """
    width = len(row)
    end = 0
    while end < width:
        first = end
        while end < width and nearest[end] < 0.0:
            end += 1
        from_right = end < width and (first == 0 or nearest[end] <= nearest[first - 1])
        source, step = (end, 1) if from_right else (first - 1, -1)
        for k in range(end - first if 0 <= source < width else 0):
            beyond = source + step
            if k and 0 <= beyond < width and abs(nearest[beyond] - nearest[source]) <= _EDGE_PX:
                source = beyond
            row[end - 1 - k if from_right else first + k] = row[source]
        end += 1
