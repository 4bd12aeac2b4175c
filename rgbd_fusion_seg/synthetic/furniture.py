"""Pieces of furniture: each function draws sizes and finishes and returns an Assembly.

Sizes are those of common household furniture, in metres. The back of a piece is at -y.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from rgbd_fusion_seg.synthetic import finishes, objects
from rgbd_fusion_seg.synthetic.primitives import Assembly, Material, Pattern


def _legs(
    piece: Assembly, label: str, w: float, d: float, h: float, thick: float, material: Material,
    round_legs: bool = False,
) -> None:  # fmt: skip
    """Add four legs at the corners of a w x d footprint around the centre."""
    add = piece.cylinder if round_legs else piece.box
    for x in (-1, 1):
        for y in (-1, 1):
            add(label, (x * (w - thick) / 2, y * (d - thick) / 2, 0), (thick, thick, h), material)


def _fronts(
    piece: Assembly, rng: Generator, label: str, x: float, w: float, z0: float, z1: float,
    columns: int, rows: int, material: Material,
) -> None:  # fmt: skip
    """Add doors or drawers with handles to the front of a body that is w wide around x."""
    front = piece.size[1] / 2
    metal = finishes.metal(rng)
    cell_w, cell_h = w / columns, (z1 - z0) / rows
    for column in range(columns):
        cx = x - w / 2 + (column + 0.5) * cell_w
        for row in range(rows):
            z = z0 + row * cell_h
            piece.box(label, (cx, front - 0.008, z + 0.01), (cell_w - 0.015, 0.016, cell_h - 0.02),
                      material)  # fmt: skip
            if cell_h < 1.2 * cell_w:
                piece.box(label, (cx, front + 0.01, z + cell_h * 0.6),
                          (min(0.14, cell_w / 3), 0.02, 0.014), metal)  # fmt: skip
            else:
                side = 1 if column % 2 == 0 else -1
                piece.box(label, (cx + side * (cell_w / 2 - 0.05), front + 0.01,
                          z + cell_h * 0.45), (0.014, 0.02, 0.14), metal)  # fmt: skip


def chair(rng: Generator) -> Assembly:
    """Four-legged chair with a slatted or solid back."""
    w, d, seat = rng.uniform(0.42, 0.48), rng.uniform(0.42, 0.48), rng.uniform(0.44, 0.48)
    back = rng.uniform(0.82, 1.02)
    piece = Assembly('chair', w, d + 0.05, back)
    frame = finishes.wood_or_paint(rng)
    cover = finishes.fabric(rng) if rng.random() < 0.5 else frame
    _legs(piece, 'chair', w, d, seat - 0.03, 0.038, frame)
    piece.box('chair', (0, 0, seat - 0.03), (w, d, 0.045), cover)
    rear = -d / 2 + 0.02
    if rng.random() < 0.5:
        for x in (-1, 1):
            piece.box('chair', (x * (w / 2 - 0.02), rear, seat), (0.035, 0.03, back - seat), frame)
        for z in np.linspace(seat + 0.12, back - 0.07, int(rng.integers(2, 5))):
            piece.box('chair', (0, rear, z), (w - 0.04, 0.02, 0.06), frame)
    else:
        piece.box('chair', (0, rear - 0.02, seat + 0.04), (w, 0.035, back - seat - 0.04), cover,
                  tilt=0.1)  # fmt: skip
    return piece


def office_chair(rng: Generator) -> Assembly:
    """Swivel chair on a star base."""
    piece = Assembly('chair', 0.6, 0.6, 1.0)
    dark, cover = finishes.plain(rng, (0.03, 0.03, 0.03)), finishes.fabric(rng)
    for k in range(5):
        angle = 2 * np.pi * k / 5
        piece.box('chair', (0.14 * np.cos(angle), 0.14 * np.sin(angle), 0.05), (0.28, 0.04, 0.04),
                  dark, yaw=angle)  # fmt: skip
        piece.ellipsoid('chair', (0.27 * np.cos(angle), 0.27 * np.sin(angle), 0),
                        (0.06, 0.06, 0.06), dark)  # fmt: skip
    piece.cylinder('chair', (0, 0, 0.08), (0.06, 0.06, 0.36), finishes.metal(rng))
    piece.box('chair', (0, 0, 0.43), (0.48, 0.46, 0.08), cover)
    piece.box('chair', (0, -0.23, 0.52), (0.44, 0.06, rng.uniform(0.4, 0.6)), cover, tilt=0.12)
    if rng.random() < 0.6:
        for x in (-1, 1):
            piece.box('chair', (x * 0.26, 0, 0.64), (0.05, 0.26, 0.03), dark)
            piece.box('chair', (x * 0.26, -0.05, 0.46), (0.03, 0.05, 0.18), dark)
    return piece


def armchair(rng: Generator) -> Assembly:
    """Upholstered chair."""
    return _upholstered(rng, 'chair', 'armchair', rng.uniform(0.78, 0.95), 1)


def sofa(rng: Generator) -> Assembly:
    """Two- or three-seater, with loose pillows."""
    seats = int(rng.integers(2, 4))
    return _upholstered(rng, 'sofa', 'sofa', 0.65 * seats + rng.uniform(0.3, 0.5), seats)


def _upholstered(rng: Generator, label: str, name: str, w: float, seats: int) -> Assembly:
    d, seat = rng.uniform(0.82, 0.95), rng.uniform(0.4, 0.46)
    back, arm = rng.uniform(0.78, 0.95), rng.uniform(0.12, 0.2)
    piece = Assembly(name, w, d, back)
    cover = finishes.fabric(rng)
    piece.box(label, (0, 0, 0.05), (w, d, seat - 0.19), cover)
    _legs(piece, label, w - 0.1, d - 0.1, 0.05, 0.05, finishes.wood(rng))
    piece.box(label, (0, -d / 2 + 0.1, seat - 0.14), (w, 0.2, back - seat + 0.12), cover)
    for x in (-1, 1):
        piece.box(label, (x * (w - arm) / 2, 0.02, seat - 0.14), (arm, d - 0.04, 0.33), cover)
    each = (w - 2 * arm) / seats
    for k in range(seats):
        x = -w / 2 + arm + (k + 0.5) * each
        piece.box(label, (x, 0.11, seat - 0.14), (each - 0.012, d - 0.24, 0.15), cover)
        piece.box(label, (x, -d / 2 + 0.26, seat), (each - 0.02, 0.15, back - seat), cover,
                  tilt=0.2)  # fmt: skip
    for _ in range(int(rng.integers(0, seats + 1))):
        x = rng.uniform(-w / 2 + arm + 0.2, w / 2 - arm - 0.2) if seats > 1 else 0
        piece.ellipsoid('pillow', (x, rng.uniform(-0.06, 0.0), seat), (0.45, 0.16, 0.42),
                        finishes.fabric(rng), yaw=rng.uniform(-0.3, 0.3), tilt=0.35)  # fmt: skip
    return piece


def bed(rng: Generator) -> Assembly:
    """Bed with headboard, mattress, blanket and pillows."""
    w = float(rng.choice([1.0, 1.4, 1.6, 1.8]))
    d, top = rng.uniform(2.0, 2.15), rng.uniform(0.48, 0.62)
    head = rng.uniform(0.85, 1.25)
    piece = Assembly('bed', w + 0.06, d, head)
    frame, sheet, cover = finishes.wood_or_paint(rng), finishes.linen(rng), finishes.fabric(rng)
    piece.box('bed', (0, -d / 2 + 0.03, 0), (w + 0.06, 0.05, head), frame)
    if rng.random() < 0.5:
        piece.box('bed', (0, d / 2 - 0.02, 0), (w + 0.06, 0.04, top), frame)
    piece.box('bed', (0, 0.02, 0.08), (w + 0.02, d - 0.08, 0.22), frame)
    piece.box('bed', (0, 0.02, 0.3), (w - 0.02, d - 0.1, top - 0.3), sheet)
    turned = rng.uniform(0.45, 0.75)
    piece.box('bed', (0, turned / 2 - 0.01, 0.26), (w + 0.05, d - turned - 0.02, top - 0.22),
              cover)  # fmt: skip
    if rng.random() < 0.5:
        piece.box('bed', (0, rng.uniform(0.4, 0.6), 0.27), (w + 0.07, 0.5, top - 0.215),
                  finishes.fabric(rng))  # fmt: skip
    count = 1 if w < 1.2 else 2
    soft = finishes.linen(rng)
    for k in range(count):
        x = (k - (count - 1) / 2) * w / 2
        piece.ellipsoid('pillow', (x, -d / 2 + 0.28, top - 0.03), (0.66, 0.42, 0.19), soft,
                        yaw=rng.uniform(-0.1, 0.1), tilt=0.25)  # fmt: skip
        if rng.random() < 0.4:
            piece.ellipsoid('pillow', (x, -d / 2 + 0.46, top - 0.02), (0.42, 0.16, 0.38),
                            finishes.fabric(rng), tilt=0.5)  # fmt: skip
    if rng.random() < 0.35:
        objects.clothes(piece, rng, (rng.uniform(-0.3, 0.3), 0.5, top + 0.03))
    return piece


def night_stand(rng: Generator) -> Assembly:
    """Small cabinet with a lamp."""
    w, d, h = rng.uniform(0.42, 0.52), rng.uniform(0.36, 0.44), rng.uniform(0.5, 0.62)
    piece = Assembly('night stand', w, d, h + 0.5)
    body = finishes.wood_or_paint(rng)
    piece.box('night stand', (0, -0.008, 0.06), (w, d - 0.016, h - 0.06), body)
    _legs(piece, 'night stand', w, d - 0.03, 0.06, 0.04, body)
    _fronts(piece, rng, 'night stand', 0, w, 0.08, h - 0.02, 1, int(rng.integers(1, 4)), body)
    if rng.random() < 0.85:
        objects.table_lamp(piece, rng, (0, 0, h))
    else:
        objects.clutter(piece, rng, (-w / 2, w / 2, -d / 2, d / 2), h, 2)
    return piece


def table(rng: Generator, w: float, d: float, h: float, name: str = 'table') -> Assembly:
    """Rectangular or round table with legs."""
    piece = Assembly(name, w, d, h)
    wood = finishes.wood(rng)
    if abs(w - d) < 0.05 and rng.random() < 0.6:
        piece.cylinder('table', (0, 0, h - 0.035), (w, d, 0.035), wood)
        piece.cylinder('table', (0, 0, 0), (0.1, 0.1, h - 0.035), wood)
        piece.cylinder('table', (0, 0, 0), (w * 0.5, w * 0.5, 0.04), wood)
    else:
        piece.box('table', (0, 0, h - 0.035), (w, d, 0.035), wood)
        piece.box('table', (0, 0, h - 0.1), (w - 0.14, d - 0.14, 0.066), wood)
        _legs(piece, 'table', w - 0.06, d - 0.06, h - 0.035, rng.uniform(0.045, 0.08), wood,
              bool(rng.random() < 0.3))  # fmt: skip
    return piece


def dining_set(rng: Generator) -> Assembly:
    """Table with two to six chairs around it."""
    w, d = rng.uniform(0.95, 1.8), rng.uniform(0.8, 0.95)
    piece = Assembly('dining set', w + 0.2, d + 1.1, 1.05)
    if rng.random() < 0.25:
        w = d
    piece.add(table(rng, w, d, rng.uniform(0.72, 0.77)), (0, 0, 0))
    objects.clutter(piece, rng, (-w / 2, w / 2, -d / 2, d / 2), 0.765, int(rng.integers(1, 6)))
    seat = chair(rng)
    for x in [-w / 4, w / 4] if w > 1.3 else [0.0]:
        for side in (-1, 1):
            gap = side * (d / 2 + rng.uniform(-0.02, 0.25))
            if rng.random() < 0.9:
                turn = (np.pi if side > 0 else 0.0) + rng.normal(0, 0.12)
                piece.add(seat, (x, gap, 0), turn)
    return piece


def coffee_table(rng: Generator) -> Assembly:
    """Low table with things on it."""
    w, d, h = rng.uniform(0.7, 1.15), rng.uniform(0.5, 0.65), rng.uniform(0.38, 0.48)
    piece = table(rng, w, d, h, 'coffee table')
    if rng.random() < 0.5:
        piece.box('table', (0, 0, h * 0.35), (w - 0.16, d - 0.16, 0.02), finishes.wood(rng))
    objects.clutter(piece, rng, (-w / 2, w / 2, -d / 2, d / 2), h, int(rng.integers(1, 5)))
    return piece


def desk(rng: Generator) -> Assembly:
    """Desk with monitor, keyboard, papers, and its chair in front."""
    w, d, h = rng.uniform(1.1, 1.7), rng.uniform(0.6, 0.75), rng.uniform(0.72, 0.76)
    reach = 0.62
    piece = Assembly('desk', w, d + reach, 1.25)
    back = -reach / 2  # the desk's own centre line
    top, body = finishes.wood_or_paint(rng), finishes.wood_or_paint(rng)
    piece.box('desk', (0, back, h - 0.03), (w, d, 0.03), top)
    for x in (-1, 1):
        if rng.random() < 0.5:
            piece.box('desk', (x * (w / 2 - 0.2), back, 0.03), (0.38, d - 0.06, h - 0.06), body)
            for z in np.linspace(0.06, h - 0.25, 3):
                piece.box('desk', (x * (w / 2 - 0.2), back + d / 2 - 0.025, z),
                          (0.35, 0.02, (h - 0.15) / 3), top)  # fmt: skip
        else:
            piece.box('desk', (x * (w / 2 - 0.03), back, 0), (0.04, d - 0.05, h - 0.03), body)
    objects.monitor(piece, rng, (rng.uniform(-0.15, 0.15), back - 0.12, h))
    piece.box('otherprop', (0, back + 0.12, h), (0.42, 0.14, 0.02),
              finishes.plain(rng, (0.05, 0.05, 0.05)))  # fmt: skip
    for x in (-1, 1):
        objects.clutter(
            piece, rng, (x * (w / 4) - w / 6, x * (w / 4) + w / 6, back - 0.2, back + 0.2), h,
            int(rng.integers(1, 4)),
        )  # fmt: skip
    if rng.random() < 0.4:
        objects.table_lamp(piece, rng, (w / 2 - 0.15, back - d / 2 + 0.17, h))
    seat = office_chair(rng) if rng.random() < 0.7 else chair(rng)
    piece.add(seat, (rng.uniform(-0.1, 0.1), back + d / 2 + 0.18, 0), np.pi + rng.normal(0, 0.3))
    return piece


def bookshelf(rng: Generator) -> Assembly:
    """Tall shelf full of books and some objects."""
    return _shelf(rng, 'bookshelf', 0.85)


def shelves(rng: Generator) -> Assembly:
    """Open shelf with boxes and things."""
    return _shelf(rng, 'shelves', 0.25)


def _shelf(rng: Generator, label: str, bookish: float) -> Assembly:
    w, d = rng.uniform(0.7, 1.3), rng.uniform(0.28, 0.36)
    boards = int(rng.integers(3, 7))
    h = 0.36 * boards + 0.1
    piece = Assembly(label, w, d, h)
    wood = finishes.wood_or_paint(rng)
    for x in (-1, 1):
        piece.box(label, (x * (w / 2 - 0.01), 0, 0), (0.022, d, h), wood)
    if rng.random() < 0.8:
        piece.box(label, (0, -d / 2 + 0.006, 0), (w - 0.02, 0.012, h), wood)
    for k in range(boards + 1):
        z = 0.06 + (h - 0.085) * k / boards
        piece.box(label, (0, 0.004, z), (w - 0.04, d - 0.014, 0.022), wood)
        if k == boards:
            continue
        if rng.random() < bookish:
            objects.row_of_books(piece, rng, -w / 2 + 0.04, w / 2 - 0.04, d, z + 0.022, 0.3)
        else:
            objects.clutter(piece, rng, (-w / 2 + 0.06, w / 2 - 0.06, -d / 2, d / 2), z + 0.022,
                            int(rng.integers(3, 9)), 0.28)  # fmt: skip
    objects.clutter(piece, rng, (-w / 2, w / 2, -d / 2, d / 2), h - 0.003, int(rng.integers(0, 3)))
    return piece


def cabinet(rng: Generator) -> Assembly:
    """Sideboard or wardrobe with doors."""
    tall = rng.random() < 0.4
    w, d = rng.uniform(0.8, 1.6), rng.uniform(0.42, 0.6)
    h = rng.uniform(1.8, 2.15) if tall else rng.uniform(0.75, 1.1)
    return _cased(rng, 'cabinet', 'cabinet', w, d, h, 1 if tall else int(rng.integers(1, 3)))


def dresser(rng: Generator) -> Assembly:
    """Chest of drawers."""
    w, d, h = rng.uniform(0.8, 1.4), rng.uniform(0.42, 0.52), rng.uniform(0.75, 1.15)
    return _cased(rng, 'dresser', 'dresser', w, d, h, int(rng.integers(3, 5)))


def _cased(
    rng: Generator, label: str, name: str, w: float, d: float, h: float, rows: int
) -> Assembly:
    piece = Assembly(name, w, d, h)
    body = finishes.wood_or_paint(rng)
    piece.box(label, (0, -0.008, 0.07), (w, d - 0.016, h - 0.1), body)
    piece.box(label, (0, 0, h - 0.03), (w + 0.02, d + 0.01, 0.03), body)
    piece.box(label, (0, -0.02, 0), (w - 0.06, d - 0.08, 0.07), body)
    columns = max(1, round(w / 0.5)) if rows < 3 else max(1, round(w / 0.7))
    _fronts(piece, rng, label, 0, w, 0.08, h - 0.04, columns, rows, body)
    if h < 1.3:
        objects.clutter(piece, rng, (-w / 2, w / 2, -d / 2, d / 2), h, int(rng.integers(1, 6)))
        if rng.random() < 0.3:
            objects.table_lamp(piece, rng, (w / 2 - 0.2, 0, h))
    elif rng.random() < 0.4:
        piece.box('box', (0, 0, h), (0.5, 0.35, 0.25), finishes.cardboard(rng))
    return piece


def tv_stand(rng: Generator) -> Assembly:
    """Low cabinet with a television."""
    w, d, h = rng.uniform(1.1, 1.7), rng.uniform(0.4, 0.5), rng.uniform(0.42, 0.6)
    piece = Assembly('tv stand', w, d, h + 0.8)
    body = finishes.wood_or_paint(rng)
    piece.box('cabinet', (0, -0.008, 0.05), (w, d - 0.016, h - 0.05), body)
    _fronts(piece, rng, 'cabinet', 0, w, 0.07, h - 0.02, 3, 1, body)
    _legs(piece, 'cabinet', w - 0.04, d - 0.06, 0.05, 0.05, body)
    size = rng.uniform(0.8, 1.2)
    dark = finishes.plain(rng, (0.015, 0.015, 0.015))
    piece.box('television', (0, -0.05, h), (0.4, 0.2, 0.015), dark)
    piece.box('television', (0, -0.07, h + 0.01), (0.12, 0.03, 0.1), dark)
    piece.box('television', (0, -0.05, h + 0.07), (size, 0.05, size * 0.57), dark,
              front=finishes.image(rng, Pattern.SCREEN))  # fmt: skip
    return piece


def floor_lamp(rng: Generator) -> Assembly:
    """Lamp on a pole."""
    h = rng.uniform(1.45, 1.75)
    piece = Assembly('lamp', 0.42, 0.42, h)
    metal = finishes.metal(rng)
    piece.cylinder('lamp', (0, 0, 0), (0.3, 0.3, 0.03), metal)
    piece.cylinder('lamp', (0, 0, 0.03), (0.03, 0.03, h - 0.25), metal)
    piece.cylinder('lamp', (0, 0, h - 0.3), (0.38, 0.38, 0.3),
                   finishes.glowing((0.85, 0.72, 0.5), rng.choice([0.15, 0.9])))  # fmt: skip
    return piece


def plant(rng: Generator) -> Assembly:
    """Potted plant."""
    h = rng.uniform(0.7, 1.5)
    piece = Assembly('plant', 0.55, 0.55, h)
    piece.cylinder('otherprop', (0, 0, 0), (0.3, 0.3, 0.28), finishes.vivid(rng))
    piece.cylinder('otherprop', (0, 0, 0.28), (0.03, 0.03, h * 0.4), finishes.wood(rng))
    green = finishes.leaves(rng)
    for _ in range(7):
        x, y = rng.uniform(-0.13, 0.13, 2)
        piece.ellipsoid('otherprop', (x, y, rng.uniform(0.3, h - 0.3)), (0.26, 0.2, 0.28), green,
                        yaw=rng.uniform(0, 3), tilt=rng.uniform(-0.6, 0.6))  # fmt: skip
    return piece


def ottoman(rng: Generator) -> Assembly:
    """Upholstered stool."""
    w, h = rng.uniform(0.45, 0.7), rng.uniform(0.38, 0.46)
    piece = Assembly('ottoman', w, w, h)
    cover = finishes.fabric(rng)
    if rng.random() < 0.5:
        piece.cylinder('otherfurniture', (0, 0, 0.05), (w, w, h - 0.05), cover)
    else:
        piece.box('otherfurniture', (0, 0, 0.08), (w, w, h - 0.08), cover)
    _legs(piece, 'otherfurniture', w * 0.65, w * 0.65, 0.08, 0.05, finishes.wood(rng))
    return piece


def fireplace(rng: Generator) -> Assembly:
    """Chimney piece with a mantel."""
    w, h = rng.uniform(1.2, 1.6), rng.uniform(1.05, 1.25)
    piece = Assembly('fireplace', w, 0.4, h + 0.3)
    surround, soot = finishes.stone(rng), finishes.plain(rng, (0.02, 0.02, 0.02))
    for x in (-1, 1):
        piece.box(
            'otherstructure', (x * (w / 2 - 0.2), -0.03, 0), (0.36, 0.34, h - 0.06), surround
        )
    piece.box('otherstructure', (0, -0.03, h - 0.4), (w - 0.7, 0.34, 0.34), surround)
    piece.box('otherstructure', (0, -0.15, 0), (w - 0.7, 0.05, h - 0.4), soot)
    piece.box('otherstructure', (0, 0, h - 0.06), (w, 0.4, 0.06), finishes.wood_or_paint(rng))
    objects.clutter(piece, rng, (-w / 2, w / 2, -0.2, 0.2), h, 4, 0.3)
    return piece


def radiator(rng: Generator) -> Assembly:
    """Ribbed radiator."""
    ribs = int(rng.integers(8, 16))
    w = 0.07 * ribs
    piece = Assembly('radiator', w, 0.14, 0.72)
    white = finishes.plain(rng, (0.75, 0.74, 0.7))
    piece.box('otherstructure', (0, -0.01, 0.16), (w, 0.05, 0.5), white)
    for k in range(ribs):
        piece.box('otherstructure', ((k - (ribs - 1) / 2) * 0.07, 0, 0.12), (0.05, 0.13, 0.58),
                  white)  # fmt: skip
    return piece


def sitting_group(rng: Generator) -> Assembly:
    """Sofa with a coffee table in front, on a rug."""
    seat, low = sofa(rng), coffee_table(rng)
    depth = seat.size[1] + 0.4 + low.size[1]
    piece = Assembly('sitting group', seat.size[0], depth, seat.size[2])
    piece.add(seat, (0, -depth / 2 + seat.size[1] / 2, 0))
    front = depth / 2 - low.size[1] / 2
    if rng.random() < 0.7:
        piece.box('floor mat', (0, front - 0.1, 0), (rng.uniform(1.5, 2.1), 1.2, 0.012),
                  finishes.rug(rng))  # fmt: skip
    piece.add(low, (rng.uniform(-0.15, 0.15), front, 0.012))
    return piece


def bed_group(rng: Generator) -> Assembly:
    """Bed with night stands beside its head."""
    lying = bed(rng)
    stands = [night_stand(rng) for _ in range(int(rng.integers(1, 3)))]
    sides = [-1, 1] if len(stands) == 2 else [int(rng.choice([-1, 1]))]
    extra = max(s.size[0] for s in stands) + 0.08
    piece = Assembly('bed group', lying.size[0] + 2 * extra, lying.size[1], 1.1)
    piece.add(lying, (0, 0, 0))
    for side, stand in zip(sides, stands, strict=True):
        x = side * (lying.size[0] / 2 + 0.06 + stand.size[0] / 2)
        piece.add(stand, (x, -lying.size[1] / 2 + stand.size[1] / 2, 0))
    if rng.random() < 0.5:
        piece.box('floor mat', (0, 0.5, 0), (lying.size[0] + 0.9, 1.1, 0.012), finishes.rug(rng))
    return piece
