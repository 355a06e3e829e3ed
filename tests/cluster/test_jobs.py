"""Submitting and following jobs, as far as it is decided without a cluster."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from cluster import jobs
from cluster.errors import RaybridgeError, UserError
from cluster.jobs import Job
from cluster.settings import Settings


class CutOff:
    """A cluster whose streams of a job's output break off, each with more of it; or always."""

    def __init__(self, streams: list[str], *, answers: bool = True) -> None:
        self.streams = streams
        self.answers = answers

    def get_address(self) -> str:
        return "http://head:8265"

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        if not self.streams:
            return
        yield self.streams.pop(0)
        if self.streams:
            raise RuntimeError("cut off")

    def get_job_status(self, job_id: str) -> JobStatus:
        if not self.answers:
            raise RuntimeError("nobody is there")
        return JobStatus.RUNNING if self.streams else JobStatus.SUCCEEDED

    def get_job_info(self, job_id: str) -> JobDetails:
        status = self.get_job_status(job_id)
        return JobDetails(type=JobType.SUBMISSION, entrypoint="", status=status, driver_exit_code=0)


def follow(cluster: CutOff, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_POLL_S", 0)
    Job(cast(JobSubmissionClient, cluster), "job").follow(said.append)


def test_output_that_breaks_off_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    growing = ["abcdefghijkl"[: i + 1] for i in range(12)]
    said: list[str] = []
    follow(CutOff(growing), said, monkeypatch)
    assert "".join(said) == "abcdefghijkl"


def test_a_silent_job_behind_a_proxy_that_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    follow(CutOff([*[""] * 12, "done"]), said, monkeypatch)
    assert said == ["done"]


def test_a_cluster_that_went_away(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = CutOff(["a"] * 20, answers=False)
    with pytest.raises(RaybridgeError, match="lost sight of job job at http://head:8265: cut off"):
        follow(gone, [], monkeypatch)
    assert len(gone.streams) == 20 - 1 - 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"job_id": "a b/c"}, r"job name 'a b/c': use 1-64 letters"),
        ({"working_dir": Path("/")}, r"working directory / is the whole machine; .*--working-dir"),
        ({"working_dir": Path("nowhere")}, "working directory nowhere is not a folder"),
    ],
)
def test_what_no_job_can_be(settings: Settings, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        jobs.submit(settings, ["true"], **changes)


@pytest.mark.parametrize(
    ("variable", "address"),
    [
        ("RAY_API_SERVER_ADDRESS", "ftp://head:8265"),
        ("RAY_API_SERVER_ADDRESS", "head:8265"),
        ("RAY_API_SERVER_ADDRESS", "http://[bad"),
        ("RAY_API_SERVER_ADDRESS", "http://head:x"),
        ("RAY_ADDRESS", "ray://head:10001"),
    ],
)
def test_a_dashboard_that_is_none(
    variable: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, address)
    with pytest.raises(UserError, match=f"{variable}=.*: expected the dashboard's http://HOST:82"):
        jobs.connect_client()


def test_a_dashboard_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert jobs.is_elsewhere("http://192.0.2.1:8265")
    assert jobs.is_elsewhere("http://127.0.0.1:8265"), "no cluster is here, so it is a tunnel"
    own = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith("127.")
    ]
    assert not any(jobs.is_elsewhere(f"http://{address}:8265") for address in own)
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "ray").mkdir()
        recorded = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(recorded)
        assert not jobs.is_elsewhere("http://localhost:8265")
