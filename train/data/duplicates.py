"""Images that a data set holds twice, or under two labels.

A copy of a training image in the test split makes a model look better than it is; one image under
two labels cannot be learned. Both are told, neither is changed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.config import Frozen
from cluster.dataset import SPLITS, SplitName
from cluster.store import write_json_atomic
from train.data.fingerprints import THUMBNAIL_SHAPE, THUMBNAIL_SIDE, Fingerprints

CHECKS_FILE = "checks.json"
MAX_EXAMPLES = 20
MAX_BITS = 6
"""Hashes that differ in no more bits than this are compared by their thumbnails."""
MIN_CORRELATION = 0.99
_MIN_COARSE_CORRELATION = 0.98
"""Of the thumbnails averaged to 4x4, which are compared first; that leaves a third of the pairs."""
MAX_LIGHT_DIFFERENCE = 40.0
"""Of the thumbnails' means, in levels of 255."""
_BANDS, _BAND_BITS = 4, 16
_NEIGHBOURS = 64
_BLOCK = 4096
Name = Callable[[SplitName, int], str]


class Twins(Frozen):
    """How many images have a twin."""

    within: dict[SplitName, int]
    """Images of a split that come after a twin of theirs in the same split."""
    across: dict[str, int]
    """``train-test``: images of the test split that have a twin in the training split; so on."""
    examples: tuple[tuple[str, str], ...]
    """Pairs, as split and name; those across splits first, at most 20."""

    @property
    def total(self) -> int:
        """Zero if there are none."""
        return sum(self.within.values()) + sum(self.across.values())


class DataChecks(Frozen):
    """What ``checks.json`` holds."""

    exact: Twins
    """Of the same pixels."""
    near: Twins
    """Of nearly the same, and not exactly."""
    conflicts: int
    """Images that have an exact twin under another label."""
    conflict_examples: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[str, str], ...] = ()
    """Bad images that were left out, and why."""
    already_there: int = 0
    """Images that were not added because the version added to has them."""


@dataclass(frozen=True)
class _Rows:
    """All splits, one after another."""

    digests: npt.NDArray[np.uint64]
    hashes: npt.NDArray[np.uint64]
    thumbnails: Mapping[int, npt.NDArray[np.uint8]]
    """By split; they may be mapped, and are not held in memory."""
    coarse: npt.NDArray[np.uint8]
    """uint8 ``[rows, 16]``: the thumbnails averaged to 4x4."""
    codes: npt.NDArray[np.int8]
    labels: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]


def check_data(
    prints: Mapping[SplitName, Fingerprints],
    labels: Mapping[SplitName, npt.NDArray[np.int64]],
    class_names: tuple[str, ...],
    name: Name,
    *,
    skipped: tuple[tuple[str, str], ...] = (),
    already_there: int = 0,
) -> DataChecks:
    """Look for twins within and across splits, and for one image under two labels.

    Args:
        prints: of each split.
        labels: of each split, int64 ``[rows]``.
        class_names: in label order.
        name: what a person finds a row of a split by.
        skipped: noted in the result.
        already_there: likewise.
    """
    rows = _join(prints, labels)

    def label(row: int) -> str:
        split = SPLITS[rows.codes[row]]
        return f"{split}: {name(split, int(rows.places[row]))} ({class_names[rows.labels[row]]})"

    exact = _exact_pairs(rows)
    near = _near_pairs(rows)
    conflicting = exact[rows.labels[exact[:, 0]] != rows.labels[exact[:, 1]]]
    return DataChecks(
        exact=_count(rows, exact, label),
        near=_count(rows, near, label),
        conflicts=len(np.unique(conflicting)),
        conflict_examples=tuple((label(a), label(b)) for a, b in conflicting[:MAX_EXAMPLES]),
        skipped=skipped,
        already_there=already_there,
    )


def write_checks(folder: Path, checks: DataChecks) -> None:
    """Write what was found beside the data."""
    write_json_atomic(folder / CHECKS_FILE, checks.model_dump(mode="json"))


def read_checks(folder: Path) -> DataChecks | None:
    """Read what was found; None of a data set that was never looked at."""
    try:
        return DataChecks.model_validate_json((folder / CHECKS_FILE).read_bytes())
    except OSError:
        return None


def _join(
    prints: Mapping[SplitName, Fingerprints],
    labels: Mapping[SplitName, npt.NDArray[np.int64]],
) -> _Rows:
    order = [split for split in SPLITS if split in prints]
    codes = [np.full(len(prints[split]), SPLITS.index(split), np.int8) for split in order]
    places = [np.arange(len(prints[split])) for split in order]
    return _Rows(
        np.concatenate([prints[split].digests for split in order]),
        np.concatenate([prints[split].hashes for split in order]),
        {SPLITS.index(split): prints[split].thumbnails for split in order},
        np.concatenate([_coarse(prints[split].thumbnails) for split in order]),
        np.concatenate(codes),
        np.concatenate([labels[split] for split in order]),
        np.concatenate(places),
    )


def _exact_pairs(rows: _Rows) -> npt.NDArray[np.int64]:
    """Pairs of images with the same digest, int64 ``[pairs, 2]``, the earlier one first.

    Of a group, each image is paired with its first one, with the first one under another label, and
    with the first one of each earlier split: enough to count all.
    """
    order = np.argsort(rows.digests, kind="stable")
    digests = rows.digests[order]
    starts = np.flatnonzero(np.r_[True, digests[1:] != digests[:-1]])
    pairs = set()
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        if end - start > 1:
            group = order[start:end]
            for key in (rows.codes, rows.labels):
                _, firsts = np.unique(key[group], return_index=True)
                for first in group[firsts]:
                    pairs |= {(int(first), int(other)) for other in group[group > first]}
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _near_pairs(rows: _Rows) -> npt.NDArray[np.int64]:
    """Pairs of images that are nearly equal, int64 ``[pairs, 2]``, the earlier one first.

    Two hashes that differ in at most three of 64 bits are the same in one of four bands of 16, so
    images are compared with their neighbours in the order of each band. A band that more than 64
    images share (of plain backgrounds, say) is compared within that distance only.
    """
    _, first = np.unique(rows.digests, return_index=True)
    first = np.sort(first)
    hashes = rows.hashes[first]
    found = [np.empty((0, 2), np.int64)]
    for earlier, later in _neighbours(hashes):
        close = np.bitwise_count(hashes[earlier] ^ hashes[later]) <= MAX_BITS
        pairs = np.stack([first[earlier[close]], first[later[close]]], 1)
        for start in range(0, len(pairs), _BLOCK):
            block = pairs[start : start + _BLOCK]
            one, other = rows.coarse[block[:, 0]], rows.coarse[block[:, 1]]
            block = block[_alike(one, other, _MIN_COARSE_CORRELATION)]
            one, other = _thumbnails(rows, block[:, 0]), _thumbnails(rows, block[:, 1])
            found.append(block[_alike(one, other, MIN_CORRELATION)])
    return np.unique(np.sort(np.concatenate(found), 1), axis=0)


def _neighbours(
    hashes: npt.NDArray[np.uint64],
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    for band in range(_BANDS):
        keys = (hashes >> np.uint64(band * _BAND_BITS)) & np.uint64(2**_BAND_BITS - 1)
        order = np.lexsort((hashes, keys))
        keys = keys[order]
        for distance in range(1, _NEIGHBOURS + 1):
            same = np.flatnonzero(keys[distance:] == keys[:-distance])
            if not len(same):
                break
            yield order[same], order[same + distance]


def _coarse(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    quarter = THUMBNAIL_SIDE // 4
    blocks = [
        thumbnails[start : start + _BLOCK].reshape(-1, 4, quarter, 4, quarter).mean((2, 4))
        for start in range(0, len(thumbnails), _BLOCK)
    ]
    cells = np.concatenate([np.empty((0, 4, 4)), *blocks])
    coarse: npt.NDArray[np.uint8] = np.rint(cells).astype(np.uint8).reshape(-1, 16)
    return coarse


def _thumbnails(rows: _Rows, wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """uint8 ``[n, 256]``."""
    found = np.empty((len(wanted), *THUMBNAIL_SHAPE), np.uint8)
    for code, thumbnails in rows.thumbnails.items():
        chosen = rows.codes[wanted] == code
        found[chosen] = thumbnails[rows.places[wanted[chosen]]]
    return found


def _alike(
    one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8], min_correlation: float
) -> npt.NDArray[np.bool_]:
    """Whether pictures, uint8 ``[n, cells]``, are the same, light and contrast aside."""
    a, b = one.astype(np.float32), other.astype(np.float32)
    mean_a, mean_b = a.mean(1, keepdims=True), b.mean(1, keepdims=True)
    a -= mean_a
    b -= mean_b
    # One level of noise in every cell, so that flat pictures are compared by their light alone.
    noise = a.shape[1]
    product, size_a, size_b = (
        np.einsum("nc,nc->n", x, y) + noise for x, y in ((a, b), (a, a), (b, b))
    )
    light = np.abs(mean_a - mean_b)[:, 0]
    alike: npt.NDArray[np.bool_] = (product >= min_correlation * np.sqrt(size_a * size_b)) & (
        light <= MAX_LIGHT_DIFFERENCE
    )
    return alike


def _count(rows: _Rows, pairs: npt.NDArray[np.int64], label: Callable[[int], str]) -> Twins:
    one, other = rows.codes[pairs[:, 0]], rows.codes[pairs[:, 1]]
    within: dict[SplitName, int] = {}
    across: dict[str, int] = {}
    for code, split in enumerate(SPLITS):
        for earlier in range(code + 1):
            found = pairs[(one == earlier) & (other == code), 1]
            count = len(np.unique(found))
            if count and earlier == code:
                within[split] = count
            elif count:
                across[f"{SPLITS[earlier]}-{split}"] = count
    order = np.argsort(one == other, kind="stable")
    examples = tuple((label(a), label(b)) for a, b in pairs[order[:MAX_EXAMPLES]])
    return Twins(within=within, across=across, examples=examples)
