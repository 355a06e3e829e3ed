"""Source to data set: decide, decode, write, check, and make it visible at once."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cluster.atomic import drafting
from cluster.dataset import (
    SPLITS,
    ChannelStatistics,
    Dataset,
    DatasetMeta,
    SplitName,
    Storage,
    content_digest,
    dataset_meta,
    dataset_versions,
    open_split,
    publish_dataset,
    write_meta,
)
from cluster.errors import ConfigError, DataError, NotFoundError
from cluster.images import ImageSpec
from cluster.store import Store, check_name
from train.data.contact_sheet import CONTACT_SHEET, write_contact_sheet
from train.data.decoding import Likeness
from train.data.duplicates import check_data, write_checks
from train.data.fingerprints import write_fingerprints
from train.data.gathering import Gathered, Gatherer, Gathering, UnlikeImagesError
from train.data.options import IngestOptions, Silent, Watcher
from train.data.sizing import choose_spec, choose_storage, guess_spec
from train.data.sources.source import Part, Source, check_source, shorten
from train.data.splitting import Assignment, assign_splits, check_classes
from train.data.statistics import channel_statistics, normalization, pooled
from train.data.workers import Workers
from train.data.writing import write_splits

_ROOM_TO_SPARE = 64 * 2**20


def ingest(
    store: Store,
    source: Source,
    name: str,
    options: IngestOptions | None = None,
    *,
    watcher: Watcher | None = None,
) -> Dataset:
    """Write ``source`` as the next version of data set ``name``.

    Splits depend on the seed and the source's order alone. If the newest version has the same
    content and normalization already, that version is returned and nothing is written. Two at once
    write two versions.

    Every image is decoded once, on all cores. Memory holds some 200 bytes an image, and the chunks
    that are being decoded. Where that takes a while it is done by spawned processes, so
    a program that calls this needs ``if __name__ == "__main__"``.

    Args:
        store: where data sets live.
        source: what to write.
        name: the data set's name.
        options: see :class:`IngestOptions`.
        watcher: told what is being done.

    Raises:
        DataError: images cannot be decoded or differ in size, a class is missing from a split, or
            the source does not fit the version that it is added to.
        NotFoundError: there is no version to add to.
        ConfigError: the disk has no room, or it filled up meanwhile.
    """
    options, watcher = options or IngestOptions(), watcher or Silent()
    check_name("data set", name)
    check_source(source)
    parent = _find_parent(store, name, options)
    if parent is not None:
        source = _with_classes_of(source, parent.meta)
    assignment = assign_splits(source, options.shares, options.seed, whole_classes=parent is None)
    if parent is None:
        labels = {
            split: np.concatenate(
                [part.labels[assignment[key] == code] for key, part in source.parts.items()]
            )
            for code, split in enumerate(SPLITS)
        }
        check_classes(source.class_names, labels)
    store.ensure_writable()
    with (
        _full_disk_told(store.root),
        Workers() as workers,
        drafting(store.datasets, name) as draft,
    ):
        gathering, spec, storage = _gather(
            store, source, assignment, options, parent, draft, workers, watcher
        )
        if parent is not None and not gathering.added and _normalizes_alike(parent.meta, options):
            watcher.say(f"{parent.reference} has all of these images already")
            if gathering.known.relabelled:
                one, other = gathering.known.examples[0]
                watcher.say(
                    f"warning: {gathering.known.relabelled} of them under another class, such as "
                    f"{one} = {other}"
                )
            return parent
        meta = _write(name, draft, source, gathering, spec, storage, parent, options, watcher)
        return _publish(store, draft, meta, parent, watcher)


def _find_parent(store: Store, name: str, options: IngestOptions) -> Dataset | None:
    if not options.append:
        return None
    if not dataset_versions(store, name):
        raise NotFoundError(
            f"--append: there is no data set {name!r} to add to; leave out --append to begin one"
        )
    return Dataset.find(store, name)


def _with_classes_of(source: Source, parent: DatasetMeta) -> Source:
    """The source with the labels of the version that it is added to; it may lack classes."""
    unknown = [name for name in source.class_names if name not in parent.class_names]
    if unknown:
        raise DataError(
            f"--append: {source.description} has class {shorten(unknown)}, which "
            f"{parent.name}@{parent.version} lacks; its classes are "
            f"{shorten(parent.class_names, 20)}"
        )
    label_of = np.array([parent.class_names.index(name) for name in source.class_names], np.int64)
    parts = {
        split: Part(part.pictures, label_of[part.labels]) for split, part in source.parts.items()
    }
    return replace(source, class_names=parent.class_names, parts=parts)


def _gather(
    store: Store,
    source: Source,
    assignment: Assignment,
    options: IngestOptions,
    parent: Dataset | None,
    draft: Path,
    workers: Workers,
    watcher: Watcher,
) -> tuple[Gathering, ImageSpec, Storage]:
    """Decode at what the first image says; if others differ, at what a look at all says."""
    parent_meta = None if parent is None else parent.meta

    def decode(spec: ImageSpec, likeness: Likeness | None) -> tuple[Gathering, ImageSpec, Storage]:
        storage = choose_storage(options, spec, len(source), parent_meta)
        gatherer = Gatherer(source, assignment, spec, likeness, storage, parent, draft)
        _check_room(store.root, 2 * gatherer.needed_bytes)
        gathering = gatherer.run(workers, watcher, skip_bad=options.on_bad == "skip")
        return gathering, spec, storage

    guess = guess_spec(source, options, parent_meta)
    if guess is not None:
        with contextlib.suppress(UnlikeImagesError):
            return decode(*guess)
        _remove_scratch(draft)
    return decode(choose_spec(source, options, workers, watcher), None)


def _remove_scratch(draft: Path) -> None:
    for scratch in draft.glob(".*"):
        scratch.unlink()


def _normalizes_alike(parent: DatasetMeta, options: IngestOptions) -> bool:
    wanted = normalization(options.normalize, parent.statistics, parent.normalization)
    return wanted == parent.normalization


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _ROOM_TO_SPARE:
        raise ConfigError(
            f"{folder} has {free / 2**20:,.0f} MiB free and the data set needs "
            f"{(needed + _ROOM_TO_SPARE) / 2**20:,.0f}; make room, name another folder in "
            "RAYBRIDGE_STORE, or choose a smaller --size"
        )


@contextlib.contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    """Say which disk is full: the errors themselves do not."""
    try:
        yield
    except OSError as error:
        # Arrow's errors carry the number in their text alone.
        found = re.search(r"\[errno (\d+)\]", str(error), re.IGNORECASE)
        number = error.errno or (int(found.group(1)) if found else 0)
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ConfigError(
            f"{folder}: {os.strerror(number)}; nothing was written; make room, or name another "
            "folder in RAYBRIDGE_STORE"
        ) from None


def _write(
    name: str,
    draft: Path,
    source: Source,
    gathering: Gathering,
    spec: ImageSpec,
    storage: Storage,
    parent: Dataset | None,
    options: IngestOptions,
    watcher: Watcher,
) -> DatasetMeta:
    """Write everything but the version's number into the draft."""
    names = source.class_names
    labels = {split: part.labels for split, part in gathering.splits.items()}
    check_classes(names, labels)
    infos = write_splits(draft, source, gathering.splits, storage, parent, watcher)
    watcher.say("reading it once for its digest")
    splits = {split: open_split(draft, info, spec, storage) for split, info in infos.items()}
    statistics = _statistics(gathering.splits["train"], spec, parent)
    meta = DatasetMeta(
        name=name,
        version=0,
        source=source.description,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        image=spec,
        class_names=names,
        statistics=statistics,
        splits=infos,
        seed=options.seed,
        digest=content_digest(spec, names, splits),
        storage=storage,
        normalization=normalization(
            options.normalize, statistics, None if parent is None else parent.meta.normalization
        ),
        parent=None if parent is None else parent.reference,
        parent_digest=None if parent is None else parent.meta.digest,
    )
    watcher.say("looking for images that are there twice")
    prints = {split: part.prints for split, part in gathering.splits.items()}
    left_out = {
        "skipped": gathering.bad,
        "already_there": gathering.known.count,
        "relabelled": gathering.known.relabelled,
        "relabelled_examples": gathering.known.examples,
    }
    checks = check_data(prints, labels, names, _Names(source, gathering, parent))
    write_checks(draft, checks.model_copy(update=left_out))
    write_fingerprints(draft, prints)
    write_contact_sheet(draft / CONTACT_SHEET, splits["train"], spec, names)
    _remove_scratch(draft)
    return meta


def _statistics(train: Gathered, spec: ImageSpec, parent: Dataset | None) -> ChannelStatistics:
    parts = []
    if len(train.rows):
        pixels = len(train.rows) * spec.height * spec.width
        new = channel_statistics(train.sums, train.squares, pixels)
        parts.append((new, len(train.rows)))
    if parent is not None:
        parts.append((parent.meta.statistics, train.old))
    return pooled(parts)


def _publish(
    store: Store, draft: Path, meta: DatasetMeta, parent: Dataset | None, watcher: Watcher
) -> Dataset:
    """Make the draft the next version, unless the newest one is the same already."""
    taken = 0
    while True:
        versions = dataset_versions(store, meta.name)
        newest = versions[-1] if versions else 0
        if versions and _is_same(dataset_meta(store, meta.name, newest), meta):
            watcher.say(f"{meta.name}@{newest} holds the same content already")
            return Dataset.find(store, f"{meta.name}@{newest}")
        if newest + 1 == taken:
            folder = store.folder(f"datasets/{meta.name}/{taken}")
            raise DataError(f"{folder.address} holds no data set and is in the way; remove it")
        write_meta(draft, meta.model_copy(update={"version": newest + 1}))
        try:
            dataset = publish_dataset(store, draft)
        except FileExistsError:
            # By somebody else's version, as a rule.
            taken = newest + 1
            continue
        if parent is not None and newest != parent.meta.version:
            watcher.say(
                f"{meta.name}@{newest} was written meanwhile: {dataset.reference} adds to "
                f"{parent.reference}, and has none of its images"
            )
        return dataset


def _is_same(one: DatasetMeta, other: DatasetMeta) -> bool:
    """Whether a model would be the same, trained on either."""
    return one.digest == other.digest and one.normalization == other.normalization


class _Names:
    """What a person finds an image of a split by."""

    def __init__(self, source: Source, gathering: Gathering, parent: Dataset | None) -> None:
        self._source, self._gathering, self._parent = source, gathering, parent

    def __call__(self, split: SplitName, row: int) -> str:
        part = self._gathering.splits[split]
        if row < part.old and self._parent is not None:
            return f"{self._parent.reference} row {row}"
        owner = self._source.parts.get(split, self._source.parts["train"])
        return owner.pictures.name(int(part.rows[row - part.old]))
