"""Writes PNG files of kinds that OpenCV does not write."""

from __future__ import annotations

import zlib

import numpy as np


def png(values, bits, kind):
    """Write a PNG by its specification: of grey levels (kind 0) or palette indices (3)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data).to_bytes(4, 'big')
        return len(data).to_bytes(4, 'big') + name + data + checksum

    height, width = values.shape
    header = width.to_bytes(4, 'big') + height.to_bytes(4, 'big') + bytes([bits, kind, 0, 0, 0])
    planes = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :]
    packed = np.packbits(planes.reshape(height, -1), axis=1)
    rows = zlib.compress(b''.join(b'\0' + row.tobytes() for row in packed))
    palette = [(b'PLTE', bytes(k % 256 for k in range(3 * 2**bits)))] if kind == 3 else []
    chunks = [(b'IHDR', header), *palette, (b'IDAT', rows), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*c) for c in chunks)
