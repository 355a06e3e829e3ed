"""A cluster on this machine that outlives the command: ``python -m cluster up`` and ``down``."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from cluster.atomic import write_json_atomic
from cluster.errors import RaybridgeError, ResourceError, UserError
from cluster.network import is_free
from cluster.session import (
    LOOPBACK,
    LOOPBACK_VARIABLE,
    ensure_token,
    find_address,
    free_port,
    recorded_address,
)
from cluster.settings import Settings
from cluster.store import Store

DEFAULT_PORT = 6379
DEFAULT_DASHBOARD_PORT = 8265
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
_FAMILY_VARIABLE = "RAYBRIDGE_CLUSTER"


@dataclass(frozen=True)
class ClusterInfo:
    """A cluster that answers."""

    address: str
    """``host:port``."""
    dashboard_url: str | None
    """Known only of a cluster that :func:`up` started."""
    pid: int | None
    """Process of ``ray start``, if :func:`up` started it."""
    started: bool
    """Whether this call started it."""


@dataclass(frozen=True)
class _Record:
    """What ``up`` leaves in the store for ``down``."""

    pid: int
    create_time: float
    """Together with the pid it names a process: pids are used again."""
    address: str
    dashboard_url: str
    family: str
    """Value of a variable that every process of the cluster inherits."""


def up(
    settings: Settings,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    port: int = DEFAULT_PORT,
    dashboard_port: int = DEFAULT_DASHBOARD_PORT,
) -> ClusterInfo:
    """Start a Ray head on the loopback interface that goes on after this process.

    If a cluster answers already, whoever started it, nothing is started.

    The head asks for Ray's token, which is made if this user has none, unless ``RAY_AUTH_MODE``
    says otherwise: on a machine with other users an open cluster runs anybody's code as you.

    Args:
        settings: its store keeps the record by which :func:`down` finds the process.
        num_cpus: logical CPUs, by default those of the machine.
        num_gpus: GPUs, by default those of the machine.
        port: of the control store.
        dashboard_port: of the dashboard, which takes jobs.

    Raises:
        UserError: ``RAY_ADDRESS`` says that no cluster is to stay.
        ResourceError: a port is taken, or a cluster of ours runs that cannot be joined.
        RaybridgeError: Ray does not come up; the message names its log.
    """
    if os.environ.get("RAY_ADDRESS") == "local":
        raise UserError(
            "RAY_ADDRESS=local asks for a private cluster, which ends with its command, and what "
            "is started here is to stay: unset RAY_ADDRESS"
        )
    record = _read_record(settings)
    address = find_address()
    if address is not None:
        ours = record is not None and record.address == address
        return ClusterInfo(
            address=address,
            dashboard_url=record.dashboard_url if record and ours else None,
            pid=record.pid if record and ours else None,
            started=False,
        )
    if record is not None:
        raise ResourceError(
            f"a cluster at {record.address} was started here and is not the one to join (it is "
            "still starting, does not answer, or RAY_ADDRESS points elsewhere); "
            "`python -m cluster down` ends it"
        )
    Store.open(settings.address).ensure_writable()
    for name, number in (("port", port), ("dashboard port", dashboard_port)):
        if not is_free(number, LOOPBACK):
            raise ResourceError(f"{name} {number} is taken by another program; name another one")
    log_file = _record_file(settings).with_suffix(".log")
    log_file.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address", LOOPBACK, "--port", str(port)),
        *("--dashboard-host", LOOPBACK, "--dashboard-port", str(dashboard_port)),
        # Their defaults are fixed ports, which a second cluster on the machine could not have.
        *("--dashboard-agent-listen-port", str(free_port())),
        *("--ray-client-server-port", str(free_port())),
        "--disable-usage-stats",
    ]
    if num_cpus is not None:
        command += ["--num-cpus", str(num_cpus)]
    if num_gpus is not None:
        command += ["--num-gpus", str(num_gpus)]
    family = secrets.token_hex(8)
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**_head_environment(settings), _FAMILY_VARIABLE: family},
            cwd=settings.store,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    record = _Record(
        pid=process.pid,
        create_time=psutil.Process(process.pid).create_time(),
        address=f"{LOOPBACK}:{port}",
        dashboard_url=f"http://{LOOPBACK}:{dashboard_port}",
        family=family,
    )
    write_json_atomic(_record_file(settings), asdict(record))
    try:
        _wait_until_it_answers(process, record, log_file)
    except BaseException:
        down(settings)
        raise
    process.returncode = 0  # It outlives us on purpose, of which Popen would warn.
    return ClusterInfo(record.address, record.dashboard_url, record.pid, started=True)


def down(settings: Settings) -> ClusterInfo | None:
    """Stop the cluster that :func:`up` started, and no other.

    Returns:
        What was stopped, or None if there was nothing to stop.
    """
    record = _read_record(settings)
    if record is None:
        return None
    psutil.Process(record.pid).terminate()
    # Asked for again and again: HAProxy is started anew whenever a replica goes away, and so while
    # the cluster goes down. A zombie, which stays where no init process reaps it, does not count.
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while (family := _family(record)) and time.monotonic() < deadline + STOP_TIMEOUT_S:
        if record.pid not in {process.pid for process in family} or time.monotonic() > deadline:
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        time.sleep(0.1)
    _record_file(settings).unlink(missing_ok=True)
    return ClusterInfo(record.address, record.dashboard_url, record.pid, started=False)


def _record_file(settings: Settings) -> Path:
    # A store may be shared between hosts, a process is not.
    return settings.store / "cluster" / f"{socket.gethostname()}.json"


def _read_record(settings: Settings) -> _Record | None:
    """The record of a head that still runs; one that was left behind is removed."""
    file = _record_file(settings)
    try:
        record = _Record(**json.loads(file.read_text("utf-8")))
        if psutil.Process(record.pid).create_time() == record.create_time:
            return record
    except FileNotFoundError:
        return None
    except (psutil.NoSuchProcess, ValueError, TypeError):
        pass
    file.unlink(missing_ok=True)
    return None


def _family(record: _Record) -> list[psutil.Process]:
    """The head and everything that was started under it, whoever its parent is by now.

    Ray's own processes keep the head's session but write their titles over their environment;
    HAProxy has a session of its own but keeps the environment.
    """
    found = []
    for process in psutil.process_iter():
        # Other users' processes, and zombies, show no environment.
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            in_session = os.getsid(process.pid) == record.pid
            if in_session or process.environ().get(_FAMILY_VARIABLE) == record.family:
                found.append(process)
    return found


def _head_environment(settings: Settings) -> dict[str, str]:
    """This process's environment, made fit for a head: jobs inherit it."""
    ensure_token()
    environment = {**os.environ, **settings.environment()}
    environment.pop("RAY_ADDRESS", None)
    environment[LOOPBACK_VARIABLE] = "0"
    # By default Ray waits for half a minute, once told to end, until work has moved to other nodes.
    # There are none.
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
    # A job's `python` is the first one on this path.
    here = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([here, environment.get("PATH", os.defpath)])
    return environment


def _wait_until_it_answers(
    process: subprocess.Popen[bytes], record: _Record, log_file: Path
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RaybridgeError(f"Ray did not start: {_last_words(log_file)} (log: {log_file})")
        if recorded_address() == record.address and _healthy(record.dashboard_url):
            return
        time.sleep(0.25)
    raise RaybridgeError(f"Ray did not answer within {START_TIMEOUT_S:.0f} s (log: {log_file})")


def _healthy(dashboard_url: str) -> bool:
    try:
        # Answers without a token, and only once jobs are taken.
        with urllib.request.urlopen(f"{dashboard_url}/api/gcs_healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _last_words(log_file: Path) -> str:
    lines = [line.strip() for line in log_file.read_text("utf-8", "replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")
