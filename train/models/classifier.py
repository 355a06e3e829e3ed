"""From stored bytes to logits: the module that is trained, exported and served."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cluster.dataset import ChannelStatistics, DatasetMeta
from train.config import ModelConfig
from train.models.net import Net
from train.models.resnet import ResNet

Shape = tuple[int, int, int]
MODELS: dict[str, Callable[[Any, Shape, int], nn.Module]] = {"net": Net, "resnet": ResNet}


class Classifier(nn.Module):
    """A network behind its input normalisation.

    Normalising inside the module is what keeps training and serving the same: the exported graph
    takes the bytes that the data set stores.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, statistics: ChannelStatistics) -> None:
        super().__init__()
        self.net = net
        shape = (1, len(statistics.mean), 1, 1)
        # In units of a byte, so that scaling to [0, 1] costs no extra pass.
        mean = torch.tensor(statistics.mean).mul(255).reshape(shape)
        std = torch.tensor(statistics.std).mul(255).reshape(shape)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 ``[n, channels, height, width]`` -> float32 logits ``[n, classes]``."""
        logits: Tensor = self.net((images.to(torch.float32) - self.mean) / self.std)
        return logits


def build_classifier(config: ModelConfig, meta: DatasetMeta, seed: int) -> Classifier:
    """Build a classifier for a data set; the first weights depend on ``seed`` alone.

    Raises:
        ConfigError: the images are too small for the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MODELS[config.name](config, meta.image.shape, len(meta.class_names))
    return Classifier(net, meta.statistics)


def num_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
