"""What decides a training run. The effective value of all of this is saved with every run."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cluster.config import Frozen

Activation = Literal["relu", "tanh", "sigmoid", "gelu"]


class NetConfig(Frozen):
    """Two 3x3 convolutions, one 2x2 max-pool, two linear layers; sized for any input."""

    name: Literal["net"] = "net"
    activation: Activation = "relu"
    channels: tuple[int, int] = (32, 64)
    hidden: int = Field(default=128, ge=1)


class ResNetConfig(Frozen):
    """A residual network for small images (He et al. 2016, section 4.2, with a stage per entry)."""

    name: Literal["resnet"] = "resnet"
    activation: Activation = "relu"
    width: int = Field(default=16, ge=1)
    """Channels of the first stage; each further stage doubles them and halves the image."""
    blocks: tuple[int, ...] = Field(default=(1, 1, 1), min_length=1)
    """Residual blocks of each stage; (3, 3, 3) is ResNet-20."""


ModelConfig = Annotated[NetConfig | ResNetConfig, Field(discriminator="name")]


class LossConfig(Frozen):
    """Cross-entropy."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


Beta = Annotated[float, Field(ge=0, lt=1)]


class SgdConfig(Frozen):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=5e-4, ge=0)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set optim.nesterov=false")
        return self


class AdamConfig(Frozen):
    """Adam (Kingma and Ba 2015); weight decay is added to the gradient."""

    name: Literal["adam"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)


class AdamWConfig(Frozen):
    """AdamW (Loshchilov and Hutter 2019); weight decay is decoupled from the gradient."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(default=2e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0)


OptimConfig = Annotated[SgdConfig | AdamConfig | AdamWConfig, Field(discriminator="name")]


class ScheduleConfig(Frozen):
    """Learning rate over the whole run, as a multiple of ``optim.lr``."""

    name: Literal["constant", "cosine", "one_cycle"] = "one_cycle"
    warmup: float = Field(default=0.2, ge=0, lt=1)
    """Share of the run over which the rate rises linearly from ``start``."""
    start: float = Field(default=0.05, ge=0)
    """Multiple at the first step, if there is a warm-up."""
    end: float = Field(default=0.0, ge=0)
    """Multiple after the last step; not for ``constant``."""


class AugmentConfig(Frozen):
    """Changes to training images; each is a function of (seed, epoch, sample) alone."""

    flip: bool = False
    """Mirror half of the images left to right."""
    translate: int = Field(default=0, ge=0, le=64)
    """Shift by up to this many pixels each way; what comes in is black."""


class CheckpointConfig(Frozen):
    """When the training state is saved. It is saved at the end of every epoch in any case."""

    every_s: float | None = Field(default=30.0, gt=0)
    """Also save this long after the last save, in the middle of an epoch."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest are kept."""


class ResourcesConfig(Frozen):
    """What a run takes from the cluster."""

    workers: int = Field(default=1, ge=1)
    """Data-parallel processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes a GPU for each worker if that many are free."""
    cpus_per_worker: int | None = Field(default=None, ge=1)
    """Threads of a worker too. By default the free CPUs are shared out (one each beside a GPU)."""
    max_failures: int = Field(default=3, ge=0)
    """How often dead workers are replaced before the run is given up."""


class TrainConfig(Frozen):
    """Everything that decides the weights, and where they are computed."""

    recipe: str
    """Name of the recipe that this began as."""
    data: str
    """``NAME`` or ``NAME@VERSION``."""
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=128, ge=1)
    """Images of one optimizer step, over all workers."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    init: Path | None = None
    """A ``state_dict`` file (.pth or .safetensors) to begin with instead of random weights."""
    model: ModelConfig = NetConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augment: AugmentConfig = AugmentConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_size % self.resources.workers:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide among "
                f"{self.resources.workers} workers"
            )
        return self
