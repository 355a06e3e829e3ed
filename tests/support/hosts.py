"""Machines for tests: namespaces of this one, joined by a switch, that see nothing of each other.

Every host has its own network, processes, home, temporary folder, ``/dev/shm`` and name. It shares
with the others what a real one would: the installed package, at the same path, and one folder. Its
network cable can be pulled, and it can be switched off. Needs Linux and iproute2; where users may
make namespaces it needs no root.

Nothing is left behind: all hosts live under the process that is the switch, which ends when the
pipe to it closes, in whatever way this process ends.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from harness import ROOT, CliResult, run_command

_SUBNET = "10.77.0"
_AS_ROOT = os.geteuid() == 0
_UNSHARE = ["unshare", *([] if _AS_ROOT else ["--user", "--map-root-user"])]
_ENTER = ["nsenter", *([] if _AS_ROOT else ["--user", "--preserve-credentials"])]
_OWN_PROCESSES = ["--pid", "--mount", "--mount-proc", "--fork", "--kill-child"]
# The first process of a host says that it is there, and stays until the pipe closes. It is a shell:
# as such it also takes leave of the processes that nobody else waits for.
_STAY = "echo up; cat > /dev/null; exit"
# As Debian has it, where a machine's own name leads to its loopback interface.
_ETC_HOSTS = "127.0.0.1 localhost\n127.0.1.1 {name}\n"


class NoNamespacesError(Exception):
    """This machine makes no network namespaces; the message says why."""


@dataclass(frozen=True)
class Host:
    """One machine; made by :meth:`Lab.add`."""

    name: str
    address: str
    lab: "Lab"
    _process: "subprocess.Popen[str]"
    _init: int
    """Its first process, by our count."""

    def environment(self) -> dict[str, str]:
        """What a user finds who logs in there."""
        return {
            "HOME": str(self.lab.home),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "TMPDIR": str(self.lab.temporary),
            "RAY_TMPDIR": str(self.lab.temporary),
            "PYTHONPATH": str(ROOT),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "COLUMNS": "120",
        }

    def command(self, args: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
        """A command line that runs ``args`` there, in the user's home."""
        variables = {**self.environment(), **(env or {})}
        return [
            *(*_ENTER, "--target", str(self._init), "--net", "--pid", "--mount", "--uts"),
            *("env", "--ignore-environment", f"--chdir={self.lab.home}"),
            *(f"{name}={value}" for name, value in variables.items()),
            *args,
        ]

    def run(
        self, *args: str, env: Mapping[str, str] | None = None, timeout_s: float = 120
    ) -> CliResult:
        """Run a program there to its end."""
        return run_command(self.command(args, env), timeout_s=timeout_s)

    def run_module(
        self, *args: str, env: Mapping[str, str] | None = None, timeout_s: float = 120
    ) -> CliResult:
        """Run ``python -m ARGS...`` there."""
        return self.run(sys.executable, "-m", *args, env=env, timeout_s=timeout_s)

    def start(self, *args: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        """Start a program there, with pipes to and from it."""
        return subprocess.Popen(
            self.command(args, env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def processes(self) -> list[str]:
        """Names of the programs that run there."""
        names = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                names.append(process.name())
        return names

    def cut(self) -> None:
        """Pull its network cable."""
        self.lab.on_switch(f"ip link set dev {self.name} down")

    def restore(self) -> None:
        """Put the cable back."""
        self.lab.on_switch(f"ip link set dev {self.name} up")

    def switch_off(self) -> None:
        """End it and all that runs there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)
        self._process.communicate()


class Lab:
    """A switch, and the hosts at it."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is short: a Unix socket's path may have 107 bytes, and Ray appends some 80."""
        self._own = folder / "own"
        # The same paths on every host, as on real ones, with something else there on each.
        self.home = folder / "home"
        self.temporary = folder / "t"
        self.shared = folder / "shared"
        """The folder that every host sees which is not alone."""
        for made in (self._own, self.home, self.temporary, self.shared):
            made.mkdir()
        self._process, self._init = _start([*_UNSHARE, "--net", *_OWN_PROCESSES], _STAY)
        self._hosts: list[Host] = []
        self._numbers: dict[str, int] = {}
        self.on_switch("ip link add name switch type bridge && ip link set dev switch up")

    def add(self, name: str, *, alone: bool = False) -> Host:
        """Switch on a host, whose disk is empty.

        Args:
            name: its own, in at most 15 characters; one that was used before has its old address.
            alone: it does not see the shared folder.
        """
        own = self._own / f"{name}-{len(self._hosts)}"
        binds = {"home": self.home, "tmp": self.temporary}
        if alone:
            binds["shared"] = self.shared
        for folder in binds:
            (own / folder).mkdir(parents=True)
        (own / "hosts").write_text(_ETC_HOSTS.format(name=name))
        prepare = [
            *(f"mount --bind {own / folder} {path}" for folder, path in binds.items()),
            f"mount --bind {own / 'hosts'} /etc/hosts",
            "mount -t tmpfs -o mode=1777 tmpfs /dev/shm",
            f"{sys.executable} -Sc 'import socket; socket.sethostname(\"{name}\")'",
            "ip link set dev lo up",
            _STAY,
        ]
        enter = [*_ENTER, "--target", str(self._init), "--pid", "--mount", "--net"]
        unshare = ["unshare", "--net", "--uts", *_OWN_PROCESSES]
        process, init = _start([*enter, *unshare], "; ".join(prepare))
        number = self._numbers.setdefault(name, len(self._numbers) + 2)
        host = Host(name, f"{_SUBNET}.{number}", self, process, init)
        self._hosts.append(host)
        self.on_switch(
            f"ip link add name {name} type veth peer name eth0 netns {init} && "
            f"ip link set dev {name} master switch up"
        )
        _check(
            [*_ENTER, "--target", str(init), "--net"],
            f"ip addr add {host.address}/24 dev eth0 && ip link set dev eth0 up",
        )
        return host

    def on_switch(self, script: str) -> None:
        """Run a script of ``ip`` commands on the switch."""
        _check([*_ENTER, "--target", str(self._init), "--net"], script)

    def close(self) -> None:
        """Switch everything off."""
        # The hosts' processes are children of the switch's, and end with it.
        for process in (self._process, *(host._process for host in self._hosts)):
            process.communicate()


@contextlib.contextmanager
def laboratory() -> Iterator[Lab]:
    """A switch without hosts.

    Raises:
        NoNamespacesError: this machine makes no namespaces.
    """
    for program in ("ip", "unshare", "nsenter"):
        if shutil.which(program) is None:
            raise NoNamespacesError(f"there is no program {program}")
    folder = Path(tempfile.mkdtemp(prefix="rb", dir="/tmp"))
    try:
        lab = Lab(folder)
        try:
            lab.add("probe").switch_off()
            yield lab
        finally:
            lab.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(wrapper: Sequence[str], script: str) -> tuple["subprocess.Popen[str]", int]:
    """Start a shell in namespaces of its own; returns when it says that it is up."""
    process = subprocess.Popen(
        [*wrapper, "bash", "-ec", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if process.stdout.readline() != "up\n":
        _, said = process.communicate()
        raise NoNamespacesError(" ".join(said.split()) or "no reason given")
    shell = psutil.Process(process.pid)
    while shell.name() != "bash":
        (shell,) = shell.children()
    return process, shell.pid


def _check(wrapper: Sequence[str], script: str) -> None:
    done = run_command([*wrapper, "bash", "-c", script])
    if done.exit_code != 0:
        raise NoNamespacesError(" ".join(done.stderr.split()))
