"""The Ray Train adapter: it starts the workers, and hands them the loop, which knows no Ray."""

import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pa_fs
import ray
import ray.train as ray_train
import ray.train.torch as ray_train_torch
import torch
from fsspec.implementations.memory import MemoryFileSystem
from ray.train.torch.config import _TorchBackend as TorchBackend

# At run time these are what `ray.train` exports; their static types there are version 1's.
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.result import Result

from cluster.dataset import Dataset
from cluster.errors import DataError, RaybridgeError, ResourceError, TrainingError, UserError
from cluster.events import Event
from cluster.session import Session, current
from cluster.store import Store
from train.comm import choose_comm, take_interface
from train.config import TrainConfig
from train.eager import leave_compiler_out
from train.elastic import ElasticTrainer
from train.hardware import MemoryFormat
from train.loop import Trainer
from train.outbox import OUTBOX
from train.ray_trainer import LeanTrainer, find_data_error, worker_environment
from train.runs import Run
from train.weights import weights_sha256

POLL_PERIOD_S = 0.3
STOP_TIMEOUT_S = 10.0
COLLECTIVE_TIMEOUT_S = 300
HOW_TO_GO_ON = "go on from the newest checkpoint with `python -m train resume`"
# Lost machines may come back, and new ones may start; four times this long is waited for them.
PLACE_TIMEOUT_S = 30
PLACE_RETRIES = 3
# How often an elastic run looks whether it can have more workers. To take them costs a restart.
RESIZE_PERIOD_S = 60


@dataclass(frozen=True)
class Placement:
    """What each worker gets."""

    workers: int
    """Or as many as there is room for, down to ``fewest``."""
    fewest: int
    cpus: int
    gpu: bool
    spread: bool


@dataclass(frozen=True)
class WorkerJob:
    """Everything a worker needs, as one value."""

    config: TrainConfig
    dataset: str
    """``NAME@VERSION``."""
    run: str
    """The run's name."""
    store: str
    """Address of the store that holds both, which each worker opens on its own machine."""
    threads: int


@dataclass(frozen=True)
class WorkerResult:
    """What worker 0 returns."""

    steps: int
    history: tuple[dict[str, float], ...]
    device: str
    workers: int
    threads: int
    """Of each worker."""
    memory_format: MemoryFormat
    weights_sha256: str


def choose_placement(config: TrainConfig, session: Session) -> Placement:
    """Decide CPUs and GPUs of each worker.

    Raises:
        ResourceError: they are not free; the message names who holds them.
    """
    resources = config.resources
    free = session.free()
    fewest = resources.min_workers or resources.workers
    gpu = resources.device == "cuda" or (resources.device == "auto" and free.gpus >= fewest)
    if resources.cpus_per_worker is not None:
        cpus = resources.cpus_per_worker
    elif gpu or config.exact is not None or fewest < resources.workers:
        # An exact run's shards are computed on one thread; other workers may come later.
        cpus = 1
    else:
        cpus = _cpus_per_worker([node.free.cpus for node in session.nodes()], resources.workers)
    spread = resources.placement == "spread"
    placement = Placement(resources.workers, fewest, cpus, gpu, spread)
    _require(placement, session)
    return placement


def _require(placement: Placement, session: Session, **options: float) -> None:
    what = f"training with {placement.fewest} workers"
    gpus = 1 if placement.gpu else 0
    session.require(placement.cpus, gpus, what, count=placement.fewest, **options)


def _no_room(placement: Placement) -> str | None:
    """What is missing, if the workers no longer fit into the cluster."""
    try:
        _require(placement, current(), wait_s=0)
    except ResourceError as error:
        return str(error)
    except ray.exceptions.RayError:
        pass
    return None


def _cpus_per_worker(free_of_nodes: list[float], workers: int) -> int:
    """The most CPUs that each worker can have, none of them split over two machines."""
    for cpus in range(int(max(free_of_nodes, default=0)), 1, -1):
        if sum(int(free // cpus) for free in free_of_nodes) >= workers:
            return cpus
    return 1


def train_on_ray(
    config: TrainConfig,
    dataset: Dataset,
    run: Run,
    store: Store,
    placement: Placement,
    on_events: Callable[[list[Event]], None],
) -> WorkerResult:
    """Train on the cluster that this process is connected to.

    Dead workers are replaced up to ``config.resources.max_failures`` times; the run goes on from
    its newest checkpoint. Errors that another try would only repeat are not tried again.

    Args:
        config: the run's configuration.
        dataset: what to train on.
        run: the run's folder.
        store: what holds both, as every node sees it.
        placement: CPUs and GPUs of the workers.
        on_events: called with what the workers tell, in order.

    Raises:
        RaybridgeError: of the kind that a worker raised.
        TrainingError: workers died more often than is allowed.
    """
    # Read by Ray's controller, which polls its workers at this period (two seconds by default).
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PLACE_TIMEOUT_S))
    threads = 1 if config.exact is not None else placement.cpus
    job = WorkerJob(config, dataset.reference, run.name, store.address, threads)
    elastic = placement.fewest < placement.workers
    trainer = (ElasticTrainer if elastic else LeanTrainer)(
        _work,
        train_loop_config={"job": job},
        torch_config=_TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=(placement.fewest, placement.workers) if elastic else placement.workers,
            elastic_resize_monitor_interval_s=RESIZE_PERIOD_S,
            use_gpu=placement.gpu,
            placement_strategy="SPREAD" if placement.spread else "PACK",
            resources_per_worker={"CPU": placement.cpus, **({"GPU": 1} if placement.gpu else {})},
        ),
        run_config=RunConfig(
            # Ray resumes by itself where a name is used again; our own checkpoints decide that.
            name=f"attempt-{time.time_ns()}",
            # Nothing is reported to Ray, so it has nothing to keep that another node must see.
            storage_path="/ray-train",
            storage_filesystem=pa_fs.PyFileSystem(pa_fs.FSSpecHandler(MemoryFileSystem())),
            failure_config=FailureConfig(
                max_failures=config.resources.max_failures,
                controller_failure_limit=PLACE_RETRIES,
            ),
            logging_config=ray_train.LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": worker_environment()},
        ),
    )
    try:
        result = _fit_forwarding(trainer, on_events)
    except ray_train.WorkerGroupError as error:
        if (data_error := find_data_error(error)) is not None:
            raise data_error from None
        raise TrainingError(_explain_failures(error, config.resources.max_failures)) from None
    except ray_train.TrainingFailedError as error:
        reason = _no_room(placement) or _last_line(error)
        raise TrainingError(f"Ray Train gave up: {reason}; {HOW_TO_GO_ON}") from None
    except ray.exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise TrainingError(f"Ray Train's controller died: {reason}; {HOW_TO_GO_ON}") from None
    value = result.return_value if isinstance(result, Result) else None
    if isinstance(value, RaybridgeError):
        raise value
    if not isinstance(value, WorkerResult):
        raise TrainingError("the run was stopped before its last epoch")
    return value


class _TorchBackend(TorchBackend):
    """Ray's set-up of the process group, on the network that Ray itself uses."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_take_interface)
        super().on_start(worker_group, backend_config)


class _TorchConfig(ray_train_torch.TorchConfig):
    @property
    def backend_cls(self) -> type[TorchBackend]:
        return _TorchBackend


def _take_interface() -> None:
    take_interface(ray.util.get_node_ip_address())


def _work(values: dict[str, Any]) -> WorkerResult | RaybridgeError | None:
    """One worker. Ray keeps the value that worker 0 returns."""
    job: WorkerJob = values["job"]
    torch.set_num_threads(job.threads)
    if not job.config.hardware.compile:
        leave_compiler_out()
    store = Store.open(job.store)
    run = Run(store.folder(f"runs/{job.run}"))
    comm = choose_comm()
    device = ray_train_torch.get_device()
    trainer: Trainer | None = None
    problem: UserError | None = None
    try:
        dataset = Dataset.find(store, job.dataset)
        config = run.localize(job.config)
        trainer = Trainer(config, dataset, comm, device, run.checkpoints, OUTBOX)
    except UserError as error:
        problem = error
    # One worker's problem ends all of them: alone, the others would wait for it.
    problems: list[UserError] = [found for found in comm.gather(problem) if found is not None]
    if trainer is None or problems:
        return problems[0]
    try:
        state = trainer.run()
        val = trainer.predict(dataset.split("val"))
        test = trainer.predict(dataset.split("test"))
    except DataError:
        # Of this worker's share of the images: the others wait for it in the middle of a step. Its
        # end makes Ray end them too.
        raise
    except (UserError, TrainingError) as error:
        # Returned, not raised: Ray would start the workers again, to the same end.
        return error
    if comm.rank != 0:
        return None
    run.write_logits(val, "val")
    run.write_logits(test, "test")
    run.write_weights(trainer.net)
    return WorkerResult(
        steps=state.step,
        history=tuple(state.history),
        device=device.type,
        workers=comm.world,
        threads=torch.get_num_threads(),
        memory_format=state.memory_format or "contiguous",
        weights_sha256=weights_sha256(trainer.net),
    )


def _fit_forwarding(trainer: LeanTrainer, on_events: Callable[[list[Event]], None]) -> object:
    """Run ``trainer.fit()`` and hand over events while it works, and the rest of them at its end.

    It works in a thread: in the main one Ray would take Ctrl-C for itself, and end the process
    before the run is marked as stopped. Here an interrupt leaves by the usual way, when the run is
    stopped and the thread has ended: one that is in a call of Ray's at the end of the connection
    crashes the process.
    """
    outcome: list[object] = []
    # Not the thread's own end: Python 3.11 takes a thread for ended whose `join` was interrupted.
    ended = threading.Event()

    def work() -> None:
        try:
            outcome.append(trainer.fit())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            outcome.append(error)
        ended.set()

    threading.Thread(target=work, name="ray-train", daemon=True).start()
    try:
        while not ended.is_set() or not trainer.events.empty():
            try:
                events = trainer.events.get(timeout=POLL_PERIOD_S)
            except queue.Empty:
                continue
            on_events(events)
    except BaseException:
        give_up = time.monotonic() + STOP_TIMEOUT_S
        while not ended.wait(POLL_PERIOD_S) and time.monotonic() < give_up:
            trainer.stop()
        raise
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _explain_failures(error: ray_train.WorkerGroupError, allowed: int) -> str:
    rank, cause = next(iter(sorted(error.worker_failures.items())), (0, error))
    return (
        f"workers died more than {allowed} times; the last time worker {rank}: "
        f"{_last_line(cause)}; {HOW_TO_GO_ON}"
    )


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:300] if lines else type(error).__name__
