"""The folder that a run writes: it holds the results of one run, and nobody's files are lost."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from rgbd_fusion_seg.errors import InputError

FRAME_LIST = 'frames.txt'
"""Names the frames of a run, one a line, each with its stamp in nanoseconds behind a tab where it
has one; by it the next run knows what it may remove."""

_AS_NAMED = 'surrogateescape'
"""How to encode names of files, which may be any bytes."""
_MARK = '# frames that rgbd-fusion-seg labelled; its next run into this folder removes their files'
_IMAGES = {'labels': '.png', 'overlay': '.jpg'}
_FILES = ('overlay.mp4', 'contact_sheet.png', 'result.txt', 'result.json', FRAME_LIST)


class OutputFolder:
    """A folder for ``labels/NAME.png``, ``overlay/NAME.jpg`` and the files beside them.

    What an earlier run left there is removed when the first frame is added, not before: a run
    that labels nothing leaves it as it is.

    Args:
        path: made where it does not exist.

    Raises:
        InputError: it cannot be written, or has files in those places that no run wrote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun = False
        try:
            self._left = self._left_by_earlier_run()
            for folder in _IMAGES:
                (path / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def add(self, name: str, stamp_ns: int | None = None) -> tuple[Path, Path]:
        """Return where labels and overlay of a frame belong, and note its name and stamp."""
        frame_list = self.path / FRAME_LIST
        try:
            if not self._begun:
                for path in self._left:
                    path.unlink(missing_ok=True)
                frame_list.write_text(f'{_MARK}\n', encoding='utf-8')
                self._begun = True
            # Before the files are written, so that the list holds for runs that are broken off.
            with frame_list.open('a', encoding='utf-8', errors=_AS_NAMED) as file:
                file.write(f'{name}\n' if stamp_ns is None else f'{name}\t{stamp_ns}\n')
        except OSError as error:
            raise self._unusable(error) from error
        labels, overlay = (self.path / f / f'{name}{suffix}' for f, suffix in _IMAGES.items())
        return labels, overlay

    def _left_by_earlier_run(self) -> list[Path]:
        """Return the files of the run that wrote here before, the list of its frames last."""
        names = read_frame_list(self.path / FRAME_LIST)
        known = set()
        if names is not None:
            written = {f'{f}/{n}{suffix}' for n in names for f, suffix in _IMAGES.items()}
            known = written.union(_FILES)
        # Hidden files are notes of macOS about files, which come and go with them.
        shown = {folder: f'[!.]*{suffix}' for folder, suffix in _IMAGES.items()}
        images = [path for f, pattern in shown.items() for path in (self.path / f).glob(pattern)]
        found = [*images, *(self.path / name for name in _FILES if (self.path / name).exists())]
        inside = [path.relative_to(self.path).as_posix() for path in found]
        refuse_foreign(self.path, set(inside) - known)
        return found

    def _unusable(self, error: OSError) -> InputError:
        return InputError(f'{self.path} cannot be used for the results: {error}')


def read_frame_list(path: Path) -> dict[str, int | None] | None:
    """Return the stamps of a run's frames by their names; None where no run wrote this file.

    Stamps are nanoseconds; frames of folders have none.
    """
    try:
        mark, *lines = path.read_text(encoding='utf-8', errors=_AS_NAMED).splitlines()
        frames = [line.partition('\t') for line in lines]
        stamps = {name: int(stamp) if stamp else None for name, _, stamp in frames}
    except (OSError, ValueError):
        return None
    return stamps if mark == _MARK else None


def refuse_foreign(folder: Path, foreign: Collection[str]) -> None:
    """Raise an InputError if a folder holds files, in the places of results, that no run wrote."""
    if foreign:
        others = f' and {len(foreign) - 1} more' if len(foreign) > 1 else ''
        raise InputError(
            f'{folder} holds {min(foreign)}{others}, not written by an earlier run into it; '
            'choose another folder for the results, or move what is there away'
        )
