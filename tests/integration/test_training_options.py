"""What a run's options do when two workers train it, and what ends it with one line."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from harness import CliResult, RunCli

from cluster.dataset import Dataset
from cluster.settings import Settings
from cluster.store import Store
from train.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from train.export import load_classifier
from train.inference import predict
from train.models.classifier import build_classifier
from train.recipes import get_recipe
from train.runs import Run, create_run, find_run
from train.state import first_checkpoint

FIT = ("train", "fit", "digits", "--data", "digits", "--workers", "2", "--json")
# What counts as an improvement is more than there is to gain: the first epoch stays the best.
STOPS_EARLY = (
    *("--set", "early_stopping.metric=val_accuracy", "--set", "early_stopping.patience=2"),
    *("--set", "early_stopping.min_delta=1"),
)
FREEZE = '[{layers="conv1", until=1}, {layers="conv2"}]'


@dataclass(frozen=True)
class Trained:
    """A run that was stopped early, with a layer frozen for an epoch and another for good."""

    run: Run
    fields: dict[str, Any]
    dataset: Dataset


@pytest.fixture(scope="module")
def trained(ray_session: Settings, digits_dataset: Dataset, run_cli: RunCli) -> Trained:
    done = run_cli(
        *(*FIT, "--name", "options", *STOPS_EARLY, "--set", f"freeze={FREEZE}"),
        *("--set", "epochs=9", "--set", "checkpoint.keep=9"),
        env=ray_session.environment(),
    )
    assert done.exit_code == 0, done.stderr
    return Trained(find_run(Store(ray_session.store), "options"), done.json, digits_dataset)


def test_early_stopping_ends_both_workers_with_the_best_epochs_weights(trained: Trained) -> None:
    assert trained.fields["workers"] == 2
    assert (trained.fields["epochs"], trained.fields["best_epoch"]) == (3, 1)
    history = trained.run.result().history
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    val = trained.dataset.split("val")
    classifier = load_classifier(trained.run, trained.dataset)
    right = (predict(classifier, val, torch.device("cpu")).argmax(1) == val.labels).mean()
    assert right == pytest.approx(history[0]["val_accuracy"])
    assert right != pytest.approx(history[-1]["val_accuracy"])


def test_layers_are_trained_once_they_are_no_longer_frozen(trained: Trained) -> None:
    run = trained.run
    first = build_classifier(run.config(), trained.dataset.meta).net.state_dict()
    names = list_checkpoints(run.checkpoints)
    after = {
        found.step: found.model
        for found in (load_checkpoint(run.checkpoints.pull(name)) for name in names)
    }
    steps = [int(entry["step"]) for entry in run.result().history]
    moved = {
        layer: [not torch.equal(after[step][layer], first[layer]) for step in steps]
        for layer in ("conv1.weight", "conv2.weight", "fc1.weight")
    }
    assert moved == {
        "conv1.weight": [False, True, True],
        "conv2.weight": [False, False, False],
        "fc1.weight": [True, True, True],
    }


def test_views_are_averaged_beside_the_plain_figure(
    trained: Trained, ray_session: Settings, run_cli: RunCli
) -> None:
    done = run_cli(
        *("train", "evaluate", "options", "--tta", "mirror-translate", "--json"),
        env=ray_session.environment(),
    )
    assert done.exit_code == 0, done.stderr
    assert done.json["accuracy"] == trained.fields["accuracy"]
    views = done.json["tta"]
    assert views["views"] == "mirror-translate"
    # A mirrored digit is another one to a network of one epoch; it is better than chance still.
    assert 0.15 < views["accuracy"] <= 1
    assert views["loss"] != done.json["loss"]
    assert "with --tta mirror-translate: accuracy" in done.stderr


def test_a_loss_that_is_not_finite_ends_both_workers_with_one_line(
    ray_session: Settings, digits_dataset: Dataset, run_cli: RunCli
) -> None:
    # It goes well for an epoch; then the rate is multiplied by what no network stands.
    done = run_cli(
        *(*FIT, "--name", "diverged", "--set", "optim.name=sgd", "--set", "optim.lr=1e12"),
        *("--set", "schedule.name=linear", "--set", "schedule.warmup=0.5"),
        *("--set", "schedule.start=0", "--set", "schedule.unit=epoch", "--set", "epochs=4"),
        env=ray_session.environment(),
    )
    (line,) = errors(done)
    assert done.exit_code == 2
    assert "the loss is not finite in step 2" in line
    run = find_run(Store(ray_session.store), "diverged")
    (name,) = list_checkpoints(run.checkpoints)
    assert "(epoch 2); optim.lr=1e+12 may be too high; the last good checkpoint can be" in line
    assert line.endswith(f"begun with: --pretrained {run.checkpoints.path / name}")
    kept = load_checkpoint(run.checkpoints.pull(name))
    assert kept.step == 1259 // 64
    assert all(np.isfinite(tensor.numpy()).all() for tensor in kept.model.values())


def test_a_checkpoint_of_another_network_is_refused(
    ray_session: Settings, digits_dataset: Dataset, run_cli: RunCli
) -> None:
    store = Store(ray_session.store)
    config = get_recipe("digits").with_changes({"data": digits_dataset.reference}, "test")
    run = create_run(store, config, digits_dataset, "mixed-up")
    other = get_recipe("small-resnet")
    resnet = first_checkpoint(other, build_classifier(other, digits_dataset.meta))
    save_checkpoint(run.checkpoints, dataclasses.replace(resnet, step=19), keep=1)
    done = run_cli("train", "resume", "mixed-up", "--json", env=ray_session.environment())
    assert done.exit_code == 2, done.stderr
    (line,) = errors(done)
    assert line.startswith("error: the newest checkpoint has ")
    assert line.endswith("it is of another model")
    assert not run.finished


def errors(done: CliResult) -> list[str]:
    """What was said to be wrong. A worker's own words must not be among it."""
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]
