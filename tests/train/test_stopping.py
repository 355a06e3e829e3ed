"""When to stop, and what to go back to."""

import math

import pytest

from train.config import EarlyStoppingConfig
from train.stopping import best_epoch, should_stop


def losses(*values: float) -> list[dict[str, float]]:
    return [{"val_loss": value} for value in values]


def stops_after(values: tuple[float, ...], config: EarlyStoppingConfig) -> int | None:
    """The epoch after which a run would end, as its loop asks after each one."""
    epochs = range(1, len(values) + 1)
    return next((e for e in epochs if should_stop(losses(*values[:e]), config)), None)


def keras_stops_after(values: tuple[float, ...], config: EarlyStoppingConfig) -> int | None:
    """Transcribed from keras.callbacks.EarlyStopping.on_epoch_end, mode "min"."""
    best, wait = math.inf, 0
    for epoch, current in enumerate(values, 1):
        wait += 1
        if current < best - config.min_delta:
            best, wait = current, 0
        elif wait >= config.patience and epoch > 1:
            return epoch
    return None


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("min_delta", [0.0, 0.15])
@pytest.mark.parametrize(
    "values",
    [
        (1.0, 0.9, 0.8, 0.7, 0.6, 0.5),
        (1.0, 0.5, 0.6, 0.5, 0.4, 0.45, 0.46, 0.39, 0.5, 0.5),
        (1.0, 1.0, 1.0, 1.0),
        (1.0, 2.0, 0.5, math.nan, math.nan, 0.4),
    ],
)
def test_it_stops_when_keras_does(
    values: tuple[float, ...], min_delta: float, patience: int
) -> None:
    config = EarlyStoppingConfig(patience=patience, min_delta=min_delta)
    assert stops_after(values, config) == keras_stops_after(values, config)


def test_patience_is_epochs_in_a_row_without_improvement() -> None:
    assert stops_after((1.0, 0.5, 0.6, 0.6, 0.6), EarlyStoppingConfig(patience=3)) == 5
    assert stops_after((1.0, 0.5, 0.6, 0.6, 0.4), EarlyStoppingConfig(patience=3)) is None


def test_the_best_epoch() -> None:
    config = EarlyStoppingConfig()
    assert best_epoch(losses(1.0, 0.5, 0.6, 0.5), config) == 2
    assert best_epoch(losses(1.0, 0.5, 0.49), EarlyStoppingConfig(min_delta=0.1)) == 2
    accuracies = [{"val_accuracy": value} for value in (0.5, 0.9, 0.8)]
    assert best_epoch(accuracies, EarlyStoppingConfig(metric="val_accuracy")) == 2


def test_what_is_not_a_number_is_never_better() -> None:
    config = EarlyStoppingConfig(patience=2)
    assert best_epoch(losses(math.nan, 0.5, math.nan), config) == 2
    assert best_epoch(losses(math.nan), config) == 0
    assert should_stop(losses(math.nan, math.nan), config)


def test_before_the_first_epoch_there_is_no_best_one() -> None:
    assert best_epoch([], EarlyStoppingConfig()) == 0
    assert not should_stop([], EarlyStoppingConfig())
