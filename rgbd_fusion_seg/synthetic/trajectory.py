"""Where a camera goes in a room: smooth handheld walks and single views."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.random import Generator

CLEARANCE_M = 0.3
"""A camera stays at least this far from walls and furniture."""
_STEP_S = 1.0  # one control point of the walk's spline each second
_STEP_M = (0.1, 0.45)
_TURN_RAD = 0.6


class Space(Protocol):
    """What the walk must know of a room."""

    size: tuple[float, float, float]

    def clearance(self, points: np.ndarray) -> np.ndarray:
        """Distance in metres of points (N, 3) from walls and furniture, negative inside."""

    def interest(self, pose: np.ndarray) -> float:
        """How much a view shows; above about 0.5 is worth a picture."""


def camera_pose(position: np.ndarray, yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Return the float64 (4, 4) camera-to-world matrix of an optical frame (z forward, y down).

    Args:
        position: float64 (3,) metres, world z up.
        yaw: heading about the world's z, 0 looks along world x.
        pitch: positive looks down.
        roll: positive turns the camera clockwise about its view, radians all.
    """
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    forward = np.array([cy * cp, sy * cp, -sp])
    right = np.array([sy, -cy, 0.0])
    down = np.cross(forward, right)
    cr, sr = np.cos(roll), np.sin(roll)
    pose = np.eye(4)
    pose[:3, 0] = cr * right + sr * down
    pose[:3, 1] = cr * down - sr * right
    pose[:3, 2] = forward
    pose[:3, 3] = position
    return pose


def random_pose(space: Space, rng: Generator) -> np.ndarray:
    """Return a view as people take them: at 0.8..1.7 m, -5..35° down, with up to 5° of roll.

    The most interesting of ten that keep CLEARANCE_M from everything.
    """

    def draw() -> tuple[np.ndarray, float, float, float]:
        position = _somewhere(space, rng, 0.8, 1.7, CLEARANCE_M)
        yaw = rng.uniform(-np.pi, np.pi)
        pitch = np.deg2rad(np.clip(rng.normal(13, 10), -5, 35))
        return position, yaw, pitch, np.deg2rad(np.clip(rng.normal(0, 2), -5, 5))

    return max((camera_pose(*draw()) for _ in range(10)), key=space.interest)


def walk(space: Space, rng: Generator, num_frames: int, rate_hz: float) -> np.ndarray:
    """Return float64 (num_frames, 4, 4) poses of somebody walking about with a camera.

    Position, heading, pitch and roll are uniform cubic B-splines, so velocity and acceleration
    are continuous; control points are drawn second by second towards what is interesting.
    """
    seconds = num_frames / rate_hz
    controls = _controls(space, rng, int(np.ceil(seconds / _STEP_S)) + 4)
    smooth = _bspline(controls, np.arange(num_frames) / rate_hz / _STEP_S)
    # an unsteady hand: a few millimetres and tenths of a degree, three times a second
    shake = rng.normal(0, 0.004, (int(np.ceil(seconds * 3)) + 5, 6))
    smooth += _bspline(shake, np.arange(num_frames) * 3 / rate_hz)
    return np.array([camera_pose(row[:3], *row[3:]) for row in smooth]).reshape(-1, 4, 4)


def _controls(space: Space, rng: Generator, count: int) -> np.ndarray:
    """Control points (count, 6): x, y, z, yaw, pitch, roll.

    The spline cuts the corners of their polyline by at most a sixth of two steps, hence the
    wider clearance here.
    """
    margin = CLEARANCE_M + 0.1
    start = [
        np.concatenate([
            _somewhere(space, rng, 1.0, 1.5, margin),
            [rng.uniform(-np.pi, np.pi), np.deg2rad(12), 0.0],
        ])
        for _ in range(12)
    ]  # fmt: skip
    state = max(start, key=lambda c: space.interest(camera_pose(c[:3], *c[3:])))
    controls, heading = [state], rng.uniform(-np.pi, np.pi)
    while len(controls) < count:
        options = [state]
        for _ in range(8):
            angle = heading + rng.normal(0, 0.9)
            option = state + np.array([
                *(rng.uniform(*_STEP_M) * np.array([np.cos(angle), np.sin(angle)])),
                rng.normal(0, 0.08), rng.uniform(-_TURN_RAD, _TURN_RAD), 0, 0,
            ])  # fmt: skip
            option[2] = np.clip(option[2], 0.95, 1.55)
            option[4] = np.deg2rad(np.clip(rng.normal(13, 7), 0, 28))
            option[5] = np.deg2rad(np.clip(rng.normal(0, 1.5), -3, 3))
            line = np.linspace(state[:3], option[:3], 6)
            if np.all(space.clearance(line) > margin):
                options.append(option)
        if len(options) == 1:
            turned = state.copy()
            turned[3] += _TURN_RAD
            options.append(turned)
        chosen = max(options[1:], key=lambda c: space.interest(camera_pose(c[:3], *c[3:])))
        moved = chosen[:2] - state[:2]
        heading = np.arctan2(moved[1], moved[0]) if moved.any() else heading + np.pi / 2
        state = chosen
        controls.append(state)
    return np.array(controls)


def _bspline(controls: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Uniform cubic B-spline of control points (M, D) at parameters (N,), 0 <= at < M - 3."""
    knot = np.minimum(at.astype(np.int64), len(controls) - 4)
    t = (at - knot)[:, None]
    weights = (
        (1 - t) ** 3,
        3 * t**3 - 6 * t**2 + 4,
        -3 * t**3 + 3 * t**2 + 3 * t + 1,
        t**3,
    )
    return sum(w * controls[knot + i] for i, w in enumerate(weights)) / 6


def _somewhere(space: Space, rng: Generator, low: float, high: float, margin: float) -> np.ndarray:
    """A point between two heights with this clearance, or the freest of many points."""
    reach = np.array(space.size[:2]) / 2 - margin
    for _ in range(20):
        points = np.column_stack([
            rng.uniform(-reach[0], reach[0], 16),
            rng.uniform(-reach[1], reach[1], 16),
            rng.uniform(low, high, 16),
        ])  # fmt: skip
        clear = space.clearance(points)
        if clear.max() > margin:
            return points[int(np.argmax(clear > margin))]
    return points[int(np.argmax(clear))]
