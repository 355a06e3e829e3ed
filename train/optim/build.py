"""Optimizers by configuration."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from train.config import (
    AdagradConfig,
    AdamConfig,
    AdamWConfig,
    GdConfig,
    MuonConfig,
    OptimConfig,
    RmspropConfig,
    SgdConfig,
    TrainConfig,
)
from train.optim.decoupled import Adagrad, Adam, RmsProp, Sgd
from train.optim.groups import parameter_groups
from train.optim.muon import Muon
from train.optim.scaling import width_ratios


@dataclass(frozen=True)
class OptimizerParts:
    """What an optimizer is made of; for wrappers, such as ZeRO's, that make it themselves."""

    kind: type[Optimizer]
    groups: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``kind``."""


def build_optimizer(
    config: TrainConfig, net: nn.Module, *, base: nn.Module | None = None
) -> Optimizer:
    """Make the optimizer; biases and normalisation weights are not decayed.

    Args:
        config: of the run; ``optim``, ``lr_scale`` and ``hardware.fused`` are read.
        net: all of its parameters are taken, also those that are frozen now.
        base: the same kind of network with its default widths, for ``lr_scale=width``.

    Raises:
        ConfigError: ``lr_scale=width`` and no ``base``, or one with other parameters.
    """
    parts = optimizer_parts(config, net, base=base)
    return parts.kind(parts.groups, **parts.settings)


def optimizer_parts(
    config: TrainConfig, net: nn.Module, *, base: nn.Module | None = None
) -> OptimizerParts:
    """What :func:`build_optimizer` makes the optimizer of; raises as it does."""
    ratios = width_ratios(config.optim, net, base) if config.lr_scale == "width" else {}
    groups = parameter_groups(config.optim, net, ratios)
    kind, settings = _kind_and_settings(config.optim)
    if config.hardware.fused and has_fused(config.optim):
        settings["fused"] = True
    return OptimizerParts(kind, groups, settings)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the rate of every parameter group, by its ratio."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_ratio"]


def has_fused(config: OptimConfig) -> bool:
    """Whether PyTorch has one kernel for a whole step of this optimizer, on CPUs and GPUs."""
    return not isinstance(config, RmspropConfig | MuonConfig)


def _kind_and_settings(config: OptimConfig) -> tuple[type[Optimizer], dict[str, Any]]:
    if isinstance(config, GdConfig):
        return Sgd, {"lr": config.lr}
    if isinstance(config, SgdConfig):
        return Sgd, {"lr": config.lr, "momentum": config.momentum, "nesterov": config.nesterov}
    if isinstance(config, AdamConfig | AdamWConfig):
        return Adam, {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if isinstance(config, RmspropConfig):
        settings = {"alpha": config.alpha, "eps": config.eps, "momentum": config.momentum}
        return RmsProp, {"lr": config.lr, **settings}
    if isinstance(config, AdagradConfig):
        return Adagrad, {"lr": config.lr, "eps": config.eps}
    assert isinstance(config, MuonConfig)
    return Muon, {"lr": config.lr}
