"""Materials that furniture and rooms are made of, drawn at random."""

from __future__ import annotations

from numpy.random import Generator

from rgbd_fusion_seg.synthetic.primitives import Material, Pattern

_WOODS = (
    ((0.42, 0.26, 0.13), (0.30, 0.17, 0.08)),  # oak
    ((0.16, 0.08, 0.045), (0.09, 0.045, 0.025)),  # walnut
    ((0.30, 0.12, 0.06), (0.20, 0.07, 0.035)),  # cherry
    ((0.58, 0.43, 0.26), (0.48, 0.33, 0.18)),  # pine
    ((0.06, 0.045, 0.04), (0.035, 0.027, 0.025)),  # wenge
    ((0.62, 0.50, 0.36), (0.54, 0.42, 0.29)),  # birch
)
_FABRICS = (
    (0.35, 0.30, 0.24), (0.09, 0.12, 0.20), (0.30, 0.07, 0.06), (0.10, 0.16, 0.10),
    (0.18, 0.17, 0.17), (0.45, 0.40, 0.33), (0.24, 0.14, 0.08), (0.05, 0.05, 0.06),
    (0.12, 0.22, 0.26), (0.40, 0.26, 0.12), (0.30, 0.20, 0.28), (0.55, 0.52, 0.47),
)  # fmt: skip
_WALLS = (
    (0.72, 0.68, 0.60), (0.66, 0.58, 0.43), (0.78, 0.77, 0.74), (0.55, 0.60, 0.56),
    (0.58, 0.63, 0.68), (0.70, 0.60, 0.50), (0.62, 0.42, 0.32), (0.74, 0.70, 0.52),
    (0.46, 0.52, 0.40), (0.80, 0.78, 0.70),
)  # fmt: skip


def _seed(rng: Generator) -> int:
    return int(rng.integers(1, 1 << 20))


def _near(
    rng: Generator, color: tuple[float, float, float], spread: float = 0.12
) -> tuple[float, float, float]:
    """Return the colour, a little off in brightness and in each channel."""
    gain = rng.uniform(1 - 2 * spread, 1 + 2 * spread)
    r, g, b = (min(0.92, c * gain * rng.uniform(1 - spread / 2, 1 + spread / 2)) for c in color)
    return (r, g, b)


def _dimmed(color: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    return (min(1.0, color[0] * factor), min(1.0, color[1] * factor), min(1.0, color[2] * factor))


def plain(rng: Generator, color: tuple[float, float, float]) -> Material:
    """Paint or plastic of about this colour."""
    color = _near(rng, color, 0.06)
    return Material(Pattern.PLAIN, color, color, 1.0, _seed(rng))


def wood(rng: Generator) -> Material:
    """One of the usual furniture woods."""
    color, dark = _WOODS[rng.integers(len(_WOODS))]
    gain = rng.uniform(0.8, 1.2)
    return Material(
        Pattern.WOOD, _dimmed(color, gain), _dimmed(dark, gain), rng.uniform(0.04, 0.09),
        _seed(rng),
    )  # fmt: skip


def painted(rng: Generator) -> Material:
    """White, cream, grey or black lacquer."""
    tones = ((0.78, 0.77, 0.74), (0.70, 0.66, 0.56), (0.40, 0.40, 0.40), (0.06, 0.06, 0.06))
    return plain(rng, tones[rng.choice(4, p=[0.5, 0.25, 0.13, 0.12])])


def wood_or_paint(rng: Generator) -> Material:
    """What cabinets are made of."""
    return wood(rng) if rng.random() < 0.65 else painted(rng)


def metal(rng: Generator) -> Material:
    """Steel, brass or black iron."""
    tones = ((0.45, 0.45, 0.46), (0.40, 0.30, 0.15), (0.05, 0.05, 0.05))
    return plain(rng, tones[rng.choice(3, p=[0.55, 0.15, 0.3])])


def fabric(rng: Generator) -> Material:
    """Upholstery or a blanket: mostly plain weave, sometimes striped or checked."""
    color = _near(rng, _FABRICS[rng.integers(len(_FABRICS))])
    kind = rng.random()
    if kind < 0.12:
        other = _near(rng, _FABRICS[rng.integers(len(_FABRICS))])
        return Material(Pattern.STRIPES, color, other, rng.uniform(0.06, 0.16), _seed(rng))
    if kind < 0.2:
        other = _dimmed(color, rng.uniform(0.5, 1.6))
        return Material(Pattern.CHECKER, color, other, rng.uniform(0.04, 0.12), _seed(rng))
    return Material(
        Pattern.FABRIC, color, _dimmed(color, rng.uniform(0.55, 0.8)), rng.uniform(0.006, 0.02),
        _seed(rng),
    )  # fmt: skip


def linen(rng: Generator) -> Material:
    """Pale bed or pillow cloth."""
    if rng.random() < 0.3:
        return fabric(rng)
    color = _near(rng, (0.72, 0.70, 0.66), 0.08)
    return Material(Pattern.FABRIC, color, _dimmed(color, 0.82), 0.02, _seed(rng))


def wall_paint(rng: Generator) -> Material:
    """Paint, or now and then striped wallpaper."""
    color = _near(rng, _WALLS[rng.integers(len(_WALLS))], 0.06)
    if rng.random() < 0.12:
        other = _dimmed(color, rng.uniform(0.86, 0.93))
        return Material(Pattern.STRIPES, color, other, rng.uniform(0.12, 0.3), _seed(rng))
    return Material(Pattern.PLAIN, color, color, 1.0, _seed(rng))


def floor_finish(rng: Generator, wet: bool) -> Material:
    """Boards, carpet or tiles; tiles or linoleum where the room is ``wet``."""
    if wet or rng.random() < 0.12:
        color = _near(rng, ((0.55, 0.50, 0.42), (0.40, 0.38, 0.36), (0.65, 0.63, 0.58))[
            rng.integers(3)])  # fmt: skip
        if rng.random() < 0.2:
            return Material(
                Pattern.CHECKER, color, _dimmed(color, 0.4), rng.uniform(0.2, 0.33), _seed(rng)
            )
        return Material(
            Pattern.TILES, color, _dimmed(color, 0.55), rng.uniform(0.2, 0.4), _seed(rng)
        )
    if rng.random() < 0.6:
        color, dark = _WOODS[rng.integers(len(_WOODS))]
        return Material(
            Pattern.PLANKS, _dimmed(color, 1.15), _dimmed(dark, 1.15), rng.uniform(0.07, 0.14),
            _seed(rng),
        )  # fmt: skip
    color = _near(rng, ((0.45, 0.38, 0.28), (0.22, 0.22, 0.24), (0.33, 0.22, 0.15))[
        rng.integers(3)])  # fmt: skip
    return Material(Pattern.SPECKLE, color, _dimmed(color, 0.7), 0.012, _seed(rng))


def stone(rng: Generator) -> Material:
    """A counter top."""
    color = _near(rng, ((0.10, 0.10, 0.10), (0.50, 0.46, 0.40), (0.30, 0.24, 0.20))[
        rng.integers(3)])  # fmt: skip
    return Material(Pattern.SPECKLE, color, _dimmed(color, 1.9), 0.008, _seed(rng))


def wall_tiles(rng: Generator) -> Material:
    """Glazed tiles of a kitchen or bathroom wall."""
    color = _near(rng, ((0.75, 0.74, 0.70), (0.60, 0.66, 0.66), (0.68, 0.60, 0.48))[
        rng.integers(3)])  # fmt: skip
    return Material(Pattern.TILES, color, _dimmed(color, 0.7), rng.uniform(0.1, 0.2), _seed(rng))


def rug(rng: Generator) -> Material:
    """Carpet pattern."""
    color = _near(rng, _FABRICS[rng.integers(len(_FABRICS))])
    other = _near(rng, _FABRICS[rng.integers(len(_FABRICS))])
    pattern = (Pattern.STRIPES, Pattern.CHECKER, Pattern.SPECKLE, Pattern.LEAVES)[rng.integers(4)]
    scale = {Pattern.SPECKLE: 0.02, Pattern.LEAVES: 0.12}.get(pattern, rng.uniform(0.08, 0.25))
    return Material(pattern, color, other, scale, _seed(rng))


def vivid(rng: Generator) -> Material:
    """Packaging, toys, cups: any colour."""
    r, g, b = rng.uniform(0.03, 0.6, 3)
    return Material(Pattern.PLAIN, (r, g, b), (r, g, b), 1.0, _seed(rng))


def cardboard(rng: Generator) -> Material:
    """Brown or printed board."""
    if rng.random() < 0.6:
        return plain(rng, (0.42, 0.29, 0.17))
    return image(rng, Pattern.PICTURE)


def image(rng: Generator, pattern: Pattern, emission: float = 0.0) -> Material:
    """A pattern that fills its face: picture, screen, view from a window."""
    return Material(pattern, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0, _seed(rng), emission)


def spines(rng: Generator) -> Material:
    """The backs of books on a shelf."""
    return Material(Pattern.SPINES, (0, 0, 0), (0, 0, 0), rng.uniform(0.025, 0.045), _seed(rng))


def leaves(rng: Generator) -> Material:
    """Foliage."""
    return Material(
        Pattern.LEAVES, (0.03, 0.08, 0.02), (0.18, 0.30, 0.08), rng.uniform(0.03, 0.06), _seed(rng)
    )


def glowing(color: tuple[float, float, float], emission: float) -> Material:
    """A lamp that is on."""
    return Material(Pattern.PLAIN, color, color, 1.0, 1, emission)


def mirror_glass() -> Material:
    """Silvered glass."""
    return Material(Pattern.MIRROR, (0.8, 0.8, 0.8), (0.8, 0.8, 0.8))


def scribbled(rng: Generator, scale_m: float) -> Material:
    """White with pen strokes."""
    ink = ((0.05, 0.05, 0.1), (0.05, 0.08, 0.4), (0.4, 0.05, 0.05))[rng.integers(3)]
    return Material(Pattern.SCRIBBLE, (0.82, 0.82, 0.80), ink, scale_m, _seed(rng))
