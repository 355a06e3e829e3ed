"""Copies, near copies, and one image under two labels."""

import io
import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from pictures import encode
from PIL import Image, ImageEnhance

from cluster.dataset import SPLITS, SplitName
from train.data.duplicates import DataChecks, check_data
from train.data.fingerprints import Fingerprints, fingerprint


def scene(seed: int, side: int = 64) -> Image.Image:
    """A few soft spots of color: as different from one seed to another as photos are."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:side, 0:side] / side
    pixels = np.zeros((side, side, 3))
    for _ in range(8):
        y, x, size = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.05, 0.3)
        spot = np.exp(-((down - y) ** 2 + (across - x) ** 2) / size**2)
        pixels += spot[..., None] * rng.uniform(-150, 150, 3)
    return Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8))


def as_rows(*images: Image.Image) -> npt.NDArray[np.uint8]:
    return np.stack([np.asarray(image.convert("RGB")).transpose(2, 0, 1) for image in images])


def check(
    images: dict[SplitName, npt.NDArray[np.uint8]], labels: dict[SplitName, list[int]]
) -> DataChecks:
    return check_data(
        {split: fingerprint(rows) for split, rows in images.items()},
        {split: np.array(rows, np.int64) for split, rows in labels.items()},
        ("cat", "dog"),
        lambda split, row: f"{split}-{row}",
    )


def test_nothing_is_found_where_nothing_is() -> None:
    images = as_rows(*(scene(seed) for seed in range(60)))
    checks = check(
        {"train": images[:40], "test": images[40:]}, {"train": [0] * 40, "test": [1] * 20}
    )
    assert checks.exact.total == checks.near.total == checks.conflicts == 0


def test_exact_copies_within_and_across_splits() -> None:
    one, two, three = (scene(seed) for seed in range(3))
    checks = check(
        {
            "train": as_rows(one, two, one, one),
            "val": as_rows(three, two),
            "test": as_rows(one, one),
        },
        {"train": [0, 0, 0, 0], "val": [0, 0], "test": [0, 0]},
    )
    assert checks.exact.within == {"train": 2, "test": 1}
    assert checks.exact.across == {"train-val": 1, "train-test": 2}
    assert ("train: train-0 (cat)", "test: test-0 (cat)") in checks.exact.examples
    assert checks.near.total == checks.conflicts == 0


def test_one_image_under_two_labels() -> None:
    one, two = scene(0), scene(1)
    checks = check(
        {"train": as_rows(one, two, one), "test": as_rows(one)}, {"train": [0, 0, 1], "test": [0]}
    )
    assert checks.conflicts == 3
    assert checks.conflict_examples[0] == ("train: train-0 (cat)", "train: train-2 (dog)")


def prints_of(digests: npt.NDArray[np.int64]) -> Fingerprints:
    rows = len(digests)
    return Fingerprints(
        digests.astype(np.uint64), np.zeros(rows, np.uint64), np.zeros((rows, 256), np.uint8)
    )


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_counting_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = zip(SPLITS, (9, 4, 7), strict=True)
    digests = {split: rng.integers(0, 12, rows) for split, rows in sizes}
    labels = {split: rng.integers(0, 2, len(rows)) for split, rows in digests.items()}
    checks = check_data(
        {split: prints_of(rows) for split, rows in digests.items()},
        labels,
        ("cat", "dog"),
        lambda split, row: f"{split}-{row}",
    )
    for place, split in enumerate(SPLITS):
        here = digests[split].tolist()
        again = sum(digest in here[:row] for row, digest in enumerate(here))
        assert checks.exact.within.get(split, 0) == again
        for earlier in SPLITS[:place]:
            copies = sum(digest in digests[earlier] for digest in here)
            assert checks.exact.across.get(f"{earlier}-{split}", 0) == copies
    everywhere = {
        (digest, label)
        for split in SPLITS
        for digest, label in zip(digests[split], labels[split], strict=True)
    }
    assert checks.conflicts == sum(
        (digest, 1 - label) in everywhere
        for split in SPLITS
        for digest, label in zip(digests[split], labels[split], strict=True)
    )
    told = {
        f"{split}: {split}-{row} ({('cat', 'dog')[label]})": (digest, label)
        for split in SPLITS
        for row, (digest, label) in enumerate(zip(digests[split], labels[split], strict=True))
    }
    for one, other in checks.exact.examples:
        assert told[one][0] == told[other][0]
    for one, other in checks.conflict_examples:
        assert told[one][0] == told[other][0]
        assert told[one][1] != told[other][1]


@pytest.mark.parametrize(("kind", "limit"), [("exact", 2), ("near", 20)])
def test_many_copies_are_told_in_little_memory(kind: str, limit: int) -> None:
    """Of a group of copies there are many more pairs than images."""
    rows, classes = 4_000, 100
    digests = np.zeros(rows, np.int64) if kind == "exact" else np.arange(rows)
    prints: dict[SplitName, Fingerprints] = {"train": prints_of(digests)}
    labels: dict[SplitName, npt.NDArray[np.int64]] = {"train": np.arange(rows) % classes}
    tracemalloc.start()
    try:
        checks = check_data(prints, labels, tuple(map(str, range(classes))), lambda *_: "")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    found = checks.exact if kind == "exact" else checks.near
    assert found.within == {"train": rows - 1}
    assert len(found.examples) == 20
    assert checks.conflicts == (rows if kind == "exact" else 0)
    assert peak < limit * 2**20


def jpeg(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, "JPEG", quality=60)))


def smaller(image: Image.Image) -> Image.Image:
    return image.resize((40, 40)).resize(image.size)


def darker(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(0.9)


@pytest.mark.parametrize("change", [jpeg, smaller, darker])
def test_changed_copies_are_nearly_equal(change: object) -> None:
    assert callable(change)
    originals = [scene(seed) for seed in range(30)]
    checks = check(
        {"train": as_rows(*originals), "test": as_rows(*map(change, originals))},
        {"train": [0] * 30, "test": [0] * 30},
    )
    assert checks.near.across["train-test"] >= 28
    assert checks.near.within == {}
    assert checks.exact.total == 0


def test_flat_images_of_another_light_are_others() -> None:
    levels = [Image.new("RGB", (8, 8), (level,) * 3) for level in (0, 100, 255)]
    checks = check(
        {"train": as_rows(*levels), "test": as_rows(levels[0])}, {"train": [0] * 3, "test": [0]}
    )
    assert checks.near.total == 0
    assert checks.exact.across == {"train-test": 1}
