"""Where the parts of Serve run and listen, on one machine and on several.

HAProxy and Serve's controller are on the head node. Replicas may be anywhere; how they listen
depends on who must reach them:

- HTTP on loopback: HAProxy runs on the head alone. Replicas there listen on loopback; elsewhere, on
  their own node's address, where the head's HAProxy finds them.
- HTTP on every interface: each node with a replica gets a HAProxy of its own, and replicas listen
  as HTTP itself does.
"""

import socket
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

import serve
from cluster import ingress
from cluster.errors import RaybridgeError, ResourceError, ServingError

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
ANY_HOSTS = frozenset({"0.0.0.0", "::"})
HEAD_RESOURCE = "node:__internal_head__"


@dataclass(frozen=True)
class Wiring:
    """How a replica's node is made ready, and where the replica listens."""

    haproxy_folder: str | None
    """Where a node's HAProxy wrapper belongs; None without HAProxy."""
    entrance: str | None
    """Node of the only HAProxy; None where every node has one, or HTTP comes through Ray itself."""


@dataclass(frozen=True)
class Head:
    """The node that Serve's controller is on."""

    node_id: str
    address: str
    cpus: int
    here: bool
    """Whether this process is there, too."""


def find_head() -> Head:
    """The head node of the connected cluster."""
    own = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["Alive"] and HEAD_RESOURCE in node["Resources"]:
            cpus = int(node["Resources"].get("CPU", 0))
            node_id: str = node["NodeID"]
            return Head(node_id, node["NodeManagerAddress"], cpus, here=node_id == own)
    raise ServingError("no node of this cluster says that it is the head")


def alive_nodes() -> dict[str, str]:
    """Addresses of the machines that are up, by node."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def prepare_head(head: Head, host: str, port: int, *, haproxy: bool) -> str | None:
    """Make the head node ready for an ingress.

    Returns:
        HAProxy's folder, the same one on all nodes; None without HAProxy.

    Raises:
        ResourceError: the port is taken.
    """
    require_free: Callable[[str, int], None] = _require_free_port
    _on_head(head, require_free, host, port)
    return _on_head(head, _install_wrapper) if haproxy else None


def haproxy_folder(head: Head) -> str:
    """Where HAProxy's files go on every node."""
    folder: str = _on_head(head, _haproxy_folder)
    return folder


def import_path() -> dict[str, str]:
    """Lets other processes import us from a checkout; an installed package needs nothing."""
    root = Path(serve.__file__).resolve().parents[1]
    if root == Path(sysconfig.get_path("purelib")).resolve():
        return {}
    return {"PYTHONPATH": str(root)}


def _on_head(head: Head, function: Callable[..., Any], *args: object) -> Any:
    """Call a function on the head node: here, if this is it."""
    if head.here:
        return function(*args)
    task = ray.remote(function).options(
        num_cpus=0,
        resources={HEAD_RESOURCE: 0.0001},
        runtime_env={"env_vars": import_path()},
    )
    try:
        return ray.get(task.remote(*args), timeout=120)
    except RayTaskError as error:
        if isinstance(error.cause, RaybridgeError):
            raise error.cause from None
        raise


def _haproxy_folder() -> str:
    node: Any = ray._private.worker._global_node
    return str(ingress.haproxy_folder(Path(node.get_temp_dir_path())))


def _install_wrapper() -> str:
    folder = _haproxy_folder()
    ingress.install_wrapper(Path(folder))
    return folder


def _require_free_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(
                f"{host}:{port} cannot be listened on: {error.strerror}; choose another with --port"
            ) from None
