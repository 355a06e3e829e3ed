"""Commands in the process of the test, which has imported PyTorch: a second each is saved."""

import importlib
import sys

import pytest
from harness import CliResult

from cluster.cli import main


class RunInside:
    """``python -m train ARGS...``, as :class:`harness.RunCli` runs it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, package: str, *args: str) -> CliResult:
        app = importlib.import_module(f"{package}.__main__").app
        self._monkeypatch.setattr(sys, "argv", [package, *args])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(app, f"python -m {package}")
        said = self._capsys.readouterr()
        code = ended.value.code
        return CliResult(code if isinstance(code, int) else 0, said.out, said.err)


@pytest.fixture
def run_inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunInside:
    """Run a command of ours in this process."""
    return RunInside(monkeypatch, capsys)
