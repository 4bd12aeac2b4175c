"""What bags are on the disk: which paths are bags, and how they are opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rgbd_fusion_seg.errors import InputError

if TYPE_CHECKING:
    from rosbags.highlevel import AnyReader
    from rosbags.interfaces import Connection

BAG_SUFFIXES = ('.bag', '.mcap', '.db3')
METADATA = 'metadata.yaml'
"""In every folder that is a whole bag of ROS 2."""
STORAGE_SUFFIXES = ('.mcap', '.db3')
COMPRESSED_SUFFIXES = ('.mcap.zstd', '.db3.zstd')
"""Of storage files that were compressed as a whole; only metadata tells how to read them."""
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg')

_REMEDIES = {
    b'\x89MCAP0\r\n': 'mcap recover {path} -o recovered.mcap',
    b'SQLite format 3\0': 'sqlite3 {path} .recover | sqlite3 recovered.db3',
    b'#ROSBAG V2.0\n': 'rosbag reindex {path}',
}
"""How each kind of storage is repaired, by the first bytes of its files."""
_MCAP_PROFILE = slice(21, 25)
"""Bytes that tell it: behind the magic, the header's kind and length, and the profile's length."""


def is_bag(path: Path) -> bool:
    """Tell a bag (ROS 1 file, storage file, rosbag2 folder) from a folder of images."""
    if path.name.endswith(BAG_SUFFIXES + COMPRESSED_SUFFIXES) or (path / METADATA).is_file():
        return True
    # A recorder that was killed writes no metadata. Bags may lie beside images, too.
    files = _storage_files(path) + _storage_files(path, COMPRESSED_SUFFIXES)
    return bool(files) and not any(e.suffix.lower() in IMAGE_SUFFIXES for e in path.rglob('*'))


def rosbags(part: str) -> ModuleType:
    """Return a module of rosbags, which only bags need: folders of images do without it.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(f'rosbags.{part}')
    except ImportError as error:
        raise InputError(
            f'bags need rosbags, which is not here ({error}); install it with: pip install rosbags'
        ) from error


@contextmanager
def open_bag(storage: Path) -> Iterator[AnyReader]:
    """Yield a reader of a bag.

    Raises:
        InputError: it is no bag, or damaged.
    """
    highlevel, typesys = rosbags('highlevel'), rosbags('typesys')
    try:
        # Bags of ROS 2 before Iron do not hold the definitions of their messages.
        typestore = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
        reader = highlevel.AnyReader([storage], default_typestore=typestore)
        reader.open()
    except Exception as error:  # each storage raises errors of its own on damaged files
        raise InputError(
            f'{storage} cannot be read as a bag: {error_text(error)}{remedy(storage)}'
        ) from error
    try:
        yield reader
    finally:
        reader.close()


def readable(path: Path) -> Path:
    """Return what the library can open of a bag: the file in a folder without metadata.

    Raises:
        InputError: there is no such bag, or in such a folder are several files, none, or
            compressed ones.
    """
    if not path.exists():
        raise InputError(f'there is no bag {path}')
    if (path / METADATA).is_file() and path.suffix != '.bag':
        return path
    compressed = [path] if path.is_file() else _storage_files(path, COMPRESSED_SUFFIXES)
    if compressed and compressed[0].name.endswith(COMPRESSED_SUFFIXES):
        raise InputError(
            f'{compressed[0]} is a compressed file of a bag, which cannot be read without the '
            f'{METADATA} of its folder; decompress it (unzstd {compressed[0]}) and give '
            f'{compressed[0].stem}'
        )
    if path.is_file():
        return path
    files = _storage_files(path)
    if len(files) == 1:
        return files[0]
    if path.suffix == '.bag' and (path / METADATA).is_file():
        raise InputError(f'{path} is a ROS 2 bag with a name as of ROS 1; rename it without .bag')
    raise InputError(
        f'{path} has {len(files)} files of a bag and no {METADATA} with their order; run '
        f'ros2 bag reindex {path}, or name one of the files'
    )


def _storage_files(path: Path, suffixes: tuple[str, ...] = STORAGE_SUFFIXES) -> list[Path]:
    return sorted(file for file in path.glob('[!.]*') if file.name.endswith(suffixes))


def remedy(storage: Path) -> str:
    """Return what can be done about a damaged bag, as the end of a sentence."""
    files = _storage_files(storage) if storage.is_dir() else [storage]
    if len(files) != 1:
        return ''
    with suppress(OSError), files[0].open('rb') as content:
        begin = content.read(_MCAP_PROFILE.stop)
        if begin.startswith(b'\x89MCAP') and begin[_MCAP_PROFILE] == b'ros1':
            return '; it holds messages of ROS 1; give the .bag that it was made from'
        for magic, command in _REMEDIES.items():
            if begin.startswith(magic):
                return f'; what is whole may be saved with: {command.format(path=files[0])}'
    return ''


def error_text(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return ' '.join(str(error).split()) or type(error).__name__


def messages_of(
    reader: AnyReader,
    connections: Sequence[Connection],
    storage: Path,
    skip: Callable[[str], None],
) -> Iterator[tuple[str, Any]]:
    """Yield (topic, message) of an open bag, in the order of their reception.

    Args:
        reader: of the bag.
        connections: to read.
        storage: what the reader reads.
        skip: told of what cannot be read, in one sentence each.
    """
    stream = reader.messages(connections)
    while True:
        # rosbags, struct, sqlite3 and zstd each raise errors of their own on damaged data.
        try:
            connection, _, raw = next(stream)
        except StopIteration:
            return
        except Exception as error:
            skip(f'{storage} is damaged and ends early: {error_text(error)}{remedy(storage)}')
            return
        try:
            message = reader.deserialize(raw, connection.msgtype)
        except Exception as error:
            skip(f'{connection.topic} has a message that is damaged: {error_text(error)}')
            continue
        yield connection.topic, message
