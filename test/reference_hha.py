"""HHA written straight from its formulae, window by window: slow, and nothing but numpy.

It sums over windows as the public code does, pixel offset by pixel offset, in absolute
coordinates and double precision, so it shares neither algebra nor summation with the package.
"""

from __future__ import annotations

import math

import numpy as np

from rgbd_fusion_seg.frame import Intrinsics

FLOOR_WALL_STAGES = ((45.0, 5), (15.0, 5))


def encode(
    depth: np.ndarray,
    intrinsics: Intrinsics,
    missing: np.ndarray | None = None,
    gravity: np.ndarray | None = None,
) -> np.ndarray:
    """Return uint8 (H, W, 3): disparity, height, angle, as ``hha.encode_hha`` does."""
    points = point_cloud(depth, intrinsics)
    missing = _missing(depth, missing)
    if gravity is None:
        gravity = estimate_gravity(depth, intrinsics, missing)
    tilt = np.degrees(np.arccos(np.clip(gravity[1], -1, 1)))
    down = np.array([0.0, 1.0, 0.0]) if tilt <= 0.1 else gravity
    height = -(points @ down)
    lowest = lowest_but_for_outliers(height[points[..., 2] > 0], height.min())
    height -= -130.0 if lowest > -90.0 else lowest
    cosine = np.clip(fit_normals(points, missing, 3) @ gravity, -1, 1)
    angle = np.degrees(np.arccos(cosine))
    angle[np.isnan(angle)] = 180.0
    disparity = 31000.0 / np.maximum(points[..., 2], 100.0)
    channels = np.stack([disparity, height, angle + 38.0], axis=-1)
    return np.clip(np.rint(channels), 0, 255).astype(np.uint8)


def lowest_but_for_outliers(readings: np.ndarray, lowest: float) -> float:
    """Return the lowest height; of under 2 % far below the others, that which has 2 % below it."""
    count = math.ceil(0.02 * len(readings))
    if count == 0:
        return lowest
    likely = np.sort(readings)[count - 1]
    return min(likely, 0.0) if likely >= lowest + 100 else lowest


def estimate_gravity(
    depth: np.ndarray, intrinsics: Intrinsics, missing: np.ndarray | None = None
) -> np.ndarray:
    """Return float64 (3,), from the normals of all pixels."""
    normals = fit_normals(point_cloud(depth, intrinsics), _missing(depth, missing), 10)
    normals = normals[np.isfinite(normals).all(axis=-1)]
    y = np.array([0.0, 1.0, 0.0])
    for threshold_deg, iterations in FLOOR_WALL_STAGES:
        for _ in range(iterations):
            cosine = np.abs(normals @ y)
            floor = normals[cosine > np.cos(np.radians(threshold_deg))]
            wall = normals[cosine < np.sin(np.radians(threshold_deg))]
            _, vectors = np.linalg.eigh(wall.T @ wall - floor.T @ floor)
            y = vectors[:, 0] * np.sign(vectors[:, 0] @ y)
    return y


def point_cloud(depth: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """Return float64 (H, W, 3) centimetres; the first pixel is number 1; no reading = origin."""
    valid = np.isfinite(depth) & (depth > 0)
    z = 100.0 * np.where(valid, depth, 0.0).astype(np.float64)
    v, u = np.mgrid[1 : z.shape[0] + 1, 1 : z.shape[1] + 1]
    x = (u - intrinsics.cx) * z / intrinsics.fx
    y = (v - intrinsics.cy) * z / intrinsics.fy
    return np.stack([x, y, z], axis=-1)


def fit_normals(points: np.ndarray, missing: np.ndarray, radius: int) -> np.ndarray:
    """Return float64 (H, W, 3) unit normals away from the camera, NaN for an empty window."""
    x, y, z = np.moveaxis(points, -1, 0)
    with np.errstate(divide='ignore', invalid='ignore'):
        terms = [x * x / z**2, x * y / z**2, x / z, y * y / z**2, y / z, z / z]
        terms += [x / z**2, y / z**2, 1 / z]
    xx, xy, x1, yy, y1, n, bx, by, b1 = (
        _window_sum(np.where(missing, 0.0, term), radius) for term in terms
    )
    # The adjugate of the symmetric matrix [[xx xy x1] [xy yy y1] [x1 y1 n]], times b.
    normals = np.stack(
        [
            (yy * n - y1 * y1) * bx + (x1 * y1 - xy * n) * by + (xy * y1 - x1 * yy) * b1,
            (x1 * y1 - xy * n) * bx + (xx * n - x1 * x1) * by + (xy * x1 - xx * y1) * b1,
            (xy * y1 - x1 * yy) * bx + (xy * x1 - xx * y1) * by + (xx * yy - xy * xy) * b1,
        ],
        axis=-1,
    )
    with np.errstate(divide='ignore', invalid='ignore'):
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals *= np.where(normals[..., 2:] < 0, -1.0, 1.0)
    towards = np.sum(normals * points, axis=-1, keepdims=True)
    return normals * np.where(towards < 0, -1.0, 1.0)


def edge_on(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Return where a normal is within 0.06° of having no side that is away from the camera.

    Its sign then hangs on round-off: n_z where the pixel has no reading, n . P elsewhere.
    """
    distance = np.linalg.norm(points, axis=-1)
    cosine = np.sum(normals * points, axis=-1) / np.maximum(distance, 1e-9)
    return np.abs(np.where(distance > 0, cosine, normals[..., 2])) < 1e-3


def determinants(missing: np.ndarray, radius: int) -> np.ndarray:
    """Return int64 (H, W): n^4 times the determinant of the pixels' covariance in each window.

    Whole numbers, so it is 0 exactly where the window's pixels lie on one line (or are none or
    one) and their depths say nothing about a plane.
    """
    counted = (~missing).astype(np.int64)
    v, u = np.mgrid[: missing.shape[0], : missing.shape[1]]
    n, su, sv, suu, suv, svv = (
        _window_sum(counted * term, radius) for term in (1, u, v, u * u, u * v, v * v)
    )
    return (n * suu - su * su) * (n * svv - sv * sv) - (n * suv - su * sv) ** 2


def _missing(depth: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
    unread = ~(np.isfinite(depth) & (depth > 0))
    return unread if missing is None else missing | unread


def _window_sum(values: np.ndarray, radius: int) -> np.ndarray:
    height, width = values.shape
    padded = np.pad(values, radius)
    total = np.zeros_like(values)
    for dv in range(2 * radius + 1):
        for du in range(2 * radius + 1):
            total += padded[dv : dv + height, du : du + width]
    return total
