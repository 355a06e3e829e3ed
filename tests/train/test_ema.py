"""The average of the weights."""

import copy

import pytest
import torch
from torch import Tensor, nn

from cluster.errors import CheckpointError
from train.config import EmaConfig
from train.ema import Ema


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def move(net: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))
            else:
                value.add_(1)


def values_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("every", [1, 3])
def test_it_is_the_recurrence(every: int) -> None:
    net = small_net()
    ema = Ema(net, EmaConfig(decay=0.8, every=every))
    expected = {name: value.double() for name, value in net.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 61):
        move(net, generator)
        ema.update(step)
        if step % every == 0:
            decay = min(0.8, (1 + step) / (10 + step)) ** every
            for name, value in net.state_dict().items():
                expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in ema.state_dict().items():
        if name == "1.num_batches_tracked":
            assert value == 60 == net.state_dict()[name]
        else:
            assert torch.allclose(value.double(), expected[name], atol=1e-5), name


def test_the_random_beginning_is_forgotten() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 100.0)
    ema = Ema(net, EmaConfig(decay=0.999))
    nn.init.constant_(net.weight, 1.0)
    for step in range(1, 101):
        ema.update(step)
    assert ema.state_dict()["weight"].item() == pytest.approx(1.0, abs=1e-3)


def test_weights_that_stand_still_are_their_own_average() -> None:
    net = small_net()
    ema = Ema(net, EmaConfig())
    for step in range(1, 20):
        ema.update(step)
    assert all(torch.equal(ema.state_dict()[key], one) for key, one in net.state_dict().items())


def test_swapping_puts_the_average_in_and_the_weights_back() -> None:
    net = small_net()
    ema = Ema(net, EmaConfig(decay=0.9))
    move(net, torch.Generator().manual_seed(1))
    ema.update(1)
    trained, averages = values_of(net), copy.deepcopy(ema.state_dict())
    addresses = [value.data_ptr() for value in net.parameters()]
    with ema.swapped():
        inside = values_of(net)
        assert torch.is_grad_enabled()
    assert all(torch.equal(inside[key], averages[key]) for key in inside)
    assert not torch.equal(inside["0.weight"], trained["0.weight"])
    assert all(torch.equal(value, trained[key]) for key, value in net.state_dict().items())
    assert all(torch.equal(value, averages[key]) for key, value in ema.state_dict().items())
    # An optimizer and DistributedDataParallel hold the very tensors.
    assert [value.data_ptr() for value in net.parameters()] == addresses


def test_an_error_inside_leaves_the_trained_weights() -> None:
    net = small_net()
    ema = Ema(net, EmaConfig())
    move(net, torch.Generator().manual_seed(1))
    trained = values_of(net)
    with pytest.raises(RuntimeError, match="boom"), ema.swapped():
        raise RuntimeError("boom")
    assert all(torch.equal(value, trained[key]) for key, value in net.state_dict().items())


def test_a_resumed_average_goes_on_to_the_same_bits() -> None:
    def run(stop: int | None) -> dict[str, Tensor]:
        net = small_net()
        ema = Ema(net, EmaConfig(decay=0.95))
        generator = torch.Generator().manual_seed(1)
        for step in range(1, 21):
            if step == stop:
                saved = copy.deepcopy(ema.state_dict())
                ema = Ema(net, EmaConfig(decay=0.95))
                ema.load_state_dict(saved)
            move(net, generator)
            ema.update(step)
        return ema.state_dict()

    whole, cut = run(None), run(9)
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_the_average_of_another_network_is_refused() -> None:
    other = Ema(nn.Linear(3, 4), EmaConfig()).state_dict()
    with pytest.raises(CheckpointError, match="of another network"):
        Ema(small_net(), EmaConfig()).load_state_dict(other)
