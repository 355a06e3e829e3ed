"""The pictures of a report: small SVGs whose colours are the page's, in light and in dark."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from train.config import CrossEntropyConfig, TrainConfig
from train.metrics import Evaluation
from train.schedules import Clock, lr_multiple

History = Sequence[dict[str, float]]
Legend = tuple[tuple[str, str], ...]
"""Names, each with the colour that it has."""

SIZE_INCHES = (3.6, 2.5)
SCHEDULE_POINTS = 400
# What matplotlib is given, and the variable of the page's style that takes its place.
_COLORS = {
    "ink": "#111827",
    "soft": "#6b7280",
    "line": "#e5e7eb",
    "train": "#9ca3af",
    "val": "#2563eb",
    "accent": "#ea580c",
}
_STYLE: dict[Any, object] = {
    "svg.fonttype": "none",
    "axes.edgecolor": _COLORS["line"],
    "axes.labelcolor": _COLORS["soft"],
    "xtick.color": _COLORS["soft"],
    "ytick.color": _COLORS["soft"],
    "grid.color": _COLORS["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "font.size": 8,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Chart:
    """One picture with its heading."""

    name: str
    """Its id on the page."""
    title: str
    legend: Legend
    svg: str


def draw_curves(history: History, config: TrainConfig, best_epoch: int | None) -> list[Chart]:
    """Loss, accuracy, learning rate, gradient norm and throughput, by epoch.

    Args:
        history: of every epoch; what an older run did not record is left out.
        config: of the run, for its schedule.
        best_epoch: marked where validation is drawn.
    """
    if not history:
        return []
    charts = [
        _draw_splits(history, "loss", _loss_title(config), 1.0, best_epoch),
        _draw_splits(history, "accuracy", "Accuracy, %", 100.0, best_epoch),
        _draw_rate(history, config),
    ]
    if any("grad_norm" in entry for entry in history):
        charts.append(_draw_one(history, "grad_norm", "Gradient norm"))
    charts.append(_draw_one(history, "images_per_s", "Images per second", from_zero=True))
    return charts


def _loss_title(config: TrainConfig) -> str:
    """Of training it is what is minimised, of validation always plain cross-entropy."""
    mixed = config.augment.mixup or config.augment.cutmix
    if config.loss == CrossEntropyConfig() and not mixed:
        return "Loss, nats"
    kind = config.loss.name.replace("_", "-")
    how = " of mixed labels" if mixed else ""
    return f"Loss: training {kind} as minimised{how}, validation plain cross-entropy"


def draw_calibration(evaluation: Evaluation) -> Chart:
    """Accuracy over confidence; a point for each bin, its area the share of the images."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure("confidence")
        axes.plot([0, 1], [0, 1], color=_COLORS["train"], linestyle=(0, (4, 3)), linewidth=1)
        # No bin at all where the logits are no numbers: of training that diverged.
        sizes = np.array([row.images for row in evaluation.calibration], float)
        confidence = [row.confidence for row in evaluation.calibration]
        accuracy = [row.accuracy for row in evaluation.calibration]
        axes.vlines(confidence, confidence, accuracy, color=_COLORS["accent"], linewidth=1.2)
        axes.scatter(
            confidence,
            accuracy,
            s=12 + 120 * sizes / sizes.max(initial=1),
            color=_COLORS["val"],
            alpha=0.8,
            edgecolors="none",
        )
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.06)
        svg = _to_svg(figure, "calibration")
    legend = (("accuracy of a bin", "val"), ("its error", "accent"))
    return Chart("calibration", f"Calibration, error {evaluation.ece:.4f}", legend, svg)


def _draw_splits(
    history: History, figure_name: str, title: str, scale: float, best_epoch: int | None
) -> Chart:
    epochs = [entry["epoch"] for entry in history]
    legend: Legend = (("train", "train"), ("val", "val"))
    with mpl.rc_context(_STYLE):
        figure, axes = _figure("epoch")
        for split, color in legend:
            values = [scale * entry[f"{split}_{figure_name}"] for entry in history]
            axes.plot(epochs, values, color=_COLORS[color], marker=_marker(history))
        if best_epoch is not None:
            value = scale * history[best_epoch - 1][f"val_{figure_name}"]
            axes.axvline(best_epoch, color=_COLORS["accent"], linestyle=(0, (4, 3)), linewidth=1)
            axes.plot([best_epoch], [value], "o", color=_COLORS["accent"], markersize=5)
            legend = (*legend, (f"best epoch {best_epoch}", "accent"))
        svg = _to_svg(figure, figure_name)
    return Chart(figure_name, title, legend, svg)


def _draw_rate(history: History, config: TrainConfig) -> Chart:
    """The rate as the schedule has it, and as the last step of each epoch took it."""
    steps_per_epoch = max(1, round(history[-1]["step"] / history[-1]["epoch"]))
    clock = Clock(config.epochs, steps_per_epoch)
    steps = np.unique(np.linspace(0, clock.total_steps - 1, SCHEDULE_POINTS).round().astype(int))
    rates = [
        config.optim.lr * lr_multiple(config.schedule, int(step), clock, history) for step in steps
    ]
    with mpl.rc_context(_STYLE):
        figure, axes = _figure("epoch")
        axes.plot(steps / steps_per_epoch, rates, color=_COLORS["accent"])
        axes.plot(
            [(entry["step"] - 1) / steps_per_epoch for entry in history],
            [entry["lr"] for entry in history],
            "o",
            color=_COLORS["val"],
            markersize=3,
        )
        axes.set_ylim(bottom=0)
        svg = _to_svg(figure, "lr")
    legend = (("schedule", "accent"), ("at the end of an epoch", "val"))
    return Chart("lr", f"Learning rate, {config.schedule.name}", legend, svg)


def _draw_one(history: History, key: str, title: str, *, from_zero: bool = False) -> Chart:
    found = [entry for entry in history if key in entry]
    with mpl.rc_context(_STYLE):
        figure, axes = _figure("epoch")
        axes.plot(
            [entry["epoch"] for entry in found],
            [entry[key] for entry in found],
            color=_COLORS["val"],
            marker=_marker(found),
        )
        if from_zero:
            axes.set_ylim(bottom=0)
        svg = _to_svg(figure, key)
    return Chart(key, title, (), svg)


def _marker(history: History) -> str | None:
    return "o" if len(history) < 3 else None


def _figure(x_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    if x_label == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return figure, axes


def _to_svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    # Without a date and with a fixed salt the same run gives the same bytes. The salt is the
    # chart's own, so that no two charts of a page use an id for different things.
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Ids of matplotlib's groups, which every chart has and nothing refers to.
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)
    # The size is the page's to choose.
    text = re.sub(r'(<svg [^>]*?)width="[^"]+" height="[^"]+"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?)height="[^"]+" ([^>]*?)width="[^"]+"', r"\1\2", text, count=1)
    for variable, color in _COLORS.items():
        text = text.replace(color, f"var(--{variable})")
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
