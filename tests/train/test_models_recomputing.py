"""Activations that are computed again: the same to the bit, with less kept in between."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from train.config import AirbenchConfig, NetConfig, ResNetConfig
from train.models.airbench import AirbenchNet
from train.models.net import Net
from train.models.recomputing import checkpoint_activations
from train.models.resnet import ResNet

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8)


class Dropping(nn.Module):
    """Blocks that draw random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)))
                for _ in range(2)
            ),
            Block(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).flatten(2).mean(2)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3)
        self.norm = nn.BatchNorm2d(10, momentum=None)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm(self.conv(x)))  # type: ignore[no-any-return]


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "resnet":
        return ResNet(ResNetConfig(blocks=(2, 2), width=8, dropout=0.3), (3, 32, 32), 10)
    if kind == "airbench":
        return AirbenchNet(AirbenchConfig(widths=(8, 16, 16), depth=3), (3, 32, 32), 10)
    if kind == "dropping":
        return Dropping()
    net: nn.Module = torchvision.models.get_model(kind, weights=None, num_classes=10)
    return net


def train(net: nn.Module, steps: int = 2) -> dict[str, Tensor]:
    """The whole state, and the last gradients, after some steps."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(IMAGES), LABELS).backward()
        optimizer.step()
    gradients = {f"{n}.grad": p.grad for n, p in net.named_parameters() if p.grad is not None}
    return net.state_dict() | gradients


@pytest.mark.parametrize(
    ("kind", "blocks"), [("resnet", 4), ("airbench", 3), ("dropping", 1), ("resnet18", 8)]
)
def test_a_step_is_the_same_to_the_bit(kind: str, blocks: int) -> None:
    plain, saving = make(kind), make(kind)
    assert checkpoint_activations(saving) == blocks
    expected, found = train(plain), train(saving)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_less_is_kept_for_the_backward_pass() -> None:
    def kept(net: nn.Module) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(IMAGES)
        return sum(sizes)

    plain, saving = make("resnet"), make("resnet")
    checkpoint_activations(saving)
    assert kept(saving) < kept(plain) / 2


def test_a_copy_computes_with_its_own_weights() -> None:
    net = make("resnet")
    checkpoint_activations(net)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert float(other(IMAGES).detach().abs().max()) == 0
    assert float(net(IMAGES).detach().abs().max()) > 0


def test_a_network_without_blocks_says_so() -> None:
    assert checkpoint_activations(Net(NetConfig(), (1, 16, 16), 10)) == 0
