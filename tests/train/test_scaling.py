"""Rates by width: one rate is best for narrow and wide networks alike."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from cluster.errors import ConfigError
from train.config import (
    AdamWConfig,
    LrScale,
    MuonConfig,
    NetConfig,
    OptimConfig,
    ResNetConfig,
    SgdConfig,
    TrainConfig,
)
from train.models.net import Net
from train.models.resnet import ResNet
from train.optim import build_optimizer, set_lr
from train.optim.scaling import width_ratios

pytestmark = pytest.mark.slow

BATCH = 64
EPOCHS = 3
SEEDS = (0, 1)
UNUSABLE = 5.0

Make = Callable[[float], OptimConfig]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    images = torch.tensor(found.images[:640], dtype=torch.float32)[:, None]
    return (images - images.mean()) / images.std(), torch.tensor(found.target[:640])


def net_of(width: int) -> Net:
    return Net(NetConfig(channels=(8 * width, 16 * width), hidden=32 * width), (1, 8, 8), 10)


def run_config(optim: OptimConfig, lr_scale: LrScale) -> TrainConfig:
    return TrainConfig(recipe="test", data="digits", optim=optim, lr_scale=lr_scale)


def final_loss(
    data: tuple[Tensor, Tensor], optim: OptimConfig, width: int, lr_scale: LrScale
) -> float:
    """Mean over seeds of the training loss at the end of a short run."""
    images, labels = data
    total = EPOCHS * math.ceil(len(images) / BATCH)
    losses = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        net = net_of(width)
        optimizer = build_optimizer(run_config(optim, lr_scale), net, base=net_of(1))
        rows = torch.cat([torch.randperm(len(images)) for _ in range(EPOCHS)])
        for step, batch in enumerate(rows.split(BATCH)):
            set_lr(optimizer, optim.lr * min(1, 5 * (step + 1) / total) * (1 - step / total))
            optimizer.zero_grad()
            F.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            loss = F.cross_entropy(net(images), labels).item()
        losses.append(min(loss, UNUSABLE) if math.isfinite(loss) else UNUSABLE)
    return sum(losses) / len(losses)


def best_rate(
    data: tuple[Tensor, Tensor], make: Make, exponents: range, width: int, lr_scale: LrScale
) -> int:
    """The exponent of the best of some powers of 2; never one at the edge, which proves nothing."""
    losses = {power: final_loss(data, make(2.0**power), width, lr_scale) for power in exponents}
    best = min(losses, key=losses.__getitem__)
    assert best not in (exponents[0], exponents[-1]), losses
    return best


@pytest.mark.parametrize(
    ("make", "exponents"),
    [
        (lambda lr: AdamWConfig(lr=lr, weight_decay=0.0), range(-6, -1)),
        (lambda lr: SgdConfig(lr=lr, weight_decay=0.0), range(-4, 2)),
        (lambda lr: MuonConfig(lr=lr), range(-5, 1)),
    ],
    ids=["adamw", "sgd", "muon"],
)
def test_the_best_rate_agrees_within_one_step_at_one_two_and_four_times_the_width(
    digits: tuple[Tensor, Tensor], make: Make, exponents: range
) -> None:
    found = [best_rate(digits, make, exponents, width, "width") for width in (1, 2, 4)]
    assert max(found) - min(found) <= 1, found


def test_without_scaling_the_best_rate_of_a_narrow_network_is_too_high_for_a_wide_one(
    digits: tuple[Tensor, Tensor],
) -> None:
    def adamw(lr: float) -> OptimConfig:
        return AdamWConfig(lr=lr, weight_decay=0.0)

    best = best_rate(digits, adamw, range(-6, -1), 1, "width")
    lost: dict[LrScale, float] = {}
    scales: tuple[LrScale, ...] = ("width", "none")
    for scale in scales:
        losses = [final_loss(digits, adamw(2.0**power), 8, scale) for power in (best - 2, best - 1)]
        own = final_loss(digits, adamw(2.0**best), 8, scale)
        lost[scale] = own / min(own, *losses)
    assert lost["width"] < 1.5
    assert lost["none"] > 2


def test_adaptive_rates_fall_with_the_inputs_of_a_layer() -> None:
    """Table 8 of Yang et al. 2022; a convolution's inputs are its channels."""
    ratios = width_ratios(AdamWConfig(), net_of(4), net_of(1))
    assert ratios == {
        "conv1.weight": 1.0,
        "conv1.bias": 1.0,
        "conv2.weight": 1 / 4,
        "conv2.bias": 1.0,
        "fc1.weight": 1 / 4,
        "fc1.bias": 1.0,
        "fc2.weight": 1 / 4,
        "fc2.bias": 1.0,
    }


def test_rates_of_sgd_are_outputs_over_inputs_and_over_the_excess_of_the_head() -> None:
    """Table 3: in proportion to the width before hidden units, 1 inside, 1 / width behind them.

    The head begins with weights of twice the deviation that muP gives it at four times the width,
    so what lies below takes half of that.
    """
    ratios = width_ratios(SgdConfig(), net_of(4), net_of(1))
    assert ratios == {
        "conv1.weight": 4 / 2,
        "conv1.bias": 4 / 2,
        "conv2.weight": 1 / 2,
        "conv2.bias": 4 / 2,
        "fc1.weight": 1 / 2,
        "fc1.bias": 4 / 2,
        "fc2.weight": 1 / 4,
        "fc2.bias": 1.0,
    }


def test_what_muon_steps_needs_no_scaling_where_inputs_and_outputs_grow_alike() -> None:
    ratios = width_ratios(MuonConfig(), net_of(4), net_of(1))
    assert ratios["conv2.weight"] == ratios["fc1.weight"] == 1.0
    assert ratios["fc2.weight"] == 1 / 4
    wide = Net(NetConfig(channels=(8, 32), hidden=32), (1, 8, 8), 10)
    ratios = width_ratios(MuonConfig(), wide, net_of(1))
    assert ratios["conv2.weight"] == pytest.approx(math.sqrt(2))
    assert ratios["fc1.weight"] == pytest.approx(math.sqrt(1 / 2))


@pytest.mark.parametrize("optim", [AdamWConfig(), SgdConfig(), MuonConfig()])
def test_the_default_width_is_left_as_it_is(optim: OptimConfig) -> None:
    assert set(width_ratios(optim, net_of(1), net_of(1)).values()) == {1.0}
    scaled = build_optimizer(run_config(optim, "width"), net_of(1), base=net_of(1))
    plain = build_optimizer(run_config(optim, "none"), net_of(1))
    for group, other in zip(scaled.param_groups, plain.param_groups, strict=True):
        assert {**group, "params": 0} == {**other, "params": 0}


def test_groups_carry_the_ratios_and_lose_the_same_share() -> None:
    net = ResNet(ResNetConfig(width=32), (3, 8, 8), 10)
    base = ResNet(ResNetConfig(width=16), (3, 8, 8), 10)
    optimizer = build_optimizer(run_config(AdamWConfig(weight_decay=0.2), "width"), net, base=base)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            stands_first = names[id(parameter)] == "stem.weight"
            hidden = parameter.ndim > 1 and not stands_first
            assert group["lr_ratio"] == (0.5 if hidden else 1.0)
        decay = group["lr_ratio"] * group["decoupled_decay"]
        assert decay == pytest.approx(0.2 if group["decayed"] else 0.0)


def test_without_a_network_to_compare_with_the_user_is_told() -> None:
    config = run_config(AdamWConfig(), "width")
    with pytest.raises(ConfigError, match="lr_scale=width needs a network with default widths"):
        build_optimizer(config, net_of(1))
    with pytest.raises(ConfigError, match=r"default widths; 0\.bias is in one of the two only"):
        build_optimizer(config, nn.Sequential(nn.Linear(2, 2)), base=nn.Sequential())
