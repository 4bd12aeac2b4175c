"""The commands about engines: build-engine and benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE, ModelBundle
from rgbd_fusion_seg.cli.arguments import (
    Commands,
    add_camera,
    add_command,
    add_input_size,
    count,
    print_files,
    size,
    tell,
)
from rgbd_fusion_seg.engine import PRECISIONS
from rgbd_fusion_seg.engine_building.build_options import BUILDERS, BuildOptions
from rgbd_fusion_seg.errors import EngineError, FrameError, InputError
from rgbd_fusion_seg.progress import progress_bar

FRAME_SIZE = (640, 480)
"""Width and height that most RGB-D cameras have."""
SYNTHETIC_FRAMES = 8
"""Rooms that are rendered to compare engines on; each takes a second or two."""

# The commands import what they need when they run: help and wrong usage are answered at once.


def add_commands(commands: Commands) -> None:
    """Add them to the command line."""
    _add_build_engine(commands)
    _add_benchmark(commands)


def _build_engine(options: argparse.Namespace) -> int:
    from rgbd_fusion_seg.bundle import load_bundle
    from rgbd_fusion_seg.engine.engine_files import read_card
    from rgbd_fusion_seg.engine_building.tensorrt_build import build_engine
    from rgbd_fusion_seg.replay.segment import open_source

    bundle, sizes = load_bundle(options.bundle), tuple(options.sizes or ())
    camera = _camera(options)
    if options.frames is not None:  # what cannot be is told before the work
        open_source(options.frames, only=bundle.sole_sensor, **camera)
    fuses = options.fuse_postprocess or options.fuse_hha
    if options.frame_size and not fuses:
        raise InputError('--frame-size belongs to --fuse-postprocess and --fuse-hha; add one')
    if fuses and len(sizes) > 1:
        raise InputError('a fused bundle has one size: give --input-size in place of --sizes')
    build_options = BuildOptions(
        flavour=options.flavour,
        precision=options.precision,
        sizes=() if fuses else sizes,
        workspace_mib=options.workspace or 0,
        optimization_level=options.optimization_level,
        timing_cache=options.timing_cache,
        compute_capabilities=tuple(options.compute_capability),
        version_compatible=options.version_compatible,
        force=options.force,
        wait=options.wait,
    )
    if fuses:
        bundle = bundle.resized(*sizes[0]) if sizes else bundle
        bundle = _fused(bundle, options.frame_size or FRAME_SIZE, options.fuse_hha)
    with _EngineBar(bundle.name) as bar:
        path = build_engine(bundle, build_options, options.output, bar.show)
    card = read_card(path)
    if card.agreement is None or options.frames is not None:
        sizes = card.options['sizes']
        bundle = bundle.resized(*sizes[len(sizes) // 2])
        _check(bundle, path, options.frames, camera)
    print(read_card(path).text(path))
    if not bar.shown:
        print('nothing was built, for this engine fits; --force builds it again')
    for part in bundle.single_sensor.values():
        tell(f'{part.path} has an engine of its own: rgbd-fusion-seg build-engine {part.path}')
    return 0


def _fused(bundle: ModelBundle, frame_size: tuple[int, int], hha: bool) -> ModelBundle:
    try:
        from rgbd_fusion_seg.engine_building.fused_graph import fused_beside
    except ImportError as error:
        raise EngineError(
            f'fusing needs onnx and onnxscript ({error}); install them with: '
            'pip install onnx onnxscript'
        ) from error
    fused = fused_beside(bundle, frame_size, hha)
    tell(f'fused into {fused.path}')
    return fused


def _camera(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the options tell of the camera of ``--frames``, as of `open_source`."""
    if options.frames is None and (options.intrinsics or options.depth_scale is not None):
        raise InputError('--intrinsics and --depth-scale tell of --frames; give these too')
    return {'calibration': options.intrinsics, 'depth_scale_m': options.depth_scale}


def _check(bundle: ModelBundle, path: Path, frames: Path | None, camera: dict[str, Any]) -> None:
    """Compare a new engine with ONNX Runtime where a GPU can run it, else say why not."""
    from rgbd_fusion_seg.engine.cuda import find_device

    try:
        find_device()
        from rgbd_fusion_seg.benchmark.engine_check import check_engine

        check_engine(bundle, path, frames, **camera)
    except (EngineError, FrameError) as error:
        tell(f'agreement with ONNX Runtime and latency were not measured: {error}')


class _EngineBar:
    """The progress of a build, with the name of its phase."""

    def __init__(self, name: str) -> None:
        self._bar: tqdm | None = None
        self._name = name

    def show(self, phase: str, share: float) -> None:
        if self._bar is None:
            layout = '{desc}: {percentage:3.0f}% |{bar}| {elapsed}{postfix}'
            self._bar = progress_bar(desc=f'building {self._name}', total=1.0, bar_format=layout)
        self._bar.set_postfix_str(phase.lower(), refresh=False)
        self._bar.update(share - self._bar.n)

    @property
    def shown(self) -> bool:
        """Whether a build has begun."""
        return self._bar is not None

    def __enter__(self) -> _EngineBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _benchmark(options: argparse.Namespace) -> int:
    from rgbd_fusion_seg import kernels
    from rgbd_fusion_seg.benchmark import compare, report
    from rgbd_fusion_seg.bundle import load_bundle

    camera = _camera(options)
    bundle = load_bundle(options.bundle)
    if options.input_size is not None:
        bundle = bundle.resized(*options.input_size)
    compare.find_contenders(bundle, options.backends)  # what cannot be is told before the work
    if options.json is not None:
        report.check_writable(options.json)
    kernels.warm_up()
    most = options.max_frames
    if options.frames is None:
        tell('no --frames were given: the engines are compared on synthetic rooms')
        most = min(most, SYNTHETIC_FRAMES)
    frames = compare.frames_of(options.frames, most, bundle, **camera)
    what = compare.BenchmarkOptions(tuple(options.backends), options.repeats, options.load)
    result = compare.compare(bundle, frames, what, progress=True)
    print(report.table(result))
    for label, reason in result['not_compared'].items():
        print(f'not compared: {label}: {reason}')
    print(result['recommendation'])
    if options.json is not None:
        report.write_json(options.json, result)
    print_files([*map(Path, result['kept']), *([options.json] if options.json else [])])
    return 0


def _add_build_engine(commands: Commands) -> None:
    parser = add_command(
        commands, 'build-engine', _build_engine, 'build the TensorRT engine of a bundle'
    )
    parser.add_argument('bundle', metavar='BUNDLE', help='name or folder of a model')
    parser.add_argument(
        '--flavour',
        default='',
        choices=BUILDERS,
        help='which TensorRT builds it (default: tensorrt on a GPU, else what is installed)',
    )
    parser.add_argument(
        '--precision',
        default='fp16',
        choices=PRECISIONS,
        help='in which the network computes (default: %(default)s)',
    )
    _add_engine_sizes(parser)
    _add_fusing(parser)
    parser.add_argument(
        '--compute-capability',
        nargs='+',
        default=(),
        metavar='X.Y',
        help='GPUs to build for with TensorRT-RTX, such as 8.6 8.9, or "current" (default: all '
        'from 8.0 on, or that of this GPU if it is older)',
    )
    parser.add_argument(
        '--version-compatible',
        action='store_true',
        help='let newer versions of TensorRT and its lean runtime run the engine, too',
    )
    parser.add_argument(
        '--workspace',
        type=count,
        metavar='MIB',
        help='memory that kernels may use (default: all)',
    )
    parser.add_argument(
        '--optimization-level',
        type=int,
        choices=range(6),
        help='0 builds fastest, 5 makes the fastest engine (default: 3); RTX has none',
    )
    parser.add_argument(
        '--timing-cache',
        type=Path,
        metavar='FILE',
        help='of kernels measured by earlier builds; RTX has none',
    )
    parser.add_argument('--output', type=Path, help='folder to write (default: in the bundle)')
    parser.add_argument(
        '--frames',
        type=Path,
        metavar='PATH',
        help='folder or bag to compare engine and ONNX Runtime on (default: a synthetic room)',
    )
    add_camera(parser)
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
        type=size,
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
        type=size,
        nargs=1,
        metavar='WxH',
        help='of a bundle with dynamic size (default: as on the card of the bundle)',
    )
    sizes.add_argument(
        '--sizes',
        type=size,
        nargs=3,
        metavar=('MIN', 'OPT', 'MAX'),
        help='of an engine that takes all sizes between, such as 256x192 512x384 640x480',
    )


def _add_benchmark(commands: Commands) -> None:
    parser = add_command(
        commands, 'benchmark', _benchmark, 'compare the engines that can run here'
    )
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
        type=count,
        default=50,
        metavar='N',
        help='rounds; each labels a frame with each engine (default: %(default)s)',
    )
    parser.add_argument(
        '--load',
        type=count,
        default=0,
        metavar='N',
        help='measure with so many busy processes beside, too',
    )
    parser.add_argument(
        '--max-frames',
        type=count,
        default=20,
        metavar='N',
        help='of the recording, from all over it (default: %(default)s)',
    )
    add_input_size(parser)
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the result, too')
    add_camera(parser)
