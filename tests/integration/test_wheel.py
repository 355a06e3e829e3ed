"""The wheel is all that is needed: commands and workers run from it, far from a checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ROOT, CliResult, run_command

PACKAGES = ("cluster", "train", "serve")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = run_command(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    )
    assert built.exit_code == 0, built.stdout + built.stderr
    (file,) = folder.glob("raybridge-*.whl")
    return file


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, that borrows its dependencies from this one."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    installed = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)),
            *("install", "--no-deps", "--no-index", str(wheel)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    (site,) = (folder / "lib").glob("python3*/site-packages")
    # The editable install there is a .pth file, and those are not followed from here.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """An empty folder with a short path, which is home and Ray's folder as well."""
    folder = Path(tempfile.mkdtemp(prefix="rb", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run(python: Path, folder: Path, *args: str) -> CliResult:
    environment = {
        "HOME": str(folder),
        "RAY_TMPDIR": str(folder),
        "RAYBRIDGE_STORE": str(folder / "store"),
        "PYTHONPATH": "",
        "RAY_ADDRESS": "",
        "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]]),
    }
    return run_command([str(python), *args], env=environment, cwd=folder)


def test_what_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
        tracked = {
            str(file.relative_to(ROOT))
            for file in (ROOT / package).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        assert tracked <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_commands_run_from_an_empty_folder(python: Path, elsewhere: Path, package: str) -> None:
    result = run(python, elsewhere, "-m", package, "--help")
    assert result.exit_code == 0, result.stderr
    assert f"Usage: python -m {package}" in result.stdout
    assert list(elsewhere.iterdir()) == [], "help leaves nothing behind"


def test_workers_import_the_wheel(python: Path, elsewhere: Path) -> None:
    driver = elsewhere / "driver.py"
    shutil.copy(ROOT / "tests" / "support" / "driver.py", driver)
    result = run(python, elsewhere, str(driver))
    assert result.exit_code == 0, result.stderr
    seen = json.loads(result.stdout)
    site = str(python.parent.parent / "lib")
    assert seen["package"].startswith(site)
    assert seen["worker"]["package"].startswith(site)
    assert seen["worker"]["store"] == str(elsewhere / "store")
