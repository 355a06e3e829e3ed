"""What is done to gradients between the backward pass and the optimizer's step."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from train.config import ClipConfig


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together; 0 if there are none.

    Returns:
        float scalar, on the device of the parameters.
    """
    return nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])


def clip_gradients(config: ClipConfig, parameters: Iterable[nn.Parameter], norm: Tensor) -> None:
    """Clip the gradients in place: the whole by norm, then each entry by value.

    Args:
        config: to what.
        parameters: whose.
        norm: of all their gradients together, as :func:`gradient_norm` gives it.
    """
    clipped = [parameter for parameter in parameters if parameter.grad is not None]
    if config.norm is not None:
        nn.utils.clip_grads_with_norm_(clipped, config.norm, norm)
    if config.value is not None:
        nn.utils.clip_grad_value_(clipped, config.value)


@torch.no_grad()
def add_l1(strength: float, groups: Iterable[Mapping[str, Any]]) -> None:
    """Add the gradient of ``strength * |w|`` to that of every weight that is decayed.

    Args:
        strength: of the L1 penalty.
        groups: an optimizer's ``param_groups``, as :func:`train.optim.build_optimizer` makes them.
    """
    for group in groups:
        if group["decayed"]:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.sign(), alpha=strength)
