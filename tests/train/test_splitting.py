"""Which image goes to which split."""

from typing import Any

import numpy as np
import pytest

from cluster.dataset import SPLITS
from cluster.errors import DataError
from train.data.sources.recognize import read_source
from train.data.sources.source import Part, PixelPictures, Source
from train.data.splitting import assign_splits, parse_shares


@pytest.fixture(scope="module")
def digits() -> Source:
    return read_source("digits")


def source_with(*splits: str, per_class: int = 20) -> Source:
    labels = np.repeat(np.arange(2), per_class)
    images = np.zeros((len(labels), 1, 2, 2), np.uint8)
    parts: Any = {split: Part(PixelPictures(images, split), labels) for split in splits}
    return Source("made", ("a", "b"), parts)


def test_every_class_is_in_every_split_in_proportion(digits: Source) -> None:
    labels, codes = digits.parts["train"].labels, assign_splits(digits, None, 3)["train"]
    counts = np.bincount(labels)
    for code, share in enumerate((0.7, 0.1, 0.2)):
        assert np.abs(np.bincount(labels[codes == code]) - counts * share).max() <= 1.5


def test_splits_depend_on_the_seed_alone(digits: Source) -> None:
    first, again, other = (assign_splits(digits, None, seed)["train"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_another_share_of_validation_does_not_change_the_test_split(digits: Source) -> None:
    one, other = (
        assign_splits(digits, shares, 0)["train"] for shares in ((0.7, 0.1, 0.2), (0.5, 0.3, 0.2))
    )
    test = SPLITS.index("test")
    assert np.array_equal(one == test, other == test)


@pytest.mark.parametrize(
    ("brought", "shares", "rows"),
    [
        (("train",), None, (28, 4, 8)),
        (("train",), (0.5, 0.25, 0.25), (20, 10, 10)),
        (("train", "test"), None, (36, 4, 40)),
        (("train", "test"), (0.8, 0.2), (32, 8, 40)),
        (("train", "val"), (0.5, 0.5), (20, 40, 20)),
        (("train", "val", "test"), None, (40, 40, 40)),
    ],
)
def test_only_what_the_source_lacks_is_cut(
    brought: tuple[str, ...], shares: tuple[float, ...] | None, rows: tuple[int, ...]
) -> None:
    codes = np.concatenate(list(assign_splits(source_with(*brought), shares, 0).values()))
    assert tuple(np.bincount(codes, minlength=3)) == rows


def test_a_small_class_is_in_every_split_unless_images_are_added() -> None:
    source = source_with("train", per_class=3)
    assert np.bincount(assign_splits(source, None, 0)["train"]).tolist() == [2, 2, 2]
    added = assign_splits(source, None, 0, whole_classes=False)["train"]
    assert np.bincount(added, minlength=3).tolist() == [4, 0, 2]


@pytest.mark.parametrize(
    ("brought", "shares", "message"),
    [
        (("train",), (0.9, 0.1), "0.9,0.1: expected 3 shares, of train, val, test"),
        (("train", "test"), (0.8, 0.1, 0.1), "expected 2 shares, of train, val; made brings test"),
        (("train", "val", "test"), (0.9, 0.1), "made brings val and test itself"),
    ],
)
def test_shares_of_other_splits_are_refused(
    brought: tuple[str, ...], shares: tuple[float, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        assign_splits(source_with(*brought), shares, 0)


@pytest.mark.parametrize(
    "text", ["", "1", "0.5", "a,b", "0,1", "0.5,0.6", "-0.5,1.5", "0.1,0.1,0.1"]
)
def test_shares_that_cannot_be_read(text: str) -> None:
    with pytest.raises(DataError, match=r"--split .*(expected two or three shares|add up to)"):
        parse_shares(text)


def test_shares_are_read() -> None:
    assert parse_shares("0.8, 0.1,.1") == (0.8, 0.1, 0.1)
