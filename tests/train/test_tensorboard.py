"""TensorBoard's event files of a run, read back frame by frame."""

import resource
from pathlib import Path

import pytest
from finished import make_history
from servers import S3Server
from tfrecords import read_records, scalars

from cluster.events import Event, make_event
from cluster.remote import Remote
from cluster.store import Folder, Store
from train.tensorboard import EPOCH_TAGS, TensorBoardLog

HISTORY = make_history(3, steps_per_epoch=10)


def epoch(number: int) -> Event:
    return make_event("epoch", HISTORY[number - 1])


def progress(step: int, loss: float = 0.5) -> Event:
    figures = {"step": step, "epoch": 1, "loss": loss, "accuracy": 0.25, "lr": 0.125}
    return make_event("progress", {**figures, "total_steps": 30, "eta_s": 1.0})


def start(step: int) -> Event:
    return make_event("start", {"step": step, "total_steps": 30, "workers": []})


def write(folder: Folder, *events: Event) -> TensorBoardLog:
    log = TensorBoardLog(folder)
    for event in events:
        log.write(event)
    log.close()
    return log


def test_curves_are_read_back(tmp_path: Path) -> None:
    log = write(Folder(tmp_path), start(0), progress(4), epoch(1), epoch(2), epoch(3))
    assert log.failures == 0
    (file,) = tmp_path.iterdir()
    assert ".tfevents." in file.name, "TensorBoard looks for this"
    assert next(read_records(file)).file_version == "brain.Event:2"
    found = scalars(tmp_path)
    assert set(found) == {*EPOCH_TAGS, "progress/loss", "progress/accuracy", "progress/lr"}
    for tag, key in EPOCH_TAGS.items():
        assert found[tag] == pytest.approx({int(one["step"]): one[key] for one in HISTORY})
    assert found["progress/loss"] == {4: 0.5}


def test_what_workers_told_that_died_is_passed_over(tmp_path: Path) -> None:
    events = (start(0), epoch(1), progress(14, 9.0), progress(18, 9.0), start(10), progress(14))
    write(Folder(tmp_path), *events, epoch(2))
    found = scalars(tmp_path)
    assert found["progress/loss"] == {14: 0.5}
    assert set(found["loss/val"]) == {10, 20}, "the epoch that the checkpoint ended with stays"


def test_a_run_that_goes_on_adds_to_its_curves(tmp_path: Path) -> None:
    write(Folder(tmp_path), start(0), epoch(1), progress(15, 9.0))
    write(Folder(tmp_path), start(10), epoch(2))
    assert len(list(tmp_path.iterdir())) == 2
    found = scalars(tmp_path)
    assert set(found["loss/train"]) == {10, 20}
    assert found["progress/loss"] == {}


def test_writes_that_fail_are_counted(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    log = write(Folder(tmp_path / "tensorboard"), start(0), epoch(1))
    assert log.failures == 1
    assert "tensorboard" in log.last_failure


def test_writes_to_a_full_disk_are_counted(tmp_path: Path) -> None:
    log = TensorBoardLog(Folder(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow any more: as on a full disk, every write raises an OSError.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        log.write(epoch(1))
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert log.failures == 2
    assert "File too large" in log.last_failure


def test_another_host_sees_the_curves(s3: S3Server, tmp_path: Path) -> None:
    uri = s3.uri(f"raybridge/{tmp_path.name}")
    here, there = (Store(tmp_path / host, Remote(uri)) for host in ("here", "there"))
    write(here.folder("runs/one/tensorboard"), start(0), epoch(1))
    seen = there.folder("runs/one/tensorboard")
    for name in seen.names():
        seen.pull(name)
    assert set(scalars(seen.path)["loss/val"]) == {10}
