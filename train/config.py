"""What decides a training run. The effective value of all of this is saved with every run."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from cluster.config import Frozen
from cluster.dataset import ChannelStatistics

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


class TorchvisionConfig(Frozen):
    """A classifier of torchvision, its first and last layers fitted to the data."""

    name: Literal["torchvision"] = "torchvision"
    arch: str
    """Such as ``resnet18``; any classifier that torchvision builds by name."""
    stem: Literal["original", "small"] = "original"
    """``small`` is for images below 64 pixels, on networks of the ResNet family: a 3x3 convolution
    of stride 1 in place of the 7x7 one of stride 2 and the max-pool. Every layer then sees 16 times
    the positions, and costs about as much more."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of torchvision's builder, such as ``dropout``."""


class TimmConfig(Frozen):
    """A classifier of timm, fitted to the data; needs the extra ``raybridge[timm]``."""

    name: Literal["timm"] = "timm"
    arch: str
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of ``timm.create_model``, such as ``drop_rate``."""


Outputs = Literal["logits", "probabilities"]


class SourceConfig(Frozen):
    """A network that a file of the user's describes. Every run keeps a copy of the file."""

    path: Path
    sha256: str | None = None
    """Of the file; filled in when a run begins, and checked whenever the copy is read."""
    output: Outputs = "logits"
    """What the network gives; of probabilities the logarithm is taken."""


class FileConfig(SourceConfig):
    """A network that a Python file of the user's builds."""

    name: Literal["file"] = "file"
    factory: str
    """Function or class of the file: called with those of ``shape`` (channels, height, width),
    ``num_classes`` and ``in_channels`` that it names, and with the options."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the factory."""


class OnnxConfig(SourceConfig):
    """A foreign ONNX graph, as ``train import`` takes it. It cannot be trained."""

    name: Literal["onnx"] = "onnx"


ModelConfig = Annotated[
    NetConfig | ResNetConfig | TorchvisionConfig | TimmConfig | FileConfig | OnnxConfig,
    Field(discriminator="name"),
]

Normalize = Literal["dataset", "imagenet", "half", "none", "bytes"] | ChannelStatistics


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
    random_resized_crop: float | None = Field(default=None, gt=0, le=1)
    """Train on a part of each image, stretched to the whole: this share of its area or more, at an
    aspect ratio of 3/4 to 4/3. 0.35 is a good beginning for photographs, none for small images."""
    translate: int = Field(default=0, ge=0, le=64)
    """Shift by up to this many pixels each way; what comes in is black."""


Sampling = Literal["shuffle", "balanced"]


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
    placement: Literal["pack", "spread"] = "pack"
    """``pack`` takes as few machines as possible, ``spread`` as many; as far as CPUs are free."""
    max_failures: int = Field(default=3, ge=0)
    """How often dead workers are replaced before the run is given up."""


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
    sampling: Sampling = "shuffle"
    """``shuffle`` takes every image once an epoch; ``balanced`` takes as many, of every class
    equally: images of small classes several times, of large ones not all."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    pretrained: str | None = None
    """Weights to begin with: a file (.pth or .safetensors), or ``torchvision`` or ``timm`` for
    what is published there. The first layer is fitted to the image's channels, and the last one
    begins at random where the file's classes are others."""
    normalize: Normalize = "dataset"
    """What the network takes pixels as: ``dataset``, with mean 0 and deviation 1 over the training
    split; ``imagenet``, by ImageNet's mean and deviation; ``half``, from -1 to 1; ``none``, from
    0 to 1; ``bytes``, from 0 to 255; or ``mean`` and ``std`` of each channel, of pixels from 0 to
    1."""
    model: ModelConfig = NetConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augment: AugmentConfig = AugmentConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @field_validator("epochs")
    @classmethod
    def _trains(cls, epochs: int, info: ValidationInfo) -> int:
        if epochs == 0 and info.data.get("recipe") != IMPORT_RECIPE:
            raise ValueError("input should be greater than or equal to 1")
        return epochs

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_size % self.resources.workers:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide among "
                f"{self.resources.workers} workers"
            )
        return self
