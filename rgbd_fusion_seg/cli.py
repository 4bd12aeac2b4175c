"""``rgbd-fusion-seg``: segment recordings, make bags, run the demo, build engines, and more.

Exit codes: 0 good, 1 failed (with one sentence on stderr), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE, ModelBundle
from rgbd_fusion_seg.errors import EngineError, FrameError, InputError, RgbdFusionSegError

if TYPE_CHECKING:
    from rgbd_fusion_seg.engine.engine_files import EngineCard

FRAME_SIZE = (640, 480)
"""Width and height that most RGB-D cameras have."""

SYNTHETIC_FRAMES = 8
"""Rooms that are rendered to compare engines on; each takes a second or two."""

# The commands import what they need when they run: help and wrong usage are answered at once.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(argv)
    logging.basicConfig(format='%(message)s', level=logging.INFO)
    try:
        with logging_redirect_tqdm():
            return options.run(options)
    except RgbdFusionSegError as error:
        print(f'rgbd-fusion-seg: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _segment(options: argparse.Namespace) -> int:
    from rgbd_fusion_seg import kernels
    from rgbd_fusion_seg.bundle import load_bundle
    from rgbd_fusion_seg.replay.calibration import parse_calibration
    from rgbd_fusion_seg.replay.report import table_text
    from rgbd_fusion_seg.replay.segment import open_source, segment_recording
    from rgbd_fusion_seg.replay.topics import BagTopics
    from rgbd_fusion_seg.segmenter import Segmenter

    calibration = parse_calibration(options.intrinsics) if options.intrinsics else None
    topics = BagTopics(options.color_topic, options.depth_topic, options.camera_info_topic)
    source = open_source(
        options.path,
        calibration=calibration,
        depth_scale_m=options.depth_scale,
        topics=topics,
    )
    bundle = load_bundle(options.bundle)
    _tell('preparing kernels (the first time ever they are compiled)')
    kernels.warm_up()
    segmenter = Segmenter(bundle, backend=options.backend, input_size=options.input_size)
    segmenter.warm_up()
    try:
        result = segment_recording(
            source,
            segmenter,
            options.output,
            video=options.video,
            max_frames=options.max_frames,
            progress=True,
        )
        print(table_text(f'{bundle.name} on {segmenter.engine_name}', result.rows))
    finally:
        segmenter.close()
    _print_files(result.files)
    return 0


def _bag(options: argparse.Namespace) -> int:
    from rgbd_fusion_seg.replay.bags import folder_to_bag
    from rgbd_fusion_seg.replay.calibration import parse_calibration

    count = folder_to_bag(
        options.folder,
        options.bag,
        options.rate,
        calibration=parse_calibration(options.intrinsics) if options.intrinsics else None,
        depth_scale_m=options.depth_scale,
        progress=True,
    )
    print(f'{count} frames in {options.bag}')
    return 0


def _demo(options: argparse.Namespace) -> int:
    from rgbd_fusion_seg.demo import DEMO_SEED, DemoOptions, run_demo
    from rgbd_fusion_seg.replay.report import table_text

    result = run_demo(
        DemoOptions(
            output=options.output,
            seconds=options.seconds,
            bundle=options.bundle,
            backend=options.backend,
            seed=DEMO_SEED if options.seed is None else options.seed,
        ),
        tell=_tell,
    )
    print(table_text('synthetic_camera -> segmentation_node over DDS', result.rows))
    _print_files(result.files)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from rgbd_fusion_seg.doctor import examine

    report = examine(options.bundle)
    print(report.text())
    return 0 if report.healthy else 1


def _benchmark(options: argparse.Namespace) -> int:
    from rgbd_fusion_seg import kernels
    from rgbd_fusion_seg.benchmark import compare, report
    from rgbd_fusion_seg.bundle import load_bundle
    from rgbd_fusion_seg.replay.calibration import parse_calibration
    from rgbd_fusion_seg.replay.segment import open_source

    bundle = load_bundle(options.bundle)
    if options.input_size is not None:
        bundle = bundle.resized(*options.input_size)
    compare.find_contenders(bundle, options.backends)  # what cannot be is told before the work
    if options.json is not None:
        report.check_writable(options.json)
    kernels.warm_up()
    if options.frames is not None:
        calibration = parse_calibration(options.intrinsics) if options.intrinsics else None
        source = open_source(
            options.frames, calibration=calibration, depth_scale_m=options.depth_scale
        )
        frames = compare.recorded_frames(source, options.frames, options.max_frames)
    else:
        _tell('no --frames were given: the engines are compared on synthetic rooms')
        frames = compare.synthetic_frames(min(options.max_frames, SYNTHETIC_FRAMES))
    what = compare.BenchmarkOptions(tuple(options.backends), options.repeats, options.load)
    result = compare.compare(bundle, frames, what, progress=True)
    print(report.table(result))
    for label, reason in result['not_compared'].items():
        print(f'not compared: {label}: {reason}')
    print(result['recommendation'])
    if options.json is not None:
        report.write_json(options.json, result)
    _print_files([*map(Path, result['kept']), *([options.json] if options.json else [])])
    return 0


def _build_engine(options: argparse.Namespace) -> int:
    from rgbd_fusion_seg.bundle import load_bundle
    from rgbd_fusion_seg.engine.build_options import BuildOptions
    from rgbd_fusion_seg.engine.engine_files import read_card
    from rgbd_fusion_seg.engine.tensorrt_build import build_engine

    bundle = load_bundle(options.bundle)
    if options.fuse_postprocess or options.fuse_hha:
        bundle = _fused(bundle, options.frame_size or FRAME_SIZE, options.fuse_hha)
    elif options.frame_size:
        raise InputError('--frame-size belongs to --fuse-postprocess and --fuse-hha; add one')
    build_options = BuildOptions(
        flavour=options.flavour,
        precision=options.precision,
        sizes=tuple(options.sizes or ()),
        workspace_mib=options.workspace or 0,
        optimization_level=options.optimization_level,
        timing_cache=options.timing_cache,
        compute_capabilities=tuple(options.compute_capability),
        version_compatible=options.version_compatible,
        force=options.force,
        wait=options.wait,
    )
    with _EngineBar(bundle.name) as bar:
        path = build_engine(bundle, build_options, options.output, bar.show)
    card = read_card(path)
    if card.agreement is None or options.frames is not None:
        sizes = card.options['sizes']
        bundle = bundle.resized(*sizes[len(sizes) // 2])
        card = _checked(bundle, path, options.frames) or card
    print(card.text(path))
    return 0


def _fused(bundle: ModelBundle, frame_size: tuple[int, int], hha: bool) -> ModelBundle:
    try:
        from rgbd_fusion_seg.engine.fused_graph import fused_beside
    except ImportError as error:
        raise EngineError(
            f'fusing needs onnx and onnxscript ({error}); install them with: '
            'pip install onnx onnxscript'
        ) from error
    fused = fused_beside(bundle, frame_size, hha)
    _tell(f'fused into {fused.path}')
    return fused


def _checked(bundle: ModelBundle, path: Path, frames: Path | None) -> EngineCard | None:
    """Compare a new engine with ONNX Runtime where a GPU can run it, else say why not."""
    from rgbd_fusion_seg.engine.cuda import find_device

    try:
        find_device()
        from rgbd_fusion_seg.benchmark.engine_check import check_engine

        return check_engine(bundle, path, frames)
    except (EngineError, FrameError) as error:
        _tell(f'agreement with ONNX Runtime and latency were not measured: {error}')
        return None


class _EngineBar:
    """The progress of a build, with the name of its phase."""

    def __init__(self, name: str) -> None:
        self._bar: tqdm | None = None
        self._name = name

    def show(self, phase: str, share: float) -> None:
        if self._bar is None:
            layout = '{desc}: {percentage:3.0f}% |{bar}| {elapsed}{postfix}'
            self._bar = tqdm(desc=f'building {self._name}', total=1.0, bar_format=layout)
        self._bar.set_postfix_str(phase.lower(), refresh=False)
        self._bar.update(share - self._bar.n)

    def __enter__(self) -> _EngineBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _print_files(files: Sequence[Path]) -> None:
    print('\n'.join(f'wrote {path}' for path in files))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='rgbd-fusion-seg',
        description='Segment recordings, make bags, run the demo, examine the installation.',
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    _add_segment(commands)
    _add_bag(commands)
    _add_demo(commands)
    _add_build_engine(commands)
    _add_benchmark(commands)
    doctor = _add(commands, 'doctor', _doctor, 'tell what is installed and what can run')
    _add_bundle(doctor)
    return parser


def _add_segment(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands, 'segment', _segment, 'segment a folder of images or a bag, without ROS'
    )
    parser.add_argument('path', type=Path, help='folder of images, rosbag2 folder, .mcap, .bag')
    parser.add_argument(
        '--output',
        type=Path,
        default=Path('segmentation_output'),
        help='folder to write (default: %(default)s)',
    )
    _add_bundle(parser)
    _add_backend(parser)
    parser.add_argument(
        '--video',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='write overlay.mp4 (default: yes)',
    )
    parser.add_argument(
        '--input-size',
        type=_size,
        metavar='WxH',
        help='at which the network sees frames (default: as on the card of the bundle)',
    )
    parser.add_argument('--max-frames', type=_count, metavar='N', help='stop after N frames')
    _add_camera(parser)
    for role in ('color', 'depth', 'camera-info'):
        parser.add_argument(f'--{role}-topic', metavar='TOPIC', help='of a bag (default: found)')


def _add_bag(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, 'bag', _bag, 'make an MCAP bag from a folder of images')
    parser.add_argument('folder', type=Path, help='folder of images')
    parser.add_argument('bag', type=Path, help='bag to make; it must not exist')
    parser.add_argument(
        '--rate', type=_positive, default=30.0, help='frames per second (default: %(default)g)'
    )
    _add_camera(parser)


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands, 'demo', _demo, 'a synthetic camera and the segmentation node over real ROS 2'
    )
    parser.add_argument(
        '--output',
        type=Path,
        default=Path('demo_output'),
        help='folder to write (default: %(default)s)',
    )
    parser.add_argument(
        '--seconds', type=_positive, default=20.0, help='of recording (default: %(default)g)'
    )
    parser.add_argument('--seed', type=int, help='which room (default: one kept from training)')
    _add_bundle(parser)
    _add_backend(parser)


def _add_build_engine(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, 'build-engine', _build_engine, 'build the TensorRT engine of a bundle')
    parser.add_argument('bundle', metavar='BUNDLE', help='name or folder of a model')
    parser.add_argument(
        '--flavour',
        default='',
        choices=('tensorrt', 'tensorrt_rtx'),
        help='which TensorRT builds it (default: tensorrt on a GPU, else what is installed)',
    )
    parser.add_argument(
        '--precision',
        default='fp16',
        choices=('fp32', 'fp16', 'bf16'),
        help='in which the network computes (default: %(default)s)',
    )
    _add_engine_sizes(parser)
    _add_fusing(parser)
    parser.add_argument(
        '--compute-capability',
        nargs='+',
        default=(),
        metavar='X.Y',
        help='GPUs to build for with TensorRT-RTX, such as 8.6 8.9 (default: all from 8.0 on), '
        'or "current"',
    )
    parser.add_argument(
        '--version-compatible',
        action='store_true',
        help='let newer versions of TensorRT and its lean runtime run the engine, too',
    )
    parser.add_argument(
        '--workspace',
        type=_count,
        metavar='MIB',
        help='memory that kernels may use (default: all)',
    )
    parser.add_argument(
        '--optimization-level',
        type=int,
        choices=range(6),
        help='0 builds fastest, 5 makes the fastest engine (default: 3)',
    )
    parser.add_argument(
        '--timing-cache', type=Path, metavar='FILE', help='of kernels measured by earlier builds'
    )
    parser.add_argument('--output', type=Path, help='folder to write (default: in the bundle)')
    parser.add_argument(
        '--frames',
        type=Path,
        metavar='PATH',
        help='folder or bag to compare engine and ONNX Runtime on (default: a synthetic room)',
    )
    parser.add_argument('--force', action='store_true', help='build even if an engine fits')
    parser.add_argument(
        '--wait', action='store_true', help='until another process has built its engine'
    )


def _add_fusing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--fuse-postprocess',
        action='store_true',
        help='build another bundle, made beside this one: the GPU resamples colour and labels '
        'pixels, too',
    )
    parser.add_argument(
        '--fuse-hha', action='store_true', help='the same, and the GPU makes HHA from depth'
    )
    parser.add_argument(
        '--frame-size',
        type=_size,
        metavar='WxH',
        help='of the camera, for the fused bundle, which takes no other (default: {}x{})'.format(
            *FRAME_SIZE
        ),
    )


def _add_engine_sizes(parser: argparse.ArgumentParser) -> None:
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        '--input-size',
        dest='sizes',
        type=_size,
        nargs=1,
        metavar='WxH',
        help='of a bundle with dynamic size (default: as on the card of the bundle)',
    )
    sizes.add_argument(
        '--sizes',
        type=_size,
        nargs=3,
        metavar=('MIN', 'OPT', 'MAX'),
        help='of an engine that takes all sizes between, such as 256x192 512x384 640x480',
    )


def _add_benchmark(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, 'benchmark', _benchmark, 'compare the engines that can run here')
    parser.add_argument(
        'bundle',
        nargs='?',
        default=DEFAULT_BUNDLE,
        help='name or folder of a model (default: %(default)s)',
    )
    parser.add_argument(
        '--frames',
        type=Path,
        metavar='FOLDER_OR_BAG',
        help='recording to label; what agrees on it may be used (default: synthetic rooms)',
    )
    parser.add_argument(
        '--backends',
        nargs='+',
        default=[],
        metavar='NAME',
        help='"doctor" lists them (default: all that can run here)',
    )
    parser.add_argument(
        '--repeats',
        type=_count,
        default=50,
        metavar='N',
        help='rounds; each labels a frame with each engine (default: %(default)s)',
    )
    parser.add_argument(
        '--load',
        type=_count,
        default=0,
        metavar='N',
        help='measure with so many busy processes beside, too',
    )
    parser.add_argument(
        '--max-frames',
        type=_count,
        default=20,
        metavar='N',
        help='of the recording, from all over it (default: %(default)s)',
    )
    parser.add_argument(
        '--input-size',
        type=_size,
        metavar='WxH',
        help='at which the network sees frames (default: as on the card of the bundle)',
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the result, too')
    _add_camera(parser)


def _add(
    commands: argparse._SubParsersAction, name: str, run: object, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--bundle', default=DEFAULT_BUNDLE, help='name or folder of a model (default: %(default)s)'
    )


def _add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--backend',
        default='auto',
        help='inference engine; "doctor" lists them (default: %(default)s)',
    )


def _add_camera(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--intrinsics',
        metavar='FX,FY,CX,CY',
        help='of the colour camera, in pixels, instead of the calibration that was recorded',
    )
    parser.add_argument(
        '--depth-scale',
        type=_positive,
        default=0.001,
        metavar='METRES',
        help='one unit of the depth images of a folder (default: %(default)g, a millimetre)',
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is not a positive number')
    return value


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition('x')
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text} is no size; give it as 320x240')
    return int(width), int(height)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a positive number')
    return value


if __name__ == '__main__':
    sys.exit(main())
