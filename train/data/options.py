"""What a user decides about an ingest, and what it tells while it works."""

from typing import Literal, Protocol

from pydantic import Field

from cluster.config import Frozen
from cluster.errors import DataError
from cluster.images import MAX_SIDE, Resize

Normalize = Literal["dataset", "half", "none"]


class IngestOptions(Frozen):
    """Everything but the source and the name."""

    size: tuple[int, int] | None = None
    """``(width, height)`` that images are brought to; without it they must have one size."""
    channels: Literal[1, 3] | None = None
    """1 for gray, 3 for color; without it gray if all images are."""
    resize: Resize | None = None
    """``crop``, ``pad`` or ``stretch``; also what a server does. None is crop."""
    normalize: Normalize | None = None
    """What models normalise with: the training split's statistics, 0.5 and 0.5, or 0 and 1.
    None is the statistics, or, of a version that is added to, what that one says."""
    shares: tuple[float, ...] | None = None
    """Of the splits that the source lacks, train first; see :mod:`train.data.splitting`."""
    seed: int = Field(default=0, ge=0)
    storage: Literal["auto", "pixels", "encoded"] = "auto"
    """Keep images decoded and resized, or as they were found; ``auto`` goes by their size."""
    on_bad: Literal["error", "skip"] = "error"
    """What a file that cannot be decoded does."""
    append: bool = False
    """Begin with the images of the newest version."""


class Watcher(Protocol):
    """Who is told what an ingest does."""

    def say(self, text: str) -> None:
        """Something that happened."""

    def advance(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` images have been through ``what``."""


class Silent:
    """Nobody is."""

    def say(self, text: str) -> None:
        """Nothing."""

    def advance(self, what: str, done: int, total: int) -> None:
        """Nothing."""


def parse_size(text: str) -> tuple[int, int]:
    """Read ``32`` or ``WIDTHxHEIGHT`` into ``(width, height)``.

    Raises:
        DataError: it is neither.
    """
    parts = text.lower().split("x")
    numbers = [int(part) for part in parts if part.isdecimal() and len(part) <= 4]
    if len(numbers) != len(parts) or len(parts) > 2 or not all(0 < n <= MAX_SIDE for n in numbers):
        raise DataError(
            f"--size {text}: expected pixels from 1 to {MAX_SIDE}, such as 32 or 320x240"
        )
    return (numbers[0], numbers[-1])
