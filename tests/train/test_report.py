"""The report of a run: complete, self-contained, and the same bytes each time."""

import re

import numpy as np
import pytest
from finished import finish_run, make_history

from cluster.dataset import Dataset
from cluster.errors import NotFoundError
from cluster.store import Store
from train.config import (
    PlateauConfig,
    SgdConfig,
    TrainConfig,
)
from train.metrics import evaluate_logits
from train.recipes import get_recipe
from train.report import most_confused, write_report
from train.report_plots import draw_curves
from train.runs import Start, create_run
from train.schedules import Clock, lr_multiple


def config(**changes: object) -> TrainConfig:
    return get_recipe("digits").with_changes({"epochs": 8, **changes}, "test")


def curve(svg: str, color: str) -> list[tuple[float, float]]:
    """The points of the line of one colour, of which matplotlib keeps the corners."""
    (line,) = re.findall(rf'<path d="(M [^"]*?)"[^>]*stroke: var\(--{color}\)', svg)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", line)]


def test_a_report_has_every_part(store: Store, digits_dataset: Dataset) -> None:
    run = finish_run(
        store,
        config(early_stopping={}, epochs=9),
        digits_dataset,
        "whole",
        best_epoch=6,
        restarts=1,
        notes=("hardware.tf32 has <no> effect on this device",),
        starts=(
            Start(step=0, workers=1, total_steps=180),
            Start(step=90, workers=4, total_steps=180),
        ),
    )
    page = write_report(run, digits_dataset).read_text("utf-8")
    for name in ("loss", "accuracy", "lr", "grad_norm", "images_per_s", "calibration"):
        assert page.count(f'id="chart-{name}"') == 1
    assert page.count("best epoch 6") == 2
    assert "best epoch, stopped early" in page
    assert "hardware.tf32 has &lt;no&gt; effect on this device" in page
    assert "1 from step 0, 4 from step 90" in page
    assert "<dt>gradient_as_bucket_view</dt><dd>true</dd>" in page
    evaluation = run.evaluation("test")
    assert evaluation is not None
    assert f"{100 * evaluation.accuracy:.2f} %" in page


def test_a_report_fetches_nothing_and_takes_its_colors_from_the_page(
    store: Store, digits_dataset: Dataset
) -> None:
    run = finish_run(store, config(), digits_dataset, "alone")
    page = write_report(run, digits_dataset).read_text("utf-8")
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', page) == []
    assert "url(http" not in page
    assert "@import" not in page
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--val)" in drawn
    assert re.findall(r"#[0-9a-f]{6}", drawn) == [], "a colour that dark mode would not change"
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert write_report(run, digits_dataset).read_text("utf-8") == page


def test_the_drawn_rate_is_the_schedules() -> None:
    schedule = PlateauConfig(patience=0, factor=0.5, warmup=0.1)
    asked = TrainConfig(
        recipe="test", data="x", epochs=8, optim=SgdConfig(lr=0.2), schedule=schedule
    )
    history = make_history(8, 20)
    (chart,) = [one for one in draw_curves(history, asked, None) if one.name == "lr"]
    heights = [y for _, y in curve(chart.svg, "accent")]
    rates = [0.2 * lr_multiple(schedule, step, Clock(8, 20), history) for step in range(160)]
    assert rates[-1] < rates[100] == 0.2, "the metric rose, so the rate fell"
    # The scale of the axis follows from the first rate and the highest one.
    scale = (max(rates) - rates[0]) / (heights[0] - min(heights))
    assert rates[0] + scale * (heights[0] - heights[-1]) == pytest.approx(rates[-1], abs=1e-4)
    dots = re.findall(r'<use [^>]*style="fill: var\(--val\)', chart.svg)
    assert len(dots) == len(history)


def test_what_an_older_run_did_not_record_is_left_out() -> None:
    older = tuple(
        {key: value for key, value in entry.items() if key not in ("grad_norm", "seconds")}
        for entry in make_history(2)
    )
    names = [chart.name for chart in draw_curves(older, config(), None)]
    assert names == ["loss", "accuracy", "lr", "images_per_s"]
    assert draw_curves((), config(), None) == []


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"loss": {"label_smoothing": 0}}, "Loss, nats"),
        ({"loss": {"name": "mse"}}, "Loss: training mse as minimised, validation plain cross-"),
        ({"loss": {"label_smoothing": 0.1}}, "Loss: training cross-entropy as minimised, valid"),
        ({"augment": {"mixup": 1}}, "as minimised of mixed labels, validation plain cross-"),
    ],
)
def test_losses_of_two_kinds_are_called_so(changes: dict[str, object], title: str) -> None:
    assert title in draw_curves(make_history(2), config(**changes), None)[0].title


@pytest.mark.parametrize(
    "optim", [{"name": "gd"}, {"name": "muon"}], ids=["one step an epoch", "muon"]
)
def test_curves_are_drawn_for_every_length_of_an_epoch(optim: dict[str, object]) -> None:
    asked = config(optim=optim)
    charts = draw_curves(make_history(8, steps_per_epoch=1), asked, 6)
    assert len(charts) == 5


def test_many_classes_have_a_list_and_no_matrix(store: Store, digits_dataset: Dataset) -> None:
    labels = np.repeat(np.arange(100), 3)
    logits = np.zeros((300, 100), np.float32)
    logits[np.arange(300), labels] = 1
    logits[:2, 7] = 2
    logits[3, 9] = 2
    names = tuple(f"class {index}" for index in range(100))
    pairs = most_confused(evaluate_logits(logits, labels, names, dataset="x", split="test"))
    assert [(pair.truth, pair.predicted, pair.images) for pair in pairs] == [
        ("class 0", "class 7", 2),
        ("class 1", "class 9", 1),
    ]
    assert pairs[0].share == pytest.approx(2 / 3)


def test_a_run_without_an_evaluation_has_no_report(store: Store, digits_dataset: Dataset) -> None:
    run = create_run(store, config(), digits_dataset, "cut-off")
    with pytest.raises(NotFoundError, match="cut-off has not finished"):
        write_report(run, digits_dataset)
