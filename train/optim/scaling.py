"""Rates by width, so that the best rate of a narrow network is about the best one of a wide one.

The rules are those of maximal-update parametrization (Yang et al. 2022, arXiv 2203.03466, tables 3
and 8) for weights that begin as torch begins them. With r_in and r_out for a layer's inputs and
outputs over those of the base network (Yang, Simon and Bernstein 2023, arXiv 2310.17813, write the
same rules so):

    Adam, RMSprop, Adagrad    1 / r_in              hidden and last layer fall with the width
    Muon                      sqrt(r_out / r_in)    its steps have a fixed spectral norm
    SGD                       r_out / r_in          over sqrt(R) in all layers but the last

Only rates are scaled, never weights. muP begins the last layer's weights at a deviation of
1 / width, torch at 1 / sqrt(width): the gradients of all layers below come out larger by the root
of R, the last layer's r_in. SGD is divided by that; the others do not see the size of a gradient.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from cluster.errors import ConfigError
from train.config import GdConfig, MuonConfig, OptimConfig, SgdConfig
from train.optim.groups import layer_weights, muon_kinds, output_layers


@dataclass(frozen=True)
class Widening:
    """A parameter's inputs and outputs over those of the base network's parameter."""

    inputs: float
    outputs: float


def width_ratios(
    config: OptimConfig, net: nn.Module, base: nn.Module | None
) -> Mapping[str, float]:
    """Factor of the rate of each parameter, by name.

    Raises:
        ConfigError: there is no base, or it has other parameters than the network.
    """
    widenings = _widenings(net, base)
    if not isinstance(config, GdConfig | SgdConfig | MuonConfig):
        return {name: 1 / one.inputs for name, one in widenings.items()}
    heads = output_layers(net)
    excess = math.sqrt(max([widenings[f"{head}.weight"].inputs for head in heads], default=1.0))
    kinds = muon_kinds(net) if isinstance(config, MuonConfig) else {}
    ratios = {}
    for name, one in widenings.items():
        if kinds.get(name) == "hidden":
            ratios[name] = math.sqrt(one.outputs / one.inputs)
        else:
            in_head = name.rpartition(".")[0] in heads
            ratios[name] = one.outputs / one.inputs / (1 if in_head else excess)
    return ratios


def _widenings(net: nn.Module, base: nn.Module | None) -> dict[str, Widening]:
    if base is None:
        raise ConfigError(
            "lr_scale=width needs a network with default widths to compare with; this one has "
            "none: set lr_scale=none"
        )
    shapes = {name: tuple(one.shape) for name, one in base.named_parameters()}
    own = {name: tuple(one.shape) for name, one in net.named_parameters()}
    odd = sorted(shapes.keys() ^ own.keys())
    if odd:
        raise ConfigError(
            "lr_scale=width needs the layers of the network with default widths; "
            f"{odd[0]} is in one of the two only"
        )
    # Of other parameters, such as a class token, no dimension is known to be one of inputs.
    weights = layer_weights(net)
    return {
        name: Widening(
            inputs=math.prod(shape[1:]) / math.prod(shapes[name][1:]) if name in weights else 1.0,
            outputs=shape[0] / shapes[name][0] if name in weights or len(shape) == 1 else 1.0,
        )
        for name, shape in own.items()
    }
