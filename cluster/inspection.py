"""What one machine answers when it is asked how it is, and how that compares with others.

:func:`inspect_machine` runs on every node (see :mod:`cluster.doctor`), or here where there is no
cluster. It never raises: what a check meets is its finding.
"""

import importlib.metadata
import platform
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cluster.checks import (
    Check,
    Questions,
    check_dashboard,
    check_disk,
    check_haproxy,
    check_serve,
    check_shared_memory,
    check_store,
    check_tracking,
)
from cluster.provenance import code_digest

MAX_SKEW_S = 2.0
_LIBRARIES = ("ray", "torch", "raybridge")


@dataclass
class MachineReport:
    """What one machine answered."""

    host: str
    clock_s: float
    """Its clock, in seconds since 1970."""
    versions: dict[str, str]
    """Python, libraries, and ``code``: a digest over our own sources."""
    checks: list[Check] = field(default_factory=list)


def inspect_machine(questions: Questions) -> MachineReport:
    """Run every check that one machine can make by itself; takes some seconds at most."""
    checks: dict[str, Callable[[], Check]] = {
        "store": lambda: check_store(questions.settings, questions.mark),
        "tracking": lambda: check_tracking(questions),
        "dashboard": lambda: check_dashboard(questions),
        "serve": lambda: check_serve(questions),
        "haproxy": check_haproxy,
        "memory": lambda: check_shared_memory(questions.object_store_bytes),
        "disk": lambda: check_disk(Path(tempfile.gettempdir())),
    }
    found = [_finding(name, check) for name, check in checks.items()]
    return MachineReport(socket.gethostname(), time.time(), machine_versions(), found)


def _finding(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other checks go on
        said = " ".join(str(error).split())[:300]
        return Check(
            name,
            "failed",
            f"the check itself failed: {type(error).__name__}: {said}",
            "look for something unusual in what it names; if there is nothing, report it",
        )


def machine_versions() -> dict[str, str]:
    """What must be equal on all nodes."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    versions["code"] = code_digest()
    return versions


def compare_versions(own: dict[str, str], reference: dict[str, str], where: str) -> Check:
    """Compare a machine's versions with those of ``where``."""
    differing = [name for name, value in reference.items() if own.get(name) != value]
    if not differing:
        shown = ", ".join(f"{name} {own[name]}" for name in own)
        return Check("versions", "ok", shown)
    listed = ", ".join(f"{name} {own.get(name)} (there {reference[name]})" for name in differing)
    fix = "install the same versions from requirements.lock"
    if differing == ["code"]:
        fix = "bring both to the same commit, or submit with --working-dir, which carries the code"
    return Check("versions", "failed", f"not those of {where}: {listed}", fix)


def check_clock(clock_s: float, asked_s: float, answered_s: float) -> Check:
    """Whether a clock that was read between two moments of ours shows a time between them."""
    skew = max(asked_s - clock_s, clock_s - answered_s, 0.0)
    if skew <= MAX_SKEW_S:
        return Check("clock", "ok", "agrees")
    way = "behind" if clock_s < asked_s else "ahead"
    return Check(
        "clock",
        "failed",
        f"at least {skew:.0f} s {way}",
        "set it from the network on every node: timedatectl set-ntp true",
    )
