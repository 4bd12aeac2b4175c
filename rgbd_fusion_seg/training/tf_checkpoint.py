"""Reads TensorFlow's V2 checkpoints without TensorFlow.

A checkpoint ``model.ckpt-1000`` is a pair of files:

- ``model.ckpt-1000.index``, a sorted string table as in LevelDB: blocks of key-value pairs with
  prefix-compressed keys, each block followed by one byte telling its compression and a CRC-32C;
  an index block; a footer of 48 bytes with the places of both. The empty key holds a
  BundleHeaderProto, every other key is a variable's name and holds a BundleEntryProto.
- ``model.ckpt-1000.data-00000-of-00001`` (and more shards), the variables' bytes end to end.

Format descriptions: LevelDB's ``doc/table_format.md``, and TensorFlow's
``core/protobuf/tensor_bundle.proto``. Every length and checksum in them is verified.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.jit import jit

TABLE_MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
BLOCK_TRAILER_BYTES = 5
CRC32C_POLYNOMIAL = 0x82F63B78  # reflected
CRC_MASK_DELTA = 0xA282EAD8  # LevelDB stores checksums rotated and shifted by this
# TensorFlow's DataType enum; what is missing (strings, resources) holds no weights.
DTYPES = {
    1: '<f4',
    2: '<f8',
    3: '<i4',
    4: 'u1',
    5: '<i2',
    6: 'i1',
    9: '<i8',
    10: '?',
    17: '<u2',
    19: '<f2',
}


def read_tf_checkpoint(prefix: Path) -> dict[str, np.ndarray]:
    """Read every numeric variable of a checkpoint.

    Args:
        prefix: the path without ``.index`` and ``.data-…``, as TensorFlow's tools take it.

    Returns:
        arrays by variable name, in the file's layout (convolution kernels height, width, input,
        output channels); variables of other kinds, such as strings, are left out.

    Raises:
        InputError: a file is missing, truncated, damaged or of a form that is not read here.
    """
    index = prefix.with_name(f'{prefix.name}.index')
    try:
        table = dict(_table(index))
        header = _fields(table.pop(b'', b''))
        # Slices of partitioned variables have binary keys.
        entries = {key.decode(errors='replace'): _entry(v) for key, v in table.items()}
    except (IndexError, struct.error) as error:
        raise _damaged(index, 'its entries cannot be parsed') from error
    if _first(header, 2, 0):
        raise InputError(f'{index} was written on a big-endian machine, which is not read here')
    shards = _Shards(prefix, _first(header, 1, 1))
    return {name: shards.read(name, entry) for name, entry in entries.items() if entry.is_numeric}


@dataclass(frozen=True)
class _Entry:
    """BundleEntryProto: where the bytes of a variable are, and what they mean."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    sliced: bool

    @property
    def is_numeric(self) -> bool:
        return self.dtype in DTYPES


def _entry(message: bytes) -> _Entry:
    fields = _fields(message)
    shape = _fields(_first(fields, 2, b''))
    return _Entry(
        dtype=_first(fields, 1, 0),
        shape=tuple(_first(_fields(dim), 1, 0) for dim in shape.get(2, [])),
        shard=_first(fields, 3, 0),
        offset=_first(fields, 4, 0),
        size=_first(fields, 5, 0),
        checksum=_first(fields, 6, 0),
        sliced=7 in fields,
    )


class _Shards:
    """The data files of a checkpoint, opened when a variable in them is read."""

    def __init__(self, prefix: Path, count: int) -> None:
        self._paths = [
            prefix.with_name(f'{prefix.name}.data-{i:05d}-of-{count:05d}') for i in range(count)
        ]
        self._open: dict[int, np.ndarray] = {}

    def read(self, name: str, entry: _Entry) -> np.ndarray:
        if entry.sliced:
            raise InputError(
                f'the variable {name} in {self._paths[0]} is stored in slices, which is not read '
                'here; save the checkpoint from a graph without partitioned variables'
            )
        if not 0 <= entry.shard < len(self._paths):
            raise _damaged(self._paths[0], f'{name} is said to be in a shard that does not exist')
        path = self._paths[entry.shard]
        data = self._bytes(entry.shard)[entry.offset : entry.offset + entry.size]
        dtype = np.dtype(DTYPES[entry.dtype])
        if len(data) != entry.size:
            raise _damaged(path, f'it ends before the last byte of {name}')
        if math.prod(entry.shape) * dtype.itemsize != entry.size:
            raise _damaged(path, f'{name} has {entry.size} bytes, not those of {entry.shape}')
        if masked_crc32c(data) != entry.checksum:
            raise _damaged(path, f'the checksum of {name} differs')
        return data.view(dtype).reshape(entry.shape).copy()

    def _bytes(self, shard: int) -> np.ndarray:
        if shard not in self._open:
            self._open[shard] = _map(self._paths[shard])
        return self._open[shard]


def _table(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the key-value pairs of a sorted string table."""
    file = _map(path)
    footer = file[-FOOTER_BYTES:].tobytes()
    if len(file) < FOOTER_BYTES or struct.unpack_from('<Q', footer, 40)[0] != TABLE_MAGIC:
        raise _damaged(path, 'it does not end like one')
    position = 0
    for _ in range(2):  # the handle of the meta index, which is empty here, stands first
        _, position = _varint(footer, position)
    for _, handle in _pairs(_block(path, file, footer[position:])):
        yield from _pairs(_block(path, file, handle))


def _block(path: Path, file: np.ndarray, handle: bytes) -> bytes:
    """Return the contents of the block at ``handle`` (offset and size as varints)."""
    offset, position = _varint(handle, 0)
    size, _ = _varint(handle, position)
    stored = file[offset : offset + size + BLOCK_TRAILER_BYTES]
    if len(stored) != size + BLOCK_TRAILER_BYTES:
        raise _damaged(path, 'a block reaches beyond its end')
    if masked_crc32c(stored[: size + 1]) != struct.unpack('<I', stored[size + 1 :].tobytes())[0]:
        raise _damaged(path, 'the checksum of a block differs')
    if stored[size]:  # 1 = Snappy; TensorFlow's own writer does not compress
        raise InputError(
            f'{path} holds compressed blocks, which are not read here; save the checkpoint anew '
            'with tf.train.Saver, which does not compress'
        )
    return stored[:size].tobytes()


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the key-value pairs of a block; each key omits what it shares with the last one."""
    restarts = struct.unpack_from('<I', block, len(block) - 4)[0]
    end = len(block) - 4 * (restarts + 1)
    key, position = b'', 0
    while position < end:
        shared, position = _varint(block, position)
        unshared, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def _fields(message: bytes) -> dict[int, list[Any]]:
    """Parse a protocol buffer: integers or bytes by field number."""
    fields: dict[int, list[Any]] = {}
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        value: Any
        if tag & 7 == 0:
            value, position = _varint(message, position)
        elif tag & 7 == 2:
            length, position = _varint(message, position)
            value, position = message[position : position + length], position + length
        else:  # fixed32 is 5, fixed64 is 1; groups do not occur
            kind = '<I' if tag & 7 == 5 else '<Q'
            value = struct.unpack_from(kind, message, position)[0]
            position += struct.calcsize(kind)
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _first(fields: dict[int, list[Any]], number: int, default: Any) -> Any:
    """Return a field that occurs once; writers omit fields with default values."""
    return fields.get(number, [default])[0]


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the base-128 integer at ``position``, and the position behind it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _map(path: Path) -> np.ndarray:
    """Map a file into memory as bytes."""
    try:
        with path.open('rb') as file:
            if not path.stat().st_size:
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise InputError(
            f'the TensorFlow checkpoint lacks {path} ({error.strerror}); its .index file and all '
            'its .data-… files have to lie side by side'
        ) from error


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        f'{path} is no whole TensorFlow checkpoint file: {why}; download or copy it again'
    )


def masked_crc32c(data: np.ndarray) -> int:
    """Return the CRC-32C of bytes (uint8) in the masked form of LevelDB."""
    crc = int(_crc32c(data, _CRC_TABLE))
    return ((crc >> 15 | crc << 17) + CRC_MASK_DELTA) & 0xFFFFFFFF


def _crc_table() -> np.ndarray:
    """Remainders of all bytes, at 0 to 7 bytes from the end (slicing by eight)."""
    table = np.zeros((8, 256), np.uint32)
    table[0] = np.arange(256)
    for _ in range(8):
        table[0] = table[0] >> 1 ^ np.where(table[0] & 1, np.uint32(CRC32C_POLYNOMIAL), 0)
    for i in range(1, 8):
        table[i] = table[i - 1] >> 8 ^ table[0][table[i - 1] & 0xFF]
    return table


_CRC_TABLE = _crc_table()


@jit
def _crc32c(data: np.ndarray, table: np.ndarray) -> np.uint32:
    """CRC-32C; eight bytes a step, as checkpoints of hundreds of MB are read."""
    crc = np.uint32(0xFFFFFFFF)
    whole = data.size - data.size % 8
    for i in range(0, whole, 8):
        crc = (
            table[7, data[i] ^ (crc & 0xFF)]
            ^ table[6, data[i + 1] ^ (crc >> 8 & 0xFF)]
            ^ table[5, data[i + 2] ^ (crc >> 16 & 0xFF)]
            ^ table[4, data[i + 3] ^ (crc >> 24)]
            ^ table[3, data[i + 4]]
            ^ table[2, data[i + 5]]
            ^ table[1, data[i + 6]]
            ^ table[0, data[i + 7]]
        )
    for i in range(whole, data.size):
        crc = table[0, (crc ^ data[i]) & 0xFF] ^ (crc >> 8)
    return crc ^ np.uint32(0xFFFFFFFF)
