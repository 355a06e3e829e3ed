"""Winograd's convolution is a convolution, gradients included, and is used in training alone."""

import copy
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models import winograd
from train.models.winograd import use_winograd, winograd_conv2d

Batch = tuple[Tensor, Tensor, Tensor]


def make_batch(
    n: int, channels_in: int, channels_out: int, side: tuple[int, int], dtype: torch.dtype
) -> Batch:
    random = torch.Generator().manual_seed(0)
    shapes = ((n, channels_in, *side), (channels_out, channels_in, 3, 3), (n, channels_out, *side))
    x, weight, grad = (torch.randn(shape, generator=random, dtype=dtype) for shape in shapes)
    return x.requires_grad_(), weight.requires_grad_(), grad


def compute(convolve: Any, batch: Batch) -> tuple[Tensor, ...]:
    x, weight, grad = batch
    y = convolve(x, weight)
    return (y, *torch.autograd.grad(y, (x, weight), grad))


def plain(x: Tensor, weight: Tensor, padding: int = 1) -> Tensor:
    return F.conv2d(x, weight, padding=padding)


@pytest.mark.parametrize("side", [(1, 1), (3, 5), (4, 4), (7, 8), (10, 13)])
def test_it_is_the_convolution(side: tuple[int, int]) -> None:
    batch = make_batch(3, 5, 7, side, torch.float64)
    torch.testing.assert_close(
        compute(winograd_conv2d, batch), compute(plain, batch), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("side", [(3, 4), (6, 6), (10, 13)])
def test_without_padding_too(side: tuple[int, int]) -> None:
    x, weight, _ = make_batch(3, 5, 7, side, torch.float64)
    batch = (x, weight, torch.randn(3, 7, side[0] - 2, side[1] - 2, dtype=torch.float64))
    torch.testing.assert_close(
        compute(functools.partial(winograd_conv2d, padding=0), batch),
        compute(functools.partial(plain, padding=0), batch),
        rtol=1e-11,
        atol=1e-11,
    )


def test_chunks_of_a_batch_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(7, 4, 6, (9, 9), torch.float64)
    whole = compute(winograd_conv2d, batch)
    # Of 9 tiles, 36 numbers and 6 channels an image: chunks of three images, and one of one.
    monkeypatch.setattr(winograd, "_CHUNK_NUMBERS", 3 * 9 * 36 * 6)
    torch.testing.assert_close(compute(winograd_conv2d, batch), whole, rtol=1e-12, atol=1e-12)


def test_its_gradients_are_those_of_finite_differences() -> None:
    x, weight, _ = make_batch(2, 2, 3, (5, 6), torch.float64)
    assert torch.autograd.gradcheck(winograd_conv2d, (x, weight))


def test_what_is_frozen_has_no_gradient() -> None:
    x, weight, grad = make_batch(2, 4, 6, (5, 5), torch.float64)
    for frozen, trained in ((x, weight), (weight, x)):
        frozen.requires_grad_(False)
        winograd_conv2d(x, weight).backward(grad)
        assert frozen.grad is None
        got = trained.grad
        (wanted,) = torch.autograd.grad(plain(x, weight), trained, grad)
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)
        frozen.requires_grad_()
        trained.grad = None


def test_rounding_stays_small_in_float32() -> None:
    narrow = make_batch(16, 256, 256, (7, 7), torch.float32)
    exact = compute(
        plain,
        tuple(one.detach().double().requires_grad_(one.requires_grad) for one in narrow),  # type: ignore[arg-type]
    )
    for got, wanted in zip(compute(winograd_conv2d, narrow), exact, strict=True):
        assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_stays(layout: torch.memory_format) -> None:
    x, weight, _ = make_batch(2, 4, 4, (6, 6), torch.float32)
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    y = winograd_conv2d(x, weight)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y.is_contiguous(memory_format=layout)
    assert grad.is_contiguous(memory_format=layout)


def calls_of(net: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many convolutions of a forward pass are Winograd's."""
    calls = []
    real = winograd.winograd_conv2d

    def counted(x: Tensor, weight: Tensor, padding: int) -> Tensor:
        calls.append(x.shape)
        return real(x, weight, padding)

    monkeypatch.setattr(winograd, "winograd_conv2d", counted)
    net(x)
    monkeypatch.setattr(winograd, "winograd_conv2d", real)
    return len(calls)


def test_only_training_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Conv2d(48, 96, 3, padding=1)
    assert use_winograd(net) == 1
    x = torch.randn(32, 48, 8, 8)
    assert calls_of(net, x, monkeypatch) == 1
    # In other modes, in other types, and where it would be slower.
    assert calls_of(net.eval(), x, monkeypatch) == 0
    net.train()
    with torch.no_grad():
        assert calls_of(net, x, monkeypatch) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert calls_of(net, x, monkeypatch) == 0
    assert calls_of(net, torch.randn(32, 48, 2, 2), monkeypatch) == 0
    assert calls_of(net, torch.randn(8, 48, 8, 8), monkeypatch) == 0
    assert calls_of(net, torch.randn(48, 64, 64), monkeypatch) == 0
    assert calls_of(net.double(), x.double(), monkeypatch) == 0


class Standardized(nn.Conv2d):
    """As in timm's ResNetV2: it convolves with another weight than its own."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


@pytest.mark.parametrize(
    "conv",
    [
        Standardized(96, 96, 3, padding=1),
        nn.Conv2d(96, 96, 3, padding=1, stride=2),
        nn.Conv2d(96, 96, 3, padding=2),
        nn.Conv2d(96, 96, 3, padding=(0, 1)),
        nn.Conv2d(96, 96, 3, padding=2, dilation=2),
        nn.Conv2d(96, 96, 5, padding=2),
        nn.Conv2d(96, 96, 3, padding=1, groups=2),
        nn.Conv2d(96, 96, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(96, 96, 3, padding="same"),
        nn.Conv2d(16, 96, 3, padding=1),
        nn.Conv2d(48, 48, 3, padding=1),
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    assert use_winograd(nn.Sequential(conv)) == 0
    assert "forward" not in vars(conv)


def test_a_copy_uses_its_own_weights_and_bias() -> None:
    conv = nn.Conv2d(48, 96, 3, padding=1)
    net = nn.Sequential(conv)
    use_winograd(net)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    x = torch.randn(32, 48, 8, 8)
    assert other(x).abs().max() == 0
    wanted = F.conv2d(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(net(x), wanted, rtol=1e-4, atol=1e-4)
