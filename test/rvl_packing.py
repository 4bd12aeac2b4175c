"""A second implementation of RVL, the other way round, by its paper alone."""

from __future__ import annotations

import numpy as np


def pack_rvl(image: np.ndarray) -> bytes:
    """Pack uint16 readings (pixels,)."""
    numbers: list[int] = []
    rest, last = [int(v) for v in image], 0
    while rest:
        empty = next((i for i, v in enumerate(rest) if v), len(rest))
        filled = next((i for i, v in enumerate(rest[empty:]) if not v), len(rest) - empty)
        numbers += [empty, filled]
        for value in rest[empty : empty + filled]:
            difference, last = value - last, value
            numbers.append(2 * difference if difference >= 0 else -2 * difference - 1)
        rest = rest[empty + filled :]
    digits = ''
    for number in numbers:
        groups = [number >> shift & 7 for shift in range(0, max(1, number.bit_length()), 3)]
        digits += ''.join(f'{g | 8:x}' for g in groups[:-1]) + f'{groups[-1]:x}'
    digits += '0' * (-len(digits) % 8)
    return b''.join(bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, len(digits), 8))
