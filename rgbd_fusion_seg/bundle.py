"""Model bundles: a folder with the network (``model.onnx``) and its card (``model.yaml``)."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rgbd_fusion_seg.card import Card, read_card
from rgbd_fusion_seg.errors import BundleError
from rgbd_fusion_seg.frame import SENSORS
from rgbd_fusion_seg.locations import CARD_NAME, find_bundle

CARD_FORMAT = 1
DEFAULT_BUNDLE = 'rfbnet_erfnet_nyu40'
MODALITIES = ('rgb', 'hha', 'depth')
"""The inputs a network may have, in this order; it has one or more of them."""


@dataclass(frozen=True, slots=True, eq=False)
class TensorInput:
    """One image input of the network.

    The tensor is float32 (1, 3, height, width) and holds ``(pixel - mean) / std`` of an image
    with values 0..255, or of depth in metres three times; ``mean`` and ``std`` are float32 (3,)
    on that scale.
    """

    height: int
    width: int
    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True, slots=True)
class DynamicAxes:
    """What a network leaves open about its inputs.

    Args:
        batch: any number of images at once.
        size: any height and width that are multiples of `multiple`; other inputs than the
            leading one scale with it.
        multiple: in pixels of the leading input.
    """

    batch: bool = False
    size: bool = False
    multiple: int = 1


@dataclass(frozen=True, slots=True)
class FusedForm:
    """What a graph does beside the network, see ``engine_building.fused_graph.fuse``.

    Args:
        width, height: of the frames it takes and of the labels it returns.
        hha: it also computes HHA, from depth.
        base_name, base_sha256: the bundle with the network alone and the hash of its weights.
    """

    width: int
    height: int
    hha: bool
    base_name: str
    base_sha256: str


class TensorForm(NamedTuple):
    """Type (NumPy's name) and shape of an input or output of a graph, for one image."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ModelBundle:
    """A validated bundle.

    Args:
        path: folder of the bundle.
        name: name on the card.
        card: the whole card, as parsed.
        rgb, hha, depth: the inputs of the network: colour, and depth as HHA or in metres, both of
            one size; None is one that the network does not have.
        stride: pixels of the leading input per logit, along each axis. Colour leads where the
            network sees it, else depth in the form that it sees.
        dynamic: what may differ from the sizes of the inputs.
        class_names: one name a class; the index is the label.
        colors: uint8 (K, 3), RGB.
        depth_range_m: smallest and largest depth in metres the training data holds (1st and
            99th percentile); outside it the network is on unknown ground. None: the network
            reads no depth.
        weights_path: the ONNX file.
        weights_sha256: its hash, in hexadecimal.
        metrics: as on the card.
        temperature: what logits are divided by before their softmax is the confidence, so that
            it is right as often as it says; 1 where the card has none.
        fused: what the graph does beside the network; None: it is the network.
        single_sensor: by modality, the bundles inside this one that answer from it alone, for
            when the other sensor is lost.
        copes_without: the sensors of `frame.SENSORS`, each of which this very network has learnt
            to do without: it labels frames whose half of that sensor is blank.
    """

    path: Path
    name: str
    card: Mapping[str, Any] = field(repr=False)
    rgb: TensorInput | None
    hha: TensorInput | None
    stride: int
    dynamic: DynamicAxes
    class_names: tuple[str, ...]
    colors: np.ndarray = field(repr=False)
    depth_range_m: tuple[float, float] | None
    weights_path: Path
    weights_sha256: str
    metrics: Mapping[str, Any] = field(repr=False)
    temperature: float = 1.0
    fused: FusedForm | None = None
    depth: TensorInput | None = None
    single_sensor: Mapping[str, ModelBundle] = field(default_factory=dict, repr=False)
    copes_without: tuple[str, ...] = ()

    @property
    def cache_name(self) -> str:
        """A name for what is kept of it elsewhere; other weights have another one."""
        return f'{self.name}-{self.weights_sha256[:12]}'

    @property
    def num_classes(self) -> int:
        """Number of classes, which is also the number of logit channels."""
        return len(self.class_names)

    @property
    def inputs(self) -> dict[str, TensorInput]:
        """The inputs by name, those that the network has."""
        named = {name: getattr(self, name) for name in MODALITIES}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def sees_depth(self) -> bool:
        """Whether the network reads depth, in whatever form."""
        return self.hha is not None or self.depth is not None

    @property
    def sensors(self) -> tuple[str, ...]:
        """The sensors that the network sees, of `frame.SENSORS`."""
        seen = {sensor_of(name) for name in self.inputs}
        return tuple(sensor for sensor in SENSORS if sensor in seen)

    @property
    def sole_sensor(self) -> str:
        """The sensor of `frame.SENSORS` that the network sees, empty if it sees both."""
        return self.sensors[0] if len(self.sensors) == 1 else ''

    @property
    def mean_iou(self) -> dict[str, float]:
        """The measured mIoU, 0..1, by the name of the data; empty where none is on the card."""
        found = {n: m.get('mIoU') for n, m in self.metrics.items() if isinstance(m, Mapping)}
        return {name: iou for name, iou in found.items() if isinstance(iou, float)}

    def alone(self, sensor: str) -> ModelBundle | None:
        """Return what answers from one sensor of `frame.SENSORS` alone; None: nothing does.

        A network that sees no other sensor anyway answers itself, and so does one that has learnt
        to do without it, unless there is one for that sensor. Of two encodings of depth the one
        answers whose measured mIoU is best, or the first.
        """
        if self.sensors == (sensor,):
            return self
        fitting = [b for m, b in self.single_sensor.items() if sensor_of(m) == sensor]
        copes = sensor in self.sensors and {*self.sensors} - {sensor} <= {*self.copes_without}
        return max(fitting, key=_test_mean_iou, default=self if copes else None)

    def mean_iou_alone(self, sensor: str) -> dict[str, float]:
        """Return the measured mIoU, 0..1, of what answers from one sensor alone, as `mean_iou`."""
        answers = self.alone(sensor)
        if answers is None:
            return {}
        if answers is not self or self.sole_sensor:
            return answers.mean_iou
        branches = {name: self.metrics[name].get('branches') for name in self.mean_iou}
        found = {n: b.get(sensor) for n, b in branches.items() if isinstance(b, Mapping)}
        found = {n: m.get('mIoU') for n, m in found.items() if isinstance(m, Mapping)}
        return {name: iou for name, iou in found.items() if isinstance(iou, float)}

    def answering_alone(self, sensor: str) -> ModelBundle:
        """Return what answers from one sensor of `frame.SENSORS` alone, as :meth:`alone`.

        Raises:
            BundleError: nothing does.
        """
        if (bundle := self.alone(sensor)) is None:
            raise BundleError(
                f'the bundle {self.name} cannot answer from {sensor} alone: it holds no '
                'network for that; use one that does, or give frames with both'
            )
        return bundle

    @property
    def input_size(self) -> tuple[int, int]:
        """Width and height of the leading input in pixels."""
        leading = next(iter(self.inputs.values()))
        return leading.width, leading.height

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height of frames that suit it: those its graph takes, else its input's."""
        return (self.fused.width, self.fused.height) if self.fused else self.input_size

    @property
    def logits_shape(self) -> tuple[int, int, int, int]:
        """Shape of what the network returns for one image: (1, K, height, width)."""
        width, height = self.input_size
        return (1, self.num_classes, height // self.stride, width // self.stride)

    @property
    def graph_inputs(self) -> dict[str, TensorForm]:
        """What the graph in the ONNX file takes, by name."""
        forms = {
            name: TensorForm('float32', (1, 3, size.height, size.width))
            for name, size in self.inputs.items()
        }
        if self.fused is None:
            return forms
        frame = (1, self.fused.height, self.fused.width)
        if self.rgb is not None:
            forms['rgb'] = TensorForm('uint8', (*frame, 3))
        if self.fused.hha:
            del forms['hha']
            forms['depth'] = TensorForm('float32', frame)
            forms['intrinsics'] = TensorForm('float32', (4,))
            forms['gravity'] = TensorForm('float32', (3,))
            forms['camera_height'] = TensorForm('float32', (1,))
        elif self.hha is not None:
            forms['hha'] = TensorForm('uint8', (1, self.hha.height, self.hha.width, 3))
        return forms

    @property
    def graph_outputs(self) -> dict[str, TensorForm]:
        """What the graph returns; a network may call its logits something else."""
        if self.fused is None:
            return {'logits': TensorForm('float32', self.logits_shape)}
        frame = TensorForm('uint8', (1, self.fused.height, self.fused.width))
        return {'labels': frame, 'confidence': frame}

    def resized(self, width: int, height: int) -> ModelBundle:
        """Return the bundle with another size of the leading input; the others scale with it.

        Raises:
            BundleError: the network has a fixed size, or cannot take this one.
        """
        if (width, height) == self.input_size:
            return self
        own = '{}x{}'.format(*self.input_size)
        if not self.dynamic.size:
            raise BundleError(
                f'the network of {self.path} takes {own} images only, not {width}x{height}; '
                'export one of that size, or one with dynamic_size'
            )
        step = self.dynamic.multiple
        if width <= 0 or height <= 0 or width % step or height % step:
            raise BundleError(
                f'the network of {self.path} cannot take {width}x{height} images; '
                f'choose multiples of {step}, such as {own}'
            )
        scaled = {
            name: dataclasses.replace(
                tensor,
                width=tensor.width * width // self.input_size[0],
                height=tensor.height * height // self.input_size[1],
            )
            for name, tensor in self.inputs.items()
        }
        nested = {
            modality: bundle.resized(
                bundle.input_size[0] * width // self.input_size[0],
                bundle.input_size[1] * height // self.input_size[1],
            )
            for modality, bundle in self.single_sensor.items()
        }
        return dataclasses.replace(self, **scaled, single_sensor=nested)


def sensor_of(modality: str) -> str:
    """Return the sensor of `frame.SENSORS` that a modality comes from."""
    return 'rgb' if modality == 'rgb' else 'depth'


def load_bundle(path_or_name: str | os.PathLike[str] = DEFAULT_BUNDLE) -> ModelBundle:
    """Load and validate a bundle.

    Args:
        path_or_name: a bundle's folder, its ``model.yaml``, or the name of a shipped bundle;
            ``NAME/FOLDER`` is the bundle inside a shipped one.

    Raises:
        BundleError: no such bundle, an unreadable card, a missing or wrong entry, missing
            weights, weights whose hash is not the card's, or a bundle inside it of which this
            holds, or that does not belong to it.
    """
    folder = find_bundle(path_or_name)
    try:
        return _validated(read_card(folder / CARD_NAME), folder)
    except OSError as error:
        raise BundleError(
            f'the bundle {folder} cannot be read ({error}); let this user read it, or copy it anew'
        ) from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open('rb') as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _validated(card: Card, folder: Path) -> ModelBundle:
    if card.get('format', int) != CARD_FORMAT:
        raise BundleError(
            f'the card {card.path} has format {card.card["format"]}, this version reads format '
            f'{CARD_FORMAT}; export the bundle again with this version'
        )
    names, colors = _classes(card)
    inputs = _inputs(card)
    stride, dynamic = _stride_and_dynamic(card, *next(iter(inputs.items())))
    weights, sha256 = _weights(card, folder)
    return ModelBundle(
        path=folder,
        name=card.name('name'),
        card=card.card,
        rgb=inputs.get('rgb'),
        hha=inputs.get('hha'),
        depth=inputs.get('depth'),
        stride=stride,
        dynamic=dynamic,
        class_names=names,
        colors=colors,
        depth_range_m=_depth_range(card) if {'hha', 'depth'} & {*inputs} else None,
        weights_path=weights,
        weights_sha256=sha256,
        metrics=card.get('metrics', dict),
        temperature=_temperature(card),
        fused=_fused(card, inputs, dynamic) if 'fused' in card.card else None,
        single_sensor=_single_sensor(card, folder, inputs, names),
        copes_without=_copes_without(card, inputs),
    )


def _depth_range(card: Card) -> tuple[float, float]:
    near, far = (float(v) for v in card.numbers('depth.range_m', 2))
    if not 0 <= near < far:
        raise card.wrong('depth.range_m', [near, far])
    return near, far


def _temperature(card: Card) -> float:
    if 'confidence' not in card.card:
        return 1.0
    temperature = card.get('confidence.temperature', (int, float))
    if not 0.01 <= temperature <= 100:  # no network is so sure of itself, or so unsure
        raise card.wrong('confidence.temperature', temperature)
    return float(temperature)


def _inputs(card: Card) -> dict[str, TensorInput]:
    """Return the inputs by name, the leading one first."""
    listed = card.get('inputs', dict)
    if not listed or set(listed) - set(MODALITIES):
        raise card.wrong('inputs', sorted(map(str, listed)))
    inputs = {name: _tensor(card, f'inputs.{name}') for name in MODALITIES if name in listed}
    if len({(inputs[name].width, inputs[name].height) for name in inputs if name != 'rgb'}) > 1:
        raise BundleError(
            f'the card {card.path} gives the inputs hha and depth different sizes, but both are '
            'the size of the depth stream; export the bundle again'
        )
    return inputs


def _tensor(card: Card, key: str) -> TensorInput:
    height, width = card.get(f'{key}.height', int), card.get(f'{key}.width', int)
    mean, std = card.numbers(f'{key}.mean', 3), card.numbers(f'{key}.std', 3)
    if height <= 0 or width <= 0 or not (std > 0).all():
        raise card.wrong(key, card.get(key, dict))
    return TensorInput(height, width, mean, std)


def _stride_and_dynamic(card: Card, name: str, leading: TensorInput) -> tuple[int, DynamicAxes]:
    stride = card.get('output.stride', int)
    if stride <= 0:
        raise card.wrong('output.stride', stride)
    for side in ('width', 'height'):
        if (pixels := getattr(leading, side)) % stride:
            why = f', no multiple of output.stride, {stride}'
            raise card.wrong(f'inputs.{name}.{side}', pixels, why)
    if 'dynamic' not in card.card:
        return stride, DynamicAxes()
    axes = DynamicAxes(
        card.flag('dynamic.batch'), card.flag('dynamic.size'), card.get('dynamic.multiple', int)
    )
    step = axes.multiple
    if step <= 0 or step % stride or leading.height % step or leading.width % step:
        raise card.wrong('dynamic.multiple', step)
    return stride, axes


def _fused(card: Card, inputs: Mapping[str, TensorInput], dynamic: DynamicAxes) -> FusedForm:
    width, height = card.get('fused.width', int), card.get('fused.height', int)
    hha, sha256 = card.flag('fused.hha'), card.get('fused.base.sha256', str)
    impossible = dynamic.batch or dynamic.size or 'depth' in inputs
    if width <= 0 or height <= 0 or impossible or (hha and 'hha' not in inputs):
        raise card.wrong('fused', card.get('fused', dict))
    return FusedForm(width, height, hha, card.name('fused.base.name'), sha256)


def _test_mean_iou(bundle: ModelBundle) -> float:
    """Return the measured mIoU on the first of the test sets, that of the training data."""
    return next(iter(bundle.mean_iou.values()), 0.0)


def _single_sensor(
    card: Card, folder: Path, inputs: Mapping[str, TensorInput], class_names: tuple[str, ...]
) -> dict[str, ModelBundle]:
    """Return the bundles inside a bundle by modality."""
    listed = card.get('single_sensor', dict) if 'single_sensor' in card.card else {}
    if listed and (len(inputs) < 2 or set(listed) - set(inputs)):
        raise card.wrong('single_sensor', sorted(map(str, listed)))
    nested = {}
    for modality in (name for name in inputs if name in listed):
        entry = f'single_sensor.{modality}'
        name, sha256 = card.name(f'{entry}.folder'), card.get(f'{entry}.sha256', str)
        if not (folder / name / CARD_NAME).is_file():
            raise BundleError(
                f'the bundle {folder} lacks {name}, its part for {modality} alone; copy it whole'
            )
        bundle = nested[modality] = load_bundle(folder / name)
        _check_part(bundle, modality, sha256, folder, class_names)
    return nested


def _copes_without(card: Card, inputs: Mapping[str, TensorInput]) -> tuple[str, ...]:
    listed = card.get('copes_without', list) if 'copes_without' in card.card else []
    seen = {sensor_of(name) for name in inputs}
    if listed and (len(seen) < 2 or any(sensor not in SENSORS for sensor in listed)):
        raise card.wrong('copes_without', listed)
    return tuple(sensor for sensor in SENSORS if sensor in listed)


def _check_part(
    part: ModelBundle, modality: str, sha256: str, folder: Path, class_names: tuple[str, ...]
) -> None:
    """Check that a bundle answers from one modality in the place of the one around it."""
    wrong = ''
    if list(part.inputs) != [modality]:
        wrong = f'sees {" and ".join(part.inputs)}, not {modality} alone'
    elif part.class_names != class_names:
        wrong = 'tells other classes apart'
    elif part.fused is not None:
        wrong = 'is fused, which only the one around it can be'
    elif part.weights_sha256 != sha256.lower():
        wrong = 'has other weights than its card names'
    if wrong:
        raise BundleError(
            f'{part.path} does not belong to the bundle {folder}: it {wrong}; export the bundle '
            'again, or copy it whole'
        )


def _classes(card: Card) -> tuple[tuple[str, ...], np.ndarray]:
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


def _weights(card: Card, folder: Path) -> tuple[Path, str]:
    name, expected = card.name('weights.file'), card.get('weights.sha256', str).lower()
    path = folder / name
    if not path.is_file():
        raise BundleError(f'the bundle {folder} lacks its weights {name}; copy it whole')
    if (actual := file_sha256(path)) != expected:
        raise BundleError(
            f'{path} does not match its card (sha256 {actual[:12]}…, expected {expected[:12]}…); '
            'copy the bundle again or export it anew'
        )
    return path, actual
