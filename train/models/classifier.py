"""From stored bytes to logits: the module that is trained, exported and served."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cluster.dataset import ChannelStatistics, DatasetMeta
from cluster.errors import ConfigError
from train.config import ModelConfig, Normalize, Outputs, SourceConfig, TrainConfig
from train.models.airbench import AirbenchNet
from train.models.file import build_from_file
from train.models.graph import OnnxNet
from train.models.net import Net
from train.models.resnet import ResNet
from train.models.zoo import build_timm, build_torchvision

Shape = tuple[int, int, int]
MODELS: dict[str, Callable[[Any, Shape, int], nn.Module]] = {
    "net": Net,
    "resnet": ResNet,
    "airbench": AirbenchNet,
    "torchvision": build_torchvision,
    "timm": build_timm,
    "file": build_from_file,
    "onnx": OnnxNet,
}
# Of pixels from 0 to 1. One value stands for every channel.
_NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
    "none": ((0.0,), (1.0,)),
    "bytes": ((0.0,), (1 / 255,)),
}


class Classifier(nn.Module):
    """A network behind its input normalisation.

    Normalising inside the module is what keeps training and serving the same: the exported graph
    takes the bytes that the data set stores.

    Args:
        net: takes float32 ``[n, channels, height, width]``.
        normalization: of pixels from 0 to 1.
        output: what ``net`` gives.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, normalization: ChannelStatistics, output: Outputs = "logits"
    ) -> None:
        super().__init__()
        self.net = net
        self.normalization = normalization
        self.output = output
        shape = (1, len(normalization.mean), 1, 1)
        # In units of a byte, so that scaling to [0, 1] costs no extra pass.
        mean = torch.tensor(normalization.mean, dtype=torch.float64).mul(255).reshape(shape)
        std = torch.tensor(normalization.std, dtype=torch.float64).mul(255).reshape(shape)
        self.register_buffer("mean", mean.float(), persistent=False)
        self.register_buffer("std", std.float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 ``[n, channels, height, width]`` -> float32 logits ``[n, classes]``."""
        given: Tensor = self.net((images.to(torch.float32) - self.mean) / self.std)
        if self.output == "probabilities":
            # The smallest normal number: the logarithm of 0 would be no number to compare.
            return given.clamp_min(torch.finfo(torch.float32).tiny).log()
        return given


def build_classifier(config: TrainConfig, meta: DatasetMeta) -> Classifier:
    """Build a classifier for a data set; the first weights depend on ``config.seed`` alone.

    ``config.pretrained`` is not read here: see :mod:`train.pretrained`.

    Raises:
        ConfigError: there is no such network, or it does not take such images.
    """
    normalization = choose_normalization(config.normalize, meta)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = MODELS[config.model.name](config.model, meta.image.shape, len(meta.class_names))
    return Classifier(net, normalization, _output(config.model))


def choose_normalization(choice: Normalize, meta: DatasetMeta) -> ChannelStatistics:
    """Mean and deviation of each channel, of pixels from 0 to 1.

    Raises:
        ConfigError: they are not one of each for every channel.
    """
    channels = meta.image.channels
    if choice == "dataset":
        return meta.normalization
    if isinstance(choice, ChannelStatistics):
        mean, std = choice.mean, choice.std
    else:
        mean, std = _NORMALIZATIONS[choice]
    mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"normalize={choice if isinstance(choice, str) else 'mean and std'} is of "
            f"{len(mean)} and {len(std)} channels; the images have {channels}"
        )
    if not all(value > 0 for value in std):
        raise ConfigError(f"normalize.std={list(std)}: every deviation must be above 0")
    return ChannelStatistics(mean=mean, std=std)


def num_parameters(model: nn.Module) -> int:
    """Parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def _output(model: ModelConfig) -> Outputs:
    return model.output if isinstance(model, SourceConfig) else "logits"
