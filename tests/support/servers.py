"""Servers that stand in for a cloud, each a process of its own: S3 by moto, and MLflow.

Both are context managers that take the address to listen on and, for a test with hosts of its own,
how to run a program there.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from harness import free_port
from pyarrow import fs

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 90.0
# What moto takes for valid; a real key of the developer's must never be sent anywhere by a test.
AWS_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_PUT = (
    "import sys, urllib.request as r; r.urlopen(r.Request(sys.argv[1], method='PUT'), timeout=30)"
)

Wrap = Callable[[Sequence[str]], list[str]]
"""Makes of a command line the one that runs it somewhere else."""


@dataclass(frozen=True)
class S3Server:
    """A running S3. What it holds ends with it."""

    endpoint: str
    """``host:port``, as its clients reach it."""
    process: subprocess.Popen[bytes]
    wrap: Wrap

    def uri(self, bucket: str, prefix: str = "") -> str:
        """What ``RAYBRIDGE_STORE`` says to keep a store in a bucket."""
        path = f"{bucket}/{prefix}".rstrip("/")
        return f"s3://{path}?endpoint_override={quote(self.endpoint)}&scheme=http"

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket."""
        command = [sys.executable, "-c", _PUT, f"http://{self.endpoint}/{bucket}"]
        subprocess.run(self.wrap(command), check=True, timeout=60)

    def files(self) -> fs.FileSystem:
        """The server's objects as ``BUCKET/KEY``, by a client that is not the code under test."""
        return fs.S3FileSystem(
            access_key=AWS_ENVIRONMENT["AWS_ACCESS_KEY_ID"],
            secret_key=AWS_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
            endpoint_override=self.endpoint,
            scheme="http",
            region="us-east-1",
        )

    def names(self, folder: str) -> set[str]:
        """Keys of all objects under ``BUCKET/PREFIX``, without it."""
        selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
        found = self.files().get_file_info(selector)
        return {one.path.removeprefix(f"{folder}/") for one in found if one.is_file}

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """It takes connections and answers nothing, as a network that drops packets does."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def s3_server(
    host: str = LOOPBACK, wrap: Wrap = list, *, checks_keys: bool = False
) -> Iterator[S3Server]:
    """Run an S3 server on ``host``.

    Its clients need the variables of ``AWS_ENVIRONMENT``; with ``checks_keys`` it refuses them too,
    once a bucket has been made.
    """
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    strict = {"INITIAL_NO_AUTH_ACTION_COUNT": "1"} if checks_keys else {}
    with _running(wrap(command), "Running on http", strict) as process:
        yield S3Server(f"{host}:{port}", process, wrap)


@contextlib.contextmanager
def mlflow_server(host: str = LOOPBACK, wrap: Wrap = list) -> Iterator[str]:
    """Run an MLflow server on ``host``, which also hands out artifacts; yields its address."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="mlflow") as folder:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"),
            *("--artifacts-destination", f"{folder}/artifacts", "--allowed-hosts", "*"),
        ]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true"}
        with _running(wrap(command), "Application startup complete", quiet):
            yield f"http://{host}:{port}"


@contextlib.contextmanager
def _running(
    command: list[str], ready: str, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a session of its own until the block ends; enter it once it says so."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            cwd=Path(tempfile.gettempdir()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

        def said() -> str:
            log.seek(0)
            return log.read().decode(errors="replace")

        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while ready not in said():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command} did not come up:\n{said()[-4000:]}")
                time.sleep(0.1)
            yield process
        finally:
            # With its own workers: MLflow's server has some.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
