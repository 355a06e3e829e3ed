"""``cluster gc`` removes what nobody refers to, and nothing else."""

import contextlib
import fcntl
import json
import os
import sqlite3
import time
from pathlib import Path

import pytest
from datasets import write_dataset
from servers import S3Server
from stored import make_bundle, make_run, registered
from typer.testing import CliRunner

from cluster.__main__ import app
from cluster.atomic import locked
from cluster.dataset import dataset_versions
from cluster.errors import UserError
from cluster.inventory import read_served
from cluster.leftovers import DAY_S
from cluster.remote import Remote
from cluster.removal import carry_out
from cluster.retention import Plan, Policy, References, parse_age, plan
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking

STRICT = Policy(keep_runs=1, older_than_s=0, datasets=True)
LATER_S = 2 * DAY_S


@pytest.fixture(params=["folder", "object store"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store of each kind."""
    if request.param == "folder":
        return Store(tmp_path / "store")
    s3: S3Server = request.getfixturevalue("s3")
    return Store(tmp_path / "copies", Remote(s3.uri(f"raybridge/{tmp_path.name}")))


def tidy(
    store: Store, references: References, policy: Policy = STRICT, later_s: float = LATER_S
) -> Plan:
    """Plan as if that much time had passed, and do it."""
    planned = plan(store, references, policy, time.time() + later_s)
    assert carry_out(store, planned.removals, lambda: references.versions).failures == {}
    again = plan(store, references, policy, time.time() + later_s)
    assert again.removals == (), "what was removed is still there"
    return planned


def removed(planned: Plan) -> set[tuple[str, str]]:
    return {(removal.kind, removal.name) for removal in planned.removals}


def runs_in(store: Store) -> set[str]:
    return set(store.folder("runs").whole("run.json"))


def test_what_is_referred_to_stays(any_store: Store) -> None:
    for number in range(1, 6):
        make_run(any_store, number)
    served, champion = make_bundle(any_store, 1, "run-1"), make_bundle(any_store, 2, "run-2")
    old_version, orphan = make_bundle(any_store, 3, "run-3"), make_bundle(any_store, 4, "gone")
    references = References(
        versions=(registered(champion, "run-2", "champion"), registered(old_version, "run-3")),
        served={served.digest: "tiny"},
    )
    planned = tidy(any_store, references)
    assert planned.kept == {
        "run-1": "served as tiny",
        "run-2": "registered as tiny:1",
        "run-3": "registered as tiny:1",
        "run-5": "the newest",
    }
    assert runs_in(any_store) == set(planned.kept)
    assert {name for kind, name in removed(planned) if kind in ("run", "bundle")} == {
        "run-4",
        orphan.digest,
    }
    left = set(any_store.folder("bundles").whole("manifest.json"))
    assert left == {served.digest, champion.digest, old_version.digest}


def test_a_served_version_without_its_run(any_store: Store) -> None:
    served, fetched = make_bundle(any_store, 1, "elsewhere"), make_bundle(any_store, 2, "elsewhere")
    references = References((registered(fetched, "elsewhere"),), {served.digest: "tiny"})
    planned = tidy(any_store, references)
    assert removed(planned) == {("bundle", fetched.digest)}, "MLflow has it, and no alias asks"


def test_the_newest_and_the_young_stay(store: Store) -> None:
    for number in range(1, 5):
        make_run(store, number)
    assert len(tidy(store, References(), Policy(3, 0)).kept) == 3
    assert len(tidy(store, References(), Policy(1, 7 * DAY_S)).kept) == 3
    assert len(tidy(store, References(), Policy(1, 7 * DAY_S), later_s=8 * DAY_S).kept) == 1


def test_of_a_finished_run_only_the_newest_checkpoint_stays(any_store: Store) -> None:
    make_run(any_store, 1, finished=False)
    make_run(any_store, 2)
    assert removed(plan(any_store, References(), Policy())) == set(), "it ended just now"
    planned = tidy(any_store, References(), Policy())
    assert removed(planned) == {("checkpoints", "run-2")}
    assert planned.bytes == 2000
    folder = any_store.folder("runs")
    assert folder.child("run-2/checkpoints").names() == ["step-00000003.pt"]
    assert len(folder.child("run-1/checkpoints").names()) == 3, "it may be gone on with"


def test_a_run_at_work_stays(any_store: Store) -> None:
    for number in range(1, 5):
        make_run(any_store, number, finished=False)
    with locked(any_store.folder("runs/run-1").lock_file):
        kept = tidy(any_store, References(running=frozenset({"run-2"})), later_s=60).kept
    assert kept["run-1"] == "at work"
    assert kept["run-2"] == "at work, as MLflow says"
    assert set(kept) == {"run-1", "run-2", "run-4"}
    # MLflow takes a run that was killed for running, for ever.
    tidy(any_store, References(running=frozenset({"run-2"})))
    assert runs_in(any_store) == {"run-4"}


def test_of_a_registered_run_at_work_the_checkpoints_stay(store: Store) -> None:
    make_run(store, 1)
    version = registered(make_bundle(store, 1, "run-1"), "run-1", "champion")
    with locked(store.folder("runs/run-1").lock_file):
        assert removed(tidy(store, References((version,)))) == set()


def test_two_that_only_ask_do_not_take_each_other_for_a_run_at_work(store: Store) -> None:
    make_run(store, 1)
    make_run(store, 2)
    lock_file = store.folder("runs/run-1").lock_file
    lock_file.touch()
    with lock_file.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert removed(plan(store, References(), STRICT, time.time() + LATER_S)) == {
            ("run", "run-1"),
            ("checkpoints", "run-2"),
        }


def test_what_another_mlflow_recorded_stays(store: Store) -> None:
    for version in (1, 2):
        write_dataset(store, version=version, seed=version)
    make_run(store, 1, dataset="pets@1", mlflow_id="elsewhere")
    make_run(store, 2, dataset="pets@2", mlflow_id="here")
    make_bundle(store, 1, "run-1")
    known = References(recorded=frozenset({"here"}))
    planned = tidy(store, known, Policy(1, 0, datasets=True))
    assert planned.kept == {"run-1": "recorded in another MLflow", "run-2": "the newest"}
    assert removed(planned) == {("checkpoints", "run-2")}
    make_run(store, 3)
    with pytest.raises(UserError, match="none of the store's 2 recorded runs is in MLflow at u;"):
        plan(store, References(recorded=frozenset({"x"}), tracking_uri="u"), STRICT)


def test_datasets(any_store: Store) -> None:
    for version in range(1, 5):
        write_dataset(any_store, version=version, seed=version)
    make_run(any_store, 1, dataset="pets@2")
    make_bundle(any_store, 1, "run-1")  # Of shades@1.
    listed = plan(any_store, References(), Policy(1, 0), time.time() + LATER_S).listed
    assert {removal.name for removal in listed} == {"pets@1", "pets@3"}
    tidy(any_store, References())
    assert dataset_versions(any_store, "pets") == [2, 4]


def test_leftovers_of_killed_commands(store: Store) -> None:
    make_run(store, 1)
    old, young = store.runs / ".run-7.0123abcd.draft", store.root / ".x.json.0123abcd.draft"
    (old / "deep").mkdir(parents=True)
    (old / "deep" / "file").write_bytes(bytes(500))
    probes = store.root / "probes"
    probes.mkdir()
    # In a folder that is not ours, whatever it is called.
    strange = store.root / "photos" / ".run-7.0123abcd.draft"
    strange.mkdir(parents=True)
    files = [store.root / ".probe-0123abcd", probes / "0123456789abcdef.json", strange / "file"]
    for file in files:
        file.touch()
    for path in (*files, strange, old, old / "deep", old / "deep" / "file"):
        os.utime(path, (0, 0))
    (probes / "fedcba9876543210.json").touch()
    young.touch()
    planned = tidy(store, References(), Policy(), later_s=0)
    assert {name for _, name in removed(planned)} == {
        "runs/.run-7.0123abcd.draft",
        ".probe-0123abcd",
        "probes/0123456789abcdef.json",
    }
    assert not old.exists()
    assert young.exists()
    assert [file.name for file in probes.iterdir()] == ["fedcba9876543210.json"]


def test_uploads_that_were_cut_off(s3: S3Server, tmp_path: Path) -> None:
    prefix = f"raybridge/{tmp_path.name}"
    store = Store(tmp_path / "copies", Remote(s3.uri(prefix)))
    make_run(store, 1)
    assert store.remote is not None
    store.remote.write("bundles/abc/model.onnx", b"half")
    store.remote.write("probes/abc.json", b"{}")
    assert removed(tidy(store, References(), Policy())) == {
        ("checkpoints", "run-1"),
        ("leftover", "bundles/abc"),
        ("leftover", "probes/abc.json"),
    }
    assert not any(name.startswith(("bundles/", "probes/")) for name in s3.names(prefix))


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "{}", '{"versions": null}', '{"versions": [{}]}', '{"versions": ["x"]}'),
        '{"versions": [{"digest": null}]}',
    ],
)
def test_nothing_goes_while_a_served_document_is_damaged(store: Store, text: str) -> None:
    store.serving.mkdir(parents=True)
    (store.serving / "tiny.json").write_text(text)
    with pytest.raises(UserError, match=r"^serving/tiny\.json of the store is damaged"):
        read_served(store)


@pytest.mark.parametrize("text", ["{", "null", "{}", '{"created_at": "2026", "dataset": null}'])
def test_nothing_goes_while_a_run_is_damaged(store: Store, text: str) -> None:
    make_run(store, 1)
    (store.runs / "run-1" / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"^runs/run-1/run\.json of the store is damaged"):
        plan(store, References(), STRICT)


@pytest.mark.parametrize("text", ["{", "{}", '{"lineage": null}', '{"lineage": []}'])
def test_nothing_goes_while_a_manifest_is_damaged(store: Store, text: str) -> None:
    (store.bundles / "abc").mkdir(parents=True)
    (store.bundles / "abc" / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"^bundles/abc/manifest\.json of the store is damaged"):
        plan(store, References(), STRICT)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 30 * DAY_S), ("12h", 43200), ("1.5w", 907200)]
)
def test_ages(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["30", "d", "-1d", "1y"])
def test_no_ages(text: str) -> None:
    with pytest.raises(UserError, match="expected a number with d, h or w"):
        parse_age(text)


def test_the_command(settings: Settings) -> None:
    store = Store(settings.store)
    for number in range(1, 4):
        make_run(store, number)
    Tracking(settings).register("tiny", make_bundle(store, 1, "run-1"), run_id=None)
    ask = ["gc", "--keep-runs", "1", "--older-than", "0d", "--json"]
    shown = CliRunner().invoke(app, ask, env=settings.environment())
    assert shown.exit_code == 0, shown.stderr
    report = json.loads(shown.stdout)
    assert [one["name"] for one in report["removable"]] == ["run-2"]
    assert report["kept_runs"]["run-1"] == "registered as tiny:1"
    assert report["removed"] == []
    assert "nothing was removed; add --yes" in shown.stderr
    assert runs_in(store) == {"run-1", "run-2", "run-3"}
    done = CliRunner().invoke(app, [*ask, "--yes"], env=settings.environment())
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["removed"] == report["removable"]
    assert runs_in(store) == {"run-1", "run-3"}


def test_the_command_with_another_mlflow(settings: Settings, tmp_path: Path) -> None:
    store = Store(settings.store)
    log = Tracking(settings).start_run("run-1", {}, {})
    make_run(store, 1, mlflow_id=log.run_id)
    make_run(store, 2, mlflow_id=log.run_id)
    ask = ["gc", "--keep-runs", "1", "--older-than", "0d", "--yes", "--json"]
    empty = settings.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/empty.db"})
    said = (
        f"none of the store's 2 recorded runs is in MLflow at {empty.tracking_uri}; "
        "check MLFLOW_TRACKING_URI"
    )
    database = tmp_path / "empty.db"
    done = CliRunner().invoke(app, ask, env=empty.environment())
    assert (type(done.exception), str(done.exception)) == (UserError, said)
    assert not database.exists(), "gc made a registry"
    assert Tracking(empty).models() == []
    done = CliRunner().invoke(app, ask, env=empty.environment())
    assert (type(done.exception), str(done.exception)) == (UserError, said)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT name FROM experiments").fetchall() == [("Default",)]
    assert runs_in(store) == {"run-1", "run-2"}
