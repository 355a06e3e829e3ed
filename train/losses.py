"""Training losses."""

import torch.nn.functional as F
from torch import Tensor

from train.config import LossConfig


def loss_sum(config: LossConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the loss over a batch.

    Args:
        config: which loss.
        logits: float ``[n, classes]``.
        labels: int64 ``[n]``.
    """
    return F.cross_entropy(
        logits, labels, label_smoothing=getattr(config, "label_smoothing", 0.0), reduction="sum"
    )
