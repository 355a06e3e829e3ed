"""CPUs and GPUs: how many, who holds them, and the one line that says there are too few."""

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HolderKind = Literal["placement group", "actor", "tasks"]


@dataclass(frozen=True)
class Resources:
    """A number of logical CPUs and GPUs."""

    cpus: float
    gpus: float = 0.0

    def covers(self, wanted: "Resources") -> bool:
        """Whether ``wanted`` fits in."""
        # Ray counts in units of 1/10,000.
        return self.cpus + 1e-4 >= wanted.cpus and self.gpus + 1e-4 >= wanted.gpus

    def __str__(self) -> str:
        parts = [_counted(self.cpus, "CPU")] if self.cpus or not self.gpus else []
        if self.gpus:
            parts.append(_counted(self.gpus, "GPU"))
        return " and ".join(parts)


@dataclass(frozen=True)
class Holder:
    """Something that holds CPUs or GPUs, under a name that a person recognises."""

    name: str
    kind: HolderKind
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.name} ({Resources(self.cpus, self.gpus)})"


@dataclass(frozen=True)
class Node:
    """One machine of a cluster."""

    address: str
    total: Resources
    free: Resources


def room_for(piece: Resources, amounts: Iterable[Resources]) -> int:
    """How many pieces of one size fit, none of them split over two machines.

    Args:
        piece: what each of them takes; not nothing at all.
        amounts: what each machine has.
    """
    # Ray counts in units of 1/10,000.
    return sum(
        math.floor(
            min(
                (have + 1e-4) / take
                for have, take in ((amount.cpus, piece.cpus), (amount.gpus, piece.gpus))
                if take
            )
        )
        for amount in amounts
    )


def shortage(
    what: str, piece: Resources, count: int, nodes: Sequence[Node], holders: Sequence[Holder]
) -> str:
    """One line: what was asked for, what is free, and who holds the rest.

    Args:
        what: what it is for.
        piece: what is needed on one machine.
        count: how many times.
        nodes: the machines.
        holders: who holds what is not free.
    """
    wanted = summed([piece] * count)
    total, free = summed(node.total for node in nodes), summed(node.free for node in nodes)
    exists = room_for(piece, (node.total for node in nodes)) >= count
    if (free if exists else total).covers(wanted):
        times = f"{count} times " if count > 1 else ""
        each = ", each on one machine" if count > 1 else " on one machine"
        amounts = [(node.free if exists else node.total, node.address) for node in nodes]
        amounts.sort(key=lambda entry: (-entry[0].gpus, -entry[0].cpus))
        listed = _listed([f"{_both(amount, piece)} on {address}" for amount, address in amounts])
        line = f"{what} needs {times}{piece}{each}; {'free' if exists else 'there'} are {listed}"
    elif exists:
        line = f"{what} needs {wanted}; {_both(free, wanted)} of {_both(total, wanted)} free"
    else:
        line = (
            f"{what} needs {wanted}; "
            f"this cluster has {_both(total, wanted)} in all, {_both(free, wanted)} free"
        )
    if holders:
        line += f"; held by {_listed([str(holder) for holder in holders])}"
    if not exists:
        return f"{line}; ask for less, or add machines"
    return f"{line}; wait, stop one of them, or ask for less"


def summed(amounts: Iterable[Resources]) -> Resources:
    """All of them together."""
    listed = list(amounts)
    return Resources(sum(one.cpus for one in listed), sum(one.gpus for one in listed))


def merged(holders: Iterable[Holder]) -> list[Holder]:
    """Holders of the same name and kind added up, the largest first."""
    sums: dict[tuple[str, HolderKind], tuple[float, float]] = {}
    for holder in holders:
        cpus, gpus = sums.get((holder.name, holder.kind), (0.0, 0.0))
        sums[(holder.name, holder.kind)] = (cpus + holder.cpus, gpus + holder.gpus)
    found = [Holder(name, kind, *amounts) for (name, kind), amounts in sums.items()]
    return sorted(found, key=lambda holder: (-holder.gpus, -holder.cpus, holder.name))


def actor_name(name: str, class_name: str, job: str) -> str:
    """What to call an actor: Ray's libraries encode the interesting part in its name."""
    if name.startswith("SERVE_REPLICA::"):
        application, _, rest = name.removeprefix("SERVE_REPLICA::").partition("#")
        return f"Serve application {application}, deployment {rest.partition('#')[0]}"
    if name.startswith("_ray_internal_job_actor_"):
        return f"job {name.removeprefix('_ray_internal_job_actor_')}"
    return f"actor {name or class_name.rpartition('.')[2]} of {job}"


def job_name(label: str, entrypoint: str) -> str:
    """What to call a driver: the label that it gave itself, or its command line."""
    if label:
        return label
    try:
        words = shlex.split(entrypoint)
    except ValueError:
        words = entrypoint.split()
    if words and Path(words[0]).name.startswith("python"):
        words[0] = "python"
    command = " ".join(words)
    return command if len(command) <= 60 else f"{command[:57]}..."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _both(amount: Resources, wanted: Resources) -> str:
    """An amount with the kinds that were asked for, zero included."""
    parts = [_counted(amount.cpus, "CPU")] if wanted.cpus or not wanted.gpus else []
    if wanted.gpus:
        parts.append(_counted(amount.gpus, "GPU"))
    return " and ".join(parts)


def _counted(amount: float, unit: str) -> str:
    # Rounded down, since 0.999 free CPUs are not one; but first to the unit in which Ray counts.
    shown = math.floor(round(amount, 4) * 100 + 1e-6) / 100
    return f"{shown:g} {unit}{'' if shown == 1 else 's'}"
