"""From a run to a bundle: export, compare with PyTorch over the whole test split, publish."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from cluster.atomic import drafting, write_json_atomic
from cluster.bundle import (
    INPUT_NAME,
    MODEL_FILE,
    OUTPUT_NAME,
    REFERENCE_FILE,
    WEIGHTS_FILE,
    Bundle,
    Golden,
    Lineage,
    Manifest,
    ModelInfo,
    Parity,
    list_files,
    publish_bundle,
    write_golden,
    write_manifest,
)
from cluster.dataset import Dataset, ImageSplit, Split
from cluster.errors import BundleError, CheckpointError
from cluster.runtime import OnnxRuntimeSession, Session, open_session
from cluster.stats import reference_statistics
from cluster.store import Store, check_name
from train.config import FileConfig, ModelConfig, SourceConfig
from train.data.loader import eval_batches
from train.inference import predict
from train.models.check import describe_model
from train.models.classifier import Classifier, Shape, build_classifier, num_parameters
from train.models.file import blame
from train.models.graph import OnnxNet, to_bundle_graph
from train.runs import Run, RunInfo
from train.weights import weights_sha256

NUM_GOLDEN = 32
# Of logits up to 10; of larger ones in proportion, since that is how floats round.
GOLDEN_TOLERANCE = 1e-3
PARITY_TOLERANCE = 1e-4
BATCH = 256


def load_classifier(run: Run, dataset: Dataset) -> Classifier:
    """The trained classifier of a finished run, in evaluation mode.

    Raises:
        NotFoundError: the run has not finished.
        CheckpointError: its weights were changed, or cut off while they were replaced.
    """
    result = run.result()
    config = run.config()
    classifier = build_classifier(config, dataset.meta)
    run.load_weights(classifier.net)
    if weights_sha256(classifier.net) != result.weights_sha256:
        raise CheckpointError(
            f"run {run.name}: {run.weights_file.name} is not what the run ended with; "
            f"go on with: python -m train resume {run.name}"
        )
    return classifier.eval()


def export_run(run: Run, store: Store, name: str | None = None) -> Bundle:
    """Write a run's bundle and check it before it can be seen.

    PyTorch and ONNX Runtime are compared over the whole test split; the finished folder is opened
    as a server would, goldens included, before it is renamed into place.

    Args:
        run: a finished run.
        store: where its data set lives.
        name: the model's name; by default the data set's.

    Raises:
        BundleError: ONNX Runtime gives other answers than PyTorch.
    """
    dataset = run.dataset(store)
    classifier = load_classifier(run, dataset)
    model_name = check_name("model", name or dataset.meta.name)
    test = dataset.split("test")
    with drafting(store.bundles, run.name) as draft:
        graph = export_onnx(classifier, run.config().model, dataset.meta.image.shape)
        (draft / MODEL_FILE).write_bytes(graph)
        safetensors.torch.save_file(
            # Copies: the format has no tensor under two names, as tied weights are.
            {
                name: tensor.clone(memory_format=torch.contiguous_format)
                for name, tensor in classifier.net.state_dict().items()
            },
            draft / WEIGHTS_FILE,
        )
        expected = predict(classifier, test, torch.device("cpu"))
        parity = measure_parity(OnnxRuntimeSession(graph, torch.get_num_threads()), test, expected)
        scale = _scale(expected)
        _require_parity(parity, run, PARITY_TOLERANCE * scale)
        write_golden(draft, choose_golden(test, expected))
        _write_reference(draft, dataset, classifier)
        manifest = _manifest(draft, run, dataset, classifier, model_name, parity)
        tolerance = GOLDEN_TOLERANCE * scale
        write_manifest(draft, manifest.model_copy(update={"golden_tolerance": tolerance}))
        open_session(Bundle.open(draft))
        return publish_bundle(store, draft)


def try_export(classifier: Classifier, model: ModelConfig, shape: Shape) -> None:
    """Find out whether a run of a network can become a bundle; nothing is written.

    Args:
        classifier: in evaluation mode.
        model: what it was built from.
        shape: ``(channels, height, width)``.

    Raises:
        BundleError: it cannot be exported, or its graph gives other answers on random images.
    """
    session = OnnxRuntimeSession(export_onnx(classifier, model, shape), torch.get_num_threads())
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    expected = predict(classifier, Split(images, np.zeros(5, np.int64)), torch.device("cpu"))
    difference = float(np.abs(session.run(images) - expected).max())
    # Noise is no image of the data, on which export_run compares to the last digit.
    allowed = GOLDEN_TOLERANCE * _scale(expected)
    if not difference < allowed:
        raise BundleError(
            f"{describe_model(model)}: its ONNX graph and the network differ by {difference:.3g} "
            f"(allowed {allowed:.3g}); in evaluation mode it must give the same each time: "
            "F.dropout, for one, needs training=self.training"
        )


def export_onnx(classifier: Classifier, model: ModelConfig, shape: Shape) -> bytes:
    """Export to one self-contained ONNX graph with a dynamic batch.

    Args:
        classifier: in evaluation mode.
        model: what it was built from, for messages.
        shape: ``(channels, height, width)``.

    Raises:
        BundleError: the network cannot be expressed as such a graph. Of one from a user's file the
            message names the line.
    """
    if isinstance(classifier.net, OnnxNet):
        return to_bundle_graph(classifier.net, classifier.normalization, classifier.output)
    # Two examples: with one, torch.export would fix the batch at 1.
    example = torch.zeros((2, *shape), dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                classifier,
                (example,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                external_data=False,
                verbose=False,
            )
            assert program is not None, "with dynamo a program is returned"
            graph: bytes = program.model_proto.SerializeToString()
    except Exception as error:  # noqa: BLE001 - networks, and every step within, raise their own
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        said = blame(root, model.path if isinstance(model, FileConfig) else None)
        raise BundleError(f"{describe_model(model)} cannot be exported to ONNX: {said}") from None
    return graph


def measure_parity(
    session: Session, split: ImageSplit, expected: npt.NDArray[np.float32]
) -> Parity:
    """Compare a session's logits with PyTorch's over a split."""
    largest, equal = 0.0, True
    starts = range(0, len(split), BATCH)
    for start, batch in zip(starts, eval_batches(split, BATCH), strict=True):
        want = expected[start : start + BATCH]
        got = session.run(batch.images.numpy())
        largest = max(largest, float(np.abs(got - want).max()))
        equal = equal and bool((got.argmax(1) == want.argmax(1)).all())
    return Parity(images=len(split), labels_equal=equal, max_abs_diff=largest)


def choose_golden(split: ImageSplit, expected: npt.NDArray[np.float32]) -> Golden:
    """Images for the goldens: of every class in turn, as far as they go."""
    # A stable sort by the count of earlier images of the same class deals the classes out evenly.
    seen = np.zeros(int(split.labels.max()) + 1, int)
    turn = np.empty(len(split), int)
    for row, label in enumerate(split.labels):
        turn[row] = seen[label]
        seen[label] += 1
    rows = np.sort(np.argsort(turn, kind="stable")[:NUM_GOLDEN])
    return Golden(split.take(rows), expected[rows])


def _scale(logits: npt.NDArray[np.float32]) -> float:
    """What the tolerances, which are of logits up to 10, are multiplied with."""
    return max(1.0, float(np.abs(logits).max()) / 10)


def _require_parity(parity: Parity, run: Run, allowed: float) -> None:
    if not parity.labels_equal or not parity.max_abs_diff < allowed:
        raise BundleError(
            f"run {run.name}: the bundle's graph and the model differ by {parity.max_abs_diff:.3g} "
            f"over {parity.images} test images (allowed {allowed:.3g}, labels "
            f"{'equal' if parity.labels_equal else 'differ'}); nothing was exported"
        )


def _write_reference(draft: Path, dataset: Dataset, classifier: Classifier) -> None:
    val = dataset.split("val")
    logits = predict(classifier, val, torch.device("cpu"))
    batches = (batch.images.numpy() for batch in eval_batches(val, BATCH))
    statistics = reference_statistics(batches, val.labels, logits)
    write_json_atomic(draft / REFERENCE_FILE, statistics.model_dump(mode="json"))


def _manifest(
    draft: Path,
    run: Run,
    dataset: Dataset,
    classifier: Classifier,
    name: str,
    parity: Parity,
) -> Manifest:
    config, info = run.config(), run.info()
    evaluation = run.evaluation("test")
    return Manifest(
        name=name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        image=dataset.meta.image,
        class_names=dataset.meta.class_names,
        normalization=classifier.normalization,
        model=ModelInfo(
            name=config.model.name,
            options=_portable(config.model),
            parameters=num_parameters(classifier),
        ),
        lineage=_lineage(info, config.recipe, config.seed),
        metrics=evaluation.summary() if evaluation else {},
        parity=parity,
        golden_tolerance=GOLDEN_TOLERANCE,
        files=list_files(draft),
    )


def _portable(model: ModelConfig) -> dict[str, Any]:
    """A network's options, without a path of this machine."""
    options = model.model_dump(mode="json", exclude={"name"})
    if isinstance(model, SourceConfig):
        options["path"] = model.path.name
    return options


def _lineage(info: RunInfo, recipe: str, seed: int) -> Lineage:
    return Lineage(
        run=info.name,
        mlflow_run_id=info.mlflow_run_id,
        dataset=info.dataset,
        dataset_digest=info.dataset_digest,
        recipe=recipe,
        seed=seed,
        commit=info.commit,
        libraries=info.libraries,
        first_weights=info.first_weights,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and deprecations off the user's terminal."""
    onnxscript = logging.getLogger("onnxscript")
    level = onnxscript.level
    onnxscript.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        onnxscript.setLevel(level)
