"""Nothing half-written is ever visible in the store."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from harness import ROOT

from cluster.atomic import locked, publishing, write_json_atomic, write_text_atomic
from cluster.errors import ConfigError, UserError
from cluster.settings import Settings
from cluster.store import Store, check_name


def names(folder: Path) -> set[str]:
    return {child.name for child in folder.iterdir()}


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "version"
    with publishing(target) as draft:
        (draft / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert names(target.parent) == {"version"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_appears_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with publishing(tmp_path / "version") as draft:
            (draft / "a").write_text("1")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == set()


def test_an_existing_target_is_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "version"
    target.mkdir()

    def publish() -> None:
        with publishing(target) as draft:
            (draft / "a").write_text("1")

    with pytest.raises(FileExistsError):
        publish()
    assert names(target) == set()
    assert names(tmp_path) == {"version"}


def test_one_of_two_writers_wins(tmp_path: Path) -> None:
    target = tmp_path / "version"
    barrier = threading.Barrier(4)
    lost = []

    def publish(number: int) -> None:
        barrier.wait()
        try:
            with publishing(target) as draft:
                (draft / "a").write_text(str(number))
                (draft / "b").write_text(str(number))
        except (FileExistsError, OSError):
            lost.append(number)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 3
    assert (target / "a").read_text() == (target / "b").read_text()
    assert names(tmp_path) == {"version"}


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    texts = {letter * 100_000 for letter in "ab"}
    write_text_atomic(file, "a" * 100_000)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for text in sorted(texts):
                write_text_atomic(file, text)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {file.read_text() for _ in range(200)}
    finally:
        stop.set()
        writer.join()
    assert seen <= texts
    assert names(tmp_path) == {"state.json"}


def test_json(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "new" / "a.json", {"b": [1], "a": None})
    assert (tmp_path / "new" / "a.json").read_text() == (
        '{\n  "b": [\n    1\n  ],\n  "a": null\n}\n'
    )


@pytest.mark.parametrize("name", ["a", "digits-3", "A.b_c", "0", "x" * 64])
def test_names(name: str) -> None:
    assert check_name("model", name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-a", "a/b", "a b", "a@b", "a:1", "é", "x" * 65, "a\n"]
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"model name .*use 1-64 letters"):
        check_name("model", name)


def test_making_a_store_touches_nothing(tmp_path: Path) -> None:
    store = Store.open(f"{tmp_path}/store")
    assert store.runs == tmp_path / "store" / "runs"
    assert names(tmp_path) == set()
    store.ensure_writable()
    assert names(tmp_path / "store") == set()


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written: .*RAYBRIDGE_STORE"):
        Store(tmp_path / "file" / "store").ensure_writable()


def test_settings_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYBRIDGE_STORE", "here")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = Settings.from_env()
    assert settings.store == tmp_path / "here"
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/here/mlflow.db"


def test_settings_survive_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(store=tmp_path, tracking_uri="http://127.0.0.1:5000")
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.from_env() == settings


def test_settings_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYBRIDGE_STORE", raising=False)
    assert Settings.from_env().store == Path(os.environ["HOME"]) / ".local/share/raybridge"


def test_a_file_uri_is_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYBRIDGE_STORE", (tmp_path / "a b").as_uri())
    settings = Settings.from_env()
    assert (settings.store, settings.remote) == (tmp_path / "a b", None)


LOCK = """
import sys, time
from pathlib import Path
from cluster.errors import UserError
from cluster.store import locked
with locked(Path(sys.argv[1]), UserError("somebody is inside")):
    print("inside", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "deep" / ".lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(file)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"inside\n"
        with pytest.raises(UserError, match="busy"), locked(file, UserError("busy")):
            pass
        later = threading.Timer(0.5, holder.kill)
        later.start()
        with locked(file):  # Waits; the lock of who is killed is free.
            assert holder.wait() != 0
    finally:
        holder.kill()
        holder.communicate()
