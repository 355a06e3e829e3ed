"""What a source is to ingest: parts of labelled images that are read once, in order."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cluster.dataset import SplitName
from cluster.errors import DataError

Payload = Sequence[bytes | str] | npt.NDArray[np.uint8]
"""Images of one chunk: encoded, as paths of files, or uint8 ``[n, channels, height, width]``."""

CHUNK_ROWS = 256
CHUNK_BYTES = 8 * 2**20
"""A chunk is as much as one process decodes at a time: its end is whichever comes first."""

SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""What people call splits."""


class Pictures(Protocol):
    """The images of a part, in order. They may be read more than once."""

    def __len__(self) -> int: ...

    def chunks(self) -> Iterator[Payload]:
        """All images, in chunks."""

    def name(self, row: int) -> str:
        """What a person finds image ``row`` by."""


@dataclass(frozen=True)
class PixelPictures:
    """Images that are decoded already, all of one size."""

    images: npt.NDArray[np.uint8]
    """uint8 ``[rows, channels, height, width]``, of 1 or 3 channels."""
    origin: str

    def __len__(self) -> int:
        return len(self.images)

    def chunks(self) -> Iterator[Payload]:
        """Slices of the array."""
        for start in range(0, len(self.images), CHUNK_ROWS):
            yield self.images[start : start + CHUNK_ROWS]

    def name(self, row: int) -> str:
        """The image's number."""
        return f"{self.origin} {row}"


@dataclass(frozen=True)
class FilePictures:
    """Image files, named by their paths below a folder (or absolute ones)."""

    root: Path
    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def chunks(self) -> Iterator[Payload]:
        """Paths; whoever decodes a file reads it."""
        for start in range(0, len(self.paths), CHUNK_ROWS):
            yield [os.path.join(self.root, path) for path in self.paths[start : start + CHUNK_ROWS]]

    def name(self, row: int) -> str:
        """The path as it was given, :func:`readable`."""
        return readable(self.paths[row])


@dataclass(frozen=True)
class Part:
    """One split of a source."""

    pictures: Pictures
    labels: npt.NDArray[np.int64]
    """int64 ``[rows]``, each an index of the source's class names."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """What ingest splits and writes."""

    description: str
    class_names: tuple[str, ...]
    parts: Mapping[SplitName, Part]
    """``train``, and of ``val`` and ``test`` those that the source brings."""
    notes: tuple[str, ...] = ()
    """What a person should be told about how it was read."""

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts.values())

    def renamed(self, class_names: tuple[str, ...]) -> "Source":
        """The same images under other names, given in label order.

        Raises:
            DataError: as many names as classes are needed.
        """
        num_classes = len(self.class_names)
        if len(class_names) != num_classes or len(set(class_names)) != num_classes:
            raise DataError(
                f"--class-names: {self.description} has {num_classes} classes; "
                f"give that many different names, not {', '.join(class_names)}"
            )
        return replace(self, class_names=class_names)


def check_source(source: Source) -> None:
    """Refuse what no classifier could be trained on, whatever kind of source it is from.

    Raises:
        DataError: there is no training split, one class, or an image without a class.
    """
    if "train" not in source.parts:
        found = " and ".join(source.parts) or "nothing"
        raise DataError(f"{source.description} brings {found}, but no images to train on")
    if len(source.class_names) < 2:
        raise DataError(f"{source.description} has one class; a classifier needs two or more")
    check_class_names(source.description, source.class_names)
    for split, part in source.parts.items():
        wrong = np.flatnonzero((part.labels < 0) | (part.labels >= len(source.class_names)))
        if len(wrong):
            raise DataError(
                f"{source.description}: {part.pictures.name(int(wrong[0]))} of split {split} has "
                f"label {part.labels[wrong[0]]}; the {len(source.class_names)} classes are 0 to "
                f"{len(source.class_names) - 1}{and_more(len(wrong) - 1)}"
            )


def check_class_names(where: str, names: Sequence[str]) -> None:
    """Refuse names that a person would take for one another.

    ``cat`` and ``Cat`` are one class that two people spelled; single letters are not (data sets of
    handwriting tell ``a`` from ``A``).

    Raises:
        DataError: a name is empty or no UTF-8, or two are alike.
    """
    if not all(name.strip() for name in names):
        raise DataError(f"{where}: a class has an empty name")
    for name in names:
        readable = name.encode(errors="surrogateescape").decode(errors="replace")
        if readable != name:
            raise DataError(f"{where}: the name of class {readable!r} is no UTF-8; rename it")
    folded = [name if len(name) == 1 else _fold(name) for name in names]
    alike = {key for key, count in Counter(folded).items() if count > 1}
    if alike:
        first = [name for name, key in zip(names, folded, strict=True) if key == min(alike)]
        raise DataError(
            f"{where}: classes {' and '.join(map(repr, first))} differ by nothing, or by case and "
            "spaces only; give one class one name"
        )


def order_class_names(names: set[str]) -> tuple[str, ...]:
    """Names in the order of their labels: numbers by value, anything else by letter."""
    if all(re.fullmatch(r"-?\d{1,18}", name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def shorten(items: Sequence[str], limit: int = 5) -> str:
    """The first few items as text, and how many more there are."""
    shown = ", ".join(items[:limit])
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown


def and_more(count: int) -> str:
    """How many more there are than the one that is named; nothing where there are none."""
    return f" (and {count} more)" if count else ""


def readable(name: str) -> str:
    """A name on one line: what cannot be printed, such as bytes that are no UTF-8, is escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in name)


def _fold(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
