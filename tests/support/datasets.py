"""A data set small enough to make in every test: 27 random images of two classes."""

import numpy as np

from cluster.atomic import drafting
from cluster.dataset import (
    ChannelStatistics,
    Dataset,
    DatasetMeta,
    Split,
    SplitName,
    content_digest,
    publish_dataset,
    write_meta,
    write_split,
)
from cluster.images import ImageSpec
from cluster.store import Store

IMAGE = ImageSpec(height=3, width=5, channels=3)
CLASS_NAMES = ("cat", "dog")


def make_split(rows: int = 20, seed: int = 0) -> Split:
    """Random pixels and labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (rows, *IMAGE.shape), dtype=np.uint8)
    return Split(images, rng.integers(0, 2, rows).astype(np.int64))


def write_dataset(store: Store, name: str = "pets", version: int = 1, seed: int = 0) -> Dataset:
    """Write a version; another seed gives another content."""
    splits: dict[SplitName, Split] = {
        "train": make_split(20, seed),
        "test": make_split(7, seed + 1),
    }
    with drafting(store.datasets / name, str(version)) as draft:
        infos = {
            key: write_split(draft, key, split.images, split.labels, len(CLASS_NAMES))
            for key, split in splits.items()
        }
        write_meta(
            draft,
            DatasetMeta(
                name=name,
                version=version,
                source="made up",
                created_at="2026-01-01T00:00:00+00:00",
                image=IMAGE,
                class_names=CLASS_NAMES,
                statistics=ChannelStatistics(mean=(0.5,) * 3, std=(0.2,) * 3),
                splits=infos,
                seed=seed,
                digest=content_digest(IMAGE, CLASS_NAMES, splits),
            ),
        )
        return publish_dataset(store, draft)
