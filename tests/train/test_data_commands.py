"""What `train ingest` and `train data` tell a person, and a program."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import S3Server

from cluster.cli import Output
from cluster.dataset import META_FILE
from cluster.errors import DataError
from cluster.settings import CACHE_VARIABLE, STORE_VARIABLE, TRACKING_VARIABLE
from cluster.store import Store
from train.data.contact_sheet import CONTACT_SHEET
from train.data.duplicates import CHECKS_FILE
from train.data.ingest import ingest
from train.data.options import IngestOptions
from train.data.sources.source import Part, PixelPictures, Source
from train.data_commands import run_data, run_ingest

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def here(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that commands use."""
    monkeypatch.setenv(STORE_VARIABLE, store.address)
    return store


def ingest_digits(**options: Any) -> None:
    run_ingest(
        *("digits", "digits", IngestOptions(**options), Output(True)),
        **dict.fromkeys(("root", "class_names", "image_column", "label_column")),  # type: ignore[arg-type]
    )


def made(classes: int, rows: int = 10) -> Source:
    """``rows`` images of each class, all different."""
    images = np.random.default_rng(0).integers(0, 256, (classes * rows, 1, 8, 8), dtype=np.uint8)
    part = Part(PixelPictures(images, "image"), np.arange(classes * rows) % classes)
    return Source("made up", tuple(f"class-{n:02}" for n in range(classes)), {"train": part})


def last_line(capture: Capture) -> Any:
    return json.loads(capture.readouterr().out.splitlines()[-1])


def test_lines_of_progress_where_there_is_no_terminal(
    here: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.data_commands._LINE_EVERY_S", 0.0)
    ingest_digits(storage="encoded")
    told = capsys.readouterr().err
    for what in ("decoding", "writing"):
        lines = re.findall(rf"^{what}: ([\d,]+) of 1,797 images, [\d,]+ images/s$", told, re.M)
        assert len(lines) > 3, told
        assert lines[-1] == "1,797"


def test_classes_and_versions_are_shown(here: Store, capsys: Capture) -> None:
    ingest(here, made(2), "pets")
    ingest(here, made(2, 20), "pets")
    run_data("pets", Output(False))
    told = capsys.readouterr().out
    assert re.search(r"class-01\W+14\W+2\W+4\W", told)
    assert "versions of pets: 1, 2\n" in told
    ingest(here, made(45), "many")
    run_data("many", Output(False))
    told = capsys.readouterr().out
    assert "class-39" in told
    assert "class-40" not in told.partition("images of each class")[2]
    assert "and 5 more classes (--json lists all)" in told


def test_what_is_damaged_is_named_and_hides_nothing_else(here: Store, capsys: Capture) -> None:
    ingest(here, made(2), "good")
    ingest(here, made(2), "checks")
    ingest(here, made(2), "meta")
    checks, meta = here.datasets / "checks" / "1", here.datasets / "meta" / "1"
    (checks / CHECKS_FILE).write_text('{"exact": 1}')
    for content in ("no JSON", '{"schema_version": 2}', "[]", ""):
        (meta / META_FILE).write_text(content)
        with pytest.raises(DataError, match=f"^{meta}: "):
            run_data("meta", Output(True))
        run_data(None, Output(True))
        good, broken = last_line(capsys)["datasets"][1:]
        assert (good["dataset"], good["images"]) == ("good@1", 20)
        assert broken["dataset"] == "meta@1"
        assert str(meta) in broken["damaged"]
    with pytest.raises(DataError, match=f"^{checks}: checks.json is damaged$"):
        run_data("checks", Output(True))


def test_what_cannot_be_shown_is_ingested_all_the_same(here: Store, capsys: Capture) -> None:
    ingest_digits()
    (here.datasets / "digits" / "1" / CHECKS_FILE).write_text("")
    capsys.readouterr()
    ingest_digits()
    told = capsys.readouterr()
    assert f"{CHECKS_FILE} is damaged" in told.err
    result = json.loads(told.out.splitlines()[-1])
    assert (result["dataset"], result["images"], result["checks"]) == ("digits@1", 1797, None)


def test_showing_fetches_no_images_and_shows_the_version_asked_for(
    s3: S3Server, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.uri(f"raybridge/{tmp_path.name}")
    monkeypatch.setenv(STORE_VARIABLE, uri)
    monkeypatch.setenv(TRACKING_VARIABLE, "http://127.0.0.1:1")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "a"))
    ingest_digits()
    ingest_digits(normalize="half")
    store = Store.open(uri)
    # The same content, and yet another finding.
    checks = json.loads(store.folder("datasets/digits/1").read(CHECKS_FILE) or b"")
    store.folder("datasets/digits/1").write_json(CHECKS_FILE, {**checks, "already_there": 7})
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "b"))
    capsys.readouterr()
    for reference, already_there in (("digits@1", 7), ("digits@2", 0)):
        run_data(reference, Output(True))
        shown = last_line(capsys)
        assert shown["path"] == uri.replace("?", f"/datasets/{reference.replace('@', '/')}?")
        assert shown["checks"]["already_there"] == already_there
        assert Path(shown["contact_sheet"]).is_file()
    files = [file.name for file in (tmp_path / "b").rglob("*") if file.is_file()]
    assert files == [CONTACT_SHEET] * 2
