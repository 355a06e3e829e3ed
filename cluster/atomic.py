"""Files and folders that are seen whole or not at all, and locks between processes."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.errors import RaybridgeError


@contextlib.contextmanager
def drafting(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty hidden folder in ``parent``, which is gone at the end unless it was moved."""
    parent.mkdir(parents=True, exist_ok=True)
    draft = parent / f".{name}.{secrets.token_hex(4)}.draft"
    draft.mkdir()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that becomes ``target`` if the block succeeds.

    On any exception, an interrupt included, the folder is removed and ``target`` is untouched.

    Raises:
        FileExistsError: ``target`` exists.
    """
    with drafting(target.parent, target.name) as draft:
        yield draft
        rename_new(draft, target)


@contextlib.contextmanager
def locked(file: Path, busy: RaybridgeError | None = None) -> Iterator[None]:
    """Keep other processes out of the same block; the lock ends with the process in any case.

    It holds between the processes of a node, and of nodes whose shared folder passes locks on.

    Args:
        file: made if need be, and left there.
        busy: raised if another process is inside; without it, it is waited for.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            assert busy is not None
            raise busy from None
        yield


def rename_new(draft: Path, target: Path, *, beside_remote: bool = False) -> None:
    """Rename a draft to what must not exist, or, of a copy, may have been made meanwhile."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        try:
            draft.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    if not beside_remote:
        raise FileExistsError(f"{target} exists already")


def write_text_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{path.name}.{secrets.token_hex(4)}.draft"
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with :func:`write_text_atomic`."""
    write_text_atomic(path, json.dumps(value, indent=2, sort_keys=False) + "\n")
