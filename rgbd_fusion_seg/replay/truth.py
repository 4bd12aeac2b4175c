"""Ground truth of a recording: label images named like its frames, and scores against them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from rgbd_fusion_seg.errors import FrameError, InputError
from rgbd_fusion_seg.frame import UNLABELLED
from rgbd_fusion_seg.image_files import read_labels
from rgbd_fusion_seg.replay.bag_files import messages_of, open_bag, readable
from rgbd_fusion_seg.replay.evaluate import confusion_matrix, scores
from rgbd_fusion_seg.replay.messages import IMAGE, labels_from_message, stamp_ns
from rgbd_fusion_seg.replay.output_folder import FRAME_LIST, OutputFolder, read_frame_list
from rgbd_fusion_seg.replay.pictures import write_image
from rgbd_fusion_seg.replay.report import Value

_log = logging.getLogger(__name__)

MOST_REPORTED = 10
"""Sentences about label images that cannot be read."""


class TruthFolder:
    """Label images ``NAME.png`` of the frames of a recording, which need not all have one.

    Names are those of `FrameSource.name`, as ``labels/`` of a segmented recording has them. Frames
    of a bag are named by their place among the labelled ones, so they are known by their stamps
    where the run's ``frames.txt`` is in the folder or beside it, those of equal stamps by both.
    Pixels are class ids; 255 and ids without a class are void.

    Args:
        folder: where the label images are.
        names: of the frames that will be labelled.
        origin: what to call it in messages; default: the folder.

    Attributes:
        frame_list: the ``frames.txt`` by which frames are known, None where none tells of stamps.

    Raises:
        InputError: no such folder, or no image in it has the name of a frame.
    """

    def __init__(self, folder: Path, names: Sequence[str], origin: str = '') -> None:
        self.folder, self.origin = Path(folder), origin or str(folder)
        if not self.folder.is_dir():
            raise InputError(f'there is no folder {folder}; give a folder of label images')
        self._names = {path.name.removesuffix('.png') for path in self.folder.glob('[!.]*.png')}
        self.frame_list, self._by_stamp = self._listed_stamps()
        # Of a recording without frames, reading it tells more.
        if names and not self._by_stamp and self._names.isdisjoint(names):
            found = f'{min(self._names)}.png' if self._names else 'no .png'
            raise InputError(
                f'none of the {len(names)} frames has a truth in {folder}, which holds {found}; '
                f'name label images as in labels/ of the results, such as {names[0]}.png'
            )

    def _listed_stamps(self) -> tuple[Path | None, dict[int, list[str]]]:
        """Return the list that tells of stamps, and by it the names of images by stamps."""
        for place in (self.folder, self.folder.resolve().parent):
            listed = read_frame_list(place / FRAME_LIST)
            if listed is not None:
                names: dict[int, list[str]] = {}
                for name, stamp in listed.items():
                    if stamp is not None:
                        names.setdefault(stamp, []).append(name)
                return (place / FRAME_LIST if names else None), names
        return None, {}

    def read(
        self, name: str, shape: tuple[int, ...], stamp_ns: int | None = None
    ) -> np.ndarray | None:
        """Read the truth of a frame.

        Args:
            name: of the frame.
            shape: height and width of the frame.
            stamp_ns: of the frame, where it is the camera's.

        Returns:
            uint8 (H, W), 255 where the image has it or a greater number; None where the frame has
            no truth.

        Raises:
            InputError: not a label image that can be read, one of another size, or several of this
                stamp and none of this name.
        """
        if self._by_stamp and stamp_ns is not None:
            listed = self._by_stamp.get(stamp_ns, [''])
            if len(listed) > 1 and name not in listed:
                raise InputError(
                    f'{self.origin} has several truths of the stamp {stamp_ns} ns, of which none '
                    f'is named {name}; give label images named like the frames of this run, in a '
                    f'folder without {FRAME_LIST}'
                )
            name = name if name in listed else listed[0]
        if name not in self._names:
            return None
        path = self.folder / f'{name}.png'
        values = read_labels(path)
        if values.shape != shape:
            raise InputError(
                f'{path} is {values.shape[1]}x{values.shape[0]} but its frame is '
                f'{shape[1]}x{shape[0]}; give the truth of exactly its pixels'
            )
        return np.minimum(values, UNLABELLED).astype(np.uint8)


class TruthScores:
    """Scores over all frames of a recording that have a truth, from one sum of their pixels.

    Args:
        truth: of the frames.
        class_names: of the labels, in the order of their ids.
    """

    def __init__(self, truth: TruthFolder, class_names: Sequence[str]) -> None:
        self._truth, self._class_names, self._frames = truth, class_names, 0
        self._matrix = np.zeros((len(class_names), len(class_names) + 1), np.int64)

    def add(self, name: str, labels: np.ndarray, stamp_ns: int | None = None) -> np.ndarray:
        """Compare the labels of a frame with its truth, where it has one.

        Args:
            name: of the frame.
            labels: uint8 (H, W).
            stamp_ns: see `TruthFolder.read`.

        Returns:
            uint8 (H, W), the truth; 255 everywhere where the frame has none.

        Raises:
            InputError: as `TruthFolder.read`.
        """
        truth = self._truth.read(name, labels.shape, stamp_ns)
        if truth is None:
            return np.full_like(labels, UNLABELLED)
        self._matrix += confusion_matrix(labels, truth, len(self._class_names))
        self._frames += 1
        return truth

    def rows(self) -> dict[str, Value]:
        """Return the lines of a table.

        Raises:
            InputError: no frame had a truth.
        """
        if not self._frames:
            raise InputError(
                f'no frame that was labelled has a truth in {self._truth.origin}; its names, or '
                'stamps where it has them, are those of other frames'
            )
        result = scores(self._matrix)
        return {
            'frames scored': self._frames,
            'mIoU (%)': 100 * result.mean_iou,
            'pixel accuracy (%)': 100 * result.pixel_accuracy,
            'mean accuracy (%)': 100 * result.mean_accuracy,
        }

    def iou_rows(self) -> dict[str, Value]:
        """Return the IoU of each class in percent, NaN where neither truth nor labels have it."""
        iou = (100 * scores(self._matrix).iou).tolist()
        return dict(zip(self._class_names, iou, strict=True))


def truth_of_topic(bag: Path, topic: str, workspace: Path) -> TruthFolder:
    """Take the ground truth of a bag out of it; stamps tell which frame an image belongs to.

    Args:
        bag: as of `BagFrames`.
        topic: of ``sensor_msgs/Image`` with one of `messages.LABEL_ENCODINGS`, such as simulators
            publish.
        workspace: empty folder for the label images.

    Raises:
        InputError: no bag, no such topic in it, or no label image on it that can be read.
    """
    storage = readable(Path(bag))
    output = OutputFolder(workspace)
    count = skipped = 0
    reasons: list[str] = []

    def skip(sentence: str) -> None:
        nonlocal skipped
        skipped += 1
        if skipped <= MOST_REPORTED:
            reasons.append(sentence)

    known: set[tuple[int, bytes]] = set()
    with open_bag(storage) as reader:
        connections = [c for c in reader.connections if c.topic == topic and c.msgtype == IMAGE]
        if not connections:
            images = sorted({c.topic for c in reader.connections if c.msgtype == IMAGE})
            raise InputError(
                f'{bag} has no images on {topic}; name one of {", ".join(images) or "no topic"}'
            )
        for _, message in messages_of(reader, connections, storage, skip):
            try:
                labels = labels_from_message(message, topic)
            except FrameError as error:
                skip(str(error))
                continue
            # A recording that was played twice tells the same twice.
            content = stamp_ns(message), sha256(labels).digest()
            if content in known:
                continue
            known.add(content)
            path, _ = output.add(f'truth-{count:06d}', stamp_ns(message))
            write_image(path, labels)
            count += 1
    if not count:
        reason = reasons[0] if reasons else 'it holds no messages'
        raise InputError(f'{bag} has no usable label image on {topic}: {reason}')
    for sentence in reasons:
        _log.warning('truth skipped: %s', sentence)
    if skipped:
        _log.warning('%s: %d truths on %s were skipped', bag, skipped, topic)
    return TruthFolder(workspace / 'labels', (), f'{topic} of {bag}')
