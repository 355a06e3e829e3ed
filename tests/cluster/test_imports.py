"""Importing has no effect, and what must stay light is light."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT

PACKAGES = ("cluster", "train", "serve")
# What a replica imports: it opens a bundle, and that takes neither PyTorch nor MLflow.
REPLICA_MODULES = [
    "cluster.bundle",
    "cluster.images",
    "cluster.runtime",
    "cluster.settings",
    "cluster.store",
]


def modules() -> list[str]:
    found = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(part for part in parts if part != "__init__"))
    return found


def bare_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    home = folder / "home"
    home.mkdir()
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(folder),
            "MPLCONFIGDIR": str(folder / "mpl"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_importing_prints_and_writes_nothing(tmp_path: Path) -> None:
    code = f"import importlib\nfor name in {modules()!r}:\n    importlib.import_module(name)"
    result = bare_python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr == ""
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in written if not name.startswith("mpl")} == set()


def test_importing_starts_nothing(tmp_path: Path) -> None:
    code = (
        f"import importlib, os, threading, json\n"
        f"before = dict(os.environ)\n"
        f"for name in {modules()!r}:\n    importlib.import_module(name)\n"
        f"changed = sorted(k for k in os.environ if k.startswith('RAYBRIDGE'))\n"
        f"import ray\n"
        f"print(json.dumps([ray.is_initialized(), changed]))"
    )
    result = bare_python(code, tmp_path)
    assert json.loads(result.stdout) == [False, []]


@pytest.mark.parametrize("module", REPLICA_MODULES)
def test_a_replica_loads_neither_torch_nor_mlflow(tmp_path: Path, module: str) -> None:
    code = (
        f"import sys, json, {module}\n"
        "print(json.dumps([m for m in ('torch', 'mlflow', 'ray') if m in sys.modules]))"
    )
    result = bare_python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


@pytest.mark.parametrize("module", ["cluster.__main__"])
def test_commands_import_what_they_need_when_they_run(tmp_path: Path, module: str) -> None:
    code = (
        f"import sys, json, {module}\n"
        "heavy = ('torch', 'mlflow', 'ray', 'pyarrow', 'onnxruntime', 'sklearn', 'matplotlib')\n"
        "print(json.dumps([m for m in heavy if m in sys.modules]))"
    )
    result = bare_python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []
