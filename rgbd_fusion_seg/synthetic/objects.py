"""Small things that stand on furniture, and what hangs on walls."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from rgbd_fusion_seg.synthetic import finishes
from rgbd_fusion_seg.synthetic.primitives import Assembly, Pattern

Position = tuple[float, float, float]


def clutter(
    piece: Assembly, rng: Generator, area: tuple[float, float, float, float], z: float,
    count: int, headroom: float = 0.4,
) -> None:  # fmt: skip
    """Put up to ``count`` things on the rectangle (x0, x1, y0, y1) at height z without overlap."""
    x0, x1, y0, y1 = area
    things = (_cup, _book_stack, _small_box, _paper, _bottle, _bowl, _book_stack, _paper, _vase)
    taken: list[tuple[float, float, float]] = []
    for _ in range(count):
        thing = things[rng.integers(len(things))]
        part = thing(rng)
        reach = max(part.size[:2]) / 2 + 0.01
        if part.size[2] > headroom or x1 - x0 < 2 * reach or y1 - y0 < 2 * reach:
            continue
        x, y = rng.uniform(x0 + reach, x1 - reach), rng.uniform(y0 + reach, y1 - reach)
        if all(np.hypot(x - a, y - b) > reach + r for a, b, r in taken):
            taken.append((x, y, reach))
            piece.add(part, (x, y, z), rng.uniform(-0.6, 0.6))


def _cup(rng: Generator) -> Assembly:
    part = Assembly('cup', 0.09, 0.09, 0.12)
    part.cylinder('otherprop', (0, 0, 0), (0.08, 0.08, rng.uniform(0.08, 0.12)),
                  finishes.vivid(rng))  # fmt: skip
    return part


def _bottle(rng: Generator) -> Assembly:
    part = Assembly('bottle', 0.09, 0.09, 0.29)
    glass = finishes.vivid(rng)
    part.cylinder('otherprop', (0, 0, 0), (0.075, 0.075, 0.17), glass)
    part.ellipsoid('otherprop', (0, 0, 0.13), (0.075, 0.075, 0.09), glass)
    part.cylinder('otherprop', (0, 0, 0.2), (0.03, 0.03, 0.08), glass)
    return part


def _bowl(rng: Generator) -> Assembly:
    part = Assembly('bowl', 0.26, 0.26, 0.14)
    part.cylinder('otherprop', (0, 0, 0), (0.12, 0.12, 0.02), finishes.vivid(rng))
    part.ellipsoid('otherprop', (0, 0, 0.01), (0.25, 0.25, 0.1), finishes.vivid(rng))
    return part


def _vase(rng: Generator) -> Assembly:
    part = Assembly('vase', 0.2, 0.2, 0.39)
    part.ellipsoid('otherprop', (0, 0, 0), (0.14, 0.14, 0.22), finishes.vivid(rng))
    green = finishes.leaves(rng)
    for _ in range(3):
        x, y = rng.uniform(-0.04, 0.04, 2)
        part.ellipsoid('otherprop', (x, y, 0.18), (0.12, 0.1, 0.2), green,
                       tilt=rng.uniform(-0.3, 0.3))  # fmt: skip
    return part


def _book_stack(rng: Generator) -> Assembly:
    part = Assembly('books', 0.28, 0.28, 0.16)
    z = 0.0
    for _ in range(int(rng.integers(1, 5))):
        thick = rng.uniform(0.015, 0.04)
        part.box('books', (0, 0, z), (rng.uniform(0.2, 0.26), rng.uniform(0.15, 0.19), thick),
                 finishes.vivid(rng), yaw=rng.uniform(-0.3, 0.3))  # fmt: skip
        z += thick
    return part


def _small_box(rng: Generator) -> Assembly:
    w, d, h = rng.uniform(0.08, 0.26), rng.uniform(0.06, 0.2), rng.uniform(0.06, 0.26)
    part = Assembly('box', w, d, h)
    part.box('box', (0, 0, 0), (w, d, h), finishes.cardboard(rng), front=finishes.image(
        rng, Pattern.PICTURE))  # fmt: skip
    return part


def _paper(rng: Generator) -> Assembly:
    part = Assembly('paper', 0.3, 0.3, 0.01)
    part.box('paper', (0, 0, 0), (0.21, 0.297, rng.uniform(0.002, 0.01)),
             finishes.scribbled(rng, 0.03))  # fmt: skip
    return part


def row_of_books(
    piece: Assembly, rng: Generator, x0: float, x1: float, depth: float, z: float, space: float
) -> None:
    """Fill a shelf board from x0 towards x1 with groups of upright books."""
    x, end = x0, x1 - rng.choice([0.0, 0.0, 0.3]) * (x1 - x0)
    while x < end - 0.06:
        w = min(rng.uniform(0.1, 0.35), end - x)
        d = min(depth - 0.03, rng.uniform(0.15, 0.24))
        books = finishes.spines(rng)
        piece.box('books', (x + w / 2, depth / 2 - 0.03 - d / 2, z),
                  (w - 0.004, d, space * rng.uniform(0.6, 0.97)), books)  # fmt: skip
        x += w


def table_lamp(piece: Assembly, rng: Generator, position: Position) -> None:
    """Lamp with a shade."""
    x, y, z = position
    base, h = finishes.vivid(rng), rng.uniform(0.2, 0.3)
    if rng.random() < 0.5:
        piece.ellipsoid('lamp', position, (0.15, 0.15, h), base)
    else:
        piece.cylinder('lamp', position, (0.14, 0.14, 0.02), base)
        piece.cylinder('lamp', position, (0.025, 0.025, h), base)
    piece.cylinder('lamp', (x, y, z + h - 0.02), (0.27, 0.27, rng.uniform(0.17, 0.22)),
                   finishes.glowing((0.85, 0.75, 0.55), rng.choice([0.1, 0.9])))  # fmt: skip


def monitor(piece: Assembly, rng: Generator, position: Position) -> None:
    """Computer display on its foot."""
    x, y, z = position
    w = rng.uniform(0.45, 0.65)
    dark = finishes.plain(rng, (0.02, 0.02, 0.02))
    piece.box('television', (x, y, z), (0.24, 0.18, 0.015), dark)
    piece.box('television', (x, y - 0.03, z), (0.05, 0.03, 0.2), dark)
    piece.box('television', (x, y, z + 0.12), (w, 0.04, w * 0.6), dark,
              front=finishes.image(rng, Pattern.SCREEN))  # fmt: skip


def clothes(piece: Assembly, rng: Generator, position: Position) -> None:
    """A heap of clothes."""
    x, y, z = position
    for _ in range(3):
        dx, dy = rng.uniform(-0.12, 0.12, 2)
        piece.ellipsoid('clothes', (x + dx, y + dy, z - 0.03),
                        (rng.uniform(0.3, 0.5), rng.uniform(0.2, 0.3), rng.uniform(0.1, 0.16)),
                        finishes.fabric(rng), yaw=rng.uniform(0, 3))  # fmt: skip


def bag(rng: Generator) -> Assembly:
    """Rucksack or shopping bag on the floor."""
    part = Assembly('bag', 0.42, 0.32, 0.55)
    cloth = finishes.fabric(rng)
    if rng.random() < 0.5:
        dark = finishes.plain(rng, (0.04, 0.04, 0.04))
        part.box('bag', (0, 0, 0), (0.3, 0.16, 0.34), cloth, tilt=0.08)
        part.cylinder('bag', (0, -0.015, 0.2), (0.3, 0.16, 0.16), cloth, yaw=np.pi / 2,
                      tilt=np.pi / 2)  # fmt: skip
        part.ellipsoid('bag', (0, 0.08, 0.02), (0.24, 0.12, 0.2), cloth)
        part.box('bag', (0, -0.02, 0.4), (0.05, 0.02, 0.1), dark)
    else:
        w, h = rng.uniform(0.28, 0.38), rng.uniform(0.26, 0.36)
        part.box('bag', (0, 0, 0), (w, 0.13, h), cloth, tilt=0.05)
        for y in (-0.06, 0.06):
            for x in (-0.07, 0.07):
                part.box('bag', (x, y, h - 0.02), (0.02, 0.012, 0.15), cloth)
            part.box('bag', (0, y, h + 0.12), (0.16, 0.012, 0.02), cloth)
    return part


def wall_shelf(rng: Generator) -> Assembly:
    """Board on the wall with books and things on it."""
    w = rng.uniform(0.6, 1.3)
    part = Assembly('wall shelf', w, 0.24, 0.36)
    part.box('shelves', (0, 0, 0), (w, 0.24, 0.03), finishes.wood_or_paint(rng))
    if rng.random() < 0.5:
        row_of_books(part, rng, -w / 2 + 0.02, w / 2 - 0.1, 0.24, 0.03, 0.26)
    else:
        clutter(part, rng, (-w / 2, w / 2, -0.12, 0.12), 0.03, 5, 0.32)
    return part


def coat_hooks(rng: Generator) -> Assembly:
    """Coats on a rail."""
    count = int(rng.integers(2, 5))
    part = Assembly('coats', 0.3 * count, 0.2, 1.1)
    part.box('otherprop', (0, -0.08, 1.02), (0.3 * count, 0.03, 0.07), finishes.wood(rng))
    for k in range(count):
        h = rng.uniform(0.6, 0.95)
        part.ellipsoid('clothes', ((k - (count - 1) / 2) * 0.28, -0.01, 1.03 - h),
                       (rng.uniform(0.28, 0.36), 0.16, h), finishes.fabric(rng))  # fmt: skip
    return part


def clock(rng: Generator) -> Assembly:
    """Round clock on the wall."""
    part = Assembly('clock', 0.32, 0.04, 0.32)
    rim, dark = finishes.wood_or_paint(rng), finishes.plain(rng, (0.03, 0.03, 0.03))
    white = finishes.plain(rng, (0.8, 0.8, 0.78))
    part.cylinder('otherprop', (0, -0.006, 0.145), (0.32, 0.32, 0.025), rim, tilt=np.pi / 2)
    part.cylinder('otherprop', (0, 0.0, 0.145), (0.28, 0.28, 0.025), white, tilt=np.pi / 2)
    part.box('otherprop', (0, 0.012, 0.155), (0.012, 0.006, 0.11), dark)
    part.box('otherprop', (0.035, 0.012, 0.152), (0.08, 0.006, 0.012), dark)
    return part


def person(rng: Generator) -> Assembly:
    """Somebody standing."""
    h = rng.uniform(1.6, 1.85)
    part = Assembly('person', 0.6, 0.45, h)
    trousers, shirt = finishes.fabric(rng), finishes.fabric(rng)
    skin = finishes.plain(rng, ((0.55, 0.36, 0.26), (0.30, 0.18, 0.11))[rng.integers(2)])
    hair = finishes.plain(rng, (0.05, 0.035, 0.025))
    hip = 0.5 * h
    for x in (-0.1, 0.1):
        part.ellipsoid('person', (x, 0.06, 0), (0.1, 0.27, 0.09), hair)
        part.cylinder('person', (x, 0, 0.05), (0.15, 0.16, hip - 0.05), trousers)
    part.ellipsoid('person', (0, 0, hip - 0.08), (0.36, 0.24, 0.2), trousers)
    part.ellipsoid('person', (0, 0, hip - 0.06), (0.42, 0.25, 0.86 * h - hip), shirt)
    part.box('person', (0, 0, hip), (0.34, 0.18, 0.22 * h), shirt)
    for side in (-1, 1):
        part.ellipsoid('person', (side * 0.23, 0.02, 0.56 * h), (0.11, 0.13, 0.27 * h), shirt)
        part.ellipsoid('person', (side * 0.24, 0.05, 0.42 * h), (0.08, 0.09, 0.2 * h), skin)
    part.cylinder('person', (0, 0, 0.8 * h), (0.1, 0.1, 0.09 * h), skin)
    part.ellipsoid('person', (0, 0.02, 0.86 * h), (0.16, 0.19, 0.135 * h), skin)
    part.ellipsoid('person', (0, -0.015, 0.88 * h), (0.175, 0.19, 0.125 * h), hair)
    return part


def cardboard_box(rng: Generator) -> Assembly:
    """Box on the floor, or two of them stacked."""
    w, d, h = rng.uniform(0.3, 0.55), rng.uniform(0.25, 0.4), rng.uniform(0.22, 0.4)
    stacked = rng.random() < 0.3
    part = Assembly('box', w, d, 2 * h if stacked else h)
    part.box('box', (0, 0, 0), (w, d, h), finishes.cardboard(rng))
    if stacked:
        part.box('box', (0, 0, h), (w * 0.8, d * 0.8, h * 0.8), finishes.cardboard(rng), yaw=0.2)
    return part


def floor_clothes(rng: Generator) -> Assembly:
    """Clothes dropped on the floor."""
    part = Assembly('clothes', 0.7, 0.55, 0.15)
    clothes(part, rng, (0, 0, 0))
    return part


def waste_basket(rng: Generator) -> Assembly:
    """Bin."""
    part = Assembly('basket', 0.3, 0.3, 0.35)
    part.cylinder('otherprop', (0, 0, 0), (0.28, 0.28, rng.uniform(0.28, 0.35)),
                  finishes.vivid(rng))  # fmt: skip
    return part


def picture(rng: Generator) -> Assembly:
    """Framed picture."""
    w, h = rng.uniform(0.3, 1.0), rng.uniform(0.3, 0.7)
    part = Assembly('picture', w, 0.03, h)
    frame = finishes.wood_or_paint(rng)
    part.box('picture', (0, -0.005, 0), (w, 0.02, h), frame)
    part.box('picture', (0, 0, 0.03), (w - 0.06, 0.024, h - 0.06), frame,
             front=finishes.image(rng, Pattern.PICTURE))  # fmt: skip
    return part


def mirror(rng: Generator) -> Assembly:
    """Framed mirror."""
    w, h = rng.uniform(0.5, 0.9), rng.uniform(0.7, 1.1)
    part = Assembly('mirror', w, 0.04, h)
    frame = finishes.wood_or_paint(rng)
    part.box('mirror', (0, -0.008, 0), (w, 0.024, h), frame)
    part.box('mirror', (0, 0.0, 0.03), (w - 0.06, 0.024, h - 0.06), frame,
             front=finishes.mirror_glass())  # fmt: skip
    return part


def whiteboard(rng: Generator) -> Assembly:
    """Whiteboard with writing and a tray."""
    w, h = rng.uniform(1.2, 2.2), rng.uniform(0.9, 1.15)
    part = Assembly('whiteboard', w, 0.08, h)
    metal = finishes.metal(rng)
    part.box('whiteboard', (0, -0.028, 0), (w, 0.022, h), metal)
    part.box('whiteboard', (0, -0.025, 0.025), (w - 0.05, 0.024, h - 0.05), metal,
             front=finishes.scribbled(rng, 0.09))  # fmt: skip
    part.box('whiteboard', (0, 0, 0), (w * 0.8, 0.07, 0.02), metal)
    return part


def door(rng: Generator) -> Assembly:
    """Closed door with frame and handle."""
    w, h = rng.uniform(0.8, 0.95), rng.uniform(1.98, 2.08)
    part = Assembly('door', w + 0.16, 0.06, h + 0.08)
    leaf = finishes.wood(rng) if rng.random() < 0.5 else finishes.painted(rng)
    frame = leaf if rng.random() < 0.4 else finishes.painted(rng)
    part.box('door', (0, -0.01, 0), (w, 0.03, h), leaf)
    for x in (-1, 1):
        part.box('door', (x * (w / 2 + 0.035), 0, 0), (0.07, 0.055, h + 0.07), frame)
    part.box('door', (0, 0, h), (w, 0.055, 0.07), frame)
    if rng.random() < 0.6:
        for z, height in ((0.15, 0.7), (1.0, h - 1.15)):
            for x in (-1, 1):
                part.box('door', (x * w / 4, 0.0, z), (w / 2 - 0.12, 0.025, height), leaf)
    metal = finishes.metal(rng)
    part.box('door', (w / 2 - 0.1, 0.035, 1.0), (0.12, 0.02, 0.02), metal)
    part.ellipsoid('door', (w / 2 - 0.06, 0.015, 0.985), (0.05, 0.05, 0.05), metal)
    return part


def window(rng: Generator, daylight: float) -> Assembly:
    """Window with frame and a view as bright as the day; with curtains, blinds or neither."""
    w, h = rng.uniform(0.9, 1.9), rng.uniform(1.0, 1.35)
    part = Assembly('window', w + 0.5, 0.16, h + 0.2)
    frame = finishes.painted(rng)
    view = finishes.image(rng, Pattern.OUTDOOR, daylight)
    part.box('window', (0, -0.07, 0.1), (w, 0.015, h), view)
    for x in np.linspace(-w / 2, w / 2, 2 if w < 1.1 else 3):
        part.box('window', (x, -0.055, 0.07), (0.06, 0.04, h + 0.06), frame)
    for z in (0.07, h + 0.07):
        part.box('window', (0, -0.055, z), (w, 0.045, 0.06), frame)
    part.box('window', (0, -0.03, 0.04), (w + 0.12, 0.1, 0.03), frame)
    kind = rng.random()
    if kind < 0.45:
        curtains(part, rng, 'curtain', w, h + 0.2, 0.0)
    elif kind < 0.75:
        blinds(part, rng, w, h)
    return part


def curtains(
    part: Assembly, rng: Generator, label: str, w: float, h: float, bottom: float,
    closed: float | None = None,
) -> None:  # fmt: skip
    """Folded cloth on a rod, drawn to the sides of a w wide opening."""
    cloth, fold = finishes.fabric(rng), rng.uniform(0.07, 0.1)
    share = rng.uniform(0.12, 0.42) if closed is None else closed
    part.cylinder(label, (0, 0.01, h - 0.03 - (w + 0.4) / 2), (0.025, 0.025, w + 0.4),
                  finishes.metal(rng), yaw=np.pi / 2, tilt=np.pi / 2)  # fmt: skip
    folds = max(2, round(share * w / fold))
    for side in (-1, 1):
        for k in range(folds):
            x = side * (w / 2 + 0.13 - k * fold)
            part.cylinder(label, (x, 0.01 + 0.012 * (-1) ** k, bottom),
                          (fold * 1.15, 0.085, h - 0.04 - bottom), cloth)  # fmt: skip


def blinds(part: Assembly, rng: Generator, w: float, h: float) -> None:
    """Slats that cover the upper part of a window."""
    slat = finishes.painted(rng)
    covered = rng.uniform(0.3, 1.0) * h
    pitch = max(0.05, covered / 22)
    for k in range(int(covered / pitch)):
        part.box('blinds', (0, -0.01, h + 0.08 - k * pitch), (w - 0.02, pitch * 0.85, 0.004), slat,
                 tilt=0.9)  # fmt: skip
    part.box('blinds', (0, -0.01, h + 0.1), (w, 0.06, 0.05), slat)
