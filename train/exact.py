"""Gradients that do not depend on how many workers compute them.

A batch is cut into logical shards, each of which is computed by itself: its images, its batch
statistics and its random numbers are its own. What remains is to sum the shards' gradients in a
way in which neither order nor grouping matters, which floating-point addition is not: so they are
first rounded to multiples of a power of two (fixed point), chosen by the largest entry of all
shards so that no sum needs more than the 53 bits of a float64's significand. Each addition is then
exact, and so is the all-reduce. An entry keeps ``52 - log2(shards)`` bits below the largest of its
tensor, where float32 has 24.

The idea is that of Demmel and Nguyen 2013 ("Fast reproducible floating-point summation"), with one
pre-rounding for all, since the number of summands is known and small.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cluster.errors import ConfigError
from train.comm import Comm
from train.data.loader import Batch
from train.gradients import Forward

_SIGNIFICAND_BITS = 53


class Exact:
    """The sum over logical shards, each computed by whichever worker; see :class:`Gradients`.

    Args:
        net: the network; its batch normalisation is by shard.
        model: what takes a batch's images.
        comm: the peers.
        parts: this worker's, those of a shard one after the other.
        num_shards: of all workers.
        parts_per_shard: in how many parts each shard is computed, whose gradients are added up
            in their order.
    """

    def __init__(
        self,
        net: nn.Module,
        model: nn.Module,
        comm: Comm,
        parts: Sequence[int],
        num_shards: int,
        parts_per_shard: int = 1,
    ) -> None:
        self._net = net
        self._model = model
        self._comm = comm
        self.parts = parts
        self._num_shards = num_shards
        self._parts_per_shard = parts_per_shard
        self._norms = _RunningStatistics(net)
        self.rewrap()

    def rewrap(self) -> None:
        """Look which parameters are trained."""
        self._parameters = [one for one in self._net.parameters() if one.requires_grad]
        self._norms.choose()

    def compute(self, batches: Iterable[Batch], batch_size: int, forward: Forward) -> None:
        """See :class:`Gradients`.

        Raises:
            ConfigError: the network keeps other things than batch statistics while it trains.
        """
        shards = []
        with self._norms:
            for at, (part, batch) in enumerate(zip(self.parts, batches, strict=True)):
                if at % self._parts_per_shard == 0:
                    self._norms.begin()
                    for parameter in self._parameters:
                        parameter.grad = None
                forward(self._model, batch, part).backward()
                self._norms.take()
                if (at + 1) % self._parts_per_shard == 0:
                    shards.append([*self._gradients(), *self._norms.taken])
        sums = sum_exactly(shards, self._comm, self._num_shards)
        for parameter, total in zip(self._parameters, sums, strict=False):
            parameter.grad = total.div_(batch_size).to(parameter.dtype)
        self._norms.give(sums[len(self._parameters) :], self._num_shards * self._parts_per_shard)

    def _gradients(self) -> list[Tensor]:
        # A parameter that has no part in the loss has no gradient.
        return [torch.zeros_like(one) if one.grad is None else one.grad for one in self._parameters]


def sum_exactly(shards: list[list[Tensor]], comm: Comm, num_shards: int) -> list[Tensor]:
    """Sum tensors over all shards of all workers, without regard to order.

    Args:
        shards: for each of this worker's shards the same list of floating-point tensors.
        comm: the peers.
        num_shards: of all workers together.

    Returns:
        float64 sums in the tensors' shapes: not a number where a shard has no finite one.
    """
    largest = torch.stack([_largest(tensors) for tensors in shards]).amax(0)
    # A maximum over workers that says the same everywhere, whatever it makes of "not a number".
    comm.reduce(largest.nan_to_num_(nan=torch.inf), "max")
    finite = largest.isfinite()
    exponents = torch.frexp(largest.where(finite, 0).double() * num_shards).exponent
    grids = torch.ldexp(
        torch.ones_like(largest, dtype=torch.float64), exponents - _SIGNIFICAND_BITS + 1
    )
    inverse = (1 / grids).tolist()
    first = shards[0]
    flat = torch.zeros(sum(map(Tensor.numel, first)), dtype=torch.float64, device=largest.device)
    sums = [
        part.view(like.shape)
        for part, like in zip(flat.split([one.numel() for one in first]), first, strict=True)
    ]
    for tensors in shards:
        for total, tensor, factor in zip(sums, tensors, inverse, strict=True):
            total += tensor.double().mul_(factor).round_()
    comm.reduce(flat)
    for total, grid, good in zip(sums, grids.tolist(), finite.tolist(), strict=True):
        total.mul_(grid if good else torch.nan)
    return sums


def _largest(tensors: list[Tensor]) -> Tensor:
    """The largest magnitude of each tensor, as ``[tensors]``."""
    return torch.stack(
        [one.abs().amax() if one.numel() else one.new_zeros(()) for one in tensors]
    ).float()


class _RunningStatistics:
    """Batch normalisation's running averages, each step moved by the mean over all shards.

    Left alone, a worker's averages would move once for each of its own parts, in turn. Inside the
    context a layer keeps a part's own statistics, by a momentum of 1.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._layers: list[_BatchNorm] = []
        self._others: dict[str, Tensor] | None = None

    def choose(self) -> None:
        """Look which layers take statistics."""
        self._all = [
            layer
            for layer in self._net.modules()
            if isinstance(layer, _BatchNorm) and layer.track_running_stats
        ]

    def __enter__(self) -> None:
        self._layers = [layer for layer in self._all if layer.training]
        self._momenta = [layer.momentum for layer in self._layers]
        self._before = [one.clone() for layer in self._layers for one in _statistics(layer)]
        self._counts = [_count(layer).clone() for layer in self._layers]
        for layer in self._layers:
            layer.momentum = 1.0
        if self._others is None:
            self._others = {name: one.clone() for name, one in self._other_buffers().items()}

    def __exit__(self, *_: object) -> None:
        for layer, momentum in zip(self._layers, self._momenta, strict=True):
            layer.momentum = momentum

    def begin(self) -> None:
        """Forget what was taken: another shard begins."""
        self.taken: list[Tensor] = []

    def take(self) -> None:
        """Add mean and variance of each layer, of the part that was computed last."""
        self._check_others()
        statistics = [one for layer in self._layers for one in _statistics(layer)]
        if self.taken:
            for total, one in zip(self.taken, statistics, strict=True):
                total += one
        else:
            self.taken = [one.clone() for one in statistics]

    def give(self, sums: list[Tensor], num_parts: int) -> None:
        """Move the averages, given the sums of all parts' statistics."""
        old, new = iter(self._before), iter(sums)
        for layer, count in zip(self._layers, self._counts, strict=True):
            _count(layer).copy_(count + 1)
            # Without a momentum PyTorch takes the mean of all batches so far.
            share = layer.momentum if layer.momentum is not None else 1 / (int(count) + 1)
            for running in _statistics(layer):
                running.copy_(next(old).double().lerp_(next(new).div_(num_parts), share))

    def _check_others(self) -> None:
        for name, before in (self._others or {}).items():
            if not torch.equal(self._net.get_buffer(name), before):
                raise ConfigError(
                    f"exact: the network changes its buffer {name} in every forward pass, and only "
                    "batch normalisation's can be kept the same for any number of workers; train "
                    "without exact"
                )
        self._others = {}  # Once is enough.

    def _other_buffers(self) -> dict[str, Tensor]:
        own = {id(buffer) for layer in self._all for buffer in layer.buffers()}
        return {name: one for name, one in self._net.named_buffers() if id(one) not in own}


def _statistics(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def _count(layer: _BatchNorm) -> Tensor:
    assert layer.num_batches_tracked is not None
    return layer.num_batches_tracked
