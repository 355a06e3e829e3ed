"""Ray Jobs: run a command on a cluster from a copy of a folder, follow it, get its exit code."""

import asyncio
import ipaddress
import os
import shlex
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil
import requests
from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

from cluster.errors import NotFoundError, RaybridgeError, ResourceError, UserError
from cluster.resources import Resources, job_name
from cluster.session import (
    HOW_TO_START,
    allow_token,
    find_address,
    loopback_stays,
    quiet,
    recorded_address,
)
from cluster.settings import Settings
from cluster.store import check_name

_POLL_S = 0.5
_ASK_TIMEOUT_S = 10
_FOLLOW_ATTEMPTS = 5
_LOST = (RuntimeError, OSError, aiohttp.ClientError)
# Beside what .gitignore and .rayignore name, and .git, .venv and __pycache__, which Ray leaves out.
_EXCLUDES = ["**/.mypy_cache", "**/.ruff_cache", "**/.pytest_cache", "**/*.egg-info"]


@dataclass(frozen=True)
class JobResult:
    """How a job ended."""

    job_id: str
    status: str
    """``SUCCEEDED``, ``FAILED`` or ``STOPPED``."""
    exit_code: int
    """Of the command; 1 where it had none, since it never started or was stopped."""
    message: str
    """What to tell: the exit code, or Ray's account of why there is none."""


class Job:
    """A job that was submitted."""

    def __init__(self, client: JobSubmissionClient, job_id: str) -> None:
        self._client = client
        self.job_id = job_id
        self.dashboard_url: str = client.get_address()
        self._seen = 0

    def follow(self, echo: Callable[[str], None]) -> JobResult:
        """Hand the job's output to ``echo`` piece by piece until the job ends.

        Raises:
            RaybridgeError: the cluster went away.
        """
        failures = 0
        while True:
            seen = self._seen
            try:
                with quiet():
                    asyncio.run(self._echo_logs(echo))
                return self.wait()
            except _LOST as error:
                # Proxies cut connections that are long, or silent, as often as they like.
                failures = 0 if self._seen > seen or self._runs() else failures + 1
                if failures == _FOLLOW_ATTEMPTS:
                    raise RaybridgeError(
                        f"lost sight of job {self.job_id} at {self.dashboard_url}: {_line(error)}"
                    ) from None
                time.sleep(max(1, failures) * _POLL_S)

    def wait(self) -> JobResult:
        """Wait for the job's end."""
        while not (info := self._client.get_job_info(self.job_id)).status.is_terminal():
            time.sleep(_POLL_S)
        succeeded = info.status.value == "SUCCEEDED"
        code = 0 if succeeded else info.driver_exit_code
        return JobResult(
            job_id=self.job_id,
            status=info.status.value,
            exit_code=1 if code is None else code,
            message=_line(info.message or "no reason given")
            if code is None
            else f"exit code {code}",
        )

    def status(self) -> str:
        """``PENDING``, ``RUNNING``, or how it ended."""
        status: str = self._client.get_job_status(self.job_id).value
        return status

    def stop(self) -> None:
        """Ask the job to end (SIGTERM), and kill what has not within three seconds."""
        self._client.stop_job(self.job_id)

    def _runs(self) -> bool:
        """Whether the cluster answers that the job has not ended."""
        try:
            return not self._client.get_job_status(self.job_id).is_terminal()
        except _LOST:
            return False

    async def _echo_logs(self, echo: Callable[[str], None]) -> None:
        # A connection made anew begins at the beginning again.
        skip = self._seen
        async for piece in self._client.tail_job_logs(self.job_id):
            fresh = piece[skip:]
            skip = max(0, skip - len(piece))
            if fresh:
                echo(fresh)
                self._seen += len(fresh)


def submit(
    settings: Settings,
    command: Sequence[str],
    *,
    working_dir: Path | None = None,
    environment: Mapping[str, str] | None = None,
    num_cpus: float = 0,
    num_gpus: float = 0,
    job_id: str | None = None,
) -> Job:
    """Start ``command`` on the cluster.

    The cluster is the one that ``RAY_API_SERVER_ADDRESS`` or ``RAY_ADDRESS`` names, or the one that
    runs on this machine. The token goes along whether or not ``RAY_AUTH_MODE`` is exported.

    Args:
        settings: the store and tracking address that the job gets.
        command: program and arguments; ``python`` is the one on the path of ``ray start``.
        working_dir: folder that is copied to where the job runs; None where the cluster has all
            that the command needs.
        environment: further variables of the job and its workers.
        num_cpus: CPUs that the command itself reserves; what it starts reserves its own.
        num_gpus: GPUs that the command itself reserves.
        job_id: its name, by default a random one.

    Raises:
        NotFoundError: no cluster answers.
        ResourceError: no machine of the cluster has that many CPUs and GPUs.
        UserError: the folder is too large, or the name is taken or cannot be one.
    """
    if job_id is not None:
        check_name("job", job_id)
    if working_dir is not None:
        if not working_dir.is_dir():
            raise UserError(f"working directory {working_dir} is not a folder")
        if working_dir.resolve() == Path("/"):
            raise UserError(
                f"working directory {working_dir} is the whole machine; name the folder of your "
                "code with --working-dir"
            )
    client = connect_client()
    _require(client, Resources(num_cpus, num_gpus), shlex.join(command))
    runtime_env: dict[str, object] = {
        "env_vars": {**settings.environment(), **(environment or {})},
    }
    if working_dir is not None:
        runtime_env["working_dir"] = str(working_dir.resolve())
        runtime_env["excludes"] = _EXCLUDES
    try:
        with quiet():
            made = client.submit_job(
                entrypoint=shlex.join(command),
                runtime_env=runtime_env,
                submission_id=job_id,
                entrypoint_num_cpus=num_cpus or None,
                entrypoint_num_gpus=num_gpus or None,
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the cluster did not take the job: {_line(error)}") from None
    return Job(client, made)


def connect_client() -> JobSubmissionClient:
    """Ray's job client for the cluster that is meant.

    Raises:
        NotFoundError: no cluster answers there.
        UserError: it answers and refuses us.
    """
    address = named_dashboard() or find_address()
    if address is None:
        raise NotFoundError(f"no Ray cluster is running here; {HOW_TO_START}")
    allow_token()
    try:
        with quiet(), loopback_stays(address):
            return JobSubmissionClient(address)
    except (ConnectionError, requests.ConnectionError):
        raise NotFoundError(f"no Ray dashboard answers for {address}; {HOW_TO_START}") from None
    except (RuntimeError, ValueError, RayError) as error:
        reason = _line(error)
        if "token" in reason.lower():
            reason = (
                "it wants its token, and this user has none or another: save what `ray "
                "get-auth-token` prints where it was started as ~/.ray/auth_token"
            )
        raise UserError(f"the cluster at {address} refused: {reason}") from None


def named_dashboard() -> str | None:
    """The dashboard that the environment names, if it names one.

    Raises:
        UserError: what it names is none.
    """
    variable, address = "RAY_API_SERVER_ADDRESS", os.environ.get("RAY_API_SERVER_ADDRESS", "")
    if not address:
        variable, address = "RAY_ADDRESS", os.environ.get("RAY_ADDRESS", "")
        if "://" not in address:
            return None
    try:
        parts = urlsplit(address)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"{variable}={address}: expected the dashboard's http://HOST:8265")
    return address


def is_elsewhere(dashboard_url: str) -> bool:
    """Whether a dashboard is that of a cluster which this machine is no part of."""
    host = urlsplit(dashboard_url).hostname or ""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return True
    if all(ipaddress.ip_address(one).is_loopback for one in found):
        return recorded_address() is None  # Then an ssh tunnel leads there.
    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    return not found & own


def _require(client: JobSubmissionClient, wanted: Resources, command: str) -> None:
    """Refuse a command that no machine is large enough for; Ray would wait for one for ever.

    A cluster that an autoscaler lets grow is trusted to. What is held by others is waited for.

    Raises:
        ResourceError: names what was asked for and what there is.
    """
    if not (wanted.cpus or wanted.gpus) or _may_grow(client):
        return
    answer = _ask(client, "/api/v0/nodes?detail=true&limit=10000").get("result") or {}
    machines = [
        Resources(float(amounts.get("CPU", 0)), float(amounts.get("GPU", 0)))
        for row in answer.get("result", ())
        for amounts in [row["resources_total"]]
        if row["state"] == "ALIVE"
    ]
    if machines and not any(machine.covers(wanted) for machine in machines):
        largest = max(machines, key=lambda machine: (machine.gpus, machine.cpus))
        raise ResourceError(
            f"`{job_name('', command)}` asks for {wanted} on one machine for itself; "
            f"{'the largest' if len(machines) > 1 else 'the only one'} has {largest}; ask for "
            "less, or add machines (what the command starts reserves its own)"
        )


def _may_grow(client: JobSubmissionClient) -> bool:
    """Whether an autoscaler can add machines of a kind that it has a name for."""
    status = _ask(client, "/api/cluster_status").get("clusterStatus") or {}
    kinds = (status.get("autoscalerReport") or {}).get("nodeTypeMapping") or {}
    # Without one, every machine is a kind of its own.
    return any(not str(kind).startswith("node_") for kind in kinds.values())


def _ask(client: JobSubmissionClient, path: str) -> dict[str, Any]:
    try:
        answer = client._do_request("GET", path, timeout=_ASK_TIMEOUT_S)
        data = answer.json().get("data") if answer.status_code == 200 else None
    except (requests.RequestException, ValueError):
        data = None  # What is not known is not refused.
    return data or {}


def _line(error: BaseException | str) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
