"""Recipes: functions that return whole configurations. A user starts from one and overrides."""

import difflib
from collections.abc import Callable

from cluster.errors import ConfigError
from train.config import (
    AdamWConfig,
    AirbenchConfig,
    AugmentConfig,
    CrossEntropyConfig,
    ErasingConfig,
    HardwareConfig,
    LinearConfig,
    MuonConfig,
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
        # The faster one for this network on CPUs.
        hardware=HardwareConfig(memory_format="channels_last"),
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


def fashion_mnist_fast() -> TrainConfig:
    """Half of airbench's widths, on Fashion-MNIST: 94.5 %, see docs/benchmarks."""
    return _airbench(
        "fashion_mnist_fast",
        "fashion-mnist",
        epochs=10,
        widths=(32, 128, 128),
        label_smoothing=0.1,
        augment=AugmentConfig(flip="alternating", translate=1, padding="reflect"),
    )


def fashion_mnist_best() -> TrainConfig:
    """Three quarters of airbench's widths, with random erasing: 95.1 %, see docs/benchmarks."""
    return _airbench(
        "fashion_mnist_best",
        "fashion-mnist",
        epochs=30,
        widths=(48, 192, 192),
        label_smoothing=0.1,
        augment=AugmentConfig(
            flip="alternating", translate=1, padding="reflect", erasing=ErasingConfig()
        ),
    )


def cifar10_fast() -> TrainConfig:
    """The network of airbench, three quarters as wide, on CIFAR-10: 92 %, see docs/benchmarks."""
    return _airbench(
        "cifar10_fast",
        "cifar10",
        epochs=7,
        widths=(48, 192, 192),
        label_smoothing=0.2,
        augment=AugmentConfig(flip="alternating", translate=2, padding="reflect"),
    )


def cifar10_best() -> TrainConfig:
    """The network of airbench94 on CIFAR-10: 94.4 % with six views, see docs/benchmarks."""
    return _airbench(
        "cifar10_best",
        "cifar10",
        epochs=14,
        widths=(64, 256, 256),
        label_smoothing=0.2,
        augment=AugmentConfig(flip="alternating", translate=2, padding="reflect"),
    )


def _airbench(
    recipe: str,
    data: str,
    *,
    epochs: int,
    widths: tuple[int, int, int],
    label_smoothing: float,
    augment: AugmentConfig,
) -> TrainConfig:
    """What airbench94_muon trains with.

    But for its batches, which are of 2,000 images: a quarter as wide and trained for four epochs,
    the network learned more from four times as many steps of half the rate, and a CPU is nearly as
    fast with them. Its other rates are for a sum over a batch and logits over 256; these are the
    same for a mean, and logits over 9. Its decay goes into the momentum, by which biases and the
    last layer are decayed 1 / (1 - 0.85) times as much; here it is beside the step. A batch is
    computed in parts of 125 images, which batch normalisation is by, so the number of workers does
    not matter to it.
    """
    return TrainConfig(
        recipe=recipe,
        data=data,
        epochs=epochs,
        batch_size=500,
        micro_batch_size=125,
        model=AirbenchConfig(widths=widths),
        loss=CrossEntropyConfig(label_smoothing=label_smoothing),
        optim=MuonConfig(
            lr=0.12, bias_lr_ratio=440, head_lr_ratio=6.9, weight_decay=0.0167, decay_biases=True
        ),
        schedule=LinearConfig(),
        augment=augment,
        hardware=HardwareConfig(memory_format="channels_last"),
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
    "cifar10_best": cifar10_best,
    "cifar10_fast": cifar10_fast,
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "fashion_mnist_best": fashion_mnist_best,
    "fashion_mnist_fast": fashion_mnist_fast,
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
