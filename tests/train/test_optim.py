"""Optimizers against torch's own, and their parameter groups."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from train.config import (
    AdagradConfig,
    AdamConfig,
    AdamWConfig,
    GdConfig,
    HardwareConfig,
    MuonConfig,
    NetConfig,
    OptimConfig,
    ResNetConfig,
    RmspropConfig,
    SgdConfig,
    TrainConfig,
)
from train.models.net import Net
from train.models.resnet import ResNet
from train.optim import build_optimizer, optimizer_parts, set_lr

ALL: list[OptimConfig] = [
    GdConfig(lr=0.05, weight_decay=0.1),
    SgdConfig(lr=0.05, weight_decay=0.1),
    SgdConfig(lr=0.05, weight_decay=0.1, momentum=0.0, nesterov=False),
    AdamConfig(lr=0.01, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6),
    AdamWConfig(lr=0.01, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6),
    RmspropConfig(lr=0.01, weight_decay=0.1, alpha=0.9, momentum=0.5, eps=1e-6),
    AdagradConfig(lr=0.01, weight_decay=0.1),
    MuonConfig(lr=0.05, weight_decay=0.1),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def config_of(optim: OptimConfig, *, fused: bool = True) -> TrainConfig:
    return TrainConfig(
        recipe="test", data="digits", optim=optim, hardware=HardwareConfig(fused=fused)
    )


def small_net() -> Net:
    torch.manual_seed(0)
    return Net(NetConfig(channels=(2, 3), hidden=4, activation="gelu"), (1, 8, 8), 10)


def train(net: nn.Module, optimizer: Optimizer, steps: int = 5, first: int = 0) -> None:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(8, 1, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()


def groups_of(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [one for one in net.parameters() if one.ndim > 1]
    vectors = [one for one in net.parameters() if one.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors}]


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("optim", "kind", "settings"),
    [
        (ALL[0], torch.optim.SGD, {"lr": 0.05}),
        (ALL[1], torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
        (ALL[2], torch.optim.SGD, {"lr": 0.05}),
        (ALL[3], torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}),
        (
            AdamConfig(lr=0.01, weight_decay=0.1, decoupled=True),
            torch.optim.AdamW,
            {"lr": 0.01},
        ),
        (ALL[4], torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}),
        (
            ALL[5],
            torch.optim.RMSprop,
            {"lr": 0.01, "alpha": 0.9, "momentum": 0.5, "eps": 1e-6},
        ),
        (ALL[6], torch.optim.Adagrad, {"lr": 0.01}),
    ],
)
def test_weights_after_some_steps_are_torchs(
    optim: OptimConfig, kind: Any, settings: dict[str, Any], fused: bool
) -> None:
    net, reference = small_net(), small_net()
    optimizer = build_optimizer(config_of(optim, fused=fused), net)
    # AdamW's own default is 0.01.
    expected = kind(groups_of(reference, 0.1), **settings, weight_decay=0.0)
    train(net, optimizer)
    train(reference, expected)
    assert same(net, reference)
    assert not same(net, small_net())


@pytest.mark.parametrize("optim", ALL)
def test_decoupled_decay_shrinks_weights_beside_the_step(optim: OptimConfig) -> None:
    if isinstance(optim, MuonConfig):
        optim = optim.model_copy(update={"normalize_weights": False})
    decoupled = optim.model_copy(update={"decoupled": True})
    net, reference = small_net(), small_net()
    optimizer = build_optimizer(config_of(decoupled), net)
    without = build_optimizer(
        config_of(decoupled.model_copy(update={"weight_decay": 0.0})), reference
    )
    for step in range(4):
        # A group with a ratio of its own loses the same share.
        share = optim.lr * optim.weight_decay
        with torch.no_grad():
            for parameter in reference.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(1 - share)
        # The gradient is that of the weights before they shrink.
        images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(images).square().mean().backward()
        for one, other in zip(net.parameters(), reference.parameters(), strict=True):
            assert one.grad is not None
            other.grad = one.grad.clone()
        optimizer.step()
        without.step()
    assert same(net, reference)
    coupled = small_net()
    # Without momentum both are the same step.
    if not isinstance(optim, AdamWConfig | GdConfig) and getattr(optim, "momentum", 1) > 0:
        plain = optim.model_copy(update={"decoupled": False})
        train(coupled, build_optimizer(config_of(plain), coupled), 4)
        assert not same(net, coupled)


@pytest.mark.parametrize("optim", ALL)
def test_every_parameter_is_in_one_group(optim: OptimConfig) -> None:
    net = ResNet(ResNetConfig(width=4), (3, 8, 8), 10)
    net.stem.weight.requires_grad_(False)
    groups = build_optimizer(config_of(optim), net).param_groups
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in net.parameters())
    for group in groups:
        decay = group["weight_decay"] + group["decoupled_decay"]
        assert all((one.ndim > 1) == group["decayed"] for one in group["params"])
        if not group["decayed"] or group.get("normalize_weights"):
            assert decay == 0
        else:
            assert decay * group["lr_ratio"] == pytest.approx(0.1)
        assert (group["decoupled_decay"] == 0) or optim.decoupled


@pytest.mark.parametrize("optim", ALL)
def test_the_rate_is_set_by_ratio(optim: OptimConfig) -> None:
    optimizer = build_optimizer(config_of(optim), small_net())
    begins = [group["lr"] for group in optimizer.param_groups]
    assert begins == [optim.lr * group["lr_ratio"] for group in optimizer.param_groups]
    set_lr(optimizer, 3.0)
    for group in optimizer.param_groups:
        assert group["lr"] == 3.0 * group["lr_ratio"]
    if not isinstance(optim, MuonConfig):
        assert {group["lr_ratio"] for group in optimizer.param_groups} == {1.0}


@pytest.mark.parametrize("optim", ALL)
def test_frozen_weights_stand_still_until_they_are_trained(optim: OptimConfig) -> None:
    net = small_net()
    optimizer = build_optimizer(config_of(optim), net)
    begin = net.conv1.weight.detach().clone()
    net.conv1.requires_grad_(False)
    train(net, optimizer, 2)
    assert torch.equal(net.conv1.weight, begin)
    net.conv1.requires_grad_(True)
    train(net, optimizer, 1)
    assert not torch.equal(net.conv1.weight, begin)


@pytest.mark.parametrize("optim", ALL)
def test_a_saved_optimizer_goes_on_to_the_same_bits(optim: OptimConfig) -> None:
    whole = small_net()
    train(whole, build_optimizer(config_of(optim), whole), 6)
    cut = small_net()
    first = build_optimizer(config_of(optim), cut)
    train(cut, first, 3)
    second = build_optimizer(config_of(optim), cut)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(cut, second, 3, first=3)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("optim", [one for one in ALL if not isinstance(one, MuonConfig)])
def test_states_are_interchangeable_with_torchs(optim: OptimConfig) -> None:
    net = small_net()
    ours = build_optimizer(config_of(optim, fused=False), net)
    train(net, ours, 3)
    torchs = type(ours).__mro__[2]
    assert torchs.__module__.startswith("torch.optim")
    reference = copy.deepcopy(net)
    other = torchs(groups_of(reference, 0.0))
    other.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert other.state_dict()["state"].keys() == ours.state_dict()["state"].keys()
    if not optim.decoupled:
        train(net, ours, 2, first=3)
        train(reference, other, 2, first=3)
        assert same(net, reference)


def test_fused_is_used_where_torch_has_it() -> None:
    for optim in ALL:
        has = not isinstance(optim, RmspropConfig | MuonConfig)
        for fused in (True, False):
            settings = optimizer_parts(config_of(optim, fused=fused), small_net()).settings
            assert settings.get("fused", False) == (has and fused)


@pytest.mark.parametrize("optim", [ALL[1], ALL[4], ALL[6]])
def test_fused_steps_do_not_mind_how_gradients_lie_in_memory(optim: OptimConfig) -> None:
    nets = [nn.Conv2d(8, 16, 3, bias=False) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[1].to(memory_format=torch.channels_last)
    optimizers = [
        build_optimizer(config_of(optim, fused=fused), net)
        for fused, net in zip((False, True), nets, strict=True)
    ]
    for step in range(3):
        gradient = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(step))
        for net, optimizer in zip(nets, optimizers, strict=True):
            net.weight.grad = gradient.clone()
            optimizer.step()
        if step == 1:  # As of a checkpoint from a run in another memory format.
            optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
            optimizers[1].param_groups[0]["fused"] = True
    assert torch.allclose(nets[0].weight, nets[1].weight, atol=1e-6)


@pytest.mark.parametrize("optim", [ALL[1], ALL[4], ALL[6]])
def test_fused_steps_do_not_depend_on_the_number_of_threads(optim: OptimConfig) -> None:
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        layer = nn.Linear(257, 1023)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
        optimizer = build_optimizer(config_of(optim), layer)
        for step in range(3):
            for parameter in layer.parameters():
                parameter.grad = (parameter.detach() * (step + 1)).sin()
            optimizer.step()
        found.append(torch.cat([one.detach().flatten() for one in layer.parameters()]))
    torch.set_num_threads(1)
    assert torch.equal(*found)


def test_a_closure_is_called_with_gradients() -> None:
    for optim in (ALL[1], ALL[7]):
        net = small_net()
        optimizer = build_optimizer(config_of(optim), net)

        def closure(net: Net = net) -> float:
            loss = net(torch.ones(2, 1, 8, 8)).square().mean()
            loss.backward()
            return float(loss.item())

        assert optimizer.step(closure) == pytest.approx(
            small_net()(torch.ones(2, 1, 8, 8)).square().mean().item()
        )
        assert not same(net, small_net())
