"""What stands in kitchens and bathrooms. The back of a piece is at -y, sizes in metres."""

from __future__ import annotations

from numpy.random import Generator

from rgbd_fusion_seg.synthetic import finishes, objects
from rgbd_fusion_seg.synthetic.primitives import Assembly, Material, Pattern


def kitchen_row(rng: Generator, w: float) -> Assembly:
    """Base cabinets with counter, sink and cooker, and wall cabinets above, w metres long."""
    piece = Assembly('kitchen row', w, 0.63, 2.2)
    body, top = finishes.wood_or_paint(rng), finishes.stone(rng)
    metal = finishes.metal(rng)
    units = max(2, round(w / 0.55))
    each = w / units
    piece.box('cabinet', (0, -0.02, 0.1), (w, 0.57, 0.77), body)
    piece.box('cabinet', (0, -0.06, 0), (w - 0.02, 0.45, 0.1), body)
    piece.box('counter', (0, 0, 0.87), (w, 0.63, 0.04), top)
    piece.box('wall', (0, -0.308, 0.91), (w, 0.012, 0.54), finishes.wall_tiles(rng))
    sink, cooker = rng.choice(units, 2, replace=False)
    for k in range(units):
        x = -w / 2 + (k + 0.5) * each
        if k == cooker:
            _cooker(piece, rng, x, each)
            continue
        _unit(piece, x, each, 0.12, 0.86, 0.27, body, metal)
        if k == sink:
            _basin(piece, rng, x, each)
        else:
            objects.clutter(piece, rng, (x - each / 2, x + each / 2, -0.28, 0.2), 0.91,
                            int(rng.integers(1, 4)))  # fmt: skip
    for k in range(units):
        x = -w / 2 + (k + 0.5) * each
        if k == cooker and rng.random() < 0.6:
            piece.box('otherfurniture', (x, -0.12, 1.45), (each, 0.38, 0.2), metal)
        else:
            piece.box('cabinet', (x, -0.15, 1.45), (each, 0.32, 0.7), body)
            _unit(piece, x, each, 1.46, 2.14, 0.018, body, metal)
    return piece


def _unit(
    piece: Assembly, x: float, w: float, z0: float, z1: float, front: float, body: Material,
    metal: Material,
) -> None:  # fmt: skip
    """Add the door of one cabinet, its face at y = front."""
    piece.box('cabinet', (x, front, z0), (w - 0.016, 0.018, z1 - z0), body)
    piece.box('cabinet', (x, front + 0.006, z0 + 0.07), (w - 0.15, 0.012, z1 - z0 - 0.14), body)
    handle = z1 - 0.18 if z0 < 1 else z0 + 0.05
    piece.box('cabinet', (x + w / 2 - 0.06, front + 0.02, handle), (0.014, 0.02, 0.13), metal)


def _cooker(piece: Assembly, rng: Generator, x: float, w: float) -> None:
    white = finishes.plain(rng, ((0.75, 0.75, 0.74), (0.3, 0.3, 0.31))[rng.integers(2)])
    dark = finishes.plain(rng, (0.02, 0.02, 0.02))
    piece.box('otherfurniture', (x, 0.01, 0.02), (w - 0.01, 0.6, 0.896), white)
    piece.box('otherfurniture', (x, 0.305, 0.25), (w - 0.12, 0.02, 0.35), dark)
    piece.box('otherfurniture', (x, 0.32, 0.66), (w - 0.12, 0.03, 0.025), finishes.metal(rng))
    for dx in (-1, 1):
        for y in (-0.13, 0.13):
            piece.cylinder('otherfurniture', (x + dx * w / 4.5, y, 0.914), (0.17, 0.17, 0.012),
                           dark)  # fmt: skip
    if rng.random() < 0.6:
        piece.cylinder('otherprop', (x - w / 4.5, 0.13, 0.926), (0.2, 0.2, 0.13),
                       finishes.metal(rng))  # fmt: skip


def _basin(piece: Assembly, rng: Generator, x: float, w: float) -> None:
    steel, dark = finishes.plain(rng, (0.5, 0.5, 0.51)), finishes.plain(rng, (0.22, 0.22, 0.23))
    piece.box('sink', (x, 0.02, 0.908), (w - 0.06, 0.44, 0.006), steel)
    piece.box('sink', (x, 0.02, 0.909), (w - 0.14, 0.34, 0.0065), dark)
    piece.cylinder('sink', (x, -0.22, 0.91), (0.03, 0.03, 0.24), steel)
    piece.box('sink', (x, -0.13, 1.13), (0.025, 0.2, 0.025), steel)


def refrigerator(rng: Generator) -> Assembly:
    """Two-door refrigerator."""
    w, d, h = rng.uniform(0.62, 0.85), rng.uniform(0.62, 0.72), rng.uniform(1.55, 1.85)
    piece = Assembly('refrigerator', w, d, h)
    tones = ((0.75, 0.75, 0.73), (0.38, 0.38, 0.39), (0.05, 0.05, 0.05))
    body = finishes.plain(rng, tones[rng.choice(3, p=[0.55, 0.35, 0.1])])
    metal = finishes.metal(rng)
    piece.box('refridgerator', (0, -0.03, 0.02), (w, d - 0.06, h - 0.02), body)
    split = rng.uniform(0.55, 0.7) * h
    for z0, z1 in ((0.04, split), (split + 0.01, h)):
        piece.box('refridgerator', (0, d / 2 - 0.03, z0), (w - 0.006, 0.05, z1 - z0), body)
        handle = max(z0 + 0.04, z1 - 0.5) if z0 < 0.1 else z0 + 0.05
        piece.box('refridgerator', (-w / 2 + 0.06, d / 2 + 0.015, handle), (0.025, 0.035, 0.34),
                  metal)  # fmt: skip
    for _ in range(int(rng.integers(0, 4))):
        x, z = rng.uniform(-0.2, 0.2), rng.uniform(split + 0.1, h - 0.3)
        piece.box('paper', (x, d / 2 - 0.003, z), (0.12, 0.006, 0.16),
                  finishes.image(rng, Pattern.PICTURE))  # fmt: skip
    return piece


def toilet(rng: Generator) -> Assembly:
    """Close-coupled toilet."""
    piece = Assembly('toilet', 0.42, 0.7, 0.8)
    white = finishes.plain(rng, (0.8, 0.8, 0.78))
    piece.box('toilet', (0, -0.25, 0.38), (0.4, 0.18, 0.38), white)
    piece.box('toilet', (0, -0.25, 0.76), (0.42, 0.2, 0.03), white)
    piece.cylinder('toilet', (0, 0.0, 0), (0.24, 0.4, 0.3), white)
    piece.ellipsoid('toilet', (0, 0.08, 0.12), (0.37, 0.5, 0.56), white)
    piece.cylinder('toilet', (0, 0.08, 0.39), (0.38, 0.5, 0.035), white)
    if rng.random() < 0.5:
        piece.box('toilet', (0, -0.12, 0.43), (0.36, 0.03, 0.4), white, tilt=0.2)
    return piece


def vanity(rng: Generator) -> Assembly:
    """Wash basin in a cabinet."""
    w = rng.uniform(0.7, 1.2)
    piece = Assembly('vanity', w, 0.52, 1.05)
    body = finishes.wood_or_paint(rng)
    metal = finishes.metal(rng)
    piece.box('cabinet', (0, -0.02, 0.08), (w - 0.02, 0.46, 0.73), body)
    for x in (-1, 1):
        _unit(piece, x * w / 4, w / 2 - 0.02, 0.1, 0.78, 0.215, body, metal)
    piece.box('counter', (0, 0, 0.81), (w, 0.52, 0.035), finishes.stone(rng))
    white = finishes.plain(rng, (0.82, 0.82, 0.8))
    piece.cylinder('sink', (0, 0.02, 0.845), (0.46, 0.38, 0.035), white)
    piece.cylinder('sink', (0, 0.02, 0.85), (0.4, 0.32, 0.032), finishes.plain(
        rng, (0.5, 0.5, 0.49)))  # fmt: skip
    piece.cylinder('sink', (0, -0.2, 0.845), (0.035, 0.035, 0.16), metal)
    piece.box('sink', (0, -0.14, 0.98), (0.03, 0.14, 0.025), metal)
    objects.clutter(piece, rng, (w / 2 - 0.22, w / 2, -0.2, 0.2), 0.845, 2)
    return piece


def bathtub(rng: Generator) -> Assembly:
    """Tub along a wall, with a shower curtain on a rod."""
    w, d, h = rng.uniform(1.5, 1.75), 0.75, rng.uniform(0.5, 0.6)
    piece = Assembly('bathtub', w, d + 0.1, 2.05)
    white = finishes.plain(rng, (0.8, 0.8, 0.78))
    rim = 0.07
    piece.box('bathtub', (0, -0.05, 0), (w, d, 0.14), white)
    for y in (-1, 1):
        piece.box('bathtub', (0, -0.05 + y * (d - rim) / 2, 0), (w, rim, h), white)
    for x in (-1, 1):
        piece.box('bathtub', (x * (w - rim) / 2, -0.05, 0), (rim, d, h), white)
    if rng.random() < 0.75:
        curtain = Assembly('curtain', w, 0.1, 2.0)
        objects.curtains(curtain, rng, 'shower curtain', w - 0.35, 2.0, 0.25,
                         closed=rng.uniform(0.15, 0.5))  # fmt: skip
        piece.add(curtain, (0, d / 2 + 0.0, 0))
    return piece


def towel_rail(rng: Generator) -> Assembly:
    """Towel hanging on a rail."""
    w = rng.uniform(0.45, 0.65)
    part = Assembly('towel', w, 0.1, 0.7)
    part.box('otherprop', (0, 0.0, 0.66), (w, 0.02, 0.02), finishes.metal(rng))
    cloth, h = finishes.fabric(rng), rng.uniform(0.4, 0.6)
    part.box('towel', (rng.uniform(-0.04, 0.04), 0.0, 0.69 - h), (w - 0.12, 0.06, h), cloth)
    return part
