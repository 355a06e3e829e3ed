"""Which network is trained."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cluster.config import Frozen

Activation = Literal["relu", "tanh", "sigmoid", "gelu"]
Shortcut = Literal["projection", "pad"]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class NetConfig(Frozen):
    """Two 3x3 convolutions, one 2x2 max-pool, two linear layers; sized for any input."""

    name: Literal["net"] = "net"
    activation: Activation = "relu"
    channels: tuple[Count, Count] = (32, 64)
    hidden: int = Field(default=128, ge=1)
    dropout: Dropout = 0.0
    """Share of the hidden layer's values that a training step leaves out."""


class ResNetConfig(Frozen):
    """A residual network for small images (He et al. 2016, section 4.2, with a stage per entry)."""

    name: Literal["resnet"] = "resnet"
    activation: Activation = "relu"
    width: int = Field(default=16, ge=1)
    """Channels of the first stage; each further stage doubles them and halves the image."""
    blocks: tuple[Count, ...] = Field(default=(1, 1, 1), min_length=1)
    """Residual blocks of each stage; (3, 3, 3) is ResNet-20, (9, 9, 9) ResNet-56."""
    shortcut: Shortcut = "projection"
    """Where the shape changes: a 1x1 convolution, or every second pixel and zeros for the channels
    that come in, as ResNet-20 and ResNet-56 were published (option A)."""
    dropout: Dropout = 0.0
    """Share of the pooled values that a training step leaves out."""


class AirbenchConfig(Frozen):
    """The network of airbench (Jordan 2024, arXiv 2404.00498, section 3), for images of 16 or more.

    A first convolution that whitens patches of the training images, then three groups of
    convolutions, each with a max-pool, batch normalisation and GELU.
    """

    name: Literal["airbench"] = "airbench"
    widths: tuple[Count, Count, Count] = (64, 256, 256)
    """Channels of the groups."""
    depth: Literal[2, 3] = 2
    """Convolutions of a group; 3 adds a residual connection, as airbench96 does."""
    scale: float = Field(default=1 / 9, gt=0)
    """What the logits are multiplied with. The last layer's first weights are in inverse
    proportion, so that this decides how far a step moves the logits: 1/9 is for SGD as in
    airbench94 and for the recipes, 1/256 for the rates that airbench94_muon has for Muon."""
    whiten_epochs: int = Field(default=3, ge=0)
    """Epochs in which the first layer's bias is trained; its weights never are."""
    dropout: Dropout = 0.0
    """Share of the pooled values that a training step leaves out."""


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
    NetConfig
    | ResNetConfig
    | AirbenchConfig
    | TorchvisionConfig
    | TimmConfig
    | FileConfig
    | OnnxConfig,
    Field(discriminator="name"),
]
