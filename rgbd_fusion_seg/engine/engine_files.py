"""Engine files: where they lie, the card beside each, and writing them without losing any.

An engine has a card ``NAME.json``, which names the file with the engine itself beside it. Both
lie in the folder ``engines`` of the bundle, or where that cannot be written in the user's cache
folder. A new build takes a file name of its own and the card is replaced last, so that at every
moment the card belongs to a whole engine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from rgbd_fusion_seg.atomic_files import write_atomically
from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.errors import EngineError, UnbuiltEngineError
from rgbd_fusion_seg.file_lock import file_lock, open_lock
from rgbd_fusion_seg.locations import user_cache

CARD_FORMAT = 1
SUFFIX = '.engine'
LOCK_NAME = '.build.lock'


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine.

    Args:
        name: as in the ONNX graph.
        mode: ``input`` or ``output``.
        dtype: NumPy's name of its type.
        shape: -1 for an open side.
        profile: smallest, best and largest shape of an input with open sides.
    """

    name: str
    mode: str
    dtype: str
    shape: tuple[int, ...]
    profile: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class EngineCard:
    """What is known of an engine without loading it.

    Args:
        bundle: name of the bundle it was built from.
        onnx_sha256: hash of the bundle's ONNX file.
        engine_file: name of the file with the engine, beside the card.
        engine_sha256: hash of that file.
        flavour, version: the TensorRT package that built it.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        compute_capabilities: of the GPUs it runs on, such as ``8.7``.
        gpu: name of the GPU that it was built on; empty where there was none.
        tensors: inputs and outputs.
        options: of the builder.
        build_seconds: time it took to build.
        built_at: date and time, ISO 8601.
        platform: operating system and processor, such as ``linux x86_64``.
        memory_mib: of that GPU; 0 where there was none.
        agreement: with ONNX Runtime on frames, where a GPU was at hand.
        latency_ms: percentiles, where a GPU was at hand.
    """

    bundle: str
    onnx_sha256: str
    flavour: str
    version: str
    precision: str
    compute_capabilities: tuple[str, ...]
    gpu: str
    tensors: tuple[EngineTensor, ...]
    engine_file: str = ''
    engine_sha256: str = ''
    options: dict[str, Any] = field(default_factory=dict)
    build_seconds: float = 0.0
    built_at: str = ''
    platform: str = ''
    memory_mib: int = 0
    agreement: dict[str, Any] | None = None
    latency_ms: dict[str, float] | None = None

    def text(self, path: Path) -> str:
        """Return what a person wants to know of an engine, a line each; `path` is the card's."""
        gpus = ', '.join(self.compute_capabilities)
        tensors = (f'{t.name} {t.dtype} {"x".join(map(str, t.shape))}' for t in self.tensors)
        rows = {
            'engine': path.parent / self.engine_file,
            'card': path,
            'built': f'{self.built_at} by {self.flavour} {self.version} in '
            f'{self.build_seconds:.1f} s, {self.precision}, for compute capability {gpus}',
            'tensors': ', '.join(tensors),
        }
        if self.agreement is not None:
            rows['agreement'] = ', '.join(f'{k} {v}' for k, v in self.agreement.items())
        if self.latency_ms is not None:
            rows['latency'] = ', '.join(f'{k} {v} ms' for k, v in self.latency_ms.items())
        return '\n'.join(f'{name:<10} {value}' for name, value in rows.items())


def engine_folders(bundle: ModelBundle) -> list[Path]:
    """Return the folders that may hold engines of a bundle, the first one preferred."""
    return [bundle.path / 'engines', user_cache() / 'engines' / bundle.cache_name]


def writable_folder(bundle: ModelBundle) -> Path:
    """Return the first folder of :func:`engine_folders` that can be written to, and make it.

    Raises:
        EngineError: none of them can.
    """
    reasons = []
    for folder in engine_folders(bundle):
        try:
            make_writable(folder)
            return folder
        except OSError as error:
            reasons.append(f'{folder}: {error.strerror}')
    raise EngineError(
        f'no folder for engines can be written to ({"; ".join(reasons)}); '
        'set XDG_CACHE_HOME to one that can, or give an output folder'
    )


def make_writable(folder: Path) -> None:
    """Make a folder for engines, and make sure that one can be built there.

    Raises:
        OSError: none can.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        os.close(open_lock(folder / LOCK_NAME))


def list_engines(bundle: ModelBundle) -> dict[Path, EngineCard | EngineError]:
    """Return the cards of a bundle's engines by path, or what is wrong with them."""
    found: dict[Path, EngineCard | EngineError] = {}
    for folder in engine_folders(bundle):
        for path in sorted(folder.glob('*.json')):
            try:
                found[path] = read_card(path)
            except EngineError as error:
                found[path] = error
    return found


def list_without_card(bundle: ModelBundle) -> list[Path]:
    """Return the engines in a bundle's folders that no readable card there names."""
    cards = list_engines(bundle).items()
    named = {p.parent / c.engine_file for p, c in cards if isinstance(c, EngineCard)}
    found = [p for folder in engine_folders(bundle) for p in sorted(folder.glob(f'*{SUFFIX}'))]
    return [path for path in found if path not in named]


def read_card(path: Path) -> EngineCard:
    """Read the card of an engine.

    Raises:
        EngineError: a card that is absent, unreadable, of another format, or has entries of
            other types than its own.
    """
    try:
        entries = json.loads(path.read_text(encoding='utf-8'))
        if entries.pop('format') != CARD_FORMAT:
            raise ValueError('it is of another format')
        card: EngineCard = _typed(entries, EngineCard, 'card')
        _check_entries(card)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = 'it is absent' if isinstance(error, FileNotFoundError) else f'{error}'
        raise EngineError(
            f'the card {path} of an engine cannot be used ({reason}); build the engine again'
        ) from error
    return card


def _typed(value: Any, kind: Any, name: str) -> Any:
    """Return what JSON made of an entry as the type that its field is annotated with.

    Raises:
        TypeError: it is of another type; the message names the entry.
    """
    container, inner = get_origin(kind), get_args(kind)
    if container is UnionType:  # of a type and None
        return None if value is None else _typed(value, inner[0], name)
    if is_dataclass(kind) and isinstance(value, dict):
        kinds = get_type_hints(kind)
        return kind(**{key: _typed(v, kinds.get(key, Any), key) for key, v in value.items()})
    if container is tuple and isinstance(value, list):
        return tuple(_typed(entry, inner[0], name) for entry in value)
    if container is dict and isinstance(value, dict):
        return {key: _typed(entry, inner[1], f'{name}.{key}') for key, entry in value.items()}
    plain = (int, float) if kind is float else kind
    is_plain = container is None and kind is not Any and isinstance(value, plain)
    unprintable = isinstance(value, str) and not value.isprintable()
    if kind is Any or (is_plain and not isinstance(value, bool) and not unprintable):
        return value
    raise TypeError(f'its entry {name} cannot be {value!r:.60}')


def _check_entries(card: EngineCard) -> None:
    """Raise ValueError for entries that no card has, although their types are right."""
    file = card.engine_file
    if Path(file).name != file or not file.endswith(SUFFIX):
        raise ValueError(f'its entry engine_file cannot be {file!r:.60}')
    for tensor in card.tensors:
        sides = {len(shape) for shape in (tensor.shape, *tensor.profile)}
        if tensor.mode not in ('input', 'output') or len(tensor.profile) not in (0, 3):
            raise ValueError(
                f'its tensor {tensor.name} has another mode or profile than there are'
            )
        if len(sides) > 1:
            raise ValueError(
                f'the shapes of its tensor {tensor.name} have unequal numbers of sides'
            )


def read_plan(path: Path, card: EngineCard) -> bytes:
    """Return the engine that a card belongs to.

    Args:
        path: of the card.
        card: its content.

    Raises:
        UnbuiltEngineError: a file that is absent, cut short or damaged.
    """
    engine = path.parent / card.engine_file
    try:
        plan = engine.read_bytes()
    except OSError as error:
        raise UnbuiltEngineError(
            f'the engine {engine} cannot be read ({error.strerror}); build it again'
        ) from error
    if hashlib.sha256(plan).hexdigest() != card.engine_sha256:
        raise UnbuiltEngineError(
            f'the engine {engine} ({len(plan)} bytes) is not the one that its card {path.name} '
            'describes: it was damaged, cut short or replaced; build it again'
        )
    return plan


def write_engine(folder: Path, name: str, plan: bytes, card: EngineCard) -> Path:
    """Write an engine and its card; an older engine of that name stays until the new one is whole.

    Returns:
        The path of the card.

    Raises:
        EngineError: a folder or disk that cannot be written to.
    """
    sha256 = hashlib.sha256(plan).hexdigest()
    engine, path = folder / f'{name}-{sha256[:8]}{SUFFIX}', folder / f'{name}.json'
    card = dataclasses.replace(card, engine_file=engine.name, engine_sha256=sha256)
    try:
        write_atomically(engine, plan)
    except OSError as error:
        raise _unwritable(engine, error) from error
    write_card(path, card)
    for old in folder.glob(f'{name}-????????{SUFFIX}'):
        if old != engine:
            old.unlink(missing_ok=True)
    return path


def write_card(path: Path, card: EngineCard) -> None:
    """Write the card of an engine that is there.

    Raises:
        EngineError: a folder or disk that cannot be written to.
    """
    entries = {'format': CARD_FORMAT, **dataclasses.asdict(card)}
    text = json.dumps(entries, indent=1, ensure_ascii=False) + '\n'
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> EngineError:
    return EngineError(
        f'{path} cannot be written ({error.strerror}); make room or give another folder'
    )


@contextmanager
def build_lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the right to build in a folder; a process that dies gives it back.

    Args:
        folder: of the engines.
        wait: until another process that has it is done.

    Raises:
        EngineError: another process is building there, or the folder cannot be locked.
    """
    with ExitStack() as stack:
        try:
            mine = stack.enter_context(file_lock(folder / LOCK_NAME, wait))
        except OSError as error:
            raise EngineError(
                f'the folder {folder} cannot be locked for a build ({error.strerror}); give '
                'another output folder, on a disk of this machine'
            ) from error
        if not mine:
            raise EngineError(
                f'another process is building an engine in {folder}; wait until it is done'
            )
        yield


def belongs_to(card: EngineCard, bundle: ModelBundle) -> bool:
    """Return whether an engine was built from this very ONNX file."""
    return card.onnx_sha256 == bundle.weights_sha256
