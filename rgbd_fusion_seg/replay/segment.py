"""Segment a recording, frame by frame, and write what can be looked at and worked with."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np

from rgbd_fusion_seg import palette
from rgbd_fusion_seg.bundle import ModelBundle
from rgbd_fusion_seg.errors import InputError
from rgbd_fusion_seg.frame import RgbdFrame, Segmentation
from rgbd_fusion_seg.plausibility import (
    FloorGuess,
    camera_fault,
    depth_statistics,
    height_fault,
    training_range_fault,
    unit_fault,
)
from rgbd_fusion_seg.progress import progress_bar
from rgbd_fusion_seg.replay.bag_files import is_bag
from rgbd_fusion_seg.replay.bags import BagFrames
from rgbd_fusion_seg.replay.calibration import Calibration
from rgbd_fusion_seg.replay.folders import DEPTH_SCALE_M, FolderFrames
from rgbd_fusion_seg.replay.output_folder import FRAME_LIST, OutputFolder
from rgbd_fusion_seg.replay.pictures import (
    StampedVideoWriter,
    contact_sheet,
    depth_picture,
    evenly,
    main_classes,
    write_image,
)
from rgbd_fusion_seg.replay.report import Result, Value, write_table
from rgbd_fusion_seg.replay.topics import BagTopics
from rgbd_fusion_seg.replay.truth import TruthFolder, TruthScores, truth_of_topic
from rgbd_fusion_seg.segmenter import Segmenter

_log = logging.getLogger(__name__)

_MOMENTS = 6


class FrameSource(Protocol):
    """A recording: :class:`FolderFrames` or :class:`BagFrames`."""

    skipped: int
    """Messages that could not be used."""
    unmatched: int
    """Images that were left out because they have no partner."""
    topics: BagTopics | None
    """Those that are read of a bag, whose stamps are the camera's; None for folders, whose stamps
    are made up."""

    def __len__(self) -> int:
        """Return the most frames there can be."""

    def __iter__(self) -> Iterator[RgbdFrame]:
        """Yield the frames."""

    def name(self, index: int) -> str:
        """Return a file name, without suffix, for the ``index``-th frame."""


def open_source(
    path: Path,
    *,
    calibration: Calibration | None = None,
    depth_scale_m: float | None = None,
    topics: BagTopics | None = None,
    only: str = '',
) -> FrameSource:
    """Open a bag or a folder of images, whichever the path is.

    Args:
        path: of the recording.
        calibration: of the colour camera, instead of what was recorded.
        depth_scale_m: metres per unit of the depth images of a folder; default: 0.001.
        topics: of a bag, found by type and name where not given.
        only: the sensor that frames will be labelled from, 'rgb' or 'depth', as a bundle's
            `sole_sensor`; the recording may lack the other one then. Default: both.

    Raises:
        InputError: neither, or one that cannot be used.
    """
    if is_bag(path):
        if depth_scale_m is not None:
            raise InputError(
                f'{path} is a bag, whose depth messages tell their unit; give no depth scale'
            )
        return BagFrames(path, topics, calibration=calibration, only=only)
    if topics is not None and topics != BagTopics():
        raise InputError(f'{path} is a folder of images, which has no topics')
    scale_m = DEPTH_SCALE_M if depth_scale_m is None else depth_scale_m
    return FolderFrames(path, calibration=calibration, depth_scale_m=scale_m, only=only)


@contextmanager
def open_truth(
    source: FrameSource,
    folder: Path | None,
    topic: str | None = None,
    max_frames: int | None = None,
) -> Iterator[TruthFolder | None]:
    """Open the ground truth of a recording; None where neither folder nor topic is given.

    Args:
        source: the frames.
        folder: of label images, see `TruthFolder`.
        topic: of a bag, see `truth_of_topic`.
        max_frames: how many of them will be labelled; default: all.

    Raises:
        InputError: a folder without truth of these frames, a recording without topics, or no
            label images on the topic.
    """
    if topic is None:
        names = [source.name(i) for i in range(_most_frames(source, max_frames))]
        yield folder and TruthFolder(folder, names)
        return
    if not isinstance(source, BagFrames):
        raise InputError(
            f'a folder of images has no topic {topic}; give the truth as a folder of label images'
        )
    with TemporaryDirectory(prefix='rgbd_fusion_seg_truth_') as workspace:
        yield truth_of_topic(source.path, topic, Path(workspace))


def segment_recording(
    source: FrameSource,
    segmenter: Segmenter,
    output: Path,
    *,
    truth: TruthFolder | None = None,
    video: bool = True,
    max_frames: int | None = None,
    only: str = '',
    gravity: Sequence[float] | None = None,
    camera_height: float | None = None,
    progress: bool = False,
) -> Result:
    """Segment every frame of a recording.

    Writes ``labels/NAME.png`` (8 bits, pixel = class id, 255 = unlabelled), ``overlay/NAME.jpg``,
    ``overlay.mp4``, which plays as fast as the recording, ``contact_sheet.png``, and the table as
    ``result.txt`` and ``result.json``. ``frames.txt`` has the NAME of every frame, one a line, for
    bags with a tab and the stamp of its colour message behind it, in nanoseconds; of its depth
    message if it is labelled from depth alone.

    With a truth the table tells the scores of the labels, the files of the table also the IoU of
    each class, and the contact sheet shows the truth. Frames without one are not scored.

    Args:
        source: the frames.
        segmenter: warm, so that the first frame is not slower than the others.
        output: folder to write; what an earlier run wrote there is removed, see `OutputFolder`.
        truth: what labels are compared with, in a folder that is not written, by a list of
            frames that is not either.
        video: write ``overlay.mp4`` too.
        max_frames: stop after so many.
        only: label from this sensor alone, 'rgb' or 'depth', see `Segmenter.segment`.
        gravity, camera_height: of the camera through all of the recording, see there too.
        progress: show a progress bar on stderr.

    Raises:
        InputError: the recording, the output folder or a truth cannot be used.
        BundleError: the bundle cannot answer from that sensor alone.
    """
    writer = _Writer(output, segmenter, video, truth, stamped=source.topics is not None)
    total = _most_frames(source, max_frames)
    # The first one always: bags that nobody counted hold more than they tell.
    moments = {0, *evenly(total, _MOMENTS)}
    doubts = _Doubts(source, segmenter.bundle, only, gravity, camera_height)
    began_s = time.monotonic()
    with (
        writer,
        progress_bar(total=total, desc='segmenting', unit='frame', disable=not progress) as bar,
    ):
        for index, frame in enumerate(islice(source, max_frames)):
            doubts.look(source.name(index), frame)
            result = segmenter.segment(frame, gravity, only, camera_height)
            writer.write(source.name(index), frame, result, in_sheet=index in moments)
            bar.update()
    return writer.finish(source, time.monotonic() - began_s)


class _Doubts:
    """Says what looks wrong of depth and camera, each kind once a run; labels would be wrong.

    Args:
        source: of the frames.
        bundle: what will label them.
        only: the sensor that it is asked to label from; colour alone needs neither depth nor
            calibration.
        gravity, camera_height: that were given, if any.
    """

    def __init__(
        self,
        source: FrameSource,
        bundle: ModelBundle,
        only: str,
        gravity: np.ndarray | None,
        camera_height: float | None,
    ) -> None:
        self._range_m, self._told = bundle.depth_range_m, set[str]()
        self._sees_depth = (only or bundle.sole_sensor) != 'rgb'
        self._gravity, guesses = gravity, bundle.hha is not None and camera_height is None
        self._floor_guess = FloorGuess() if guesses else None
        self._units = (
            'one unit of the depth images is another, give --depth-scale (0.001 for millimetres)'
            if source.topics is None
            else '16UC1 must hold millimetres and 32FC1 metres (REP 118), check what recorded it'
        )
        if self._sees_depth and (fault := height_fault(camera_height)):
            _log.warning(fault)

    def look(self, name: str, frame: RgbdFrame) -> None:
        if not self._sees_depth:
            return
        median_m = depth_statistics(frame.depth).median_m
        if fault := unit_fault(median_m):
            self._tell('unit', f'{name}: {fault}; {self._units}')
        elif fault := training_range_fault(median_m, self._range_m):
            self._tell('range', f'{name}: {fault}')
        guess = self._floor_guess
        if guess and (fault := guess.fault(frame.depth, frame.intrinsics, self._gravity)):
            self._tell('floor', f'{name}: {fault}; if it is the floor, give --camera-height')
        if fault := camera_fault(frame.intrinsics):
            self._tell(
                'camera',
                f'{name}: the intrinsics give {fault}; they are in pixels, of an image of '
                f'{frame.intrinsics.width}x{frame.intrinsics.height}',
            )

    def _tell(self, kind: str, sentence: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            _log.warning(sentence)


def _most_frames(source: FrameSource, max_frames: int | None) -> int:
    return min(len(source), max_frames if max_frames is not None else len(source))


class _Writer:
    """Writes the results of one run and gathers its statistics."""

    def __init__(
        self,
        output: Path,
        segmenter: Segmenter,
        video: bool,
        truth: TruthFolder | None,
        *,
        stamped: bool,
    ) -> None:
        if truth is not None:
            _refuse_own_labels(truth, output)
        self._folder, self._output, self._bundle = OutputFolder(output), output, segmenter.bundle
        self._scores = truth and TruthScores(truth, self._bundle.class_names)
        self._engine, self._stamped = segmenter.engine_name, stamped
        self._video = StampedVideoWriter(output / 'overlay.mp4') if video else None
        self._rows: list[list[np.ndarray]] = []
        self._timings: dict[str, list[float]] = defaultdict(list)
        self._busy_ms: list[float] = []
        self._pixels = np.zeros(256, np.int64)
        self._count = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._video is not None:
            self._video.close()

    def write(self, name: str, frame: RgbdFrame, result: Segmentation, *, in_sheet: bool) -> None:
        stamp_ns = frame.stamp_ns if self._stamped else None
        truth = self._scores and self._scores.add(name, result.labels, stamp_ns)
        colors = self._bundle.colors
        picture = palette.overlay(frame.rgb, result.labels, colors)
        labels_path, overlay_path = self._folder.add(name, stamp_ns)
        write_image(labels_path, result.labels)
        write_image(overlay_path, picture)
        if self._video is not None:
            self._video.write(picture, frame.stamp_ns)
        if in_sheet:
            truths = [] if truth is None else [palette.overlay(frame.rgb, truth, colors)]
            self._rows.append([frame.rgb, depth_picture(frame.depth), picture, *truths])
        for stage, milliseconds in result.timings.items():
            self._timings[stage].append(milliseconds)
        # Frames without depth may take fewer stages than the others.
        self._busy_ms.append(sum(result.timings.values()))
        for shown in (result.labels,) if truth is None else (result.labels, truth):
            self._pixels += np.bincount(shown.ravel(), minlength=256)
        self._count += 1

    def finish(self, source: FrameSource, seconds: float) -> Result:
        if self._count == 0:
            raise InputError('no frame was segmented; ask for at least one frame')
        sheet = self._output / 'contact_sheet.png'
        present = main_classes(self._pixels[: self._bundle.num_classes])
        legend = palette.legend(self._bundle.class_names, self._bundle.colors, present)
        headings = ['colour', 'depth', 'segmentation', *(['ground truth'] if self._scores else [])]
        write_image(sheet, contact_sheet(self._rows, headings, legend))
        rows = self._table(source, seconds)
        title = f'{self._bundle.name} on {self._engine}'
        parts = {'IoU of classes (%)': self._scores.iou_rows()} if self._scores else {}
        tables = write_table(self._output, 'result', title, rows, parts)
        videos = [] if self._video is None else [self._video.path]
        folders = [self._output / 'labels', self._output / 'overlay']
        files = [*folders, *videos, sheet, self._output / FRAME_LIST, *tables]
        return Result(rows, files)

    def _table(self, source: FrameSource, seconds: float) -> dict[str, Value]:
        stages = {stage: float(np.median(ms)) for stage, ms in self._timings.items()}
        return {
            **_topic_rows(source.topics),
            'frames': self._count,
            'messages skipped': source.skipped,
            'images without a partner': source.unmatched,
            'frames/s, segmentation alone': float(1000 / np.median(self._busy_ms)),
            'frames/s, with reading and writing': self._count / seconds,
            **{f'{stage}, median (ms)': ms for stage, ms in stages.items()},
            **(self._scores.rows() if self._scores else {}),
        }


def _refuse_own_labels(truth: TruthFolder, output: Path) -> None:
    """Raise an InputError where a run would replace its truth, or what tells whose it is."""
    if truth.folder.resolve() == (output / 'labels').resolve():
        raise InputError(
            f'the truth {truth.folder} is where this run writes its labels; choose another folder '
            'for the results, or copy the truth elsewhere'
        )
    written = (output / FRAME_LIST).resolve()
    if truth.frame_list is not None and truth.frame_list.resolve() == written:
        raise InputError(
            f'{truth.frame_list}, which tells the frames of the truth {truth.folder}, is replaced '
            'by this run; choose another folder for the results, or copy it into that of the truth'
        )


def _topic_rows(topics: BagTopics | None) -> dict[str, Value]:
    if topics is None:
        return {}
    roles = ('colour topic', 'depth topic', 'camera info topic')
    return dict(zip(roles, topics.names, strict=True))
