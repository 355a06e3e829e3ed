"""Learning-rate schedules against torch's own."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch.optim import lr_scheduler

from train.config import (
    ConstantConfig,
    CosineConfig,
    ExponentialConfig,
    LinearConfig,
    OneCycleConfig,
    PlateauConfig,
    ScheduleConfig,
    StepConfig,
    TimeConfig,
)
from train.schedules import Clock, lr_multiple

CLOCK = Clock(epochs=6, steps_per_epoch=5)


def curve(config: ScheduleConfig, clock: Clock = CLOCK, extra: int = 0) -> list[float]:
    return [lr_multiple(config, step, clock) for step in range(clock.total_steps + extra)]


def torch_curve(kind: Any, steps: int, **settings: Any) -> list[float]:
    """Rates of torch's scheduler over some steps of an optimizer with the rate 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = kind(optimizer, **settings)
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def per_epoch(rates: list[float]) -> list[float]:
    return [rate for rate in rates for _ in range(CLOCK.steps_per_epoch)]


def test_constant_is_one() -> None:
    assert set(curve(ConstantConfig())) == {1.0}


@pytest.mark.parametrize(
    ("config", "kind", "settings"),
    [
        (
            CosineConfig(end=0.1, unit="epoch"),
            lr_scheduler.CosineAnnealingLR,
            {"T_max": 6, "eta_min": 0.1},
        ),
        (LinearConfig(end=0.2, unit="epoch"), lr_scheduler.LinearLR, {"total_iters": 6}),
        (ExponentialConfig(gamma=0.7, unit="epoch"), lr_scheduler.ExponentialLR, {"gamma": 0.7}),
        (StepConfig(every=2, factor=0.3), lr_scheduler.StepLR, {"step_size": 2, "gamma": 0.3}),
        (
            StepConfig(milestones=(1, 4), factor=0.3),
            lr_scheduler.MultiStepLR,
            {"milestones": [1, 4], "gamma": 0.3},
        ),
        (
            TimeConfig(decay=0.4, unit="epoch"),
            lr_scheduler.LambdaLR,
            {"lr_lambda": lambda epoch: 1 / (1 + 0.4 * epoch)},
        ),
    ],
)
def test_by_epoch_the_rates_are_torchs(
    config: ScheduleConfig, kind: Any, settings: dict[str, Any]
) -> None:
    if isinstance(config, LinearConfig):
        settings = {**settings, "start_factor": 1.0, "end_factor": config.end}
    assert curve(config) == pytest.approx(per_epoch(torch_curve(kind, 6, **settings)))


@pytest.mark.parametrize(
    ("config", "kind", "settings"),
    [
        (CosineConfig(end=0.1), lr_scheduler.CosineAnnealingLR, {"T_max": 30, "eta_min": 0.1}),
        (
            LinearConfig(end=0.2),
            lr_scheduler.LinearLR,
            {"start_factor": 1.0, "end_factor": 0.2, "total_iters": 30},
        ),
        (ExponentialConfig(gamma=0.7), lr_scheduler.ExponentialLR, {"gamma": 0.7**0.2}),
    ],
)
def test_by_step_the_rates_are_torchs(
    config: ScheduleConfig, kind: Any, settings: dict[str, Any]
) -> None:
    assert curve(config) == pytest.approx(torch_curve(kind, 30, **settings))


@pytest.mark.parametrize(("anneal", "torchs"), [("linear", "linear"), ("cosine", "cos")])
def test_one_cycle_is_torchs(anneal: Any, torchs: str) -> None:
    config = OneCycleConfig(warmup=0.3, start=0.04, end=0.002, anneal=anneal)
    # torch reaches the end at its last step, we after it; so torch gets one step more. Its peak is
    # at step pct_start * total_steps - 1.
    expected = torch_curve(
        lr_scheduler.OneCycleLR,
        30,
        max_lr=1.0,
        total_steps=31,
        pct_start=10 / 31,
        anneal_strategy=torchs,
        cycle_momentum=False,
        div_factor=1 / config.start,
        final_div_factor=config.start / config.end,
    )
    assert curve(config) == pytest.approx(expected)
    assert lr_multiple(config, 9, CLOCK) == 1.0
    assert lr_multiple(config, 30, CLOCK) == pytest.approx(0.002)


@pytest.mark.parametrize("metric", ["val_loss", "val_accuracy"])
@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_is_torchs(metric: Any, patience: int) -> None:
    values = [0.9, 0.7, 0.71, 0.7, 0.695, 0.69, 0.4, 0.5, math.nan, 0.6, 0.41, 0.42, 0.3, 0.3, 0.3]
    if metric == "val_accuracy":
        values = [1 - value for value in values]
    config = PlateauConfig(
        metric=metric, patience=patience, factor=0.4, min_delta=0.02, min_multiple=0.1
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="min" if metric == "val_loss" else "max",
        factor=0.4,
        patience=patience,
        threshold=0.02,
        threshold_mode="abs",
        min_lr=0.1,
        eps=0.0,
    )
    clock = Clock(len(values), 3)
    history: list[dict[str, float]] = []
    rates = []
    for epoch, value in enumerate(values):
        assert lr_multiple(config, 3 * epoch, clock, history) == pytest.approx(
            optimizer.param_groups[0]["lr"]
        )
        rates.append(optimizer.param_groups[0]["lr"])
        history.append({metric: value})
        scheduler.step(value)
    assert len(set(rates)) > 1
    # With the whole history at hand, as a report has it, each step still sees only its past.
    after = [lr_multiple(config, 3 * epoch, clock, history) for epoch in range(len(values))]
    assert after == pytest.approx(rates)


def test_warm_up_rises_linearly_to_one() -> None:
    config = ConstantConfig(warmup=0.5, start=0.2)
    values = curve(config, Clock(2, 5))
    assert values[:5] == pytest.approx([0.2, 0.36, 0.52, 0.68, 0.84])
    assert values[5:] == [1.0] * 5


def test_warm_up_by_epoch_takes_whole_epochs() -> None:
    config = ConstantConfig(warmup=0.3, start=0.2, unit="epoch")
    assert curve(config) == pytest.approx(per_epoch([0.2, 0.6, 1, 1, 1, 1]))


ALL: list[Any] = [
    ConstantConfig,
    TimeConfig,
    StepConfig,
    ExponentialConfig,
    CosineConfig,
    OneCycleConfig,
    LinearConfig,
    PlateauConfig,
]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_every_schedule_warms_up(kind: Any, unit: Any) -> None:
    config = kind(warmup=1 / 3, start=0.1, unit=unit)
    values = curve(config)
    assert values[0] == pytest.approx(0.1)
    assert values[:10] == sorted(values[:10])
    assert values[10] == 1.0
    if unit == "epoch":
        assert all(len(set(values[begin : begin + 5])) == 1 for begin in range(0, 30, 5))
    else:
        assert values[1] == pytest.approx(0.19) or kind is OneCycleConfig


def test_decay_begins_after_the_warm_up() -> None:
    config = TimeConfig(decay=1.0, warmup=1 / 3)
    assert lr_multiple(config, 15, CLOCK) == pytest.approx(1 / 2)
    assert lr_multiple(config, 20, CLOCK) == pytest.approx(1 / 3)


def test_steps_are_counted_from_the_beginning() -> None:
    config = StepConfig(milestones=(1, 3), factor=0.5, warmup=1 / 3, start=0.0)
    assert lr_multiple(config, 5, CLOCK) == pytest.approx(0.25)
    assert lr_multiple(config, 14, CLOCK) == 0.5
    assert lr_multiple(config, 15, CLOCK) == 0.25


@pytest.mark.parametrize("kind", [CosineConfig, OneCycleConfig, LinearConfig])
def test_a_schedule_shorter_than_the_run_stays_at_its_end(kind: Any) -> None:
    config = kind(epochs=4, end=0.1, warmup=0.25)
    values = curve(config)
    assert values[:20] == pytest.approx(curve(config, Clock(4, 5)))
    assert values[5] == 1.0
    assert values[20:] == pytest.approx([0.1] * 10)


schedules: TypeAdapter[ScheduleConfig] = TypeAdapter(ScheduleConfig)


@given(
    name=st.sampled_from([kind().name for kind in ALL]),
    warmup=st.floats(0, 0.99),
    unit=st.sampled_from(["step", "epoch"]),
    epochs=st.integers(1, 4),
    steps_per_epoch=st.integers(1, 4),
)
def test_rates_lie_between_zero_and_one(
    name: str, warmup: float, unit: str, epochs: int, steps_per_epoch: int
) -> None:
    config = schedules.validate_python({"name": name, "warmup": warmup, "unit": unit})
    values = curve(config, Clock(epochs, steps_per_epoch), extra=3)
    assert all(0 <= value <= 1 for value in values)
