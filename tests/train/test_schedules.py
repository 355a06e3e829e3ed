"""Learning rates and optimizers."""

import math

import pytest
import torch

from train.config import AdamConfig, AdamWConfig, NetConfig, OptimConfig, ScheduleConfig, SgdConfig
from train.models.net import Net
from train.optim import build_optimizer, set_lr
from train.schedules import lr_multiple


def test_constant_is_one() -> None:
    config = ScheduleConfig(name="constant", warmup=0)
    assert {lr_multiple(config, step, 10) for step in range(10)} == {1.0}


def test_warm_up_rises_linearly_to_one() -> None:
    config = ScheduleConfig(name="constant", warmup=0.5, start=0.2)
    values = [lr_multiple(config, step, 10) for step in range(10)]
    assert values[:5] == pytest.approx([0.2, 0.36, 0.52, 0.68, 0.84])
    assert values[5:] == [1.0] * 5


def test_cosine_is_torchs() -> None:
    config = ScheduleConfig(name="cosine", warmup=0, end=0.1)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=0.1)
    for step in range(50):
        assert lr_multiple(config, step, 50) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_one_cycle_falls_linearly_to_its_end() -> None:
    config = ScheduleConfig(name="one_cycle", warmup=0.25, start=0.0, end=0.0)
    assert lr_multiple(config, 25, 100) == 1.0
    assert lr_multiple(config, 62, 100) == pytest.approx(1 - 37 / 75)
    assert lr_multiple(config, 100, 100) == 0.0
    assert all(math.isfinite(lr_multiple(config, step, 1)) for step in range(2))


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (SgdConfig(lr=0.3, momentum=0.8), torch.optim.SGD),
        (AdamConfig(lr=0.3, betas=(0.8, 0.9)), torch.optim.Adam),
        (AdamWConfig(lr=0.3, weight_decay=0.2), torch.optim.AdamW),
    ],
)
def test_optimizers_take_their_settings(
    config: OptimConfig, kind: type[torch.optim.Optimizer]
) -> None:
    net = Net(NetConfig(), (1, 8, 8), 10)
    optimizer = build_optimizer(config, net)
    assert isinstance(optimizer, kind)
    decayed, plain = optimizer.param_groups
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in plain["params"])
    assert decayed["weight_decay"] == config.weight_decay
    assert plain["weight_decay"] == 0
    assert len(decayed["params"]) + len(plain["params"]) == len(list(net.parameters()))
    for name in ("lr", "momentum", "nesterov", "betas"):
        if hasattr(config, name):
            assert decayed[name] == getattr(config, name)
    set_lr(optimizer, 0.01)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}


def test_a_step_of_gradient_descent_is_the_articles_formula() -> None:
    net = Net(NetConfig(), (1, 8, 8), 10)
    config = SgdConfig(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)
    optimizer = build_optimizer(config, net)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    net(torch.randn(3, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    for old, parameter in zip(before, net.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.detach(), old - 0.1 * parameter.grad, atol=1e-7)
