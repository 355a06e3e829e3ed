"""Which parameters are stepped alike: by decay, by rate and, for Muon, by kind."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from train.config import MuonConfig, OptimConfig
from train.models.layers import last_layers

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def parameter_groups(
    config: OptimConfig, net: nn.Module, ratios: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, in a fixed order; none is empty.

    Each has ``lr_ratio``, its rate over ``config.lr``; ``decayed``, whether it is regularised; and
    its decay as ``weight_decay`` or ``decoupled_decay``. Frozen parameters are in them too: they
    may be trained later.

    The decay is divided by ``lr_ratio``: ``lr * weight_decay``, the share that a step takes away,
    is the same for every layer, as in muP's own optimizers and in airbench.

    Args:
        config: the optimizer.
        net: whose parameters.
        ratios: further factors of ``lr_ratio``, by parameter name; 1 where there is none.
    """
    kinds = muon_kinds(net) if isinstance(config, MuonConfig) else {}
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in net.named_parameters():
        decayed = parameter.ndim > 1
        ratio = ratios.get(name, 1.0)
        special: dict[str, Any] = {}
        if isinstance(config, MuonConfig):
            special, factor = _muon_settings(config, kinds[name])
            ratio *= factor
            decayed = decayed or config.decay_biases
        rate = {"lr_ratio": ratio, "lr": config.lr * ratio, "decayed": decayed}
        key = (decayed, ratio, *special.values())
        group = groups.setdefault(key, {"params": [], **rate, **special})
        group["params"].append(parameter)
    for group in groups.values():
        fixed_norm = group.get("normalize_weights", False)
        decay = config.weight_decay / group["lr_ratio"] if group["decayed"] else 0.0
        decay = 0.0 if fixed_norm else decay
        group["weight_decay"] = 0.0 if config.decoupled else decay
        group["decoupled_decay"] = decay if config.decoupled else 0.0
    return list(groups.values())


def layer_weights(net: nn.Module) -> set[str]:
    """Names of the weights ``[outputs, inputs, ...]`` of linear layers, convolutions, attention."""
    projections = {
        f"{name}.in_proj_weight".removeprefix(".")
        for name, one in net.named_modules()
        if isinstance(one, nn.MultiheadAttention)
    }
    weights = {f"{name}.weight".removeprefix(".") for name in _layers(net)} | projections
    return weights & {name for name, _ in net.named_parameters()}


def output_layers(net: nn.Module) -> set[str]:
    """Names of the layers that give the logits: one, or the heads of a network with several."""
    layers = _layers(net)
    if not layers:
        return set()
    outputs = len(net.get_submodule(layers[-1]).weight)  # type: ignore[arg-type]
    return set(last_layers(net, outputs)) or {layers[-1]}


def muon_kinds(net: nn.Module) -> dict[str, str]:
    """For each parameter "hidden" (which takes Muon), "edge" (first or last layer) or "vector".

    Only weights of layers are matrices; embeddings and class tokens have several dimensions, and
    none of what Muon needs.
    """
    edges = {f"{name}.weight" for name in {*_layers(net)[:1], *output_layers(net)}}
    weights = layer_weights(net)
    return {name: _kind(name, weights, edges) for name, _ in net.named_parameters()}


def _layers(net: nn.Module) -> list[str]:
    return [name for name, one in net.named_modules() if isinstance(one, _LAYERS)]


def _kind(name: str, weights: set[str], edges: set[str]) -> str:
    if name in edges:
        return "edge"
    return "hidden" if name in weights else "vector"


def _muon_settings(config: MuonConfig, kind: str) -> tuple[dict[str, Any], float]:
    """Settings of a group for the class Muon, and its rate over ``config.lr``."""
    if kind == "hidden":
        settings = {
            "kind": "muon",
            "momentum": config.momentum,
            "nesterov": config.nesterov,
            "iterations": config.iterations,
            "normalize_weights": config.normalize_weights,
        }
        return settings, 1.0
    settings = {"kind": "sgd", "momentum": config.sgd_momentum, "normalize_weights": False}
    return settings, config.head_lr_ratio if kind == "edge" else config.bias_lr_ratio
