"""Image domains of one view, made from a labelled RGB-D frame.

The papers translate between domains of Taskonomy (Zamir et al., CVPR 2018). Where that is not at
hand, these are its domains as far as one RGB-D frame has them. Formulas and constants are those of
Taskonomy's published annotator (``omnidata_annotator`` of EPFL-VILAB/omnidata), and grey levels
those that the public CEN code gives its images. Taskonomy renders them from a mesh of the whole
building; here the sensor's depth stands for the mesh, so geometry is smoother and ends at holes.
From the depth and colour of a published view, these formulas give its published edges within 4 of
65535 in the mean, and with its published normals its shading within a grey level in the median.

Taskonomy's images are square. A frame is squeezed to a square, its aspect is not kept. What is
geometry is made before, with the frame's own camera, so that it is that of the scene.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property

import cv2
import numpy as np

from rgbd_fusion_seg import depth as depths
from rgbd_fusion_seg import hha, hha_kernels, palette, preprocess
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.training.datasets.base import ClassSet, LabelledFrame

EDGE_SIDE = 512
"""Side of Taskonomy's images. Edges count pixels, so they are taken at this size, then resized."""
UNITS_PER_METRE = 512.0
"""Taskonomy's depth images count 1/512 m in 16 bits, up to 128 m."""
LARGEST = 65535.0
"""Largest number of a 16-bit image; edges in 0..1 are stored as 0..65535."""
DEPTH_LOG_WHITE = 11.1
"""Logarithm of a depth in 1/512 m that is white in the public CEN code."""
TEXTURE_WHITE = 11355.0
"""Texture edge that is white in the public CEN code, of 65535."""
EDGE_WHITE = 11584.0
"""Occlusion edge that is white in the public CEN code, of 65535."""
TEXTURE_SIGMA_PX = 3.0
"""Standard deviation of the Gaussian before texture edges (CANNY_RGB_BLUR_SIGMA)."""
LAMP_GAIN = 1.6
"""LAMP_ENERGY (2.5) times reflection and colour of Blender's default material (0.8 each); a
published view gives 1.599."""
LAMP_FALLOFF_M = 8.0
"""Blender's lamps fall off as D / (D + d^2) with the distance d; D is LAMP_HALF_LIFE_DISTANCE."""
MIN_CURVATURE_RADIUS_M = 0.03
"""Radius of the most curved surface that curvature images tell apart (MIN_CURVATURE_RADIUS)."""
NORMALS_WIDTH = 640
"""Width of the images for which HHA's windows are meant; ours scale with the width."""
GRAZING = 0.05
"""Surfaces seen at a smaller cosine count as seen at this, for their pixels have no end."""
CLEARLY = 8.0
"""A window beside a pixel must have so many times less mean square misfit to be preferred."""
NOISE = 0.002
"""Share of the depth that no sensor tells apart; a window that fits so well is good enough."""
DEPTH_JUMP = 0.05
"""Share of the depth by which neighbours of one surface may leave its tangent plane."""


class View:
    """A frame on its way to a square: what domains share is made once, when it is asked for.

    Args:
        item: frame and labels.
        classes: what the labels mean.
        side: width and height of the square in pixels.
    """

    def __init__(self, item: LabelledFrame, classes: ClassSet, side: int) -> None:
        self.frame, self.labels = item.frame, item.labels
        self.classes, self.side = classes, side

    @cached_property
    def depth(self) -> np.ndarray:
        """float32 metres at the size of the frame, holes filled; all 0 without any reading."""
        height, width = self.frame.depth.shape
        return preprocess.depth_image(self.frame.depth, width, height)

    @cached_property
    def rays(self) -> np.ndarray:
        """float32 (H, W, 3), what each pixel of the frame sees at a depth of 1."""
        return _rays(self.frame.intrinsics)

    @cached_property
    def radius(self) -> int:
        """Half the window of normals in pixels of the frame."""
        return normals_radius(self.frame.intrinsics.width)

    @cached_property
    def normals(self) -> np.ndarray:
        """Surface normals of the frame, as from `surface_normals`; filled holes have no part."""
        return surface_normals(self.frame.depth, self.frame.intrinsics, self.radius)

    def squared(self, image: np.ndarray) -> np.ndarray:
        """Resize uint8 (H, W, 3) to the square: area averages where it shrinks."""
        return np.ascontiguousarray(preprocess.rgb_image(image, self.side, self.side))


def domain_images(
    item: LabelledFrame, names: Sequence[str], classes: ClassSet, side: int
) -> dict[str, np.ndarray]:
    """Make images of a frame, all of the same view, pixel by pixel.

    Args:
        item: frame and labels.
        names: keys of `DOMAINS`.
        classes: what the labels mean; they give 'labels' its colours.
        side: width and height of the images in pixels; the aspect of the frame is not kept.

    Returns:
        name -> uint8 (side, side, 3).

    Raises:
        InputError: a name that is no domain.
    """
    require_domains(names, tuple(DOMAINS), 'RGB-D frames')
    view = View(item, classes, side)
    return {name: DOMAINS[name](view) for name in names}


def require_domains(names: Sequence[str], known: Sequence[str], what: str) -> None:
    """Refuse a domain that is not there.

    Raises:
        InputError: naming it, and those that `what` has.
    """
    for name in names:
        if name not in known:
            raise InputError(
                f'there is no image domain {name!r}; {what} have {", ".join(known) or "none"}'
            )


def constants() -> dict[str, float]:
    """Return what the images depend on besides the frame, for the identity of a run's data."""
    return {
        'edge_side': EDGE_SIDE,
        'depth_log_white': DEPTH_LOG_WHITE,
        'texture_white': TEXTURE_WHITE,
        'edge_white': EDGE_WHITE,
        'texture_sigma_px': TEXTURE_SIGMA_PX,
        'lamp_gain': LAMP_GAIN,
        'lamp_falloff_m': LAMP_FALLOFF_M,
        'min_curvature_radius_m': MIN_CURVATURE_RADIUS_M,
        'normals_radius_px': hha.GRAVITY_RADIUS_PX,
        'clearly': CLEARLY,
        'noise': NOISE,
        'depth_jump': DEPTH_JUMP,
    }


def depth_grey(units: np.ndarray) -> np.ndarray:
    """Return grey levels of depth as the public CEN code gives them to Taskonomy's.

    Args:
        units: (H, W) depth in 1/512 m, 0..65535.

    Returns:
        uint8 (H, W): log(1 + units) * 255 / 11.1, cut off, not rounded.
    """
    return (np.log1p(units.astype(np.float64)) * (255 / DEPTH_LOG_WHITE)).astype(np.uint8)


def edge_grey(values: np.ndarray, white: float) -> np.ndarray:
    """Return grey levels of edges, uint8 of the shape of `values`, cut off as in CEN's code.

    Args:
        values: edges as 16-bit numbers.
        white: the number that is white; what is above it is white as well, where CEN's cast to
            uint8 would begin again with black.
    """
    return np.minimum(values * (255 / white), 255).astype(np.uint8)


def normals_radius(width: int) -> int:
    """Return half the window of normals in pixels: HHA's 21x21 at 640 pixels a row, in scale."""
    return min(max(1, round(hha.GRAVITY_RADIUS_PX * width / NORMALS_WIDTH)), hha_kernels.PAD)


def surface_normals(depth: np.ndarray, camera: Intrinsics, radius: int) -> np.ndarray:
    """Fit planes to windows, by the kernel that finds gravity for HHA.

    A window over two surfaces fits neither. So a pixel has the normal of the window around it
    unless a window beside it, which still holds the pixel, fits clearly better, as in the filter
    of Kuwahara et al. (1976).

    Args:
        depth: float32 (H, W) metres; 0 and non-finite = no reading, which takes no part.
        camera: of this image.
        radius: half the window in pixels, 1..10.

    Returns:
        float32 (H, W, 3), unit, facing the camera, in its optical axes (x right, y down, z
        forward); 0 where the window has no plane.
    """
    normals = _window_normals(depth, camera, radius)
    inverse = 1 / np.maximum(depths.fill_holes(depth), np.float32(depths.NEAREST_M))
    planes, misfit = _planes(normals, inverse, camera, radius)
    without = ~normals.any(axis=2)
    misfit += (NOISE * inverse) ** 2
    misfit[without] = np.inf
    least = misfit + _own_misfit(planes, inverse, 0, 0)
    down, across = np.zeros((2, *depth.shape), dtype=np.int32)
    for dv, du in itertools.product((-radius, 0, radius), repeat=2):
        theirs = _moved(misfit, dv, du) + _own_misfit(_moved(planes, dv, du), inverse, dv, du)
        better = CLEARLY * theirs < least
        least[better] = CLEARLY * theirs[better]
        down[better], across[better] = dv, du
    # A pixel that has no window of its own shall not have another's: it lies in a hole.
    down[without] = across[without] = 0
    best = normals[_places(depth.shape, down, across)]
    best[np.einsum('vuk,vuk->vu', best, _rays(camera)) > 0] *= -1
    return best


def principal_curvatures(
    normals: np.ndarray, depth: np.ndarray, camera: Intrinsics, reach: int
) -> np.ndarray:
    """Return how much a surface bends, along the directions in which it bends most and least.

    They are the eigenvalues of the shape operator, which says how the normal turns along the
    tangents. Tangents come from the normal and the depth of the pixel itself, because differences
    of noisy depths are no tangents.

    Args:
        normals: float32 (H, W, 3), as from `surface_normals`.
        depth: float32 (H, W) metres, without holes.
        camera: of these images.
        reach: the turn of the normal is measured between pixels so far to both sides.

    Returns:
        float32 (H, W, 2) in 1/m, positive where the surface is convex, negative where it is
        concave; the one of larger magnitude first. 0 where a normal is missing, and where the
        depth jumps to another surface within `reach`.
    """
    rays = _rays(camera)
    facing = np.minimum(np.einsum('vuk,vuk->vu', normals, rays), np.float32(-GRAZING))
    tangents, turns, known = [], [], normals.any(axis=2)
    for axis, focal in ((1, camera.fx), (0, camera.fy)):
        # A pixel further, the ray is r + e / f, and the point stays in the tangent plane.
        slope = -depth * normals[..., 1 - axis] / (np.float32(focal) * facing)
        tangent = slope[..., None] * rays
        tangent[..., 1 - axis] += depth / np.float32(focal)
        turn, alike = _turn(normals, depth, slope, axis, reach)
        tangents.append(tangent)
        turns.append(turn)
        known = known & alike
    first = [[np.einsum('vuk,vuk->vu', a, b) for b in tangents] for a in tangents]
    second = [[np.einsum('vuk,vuk->vu', a, b) for b in turns] for a in tangents]
    return np.where(known[..., None], _eigenvalues(first, second), np.float32(0))


def _planes(
    normals: np.ndarray, inverse: np.ndarray, camera: Intrinsics, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the planes of windows, and how badly they fit.

    Args:
        normals: float32 (H, W, 3), one a window.
        inverse: float32 (H, W), 1 / depth.
        camera: of these images.
        radius: half the window.

    Returns:
        float32 (H, W, 3): of 1 / depth = a + b du + c dv, in pixels from the centre of the window;
        float32 (H, W): the mean square of what is left of 1 / depth.
    """
    window = (2 * radius + 1, 2 * radius + 1)
    mean = cv2.blur(inverse, window)
    square = cv2.blur(inverse.astype(np.float64) ** 2, window) - mean.astype(np.float64) ** 2
    along = np.einsum('vuk,vuk->vu', normals, _rays(camera))
    scale = mean / np.where(np.abs(along) < GRAZING**2, np.float32(GRAZING**2), along)
    planes = np.stack(
        [mean, scale * normals[..., 0] / camera.fx, scale * normals[..., 1] / camera.fy], axis=2
    )
    # Offsets -radius .. radius have the mean square radius (radius + 1) / 3.
    tilt = (planes[..., 1] ** 2 + planes[..., 2] ** 2) * (radius * (radius + 1) / 3)
    return planes.astype(np.float32), np.maximum(square - tilt, 0).astype(np.float32)


def _own_misfit(planes: np.ndarray, inverse: np.ndarray, down: int, across: int) -> np.ndarray:
    """Return the squared distance of each pixel from the plane of a window beside it.

    Args:
        planes: float32 (H, W, 3), as from `_planes`.
        inverse: float32 (H, W), 1 / depth.
        down, across: from the pixel to the centre of the window.
    """
    expected = planes[..., 0] - across * planes[..., 1] - down * planes[..., 2]
    return (inverse - expected) ** 2


def _moved(image: np.ndarray, down: int, across: int) -> np.ndarray:
    """Return an image of which pixel (v, u) is (v + down, u + across), or the nearest there is."""
    rows = np.clip(np.arange(image.shape[0]) + down, 0, image.shape[0] - 1)
    columns = np.clip(np.arange(image.shape[1]) + across, 0, image.shape[1] - 1)
    return image[rows].take(columns, axis=1)


def _places(
    shape: tuple[int, ...], down: np.ndarray, across: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the index (v + down, u + across) of every pixel, kept within the image."""
    rows = np.arange(shape[0])[:, None] + down
    columns = np.arange(shape[1]) + across
    return np.clip(rows, 0, shape[0] - 1), np.clip(columns, 0, shape[1] - 1)


def _window_normals(depth: np.ndarray, camera: Intrinsics, radius: int) -> np.ndarray:
    """Return a normal for every pixel, float32 (H, W, 3), unit or 0, of either sign."""
    height, width = depth.shape
    normals = np.zeros((height, width, 3), dtype=np.float32)
    for shift in (0, 1):
        # The kernel takes every second pixel of a row, in turns. With an empty column in front,
        # it takes the others.
        moved = np.pad(depth, ((0, 0), (shift, 0)))
        place, packed = _every_second_normal(moved, camera, radius, shift)
        wide = np.zeros((height, width + shift, 3), dtype=np.float32)
        wide[place] = packed
        normals += wide[:, shift:]
    return normals


def _every_second_normal(
    depth: np.ndarray, camera: Intrinsics, radius: int, shift: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return where normals are, bool (H, W), and float32 (N, 3) of them, of either sign.

    Args:
        depth: float32 (H, W) metres, with `shift` columns more than the camera has.
        camera: before the columns were added.
        radius: half the window.
        shift: columns added on the left.
    """
    height, width = depth.shape
    padded = (height + 2 * hha_kernels.PAD, width + 2 * hha_kernels.PAD)
    z = np.empty((height, width), dtype=np.float32)
    inverse, counted = np.empty((2, *padded), dtype=np.float32)
    nothing = depths.readable(np.zeros((0, 0), dtype=bool), np.bool_)
    hha_kernels.clean_depth(depths.readable(depth, np.float32), nothing, z, inverse, counted)
    normals = np.zeros((3, (height + 1) * (width // 2 + 1)), dtype=np.float32)
    k = (camera.fx, camera.fy, camera.cx + shift, camera.cy)
    hha_kernels.staggered_normals(inverse, counted, radius, 1, *k, normals)
    even = np.add.outer(np.arange(height), np.arange(width)) % 2 == 0
    return even, normals[:, : np.count_nonzero(even)].T


def _rays(camera: Intrinsics) -> np.ndarray:
    """Return float32 (H, W, 3), what each pixel sees at a depth of 1."""
    rays = np.ones((camera.height, camera.width, 3), dtype=np.float32)
    rays[..., 0] = (np.arange(camera.width) - camera.cx) / camera.fx
    rays[..., 1] = ((np.arange(camera.height) - camera.cy) / camera.fy)[:, None]
    return rays


def _turn(
    normals: np.ndarray, depth: np.ndarray, slope: np.ndarray, axis: int, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return how the normal changes a pixel along an axis, and where both ends are the surface's.

    Args:
        normals, depth: as in `principal_curvatures`.
        slope: float32 (H, W), metres of depth a pixel on the tangent plane.
        axis: 0 down, 1 across.
        reach: pixels to either side, fewer at the border.

    Returns:
        float32 (H, W, 3) and bool (H, W).
    """
    place = np.arange(depth.shape[axis])
    ends = [np.maximum(place - reach, 0), np.minimum(place + reach, place[-1])]
    column = (-1, 1) if axis == 0 else (1, -1)
    alike = np.ones(depth.shape, dtype=bool)
    for end in ends:
        expected = depth + slope * (end - place).reshape(column).astype(np.float32)
        jump = np.abs(np.take(depth, end, axis) - expected)
        alike &= np.take(normals, end, axis).any(axis=2) & (jump <= DEPTH_JUMP * depth)
    low, high = (np.take(normals, end, axis) for end in ends)
    steps = np.maximum(ends[1] - ends[0], 1).reshape(*column, 1).astype(np.float32)
    return (high - low) / steps, alike


def _eigenvalues(first: list[list[np.ndarray]], second: list[list[np.ndarray]]) -> np.ndarray:
    """Return the eigenvalues of first^-1 second, (H, W, 2), the larger magnitude first.

    `second` is symmetric but for noise; its two mixed entries are averaged.
    """
    (uu, uv), (_, vv) = first
    (turn_u, mixed_0), (mixed_1, turn_v) = second
    mixed = (mixed_0 + mixed_1) / 2
    area = np.maximum(uu * vv - uv * uv, np.finfo(np.float32).tiny)
    mean = (uu * turn_v - 2 * uv * mixed + vv * turn_u) / (2 * area)
    spread = np.sqrt(np.maximum(mean * mean - (turn_u * turn_v - mixed * mixed) / area, 0))
    larger = mean + np.copysign(spread, mean)
    return np.stack([larger, 2 * mean - larger], axis=-1).astype(np.float32)


def _sobel(image: np.ndarray) -> np.ndarray:
    """Return the gradient's magnitude as scikit-image scales it: a step of 1 gives 0.71."""
    across = cv2.Sobel(image, cv2.CV_32F, 1, 0, scale=0.25)
    down = cv2.Sobel(image, cv2.CV_32F, 0, 1, scale=0.25)
    return np.sqrt((across * across + down * down) / 2)


def _grey_image(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def _rgb(view: View) -> np.ndarray:
    """Colour, by area averages where it shrinks."""
    return view.squared(view.frame.rgb)


def _depth(view: View) -> np.ndarray:
    """Depth along the optical axis, as `depth_grey`: picked, holes filled; near is dark."""
    depth = preprocess.depth_image(view.frame.depth, view.side, view.side)
    units = np.minimum(np.rint(depth * np.float32(UNITS_PER_METRE)), LARGEST)
    return _grey_image(depth_grey(units))


def _normal(view: View) -> np.ndarray:
    """Normals facing the camera, (n + 1) / 2 * 255 in optical axes, as Taskonomy's are.

    So a wall in front is (128, 128, 0), a floor (128, 0, 128), a ceiling (128, 255, 128), and a
    wall on the right, which faces left, (0, 128, 128). Without a normal: (128, 128, 128).
    """
    return view.squared(np.rint((view.normals + 1) * 127.5).astype(np.uint8))


def _shade(view: View) -> np.ndarray:
    """Lambert's shading by a lamp at the camera, as Taskonomy's 'reshading'.

    1.6 cos(normal, direction to the camera) 8 / (8 + distance^2 / m^2), at most 1; black without
    a normal.
    """
    length = np.linalg.norm(view.rays, axis=2)
    cosine = -np.einsum('vuk,vuk->vu', view.normals, view.rays) / length
    distance = view.depth * length
    light = LAMP_GAIN * cosine * LAMP_FALLOFF_M / (LAMP_FALLOFF_M + distance * distance)
    return view.squared(_grey_image(np.rint(np.clip(light, 0, 1) * 255).astype(np.uint8)))


def _texture(view: View) -> np.ndarray:
    """Edges of colour, Taskonomy's 'edge_texture': Canny's without thinning and thresholds."""
    rgb = preprocess.rgb_image(view.frame.rgb, EDGE_SIDE, EDGE_SIDE)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32) / np.float32(255)
    edges = _sobel(cv2.GaussianBlur(grey, (0, 0), TEXTURE_SIGMA_PX)) * np.float32(LARGEST)
    return view.squared(_grey_image(edge_grey(edges, TEXTURE_WHITE)))


def _edge(view: View) -> np.ndarray:
    """Edges of depth, Taskonomy's 'edge_occlusion': the gradient of sqrt(depth / 128 m)."""
    depth = preprocess.depth_image(view.frame.depth, EDGE_SIDE, EDGE_SIDE)
    units = np.minimum(depth * np.float32(UNITS_PER_METRE), LARGEST)
    edges = _sobel(np.sqrt(units / np.float32(LARGEST + 1))) * np.float32(LARGEST)
    return view.squared(_grey_image(edge_grey(edges, EDGE_WHITE)))


def _curvature(view: View) -> np.ndarray:
    """Principal curvatures, Taskonomy's coding: the larger magnitude in red, the other in green.

    -1/0.03 m .. 1/0.03 m is 0..254, so flat is 127; blue is 0. Flat where it is not known.
    """
    camera = view.frame.intrinsics
    bends = principal_curvatures(view.normals, view.depth, camera, view.radius)
    image = np.zeros((camera.height, camera.width, 3), dtype=np.uint8)
    image[..., :2] = np.rint((np.clip(bends * MIN_CURVATURE_RADIUS_M, -1, 1) + 1) * 127)
    return view.squared(image)


def _labels(view: View) -> np.ndarray:
    """Each class in its colour, void in black; the class at the centre of a pixel."""
    square = (view.side, view.side)
    labels = cv2.resize(view.labels, square, interpolation=cv2.INTER_NEAREST_EXACT)
    return palette.colorize(labels, view.classes.colors)


DOMAINS: dict[str, Callable[[View], np.ndarray]] = {
    'rgb': _rgb,
    'depth': _depth,
    'normal': _normal,
    'shade': _shade,
    'texture': _texture,
    'edge': _edge,
    'curvature': _curvature,
    'labels': _labels,
}
"""Name -> function: a view in, uint8 (side, side, 3) out."""
