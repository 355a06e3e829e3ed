"""What every benchmark does with its numbers: one JSON file and one page under docs/benchmarks."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cluster.provenance import code_commit, library_versions

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "benchmarks"


@dataclass(frozen=True)
class Series:
    """Repeated measurements of one contestant."""

    name: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def row(self, reference: "Series") -> str:
        """A row of the table; the ratio is the median of the ratios round by round."""
        ratios = [mine / other for mine, other in zip(self.values, reference.values, strict=True)]
        return (
            f"| {self.name} | {self.median:,.1f} | {min(self.values):,.1f} - "
            f"{max(self.values):,.1f} | {len(self.values)} | {statistics.median(ratios):.3f} |"
        )


def write_result(
    name: str,
    *,
    title: str,
    what: str,
    unit: str,
    command: str,
    reference: Series,
    others: Sequence[Series],
    notes: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
    details: Mapping[str, object] | None = None,
) -> Path:
    """Write ``docs/benchmarks/NAME.{json,md}``.

    Args:
        name: of the files.
        title: of the page.
        what: what was measured and how, in a few sentences.
        unit: of the values.
        command: how to repeat it.
        reference: what the ratios are to.
        others: the other contestants, measured in the same rounds.
        notes: what a reader must know to judge the numbers.
        versions: of the contestants' own libraries, beside ours.
        details: anything else, for the JSON file only.
    """
    table = [
        f"| | median {unit} | lowest - highest | n | ratio to {reference.name} |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(series.row(reference) for series in (reference, *others)),
    ]
    return _write(
        name,
        title=title,
        what=what,
        table=table,
        notes=notes,
        command=command,
        versions=versions or {},
        values={
            "unit": unit,
            "series": {series.name: list(series.values) for series in (reference, *others)},
            "details": dict(details or {}),
        },
    )


def write_facts(
    name: str,
    *,
    title: str,
    what: str,
    facts: Mapping[str, str],
    command: str,
    details: Mapping[str, object],
    notes: Sequence[str] = (),
) -> Path:
    """Write ``docs/benchmarks/NAME.{json,md}`` of a measurement that has no contestants.

    Args:
        name: of the files.
        title: of the page.
        what: what was measured and how, in a few sentences.
        facts: what came of it, each with its n and spread.
        command: how to repeat it.
        details: the numbers behind the facts, for the JSON file.
        notes: what a reader must know to judge them.
    """
    table = ["| | |", "| --- | ---: |", *(f"| {key} | {value} |" for key, value in facts.items())]
    return _write(
        name,
        title=title,
        what=what,
        table=table,
        notes=notes,
        command=command,
        versions={},
        values={"details": dict(details)},
    )


def append_run(
    name: str, run: Mapping[str, object], *, same: Sequence[str]
) -> list[dict[str, object]]:
    """Add a run to those that ``docs/benchmarks/NAME.json`` has among its details.

    Args:
        name: of the file; there need not be one.
        run: its ``seed`` and figures; commit, time and machine are added.
        same: fields in which runs must agree to stand on one page; others are dropped, and so is
            an earlier run of the same seed.

    Returns:
        The runs by seed, for the details of the next page.
    """
    file = RESULTS / f"{name}.json"
    runs = json.loads(file.read_text("utf-8"))["details"]["runs"] if file.is_file() else []
    kept = [
        other
        for other in runs
        if other["seed"] != run["seed"] and all(other[field] == run[field] for field in same)
    ]
    added = {
        **run,
        "commit": code_commit(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(),
    }
    return sorted([*kept, added], key=lambda other: int(str(other["seed"])))


def spread(values: Sequence[float], form: str) -> str:
    """Mean, standard deviation, and lowest to highest."""
    mean = f"{statistics.mean(values):{form}}"
    if len(values) == 1:
        return mean
    return (
        f"{mean} +- {statistics.stdev(values):{form}} ({min(values):{form}} - {max(values):{form}})"
    )


def _write(
    name: str,
    *,
    title: str,
    what: str,
    table: Sequence[str],
    notes: Sequence[str],
    command: str,
    versions: Mapping[str, str],
    values: Mapping[str, object],
) -> Path:
    RESULTS.mkdir(parents=True, exist_ok=True)
    machine = machine_facts()
    libraries = {**library_versions(), **versions}
    record = {
        "benchmark": name,
        "command": command,
        "commit": code_commit(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "libraries": libraries,
        **values,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    page = [
        f"# {title}",
        "",
        what,
        "",
        *table,
        "",
        *(f"- {note}" for note in notes),
        *([""] if notes else []),
        f"Command: `{command}`  ",
        f"Commit: {record['commit']}, {record['measured_at']}  ",
        f"Machine: {machine['cores']} cores, {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"{machine['system']}  ",
        f"Libraries: {', '.join(f'{key} {value}' for key, value in libraries.items())}",
        "",
    ]
    file = RESULTS / f"{name}.md"
    file.write_text("\n".join(page), "utf-8")
    return file


def machine_facts() -> dict[str, object]:
    """Cores, processor, memory, system."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu,
        "memory_gib": round(pages / 2**30),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "instruction_sets": _instruction_sets(info),
    }


def run_json(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, object]:
    """Run a command and decode its last line of standard output."""
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    value: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return value


def _instruction_sets(info: Path) -> list[str]:
    if not info.is_file():
        return []
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    words = set(info.read_text("utf-8").split())
    return [name for name in known if name in words]
