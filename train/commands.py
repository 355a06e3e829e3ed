"""What the commands that train do once their arguments are read: connect, work, show."""

from collections.abc import Mapping

from cluster.cli import Output
from cluster.session import connect
from cluster.settings import Settings
from cluster.store import Store, check_name
from cluster.tracking import Tracking
from train.config import TrainConfig
from train.export import export_run
from train.fit import FitOutcome, fit, resume
from train.model_commands import bundle_result, show_bundle, show_evaluation
from train.preparing import prepare
from train.progress import ProgressView
from train.reproduce import compare, differences_now, find_original
from train.runs import find_run


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
        with ProgressView(output) as view:
            outcome = fit(
                config, dataset, store, tracking, session, name=run_name, listener=view.on_event
            )
        fields = conclude(outcome, store, tracking, output, register)
    output.result(fields)


def run_resume(
    name: str,
    output: Output,
    *,
    epochs: int | None,
    resources: Mapping[str, object] | None,
    register: str | None,
) -> None:
    """``train resume``."""
    settings = Settings.from_env()
    store = Store.open(settings.address)
    run = find_run(store, name)
    tracking = Tracking(settings)
    with connect(settings, label=f"train resume {run.name}") as session:
        with ProgressView(output) as view:
            outcome = resume(
                run,
                store,
                tracking,
                session,
                epochs=epochs,
                resources=resources,
                listener=view.on_event,
            )
        fields = conclude(outcome, store, tracking, output, register)
    output.result(fields)


def run_reproduce(
    target: str,
    output: Output,
    *,
    run_name: str | None,
    resources: Mapping[str, object] | None,
) -> None:
    """``train reproduce``."""
    settings = Settings.from_env()
    store = Store.open(settings.address)
    tracking = Tracking(settings)
    original = find_original(target, store, tracking, resources)
    output.say(
        f"run {original.run.name} on {original.info.dataset}: weights "
        f"{original.result.weights_sha256[:12]}"
    )
    for line in (*differences_now(original), *original.cautions):
        output.say(f"note: {line}")
    config, dataset = prepare(original.config, store, run_name, output.say)
    with connect(settings, label=f"train reproduce {original.run.name}") as session:
        with ProgressView(output) as view:
            outcome = fit(
                config, dataset, store, tracking, session, name=run_name, listener=view.on_event
            )
        fields = conclude(outcome, store, tracking, output, None)
    output.result({**fields, **compare(original, outcome.run, output.say)})


def conclude(
    outcome: FitOutcome, store: Store, tracking: Tracking, output: Output, register: str | None
) -> dict[str, object]:
    """Show what came of a run, and register it if that was asked for.

    Returns:
        Fields of the JSON line.
    """
    run, result = outcome.run, outcome.result
    show_evaluation(outcome.evaluation, output)
    output.say(
        f"run {run.name}: {result.epochs} epochs on {result.workers} x {result.device} in "
        f"{result.seconds:.1f} s, {result.images_per_s:,.0f} images/s, {result.restarts} restarts"
    )
    if result.best_epoch is not None:
        output.say(f"validation was best after epoch {result.best_epoch}")
    for what, count in result.failures.items():
        if count:
            output.say(f"{count} writes of {what} failed; see {run.events_file}")
    output.say(f"report {run.report_file}")
    exported: dict[str, object] = {}
    if register is not None:
        bundle = export_run(run, store, register)
        version = tracking.register(register, bundle, run_id=run.info().mlflow_run_id)
        show_bundle(bundle, version, output)
        exported = bundle_result(bundle, version)
    return {
        "run": run.name,
        **outcome.evaluation.summary(),
        "seconds": round(result.seconds, 3),
        "images_per_s": round(result.images_per_s, 1),
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "steps": result.steps,
        "workers": result.workers,
        "device": result.device,
        "restarts": result.restarts,
        "failures": result.failures,
        "weights_sha256": result.weights_sha256,
        "report": str(run.report_file),
        **exported,
    }
