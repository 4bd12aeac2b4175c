"""Where bundles lie, and where what is made at run time is kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rgbd_fusion_seg.errors import BundleError

CARD_NAME = 'model.yaml'
"""The file that makes a folder a bundle."""


def bundle_folders() -> list[Path]:
    """Return the folders searched for bundles by name, in order.

    ``$RGBD_FUSION_SEG_MODELS`` (path list), the source tree, :func:`share_folders`, and the user's
    cache, where fused forms of bundles in read-only folders lie.
    """
    folders = [
        Path(p) for p in os.environ.get('RGBD_FUSION_SEG_MODELS', '').split(os.pathsep) if p
    ]
    folders.append(Path(__file__).resolve().parent.parent / 'models')
    folders += [folder / 'models' for folder in share_folders()]
    folders.append(user_cache() / 'bundles')
    # Unlike Path.is_dir, this takes a folder that may not be looked into for none.
    return [f for f in dict.fromkeys(folders) if os.path.isdir(f)]


def share_folders() -> list[Path]:
    """Return where this package's launch files, configurations and bundles may be installed.

    The ament share folder of every prefix on ``AMENT_PREFIX_PATH``, and those of this Python.
    """
    prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    folders = (Path(p) / 'share' / 'rgbd_fusion_seg' for p in [*prefixes, *python_prefixes()])
    return list(dict.fromkeys(folders))


def python_prefixes() -> list[str]:
    """Return this Python's prefix, and the one that pip installed this package under.

    They differ outside virtual environments, after ``pip install --user``, and where the
    distribution keeps ``/usr`` for its own packages and has pip use ``/usr/local``.
    """
    prefixes = [sys.prefix]
    packages = Path(__file__).resolve().parent.parent
    if packages.name in ('site-packages', 'dist-packages'):
        prefixes.append(str(packages.parent.parent.parent))  # of lib/python3.X/site-packages
    return list(dict.fromkeys(prefixes))


def user_cache() -> Path:
    """Return the user's folder for what is made here and cannot lie beside its bundle.

    A user without a home, or with that of another as containers often give him, gets a folder
    that does not exist and cannot be made.
    """
    base = os.environ.get('XDG_CACHE_HOME', '')
    try:
        root = Path(base) if os.path.isabs(base) else Path.home() / '.cache'
        os.stat(root / 'rgbd_fusion_seg' / 'any')
    except (RuntimeError, PermissionError):
        root = Path('/nonexistent')  # what Debian calls the home of those who have none
    except OSError:  # not made yet
        pass
    return root / 'rgbd_fusion_seg'


def list_bundles() -> list[Path]:
    """Return the folder of every bundle that can be opened by name."""
    found: dict[str, Path] = {}
    for folder in bundle_folders():
        for card in sorted(folder.glob(f'*/{CARD_NAME}')):
            found.setdefault(card.parent.name, card.parent)
    return list(found.values())


def find_bundle(path_or_name: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle, given as that folder, its card, or its name.

    Raises:
        BundleError: there is none.
    """
    try:
        path = Path(path_or_name).expanduser()
        if path.name == CARD_NAME and path.is_file():
            return path.parent
        if (path / CARD_NAME).is_file():
            return path
        folder = path.is_dir()
    except (OSError, RuntimeError) as error:  # a name too long, a folder of others, no such user
        raise BundleError(
            f'the bundle {str(path_or_name)!r} cannot be reached ({error}); give a folder that '
            'this user may read'
        ) from error
    if folder:
        raise BundleError(f'{path} is no bundle: it has no {CARD_NAME}; name a bundle folder')
    known = {folder.name: folder for folder in list_bundles()}
    name, *inside = path.parts or ('',)
    if name in known and (known[name].joinpath(*inside) / CARD_NAME).is_file():
        return known[name].joinpath(*inside)
    raise BundleError(
        f'there is no bundle at or called {str(path_or_name)!r}; give a folder with a '
        f'{CARD_NAME} or one of these names: {", ".join(sorted(known)) or "(none installed)"}'
    )
