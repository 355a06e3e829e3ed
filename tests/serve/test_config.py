"""What a user says about serving, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.errors import ConfigError, UserError
from serve.__main__ import app
from serve.config import ServeConfig, resolve_config


def test_the_last_word_wins(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("[replica]\nthreads = 2\nmax_queued = 7\n[http]\nport = 9000\n")
    base = ServeConfig().with_changes({"replica": {"engine": "openvino", "threads": 9}}, "base")
    config = resolve_config(
        base,
        file,
        ["replica.threads=3", "scaling.max_replicas=5"],
        {"replica": {"threads": 4, "max_batch_size": None}, "http": {"host": None}},
    )
    assert config.replica.threads == 4
    assert config.replica.max_queued == 7
    assert config.replica.engine == "openvino"
    assert config.scaling.max_replicas == 5
    assert config.http.port == 9000
    assert config.replica.max_batch_size == ServeConfig().replica.max_batch_size


@pytest.mark.parametrize(
    ("table", "field", "value", "message"),
    [
        ("replica", "threads", 0, "replica.threads=0"),
        ("replica", "engine", "tensorrt", "'onnxruntime' or 'openvino'"),
        ("replica", "max_batch_size", -1, "replica.max_batch_size=-1"),
        ("replica", "batch_wait_ms", -0.5, "replica.batch_wait_ms"),
        ("replica", "max_body_bytes", 1, "replica.max_body_bytes=1"),
        ("scaling", "min_replicas", 3, "min_replicas=3 is more than max_replicas=2"),
        ("scaling", "target_ongoing_requests", 0, "target_ongoing_requests"),
        ("http", "port", 70_000, "http.port=70000"),
        ("http", "host", "", "http.host"),
    ],
)
def test_a_wrong_value_is_named(table: str, field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config(ServeConfig(), None, [], {table: {field: value}})
    assert message in str(caught.value)


def test_a_wrong_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no field replica\.thread; did you mean threads"):
        resolve_config(ServeConfig(), None, ["replica.thread=1"], {})


@pytest.mark.parametrize("command", ["deploy", "predict", "status", "down"])
def test_help_is_worth_reading(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert "--json" in shown.output
    assert len(shown.output) > 500


def test_predict_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "no.png")])
    assert isinstance(done.exception, UserError)
    assert "no.png: No such file" in str(done.exception)
