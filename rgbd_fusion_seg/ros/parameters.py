"""Every parameter of the nodes: frozen dataclasses that declare themselves with descriptors.

A nested dataclass is a section: the field ``sync: SyncConfig`` becomes the parameters
``sync.slop_s``, ``sync.queue_size`` and so on, a section ``sync:`` in a ROS YAML file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE
from rgbd_fusion_seg.engine import BACKENDS, PRECISIONS, options_known_to
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import Intrinsics
from rgbd_fusion_seg.ros.synchroniser import MATCHERS

Config = TypeVar('Config')
_QOS = 'qos_overrides.'
_OF_ROS = (_QOS, 'start_type_description_service')
"""Parameters of every node, which rclpy declares later or, in some distributions, not at all."""
_ALIKE, _QOS_ALIKE = 0.6, 0.9
"""How similar names must be, 0 to 1, for the one to be meant; all overrides look much alike."""


def setting(
    default: Any,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Return a dataclass field that is a parameter.

    Args:
        default: its default; its type is the parameter's type.
        description: what it does and its unit, shown by ``ros2 param describe``.
        minimum, maximum: range of a number; both or neither.
        choices: the only accepted strings.
    """
    metadata = {
        'description': description,
        'minimum': minimum,
        'maximum': maximum,
        'choices': choices,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class EngineConfig:
    """Section ``engine``: which network runs, and on what."""

    bundle: str = setting(DEFAULT_BUNDLE, 'Name of a shipped model bundle, or path of a folder.')
    backend: str = setting(
        'auto', 'Inference backend (rgbd-fusion-seg doctor lists them); auto takes the best.'
    )
    build: str = setting(
        'never',
        'What to do where TensorRT and its GPU are here but no engine that fits: background '
        'builds one in a process of its own while the CPU serves. It needs the backend auto.',
        choices=('never', 'background'),
    )
    precision: str = setting(
        'auto',
        'Arithmetic of the engine; auto takes the best TensorRT engine there is, builds fp16, and '
        'leaves CPUs in fp32.',
        choices=('auto', *PRECISIONS),
    )
    device: int = setting(
        0, 'Number of the GPU, as CUDA counts them, from 0.', minimum=0, maximum=63
    )
    num_threads: int = setting(
        0, 'Threads of CPU inference; 0 = one for each core.', minimum=0, maximum=256
    )
    input_width: int = setting(
        0,
        'Width at which the network sees images, in pixels, for bundles that leave it open; 0 = '
        'as on the card. Give input_height too.',
        minimum=0,
        maximum=8192,
    )
    input_height: int = setting(
        0, 'Height at which the network sees images, in pixels.', minimum=0, maximum=8192
    )

    def __post_init__(self) -> None:
        if bool(self.input_width) != bool(self.input_height):
            given, missing = ('width', 'height') if self.input_width else ('height', 'width')
            raise InputError(
                f'the parameter engine.input_{given} is given but engine.input_{missing} is not; '
                "give both, or neither for the size on the bundle's card"
            )
        if self.build == 'background' and self.backend != 'auto':
            raise InputError(
                f'the parameter engine.build is background but engine.backend is {self.backend}; '
                'set it to auto, so that another engine can serve meanwhile'
            )

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Width and height that the network is to see; None for those on the card."""
        if not self.input_width and not self.input_height:
            return None
        return self.input_width, self.input_height

    @property
    def options(self) -> dict[str, Any]:
        """Options of the backend, as far as they were given and concern it."""
        machine = {'num_threads': self.num_threads, 'device': self.device}
        if self.backend in BACKENDS:  # one of GPUs has no use for the CPU's threads, and so on
            machine = options_known_to(self.backend, machine)
        return {name: value for name, value in machine.items() if value} | self.build_options

    @property
    def build_options(self) -> dict[str, Any]:
        """Options of a build in the background."""
        return {} if self.precision == 'auto' else {'precision': self.precision}


@dataclass(frozen=True)
class SyncConfig:
    """Section ``sync``: how colour and depth become pairs, and which pairs are too old."""

    matcher: str = setting(
        'auto',
        'Who pairs the messages; auto is message_filters where it is installed.',
        choices=MATCHERS,
    )
    slop_s: float = setting(
        0.02,
        'Largest difference of the stamps of a pair in seconds; never more than 0.6 of the period '
        'of the faster stream.',
        minimum=0.0001,
        maximum=10.0,
    )
    queue_size: int = setting(
        10, 'Messages of each stream that wait for their partner.', minimum=1, maximum=1000
    )
    max_age_s: float = setting(
        0.0,
        'Drop a pair whose colour stamp is older than this many seconds before it is worked on; '
        '0 = never.',
        minimum=0.0,
        maximum=3600.0,
    )
    warn_after_s: float = setting(
        3.0, 'Say why no pair came after this many seconds.', minimum=0.5, maximum=3600.0
    )


@dataclass(frozen=True)
class SingleSensorConfig:
    """Section ``single_sensor``: what happens when colour or depth falls silent.

    It concerns bundles that can answer from one sensor alone.
    """

    after_s: float = setting(
        1.0,
        'Label colour or depth alone when the other has been silent for this many seconds; more '
        'than the period of the slower camera, 0 = never.',
        minimum=0.0,
        maximum=3600.0,
    )
    preload: bool = setting(
        True,
        'Load at start what answers from one sensor alone; false saves its memory, and the first '
        'frame after a loss waits until it is loaded.',
    )


@dataclass(frozen=True)
class CameraConfig:
    """Section ``camera``: what the driver does not tell.

    The intrinsics serve as long as no usable CameraInfo arrives; they are those of the colour
    image at its published size. Networks that see HHA want gravity and the height above the floor,
    which are estimated from the depth where they are not given (`hha.encode_hha`).
    """

    fx: float = setting(
        0.0, 'Focal length in pixels; 0 = wait for a CameraInfo.', minimum=0.0, maximum=1e5
    )
    fy: float = setting(0.0, 'Focal length in pixels; 0 = fx.', minimum=0.0, maximum=1e5)
    cx: float = setting(
        -1.0, 'Principal point in pixels; -1 = image centre.', minimum=-1.0, maximum=1e5
    )
    cy: float = setting(
        -1.0, 'Principal point in pixels; -1 = image centre.', minimum=-1.0, maximum=1e5
    )
    require_same_frame: bool = setting(
        True,
        'Refuse depth whose frame_id is not that of the colour image. Switch off for drivers '
        'that register depth to colour but keep the name of the depth frame.',
    )

    height_m: float = setting(
        0.0,
        'Height of the camera above the floor in metres, which should be given where it is below '
        '0.9; 0 = guess it from the depth.',
        minimum=0.0,
        maximum=100.0,
    )
    floor_frame: str = setting(
        '',
        'Frame of TF that stands on the floor with z up, such as base_footprint: gravity and '
        'height of the camera are taken from there; empty = estimate them from the depth.',
    )

    def __post_init__(self) -> None:
        if self.height_m and self.floor_frame:
            raise InputError(
                'the parameters camera.height_m and camera.floor_frame both tell how high the '
                'camera is; give one of them'
            )

    def intrinsics(self, width: int, height: int) -> Intrinsics | None:
        """Return the intrinsics given by parameters for this image size; None without ``fx``."""
        if not self.fx:
            return None
        return Intrinsics(
            self.fx,
            self.fy or self.fx,
            (width - 1) / 2 if self.cx == -1 else self.cx,
            (height - 1) / 2 if self.cy == -1 else self.cy,
            width,
            height,
        )


@dataclass(frozen=True)
class OutputConfig:
    """Section ``output``: what is published."""

    lazy: bool = setting(
        True, 'Run the network only while somebody subscribes to one of the outputs.'
    )
    min_confidence: int = setting(
        0,
        'Label pixels below this confidence (0..255) as 255, unlabelled.',
        minimum=0,
        maximum=255,
    )
    overlay_alpha: float = setting(
        0.5, 'Weight of the class colours in segmentation/overlay.', minimum=0.0, maximum=1.0
    )
    points_color: str = setting(
        'image',
        "Colour of segmentation/points: the camera's, or the class's as in segmentation/color.",
        choices=('image', 'class'),
    )
    diagnostics_period_s: float = setting(
        1.0, 'Seconds between messages on /diagnostics.', minimum=0.1, maximum=60.0
    )


@dataclass(frozen=True)
class SegmentationConfig:
    """All parameters of ``segmentation_node``; they are read when the node is configured."""

    autostart: bool = setting(
        True, 'Configure and activate at start; false leaves that to a lifecycle manager.'
    )
    engine: EngineConfig = field(default_factory=EngineConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    single_sensor: SingleSensorConfig = field(default_factory=SingleSensorConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


@dataclass(frozen=True)
class SyntheticCameraConfig:
    """All parameters of ``synthetic_camera``."""

    seed: int = setting(0, 'Seed of the room and of the way through it.', minimum=0, maximum=2**31)
    rate_hz: float = setting(30.0, 'Images a second.', minimum=0.1, maximum=1000.0)
    width: int = setting(640, 'Width of the images in pixels.', minimum=32, maximum=4096)
    height: int = setting(480, 'Height of the images in pixels.', minimum=32, maximum=4096)
    noise: bool = setting(
        True, 'Kinect-like depth: quantised, with shadows, holes and a range limit.'
    )
    num_frames: int = setting(
        150,
        'Images rendered before publishing starts; they are played to and fro.',
        minimum=2,
        maximum=10000,
    )
    depth_encoding: str = setting(
        '16UC1', 'Encoding of the depth images.', choices=('16UC1', '32FC1')
    )
    frame_id: str = setting('camera_color_optical_frame', 'Frame of all images.')


def declare_parameters(node: Node, config: type, read_only: Collection[str] = ()) -> None:
    """Declare every setting of a config dataclass on a node.

    A number with a fraction may be given as an integer, as in ``-p sync.slop_s:=1``.

    Args:
        node: where they are declared.
        config: the dataclass.
        read_only: names of those that have no effect after the node's start, so that rclpy
            refuses to set them then.

    Raises:
        rclpy.exceptions.ParameterException: a value from the command line or a YAML file has the
            wrong type or is out of range.
    """
    for name, entry, default in _settings(config):
        descriptor = _descriptor(entry)
        descriptor.read_only = name in read_only
        given = node._parameter_overrides.get(name)  # rclpy has no public way to them
        if isinstance(default, float) and given and given.type_ == Parameter.Type.INTEGER:
            node.declare_parameter(name, float(given.value), descriptor, ignore_override=True)
        else:
            node.declare_parameter(name, default, descriptor)


def unknown_parameters(node: Node) -> dict[str, str]:
    """Find the parameters that were given to a node and that it does not have; warn of them.

    They are no error, because a file's section ``/**`` may be shared by nodes of all kinds.

    Returns:
        The most similar name among those the node has declared, or '', by name.
    """
    given = [name for name in node._parameter_overrides if not name.startswith(_OF_ROS)]
    return _tell_unknown(node, given, _ALIKE)


def unknown_qos_overrides(node: Node) -> dict[str, str]:
    """Find the QoS overrides that no topic of a node takes; warn of them.

    They are declared with publishers and subscriptions, so ask when all of these have been made.

    Returns:
        The most similar name among those the node has declared, or '', by name.
    """
    given = [name for name in node._parameter_overrides if name.startswith(_QOS)]
    return _tell_unknown(node, given, _QOS_ALIKE)


def _tell_unknown(node: Node, given: Collection[str], alike: float) -> dict[str, str]:
    known = node.get_parameters_by_prefix('')
    unknown = {
        name: next(iter(get_close_matches(name, known, 1, alike)), '')
        for name in given
        if name not in known
    }
    if unknown:
        node.get_logger().warning(
            f'ignored parameters, for this node has none of that name: {name_unknown(unknown)}'
        )
    return unknown


def name_unknown(unknown: Mapping[str, str]) -> str:
    """Name what :func:`unknown_parameters` found, and what may have been meant."""
    return ', '.join(
        f'{name} (did you mean {near}?)' if near else name for name, near in unknown.items()
    )


def parameter_names(config: type) -> set[str]:
    """Return the full names of all settings of a config dataclass."""
    return {name for name, _, _ in _settings(config)}


def wrong_choices(config: type, values: Mapping[str, Any]) -> list[str]:
    """Return a sentence for every value, by parameter, that is none of its setting's choices."""
    entries = {name: entry for name, entry, _ in _settings(config)}
    sentences = (_wrong_choice(n, entries[n], v) for n, v in values.items() if n in entries)
    return [sentence for sentence in sentences if sentence]


def read_parameters(node: Node, config: type[Config]) -> Config:
    """Return the current values as an instance of ``config``.

    Raises:
        InputError: a value that is none of the choices, or values that contradict each other.
    """
    return _read(node, config, '')


def _read(node: Node, config: type[Config], prefix: str) -> Config:
    values: dict[str, Any] = {}
    hints = get_type_hints(config)
    for entry in fields(config):  # type: ignore[arg-type]
        name = prefix + entry.name
        if is_dataclass(hints[entry.name]):
            values[entry.name] = _read(node, hints[entry.name], f'{name}.')
            continue
        value = values[entry.name] = node.get_parameter(name).value
        if sentence := _wrong_choice(name, entry, value):
            raise InputError(sentence)
    return config(**values)


def _wrong_choice(name: str, entry: Any, value: Any) -> str:
    choices = entry.metadata['choices']
    if not choices or value in choices:
        return ''
    return f'the parameter {name} is {value!r}; choose one of {", ".join(choices)}'


def _settings(config: type, prefix: str = '') -> list[tuple[str, Any, Any]]:
    """Return (parameter name, dataclass field, default) of every setting, in order."""
    found = []
    hints = get_type_hints(config)
    for entry in fields(config):
        name = prefix + entry.name
        if is_dataclass(hints[entry.name]):
            found += _settings(hints[entry.name], f'{name}.')
        else:
            found.append((name, entry, entry.default))
    return found


def _descriptor(entry: Any) -> ParameterDescriptor:
    about = entry.metadata
    descriptor = ParameterDescriptor(description=about['description'])
    if about['choices']:
        descriptor.additional_constraints = 'one of: ' + ', '.join(about['choices'])
    if about['minimum'] is not None:
        low, high = about['minimum'], about['maximum']
        if isinstance(entry.default, float):
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(low), to_value=float(high))
            ]
        else:
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
    return descriptor
