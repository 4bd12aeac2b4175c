"""RVL, which packs depth images in run lengths and differences of variable length.

Wilson, "Fast Lossless Depth Image Compression", Interactive Surfaces and Spaces 2017. A stream of
numbers, each in groups of three bits, the lowest first, with a fourth bit where more follow: how
many pixels have no reading, how many have one, and of each of these the difference to the last
reading, its sign in the lowest bit; and so on. Eight groups fill a little-endian word of 32 bits,
the first one in its highest bits.
"""

from __future__ import annotations

import numpy as np

from rgbd_fusion_seg.errors import FrameError
from rgbd_fusion_seg.jit import jit

_BITS = 30
"""Of the longest number; no count of pixels takes more."""


def unpack_rvl(data: np.ndarray, pixels: int) -> np.ndarray:
    """Decode a stream of RVL.

    Args:
        data: uint8 (bytes,), whole words.
        pixels: how many there are.

    Returns:
        uint16 (pixels,); 0 = no reading.

    Raises:
        FrameError: the stream ends too early, or its runs hold more pixels.
    """
    image = np.zeros(pixels, np.uint16)
    words = np.frombuffer(data[: len(data) // 4 * 4].tobytes(), '<u4').astype(np.uint32)
    unpacked = _unpack(words, image)
    if unpacked < pixels:
        raise FrameError(f'it makes no sense after {unpacked} of {pixels} pixels')
    return image


def warm_up() -> None:
    """Compile the kernels of this module, or load them from the cache."""
    _unpack(np.zeros(1, np.uint32), np.zeros(0, np.uint16))


@jit
def _unpack(words, image):
    """Fill an image; return how many of its pixels the stream told."""
    group = pixel = reading = 0
    while pixel < len(image):
        empty, group = _number(words, group)
        filled, group = _number(words, group)
        if empty < 0 or filled < 0 or empty + filled > len(image) - pixel:
            break
        pixel += empty
        for _ in range(filled):
            number, group = _number(words, group)
            if number < 0:
                return pixel
            # Readings wrap around at 16 bits, as those of the encoder do.
            reading = (reading + ((number >> 1) ^ -(number & 1))) & 0xFFFF
            image[pixel] = reading
            pixel += 1
    return pixel


@jit
def _number(words, group):
    """Return the number that begins with a group, or -1, and the group behind it."""
    number = 0
    for shift in range(0, _BITS, 3):
        if group >= 8 * len(words):
            break
        bits = (int(words[group >> 3]) >> (28 - 4 * (group & 7))) & 15
        group += 1
        number |= (bits & 7) << shift
        if bits < 8:
            return number, group
    return -1, group
