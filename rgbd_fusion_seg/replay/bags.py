"""RGB-D frames from bags (ROS 1, sqlite3, MCAP) and bags from image folders, without ROS."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rgbd_fusion_seg.depth import metres_to_millimetres
from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.frame import Intrinsics, RgbdFrame
from rgbd_fusion_seg.image_decoding import intrinsics_from_info
from rgbd_fusion_seg.progress import progress_bar
from rgbd_fusion_seg.replay.bag_files import (
    BAG_SUFFIXES,
    error_text,
    messages_of,
    open_bag,
    readable,
    rosbags,
)
from rgbd_fusion_seg.replay.calibration import Calibration
from rgbd_fusion_seg.replay.folders import DEPTH_SCALE_M, FolderFrames
from rgbd_fusion_seg.replay.matching import StampMatcher
from rgbd_fusion_seg.replay.messages import (
    CAMERA_INFO,
    IMAGE,
    color_from_message,
    depth_from_message,
    stamp_ns,
)
from rgbd_fusion_seg.replay.single_sensor import intrinsics_of, read_images
from rgbd_fusion_seg.replay.topics import BagTopics, find_topics, other_cameras

if TYPE_CHECKING:
    from rosbags.highlevel import AnyReader
    from rosbags.interfaces import Connection
    from rosbags.rosbag2 import Writer

_log = logging.getLogger(__name__)

MATCH_TOLERANCE_NS = 20_000_000
"""Colour and depth further apart belong to different frames of a 30 Hz camera."""

NODE_TOPICS = BagTopics(
    '/rgb/image_rect_color', '/depth_registered/image_rect', '/rgb/camera_info'
)
"""The topics that the segmentation node subscribes to."""

_REMEMBERED_INFOS = 120  # more than come while an image waits for its partner
_MAX_REPORTED = 10  # sentences about bad messages; further ones are only counted


class BagFrames:
    """The RGB-D frames of a bag, matched by stamp, in the order of their colour images.

    A message that cannot be used is skipped, with one sentence in the log, and counted in
    ``skipped``; a colour image without a depth image near it is counted in
    ``unmatched``. Both are of the latest iteration. ``topics`` are those that are
    read, which the log tells, with those of other cameras in the bag.

    Args:
        path: a ROS 1 ``.bag``, a rosbag2 folder, or a ``.mcap`` or ``.db3`` file.
        topics: topics to read, found by type and name where not given.
        calibration: used instead of the bag's camera info.
        only: the sensor that frames will be labelled from, 'rgb' or 'depth': there is a frame for
            each of its images then, with a partner or without, and without a calibration if it
            is 'rgb'. Default: both.

    Raises:
        InputError: not a bag, no fitting topics, or no camera info and no calibration.
    """

    def __init__(
        self,
        path: Path,
        topics: BagTopics | None = None,
        *,
        calibration: Calibration | None = None,
        only: str = '',
    ) -> None:
        self.path = Path(path)
        self.skipped = self.unmatched = 0
        self._told = ('', '')
        self._calibration, self._only = calibration, only
        self._storage = readable(self.path)
        wanted = topics or BagTopics()
        with open_bag(self._storage) as reader:
            types = self._live_topics(reader.connections, wanted)
            self.topics = find_topics(types, wanted, self.path, only)
            self._leading, self._partner = self.topics.color, self.topics.depth
            if only == 'depth':
                self._leading, self._partner = self._partner, self._leading
            self._count = sum(c.msgcount for c in reader.connections if c.topic == self._leading)
        if self.topics.camera_info is None and calibration is None and only != 'rgb':
            raise InputError(
                f'{self.path} has no camera info for {self._leading}; '
                'give the intrinsics fx,fy,cx,cy'
            )
        if calibration is not None:  # camera info is not read then
            self.topics = dataclasses.replace(self.topics, camera_info=None)
        self._tell_topics(
            () if wanted.color or wanted.depth else other_cameras(types, self.topics, only)
        )

    def _live_topics(self, connections: Sequence[Connection], wanted: BagTopics) -> dict[str, str]:
        """Return the topics with messages, and those the user named, with their types.

        Drivers advertise more than they publish, such as every transport of an image.
        """
        counts = Counter[str]()
        for connection in connections:
            counts[connection.topic] += connection.msgcount
        if not any(counts.values()):  # whoever wrote the bag did not count
            return {c.topic: c.msgtype for c in connections}
        for topic in wanted.names:
            if topic in counts and not counts[topic]:
                _log.warning('%s holds no messages on %s; name another topic', self.path, topic)
        return {
            c.topic: c.msgtype for c in connections if counts[c.topic] or c.topic in wanted.names
        }

    def _tell_topics(self, others: Sequence[str]) -> None:
        """Say what is read of the bag, and which topics would take another camera instead."""
        roles = zip(('colour', 'depth', 'camera info'), self.topics.names, strict=True)
        read = ', '.join(f'{role} from {topic}' for role, topic in roles if topic is not None)
        _log.info('%s: reading %s', self.path, read)
        if others:
            option = 'depth' if self._only == 'depth' else 'color'
            _log.warning(
                '%s has several cameras, of which that of %s is taken; for another one name its '
                'topic (segment --%s-topic): %s',
                self.path,
                self._leading,
                option,
                ', '.join(others),
            )

    def __len__(self) -> int:
        """Return the number of images that may become frames, of colour unless depth is alone."""
        return self._count

    def name(self, index: int) -> str:
        """Return a file name for the ``index``-th frame that can be used."""
        return f'frame-{index:06d}'

    def __iter__(self) -> Iterator[RgbdFrame]:
        """Yield the frames that can be used.

        Raises:
            InputError: the bag has not one usable frame.
        """
        self.skipped = self.unmatched = 0
        frames = 0
        with open_bag(self._storage) as reader:
            for leading, partner, info in self._triples(reader):
                try:
                    frame = self._frame(leading, partner, info)
                except FrameError as error:
                    self._skip(str(error))
                    continue
                frames += 1
                yield frame
        self._conclude(frames)

    def _triples(self, reader: AnyReader) -> Iterator[tuple[Any, Any, Any]]:
        """Yield a leading message, its partner (or None), and the camera info in force."""
        first = self._first_info(reader)
        infos: deque[Any] = deque([] if first is None else [first], maxlen=_REMEMBERED_INFOS)

        def in_force(image: Any) -> Any:
            """Return the newest info that is not younger than an image, which may have waited."""
            stamp = stamp_ns(image)
            older = (info for info in reversed(infos) if stamp_ns(info) <= stamp)
            return next(older, infos[0] if infos else None)

        matcher = StampMatcher(MATCH_TOLERANCE_NS, keep_unmatched=bool(self._only))
        for topic, message in messages_of(
            reader, self._connections(reader), self._storage, self._skip
        ):
            if topic == self.topics.camera_info:
                infos.append(message)
                continue
            if self._partner is None:  # nothing to wait for
                yield message, None, in_force(message)
                continue
            is_partner = topic == self._partner
            pairs = matcher.add(stamp_ns(message), message, is_partner=is_partner)
            self.unmatched = matcher.unmatched
            for pair in pairs:
                yield (*pair, in_force(pair[0]))
        for pair in matcher.flush():
            yield (*pair, in_force(pair[0]))
        self.unmatched = matcher.unmatched

    def _frame(self, leading: Any, partner: Any, info: Any) -> RgbdFrame:
        names, frame_id = self.topics, leading.header.frame_id
        color, depth = (partner, leading) if self._only == 'depth' else (leading, partner)
        rgb, metres = read_images(
            color and partial(color_from_message, color, str(names.color)),
            depth and partial(depth_from_message, depth, str(names.depth)),
            self._only,
        )
        if not self._only:
            self._compare_frames(frame_id, depth.header.frame_id)
        stamp = stamp_ns(leading)
        try:
            intrinsics = intrinsics_of(rgb, partial(self._intrinsics, info), self._only)
            return RgbdFrame(rgb, metres, intrinsics, stamp, frame_id)
        except FrameError as error:
            raise FrameError(f'the frame at {stamp / 1e9:.3f} s: {error}') from error

    def _compare_frames(self, color: str, depth: str) -> None:
        """Say once that depth seems not to be registered to colour."""
        if color != depth and (color, depth) != self._told:
            self._told = (color, depth)
            _log.warning(
                'depth is in the frame %r but colour in %r: labels will be shifted unless the '
                'driver registered the depth',
                depth,
                color,
            )

    def _intrinsics(self, info: Any, width: int, height: int) -> Intrinsics:
        if self._calibration is not None:
            return self._calibration.intrinsics(width, height)
        if info is None:
            raise FrameError(f'no camera info arrived on {self.topics.camera_info}')
        return intrinsics_from_info(info, str(self.topics.camera_info))

    def _connections(self, reader: AnyReader) -> list[Connection]:
        return [c for c in reader.connections if c.topic in self.topics.names]

    def _first_info(self, reader: AnyReader) -> Any:
        """Return the first camera info: it may lie behind the first images."""
        wanted = [c for c in reader.connections if c.topic == self.topics.camera_info]
        if not wanted:
            return None
        # What cannot be read is met again among the images, and told then.
        messages = messages_of(reader, wanted, self._storage, lambda _: None)
        return next((message for _, message in messages), None)

    def _skip(self, sentence: str) -> None:
        self.skipped += 1
        if self.skipped <= _MAX_REPORTED:
            _log.warning('skipped: %s', sentence)

    def _conclude(self, frames: int) -> None:
        role = 'depth' if self._only == 'depth' else 'colour'
        counts = f'{self._count} {role} images on {self._leading}, '
        if not self._only:
            counts += (
                f'{self.unmatched} without a depth image on {self._partner} within '
                f'{MATCH_TOLERANCE_NS / 1e6:g} ms, '
            )
        counts += f'{self.skipped} skipped'
        if frames == 0:
            raise InputError(f'{self.path} has no usable frame: {counts}')
        if self.skipped or self.unmatched:
            _log.warning('%s: %s', self.path, counts)


def folder_to_bag(
    folder: Path,
    bag_path: Path,
    rate_hz: float = 30.0,
    *,
    calibration: Calibration | None = None,
    depth_scale_m: float = DEPTH_SCALE_M,
    progress: bool = False,
) -> int:
    """Write an image folder as a rosbag2 folder with MCAP storage.

    Topics are those the node subscribes to: colour as ``rgb8``, depth as ``16UC1`` in
    millimetres, camera info; all three with one stamp, ``rate_hz`` frames a second.

    Args:
        folder: see :class:`~rgbd_fusion_seg.replay.folders.FolderFrames`.
        bag_path: folder to make; it must not exist.
        rate_hz: frames per second.
        calibration: of the colour camera, where the folder has none.
        depth_scale_m: metres per unit of the depth images.
        progress: show a progress bar on stderr.

    Returns:
        Number of frames written.

    Raises:
        InputError: the bag exists or cannot be written, or the folder cannot be used.
    """
    source = FolderFrames(
        folder, calibration=calibration, depth_scale_m=depth_scale_m, rate_hz=rate_hz
    )
    bag_path = Path(bag_path)
    if bag_path.suffix in BAG_SUFFIXES:
        # rosbag2 makes a folder, which tools would take for a file of another kind by its name.
        raise InputError(
            f'a bag is a folder, so {bag_path.name} is no good name; call it {bag_path.stem}'
        )
    if bag_path.exists():
        raise InputError(f'{bag_path} exists already; remove it or choose another name')
    rosbag2 = rosbags('rosbag2')
    # Version 8 is the newest that ROS 2 Humble and later all read.
    writer = rosbag2.Writer(bag_path, version=8, storage_plugin=rosbag2.StoragePlugin.MCAP)
    try:
        with writer:
            write = _FrameWriter(writer)
            for frame in progress_bar(source, desc='writing', unit='frame', disable=not progress):
                write(frame)
    except BaseException as error:
        # Half a bag would be taken for a whole one.
        shutil.rmtree(bag_path, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(f'{bag_path} cannot be written: {error_text(error)}') from error
        raise
    return len(source)


class _FrameWriter:
    """Writes frames to an open bag as the messages of a camera."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        typesys = rosbags('typesys')
        self._store = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
        self._connections = {
            topic: writer.add_connection(topic, kind, typestore=self._store)
            for topic, kind in (
                (NODE_TOPICS.camera_info, CAMERA_INFO),
                (NODE_TOPICS.color, IMAGE),
                (NODE_TOPICS.depth, IMAGE),
            )
        }

    def __call__(self, frame: RgbdFrame) -> None:
        millimetres = metres_to_millimetres(frame.depth)
        self._write(NODE_TOPICS.camera_info, CAMERA_INFO, self._camera_info(frame), frame)
        self._write(NODE_TOPICS.color, IMAGE, self._image(frame, frame.rgb, 'rgb8'), frame)
        self._write(NODE_TOPICS.depth, IMAGE, self._image(frame, millimetres, '16UC1'), frame)

    def _write(self, topic: str | None, kind: str, message: Any, frame: RgbdFrame) -> None:
        data = self._store.serialize_cdr(message, kind)
        self._writer.write(self._connections[topic], frame.stamp_ns, data)

    def _header(self, frame: RgbdFrame) -> Any:
        types = self._store.types
        seconds, nanoseconds = divmod(frame.stamp_ns, 1_000_000_000)
        stamp = types['builtin_interfaces/msg/Time'](sec=seconds, nanosec=nanoseconds)
        return types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame.frame_id)

    def _image(self, frame: RgbdFrame, pixels: np.ndarray, encoding: str) -> Any:
        return self._store.types[IMAGE](
            header=self._header(frame),
            height=pixels.shape[0],
            width=pixels.shape[1],
            encoding=encoding,
            is_bigendian=0,
            step=pixels[0].nbytes,
            data=pixels.view(np.uint8).ravel(),
        )

    def _camera_info(self, frame: RgbdFrame) -> Any:
        types, k = self._store.types, frame.intrinsics.matrix
        return types[CAMERA_INFO](
            header=self._header(frame),
            height=frame.intrinsics.height,
            width=frame.intrinsics.width,
            distortion_model='plumb_bob',
            d=np.zeros(5),
            k=k.ravel(),
            r=np.eye(3).ravel(),
            p=np.hstack([k, np.zeros((3, 1))]).ravel(),
            binning_x=0,
            binning_y=0,
            roi=types['sensor_msgs/msg/RegionOfInterest'](
                x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
            ),
        )
