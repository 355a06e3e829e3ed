"""Asks every node of the cluster what is wrong with it, through Ray; see :mod:`cluster.inspection`.

A node is asked by a task that is bound to it and holds no CPU. One that does not answer in time is
a finding like any other.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray._raylet import get_authentication_mode
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.checks import Check, Outcome, Questions, ServeAddress, check_store, probes
from cluster.errors import RaybridgeError
from cluster.inspection import (
    MachineReport,
    check_clock,
    compare_versions,
    inspect_machine,
    machine_versions,
)
from cluster.session import Session, connect, find_address
from cluster.settings import Settings

DEFAULT_TIMEOUT_S = 60.0
_HEAD_RESOURCE = "node:__internal_head__"
_NO_TOKEN = 0


@dataclass(frozen=True)
class NodeFindings:
    """What was found on one node."""

    address: str
    host: str
    """Its own name; empty if it did not answer."""
    is_head: bool
    checks: tuple[Check, ...]

    @property
    def name(self) -> str:
        """What to call it in a line: address and own name."""
        shown = f"{self.address} ({self.host})" if self.host else self.address
        return f"{shown}, head" if self.is_head else shown


@dataclass(frozen=True)
class Diagnosis:
    """What was found on all of them."""

    cluster: str | None
    """``host:port``; None if there is no cluster and only this machine was looked at."""
    nodes: tuple[NodeFindings, ...]
    dead: tuple[str, ...]
    """Nodes that have left the cluster, with Ray's reason: a record, and no failure by itself."""

    @property
    def failures(self) -> int:
        """How many checks failed."""
        return self._count("failed")

    @property
    def warnings(self) -> int:
        """How many checks warn."""
        return self._count("warning")

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "failures": self.failures, "warnings": self.warnings}

    def _count(self, outcome: Outcome) -> int:
        return sum(check.outcome == outcome for node in self.nodes for check in node.checks)


def examine(settings: Settings, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Diagnosis:
    """Check every node of the running cluster, or this machine if there is none.

    Args:
        settings: the store and tracking address that the nodes are asked about.
        timeout_s: how long a node may take to answer.

    Raises:
        UserError: there is a cluster, and it refuses us.
    """
    if find_address() is None:
        found = inspect_machine(Questions(settings))
        checks = (compare_versions(found.versions, found.versions, "itself"), *found.checks)
        return Diagnosis(None, (NodeFindings("here", found.host, True, checks),), ())
    with connect(settings, may_start=False, label="cluster doctor") as session:
        return _examine_cluster(settings, session, timeout_s)


def _examine_cluster(settings: Settings, session: Session, timeout_s: float) -> Diagnosis:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    nodes.sort(key=lambda node: (_HEAD_RESOURCE not in node["Resources"], node["NodeName"]))
    serve = _serve_address()
    with _mark(settings) as mark:
        asked = [
            _ask(
                node,
                Questions(
                    settings=settings,
                    mark=mark,
                    clustered=True,
                    is_head=_HEAD_RESOURCE in node["Resources"],
                    nodes=len(nodes),
                    dashboard_url=session.dashboard_url,
                    serve=serve,
                    object_store_bytes=int(node["Resources"].get("object_store_memory", 0)),
                ),
            )
            for node in nodes
        ]
        answers = _collect(asked, timeout_s)
    # Of the head; of this machine if the head does not answer.
    reference, where = machine_versions(), "this machine"
    if answers and isinstance(answers[0], _Answer):
        reference, where = answers[0].report.versions, "the head"
    findings = [
        _findings(node, answer, reference, where)
        for node, answer in zip(nodes, answers, strict=True)
    ]
    if mark is None and findings:
        findings[0] = _with_own_store(findings[0], settings)
    dead = [
        f"{node['NodeManagerAddress']}: {node['DeathReasonMessage'] or 'no reason given'}"
        for node in ray.nodes()
        if not node["Alive"]
    ]
    return Diagnosis(session.address, tuple(findings), tuple(dead))


@dataclass(frozen=True)
class _Answer:
    report: MachineReport
    asked_s: float
    answered_s: float


@dataclass(frozen=True)
class _Asked:
    reference: Any
    asked_s: float


def _ask(node: dict[str, Any], questions: Questions) -> _Asked:
    bound = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(_on_node).options(
        num_cpus=0, max_retries=0, scheduling_strategy=bound, name="cluster doctor"
    )
    return _Asked(task.remote(questions), time.time())


def _on_node(questions: Questions) -> MachineReport:
    """What runs on a node."""
    report = inspect_machine(questions)
    report.checks.insert(0, _check_token())
    return report


def _check_token() -> Check:
    """Whether Ray's ports here ask for a token: who reaches them runs code as this user."""
    if int(get_authentication_mode()) != _NO_TOKEN:
        return Check("token", "ok", "asked for")
    address = ray.util.get_node_ip_address()
    on_loopback = address.startswith("127.")
    who = "every user of this machine" if on_loopback else f"everybody who reaches {address}"
    decided = os.environ.get("RAY_AUTH_MODE") == "disabled"
    return Check(
        "token",
        "warning" if on_loopback or decided else "failed",
        f"none is asked for: {who} runs code as the user of this cluster",
        "`ray get-auth-token --generate` on the head, the same ~/.ray/auth_token on every node, "
        "export RAY_AUTH_MODE=token, and `ray start` again",
    )


def _collect(asked: list[_Asked], timeout_s: float) -> list["_Answer | Check"]:
    """Every node's answer, or the finding that there is none, in the order of the questions."""
    answers: dict[Any, _Answer | Check] = {}
    deadline = time.monotonic() + timeout_s
    waiting = {one.reference: one for one in asked}
    while waiting and (left := deadline - time.monotonic()) > 0:
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=left)
        for reference in ready:
            one = waiting.pop(reference)
            answered_s = time.time()
            try:
                answers[reference] = _Answer(ray.get(reference), one.asked_s, answered_s)
            except Exception as error:  # noqa: BLE001 - whatever happens there is the finding
                answers[reference] = _explain(error)
    for reference in waiting:
        ray.cancel(reference, force=True)
        answers[reference] = Check(
            "answers",
            "failed",
            f"nothing within {timeout_s:.0f} s: the machine hangs, is overloaded, or its network "
            "is cut",
            "look into logs/raylet.out in Ray's session folder there; `ray stop`, then `ray start "
            "--address` again",
        )
    return [answers[one.reference] for one in asked]


def _explain(error: Exception) -> Check:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1][:300] if lines else type(error).__name__
    if "ModuleNotFoundError" in str(error) or "No module named" in str(error):
        return Check(
            "answers",
            "failed",
            f"our code is not found there: {said}",
            "install raybridge on that node, in the environment that runs `ray start`, or submit "
            "with --working-dir",
        )
    fix = "look into the logs in Ray's session folder there, and start the node again"
    return Check("answers", "failed", f"it failed to answer: {said}", fix)


def _findings(
    node: dict[str, Any], answer: _Answer | Check, reference: dict[str, str], where: str
) -> NodeFindings:
    is_head = _HEAD_RESOURCE in node["Resources"]
    if isinstance(answer, Check):
        return NodeFindings(node["NodeManagerAddress"], "", is_head, (answer,))
    report = answer.report
    checks = (
        Check("answers", "ok", f"in {answer.answered_s - answer.asked_s:.1f} s"),
        compare_versions(report.versions, reference, where),
        check_clock(report.clock_s, answer.asked_s, answer.answered_s),
        *report.checks,
    )
    return NodeFindings(node["NodeManagerAddress"], report.host, is_head, checks)


def _with_own_store(findings: NodeFindings, settings: Settings) -> NodeFindings:
    """The asking machine could not write to the store: its own finding, on the first line."""
    own = check_store(settings, None)
    kept = [check for check in findings.checks if check.name != "store"]
    return NodeFindings(findings.address, findings.host, findings.is_head, (*kept, own))


@contextlib.contextmanager
def _mark(settings: Settings) -> Iterator[str | None]:
    """Leave a file in the store for as long as the nodes look for it; None if that fails."""
    name = f"{secrets.token_hex(8)}.json"
    try:
        folder = probes(settings)
        folder.write_json(name, {"asked": name})
    except (OSError, RaybridgeError):
        yield None
        return
    try:
        yield name
    finally:
        with contextlib.suppress(OSError, RaybridgeError):
            folder.delete(name)
        with contextlib.suppress(OSError):
            folder.path.rmdir()


def _serve_address() -> ServeAddress | None:
    """Where Serve listens; asked of its controller, since importing Serve takes a second."""
    try:
        controller: Any = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        options: Any = ray.get(controller.get_http_config.remote(), timeout=5)
    except (ValueError, ray.exceptions.RayError):
        return None
    return ServeAddress(options.host or "0.0.0.0", options.port)
