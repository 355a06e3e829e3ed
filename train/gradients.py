"""How the gradient of a batch comes about when several workers each compute parts of it."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from train.comm import Comm
from train.config import HardwareConfig
from train.data.loader import Batch

SETTLING_STEPS = 2


class Forward(Protocol):
    """Loss and logits of a part of a batch."""

    def __call__(self, model: nn.Module, batch: Batch, part: int) -> Tensor:
        """The sum of the loss over the part's images, times the scale of mixed precision."""


class Gradients(Protocol):
    """Leaves the mean gradient of a batch in ``.grad``, the same on every worker."""

    parts: Sequence[int]
    """Which parts of each batch are this worker's."""

    def rewrap(self) -> None:
        """Other parameters are trained from now on."""

    def compute(self, batches: Iterable[Batch], batch_size: int, forward: Forward) -> None:
        """Compute the gradient of one batch, given this worker's parts of it."""


class Averaged:
    """DistributedDataParallel: each worker's gradients are averaged while others are computed.

    Workers' parts of a batch may be of unequal size: each image counts the same.

    Args:
        model: what takes a batch's images.
        comm: the peers.
        hardware: options of the wrapper.
        parts: this worker's.
        images: uint8 ``[n, channels, height, width]``, some that the model takes.
    """

    def __init__(
        self,
        model: nn.Module,
        comm: Comm,
        hardware: HardwareConfig,
        parts: Sequence[int],
        images: Tensor,
    ) -> None:
        self._model = model
        self._comm = comm
        self._images = images
        self.parts = parts
        # A static graph is recorded in the first backward pass, which no_sync would hide.
        static = hardware.static_graph and len(parts) == 1
        self._hardware = hardware.model_copy(update={"static_graph": static})
        self.rewrap()

    def rewrap(self) -> None:
        """Wrap the model anew: DistributedDataParallel looks once which parameters are trained."""
        self._wrapped: nn.Module | None = None  # Before the next one, so that its hooks go first.
        self._wrapped = self._comm.wrap(self._model, self._hardware)
        if self._comm.world > 1 and self._hardware.static_graph:
            self._settle_buckets(self._wrapped)

    def _settle_buckets(self, model: nn.Module) -> None:
        """Take steps that are thrown away.

        After its first ones DistributedDataParallel groups the gradients anew, by the order in
        which they came. More than two workers then add them up in another order, and a run that
        goes on from a checkpoint would begin with the order that the whole one had left. With a
        static graph the first step is recorded, the second one's order is taken by the third.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        with torch.random.fork_rng(devices=[]):
            for _ in range(SETTLING_STEPS):
                model(self._images).sum().backward()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        self._model.zero_grad(set_to_none=True)

    def compute(self, batches: Iterable[Batch], batch_size: int, forward: Forward) -> None:
        """See :class:`Gradients`."""
        model = self._wrapped
        assert model is not None
        last = self.parts[-1]
        for part, batch in zip(self.parts, batches, strict=True):
            apart = part != last and self._comm.world > 1
            quiet = model.no_sync() if apart else contextlib.nullcontext()  # type: ignore[operator]
            with quiet:
                # DistributedDataParallel takes the mean over workers of what are shares of a mean.
                (forward(model, batch, part) * (self._comm.world / batch_size)).backward()
