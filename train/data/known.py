"""What of a source the version that it is added to has already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.dataset import Dataset, SplitName
from train.data.fingerprints import Fingerprints


@dataclass(frozen=True)
class Known:
    """Images of a source that are there already, by their pixels."""

    rows: Mapping[SplitName, npt.NDArray[np.bool_]]
    """For each part of the source, which."""
    relabelled: int
    """How many are there under another label only."""
    examples: tuple[tuple[str, str], ...]
    """What the first of those are there, and in the source."""

    @property
    def count(self) -> int:
        """How many they are."""
        return sum(int(rows.sum()) for rows in self.rows.values())


class There:
    """The images of the version that is added to, sorted by digest.

    Args:
        parent: that version; without one, no image is there.
        prints: of its splits.
        class_names: its classes.
    """

    def __init__(
        self,
        parent: Dataset | None,
        prints: Mapping[SplitName, Fingerprints],
        class_names: Sequence[str],
    ) -> None:
        self._reference = "" if parent is None else parent.reference
        self._splits = tuple(prints)
        self._class_names = class_names
        digests, labels = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        if parent is not None:
            digests += [part.digests for part in prints.values()]
            labels += [parent.split(split).labels for split in prints]
        self._ends = np.cumsum([len(part) for part in digests])
        joined = np.concatenate(digests)
        self._order = np.argsort(joined, kind="stable")
        self._digests = joined[self._order]
        self._labels = np.concatenate(labels)[self._order]

    def look(
        self, digests: npt.NDArray[np.uint64], labels: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which images are there, and which of them are there under the same label as well."""
        found = np.isin(digests, self._digests)
        # An image may be there several times, under several labels.
        known = self._keys(self._digests, self._labels)
        return found, found & np.isin(self._keys(digests, labels), known)

    def name(self, digest: np.uint64) -> str:
        """What a person finds the first image of that digest by."""
        place = int(np.searchsorted(self._digests, digest))
        number = int(self._order[place])
        split = int(np.searchsorted(self._ends, number, side="right")) - 1
        row, label = number - self._ends[split], self._class_names[self._labels[place]]
        return f"{self._splits[split]}: {self._reference} row {row} ({label})"

    def _keys(
        self, digests: npt.NDArray[np.uint64], labels: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """A number for each digest that is there and each label."""
        return np.searchsorted(self._digests, digests) * len(self._class_names) + labels
