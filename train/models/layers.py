"""Layers that depend on the data, the first on channels, the last on classes; and dropout."""

from itertools import takewhile

import torch
from torch import Tensor, nn


def find_first_conv(net: nn.Module) -> str | None:
    """Name of the first convolution over images, in the order in which layers were defined."""
    return next((name for name, one in net.named_modules() if isinstance(one, nn.Conv2d)), None)


def last_layers(net: nn.Module, num_classes: int) -> list[str]:
    """Names of the linear layers or convolutions that end with a number for each class.

    They are the last in the order in which layers were defined: one, or the heads of a network
    that has several.
    """
    layers = [
        (name, one) for name, one in net.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)
    ]
    heads = takewhile(lambda layer: len(layer[1].weight) == num_classes, reversed(layers))
    return [name for name, _ in heads]


def fit_channels(weight: Tensor, channels: int) -> Tensor:
    """Fit the weight of a first convolution to another number of channels.

    For a single channel the filters are summed: what they give for a grey image is what they gave
    for the same one in colours. For others they are repeated, and scaled to the same total.

    Args:
        weight: ``[out, in, height, width]``.
        channels: wanted.

    Returns:
        ``[out, channels, height, width]``.
    """
    known = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight[:, torch.arange(channels) % known]
    return repeated * (known / channels)


def dropout(share: float) -> nn.Module:
    """A layer that leaves out a share of the values in training; none at all if that is 0."""
    return nn.Dropout(share) if share > 0 else nn.Identity()
