"""A whole source, decoded into scratch files: what is kept of it, and what is not."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.dataset import SPLITS, Dataset, SplitName, Storage
from cluster.errors import DataError
from cluster.images import ImageSpec
from train.data.decoding import Likeness, decode_chunk, decode_tasks
from train.data.fingerprints import (
    THUMBNAIL_SHAPE,
    Fingerprints,
    fingerprint,
    read_fingerprints,
)
from train.data.known import Known, There
from train.data.options import Watcher
from train.data.scratch import Scratch
from train.data.sources.source import Source
from train.data.splitting import Assignment
from train.data.workers import Workers

MAX_LISTED = 20
_BLOCK_ROWS = 256


class BadImagesError(DataError):
    """Images that cannot be decoded; the message lists the first of them, ``bad`` all."""

    def __init__(self, bad: Sequence[tuple[str, str]], total: int) -> None:
        listed = ", ".join(f"{name} ({reason})" for name, reason in bad[:MAX_LISTED])
        more = f" and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        super().__init__(
            f"{len(bad)} of {total} images cannot be used: {listed}{more}; "
            "mend them, or leave them out with --on-bad skip"
        )
        self.details = {"bad": [{"image": name, "reason": reason} for name, reason in bad]}


class UnlikeImagesError(Exception):
    """An image is not what the spec takes for granted of all."""


@dataclass(frozen=True)
class Gathered:
    """What a split will hold: of the version that is added to, and of the source."""

    old: int
    """Rows of the version that is added to; they come first."""
    rows: npt.NDArray[np.int64]
    """int64 ``[new]``: the others' rows in the source's part."""
    labels: npt.NDArray[np.int64]
    """int64 ``[old + new]``."""
    prints: Fingerprints
    """Of ``old + new`` images."""
    sums: npt.NDArray[np.int64]
    """int64 ``[channels]``: the sum of the new images' bytes."""
    squares: npt.NDArray[np.int64]
    """Of their squares."""
    pixels: Scratch | None
    """``old + new`` images, unless they stay encoded."""


@dataclass(frozen=True)
class Gathering:
    """All of a source."""

    splits: dict[SplitName, Gathered]
    bad: tuple[tuple[str, str], ...]
    """Images that cannot be decoded, and why; not in the splits."""
    known: Known
    """Images left out because the version that is added to has them."""

    @property
    def added(self) -> int:
        """Images of the source that are kept."""
        return sum(len(part.rows) for part in self.splits.values())


@dataclass(frozen=True)
class _PartRows:
    """What decoding told of a part's images."""

    sums: npt.NDArray[np.int64]
    squares: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint64]
    hashes: npt.NDArray[np.uint64]
    bad: npt.NDArray[np.bool_]


class Gatherer:
    """Decodes a source into scratch files of a folder.

    Args:
        source: what to decode.
        assignment: the split of each of its images.
        spec: what images become.
        likeness: what the spec takes for granted of all images.
        storage: whether pixels are gathered, or only what is known of them.
        parent: the version that is added to.
        folder: where the files go; whoever made it removes it.
    """

    def __init__(
        self,
        source: Source,
        assignment: Assignment,
        spec: ImageSpec,
        likeness: Likeness | None,
        storage: Storage,
        parent: Dataset | None,
        folder: Path,
    ) -> None:
        self._source = source
        self._assignment = assignment
        self._spec = spec
        self._likeness = likeness
        self._parent = parent
        self._old = {
            split: parent.meta.splits[split].rows if parent and split in parent.meta.splits else 0
            for split in SPLITS
        }
        rows = {
            split: self._old[split]
            + sum(int((codes == code).sum()) for codes in assignment.values())
            for code, split in enumerate(SPLITS)
        }
        self._thumbnails = {
            split: Scratch(folder / f".{split}.thumbnails", rows[split], THUMBNAIL_SHAPE)
            for split in SPLITS
        }
        self._pixels = (
            {
                split: Scratch(folder / f".{split}.pixels", rows[split], spec.shape)
                for split in SPLITS
            }
            if storage == "pixels"
            else {}
        )

    @property
    def needed_bytes(self) -> int:
        """Bytes of the scratch files."""
        files = [*self._thumbnails.values(), *self._pixels.values()]
        return sum(file.rows * file.row_bytes for file in files)

    def run(self, workers: Workers, watcher: Watcher, *, skip_bad: bool) -> Gathering:
        """Decode everything.

        Raises:
            BadImagesError: images cannot be decoded, and they are not to be skipped.
            UnlikeImagesError: the likeness does not hold.
            OSError: the disk is full.
        """
        for file in (*self._thumbnails.values(), *self._pixels.values()):
            file.create()
        old = self._take_over(watcher)
        parts: dict[SplitName, _PartRows] = {}
        bad: list[tuple[str, str]] = []
        for split in self._source.parts:
            done = sum(len(part.bad) for part in parts.values())
            parts[split] = self._decode(split, done, bad, workers, watcher)
        if bad and not skip_bad:
            raise BadImagesError(bad, len(self._source))
        known = self._known(parts, old)
        splits = {
            split: self._gathered(split, code, parts, known, old)
            for code, split in enumerate(SPLITS)
        }
        return Gathering(splits, tuple(bad), known)

    def _take_over(self, watcher: Watcher) -> dict[SplitName, Fingerprints]:
        """Copy the old images, and know them."""
        if self._parent is None:
            return {}
        prints = read_fingerprints(self._parent.path)
        for split, rows in self._old.items():
            if not rows:
                continue
            images, known, found = self._parent.split(split), prints.get(split), []
            for start in range(0, rows, _BLOCK_ROWS):
                if known is None or split in self._pixels:
                    block = images.take(slice(start, min(start + _BLOCK_ROWS, rows)))
                    if split in self._pixels:
                        self._pixels[split].write(start, block)
                    if known is None:
                        found.append(fingerprint(block))
                watcher.advance(f"taking over {split}", min(start + _BLOCK_ROWS, rows), rows)
            prints[split] = known or Fingerprints(
                np.concatenate([part.digests for part in found]),
                np.concatenate([part.hashes for part in found]),
                np.concatenate([part.thumbnails for part in found]),
            )
            self._thumbnails[split].write(0, prints[split].thumbnails)
        return prints

    def _decode(
        self,
        split: SplitName,
        done: int,
        bad: list[tuple[str, str]],
        workers: Workers,
        watcher: Watcher,
    ) -> _PartRows:
        """Decode one part; ``done`` images of the source were before it."""
        part, codes = self._source.parts[split], self._assignment[split]
        places = np.zeros(len(part), np.int64)
        for code, name in enumerate(SPLITS):
            chosen = codes == code
            places[chosen] = self._old[name] + np.arange(int(chosen.sum()))
        channels = self._spec.channels
        rows = _PartRows(
            np.zeros((len(part), channels), np.int64),
            np.zeros((len(part), channels), np.int64),
            np.zeros(len(part), np.uint64),
            np.zeros(len(part), np.uint64),
            np.zeros(len(part), bool),
        )
        tasks = decode_tasks(
            part, self._spec, self._likeness, codes, places, self._pixels, self._thumbnails
        )
        row = 0
        # Closed, so that no task of a failed attempt writes into the files of the next.
        with contextlib.closing(workers.map(decode_chunk, tasks)) as chunks:
            for decoded in chunks:
                if decoded.unlike:
                    raise UnlikeImagesError
                block = slice(row, row + len(decoded.digests))
                rows.sums[block], rows.squares[block] = decoded.sums, decoded.squares
                rows.digests[block], rows.hashes[block] = decoded.digests, decoded.hashes
                for index, reason in decoded.bad:
                    rows.bad[row + index] = True
                    bad.append((part.pictures.name(row + index), reason))
                row = block.stop
                watcher.advance("decoding", done + row, len(self._source))
        return rows

    def _known(
        self, parts: Mapping[SplitName, _PartRows], old: Mapping[SplitName, Fingerprints]
    ) -> Known:
        """Find the images that the version that is added to has."""
        there = There(self._parent, old, self._source.class_names)
        rows: dict[SplitName, npt.NDArray[np.bool_]] = {}
        relabelled, examples = 0, list[tuple[str, str]]()
        for split, part in parts.items():
            labels, pictures = self._source.parts[split].labels, self._source.parts[split].pictures
            found, same = there.look(part.digests, labels)
            rows[split] = found & ~part.bad
            other = np.flatnonzero(rows[split] & ~same)
            relabelled += len(other)
            for row in other[: MAX_LISTED - len(examples)].tolist():
                here = f"{pictures.name(row)} ({self._source.class_names[labels[row]]})"
                examples.append((there.name(part.digests[row]), here))
        return Known(rows, relabelled, tuple(examples))

    def _gathered(
        self,
        split: SplitName,
        code: int,
        parts: Mapping[SplitName, _PartRows],
        known: Known,
        old: Mapping[SplitName, Fingerprints],
    ) -> Gathered:
        """Put together what one split holds, and close the gaps in its files."""
        # A split is cut out of the training part, or brought by the source: never both.
        owner: SplitName = split if split in parts else "train"
        part = parts[owner]
        chosen = np.flatnonzero(self._assignment[owner] == code)
        keep = ~(part.bad | known.rows[owner])[chosen]
        rows = chosen[keep]
        kept = np.concatenate([np.ones(self._old[split], bool), keep])
        files = [self._thumbnails[split], *([self._pixels[split]] if self._pixels else [])]
        thumbnails, *pixels = [file if kept.all() else file.compact(kept) for file in files]
        before = old.get(split, Fingerprints(*(np.empty(0, np.uint64),) * 2, thumbnails.map()[:0]))
        labels = self._source.parts[owner].labels[rows]
        if self._parent is not None and self._old[split]:
            labels = np.concatenate([self._parent.split(split).labels, labels])
        return Gathered(
            self._old[split],
            rows,
            labels,
            Fingerprints(
                np.concatenate([before.digests, part.digests[rows]]),
                np.concatenate([before.hashes, part.hashes[rows]]),
                thumbnails.map(),
            ),
            part.sums[rows].sum(0),
            part.squares[rows].sum(0),
            pixels[0] if pixels else None,
        )
