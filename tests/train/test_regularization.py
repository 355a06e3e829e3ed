"""Clipping, the gradient's norm and L1."""

import copy

import pytest
import torch
from torch import nn

from train.config import ClipConfig, NetConfig, TrainConfig
from train.models.net import Net
from train.optim import build_optimizer
from train.regularization import add_l1, clip_gradients, gradient_norm

PLAIN = TrainConfig(recipe="test", data="digits")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def net_with_gradients() -> Net:
    torch.manual_seed(0)
    net = Net(NetConfig(channels=(2, 3), hidden=4), (1, 8, 8), 10)
    net(torch.randn(5, 1, 8, 8)).square().sum().backward()
    # One that is frozen.
    net.get_parameter("conv2.bias").grad = None
    return net


def gradients(net: nn.Module) -> torch.Tensor:
    return torch.cat([one.grad.flatten() for one in net.parameters() if one.grad is not None])


def test_the_norm_is_that_of_all_gradients_together() -> None:
    net = net_with_gradients()
    assert gradient_norm(net.parameters()) == pytest.approx(gradients(net).norm().item())
    assert gradient_norm(nn.Linear(2, 2).parameters()) == 0


@pytest.mark.parametrize("limit", [0.01, 1e9])
def test_clipping_by_norm_is_torchs(limit: float) -> None:
    net = net_with_gradients()
    reference = copy.deepcopy(net)
    for one, other in zip(net.parameters(), reference.parameters(), strict=True):
        other.grad = None if one.grad is None else one.grad.clone()
    clip_gradients(ClipConfig(norm=limit), net.parameters(), gradient_norm(net.parameters()))
    nn.utils.clip_grad_norm_(reference.parameters(), limit)
    assert torch.equal(gradients(net), gradients(reference))
    assert gradients(net).norm() <= limit


def test_clipping_by_value_cuts_each_entry() -> None:
    net = net_with_gradients()
    before = gradients(net)
    clip_gradients(ClipConfig(value=0.1), net.parameters(), before.norm())
    assert before.abs().max() > 0.1
    assert torch.equal(gradients(net), before.clamp(-0.1, 0.1))


def test_both_limits_hold_together() -> None:
    net = net_with_gradients()
    limits = ClipConfig(norm=0.5, value=0.05)
    clip_gradients(limits, net.parameters(), gradient_norm(net.parameters()))
    assert gradients(net).norm() <= 0.5
    assert gradients(net).abs().max() <= 0.05


def test_l1_is_the_gradient_of_the_weights_magnitudes() -> None:
    net = net_with_gradients()
    optimizer = build_optimizer(PLAIN, net)
    before = {
        name: one.grad.clone() for name, one in net.named_parameters() if one.grad is not None
    }
    reference = copy.deepcopy(net)
    penalty = torch.stack([one.abs().sum() for one in reference.parameters() if one.ndim > 1])
    reference.zero_grad()
    (0.3 * penalty.sum()).backward()
    add_l1(0.3, optimizer.param_groups)
    for name, parameter in net.named_parameters():
        added = reference.get_parameter(name).grad
        if parameter.grad is None:
            assert name == "conv2.bias"
        elif added is None:
            assert torch.equal(parameter.grad, before[name])
        else:
            assert torch.allclose(parameter.grad, before[name] + added)
