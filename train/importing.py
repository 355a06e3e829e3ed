"""Models that were trained elsewhere: a foreign file becomes a run like any other."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.bundle import SourceFile
from cluster.dataset import ChannelStatistics, Dataset, Split, file_sha256
from cluster.errors import CheckpointError, ConfigError
from cluster.store import Store
from cluster.tracking import Tracking
from train.config import IMPORT_RECIPE, Normalize, OnnxConfig, Outputs, SourceConfig, TrainConfig
from train.export import try_export
from train.fit import FitOutcome, conclude, flatten
from train.inference import predict
from train.metrics import evaluate_logits
from train.models.check import check_classifier
from train.models.choice import choose_model
from train.models.classifier import Classifier, build_classifier, choose_normalization
from train.models.graph import OnnxNet
from train.preparing import pin_source
from train.runs import RunResult, check_new_run, create_run
from train.weights import load_state_dict, weights_sha256

_CANDIDATES: tuple[Normalize, ...] = ("dataset", "none", "half", "imagenet", "bytes")
_TRIED = 1000
"""Images of the validation split that tell which normalisation a model was trained with."""
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ImportRequest:
    """What the user says about a file."""

    data: str
    """``NAME`` or ``NAME@VERSION``."""
    model: str | None = None
    """As ``--model`` has it; None for an ONNX graph, which needs no other description."""
    normalize: str = "auto"
    output: Outputs = "logits"
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of ``model``, as ``--set`` has them."""


@dataclass(frozen=True)
class PreparedImport:
    """A model that was read, and fits its data set."""

    file: SourceFile
    config: TrainConfig
    dataset: Dataset
    classifier: Classifier


def prepare_import(
    file: Path,
    request: ImportRequest,
    store: Store,
    name: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> PreparedImport:
    """Read a foreign model and find out whether it fits a data set; nothing is written.

    Args:
        file: weights (.pth, .pt, .safetensors) or a graph (.onnx).
        request: what is known about it.
        store: where data sets and runs live.
        name: of the coming run, if it is given one.
        say: told which normalisation was chosen, if that was left open.

    Raises:
        UserError: the file is missing or holds code, or its tensors are not the network's, or its
            inputs or outputs do not fit the data set, or it could not be exported again.
    """
    if name is not None:
        check_new_run(store, name)
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist")
    dataset = Dataset.find(store, request.data)
    config = _configure(file, request, dataset)
    classifier = build_classifier(config, dataset.meta)
    if not isinstance(classifier.net, OnnxNet):
        load_state_dict(classifier.net, file)
    normalize = _parse_normalize(request.normalize)
    if isinstance(classifier.net, OnnxNet) and classifier.net.takes_bytes:
        if normalize not in (None, "bytes"):
            raise ConfigError(f"{file} takes uint8, and normalises by itself: --normalize bytes")
        normalize = "bytes"
    if normalize is None:
        check_classifier(classifier.eval(), config.model, dataset.meta, training=False)
        normalize = _find_normalize(config, classifier, dataset, say)
    config = config.model_copy(update={"normalize": normalize})
    classifier = _renormalized(config, classifier, dataset)
    check_classifier(classifier, config.model, dataset.meta, training=False)
    try_export(classifier, config.model, dataset.meta.image.shape)
    source = SourceFile(name=file.name, sha256=file_sha256(file))
    return PreparedImport(source, config, dataset, classifier)


def import_model(
    prepared: PreparedImport, store: Store, tracking: Tracking, name: str | None = None
) -> FitOutcome:
    """Record a foreign model as a finished run, with its evaluation and its report.

    Raises:
        ConfigError: its answers are no numbers.
        DataError: a run of that name exists.
    """
    config, dataset, classifier = prepared.config, prepared.dataset, prepared.classifier
    began = time.monotonic()
    val = predict(classifier, dataset.split("val"), _CPU)
    test = predict(classifier, dataset.split("test"), _CPU)
    seconds = time.monotonic() - began
    for logits in (val, test):
        broken = int((~np.isfinite(logits).all(1)).sum())
        if broken:
            raise ConfigError(
                f"{prepared.file.name} gives numbers that are not finite for {broken} of "
                f"{len(logits)} images; nothing was written"
            )
    run = create_run(store, config, dataset, name)
    with run.alone():
        log = tracking.start_run(
            run.name,
            flatten(config),
            {"raybridge.recipe": config.recipe, "raybridge.dataset": dataset.reference},
        )
        try:
            changes = {"mlflow_run_id": log.run_id, "first_weights": prepared.file}
            run.write_info(run.info().model_copy(update=changes))
            run.write_weights(classifier.net)
            run.write_logits(val, "val")
            run.write_logits(test, "test")
            result = RunResult(
                epochs=0,
                steps=0,
                workers=1,
                device=_CPU.type,
                seconds=seconds,
                images_per_s=(len(val) + len(test)) / seconds,
                restarts=0,
                weights_sha256=weights_sha256(classifier.net),
                history=(),
                failures={"tracking": log.failures},
            )
            evaluation = conclude(run, dataset, result, log)
        except BaseException as error:
            log.finish("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        log.finish("FINISHED")
    return FitOutcome(run, result, evaluation)


def _configure(file: Path, request: ImportRequest, dataset: Dataset) -> TrainConfig:
    is_graph = file.suffix.lower() == ".onnx"
    model = _model_fields(request.changes)
    if is_graph:
        if request.model is not None:
            raise ConfigError(f"{file} says itself what the model is; leave --model out")
        model |= {"name": "onnx", "path": str(file)}
    elif request.model is None:
        raise ConfigError(
            f"{file} holds weights, not the network; name it: --model NAME or FILE.py:FACTORY"
        )
    else:
        model = choose_model(request.model, model)
    if model["name"] in ("onnx", "file"):
        model.setdefault("output", request.output)
    elif request.output != "logits":
        raise ConfigError(f"--output {request.output}: networks of {model['name']} give logits")
    config = TrainConfig.decode(
        {
            "recipe": IMPORT_RECIPE,
            "data": dataset.reference,
            "epochs": 0,
            "batch_size": 1,
            "model": model,
        },
        "import",
    )
    if isinstance(config.model, OnnxConfig) and not is_graph:
        raise ConfigError(f"--model {request.model}: {file} holds weights, which no graph takes")
    if isinstance(config.model, SourceConfig):
        config = config.with_changes({"model": pin_source(config.model)}, "import")
    return config


def _model_fields(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``model``; whatever else a configuration has is of training, or has an option."""
    for name in changes:
        if name != "model":
            options = {"data": "--data NAME", "normalize": "--normalize"}
            remedy = f"say it with {options[name]}" if name in options else "an import trains none"
            raise ConfigError(f"--set {name}: only model... can be set here; {remedy}")
    model = changes.get("model", {})
    if not isinstance(model, Mapping):
        raise ConfigError(f"--set model={model}: the network is named by --model")
    return dict(model)


def _parse_normalize(text: str) -> Normalize | None:
    """``mean=...;std=...`` or a name; None for ``auto``."""
    if text == "auto":
        return None
    if "=" not in text:
        named: Normalize | None = next((one for one in _CANDIDATES if one == text), None)
        if named is None:
            allowed = ", ".join(map(str, _CANDIDATES))
            raise ConfigError(
                f"--normalize {text}: allowed are auto, {allowed}, and 'mean=...;std=...'"
            )
        return named
    try:
        parts = dict(part.split("=") for part in text.replace(" ", "").split(";"))
        values = {name: tuple(map(float, given.split(","))) for name, given in parts.items()}
        return ChannelStatistics(mean=values.pop("mean"), std=values.pop("std"), **values)
    except (ValueError, KeyError):
        raise ConfigError(
            f"--normalize {text}: expected 'mean=0.5,0.5,0.5;std=0.2,0.2,0.2', or one value each"
        ) from None


def _find_normalize(
    config: TrainConfig, classifier: Classifier, dataset: Dataset, say: Callable[[str], None]
) -> Normalize:
    """What the model was most likely trained with: the lowest loss on validation images.

    The wrong one costs accuracy and raises no error anywhere, so it is measured, and said.
    """
    val = dataset.split("val")
    rows = np.linspace(0, len(val) - 1, min(_TRIED, len(val))).astype(np.int64)
    some = Split(val.take(rows), val.labels[rows])
    found: list[tuple[float, float, Normalize]] = []
    for candidate in _CANDIDATES:
        if candidate == "imagenet" and dataset.meta.image.channels != 3:
            continue
        tried = config.model_copy(update={"normalize": candidate})
        logits = predict(_renormalized(tried, classifier, dataset), some, _CPU)
        evaluation = evaluate_logits(
            logits, some.labels, dataset.meta.class_names, dataset=config.data, split="val"
        )
        found.append((evaluation.loss, evaluation.accuracy, candidate))
    found.sort(key=lambda entry: (not math.isfinite(entry[0]), entry[0]))
    listed = ", ".join(f"{name} {accuracy:.3f}" for _, accuracy, name in found)
    chosen = found[0][2]
    say(
        f"--normalize {chosen} has the lowest loss; accuracy on {len(some)} validation images: "
        f"{listed}"
    )
    return chosen


def _renormalized(config: TrainConfig, classifier: Classifier, dataset: Dataset) -> Classifier:
    normalization = choose_normalization(config.normalize, dataset.meta)
    return Classifier(classifier.net, normalization, classifier.output).eval()
