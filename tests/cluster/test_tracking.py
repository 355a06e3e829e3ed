"""The registry, on a real MLflow over SQLite."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bundles import write_bundle

from cluster.bundle import Bundle
from cluster.errors import BundleError, NotFoundError, RaybridgeError, UserError
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import CHALLENGER, CHAMPION, Tracking


@pytest.fixture(scope="module")
def module_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("tracking")
    return settings_at(folder)


@pytest.fixture(scope="module")
def tracking(module_settings: Settings) -> Tracking:
    """Shared by the module: MLflow takes seconds to make its tables. Tests use names apart."""
    return Tracking(module_settings)


def test_the_first_version_becomes_champion(tracking: Tracking, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a", run="first-run")
    version = tracking.register("first", bundle, run_id=None)
    assert version.reference == "first:1"
    assert version.aliases == (CHAMPION,)
    assert version.digest == bundle.digest
    assert version.run == "first-run"
    assert version.metrics == {"test/accuracy": 0.9}
    assert version.created_ms > 0
    second = tracking.register("first", write_bundle(tmp_path / "b", seed=1), run_id=None)
    assert second.reference == "first:2"
    assert second.aliases == ()


def test_registering_again_is_no_new_version(tracking: Tracking, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a")
    first = tracking.register("again", bundle, run_id=None)
    second = tracking.register("again", bundle, run_id=None, aliases=(CHALLENGER,))
    assert second.version == first.version
    assert second.aliases == (CHALLENGER, CHAMPION)
    assert len(tracking.versions("again")) == 1


def test_aliases_move(tracking: Tracking, tmp_path: Path) -> None:
    one = tracking.register("moving", write_bundle(tmp_path / "a", seed=1), run_id=None)
    two = tracking.register(
        "moving", write_bundle(tmp_path / "b", seed=2), run_id=None, aliases=(CHALLENGER,)
    )
    assert tracking.resolve("moving") == one
    assert tracking.resolve("moving@challenger") == two
    assert tracking.resolve("moving:2") == two
    moved = tracking.set_alias(two, CHAMPION)
    assert moved.aliases == (CHALLENGER, CHAMPION)
    assert tracking.resolve("moving").version == 2
    assert tracking.resolve("moving:1").aliases == ()
    listed = tracking.versions("moving")
    assert [(version.version, version.aliases) for version in listed] == [
        (2, (CHALLENGER, CHAMPION)),
        (1, ()),
    ]
    assert ("moving", listed) in tracking.models()


def test_a_model_that_somebody_else_registered(
    tracking: Tracking, module_settings: Settings, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    uri = module_settings.tracking_uri
    client = MlflowClient(uri, registry_uri=uri)
    for name in ("bob's", "empty"):
        client.create_registered_model(name)
    client.create_model_version("bob's", source=tmp_path.as_uri())
    own = tracking.register("own", write_bundle(tmp_path / "a"), run_id=None)
    listed = dict(tracking.models())
    assert [version.digest for version in listed["bob's"]] == [""]
    assert (listed["empty"], listed["own"]) == ([], [own])
    with pytest.raises(UserError, match=r'model name "bob\'s": use 1-64 letters'):
        tracking.versions("bob's")


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("nobody", NotFoundError, "no model 'nobody' in the registry; there are: .*known"),
        ("known@rookie", NotFoundError, "has no alias @rookie; versions: 1 @champion"),
        ("known:9", NotFoundError, "has no version 9; versions: 1 @champion"),
        ("known:new", UserError, "expected MODEL, MODEL@ALIAS or MODEL:VERSION"),
        ("known@a@b", UserError, "expected MODEL"),
        ("", UserError, "expected MODEL"),
        ("a' OR 1=1", UserError, "use 1-64 letters"),
    ],
)
def test_references_that_lead_nowhere(
    tracking: Tracking,
    tmp_path: Path,
    reference: str,
    error: type[UserError],
    message: str,
) -> None:
    tracking.register("known", write_bundle(tmp_path / "a"), run_id=None)
    with pytest.raises(error, match=message):
        tracking.resolve(reference)


def test_a_bundle_is_fetched_once_and_verified(
    tracking: Tracking, module_settings: Settings, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "a", seed=3)
    version = tracking.register("fetched", bundle, run_id=None)
    shutil.rmtree(bundle.path)
    fetched = tracking.fetch_bundle(version)
    assert fetched.digest == bundle.digest
    assert fetched.path == Store(module_settings.store).bundles / bundle.digest
    changed_at = fetched.path.stat().st_mtime_ns
    manifest = fetched.path / "manifest.json"
    os.utime(manifest, (0, 0))
    assert tracking.fetch_bundle(version).path.stat().st_mtime_ns == changed_at
    assert manifest.stat().st_mtime > 0, "gc would take it for old"


def test_versions_of_one_run_keep_their_own_files(
    tracking: Tracking, module_settings: Settings, tmp_path: Path
) -> None:
    log = tracking.start_run("twice", {}, {})
    bundles = [write_bundle(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    versions = [tracking.register("twice", bundle, run_id=log.run_id) for bundle in bundles]
    shutil.rmtree(Store(module_settings.store).bundles, ignore_errors=True)
    assert [tracking.fetch_bundle(version).digest for version in versions] == [
        bundle.digest for bundle in bundles
    ]


def test_an_alias_that_mlflow_keeps_for_itself(tracking: Tracking, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a", seed=3)
    with pytest.raises(UserError, match="alias 'latest' of reserved:1"):
        tracking.register("reserved", bundle, run_id=None, aliases=("latest",))


def test_a_copy_that_was_changed_is_fetched_again(tracking: Tracking, tmp_path: Path) -> None:
    version = tracking.register("spoiled", write_bundle(tmp_path / "a", seed=4), run_id=None)
    fetched = tracking.fetch_bundle(version)
    (fetched.path / "model.onnx").write_bytes(b"other")
    assert Bundle.open(tracking.fetch_bundle(version).path).digest == version.digest
    shutil.rmtree(fetched.path)
    shutil.copytree(write_bundle(tmp_path / "b", seed=6).path, fetched.path)
    assert Bundle.open(tracking.fetch_bundle(version).path).digest == version.digest


def test_a_bundle_that_was_changed_in_the_registry(
    tracking: Tracking, module_settings: Settings, tmp_path: Path
) -> None:
    version = tracking.register("swapped", write_bundle(tmp_path / "a", seed=5), run_id=None)
    (kept,) = module_settings.store.glob(f"mlartifacts/**/bundle-{version.digest[:16]}")
    (kept / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="was changed"):
        tracking.fetch_bundle(version)
    shutil.rmtree(kept)
    shutil.copytree(write_bundle(tmp_path / "b", seed=6).path, kept)
    with pytest.raises(RaybridgeError, match="not the one that was registered"):
        tracking.fetch_bundle(version)
    bundles = Store(module_settings.store).folder("bundles")
    assert version.digest not in bundles.folders()


def test_runs(tracking: Tracking, tmp_path: Path) -> None:
    log = tracking.start_run("walk-1", {"epochs": 2}, {"recipe": "digits"})
    log.metrics({"val/accuracy": 0.5}, step=1)
    log.metrics({"val/accuracy": 0.75}, step=2)
    assert tracking.run("walk-1").status == "RUNNING"
    assert tracking.run("walk-1").seconds is None
    artifact = tmp_path / "report.html"
    artifact.write_text("<p>")
    log.artifact(artifact)
    log.finish("FINISHED")
    assert log.failures == 0
    run = tracking.run("walk-1")
    assert run == tracking.run(log.run_id)
    assert run.status == "FINISHED"
    assert run.metrics == {"val/accuracy": 0.75}
    assert run.params == {"epochs": "2"}
    assert run.tags["recipe"] == "digits"
    assert run.seconds is not None
    assert run.seconds >= 0
    assert run in tracking.runs()
    assert len(tracking.runs(limit=1)) == 1
    other = tracking.start_run("walk-2", {}, {})
    assert tracking.running() & {"walk-1", "walk-2"} == {"walk-2"}
    tracking._client.delete_run(other.run_id)
    assert {log.run_id, other.run_id} <= tracking.run_ids(), "one that was deleted is known still"


def test_a_run_goes_on(tracking: Tracking) -> None:
    log = tracking.start_run("long-1", {}, {})
    log.finish("FAILED")
    again = tracking.resume_run(log.run_id)
    again.metrics({"loss": 1.0}, step=3)
    again.finish("FINISHED")
    assert tracking.run("long-1").status == "FINISHED"
    assert tracking.run("long-1").metrics == {"loss": 1.0}


@pytest.mark.parametrize("name", ["nothing", "it's", ""])
def test_a_run_that_does_not_exist(tracking: Tracking, name: str) -> None:
    with pytest.raises(NotFoundError, match=r"no run .* is recorded; the newest: "):
        tracking.run(name)


def test_a_bundle_joins_the_run_that_made_it(tracking: Tracking, tmp_path: Path) -> None:
    log = tracking.start_run("maker-1", {}, {})
    log.finish("FINISHED")
    before = len(tracking.runs())
    tracking.register("made", write_bundle(tmp_path / "a", seed=7), run_id=log.run_id)
    assert len(tracking.runs()) == before


def test_failed_writes_are_counted_and_training_goes_on(tracking: Tracking) -> None:
    log = tracking.start_run("unlucky-1", {}, {})
    log.run_id = "no-such-run"
    log.metrics({"loss": 1.0}, step=1)
    log.finish("FINISHED")
    assert log.failures == 2
    assert "no-such-run" in log.last_failure


def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = Settings(store=tmp_path, tracking_uri="http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"MLflow at http://127.0.0.1:9 does not answer"):
        Tracking(settings)


@pytest.mark.program
def test_commands_that_start_together_share_a_new_file(tmp_path: Path) -> None:
    both = [open_elsewhere(tmp_path) for _ in range(2)]
    assert [(process.communicate()[1], process.returncode) for process in both] == [("", 0)] * 2


@pytest.mark.program
def test_a_command_killed_while_it_makes_the_file_is_in_nobodys_way(tmp_path: Path) -> None:
    process = open_elsewhere(tmp_path)
    while not list(tmp_path.glob(".mlflow.db.*/mlflow.db")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / "mlflow.db").exists()
    assert Tracking(settings_at(tmp_path)).runs() == []


def settings_at(folder: Path) -> Settings:
    return Settings(store=folder, tracking_uri=f"sqlite:///{folder}/mlflow.db")


def open_elsewhere(folder: Path) -> "subprocess.Popen[str]":
    """Connect to MLflow in a process of its own."""
    opening = (
        "from pathlib import Path; from cluster.settings import Settings; "
        f"from cluster.tracking import Tracking; Tracking({settings_at(folder)!r})"
    ).replace("PosixPath", "Path")
    return subprocess.Popen([sys.executable, "-c", opening], stderr=subprocess.PIPE, text=True)
