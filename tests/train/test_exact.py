"""Exact runs: the weights are the same for any number of workers, and whatever is killed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from group import train_in_group
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cluster.dataset import Dataset
from cluster.errors import ConfigError
from train.comm import Alone
from train.config import TrainConfig
from train.data.loader import Batch
from train.exact import Exact, sum_exactly
from train.recipes import get_recipe


def exact(**changes: Any) -> TrainConfig:
    base = {
        "epochs": 3,
        "batch_size": 256,  # Four steps an epoch: workers wait for each other in every one.
        "exact": {"shards": 4},
        "checkpoint": {"every_s": None, "every_steps": 2},
        "augment": {"flip": True, "translate": 1},
    }
    return get_recipe("digits").with_changes({**base, **changes}, "test")


CASES = {
    "adam, dropout, moving average": exact(
        model={"dropout": 0.3, "channels": [8, 16], "hidden": 32}, ema={"decay": 0.9}
    ),
    "batch normalisation, plateau, uneven shards": exact(
        model={"name": "resnet", "width": 8},
        optim={"name": "sgd", "lr": 0.05},
        schedule={"name": "plateau", "patience": 0, "min_delta": 1.0},
        batch_size=258,
        clip={"norm": 1.0},
    ),
    "muon, early stopping": exact(
        model={"name": "resnet", "width": 8},
        optim={"name": "muon", "lr": 0.02},
        hardware={"shared_memory": False},
        # The run ends early with its last weights: the first epoch's would show no later mistake.
        early_stopping={"patience": 1, "min_delta": 10.0, "restore_best": False},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_one_worker_killed_four_killed_and_two_to_the_end_give_the_bits_of_one(
    digits_dataset: Dataset, tmp_path: Path, case: str
) -> None:
    config, data = CASES[case], digits_dataset.path
    whole = train_in_group(config, data, tmp_path / "whole", 1)
    train_in_group(config, data, tmp_path / "cut", 1, stop_at=3)
    train_in_group(config, data, tmp_path / "cut", 4, stop_at=7)
    assert train_in_group(config, data, tmp_path / "cut", 2) == whole


# A layer that only the second epoch trains; wide enough for Winograd's algorithm.
UNFREEZING = {
    "epochs": 2,
    "model": {"channels": [32, 64]},
    "freeze": [{"layers": "conv2", "until": 1}],
}


# Of two numbers the order does not matter; of three it does, and a network's ring has its own.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "changes"),
    [
        (2, {"micro_batch_size": 16}),
        (3, {}),
        (3, {"hardware": {"shared_memory": False}}),
        (3, {"hardware": {"shared_memory": False}, **UNFREEZING}),
    ],
)
def test_distributed_data_parallel_keeps_its_own_promise(
    digits_dataset: Dataset, tmp_path: Path, workers: int, changes: dict[str, Any]
) -> None:
    config = exact(**{"exact": None, "epochs": 1, **changes})
    data = digits_dataset.path
    whole = train_in_group(config, data, tmp_path / "whole", workers)
    train_in_group(config, data, tmp_path / "cut", workers, stop_at=4 * config.epochs - 1)
    assert train_in_group(config, data, tmp_path / "cut", workers) == whole


class OneOfTwo(Alone):
    """A worker whose peer has these maxima and, once it has summed, this sum."""

    def __init__(self, maxima: Tensor, theirs: Tensor | None = None) -> None:
        self._maxima, self._theirs = maxima, theirs
        self.sum = torch.empty(0)

    def reduce(self, values: Tensor, how: str = "sum") -> Tensor:
        if how == "max":
            return values.copy_(torch.maximum(values, self._maxima))
        if self._theirs is not None:
            values += self._theirs
        self.sum = values.clone()
        return values


@given(seed=st.integers(0, 2**32 - 1), shards=st.integers(2, 9), spread=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_neither_order_nor_grouping_changes_a_sum(seed: int, shards: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    scale = 2.0 ** rng.integers(-spread, spread + 1, (shards, 40))
    values = torch.from_numpy((rng.standard_normal((shards, 40)) * scale).astype(np.float32))
    (whole,) = sum_exactly([[row.clone()] for row in values], Alone(), shards)

    order = rng.permutation(shards)
    cut = int(rng.integers(1, shards))
    mine, theirs = values[order[:cut]], values[order[cut:]]
    peer = OneOfTwo(mine.abs().amax().reshape(1))
    sum_exactly([[row.clone()] for row in theirs], peer, shards)
    one = OneOfTwo(theirs.abs().amax().reshape(1), peer.sum)
    (grouped,) = sum_exactly([[row.clone()] for row in mine], one, shards)

    assert torch.equal(whole, grouped)
    error = (whole - values.double().sum(0)).abs().amax() / values.abs().amax()
    assert error < shards * 2.0**-45


def test_a_shard_that_is_not_finite_makes_its_tensor_so_and_no_other() -> None:
    good, bad = torch.ones(3), torch.tensor([1.0, torch.nan, 1.0])
    first, second = sum_exactly([[good, good], [good, bad]], Alone(), 2)
    assert first.tolist() == [2.0, 2.0, 2.0]
    assert second.isnan().all()


class Counting(nn.Module):
    """Changes a buffer of its own in every forward pass."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        out: Tensor = self.layer(x.flatten(1).float())
        return out


def test_a_network_that_keeps_other_statistics_is_refused() -> None:
    net = Counting()
    gradients = Exact(net, net, Alone(), range(2), 2)
    batch = Batch(
        torch.ones(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), None
    )
    with pytest.raises(ConfigError, match="changes its buffer seen"):
        gradients.compute([batch, batch], 4, lambda model, one, _: model(one.images).sum())


def test_batch_statistics_move_by_the_mean_over_the_shards() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 1))
    gradients = Exact(net, net, Alone(), range(2), 2)
    shards = [torch.full((3, 1, 2, 2), 2.0), torch.arange(12.0).reshape(3, 1, 2, 2)]
    batches = [Batch(shard, torch.zeros(3, dtype=torch.int64), None) for shard in shards]
    gradients.compute(batches, 6, lambda model, one, _: model(one.images).sum())
    norm = net[0]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.momentum == 0.1
    assert norm.num_batches_tracked == 1
    means, variances = [one.mean() for one in shards], [one.var() for one in shards]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean().reshape(1) * 0.1)
    expected = 0.9 + 0.1 * torch.stack(variances).mean().reshape(1)
    torch.testing.assert_close(norm.running_var, expected)
