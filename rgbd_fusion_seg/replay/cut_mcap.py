"""MCAP files without an end, as a recorder leaves them that was killed."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAGIC = b'\x89MCAP0\r\n'
"""Begins every MCAP file, and ends those that were finished."""

# Numbers and layouts are those of https://mcap.dev/spec.
_FOOTER, _CHUNK, _MESSAGE_INDEX = 0x02, 0x06, 0x07
_CHUNK_INDEX, _STATISTICS, _DATA_END = 0x08, 0x0B, 0x0F
_HEAD = struct.Struct('<BQ')  # kind and length of a record
_ONE_MESSAGE = 31  # bytes of the index of a channel with one message in a chunk


@dataclass(slots=True)
class _Chunk:
    """A chunk of messages: places in the file, times of its first and last message, and sizes."""

    start: int
    end: int
    times: tuple[int, int]
    uncompressed: int
    compression: bytes
    compressed: int


class CutMcap:
    """Stands for the path of a file without an end: what is whole of it, with an end.

    It has what rosbags asks of a path. Nothing is copied: the index that a recorder writes last is
    made anew, and read behind the whole records.

    Args:
        path: an MCAP file that `was_cut`.

    Raises:
        OSError, struct.error: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.suffix = path, path.suffix
        with path.open('rb') as file:
            self.whole_bytes, chunks, channels = _whole_records(file)
        self._end = _summary(chunks, channels, self.whole_bytes)

    def __str__(self) -> str:
        return str(self._path)

    def exists(self) -> bool:
        """Tell whether the file is there."""
        return self._path.exists()

    def is_dir(self) -> bool:
        """Return False: it is a file."""
        return False

    def open(self, mode: str) -> BinaryIO:
        """Open it for reading, which is the only ``mode``."""
        return io.BufferedReader(_Joined(self._path.open(mode), self.whole_bytes, self._end))


def was_cut(path: Path) -> bool:
    """Tell whether a file begins as MCAP and does not end so.

    Raises:
        OSError: it cannot be read.
    """
    with path.open('rb') as file:
        begins = file.read(len(MAGIC)) == MAGIC
        file.seek(max(0, path.stat().st_size - len(MAGIC)))
        return begins and file.read() != MAGIC


class _Joined(io.RawIOBase):
    """The first bytes of a file, and others behind them."""

    def __init__(self, file: BinaryIO, length: int, end: bytes) -> None:
        self._file, self._length, self._end, self._place = file, length, end, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place}
        self._place = begin.get(whence, self._length + len(self._end)) + offset
        return self._place

    def readinto(self, buffer: memoryview) -> int:
        left = self._length - self._place
        if left > 0:
            self._file.seek(self._place)
            data = self._file.read(min(left, len(buffer)))
        else:
            data = self._end[-left : len(buffer) - left]
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _whole_records(file: BinaryIO) -> tuple[int, list[_Chunk], set[int]]:
    """Return where the last whole record of the data ends, and the chunks and channels in it."""
    end, chunks, channels = len(MAGIC), [], set()
    for kind, start, record_end in _records(file):
        if kind == _CHUNK:
            *times, uncompressed, _, name = struct.unpack('<QQQII', file.read(32))
            compression = file.read(name)
            (compressed,) = struct.unpack('<Q', file.read(8))
            chunks.append(
                _Chunk(start, record_end, tuple(times), uncompressed, compression, compressed)
            )
        elif kind == _MESSAGE_INDEX:
            channels.update(struct.unpack('<H', file.read(2)))
        end = record_end
    return end, chunks, channels


def _records(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Yield kind, begin and end of the whole records; the file stands at the content of each."""
    size, start = file.seek(0, io.SEEK_END), len(MAGIC)
    while start + _HEAD.size <= size:
        file.seek(start)
        kind, length = _HEAD.unpack(file.read(_HEAD.size))
        end = start + _HEAD.size + length
        # What a power cut leaves may be zeros; behind the data there is nothing to keep.
        if end > size or kind == 0 or kind == _FOOTER or kind >= _DATA_END:
            return
        yield kind, start, end
        start = end


def _summary(chunks: list[_Chunk], channels: set[int], begin: int) -> bytes:
    """Return the end of a file whose data end at ``begin``.

    It has the chunks, without which messages would have to lie in the order of their times, and
    an empty count of messages, which has rosbags look for the channels in the data. Where there
    are no chunks, or no channels are known of them, the messages are read as they lie.
    """
    data_end = _record(_DATA_END, struct.pack('<I', 0))
    indexed = chunks if channels else ()
    records = [_record(_CHUNK_INDEX, _chunk_index(chunk, channels)) for chunk in indexed]
    records.append(_record(_STATISTICS, struct.pack('<QHIIIIQQI', *[0] * 9)))
    footer = struct.pack('<QQI', begin + len(data_end), 0, 0)
    return b''.join([data_end, *records, _record(_FOOTER, footer), MAGIC])


def _chunk_index(chunk: _Chunk, channels: set[int]) -> bytes:
    # That of the last chunk may have been cut, so each is said to have one message of each
    # channel; the messages themselves are found by reading the chunk.
    places = range(chunk.end, chunk.end + len(channels) * _ONE_MESSAGE, _ONE_MESSAGE)
    indexes = b''.join(
        struct.pack('<HQ', *index) for index in zip(sorted(channels), places, strict=True)
    )
    return b''.join(
        [
            struct.pack('<QQQQ', *chunk.times, chunk.start, chunk.end - chunk.start),
            struct.pack('<I', len(indexes)),
            indexes,
            struct.pack('<QI', len(channels) * _ONE_MESSAGE, len(chunk.compression)),
            chunk.compression,
            struct.pack('<QQ', chunk.compressed, chunk.uncompressed),
        ]
    )


def _record(kind: int, content: bytes) -> bytes:
    return _HEAD.pack(kind, len(content)) + content
