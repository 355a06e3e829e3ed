"""Early stopping: which epoch was the best, and whether to wait for a better one.

Functions of the history alone, so that every worker, and a run that is resumed, decides alike.
"""

import math
from collections.abc import Mapping, Sequence

from train.config import EarlyStoppingConfig

History = Sequence[Mapping[str, float]]


def best_epoch(history: History, config: EarlyStoppingConfig) -> int:
    """The best epoch, from 1, or 0 if there is none.

    As in Keras and Lightning, an epoch is better than the best before it if it is so by more than
    ``min_delta``: of equal ones the first counts. A metric that is not a number is never better.

    Args:
        history: an entry for each finished epoch, in order.
        config: the metric, and what counts as better.
    """
    sign = 1 if config.metric == "val_loss" else -1
    found, best = 0, math.inf
    for epoch, entry in enumerate(history, 1):
        value = sign * entry[config.metric]
        if value < best - config.min_delta:
            found, best = epoch, value
    return found


def should_stop(history: History, config: EarlyStoppingConfig) -> bool:
    """Whether the last ``patience`` epochs brought no improvement."""
    return len(history) - best_epoch(history, config) >= config.patience
