"""What the commands do once their arguments are read: connect, work, show."""

from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cluster.bundle import Bundle
from cluster.cli import Output
from cluster.dataset import SplitName
from cluster.errors import UserError
from cluster.events import Event
from cluster.session import connect
from cluster.settings import Settings
from cluster.store import Store, check_name
from cluster.tracking import ModelVersion, Tracking
from train.config import TrainConfig
from train.evaluate import evaluate_run
from train.export import export_run
from train.fit import FitOutcome, fit, prepare, resume
from train.importing import ImportRequest, import_model, prepare_import
from train.metrics import Evaluation
from train.report import write_report
from train.runs import Run, find_run


def run_fit(
    config: TrainConfig, output: Output, *, run_name: str | None, register: str | None
) -> None:
    """``train fit``."""
    settings = Settings.from_env()
    store = Store.open(settings.address)
    store.ensure_writable()
    if register is not None:
        check_name("model", register)
    config, dataset = prepare(config, store, run_name, output.say)
    tracking = Tracking(settings)
    with connect(settings, label=f"train fit {config.recipe}") as session:
        with _ProgressView(output) as view:
            outcome = fit(
                config, dataset, store, tracking, session, name=run_name, listener=view.on_event
            )
        _conclude(outcome, store, tracking, output, register)


def run_resume(
    name: str,
    output: Output,
    *,
    epochs: int | None,
    workers: int | None,
    register: str | None,
) -> None:
    """``train resume``."""
    settings = Settings.from_env()
    store = Store.open(settings.address)
    run = find_run(store, name)
    tracking = Tracking(settings)
    with connect(settings, label=f"train resume {run.name}") as session:
        with _ProgressView(output) as view:
            outcome = resume(
                run,
                store,
                tracking,
                session,
                epochs=epochs,
                workers=workers,
                listener=view.on_event,
            )
        _conclude(outcome, store, tracking, output, register)


def run_evaluate(name: str, output: Output, *, split: SplitName, data: str | None) -> None:
    """``train evaluate``."""
    store = Store.open(Settings.from_env().address)
    run = find_run(store, name)
    evaluation = evaluate_run(run, store, split, data)
    if data is None and split == "test":
        write_report(run, run.dataset(store))
    show_evaluation(evaluation, output)
    output.result({"run": run.name, **evaluation.model_dump(mode="json"), **evaluation.summary()})


def run_export(
    name: str, output: Output, *, model: str | None, register: bool, aliases: Sequence[str]
) -> None:
    """``train export``."""
    settings = Settings.from_env()
    store = Store.open(settings.address)
    run = find_run(store, name)
    bundle = export_run(run, store, model)
    version = None
    if register or aliases:
        version = Tracking(settings).register(
            bundle.manifest.name,
            bundle,
            run_id=run.info().mlflow_run_id,
            aliases=aliases,
        )
    _show_bundle(bundle, version, output)
    output.result({"run": run.name, **_bundle_result(bundle, version)})


def run_import(
    file: Path,
    request: ImportRequest,
    output: Output,
    *,
    run_name: str | None,
    register: str | None,
    aliases: Sequence[str],
) -> None:
    """``train import``."""
    settings = Settings.from_env()
    store = Store.open(settings.address)
    store.ensure_writable()
    if register is not None:
        check_name("model", register)
    elif aliases:
        raise UserError("--alias points at a version: name its model with --register")
    prepared = prepare_import(file, request, store, run_name, output.say)
    tracking = Tracking(settings)
    outcome = import_model(prepared, store, tracking, run_name)
    run, evaluation = outcome.run, outcome.evaluation
    show_evaluation(evaluation, output)
    output.say(f"run {run.name}: imported {file.name}, report {run.report_file}")
    bundle = export_run(run, store, register)
    version = None
    if register is not None:
        version = tracking.register(
            register, bundle, run_id=run.info().mlflow_run_id, aliases=aliases
        )
    _show_bundle(bundle, version, output)
    output.result(
        {
            "run": run.name,
            **evaluation.summary(),
            "normalize": prepared.config.model_dump(mode="json")["normalize"],
            "weights_sha256": outcome.result.weights_sha256,
            "report": str(run.report_file),
            **_bundle_result(bundle, version),
        }
    )


def show_evaluation(evaluation: Evaluation, output: Output) -> None:
    """Print the figures of a split, and the table of its classes."""
    summary = evaluation.summary()
    output.table(
        f"{evaluation.dataset} {evaluation.split}: {evaluation.images} images",
        ("class", "precision", "recall", "F1", "images"),
        [
            (row.name, f"{row.precision:.3f}", f"{row.recall:.3f}", f"{row.f1:.3f}", row.support)
            for row in evaluation.per_class
        ],
    )
    output.say(
        f"accuracy {summary['accuracy']:.4f}  loss {summary['loss']:.4f}  "
        f"calibration error {summary['ece']:.4f}  macro F1 {summary['macro_f1']:.4f}"
    )


def _conclude(
    outcome: FitOutcome, store: Store, tracking: Tracking, output: Output, register: str | None
) -> None:
    run, result = outcome.run, outcome.result
    show_evaluation(outcome.evaluation, output)
    output.say(
        f"run {run.name}: {result.epochs} epochs on {result.workers} x {result.device} in "
        f"{result.seconds:.1f} s, {result.images_per_s:,.0f} images/s, {result.restarts} restarts"
    )
    for what, count in result.failures.items():
        if count:
            output.say(f"{count} writes of {what} failed; see {run.events_file}")
    output.say(f"report {run.report_file}")
    exported: dict[str, object] = {}
    if register is not None:
        bundle, version = _register(run, store, tracking, register)
        _show_bundle(bundle, version, output)
        exported = _bundle_result(bundle, version)
    output.result(
        {
            "run": run.name,
            **outcome.evaluation.summary(),
            "seconds": round(result.seconds, 3),
            "images_per_s": round(result.images_per_s, 1),
            "epochs": result.epochs,
            "steps": result.steps,
            "workers": result.workers,
            "device": result.device,
            "restarts": result.restarts,
            "failures": result.failures,
            "weights_sha256": result.weights_sha256,
            "report": str(run.report_file),
            **exported,
        }
    )


def _register(
    run: Run, store: Store, tracking: Tracking, model: str
) -> tuple[Bundle, ModelVersion]:
    bundle = export_run(run, store, model)
    return bundle, tracking.register(model, bundle, run_id=run.info().mlflow_run_id)


def _show_bundle(bundle: Bundle, version: ModelVersion | None, output: Output) -> None:
    parity = bundle.manifest.parity
    output.say(
        f"bundle {bundle.path} ({bundle.digest[:16]}): its graph and the model agree on "
        f"{parity.images} test images, largest difference {parity.max_abs_diff:.2g}"
    )
    if version is not None:
        aliases = "".join(f" @{alias}" for alias in version.aliases)
        output.say(f"registered {version.reference}{aliases}")
        output.say(f"serve it: python -m serve deploy {version.reference}")


def _bundle_result(bundle: Bundle, version: ModelVersion | None) -> dict[str, object]:
    parity = bundle.manifest.parity
    return {
        "bundle": str(bundle.path),
        "bundle_digest": bundle.digest,
        "parity_images": parity.images,
        "parity_labels_equal": parity.labels_equal,
        "parity_max_abs_diff": parity.max_abs_diff,
        "model": None if version is None else version.name,
        "version": None if version is None else version.version,
        "aliases": [] if version is None else list(version.aliases),
    }


class _ProgressView:
    """A live bar on a terminal; a line an epoch everywhere."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TimeRemainingColumn(),
            console=output.console,
            transient=True,
            disable=not output.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._run: str | None = None
        self._starts = 0

    def __enter__(self) -> "_ProgressView":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt and self._run is not None:
            self._output.say(f"stopped; go on with: python -m train resume {self._run}")

    def on_event(self, event: Event) -> None:
        """Show one event."""
        if event["kind"] == "run":
            self._run = event["name"]
            self._output.say(f"run {self._run}")
        elif event["kind"] == "start":
            self._on_start(int(event["step"]), int(event["total_steps"]))
        elif event["kind"] == "progress":
            self._describe(
                f"epoch {event['epoch']} loss {event['loss']:.4f} "
                f"{event['images_per_s']:,.0f} images/s",
                event["step"],
            )
        elif event["kind"] == "epoch":
            self._output.say(
                f"epoch {event['epoch']:>3}  train loss {event['train_loss']:.4f} "
                f"accuracy {event['train_accuracy']:.4f}  val loss {event['val_loss']:.4f} "
                f"accuracy {event['val_accuracy']:.4f}  {event['images_per_s']:,.0f} images/s"
            )
            self._describe(f"epoch {event['epoch']}", event["step"])

    def _on_start(self, step: int, total_steps: int) -> None:
        self._starts += 1
        if self._starts > 1:
            self._output.say(
                f"a worker died; its place was filled, and step {step} is gone on from"
            )
        elif step:
            self._output.say(f"going on from step {step} of {total_steps}")
        if self._task is None:
            self._task = self._bar.add_task("training", total=total_steps)
        self._bar.update(self._task, completed=step, total=total_steps)

    def _describe(self, text: str, step: float) -> None:
        if self._task is not None:
            self._bar.update(self._task, description=text, completed=step)
