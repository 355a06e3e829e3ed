"""Copies, near copies, and one image under two labels."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from pictures import encode
from PIL import Image, ImageEnhance

from cluster.dataset import SplitName
from train.data.duplicates import DataChecks, check_data
from train.data.fingerprints import fingerprint


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
