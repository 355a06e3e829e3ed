"""What lies in folders: in the same order everywhere, without what systems leave there."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from cluster.errors import DataError

_JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""What systems leave in folders; anything that begins with a dot counts as well."""


def files_below(folder: Path) -> Iterator[str]:
    """All files below a folder, as paths below it; links to folders are followed.

    A folder is read once, whatever links lead to it. A link to a folder above the one that was
    asked for is not followed: what lies there belongs to others.

    Raises:
        DataError: a folder cannot be listed.
    """
    top = Path(os.path.realpath(folder))
    seen = {top, *top.parents}
    for at, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        inside = {
            name: Path(os.path.realpath(os.path.join(at, name)))
            for name in sorted(folders)
            if not _is_junk(name)
        }
        folders.clear()
        for name, real in inside.items():
            if real not in seen:
                seen.add(real)
                folders.append(name)
        below = os.path.relpath(at, folder)
        beside = "" if below == os.curdir else below + os.sep
        yield from (beside + name for name in sorted(files) if not _is_junk(name))


def listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files that lie right in a folder.

    Raises:
        DataError: it cannot be listed.
    """
    folders: list[Path] = []
    files: list[Path] = []
    try:
        for child in sorted(folder.iterdir()):
            if not _is_junk(child.name):
                (folders if child.is_dir() else files).append(child)
    except OSError as error:
        _refuse(error)
    return folders, files


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK
