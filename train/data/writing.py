"""The files of a split, out of what was gathered of a source."""

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.dataset import (
    Dataset,
    ShardInfo,
    SplitInfo,
    SplitName,
    write_encoded_split,
    write_split,
)
from train.data.decoding import encoded_bytes
from train.data.gathering import Gathered
from train.data.sources.source import Part


def write_gathered(
    draft: Path,
    split: SplitName,
    gathered: Gathered,
    part: Part,
    parent: Dataset | None,
    num_classes: int,
) -> SplitInfo:
    """Write one split.

    Args:
        draft: where the files go.
        split: its name.
        gathered: what it holds; its scratch files are no longer needed afterwards.
        part: of the source, where its new images are from.
        parent: the version that is added to.
        num_classes: how many classes to count.
    """
    if gathered.pixels is not None:
        info = write_split(draft, split, gathered.pixels.map(), gathered.labels, num_classes)
        gathered.pixels.path.unlink()
        return info
    shards = () if parent is None else _link_shards(draft, split, parent)
    if len(gathered.rows):
        added = draft / f".added-{split}"
        added.mkdir()
        new_labels = gathered.labels[gathered.old :]
        info = write_encoded_split(
            added, split, _blobs(part, gathered.rows), new_labels, num_classes
        )
        shards += _number_from(draft, added, info.shards, len(shards), split)
    counts = np.bincount(gathered.labels, minlength=num_classes)
    return SplitInfo(
        rows=len(gathered.labels),
        class_counts=tuple(int(count) for count in counts),
        shards=shards,
    )


def _link_shards(draft: Path, split: SplitName, parent: Dataset) -> tuple[ShardInfo, ...]:
    """Give the draft the files of the version that is added to, without copies where that goes."""
    shards = parent.meta.splits[split].shards if split in parent.meta.splits else ()
    for shard in shards:
        try:
            os.link(parent.path / shard.file, draft / shard.file)
        except OSError:
            # Another disk, or one without links.
            shutil.copyfile(parent.path / shard.file, draft / shard.file)
    return shards


def _number_from(
    draft: Path, added: Path, shards: tuple[ShardInfo, ...], first: int, split: SplitName
) -> tuple[ShardInfo, ...]:
    """Move new files into the draft, numbered after the old ones."""
    moved = []
    for number, shard in enumerate(shards, start=first):
        name = f"{split}-{number:05}.arrow"
        (added / shard.file).rename(draft / name)
        moved.append(shard.model_copy(update={"file": name}))
    added.rmdir()
    return tuple(moved)


def _blobs(part: Part, rows: npt.NDArray[np.int64]) -> Iterator[bytes]:
    """The encoded bytes of some rows, in order. A file is read only if its row is wanted."""
    pictures = itertools.chain.from_iterable(part.pictures.chunks())
    wanted = iter(rows.tolist())
    row = next(wanted, None)
    for index, picture in enumerate(pictures):
        if row is None:
            return
        if index == row:
            yield encoded_bytes(picture)
            row = next(wanted, None)
