"""torch's optimizers with weight decay beside the step, and with fused steps that are safe.

Each is torch's own class: state and ``state_dict`` are the same.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class _Step(Optimizer):
    """What happens before a step; mixed into an optimizer of torch.

    Groups may have ``decoupled_decay``: the weights are shrunk by ``lr * decoupled_decay``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A fused optimizer skips a step itself if a gradient overflowed in float16, after we have
        # shrunk the weights. Without this mark the gradient scaler does not call it at all.
        self._step_supports_amp_scaling = False

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._before_step()
        super().step()
        return loss

    def _before_step(self) -> None:
        shrink_weights(self.param_groups)
        for group in self.param_groups:
            if group.get("fused"):
                match_layouts(group["params"], self.state)


class Sgd(_Step, torch.optim.SGD):
    """SGD and gradient descent."""

    def _before_step(self) -> None:
        # torch begins a buffer with the first gradient, which is the same as beginning with zeros;
        # but its fused kernel fails where only some weights have one, as after an unfreezing.
        for group in self.param_groups:
            for weight in group["params"] if group["momentum"] else ():
                state = self.state[weight]
                if weight.grad is not None and state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(weight)
        super()._before_step()


class Adam(_Step, torch.optim.Adam):
    """Adam and AdamW."""


class RmsProp(_Step, torch.optim.RMSprop):
    """RMSprop."""


class Adagrad(_Step, torch.optim.Adagrad):
    """Adagrad."""


@torch.no_grad()
def shrink_weights(groups: Iterable[Mapping[str, Any]]) -> None:
    """Decoupled weight decay (Loshchilov and Hutter 2019) of weights that have a gradient."""
    for group in groups:
        decay = group.get("decoupled_decay", 0.0)
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if decay and weights:
            torch._foreach_mul_(weights, 1 - group["lr"] * decay)


def match_layouts(weights: Iterable[Tensor], state: Mapping[Tensor, dict[str, Any]]) -> None:
    """Lay gradients and state out in memory as their weights are.

    Fused kernels go through memory, not through indices: with a gradient that is contiguous beside
    weights that are channels_last they silently update the wrong weights.
    """
    for weight in weights:
        if weight.grad is None:
            continue
        if weight.grad.stride() != weight.stride():
            weight.grad = torch.empty_like(weight).copy_(weight.grad)
        kept = state.get(weight, {})
        for name, value in kept.items():
            same_shape = isinstance(value, Tensor) and value.shape == weight.shape
            if same_shape and value.stride() != weight.stride():
                kept[name] = torch.empty_like(weight).copy_(value)
