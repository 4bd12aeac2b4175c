"""The demo: a synthetic camera and the segmentation node, each a process, over real DDS."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rgbd_fusion_seg import palette
from rgbd_fusion_seg.bundle import DEFAULT_BUNDLE, ModelBundle, load_bundle
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.image_files import read_rgb
from rgbd_fusion_seg.processes import Processes
from rgbd_fusion_seg.replay.evaluate import scores
from rgbd_fusion_seg.replay.output_folder import refuse_foreign
from rgbd_fusion_seg.replay.pictures import (
    VideoWriter,
    contact_sheet,
    evenly,
    main_classes,
    write_image,
)
from rgbd_fusion_seg.replay.report import Result, Value, write_table
from rgbd_fusion_seg.ros_environment import local_environment

DEMO_SEED = 1_000_002
"""A furnished room that training never sees: its rooms have seeds below a million."""

_MOMENTS = 6
_POLL_S = 0.1
_FIRST_MASK_S = 240.0  # a slow machine compiles kernels and renders the room in this time
_RESULTS = ('overlay.mp4', 'contact_sheet.png', 'result.txt', 'result.json')
_LOGS = ('camera.log', 'node.log')
_MARK_FILE = 'demo.txt'
_MARK = (
    f'rgbd-fusion-seg demo wrote {", ".join(_RESULTS + _LOGS)} here; its next run replaces them\n'
)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the user can choose.

    Args:
        output: folder for the results.
        seconds: length of the recording.
        bundle: name or folder of the model bundle.
        backend: inference engine.
        seed: of the synthetic room.
        num_frames: images rendered before the camera starts; they are played to and fro.
        progress: show a progress bar.
    """

    output: Path = Path('demo_output')
    seconds: float = 20.0
    bundle: str = DEFAULT_BUNDLE
    backend: str = 'auto'
    seed: int = DEMO_SEED
    num_frames: int = 150
    progress: bool = True


def run_demo(options: DemoOptions, tell: Callable[[str], None] = lambda _: None) -> Result:
    """Run the demo and write its pictures and table.

    Args:
        options: see :class:`DemoOptions`.
        tell: called with sentences about what happens.

    Raises:
        InputError: no ROS 2, a process that died, or no mask in reasonable time, with the last
            lines of the processes' logs; or a folder with results of something else.
        BundleError: the bundle cannot be used.
    """
    if not options.seconds > 0:
        raise InputError(f'the demo must last longer than {options.seconds} s')
    environment = local_environment(domain_id=1 + os.getpid() % 101)
    bundle = load_bundle(options.bundle)
    _prepare(options.output)
    with tempfile.TemporaryDirectory(prefix='rgbd_fusion_seg_demo_') as folder:
        _record(options, bundle, environment, Path(folder), tell)
        recording = json.loads((Path(folder) / 'recording.json').read_text(encoding='utf-8'))
        tell('writing pictures')
        _remove_results(options.output)
        files = _write_pictures(recording, Path(folder), options.output, bundle)
    rows = result_rows(recording)
    title = f'{bundle.name}: synthetic_camera -> segmentation_node over DDS'
    return Result(rows, [*files, *write_table(options.output, 'result', title, rows)])


def result_rows(recording: dict[str, Any]) -> dict[str, Value]:
    """Return the table of a recording (see ``ros.recorder.Recording``).

    Pairs in are the colour images of the recorded span, each of which came with its depth; masks
    out are the masks of these images; what is neither is dropped. Latency is from the stamp of
    the colour image to the arrival of its mask here.
    """
    begin_ns, end_ns = recording['begin_ns'], recording['end_ns']
    pairs = {s for s in recording['camera_stamps_ns'] if begin_ns <= s < end_ns}
    arrivals = dict(zip(recording['mask_stamps_ns'], recording['mask_arrivals_ns'], strict=True))
    masks = {s: arrival for s, arrival in arrivals.items() if begin_ns <= s < end_ns}
    latency_ms = [(arrival - stamp) * 1e-6 for stamp, arrival in masks.items()]
    p50, p99 = np.percentile(latency_ms, (50, 99)).tolist() if latency_ms else (None, None)
    seconds = (end_ns - begin_ns) * 1e-9
    result = scores(np.asarray(recording['matrix']))
    return {
        'seconds': seconds,
        'pairs in': len(pairs | masks.keys()),
        'masks out': len(masks),
        'dropped (a newer pair came)': len(pairs - masks.keys()),
        'frames/s': len(masks) / seconds,
        'latency p50, colour stamp to mask (ms)': p50,
        'latency p99, colour stamp to mask (ms)': p99,
        'mIoU against the synthetic truth (%)': 100 * result.mean_iou,
        'pixel accuracy (%)': 100 * result.pixel_accuracy,
        'masks compared with the truth': recording['compared'],
    }


def _prepare(output: Path) -> None:
    """Make the output folder and mark it as a demo's, unless it holds what no demo wrote."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        mark = output / _MARK_FILE
        if mark.exists() and mark.read_bytes() == _MARK.encode():
            return
        names = (_MARK_FILE, *_RESULTS, *_LOGS)
        refuse_foreign(output, [name for name in names if (output / name).exists()])
        mark.write_text(_MARK, encoding='utf-8')
    except OSError as error:
        raise _unusable(output, error) from error


def _remove_results(output: Path) -> None:
    """Remove what an earlier demo left, now that there is something to take its place."""
    try:
        for name in _RESULTS:
            (output / name).unlink(missing_ok=True)
    except OSError as error:
        raise _unusable(output, error) from error


def _unusable(output: Path, error: OSError) -> InputError:
    return InputError(f'{output} cannot be used for the results: {error}')


def _record(
    options: DemoOptions,
    bundle: ModelBundle,
    environment: dict[str, str],
    folder: Path,
    tell: Callable[[str], None],
) -> None:
    """Run camera, node and recorder until the recorder is done."""
    tell(f'starting synthetic_camera and segmentation_node (logs in {options.output})')
    with Processes(options.output, environment) as processes:
        processes.start(
            'camera',
            'rgbd_fusion_seg.ros.synthetic_camera',
            *_parameters(seed=options.seed, num_frames=options.num_frames),
        )
        processes.start(
            'node',
            'rgbd_fusion_seg.ros.node',
            *_parameters(
                **{
                    'engine.bundle': str(bundle.path),
                    'engine.backend': options.backend,
                    # The camera renders its room first; until then silence is no fault.
                    'sync.warn_after_s': _FIRST_MASK_S,
                }
            ),
        )
        arguments = [f'--output={folder}', f'--seconds={options.seconds}']
        arguments += [f'--wait={_FIRST_MASK_S}', f'--num-classes={bundle.num_classes}']
        if not options.progress:
            arguments.append('--quiet')
        processes.start('recorder', 'rgbd_fusion_seg.ros.recorder', *arguments, visible=True)
        while not (ended := processes.ended()):
            time.sleep(_POLL_S)
        if ended != ['recorder'] or processes.exit_code('recorder') != 0:
            raise InputError(_failure(processes, ended))


def _parameters(**values: Any) -> list[str]:
    return ['--ros-args', *(part for name, v in values.items() for part in ('-p', f'{name}:={v}'))]


def _failure(processes: Processes, ended: list[str]) -> str:
    """Describe which process ended, and what the others said last."""
    codes = ', '.join(f'{name} with exit code {processes.exit_code(name)}' for name in ended)
    logs = ''.join(
        f'\n--- {processes.log_path(name)}\n{processes.log_tail(name)}'
        for name in ('camera', 'node')
    )
    return (
        f'the demo failed, for a process ended early: {codes}; the last lines of the logs:{logs}'
    )


def _write_pictures(
    recording: dict[str, Any], folder: Path, output: Path, bundle: ModelBundle
) -> list[Path]:
    """Write the video (colour, depth and overlay side by side) and the contact sheet."""
    stamps: Sequence[int] = sorted(recording['moments'])
    if not stamps:
        raise InputError(
            'masks arrived, but no overlay did; look at node.log in the output folder'
        )
    video = output / 'overlay.mp4'
    span_s = (recording['end_ns'] - recording['begin_ns']) * 1e-9
    with VideoWriter(video, rate_hz=max(1.0, len(stamps) / span_s)) as writer:
        for stamp in stamps:
            writer.write(np.hstack(_pictures(folder, stamp)))
    sheet = output / 'contact_sheet.png'
    write_image(sheet, _contact_sheet(recording, stamps, folder, bundle))
    return [video, sheet]


def _pictures(folder: Path, stamp: int) -> list[np.ndarray]:
    return [read_rgb(folder / f'{stamp}.{kind}.jpg') for kind in ('color', 'depth', 'overlay')]


def _contact_sheet(
    recording: dict[str, Any], stamps: Sequence[int], folder: Path, bundle: ModelBundle
) -> np.ndarray:
    rows = []
    # The first overlays may come before the first true labels are heard.
    stamps = [s for s in stamps if (folder / f'{s}.truth.png').exists()] or stamps
    for index in evenly(len(stamps), _MOMENTS):
        row = _pictures(folder, stamps[index])
        truth = cv2.imread(str(folder / f'{stamps[index]}.truth.png'), cv2.IMREAD_GRAYSCALE)
        if truth is not None:
            row.append(palette.overlay(row[0], truth, bundle.colors))
        rows.append(row)
    matrix = np.asarray(recording['matrix'])
    pixels = matrix.sum(axis=1) + matrix[:, : bundle.num_classes].sum(axis=0)
    present = main_classes(pixels) if pixels.any() else None
    legend = palette.legend(bundle.class_names, bundle.colors, present)
    headings = ('colour', 'depth', 'segmentation', 'truth')[: len(rows[0])]
    return contact_sheet(rows, headings, legend)
