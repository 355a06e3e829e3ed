"""Training on a real cluster: two DDP workers, a kill, a resume, and what a run leaves behind."""

import os
import re
import signal

import numpy as np
import pytest
import torch
from digits import RegisteredModel
from harness import NeedPackage, RunCli
from photos import make_photos, write_photos
from started import Process, finish, start_module, wait_for_event, wait_for_run
from tfrecords import scalars

from cluster.dataset import Dataset
from cluster.events import Event, read_events
from cluster.runtime import open_session
from cluster.session import connect
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking
from train.data.sampling import epoch_order
from train.data.sources.named import DEBIAN_FASHION_MNIST
from train.export import load_classifier
from train.fit import FitOutcome, fit
from train.inference import predict
from train.preparing import prepare
from train.recipes import get_recipe
from train.runs import find_run

# Slow enough for a kill to fall into the middle of an epoch.
SLOW_RUN = (
    *("fit", "small-resnet", "--data", "digits", "--workers", "2"),
    *("--set", "epochs=3", "--set", "batch_size=16", "--set", "model.width=32"),
    *("--set", "checkpoint.every_s=0.2"),
)


def test_two_workers_reach_the_accuracy_that_the_readme_states(digits_fit: FitOutcome) -> None:
    assert digits_fit.result.workers == 2
    assert digits_fit.result.restarts == 0
    assert set(digits_fit.result.failures) == {"checkpoints", "events", "tensorboard", "tracking"}
    assert not any(digits_fit.result.failures.values())
    assert digits_fit.evaluation.accuracy >= 0.98
    assert digits_fit.evaluation.images == 359


def test_a_run_leaves_its_record(digits_fit: FitOutcome, ray_session: Settings) -> None:
    run = digits_fit.run
    assert run.config().resources.workers == 2
    events = list(read_events(run.events_file))
    starts = [event for event in events if event["kind"] == "start"]
    assert len(starts) == 1
    assert len({worker["pid"] for worker in starts[0]["workers"]}) == 2
    assert sum(event["kind"] == "epoch" for event in events) == run.config().epochs
    info = run.info()
    assert info.mlflow_run_id is not None
    (record,) = [row for row in Tracking(ray_session).runs() if row.run_id == info.mlflow_run_id]
    assert record.status == "FINISHED"
    assert record.metrics["test_accuracy"] == digits_fit.evaluation.accuracy
    last = digits_fit.result.history[-1]
    assert record.metrics["grad_norm"] == last["grad_norm"] > 0
    shown = scalars(run.tensorboard.path)
    for tag, name in (("accuracy/val", "val_accuracy"), ("grad_norm", "grad_norm")):
        assert len(shown[tag]) == run.config().epochs
        assert shown[tag][int(last["step"])] == pytest.approx(last[name], rel=1e-6)


def test_the_report_needs_nothing_else(digits_fit: FitOutcome) -> None:
    page = digits_fit.run.report_file.read_text("utf-8")
    assert f"{100 * digits_fit.evaluation.accuracy:.2f} %" in page
    for part in ('id="curves"', 'id="confusion"', 'id="classes"', "Worst mistakes", "<svg"):
        assert part in page
    assert page.count("data:image/png;base64,") == sum(
        sum(row) - row[index] for index, row in enumerate(digits_fit.evaluation.confusion)
    )
    # Namespaces of SVG are names; nothing is fetched.
    fetched = re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', page)
    assert fetched == []


def test_the_bundle_gives_pytorchs_answers(
    digits_fit: FitOutcome, digits_bundle: RegisteredModel, ray_session: Settings
) -> None:
    manifest = digits_bundle.bundle.manifest
    assert manifest.parity.images == 359
    assert manifest.parity.labels_equal
    assert manifest.parity.max_abs_diff < 1e-4
    assert manifest.lineage.run == digits_fit.run.name
    assert manifest.metrics["accuracy"] == digits_fit.evaluation.accuracy
    dataset = digits_fit.run.dataset(Store(ray_session.store))
    test = dataset.split("test")
    expected = predict(load_classifier(digits_fit.run, dataset), test, torch.device("cpu"))
    session = open_session(digits_bundle.bundle)
    for batch in (1, 2, 3, 64, 359):
        got = session.run(test.take(slice(batch)))
        assert np.abs(got - expected[:batch]).max() < 1e-4


def test_evaluate_again_gives_the_same_figures(
    digits_fit: FitOutcome, ray_session: Settings, run_cli: RunCli
) -> None:
    done = run_cli("train", "evaluate", "digits-run", "--json", env=ray_session.environment())
    assert done.exit_code == 0, done.stderr
    assert done.json["accuracy"] == digits_fit.evaluation.accuracy
    assert done.json["confusion"] == [list(row) for row in digits_fit.evaluation.confusion]


def test_killing_a_worker_changes_no_bit(
    ray_session: Settings, digits_dataset: Dataset, run_cli: RunCli
) -> None:
    environment = ray_session.environment()
    whole = run_cli("train", *SLOW_RUN, "--name", "whole", "--json", env=environment)
    assert whole.exit_code == 0, whole.stderr
    process = start_fit("killed", environment)
    run = wait_for_run(ray_session, "killed", process)
    progress = wait_for_event(run, "progress", process)
    start = next(event for event in read_events(run.events_file) if event["kind"] == "start")
    assert 0 < progress["step"] < progress["total_steps"]
    os.kill(start["workers"][0]["pid"], signal.SIGKILL)
    killed = finish(process)
    assert killed.exit_code == 0, killed.stderr
    assert killed.json["restarts"] == 1
    assert "a worker died" in killed.stderr
    starts = [event for event in read_events(run.events_file) if event["kind"] == "start"]
    assert starts[1]["step"] > 0
    assert killed.json["weights_sha256"] == whole.json["weights_sha256"]


def test_a_driver_that_was_killed_is_resumed_to_the_same_bits(
    ray_session: Settings, digits_dataset: Dataset, run_cli: RunCli
) -> None:
    environment = ray_session.environment()
    process = start_fit("cut-off", environment)
    run = wait_for_run(ray_session, "cut-off", process)
    wait_for_event(run, "epoch", process)
    process.kill()
    process.communicate()
    unfinished = run_cli("train", "export", "cut-off", env=environment)
    assert unfinished.exit_code == 2
    assert "has not finished; go on with: python -m train resume cut-off" in unfinished.stderr
    resumed = run_cli("train", "resume", "cut-off", "--json", env=environment)
    assert resumed.exit_code == 0, resumed.stderr
    assert "going on from step" in resumed.stderr
    whole = find_run(Store(ray_session.store), "whole").result()
    assert resumed.json["weights_sha256"] == whole.weights_sha256
    again = run_cli("train", "resume", "cut-off", env=environment)
    assert again.exit_code == 2
    assert "has finished its 3 epochs; ask for more with --epochs" in again.stderr


def test_a_run_that_is_being_trained_is_not_resumed(
    digits_fit: FitOutcome, ray_session: Settings, run_cli: RunCli
) -> None:
    with digits_fit.run.alone():
        done = run_cli(
            *("train", "resume", "digits-run", "--epochs", "99", "--json"),
            env=ray_session.environment(),
        )
    assert done.exit_code == 2
    assert done.json["error"].startswith("another command is training run digits-run")


def test_what_fails_after_training_is_a_failed_run_in_mlflow(
    ray_session: Settings, digits_dataset: Dataset
) -> None:
    store, tracking = Store(ray_session.store), Tracking(ray_session)
    config = get_recipe("digits").with_changes({"epochs": 1}, "test")
    config, dataset = prepare(config, store)

    def spoil(event: Event) -> None:
        if event["kind"] == "epoch":
            find_run(store, "spoiled").report_file.mkdir()

    with connect(ray_session) as session, pytest.raises(IsADirectoryError):
        fit(config, dataset, store, tracking, session, name="spoiled", listener=spoil)
    assert tracking.run("spoiled").status == "FAILED"


def test_an_interrupted_fit_says_how_to_go_on(
    ray_session: Settings, digits_dataset: Dataset
) -> None:
    process = start_fit("interrupted", ray_session.environment())
    run = wait_for_run(ray_session, "interrupted", process)
    wait_for_event(run, "start", process)
    process.send_signal(signal.SIGINT)
    stopped = finish(process)
    assert stopped.exit_code == 130
    assert "stopped; go on with: python -m train resume interrupted" in stopped.stderr
    # Neither a traceback nor a thread that goes on, for which Ray would start once more.
    assert not {"Traceback", "INFO", "WARNING"}.intersection(stopped.stderr.split()), stopped
    (record,) = [row for row in Tracking(ray_session).runs() if row.name == "interrupted"]
    assert record.status == "KILLED"


def test_one_workers_damaged_image_is_the_end_of_all_with_one_line(
    ray_session: Settings, run_cli: RunCli
) -> None:
    # Worker 1 meets it, in the second of four steps, while worker 0 waits to add gradients up.
    labels = make_photos(64)[1]
    row = int(epoch_order(labels, "shuffle", seed=0, epoch=0)[16 + 1])
    folder = Store(ray_session.store).datasets / "photos" / "1"
    write_photos(folder, {"train": 64, "val": 12, "test": 12}, train_replaced={row: b"no image"})
    done = run_cli(
        *("train", "fit", "digits", "--data", "photos", "--workers", "2", "--name", "damaged"),
        *("--set", "batch_size=16", "--set", "epochs=2"),
        env=ray_session.environment(),
    )
    assert done.exit_code == 2, done.stderr
    assert re.search(rf"{folder}/train-\d+\.arrow: row \d+: not an image; allowed", done.stderr)
    assert "Traceback" not in done.stderr
    (record,) = [row for row in Tracking(ray_session).runs() if row.name == "damaged"]
    assert record.status == "FAILED"


def test_fashion_mnist_from_debians_files(
    ray_session: Settings, run_cli: RunCli, need_debian_package: NeedPackage
) -> None:
    """One epoch of five; docs/benchmarks has all of them."""
    need_debian_package("dataset-fashion-mnist", path=str(DEBIAN_FASHION_MNIST))
    environment = ray_session.environment()
    ingested = run_cli(
        *("train", "ingest", "fashion-mnist", "--root", str(DEBIAN_FASHION_MNIST)),
        *("--name", "fashion-mnist", "--json"),
        env=environment,
    )
    assert ingested.exit_code == 0, ingested.stderr
    assert ingested.json["splits"] == {"train": 54000, "val": 6000, "test": 10000}
    fitted = run_cli(
        *("train", "fit", "fashion_mnist", "--workers", "2", "--set", "epochs=1", "--json"),
        env=environment,
    )
    assert fitted.exit_code == 0, fitted.stderr
    assert fitted.json["accuracy"] >= 0.86
    run = find_run(Store(ray_session.store), fitted.json["run"])
    evaluation = run.evaluation("test")
    assert evaluation is not None
    assert evaluation.images == 10000
    assert {row.support for row in evaluation.per_class} == {1000}


def start_fit(name: str, environment: dict[str, str]) -> Process:
    return start_module("train", *SLOW_RUN, "--name", name, "--json", env=environment)
