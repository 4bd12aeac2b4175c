"""Procedural textures: the reflectance at a point of a surface, evaluated per pixel."""

from __future__ import annotations

import numpy as np

from rgbd_fusion_seg.jit import jit
from rgbd_fusion_seg.synthetic.primitives import Material, Pattern

_PLANKS, _WOOD, _TILES = int(Pattern.PLANKS), int(Pattern.WOOD), int(Pattern.TILES)
_FABRIC, _STRIPES, _PICTURE = int(Pattern.FABRIC), int(Pattern.STRIPES), int(Pattern.PICTURE)
_SPINES, _CHECKER, _SCREEN = int(Pattern.SPINES), int(Pattern.CHECKER), int(Pattern.SCREEN)
_OUTDOOR, _SPECKLE, _SCRIBBLE = int(Pattern.OUTDOOR), int(Pattern.SPECKLE), int(Pattern.SCRIBBLE)
_LEAVES = int(Pattern.LEAVES)

MATERIAL_DTYPE = np.dtype(
    [
        ('pattern', np.int32),
        ('seed', np.int32),
        ('scale', np.float32),
        ('emission', np.float32),
        ('color', np.float32, 3),
        ('second', np.float32, 3),
    ]
)

_NOISE = np.random.Generator(np.random.PCG64(0)).random((128, 128), dtype=np.float32)

_jit = jit(fastmath={'contract', 'reassoc'}, forceinline=True)


def pack_materials(materials: list[Material]) -> np.ndarray:
    """Return the materials as one structured array, which the kernels read."""
    table = np.zeros(len(materials), MATERIAL_DTYPE)
    for row, m in zip(table, materials, strict=True):
        row['pattern'], row['seed'] = m.pattern, m.seed
        row['scale'], row['emission'] = m.scale_m, m.emission
        row['color'], row['second'] = m.color, m.second
    return table


@_jit
def hash01(x: int, y: int, seed: int) -> float:
    """Return a number in [0, 1) that looks random and depends on three integers alone."""
    h = np.uint32(x) * np.uint32(0x85EBCA6B) ^ np.uint32(y) * np.uint32(0xC2B2AE35)
    h = np.uint32(h ^ np.uint32(seed) * np.uint32(0x9E3779B1))
    h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x2C1B3C6D))
    h = np.uint32((h ^ (h >> np.uint32(12))) * np.uint32(0x297A2D39))
    return np.float64(h ^ (h >> np.uint32(15))) * (1.0 / 4294967296.0)


@_jit
def value_noise(x: float, y: float, seed: int) -> float:
    """Smooth noise in [0, 1] with features one unit across, repeating after 128."""
    x0, y0 = np.floor(x), np.floor(y)
    fx, fy = x - x0, y - y0
    ix, iy = int(x0) + seed * 37, int(y0) + seed * 101
    i, j, k, m = ix & 127, (ix + 1) & 127, iy & 127, (iy + 1) & 127
    fx, fy = fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy)
    top = _NOISE[k, i] + (_NOISE[k, j] - _NOISE[k, i]) * fx
    bottom = _NOISE[m, i] + (_NOISE[m, j] - _NOISE[m, i]) * fx
    return top + (bottom - top) * fy


@_jit
def _wood(u: float, v: float, scale: float, fade: float, seed: int) -> float:
    """Grain along u: how much of the second colour shows, 0..1."""
    warp = value_noise(u / (scale * 9.0), v / scale, seed)
    fibre = value_noise(u / (scale * 2.5), v * 7.0 / scale, seed + 1)
    ring = abs(2.0 * ((warp * 5.0) % 1.0) - 1.0)
    return 0.4 + fade * (0.45 * (ring - 0.5) + 0.5 * (fibre - 0.5))


@_jit
def _planks(u: float, v: float, scale: float, fade: float, seed: int) -> tuple[float, float]:
    """Boards of width ``scale`` along u: second colour's share, and brightness of the gap."""
    row = np.floor(v / scale)
    along = u / (scale * 9.0) + hash01(int(row), 7, seed)
    board = hash01(int(row), int(np.floor(along)), seed)
    edge = min(v / scale - row, row + 1.0 - v / scale)
    gap = 1.0 - 0.45 * fade * (edge < 0.025)
    grain = _wood(u, v, scale * 0.6, fade, seed + int(board * 977.0))
    return 0.75 * board + 0.5 * (grain - 0.4), gap


@_jit
def _tiles(u: float, v: float, scale: float, footprint: float, seed: int) -> tuple[float, float]:
    """Square tiles: the grout's share (second colour), and brightness of the tile."""
    x, y = u / scale, v / scale
    ix, iy = np.floor(x), np.floor(y)
    edge = min(min(x - ix, ix + 1.0 - x), min(y - iy, iy + 1.0 - y)) * scale
    soft = max(footprint, 1e-3)
    grout = min(1.0, max(0.0, (0.003 + soft - edge) / soft)) * min(1.0, 0.006 / soft)
    return grout, 0.94 + 0.12 * hash01(int(ix), int(iy), seed)


@_jit
def _picture(s: float, t: float, seed: int) -> tuple[float, float, float]:
    """A painting over s, t in 0..1: a landscape, colour fields, or a portrait-like blob."""
    hue = hash01(1, 2, seed)
    style = int(hash01(3, 4, seed) * 3.0)
    if style == 0:
        horizon = 0.35 + 0.3 * hash01(5, 6, seed) + 0.2 * (value_noise(s * 5.0, 0.5, seed) - 0.5)
        shade = 0.6 + 0.6 * value_noise(s * 9.0, t * 9.0, seed + 3)
        if t > horizon:
            return 0.35 + 0.4 * t * hue, 0.45 + 0.2 * t, 0.5 + 0.35 * t
        return 0.25 * shade * (0.5 + hue), 0.3 * shade, 0.12 * shade
    if style == 1:
        cell = int(s * (2.0 + 3.0 * hue)) * 8 + int(t * (2.0 + 2.0 * hue) + 0.4 * s)
        r, g, b = hash01(cell, 1, seed), hash01(cell, 2, seed), hash01(cell, 3, seed)
        return 0.1 + 0.6 * r, 0.1 + 0.5 * g, 0.08 + 0.5 * b
    blob = (s - 0.5) ** 2 * 2.0 + (t - 0.45 - 0.2 * hue) ** 2
    n = value_noise(s * 7.0, t * 7.0, seed)
    if blob < 0.05 + 0.06 * n:
        return 0.5 + 0.2 * n, 0.36 + 0.2 * hue, 0.25 * n + 0.1
    return 0.08 + 0.3 * hue * n, 0.1 + 0.2 * n, 0.1 + 0.3 * (1.0 - hue) * n


@_jit
def _spines(u: float, t: float, scale: float, seed: int) -> tuple[float, float, float]:
    """Books side by side: a colour per spine, a band for the title, dark gaps."""
    x = u / scale + 0.35 * value_noise(u / scale * 0.7, 3.5, seed)
    book = int(np.floor(x))
    r, g, b = hash01(book, 11, seed), hash01(book, 12, seed), hash01(book, 13, seed)
    grey = hash01(book, 14, seed)
    shade = 0.75 * (x - book < 0.93) + 0.25
    if hash01(book, 15, seed) > 0.5 and abs(t - 0.7) < 0.09:
        shade *= 2.2
    tone = 0.6 * grey * grey
    r, g, b = (
        tone + (0.5 * r - tone) * 0.5,
        tone + (0.4 * g - tone) * 0.5,
        tone * 0.9 + 0.1 * b * b,
    )
    return (0.04 + r) * shade, (0.035 + g) * shade, (0.035 + b) * shade


@_jit
def _outdoor(s: float, t: float, seed: int) -> tuple[float, float, float]:
    """What a window shows: overexposed sky above trees or houses."""
    skyline = 0.25 + 0.25 * hash01(9, 9, seed) + 0.25 * value_noise(s * 6.0, 1.5, seed)
    if t > skyline:
        return 0.8 + 0.15 * t, 0.88 + 0.1 * t, 1.0
    leaf = value_noise(s * 25.0, t * 25.0, seed + 1)
    return 0.22 + 0.25 * leaf, 0.3 + 0.3 * leaf, 0.2 + 0.15 * leaf


@_jit
def _screen(s: float, t: float, seed: int) -> tuple[float, float, float]:
    """A display: usually off, with a broad reflection; else a desktop with windows."""
    if hash01(1, 5, seed) < 0.6:
        sheen = 0.012 + 0.03 * max(0.0, 1.0 - abs(s + 0.5 * t - 0.9) * 2.5)
        return sheen, sheen, sheen * 1.15
    if 0.1 < s < 0.6 and 0.2 < t < 0.85:
        line = hash01(int(t * 40.0), 3, seed) > s and int(t * 40.0) % 2 == 0
        tone = 0.85 - 0.5 * line
        return tone, tone, tone
    return 0.1, 0.2 + 0.15 * t, 0.45 + 0.2 * s


@_jit
def _share(
    pattern: int, u: float, v: float, scale: float, footprint: float, seed: int
) -> tuple[float, float]:
    """Two-colour patterns: share of the second colour 0..1, and a factor on the brightness.

    ``footprint`` is the size of a pixel on the surface in metres: finer detail fades to its
    mean, or it would flicker as the camera moves.
    """
    fade = min(1.0, 0.12 * scale / footprint)
    if pattern == _WOOD:
        return _wood(u, v, scale, min(1.0, fade * 4.0), seed), 1.0
    if pattern == _PLANKS:
        return _planks(u, v, scale, min(1.0, fade * 2.0), seed)
    if pattern == _TILES:
        return _tiles(u, v, scale, footprint, seed)
    if pattern == _FABRIC:
        fine = value_noise(u / scale, v / scale, seed) - 0.5
        broad = value_noise(u / (scale * 14.0), v / (scale * 14.0), seed + 1)
        return 0.25 + 0.5 * broad + fade * 3.0 * 0.3 * fine, 1.0 + 0.1 * (broad - 0.5)
    if pattern == _STRIPES:
        x = u / scale
        soft = max(0.02, footprint / scale)
        wave = abs(2.0 * (x - np.floor(x)) - 1.0)
        return min(1.0, max(0.0, 0.5 + (wave - 0.5) / soft)), 1.0
    if pattern == _CHECKER:
        odd = (int(np.floor(u / scale)) + int(np.floor(v / scale))) & 1
        return 0.5 + (odd - 0.5) * min(1.0, fade * 4.0), 1.0
    if pattern == _SPECKLE:
        coarse = value_noise(u / (scale * 6.0), v / (scale * 6.0), seed + 2)
        fine = value_noise(u / scale, v / scale, seed)
        return 0.5 + 0.3 * (coarse - 0.5) + min(1.0, fade * 3.0) * 1.3 * (fine - 0.5), 1.0
    if pattern == _SCRIBBLE:
        line = abs(value_noise(u / scale, v / scale * 1.7, seed) - 0.5)
        area = value_noise(u / (scale * 4.0), v / (scale * 4.0), seed + 1)
        return (min(1.0, fade * 6.0) if line < 0.035 and area > 0.5 else 0.0), 1.0
    if pattern == _LEAVES:
        leaf = value_noise(u / scale, v / scale, seed)
        return leaf * leaf, 0.6 + 0.8 * value_noise(u * 2.7 / scale, v * 2.7 / scale, seed + 4)
    broad = value_noise(u * 1.3, v * 1.3, seed)
    return 0.0, 0.97 + 0.06 * broad


@_jit
def albedo(
    material: np.ndarray, u: float, v: float, half_u: float, half_v: float, footprint: float
) -> tuple[float, float, float]:
    """Return the linear RGB reflectance 0..1 at a point of a face.

    Args:
        material: one record of MATERIAL_DTYPE.
        u, v: position from the face's centre in metres; v is up on upright faces.
        half_u, half_v: half sizes of the face in metres.
        footprint: size of the pixel on the surface in metres.
    """
    pattern, seed = material.pattern, material.seed
    if pattern in (_PICTURE, _OUTDOOR, _SCREEN, _SPINES):
        s, t = 0.5 + 0.5 * u / half_u, 0.5 + 0.5 * v / half_v
        if pattern == _PICTURE:
            return _picture(s, t, seed)
        if pattern == _OUTDOOR:
            return _outdoor(s, t, seed)
        if pattern == _SCREEN:
            return _screen(s, t, seed)
        return _spines(u, t, material.scale, seed)
    if pattern == _WOOD and half_v > half_u:
        u, v = v, u
    share, brightness = _share(pattern, u + 7.3, v + 5.1, material.scale, footprint, seed)
    a, b = material.color, material.second
    return (
        (a[0] + (b[0] - a[0]) * share) * brightness,
        (a[1] + (b[1] - a[1]) * share) * brightness,
        (a[2] + (b[2] - a[2]) * share) * brightness,
    )
