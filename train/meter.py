"""Running sums over a part of the training: loss, accuracy, speed."""

import time

import torch
from torch import Tensor


class Meter:
    """Sums of loss, correct predictions, images and gradient norms, kept on the device.

    Args:
        device: of the tensors that will be added.
        skipping: leave out norms that are not finite: of fp16's steps that are not taken.
    """

    def __init__(self, device: torch.device, *, skipping: bool = False) -> None:
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)
        """Loss, correct predictions, images."""
        self._norm = torch.zeros((), dtype=torch.float64, device=device)
        self._steps = 0
        self._skipping = skipping
        self._began = time.monotonic()

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a part of a batch; ``loss`` is its sum."""
        correct = (logits.argmax(1) == labels).sum()
        self.totals[0] += loss
        self.totals[1] += correct
        self.totals[2] += len(labels)

    def add_norm(self, norm: Tensor) -> None:
        """Count a step by the norm of its gradient."""
        self._norm += norm.nan_to_num(0, 0, 0) if self._skipping else norm
        self._steps += 1

    @property
    def grad_norm(self) -> float:
        """Mean over the steps."""
        return float(self._norm) / max(1, self._steps)

    def seconds(self) -> float:
        """Time since the meter was made."""
        return max(time.monotonic() - self._began, 1e-9)
