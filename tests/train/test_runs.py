"""Runs in a store: found by name and age, written by one command at a time, on any host."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import write_dataset
from servers import S3Server

from cluster.dataset import Dataset
from cluster.errors import CheckpointError, DataError, NotFoundError
from cluster.remote import Remote
from cluster.store import Store
from train.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    latest_checkpoint,
    list_checkpoints,
    save_checkpoint,
)
from train.config import TrainConfig
from train.runs import Run, RunResult, create_run, find_run, list_runs

CONFIG = TrainConfig(recipe="test", data="pets@1")


@pytest.fixture(params=["folder", "s3"])
def hosts(
    request: pytest.FixtureRequest, s3: S3Server, tmp_path: Path
) -> Iterator[tuple[Store, Store]]:
    """Two hosts that see one store: a shared folder, or an object store."""
    if request.param == "folder":
        yield Store(tmp_path / "shared"), Store(tmp_path / "shared")
    else:
        remote = Remote(s3.uri(f"raybridge/{tmp_path.name}"))
        yield Store(tmp_path / "here", remote), Store(tmp_path / "there", remote)


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, 0, "x", {"w": torch.full((3,), float(step))}, {}, [])


def a_run(store: Store, name: str | None = None) -> Run:
    return create_run(store, CONFIG, Dataset.find(store, "pets@1"), name)


def test_another_host_finds_a_run(hosts: tuple[Store, Store]) -> None:
    here, there = hosts
    write_dataset(here)
    assert list_runs(there) == []
    with pytest.raises(NotFoundError, match=r"no run 'latest' .*none yet"):
        find_run(there, "latest")
    for name in ("b", "a", "c"):
        a_run(here, name)
    assert [run.name for run in list_runs(there)] == ["b", "a", "c"]
    assert find_run(there, "latest").name == "c"
    found = find_run(there, "a")
    assert found.config() == CONFIG
    assert found.info().dataset == "pets@1"
    assert found.dataset(there).meta.digest == found.info().dataset_digest
    with pytest.raises(NotFoundError, match=r"no run 'd' .*the newest are: c, a, b"):
        find_run(there, "d")
    with pytest.raises(DataError, match="run 'a' exists already"):
        a_run(there, "a")


def test_another_host_reads_what_came_of_a_run(hosts: tuple[Store, Store]) -> None:
    here, there = hosts
    write_dataset(here)
    run, seen = a_run(here, "one"), find_run(there, "one")
    net, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    with pytest.raises(NotFoundError, match="has not finished"):
        seen.result()
    with pytest.raises(CheckpointError, match=r"weights.pth does not exist"):
        seen.load_weights(other)
    assert seen.evaluation("test") is None
    logits = np.ones((4, 2), np.float32)
    run.write_logits(logits, "test")
    run.write_weights(net)
    result = RunResult(
        epochs=1,
        steps=2,
        workers=1,
        device="cpu",
        seconds=1.0,
        images_per_s=9.0,
        restarts=0,
        weights_sha256="0" * 64,
        history=(),
        failures={},
    )
    run.write_result(result)
    assert seen.finished
    assert seen.result() == result
    assert np.array_equal(seen.logits("test"), logits)
    seen.load_weights(other)
    assert torch.equal(net.weight, other.weight)
    seen.write_config(CONFIG.model_copy(update={"epochs": 7}))
    assert run.config().epochs == 7, "what another host wrote is seen here"


def test_checkpoints_go_on_on_another_host(hosts: tuple[Store, Store]) -> None:
    here, there = (store.folder("runs/one/checkpoints") for store in hosts)
    assert latest_checkpoint(there) is None
    writer = CheckpointWriter(here, keep=2)
    for step in range(5):
        writer.submit(checkpoint(step))
    writer.close()
    assert writer.failures == 0
    found = latest_checkpoint(there)
    assert found is not None
    assert (found.step, found.model["w"].tolist()) == (4, [4.0] * 3)
    for step in (5, 6):
        save_checkpoint(there, checkpoint(step), keep=2)
    assert list_checkpoints(here) == ["step-00000005.pt", "step-00000006.pt"]


def test_of_an_object_store_no_checkpoints_stay_on_the_disk(s3: S3Server, tmp_path: Path) -> None:
    store = Store(tmp_path / "here", Remote(s3.uri(f"raybridge/{tmp_path.name}")))
    folder = store.folder("runs/one/checkpoints")
    save_checkpoint(folder, checkpoint(1), keep=2)
    assert latest_checkpoint(folder) is not None
    assert list(folder.path.iterdir()) == []


def test_a_store_that_does_not_answer_costs_checkpoints_not_the_run(
    s3: S3Server, tmp_path: Path
) -> None:
    uri = s3.uri(f"raybridge/{tmp_path.name}").replace(s3.endpoint.rpartition(":")[2], "9")
    folder = Store(tmp_path / "here", Remote(uri)).folder("runs/one/checkpoints")
    writer = CheckpointWriter(folder, keep=2)
    writer.submit(checkpoint(1))
    writer.close()
    assert writer.failures == 1
    assert "does not answer" in writer.last_failure


def test_a_run_that_the_store_no_longer_has_leaves_nothing_behind(
    s3: S3Server, tmp_path: Path
) -> None:
    prefix = f"raybridge/{tmp_path.name}"
    store = Store(tmp_path / "here", Remote(s3.uri(prefix)))
    write_dataset(store)
    run = a_run(store, "one")
    (run.path / "events.jsonl").touch()
    s3.files().delete_dir(f"{prefix}/runs/one")
    assert not (a_run(store, "one").path / "events.jsonl").exists()


def test_one_command_at_a_time_writes_to_a_run(store: Store) -> None:
    write_dataset(store)
    run = a_run(store, "one")
    busy = pytest.raises(DataError, match="another command is training run one")
    with run.alone(), busy, find_run(store, "one").alone():
        pass
    with find_run(store, "one").alone():
        pass
    assert [found.name for found in list_runs(store)] == ["one"]
