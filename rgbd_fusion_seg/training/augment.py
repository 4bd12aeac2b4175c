"""Random views of labelled frames: one geometry for colour, depth and labels, then their looks.

A view is drawn as a few numbers (:func:`draw_view`); whole batches are then resampled and
recoloured by torch, on whatever device they are. Nothing random is left to torch, so a view
depends on its numbers alone.

What the geometry does to HHA and to depth in metres
----------------------------------------------------
*Flip* and *rotation about the optical axis* move pixels and change no value: depth and disparity
are those along this axis, and height and angle are measured against gravity, which turns with the
picture as the camera would.

*Zoom* by s leaves two readings, u' - cx = s f X / Z. Either the lens is longer (s f) and the scene
the same: no value changes, which is the default. Or the lens is the same and the scene stands at
Z / s (`depth_scaling`; for depth maps: Eigen et al., NIPS 2014, §3.4, "Scale"). Then the point
(X, Y, Z) becomes (X, Y, Z / s):

* depth is divided by s.
* disparity, 31000 / Z[cm], is multiplied by s and saturates as before. A saturated pixel tells
  no distance, so with s < 1 it becomes 255 s, the value of the farthest point it can stand for.
* height is Y for a level camera: unchanged. For one tilted by t it would shrink by
  sqrt(cos²t + s² sin²t), by 2 % at 10° and s = 1.5, by 7 % at 20°: neglected.
* normals become (nx, ny, s nz): those of floors, ceilings and walls keep their angle with
  gravity, which are most of a room, where the camera is level. For one tilted by 10° the angle
  between the floor and the wall that it faces would go from 90° to 82° at s = 1.5, to 76° at
  s = 2, and slopes towards the camera change too: neglected. So this is for cameras that look
  ahead, and for zooms not far from 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rgbd_fusion_seg import hha
from rgbd_fusion_seg.training.rules import require

VOID = 255
MISSING_HHA = (255.0, -hha.FLOOR_GUESS_CM, hha.NO_NORMAL_DEG + hha.ANGLE_OFFSET)
"""HHA of a frame without a single reading, as the runtime makes it."""
MISSING_DEPTH = (0.0,)
"""Metres of such a frame."""
MISSING_RGB = (0.0, 0.0, 0.0)
"""Colour of a lens that is covered."""
PLACE_STEP = 2.0**-12
"""Places in images are rounded to multiples of this, in pixels."""
READ_NOISE = 1.0
"""Largest noise of a camera's readout, in grey levels before they are amplified."""
NOISE_OFFSETS = 1 << 22
"""A view's noise starts at one of so many places in the table of :func:`noise_table`."""


@dataclass
class AugmentConfig:
    """How training views are drawn.

    Args:
        min_zoom: smallest zoom, a factor: the view shows 1/zoom of the frame along an axis,
            log-uniform; below 1 it shows more than there is, and the rest is void.
        max_zoom: largest zoom, a factor.
        whole: share of views that show the whole frame.
        aspect: the two axes' zooms differ by up to this factor.
        flip: share of views that are mirrored.
        max_rotation_deg: largest rotation to either side; corners without image are void.
        depth_scaling: a zoom brings the scene nearer instead of narrowing the lens, so HHA's
            disparity grows with it, and depth in metres shrinks.
        brightness: half-width of its jitter, as a factor: 0.3 is 0.7 to 1.3.
        contrast: half-width of its jitter, as a factor.
        saturation: half-width of its jitter, as a factor.
        hue: half-width of its jitter, in degrees.
        noise: largest standard deviation of Gaussian noise on colour, in grey levels.
        dark: share of views, 0..1, in poor light.
        darkest: the least light of those, as a share of what the frame had, log-uniform up to 1.
            Anything from none to all of it is made good for by the camera's amplification, and
            with it the noise of its readout becomes up to 1 / `darkest` grey levels.
        hha_shift: largest shift of disparity and height, in grey levels; the angle is measured,
            the other two depend on the sensor and on the floor's being in sight.
        drop_rgb: share of views, 0..1, whose colour is black, as when a camera fails.
        drop_hha: share of views, 0..1, whose HHA and depth are those of a frame without readings;
            never those whose colour is black.
        depth_noise: largest standard deviation of Gaussian noise on depth in metres, at 1 m. It
            grows with the square, as that of structured light and stereo; 1.4 mm for a Kinect
            (Khoshelham and Elberink, Sensors 2012).

    Raises:
        InputError: a value outside its range.
    """

    min_zoom: float = 1.0
    max_zoom: float = 2.0
    whole: float = 0.25
    aspect: float = 1.15
    flip: float = 0.5
    max_rotation_deg: float = 0.0
    depth_scaling: bool = False
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.4
    hue: float = 8.0
    noise: float = 6.0
    dark: float = 0.0
    darkest: float = 0.04
    hha_shift: float = 6.0
    drop_rgb: float = 0.0
    drop_hha: float = 0.0
    depth_noise: float = 0.002

    def __post_init__(self) -> None:
        ranges = {
            '0 < min_zoom <= max_zoom': 0 < self.min_zoom <= self.max_zoom,
            'aspect >= 1': self.aspect >= 1,
            # From 45° on gravity is found along a wall, so no robot would see such HHA.
            '0 <= max_rotation_deg < 45': 0 <= self.max_rotation_deg < 45,
            'drop_rgb + drop_hha <= 1': self.drop_rgb + self.drop_hha <= 1,
            '0 < darkest <= 1': 0 < self.darkest <= 1,
        }
        for name in ('whole', 'flip', 'dark', 'drop_rgb', 'drop_hha'):
            ranges[f'0 <= {name} <= 1'] = 0 <= getattr(self, name) <= 1
        for name in ('brightness', 'contrast', 'saturation'):
            ranges[f'0 <= {name} < 1'] = 0 <= getattr(self, name) < 1
        for name in ('hue', 'noise', 'hha_shift', 'depth_noise'):
            ranges[f'{name} >= 0'] = getattr(self, name) >= 0
        require(self, ranges)

    @property
    def leaves_frame(self) -> bool:
        """Whether a view may show places outside its frame."""
        return self.min_zoom < 1 or self.max_rotation_deg > 0


@dataclass(frozen=True, eq=False)
class View:
    """The numbers of one view.

    Args:
        to_frame: float64 (2, 3), maps (x, y, 1) in the view to (x, y) in the frame, both 0..1
            from the left or upper edge to the other.
        rgb_matrix: float64 (3, 3) on colours.
        contrast: factor on the distance from the view's mean.
        noise: standard deviation, grey levels.
        noise_offset: where in the table its noise starts.
        hha_scale, hha_shift: float64 (3,) per channel.
        drop: '' or the sensor that is blank: 'rgb', or 'hha' for depth in either form.
        depth_noise: standard deviation at 1 m, metres.
    """

    to_frame: np.ndarray
    rgb_matrix: np.ndarray
    contrast: float
    noise: float
    noise_offset: int
    hha_scale: np.ndarray
    hha_shift: np.ndarray
    drop: str
    depth_noise: float = 0.0

    @property
    def depth_scale(self) -> float:
        """Factor on depth in metres: as disparity grows, it shrinks."""
        return float(1 / self.hha_scale[0])

    @property
    def drop_rgb(self) -> bool:
        """Whether colour is blank."""
        return self.drop == 'rgb'

    @property
    def drop_hha(self) -> bool:
        """Whether HHA is blank."""
        return self.drop == 'hha'

    @property
    def drop_depth(self) -> bool:
        """Whether depth in metres is blank: when HHA is, for it comes from the same sensor."""
        return self.drop_hha


def draw_view(
    config: AugmentConfig, frame_size: tuple[int, int], rng: np.random.Generator
) -> View:
    """Draw a view of a frame of ``frame_size`` (height, width).

    Every number is drawn whether it is used or not, so that an option that is turned on leaves
    the other numbers of a run as they were.
    """
    to_frame, zoom = _draw_geometry(config, frame_size, rng)
    hue, saturation, contrast, gain = rng.uniform(-1, 1, 4) * (
        math.radians(config.hue), config.saturation, config.contrast, config.brightness
    )  # fmt: skip
    noise, lottery = rng.random(2)
    shift = np.append(rng.uniform(-config.hha_shift, config.hha_shift, 2), 0.0)
    drop = 'rgb' if lottery < config.drop_rgb else 'hha' if 1 - lottery <= config.drop_hha else ''
    noise_offset = int(rng.integers(NOISE_OFFSETS))
    depth_noise = rng.random() * config.depth_noise
    brightness, grain = _draw_light(config, rng)
    return View(
        to_frame=to_frame,
        rgb_matrix=brightness * (1 + gain) * chroma_matrix(hue, 1 + saturation),
        contrast=1 + contrast,
        noise=math.hypot(noise * config.noise, grain),
        noise_offset=noise_offset,
        hha_scale=np.array([zoom if config.depth_scaling else 1.0, 1.0, 1.0]),
        hha_shift=shift,
        drop=drop,
        depth_noise=depth_noise,
    )


def _draw_light(config: AugmentConfig, rng: np.random.Generator) -> tuple[float, float]:
    """Return a factor on brightness, and the standard deviation of what the dark adds in noise."""
    lottery, exponent, compensation, noise = rng.random(4)
    if lottery >= config.dark:
        return 1.0, 0.0
    light = config.darkest**exponent
    amplification = light**-compensation
    return light * amplification, noise * READ_NOISE * amplification


def _draw_geometry(
    config: AugmentConfig, frame_size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return the view's `to_frame` and its zoom, the geometric mean of the two axes'."""
    height, width = frame_size
    lottery, zoom, flip = rng.random(3)
    skew, x, y, turn = rng.uniform(-1, 1, 4)
    zoom = math.exp(math.log(config.min_zoom) * (1 - zoom) + math.log(config.max_zoom) * zoom)
    skew, angle = config.aspect ** (0.5 * skew), math.radians(config.max_rotation_deg) * turn
    shown = np.array([skew / zoom, 1 / (zoom * skew)])
    if zoom >= 1:
        shown = np.minimum(shown, 1.0)  # a zoom in stays within the frame
    if lottery < config.whole:
        shown, angle = np.ones(2), 0.0
    centre = 0.5 + 0.5 * np.array([x, y]) * np.abs(1 - shown)
    # Rotation is one of pixels, which are square; the 0..1 of the two axes are not.
    pixels = np.array([width, height])
    cos, sin = math.cos(angle), math.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]]) * (shown * pixels) / pixels[:, None]
    if flip < config.flip:
        linear[:, 0] *= -1
    return np.column_stack([linear, centre - linear @ (0.5, 0.5)]), float(shown.prod() ** -0.5)


def chroma_matrix(hue: float, saturation: float) -> np.ndarray:
    """Return the (3, 3) matrix that turns colours about the grey axis by ``hue`` radians.

    Chroma is scaled by ``saturation``. One matrix for both, and for gain and contrast besides,
    takes a small part of the time of kornia's passes through HSV on a CPU.
    """
    axis = np.full(3, 1 / math.sqrt(3))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    grey = np.outer(axis, axis)
    return grey + saturation * (math.cos(hue) * (np.eye(3) - grey) + math.sin(hue) * cross)


def noise_table(num_pixels: int) -> Tensor:
    """Return normal deviates, float32, from which views of ``num_pixels`` take their noise.

    A view's colour takes a run of 3 ``num_pixels`` of them from its `noise_offset` on, its depth
    one that begins as far from the other end: the same values on every device, at the cost of a
    copy.
    """
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.standard_normal(NOISE_OFFSETS + 3 * num_pixels, np.float32))


def positions(maps: Tensor, height: int, width: int) -> Tensor:
    """Return where the centres of pixels lie.

    Args:
        maps: float32 (N, 2, 3), each maps (column, row, 1) to (x, y), where the first pixel's
            centre is (0.5, 0.5, 1).

    Returns:
        float32 (N, height, width, 2).
    """
    u = torch.arange(width, device=maps.device)[:, None] + 0.5
    v = torch.arange(height, device=maps.device)[:, None, None] + 0.5
    per_column, per_row, origin = maps[:, None, None].unbind(-1)
    return per_column * u + (per_row * v + origin)


def inside_frame(to_frame: Tensor, size: tuple[int, int]) -> Tensor:
    """Return bool (N, height, width), True for the pixels of views that their frames have.

    Args:
        to_frame: float32 (N, 2, 3), as in :class:`View`.
        size: height and width of the views.
    """
    height, width = size
    per_column, per_row, origin = to_frame.unbind(-1)
    maps = torch.stack([per_column / width, per_row / height, origin], -1)
    places = positions(maps, height, width)
    return ((places >= 0) & (places < 1)).all(-1)


def sample_images(
    images: Tensor, extents: Tensor, maps: Tensor, size: tuple[int, int], taps: int = 1
) -> Tensor:
    """Resample images bilinearly; outside an image its nearest pixel counts.

    Args:
        images: uint8 (N, h, w, 3).
        extents: float32 (N, 2), columns and rows of each image; what lies to the right and below
            only pads it. Where h and w are powers of two, results do not depend on them.
        maps: as in :func:`positions`, to pixels.
        size: height and width of the result.
        taps: samples per pixel and axis; their mean keeps small images free of aliasing.

    Returns:
        float32 (N, 3, height, width), 0..255.
    """
    finer = torch.cat([maps[..., :2] / taps, maps[..., 2:]], -1)
    places = positions(finer, size[0] * taps, size[1] * taps).clamp_(min=0.5)
    places = torch.minimum(places, (extents - 0.5)[:, None, None], out=places)
    # To -1..1 over the canvas, as grid_sample wants. Of multiples of a small power of two, all
    # its arithmetic up to the weights is exact, so each view is sampled as if it were alone.
    places.mul_(1 / PLACE_STEP).round_()
    for axis, side in ((0, images.shape[2]), (1, images.shape[1])):
        places[..., axis].mul_(2 * PLACE_STEP / side)
    # grid_sample of planes takes a quarter of its time on interleaved channels.
    planes = images.permute(0, 3, 1, 2).contiguous().float()
    result = functional.grid_sample(
        planes, places.sub_(1), padding_mode='border', align_corners=False
    )
    return functional.avg_pool2d(result, taps) if taps > 1 else result


def sample_nearest(images: Tensor, extents: Tensor, maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Take the value under the centre of each pixel; outside an image that of its nearest pixel.

    For labels, and for depth: means of depths are those of no surface.

    Args:
        images: (N, h, w) of any type.
        extents: float32 (N, 2), columns and rows of each image, the rest pads it.
        maps: as in :func:`positions`, to pixels, whose centres are at 0.5, 1.5, …
        size: height and width of the result.

    Returns:
        (N, height, width) of the same type.
    """
    places = positions(maps, *size).clamp_(min=0)
    x, y = torch.minimum(places, (extents - 1)[:, None, None], out=places).long().unbind(-1)
    index = y * images.shape[2] + x
    return images.flatten(1).gather(1, index.flatten(1)).view(-1, *size)


def jitter_rgb(
    image: Tensor, matrix: Tensor, contrast: Tensor, noise: Tensor, strength: Tensor
) -> Tensor:
    """Return colours changed by a matrix, by contrast about their mean, and by noise.

    Args:
        image: float32 (N, 3, H, W), 0..255.
        matrix: (N, 3, 3).
        contrast, strength: (N,) or (N, 1), the second a factor on the noise.
        noise: (N, 3, H, W).

    Returns:
        float32 (N, 3, H, W), 0..255.
    """
    # One axis at a time: torch splits a longer sum as the size of the batch suggests.
    means = image.mean(3).mean(2)
    contrast, strength = contrast.reshape(-1, 1), strength.reshape(-1, 1, 1, 1)
    pivot = (1 - contrast) * (matrix * means[:, None]).sum(2).mean(1, keepdim=True)
    result = torch.addcmul(pivot[..., None, None], noise, strength)
    matrix = contrast[..., None] * matrix
    for c in range(3):
        result.addcmul_(image[:, c : c + 1], matrix[:, :, c, None, None])
    return result.clamp_(0, 255)


def blank(image: Tensor, where: Tensor, values: Tensor) -> Tensor:
    """Return (N, C, H, W) with C channel values where the bool (N, H or 1, W or 1) says so."""
    return torch.where(where[:, None], values.view(-1, 1, 1), image)
