"""A residual network for small images."""

import torch.nn.functional as F
from torch import Tensor, nn

from train.config import Activation, ResNetConfig, Shortcut
from train.models.activations import ACTIVATIONS
from train.models.layers import dropout


class PadShortcut(nn.Module):
    """Every ``stride``-th pixel, and channels of zeros before and behind (option A).

    Args:
        more: channels that are added; of an odd number, one more of them behind.
        stride: 1 or 2.
    """

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.before = more // 2
        self.behind = more - self.before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """``[n, channels, h, w]`` -> ``[n, channels + more, ceil(h/stride), ceil(w/stride)]``."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.behind))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and a shortcut around them."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        activation: Activation,
        shortcut: Shortcut,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 1 and channels_in == channels_out:
            return
        if shortcut == "pad":
            self.shortcut = PadShortcut(channels_out - channels_in, stride)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[n, channels_in, h, w]`` -> ``[n, channels_out, h / stride, w / stride]``."""
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.activation(y + self.shortcut(x))


class ResNet(nn.Module):
    """He et al. 2016, section 4.2: a 3x3 stem, stages that double the width, a linear head.

    Args:
        config: widths, depths, shortcuts, activation and dropout.
        shape: ``(channels, height, width)`` of an image.
        num_classes: outputs.
    """

    def __init__(self, config: ResNetConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.stem = nn.Conv2d(shape[0], config.width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(config.width)
        blocks: list[nn.Module] = []
        channels = config.width
        for stage, depth in enumerate(config.blocks):
            widened = config.width * 2**stage
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(
                    BasicBlock(channels, widened, stride, config.activation, config.shortcut)
                )
                channels = widened
        self.blocks = nn.Sequential(*blocks)
        self.dropout = dropout(config.dropout)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """float32 ``[n, channels, height, width]`` -> logits ``[n, classes]``."""
        x = self.activation(self.bn(self.stem(x)))
        x = self.blocks(x)
        x = self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1))
        logits: Tensor = self.head(x)
        return logits
