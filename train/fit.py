"""The driver's side of a run: it opens the record, watches the workers, and closes the record."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cluster.dataset import Dataset, SplitName
from cluster.errors import DataError, NotFoundError, RaybridgeError
from cluster.events import Event, append_events, make_event
from cluster.session import Session
from cluster.store import Store
from cluster.tracking import RunLog, Tracking
from train.checkpoint import save_checkpoint
from train.comm import Alone
from train.config import IMPORT_RECIPE, FileConfig, OnnxConfig, SourceConfig, TrainConfig
from train.export import try_export
from train.job import Placement, choose_placement, train_on_ray
from train.metrics import Evaluation, evaluate_logits
from train.models.check import check_classifier
from train.models.choice import absolute_path
from train.models.classifier import Classifier, build_classifier
from train.models.file import check_alone, read_source
from train.models.freezing import check_freeze
from train.models.graph import read_graph
from train.models.source import content_sha256
from train.pretrained import PUBLISHERS, load_pretrained
from train.report import write_report
from train.runs import Run, RunResult, check_new_run, create_run
from train.setup import set_up
from train.state import first_checkpoint

EventListener = Callable[[Event], None]


@dataclass(frozen=True)
class FitOutcome:
    """A finished run."""

    run: Run
    result: RunResult
    evaluation: Evaluation


def prepare(
    config: TrainConfig,
    store: Store,
    name: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[TrainConfig, Dataset]:
    """Find the data set, and make here the mistakes that a worker would make.

    Here they cost a second, and no cluster.

    Args:
        config: what to train, on what.
        store: where data sets and runs live.
        name: of the coming run, if it is given one.
        say: told what is downloaded, and which pretrained weights fit.

    Returns:
        The configuration with the data set's version, absolute paths and the digest of a model's
        file filled in, and the data set.

    Raises:
        UserError: there is no such data set, or model, first weights or batch do not fit it, or a
            run of that name exists.
    """
    if name is not None:
        check_new_run(store, name)
    dataset = Dataset.find(store, config.data)
    changes: dict[str, object] = {"data": dataset.reference}
    if config.pretrained is not None and config.pretrained not in PUBLISHERS:
        changes["pretrained"] = str(absolute_path(Path(config.pretrained)))
    if isinstance(config.model, SourceConfig):
        changes["model"] = pin_source(config.model)
    config = config.with_changes(changes, "fit")
    classifier = check_fit(config, dataset)
    if config.pretrained is not None:
        say(str(load_pretrained(classifier.net, config, dataset.meta, say)))
        check_classifier(classifier, config.model, dataset.meta, training=False)
    return config, dataset


def pin_source(model: SourceConfig) -> dict[str, object]:
    """Where the model's file is, from every folder, and its digest.

    Raises:
        ConfigError: it cannot be read, or is not all that the model needs.
    """
    path = absolute_path(model.path)
    if isinstance(model, OnnxConfig):
        content = read_graph(path)
    else:
        check_alone(path)
        content = read_source(path)
    return {"path": path, "sha256": content_sha256(content)}


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
    run = create_run(store, config, dataset, name)
    with run.alone():
        if config.pretrained is not None:
            _begin_with_pretrained(run, config, dataset)
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
    workers: int | None = None,
    listener: EventListener = lambda _: None,
) -> FitOutcome:
    """Go on with a run from its newest checkpoint.

    Args:
        run: a run that was cut off, or a finished one that is to train for longer.
        store: where its data set lives.
        tracking: where it is recorded.
        session: the cluster to train on.
        epochs: train to this epoch instead of the one first asked for.
        workers: go on with another number of workers.
        listener: told every event as it arrives.

    Raises:
        NotFoundError: the run is finished and no further epochs are asked for.
        DataError: another command is training it.
    """
    changes: dict[str, object] = {}
    if epochs is not None:
        changes["epochs"] = epochs
    if workers is not None:
        changes["resources"] = {"workers": workers}
    with run.alone():
        config = run.config()
        if config.recipe == IMPORT_RECIPE:
            raise NotFoundError(
                f"run {run.name} was imported, and has no training to go on with; begin with its "
                f"weights: python -m train fit RECIPE --model MODEL --pretrained {run.weights_file}"
            )
        config = config.with_changes(changes, "resume")
        if run.finished and config.epochs <= run.result().epochs:
            raise NotFoundError(
                f"run {run.name} has finished its {run.result().epochs} epochs; "
                "ask for more with --epochs"
            )
        dataset = run.dataset(store)
        check_fit(config, dataset)
        placement = choose_placement(config, session)
        run.write_config(config)
        log = _resume_log(run, config, tracking)
        return _carry_out(config, dataset, run, store, log, placement, listener)


def _resume_log(run: Run, config: TrainConfig, tracking: Tracking) -> RunLog:
    mlflow_run_id = run.info().mlflow_run_id
    if mlflow_run_id is not None:
        return tracking.resume_run(mlflow_run_id)
    return tracking.start_run(run.name, flatten(config), {})


def _begin_with_pretrained(run: Run, config: TrainConfig, dataset: Dataset) -> None:
    """Leave the first weights where every worker looks for a checkpoint.

    So no worker reads or downloads them, and the file is needed no more.
    """
    classifier = build_classifier(config, dataset.meta)
    pretrained = load_pretrained(classifier.net, config, dataset.meta)
    save_checkpoint(run.checkpoints, first_checkpoint(config, classifier), config.checkpoint.keep)
    run.write_info(run.info().model_copy(update={"first_weights": pretrained.source}))


def check_fit(config: TrainConfig, dataset: Dataset) -> Classifier:
    """Build once what every worker will.

    Returns:
        The classifier, whose running averages have seen random images.

    Raises:
        UserError: model, batch, loss or frozen layers do not fit the data set, or a network of the
            user's could be trained but not exported.
    """
    classes = np.flatnonzero(np.bincount(dataset.split("train").labels))
    if len(classes) < 2:
        only = ", ".join(dataset.meta.class_names[label] for label in classes) or "none"
        raise DataError(
            f"the training split of {dataset.reference} has images of one class only ({only}); "
            "there must be two or more"
        )
    setup = set_up(config, dataset, Alone(), torch.device("cpu"))
    classifier = setup.state.classifier
    check_freeze(classifier.net, config.freeze)
    check_classifier(classifier, config.model, dataset.meta, training=True)
    if isinstance(config.model, FileConfig):  # The others are known to export.
        try_export(classifier, config.model, dataset.meta.image.shape)
    return classifier


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
        watch = _Watch(run, log, listener)
        listener(make_event("run", {"name": run.name}))
        began = time.monotonic()
        worked = train_on_ray(config, dataset, run, store, placement, watch)
        watch.push_events()
        result = RunResult(
            epochs=config.epochs,
            steps=worked.steps,
            workers=worked.workers,
            device=worked.device,
            seconds=time.monotonic() - began,
            images_per_s=statistics.median(entry["images_per_s"] for entry in worked.history),
            restarts=max(0, watch.starts - 1),
            weights_sha256=worked.weights_sha256,
            history=worked.history,
            failures={
                "checkpoints": watch.checkpoint_failures,
                "events": watch.event_failures,
                "tracking": log.failures,
            },
        )
        evaluation = conclude(run, dataset, result, log)
    except BaseException as error:
        # An interrupt, and Ray's answer to SIGTERM, are no Exceptions.
        log.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    log.finish("FINISHED")
    return FitOutcome(run, result, evaluation)


def conclude(run: Run, dataset: Dataset, result: RunResult, log: RunLog) -> Evaluation:
    """Write what came of a run: its result, evaluations from its logits, and its report.

    Returns:
        The evaluation of the test split.
    """
    run.write_result(result)
    _evaluate(run, dataset, "val")
    evaluation = _evaluate(run, dataset, "test")
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


class _Watch:
    """Takes what the workers tell: keeps it, counts it, passes it on."""

    def __init__(self, run: Run, log: RunLog, listener: EventListener) -> None:
        self._run = run
        self._log = log
        self._listener = listener
        self.starts = 0
        self.checkpoint_failures = 0
        self.event_failures = 0
        run.path.mkdir(parents=True, exist_ok=True)
        if run.folder.has(run.events_file.name):
            run.folder.pull(run.events_file.name)  # Which another host may have written to.

    def push_events(self) -> None:
        """Let other hosts see the events so far."""
        try:
            self._run.folder.push(self._run.events_file.name)
        except RaybridgeError:
            self.event_failures += 1

    def __call__(self, events: list[Event]) -> None:
        append_events(self._run.events_file, events)
        for event in events:
            if event["kind"] == "start":
                self.starts += 1
            elif event["kind"] == "checkpoint_failures":
                self.checkpoint_failures += int(event["count"])
            elif event["kind"] == "epoch":
                names = (
                    "train_loss",
                    "train_accuracy",
                    "val_loss",
                    "val_accuracy",
                    "lr",
                    "images_per_s",
                )
                self._log.metrics({name: event[name] for name in names}, int(event["step"]))
                self.push_events()
            self._listener(event)
