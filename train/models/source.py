"""Files of the user's that describe a network: read as a whole, and known by their digest."""

import hashlib
from pathlib import Path

from cluster.errors import ConfigError


def read_file(path: Path) -> bytes:
    """Read a file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def check_sha256(path: Path, content: bytes, sha256: str | None) -> None:
    """Compare a file's content with its recorded digest, if there is one.

    Raises:
        ConfigError: it is another.
    """
    if sha256 is not None and content_sha256(content) != sha256:
        raise ConfigError(
            f"{path} was changed: it is not the file that the run began with (sha256 {sha256[:16]})"
        )


def content_sha256(content: bytes) -> str:
    """Hex sha256."""
    return hashlib.sha256(content).hexdigest()
