"""The page of a load: latency histogram, percentiles, and what happened second by second."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
)

from cluster.atomic import write_text_atomic
from cluster.errors import UserError
from serve.load.histogram import Histogram
from serve.load.tally import LoadResult, Second

TEMPLATE = "report.html.jinja"
SUFFIXES = (".html", ".png")
_BLUE, _ORANGE, _GREY, _RED = "#2563eb", "#ea580c", "#9ca3af", "#dc2626"
_ACTUAL = "from sending"
_SHARES = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)


def check_report_path(path: Path) -> None:
    """Find out before the load whether a report can be written.

    Raises:
        UserError: it is neither HTML nor PNG, or has no folder to go to.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out {path}: a report is one of {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}")


def write_load_report(path: Path, result: LoadResult, about: Mapping[str, Any]) -> None:
    """Write a page that needs nothing else, or the pictures of it as PNG.

    Args:
        path: ends in ``.html`` or ``.png``.
        result: of the load.
        about: what was asked for, to show as it is.
    """
    figure = draw(result)
    if path.suffix == ".png":
        draft = path.with_name(f".{path.name}.draft")
        try:
            figure.savefig(draft, format="png", dpi=120)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        return
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        about={name: value for name, value in about.items() if value is not None},
        figures=result.as_json(),
        pictures=_to_svg(figure),
    )
    write_text_atomic(path, page)


def draw(result: LoadResult) -> Figure:
    """Four pictures: histogram, percentiles, throughput and latency over time."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    (shape, curve), (speed, latency) = figure.subplots(2, 2)
    for histogram, label, color in _latencies(result):
        _draw_shape(shape, histogram, label, color)
        _draw_curve(curve, histogram, label, color)
    shape.set_ylim(bottom=0)
    _label(shape, "Latencies", "milliseconds", "share of requests")
    curve.set_xscale("log")
    curve.set_yscale("log")
    curve.xaxis.set_major_locator(FixedLocator([1 / (1 - share) for share in _SHARES]))
    curve.xaxis.set_major_formatter(FixedFormatter([f"{share:.5g}" for share in _SHARES]))
    curve.xaxis.set_minor_formatter(NullFormatter())
    _plain_numbers(curve.yaxis)
    _label(curve, "Latency that a share of requests does not exceed", "share", "milliseconds")
    _draw_time(speed, latency, result.total.timeline)
    return figure


def _latencies(result: LoadResult) -> Iterable[tuple[Histogram, str, Any]]:
    """What to draw over another, its name and its color."""
    if len(result.steps) == 1:
        (one,) = result.steps
        yield one.tally.actual, _ACTUAL, _GREY
        yield one.corrected, "corrected", _BLUE
        return
    colors = mpl.colormaps["viridis_r"](np.linspace(0.1, 1, len(result.steps)))
    for one, color in zip(result.steps, colors, strict=True):
        yield one.corrected, f"{one.step.rate:g}/s", color


def _draw_shape(axes: Axes, histogram: Histogram, label: str, color: Any) -> None:
    seconds, counts = histogram.filled()
    if len(seconds) == 0:
        return
    low, high = np.log10(max(seconds[0], 1e-6)), np.log10(max(seconds[-1], 1e-6))
    edges = np.logspace(low - 0.02, high + 0.02, 80)
    shares, _ = np.histogram(np.maximum(seconds, 1e-6), edges, weights=counts / counts.sum())
    axes.stairs(shares, edges * 1000, color=color, label=label, fill=label == _ACTUAL, alpha=0.8)
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis)
    axes.legend(frameon=False, fontsize=8)


def _draw_curve(axes: Axes, histogram: Histogram, label: str, color: Any) -> None:
    total = histogram.total
    if total == 0:
        return
    # As HdrHistogram's plotter: equal room for 0-0.9, 0.9-0.99, ..., as far as the data goes.
    tails = np.logspace(0, np.log10(max(total, 2)), 200)
    values = [(histogram.quantile(1 - 1 / tail) or 0.0) * 1000 for tail in tails]
    axes.plot(tails, np.maximum(values, 1e-3), color=color, label=label)
    axes.legend(frameon=False, fontsize=8)


def _draw_time(speed: Axes, latency: Axes, timeline: Iterable[Second]) -> None:
    seconds = list(timeline)
    times = [second.time_s for second in seconds]
    speed.plot(times, [second.ok_per_s for second in seconds], color=_BLUE, label="ok")
    if any(second.errors_per_s for second in seconds):
        errors = [second.errors_per_s for second in seconds]
        speed.plot(times, errors, color=_RED, label="errors")
        speed.legend(frameon=False, fontsize=8, loc="lower left")
    speed.set_ylim(bottom=0)
    _label(speed, "Answers", "seconds", "per second")
    if any(second.replicas > 1 for second in seconds):
        replicas = speed.twinx()
        counts = [second.replicas for second in seconds]
        replicas.step(times, counts, where="post", color=_ORANGE, linewidth=1)
        replicas.set_ylim(0, max(counts) + 1)
        replicas.yaxis.set_major_locator(MaxNLocator(integer=True))
        replicas.set_ylabel("replicas", fontsize=9, color=_ORANGE)
        replicas.tick_params(labelsize=8)
    for label, color, values in (
        ("p50", _BLUE, [second.p50_ms for second in seconds]),
        ("p99", _ORANGE, [second.p99_ms for second in seconds]),
    ):
        known = [np.nan if value is None else max(value, 1e-3) for value in values]
        latency.plot(times, known, color=color, label=label)
    if seconds:
        latency.set_yscale("log")
        _plain_numbers(latency.yaxis)
        latency.legend(frameon=False, fontsize=8)
    _label(latency, "Latency over time", "seconds", "milliseconds")


def _plain_numbers(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _label(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _to_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # Without a date and with a fixed salt the same load gives the same bytes.
    with mpl.rc_context({"svg.hashsalt": "raybridge", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
