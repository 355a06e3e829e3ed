"""Which image goes to which split: each class in the same proportion, by a seed alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cluster.dataset import SPLITS, SplitName
from cluster.errors import DataError
from train.data.sources.source import Source

DEFAULT_SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
"""Of a source without splits; validation keeps its share where others are brought."""
Assignment = Mapping[SplitName, npt.NDArray[np.int8]]
"""For each part of a source, each row's split as an index of :data:`cluster.dataset.SPLITS`."""


def parse_shares(text: str) -> tuple[float, ...]:
    """Read ``0.8,0.1,0.1``.

    Raises:
        DataError: it is not two or three shares that add up to 1.
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) not in (2, 3) or not all(0 < share < 1 for share in shares):
        raise DataError(f"--split {text}: expected two or three shares such as 0.8,0.1,0.1")
    if abs(sum(shares) - 1) > 1e-6:
        raise DataError(f"--split {text}: the shares add up to {sum(shares):g}, not to 1")
    return shares


def assign_splits(
    source: Source, shares: Sequence[float] | None, seed: int, *, whole_classes: bool = True
) -> Assignment:
    """Cut the splits that a source lacks out of its training images.

    Args:
        source: a part that it brings stays what it is.
        shares: of train, and of val and test if the source lacks them, in that order.
        seed: with the source's order, decides everything.
        whole_classes: give every split an image of every class, however small its share is.

    Raises:
        DataError: shares for another number of splits than are to be cut.
    """
    lacking = [split for split in SPLITS if split == "train" or split not in source.parts]
    codes: dict[SplitName, npt.NDArray[np.int8]] = {
        split: np.full(len(part), SPLITS.index(split), np.int8)
        for split, part in source.parts.items()
    }
    if shares is not None and len(shares) != len(lacking):
        _refuse(source, shares, lacking)
    if len(lacking) == 1:
        return codes
    if shares is None:
        of_others = [DEFAULT_SHARES[split] for split in lacking[1:]]
        shares = [1 - sum(of_others), *of_others]
    share = dict(zip(lacking, shares, strict=True))
    rng = np.random.default_rng(seed)
    labels, train, left = source.parts["train"].labels, codes["train"], 1.0
    # The test split is cut first, so that another share of validation does not change it.
    for split in reversed(lacking[1:]):
        _cut(labels, train, SPLITS.index(split), share[split] / left, rng, whole_classes)
        left -= share[split]
    return codes


def check_classes(
    class_names: Sequence[str], labels: Mapping[SplitName, npt.NDArray[np.int64]]
) -> None:
    """Refuse a split that lacks a class: nothing could be measured there.

    Raises:
        DataError: names the class and the split.
    """
    for split, of_split in labels.items():
        counts = np.bincount(of_split, minlength=len(class_names))
        for label in np.flatnonzero(counts == 0).tolist():
            raise DataError(
                f"class {class_names[label]!r} has no image in split {split}; "
                "each of the three splits needs one of every class"
            )


def _cut(
    labels: npt.NDArray[np.int64],
    codes: npt.NDArray[np.int8],
    code: int,
    share: float,
    rng: np.random.Generator,
    whole_classes: bool,
) -> None:
    """Move ``share`` of each class from split 0 to split ``code``."""
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero((labels == label) & (codes == 0)))
        count = round(len(rows) * share)
        if whole_classes:
            count = min(max(count, 1), max(len(rows) - 1, 0))
        codes[rows[:count]] = code


def _refuse(source: Source, shares: Sequence[float], lacking: Sequence[SplitName]) -> None:
    given = ",".join(f"{share:g}" for share in shares)
    brought = " and ".join(split for split in source.parts if split != "train")
    if len(lacking) == 1:
        raise DataError(f"--split {given}: {source.description} brings {brought} itself")
    own = f"; {source.description} brings {brought} itself" if brought else ""
    raise DataError(
        f"--split {given}: expected {len(lacking)} shares, of {', '.join(lacking)}{own}"
    )
