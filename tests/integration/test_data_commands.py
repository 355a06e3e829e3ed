"""`train ingest` and `train data` as a user runs them: results, messages and exit codes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT, RunCli, run_command
from pictures import encode, picture, pngs, write_class_folders, write_parquet

from cluster.dataset import Dataset, dataset_names, dataset_versions
from cluster.settings import STORE_VARIABLE
from cluster.store import Store
from train.data.workers import usable_cpus

PYTHON = sys.executable


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {STORE_VARIABLE: str(tmp_path / "store")}


@pytest.fixture
def own_store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def hidden(store: Store) -> list[str]:
    return [path.name for path in store.root.rglob(".*") if not path.name.startswith(".probe")]


def test_ingest_list_and_show(tmp_path: Path, env: dict[str, str], run_cli: RunCli) -> None:
    folder = write_class_folders(tmp_path / "pets", per_class=20)
    (folder / "dog" / "again.png").write_bytes((folder / "cat" / "0000.png").read_bytes())
    ingested = run_cli("train", "ingest", str(folder), "--name", "pets", "--json", env=env)
    assert ingested.exit_code == 0, ingested.stderr
    assert ingested.json["dataset"] == "pets@1"
    assert ingested.json["splits"] == {"train": 29, "val": 4, "test": 8}
    assert ingested.json["images"] == 41
    statistics = {name: ingested.json[name] for name in ("mean", "std")}
    assert ingested.json["normalization"] == statistics
    assert ingested.json["checks"]["conflicts"] == 2
    assert "warning: 2 images equal to another, of a different class:" in ingested.stderr
    assert "cat/0000.png (cat)" in ingested.stderr
    shown = run_cli("train", "data", "pets@1", "--json", env=env)
    assert {**ingested.json, **shown.json} == {**ingested.json, "versions": [1]}
    assert Path(shown.json["contact_sheet"]).is_file()
    listed = run_cli("train", "data", env=env)
    assert "pets@1" in listed.stdout
    assert "folder pets" in listed.stdout
    missing = run_cli("train", "data", "cows", "--json", env=env)
    assert missing.exit_code == 2
    assert missing.json["error"].startswith("no data set 'cows'")


def test_a_store_without_data_sets(env: dict[str, str], run_cli: RunCli) -> None:
    listed = run_cli("train", "data", "--json", env=env)
    assert listed.json == {"datasets": []}
    assert "make one with: python -m train ingest SOURCE --name NAME" in listed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/bad"], "1 of 21 images cannot be used: cat/x.png (not an image; allowed: PNG, JPEG"),
        (["{}/mixed"], "folder mixed holds images of 2 sizes: 8x8 (20), 9x9 (1); choose one for"),
        (["{}/pets", "--split", "0.9,0.2"], "--split 0.9,0.2: the shares add up to 1.1, not to 1"),
        (["{}/pets", "--size", "big"], "--size big: expected pixels from 1 to 4096, such as 32"),
        (["{}/pets", "--append"], "--append: there is no data set 'x' to add to; leave out --appe"),
        (["{}/pets", "--class-names", "a"], "--class-names: folder pets has 2 classes; give that"),
        (["{}/nothing"], "nothing holds no class folders; expected FOLDER/CLASS/IMAGE, or a CSV"),
        (["{}/nowhere"], "nowhere': no such file or folder, nor one of digits, mnist, fashion-mni"),
    ],
)
def test_a_mistake_costs_one_line_and_exit_code_2(
    tmp_path: Path,
    env: dict[str, str],
    own_store: Store,
    run_cli: RunCli,
    arguments: list[str],
    message: str,
) -> None:
    for name in ("pets", "bad", "mixed"):
        write_class_folders(tmp_path / name)
    (tmp_path / "bad" / "cat" / "x.png").write_bytes(b"no image")
    (tmp_path / "mixed" / "cat" / "x.png").write_bytes(encode(picture(0, (9, 9))))
    (tmp_path / "nothing").mkdir()
    given = [argument.format(tmp_path) for argument in arguments]
    done = run_cli("train", "ingest", *given, "--name", "x", "--json", env=env)
    assert done.exit_code == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert done.stderr.rstrip().endswith(errors[0])
    assert done.json["error"] == errors[0].removeprefix("error: ")
    if "bad" in given[0]:
        assert [row["image"] for row in done.json["bad"]] == ["cat/x.png"]
    assert list(dataset_names(own_store)) == hidden(own_store) == []


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that take some seconds to decode."""
    file = tmp_path_factory.mktemp("many") / "many.parquet"
    large = [picture(seed, (16, 12)).resize((2400, 1800)) for seed in range(4)]
    blobs = [encode(image, "JPEG") for image in large]
    return write_parquet(file, blobs * 60, [0, 1, 0, 1] * 60)


def children(process: int) -> set[int]:
    found = set()
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found |= {int(child) for child in file.read_text().split()}
    return found


def is_decoding(process: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "spawn_main" in Path(f"/proc/{process}/cmdline").read_text()
    return False


@pytest.mark.skipif(usable_cpus() < 2, reason="one CPU decodes in one process")
def test_several_processes_decode(
    tmp_path: Path, many: Path, env: dict[str, str], own_store: Store
) -> None:
    command = [PYTHON, "-m", "train", "ingest", str(many), "--name", "many", "--size", "16"]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True
    ) as process:
        decoding: set[int] = set()
        while process.poll() is None:
            decoding |= {child for child in children(process.pid) if is_decoding(child)}
            time.sleep(0.02)
        stdout, _ = process.communicate()
    assert process.returncode == 0
    assert len(decoding) == usable_cpus()
    assert "240 images in " in stdout
    dataset = Dataset.find(own_store, "many")
    images = np.concatenate(
        [dataset.split(split).take(slice(None)) for split in dataset.meta.splits]
    )
    assert len({bytes(image) for image in images}) == 4
    dataset.verify()


@pytest.mark.parametrize(
    ("number", "after_s", "exit_code"),
    [(signal.SIGINT, 0.3, 130), (signal.SIGINT, 2.0, 130), (signal.SIGTERM, 2.0, 143)],
)
def test_a_signal_leaves_nothing(
    many: Path,
    env: dict[str, str],
    own_store: Store,
    number: signal.Signals,
    after_s: float,
    exit_code: int,
) -> None:
    command = [PYTHON, "-m", "train", "ingest", str(many), "--name", "many", "--size", "512"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not hidden(own_store) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(after_s)
        started = children(process.pid)
        if number == signal.SIGINT:
            # To all of them, as a terminal does.
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert stdout.endswith("stopped; nothing was written\n")
    assert stderr in ("", "interrupted\n", "terminated\n")
    assert list(dataset_names(own_store)) == hidden(own_store) == []
    # One that was just being started ends as soon as it has.
    deadline = time.monotonic() + 60
    while any(map(is_decoding, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_decoding, started))


def test_a_disk_that_fills_up_is_one_line(
    tmp_path: Path, env: dict[str, str], own_store: Store
) -> None:
    """A limit on the size of files stands in for the disk: the same error, of the same calls."""
    file = write_parquet(tmp_path / "p.parquet", pngs(400, size=(40, 40)), [0, 1] * 200)
    ingest = f"{PYTHON} -m train ingest {file} --name x --json"
    done = run_command(["bash", "-c", f"ulimit -f 512; exec {ingest}"], env=env)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith(
        f"error: {own_store.root}: File too large; nothing was written; make room, or name another"
    )
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["exit_code"] == 2
    assert list(dataset_names(own_store)) == hidden(own_store) == []


def test_two_commands_at_once_make_two_versions(
    tmp_path: Path, env: dict[str, str], own_store: Store
) -> None:
    commands = []
    for number in range(2):
        folder = write_class_folders(tmp_path / str(number), first=5000 * number)
        commands.append([PYTHON, "-m", "train", "ingest", str(folder), "--name", "pets"])
    running = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.DEVNULL)
        for command in commands
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert dataset_versions(own_store, "pets") == [1, 2]
