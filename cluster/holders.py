"""Who holds the CPUs and GPUs of the cluster that this process is connected to.

Ray's public state API answers through the dashboard, which private clusters do without and which
takes a second; the control store behind it holds the same tables and is read here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ray
from ray._private.state import state as ray_state
from ray.core.generated import gcs_pb2

from cluster.resources import Holder, HolderKind, Resources, actor_name, job_name, merged

LABEL_KEY = "raybridge.label"
"""Key of a driver's metadata under which it says what it is called."""


@dataclass(frozen=True)
class _Job:
    name: str
    at_work: bool


def find_holders(total: Resources, free: Resources) -> list[Holder]:
    """Everything that holds CPUs or GPUs, the largest first.

    Args:
        total: all that the cluster has.
        free: what nobody holds.
    """
    jobs = _job_names()
    found = [*_placement_group_holders(jobs), *_actor_holders(jobs)]
    # Tasks are in no table: what is left over is put down to the drivers at work.
    cpus = total.cpus - free.cpus - sum(holder.cpus for holder in found)
    gpus = total.gpus - free.gpus - sum(holder.gpus for holder in found)
    if cpus > 1e-3 or gpus > 1e-3:
        own = ray.get_runtime_context().get_job_id()
        at_work = {key.hex(): job.name for key, job in jobs.items() if job.at_work}
        # This driver asks, and so probably runs none itself.
        drivers = {name for key, name in at_work.items() if key != own} or set(at_work.values())
        name = f"tasks of {' or '.join(sorted(drivers)) or 'an ended driver'}"
        found.append(Holder(name, "tasks", max(cpus, 0.0), max(gpus, 0.0)))
    return merged(found)


def to_resources(amounts: Mapping[str, float]) -> Resources:
    """CPUs and GPUs of one of Ray's resource mappings."""
    return Resources(float(amounts.get("CPU", 0.0)), float(amounts.get("GPU", 0.0)))


def _job_names() -> dict[bytes, _Job]:
    accessor = ray_state._connect_and_get_accessor()
    jobs = {}
    for row in accessor.get_job_table(
        skip_submission_job_info_field=True, skip_is_running_tasks_field=True
    ):
        job = gcs_pb2.JobTableData.FromString(row)
        internal = job.config.ray_namespace.startswith("_ray_internal_")
        label = job.config.metadata.get(LABEL_KEY, "")
        name = job_name(label, job.entrypoint)
        jobs[job.job_id] = _Job(name, at_work=not job.is_dead and not internal)
    return jobs


def _placement_group_holders(jobs: dict[bytes, _Job]) -> Iterator[Holder]:
    for row in ray_state._connect_and_get_accessor().get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(row)
        if group.state != gcs_pb2.PlacementGroupTableData.CREATED:
            continue
        held = [to_resources(bundle.unit_resources) for bundle in group.bundles]
        job = jobs.get(group.creator_job_id)
        yield from _holder(
            job.name if job else group.name or "an ended driver", "placement group", held
        )


def _actor_holders(jobs: dict[bytes, _Job]) -> Iterator[Holder]:
    for row in ray_state._connect_and_get_accessor().get_actor_table(None, "ALIVE"):
        actor = gcs_pb2.ActorTableData.FromString(row)
        if actor.placement_group_id:
            continue  # Counted with its placement group.
        job = jobs.get(actor.job_id)
        name = actor_name(actor.name, actor.class_name, job.name if job else "an ended driver")
        yield from _holder(name, "actor", [to_resources(actor.required_resources)])


def _holder(name: str, kind: HolderKind, held: list[Resources]) -> Iterator[Holder]:
    cpus = sum(amount.cpus for amount in held)
    gpus = sum(amount.gpus for amount in held)
    if cpus or gpus:
        yield Holder(name, kind, cpus, gpus)
