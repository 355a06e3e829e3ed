"""Rates by width: what is best for a narrow network is then about best for a wide one."""

from collections.abc import Mapping

from torch import nn

from cluster.errors import ConfigError
from train.config import MuonConfig, OptimConfig
from train.optim.groups import muon_kinds


def width_ratios(
    config: OptimConfig, net: nn.Module, base: nn.Module | None
) -> Mapping[str, float]:
    """Factor of the rate of each parameter, by name.

    Raises:
        ConfigError: there is no base, or it has other parameters than the network.
    """
    raise NotImplementedError
