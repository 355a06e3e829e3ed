"""Source to data set: split, count, digest, write, and draw one picture of it."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cluster.dataset import (
    ChannelStatistics,
    Dataset,
    DatasetMeta,
    Split,
    SplitInfo,
    SplitName,
    content_digest,
    dataset_versions,
    write_meta,
    write_split,
)
from cluster.errors import DataError
from cluster.images import ImageSpec
from cluster.store import Store, check_name, publishing
from train.data.sources import Source

CONTACT_SHEET = "contact-sheet.png"


def ingest(
    store: Store,
    source: Source,
    name: str,
    *,
    val_fraction: float = 0.1,
    test_fraction: float | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """Write ``source`` as the next version of data set ``name``.

    Splits are stratified and depend on ``seed`` and the source's order alone. If the newest
    version has the same content already, that version is returned and nothing is written.

    Args:
        store: where data sets live.
        source: what to write.
        name: the data set's name.
        val_fraction: share of the training images that becomes the validation split.
        test_fraction: share that becomes the test split; only for a source without one of its own
            (0.2 if not given).
        seed: of the splits.
        progress: told what is being done.

    Raises:
        DataError: fractions that leave a split without a class, or a source with one class.
    """
    check_name("data set", name)
    store.ensure_writable()
    splits = split_source(source, val_fraction, test_fraction, seed)
    _check_classes(source, splits)
    channels, height, width = splits["train"].images.shape[1:]
    if channels not in (1, 3):
        raise DataError(f"images of {channels} channels; 1 and 3 are supported")
    size = {"height": height, "width": width, "channels": channels}
    spec = ImageSpec.decode(size, f"images of {source.description}")
    versions = dataset_versions(store, name)
    version = versions[-1] + 1 if versions else 1
    target = store.datasets / name / str(version)
    digest = content_digest(spec, source.class_names, splits)
    if versions:
        newest = Dataset.open(store.datasets / name / str(versions[-1]))
        if newest.meta.digest == digest:
            progress(f"{newest.reference} holds the same content already")
            return newest
    with publishing(target) as draft:
        infos: dict[SplitName, SplitInfo] = {}
        for split_name, part in splits.items():
            progress(f"writing {split_name}: {len(part.labels)} images")
            infos[split_name] = write_split(
                draft, split_name, part.images, part.labels, len(source.class_names)
            )
        write_contact_sheet(draft / CONTACT_SHEET, splits["train"], source.class_names)
        write_meta(
            draft,
            DatasetMeta(
                name=name,
                version=version,
                source=source.description,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                image=spec,
                class_names=source.class_names,
                statistics=channel_statistics(splits["train"].images),
                splits=infos,
                seed=seed,
                digest=digest,
            ),
        )
    return Dataset.open(target)


def split_source(
    source: Source, val_fraction: float, test_fraction: float | None, seed: int
) -> dict[SplitName, Split]:
    """Cut a source into train, val and test, each class in the same proportion.

    Raises:
        DataError: a fraction is out of range, or given for a split that the source brings.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"--val-fraction {val_fraction}: expected a share between 0 and 1")
    rng = np.random.default_rng(seed)
    train = source.parts["train"]
    if "test" in source.parts:
        if test_fraction is not None:
            raise DataError(f"--test-fraction: {source.description} brings a test split of its own")
        test = source.parts["test"]
        rest, val = _cut(train, val_fraction, rng)
        return {"train": rest, "val": val, "test": test}
    share = 0.2 if test_fraction is None else test_fraction
    if not 0 < share < 1 or val_fraction + share >= 1:
        raise DataError(f"--test-fraction {share} with --val-fraction {val_fraction}: over 1")
    kept, test = _cut(train, share, rng)
    rest, val = _cut(kept, val_fraction / (1 - share), rng)
    return {"train": rest, "val": val, "test": test}


def channel_statistics(images: npt.NDArray[np.uint8]) -> ChannelStatistics:
    """Mean and standard deviation of each channel, pixels scaled to [0, 1].

    Args:
        images: uint8 ``[rows, channels, height, width]``.
    """
    # Counting the 256 values is exact and needs no float copy of the images.
    means, stds = [], []
    levels = np.arange(256) / 255
    for channel in range(images.shape[1]):
        counts = np.bincount(images[:, channel].reshape(-1), minlength=256)
        mean = float((counts * levels).sum() / counts.sum())
        variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
        means.append(mean)
        stds.append(max(variance**0.5, 1 / 255))
    return ChannelStatistics(mean=tuple(means), std=tuple(stds))


def write_contact_sheet(
    path: Path, part: Split, class_names: tuple[str, ...], columns: int = 12
) -> None:
    """Draw the first images of each class, a row a class, as one PNG."""
    cell = max(48, part.images.shape[-1])
    margin, left = 4, 160
    shown = class_names[:40]
    sheet = Image.new(
        "RGB", (left + columns * (cell + margin), len(shown) * (cell + margin)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for row, name in enumerate(shown):
        top = row * (cell + margin)
        draw.text((6, top + cell // 2 - 8), name[:20], fill="black", font=font)
        for column, index in enumerate(np.flatnonzero(part.labels == row)[:columns]):
            pixels = part.images[index]
            hwc = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
            tile = Image.fromarray(np.ascontiguousarray(hwc)).resize(
                (cell, cell), Image.Resampling.NEAREST
            )
            sheet.paste(tile, (left + column * (cell + margin), top))
    sheet.save(path)


def _cut(part: Split, share: float, rng: np.random.Generator) -> tuple[Split, Split]:
    """Take ``share`` of each class out of ``part``; both results keep the source's order."""
    taken = np.zeros(len(part.labels), bool)
    for label in np.unique(part.labels):
        rows = rng.permutation(np.flatnonzero(part.labels == label))
        taken[rows[: round(len(rows) * share)]] = True
    kept = Split(part.images[~taken], part.labels[~taken])
    return kept, Split(part.images[taken], part.labels[taken])


def _check_classes(source: Source, splits: Mapping[SplitName, Split]) -> None:
    num_classes = len(source.class_names)
    if num_classes < 2:
        raise DataError(f"{source.description} has one class; a classifier needs two or more")
    for name, part in splits.items():
        counts = np.bincount(part.labels, minlength=num_classes)
        if len(counts) > num_classes:
            raise DataError(
                f"split {name} has label {len(counts) - 1}; there are {num_classes} names"
            )
        for label in np.flatnonzero(counts == 0):
            raise DataError(
                f"class {source.class_names[label]!r} has no image in split {name}; "
                "it needs more images or other fractions"
            )
