"""What tests of ingest ask of what was made."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from cluster.dataset import SPLITS, Dataset
from cluster.store import Store
from train.data.options import Silent

SplitName = Literal["train", "val", "test"]


class Listener(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[tuple[str, int, int]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def advance(self, what: str, done: int, total: int) -> None:
        self.steps.append((what, done, total))


def everything(dataset: Dataset) -> npt.NDArray[np.uint8]:
    """The images of all splits, in order."""
    return np.concatenate([dataset.split(split).take(slice(None)) for split in SPLITS])


def names_of(dataset: Dataset, split: SplitName) -> set[bytes]:
    """The images of a split, as something that can be compared without an order."""
    return {bytes(image) for image in dataset.split(split).take(slice(None))}


def leftovers(store: Store) -> list[str]:
    """Hidden files and folders: drafts that were not removed."""
    return [path.name for path in store.root.rglob("*") if path.name.startswith(".")]
