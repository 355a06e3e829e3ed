"""What is found out about a run before a cluster is asked for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from finished import finish_run, make_history, make_result

from cluster.dataset import Dataset
from cluster.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    NotFoundError,
    UserError,
)
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking
from train.checkpoint import save_checkpoint
from train.config import NetConfig
from train.fit import conclude, flatten, resume
from train.models.classifier import build_classifier
from train.models.net import Net
from train.preparing import prepare
from train.recipes import get_recipe
from train.runs import Start, create_run, find_run, list_runs
from train.state import first_checkpoint
from train.weights import save_state_dict


@pytest.fixture
def shared_store(shared_settings: Settings, digits_dataset: Dataset) -> Store:
    assert digits_dataset.path.is_dir()
    return Store(shared_settings.store)


def test_the_version_of_the_data_is_filled_in(shared_store: Store) -> None:
    config, dataset = prepare(get_recipe("digits"), shared_store)
    assert config.data == dataset.reference == "digits@1"


def test_first_weights_are_found_from_any_folder(
    shared_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    save_state_dict(Net(NetConfig(), (1, 8, 8), 10), tmp_path / "first.pth")
    monkeypatch.chdir(tmp_path)
    asked = get_recipe("digits").with_changes({"pretrained": "first.pth"}, "test")
    config, _ = prepare(asked, shared_store)
    assert config.pretrained == str(tmp_path / "first.pth")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"data": "digits@9"}, NotFoundError, r"has no version 9; there are: 1"),
        ({"batch_size": 4096}, ConfigError, "larger than the training split of 1259"),
        ({"pretrained": "missing.pth"}, CheckpointError, r"missing\.pth does not exist"),
    ],
)
def test_what_does_not_fit_is_found_out_first(
    shared_store: Store, changes: dict[str, object], kind: type[UserError], message: str
) -> None:
    asked = get_recipe("digits").with_changes(changes, "test")
    with pytest.raises(kind, match=message):
        prepare(asked, shared_store)


def test_a_network_that_could_not_be_exported_is_found_out_first(
    shared_store: Store, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "class Own(nn.Linear):\n"
        "    def __init__(self): super().__init__(64, 10)\n"
        "    def forward(self, x):\n"
        "        y = super().forward(x.flatten(1))\n"
        "        return y * 2 if y.sum().item() > 0 else y\n"
    )
    own = {"name": "file", "path": tmp_path / "own.py", "factory": "Own"}
    asked = get_recipe("digits").with_changes({"model": own}, "test")
    with pytest.raises(BundleError, match=r"own.py:Own cannot be exported .*own.py:6 in forward"):
        prepare(asked, shared_store)


def test_first_weights_that_are_no_numbers_are_found_out_first(
    shared_store: Store, tmp_path: Path
) -> None:
    net = Net(NetConfig(), (1, 8, 8), 10)
    torch.nn.init.constant_(net.fc1.weight, float("nan"))
    save_state_dict(net, tmp_path / "nan.pth")
    asked = get_recipe("digits").with_changes({"pretrained": str(tmp_path / "nan.pth")}, "test")
    with pytest.raises(ConfigError, match=r"its tensor fc1.weight holds NaN"):
        prepare(asked, shared_store)


def test_a_run_that_diverged_still_has_its_report(
    store: Store, settings: Settings, digits_dataset: Dataset
) -> None:
    run = create_run(store, get_recipe("digits"), digits_dataset, "lost")
    for split in ("val", "test"):
        rows = len(digits_dataset.split(split))
        run.write_logits(np.full((rows, 10), np.nan, np.float32), split)
    result = make_result(epochs=1, steps=1, history=())
    log = Tracking(settings).start_run("lost", {}, {})
    evaluation = conclude(run, digits_dataset, result, log)
    log.finish("FAILED")
    assert evaluation.calibration == ()
    assert run.report_file.is_file()


@pytest.mark.parametrize(
    ("done", "epochs", "message"),
    [
        (8, None, "run one has finished its 8 epochs; ask for more with --epochs"),
        (8, 8, "run one has finished its 8 epochs; ask for more with --epochs"),
        (5, 20, "run one stopped early, after 5 of 8 epochs; train a new one with more early_stop"),
    ],
)
def test_a_run_that_is_done_is_not_resumed(
    store: Store,
    settings: Settings,
    digits_dataset: Dataset,
    done: int,
    epochs: int | None,
    message: str,
) -> None:
    config = get_recipe("digits").with_changes({"epochs": 8}, "test")
    starts = (Start(step=0, workers=1, total_steps=160),)
    history = make_history(done)
    run = finish_run(store, config, digits_dataset, "one", history=history, starts=starts)
    tracking = Tracking(settings)
    with pytest.raises(NotFoundError, match=message):
        resume(run, store, tracking, None, epochs=epochs)  # type: ignore[arg-type]


def test_a_run_that_was_prolonged_and_cut_off_can_be_gone_on_with(
    store: Store, settings: Settings, digits_dataset: Dataset
) -> None:
    class Reached(Exception):
        """The training would begin."""

    class Cluster:
        def free(self) -> None:
            raise Reached

    store.datasets.mkdir(parents=True)
    (store.datasets / "digits").symlink_to(digits_dataset.path.parent)
    short = get_recipe("digits").with_changes({"epochs": 8}, "test")
    starts = (Start(step=0, workers=1, total_steps=160),)
    run = finish_run(store, short, digits_dataset, "one", starts=starts)
    run.write_config(short.with_changes({"epochs": 20}, "test"))  # As `resume --epochs 20` does.
    for epochs in (None, 20):
        with pytest.raises(Reached):
            resume(run, store, Tracking(settings), Cluster(), epochs=epochs)  # type: ignore[arg-type]


def test_a_run_is_not_resumed_to_an_epoch_that_is_over(
    store: Store, settings: Settings, digits_dataset: Dataset
) -> None:
    config = get_recipe("digits").with_changes({"epochs": 8}, "test")
    run = create_run(store, config, digits_dataset, "cut")
    first = first_checkpoint(config, build_classifier(config, digits_dataset.meta))
    history = list(make_history(3, steps_per_epoch=19))
    save_checkpoint(run.checkpoints, replace(first, step=3 * 19 + 1, history=history), keep=1)
    with pytest.raises(NotFoundError, match="run cut is in epoch 4: --epochs 4 or more"):
        resume(run, store, Tracking(settings), None, epochs=3)  # type: ignore[arg-type]


def test_a_run_is_made_once_and_found_by_name(store: Store, digits_dataset: Dataset) -> None:
    config = get_recipe("digits")
    first = create_run(store, config, digits_dataset, "first")
    second = create_run(store, config, digits_dataset, None)
    assert second.name.startswith("digits-")
    assert [run.name for run in list_runs(store)] == [first.name, second.name]
    assert find_run(store, "first").config() == config
    assert find_run(store, "latest") == second
    assert first.info().dataset_digest == digits_dataset.meta.digest
    with pytest.raises(DataError, match="run 'first' exists already"):
        create_run(store, config, digits_dataset, "first")
    with pytest.raises(NotFoundError, match="the newest are: digits-"):
        find_run(store, "third")
    with pytest.raises(NotFoundError, match="has not finished; go on with"):
        first.result()


def test_parameters_are_flat() -> None:
    flat = flatten(get_recipe("digits"))
    assert flat["optim.lr"] == 3e-3
    assert flat["model.name"] == "net"
    assert not any(isinstance(value, dict) for value in flat.values())
