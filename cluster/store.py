"""The store: one root folder, and the rule that nothing half-written is ever visible in it.

datasets/NAME/VERSION/     Arrow files, meta.json, contact-sheet.png
runs/RUN/                  config.json, events.jsonl, checkpoints/, report.html, bundle/
serving/MODEL.json         what is served: generation, versions, shares
cache/bundles/DIGEST/      bundles fetched from the registry
mlflow.db, mlartifacts/    tracking and registry, when no server is named
"""

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError, UserError

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


class Store:
    """Paths under one root. Creating a store touches nothing on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

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
    def bundle_cache(self) -> Path:
        return self.root / "cache" / "bundles"

    def ensure_writable(self) -> None:
        """Create the root.

        Raises:
            ConfigError: the root cannot be created or written to.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"the store {self.root} cannot be written: {error.strerror}; "
                "name another folder in RAYBRIDGE_STORE"
            ) from None


@contextlib.contextmanager
def publishing(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that becomes ``target`` if the block succeeds.

    On any exception, an interrupt included, the folder is removed and ``target`` is untouched.

    Raises:
        FileExistsError: ``target`` exists and ``replace`` is false.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name}.{secrets.token_hex(4)}.draft"
    draft.mkdir()
    try:
        yield draft
        if replace and target.exists():
            old = target.parent / f".{target.name}.{secrets.token_hex(4)}.old"
            target.rename(old)
            draft.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        elif target.exists():
            raise FileExistsError(f"{target} exists already")
        else:
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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
