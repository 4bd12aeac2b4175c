"""Writes TensorFlow V2 checkpoints, from the format's public description.

The messages go through the protobuf library and the checksums through TensorBoard's own
implementation, so that nothing here is shared with the reader.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

INT32, INT64, FIXED32 = 5, 3, 7  # field types of descriptor.proto
DATA_TYPES = {'float32': 1, 'float64': 2, 'int32': 3, 'int64': 9, 'bool': 10, 'float16': 19}
RESTART_INTERVAL = 16


def _message(name: str, fields: list[tuple[str, int, int]], extra: str = '') -> type:
    """Make a message class; ``extra`` names field 2 as a TensorShapeProto."""
    file = descriptor_pb2.FileDescriptorProto(name=f'{name}.proto', package='test_bundle')
    message = file.message_type.add(name=name)
    for field, number, kind in fields:
        message.field.add(name=field, number=number, type=kind, label=1)
    if extra:  # bytes have the wire form of a message
        message.field.add(name=extra, number=2, type=12, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f'test_bundle.{name}'))


Header = _message('Header', [('num_shards', 1, INT32), ('endianness', 2, INT32)])
Entry = _message(
    'Entry',
    [
        ('dtype', 1, INT32),
        ('shard_id', 3, INT32),
        ('offset', 4, INT64),
        ('size', 5, INT64),
        ('crc32c', 6, FIXED32),
    ],
    extra='shape',
)


def varint(value: int) -> bytes:
    """Base-128 form of a natural number."""
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def block(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """A table block of sorted pairs, without its trailer."""
    out, restarts, last = b'', [], b''
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % RESTART_INTERVAL == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out += key[shared:] + value
        last = key
    restarts = restarts or [0]
    return out + struct.pack(f'<{len(restarts) + 1}I', *restarts, len(restarts))


def table(pairs: list[tuple[bytes, bytes]], per_block: int, compression: int = 0) -> bytes:
    """A sorted string table with ``per_block`` pairs in a data block."""
    file, handles = b'', []

    def add(contents: bytes) -> bytes:
        nonlocal file
        handle = varint(len(file)) + varint(len(contents))
        framed = contents + bytes([compression])
        file += framed + struct.pack('<I', masked_crc32c(framed))
        return handle

    for i in range(0, len(pairs), per_block):
        chunk = pairs[i : i + per_block]
        handles.append((chunk[-1][0], add(block(chunk))))
    footer = add(block([])) + add(block(handles))
    return file + footer.ljust(40, b'\0') + struct.pack('<Q', 0xDB4775248B80FB57)


def write_tf_checkpoint(
    prefix: Path,
    variables: dict[str, np.ndarray],
    shards: int = 1,
    per_block: int = 50,
    compression: int = 0,
    endianness: int = 0,
    checksum: Callable[[bytes], int] = masked_crc32c,
) -> Path:
    """Write ``prefix.index`` and its data files; variables go to the shards in turn.

    The default checksum takes a second for a few MB.
    """
    data = [bytearray() for _ in range(shards)]
    header = Header(num_shards=shards, endianness=endianness)
    pairs = [(b'', header.SerializeToString())]
    for i, name in enumerate(sorted(variables, key=str.encode)):
        value = np.asarray(variables[name])
        raw, shard = value.tobytes(), i % shards
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=n) for n in value.shape])
        entry = Entry(
            dtype=DATA_TYPES[value.dtype.name] if value.dtype.kind != 'S' else 7,
            shape=shape.SerializeToString(),
            shard_id=shard,
            offset=len(data[shard]),
            size=len(raw),
            crc32c=checksum(raw),
        )
        data[shard] += raw
        pairs.append((name.encode(), entry.SerializeToString()))
    prefix.with_name(f'{prefix.name}.index').write_bytes(table(pairs, per_block, compression))
    for shard, raw in enumerate(data):
        name = f'{prefix.name}.data-{shard:05d}-of-{shards:05d}'
        prefix.with_name(name).write_bytes(raw)
    return prefix
