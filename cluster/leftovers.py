"""What commands that were killed left in a store: drafts, probes, and uploads that were cut off."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from cluster.bundle import MANIFEST_FILE
from cluster.dataset import META_FILE
from cluster.inventory import RUN_MARKER, group_files
from cluster.removal import Removal
from cluster.store import Store

DAY_S = 86_400.0

# Of the store's root, which may be a folder in which people keep other things too.
_OURS = ("bundles", "cache", "cluster", "datasets", "probes", "runs", "serving")
_PROBES = "probes"
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.(draft|old)|\.probe-[0-9a-f]{8}")
_REASON = "of a command that was killed"


def find_leftovers(store: Store, now_s: float) -> list[Removal]:
    """What is a day old and nobody will come back to.

    Args:
        store: where to look.
        now_s: the time, in seconds since 1970.
    """
    return [*_on_disk(store, now_s), *_probes(store, now_s), *_cut_off_uploads(store, now_s)]


def _on_disk(store: Store, now_s: float) -> Iterator[Removal]:
    for path in _drafts(store.root):
        inside = [path, *path.rglob("*")]
        status = [file.lstat() for file in inside if file.exists()]
        if status and now_s - max(one.st_mtime for one in status) >= DAY_S:
            name = path.relative_to(store.root).as_posix()
            yield Removal("leftover", name, sum(one.st_size for one in status), _REASON)


def _drafts(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from (path for path in sorted(root.iterdir()) if _LEFTOVER.fullmatch(path.name))
    for top in _OURS:
        for parent, folders, files in os.walk(root / top):
            for name in [*folders, *files]:
                if _LEFTOVER.fullmatch(name):
                    yield Path(parent, name)
            folders[:] = [name for name in folders if not _LEFTOVER.fullmatch(name)]


def _probes(store: Store, now_s: float) -> Iterator[Removal]:
    """Files by which ``doctor`` asks nodes whether they see the same store."""
    for file in store.folder(_PROBES).details():
        name = f"{_PROBES}/{file.name}"
        if not file.name.startswith(".") and now_s - file.changed_s >= DAY_S:
            yield Removal("leftover", name, file.bytes, _REASON, files=(name,))


def _cut_off_uploads(store: Store, now_s: float) -> Iterator[Removal]:
    """Objects of folders that never got their marker, and that nobody has written to for a day."""
    for top, levels, marker in (
        ("runs", 1, RUN_MARKER),
        ("bundles", 1, MANIFEST_FILE),
        ("datasets", 2, META_FILE),
    ):
        files = () if store.remote is None else store.remote.details(top)
        for name, group in group_files(files, levels).items():
            whole = any(file.name == marker for file in group)
            if not whole and now_s - max(file.changed_s for file in group) >= DAY_S:
                names = tuple(f"{top}/{name}/{file.name}" for file in group)
                size = sum(file.bytes for file in group)
                reason = "of an upload that was cut off"
                yield Removal("leftover", f"{top}/{name}", size, reason, files=names)
