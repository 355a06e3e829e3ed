"""Muon against an independent transcription of the published update, in float64 numpy."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from train.config import MuonConfig, NetConfig, ResNetConfig, TrainConfig
from train.models.net import Net
from train.models.resnet import ResNet
from train.optim import build_optimizer, set_lr
from train.optim.groups import muon_kinds
from train.optim.muon import Muon, orthogonalize

Array = npt.NDArray[np.float64]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def zeropower(g: Array, steps: int) -> Array:
    """zeropower_via_newtonschulz5 of airbench94_muon.py."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (np.linalg.norm(g) + 1e-7)
    if g.shape[0] > g.shape[1]:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


@dataclass
class Published:
    """The loop body of airbench94_muon's Muon, for one parameter."""

    weight: Array
    lr: float
    momentum: float
    nesterov: bool = True
    buffer: Array = field(init=False)

    def __post_init__(self) -> None:
        self.buffer = np.zeros_like(self.weight)

    def step(self, gradient: Array) -> None:
        self.buffer = self.momentum * self.buffer + gradient
        g = gradient + self.momentum * self.buffer if self.nesterov else self.buffer
        self.weight = self.weight * (len(self.weight) ** 0.5 / np.linalg.norm(self.weight))
        update = zeropower(g.reshape(len(g), -1), 3).reshape(g.shape)
        self.weight = self.weight - self.lr * update


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 4, 3, 3), (4, 16, 3, 3), (64, 3, 2, 2), (12, 12), (30, 5)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_steps_are_the_published_ones(
    shape: tuple[int, ...], nesterov: bool, memory_format: torch.memory_format
) -> None:
    begin = random(*shape)
    if len(shape) == 4:
        begin = begin.contiguous(memory_format=memory_format)
    weight = nn.Parameter(begin.clone())
    optimizer = Muon([weight], 0.24, momentum=0.6, nesterov=nesterov)
    published = Published(begin.double().numpy(), 0.24, 0.6, nesterov)
    for step in range(1, 7):
        gradient = random(*shape, seed=step) * 10.0 ** (step - 3)
        weight.grad = gradient.clone()
        optimizer.step()
        published.step(gradient.double().numpy())
        assert np.allclose(weight.detach().numpy(), published.weight, atol=2e-5)


@pytest.mark.parametrize("shape", [(32, 288), (288, 32), (64, 64)])
@pytest.mark.parametrize(("iterations", "low", "high"), [(5, 0.6, 1.25), (12, 0.6, 1.25)])
def test_the_update_is_nearly_orthogonal(
    shape: tuple[int, int], iterations: int, low: float, high: float
) -> None:
    matrix = random(*shape)
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    spectrum = torch.linspace(0.2, 1.0, min(shape), dtype=torch.float64)
    matrix = (left @ spectrum.diag() @ right).float()
    update = orthogonalize(matrix, iterations)
    values = torch.linalg.svdvals(update.double())
    assert values.min() > low
    assert values.max() < high
    # The singular vectors are those of the matrix.
    inner = left.T @ update.double() @ right.T
    assert (inner - inner.diagonal().diag()).abs().max() < 1e-4


def test_the_scale_of_the_gradient_does_not_matter_and_zero_is_zero() -> None:
    matrix = random(8, 20)
    assert torch.allclose(orthogonalize(matrix, 3), orthogonalize(1e3 * matrix, 3), atol=1e-5)
    assert torch.equal(orthogonalize(torch.zeros(8, 20), 3), torch.zeros(8, 20))


def test_ill_conditioned_gradients_are_not_lost_in_rounding() -> None:
    matrix = random(64, 4) @ random(4, 576, seed=1) + 1e-3 * random(64, 576, seed=2)
    expected = zeropower(matrix.double().numpy(), 3)
    assert np.abs(orthogonalize(matrix, 3).numpy() - expected).max() < 1e-5


def test_a_weight_of_zeros_and_no_gradient_stay_numbers() -> None:
    weights = [nn.Parameter(torch.zeros(4, 6)), nn.Parameter(random(4, 6))]
    begin = weights[1].detach().clone()
    optimizer = Muon(weights)
    weights[0].grad = random(4, 6)
    optimizer.step()
    assert weights[0].isfinite().all()
    assert torch.equal(weights[1], begin)


def test_the_first_and_the_last_layer_and_vectors_are_no_matrices_of_muon() -> None:
    kinds = muon_kinds(Net(NetConfig(), (1, 8, 8), 10))
    assert {name for name, kind in kinds.items() if kind == "hidden"} == {
        "conv2.weight",
        "fc1.weight",
    }
    assert {name for name, kind in kinds.items() if kind == "edge"} == {
        "conv1.weight",
        "fc2.weight",
    }
    kinds = muon_kinds(ResNet(ResNetConfig(), (3, 8, 8), 10))
    assert kinds["stem.weight"] == kinds["head.weight"] == "edge"
    assert kinds["bn.weight"] == kinds["head.bias"] == "vector"
    assert kinds["blocks.1.shortcut.0.weight"] == "hidden"


def test_attention_takes_muon_and_embeddings_do_not() -> None:
    net = nn.Sequential(
        nn.Embedding(5, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 8), nn.Linear(8, 3)
    )
    kinds = muon_kinds(net)
    # The attention's own projection is the first linear layer here.
    assert kinds["1.in_proj_weight"] == kinds["2.weight"] == "hidden"
    assert kinds["0.weight"] == "vector"
    assert kinds["3.weight"] == "edge"


class AirbenchLike(nn.Module):
    """A frozen first convolution with a bias, two kernels with normalisation, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 4, 2)
        self.whiten.weight.requires_grad_(False)
        self.conv1 = nn.Conv2d(4, 6, 3, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3, bias=False)
        self.head = nn.Linear(5, 3, bias=False)


def test_airbench_can_be_said() -> None:
    """Its rates are of a loss that is a sum over 2,000 images; ours is the mean.

    Its head is multiplied with 1 / 256 where it begins with a deviation of 1; ours with 1 / 9 where
    it begins as torch does, so its weights are ``256 / 9`` of ours.
    """
    batch, lr, bias_lr, head_lr, decay = 2000, 0.24, 0.053, 0.67, 2e-6 * 2000
    head_scale = 9 / 256
    torch.manual_seed(0)
    net, theirs = AirbenchLike(), AirbenchLike()
    theirs.load_state_dict(net.state_dict())
    with torch.no_grad():
        theirs.head.weight.div_(head_scale)
    optim = MuonConfig(
        lr=lr,
        bias_lr_ratio=bias_lr * batch / lr,
        head_lr_ratio=head_lr * batch * head_scale**2 / lr,
        weight_decay=decay / lr,
        decay_biases=True,
        decoupled=False,
    )
    assert optim.bias_lr_ratio == pytest.approx(442, abs=1)
    assert optim.head_lr_ratio == pytest.approx(6.9, abs=0.01)
    assert optim.weight_decay == pytest.approx(0.0167, abs=1e-4)
    ours = build_optimizer(TrainConfig(recipe="test", data="digits", optim=optim), net)
    biases = [theirs.whiten.bias, theirs.norm1.weight, theirs.norm1.bias]
    sgd = torch.optim.SGD(
        [
            {"params": biases, "lr": bias_lr, "weight_decay": decay / bias_lr},
            {"params": [theirs.head.weight], "lr": head_lr, "weight_decay": decay / head_lr},
        ],
        momentum=0.85,
        nesterov=True,
    )
    kernels = [
        Published(one.weight.detach().double().numpy(), lr, 0.6)
        for one in (theirs.conv1, theirs.conv2)
    ]
    for step in range(5):
        multiple = 1 - step / 5
        set_lr(ours, lr * multiple)
        for group, rate in zip(sgd.param_groups, (bias_lr, head_lr), strict=True):
            group["lr"] = rate * multiple
        gradients = {
            name: random(*one.shape, seed=step) * 1e-3
            for name, one in net.named_parameters()
            if one.requires_grad
        }
        for name, gradient in gradients.items():
            net.get_parameter(name).grad = gradient.clone()
            scale = head_scale if name == "head.weight" else 1
            theirs.get_parameter(name).grad = gradient * batch * scale
        ours.step()
        sgd.step()
        for kernel, name in zip(kernels, ("conv1.weight", "conv2.weight"), strict=True):
            kernel.lr = lr * multiple
            kernel.step(gradients[name].double().numpy())
    assert torch.equal(net.whiten.weight, theirs.whiten.weight)
    for name in ("whiten.bias", "norm1.weight", "norm1.bias"):
        assert torch.allclose(net.get_parameter(name), theirs.get_parameter(name), rtol=1e-4)
    assert torch.allclose(net.head.weight, theirs.head.weight * head_scale, rtol=1e-4, atol=1e-6)
    for kernel, layer in zip(kernels, (net.conv1, net.conv2), strict=True):
        assert np.allclose(layer.weight.detach().numpy(), kernel.weight, atol=2e-5)
