"""The whole configuration of a run, and the rules that hold between its parts."""

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from cluster.config import Frozen
from cluster.dataset import ChannelStatistics
from train.config.augment import AugmentConfig
from train.config.hardware import CheckpointConfig, ExactConfig, HardwareConfig, ResourcesConfig
from train.config.learning import (
    AdamWConfig,
    ClipConfig,
    CrossEntropyConfig,
    EarlyStoppingConfig,
    EmaConfig,
    FreezeConfig,
    GdConfig,
    LossConfig,
    LrScale,
    OptimConfig,
)
from train.config.models import ModelConfig, NetConfig
from train.config.schedules import (
    CosineConfig,
    LinearConfig,
    OneCycleConfig,
    ScheduleConfig,
    StepConfig,
)

Normalize = Literal["dataset", "imagenet", "half", "none", "bytes"] | ChannelStatistics
Sampling = Literal["shuffle", "balanced"]

IMPORT_RECIPE = "import"
"""The recipe of a run whose weights were trained elsewhere."""


class TrainConfig(Frozen):
    """Everything that decides the weights, and where they are computed."""

    recipe: str
    """Name of the recipe that this began as."""
    data: str
    """``NAME`` or ``NAME@VERSION``."""
    epochs: int = Field(default=10, ge=0)
    """0 is for imported models only."""
    batch_size: int = Field(default=128, ge=1)
    """Images of one optimizer step, over all workers."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """A worker computes its share of a batch in equal parts of at most so many images, one after
    the other, and accumulates their gradients; none: at once. The gradient is that of the whole
    batch; batch normalisation is by part."""
    sampling: Sampling = "shuffle"
    """``shuffle`` takes every image once an epoch; ``balanced`` takes as many, of every class
    equally: images of small classes several times, of large ones not all."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    pretrained: str | None = None
    """Weights to begin with: a file (.pth or .safetensors), a bundle's folder or
    ``registry:MODEL[@VERSION]``, or ``torchvision`` or ``timm`` for what is published there. The
    first layer is fitted to the image's channels, and the last one begins at random where the
    file's classes are others."""
    freeze: tuple[FreezeConfig, ...] = ()
    """Layers that are not trained, for some epochs or at all."""
    normalize: Normalize = "dataset"
    """What the network takes pixels as: ``dataset``, with mean 0 and deviation 1 over the training
    split; ``imagenet``, by ImageNet's mean and deviation; ``half``, from -1 to 1; ``none``, from
    0 to 1; ``bytes``, from 0 to 255; or ``mean`` and ``std`` of each channel, of pixels from 0 to
    1."""
    model: ModelConfig = NetConfig()
    loss: LossConfig = CrossEntropyConfig()
    l1: float = Field(default=0.0, ge=0)
    """L1 regularisation: this times the sum of the weights' magnitudes is added to the loss; of
    those that are decayed too."""
    optim: OptimConfig = AdamWConfig()
    lr_scale: LrScale = "none"
    """``width`` scales the rate of each layer by its width over that of the same kind of network
    with its default widths, as maximal-update parametrization does (Yang et al. 2022, table 8), so
    that the best rate of a narrow network is the best one of a wide network too."""
    clip: ClipConfig | None = None
    schedule: ScheduleConfig = OneCycleConfig()
    ema: EmaConfig | None = None
    early_stopping: EarlyStoppingConfig | None = None
    augment: AugmentConfig = AugmentConfig()
    exact: ExactConfig | None = None
    """none: DistributedDataParallel, whose weights are the same for the same seed and number of
    workers. ``--exact`` turns it on."""
    hardware: HardwareConfig = HardwareConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @field_validator("epochs")
    @classmethod
    def _trains(cls, epochs: int, info: ValidationInfo) -> int:
        if epochs == 0 and info.data.get("recipe") != IMPORT_RECIPE:
            raise ValueError("input should be greater than or equal to 1")
        return epochs

    @model_validator(mode="after")
    def _workers_have_work(self) -> Self:
        workers, fewest = self.resources.workers, self.resources.min_workers
        if fewest is not None and fewest > workers:
            raise ValueError(f"resources.min_workers {fewest} is more than the {workers} workers")
        if self.exact is not None:
            if workers > self.exact.shards:
                raise ValueError(
                    f"{workers} workers cannot share {self.exact.shards} shards of a batch; set "
                    f"exact.shards to {workers} or more"
                )
            if self.exact.shards > self.batch_size:
                raise ValueError(
                    f"exact.shards {self.exact.shards} is more than batch_size {self.batch_size}"
                )
            if self.hardware.memory_format == "auto":
                raise ValueError(
                    "hardware.memory_format=auto is decided by timing, and an exact run by nothing "
                    "but configuration and seed; name contiguous or channels_last"
                )
        elif workers > self.batch_size:
            raise ValueError(f"batch_size {self.batch_size} is too small for {workers} workers")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        schedule, epochs = self.schedule, self.epochs
        if epochs == 0:
            return self
        length = getattr(schedule, "epochs", None) or epochs
        if schedule.unit == "epoch" and schedule.warmup and round(schedule.warmup * length) == 0:
            raise ValueError(
                f"schedule.warmup {schedule.warmup:g} of {length} epochs is less than half an "
                "epoch; set schedule.unit=step"
            )
        if isinstance(schedule, CosineConfig | OneCycleConfig | LinearConfig):
            if (schedule.epochs or 0) > epochs:
                raise ValueError(
                    f"schedule.epochs {schedule.epochs} is longer than the training of {epochs} "
                    "epochs"
                )
        elif isinstance(schedule, StepConfig):
            last = schedule.milestones[-1] if schedule.milestones else schedule.period
            if last >= epochs:
                name = "milestones" if schedule.milestones else "every"
                raise ValueError(
                    f"schedule.{name}: the rate would fall after epoch {last}; the training ends "
                    f"after {epochs}"
                )
        return self

    @model_validator(mode="after")
    def _classes_are_balanced_once(self) -> Self:
        if self.sampling == "balanced" and self.loss.class_weights == "balanced":
            raise ValueError(
                "sampling=balanced and loss.class_weights=balanced would count small classes twice "
                "over; choose one"
            )
        return self

    @model_validator(mode="after")
    def _frozen_layers_are_trained_in_time(self) -> Self:
        for index, rule in enumerate(self.freeze):
            if rule.until is not None and self.epochs and rule.until >= self.epochs:
                raise ValueError(
                    f"freeze.{index}.until: {rule.layers} would be trained after epoch "
                    f"{rule.until}; the training ends after {self.epochs} (without until, a layer "
                    "is never trained)"
                )
        return self

    @model_validator(mode="after")
    def _full_batch_stands_alone(self) -> Self:
        if isinstance(self.optim, GdConfig) and self.sampling != "shuffle":
            raise ValueError(
                "optim.name=gd takes every image once a step; sampling must be shuffle"
            )
        return self
