"""The whole way with nothing in common but an object store and an MLflow server.

Each command has a cache of its own, as if it were typed on another machine; workers and replicas
use the session's home.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import write_bundle
from harness import CliResult, RunCli, free_port
from servers import S3Server, mlflow_server

from cluster.dataset import Dataset
from cluster.errors import UserError
from cluster.images import encode_png
from cluster.remote import Remote
from cluster.settings import Settings
from cluster.store import Store
from cluster.tracking import Tracking
from serve.client import Client
from train.runs import find_run

PREFIX = "raybridge/whole-way"


def test_from_data_to_an_answer(
    s3: S3Server,
    mlflow_address: str,
    ray_session: Settings,
    run_cli: RunCli,
    tmp_path: Path,
) -> None:
    uri = s3.uri(PREFIX)

    def done(machine: str, *args: str) -> CliResult:
        environment = {
            "RAYBRIDGE_STORE": uri,
            "MLFLOW_TRACKING_URI": mlflow_address,
            "RAYBRIDGE_CACHE": str(tmp_path / machine),
        }
        result = run_cli(*args, "--json", env=environment)
        assert result.exit_code == 0, result.stderr
        return result

    done("a", "train", "ingest", "digits", "--name", "digits")
    fitted = done(
        "b",
        *("train", "fit", "digits", "--workers", "2", "--set", "epochs=2", "--name", "far"),
        *("--register", "digits"),
    ).json
    assert fitted["failures"] == {"checkpoints": 0, "events": 0, "tensorboard": 0, "tracking": 0}
    assert {name for name in s3.names(f"{PREFIX}/runs/far") if "/" not in name} == {
        *("config.json", "run.json", "result.json", "events.jsonl", "report.html", "weights.pth"),
        *("logits-val.safetensors", "logits-test.safetensors"),
        *("evaluation-val.json", "evaluation-test.json"),
    }
    evaluated = done("c", "train", "evaluate", "far").json
    assert evaluated["accuracy"] == fitted["accuracy"]
    resumed = done("d", "train", "resume", "latest", "--epochs", "3", "--register", "digits")
    assert resumed.json["steps"] == fitted["steps"] * 3 // 2
    assert "going on from step" in resumed.stderr
    assert resumed.json["version"] == 2

    port = str(free_port())
    deployed = done("e", "serve", "deploy", "digits:1", "--port", port).json
    try:
        store = Store(tmp_path / "f", Remote(uri))
        split = Dataset.find(store, "digits").split("test")
        logits = find_run(store, "far").logits("test")
        with Client(deployed["url"]) as client:
            answer = client.classify("digits", encode_png(split.take(slice(0, 1))[0]))
            assert answer.version == "1"
            rolled = done("g", "serve", "deploy", "digits:2").json
            assert rolled["action"] == "rolled out"
            answer = client.classify("digits", encode_png(split.take(slice(0, 1))[0]))
            assert (answer.version, answer.index) == ("2", int(logits[0].argmax()))
            with s3.silent():
                again = client.classify("digits", encode_png(split.take(slice(0, 1))[0]))
            assert again.index == answer.index
    finally:
        done("e", "serve", "down")
    assert s3.names(f"{PREFIX}/serving") == set()


def test_a_tracking_server_that_goes_away(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mlflow_server() as address:
        settings = Settings(store=tmp_path, tracking_uri=address, remote=s3.uri("raybridge/gone"))
        tracking = Tracking(settings)
        log = tracking.start_run("gone-1", {}, {})
        version = tracking.register("gone", write_bundle(tmp_path / "a"), run_id=log.run_id)
        assert tracking.fetch_bundle(version).digest == version.digest
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    calls: list[Callable[[], object]] = [
        lambda: tracking.start_run("gone-2", {}, {}),
        lambda: tracking.resume_run(log.run_id),
        lambda: tracking.register("gone", write_bundle(tmp_path / "b", seed=1), run_id=None),
        lambda: tracking.set_alias(version, "challenger"),
        lambda: tracking.resolve("gone@champion"),
        lambda: tracking.run("gone-1"),
        lambda: tracking.runs(),
        lambda: tracking.models(),
        lambda: tracking.versions("gone"),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"MLflow at .* does not answer") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert tracking.fetch_bundle(version).digest == version.digest, "it is in the store"
    log.metrics({"loss": 1.0}, step=1)
    assert log.failures == 1
