"""Learning-rate schedules: functions of the step and the finished epochs alone.

A run that is resumed therefore needs no state of them, and a report can plot the whole curve.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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

History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Clock:
    """How long a run is."""

    epochs: int
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch


def lr_multiple(config: ScheduleConfig, step: int, clock: Clock, history: History = ()) -> float:
    """The multiple of the base rate at a step.

    Args:
        config: the schedule.
        step: optimizer steps taken so far, from 0.
        clock: length of the run.
        history: an entry for each finished epoch, in order, with the metric that a plateau is of.
            Entries of epochs that ended after ``step`` are not looked at.
    """
    epoch = step // clock.steps_per_epoch
    by_epoch = config.unit == "epoch"
    # From here on time is in the schedule's own unit.
    now = epoch if by_epoch else step
    units_per_epoch = 1 if by_epoch else clock.steps_per_epoch
    length = (getattr(config, "epochs", None) or clock.epochs) * units_per_epoch
    warmup = round(config.warmup * length)
    if isinstance(config, StepConfig):
        body = math.pow(config.factor, _falls(config, epoch))
    elif isinstance(config, PlateauConfig):
        body = _plateau(config, history[:epoch])
    else:
        body = _after_warmup(config, max(0, now - warmup), length - warmup, units_per_epoch)
    return _ramp(config, now, warmup) * body


def _ramp(config: ScheduleConfig, now: int, warmup: int) -> float:
    """Rises from ``start`` to 1 over the warm-up."""
    if now >= warmup:
        return 1.0
    share = now / warmup
    if isinstance(config, OneCycleConfig) and config.anneal == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return config.start + (1 - config.start) * share


def _after_warmup(
    config: ConstantConfig
    | TimeConfig
    | ExponentialConfig
    | CosineConfig
    | OneCycleConfig
    | LinearConfig,
    elapsed: int,
    length: int,
    units_per_epoch: int,
) -> float:
    """The multiple ``elapsed`` units of the ``length`` after the warm-up."""
    if isinstance(config, ConstantConfig):
        return 1.0
    if isinstance(config, TimeConfig):
        return 1 / (1 + config.decay * elapsed / units_per_epoch)
    if isinstance(config, ExponentialConfig):
        return math.pow(config.gamma, elapsed / units_per_epoch)
    progress = min(1.0, elapsed / max(1, length))
    straight = isinstance(config, LinearConfig) or (
        isinstance(config, OneCycleConfig) and config.anneal == "linear"
    )
    left = 1 - progress if straight else (1 + math.cos(math.pi * progress)) / 2
    return config.end + (1 - config.end) * left


def _falls(config: StepConfig, epoch: int) -> int:
    if config.milestones is None:
        return epoch // config.period
    return sum(milestone <= epoch for milestone in config.milestones)


def _plateau(config: PlateauConfig, history: History) -> float:
    """Replays the finished epochs, as torch's ReduceLROnPlateau saw them one by one."""
    sign = 1 if config.metric == "val_loss" else -1
    multiple, best, bad_epochs = 1.0, math.inf, 0
    for entry in history:
        value = sign * entry[config.metric]
        if value < best - config.min_delta:
            best, bad_epochs = value, 0
        else:
            bad_epochs += 1
        if bad_epochs > config.patience:
            multiple = max(multiple * config.factor, config.min_multiple)
            bad_epochs = 0
    return multiple
