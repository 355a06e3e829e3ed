"""The report of a run: one HTML file that needs nothing else."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image

from cluster.atomic import write_text_atomic
from cluster.dataset import Dataset
from cluster.errors import NotFoundError
from cluster.runtime import softmax
from train.config import TrainConfig
from train.metrics import Evaluation, worst_mistakes
from train.models.check import describe_model
from train.report_plots import draw_calibration, draw_curves
from train.runs import Run

TEMPLATE = "report.html.jinja"
NUM_MISTAKES = 24
NUM_CONFUSIONS = 10
MAX_MATRIX_CLASSES = 60
"""A matrix of more classes is no picture any more, and a large page."""


@dataclass(frozen=True)
class Mistake:
    """One wrong prediction, as a picture."""

    png: str
    """base64."""
    truth: str
    predicted: str
    confidence: float


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were called another."""

    truth: str
    predicted: str
    images: int
    share: float
    """Of the images of the true class."""


def write_report(run: Run, dataset: Dataset) -> Path:
    """Write ``report.html`` of a finished run.

    Raises:
        NotFoundError: the run has not finished or was not evaluated.
    """
    result = run.result()
    evaluation = run.evaluation("test")
    if evaluation is None:
        raise NotFoundError(
            f"run {run.name} was not evaluated; python -m train evaluate {run.name}"
        )
    config = run.config()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        run=run,
        info=run.info(),
        config=config,
        network=describe_model(config.model),
        result=result,
        evaluation=evaluation,
        dataset=dataset.meta,
        summary=evaluation.summary(),
        charts=[
            *draw_curves(result.history, config, result.best_epoch),
            draw_calibration(evaluation),
        ],
        shades=_shades(evaluation) if len(dataset.meta.class_names) <= MAX_MATRIX_CLASSES else None,
        confusions=most_confused(evaluation),
        mistakes=_mistakes(run, dataset),
        groups=_groups(config),
    )
    write_text_atomic(run.report_file, page)
    run.folder.push(run.report_file.name)
    return run.report_file


def most_confused(evaluation: Evaluation) -> list[Confusion]:
    """The pairs of classes that were taken for one another most often, most often first."""
    counts = np.array(evaluation.confusion)
    totals = counts.sum(1)
    np.fill_diagonal(counts, 0)
    names = [row.name for row in evaluation.per_class]
    order = np.argsort(-counts, axis=None, kind="stable")[:NUM_CONFUSIONS]
    pairs = [(int(cell) // len(names), int(cell) % len(names)) for cell in order]
    return [
        Confusion(names[i], names[j], int(counts[i, j]), float(counts[i, j] / totals[i]))
        for i, j in pairs
        if counts[i, j]
    ]


def _shades(evaluation: Evaluation) -> list[list[float]]:
    """Opacity of each cell of the confusion matrix: its share of the true class."""
    counts = np.array(evaluation.confusion, float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # The square root keeps rare confusions visible beside a dark diagonal.
    shades: list[list[float]] = np.sqrt(shares).round(3).tolist()
    return shades


def _mistakes(run: Run, dataset: Dataset) -> list[Mistake]:
    logits, test = run.logits("test"), dataset.split("test")
    names = dataset.meta.class_names
    rows = worst_mistakes(logits, test.labels, NUM_MISTAKES)
    with np.errstate(invalid="ignore"):  # Of training that diverged.
        probabilities = softmax(logits[rows])
    return [
        Mistake(
            png=_tile(pixels),
            truth=names[int(test.labels[row])],
            predicted=names[int(logits[row].argmax())],
            confidence=float(confidence.max()),
        )
        for row, pixels, confidence in zip(rows, test.take(rows), probabilities, strict=True)
    ]


def _groups(config: TrainConfig) -> dict[str, dict[str, str]]:
    """The effective configuration: a group for each part, and one for what is of no part."""
    groups: dict[str, dict[str, str]] = {"training": {}}
    for name, value in config.model_dump(mode="json").items():
        if isinstance(value, dict) and value:
            groups[name] = _flatten(value)
        else:
            groups["training"][name] = _say(value)
    return groups


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = _say(value)
    return flat


def _say(value: object) -> str:
    """A value as ``--set`` takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tile(pixels: npt.NDArray[np.uint8]) -> str:
    hwc = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(hwc))
    scale = max(1, 96 // max(image.size))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
