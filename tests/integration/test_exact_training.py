"""Exact runs as users make them: one configuration and seed, one set of weights, to the bit."""

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from harness import RunCli
from started import finish, start_module, wait_for_checkpoint, wait_for_event, wait_for_run

from cluster.dataset import Dataset
from cluster.events import read_events
from cluster.session import connect
from cluster.settings import Settings
from cluster.store import Store
from train.runs import Run

MODEL = "exact-digits"
# Slow enough for a kill to fall into the middle of an epoch; batch normalisation and dropout are in
# it because they are what depends on the number of workers elsewhere.
EXACT_FIT = (
    *("fit", "small-resnet", "--data", "digits", "--exact", "--json"),
    *("--set", "epochs=2", "--set", "batch_size=32", "--set", "model.width=16"),
    *("--set", "checkpoint.every_s=0.2"),
)


@dataclass(frozen=True)
class Reference:
    """The run that nobody interrupted, by two workers, and its registered version."""

    run: Run
    weights: str
    fields: dict[str, Any]


@pytest.fixture(scope="module")
def reference(ray_session: Settings, digits_dataset: Dataset, run_cli: RunCli) -> Reference:
    done = run_cli(
        *("train", *EXACT_FIT, "--workers", "2", "--name", "exact", "--register", MODEL),
        env=ray_session.environment(),
    )
    assert done.exit_code == 0, done.stderr
    run = Run(Store(ray_session.store).folder("runs/exact"))
    return Reference(run, done.json["weights_sha256"], done.json)


@pytest.fixture
def held_cpu(ray_session: Settings) -> Iterator[None]:
    """One of the two CPUs is somebody else's."""

    class Holder:
        def ready(self) -> None:
            """It has its CPU."""

    with connect(ray_session):
        holder: Any = ray.remote(num_cpus=1)(Holder).remote()
        ray.get(holder.ready.remote(), timeout=60)
        yield
        ray.kill(holder)


def test_one_worker_killed_then_two_of_which_one_is_killed_give_the_bits_of_two(
    reference: Reference, ray_session: Settings
) -> None:
    environment = ray_session.environment()
    process = start_module(
        "train", *EXACT_FIT, "--workers", "1", "--name", "exact-cut", env=environment
    )
    run = wait_for_run(ray_session, "exact-cut", process)
    progress = wait_for_event(run, "progress", process)
    assert 0 < progress["step"] < progress["total_steps"] / 2
    wait_for_checkpoint(run, process)
    process.kill()  # The driver, and with it Ray ends the worker.
    process.communicate()
    told = len(list(read_events(run.events_file)))

    process = start_module(
        "train", "resume", "exact-cut", "--workers", "2", "--json", env=environment
    )
    start = wait_for_event(run, "start", process, after=told)
    wait_for_checkpoint(run, process, after_step=start["step"])
    os.kill(start["workers"][1]["pid"], signal.SIGKILL)
    resumed = finish(process)
    assert resumed.exit_code == 0, resumed.stderr
    starts = run.result().starts
    assert [one.workers for one in starts] == [1, 2, 2]
    assert 0 < starts[1].step < starts[2].step
    assert resumed.json["restarts"] == 1
    assert resumed.json["weights_sha256"] == reference.weights


def test_a_registered_version_is_reproduced_to_the_bit(
    reference: Reference, ray_session: Settings, run_cli: RunCli
) -> None:
    done = run_cli(
        *("train", "reproduce", f"registry:{MODEL}@1", "--json"), env=ray_session.environment()
    )
    assert done.exit_code == 0, done.stderr
    assert done.json["identical"] is True
    assert done.json["weights_sha256"] == reference.weights
    assert done.json["run"] != "exact"
    assert "has the weights of run exact, to the bit" in done.stderr


def test_other_weights_are_told_with_what_differs(
    reference: Reference, ray_session: Settings, run_cli: RunCli, tmp_path: Path
) -> None:
    environment = ray_session.environment()
    first = tmp_path / "first.pth"
    shutil.copy(reference.run.weights_file, first)
    fitted = run_cli(
        *("train", *EXACT_FIT, "--set", "epochs=1", "--pretrained", str(first), "--name", "warm"),
        env=environment,
    )
    assert fitted.exit_code == 0, fitted.stderr
    # Since then somebody has trained the first weights further.
    shutil.copy(Run(Store(ray_session.store).folder("runs/warm")).weights_file, first)
    done = run_cli("train", "reproduce", "warm", "--json", env=environment)
    assert done.exit_code == 1
    assert done.json["identical"] is False
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("error: ")]
    assert line.startswith(f"error: run {done.json['run']} has other weights (")
    assert "first weights: " in line
    assert "Traceback" not in done.stderr


def test_an_elastic_run_goes_on_with_the_cpu_that_is_free(
    reference: Reference, held_cpu: None, ray_session: Settings, run_cli: RunCli
) -> None:
    done = run_cli(
        *("train", *EXACT_FIT, "--workers", "1:2", "--name", "exact-elastic"),
        env=ray_session.environment(),
    )
    assert done.exit_code == 0, done.stderr
    assert done.json["workers"] == 1
    assert done.json["restarts"] == 0
    assert done.json["weights_sha256"] == reference.weights


def test_a_registered_version_is_what_training_begins_with(
    reference: Reference, ray_session: Settings, run_cli: RunCli
) -> None:
    done = run_cli(
        *("train", "fit", "small-resnet", "--data", "digits", "--set", "model.width=16"),
        *("--pretrained", f"registry:{MODEL}", "--set", "epochs=1", "--set", "batch_size=512"),
        *("--set", "optim.lr=1e-5", "--workers", "2", "--name", "warm-start", "--json"),
        env=ray_session.environment(),
    )
    assert done.exit_code == 0, done.stderr
    assert "tensors loaded" in done.stderr
    assert done.json["steps"] == 2
    # Two steps at such a rate change nothing much: it can do what the version could.
    assert done.json["accuracy"] == pytest.approx(reference.fields["accuracy"], abs=0.03)
    run = Run(Store(ray_session.store).folder("runs/warm-start"))
    assert run.config().pretrained == f"registry:{MODEL}@1"
    source = run.info().first_weights
    assert source is not None
    assert source.sha256 == reference.fields["bundle_digest"]
