"""What rooms are made of: materials, solid primitives, and assemblies of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partialmethod

import numpy as np

from rgbd_fusion_seg.palette import NYU40_CLASSES

LABEL = {name: index for index, name in enumerate(NYU40_CLASSES)}
"""Class name of NYUv2's 40-class task (Gupta et al., CVPR 2013) -> label."""


class Shape(IntEnum):
    """Solids that are a unit solid stretched by three half sizes."""

    BOX = 0
    CYLINDER = 1
    ELLIPSOID = 2
    ROOM = 3
    """A box seen from inside."""


class Pattern(IntEnum):
    """Procedural textures; ``textures.albedo`` says how each looks."""

    PLAIN = 0
    WOOD = 1
    PLANKS = 2
    TILES = 3
    FABRIC = 4
    STRIPES = 5
    PICTURE = 6
    SPINES = 7
    CHECKER = 8
    SCREEN = 9
    OUTDOOR = 10
    SPECKLE = 11
    SCRIBBLE = 12
    LEAVES = 13
    MIRROR = 14


@dataclass(frozen=True, slots=True)
class Material:
    """Surface: a pattern of two linear RGB reflectances at a scale in metres.

    ``emission`` is light the surface sends out by itself, on the scale of the reflected light.
    """

    pattern: Pattern
    color: tuple[float, float, float]
    second: tuple[float, float, float]
    scale_m: float = 0.1
    seed: int = 0
    emission: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Primitive:
    """A solid in the room.

    Args:
        shape: which solid.
        center: float64 (3,) metres.
        half: float64 (3,) half sizes along its own axes in metres.
        rotation: float64 (3, 3), its own axes as columns.
        labels, materials: one for each face in the order -x, +x, -y, +y, -z, +z; round solids
            take the face their surface point leans to.
    """

    shape: Shape
    center: np.ndarray
    half: np.ndarray
    rotation: np.ndarray
    labels: tuple[int, ...]
    materials: tuple[Material, ...]

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the corners (3,), (3,) of the axis-aligned box around the solid."""
        reach = np.abs(self.rotation) @ self.half
        return self.center - reach, self.center + reach


def rotation_about(axis: int, angle: float) -> np.ndarray:
    """Return the float64 (3, 3) right-handed rotation by ``angle`` radians about an axis."""
    c, s = np.cos(angle), np.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation = np.eye(3)
    rotation[i, i] = rotation[j, j] = c
    rotation[i, j], rotation[j, i] = -s, s
    return rotation


class Assembly:
    """A piece of furniture: primitives around the centre of its footprint.

    x runs to its right-hand side along the wall, y out of its front, z up; z = 0 is what it
    stands on. ``size`` (width, depth, height) in metres is the piece itself; placement
    keeps its footprint free.
    """

    def __init__(self, name: str, width: float, depth: float, height: float) -> None:
        self.name = name
        self.size = (width, depth, height)
        self.primitives: list[Primitive] = []

    @property
    def height(self) -> float:
        """Height in metres with whatever stands on top."""
        return max(float(p.bounds()[1][2]) for p in self.primitives)

    def solid(
        self,
        shape: Shape,
        label: str,
        position: tuple[float, float, float],
        size: tuple[float, float, float],
        material: Material,
        *,
        front: Material | None = None,
        yaw: float = 0.0,
        tilt: float = 0.0,
    ) -> None:
        """Add a solid; :meth:`box`, :meth:`cylinder` and :meth:`ellipsoid` name its shape.

        Args:
            shape: which solid.
            label: NYU40 class.
            position: of its bottom centre, in metres.
            size: along x, y and z in metres; of round solids the diameters.
            material: of all faces, but
            front: of the face towards +y.
            yaw, tilt: turn about the vertical, then about the solid's own x, in radians.
        """
        half = np.maximum(np.asarray(size, dtype=np.float64), 1e-3) / 2
        center = np.array([position[0], position[1], position[2] + half[2]])
        rotation = rotation_about(2, yaw) @ rotation_about(0, tilt)
        materials = [material] * 6
        if front is not None:
            materials[3] = front
        self.primitives.append(
            Primitive(shape, center, half, rotation, (LABEL[label],) * 6, tuple(materials))
        )

    box = partialmethod(solid, Shape.BOX)
    cylinder = partialmethod(solid, Shape.CYLINDER)
    ellipsoid = partialmethod(solid, Shape.ELLIPSOID)

    def add(self, part: Assembly, position: tuple[float, float, float], yaw: float = 0.0) -> None:
        """Add all of another assembly, turned by ``yaw`` radians, standing on ``position``."""
        self.primitives += part.placed(position, yaw)

    def placed(self, position: tuple[float, float, float], yaw: float) -> list[Primitive]:
        """Return the primitives turned by ``yaw`` radians about z and moved to ``position``."""
        turn = rotation_about(2, yaw)
        return [
            replace(p, center=turn @ p.center + position, rotation=turn @ p.rotation)
            for p in self.primitives
        ]
