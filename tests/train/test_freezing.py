"""Layers that are not trained: by name, for some epochs, and with their running averages."""

import pytest
import torch
from torch import nn

from cluster.errors import ConfigError
from train.config import AirbenchConfig, FreezeConfig, ResNetConfig
from train.models.airbench import AirbenchNet
from train.models.freezing import apply_freeze, check_freeze, frozen_eval, matching_parameters
from train.models.resnet import ResNet


def resnet() -> ResNet:
    torch.manual_seed(0)
    return ResNet(ResNetConfig(width=4), (1, 8, 8), 10)


def rules(*layers: str, until: int | None = None) -> list[FreezeConfig]:
    return [FreezeConfig(layers=one, until=until) for one in layers]


def trained(net: nn.Module) -> set[str]:
    return {name for name, one in net.named_parameters() if one.requires_grad}


def step(net: nn.Module) -> None:
    """One step of SGD, in training as a loop does it."""
    net.train()
    frozen_eval(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    net(torch.randn(6, 1, 8, 8)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("stem", {"stem.weight"}),
        ("bn", {"bn.weight", "bn.bias"}),
        (
            "blocks.0.*.weight",
            {f"blocks.0.{one}.weight" for one in ("conv1", "conv2", "bn1", "bn2")},
        ),
        ("*.bias", None),
        ("head.bias", {"head.bias"}),
        ("block", set()),
    ],
)
def test_patterns_name_modules_and_parameters(pattern: str, named: set[str] | None) -> None:
    net = resnet()
    if named is None:
        named = {name for name, _ in net.named_parameters() if name.endswith(".bias")}
    assert matching_parameters(net, pattern) == named


def test_a_module_stands_for_all_that_is_in_it() -> None:
    net = resnet()
    within = {name for name, _ in net.named_parameters() if name.startswith("blocks.")}
    assert len(within) > 10
    assert matching_parameters(net, "blocks") == within == matching_parameters(net, "blocks.*")


def test_frozen_layers_do_not_move_and_others_do() -> None:
    net = resnet()
    assert apply_freeze(net, rules("stem", "bn", "blocks.0"), 0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    step(net)
    frozen = ("stem.", "bn.", "blocks.0.")
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(frozen), name


def test_layers_are_unfrozen_one_after_the_other() -> None:
    net = resnet()
    everything = trained(net)
    asked = [*rules("stem", until=2), *rules("blocks.1", until=1), *rules("bn.weight")]
    counts = []
    for epoch in range(4):
        changed = apply_freeze(net, asked, epoch)
        counts.append((changed, len(everything - trained(net))))
        assert not apply_freeze(net, asked, epoch)
    assert counts == [(True, 11), (True, 2), (True, 1), (False, 1)]
    assert everything - trained(net) == {"bn.weight"}


def test_a_layer_that_is_frozen_again_keeps_no_old_gradient() -> None:
    net = resnet()
    net(torch.randn(4, 1, 8, 8)).sum().backward()
    apply_freeze(net, rules("stem"), 0)
    assert net.stem.weight.grad is None
    assert net.head.weight.grad is not None


def test_what_no_rule_names_stays_as_the_network_has_it() -> None:
    net = resnet()
    net.head.bias.requires_grad_(False)
    assert not apply_freeze(net, [], 0)
    assert "head.bias" not in trained(net)


def test_a_network_may_freeze_layers_of_its_own() -> None:
    net = AirbenchNet(AirbenchConfig(widths=(8, 8, 8), whiten_epochs=2), (1, 16, 16), 10)
    first = trained(net)
    asked = rules("groups.0", until=1)
    check_freeze(net, asked)
    apply_freeze(net, asked, 0)
    assert first - trained(net) == {n for n in first if n.startswith("groups.0")}
    assert apply_freeze(net, asked, 1)
    assert trained(net) == first  # The norms' weights stay frozen.
    assert apply_freeze(net, asked, 2)
    assert first - trained(net) == {"whiten.bias"}


def test_averages_stand_still_only_where_all_is_frozen() -> None:
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False)),
        nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)),
    )
    apply_freeze(net, rules("0", "1.1.weight"), 0)
    net.train()
    frozen_eval(net)
    assert [net[0][1].training, net[1][1].training] == [False, True]  # type: ignore[index]
    assert net[0].training


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (rules("stm"), r"freeze: the network has no layer 'stm'; near it are: stem"),
        (rules("block.0.*"), r"no layer 'block\.0\.\*'; near it are: .*blocks\.0"),
        (rules("stem", "fc"), r"no layer 'fc'"),
        (rules("dropout"), r"freeze: dropout has no parameters"),
        (rules("*"), r"freeze: \* leaves nothing to train in epoch 1"),
        (rules("stem", "bn", "blocks", "head"), r"stem, bn, blocks, head leaves nothing to train"),
        (rules("*", until=3), r"nothing to train in epoch 1"),
    ],
)
def test_a_rule_without_a_meaning_is_one_line(asked: list[FreezeConfig], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_freeze(resnet(), asked)
    assert "\n" not in str(caught.value)


def test_a_network_that_freezes_the_rest_later_is_noticed() -> None:
    net = AirbenchNet(AirbenchConfig(widths=(8, 8, 8)), (1, 16, 16), 10)
    with pytest.raises(ConfigError, match=r"nothing to train in the last epochs"):
        check_freeze(net, rules("groups", "head"))
    check_freeze(net, rules("groups"))
    check_freeze(net, [])
