"""What is minimised, by which steps, and what keeps it from overfitting."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cluster.config import Frozen

Beta = Annotated[float, Field(ge=0, lt=1)]
ClassWeight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ClassWeights = Literal["balanced"] | Annotated[tuple[ClassWeight, ...], Field(min_length=2)]


class _LossConfig(Frozen):
    class_weights: ClassWeights | None = None
    """What an image counts, by its class: a number for each, or ``balanced`` for numbers inverse to
    the images of each class in the training split. They are scaled so that the mean over the
    training images is 1."""


class CrossEntropyConfig(_LossConfig):
    """Cross-entropy of the softmax."""

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each label that goes to all classes equally (Szegedy et al. 2016, section 7)."""


class MseConfig(_LossConfig):
    """Mean over the classes of the squared difference between logits and the one-hot label."""

    name: Literal["mse"] = "mse"


class FocalConfig(_LossConfig):
    """Cross-entropy times ``(1 - p) ** gamma``, p that of the label (Lin et al. 2017, eq. 4)."""

    name: Literal["focal"] = "focal"
    gamma: float = Field(default=2.0, ge=0)


LossConfig = Annotated[CrossEntropyConfig | MseConfig | FocalConfig, Field(discriminator="name")]


class _OptimConfig(Frozen):
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 regularisation of weights; biases and normalisation weights are not decayed."""
    decoupled: bool = False
    """Shrink the weights by ``lr * weight_decay`` beside the step (Loshchilov and Hutter 2019);
    false adds ``weight_decay * weight`` to the gradient."""


class GdConfig(_OptimConfig):
    """Gradient descent: each step takes the whole training split, ``batch_size`` images at once."""

    name: Literal["gd"] = "gd"
    lr: float = Field(default=0.1, gt=0)


class SgdConfig(_OptimConfig):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=5e-4, ge=0)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set optim.nesterov=false")
        return self


class AdamConfig(_OptimConfig):
    """Adam (Kingma and Ba 2015)."""

    name: Literal["adam"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)


class AdamWConfig(_OptimConfig):
    """AdamW (Loshchilov and Hutter 2019): Adam with decoupled weight decay."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(default=2e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    decoupled: Literal[True] = True


class RmspropConfig(_OptimConfig):
    """RMSprop (Tieleman and Hinton 2012)."""

    name: Literal["rmsprop"] = "rmsprop"
    lr: float = Field(default=1e-3, gt=0)
    alpha: Beta = 0.99
    eps: float = Field(default=1e-8, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)


class AdagradConfig(_OptimConfig):
    """Adagrad (Duchi, Hazan and Singer 2011)."""

    name: Literal["adagrad"] = "adagrad"
    lr: float = Field(default=1e-2, gt=0)
    eps: float = Field(default=1e-10, gt=0)


class MuonConfig(_OptimConfig):
    """Muon (Jordan et al. 2024): momentum, orthogonalised by Newton-Schulz iteration.

    For convolution kernels, reshaped to ``[out, in * height * width]``, and for linear layers
    between others, as in airbench94_muon; the first and the last layer, biases and normalisation
    take SGD with Nesterov momentum, at the rates below. What is decayed loses the same share,
    ``lr * weight_decay``, whatever its ratio; kernels that are normalised are not decayed.
    """

    name: Literal["muon"] = "muon"
    lr: float = Field(default=0.24, gt=0)
    momentum: float = Field(default=0.6, ge=0, lt=1)
    nesterov: bool = True
    iterations: int = Field(default=3, ge=1)
    """Of Newton-Schulz."""
    normalize_weights: bool = True
    """Scale each kernel to the norm ``sqrt(out)`` before its step, as airbench does."""
    bias_lr_ratio: float = Field(default=0.5, gt=0)
    """Rate of biases and normalisation weights over ``lr``."""
    head_lr_ratio: float = Field(default=1.0, gt=0)
    """Rate of the first and the last layer's weights over ``lr``."""
    sgd_momentum: float = Field(default=0.85, ge=0, lt=1)
    """Of what takes SGD."""
    decay_biases: bool = False
    """Decay biases and normalisation weights too, as airbench does."""
    decoupled: bool = True

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set optim.nesterov=false")
        return self


OptimConfig = Annotated[
    GdConfig | SgdConfig | AdamConfig | AdamWConfig | RmspropConfig | AdagradConfig | MuonConfig,
    Field(discriminator="name"),
]

LrScale = Literal["none", "width"]


class ClipConfig(Frozen):
    """Gradient clipping, after the gradients of all workers were averaged."""

    norm: float | None = Field(default=None, gt=0)
    """Scale the whole gradient down to this norm (Pascanu et al. 2013, algorithm 1)."""
    value: float | None = Field(default=None, gt=0)
    """Cut each entry to this size."""

    @model_validator(mode="after")
    def _clips(self) -> Self:
        if self.norm is None and self.value is None:
            raise ValueError("clip needs norm or value; clip=none is off")
        return self


class EmaConfig(Frozen):
    """Exponential moving average of the weights: what is evaluated, and what a run ends with."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    """Of a step; at step t at most ``(1 + t) / (10 + t)``, so that the beginning is forgotten."""
    every: int = Field(default=1, ge=1)
    """Steps between two updates; the decay is raised to their number."""


class EarlyStoppingConfig(Frozen):
    """Stop when validation has not improved, and go back to the best epoch's weights."""

    metric: Literal["val_loss", "val_accuracy"] = "val_loss"
    patience: int = Field(default=5, ge=1)
    """Epochs in a row without an improvement after which the run ends."""
    min_delta: float = Field(default=0.0, ge=0)
    """An improvement is more than this over the best so far."""
    restore_best: bool = True
    """End with the weights of the best epoch, not with the last ones."""


class FreezeConfig(Frozen):
    """Layers that are not trained, and for how long."""

    layers: str
    """Names of modules or parameters, with ``*`` for any part: ``stem``, ``blocks.0.*``."""
    until: int | None = Field(default=None, ge=1)
    """Epochs after which they are trained (gradual unfreezing); none is never."""
