"""``python -m cluster`` where it needs no cluster: help, errors, recorded runs and models."""

import json
import sys
from pathlib import Path

import pytest
from bundles import write_bundle
from harness import RunCli, run_command
from typer.testing import CliRunner

from cluster.__main__ import app
from cluster.errors import UserError
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking

COMMANDS = [
    *("up", "down", "status", "submit", "doctor", "manifest", "gc", "runs", "models"),
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store with two runs and one model of two versions."""
    folder = tmp_path_factory.mktemp("recorded")
    settings = Settings(store=folder / "store", tracking_uri=f"sqlite:///{folder}/store/mlflow.db")
    tracking = Tracking(settings)
    log = tracking.start_run("digits-1", {"optim.lr": 0.1}, {"recipe": "digits"})
    log.metrics({"test/accuracy": 0.98, "train/loss": 0.05, "val/ece": 0.01}, step=1)
    log.finish("FINISHED")
    other = tracking.start_run("digits-2", {"optim.lr": 0.2, "seed": 0}, {})
    other.metrics({"test/accuracy": 0.9}, step=1)
    info: dict[str, object] = {
        "dataset": "digits@2",
        "dataset_digest": "ab" * 32,
        "commit": None,
        "libraries": {},
    }
    Store(settings.store).folder("runs/digits-2").write_json("run.json", info)
    tracking.register("digits", write_bundle(folder / "a", seed=1), run_id=log.run_id)
    tracking.register("digits", write_bundle(folder / "b", seed=2), run_id=log.run_id)
    return settings


@pytest.mark.parametrize("module", ["cluster", "train", "serve"])
def test_nothing_heavy_is_imported_before_it_is_known_what_to_do(module: str) -> None:
    heavy = ("ray", "torch", "mlflow", "pandas", "onnxruntime")
    program = f"import sys, {module}.__main__; print([n for n in {heavy!r} if n in sys.modules])"
    assert run_command([sys.executable, "-c", program]).stdout.strip() == "[]"


def test_help_names_every_command(run_cli: RunCli) -> None:
    result = run_cli("cluster", "--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(run_cli: RunCli, command: str) -> None:
    result = run_cli("cluster", command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


@pytest.mark.parametrize("command", [["status"], ["submit", "--", "true"]])
def test_no_cluster(run_cli: RunCli, tmp_path: Path, command: list[str]) -> None:
    result = run_cli("cluster", *command, env={"RAY_TMPDIR": str(tmp_path), "RAY_ADDRESS": ""})
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == (
        "error: no Ray cluster is running here; start one with `python -m cluster up` or "
        "`ray start --head`"
    )


def test_up_is_not_private(run_cli: RunCli, tmp_path: Path) -> None:
    env = {"RAYBRIDGE_STORE": str(tmp_path), "RAY_ADDRESS": "local"}
    result = run_cli("cluster", "up", env=env)
    assert result.exit_code == 2
    assert "error: RAY_ADDRESS=local asks for a private cluster" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_down_with_nothing_up(run_cli: RunCli, tmp_path: Path) -> None:
    result = run_cli("cluster", "down", "--json", env={"RAYBRIDGE_STORE": str(tmp_path)})
    assert result.exit_code == 0
    assert result.json == {"stopped": None}
    assert "nothing to stop" in result.stderr


def test_a_variable_that_is_none(run_cli: RunCli) -> None:
    result = run_cli("cluster", "submit", "--env", "FOO", "--", "true")
    assert result.exit_code == 2
    assert "error: --env FOO: expected NAME=VALUE" in result.stderr


def test_runs(run_cli: RunCli, recorded: Settings) -> None:
    result = run_cli("cluster", "runs", "--json", env=recorded.environment())
    assert result.exit_code == 0
    newest, run = result.json["runs"]
    assert newest["status"] == "RUNNING"
    assert run["name"] == "digits-1"
    assert run["status"] == "FINISHED"
    assert run["metrics"]["test/accuracy"] == 0.98
    assert "test/accuracy 0.98" in result.stderr


def test_one_run(run_cli: RunCli, recorded: Settings) -> None:
    result = run_cli("cluster", "runs", "digits-1", env=recorded.environment())
    assert result.exit_code == 0
    for text in ("digits-1", "finished", "test/accuracy", "0.98", "optim.lr", "recipe"):
        assert text in result.stdout


def test_a_run_that_does_not_exist(run_cli: RunCli, recorded: Settings) -> None:
    result = run_cli("cluster", "runs", "digits-9", "--json", env=recorded.environment())
    assert result.exit_code == 2
    assert result.json["exit_code"] == 2
    assert "no run 'digits-9' is recorded; the newest: digits-2, digits-1" in result.stderr


def test_runs_side_by_side(run_cli: RunCli, recorded: Settings) -> None:
    result = run_cli(
        *("cluster", "runs", "--compare", "digits-1", "digits-2", "--json"),
        env=recorded.environment(),
    )
    assert result.exit_code == 0, result.stderr
    found = result.json
    assert found["runs"] == ["digits-1", "digits-2"]
    assert found["parameters"] == {"optim.lr": ["0.1", "0.2"], "seed": [None, "0"]}
    assert found["metrics"]["test/accuracy"] == [0.98, 0.9]
    assert found["facts"]["status"] == ["finished", "running"]
    assert found["facts"]["data digest"] == [None, "ab" * 32]
    assert found["facts"]["commit"] == [None, "not from a checkout"]
    assert "abababababab" in result.stderr


@pytest.mark.parametrize("names", [["--compare", "digits-1"], ["digits-1", "digits-2"]])
def test_how_runs_are_laid_side_by_side(names: list[str], recorded: Settings) -> None:
    result = CliRunner().invoke(app, ["runs", *names], env=recorded.environment())
    assert isinstance(result.exception, UserError)
    assert "runs --compare" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits-1", "--limit", "5"], "--limit is for the list of runs"),
        (["--compare", "digits-1", "digits-2", "--limit", "20"], "--limit is for the list of runs"),
        (["--compare", "digits-1", "digits-1"], "a run is named twice: digits-1 digits-1"),
    ],
)
def test_options_that_would_do_nothing(
    arguments: list[str], message: str, recorded: Settings
) -> None:
    result = CliRunner().invoke(app, ["runs", *arguments], env=recorded.environment())
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_as_many_runs_as_asked_for(recorded: Settings) -> None:
    arguments = ["runs", "--limit", "1", "--json"]
    result = CliRunner().invoke(app, arguments, env=recorded.environment())
    assert [run["name"] for run in json.loads(result.stdout)["runs"]] == ["digits-2"]


def test_models(run_cli: RunCli, recorded: Settings) -> None:
    result = run_cli("cluster", "models", "--json", env=recorded.environment())
    assert result.exit_code == 0
    (model,) = result.json["models"]
    assert model["name"] == "digits"
    assert [version["version"] for version in model["versions"]] == [2, 1]
    assert model["versions"][1]["aliases"] == ["champion"]


def test_one_model_and_what_it_comes_from(run_cli: RunCli, recorded: Settings) -> None:
    result = run_cli("cluster", "models", "digits", "--json", env=recorded.environment())
    assert result.exit_code == 0, result.stderr
    (model,) = result.json["models"]
    newest, first = model["versions"]
    assert (newest["version"], first["version"]) == (2, 1)
    assert first["aliases"] == ["champion"]
    assert first["lineage"]["dataset"] == "shades@1"
    assert first["lineage"]["dataset_digest"] == "0" * 64
    assert first["parity"] == {"images": 5, "labels_equal": True, "max_abs_diff": 1e-6}
    for text in ("@champion", "shades@1 000000000000", "1.0e-06 over 5, labels equal"):
        assert text in result.stderr


def test_a_version_whose_files_are_gone_is_listed_all_the_same(recorded: Settings) -> None:
    tracking = Tracking(recorded)
    (manifest,) = recorded.store.rglob(
        f"bundle-{tracking.resolve('digits:1').digest[:16]}/manifest.json"
    )
    moved = manifest.rename(manifest.with_suffix(".gone"))
    try:
        arguments = ["models", "digits", "--json"]
        result = CliRunner().invoke(app, arguments, env=recorded.environment())
    finally:
        moved.rename(manifest)
    assert result.exit_code == 0, result.exception
    newest, first = json.loads(result.stdout)["models"][0]["versions"]
    assert newest["lineage"] is not None
    assert (first["lineage"], first["run"]) == (None, "tiny-1")
    assert "the manifest of digits:1 cannot be had" in result.stderr


def test_a_model_that_does_not_exist(run_cli: RunCli, recorded: Settings) -> None:
    result = run_cli("cluster", "models", "letters", env=recorded.environment())
    assert result.exit_code == 2
    assert "error: no model 'letters' in the registry" in result.stderr


def test_nothing_recorded_yet(run_cli: RunCli, tmp_path: Path) -> None:
    env = {"RAYBRIDGE_STORE": str(tmp_path / "store"), "MLFLOW_TRACKING_URI": ""}
    assert "no runs yet" in run_cli("cluster", "runs", env=env).stdout
    assert "no models yet" in run_cli("cluster", "models", env=env).stdout
