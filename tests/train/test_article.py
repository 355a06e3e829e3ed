"""The formulas that the article prints, against what trains here; gradients by differences."""

import copy
import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.config import (
    Activation,
    AdagradConfig,
    AdamConfig,
    CosineConfig,
    CrossEntropyConfig,
    ExponentialConfig,
    FocalConfig,
    GdConfig,
    LossConfig,
    MseConfig,
    NetConfig,
    ResNetConfig,
    RmspropConfig,
    TimeConfig,
    TrainConfig,
)
from train.losses import build_loss
from train.models.activations import ACTIVATIONS
from train.models.net import Net
from train.models.resnet import ResNet
from train.optim import build_optimizer, set_lr
from train.schedules import Clock, lr_multiple

LOSSES: list[LossConfig] = [
    CrossEntropyConfig(),
    CrossEntropyConfig(label_smoothing=0.1, class_weights=(1.0, 2.0, 0.5)),
    MseConfig(),
    MseConfig(class_weights="balanced"),
    FocalConfig(gamma=2.0),
    FocalConfig(gamma=0.5, class_weights="balanced"),
]
COUNTS = (10, 20, 30)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run_config(optim: object) -> TrainConfig:
    return TrainConfig.model_validate({"recipe": "test", "data": "digits", "optim": optim})


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Gradient descent: theta_{t+1} = theta_t - alpha * grad J(theta_t).


def test_gradient_descent_follows_the_formula() -> None:
    torch.manual_seed(0)
    net = Net(NetConfig(channels=(2, 3), hidden=4), (1, 8, 8), 10)
    optimizer = build_optimizer(run_config(GdConfig(lr=0.3)), net)
    images, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    for alpha in (0.3, 0.2, 0.1):
        theta = [parameter.detach().clone() for parameter in net.parameters()]
        loss = F.cross_entropy(net(images), labels)
        gradient = torch.autograd.grad(loss, list(net.parameters()))
        set_lr(optimizer, alpha)
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
        for old, grad, new in zip(theta, gradient, net.parameters(), strict=True):
            assert torch.allclose(new, old - alpha * grad, atol=1e-7)
            assert not torch.equal(new, old)


def test_gradient_descent_minimises() -> None:
    # On J(theta) = theta^2 / 2 each step multiplies by 1 - alpha.
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = build_optimizer(run_config(GdConfig(lr=0.25)), layer)
    for _ in range(10):
        optimizer.zero_grad()
        (layer.weight**2 / 2).sum().backward()
        optimizer.step()
    assert layer.weight.item() == pytest.approx(0.75**10)


# The other optimizers that it names, by the formulas of their papers.


def test_adam_is_algorithm_1_of_its_paper() -> None:
    layer, gradients = _layer_and_gradients()
    theta = layer.weight.detach().double()
    optimizer = build_optimizer(run_config(AdamConfig(lr=0.1, betas=(0.8, 0.9))), layer)
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    for t, gradient in enumerate(gradients, 1):
        layer.weight.grad = gradient.float()
        optimizer.step()
        m = 0.8 * m + 0.2 * gradient
        v = 0.9 * v + 0.1 * gradient**2
        theta = theta - 0.1 * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-8)
        assert torch.allclose(layer.weight.double(), theta, atol=1e-6)


def test_rmsprop_and_adagrad_divide_by_the_root_of_squares() -> None:
    layer, gradients = _layer_and_gradients()
    other = copy.deepcopy(layer)
    rms, ada = layer.weight.detach().double(), other.weight.detach().double()
    rmsprop = build_optimizer(run_config(RmspropConfig(lr=0.1, alpha=0.7)), layer)
    adagrad = build_optimizer(run_config(AdagradConfig(lr=0.1)), other)
    mean, total = torch.zeros_like(rms), torch.zeros_like(ada)
    for gradient in gradients:
        layer.weight.grad, other.weight.grad = gradient.float(), gradient.float()
        rmsprop.step()
        adagrad.step()
        mean = 0.7 * mean + 0.3 * gradient**2
        total = total + gradient**2
        rms = rms - 0.1 * gradient / (mean.sqrt() + 1e-8)
        ada = ada - 0.1 * gradient / (total.sqrt() + 1e-10)
        assert torch.allclose(layer.weight.double(), rms, atol=1e-6)
        assert torch.allclose(other.weight.double(), ada, atol=1e-6)


def _layer_and_gradients() -> tuple[nn.Linear, list[Tensor]]:
    torch.manual_seed(0)
    return nn.Linear(4, 3, bias=False), [random(3, 4, seed=seed) for seed in range(4)]


# Losses.


def test_mean_squared_error() -> None:
    logits, labels = random(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    expected = sum(
        (logits[i, c].item() - float(labels[i] == c)) ** 2 / 3 for i in range(6) for c in range(3)
    )
    assert build_loss(MseConfig(), COUNTS)(logits, labels).item() == pytest.approx(expected)


def test_cross_entropy() -> None:
    logits, labels = random(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        expected -= math.log(math.exp(row[label]) / total)
    assert build_loss(CrossEntropyConfig(), COUNTS)(logits, labels).item() == pytest.approx(
        expected
    )


# Back-propagation: its gradients against finite differences, in float64.


@pytest.mark.parametrize("config", LOSSES)
def test_gradients_of_losses_are_finite_differences(config: LossConfig) -> None:
    loss = build_loss(config, COUNTS)
    labels = torch.tensor([0, 1, 2, 2, 1])
    logits = random(5, 3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda given: loss(given, labels), (logits,))


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("kind", ["net", "resnet"])
def test_gradients_of_networks_are_finite_differences(kind: str, activation: Activation) -> None:
    torch.manual_seed(0)
    net: nn.Module
    if kind == "net":
        net = Net(NetConfig(activation=activation, channels=(2, 2), hidden=3), (1, 6, 6), 3)
    else:
        net = ResNet(ResNetConfig(activation=activation, width=2, blocks=(1,)), (1, 4, 4), 3)
    net.double()
    names = [name for name, _ in net.named_parameters()]
    images, labels = (
        random(4, 1, *((6, 6) if kind == "net" else (4, 4))),
        torch.tensor([0, 1, 2, 1]),
    )
    loss = build_loss(CrossEntropyConfig(label_smoothing=0.1), COUNTS)

    def loss_of(*parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return loss(torch.func.functional_call(net, given, (images,)), labels)

    parameters = tuple(one.detach().clone().requires_grad_(True) for one in net.parameters())
    assert torch.autograd.gradcheck(loss_of, parameters)


# Activations.


def test_activations_are_the_printed_formulas() -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    sigmoid = [1 / (1 + math.exp(-value)) for value in x.tolist()]
    tanh = [
        (math.exp(value) - math.exp(-value)) / (math.exp(value) + math.exp(-value))
        for value in x.tolist()
    ]
    relu = [max(0.0, value) for value in x.tolist()]
    assert ACTIVATIONS["sigmoid"](x).tolist() == pytest.approx(sigmoid)
    assert ACTIVATIONS["tanh"](x).tolist() == pytest.approx(tanh)
    assert ACTIVATIONS["relu"](x).tolist() == relu


# Decays of the learning rate: by time, exponential and cosine.


@pytest.mark.parametrize("epoch", [0, 1, 5, 9])
def test_decays_of_the_learning_rate(epoch: int) -> None:
    clock, step = Clock(epochs=10, steps_per_epoch=4), 4 * epoch
    time = lr_multiple(TimeConfig(decay=0.3), step, clock)
    exponential = lr_multiple(ExponentialConfig(gamma=math.exp(-0.2)), step, clock)
    cosine = lr_multiple(CosineConfig(end=0.05), step, clock)
    assert time == pytest.approx(1 / (1 + 0.3 * epoch))
    assert exponential == pytest.approx(math.exp(-0.2 * epoch))
    assert cosine == pytest.approx(0.05 + 0.95 * (1 + math.cos(math.pi * epoch / 10)) / 2)
