"""What tests share that is no fixture: running commands, and the types of fixtures."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class CliResult:
    """What a command left behind."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The last line of standard output, decoded: what ``--json`` prints."""
        return json.loads(self.stdout.strip().splitlines()[-1])


class RunCli(Protocol):
    """Runs ``python -m ARGS...``; ``env`` is added to the test's, the folder is the checkout."""

    def __call__(
        self,
        *args: str,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float = 300,
    ) -> CliResult: ...


class NeedPackage(Protocol):
    """Skips the test unless a program, or a path, of a Debian package is there."""

    def __call__(self, package: str, *, path: str = "", program: str = "") -> None: ...


def run_module(
    *args: str,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 300,
) -> CliResult:
    """Run ``python -m ARGS...`` in a process of its own."""
    return run_command([sys.executable, "-m", *args], env=env, cwd=cwd, timeout_s=timeout_s)


def run_command(
    command: list[str],
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 300,
) -> CliResult:
    """Run a program to its end."""
    done = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        cwd=cwd or ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return CliResult(done.returncode, done.stdout, done.stderr)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
