"""What ``train ingest`` and ``train data`` do once their arguments are read."""

import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cluster.cli import Output
from cluster.dataset import (
    DatasetMeta,
    dataset_meta,
    dataset_names,
    dataset_versions,
    find_version,
)
from cluster.errors import DataError, RaybridgeError
from cluster.settings import Settings
from cluster.store import Store
from train.data.contact_sheet import CONTACT_SHEET
from train.data.duplicates import DataChecks, read_checks
from train.data.ingest import ingest
from train.data.options import IngestOptions
from train.data.sources.recognize import read_source

_LINE_EVERY_S = 5.0
_SHOWN_EXAMPLES = 5
_SHOWN_CLASSES = 40


def run_ingest(
    source: str,
    name: str,
    options: IngestOptions,
    output: Output,
    *,
    root: Path | None,
    class_names: tuple[str, ...] | None,
    image_column: str | None,
    label_column: str | None,
) -> None:
    """``train ingest``."""
    began = time.monotonic()
    store = Store.open(Settings.from_env().address)
    found = read_source(
        source,
        root=root,
        class_names=class_names,
        image_column=image_column,
        label_column=label_column,
        say=output.say,
    )
    for note in found.notes:
        output.say(note)
    with _IngestView(output) as view:
        dataset = ingest(store, found, name, options, watcher=view)
    seconds = time.monotonic() - began
    output.say(f"{len(found)} images in {seconds:.1f} s, {len(found) / seconds:,.0f} images/s")
    shown = _Shown(store, dataset.meta)
    try:
        shown.read()
    except (RaybridgeError, OSError) as error:
        # The data set is there all the same.
        output.say(f"warning: {error}")
    shown.say(output)
    output.result(
        {
            **shown.result(),
            "images": len(found),
            "seconds": round(seconds, 3),
            "notes": list(found.notes),
        }
    )


def run_data(reference: str | None, output: Output) -> None:
    """``train data``."""
    store = Store.open(Settings.from_env().address)
    if reference is None:
        _list(store, output)
        return
    name, version = find_version(store, reference)
    shown = _Shown(store, dataset_meta(store, name, version))
    shown.read()
    shown.say(output)
    _say_classes(shown.meta, output)
    versions = dataset_versions(store, name)
    output.say(f"versions of {name}: {', '.join(map(str, versions))}")
    output.result({**shown.result(), "versions": versions})


def _list(store: Store, output: Output) -> None:
    rows: list[tuple[object, ...]] = []
    found: list[dict[str, Any]] = []
    for name in sorted(dataset_names(store)):
        versions = dataset_versions(store, name)
        if not versions:
            continue
        one = {"dataset": f"{name}@{versions[-1]}", "versions": len(versions)}
        try:
            meta = dataset_meta(store, name, versions[-1])
        except DataError as error:
            rows.append((*one.values(), "damaged", "", "", "", "", ""))
            found.append({**one, "damaged": str(error)})
            continue
        images = sum(info.rows for info in meta.splits.values())
        image, classes = meta.image, len(meta.class_names)
        size = f"{image.width}x{image.height}x{image.channels}"
        rows.append(
            (*one.values(), images, classes, size, meta.storage, meta.source, meta.created_at)
        )
        found.append(
            {
                **one,
                "images": images,
                "classes": classes,
                "image": list(image.shape),
                "storage": meta.storage,
                "source": meta.source,
                "created_at": meta.created_at,
                "digest": meta.digest,
            }
        )
    if rows:
        columns = ("newest", "versions", "images", "classes", "size", "kept as", "source", "made")
        output.table(f"Data sets in {store.address}", columns, rows)
        for one in found:
            if "damaged" in one:
                output.say(f"warning: {one['damaged']}")
    else:
        output.say(
            f"no data sets in {store.address}; "
            "make one with: python -m train ingest SOURCE --name NAME"
        )
    output.result({"datasets": found})


class _Shown:
    """A version as it is shown; of an object store only small files are fetched."""

    def __init__(self, store: Store, meta: DatasetMeta) -> None:
        self.meta = meta
        self._folder = store.folder(f"datasets/{meta.name}/{meta.version}")
        self._checks: DataChecks | None = None
        self._sheet: Path | None = None

    def read(self) -> None:
        """Read what is beside ``meta.json``.

        Raises:
            DataError: it is damaged.
        """
        if self._folder.has(CONTACT_SHEET):
            self._sheet = self._folder.pull(CONTACT_SHEET)
        self._checks = read_checks(self._folder)

    def say(self, output: Output) -> None:
        """For people."""
        meta, image = self.meta, self.meta.image
        output.table(
            f"{meta.name}@{meta.version}: {image.width}x{image.height}, "
            f"{'gray' if image.channels == 1 else 'color'}, {len(meta.class_names)} classes, "
            f"kept as {meta.storage}",
            ("split", "images", "fewest of a class", "most"),
            [
                (
                    split,
                    info.rows,
                    _of_class(meta.class_names, info.class_counts, min(info.class_counts)),
                    _of_class(meta.class_names, info.class_counts, max(info.class_counts)),
                )
                for split, info in meta.splits.items()
            ],
        )
        output.say(f"from {meta.source}, {meta.created_at}")
        if meta.parent is not None:
            output.say(f"adds to {meta.parent} ({(meta.parent_digest or '')[:16]})")
        output.say(f"mean {_numbers(meta.statistics.mean)}  std {_numbers(meta.statistics.std)}")
        if meta.normalization != meta.statistics:
            output.say(
                f"normalised with mean {_numbers(meta.normalization.mean)} "
                f"std {_numbers(meta.normalization.std)}"
            )
        picture = "" if self._sheet is None else f"  picture {self._sheet}"
        output.say(f"digest {meta.digest[:16]}{picture}")
        if self._checks is None:
            output.say("nothing is known of copies in it")
        else:
            _say_checks(self._checks, output)

    def result(self) -> dict[str, Any]:
        """For programs."""
        meta = self.meta
        return {
            "dataset": f"{meta.name}@{meta.version}",
            "path": self._folder.address,
            "digest": meta.digest,
            "classes": list(meta.class_names),
            "image": list(meta.image.shape),
            "resize": meta.image.resize,
            "storage": meta.storage,
            "splits": {split: info.rows for split, info in meta.splits.items()},
            "class_counts": {split: list(info.class_counts) for split, info in meta.splits.items()},
            "mean": list(meta.statistics.mean),
            "std": list(meta.statistics.std),
            "normalization": meta.normalization.model_dump(mode="json"),
            "source": meta.source,
            "created_at": meta.created_at,
            "seed": meta.seed,
            "parent": meta.parent,
            "parent_digest": meta.parent_digest,
            "contact_sheet": None if self._sheet is None else str(self._sheet),
            "checks": None if self._checks is None else self._checks.model_dump(mode="json"),
        }


def _say_classes(meta: DatasetMeta, output: Output) -> None:
    rows = [
        (name, *(info.class_counts[label] for info in meta.splits.values()))
        for label, name in enumerate(meta.class_names)
    ]
    output.table("images of each class", ("class", *meta.splits), rows[:_SHOWN_CLASSES])
    if len(rows) > _SHOWN_CLASSES:
        output.say(f"and {len(rows) - _SHOWN_CLASSES} more classes (--json lists all)")


def _say_checks(checks: DataChecks, output: Output) -> None:
    if checks.already_there:
        output.say(f"left out what was there already: {_images(checks.already_there)}")
    if checks.relabelled:
        output.say(
            f"warning: {_images(checks.relabelled)} there already under another class, "
            "which was kept:"
        )
        _examples(checks.relabelled_examples, checks.relabelled, output, " = ")
    if checks.skipped:
        output.say(f"left out as bad: {_images(len(checks.skipped))}")
        _examples(checks.skipped, len(checks.skipped), output, " - ")
    kinds = (("equal", checks.exact), ("nearly equal", checks.near))
    for what, twins in kinds:
        for pair, count in twins.across.items():
            first, second = pair.split("-")
            output.say(
                f"warning: {_images(count)} of {second} {what} to one of {first}, "
                "so what is measured there may flatter a model"
            )
        for split, count in twins.within.items():
            output.say(f"{_images(count)} of {split} {what} to another one of it")
        _examples(twins.examples, twins.total, output, " = ")
    if checks.conflicts:
        output.say(f"warning: {_images(checks.conflicts)} equal to another, of a different class:")
        _examples(checks.conflict_examples, len(checks.conflict_examples), output, " = ")


def _examples(pairs: tuple[tuple[str, str], ...], total: int, output: Output, between: str) -> None:
    for one, other in pairs[:_SHOWN_EXAMPLES]:
        output.say(f"  {one}{between}{other}")
    if total > _SHOWN_EXAMPLES and pairs:
        output.say("  ... (--json lists more)")


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _of_class(names: tuple[str, ...], counts: tuple[int, ...], count: int) -> str:
    return f"{count} ({names[counts.index(count)]})"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


class _IngestView:
    """A live bar on a terminal; a line every few seconds everywhere else."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
            TimeRemainingColumn(),
            console=output.console,
            transient=True,
            disable=not output.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._what = ""
        self._began = self._said = 0.0

    def __enter__(self) -> "_IngestView":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.stop()
        if kind in (KeyboardInterrupt, SystemExit):
            self._output.say("stopped; nothing was written")

    def say(self, text: str) -> None:
        """Print a line."""
        self._output.say(text)

    def advance(self, what: str, done: int, total: int) -> None:
        """Move the bar, or print a line if the last one was a while ago."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._said = what, now, now
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=total)
        speed = done / (now - self._began) if now > self._began else 0.0
        text = f"{what}, {speed:,.0f} images/s" if speed else what
        if self._task is not None:
            self._bar.update(self._task, description=text, completed=done, total=total)
        if not self._output.console.is_terminal and now - self._said > _LINE_EVERY_S:
            self._said = now
            self._output.say(f"{what}: {done:,} of {total:,} images, {speed:,.0f} images/s")
