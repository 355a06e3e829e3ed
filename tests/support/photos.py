"""Small data sets of encoded images, written by the real writer."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from cluster.dataset import (
    ChannelStatistics,
    Dataset,
    DatasetMeta,
    EncodedWriter,
    SplitInfo,
    SplitName,
    content_digest,
    open_split,
    write_meta,
)
from cluster.images import ImageSpec

SPEC = ImageSpec(height=16, width=16, channels=3)
CLASS_NAMES = ("red", "green", "blue")


def make_photo(label: int, seed: int, side: int = 40) -> bytes:
    """A noisy JPEG, of one colour more than the others, some 5 to 10 pixels off ``side``."""
    rng = np.random.default_rng((seed, label))
    height, width = rng.integers(side - 10, side + 10, 2)
    pixels = rng.integers(0, 128, (height, width, 3))
    pixels[..., label] += 96
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def make_photos(
    rows: int, seed: int = 0
) -> tuple[list[bytes], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Photos of all classes in turn, and their labels."""
    labels = np.arange(rows, dtype=np.int64) % len(CLASS_NAMES)
    return [make_photo(int(label), seed + row) for row, label in enumerate(labels)], labels


def write_photos(
    folder: Path,
    rows: Mapping[SplitName, int],
    *,
    version: int = 1,
    shard_bytes: int = 20_000,
    train_replaced: Mapping[int, bytes] | None = None,
    test_replaced: Mapping[int, bytes] | None = None,
) -> Dataset:
    """Write a data set of photos.

    Args:
        folder: of the version; it is made.
        rows: how many photos each split has.
        version: for ``meta.json``.
        shard_bytes: so small that there are several files.
        train_replaced: bytes for some rows of the training split, such as damaged ones.
        test_replaced: likewise of the test split.
    """
    folder.mkdir(parents=True)
    replaced = {"train": train_replaced or {}, "test": test_replaced or {}}
    infos: dict[SplitName, SplitInfo] = {}
    for number, (name, count) in enumerate(rows.items()):
        blobs, labels = make_photos(count, seed=10_000 * number)
        for row, blob in replaced.get(name, {}).items():
            blobs[row] = blob
        with EncodedWriter(folder, name, 3, shard_bytes=shard_bytes) as writer:
            for blob, label in zip(blobs, labels.tolist(), strict=True):
                writer.add(blob, label)
            infos[name] = writer.finish()
    splits = {name: open_split(folder, info, SPEC, "encoded") for name, info in infos.items()}
    meta = DatasetMeta(
        name="photos",
        version=version,
        source="made up",
        created_at="2026-01-01T00:00:00+00:00",
        image=SPEC,
        class_names=CLASS_NAMES,
        statistics=ChannelStatistics(mean=(0.4,) * 3, std=(0.2,) * 3),
        splits=infos,
        seed=0,
        digest=content_digest(SPEC, CLASS_NAMES, splits),
        storage="encoded",
    )
    write_meta(folder, meta)
    return Dataset.open(folder)
