"""The files of a data set's splits, out of what was gathered of a source."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cluster.dataset import (
    SPLITS,
    Dataset,
    EncodedWriter,
    ShardInfo,
    SplitInfo,
    SplitName,
    Storage,
    write_split,
)
from train.data.decoding import encoded_bytes
from train.data.gathering import Gathered
from train.data.options import Watcher
from train.data.sources.source import Source


def write_splits(
    draft: Path,
    source: Source,
    splits: Mapping[SplitName, Gathered],
    storage: Storage,
    parent: Dataset | None,
    watcher: Watcher,
) -> dict[SplitName, SplitInfo]:
    """Write all splits.

    Args:
        draft: where the files go.
        source: where new images are from; encoded ones are read again, once.
        splits: what they hold; their files of pixels are gone afterwards.
        storage: how it is kept.
        parent: the version that is added to.
        watcher: told of the progress.
    """
    if storage == "encoded":
        return _write_encoded(draft, source, splits, parent, watcher)
    infos: dict[SplitName, SplitInfo] = {}
    for split, part in splits.items():
        watcher.say(f"writing {split}: {len(part.labels)} images")
        assert part.pixels is not None
        pixels = part.pixels.map()
        infos[split] = write_split(draft, split, pixels, part.labels, len(source.class_names))
        part.pixels.path.unlink()
    return infos


def _write_encoded(
    draft: Path,
    source: Source,
    splits: Mapping[SplitName, Gathered],
    parent: Dataset | None,
    watcher: Watcher,
) -> dict[SplitName, SplitInfo]:
    old = {split: _link_shards(draft, split, parent) for split in splits}
    done = 0
    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                EncodedWriter(draft, split, len(source.class_names), first=len(old[split]))
            )
            for split in splits
        }
        for name, part in source.parts.items():
            # Where each image goes: nowhere, or to a split, as an index of SPLITS.
            codes = np.full(len(part), -1, np.int8)
            for code, split in enumerate(SPLITS):
                if name == (split if split in source.parts else "train"):
                    codes[splits[split].rows] = code
            row = 0
            for chunk in part.pictures.chunks():
                for index, picture in enumerate(chunk, start=row):
                    if codes[index] >= 0:
                        writer = writers[SPLITS[codes[index]]]
                        writer.add(encoded_bytes(picture), int(part.labels[index]))
                row += len(chunk)
                watcher.advance("writing", done + row, len(source))
            done += row
        added = {split: writer.finish() for split, writer in writers.items()}
    return {
        split: SplitInfo(
            rows=len(part.labels),
            class_counts=tuple(
                np.bincount(part.labels, minlength=len(source.class_names)).tolist()
            ),
            shards=old[split] + added[split].shards,
        )
        for split, part in splits.items()
    }


def _link_shards(draft: Path, split: SplitName, parent: Dataset | None) -> tuple[ShardInfo, ...]:
    """Give the draft the files of the version that is added to, without copies where that goes."""
    if parent is None or split not in parent.meta.splits:
        return ()
    shards = parent.meta.splits[split].shards
    for shard in shards:
        try:
            os.link(parent.path / shard.file, draft / shard.file)
        except OSError:
            # Another disk, or one without links.
            shutil.copyfile(parent.path / shard.file, draft / shard.file)
    return shards
