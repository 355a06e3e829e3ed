"""Which code and which libraries a result comes from."""

import contextlib
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("cluster", "train", "serve", "tune")
LOCK_FILE = "requirements.lock"
LIBRARIES = ("raybridge", "torch", "torchvision", "ray", "numpy", "onnx", "onnxruntime", "pyarrow")


def code_commit() -> str | None:
    """The commit of the checkout that this code is imported from, ``-dirty`` if it was changed.

    None for an installed wheel, or where git is missing.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changed else head


def lock_sha256() -> str | None:
    """sha256 of the lock file of the checkout that this code is imported from; None without one."""
    try:
        content = (Path(__file__).resolve().parent.parent / LOCK_FILE).read_bytes()
    except OSError:
        return None
    return hashlib.sha256(content).hexdigest()


def code_digest() -> str:
    """Twelve hex digits over our own sources, whatever brought them here."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode())
            with contextlib.suppress(OSError):  # An editor's file that is gone again.
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a result."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # A checkout that runs without being installed has no metadata.
    return versions


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
