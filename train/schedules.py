"""Learning-rate schedules: functions of the step alone, so that a resumed run needs no state."""

import math

from typing import Any

ScheduleConfig = Any


def lr_multiple(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """The multiple of the base rate at a step.

    ``cosine`` falls along half a cosine; ``one_cycle`` falls linearly, as in airbench. Both fall
    from 1 at the end of the warm-up to ``end`` at ``total_steps``.

    Args:
        config: the schedule.
        step: optimizer steps taken so far, from 0.
        total_steps: steps of the whole run.
    """
    warmup_steps = round(config.warmup * total_steps)
    if step < warmup_steps:
        return config.start + (1 - config.start) * step / warmup_steps
    if config.name == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    remaining = (
        1 - progress if config.name == "one_cycle" else (1 + math.cos(math.pi * progress)) / 2
    )
    return config.end + (1 - config.end) * remaining
