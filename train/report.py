"""The report of a run: one HTML file that needs nothing else."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cluster.atomic import write_text_atomic
from cluster.dataset import Dataset
from cluster.errors import NotFoundError
from cluster.runtime import softmax
from train.config import TrainConfig
from train.metrics import Evaluation, worst_mistakes
from train.models.check import describe_model
from train.runs import Run
from train.schedules import lr_multiple

TEMPLATE = "report.html.jinja"
NUM_MISTAKES = 24
_BLUE, _ORANGE, _GREY = "#2563eb", "#ea580c", "#9ca3af"


@dataclass(frozen=True)
class Mistake:
    """One wrong prediction, as a picture."""

    png: str
    """base64."""
    truth: str
    predicted: str
    confidence: float


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
        curves=_draw_curves(result.history, config, result.steps) if result.history else "",
        calibration=_draw_calibration(evaluation),
        shades=_shades(evaluation),
        mistakes=_mistakes(run, dataset),
        settings=config.model_dump_json(indent=2),
    )
    write_text_atomic(run.report_file, page)
    run.folder.push(run.report_file.name)
    return run.report_file


def _draw_curves(
    history: tuple[dict[str, float], ...], config: TrainConfig, total_steps: int
) -> str:
    figure = Figure(figsize=(11, 3.1), layout="constrained")
    loss, accuracy, rate, speed = figure.subplots(1, 4)
    epochs = [entry["epoch"] for entry in history]
    for axes, title, name in ((loss, "Loss", "loss"), (accuracy, "Accuracy", "accuracy")):
        marker = "o" if len(epochs) < 3 else None
        for split, color in (("train", _GREY), ("val", _BLUE)):
            values = [entry[f"{split}_{name}"] for entry in history]
            axes.plot(epochs, values, color=color, label=split, marker=marker)
        axes.legend(frameon=False)
        _label(axes, title, "epoch")
    steps = np.linspace(0, max(0, total_steps - 1), 200)
    rates = [
        config.optim.lr * lr_multiple(config.schedule, int(step), total_steps) for step in steps
    ]
    rate.plot(steps, rates, color=_ORANGE)
    _label(rate, "Learning rate", "step")
    speed.plot(epochs, [entry["images_per_s"] for entry in history], color=_BLUE)
    speed.set_ylim(bottom=0)
    _label(speed, "Images per second", "epoch")
    return _to_svg(figure)


def _draw_calibration(evaluation: Evaluation) -> str:
    figure = Figure(figsize=(4.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
    # No bin at all where the logits are no numbers: of training that diverged.
    sizes = np.array([row.images for row in evaluation.calibration], float)
    axes.scatter(
        [row.confidence for row in evaluation.calibration],
        [row.accuracy for row in evaluation.calibration],
        s=20 + 180 * sizes / sizes.max(initial=1),
        color=_BLUE,
        alpha=0.7,
        edgecolors="none",
    )
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, 1.03)
    axes.set_ylabel("accuracy")
    _label(axes, f"Calibration (ECE {evaluation.ece:.3f})", "confidence")
    return _to_svg(figure)


def _label(axes: Axes, title: str, x_label: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _to_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # Without a date and with a fixed salt the same run gives the same bytes.
    with mpl.rc_context({"svg.hashsalt": "raybridge", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _shades(evaluation: Evaluation) -> list[list[float]]:
    """Opacity of each cell of the confusion matrix: its share of the true class."""
    counts = np.array(evaluation.confusion, float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # The square root keeps rare confusions visible beside a dark diagonal.
    shades: list[list[float]] = np.sqrt(shares).round(3).tolist()
    return shades


def _mistakes(run: Run, dataset: Dataset) -> list[Mistake]:
    logits, test = run.logits("test"), dataset.split("test")
    probabilities = softmax(logits)
    names = dataset.meta.class_names
    rows = worst_mistakes(logits, test.labels, NUM_MISTAKES)
    return [
        Mistake(
            png=_tile(pixels),
            truth=names[int(test.labels[row])],
            predicted=names[int(logits[row].argmax())],
            confidence=float(probabilities[row].max()),
        )
        for row, pixels in zip(rows, test.take(rows), strict=True)
    ]


def _tile(pixels: npt.NDArray[np.uint8]) -> str:
    hwc = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(hwc))
    scale = max(1, 96 // max(image.size))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
