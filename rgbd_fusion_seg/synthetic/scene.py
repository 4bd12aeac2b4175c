"""Furnished rooms with ground truth: colour, exact depth, labels and gravity of any view."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import PCG64, Generator

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.synthetic import trajectory
from rgbd_fusion_seg.synthetic.layout import KINDS, Piece, furnish
from rgbd_fusion_seg.synthetic.lighting import Light, Lightmap, bake
from rgbd_fusion_seg.synthetic.primitives import LABEL, Material, Primitive
from rgbd_fusion_seg.synthetic.raycast import Solids, cast, pack_solids
from rgbd_fusion_seg.synthetic.shading import develop, shade
from rgbd_fusion_seg.synthetic.textures import pack_materials

KINECT = Intrinsics(525.0, 525.0, 319.5, 239.5, 640, 480)
"""Colour camera of a Kinect v1 as its drivers assume it without calibration."""

_SHELL = (LABEL['wall'], LABEL['floor'], LABEL['ceiling'])
_AMBIENT = (0.06, 0.06, 0.06)
_NOISE_LEVELS = 2.5  # standard deviation of the colour noise, in grey levels
_PREVIEW = Intrinsics(30.0, 30.0, 19.5, 14.5, 40, 30)


@dataclass(frozen=True, slots=True, eq=False)
class SyntheticView:
    """What a camera in the room sees, and the truth about it.

    Args:
        rgb: uint8 (H, W, 3), RGB.
        depth: float32 (H, W), exact metres along the optical axis.
        labels: uint8 (H, W), NYU40 class.
        gravity: float64 unit (3,), camera optical axes (x right, y down, z forward), down.
        pose: float64 (4, 4), camera to world; world z is up.
    """

    rgb: np.ndarray
    depth: np.ndarray
    labels: np.ndarray
    gravity: np.ndarray
    pose: np.ndarray


class Room:
    """A furnished room: x and y around its centre, the floor at z = 0, metres.

    Args:
        kind: what the room is used for.
        size: width (x), depth (y) and height.
        primitives: everything in it; the first is the shell.
        pieces: the space each piece of furniture takes.
        lights: lamps and windows.
    """

    def __init__(
        self,
        kind: str,
        size: tuple[float, float, float],
        primitives: list[Primitive],
        pieces: list[Piece],
        lights: list[Light],
    ) -> None:
        self.kind, self.size = kind, size
        self.primitives, self.pieces, self.lights = primitives, pieces, lights

    @classmethod
    def random(cls, seed: int, kind: str | None = None) -> Room:
        """Draw a room; the same seed gives the same room everywhere.

        Args:
            seed: non-negative.
            kind: one of ``layout.KINDS``, or None for any.

        Raises:
            InputError: unknown kind, negative seed.
        """
        if kind is not None and kind not in KINDS:
            raise InputError(f'there is no room kind {kind!r}; choose one of {", ".join(KINDS)}')
        if seed < 0:
            raise InputError(f'the seed of a room must not be negative, got {seed}')
        for attempt in range(100):
            rng = Generator(PCG64([seed, attempt]))
            name, plan = furnish(rng, kind)
            room = cls(name, plan.size, plan.primitives, plan.pieces, plan.lights())
            if len(room.classes - set(_SHELL)) >= 8 and room._free_share(rng) > 0.12:
                break
        return room

    @property
    def classes(self) -> set[int]:
        """Labels of everything in the room."""
        return {label for p in self.primitives for label in p.labels}

    def render(self, pose: np.ndarray, intrinsics: Intrinsics = KINECT) -> SyntheticView:
        """Return the view from a camera-to-world pose (4, 4), optical axes.

        The first call works out the room's light, which takes a few tenths of a second.
        """
        pose = np.array(pose, dtype=np.float64)
        rotation, origin = np.ascontiguousarray(pose[:3, :3]), pose[:3, 3].copy()
        camera = np.array([intrinsics.fx, intrinsics.fy, intrinsics.cx, intrinsics.cy])
        depth, winner = cast(
            self._solids, rotation, origin, camera, intrinsics.width, intrinsics.height
        )
        radiance, labels = shade(
            self._solids, self._lightmap, self._materials, rotation, origin, camera, depth, winner
        )
        rgb = develop(radiance, _NOISE_LEVELS, zlib.crc32(pose.tobytes()))
        return SyntheticView(rgb, depth, labels, rotation.T @ (0.0, 0.0, -1.0), pose)

    def trajectory(self, seed: int, num_frames: int, rate_hz: float = 30.0) -> np.ndarray:
        """Return float64 (num_frames, 4, 4) poses of a smooth handheld walk through the room."""
        return trajectory.walk(self, Generator(PCG64([seed, 1])), num_frames, rate_hz)

    def random_pose(self, rng: Generator) -> np.ndarray:
        """Return the float64 (4, 4) pose of a view such as NYUv2 has them."""
        return trajectory.random_pose(self, rng)

    def clearance(self, points: np.ndarray) -> np.ndarray:
        """Distance in metres of points (N, 3) from walls and furniture, negative inside.

        Round solids count as their boxes.
        """
        points = np.asarray(points, dtype=np.float64)
        shell, solids = self.primitives[0], self._solids
        free = (shell.half - np.abs(points - shell.center)).min(axis=1)
        offset = points[:, None, :] - solids.center[None, 1:]
        local = np.einsum('pij,npj->npi', solids.to_unit[1:], offset) * solids.half[1:]
        beyond = np.abs(local) - solids.half[1:]
        outside = np.linalg.norm(np.maximum(beyond, 0.0), axis=2)
        inside = np.minimum(beyond.max(axis=2), 0.0)
        return np.minimum(free, (outside + inside).min(axis=1))

    def interest(self, pose: np.ndarray) -> float:
        """How much a view shows: things rather than bare walls, several classes, not too near."""
        camera = np.array([_PREVIEW.fx, _PREVIEW.fy, _PREVIEW.cx, _PREVIEW.cy])
        depth, winner = cast(
            self._solids, np.ascontiguousarray(pose[:3, :3]), pose[:3, 3].copy(), camera,
            _PREVIEW.width, _PREVIEW.height,
        )  # fmt: skip
        seen = np.bincount(winner.ravel() + 1, minlength=len(self.primitives) + 1)[1:]
        share = np.zeros(len(LABEL))
        np.add.at(share, self._solids.label[1:, 0], seen[1:] / winner.size)
        share[list(_SHELL)] = 0.0
        near = float(np.mean(depth < 0.7))
        return min(share.sum(), 0.6) + 0.07 * float(np.sum(share > 0.008)) - 2.0 * near

    def _free_share(self, rng: Generator) -> float:
        """Share of points at camera height that a camera may take."""
        points = rng.uniform(-0.5, 0.5, (64, 3)) * (*self.size[:2], 0.5) + (0, 0, 1.2)
        return float(np.mean(self.clearance(points) > trajectory.CLEARANCE_M + 0.1))

    @cached_property
    def _solids(self) -> Solids:
        rows = [[self._material_rows[m] for m in p.materials] for p in self.primitives]
        return pack_solids(self.primitives, np.array(rows))

    @cached_property
    def _material_rows(self) -> dict[Material, int]:
        materials = dict.fromkeys(m for p in self.primitives for m in p.materials)
        return {material: row for row, material in enumerate(materials)}

    @cached_property
    def _materials(self) -> np.ndarray:
        return pack_materials(list(self._material_rows))

    @cached_property
    def _lightmap(self) -> Lightmap:
        return bake(self._solids, self.lights, _AMBIENT)
