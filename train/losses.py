"""Training losses."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.errors import ConfigError
from train.config import CrossEntropyConfig, FocalConfig, LossConfig

ImageLosses = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(logits ``[n, classes]``, labels ``[n]``, weights ``[classes]`` or none) -> losses ``[n]``."""


class MixedLabels(Protocol):
    """The second labels of blended images, as the loader's ``Mix`` has them."""

    @property
    def labels(self) -> Tensor:
        """int64 ``[n]``."""

    @property
    def share(self) -> Tensor:
        """float32 ``[n]``: what each image's own label counts; the second one counts the rest."""


class Loss:
    """Sum of a loss over a batch.

    Args:
        image_losses: the loss of each image.
        class_weights: float ``[classes]``, what an image counts by its class.
    """

    def __init__(self, image_losses: ImageLosses, class_weights: Tensor | None = None) -> None:
        self.image_losses = image_losses
        self.class_weights = class_weights

    def __call__(self, logits: Tensor, labels: Tensor, mix: MixedLabels | None = None) -> Tensor:
        """The sum over a batch.

        Args:
            logits: float ``[n, classes]``.
            labels: int64 ``[n]``.
            mix: the second labels of blended images; both labels' losses count by their shares
                (Zhang et al. 2018).

        Returns:
            A scalar.
        """
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(logits)
        losses = self.image_losses(logits, labels, self.class_weights)
        if mix is not None:
            others = self.image_losses(logits, mix.labels, self.class_weights)
            losses = mix.share * losses + (1 - mix.share) * others
        return losses.sum()


def build_loss(config: LossConfig, counts: Sequence[int]) -> Loss:
    """Make the loss.

    Args:
        config: which one.
        counts: training images of each class.

    Raises:
        ConfigError: ``class_weights`` do not fit the classes.
    """
    weights = _class_weights(config, counts)
    if isinstance(config, CrossEntropyConfig):
        return Loss(_cross_entropy(config.label_smoothing), weights)
    if isinstance(config, FocalConfig):
        return Loss(_focal(config.gamma), weights)
    return Loss(_squared_error, weights)


def _cross_entropy(label_smoothing: float) -> ImageLosses:
    """With weights, the share that smoothing gives to a class is weighted by that class, as in
    torch."""

    def image_losses(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        return F.cross_entropy(
            logits, labels, weights, label_smoothing=label_smoothing, reduction="none"
        )

    return image_losses


def _focal(gamma: float) -> ImageLosses:
    """Lin et al. 2017, equations 4 and 5: alpha is the class weight."""

    def image_losses(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        log_p = logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
        # 1 - p without cancellation. At exactly 0 the slope of a power below 1 is infinite.
        others = (-torch.expm1(log_p)).clamp_min(torch.finfo(logits.dtype).tiny)
        return _weighted(-(others**gamma) * log_p, labels, weights)

    return image_losses


def _squared_error(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    target = F.one_hot(labels, logits.shape[1]).to(logits)
    return _weighted((logits - target).square().mean(1), labels, weights)


def _weighted(losses: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    return losses if weights is None else losses * weights[labels]


def _class_weights(config: LossConfig, counts: Sequence[int]) -> Tensor | None:
    """Weights of which the mean over the training images is 1; a class without images gets 0."""
    if config.class_weights is None:
        return None
    images = torch.tensor(counts, dtype=torch.float64)
    if config.class_weights == "balanced":
        weights = torch.where(images > 0, 1 / images.clamp_min(1), 0.0)
    else:
        weights = torch.tensor(config.class_weights, dtype=torch.float64)
        if len(weights) != len(images):
            raise ConfigError(
                f"loss.class_weights has {len(weights)} numbers; the data set has "
                f"{len(images)} classes"
            )
    total = (weights * images).sum()
    if total == 0:
        raise ConfigError("loss.class_weights: no training image counts; give one a weight above 0")
    return (weights * (images.sum() / total)).float()
