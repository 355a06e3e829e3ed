"""The network of airbench: a whitening first layer and three groups of wide convolutions.

Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv 2404.00498), section 3, and
the programs airbench94, airbench94_muon and airbench96 beside it.
"""

import torch
from torch import Tensor, nn

from cluster.errors import ConfigError
from train.config import AirbenchConfig
from train.models.layers import dropout

SMALLEST_IMAGE = 16
"""Pixels of a side, which is halved three times: the last group begins with 3x3 then."""
_WHITENING_KERNEL = 2
_PUBLISHED_SCALE = 1 / 9
# Published is 1e-12, which turns a channel that is the same in a whole batch into numbers without
# bounds: narrow networks on plain images end in NaN. Of other channels the results are the same.
_NORM_EPS = 1e-5


class ConvGroup(nn.Module):
    """Convolution, 2x2 max-pool, then one further convolution or a residual pair of them.

    Batch normalisation and GELU follow each convolution. The norms have no weight to train: it
    stays at 1, and stands in the ``state_dict`` as in every other network.

    Args:
        channels_in: of the map that comes in.
        channels_out: of the one that goes out, of half its height and width.
        depth: convolutions, 2 or 3.
    """

    def __init__(self, channels_in: int, channels_out: int, depth: int) -> None:
        super().__init__()
        # airbench96 has PyTorch's own momentum.
        momentum = 0.4 if depth == 2 else 0.1
        self.conv1 = _conv(channels_in, channels_out)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = _norm(channels_out, momentum)
        self.conv2 = _conv(channels_out, channels_out)
        self.norm2 = _norm(channels_out, momentum)
        self.residual = depth == 3
        if self.residual:
            self.conv3 = _conv(channels_out, channels_out)
            self.norm3 = _norm(channels_out, momentum)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """``[n, channels_in, h, w]`` -> ``[n, channels_out, h // 2, w // 2]``."""
        first = self.activation(self.norm1(self.pool(self.conv1(x))))
        y = self.norm2(self.conv2(first))
        if self.residual:
            y = self.norm3(self.conv3(self.activation(y))) + first
        out: Tensor = self.activation(y)
        return out


class AirbenchNet(nn.Module):
    """A 2x2 whitening convolution, three groups, a max-pool over what is left, a linear head.

    The first layer's weights are random until :func:`train.models.whitening.initialize_from_data`
    has seen training images. They are never trained, and neither are the norms' weights.

    Args:
        config: widths, depth and scale.
        shape: ``(channels, height, width)`` of an image; at least 16x16.
        num_classes: outputs.

    Raises:
        ConfigError: the images are too small.
    """

    def __init__(
        self, config: AirbenchConfig, shape: tuple[int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        channels, height, width = shape
        if min(height, width) < SMALLEST_IMAGE:
            raise ConfigError(
                f"model.name=airbench takes images of {SMALLEST_IMAGE}x{SMALLEST_IMAGE} or more; "
                f"these are {height}x{width}"
            )
        self._whiten_epochs = config.whiten_epochs
        self._scale = config.scale
        # Every direction of a patch, and its negative, since GELU drops one of the two.
        filters = 2 * channels * _WHITENING_KERNEL**2
        self.whiten = nn.Conv2d(channels, filters, _WHITENING_KERNEL)
        assert self.whiten.bias is not None
        nn.init.zeros_(self.whiten.bias)
        self.activation = nn.GELU()
        groups: list[nn.Module] = []
        for channels_out in config.widths:
            groups.append(ConvGroup(filters, channels_out, config.depth))
            filters = channels_out
        self.groups = nn.Sequential(*groups)
        # Of a 32x32 image 3x3 is left, as published; of any other size, whatever is.
        self.pool = nn.MaxPool2d(((height - 1) // 8, (width - 1) // 8))
        self.dropout = dropout(config.dropout)
        self.head = nn.Linear(filters, num_classes, bias=False)
        # The first logits are as large whatever the scale, so that it decides only how far a step
        # moves them: 1/9 gives the weights of airbench94, 1/256 those of airbench94_muon.
        with torch.no_grad():
            self.head.weight.mul_(_PUBLISHED_SCALE / config.scale)
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name not in self.frozen_after(0)

    def forward(self, x: Tensor) -> Tensor:
        """float32 ``[n, channels, height, width]`` -> logits ``[n, classes]``."""
        x = self.groups(self.activation(self.whiten(x)))
        x = self.dropout(self.pool(x).flatten(1))
        logits: Tensor = self.head(x) * self._scale
        return logits

    def frozen_after(self, epoch: int) -> list[str]:
        """Names of the parameters that are not trained from an epoch (0-based) on."""
        frozen = ["whiten.weight"]
        frozen += [
            f"{name}.weight"
            for name, module in self.named_modules()
            if isinstance(module, nn.BatchNorm2d)
        ]
        return frozen + (["whiten.bias"] if epoch >= self._whiten_epochs else [])


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3x3 convolution that begins by handing its input on, as far as there are channels."""
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.detach()[:channels_in])
    return conv


def _norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_NORM_EPS, momentum=momentum)
