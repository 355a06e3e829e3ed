"""The driver's side of a run: it opens the record, watches the workers, and closes the record."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.dataset import Dataset, SplitName
from cluster.errors import NotFoundError
from cluster.events import make_event
from cluster.session import Session
from cluster.store import Store
from cluster.tracking import RunLog, Tracking
from train.checkpoint import latest_checkpoint
from train.config import IMPORT_RECIPE, TrainConfig
from train.job import Placement, WorkerResult, choose_placement, train_on_ray
from train.metrics import Evaluation, evaluate_logits
from train.preparing import check_fit, write_first_weights
from train.runs import Run, RunResult, Start, create_run
from train.stopping import best_epoch
from train.watch import EventListener, Watch


@dataclass(frozen=True)
class FitOutcome:
    """A finished run."""

    run: Run
    result: RunResult
    evaluation: Evaluation


def fit(
    config: TrainConfig,
    dataset: Dataset,
    store: Store,
    tracking: Tracking,
    session: Session,
    *,
    name: str | None = None,
    listener: EventListener = lambda _: None,
) -> FitOutcome:
    """Train a new run from a configuration.

    Args:
        config: what to train.
        dataset: what to train it on; both from :func:`prepare`.
        store: where runs live.
        tracking: where the run is recorded.
        session: the cluster to train on.
        name: the run's name; by default made of data set, time and a random part.
        listener: told every event as it arrives.

    Raises:
        ResourceError: CPUs or GPUs are not free; nothing has been written.
        TrainingError: the run failed; its folder keeps the checkpoints.
    """
    placement = choose_placement(config, session)
    config = _pin(config, placement)
    run = create_run(store, config, dataset, name)
    with run.alone():
        if config.pretrained is not None:
            write_first_weights(run, config, dataset)
        log = tracking.start_run(
            run.name,
            flatten(config),
            {"raybridge.recipe": config.recipe, "raybridge.dataset": dataset.reference},
        )
        return _carry_out(config, dataset, run, store, log, placement, listener)


def resume(
    run: Run,
    store: Store,
    tracking: Tracking,
    session: Session,
    *,
    epochs: int | None = None,
    resources: Mapping[str, object] | None = None,
    listener: EventListener = lambda _: None,
) -> FitOutcome:
    """Go on with a run from its newest checkpoint.

    Args:
        run: a run that was cut off, or a finished one that is to train for longer.
        store: where its data set lives.
        tracking: where it is recorded.
        session: the cluster to train on.
        epochs: train to this epoch instead of the one first asked for.
        resources: fields of ``resources`` to change, such as the number of workers.
        listener: told every event as it arrives.

    Raises:
        NotFoundError: the run is finished and no further epochs are asked for, or it is beyond
            those already.
        DataError: another command is training it.
    """
    changes: dict[str, object] = {}
    if epochs is not None:
        changes["epochs"] = epochs
    if resources is not None:
        # Threads are shared out anew; of as many workers as before they stay, and so do the bits.
        changes["resources"] = {"cpus_per_worker": None, **resources}
    with run.alone():
        config = run.config()
        if config.recipe == IMPORT_RECIPE:
            raise NotFoundError(
                f"run {run.name} was imported, and has no training to go on with; begin with its "
                f"weights: python -m train fit RECIPE --model MODEL --pretrained {run.weights_file}"
            )
        _check_unfinished(run, config, epochs)
        config = config.with_changes(changes, "resume")
        dataset = run.dataset(store)
        check_fit(config, dataset)
        placement = choose_placement(config, session)
        config = _pin(config, placement)
        run.write_config(config)
        log = _resume_log(run, config, tracking)
        return _carry_out(config, dataset, run, store, log, placement, listener)


def _pin(config: TrainConfig, placement: Placement) -> TrainConfig:
    """Keep device and threads, which decide bits too, for whoever goes on with the run."""
    pinned = {
        "device": "cuda" if placement.gpu else "cpu",
        "cpus_per_worker": placement.cpus,
    }
    return config.with_changes({"resources": pinned}, "fit")


def _check_unfinished(run: Run, config: TrainConfig, epochs: int | None) -> None:
    """Return if there is training to go on with."""
    if run.finished:
        # What is finished may be less than the configuration has: it was prolonged, and cut off.
        result = run.result()
        if result.starts and result.steps < result.starts[-1].total_steps:
            raise NotFoundError(
                f"run {run.name} stopped early, after {result.epochs} of {config.epochs} epochs; "
                "train a new one with more early_stopping.patience, or with early_stopping=none"
            )
        if (epochs or config.epochs) <= result.epochs:
            raise NotFoundError(
                f"run {run.name} has finished its {result.epochs} epochs; ask for more with "
                "--epochs"
            )
    if epochs is not None and epochs < (begun := _epochs_begun(run)):
        raise NotFoundError(f"run {run.name} is in epoch {begun}: --epochs {begun} or more")


def _epochs_begun(run: Run) -> int:
    """Epochs of which the newest checkpoint has seen a step."""
    checkpoint = latest_checkpoint(run.checkpoints)
    if checkpoint is None:
        return 0
    done = checkpoint.history
    return len(done) + (checkpoint.step > (done[-1]["step"] if done else 0))


def _resume_log(run: Run, config: TrainConfig, tracking: Tracking) -> RunLog:
    mlflow_run_id = run.info().mlflow_run_id
    if mlflow_run_id is not None:
        return tracking.resume_run(mlflow_run_id)
    return tracking.start_run(run.name, flatten(config), {})


def flatten(config: TrainConfig) -> dict[str, object]:
    """A configuration as ``path: value``, for the tracker's parameters."""
    flat: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                walk(f"{prefix}.{key}" if prefix else key, entry)
        else:
            flat[prefix] = value

    walk("", config.model_dump(mode="json"))
    return flat


def _carry_out(
    config: TrainConfig,
    dataset: Dataset,
    run: Run,
    store: Store,
    log: RunLog,
    placement: Placement,
    listener: EventListener,
) -> FitOutcome:
    try:
        run.write_info(run.info().model_copy(update={"mlflow_run_id": log.run_id}))
        watch = Watch(run, log, listener)
        listener(make_event("run", {"name": run.name}))
        began = time.monotonic()
        try:
            worked = train_on_ray(config, dataset, run, store, placement, watch)
        finally:
            watch.close()
        seconds = time.monotonic() - began
        result = _result(config, run, worked, watch, seconds)
        if config.hardware.memory_format == "auto":
            chosen = {"hardware": {"memory_format": worked.memory_format}}
            run.write_config(config.with_changes(chosen, "fit"))
        evaluation = conclude(run, dataset, result, log)
    except BaseException as error:
        # An interrupt, and Ray's answer to SIGTERM, are no Exceptions.
        log.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    log.finish("FINISHED")
    return FitOutcome(run, result, evaluation)


def _result(
    config: TrainConfig,
    run: Run,
    worked: WorkerResult,
    watch: Watch,
    seconds: float,
) -> RunResult:
    history, stopping = worked.history, config.early_stopping
    starts = tuple(
        Start(
            step=int(event["step"]),
            workers=len(event["workers"]),
            total_steps=int(event["total_steps"]),
        )
        for event in run.events("start")
    )
    return RunResult(
        epochs=int(history[-1]["epoch"]),
        steps=worked.steps,
        workers=worked.workers,
        device=worked.device,
        seconds=seconds,
        images_per_s=statistics.median(entry["images_per_s"] for entry in history),
        restarts=max(0, watch.starts - 1),
        weights_sha256=worked.weights_sha256,
        history=history,
        failures=watch.failures(),
        threads=worked.threads,
        best_epoch=None if stopping is None else best_epoch(history, stopping) or None,
        notes=tuple(dict.fromkeys(str(event["text"]) for event in run.events("note"))),
        starts=starts,
    )


def conclude(run: Run, dataset: Dataset, result: RunResult, log: RunLog) -> Evaluation:
    """Write what came of a run: its result, evaluations from its logits, and its report.

    Returns:
        The evaluation of the test split.
    """
    run.write_result(result)
    _evaluate(run, dataset, "val")
    evaluation = _evaluate(run, dataset, "test")
    # Its charts' library is slow to load, which nobody should wait for before training.
    from train.report import write_report

    write_report(run, dataset)
    log.metrics({f"test_{k}": v for k, v in evaluation.summary().items()}, result.steps)
    for name in (run.report_file.name, "config.json", run.evaluation_file("test").name):
        log.artifact(run.folder.pull(name))
    return evaluation


def _evaluate(run: Run, dataset: Dataset, split: SplitName) -> Evaluation:
    """Evaluate the logits that the workers left for a split."""
    evaluation = evaluate_logits(
        run.logits(split),
        dataset.split(split).labels,
        dataset.meta.class_names,
        dataset=dataset.reference,
        split=split,
    )
    run.write_evaluation(evaluation, split)
    return evaluation
