"""Model bundles: a folder with the network (``model.onnx``) and its card (``model.yaml``)."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rgbd_fusion_seg.errors import BundleError

CARD_NAME = 'model.yaml'
CARD_FORMAT = 1
DEFAULT_BUNDLE = 'rfbnet_erfnet_nyu40'


@dataclass(frozen=True, slots=True, eq=False)
class TensorInput:
    """One image input of the network.

    The tensor is float32 (1, 3, height, width) and holds ``(pixel - mean) / std`` of an image
    with values 0..255; ``mean`` and ``std`` are float32 (3,) on that scale.
    """

    height: int
    width: int
    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class ModelBundle:
    """A validated bundle.

    Args:
        path: folder of the bundle.
        name: name on the card.
        card: the whole card, as parsed.
        rgb, hha: the two inputs of the network.
        stride: input colour pixels per logit, along each axis.
        class_names: one name a class; the index is the label.
        colors: uint8 (K, 3), RGB.
        depth_range_m: smallest and largest depth in metres the training data holds (1st and
            99th percentile); outside it the network is on unknown ground.
        weights_path: the ONNX file.
        weights_sha256: its hash, in hexadecimal.
        metrics: as on the card.
    """

    path: Path
    name: str
    card: Mapping[str, Any] = field(repr=False)
    rgb: TensorInput
    hha: TensorInput
    stride: int
    class_names: tuple[str, ...]
    colors: np.ndarray = field(repr=False)
    depth_range_m: tuple[float, float]
    weights_path: Path
    weights_sha256: str
    metrics: Mapping[str, Any] = field(repr=False)

    @property
    def num_classes(self) -> int:
        """Number of classes, which is also the number of logit channels."""
        return len(self.class_names)

    @property
    def logits_shape(self) -> tuple[int, int, int, int]:
        """Shape of what the network returns: (1, K, rgb height / stride, rgb width / stride)."""
        return (1, self.num_classes, self.rgb.height // self.stride, self.rgb.width // self.stride)


def bundle_folders() -> list[Path]:
    """Return the folders searched for bundles by name, in order.

    ``$RGBD_FUSION_SEG_MODELS`` (path list), the source tree, the ament share folder of every
    prefix on ``AMENT_PREFIX_PATH``, and the share folder of this Python installation.
    """
    folders = [
        Path(p) for p in os.environ.get('RGBD_FUSION_SEG_MODELS', '').split(os.pathsep) if p
    ]
    folders.append(Path(__file__).resolve().parent.parent / 'models')
    prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    folders += [Path(p) / 'share' / 'rgbd_fusion_seg' / 'models' for p in [*prefixes, sys.prefix]]
    return [f for f in dict.fromkeys(folders) if f.is_dir()]


def list_bundles() -> list[Path]:
    """Return the folder of every bundle that can be opened by name."""
    found: dict[str, Path] = {}
    for folder in bundle_folders():
        for card in sorted(folder.glob(f'*/{CARD_NAME}')):
            found.setdefault(card.parent.name, card.parent)
    return list(found.values())


def load_bundle(path_or_name: str | os.PathLike[str] = DEFAULT_BUNDLE) -> ModelBundle:
    """Load and validate a bundle.

    Args:
        path_or_name: a bundle's folder, its ``model.yaml``, or the name of a shipped bundle.

    Raises:
        BundleError: no such bundle, an unreadable card, a missing or wrong entry, missing
            weights, or weights whose hash is not the card's.
    """
    folder = _find(path_or_name)
    card_path = folder / CARD_NAME
    try:
        card = yaml.safe_load(card_path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise BundleError(f'the card {card_path} cannot be read: {reason}') from error
    if not isinstance(card, dict):
        raise BundleError(f'the card {card_path} is not a YAML mapping; export the bundle again')
    return _validated(_Card(card, card_path), folder)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open('rb') as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _find(path_or_name: str | os.PathLike[str]) -> Path:
    path = Path(path_or_name).expanduser()
    if path.name == CARD_NAME and path.is_file():
        return path.parent
    if (path / CARD_NAME).is_file():
        return path
    if path.is_dir():
        raise BundleError(f'{path} is no bundle: it has no {CARD_NAME}; name a bundle folder')
    known = {folder.name: folder for folder in list_bundles()}
    if str(path_or_name) in known:
        return known[str(path_or_name)]
    raise BundleError(
        f'there is no bundle at or called {str(path_or_name)!r}; give a folder with a '
        f'{CARD_NAME} or one of these names: {", ".join(sorted(known)) or "(none installed)"}'
    )


class _Card:
    """Typed access to the entries of a card, with errors that name the entry and the file."""

    def __init__(self, card: dict[str, Any], path: Path) -> None:
        self.card, self.path = card, path

    def get(self, key: str, kind: type | tuple[type, ...]) -> Any:
        value: Any = self.card
        for part in key.split('.'):
            if not isinstance(value, dict) or part not in value:
                raise BundleError(
                    f'the card {self.path} lacks the entry {key!r}; export the bundle again'
                )
            value = value[part]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(key, value)
        return value

    def wrong(self, key: str, value: Any) -> BundleError:
        return BundleError(
            f'the card {self.path} has an unusable entry {key!r}: {value!r:.80}; export the '
            'bundle again'
        )

    def numbers(self, key: str, count: int) -> np.ndarray:
        value = self.get(key, list)
        numbers = [v for v in value if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(value) != count or numbers != value or not np.isfinite(value).all():
            raise self.wrong(key, value)
        return np.asarray(value, dtype=np.float32)

    def tensor(self, key: str) -> TensorInput:
        height, width = self.get(f'{key}.height', int), self.get(f'{key}.width', int)
        mean, std = self.numbers(f'{key}.mean', 3), self.numbers(f'{key}.std', 3)
        if height <= 0 or width <= 0 or not (std > 0).all():
            raise self.wrong(key, self.get(key, dict))
        return TensorInput(height, width, mean, std)


def _validated(card: _Card, folder: Path) -> ModelBundle:
    if card.get('format', int) != CARD_FORMAT:
        raise BundleError(
            f'the card {card.path} has format {card.card["format"]}, this version reads format '
            f'{CARD_FORMAT}; export the bundle again with this version'
        )
    names, colors = _classes(card)
    rgb, stride = card.tensor('inputs.rgb'), card.get('output.stride', int)
    if stride <= 0 or rgb.height % stride or rgb.width % stride:
        raise card.wrong('output.stride', stride)
    near, far = (float(v) for v in card.numbers('depth.range_m', 2))
    if not 0 <= near < far:
        raise card.wrong('depth.range_m', [near, far])
    weights, sha256 = _weights(card, folder)
    return ModelBundle(
        path=folder,
        name=card.get('name', str),
        card=card.card,
        rgb=rgb,
        hha=card.tensor('inputs.hha'),
        stride=stride,
        class_names=names,
        colors=colors,
        depth_range_m=(near, far),
        weights_path=weights,
        weights_sha256=sha256,
        metrics=card.get('metrics', dict),
    )


def _classes(card: _Card) -> tuple[tuple[str, ...], np.ndarray]:
    names: list[str] = []
    colors: list[list[int]] = []
    for index, entry in enumerate(card.get('classes', list)):
        if not isinstance(entry, dict) or not isinstance(entry.get('name'), str):
            raise card.wrong(f'classes[{index}]', entry)
        color = entry.get('color')
        if not (
            isinstance(color, list)
            and len(color) == 3
            and all(isinstance(c, int) and 0 <= c <= 255 for c in color)
        ):
            raise card.wrong(f'classes[{index}].color', entry)
        if entry['name'] in names:
            raise BundleError(
                f'the card {card.path} lists the class {entry["name"]!r} twice; '
                'give each class its own name'
            )
        names.append(entry['name'])
        colors.append(color)
    if not 2 <= len(names) <= 255:
        raise BundleError(
            f'the card {card.path} lists {len(names)} classes; 2 to 255 are possible'
        )
    return tuple(names), np.asarray(colors, dtype=np.uint8)


def _weights(card: _Card, folder: Path) -> tuple[Path, str]:
    name, expected = card.get('weights.file', str), card.get('weights.sha256', str).lower()
    if Path(name).name != name:
        raise card.wrong('weights.file', name)
    path = folder / name
    if not path.is_file():
        raise BundleError(f'the bundle {folder} lacks its weights {name}; copy it whole')
    if (actual := file_sha256(path)) != expected:
        raise BundleError(
            f'{path} does not match its card (sha256 {actual[:12]}…, expected {expected[:12]}…); '
            'copy the bundle again or export it anew'
        )
    return path, actual
