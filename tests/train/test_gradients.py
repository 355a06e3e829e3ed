"""How parts of a batch become its gradient: in one process or several, in any number of parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from group import train_in_group

from cluster.dataset import Dataset
from cluster.events import NullSink
from cluster.store import Folder
from train.comm import Alone
from train.config import TrainConfig
from train.data.loader import Batch
from train.exact import Exact
from train.gradients import Averaged
from train.loop import Trainer
from train.models.classifier import build_classifier
from train.recipes import get_recipe
from train.setup import split_batch

CPU = torch.device("cpu")


def short(**changes: Any) -> TrainConfig:
    return get_recipe("digits").with_changes({"epochs": 1, **changes}, "test")


def batches(dataset: Dataset, sizes: list[int]) -> list[Batch]:
    split = dataset.split("train")
    ends = np.cumsum(sizes)
    return [
        Batch(
            torch.from_numpy(split.take(np.arange(end - size, end))),
            torch.tensor(split.labels[end - size : end]),
            None,
        )
        for size, end in zip(sizes, ends, strict=True)
    ]


def loss(model: torch.nn.Module, batch: Batch, part: int) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(batch.images), batch.labels, reduction="sum")


@pytest.mark.parametrize("sizes", [[64], [32, 32], [20, 40, 4]])
@pytest.mark.parametrize("kind", ["averaged", "exact"])
def test_any_parts_give_the_gradient_of_the_whole_batch(
    digits_dataset: Dataset, sizes: list[int], kind: str
) -> None:
    config = short()
    whole = build_classifier(config, digits_dataset.meta)
    (batch,) = batches(digits_dataset, [64])
    (loss(whole, batch, 0) / 64).backward()

    classifier = build_classifier(config, digits_dataset.meta)
    parts = range(len(sizes))
    gradients = (
        Averaged(classifier, Alone(), config.hardware, parts, batch.images)
        if kind == "averaged"
        else Exact(classifier.net, classifier, Alone(), parts, len(sizes))
    )
    gradients.compute(batches(digits_dataset, sizes), 64, loss)
    for mine, theirs in zip(classifier.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "images", "world", "expected"),
    [
        ({}, 64, 2, (2, 1)),
        ({"micro_batch_size": 10}, 64, 2, (2, 4)),
        ({"micro_batch_size": 10}, 64, 3, (3, 3)),
        ({"micro_batch_size": 1, "batch_size": 33}, 33, 2, (2, 16)),  # No part is empty.
        ({"micro_batch_size": 10, "exact": {"shards": 4}}, 64, 1, (4, 2)),
        ({"micro_batch_size": 10, "exact": {"shards": 4}}, 64, 3, (4, 2)),
        ({"optim": {"name": "gd"}, "batch_size": 100}, 1259, 2, (2, 7)),
        ({"optim": {"name": "gd"}, "batch_size": 100, "exact": {"shards": 4}}, 1259, 3, (4, 4)),
    ],
)
def test_a_batch_is_cut_into_shares_and_those_into_parts(
    changes: dict[str, Any], images: int, world: int, expected: tuple[int, int]
) -> None:
    assert split_batch(short(**changes), images, world) == expected


def test_an_exact_shard_in_parts_has_the_gradient_of_the_whole(digits_dataset: Dataset) -> None:
    config = short()
    (batch,) = batches(digits_dataset, [64])
    whole, parted = (build_classifier(config, digits_dataset.meta) for _ in range(2))
    Exact(whole.net, whole, Alone(), [0], 1).compute([batch], 64, loss)
    parts = batches(digits_dataset, [16, 16, 16, 16])
    Exact(parted.net, parted, Alone(), [0, 2, 1, 3], 2, 2).compute(parts, 64, loss)
    for mine, theirs in zip(parted.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_gradient_descent_takes_one_step_an_epoch_by_the_whole_split(
    digits_dataset: Dataset, tmp_path: Path
) -> None:
    config = short(
        optim={"name": "gd", "lr": 0.5},
        schedule={"name": "constant"},
        augment={"translate": 0},
        loss={"label_smoothing": 0.0},
        epochs=2,
        batch_size=500,
    )
    trainer = Trainer(config, digits_dataset, Alone(), CPU, Folder(tmp_path), NullSink())
    assert trainer.run().step == 2

    classifier = build_classifier(config, digits_dataset.meta)
    split = digits_dataset.split("train")
    (batch,) = batches(digits_dataset, [len(split)])
    for _ in range(2):
        classifier.zero_grad()
        (loss(classifier, batch, 0) / len(split)).backward()
        with torch.no_grad():
            for parameter in classifier.parameters():
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=0.5)
    for mine, theirs in zip(trainer.net.parameters(), classifier.net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_workers_with_unequal_shares_count_each_image_once(
    digits_dataset: Dataset, tmp_path: Path
) -> None:
    # 33 images on 2 workers: 17 and 16. Without the weights one worker's images would count more.
    config = short(batch_size=33, augment={"translate": 0}, schedule={"name": "constant"})
    config = config.with_changes({"optim": {"name": "sgd", "lr": 0.05}}, "test")
    train_in_group(config, digits_dataset.path, tmp_path / "two", 2)
    train_in_group(config, digits_dataset.path, tmp_path / "one", 1)
    one, two = (newest_weights(tmp_path / name) for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_a_sharded_optimizer_gives_the_weights_of_a_whole_one_and_goes_on_without_shards(
    digits_dataset: Dataset, tmp_path: Path
) -> None:
    config = short(epochs=2, batch_size=256, checkpoint={"every_steps": 3, "every_s": None})
    sharded = config.with_changes({"hardware": {"shard_optimizer": True}}, "test")
    whole = train_in_group(config, digits_dataset.path, tmp_path / "whole", 2)
    assert train_in_group(sharded, digits_dataset.path, tmp_path / "sharded", 2) == whole
    train_in_group(sharded, digits_dataset.path, tmp_path / "cut", 2, stop_at=7)
    assert train_in_group(config, digits_dataset.path, tmp_path / "cut", 2) == whole


def newest_weights(folder: Path) -> dict[str, torch.Tensor]:
    from train.checkpoint import latest_checkpoint

    found = latest_checkpoint(Folder(folder))
    assert found is not None
    return found.model
