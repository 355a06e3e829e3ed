"""Images of a split are found and decoded, and a damaged one is named."""

from pathlib import Path

import numpy as np
import pytest
from photos import SPEC, make_photos, write_photos

from cluster.dataset import Dataset, EncodedSplit
from cluster.errors import DataError
from cluster.images import ImageSpec, decode_image
from cluster.shards import write_split
from cluster.splits import open_split


@pytest.fixture
def photos(tmp_path: Path) -> Dataset:
    return write_photos(tmp_path / "photos", {"train": 50, "test": 7})


def test_every_image_is_decoded_as_it_is_served(photos: Dataset) -> None:
    blobs, labels = make_photos(50)
    split = photos.split("train")
    assert len(photos.meta.splits["train"].shards) > 2
    assert sum(shard.rows for shard in photos.meta.splits["train"].shards) == len(split) == 50
    assert photos.meta.splits["train"].class_counts == (17, 17, 16)
    np.testing.assert_array_equal(split.labels, labels)
    expected = np.stack([decode_image(blob, SPEC) for blob in blobs])
    np.testing.assert_array_equal(split.take(slice(None)), expected)
    np.testing.assert_array_equal(split.take(slice(3, 45, 4)), expected[3:45:4])
    rows = np.array([49, 0, 17, 17, 30])
    np.testing.assert_array_equal(split.take(rows), expected[rows])
    assert split.take(slice(0, 0)).shape == (0, *SPEC.shape)


def test_images_are_kept_as_they_are(photos: Dataset) -> None:
    split = photos.split("train")
    assert isinstance(split, EncodedSplit)
    assert [split.encoded(row) for row in range(50)] == make_photos(50)[0]
    for row in (-1, 50):
        with pytest.raises(IndexError, match="of a split of 50"):
            split.encoded(row)


def test_a_crop_fills_the_frame(photos: Dataset) -> None:
    split = photos.split("train")
    whole = split.take(np.array([5]), [lambda width, height: (0, 0, width, height)])
    corner = split.take(np.array([5]), [lambda width, height: (0, 0, width / 4, height / 4)])
    assert whole.shape == corner.shape == (1, *SPEC.shape)
    assert not np.array_equal(whole, corner)


def test_the_digest_tells_images_apart(photos: Dataset, tmp_path: Path) -> None:
    same = write_photos(tmp_path / "a", {"train": 50, "test": 7}, version=2, shard_bytes=10**9)
    other = write_photos(tmp_path / "b", {"train": 50, "test": 7}, train_replaced={3: b"other"})
    assert photos.meta.digest == same.meta.digest != other.meta.digest


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    cut = make_photos(40)[0][33][:200]
    dataset = write_photos(tmp_path / "photos", {"train": 40}, train_replaced={33: cut})
    split = dataset.split("train")
    before = 0
    for shard in dataset.meta.splits["train"].shards:
        if before + shard.rows > 33:
            break
        before += shard.rows
    assert before > 0
    split.take(np.array([32, 34]))
    with pytest.raises(DataError, match=rf"{shard.file}: row {33 - before}: damaged image: "):
        split.take(slice(30, 40))


def test_pixels_can_be_cropped_too(tmp_path: Path) -> None:
    spec = ImageSpec(height=6, width=8, channels=1)
    images = np.random.default_rng(0).integers(0, 256, (4, *spec.shape), dtype=np.uint8)
    info = write_split(tmp_path, "train", images, np.zeros(4, np.int64), 1)
    split = open_split(tmp_path, info, spec, "pixels")
    whole = [lambda width, height: (0, 0, width, height)] * 2
    np.testing.assert_array_equal(split.take(slice(1, 3), whole), images[1:3])
    left = split.take(np.array([2]), [lambda width, height: (0, 0, width / 2, height)])
    assert left.shape == (1, *spec.shape)
    assert abs(float(left.mean()) - float(images[2, 0, :, :4].mean())) < 12
