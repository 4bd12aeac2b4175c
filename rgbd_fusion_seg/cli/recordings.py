"""The commands that work on recordings: segment, bag, demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from rgbd_fusion_seg.cli.arguments import (
    Commands,
    add_backend,
    add_bundle,
    add_camera,
    add_command,
    add_input_size,
    count,
    direction,
    positive,
    print_files,
    seed,
    tell,
)

# The commands import what they need when they run: help and wrong usage are answered at once.


def add_commands(commands: Commands) -> None:
    """Add them to the command line."""
    _add_segment(commands)
    _add_bag(commands)
    _add_demo(commands)


def _segment(options: argparse.Namespace) -> int:
    from rgbd_fusion_seg import kernels
    from rgbd_fusion_seg.bundle import load_bundle
    from rgbd_fusion_seg.replay.report import table_text
    from rgbd_fusion_seg.replay.segment import open_source, open_truth, segment_recording
    from rgbd_fusion_seg.replay.topics import BagTopics
    from rgbd_fusion_seg.segmenter import Segmenter

    bundle = load_bundle(options.bundle)
    if options.only:  # what cannot be is told before the work
        bundle.answering_alone(options.only)
    topics = BagTopics(options.color_topic, options.depth_topic, options.camera_info_topic)
    source = open_source(
        options.path,
        calibration=options.intrinsics,
        depth_scale_m=options.depth_scale,
        topics=topics,
        only=options.only or bundle.sole_sensor,
    )
    with open_truth(source, options.truth, options.truth_topic, options.max_frames) as truth:
        tell('loading kernels (compiled once per installation, which takes up to a minute)')
        kernels.warm_up()
        with Segmenter(bundle, options.backend, input_size=options.input_size) as segmenter:
            segmenter.warm_up()
            result = segment_recording(
                source,
                segmenter,
                options.output,
                truth=truth,
                video=options.video,
                max_frames=options.max_frames,
                only=options.only,
                gravity=options.gravity,
                camera_height=options.camera_height,
                progress=True,
            )
            print(table_text(f'{bundle.name} on {segmenter.engine_name}', result.rows))
    print_files(result.files)
    return 0


def _bag(options: argparse.Namespace) -> int:
    from rgbd_fusion_seg.replay.bags import folder_to_bag
    from rgbd_fusion_seg.replay.folders import DEPTH_SCALE_M

    count = folder_to_bag(
        options.folder,
        options.bag,
        options.rate,
        calibration=options.intrinsics,
        depth_scale_m=options.depth_scale or DEPTH_SCALE_M,
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
        tell=tell,
    )
    print(table_text('synthetic_camera -> segmentation_node over DDS', result.rows))
    print_files(result.files)
    return 0


def _add_segment(commands: Commands) -> None:
    parser = add_command(
        commands, 'segment', _segment, 'segment a folder of images or a bag, without ROS'
    )
    parser.add_argument('path', type=Path, help='folder of images, rosbag2 folder, .mcap, .bag')
    parser.add_argument(
        '--output',
        type=Path,
        default=Path('segmentation_output'),
        help='folder to write (default: %(default)s)',
    )
    add_bundle(parser)
    add_backend(parser)
    parser.add_argument(
        '--video',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='write overlay.mp4 (default: yes)',
    )
    add_input_size(parser)
    truth = parser.add_mutually_exclusive_group()
    truth.add_argument(
        '--truth',
        type=Path,
        metavar='FOLDER',
        help='of label images NAME.png, named as in labels/ of the results, to score against: '
        'pixel = class id, others are not counted (default: no scores)',
    )
    truth.add_argument(
        '--truth-topic',
        metavar='TOPIC',
        help='of a bag: label images with the stamps of the colour images, to score against',
    )
    parser.add_argument('--max-frames', type=count, metavar='N', help='stop after N frames')
    parser.add_argument(
        '--only',
        choices=('rgb', 'depth'),
        default='',
        help='label from this sensor alone, with a bundle that can; a recording may lack the '
        'other one then (default: from both)',
    )
    add_camera(parser)
    parser.add_argument(
        '--camera-height',
        type=positive,
        metavar='METRES',
        help='of the camera above the floor; give it where it is below 0.9 (default: guessed)',
    )
    parser.add_argument(
        '--gravity',
        type=direction,
        metavar='X,Y,Z',
        help='direction of gravity seen by the camera: to its right, down, forward; 0,1,0 for a '
        'level one (default: estimated, up to 45 degrees from there)',
    )
    for role in ('color', 'depth', 'camera-info'):
        parser.add_argument(f'--{role}-topic', metavar='TOPIC', help='of a bag (default: found)')


def _add_bag(commands: Commands) -> None:
    parser = add_command(commands, 'bag', _bag, 'make an MCAP bag from a folder of images')
    parser.add_argument('folder', type=Path, help='folder of images')
    parser.add_argument('bag', type=Path, help='bag to make; it must not exist')
    parser.add_argument(
        '--rate',
        type=positive,
        default=30.0,
        help='frames per second, 0.001 to 1000 (default: %(default)g)',
    )
    add_camera(parser)


def _add_demo(commands: Commands) -> None:
    parser = add_command(
        commands, 'demo', _demo, 'a synthetic camera and the segmentation node over real ROS 2'
    )
    parser.add_argument(
        '--output',
        type=Path,
        default=Path('demo_output'),
        help='folder to write (default: %(default)s)',
    )
    parser.add_argument(
        '--seconds', type=positive, default=20.0, help='of recording (default: %(default)g)'
    )
    parser.add_argument('--seed', type=seed, help='which room (default: one kept from training)')
    add_bundle(parser)
    add_backend(parser)
