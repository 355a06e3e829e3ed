"""The loop without a cluster: it learns, and stopping it changes no bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.dataset import Dataset
from cluster.errors import CheckpointError, DivergedError
from cluster.events import NullSink
from cluster.store import Folder
from train.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from train.comm import Alone
from train.config import TrainConfig
from train.loop import Trainer, step_seed
from train.recipes import get_recipe
from train.weights import weights_sha256

CPU = torch.device("cpu")


class Recorder:
    """Keeps events; raises at one step, as a kill would end the process there."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def emit(self, kind: str, **values: Any) -> None:
        self.events.append((kind, values))


class Stopper(Trainer):
    """A trainer that dies before a step."""

    stop_at = 0

    def _step(self, batches: Any, step: int, meter: Any) -> None:
        if step == self.stop_at:
            raise RuntimeError("killed")
        super()._step(batches, step, meter)


def short(**changes: Any) -> TrainConfig:
    base = {"epochs": 3, "augment": {"flip": True, "translate": 1}}
    return get_recipe("digits").with_changes({**base, **changes}, "test")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def train(config: TrainConfig, dataset: Dataset, folder: Folder) -> Trainer:
    trainer = Trainer(config, dataset, Alone(), CPU, folder, NullSink())
    trainer.run()
    return trainer


@pytest.mark.parametrize("model", ["net", "resnet"])
@pytest.mark.parametrize("optim", ["adamw", "sgd"])
def test_stopping_in_the_middle_of_an_epoch_changes_no_bit(
    digits_dataset: Dataset, tmp_path: Path, model: str, optim: str
) -> None:
    config = short(
        model={"name": model},
        optim={"name": optim, "lr": 0.01},
        checkpoint={"every_s": 1e-9, "keep": 3},
    )
    whole = train(config, digits_dataset, Folder(tmp_path / "whole"))
    folder = Folder(tmp_path / "cut")
    for stop_at in (5, 30):
        cut = Stopper(config, digits_dataset, Alone(), CPU, folder, NullSink())
        cut.stop_at = stop_at
        with pytest.raises(RuntimeError, match="killed"):
            cut.run()
        found = latest_checkpoint(folder)
        assert found is not None
        assert found.step == stop_at
    resumed = train(config, digits_dataset, folder)
    assert weights_sha256(resumed.net) == weights_sha256(whole.net)


def test_another_seed_gives_other_weights(digits_dataset: Dataset, tmp_path: Path) -> None:
    first = train(short(epochs=1, seed=1), digits_dataset, Folder(tmp_path / "1"))
    again = train(short(epochs=1, seed=1), digits_dataset, Folder(tmp_path / "2"))
    other = train(short(epochs=1, seed=2), digits_dataset, Folder(tmp_path / "3"))
    digests = [weights_sha256(trainer.net) for trainer in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_it_learns_and_tells(digits_dataset: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    config = short(epochs=12, augment={"flip": False})
    trainer = Trainer(config, digits_dataset, Alone(), CPU, Folder(tmp_path), recorder)
    progress = trainer.run()
    assert progress.step == 12 * (1259 // 64)
    kinds = [kind for kind, _ in recorder.events]
    assert kinds[0] == "start"
    epochs = [values for kind, values in recorder.events if kind == "epoch"]
    assert [values["epoch"] for values in epochs] == list(range(1, 13))
    assert epochs[-1]["val_accuracy"] > 0.93
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"] / 2
    logits = trainer.predict(digits_dataset.split("val"))
    labels = digits_dataset.split("val").labels
    assert (logits.argmax(1) == labels).mean() == pytest.approx(epochs[-1]["val_accuracy"])


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(
    digits_dataset: Dataset, tmp_path: Path
) -> None:
    wild = short(optim={"name": "sgd", "lr": 1e9}, schedule={"name": "constant", "warmup": 0.0})
    with pytest.raises(
        DivergedError,
        match=r"not finite in step \d \(epoch 1\); optim.lr=1e\+09 may be too high; no checkpoint "
        "was written before",
    ):
        train(wild, digits_dataset, Folder(tmp_path))
    assert list_checkpoints(Folder(tmp_path)) == []
    saving = wild.with_changes({"checkpoint": {"every_steps": 1}}, "test")
    with pytest.raises(DivergedError) as stopped:
        train(saving, digits_dataset, Folder(tmp_path))
    newest = list_checkpoints(Folder(tmp_path))[-1]
    assert str(stopped.value).endswith(f"can be begun with: --pretrained {tmp_path / newest}")


def test_a_checkpoint_of_another_model_is_refused(digits_dataset: Dataset, tmp_path: Path) -> None:
    train(short(epochs=1), digits_dataset, Folder(tmp_path))
    with pytest.raises(CheckpointError, match=r"has no tensor stem.weight; it is of another model"):
        train(short(epochs=2, model={"name": "resnet"}), digits_dataset, Folder(tmp_path))


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, 0, "x", {"w": torch.full((3,), float(step))}, {}, [])


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for step in range(5):
        save_checkpoint(folder, checkpoint(step), keep=2)
    assert list_checkpoints(folder) == ["step-00000003.pt", "step-00000004.pt"]
    assert load_checkpoint(tmp_path / "step-00000003.pt").step == 3


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save_checkpoint(Folder(tmp_path), checkpoint(step), keep=9)
    (tmp_path / "step-00000002.pt").write_bytes(damage)
    found = latest_checkpoint(Folder(tmp_path))
    assert found is not None
    assert found.step == 1
    assert "going back to the one before" in caplog.text


def test_checkpoints_of_which_none_can_be_read_are_not_passed_over(
    digits_dataset: Dataset, tmp_path: Path
) -> None:
    folder = Folder(tmp_path)
    save_checkpoint(folder, checkpoint(40), keep=1)
    (tmp_path / "step-00000040.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be read; the oldest"):
        train(short(epochs=1), digits_dataset, folder)


def test_one_that_was_passed_over_does_not_push_out_new_ones(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for step in (1, 8, 9):
        save_checkpoint(folder, checkpoint(step), keep=9)
    save_checkpoint(folder, checkpoint(2), keep=2)
    assert list_checkpoints(folder) == ["step-00000001.pt", "step-00000002.pt"]


def test_the_writer_writes_the_newest_and_counts_failures(tmp_path: Path) -> None:
    writer = CheckpointWriter(Folder(tmp_path / "good"), keep=1)
    for step in range(20):
        writer.submit(checkpoint(step))
    writer.close()
    assert list_checkpoints(Folder(tmp_path / "good")) == ["step-00000019.pt"]
    (tmp_path / "file").touch()
    failing = CheckpointWriter(Folder(tmp_path / "file" / "below"), keep=1)
    failing.submit(checkpoint(1))
    failing.close()
    assert failing.failures == 1
    assert failing.last_failure


def test_every_step_and_worker_draws_from_a_seed_of_its_own() -> None:
    seeds = {
        step_seed(seed, step, rank) for seed in range(5) for step in range(50) for rank in range(4)
    }
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
