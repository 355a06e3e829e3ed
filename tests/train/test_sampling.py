"""The order of an epoch: everything once, or every class alike."""

import numpy as np
import pytest

from train.config import Sampling
from train.data.sampling import epoch_order, tell_apart

UNBALANCED = np.repeat(np.array([3, 0, 7], np.int64), [900, 90, 11])


def test_a_shuffle_is_a_permutation() -> None:
    order = epoch_order(UNBALANCED, "shuffle", seed=0, epoch=0)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(1001))


@pytest.mark.parametrize("sampling", ["shuffle", "balanced"])
def test_an_order_depends_on_seed_and_epoch_alone(sampling: Sampling) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(row) for row in epoch_order(UNBALANCED, sampling, seed=seed, epoch=epoch)]

    np.random.seed(1)
    first = order(4, 2)
    np.random.seed(2)
    assert order(4, 2) == first
    assert order(4, 3) != first
    assert order(5, 2) != first


def test_balanced_takes_every_class_alike_and_its_rows_in_turn() -> None:
    order = epoch_order(UNBALANCED, "balanced", seed=0, epoch=0)
    assert len(order) == 1001
    counts = np.bincount(UNBALANCED[order], minlength=8)
    assert sorted(counts[[3, 0, 7]]) == [333, 334, 334]
    assert counts.sum() == 1001
    uses = np.bincount(order, minlength=1001)
    for label in (3, 0, 7):
        own = uses[label == UNBALANCED]
        assert own.max() - own.min() <= 1
    assert uses[UNBALANCED == 7].min() >= 30
    # Mixed: no class is much more frequent in one half than in the other.
    half = np.bincount(UNBALANCED[order[:500]], minlength=8)[[3, 0, 7]]
    assert np.abs(half - 500 / 3).max() < 50


def test_a_row_that_comes_again_is_another_sample() -> None:
    order = np.array([2, 0, 2, 2, 1, 0], np.int64)
    assert tell_apart(order).tolist() == [2, 0, 8, 14, 1, 6]
    shuffled = epoch_order(UNBALANCED, "shuffle", seed=0, epoch=0)
    assert np.array_equal(tell_apart(shuffled), shuffled)


def test_epochs_show_all_of_a_large_class_in_the_end() -> None:
    seen = set()
    for epoch in range(30):
        seen |= set(epoch_order(UNBALANCED, "balanced", seed=0, epoch=epoch).tolist())
    assert len(seen) == 1001
