"""The connection of this process to a Ray cluster: the only place that calls ``ray.init``.

Where a command runs decides what it connects to, in this order: the cluster of the Ray job it is
part of, the cluster that ``RAY_ADDRESS`` names, the one that ``ray start`` or ``python -m cluster
up`` left running on this machine, and else a private one that ends with the command.
"""

import contextlib
import json
import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import (
    enable_token_auth_by_default,
    ensure_token_if_auth_enabled,
    maybe_enable_token_auth_if_token_available,
)
from ray._private.state import state as ray_state
from ray._private.utils import read_ray_address
from ray._raylet import GcsClient

from cluster.errors import NotFoundError, RaybridgeError, ResourceError, UserError
from cluster.holders import LABEL_KEY, find_holders, to_resources
from cluster.resources import Holder, Node, Resources, room_for, shortage, summed
from cluster.settings import Settings

LOOPBACK = "127.0.0.1"
LOOPBACK_VARIABLE = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
"""Set to 0, it makes Ray keep to the loopback interface; so it does on systems that have no
clusters, after which it is named."""
HOW_TO_START = "start one with `python -m cluster up` or `ray start --head`"
# All but the first set their own level.
_LOGGERS = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
_JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@dataclass(frozen=True)
class Application:
    """One Serve application."""

    name: str
    status: str
    """Ray's word: ``RUNNING``, ``DEPLOYING``, ``UNHEALTHY`` and others."""
    replicas: dict[str, int]
    """Replicas of each deployment, in whatever state."""


@dataclass(frozen=True)
class Session:
    """A live connection; made by :func:`connect`."""

    started: bool
    """Whether this process started the cluster, and so ends it."""
    address: str
    """``host:port`` of the cluster."""
    dashboard_url: str | None
    """``http://host:port``, if the dashboard runs."""

    def total(self) -> Resources:
        """All CPUs and GPUs of the cluster."""
        return to_resources(ray.cluster_resources())

    def free(self) -> Resources:
        """CPUs and GPUs that nobody holds."""
        return to_resources(ray.available_resources())

    def nodes(self) -> list[Node]:
        """The machines of the cluster."""
        free = ray_state.available_resources_per_node()
        return [
            Node(
                node["NodeManagerAddress"],
                to_resources(node["Resources"]),
                to_resources(free.get(node["NodeID"], {})),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def holders(self) -> list[Holder]:
        """Who holds CPUs and GPUs, the largest first.

        Tasks are not listed by Ray's control store: what is held by neither an actor nor a
        placement group is put down to the drivers at work.
        """
        return find_holders(self.total(), self.free())

    def applications(self) -> list[Application]:
        """The Serve applications of the cluster; none if Serve does not run."""
        try:
            ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        except ValueError:
            return []
        import ray.serve as ray_serve  # Takes a second, and is seldom needed.

        return [
            Application(
                name,
                application.status.value,
                {
                    deployment: sum(details.replica_states.values())
                    for deployment, details in application.deployments.items()
                },
            )
            for name, application in sorted(ray_serve.status().applications.items())
        ]

    def require(
        self, cpus: float, gpus: float, what: str, *, count: int = 1, wait_s: float = 3.0
    ) -> None:
        """Return if that much is free, now or within ``wait_s``.

        The wait is for a run that has just ended and has not yet given everything back. A cluster
        that can grow (an autoscaler) is trusted to.

        Args:
            cpus: logical CPUs on one machine.
            gpus: GPUs on the same machine.
            what: what they are for, as the subject of a sentence.
            count: how many times that much, each time on any machine.
            wait_s: how long to wait for what exists but is held.

        Raises:
            ResourceError: names what was asked for, what is free, and who holds the rest.
        """
        piece = Resources(cpus, gpus)
        if not cpus and not gpus:
            return
        deadline = time.monotonic() + wait_s
        while True:
            nodes = self.nodes()
            enough = room_for(piece, (node.free for node in nodes)) >= count
            if enough or _may_grow_to(summed([piece] * count)):
                return
            exists = room_for(piece, (node.total for node in nodes)) >= count
            if not exists or time.monotonic() >= deadline:
                raise ResourceError(shortage(what, piece, count, nodes, self.holders()))
            time.sleep(0.2)


@contextlib.contextmanager
def connect(
    settings: Settings, *, may_start: bool = True, num_cpus: int | None = None, label: str = ""
) -> Iterator[Session]:
    """Connect this process to a cluster, and let go of it at the end of the block.

    Inside an open connection a second one is a view of the first.

    Args:
        settings: handed to every worker through its environment.
        may_start: start a private cluster, on the loopback interface, if none is running.
        num_cpus: logical CPUs of a private cluster, by default those of the machine; a running
            cluster keeps what it has.
        label: what this driver is called when somebody asks who holds the CPUs, such as
            ``run digits-3``; by default its command line.

    Raises:
        NotFoundError: no cluster is running and ``may_start`` is false.
        UserError: ``RAY_ADDRESS`` cannot be used.
        RaybridgeError: a cluster is there and cannot be joined, or Ray does not start.
    """
    if ray.is_initialized():
        yield current()
        return
    address = find_address()
    if address is None and not may_start:
        raise NotFoundError(f"no Ray cluster is running here; {HOW_TO_START}")
    where = {} if address is None else {"RAY_ADDRESS": address}
    options: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "runtime_env": {"env_vars": _worker_environment({**settings.environment(), **where})},
        "job_config": ray.job_config.JobConfig(metadata={LABEL_KEY: label} if label else {}),
    }
    if address is None:
        options |= {
            "address": "local",
            "num_cpus": num_cpus,
            # Ten processes, whose start takes as long as a short run.
            "include_dashboard": False,
            "_node_ip_address": LOOPBACK,
        }
    else:
        options["address"] = address
    _init(options, address)
    try:
        yield _session(started=address is None)
    finally:
        ray.shutdown(wait_for_processes=address is None)


def current() -> Session:
    """A view of the connection that this process has."""
    return _session(started=False)


def find_address() -> str | None:
    """``host:port`` of the cluster that a command here joins, or None if there is none.

    Raises:
        UserError: ``RAY_ADDRESS`` names something that is not there or cannot be joined.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    if named == "local":
        return None
    if named and named != "auto":
        if "://" in named:
            raise UserError(
                f"RAY_ADDRESS={named}: expected HOST:PORT of a cluster that this machine is part "
                "of; to reach one from outside, use `python -m cluster submit`"
            )
        if not answers(named):
            raise UserError(
                f"RAY_ADDRESS={named}: nothing answers there; unset it, or {HOW_TO_START}"
            )
        return named
    return recorded_address()


def recorded_address() -> str | None:
    """``host:port`` of the last cluster that ``ray start`` left on this machine, if it answers."""
    recorded: str | None = read_ray_address()
    # A cluster that was killed leaves its address behind.
    return recorded if recorded and answers(recorded) else None


def answers(address: str, timeout_s: float = 2.0) -> bool:
    """Whether something listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
    except (OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def loopback_stays(address: str | None) -> Iterator[None]:
    """Let Ray take 127.0.0.1 at its word for a cluster that is on the loopback interface alone.

    On Linux it otherwise puts the machine's outward address in that place: a new head is then open
    to the network, and one that is not is not found.

    Args:
        address: ``host:port`` to join; None for a cluster that is about to be started.
    """
    if address is not None and not _is_only_on_loopback(address):
        yield
        return
    saved = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(LOOPBACK_VARIABLE)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[LOOPBACK_VARIABLE] = "0"  # For the processes that Ray starts.
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, variable = saved
        os.environ.pop(LOOPBACK_VARIABLE)
        if variable is not None:
            os.environ[LOOPBACK_VARIABLE] = variable


def _is_only_on_loopback(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if host not in {LOOPBACK, "localhost", "[::1]", "::1"}:
        return False
    outward = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith("127.")
    ]
    return not any(answers(f"{candidate}:{port}", timeout_s=0.5) for candidate in outward)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def allow_token() -> None:
    """Send Ray's token, if this user has one and ``RAY_AUTH_MODE`` does not say otherwise.

    Ray does so by itself only for a cluster that it finds on this machine by itself: neither with
    ``RAY_ADDRESS`` nor in its job client. A cluster that wants no token does not mind one.
    """
    with quiet():
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def ensure_token() -> None:
    """Make a token if this user has none, and use it, unless ``RAY_AUTH_MODE`` says otherwise."""
    with quiet():
        enable_token_auth_by_default()
        ensure_token_if_auth_enabled(create_token_if_missing=True)


def _init(options: dict[str, Any], address: str | None) -> None:
    try:
        with quiet(), loopback_stays(address):
            if address is not None:
                allow_token()
                GcsClient(address=address)  # Says at once what costs ray.init half a minute.
            ray.init(**options)
    except ray.exceptions.AuthenticationError:
        ray.shutdown()
        raise UserError(
            f"the Ray cluster at {address} wants its token, and this user has none or another: "
            "save what `ray get-auth-token` prints where it was started as ~/.ray/auth_token"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        ray.shutdown()
        reason = " ".join(str(error).split())
        if address is None:
            raise RaybridgeError(f"Ray did not start: {reason}") from None
        raise RaybridgeError(f"the Ray cluster at {address} cannot be joined: {reason}") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Ray's notices and its announcements of later versions off standard error."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _session(*, started: bool) -> Session:
    context = ray.get_runtime_context()
    url: str | None = ray._private.worker.get_dashboard_url()
    if url and "://" not in url:
        url = f"http://{url}"
    return Session(started=started, address=context.gcs_address, dashboard_url=url or None)


def _worker_environment(wanted: dict[str, str]) -> dict[str, str]:
    """Our variables, less those that the job around us has set: Ray refuses to set them twice."""
    given: dict[str, str] = {}
    if injected := os.environ.get(_JOB_CONFIG_VARIABLE):
        given = (json.loads(injected).get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in wanted.items() if name not in given}


def _may_grow_to(wanted: Resources) -> bool:
    limit = ray_state.get_max_resources_from_cluster_config()
    return limit is not None and to_resources(limit).covers(wanted)
