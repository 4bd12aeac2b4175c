"""What a person looks at afterwards: a video, and a contact sheet of a few moments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from rgbd_fusion_seg.depth import valid_mask
from rgbd_fusion_seg.errors import InputError

_LEAST_VIDEO = 16  # pixels, a block of MPEG-4; encoders crash on less
_VIDEO_RATES_HZ = (1.0, 120.0)
_USUAL_RATE_HZ = 30.0
_MOST_WAITING = 16  # images, of a megabyte or more each
_MARGIN = 8
_HEADING = 24
_PAPER = (255, 255, 255)
_FONT = (cv2.FONT_HERSHEY_SIMPLEX, 0.5, (40, 40, 40), 1, cv2.LINE_AA)


class VideoWriter:
    """An MP4 file (MPEG-4 part 2) of RGB images; a context manager.

    Args:
        path: file to write, ``.mp4``.
        rate_hz: frames per second.

    Raises:
        InputError: the file or the encoder cannot be opened, when the first image is written.
    """

    def __init__(self, path: Path, rate_hz: float) -> None:
        self.path = path
        self._rate_hz = rate_hz
        self._writer: cv2.VideoWriter | None = None
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None

    def write(self, rgb: np.ndarray) -> None:
        """Append uint8 (H, W, 3) RGB; the first image sets the size, others are scaled to it.

        It is at least 16x16: images of a line of pixels are widened.
        """
        if self._writer is None:
            if not _is_unicode(self.path):  # OpenCV crashes on it
                raise InputError(
                    f'the video {self.path} cannot be written: its path is not in UTF-8; rename '
                    'the folder, or go without a video'
                )
            # Colour is stored at half resolution, so sizes must be even.
            self._shape = tuple(max(_LEAST_VIDEO, size // 2 * 2) for size in rgb.shape[:2])
            self._writer = cv2.VideoWriter(
                str(self.path),
                cv2.VideoWriter_fourcc(*'mp4v'),
                self._rate_hz,
                self._shape[::-1],
            )
            if not self._writer.isOpened():
                raise InputError(
                    f'the video {self.path} cannot be written: the folder is read-only or this '
                    'OpenCV has no MPEG-4 encoder; go without a video'
                )
        if rgb.shape[:2] != self._shape:
            rgb = cv2.resize(rgb, self._shape[::-1], interpolation=cv2.INTER_AREA)
        self._writer.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))


class StampedVideoWriter:
    """A video that plays as fast as its images were taken.

    Files have one rate, which must be known before the first image: the median of the differences
    of the first stamps.

    Args:
        path: file to write, ``.mp4``.

    Raises:
        InputError: as `VideoWriter`, in `write` or `close`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: VideoWriter | None = None
        self._waiting: list[tuple[int, np.ndarray]] = []

    def close(self) -> None:
        """Finish the file."""
        try:
            self._begin()
        finally:
            if self._writer is not None:
                self._writer.close()

    def write(self, rgb: np.ndarray, stamp_ns: int) -> None:
        """Append uint8 (H, W, 3) RGB, see `VideoWriter.write`, that was taken at this time."""
        if self._writer is not None:
            self._writer.write(rgb)
            return
        self._waiting.append((stamp_ns, rgb))
        if len(self._waiting) == _MOST_WAITING:
            self._begin()

    def _begin(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._writer = VideoWriter(self.path, video_rate_hz([stamp for stamp, _ in waiting]))
        for _, rgb in waiting:
            self._writer.write(rgb)


def _is_unicode(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def video_rate_hz(stamps_ns: Sequence[int]) -> float:
    """Return the frames per second of images with these stamps, 1 to 120; 30 where none tell."""
    periods_ns = np.diff(stamps_ns)
    periods_ns = periods_ns[periods_ns > 0]  # a recording may start again, or have no clock
    if not periods_ns.size:
        return _USUAL_RATE_HZ
    # MPEG-4 has no rates of more digits.
    return round(float(np.clip(1e9 / np.median(periods_ns), *_VIDEO_RATES_HZ)), 2)


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    headings: Sequence[str],
    legend: np.ndarray | None = None,
    *,
    width: int = 320,
) -> np.ndarray:
    """Lay out a few moments on one sheet, a line each, with the legend at their right.

    Args:
        rows: one sequence of uint8 (H, W, 3) RGB images a moment; all of one shape.
        headings: name of each image of a moment.
        legend: uint8 (h, w, 3) RGB.
        width: pixels of one image.

    Returns:
        uint8 (H', W', 3) RGB.

    Raises:
        InputError: no moments, or moments with another number of images than headings.
    """
    if not rows or any(len(row) != len(headings) for row in rows):
        raise InputError(f'a contact sheet needs moments of {len(headings)} images each')
    # Images of a line of pixels are shown, but not as a tower.
    height = min(max(1, round(rows[0][0].shape[0] * width / rows[0][0].shape[1])), 4 * width)
    legend_height, legend_width = (0, 0) if legend is None else legend.shape[:2]
    right = _MARGIN + len(headings) * (width + _MARGIN)
    below = _HEADING + max(len(rows) * (height + _MARGIN), legend_height + _MARGIN)
    sheet = np.full((below, right + legend_width + _MARGIN, 3), _PAPER, np.uint8)
    for column, heading in enumerate(headings):
        x = _MARGIN + column * (width + _MARGIN)
        cv2.putText(sheet, heading, (x, _HEADING - 8), *_FONT)
        for line, row in enumerate(rows):
            y = _HEADING + line * (height + _MARGIN)
            sheet[y : y + height, x : x + width] = cv2.resize(
                row[column], (width, height), interpolation=cv2.INTER_AREA
            )
    if legend is not None:
        sheet[_HEADING : _HEADING + legend_height, right : right + legend_width] = legend
    return sheet


def depth_picture(depth: np.ndarray) -> np.ndarray:
    """Colour a depth image: uint8 (H, W, 3) RGB, near is warm, black = no reading.

    Args:
        depth: float32 (H, W) metres; the coldest colour is that of 6 m and beyond.
    """
    valid = valid_mask(depth)
    scaled = np.clip(np.where(valid, depth, 0) * (255 / 6), 0, 255).astype(np.uint8)
    picture = cv2.cvtColor(cv2.applyColorMap(255 - scaled, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    picture[~valid] = 0
    return picture


def write_image(path: Path, rgb: np.ndarray) -> None:
    """Write RGB or single-channel uint8 in the format that the suffix names.

    Raises:
        InputError: the file cannot be written.
    """
    image = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR) if rgb.ndim == 3 else rgb
    try:
        # Not by imwrite: it crashes on a path that is no Unicode.
        path.write_bytes(cv2.imencode(path.suffix, image)[1])
    except OSError as error:
        raise InputError(
            f'{path} cannot be written; check that its folder is there and may be written to, and '
            'that the disk has space left'
        ) from error


def evenly(count: int, wanted: int) -> list[int]:
    """Return up to ``wanted`` indices spread over ``count`` items, first and last included."""
    return sorted(set(np.linspace(0, count - 1, min(count, wanted)).round().astype(int).tolist()))


def main_classes(pixels: np.ndarray) -> np.ndarray:
    """Return the classes that a person can find in the pictures, for the legend.

    At most 20, which fill a column of the legend, each with more than 0.2 % of the pixels.

    Args:
        pixels: (K,) pixels of each class.
    """
    most = np.argsort(pixels)[::-1][:20]
    return np.sort(most[pixels[most] > 0.002 * pixels.sum()])
