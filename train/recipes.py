"""Recipes: functions that return whole configurations. A user starts from one and overrides."""

import difflib
from collections.abc import Callable

from cluster.errors import ConfigError
from train.config import (
    AdamWConfig,
    AugmentConfig,
    CrossEntropyConfig,
    NetConfig,
    OneCycleConfig,
    ResNetConfig,
    TrainConfig,
)


def digits() -> TrainConfig:
    """The article's Net on 8x8 scans of digits: seconds on a laptop."""
    return TrainConfig(
        recipe="digits",
        data="digits",
        epochs=60,
        batch_size=64,
        model=NetConfig(activation="gelu"),
        loss=CrossEntropyConfig(label_smoothing=0.02),
        optim=AdamWConfig(lr=3e-3, weight_decay=0.05),
        schedule=OneCycleConfig(),
        augment=AugmentConfig(translate=1),
    )


def fashion_mnist() -> TrainConfig:
    """The article's Net on Fashion-MNIST: five epochs, minutes on two cores."""
    return TrainConfig(
        recipe="fashion_mnist",
        data="fashion-mnist",
        epochs=5,
        batch_size=128,
        model=NetConfig(),
        loss=CrossEntropyConfig(label_smoothing=0.05),
        optim=AdamWConfig(lr=3e-3, weight_decay=0.05),
        schedule=OneCycleConfig(),
        augment=AugmentConfig(flip=True),
    )


def cifar10() -> TrainConfig:
    """A small residual network on CIFAR-10: six epochs, minutes on two cores."""
    return TrainConfig(
        recipe="cifar10",
        data="cifar10",
        epochs=6,
        batch_size=128,
        model=ResNetConfig(width=32),
        loss=CrossEntropyConfig(label_smoothing=0.05),
        optim=AdamWConfig(lr=5e-3, weight_decay=0.05),
        schedule=OneCycleConfig(),
        augment=AugmentConfig(flip=True, translate=2),
    )


def small_resnet() -> TrainConfig:
    """A small residual network for any data set of small images."""
    return TrainConfig(
        recipe="small_resnet",
        data="digits",
        epochs=20,
        batch_size=128,
        model=ResNetConfig(),
        loss=CrossEntropyConfig(label_smoothing=0.05),
        optim=AdamWConfig(lr=5e-3, weight_decay=0.05),
        augment=AugmentConfig(translate=1),
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "cifar10": cifar10,
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "small_resnet": small_resnet,
}


def get_recipe(name: str) -> TrainConfig:
    """The configuration of a recipe; ``-`` may stand for ``_``.

    Raises:
        ConfigError: there is no recipe of that name.
    """
    key = name.replace("-", "_")
    if key not in RECIPES:
        near = difflib.get_close_matches(key, RECIPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"no recipe {name!r}; {hint}there are: {', '.join(sorted(RECIPES))}")
    return RECIPES[key]()
