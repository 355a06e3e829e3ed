"""``serve load`` as a user types it, against the real application over a real socket."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from bundles import IMAGE, write_bundle
from harness import free_port
from typer.testing import CliRunner, Result

from cluster.errors import UserError
from cluster.images import encode_png
from cluster.store import Store
from serve.__main__ import app
from serve.app import ModelApp
from serve.config import ReplicaConfig
from serve.document import ServedDocument, ServedDocuments, ServedVersion
from serve.metrics import Meter
from serve.predictor import Predictor, open_model

CONFIG = ReplicaConfig(max_batch_size=4)


class NoSink:
    """Forgets."""

    def count(self, name: str, value: int, tags: Any) -> None: ...
    def observe(self, name: str, value: float, tags: Any) -> None: ...


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Model ``tiny``, served without Ray."""
    folder = tmp_path_factory.mktemp("served")
    bundle = write_bundle(folder / "bundle")
    documents = ServedDocuments(Store(folder / "store"))
    version = ServedVersion(version=7, digest=bundle.digest, path=bundle.path)
    documents.write(ServedDocument(model="tiny", generation=1, versions=(version,)))
    meter = Meter("tiny", NoSink())
    predictor = Predictor(
        "tiny", documents, lambda name, served: open_model(name, served, CONFIG, meter)
    )
    predictor.start()
    port = free_port()
    model_app = ModelApp(predictor, CONFIG, meter, "r-1")
    server = uvicorn.Server(uvicorn.Config(model_app, port=port, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    predictor.table.main.batcher.close()


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["load", *arguments])


def _short(url: str, *arguments: str) -> dict[str, Any]:
    done = _run("--url", url, "--model", "tiny", "--duration", "0.3", "--warmup", "0", *arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


@pytest.mark.parametrize("form", ["image", "tensor", "raw", "json"])
def test_every_form_is_answered(url: str, form: str) -> None:
    options = ["--concurrency", "2", *(() if form == "image" else ("--batch", "3"))]
    figures = _short(url, "--as", form, *options, "--json")
    assert figures["requests"] == figures["ok"] > 4
    assert figures["errors"] == {"total": 0, "by_status": {}, "by_kind": {}}
    assert figures["versions"] == {"7": figures["ok"]}
    assert list(figures["replicas"]) == ["r-1"]
    latency = figures["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"]
    assert latency["p99.9"] <= latency["max"]


def test_files_are_sent_as_they_are_and_a_version_can_be_named(url: str, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for number, name in enumerate(("a.png", "deep/b.PNG", "deep/c.jpeg")):
        pixels = np.full(IMAGE.shape, number, np.uint8)
        (tmp_path / name).write_bytes(encode_png(pixels))
    (tmp_path / "notes.txt").write_text("no image")
    one = tmp_path / "a.png"
    figures = _short(url, "--file", str(tmp_path), "--file", str(one), "--version", "7", "--json")
    assert figures["files"] == 4
    assert figures["errors"]["total"] == 0
    # What the server refuses is counted, and is no reason to stop.
    one.write_bytes(b"hello")
    figures = _short(url, "--file", str(tmp_path), "--json")
    assert set(figures["errors"]["by_status"]) == {"415"}
    assert figures["ok"] > 0


def test_a_report_shows_what_the_figures_say(url: str, tmp_path: Path) -> None:
    page = tmp_path / "load.html"
    figures = _short(url, "--rate", "40,60", "--arrivals", "constant", "--out", str(page), "--json")
    assert [step["requests"] for step in figures["steps"]] == pytest.approx([12, 18], abs=1)
    text = page.read_text()
    assert "<svg" in text
    assert f"<b>{figures['requests']}</b>" in text
    assert 'id="steps"' in text
    assert 'id="latency"' not in text
    assert "http://www.w3.org/2000/svg" in text
    assert "<script" not in text
    done = _run("--url", url, "--model", "tiny", "--duration", "0.3", "--out", f"{tmp_path}/a.png")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "corrected" in done.output
    assert "replica r-1" in done.output


def test_mistakes_cost_one_line(url: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.png").write_text("no image")
    cases = (
        (["--rate", "fast"], "--rate 'fast'"),
        (["--rate", "10,0"], "above 0"),
        (["--arrivals", "poisson"], "without --rate"),
        (["--batch", "2"], "one image a request"),
        (["--file", str(tmp_path / "none.png")], "No such file"),
        (["--file", str(tmp_path / "empty")], "no image files"),
        (["--file", str(tmp_path / "no.png"), "--as", "tensor"], "not an image"),
        (["--out", "report.txt"], ".html, .png"),
        (["--out", str(tmp_path / "none" / "a.html")], "there is no folder"),
        (["--version", "9"], "does not serve version"),
        (["--model", "other"], "no such endpoint"),
        (["--url", "localhost"], "expected http://host:port"),
        (["--url", "http://a:b"], "expected http://host:port"),
        (["--url", "http://a..b"], "expected http://host:port"),
        (["--url", "http://h/\u4f8b"], "expected http://host:port"),
        (["--duration", "inf"], "--duration inf"),
    )
    for arguments, message in cases:
        done = _run("--url", url, "--model", "tiny", *arguments)
        assert isinstance(done.exception, UserError), (arguments, done)
        assert message in str(done.exception), arguments


def test_nothing_answered_is_a_failure(url: str, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no image")
    done = _run(
        *("--url", url, "--model", "tiny", "--file", str(tmp_path / "no.png")),
        *("--duration", "0.3", "--warmup", "0", "--json"),
    )
    assert done.exit_code == 1
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    assert figures["ok"] == 0
    assert figures["latency_ms"]["p50"] is None
    assert set(figures["errors"]["by_status"]) == {"415"}
