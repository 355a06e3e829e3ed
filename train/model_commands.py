"""What the commands do to a finished model: evaluate it, export it, or take one in."""

from collections.abc import Sequence
from pathlib import Path

from cluster.bundle import Bundle
from cluster.cli import Output
from cluster.dataset import SplitName
from cluster.errors import UserError
from cluster.settings import Settings
from cluster.store import Store, check_name
from cluster.tracking import ModelVersion, Tracking
from train.evaluate import Views, evaluate_run, evaluate_views
from train.export import export_run
from train.importing import ImportRequest, import_model, prepare_import
from train.metrics import Evaluation
from train.report import write_report
from train.runs import find_run


def run_evaluate(
    name: str, output: Output, *, split: SplitName, data: str | None, views: Views | None
) -> None:
    """``train evaluate``."""
    store = Store.open(Settings.from_env().address)
    run = find_run(store, name)
    evaluation = evaluate_run(run, store, split, data)
    if data is None and split == "test":
        write_report(run, run.dataset(store))
    show_evaluation(evaluation, output)
    fields: dict[str, object] = {}
    if views is not None:
        summary = evaluate_views(run, store, split, views, data).summary()
        output.say(
            f"with --tta {views}: accuracy {summary['accuracy']:.4f} (without "
            f"{evaluation.accuracy:.4f})  loss {summary['loss']:.4f}  calibration error "
            f"{summary['ece']:.4f}  macro F1 {summary['macro_f1']:.4f}"
        )
        fields = {"tta": {"views": views, **summary}}
    output.result(
        {
            "run": run.name,
            **evaluation.model_dump(mode="json"),
            **evaluation.summary(),
            **fields,
        }
    )


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
    show_bundle(bundle, version, output)
    output.result({"run": run.name, **bundle_result(bundle, version)})


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
    show_bundle(bundle, version, output)
    output.result(
        {
            "run": run.name,
            **evaluation.summary(),
            "normalize": prepared.config.model_dump(mode="json")["normalize"],
            "weights_sha256": outcome.result.weights_sha256,
            "report": str(run.report_file),
            **bundle_result(bundle, version),
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


def show_bundle(bundle: Bundle, version: ModelVersion | None, output: Output) -> None:
    """Print where a bundle is and what it was registered as."""
    parity = bundle.manifest.parity
    output.say(
        f"bundle {bundle.path} ({bundle.digest[:16]}): its graph and the model agree on "
        f"{parity.images} test images, largest difference {parity.max_abs_diff:.2g}"
    )
    if version is not None:
        aliases = "".join(f" @{alias}" for alias in version.aliases)
        output.say(f"registered {version.reference}{aliases}")
        output.say(f"serve it: python -m serve deploy {version.reference}")


def bundle_result(bundle: Bundle, version: ModelVersion | None) -> dict[str, object]:
    """Fields of the JSON line about a bundle."""
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
