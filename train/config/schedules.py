"""How the learning rate changes: as a multiple of ``optim.lr``."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cluster.config import Frozen


class _ScheduleConfig(Frozen):
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the schedule over which the rate first rises linearly from ``start``."""
    start: float = Field(default=0.05, ge=0)
    """Multiple at the first step, if there is a warm-up."""
    unit: Literal["step", "epoch"] = "step"
    """Whether the rate changes with every step or is held over each epoch. By epoch, the warm-up
    takes whole epochs."""


class _FallingConfig(_ScheduleConfig):
    end: float = Field(default=0.0, ge=0)
    """Multiple after the last step."""
    epochs: int | None = Field(default=None, ge=1)
    """Length of the schedule; afterwards the rate stays at ``end``. none: the whole run."""


class ConstantConfig(_ScheduleConfig):
    """The same rate throughout."""

    name: Literal["constant"] = "constant"


class TimeConfig(_ScheduleConfig):
    """Inverse time decay: ``1 / (1 + decay * t)``, t in epochs since the warm-up."""

    name: Literal["time"] = "time"
    decay: float = Field(default=0.5, gt=0)


class StepConfig(_ScheduleConfig):
    """Times ``factor`` after each of some epochs, counted from the beginning of the run."""

    name: Literal["step"] = "step"
    milestones: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Epochs after which the rate falls."""
    every: Annotated[int, Field(ge=1)] | None = None
    """Or how many epochs lie between one fall and the next; with neither, 10."""
    factor: float = Field(default=0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _ascend(self) -> Self:
        if self.milestones is not None and self.every is not None:
            raise ValueError("step takes either every or milestones")
        points = self.milestones or ()
        if list(points) != sorted(set(points)) or any(point < 1 for point in points):
            raise ValueError(f"milestones {list(points)} must be epochs from 1 on, in order")
        return self

    @property
    def period(self) -> int:
        """Epochs between one fall and the next, where there are no milestones."""
        return self.every or 10


class ExponentialConfig(_ScheduleConfig):
    """``gamma ** t``, t in epochs since the warm-up."""

    name: Literal["exponential"] = "exponential"
    gamma: float = Field(default=0.9, gt=0, le=1)


class CosineConfig(_FallingConfig):
    """Half a cosine from 1 to ``end`` (Loshchilov and Hutter 2017, without restarts)."""

    name: Literal["cosine"] = "cosine"


class OneCycleConfig(_FallingConfig):
    """Up to 1 and down to ``end`` (Smith and Topin 2018)."""

    name: Literal["one_cycle"] = "one_cycle"
    warmup: float = Field(default=0.2, ge=0, lt=1)
    anneal: Literal["linear", "cosine"] = "linear"
    """Shape of both halves: linear as in airbench, cosine as PyTorch's default."""


class LinearConfig(_FallingConfig):
    """A straight line from 1 to ``end``."""

    name: Literal["linear"] = "linear"


class PlateauConfig(_ScheduleConfig):
    """Times ``factor`` when validation has not improved for ``patience`` epochs."""

    name: Literal["plateau"] = "plateau"
    metric: Literal["val_loss", "val_accuracy"] = "val_loss"
    factor: float = Field(default=0.5, gt=0, lt=1)
    patience: int = Field(default=2, ge=0)
    """Epochs without an improvement that are waited for the next one."""
    min_delta: float = Field(default=1e-4, ge=0)
    """An improvement is more than this over the best so far."""
    min_multiple: float = Field(default=0.0, ge=0, le=1)
    """The rate falls no further than this."""


ScheduleConfig = Annotated[
    ConstantConfig
    | TimeConfig
    | StepConfig
    | ExponentialConfig
    | CosineConfig
    | OneCycleConfig
    | LinearConfig
    | PlateauConfig,
    Field(discriminator="name"),
]
