"""The article's Net: two convolutions, one pool, two linear layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.errors import ConfigError
from train.config import NetConfig
from train.models.activations import ACTIVATIONS
from train.models.layers import dropout


class Net(nn.Module):
    """Two 3x3 convolutions without padding, a 2x2 max-pool, linear layers to the classes.

    Parameter names are those of the article, so that a ``state_dict`` its code wrote loads here.
    The published ``64 * 6 * 6`` fits 16x16 images only; here the first linear layer is sized for
    the input.

    Args:
        config: widths, activation and dropout.
        shape: ``(channels, height, width)`` of an image; at least 6x6.
        num_classes: outputs.

    Raises:
        ConfigError: the images are too small for the two convolutions and the pool.
    """

    def __init__(self, config: NetConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        if min(height, width) < 6:
            raise ConfigError(
                f"model.name=net takes images of 6x6 or more; these are {height}x{width}"
            )
        first, second = config.channels
        self.activation = ACTIVATIONS[config.activation]
        self.conv1 = nn.Conv2d(channels, first, 3)
        self.conv2 = nn.Conv2d(first, second, 3)
        pooled = ((height - 4) // 2) * ((width - 4) // 2)
        self.fc1 = nn.Linear(second * pooled, config.hidden)
        self.dropout = dropout(config.dropout)
        self.fc2 = nn.Linear(config.hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """float32 ``[n, channels, height, width]`` -> logits ``[n, classes]``."""
        x = self.activation(self.conv1(x))
        x = self.activation(self.conv2(x))
        x = torch.flatten(F.max_pool2d(x, 2), 1)
        x = self.dropout(self.activation(self.fc1(x)))
        logits: Tensor = self.fc2(x)
        return logits
