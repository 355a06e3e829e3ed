"""Which parameters are trained in which epoch."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cluster.errors import ConfigError
from train.config import FreezeConfig
from train.models.zoo import unknown_name

_LAST = 2**31


def apply_freeze(net: nn.Module, rules: Sequence[FreezeConfig], epoch: int) -> bool:
    """Set ``requires_grad`` as it is to be in an epoch.

    What no rule names, and the network's own ``frozen_after`` neither, stays as it is. A frozen
    parameter's gradient is dropped, so that no optimizer steps on an old one.

    Args:
        net: may have a method ``frozen_after(epoch)`` that names parameters it does not train.
        rules: of the configuration.
        epoch: the coming one, from 0.

    Returns:
        Whether anything changed.
    """
    frozen = _frozen(net, rules, epoch)
    managed = frozen | _named(net, rules) | _own(net, _LAST)
    changed = False
    for name, parameter in net.named_parameters():
        wanted = name not in frozen
        if name in managed and parameter.requires_grad != wanted:
            parameter.requires_grad_(wanted)
            parameter.grad = None
            changed = True
    return changed


def frozen_eval(net: nn.Module) -> None:
    """Let batch normalisation go by its running averages where everything around it is frozen.

    To be called after ``net.train()``: otherwise a frozen layer's averages would go on to change.
    """
    for module in net.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            for inner in module.modules():
                if isinstance(inner, _BatchNorm):
                    inner.eval()


def check_freeze(net: nn.Module, rules: Sequence[FreezeConfig]) -> None:
    """Find out beforehand whether every rule means something.

    Raises:
        ConfigError: a pattern names no layer, or none that has parameters, or nothing would be left
            to train.
    """
    for rule in rules:
        if matching_parameters(net, rule.layers):
            continue
        modules = [name for name, _ in net.named_modules() if name]
        if any(fnmatchcase(name, rule.layers) for name in modules):
            raise ConfigError(f"freeze: {rule.layers} has no parameters")
        known = [*modules, *(name for name, _ in net.named_parameters())]
        problem = f"freeze: the network has no layer {rule.layers!r}"
        raise ConfigError(unknown_name(problem, rule.layers.strip("*."), known))
    managed = _named(net, rules) | _own(net, _LAST)
    names = {name for name, one in net.named_parameters() if one.requires_grad or name in managed}
    # Each rule ends once, and a network freezes ever more of its own.
    for epoch in (0, *(rule.until for rule in rules if rule.until is not None), _LAST):
        if rules and not names - _frozen(net, rules, epoch):
            when = f"in epoch {epoch + 1}" if epoch < _LAST else "in the last epochs"
            listed = ", ".join(rule.layers for rule in rules)
            raise ConfigError(f"freeze: {listed} leaves nothing to train {when}")


def matching_parameters(net: nn.Module, pattern: str) -> set[str]:
    """Names of the parameters that a pattern names, themselves or by a module that they are of."""
    return {
        name
        for name, _ in net.named_parameters()
        if any(fnmatchcase(part, pattern) for part in _parts(name))
    }


def _parts(name: str) -> list[str]:
    """``a.b.weight`` -> ``a``, ``a.b``, ``a.b.weight``."""
    words = name.split(".")
    return [".".join(words[:length]) for length in range(1, len(words) + 1)]


def _frozen(net: nn.Module, rules: Sequence[FreezeConfig], epoch: int) -> set[str]:
    asked = [rule for rule in rules if rule.until is None or epoch < rule.until]
    return _own(net, epoch) | _named(net, asked)


def _named(net: nn.Module, rules: Sequence[FreezeConfig]) -> set[str]:
    return set[str]().union(*(matching_parameters(net, rule.layers) for rule in rules))


def _own(net: nn.Module, epoch: int) -> set[str]:
    """What the network itself does not train."""
    frozen_after = getattr(net, "frozen_after", None)
    return set(frozen_after(epoch)) if callable(frozen_after) else set()
