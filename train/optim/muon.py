"""Muon: momentum whose matrices are orthogonalised, and SGD for everything that is no matrix."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

# Of Jordan et al. 2024 (kellerjordan.github.io/posts/muon): the steepest slope at 0 for which the
# singular values still end between about 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7


class Muon(Optimizer):
    """Muon as airbench94_muon has it (github.com/KellerJordan/cifar10-airbench).

    Groups have ``kind`` "muon" or "sgd"; the latter take plain SGD. Weight decay as in the other
    optimizers: ``weight_decay`` is added to the gradient, ``decoupled_decay`` shrinks the weights.

    Args:
        params: parameters, or groups of them; those of "muon" have two or more dimensions.
        lr: the rate; for "muon" the spectral norm of a step.
        momentum: of the gradient; the buffer is ``momentum * buffer + gradient``.
        nesterov: step along ``gradient + momentum * buffer``.
        weight_decay: coupled decay.
        decoupled_decay: decoupled decay.
        kind: of groups that do not say.
        iterations: of Newton-Schulz.
        normalize_weights: scale each weight of "muon" to the norm ``sqrt(out)`` before its step.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.24,
        *,
        momentum: float = 0.6,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        decoupled_decay: float = 0.0,
        kind: str = "muon",
        iterations: int = 3,
        normalize_weights: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "decoupled_decay": decoupled_decay,
            "kind": kind,
            "iterations": iterations,
            "normalize_weights": normalize_weights,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if group["decoupled_decay"]:
            weight.mul_(1 - group["lr"] * group["decoupled_decay"])
        direction = self._direction(weight, gradient, group)
        if group["kind"] == "muon":
            flat = orthogonalize(direction.flatten(1), group["iterations"])
            direction = flat.reshape(direction.shape)
            if group["normalize_weights"]:
                weight.mul_(len(weight) ** 0.5 / weight.norm().clamp_min(EPS))
        weight.add_(direction, alpha=-group["lr"])

    def _direction(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient with decay and momentum."""
        if group["weight_decay"]:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        momentum = group["momentum"]
        if momentum == 0:
            return gradient
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer: Tensor = state["momentum_buffer"]
        buffer.mul_(momentum).add_(gradient)
        return gradient.add(buffer, alpha=momentum) if group["nesterov"] else buffer


def orthogonalize(matrix: Tensor, iterations: int) -> Tensor:
    """Bring the singular values of a matrix near 1 by the quintic Newton-Schulz iteration.

    Each iteration maps X to ``a X + b (X X') X + c (X X')^2 X``. That is P X with P a polynomial of
    the Gram matrix A = X X', and A becomes P A P: in float32 we iterate on A, and multiply with X
    once, which nearly halves the time for a matrix much wider than high. bfloat16, which GPUs
    multiply fastest, is too coarse for that and takes the iteration as published.

    Args:
        matrix: float ``[rows, columns]``.
        iterations: 3 in airbench, 5 for language models.

    Returns:
        The same shape and type.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    x = x / (x.norm() + EPS)
    tall = len(x) > x.shape[1]
    if tall:
        x = x.T
    if x.dtype == torch.bfloat16:
        for _ in range(iterations):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    else:
        gram = x @ x.T
        polynomial = product = _polynomial(gram)
        for _ in range(iterations - 1):
            gram = polynomial @ gram @ polynomial
            polynomial = _polynomial(gram)
            product = polynomial @ product
        x = product @ x
    return (x.T if tall else x).to(matrix.dtype)


def _polynomial(gram: Tensor) -> Tensor:
    """``a I + b A + c A^2`` of a Gram matrix A."""
    a, b, c = COEFFICIENTS
    polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    polynomial.diagonal().add_(a)
    return polynomial
