"""The store: one root folder, and the rule that nothing half-written is ever visible in it.

datasets/NAME/VERSION/     Arrow files, meta.json, contact-sheet.png
runs/RUN/                  config.json, run.json, events.jsonl, checkpoints/, report.html, ...
bundles/DIGEST/            bundles that were exported or fetched from the registry
serving/MODEL.json         what is served: generation, versions, shares
mlflow.db, mlartifacts/    tracking and registry, when no server is named

The root is a folder that all nodes see, or a prefix of an object store. Of an object store every
node keeps what it uses in a folder of its own, made like the root; data sets lie there by their
digest, under cache/datasets/. There the object store is what counts: a folder is whole when the
file is there that is put last, its marker.
"""

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.atomic import locked, publishing, rename_new, write_json_atomic
from cluster.errors import ConfigError, StoreError, UserError
from cluster.remote import Remote, StoredFile
from cluster.settings import locate_store

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_name(kind: str, name: str) -> str:
    """Return ``name`` if it can be a folder, a URL segment and a registry name at once.

    Raises:
        UserError: it cannot.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise UserError(
            f"{kind} name {name!r}: use 1-64 letters, digits, '_', '-' or '.', "
            "beginning with a letter or digit"
        )
    return name


@dataclass(frozen=True)
class Folder:
    """A folder of the store: on this node's disk, and behind it an object store if there is one."""

    path: Path
    """On disk. Of a folder with a ``remote``, copies."""
    remote: Remote | None = None
    name: str = ""
    """In the object store."""

    def child(self, name: str) -> "Folder":
        """A folder within this one."""
        return Folder(self.path / name, self.remote, f"{self.name}/{name}")

    @property
    def address(self) -> str:
        """Its path, or, in an object store, its URI."""
        if self.remote is None:
            return str(self.path)
        prefix, mark, options = self.remote.uri.partition("?")
        return f"{prefix}/{self.name}{mark}{options}"

    def names(self) -> list[str]:
        """The files directly in it, in order, hidden ones left out."""
        return [name for name in self._list()[0] if not name.startswith(".")]

    def folders(self) -> list[str]:
        """The folders directly in it, in order, hidden ones left out."""
        return [name for name in self._list()[1] if not name.startswith(".")]

    def whole(self, marker: str) -> list[str]:
        """The folders directly in it that have their marker, in order, hidden ones left out."""
        if self.remote is not None:
            # One listing, however many there are.
            found = [name.split("/") for name in self.remote.list(self.name, recursive=True)[0]]
            names = [parts[0] for parts in found if len(parts) == 2 and parts[1] == marker]
            return [name for name in names if not name.startswith(".")]
        return [name for name in self.folders() if (self.path / name / marker).is_file()]

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        if self.remote is not None:
            return self.remote.has(f"{self.name}/{name}")
        return (self.path / name).is_file()

    def pull(self, name: str) -> Path:
        """The path of a file, of which an object store's newest content is copied here first.

        Raises:
            FileNotFoundError: an object store has no such file.
        """
        if self.remote is not None:
            self.remote.get(f"{self.name}/{name}", self.path / name)
        return self.path / name

    def push(self, *names: str) -> None:
        """Make files that were written here visible to other nodes."""
        if self.remote is not None:
            for name in names:
                self.remote.put(self.path / name, f"{self.name}/{name}")

    def drop_copy(self, name: str) -> None:
        """Free this disk of a file that is in an object store."""
        if self.remote is not None:
            (self.path / name).unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """The content of a small file, or None if there is none."""
        if self.remote is not None:
            return self.remote.read(f"{self.name}/{name}")
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def read_all(self, names: list[str]) -> list[bytes | None]:
        """As :meth:`read`, many at once."""
        if self.remote is not None:
            return self.remote.read_all([f"{self.name}/{name}" for name in names])
        return [self.read(name) for name in names]

    def write_json(self, name: str, value: Any) -> None:
        """Make or replace a file, whole or not at all."""
        write_json_atomic(self.path / name, value)
        self.push(name)

    def touch(self, name: str) -> None:
        """Give a file, of which this node has a copy, the age of one that was written just now."""
        with contextlib.suppress(PermissionError):  # Another user's stays as old as it is.
            os.utime(self.path / name)
        self.push(name)

    def delete(self, name: str) -> None:
        """Remove a file, if there is one."""
        if self.remote is not None:
            self.remote.delete(f"{self.name}/{name}")
        (self.path / name).unlink(missing_ok=True)

    def details(self) -> tuple[StoredFile, ...]:
        """Every file in it and in the folders in it, hidden ones too, in order."""
        if self.remote is not None:
            return self.remote.details(self.name)
        found = []
        for file in sorted(self.path.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # Drafts come and go.
                status = file.lstat()
                if not stat.S_ISDIR(status.st_mode):
                    name = file.relative_to(self.path).as_posix()
                    found.append(StoredFile(name, status.st_size, status.st_mtime))
        return tuple(found)

    def remove(self, marker: str) -> None:
        """Remove the folder with all that is in it. Copies on the disks of other nodes stay.

        Args:
            marker: the file that makes it whole, and so goes first.

        Raises:
            OSError: a file cannot be removed; the folder is not seen any more.
        """
        if self.remote is not None:
            self.remote.delete(f"{self.name}/{marker}")
            for file in self.remote.details(self.name):
                self.remote.delete(f"{self.name}/{file.name}")
        if self.path.exists():
            gone = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.old")
            self.path.rename(gone)
            shutil.rmtree(gone)

    @property
    def lock_file(self) -> Path:
        """What who writes to the folder holds, by :func:`locked`, on this node's disk."""
        return self.path.with_name(f".{self.path.name}.lock")

    def publish(self, draft: Path, marker: str) -> None:
        """Make a finished folder this one. Versions are never changed, so it must not exist.

        Args:
            draft: a folder on this folder's disk, which is moved or removed.
            marker: the file that makes it whole.

        Raises:
            FileExistsError: there is one already; nothing has changed.
        """
        if self.remote is not None:
            if self.has(marker):
                raise FileExistsError(f"{self.remote.uri}: {self.name} exists already")
            self.remote.upload(draft, self.name, last=marker)
            if self.read(marker) != (draft / marker).read_bytes():
                raise StoreError(
                    f"{self.remote.uri}: another host wrote {self.name} at the same moment; "
                    "try again"
                )
        rename_new(draft, self.path, beside_remote=self.remote is not None)

    def fetch(self, marker: str, check: Callable[[Path], object]) -> Path:
        """The path of a whole folder, of which an object store's is copied here once.

        Args:
            marker: the file that makes it whole.
            check: called with every new copy before it can be seen; it raises if it is damaged.

        Raises:
            FileNotFoundError: there is no such folder.
        """
        if self.remote is None or (self.path / marker).is_file():
            if not (self.path / marker).is_file():
                raise FileNotFoundError(f"there is no {self.path / marker}")
            return self.path
        with locked(self.lock_file):
            if not (self.path / marker).is_file():
                # Whoever left them there holds no lock any more, and so is dead.
                for stale in self.path.parent.glob(f".{self.path.name}.*.draft"):
                    shutil.rmtree(stale, ignore_errors=True)
                with publishing(self.path) as draft:
                    if not self.has(marker):
                        raise FileNotFoundError(f"{self.remote.uri} has no {self.name}/{marker}")
                    self.remote.download(self.name, draft)
                    check(draft)
        return self.path

    def restore(self, marker: str) -> None:
        """Put a whole folder from this disk into the object store, if that has it no longer."""
        if self.remote is not None and not self.has(marker):
            self.remote.upload(self.path, self.name, last=marker)

    def forget(self) -> None:
        """Remove the folder from this disk; an object store's stays."""
        if self.path.exists():
            gone = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.old")
            self.path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _list(self) -> tuple[list[str], list[str]]:
        if self.remote is not None:
            return self.remote.list(self.name)
        if not self.path.is_dir():
            return [], []
        found = sorted(self.path.iterdir())
        files = [one.name for one in found if one.is_file()]
        return files, [one.name for one in found if one.is_dir()]


class Store:
    """Folders under one root. Creating a store touches nothing on disk, and connects to nothing."""

    def __init__(self, root: Path, remote: Remote | None = None) -> None:
        """``root`` is the store, or, of an object store, this node's copies."""
        self.root = root
        self.remote = remote

    @classmethod
    def open(cls, address: str) -> "Store":
        """The store at a folder or URI, as ``RAYBRIDGE_STORE`` gives it.

        Raises:
            ConfigError: it is a URI of a kind that is not supported.
        """
        root, uri = locate_store(address)
        return cls(root, None if uri is None else Remote(uri))

    @property
    def address(self) -> str:
        """What :meth:`open` takes on another node."""
        return str(self.root) if self.remote is None else self.remote.uri

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def serving(self) -> Path:
        return self.root / "serving"

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    @property
    def dataset_cache(self) -> Path:
        """Of an object store: data sets by digest."""
        return self.root / "cache" / "datasets"

    def folder(self, name: str) -> Folder:
        """The folder of that name, relative to the root."""
        return Folder(self.root / name, self.remote, name)

    def ensure_writable(self) -> None:
        """Create the root.

        Raises:
            ConfigError: it cannot be created or written to.
            StoreError: an object store does not answer.
        """
        probe = f".probe-{secrets.token_hex(4)}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / probe).touch()
            (self.root / probe).unlink()
        except OSError as error:
            another = "RAYBRIDGE_STORE" if self.remote is None else "RAYBRIDGE_CACHE"
            raise ConfigError(
                f"the store {self.root} cannot be written: {error.strerror}; "
                f"name another folder in {another}"
            ) from None
        if self.remote is not None:
            self.remote.list("serving")  # Tells more of what is wrong than writing does.
            self.remote.write(probe, b"")
            self.remote.delete(probe)
