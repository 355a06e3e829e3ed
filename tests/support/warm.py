"""Commands without the seconds that their imports take: forks of a process that has made them.

``python -m train ...`` spends most of a short command's time on importing PyTorch, Ray and MLflow.
A server that has imported them, and does nothing else, becomes the command in a child of its own:
with its own arguments, environment, folder and output, and the interpreter's usual end.
"""

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

MODULES = ("train", "serve", "cluster")
# What commands need besides; none of it starts a thread that a fork would lack.
_IMPORTS = (
    *("ray.train", "ray.serve", "torch", "torch._dynamo", "torchvision", "mlflow"),
    *("train.fit", "train.job"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
    *("train.commands", "train.data_commands", "train.model_commands", "serve.deployment"),
    *(f"{module}.__main__" for module in MODULES),
    *(f"{module}.commands" for module in MODULES),
)
# Variables that are read when a command runs, not when something is imported.
_LATE = ("RAYBRIDGE_", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "AWS_", "PYTEST_CURRENT_TEST")


class Warm:
    """The server, from which commands are forked."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests = ours
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def takes(self, module: str, environment: dict[str, str]) -> bool:
        """Whether a command would find no other imports if it were started anew."""
        names = {*environment, *self._environment}
        changed = {name for name in names if environment.get(name) != self._environment.get(name)}
        return module in MODULES and all(name.startswith(_LATE) for name in changed)

    def run(
        self, args: tuple[str, ...], environment: dict[str, str], folder: Path, timeout_s: float
    ) -> tuple[int, str, str]:
        """Run ``python -m ARGS...``.

        Returns:
            Exit code (minus the signal that ended it), standard output and standard error.

        Raises:
            subprocess.TimeoutExpired: it took longer, and was killed.
        """
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr, ours:
            with theirs, tempfile.TemporaryFile() as request:
                request.write(json.dumps([args, environment, str(folder)]).encode())
                handed = [file.fileno() for file in (request, stdout, stderr, theirs)]
                socket.send_fds(self._requests, [b"run"], handed)
            pid = int(ours.makefile().readline())
            ours.settimeout(timeout_s)
            try:
                exit_code = int(ours.makefile().readline())
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired([*args], timeout_s) from None
            return exit_code, _read(stdout).decode(), _read(stderr).decode()

    def close(self) -> None:
        """End the server; commands that are at work go on."""
        self._requests.close()
        self._server.wait()


def _serve(requests: socket.socket) -> None:
    """Fork a command for each request, and tell how each has ended."""
    running: dict[int, tuple[int, socket.socket]] = {}  # pidfd -> pid, and who asked for it.
    while True:
        ready, _, _ = select.select([requests.fileno(), *running], [], [])
        for ended in running.keys() & ready:
            pid, asker = running.pop(ended)
            os.close(ended)
            exit_code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with asker, contextlib.suppress(BrokenPipeError):
                asker.sendall(f"{exit_code}\n".encode())
        if requests.fileno() not in ready:
            continue
        word, handed, _, _ = socket.recv_fds(requests, 16, 4)
        if not word:
            return
        pid = os.fork()
        if pid == 0:
            _become(handed, inherited=[requests.fileno(), *running])
            return
        for descriptor in handed[:-1]:
            os.close(descriptor)
        asker = socket.socket(fileno=handed[-1])
        asker.sendall(f"{pid}\n".encode())
        running[os.pidfd_open(pid)] = (pid, asker)


def _become(handed: list[int], inherited: list[int]) -> None:
    """Run the command in this process, as ``python -m`` does."""
    request, stdout, stderr, asker = handed
    with os.fdopen(request, "rb") as file:
        args, environment, folder = json.loads(_read(file))
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for descriptor in (stdout, stderr, asker, *inherited):
        os.close(descriptor)
    os.environ.clear()
    os.environ |= environment
    os.chdir(folder)
    sys.path[0] = folder
    sys.argv = list(args)
    runpy.run_module(args[0], run_name="__main__", alter_sys=True)


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


if __name__ == "__main__":
    import gc
    import importlib

    for _module in _IMPORTS:
        importlib.import_module(_module)
    gc.collect()
    gc.freeze()  # What a command collects at its end is its own.
    for _module in MODULES:  # Run again by each command, as the program that it is.
        del sys.modules[f"{_module}.__main__"]
    _serve(socket.socket(fileno=int(sys.argv[1])))
