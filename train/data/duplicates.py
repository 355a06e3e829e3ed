"""Images that a data set holds twice, or under two labels.

A copy of a training image in the test split makes a model look better than it is; one image under
two labels cannot be learned. Both are told, neither is changed.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from cluster.atomic import write_json_atomic
from cluster.config import Frozen
from cluster.dataset import SPLITS, SplitName
from cluster.errors import DataError
from cluster.store import Folder
from train.data.fingerprints import THUMBNAIL_SHAPE, THUMBNAIL_SIDE, Fingerprints
from train.data.workers import usable_cpus

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
    relabelled: int = 0
    """Those of them that have another label there."""
    relabelled_examples: tuple[tuple[str, str], ...] = ()
    """What the first of those are there, and in the source."""


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


@dataclass(frozen=True)
class _Found:
    """Twins, as rows."""

    twins: npt.NDArray[np.bool_]
    """bool ``[rows, splits]``: whether an image has a twin in each split that comes before it."""
    examples: npt.NDArray[np.int64]
    """int64 ``[pairs, 2]``, as :func:`_examples` gives them."""


def check_data(
    prints: Mapping[SplitName, Fingerprints],
    labels: Mapping[SplitName, npt.NDArray[np.int64]],
    class_names: tuple[str, ...],
    name: Name,
) -> DataChecks:
    """Look for twins within and across splits, and for one image under two labels.

    Args:
        prints: of each split.
        labels: of each split, int64 ``[rows]``.
        class_names: in label order.
        name: what a person finds a row of a split by.
    """
    rows = _join(prints, labels)

    def label(row: int) -> str:
        split = SPLITS[rows.codes[row]]
        return f"{split}: {name(split, int(rows.places[row]))} ({class_names[rows.labels[row]]})"

    exact, conflicts, conflicting = _exact_twins(rows)
    return DataChecks(
        exact=_tell(rows, exact, label),
        near=_tell(rows, _near_twins(rows), label),
        conflicts=conflicts,
        conflict_examples=tuple((label(a), label(b)) for a, b in conflicting),
    )


def write_checks(folder: Path, checks: DataChecks) -> None:
    """Write what was found beside the data."""
    write_json_atomic(folder / CHECKS_FILE, checks.model_dump(mode="json"))


def read_checks(folder: Folder) -> DataChecks | None:
    """Read what was found; None of a data set that was never looked at.

    Raises:
        DataError: the file is damaged.
    """
    content = folder.read(CHECKS_FILE)
    if content is None:
        return None
    try:
        return DataChecks.model_validate_json(content)
    except ValidationError:
        raise DataError(f"{folder.address}: {CHECKS_FILE} is damaged") from None


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


def _exact_twins(rows: _Rows) -> tuple[_Found, int, npt.NDArray[np.int64]]:
    """Images with the same digest; how many have one under another label, and pairs of those.

    In pairs each is with the first one of its digest, which is in the earliest of the splits.
    """
    order = np.argsort(rows.digests, kind="stable")
    digests, codes, labels = rows.digests[order], rows.codes[order], rows.labels[order]
    begins = np.ones(len(order), bool)
    begins[1:] = digests[1:] != digests[:-1]
    group = np.cumsum(begins) - 1
    first = order[begins][group]
    pairs = np.stack([first, order], 1)
    # Rows of a group are in the order of the splits.
    follows = ~begins
    follows[1:] &= codes[1:] == codes[:-1]
    twins = np.zeros((len(order), len(SPLITS)), bool)
    for code in range(len(SPLITS)):
        has = np.bincount(group[codes == code], minlength=len(order)) > 0
        twins[order, code] = np.where(codes == code, follows, has[group] & (codes > code))
    other = labels != rows.labels[first]
    mixed = np.bincount(group[other], minlength=len(order)) > 0
    conflicts = pairs[other]
    return (
        _Found(twins, _examples(rows, pairs[~begins])),
        int(mixed[group].sum()),
        conflicts[np.lexsort((conflicts[:, 1], conflicts[:, 0]))[:MAX_EXAMPLES]],
    )


def _near_twins(rows: _Rows) -> _Found:
    """Images that are nearly equal, and not exactly.

    Two hashes that differ in at most three of 64 bits are the same in one of four bands of 16, so
    images are compared with their neighbours in the order of each band. A band that more than 64
    images share (of plain backgrounds, say) is compared within that distance only. A thread takes
    a band: numpy lets others run while it works.
    """
    _, first = np.unique(rows.digests, return_index=True)
    first = np.sort(first)
    with ThreadPoolExecutor(usable_cpus()) as threads:
        found = list(threads.map(lambda band: _near_in_band(rows, first, band), range(_BANDS)))
    pairs = np.concatenate([part.examples for part in found])
    return _Found(
        np.logical_or.reduce([part.twins for part in found]),
        _examples(rows, np.unique(pairs, axis=0)),
    )


def _near_in_band(rows: _Rows, first: npt.NDArray[np.int64], band: int) -> _Found:
    hashes = rows.hashes[first]
    # Of many images that are all alike there are many pairs: they are not kept.
    twins = np.zeros((len(rows.digests), len(SPLITS)), bool)
    examples = np.empty((0, 2), np.int64)
    for one, other in _neighbours(hashes, band):
        close = np.flatnonzero(np.bitwise_count(hashes[one] ^ hashes[other]) <= MAX_BITS)
        for start in range(0, len(close), _BLOCK):
            block = close[start : start + _BLOCK]
            pairs = np.sort(np.stack([first[one[block]], first[other[block]]], 1), 1)
            coarse = rows.coarse[pairs[:, 0]], rows.coarse[pairs[:, 1]]
            pairs = pairs[_alike(*coarse, _MIN_COARSE_CORRELATION)]
            fine = _thumbnails(rows, pairs[:, 0]), _thumbnails(rows, pairs[:, 1])
            pairs = pairs[_alike(*fine, MIN_CORRELATION)]
            if len(pairs):
                twins[pairs[:, 1], rows.codes[pairs[:, 0]]] = True
                examples = _examples(rows, np.unique(np.concatenate([examples, pairs]), axis=0))
    return _Found(twins, examples)


def _neighbours(
    hashes: npt.NDArray[np.uint64], band: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Pairs of hashes that have a band in common."""
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
    coarse = np.empty((len(thumbnails), 4, 4), np.uint8)
    for start in range(0, len(thumbnails), _BLOCK):
        block = thumbnails[start : start + _BLOCK].reshape(-1, 4, quarter, 4, quarter)
        coarse[start : start + _BLOCK] = np.rint(block.mean((2, 4), dtype=np.float32))
    return coarse.reshape(-1, 16)


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
    cells = one.shape[1]

    def product(x: npt.NDArray[np.uint8], y: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        # Exact: 256 * 255 * 255 is below 2**24.
        dot: npt.NDArray[np.float32] = np.einsum("nc,nc->n", x, y, dtype=np.float32)
        return dot.astype(np.float64)

    sum_a, sum_b = (x.sum(1, dtype=np.uint32).astype(np.float64) for x in (one, other))
    # One level of noise in every cell, so that flat pictures are compared by their light alone.
    covariance = product(one, other) - sum_a * sum_b / cells + cells
    size_a = product(one, one) - sum_a * sum_a / cells + cells
    size_b = product(other, other) - sum_b * sum_b / cells + cells
    alike: npt.NDArray[np.bool_] = (covariance >= min_correlation * np.sqrt(size_a * size_b)) & (
        np.abs(sum_a - sum_b) <= MAX_LIGHT_DIFFERENCE * cells
    )
    return alike


def _examples(rows: _Rows, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The first 20 pairs, those across splits before others."""
    same = rows.codes[pairs[:, 0]] == rows.codes[pairs[:, 1]]
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0], same))[:MAX_EXAMPLES]]


def _tell(rows: _Rows, found: _Found, label: Callable[[int], str]) -> Twins:
    within: dict[SplitName, int] = {}
    across: dict[str, int] = {}
    for code, split in enumerate(SPLITS):
        counts = found.twins[rows.codes == code].sum(0).tolist()
        if counts[code]:
            within[split] = counts[code]
        across |= {f"{SPLITS[n]}-{split}": counts[n] for n in range(code) if counts[n]}
    examples = tuple((label(a), label(b)) for a, b in found.examples)
    return Twins(within=within, across=across, examples=examples)
