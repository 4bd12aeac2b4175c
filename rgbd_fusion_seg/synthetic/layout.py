"""Where things stand: the programme of each kind of room and its placement without collisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from rgbd_fusion_seg.synthetic import finishes, furniture, objects, wet_rooms
from rgbd_fusion_seg.synthetic.lighting import Light
from rgbd_fusion_seg.synthetic.primitives import (
    LABEL,
    Assembly,
    Material,
    Pattern,
    Primitive,
    Shape,
)

_GAP_M = 0.02
_DOOR_SWING_M = 0.8


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """The space a piece of furniture takes: corners of an axis-aligned box, metres."""

    name: str
    low: np.ndarray
    high: np.ndarray


class Plan:
    """A room while it is being furnished: x and y around its centre, the floor at z = 0."""

    def __init__(self, rng: Generator, size: tuple[float, float, float], wet: bool) -> None:
        self.rng, self.size = rng, size
        self.primitives: list[Primitive] = []
        self.pieces: list[Piece] = []
        self.daylight = float(rng.choice([0.03, 0.7, 1.3], p=[0.25, 0.25, 0.5]))
        self._shell(wet)

    def place(self, part: Assembly, x: float, y: float, z: float, yaw: float) -> bool:
        """Put a piece there unless something is in the way; tell whether it was put."""
        w, d, _ = part.size
        c, s = abs(np.cos(yaw)), abs(np.sin(yaw))
        reach = np.array([(w * c + d * s) / 2, (w * s + d * c) / 2, 0.0])
        low = np.array([x, y, z]) - reach
        high = np.array([x, y, z + max(part.height, part.size[2])]) + reach
        if any(np.all(low < p.high) and np.all(high > p.low) for p in self.pieces):
            return False
        room = np.array(self.size) / (2, 2, 1)
        if np.any(high > room) or np.any(low[:2] < -room[:2]):
            return False
        self.pieces.append(Piece(part.name, low, high))
        self.primitives += part.placed((x, y, z), yaw)
        return True

    def against_wall(
        self, part: Assembly, z: float = 0.0, *, wall: int | None = None, corner: bool = False
    ) -> tuple[int, float] | None:
        """Put a piece with its back to some wall; return the wall and the place along it."""
        for _ in range(40):
            side = int(self.rng.integers(4)) if wall is None else wall
            length = self.size[side % 2] - part.size[0] - 2 * _GAP_M
            if length < 0:
                continue
            along = float(self.rng.choice([-0.5, 0.5]) if corner else self.rng.uniform(-0.5, 0.5))
            if self.on_wall(part, side, along * length, z):
                return side, along * length
        return None

    def on_wall(self, part: Assembly, wall: int, along: float, z: float) -> bool:
        """Put a piece with its back to wall 0..3 (-y, +x, +y, -x), ``along`` from the middle."""
        away = self.size[1 - wall % 2] / 2 - part.size[1] / 2 - _GAP_M * (z == 0.0)
        x, y = ((along, -away), (away, along), (-along, away), (-away, -along))[wall]
        return self.place(part, x, y, z, wall * np.pi / 2)

    def anywhere(self, part: Assembly, turn: float = 0.0) -> bool:
        """Put a piece on free floor, turned by a multiple of 90° and up to ``turn`` more."""
        for _ in range(40):
            x, y = (self.rng.uniform(-s / 2, s / 2) for s in self.size[:2])
            yaw = int(self.rng.integers(4)) * np.pi / 2 + self.rng.uniform(-turn, turn)
            if self.place(part, x, y, 0.0, yaw):
                return True
        return False

    def maybe(
        self, share: float, build: Callable[[Generator], Assembly], *, corner: bool = False
    ) -> None:
        """With this probability put a piece against a wall."""
        if self.rng.random() < share:
            self.against_wall(build(self.rng), corner=corner)

    def door(self) -> None:
        """Add a door and keep the floor before it free."""
        leaf = objects.door(self.rng)
        where = self.against_wall(leaf, 0.0)
        if where is None:
            return
        low, high = self.pieces[-1].low.copy(), self.pieces[-1].high.copy()
        inward = np.array([(0, 1), (-1, 0), (0, -1), (1, 0)][where[0]]) * _DOOR_SWING_M
        low[:2] += np.minimum(inward, 0)
        high[:2] += np.maximum(inward, 0)
        self.pieces[-1] = Piece('door', low, high)

    def windows(self, count: int) -> None:
        """Add windows above waist height."""
        for _ in range(count):
            self.against_wall(objects.window(self.rng, self.daylight), self.rng.uniform(0.7, 0.95))

    def wall_hangings(self, count: int, build: Callable[[Generator], Assembly]) -> None:
        """Hang things on the walls at eye height."""
        for _ in range(count):
            part = build(self.rng)
            self.against_wall(part, self.rng.uniform(1.45, 1.65) - part.size[2] / 2)

    def fill(self, *builders: Callable[[Generator], Assembly]) -> None:
        """Put some pieces drawn from these against walls, as far as there is room."""
        for _ in range(int(self.rng.integers(1, 7))):
            self.against_wall(builders[self.rng.integers(len(builders))](self.rng))

    def floor_things(self, count: int) -> None:
        """Leave bags, boxes, clothes and bins on the floor."""
        things = (
            objects.bag, objects.cardboard_box, objects.waste_basket, objects.floor_clothes,
            objects.bag, objects.cardboard_box,
        )  # fmt: skip
        for _ in range(count):
            part = things[self.rng.integers(len(things))](self.rng)
            if self.rng.random() < 0.7:
                self.against_wall(part)
            else:
                self.anywhere(part, 0.5)

    def lamps(self) -> None:
        """Add one or two ceiling lamps, mostly on."""
        rng, (w, d, h) = self.rng, self.size
        count = 1 if w * d < 15 else 2
        bright = 0.25 if self.daylight > 1 and rng.random() < 0.5 else rng.uniform(2.5, 4.0)
        glow = finishes.glowing((0.95, rng.uniform(0.78, 0.92), rng.uniform(0.6, 0.85)), bright)
        style = rng.integers(3)
        for k in range(count):
            x = 0.0 if count == 1 else (k - 0.5) * w / 2
            part = Assembly('ceiling lamp', 0.5, 0.5, 0.4)
            if style == 0:
                part.ellipsoid('lamp', (0, 0, 0.3), (0.4, 0.4, 0.18), glow)
            elif style == 1:
                part.box('lamp', (0, 0, 0.32), (0.9, 0.3, 0.08), glow)
            else:
                part.cylinder('lamp', (0, 0, 0.15), (0.015, 0.015, 0.25), finishes.metal(rng))
                part.ellipsoid('lamp', (0, 0, 0.0), (0.3, 0.3, 0.24), glow)
            self.primitives += part.placed((x, rng.uniform(-0.2, 0.2), h - 0.4), 0.0)

    def lights(self) -> list[Light]:
        """Return the lights: every lamp that is on, and every window by day."""
        found = []
        for p in self.primitives:
            material = p.materials[0]
            if material.emission < 0.5:
                continue
            axes = (p.rotation * p.half).T
            if material.pattern == Pattern.OUTDOOR:
                area = 4 * p.half[0] * p.half[2]
                normal = p.rotation[:, 1]
                color = np.array([0.85, 0.95, 1.1]) * material.emission * area * 1.1
                # in front of curtains and blinds: they stop part of the light in truth,
                # but a window that gives none makes a gloomy room
                position = p.center + normal * 0.18
                found.append((position, 0.8 * axes[0], 0.8 * axes[2], normal, color))
            else:
                color = np.array(material.color) * material.emission * 0.8
                found.append((p.center, (0.07, 0, 0), (0, 0.07, 0), (0, 0, 0), color))
        found.sort(key=lambda light: -max(light[4]))
        return [Light(*(tuple(map(float, v)) for v in light)) for light in found[:5]]

    def _shell(self, wet: bool) -> None:
        rng, (w, d, h) = self.rng, self.size
        paint = (
            finishes.wall_tiles(rng) if wet and rng.random() < 0.6 else finishes.wall_paint(rng)
        )
        walls = [paint] * 4
        if not wet and rng.random() < 0.2:
            walls[int(rng.integers(4))] = finishes.wall_paint(rng)
        ceiling = finishes.plain(rng, (0.80, 0.79, 0.77))
        materials: list[Material] = [*walls, finishes.floor_finish(rng, wet), ceiling]
        labels = (LABEL['wall'],) * 4 + (LABEL['floor'], LABEL['ceiling'])
        center, half = np.array([0, 0, h / 2]), np.array([w, d, h]) / 2
        self.primitives.append(
            Primitive(Shape.ROOM, center, half, np.eye(3), labels, tuple(materials))
        )
        if wet:
            return
        board, trim = Assembly('skirting', w, d, 0.1), finishes.painted(rng)
        for side in (-1, 1):
            board.box('wall', (0, side * (d / 2 - 0.006), 0), (w, 0.012, 0.09), trim)
            board.box('wall', (side * (w / 2 - 0.006), 0, 0), (0.012, d, 0.09), trim)
        self.primitives += board.placed((0, 0, 0), 0.0)
        if rng.random() < 0.25:
            side = rng.choice([0.2, 0.3, 0.4])
            pillar = Assembly('pillar', side, side, h)
            pillar.box('wall', (0, 0, 0), (side, side, h), paint)
            self.against_wall(pillar, 0.001, corner=True)


def _bedroom(plan: Plan) -> None:
    rng = plan.rng
    group = furniture.bed_group(rng)
    if plan.against_wall(group) is None:
        plan.against_wall(furniture.bed(rng))
    plan.windows(1 + (rng.random() < 0.3))
    plan.maybe(0.75, furniture.dresser)
    plan.maybe(0.5, furniture.cabinet, corner=True)
    plan.maybe(0.4, furniture.desk)
    plan.maybe(0.3, furniture.tv_stand)
    plan.maybe(0.3, furniture.bookshelf)
    plan.maybe(0.3, furniture.armchair)
    plan.maybe(0.3, furniture.floor_lamp, corner=True)
    plan.wall_hangings(int(rng.random() < 0.4), objects.mirror)
    plan.wall_hangings(int(rng.random() < 0.3), objects.coat_hooks)
    plan.fill(
        furniture.dresser, furniture.chair, furniture.bookshelf, furniture.ottoman,
        furniture.shelves, furniture.radiator, furniture.cabinet, furniture.plant,
    )  # fmt: skip


def _living_room(plan: Plan) -> None:
    rng = plan.rng
    seat = plan.against_wall(furniture.sitting_group(rng))
    stand = furniture.tv_stand(rng)
    if seat is None or not plan.on_wall(stand, (seat[0] + 2) % 4, -seat[1], 0.0):
        plan.against_wall(stand)
    plan.windows(1 + (rng.random() < 0.6))
    plan.maybe(0.7, furniture.armchair)
    plan.maybe(0.6, furniture.bookshelf)
    plan.maybe(0.5, furniture.floor_lamp, corner=True)
    plan.maybe(0.5, furniture.plant, corner=True)
    plan.maybe(0.4, furniture.cabinet)
    plan.maybe(0.25, furniture.fireplace)
    if rng.random() < 0.5:
        plan.anywhere(furniture.dining_set(rng))
    if rng.random() < 0.4:
        plan.anywhere(furniture.ottoman(rng), 0.4)
    plan.fill(
        furniture.armchair, furniture.bookshelf, furniture.shelves, furniture.cabinet,
        furniture.chair, furniture.radiator, furniture.plant, furniture.sofa,
    )  # fmt: skip


def _kitchen(plan: Plan) -> None:
    rng = plan.rng
    wall = int(rng.integers(4))
    space = plan.size[wall % 2]
    plan.against_wall(
        wet_rooms.kitchen_row(rng, min(space - 0.1, rng.uniform(2.0, 3.4))), wall=wall
    )
    plan.against_wall(wet_rooms.refrigerator(rng))
    if rng.random() < 0.5:
        plan.against_wall(wet_rooms.kitchen_row(rng, rng.uniform(1.2, 2.0)))
    if not plan.anywhere(furniture.dining_set(rng)):
        plan.anywhere(furniture.table(rng, 0.8, 0.8, 0.75))
    plan.windows(1 + (rng.random() < 0.3))
    plan.wall_hangings(int(rng.random() < 0.4), wet_rooms.towel_rail)
    plan.fill(
        furniture.shelves, furniture.cabinet, furniture.radiator, furniture.chair,
        furniture.shelves,
    )  # fmt: skip


def _office(plan: Plan) -> None:
    rng = plan.rng
    for _ in range(int(rng.integers(1, 4))):
        plan.against_wall(furniture.desk(rng))
    plan.windows(1)
    if rng.random() < 0.7:
        plan.against_wall(objects.whiteboard(rng), 0.9)
    plan.maybe(0.8, furniture.bookshelf)
    plan.maybe(0.6, furniture.shelves)
    plan.maybe(0.6, furniture.cabinet)
    plan.maybe(0.3, furniture.plant, corner=True)
    if rng.random() < 0.4:
        plan.anywhere(furniture.dining_set(rng))
    plan.wall_hangings(int(rng.random() < 0.3), objects.coat_hooks)
    plan.fill(
        furniture.bookshelf, furniture.shelves, furniture.cabinet, furniture.chair,
        furniture.radiator, furniture.desk, objects.cardboard_box,
    )  # fmt: skip


def _dining_room(plan: Plan) -> None:
    rng = plan.rng
    plan.anywhere(furniture.dining_set(rng))
    plan.against_wall(furniture.cabinet(rng))
    plan.windows(1 + (rng.random() < 0.5))
    plan.maybe(0.5, furniture.bookshelf)
    plan.maybe(0.5, furniture.plant, corner=True)
    plan.maybe(0.5, furniture.armchair)
    plan.maybe(0.4, furniture.floor_lamp, corner=True)
    plan.maybe(0.4, furniture.sofa)
    plan.wall_hangings(int(rng.random() < 0.4), objects.mirror)
    plan.maybe(0.2, furniture.fireplace)
    plan.fill(
        furniture.chair, furniture.cabinet, furniture.shelves, furniture.radiator,
        furniture.plant, furniture.dresser,
    )  # fmt: skip


def _bathroom(plan: Plan) -> None:
    rng = plan.rng
    plan.against_wall(wet_rooms.bathtub(rng), corner=True)
    where = plan.against_wall(wet_rooms.vanity(rng))
    if where is not None:
        plan.on_wall(objects.mirror(rng), *where, 1.1)
    plan.against_wall(wet_rooms.toilet(rng))
    plan.windows(int(rng.random() < 0.5))
    plan.wall_hangings(int(rng.integers(1, 3)), wet_rooms.towel_rail)
    mat = Assembly('bath mat', 0.8, 0.5, 0.02)
    mat.box('floor mat', (0, 0, 0), (0.8, 0.5, 0.015), finishes.rug(rng))
    plan.anywhere(mat)
    plan.maybe(0.3, furniture.shelves)


KINDS: dict[str, tuple[Callable[[Plan], None], tuple[float, float], tuple[float, float]]] = {
    'bedroom': (_bedroom, (3.4, 5.0), (3.2, 4.6)),
    'living room': (_living_room, (4.2, 6.5), (3.8, 5.4)),
    'kitchen': (_kitchen, (3.4, 5.2), (3.2, 4.6)),
    'office': (_office, (3.4, 5.6), (3.2, 4.8)),
    'dining room': (_dining_room, (3.6, 5.2), (3.4, 4.6)),
    'bathroom': (_bathroom, (2.5, 3.4), (2.3, 3.2)),
}
"""Kind of room -> how it is furnished, and the ranges of its width and depth in metres."""

_SHARES = (0.26, 0.23, 0.18, 0.15, 0.10, 0.08)


def furnish(rng: Generator, kind: str | None) -> tuple[str, Plan]:
    """Draw a room of this kind, or of a kind drawn about as often as NYUv2 shows it."""
    if kind is None:
        kind = list(KINDS)[rng.choice(len(KINDS), p=_SHARES)]
    programme, widths, depths = KINDS[kind]
    size = (rng.uniform(*widths), rng.uniform(*depths), rng.uniform(2.4, 2.8))
    wet = kind == 'bathroom' or (kind == 'kitchen' and rng.random() < 0.7)
    plan = Plan(rng, size, wet)
    plan.door()
    programme(plan)
    pictures = 1 if kind == 'bathroom' else int(rng.integers(1, 5))
    plan.wall_hangings(pictures, objects.picture)
    if kind != 'bathroom':
        plan.wall_hangings(int(rng.random() < 0.3), objects.wall_shelf)
        plan.wall_hangings(int(rng.random() < 0.3), objects.clock)
        if rng.random() < 0.08:
            plan.anywhere(objects.person(rng), np.pi)
    plan.floor_things(int(rng.integers(0, 2 if kind == 'bathroom' else 7)))
    plan.lamps()
    return kind, plan
