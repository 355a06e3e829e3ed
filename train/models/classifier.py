"""From stored bytes to logits: the module that is trained, exported and served."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cluster.dataset import ChannelStatistics, DatasetMeta
from cluster.errors import ConfigError
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
    shape = meta.image.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            net = MODELS[config.name](config, shape, len(meta.class_names))
        except (RuntimeError, ZeroDivisionError) as error:
            raise ConfigError(f"model.name={config.name} on images {shape}: {error}") from None
    classifier = Classifier(net, meta.statistics)
    _try_forward(classifier, config, shape)
    return classifier


def num_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _try_forward(classifier: Classifier, config: ModelConfig, shape: Shape) -> None:
    training = classifier.training
    classifier.eval()
    try:
        with torch.inference_mode():
            classifier(torch.zeros((1, *shape), dtype=torch.uint8))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"model.name={config.name} does not fit images of {shape[1]}x{shape[2]}: {reason}"
        ) from None
    finally:
        classifier.train(training)
